//! Which reminders there are of the keys that are this host's, where several hosts have a kind and its store: in memory, for nobody else
//! changes them as long as the keys are this host's.

use std::{
    collections::{BTreeSet, HashMap},
    ops::Bound,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::{sync::Notify, time::sleep};

use super::{book::Progress, rows::parts};
use crate::{
    owner::Owned,
    store::{Durability, Saved, StateStore, StoreError, StoreFuture, Version},
};

/// Keys that are read at a time.
const PAGE: usize = 1 << 16;

/// All are read again so often: a store may have been read before it had all that others have written.
const AGAIN: Duration = Duration::from_secs(300);

/// After a store that failed.
const PAUSE: Duration = Duration::from_secs(1);

/// A store in which the rows by time are those of keys that are this host's.
#[derive(Debug)]
pub(super) struct Mine {
    store: Arc<dyn StateStore>,
    /// The kinds of the rows by time and by actor.
    by_time: String,
    by_actor: String,
    owned: Owned,
    due: Mutex<Due>,
}

/// Keys of rows by time. One may be there whose row is not.
#[derive(Debug, Default)]
struct Due {
    keys: BTreeSet<String>,
    /// How many each actor has.
    actors: HashMap<Box<str>, usize>,
}

impl Due {
    fn insert(&mut self, key: &str) {
        if let Some((_, of, _)) = parts(key)
            && self.keys.insert(key.to_owned())
        {
            *self.actors.entry(of.into()).or_default() += 1;
        }
    }

    fn remove(&mut self, key: &str) {
        if let Some((_, of, _)) = parts(key)
            && self.keys.remove(key)
            && let Some(count) = self.actors.get_mut(of)
        {
            *count -= 1;
            if *count == 0 {
                self.actors.remove(of);
            }
        }
    }
}

impl Mine {
    pub(super) fn new(store: Arc<dyn StateStore>, by_time: String, by_actor: String, owned: Owned) -> Self {
        Self { store, by_time, by_actor, owned, due: Mutex::default() }
    }

    /// Reads those of all keys that are this host's, and drops the others.
    async fn read(&self) -> Result<(), StoreError> {
        let has = |key: &str| parts(key).is_some_and(|(_, of, _)| self.owned.has(of));
        let mut after: Option<String> = None;
        loop {
            let keys = self.store.keys(&self.by_time, after.as_deref(), PAGE).await?;
            let mut due = self.due.lock();
            keys.iter().filter(|key| has(key)).for_each(|key| due.insert(key));
            if keys.len() < PAGE {
                break;
            }
            after = keys.into_iter().next_back();
        }
        let mut due = self.due.lock();
        let gone: Vec<_> = due.keys.iter().filter(|key| !has(key)).cloned().collect();
        gone.iter().for_each(|key| due.remove(key));
        Ok(())
    }

    /// Reads them when parts of the keys have come, and now and then; tells the task that sends them.
    pub(super) async fn reads(self: Arc<Self>, came: Arc<Notify>, progress: impl Fn(fn(&mut Progress))) {
        loop {
            let wait = match self.read().await {
                Ok(()) => {
                    progress(|progress| progress.sent = 0);
                    AGAIN
                }
                Err(error) => {
                    tracing::warn!("reminders are not read: {error}; trying again");
                    PAUSE
                }
            };
            tokio::select! {
                () = came.notified() => {}
                () = sleep(wait) => {}
            }
        }
    }
}

impl StateStore for Mine {
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
        if kind == self.by_time {
            // Before it is known whether it is there.
            self.due.lock().insert(key);
        }
        self.store.save(kind, key, follows, state, durability)
    }

    fn remove<'a>(
        &'a self,
        kind: &'a str,
        key: &'a str,
        follows: Version,
        durability: Durability,
    ) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            self.store.remove(kind, key, follows, durability).await?;
            if kind == self.by_time {
                self.due.lock().remove(key);
            }
            Ok(())
        })
    }

    fn count<'a>(&'a self, kind: &'a str) -> StoreFuture<'a, u64> {
        if kind == self.by_actor {
            let count = self.due.lock().actors.len() as u64;
            return Box::pin(async move { Ok(count) });
        }
        self.store.count(kind)
    }

    fn keys<'a>(&'a self, kind: &'a str, after: Option<&'a str>, limit: usize) -> StoreFuture<'a, Vec<String>> {
        if kind != self.by_time {
            return self.store.keys(kind, after, limit);
        }
        let after = after.map_or(Bound::Unbounded, Bound::Excluded);
        let due = self.due.lock();
        let mine = due.keys.range::<str, _>((after, Bound::Unbounded));
        // Of a part that is about to go, none is sent any more.
        let mine = mine.filter(|key| parts(key).is_some_and(|(_, of, _)| self.owned.owns_name(of)));
        let keys = mine.take(limit).cloned().collect();
        Box::pin(async move { Ok(keys) })
    }
}
