//! WebAssembly actors by kind and key: in memory while they are needed, their state kept in a store.

mod store;

pub use store::{Durability, Saved, StateStore, StoreError, StoreFuture, Version, memory::MemoryStore};
