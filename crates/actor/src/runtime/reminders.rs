//! The seam to a layer that keeps reminders: messages of an actor to itself that outlive the process.

use std::{sync::Arc, time::Duration};

use airssys_wasm_registry::ComponentId;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use parking_lot::RwLock;

use crate::BoxError;

/// Keeps reminders for guests that import `airssys:actor/reminders`.
///
/// [`ActorSystem::add_reminders`](crate::ActorSystem::add_reminders) adds one.
pub trait Reminders: Send + Sync + 'static {
    /// Keeps a reminder, in place of that of the same name. `None` if it does not keep those of this actor.
    fn set(
        &self,
        of: &ComponentId,
        name: &str,
        after: Duration,
        payload: Bytes,
    ) -> Option<BoxFuture<'static, Result<(), ReminderError>>>;

    /// Forgets a reminder. Says whether there was one. `None` as above.
    fn cancel(&self, of: &ComponentId, name: &str) -> Option<BoxFuture<'static, Result<bool, ReminderError>>>;

    /// Forgets all reminders of an actor. `None` as above.
    fn forget(&self, of: &ComponentId) -> Option<BoxFuture<'static, Result<(), ReminderError>>>;
}

/// A reminder was not kept, or not cancelled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReminderError {
    /// Its name is too long, or empty.
    #[error("the name of a reminder has {len} bytes; give it one of 1 to {allowed}")]
    Name {
        /// Its bytes.
        len: usize,
        /// Bytes it may have.
        allowed: usize,
    },
    /// The actor has as many as it may have.
    #[error("the actor has {0} reminders already; cancel one first")]
    TooMany(u32),
    /// Its payload is too large.
    #[error("the reminder has {size} bytes, and may have {allowed}")]
    TooLarge {
        /// Its bytes.
        size: u64,
        /// Bytes it may have.
        allowed: u64,
    },
    /// It could not be stored, or forgotten, now.
    #[error("the reminder is not stored, or not forgotten; try again later")]
    Unavailable(#[source] BoxError),
}

/// Who keeps reminders, in the order they are asked.
#[derive(Default)]
pub(crate) struct Reminding(RwLock<Vec<Arc<dyn Reminders>>>);

impl Reminding {
    pub(crate) fn add(&self, reminders: Arc<dyn Reminders>) {
        self.0.write().push(reminders);
    }

    /// Asks one after the other.
    pub(crate) fn find<T>(&self, ask: impl FnMut(&Arc<dyn Reminders>) -> Option<T>) -> Option<T> {
        self.0.read().iter().find_map(ask)
    }

    /// Forgets those of an actor, if anybody keeps them.
    pub(crate) async fn forget(&self, of: &ComponentId) -> Result<(), ReminderError> {
        match self.find(|reminders| reminders.forget(of)) {
            Some(forgotten) => forgotten.await,
            None => Ok(()),
        }
    }
}
