//! Several hosts, one system.

mod clock;
mod config;
mod connection;
mod directory;
mod error;
mod events;
mod fence;
mod frame;
mod host;
mod lane;
mod lattice;
mod lease;
mod name;
mod recipient;

pub use airssys_wasm_actor as actor;

pub use config::{Credentials, HostName, InvalidName, LatticeConfig};
pub use error::{ExportError, JoinError, TellError};
pub use events::LatticeEvent;
pub use lattice::Lattice;
pub use recipient::Recipient;
