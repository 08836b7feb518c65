//! Events of a system.

use std::{fmt, sync::Arc, time::Duration};

use airssys_wasm_registry::{ActorAddress, ComponentId};

use crate::{CrashReport, RecycleReason};

/// Events that a receiver may lag behind.
pub(crate) const EVENTS: usize = 1_024;

/// Something that happened in a system. A receiver that lags more than a thousand behind is told how many it missed.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum SystemEvent {
    /// An incarnation came to life.
    Started {
        /// Whose.
        actor: ActorAddress,
        /// Its number, from 1.
        incarnation: u64,
    },
    /// An incarnation crashed.
    Crashed(Arc<CrashReport>),
    /// An actor will be started again.
    Restarting {
        /// Which.
        actor: ActorAddress,
        /// How long from now.
        after: Duration,
    },
    /// An actor or a supervisor failed too often and was given up.
    GivenUp {
        /// Its name.
        name: ComponentId,
    },
    /// An actor went over to another version.
    Upgraded {
        /// Which.
        actor: ActorAddress,
        /// Its number, from 1.
        incarnation: u64,
    },
    /// A new version failed while it was on probation, and the one before takes over.
    RolledBack {
        /// Whose.
        actor: ActorAddress,
    },
    /// An actor went over to a fresh instance of its component, as its [`Recycle`](crate::Recycle) says.
    Recycled {
        /// Which.
        actor: ActorAddress,
        /// Its number, from 1.
        incarnation: u64,
        /// Why.
        because: RecycleReason,
    },
    /// An actor is gone.
    Stopped {
        /// Which.
        actor: ActorAddress,
    },
    /// A guest tried what it is not granted.
    Denied {
        /// Who.
        actor: ActorAddress,
        /// What.
        action: DeniedAction,
        /// With whom: a valid name, topic or pattern.
        target: String,
        /// How often that has happened in this incarnation. There is an event for the first, the second, the fourth, and
        /// so on: no guest is to drown the others' events.
        denials: u64,
    },
}

/// What a guest tried to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each is the import of that name")]
pub enum DeniedAction {
    Send,
    Request,
    Publish,
    Subscribe,
}

impl fmt::Display for DeniedAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Send => "send",
            Self::Request => "request",
            Self::Publish => "publish",
            Self::Subscribe => "subscribe",
        })
    }
}
