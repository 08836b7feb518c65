//! A store that is slow now and then, and full for a while, and then carries out some of what it has refused.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use airssys_wasm_keyed::{Durability, Saved, StateStore, StoreError, StoreFuture, Version};
use bytes::Bytes;
use parking_lot::Mutex;

/// It is full for the last part of each period.
const PERIOD: Duration = Duration::from_millis(1_500);
const FULL: Duration = Duration::from_millis(200);

/// One write in so many takes as long as this.
const SLOW_ONE_IN: u64 = 64;
const SLOW: Duration = Duration::from_millis(15);

/// One write in so many that are refused is carried out nevertheless, and late: as by a disk whose files have it in a buffer.
const LATE_ONE_IN: u64 = 4;

type Name = (String, String);

#[derive(Debug)]
pub(super) struct Rough {
    store: Arc<dyn StateStore>,
    begun: Instant,
    writes: AtomicU64,
    is_healed: AtomicBool,
    late: Mutex<HashMap<Name, Write>>,
    /// Which version the late write of a row followed, and which it made.
    settled: Mutex<HashMap<Name, (Version, Version)>>,
}

/// A row that is written, or removed.
#[derive(Debug, Clone)]
struct Write {
    follows: Version,
    state: Option<Bytes>,
    durability: Durability,
}

impl Rough {
    pub(super) fn new(store: Arc<dyn StateStore>) -> Self {
        Self {
            store,
            begun: Instant::now(),
            writes: AtomicU64::new(0),
            is_healed: AtomicBool::new(false),
            late: Mutex::default(),
            settled: Mutex::default(),
        }
    }

    /// From now on it is not full, so that what is saved at the end is saved before its deadline.
    pub(super) fn heal(&self) {
        self.is_healed.store(true, Ordering::Relaxed);
    }

    fn is_full(&self) -> bool {
        let at = Duration::from_nanos((self.begun.elapsed().as_nanos() % PERIOD.as_nanos()) as u64);
        at > PERIOD - FULL && !self.is_healed.load(Ordering::Relaxed)
    }

    async fn write(&self, kind: &str, key: &str, write: Write) -> Result<Version, StoreError> {
        let number = self.writes.fetch_add(1, Ordering::Relaxed);
        if number.is_multiple_of(SLOW_ONE_IN) {
            tokio::time::sleep(SLOW).await;
        }
        if self.is_full() {
            if number.is_multiple_of(LATE_ONE_IN) {
                self.late.lock().entry((kind.to_owned(), key.to_owned())).or_insert(write);
            }
            return Err(StoreError::Full);
        }
        self.settle(kind, key).await?;
        self.carry_out(kind, key, write).await
    }

    /// Carries out what comes late, before anything else happens to the row.
    async fn settle(&self, kind: &str, key: &str) -> Result<(), StoreError> {
        let name = (kind.to_owned(), key.to_owned());
        let Some(late) = self.late.lock().remove(&name) else { return Ok(()) };
        let follows = late.follows;
        let made = self.carry_out(kind, key, late).await?;
        // A write that follows the same version is not fenced by it.
        self.settled.lock().insert(name, (follows, made));
        Ok(())
    }

    async fn carry_out(&self, kind: &str, key: &str, write: Write) -> Result<Version, StoreError> {
        let Write { follows, state, durability } = write;
        let follows = match self.settled.lock().remove(&(kind.to_owned(), key.to_owned())) {
            Some((followed, made)) if followed == follows => made,
            _ => follows,
        };
        match state {
            Some(state) => self.store.save(kind, key, follows, state, durability).await,
            None => self.store.remove(kind, key, follows, durability).await.map(|()| Version::NONE),
        }
    }
}

impl StateStore for Rough {
    fn load<'a>(&'a self, kind: &'a str, key: &'a str) -> StoreFuture<'a, Option<Saved>> {
        Box::pin(async move {
            if !self.is_full() {
                self.settle(kind, key).await?;
            }
            self.store.load(kind, key).await
        })
    }

    fn save<'a>(
        &'a self,
        kind: &'a str,
        key: &'a str,
        follows: Version,
        state: Bytes,
        durability: Durability,
    ) -> StoreFuture<'a, Version> {
        Box::pin(self.write(kind, key, Write { follows, state: Some(state), durability }))
    }

    fn remove<'a>(
        &'a self,
        kind: &'a str,
        key: &'a str,
        follows: Version,
        durability: Durability,
    ) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            self.write(kind, key, Write { follows, state: None, durability }).await?;
            Ok(())
        })
    }

    fn count<'a>(&'a self, kind: &'a str) -> StoreFuture<'a, u64> {
        self.store.count(kind)
    }

    fn keys<'a>(&'a self, kind: &'a str, after: Option<&'a str>, limit: usize) -> StoreFuture<'a, Vec<String>> {
        self.store.keys(kind, after, limit)
    }
}
