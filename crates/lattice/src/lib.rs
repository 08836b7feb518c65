//! Several hosts, one system.

mod name;
mod store;

pub use async_nats;
pub use store::{BucketConfig, BucketError, JetStreamStore, Storage};
