//! What the threads of a store share.

use std::{collections::HashMap, error, io};

use fjall::Error;
use parking_lot::{Mutex, RwLock};

use super::{
    config::StoreConfig,
    rows::{Name, Rows},
};
use crate::store::{StoreError, Version};

pub(super) struct Shared {
    pub(super) config: StoreConfig,
    /// `None` when it is closed, and while it cannot be opened again.
    pub(super) rows: RwLock<Option<Rows>>,
    /// Why it takes no writes until it is opened again.
    pub(super) broken: Mutex<Option<Cause>>,
    /// Writes that failed, and may have been carried out nevertheless: what each followed, and the version it was to make.
    /// The writer that was told of a failure can repeat the write, which is then not fenced by its own earlier attempt.
    pub(super) doubtful: Mutex<HashMap<Name, Attempt>>,
    /// Failures that the next batches meet with.
    #[cfg(test)]
    pub(super) faults: Mutex<std::collections::VecDeque<io::Error>>,
    /// Is told which file is about to be synced.
    #[cfg(test)]
    pub(super) watch: Mutex<Option<Watch>>,
}

#[cfg(test)]
pub(super) type Watch = Box<dyn Fn(&std::path::Path) -> io::Result<()> + Send>;

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
    /// Notes that it takes no more writes. The first cause stays.
    pub(super) fn breaks(&self, cause: Cause) {
        let mut broken = self.broken.lock();
        if broken.is_none() {
            tracing::warn!(path = %self.config.path.display(), ?cause, "the store takes no writes until it is opened again");
            *broken = Some(cause);
        }
    }

    /// Why nothing can be read.
    pub(super) fn unreadable(&self) -> StoreError {
        self.broken.lock().as_ref().map_or(StoreError::Closed, Cause::error)
    }

    pub(super) fn doubt(&self, name: Name, attempt: Attempt) {
        self.doubtful.lock().insert(name, attempt);
    }
}
