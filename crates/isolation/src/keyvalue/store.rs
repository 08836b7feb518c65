//! What a store of keys and values must do.

use std::{error::Error, fmt, pin::Pin, sync::Arc};

use bytes::Bytes;

use super::{Account, QuotaExceeded};

/// What an operation of a store gives, some time.
pub type StoreFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, KeyValueError>> + Send + 'a>>;

/// A store of buckets. [`MemoryStore`](crate::MemoryStore) is one; an embedder can bring another.
///
/// Futures must not block: a component that waits for one is not charged CPU time, and its `deadline` holds. A call that
/// ends at its deadline drops the future that it waits for, wherever that is.
pub trait KeyValueStore: fmt::Debug + Send + Sync + 'static {
    /// The bucket of this name. Names come from [`KeyValueGrants::buckets`](crate::KeyValueGrants::buckets), never from a
    /// guest.
    fn open<'a>(&'a self, name: &'a str) -> StoreFuture<'a, Arc<dyn Bucket>>;
}

/// A bucket of keys and values. Keys of guests have 1 KiB at the most.
///
/// `account` is that of the component that writes. A store [charges](Account::charge) it before it stores an entry, and
/// keeps the [`Charge`](crate::Charge) with it. A store whose entries outlive the process must count for itself: no
/// charge is left of them.
pub trait Bucket: Send + Sync + 'static {
    /// The value of a key.
    fn get<'a>(&'a self, key: &'a str) -> StoreFuture<'a, Option<Bytes>>;

    /// Makes or replaces an entry.
    fn set<'a>(&'a self, key: &'a str, value: Bytes, account: &'a Account) -> StoreFuture<'a, ()>;

    /// Deletes an entry, if there is one.
    fn delete<'a>(&'a self, key: &'a str) -> StoreFuture<'a, ()>;

    /// Whether there is an entry.
    fn exists<'a>(&'a self, key: &'a str) -> StoreFuture<'a, bool>;

    /// A page of keys: no more than `keys`, nor than `bytes` in all, but one key at least where there are any left.
    ///
    /// `cursor` is that of the page before, or any number that a guest makes up. A key that is there from the first page to
    /// the last should be on exactly one of them, whatever else is changed meanwhile.
    fn list(&self, cursor: Option<u64>, keys: usize, bytes: usize) -> StoreFuture<'_, KeyPage>;

    /// Adds to a number in decimal text, in one step, and gives the sum. A missing one is zero.
    ///
    /// Fails with [`KeyValueError::NotANumber`] and [`KeyValueError::Overflow`].
    fn increment<'a>(&'a self, key: &'a str, delta: u64, account: &'a Account) -> StoreFuture<'a, u64>;

    /// The values of some keys, in their order. Fails with [`KeyValueError::TooLarge`] when they have more than `most`
    /// bytes in all. By default, one after the other. The host asks for some dozens at a time.
    fn get_many<'a>(&'a self, keys: &'a [String], most: u64) -> StoreFuture<'a, Vec<Option<Bytes>>> {
        Box::pin(async move {
            let mut values = Vec::with_capacity(keys.len());
            let mut bytes = 0_u64;
            for key in keys {
                let value = self.get(key).await?;
                bytes = bytes.saturating_add(value.as_ref().map_or(0, Bytes::len) as u64);
                if bytes > most {
                    return Err(KeyValueError::TooLarge { allowed: most });
                }
                values.push(value);
            }
            Ok(values)
        })
    }

    /// Makes or replaces some entries. By default, one after the other, until one fails.
    fn set_many<'a>(&'a self, entries: Vec<(String, Bytes)>, account: &'a Account) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            for (key, value) in entries {
                self.set(&key, value, account).await?;
            }
            Ok(())
        })
    }

    /// Deletes some entries. By default, one after the other, until one fails.
    fn delete_many<'a>(&'a self, keys: &'a [String]) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            for key in keys {
                self.delete(key).await?;
            }
            Ok(())
        })
    }
}

/// Some keys of a bucket.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KeyPage {
    /// The keys, in no particular order.
    pub keys: Vec<String>,
    /// What [`Bucket::list`] takes for the next page; none after the last.
    pub cursor: Option<u64>,
}

/// An operation of a store failed. The guest is told.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyValueError {
    /// There is no such bucket: `no-such-store` for the guest.
    #[error("there is no such store")]
    NoSuchStore,
    /// The bucket is there, but not for this component: `access-denied` for the guest.
    #[error("access denied")]
    AccessDenied,
    /// The component's quota has no room.
    #[error(transparent)]
    Quota(#[from] QuotaExceeded),
    /// A key is longer than a key may be.
    #[error("a key of {bytes} bytes is too long; it may have {allowed}")]
    KeyTooLong {
        /// Bytes it has.
        bytes: usize,
        /// Bytes it may have.
        allowed: usize,
    },
    /// The answer is larger than one host call may carry.
    #[error(
        "the answer has more than the {allowed} bytes that one call may carry; ask for less, or raise `host_call_bytes`"
    )]
    TooLarge {
        /// Bytes it may have.
        allowed: u64,
    },
    /// What is to be incremented is no decimal number below 2⁶⁴.
    #[error("the value is no decimal number below 2^64")]
    NotANumber,
    /// The sum is beyond 2⁶⁴ - 1.
    #[error("the sum is larger than 2^64 - 1")]
    Overflow,
    /// The store itself failed. A guest is told this much and not the cause; what an operator is to know, the store logs.
    #[error("the store failed")]
    Failed {
        /// The cause.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
}

impl KeyValueError {
    /// The store itself failed.
    pub fn failed(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Failed { source: source.into() }
    }
}
