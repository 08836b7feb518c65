//! WebAssembly actors by kind and key: in memory while they are needed, their state kept in a store.

mod events;
mod keyed;
mod kind;
mod manifest;
mod metrics;
mod options;
mod store;

pub use airssys_wasm_actor as actor;

pub use events::KeyedEvent;
pub use keyed::{ForgetError, InstallError, KeyError, Keyed, KeyedRef, KeyedSpec, KeyedStats};
pub use kind::upgrade::KindUpgrade;
pub use manifest::{KeyedTable, LoadKeyedError, load};
pub use options::{Admission, KeyedOptions, Keys, Rate, SaveWhen};
pub use store::{Durability, Saved, StateStore, StoreError, StoreFuture, Version, memory::MemoryStore};

/// A kind has as many keys with state as it may have.
#[derive(Debug, thiserror::Error)]
#[error("the kind has {allowed} keys with state, and may not have more; raise `most_keys`, or forget some")]
pub(crate) struct TooManyKeys {
    allowed: u64,
}
