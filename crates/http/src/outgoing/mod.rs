//! Requests that guests send: what is granted, which addresses are refused, and the client.

mod addresses;
mod client;
mod denials;
mod grants;
mod resolve;
mod tls;

pub use client::Outgoing;
pub(crate) use denials::Denials;
pub use grants::{Allow, AllowedMethod, OutgoingLimits, OutgoingScheme};
pub use resolve::{Resolve, SystemResolver};
