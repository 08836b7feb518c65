//! Why state was not kept.

use crate::BoxError;

/// State was not kept or not loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeepError {
    /// Another has written the state since it was loaded. It is loaded again. If loading it ends so, it is not this actor's any more,
    /// which ends.
    #[error("somebody else has written the state of this actor since it was loaded")]
    Fenced,
    /// The state cannot be kept as it is, by this or by a later attempt.
    #[error("the state cannot be kept")]
    Refused(#[source] BoxError),
    /// Not now. What is unsaved stays in memory and is tried again.
    #[error("the state cannot be kept or loaded now")]
    Unavailable(#[source] BoxError),
}

/// The state of an actor was not saved.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NotSavedError {
    /// The guest's `snapshot` returned an error.
    #[error("`snapshot` refused: {}", message.escape_debug())]
    SnapshotRefused {
        /// The guest's error message.
        message: String,
    },
    /// The actor was stopped, and killed before its last state was kept: a store that did not take it was tried until then.
    #[error("the actor was killed before its last state was kept")]
    Killed,
    /// It was not kept.
    #[error(transparent)]
    NotKept(#[from] KeepError),
}
