//! Several hosts, one system.

mod alone;
mod clock;
mod config;
mod connection;
mod directory;
mod error;
mod events;
mod fence;
mod frame;
mod host;
mod joined;
mod lane;
mod lattice;
mod lease;
mod manifest;
#[cfg(test)]
mod model;
mod name;
mod recipient;
mod slots;
mod store;

pub use airssys_wasm_actor as actor;
pub use async_nats;

pub use alone::StandBy;
pub use config::{Credentials, HostName, InvalidName, LatticeConfig};
pub use error::{ExportError, ExportKindError, JoinError, TellError};
pub use events::LatticeEvent;
pub use lattice::Lattice;
pub use manifest::{Export, LatticeTable, LoadLatticeError, Loaded};
pub use recipient::Recipient;
pub use store::{BucketConfig, BucketError, JetStreamStore, Storage};
