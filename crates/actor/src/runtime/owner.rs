//! Who decides on an actor's restarts, and what a supervisor is told.

use tokio::sync::mpsc;

use crate::failure::{policy::History, report::Failure};

/// Who decides on restarts.
pub(crate) enum Owner {
    /// The actor's own policy.
    Itself(History),
    /// A supervisor, which is told what happened and gives orders.
    Supervisor { child: usize, order: u64, events: mpsc::UnboundedSender<ChildEvent> },
}

/// What a child tells its supervisor. Stale ones are known by the last order the child had heard.
pub(crate) struct ChildEvent {
    pub(crate) child: usize,
    pub(crate) order: u64,
    pub(crate) what: ChildEventKind,
}

pub(crate) enum ChildEventKind {
    Started,
    Failed(Failure),
    Suspended,
    /// For good: stopped, killed or given up.
    Gone,
}
