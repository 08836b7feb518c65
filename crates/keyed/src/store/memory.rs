//! A store in the memory of the process.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    ops::Bound,
};

use bytes::Bytes;
use parking_lot::Mutex;

use super::{Durability, Saved, StateStore, StoreError, StoreFuture, Version};

/// A store in the memory of the process: its rows survive passivation and crashes of guests, and nothing else.
#[derive(Default)]
pub struct MemoryStore(Mutex<Rows>);

#[derive(Default)]
struct Rows {
    kinds: HashMap<Box<str>, BTreeMap<Box<str>, Saved>>,
    /// The last version, of all rows together, so that one that is made again has none that it had before.
    last: u64,
}

impl MemoryStore {
    /// A store without rows.
    pub fn new() -> Self {
        Self::default()
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows: usize = self.0.lock().kinds.values().map(BTreeMap::len).sum();
        f.debug_struct("MemoryStore").field("rows", &rows).finish()
    }
}

impl Rows {
    fn check(&self, kind: &str, key: &str, follows: Version) -> Result<(), StoreError> {
        let found = self.kinds.get(kind).and_then(|rows| rows.get(key)).map_or(Version::NONE, |row| row.version);
        if found == follows { Ok(()) } else { Err(StoreError::Fenced { found }) }
    }

    fn save(&mut self, kind: &str, key: &str, follows: Version, state: Bytes) -> Result<Version, StoreError> {
        self.check(kind, key, follows)?;
        self.last += 1;
        let version = Version::new(self.last);
        let row = Saved { version, state };
        if !self.kinds.contains_key(kind) {
            self.kinds.insert(kind.into(), BTreeMap::new());
        }
        if let Some(rows) = self.kinds.get_mut(kind) {
            match rows.get_mut(key) {
                Some(old) => *old = row,
                None => _ = rows.insert(key.into(), row),
            }
        }
        Ok(version)
    }

    fn remove(&mut self, kind: &str, key: &str, follows: Version) -> Result<(), StoreError> {
        self.check(kind, key, follows)?;
        if let Some(rows) = self.kinds.get_mut(kind) {
            rows.remove(key);
        }
        Ok(())
    }
}

impl StateStore for MemoryStore {
    fn load<'a>(&'a self, kind: &'a str, key: &'a str) -> StoreFuture<'a, Option<Saved>> {
        Box::pin(async move { Ok(self.0.lock().kinds.get(kind).and_then(|rows| rows.get(key)).cloned()) })
    }

    fn save<'a>(
        &'a self,
        kind: &'a str,
        key: &'a str,
        follows: Version,
        state: Bytes,
        _: Durability,
    ) -> StoreFuture<'a, Version> {
        Box::pin(async move { self.0.lock().save(kind, key, follows, state) })
    }

    fn remove<'a>(&'a self, kind: &'a str, key: &'a str, follows: Version, _: Durability) -> StoreFuture<'a, ()> {
        Box::pin(async move { self.0.lock().remove(kind, key, follows) })
    }

    fn count<'a>(&'a self, kind: &'a str) -> StoreFuture<'a, u64> {
        Box::pin(async move { Ok(self.0.lock().kinds.get(kind).map_or(0, |rows| rows.len() as u64)) })
    }

    fn keys<'a>(&'a self, kind: &'a str, after: Option<&'a str>, limit: usize) -> StoreFuture<'a, Vec<String>> {
        Box::pin(async move {
            let rows = self.0.lock();
            let Some(rows) = rows.kinds.get(kind) else { return Ok(Vec::new()) };
            let from = after.map_or(Bound::Unbounded, Bound::Excluded);
            Ok(rows.range::<str, _>((from, Bound::Unbounded)).take(limit).map(|(key, _)| key.to_string()).collect())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_write_must_follow_the_version_that_is_there() {
        let store = MemoryStore::new();
        let save = |follows, state: &'static str| {
            store.save("cart", "1", follows, Bytes::from_static(state.as_bytes()), Durability::Process)
        };
        let first = save(Version::NONE, "a").await.unwrap();
        assert!(matches!(save(Version::NONE, "b").await, Err(StoreError::Fenced { found }) if found == first));
        let second = save(first, "c").await.unwrap();
        let stale = store.remove("cart", "1", first, Durability::Process).await;
        assert!(matches!(stale, Err(StoreError::Fenced { found }) if found == second));
        assert_eq!(store.load("cart", "1").await.unwrap().unwrap().state, "c");
        store.remove("cart", "1", second, Durability::Process).await.unwrap();
        assert_eq!(store.load("cart", "1").await.unwrap(), None);
        // A row made again has none of the versions that it had.
        let third = save(Version::NONE, "d").await.unwrap();
        assert!(third != first && third != second);
    }

    #[tokio::test]
    async fn keys_come_in_pages_in_their_order() {
        let store = MemoryStore::new();
        for key in ["b", "a", "d", "c"] {
            store.save("cart", key, Version::NONE, Bytes::new(), Durability::Process).await.unwrap();
        }
        store.save("room", "e", Version::NONE, Bytes::new(), Durability::Process).await.unwrap();
        assert_eq!(store.count("cart").await.unwrap(), 4);
        assert_eq!(store.keys("cart", None, 3).await.unwrap(), ["a", "b", "c"]);
        assert_eq!(store.keys("cart", Some("c"), 3).await.unwrap(), ["d"]);
        assert_eq!(store.keys("none", None, 3).await.unwrap(), [""; 0]);
    }
}
