//! What the threads of a store share.

use std::{collections::HashMap, error, io};

use fjall::Error;
use parking_lot::{Mutex, RwLock};

use super::{
    config::StoreConfig,
    journal,
    rows::{Name, Rows},
    versions::Versions,
};
use crate::store::{StoreError, Version};

pub(super) struct Shared {
    pub(super) config: StoreConfig,
    /// `None` when it is closed, and while it cannot be opened again.
    pub(super) rows: RwLock<Option<Rows>>,
    pub(super) health: Mutex<Health>,
    /// Writes that failed, and may have been carried out nevertheless: what each followed, and the version it was to make.
    /// The writer that was told of a failure can repeat the write, which is then not fenced by its own earlier attempt.
    pub(super) doubtful: Mutex<HashMap<Name, Vec<Attempt>>>,
    pub(super) versions: Mutex<Versions>,
    /// Failures that the next batches meet with.
    #[cfg(test)]
    pub(super) faults: Mutex<std::collections::VecDeque<io::Error>>,
    /// Is told which file is about to be synced.
    #[cfg(test)]
    pub(super) watch: Mutex<Option<Watch>>,
}

#[cfg(test)]
pub(super) type Watch = Box<dyn Fn(&std::path::Path) -> io::Result<()> + Send>;

/// Whether a store takes writes, and which of those that it took a sync still makes durable.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// Rises with each failed sync and each attempt to open the store again. What was written in an earlier generation is not
    /// made durable by a sync: after one that failed, the system takes pages for clean that the disk does not have.
    pub(super) generation: u64,
    /// Whether it takes no writes until it is opened again.
    is_broken: bool,
    /// Why it does not, or last did not.
    cause: Option<Cause>,
}

impl Health {
    /// Why it takes no writes, if it does not.
    pub(super) fn broken(&self) -> Option<&Cause> {
        self.cause.as_ref().filter(|_| self.is_broken)
    }

    /// Notes that it takes no more writes. The first cause stays. Whether it took them before.
    pub(super) fn breaks(&mut self, cause: Cause) -> bool {
        let first = !self.is_broken;
        if first {
            (self.is_broken, self.cause) = (true, Some(cause));
        }
        first
    }

    /// An attempt to open it again begins. Gives its generation.
    pub(super) fn opens(&mut self) -> u64 {
        self.generation += 1;
        self.generation
    }

    /// The attempt of that generation has succeeded. Whether it takes writes again: not if a sync has failed meanwhile.
    pub(super) fn opened(&mut self, generation: u64) -> bool {
        let is_newest = self.generation == generation;
        self.is_broken &= !is_newest;
        is_newest
    }

    /// Why writes of an earlier generation are not acknowledged.
    pub(super) fn last_cause(&self) -> Cause {
        self.cause.clone().unwrap_or_else(closed)
    }
}

pub(super) fn closed() -> Cause {
    Cause::Io(io::ErrorKind::NotConnected, "the store is closed".to_owned())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Attempt {
    pub(super) follows: Version,
    pub(super) made: Version,
}

/// Why a store takes no writes, to be told to any number of writers.
#[derive(Debug, Clone)]
pub(super) enum Cause {
    Full,
    Io(io::ErrorKind, String),
}

/// A failure of the store, as it was first seen.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Seen(String);

impl Cause {
    pub(super) fn of(error: &Error) -> Self {
        let mut source: Option<&(dyn error::Error + 'static)> = Some(error);
        let mut io = None;
        while let Some(error) = source.filter(|_| io.is_none()) {
            io = error.downcast_ref::<io::Error>();
            source = error.source();
        }
        io.map_or_else(|| Self::Io(io::ErrorKind::Other, error.to_string()), Self::of_io)
    }

    pub(super) fn of_io(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => Self::Full,
            kind => Self::Io(kind, error.to_string()),
        }
    }

    pub(super) fn error(&self) -> StoreError {
        match self {
            Self::Full => StoreError::Full,
            Self::Io(kind, text) => StoreError::io(io::Error::new(*kind, Seen(text.clone()))),
        }
    }
}

impl Shared {
    /// Notes that it takes no more writes.
    pub(super) fn breaks(&self, cause: Cause) {
        if self.health.lock().breaks(cause.clone()) {
            self.warn(&cause);
        }
    }

    /// Notes that a sync has failed: what was written and not synced by now is not acknowledged any more.
    pub(super) fn sync_failed(&self, cause: Cause) {
        let first = {
            let mut health = self.health.lock();
            health.generation += 1;
            journal::distrust(&self.config.path);
            health.breaks(cause.clone())
        };
        if first {
            self.warn(&cause);
        }
    }

    fn warn(&self, cause: &Cause) {
        tracing::warn!(path = %self.config.path.display(), ?cause, "the store takes no writes until it is opened again");
    }

    /// Why nothing can be read.
    pub(super) fn unreadable(&self) -> StoreError {
        self.health.lock().broken().map_or(StoreError::Closed, Cause::error)
    }

    pub(super) fn doubt(&self, name: Name, attempt: Attempt) {
        let mut doubtful = self.doubtful.lock();
        let attempts = doubtful.entry(name).or_default();
        if !attempts.contains(&attempt) {
            attempts.push(attempt);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sync_that_fails_while_the_store_is_opened_again_is_not_forgotten() {
        let mut health = Health::default();
        assert!(health.breaks(Cause::Full) && health.broken().is_some());
        let first = health.opens();
        health.generation += 1;
        assert!(!health.breaks(Cause::Io(io::ErrorKind::Other, "the second".to_owned())), "it is broken already");
        assert!(!health.opened(first) && matches!(health.broken(), Some(Cause::Full)));
        // Control: one that was begun later.
        let second = health.opens();
        assert!(health.opened(second) && health.broken().is_none());
        assert!(matches!(health.last_cause(), Cause::Full));
    }
}
