//! Several hosts, one system, over [NATS](https://nats.io).
//!
//! A host that has joined a [`Lattice`] exports actors; from then on other hosts tell, ask and send to them by name. A [`Recipient`] is an
//! actor here or on another host. What becomes of a message is exact: handled, refused, or of unknown fate, because its receiver's host
//! was lost with it.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use airssys_wasm_lattice::{Lattice, LatticeConfig, actor::ActorSystem};
//!
//! # async fn run(system: ActorSystem) -> Result<(), Box<dyn std::error::Error>> {
//! let config = LatticeConfig::new("shop".parse()?, "host-a".parse()?).with_servers(["nats://127.0.0.1:4222"]);
//! let lattice = Lattice::join(&system, config).await?;
//! if let Some(counter) = system.find("counter") {
//!     lattice.export(&counter).await?;
//! }
//! let billing = lattice.recipient("billing".parse()?);
//! let answer = billing.ask_within(Duration::from_secs(2), "invoice 4711").await?;
//! # Ok(())
//! # }
//! ```
//!
//! What each failure costs, how to run it, and what a host is to be permitted, is in `docs/lattice.md`.
//!
//! # What it leaves to others
//!
//! Actors, mailboxes and supervision are those of `airssys-wasm-actor`, kinds and their states those of `airssys-wasm-keyed`.
//! Encryption, accounts and the storage of records are the servers'.

mod alone;
mod clock;
mod config;
mod connection;
mod deploy;
mod digest;
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
mod offer;
mod placement;
mod recipient;
mod slots;
mod stood_by;
mod store;

pub use airssys_wasm_actor as actor;
pub use async_nats;

pub use alone::StandBy;
pub use config::{Credentials, HostName, InvalidName, LatticeConfig};
pub use deploy::{
    AcceptError, AcceptOptions, Accepting, ChangeError, ComponentError, DeployError, Deployed, Deployment, Instance,
    InstanceState, NotRun, Placed, RollError, RollOptions, WhyNot,
};
pub use digest::{Digest, InvalidDigest};
pub use error::{ExportError, ExportKindError, JoinError, TellError};
pub use events::LatticeEvent;
pub use lattice::Lattice;
pub use manifest::{Export, LatticeTable, LoadKindError, LoadLatticeError, Loaded};
pub use offer::OfferError;
pub use recipient::Recipient;
pub use store::{BucketConfig, BucketError, JetStreamStore, Storage};
