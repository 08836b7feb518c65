//! How an actor goes over to another version: what can be asked for, and what can go wrong. The switch itself is in the
//! actor's task.

use std::sync::Arc;

use airssys_wasm_registry::ResolveError;

use crate::{ContractKind, CrashReport, NoHandler, StartError};

/// How an upgrade or a rollback is done.
///
/// What `snapshot` returns counts as a message of the old version, and must not be larger than its `message_size`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct UpgradeOptions {
    /// Whether the state may be lost where the old version does not give it or the new one cannot take it. Default: no.
    pub discard_state: bool,
    /// Messages that the new version must have handled before it is trusted. If it fails earlier, the one before takes
    /// over again, with the state that it had left. Default: 0, trusted at once.
    pub probation: u32,
}

/// An actor did not go over to another version. The one before goes on, unless the variant says otherwise.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UpgradeError {
    /// The address leads nowhere.
    #[error(transparent)]
    Unresolved(#[from] ResolveError),
    /// The new component is no actor.
    #[error(transparent)]
    NoHandler(#[from] NoHandler),
    /// The new component takes messages by another interface.
    #[error("the actor is a component for {now}, and the new one is for {new}; spawn it under a name of its own")]
    OtherContract {
        /// What it exports now.
        now: ContractKind,
        /// What the new one exports.
        new: ContractKind,
    },
    /// The present version can leave state behind, and the other one cannot take it.
    #[error(
        "the actor's state would be lost: the other version does not export `airssys:actor/state`; set \
         `discard_state` if that is as it should be"
    )]
    StateWouldBeLost,
    /// The old version's `snapshot` came back with an error.
    #[error("`snapshot` refused: {}", message.escape_debug())]
    SnapshotRefused {
        /// What the guest says.
        message: String,
    },
    /// The old version crashed over its `snapshot`. It is restarted as after any crash.
    #[error("the old version crashed: {0}")]
    SnapshotCrashed(Arc<CrashReport>),
    /// The new version did not come to life.
    #[error("the new version did not start: {0}")]
    NotStarted(StartError),
    /// There was no upgrade to go back from.
    #[error("there is no version before this one")]
    NothingBefore,
    /// The actor belongs to a system with other state, or is native.
    #[error("the actor is not a component of this system")]
    OtherSystem,
    /// The actor stopped before its turn came.
    #[error("the actor has stopped")]
    Stopped,
}
