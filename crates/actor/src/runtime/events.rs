//! A system's events.

use std::{fmt, sync::Arc, time::Duration};

use airssys_wasm_registry::{ActorAddress, ComponentId};

use crate::{CrashReport, RecycleReason, failure::kept::NotSavedError};

/// How many events a receiver may lag behind.
pub(crate) const EVENTS: usize = 1_024;

/// An event of a system. A receiver that lags by more than a thousand events learns how many it missed.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum SystemEvent {
    /// An incarnation started.
    Started {
        /// The actor.
        actor: ActorAddress,
        /// The incarnation, counted from 1.
        incarnation: u64,
    },
    /// An incarnation crashed.
    Crashed(Arc<CrashReport>),
    /// An actor will be restarted.
    Restarting {
        /// The actor.
        actor: ActorAddress,
        /// The wait before the restart.
        after: Duration,
    },
    /// An actor or a supervisor exceeded its intensity and was given up.
    GivenUp {
        /// Its name.
        name: ComponentId,
    },
    /// An actor was upgraded or rolled back to another version.
    Upgraded {
        /// The actor.
        actor: ActorAddress,
        /// The incarnation, counted from 1.
        incarnation: u64,
    },
    /// A version on probation failed and is replaced by the one before.
    RolledBack {
        /// The actor.
        actor: ActorAddress,
    },
    /// An actor's instance was replaced by a fresh one, by its [`Recycle`](crate::Recycle).
    Recycled {
        /// The actor.
        actor: ActorAddress,
        /// The incarnation, counted from 1.
        incarnation: u64,
        /// The limit that was reached.
        because: RecycleReason,
    },
    /// An actor ended.
    Stopped {
        /// The actor.
        actor: ActorAddress,
    },
    /// An actor whose state is kept has left the memory until there is a message for it again.
    Passivated {
        /// The actor.
        actor: ActorAddress,
    },
    /// The state of an actor was not saved.
    NotSaved {
        /// The actor.
        actor: ActorAddress,
        /// Why.
        error: Arc<NotSavedError>,
    },
    /// A guest tried something it is not granted.
    Denied {
        /// The actor.
        actor: ActorAddress,
        /// The denied call.
        action: DeniedAction,
        /// The call's target: a valid name, topic or pattern.
        target: String,
        /// Denials in this incarnation so far. Only the first, second, fourth, and so on make an event, so that a guest
        /// cannot flood the events.
        denials: u64,
    },
}

/// A call that needs a grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each is the import of that name")]
pub enum DeniedAction {
    Send,
    Request,
    Call,
    Publish,
    Subscribe,
}

impl fmt::Display for DeniedAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Send => "send",
            Self::Request => "request",
            Self::Call => "call",
            Self::Publish => "publish",
            Self::Subscribe => "subscribe",
        })
    }
}
