//! What an actor is doing.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What an actor is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Lifecycle {
    /// Its first start. Messages wait in its mailbox.
    Starting,
    /// It takes messages.
    Running,
    /// It has failed and will be started again. Messages wait in its mailbox.
    Restarting,
    /// It handles what is in its mailbox, and takes no new messages.
    Stopping,
    /// It is gone.
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
