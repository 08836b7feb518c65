//! States in a bucket of JetStream's.
//!
//! **A row** is the last message of a subject: `$KV.<bucket>.<kind>.<key>`, with kind and key escaped. Its version is
//! its sequence in the stream, and each write says which sequence it expects. The leader of the stream compares.
//!
//! **Late writes.** A write whose sender has given up, or is dead, may come there at any later time. It does nothing then:
//! the sequence that it expects is not the last one any more, and never will be again. For that, a new row does not
//! expect that there is no message, which could be so again once it is removed, but a marker that was stored for it just
//! before.
//!
//! **Markers** are empty messages that say that there is no row. One precedes each new row, and is replaced by it; one
//! replaces each row that is removed. The server removes them in a time. They are not deleted at once: a server that is
//! killed finds in its files what a later message of the same subject has replaced, and takes it for the last one if the
//! later one was deleted.
//!
//! **A write that is made again** because its acknowledgement did not come may find the row that it has made itself. Each
//! row has the number of its write in a header, and the store knows which ones are in doubt.

mod bucket;
mod config;
mod doubts;

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use airssys_wasm_keyed::{Durability, Saved, StateStore, StoreError, StoreFuture, Version};
use async_nats::{Client, HeaderMap, header::NATS_MESSAGE_TTL};
use bytes::Bytes;
use parking_lot::RwLock;
use tokio::time::{sleep, timeout};

use crate::name;
use bucket::{Bucket, KV_OPERATION, Refused, is_marker};
pub use config::{BucketConfig, BucketError, Storage};
use doubts::{Attempt, Doubt, Doubts};

/// Which write has made a row: the store that made it, and a number of its own.
const WRITE: &str = "Airssys-Write";

/// How long the server keeps a marker before a new row, if that does not come.
const BEFORE: &str = "1m";

/// How long it keeps the marker of a removal.
const AFTER: &str = "1h";

/// Bytes that the subject of a row may have: the server cuts a client off whose lines are longer than 4 KiB.
const MAX_SUBJECT: usize = 3_000;

/// The first wait after a second conflict in a row; each is twice as long, up to 64 of them.
const SHORTEST_WAIT: Duration = Duration::from_millis(1);

/// A [`StateStore`] in a key-value bucket of JetStream: rows outlive this host, and other hosts can go on with them.
///
/// - Rows are read through the leader of the stream, and written by compare-and-set there.
/// - [`Durability::Process`] means that as many servers as the bucket has `replicas`, or most of them, have taken the write.
/// - [`Durability::Power`] is the same, and holds if those servers have `sync_interval: always`, which cannot be seen from
///   here: by default they sync every two minutes.
/// - If the bucket was removed or made anew, all operations are [`StoreError::Closed`] from then on, until it is
///   [opened again](Self::reopen). A lattice does so for its kinds when the server has lost all that it had.
/// - Without a connection, operations fail at once as [`StoreError::Io`]; if the server does not answer, after
///   [`BucketConfig::timeout`].
/// - [`count`](StateStore::count) and [`keys`](StateStore::keys) read the names of all rows of the kind. In a bucket with
///   several replicas they may be asked of one that has not come as far as the leader.
/// - A row that was removed leaves some 200 bytes for an hour.
#[derive(Debug)]
pub struct JetStreamStore {
    client: Client,
    config: BucketConfig,
    opened: RwLock<Arc<Opened>>,
}

/// A bucket, from when it was opened until it is gone. An operation ends with the one with which it began: versions of another mean
/// other rows.
#[derive(Debug)]
struct Opened {
    bucket: Bucket,
    /// What the subjects of rows begin with.
    prefix: String,
    timeout: Duration,
    /// Its own name in the headers of rows.
    id: String,
    writes: AtomicU64,
    doubts: Doubts,
}

/// What is there of a row.
#[derive(Clone, Copy)]
enum Last {
    /// The row, by its sequence, and the number of the write that made it, if it was one of this store.
    Row { sequence: u64, write: Option<u64> },
    /// No row: a marker, by its sequence, or nothing, which is 0.
    Nothing(u64),
}

impl JetStreamStore {
    /// Opens a bucket, and makes it if there is none. Needs a tokio runtime. States go over the client's connection as that is, in
    /// plain text if it has no TLS; [`Lattice::store`](crate::Lattice::store) has the lattice's.
    ///
    /// # Errors
    ///
    /// [`BucketError`].
    pub async fn open(client: Client, config: BucketConfig) -> Result<Self, BucketError> {
        let opened = Opened::new(&client, &config).await?;
        Ok(Self { client, config, opened: RwLock::new(Arc::new(opened)) })
    }

    /// Opens the bucket again if it was removed or made anew, and makes it if there is none. Nobody may have versions of rows of before:
    /// they could be those of other rows.
    ///
    /// # Errors
    ///
    /// [`BucketError`], also if the server is not to be had.
    pub async fn reopen(&self) -> Result<(), BucketError> {
        match self.opened().bucket.is_there().await {
            Ok(()) => Ok(()),
            Err(StoreError::Closed) => {
                let opened = Opened::new(&self.client, &self.config).await?;
                *self.opened.write() = Arc::new(opened);
                Ok(())
            }
            Err(error) => Err(BucketError::Server { source: error.into() }),
        }
    }

    fn opened(&self) -> Arc<Opened> {
        Arc::clone(&self.opened.read())
    }
}

impl Opened {
    async fn new(client: &Client, config: &BucketConfig) -> Result<Self, BucketError> {
        let bucket = Bucket::open(client.clone(), config).await?;
        Ok(Self {
            prefix: format!("$KV.{}", config.bucket),
            timeout: config.timeout,
            id: bucket.unique(),
            writes: AtomicU64::new(0),
            doubts: Doubts::default(),
            bucket,
        })
    }

    fn subject(&self, kind: &str, key: &str) -> Result<String, StoreError> {
        let subject = format!("{}.{}.{}", self.prefix, name::key(kind), name::key(key));
        if subject.len() > MAX_SUBJECT {
            return Err(StoreError::io(NameTooLong));
        }
        Ok(subject)
    }

    /// An operation, for as long as one may take.
    async fn bounded<T>(&self, operation: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        let in_time = timeout(self.timeout, async {
            self.bucket.is_there().await?;
            operation.await
        });
        in_time.await.unwrap_or_else(|_| Err(StoreError::io(io::Error::from(io::ErrorKind::TimedOut))))
    }

    async fn last(&self, subject: &str) -> Result<Last, StoreError> {
        let Some(message) = self.bucket.last(subject).await? else { return Ok(Last::Nothing(0)) };
        if is_marker(Some(&message.headers)) {
            return Ok(Last::Nothing(message.sequence));
        }
        let write = message.headers.get(WRITE).and_then(|write| write.as_str().split_once('.'));
        let write = write.filter(|(store, _)| *store == self.id).and_then(|(_, number)| number.parse().ok());
        Ok(Last::Row { sequence: message.sequence, write })
    }

    /// What is there, if a write may follow it.
    async fn followed(&self, subject: &str, follows: Version, doubt: Option<&Doubt>) -> Result<Last, StoreError> {
        let last = self.last(subject).await?;
        let (found, is_in_doubt) = match last {
            Last::Row { sequence, write } => (sequence, doubt.is_some_and(|doubt| doubt.has_saved(write))),
            Last::Nothing(_) => (0, doubt.is_some_and(Doubt::has_removed)),
        };
        if found == follows.number() || is_in_doubt {
            return Ok(last);
        }
        Err(StoreError::Fenced { found: Version::new(found) })
    }

    /// Writes a row, or removes it, if it has the version that the write follows; gives the sequence of what is there then.
    async fn write(
        &self,
        follows: Version,
        state: Option<Bytes>,
        attempt: &mut Attempt<'_>,
    ) -> Result<u64, StoreError> {
        let subject = attempt.subject();
        let mut known = match follows {
            // It may be that there is nothing to do.
            Version::NONE if state.is_none() => None,
            Version::NONE => Some(Last::Nothing(0)),
            version => Some(Last::Row { sequence: version.number(), write: None }),
        };
        let mut waits = [Duration::ZERO].into_iter().chain((0..).map(|n| SHORTEST_WAIT * (1 << n.min(6))));
        loop {
            let last = match known.take() {
                Some(last) => last,
                None => self.followed(subject, follows, attempt.before()).await?,
            };
            let written = match &state {
                Some(state) => self.put(last, state.clone(), attempt).await,
                None => self.take_away(last, attempt).await,
            };
            match written {
                Ok(sequence) => return Ok(sequence),
                Err(Refused::Unknown(error)) => return Err(error),
                Err(Refused::Not(error)) => {
                    attempt.was_refused();
                    return Err(error);
                }
                // Perhaps with a write that is under way.
                Err(Refused::Conflict) => attempt.was_refused(),
            }
            sleep(waits.next().unwrap_or_default()).await;
        }
    }

    /// Puts a row in the place of what was there last.
    async fn put(&self, last: Last, state: Bytes, attempt: &mut Attempt<'_>) -> Result<u64, Refused> {
        let subject = attempt.subject();
        let before = match last {
            Last::Nothing(0) => self.bucket.publish(subject, 0, marker(BEFORE), Bytes::new()).await?,
            Last::Nothing(sequence) | Last::Row { sequence, .. } => sequence,
        };
        let number = self.writes.fetch_add(1, Ordering::Relaxed);
        let mut headers = HeaderMap::new();
        headers.insert(WRITE, format!("{}.{number}", self.id));
        attempt.saves(number);
        self.bucket.publish(subject, before, headers, state).await
    }

    /// Puts a marker in the place of what was there last, if that is a row, or could become one by a write in doubt.
    async fn take_away(&self, last: Last, attempt: &mut Attempt<'_>) -> Result<u64, Refused> {
        let sequence = match last {
            Last::Nothing(0) => return Ok(0),
            Last::Nothing(_) if attempt.before().is_none() => return Ok(0),
            Last::Nothing(sequence) | Last::Row { sequence, .. } => sequence,
        };
        attempt.removes();
        self.bucket.publish(attempt.subject(), sequence, marker(AFTER), Bytes::new()).await
    }

    /// Keys of a kind's rows, in no order.
    async fn keys_of(&self, kind: &str) -> Result<Vec<String>, StoreError> {
        self.bucket.is_there().await?;
        let subjects = self.bucket.subjects(format!("{}.{}.*", self.prefix, name::key(kind))).await?;
        // All others were made by nobody who writes rows.
        Ok(subjects.iter().filter_map(|subject| name::text(subject.rsplit_once('.')?.1)).collect())
    }
}

impl StateStore for JetStreamStore {
    fn load<'a>(&'a self, kind: &'a str, key: &'a str) -> StoreFuture<'a, Option<Saved>> {
        let opened = self.opened();
        Box::pin(async move {
            let load = async {
                let message = opened.bucket.last(&opened.subject(kind, key)?).await?;
                let row = message.filter(|message| !is_marker(Some(&message.headers)));
                Ok(row.map(|row| Saved { version: Version::new(row.sequence), state: row.payload }))
            };
            opened.bounded(load).await
        })
    }

    fn save<'a>(
        &'a self,
        kind: &'a str,
        key: &'a str,
        follows: Version,
        state: Bytes,
        _: Durability,
    ) -> StoreFuture<'a, Version> {
        let opened = self.opened();
        Box::pin(async move {
            let (size, allowed) = (state.len() as u64, opened.bucket.max_state());
            if size > allowed {
                return Err(StoreError::TooLarge { size, allowed });
            }
            let subject = opened.subject(kind, key)?;
            let mut attempt = opened.doubts.begin(&subject, follows.number());
            let written = opened.bounded(opened.write(follows, Some(state), &mut attempt)).await?;
            attempt.succeeded();
            Ok(Version::new(written))
        })
    }

    fn remove<'a>(&'a self, kind: &'a str, key: &'a str, follows: Version, _: Durability) -> StoreFuture<'a, ()> {
        let opened = self.opened();
        Box::pin(async move {
            let subject = opened.subject(kind, key)?;
            let mut attempt = opened.doubts.begin(&subject, follows.number());
            opened.bounded(opened.write(follows, None, &mut attempt)).await?;
            attempt.succeeded();
            Ok(())
        })
    }

    fn count<'a>(&'a self, kind: &'a str) -> StoreFuture<'a, u64> {
        let opened = self.opened();
        Box::pin(async move { Ok(opened.keys_of(kind).await?.len() as u64) })
    }

    fn keys<'a>(&'a self, kind: &'a str, after: Option<&'a str>, limit: usize) -> StoreFuture<'a, Vec<String>> {
        let opened = self.opened();
        Box::pin(async move {
            let mut keys = opened.keys_of(kind).await?;
            keys.retain(|key| after.is_none_or(|after| key.as_str() > after));
            keys.sort_unstable();
            keys.truncate(limit);
            Ok(keys)
        })
    }
}

/// The headers of a marker, which the server removes in a time.
fn marker(ttl: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    // As the tools for buckets have it.
    headers.insert(KV_OPERATION, "DEL");
    headers.insert(NATS_MESSAGE_TTL, ttl);
    headers
}

/// Kind and key make a subject that the server does not take.
#[derive(Debug, thiserror::Error)]
#[error("kind and key are too long for a subject, which may have {MAX_SUBJECT} bytes")]
struct NameTooLong;
