//! What can be chosen about a store on disk, and why it could not be opened.

use std::{error::Error, num::NonZeroUsize, path::PathBuf};

use airssys_wasm_limits::ByteSize;

/// What can be chosen about a [`FjallStore`](crate::FjallStore).
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct StoreConfig {
    /// The folder, which is made if there is none. One process at a time can have it open.
    pub path: PathBuf,
    /// Memory for blocks of rows that were read. Default: 32 MiB.
    ///
    /// Rows that were written last take up some 64 MiB more, and up to 1.5 bits a row are for filters and indices.
    pub cache: ByteSize,
    /// Bytes that a state may have. Default: 64 MiB.
    pub max_state: ByteSize,
    /// Disk space for journals, from which rows are recovered. A store with more of it opens more slowly after a crash.
    /// Default: 256 MiB. At least 64 MiB.
    pub journals: ByteSize,
    /// Threads that read rows which are not in memory. Default: 2.
    pub readers: NonZeroUsize,
}

impl StoreConfig {
    /// The defaults, for a folder.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            cache: ByteSize::mib(32),
            max_state: ByteSize::mib(64),
            journals: ByteSize::mib(256),
            readers: NonZeroUsize::MIN.saturating_add(1),
        }
    }
}

/// A store could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Another process has it open, or this one: [`close`](crate::FjallStore::close) it first.
    #[error("the store is open already, here or in another process; close it there, or use another folder")]
    Locked,
    /// It cannot be read or made.
    #[error("the store cannot be opened")]
    Io {
        /// The cause.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
}
