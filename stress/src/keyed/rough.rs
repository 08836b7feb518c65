//! A store that is slow now and then, and full for a while.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use airssys_wasm_keyed::{Durability, Saved, StateStore, StoreError, StoreFuture, Version};
use bytes::Bytes;

/// It is full for the last part of each period.
const PERIOD: Duration = Duration::from_millis(1_500);
const FULL: Duration = Duration::from_millis(200);

/// One write in so many takes as long as this.
const SLOW_ONE_IN: u64 = 64;
const SLOW: Duration = Duration::from_millis(15);

#[derive(Debug)]
pub(super) struct Rough {
    store: Arc<dyn StateStore>,
    begun: Instant,
    writes: AtomicU64,
    is_healed: AtomicBool,
}

impl Rough {
    pub(super) fn new(store: Arc<dyn StateStore>) -> Self {
        Self { store, begun: Instant::now(), writes: AtomicU64::new(0), is_healed: AtomicBool::new(false) }
    }

    /// From now on it is not full, so that what is saved at the end, which is tried once, is saved.
    pub(super) fn heal(&self) {
        self.is_healed.store(true, Ordering::Relaxed);
    }

    async fn before_write(&self) -> Result<(), StoreError> {
        if self.writes.fetch_add(1, Ordering::Relaxed).is_multiple_of(SLOW_ONE_IN) {
            tokio::time::sleep(SLOW).await;
        }
        let at = Duration::from_nanos((self.begun.elapsed().as_nanos() % PERIOD.as_nanos()) as u64);
        if at > PERIOD - FULL && !self.is_healed.load(Ordering::Relaxed) { Err(StoreError::Full) } else { Ok(()) }
    }
}

impl StateStore for Rough {
    fn load<'a>(&'a self, kind: &'a str, key: &'a str) -> StoreFuture<'a, Option<Saved>> {
        self.store.load(kind, key)
    }

    fn save<'a>(
        &'a self,
        kind: &'a str,
        key: &'a str,
        follows: Version,
        state: Bytes,
        durability: Durability,
    ) -> StoreFuture<'a, Version> {
        Box::pin(async move {
            self.before_write().await?;
            self.store.save(kind, key, follows, state, durability).await
        })
    }

    fn remove<'a>(
        &'a self,
        kind: &'a str,
        key: &'a str,
        follows: Version,
        durability: Durability,
    ) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            self.before_write().await?;
            self.store.remove(kind, key, follows, durability).await
        })
    }

    fn count<'a>(&'a self, kind: &'a str) -> StoreFuture<'a, u64> {
        self.store.count(kind)
    }

    fn keys<'a>(&'a self, kind: &'a str, after: Option<&'a str>, limit: usize) -> StoreFuture<'a, Vec<String>> {
        self.store.keys(kind, after, limit)
    }
}
