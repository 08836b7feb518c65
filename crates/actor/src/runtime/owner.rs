//! The owner of an actor's restarts, and the events that a supervisor receives.

use tokio::sync::mpsc;

use crate::failure::{policy::History, report::Failure};

/// Decides on an actor's restarts.
pub(crate) enum Owner {
    /// The actor's own policy.
    Itself(History),
    /// A supervisor, which receives events and sends orders.
    Supervisor { child: usize, order: u64, events: mpsc::UnboundedSender<ChildEvent> },
}

/// A child's event for its supervisor. `order` is the last order the child received, to tell stale events.
pub(crate) struct ChildEvent {
    pub(crate) child: usize,
    pub(crate) order: u64,
    pub(crate) what: ChildEventKind,
}

pub(crate) enum ChildEventKind {
    Started,
    Failed(Failure),
    Suspended,
    /// Ended: stopped, killed or given up.
    Gone,
}
