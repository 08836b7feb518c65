//! What a store of states must do: a row for each kind and key, written by compare-and-set.

pub mod conformance;
pub(crate) mod embedded;
pub(crate) mod memory;

use std::{fmt, pin::Pin};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// What an operation of a store gives, some time.
pub type StoreFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// A store of states. [`MemoryStore`](crate::MemoryStore) is one, [`FjallStore`](crate::FjallStore) another; an embedder can
/// bring a third, and test it with [`conformance`](crate::conformance).
///
/// A row has a kind, a key, a version and a state. Each write says which version it follows, and is [`StoreError::Fenced`]
/// if the row has another: of two writers that follow the same version, one succeeds.
///
/// Operations must not block the thread. One whose future is dropped may have been carried out or not; the row is as it
/// was or as it was to be, never a mixture.
///
/// A write that failed with [`StoreError::Full`] or [`StoreError::Io`] can be made again with the same `follows`, as often as it
/// fails, and with another state: should one of them have been carried out, also later, none is fenced by that.
pub trait StateStore: fmt::Debug + Send + Sync + 'static {
    /// The row of a key, if there is one. It is no older than the last `save` or `remove` of this store that succeeded.
    fn load<'a>(&'a self, kind: &'a str, key: &'a str) -> StoreFuture<'a, Option<Saved>>;

    /// Makes or replaces a row, and gives its new version, which no row of this key had before.
    ///
    /// `follows` is the version that the row has now, [`Version::NONE`] if there is none. When the future is ready, the row
    /// is as durable as asked for.
    ///
    /// # Errors
    ///
    /// [`StoreError::Fenced`] if the row has another version. After any error but this, [`StoreError::TooLarge`] and
    /// [`StoreError::Closed`], it is not known whether the row was written, unless the variant says so.
    fn save<'a>(
        &'a self,
        kind: &'a str,
        key: &'a str,
        follows: Version,
        state: Bytes,
        durability: Durability,
    ) -> StoreFuture<'a, Version>;

    /// Removes a row. `follows` is as in [`save`](Self::save); removing a row that is not there, with [`Version::NONE`],
    /// writes nothing. When the future is ready, it is as durable as asked for that the row is not there.
    ///
    /// # Errors
    ///
    /// As [`save`](Self::save).
    fn remove<'a>(
        &'a self,
        kind: &'a str,
        key: &'a str,
        follows: Version,
        durability: Durability,
    ) -> StoreFuture<'a, ()>;

    /// How many rows a kind has.
    fn count<'a>(&'a self, kind: &'a str) -> StoreFuture<'a, u64>;

    /// A page of the keys of a kind, in order of their bytes: those after `after`, `limit` at the most. Fewer than `limit`
    /// are the last. A key that is there from the first page to the last is on exactly one of them.
    fn keys<'a>(&'a self, kind: &'a str, after: Option<&'a str>, limit: usize) -> StoreFuture<'a, Vec<String>>;
}

/// The version of a row: opaque but for being equal to itself. Only a store makes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Version(u64);

impl Version {
    /// Of a row that is not there.
    pub const NONE: Self = Self(0);

    /// A version of a store's own numbering. Zero is [`Version::NONE`].
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The store's number.
    pub const fn number(self) -> u64 {
        self.0
    }
}

/// A row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saved {
    /// What the next write of the row follows.
    pub version: Version,
    /// The state, byte for byte as it was given to [`StateStore::save`].
    pub state: Bytes,
}

/// What a write survives once it is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Durability {
    /// The end of the process by any means: the operating system has it.
    Process,
    /// The loss of power: the disk has it.
    Power,
}

/// A store did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Another has written the row. Nothing was written.
    #[error("another has written this row: it has version {}, and not the one that the write follows", found.number())]
    Fenced {
        /// The version that the row has.
        found: Version,
    },
    /// There is no room on the disk, or in the store's quota. Nothing was acknowledged.
    #[error("the store is full; make room, or let it have more")]
    Full,
    /// The store was closed, or has to be opened again.
    #[error("the store is closed; open it again")]
    Closed,
    /// The state is larger than a row may be. Nothing was written.
    #[error("a state of {size} bytes is too large for the store, which takes {allowed}")]
    TooLarge {
        /// Bytes it has.
        size: u64,
        /// Bytes it may have.
        allowed: u64,
    },
    /// The store failed.
    #[error("the store failed")]
    Io {
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl StoreError {
    /// The store failed.
    pub fn io(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Io { source: source.into() }
    }
}
