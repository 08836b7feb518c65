//! Buckets of keys and values for components: the store of the embedder, one in memory, and what a component is granted of it.
//!
//! Linking them is left to `link/keyvalue.rs`, which knows the store's data.

mod access;
mod account;
mod memory;
mod store;

pub(crate) use access::KeyValueAccess;
pub use access::KeyValueGrants;
pub use account::{Account, Charge, ENTRY_COST, QuotaExceeded};
pub use memory::MemoryStore;
pub use store::{Bucket, KeyPage, KeyValueError, KeyValueStore, StoreFuture};
