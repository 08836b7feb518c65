//! The states of an actor.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What an actor is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Lifecycle {
    /// The first start is under way. Messages wait in the mailbox.
    Starting,
    /// The actor handles messages.
    Running,
    /// The actor waits for its next incarnation. Messages wait in the mailbox.
    Restarting,
    /// The actor drains its mailbox and refuses new messages.
    Stopping,
    /// The actor has ended.
    Stopped,
}

impl Lifecycle {
    pub(super) const ALL: [Self; 5] = [Self::Starting, Self::Running, Self::Restarting, Self::Stopping, Self::Stopped];
}

impl fmt::Display for Lifecycle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Restarting => "restarting",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
        })
    }
}
