//! What can go wrong with a lattice.

use airssys_wasm_actor::registry::{ComponentId, MessageEnvelope, Undelivered};
use airssys_wasm_keyed::InstallError;

use crate::config::HostName;

/// A host did not join.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// An option makes no sense.
    #[error("`{option}` of a lattice is too small")]
    TooSmall {
        /// Which.
        option: &'static str,
    },
    /// The same of one that is too large.
    #[error("`{option}` of a lattice is too large")]
    TooLarge {
        /// Which.
        option: &'static str,
    },
    /// A server's address cannot be read.
    #[error("`{server}` is not the address of a server; write `nats://HOST:PORT` or `tls://HOST:PORT`")]
    Address {
        /// What was given.
        server: String,
    },
    /// The file with the credentials was not read.
    #[error("the credentials were not read")]
    Credentials {
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// No server let this host in.
    #[error(
        "no server let this host in; is one running, with these credentials, and with TLS if it is not on loopback?"
    )]
    Connect {
        /// The cause.
        #[source]
        source: async_nats::ConnectError,
    },
    /// The server is too old.
    #[error("the server is nats-server {found}, and {oldest} or newer is needed")]
    TooOld {
        /// Its version.
        found: String,
        /// The oldest.
        oldest: String,
    },
    /// The lattice's records are not to be had.
    #[error("the lattice's records are not to be had; does the server have JetStream, and this host the permissions?")]
    Records {
        /// The cause.
        #[source]
        source: async_nats::Error,
    },
    /// A subscription failed.
    #[error("the server was lost while this host joined")]
    Lost,
    /// The host has joined a lattice, or another has its name and goes on renewing it.
    #[error("`{host}` is in the lattice already")]
    HostTaken {
        /// The name.
        host: HostName,
    },
}

/// A name was not exported.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// Another host has it.
    #[error("`{name}` is the host `{holder}`'s")]
    NameTaken {
        /// The name.
        name: ComponentId,
        /// Who has it.
        holder: HostName,
    },
    /// This host exports it already.
    #[error("`{name}` is exported already")]
    Exported {
        /// The name.
        name: ComponentId,
    },
    /// This host is not in the lattice now.
    #[error("this host is not in the lattice now")]
    NotJoined,
    /// The records could not be written, and it is not known whether they were.
    #[error("the lattice's records could not be written")]
    Records {
        /// The cause.
        #[source]
        source: async_nats::Error,
    },
}

/// A kind was not exported.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportKindError {
    /// It was not installed.
    #[error(transparent)]
    Install(#[from] InstallError),
    /// This host has left the lattice, or its system is gone.
    #[error("this host has left the lattice, or its system is gone")]
    Left,
}

/// A message was not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TellError {
    /// It was certainly not handled, and will not be. It comes back.
    #[error(transparent)]
    NotSent(Undelivered),
    /// The receiver's host was lost with the message on its way: whether it was taken is not known. A copy comes back.
    #[error("the receiver's host was lost, and whether the message was taken is not known")]
    Lost {
        /// The message.
        message: MessageEnvelope,
    },
}

impl From<Undelivered> for TellError {
    fn from(undelivered: Undelivered) -> Self {
        Self::NotSent(undelivered)
    }
}
