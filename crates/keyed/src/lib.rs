//! WebAssembly actors by kind and key: in memory while they are needed, their state kept in a store.
//!
//! A [`Keyed`] is a kind, installed in an [`ActorSystem`](airssys_wasm_actor::ActorSystem) from a [`KeyedSpec`]. Its actors have
//! names as `cart/4711`. A message to a name brings the actor into memory: its row is read from a [`StateStore`], and given
//! to the guest's `restore`. When it has had no message for a while, its `snapshot` is saved and it leaves.
//!
//! ```
//! use std::sync::Arc;
//!
//! use airssys_wasm_actor::{ActorSpec, ActorSystem, SystemConfig};
//! use airssys_wasm_engine::{EngineConfig, Profile, WasmEngine};
//! use airssys_wasm_isolation::SandboxSpec;
//! use airssys_wasm_keyed::{Keyed, KeyedSpec, MemoryStore};
//! use airssys_wasm_limits::{ByteSize, ResourceLimits};
//! # const COUNTER: &[u8] = airssys_wasm_fixtures::COUNTER;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let system = ActorSystem::new(WasmEngine::new(EngineConfig::small().compile_in_process())?, SystemConfig::default());
//! let component = system.engine().load(COUNTER, Profile::Plain).await?;
//! let sandbox = SandboxSpec::new(system.link(&component)?, ResourceLimits::with_memory(ByteSize::mib(8)))?;
//! let spec = KeyedSpec::new(ActorSpec::new("cart".parse()?, sandbox));
//! let carts = Keyed::install(&system, spec, Arc::new(MemoryStore::new())).await?;
//!
//! assert_eq!(carts.actor("4711")?.ask("add 2").await?, "2");
//! assert!(carts.passivate("4711").await?);
//! assert!(system.find("cart/4711").is_none());
//! assert_eq!(carts.actor("4711")?.ask("add 40").await?, "42");
//! # Ok(())
//! # }
//! ```
//!
//! [`KeyedOptions`] say when state is saved ([`SaveWhen`]), how many actors are in memory, and what activations are
//! admitted. [`load`] takes a `Component.toml` with a `[keyed]` table instead.
//!
//! # What it leaves to others
//!
//! Mailboxes, restarts and supervision are those of `airssys-wasm-actor`. Actors are of one process, unless an [`Owner`] says which
//! keys are this host's: `airssys-wasm-lattice` has one. Messages are not kept, only state: there is no outbox.

mod events;
mod keyed;
mod kind;
mod manifest;
mod metrics;
mod options;
mod owner;
mod reminders;
mod store;

pub use airssys_wasm_actor as actor;

pub use events::KeyedEvent;
pub use keyed::{ForgetError, InstallError, KeyError, Keyed, KeyedRef, KeyedSpec, KeyedStats};
pub use kind::upgrade::KindUpgrade;
pub use manifest::{KeyedTable, LoadKeyedError, load};
pub use options::{Admission, KeyedOptions, Keys, Rate, SaveWhen};
pub use owner::Owner;
pub use reminders::{ReminderConfig, StoredReminders};
pub use store::{
    Durability, Saved, StateStore, StoreError, StoreFuture, Version, conformance,
    embedded::{FjallStore, OpenError, StoreConfig},
    memory::MemoryStore,
};
