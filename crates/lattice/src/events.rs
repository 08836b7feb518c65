//! What is told of a lattice.

use airssys_wasm_actor::registry::ComponentId;

use crate::{config::HostName, digest::Digest};

/// Something happened in a lattice.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum LatticeEvent {
    /// A host joined, or joined again.
    Joined {
        /// Which.
        host: HostName,
    },
    /// A host left, or its session is over.
    Left {
        /// Which.
        host: HostName,
    },
    /// This host has no session any more: what it had leased is stopped, and it tries to join again.
    Fenced,
    /// This host has a session again.
    Rejoined,
    /// A name that this host had exported is another's since, and is not exported any more.
    NameLost {
        /// The name.
        name: ComponentId,
        /// Who has it.
        holder: Option<HostName>,
    },
    /// This host serves a name that it stood by for.
    Serving {
        /// The name.
        name: ComponentId,
    },
    /// A component that is placed on this host runs here.
    Placed {
        /// Its name.
        name: ComponentId,
        /// Its version.
        digest: Digest,
    },
    /// A version of a component was to run on this host, and does not.
    NotPlaced {
        /// Its name.
        name: ComponentId,
        /// The version.
        digest: Digest,
        /// Why.
        because: String,
    },
    /// A version of a component failed on probation on this host, and the one before takes over.
    RolledBack {
        /// Its name.
        name: ComponentId,
        /// The version that failed.
        digest: Digest,
    },
    /// The servers were lost.
    Offline,
    /// There are servers again.
    Online,
    /// What other hosts had sent came faster than it was taken here, and something of it was dropped: publications, which are lost, or packets,
    /// of which the lanes find what was in them. Which of both, is not always known. Of publications that wait for a subscriber it is told when
    /// dropping begins, and again after something of the pattern was taken.
    PublicationsDropped,
}
