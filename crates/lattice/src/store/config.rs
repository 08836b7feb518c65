//! What can be chosen about a bucket of states, and why it could not be opened.

use std::{error::Error, time::Duration};

use airssys_wasm_actor::limits::ByteSize;

/// What can be chosen about a [`JetStreamStore`](crate::JetStreamStore).
///
/// All but `timeout` is chosen where the bucket is made; a bucket that is there stays as it is.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct BucketConfig {
    /// Name of the bucket: letters, digits, `-` and `_`.
    pub bucket: String,
    /// Servers that have each row. Default: 1.
    pub replicas: usize,
    /// Where they have it. Default: in files.
    pub storage: Storage,
    /// Bytes that all rows may take, with some 200 for each beside its state. Default: what the server's account allows.
    pub max_bytes: Option<ByteSize>,
    /// Bytes that a state may have, if the server's `max_payload` allows that many. Default: as many as it allows.
    pub max_state: Option<ByteSize>,
    /// How long to wait for the server, for each load, save and removal, and for each page of names. Default: 5 s.
    pub timeout: Duration,
}

impl BucketConfig {
    /// The defaults, for a bucket.
    pub fn new(bucket: impl Into<String>) -> Self {
        Self {
            bucket: bucket.into(),
            replicas: 1,
            storage: Storage::File,
            max_bytes: None,
            max_state: None,
            timeout: Duration::from_secs(5),
        }
    }
}

/// Where a server has the rows of a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// In files, which survive the server.
    File,
    /// In memory. With several replicas, rows survive as long as most of the servers run.
    Memory,
}

/// A bucket of states could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BucketError {
    /// The name cannot be a bucket's.
    #[error("`{bucket}` cannot be the name of a bucket: use letters, digits, `-` and `_`")]
    Name {
        /// The name.
        bucket: String,
    },
    /// The bucket was made by somebody else, and would lose rows.
    #[error("the bucket `{bucket}` is not fit for states, as its stream has another `{setting}`; use another bucket")]
    Unfit {
        /// The name.
        bucket: String,
        /// The first setting of its stream that is not as it must be.
        setting: &'static str,
    },
    /// The server did not make it, or did not tell about it.
    #[error("the bucket cannot be opened")]
    Server {
        /// The cause.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
}
