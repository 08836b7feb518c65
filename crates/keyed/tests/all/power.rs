//! A store that drops what was not synced, when the power is lost.

use std::{collections::BTreeMap, ops::Bound, sync::Arc};

use airssys_wasm_keyed::{
    Durability, Saved, StateStore, StoreError, StoreFuture, Version,
    conformance::{self, Kept},
};
use bytes::Bytes;
use parking_lot::Mutex;

/// Rows in memory, and as they are on the disk. A write with [`Durability::Power`] syncs all that was written before.
#[derive(Debug, Default)]
pub(crate) struct LosesPower(Mutex<Rows>);

type ByName = BTreeMap<(String, String), Saved>;

#[derive(Debug, Default)]
struct Rows {
    now: ByName,
    synced: ByName,
    last: u64,
}

impl Rows {
    fn write(
        &mut self,
        kind: &str,
        key: &str,
        follows: Version,
        state: Option<Bytes>,
        durability: Durability,
    ) -> Result<Version, StoreError> {
        let name = (kind.to_owned(), key.to_owned());
        let found = self.now.get(&name).map_or(Version::NONE, |row| row.version);
        if found != follows {
            return Err(StoreError::Fenced { found });
        }
        let version = match state {
            Some(state) => {
                self.last += 1;
                let version = Version::new(self.last);
                self.now.insert(name, Saved { version, state });
                version
            }
            None => {
                self.now.remove(&name);
                Version::NONE
            }
        };
        if durability == Durability::Power {
            self.synced = self.now.clone();
        }
        Ok(version)
    }
}

impl LosesPower {
    /// What was not synced is gone.
    pub(crate) fn lose_power(&self) {
        let mut rows = self.0.lock();
        rows.now = rows.synced.clone();
    }
}

impl StateStore for LosesPower {
    fn load<'a>(&'a self, kind: &'a str, key: &'a str) -> StoreFuture<'a, Option<Saved>> {
        Box::pin(async move { Ok(self.0.lock().now.get(&(kind.to_owned(), key.to_owned())).cloned()) })
    }

    fn save<'a>(
        &'a self,
        kind: &'a str,
        key: &'a str,
        follows: Version,
        state: Bytes,
        durability: Durability,
    ) -> StoreFuture<'a, Version> {
        Box::pin(async move { self.0.lock().write(kind, key, follows, Some(state), durability) })
    }

    fn remove<'a>(
        &'a self,
        kind: &'a str,
        key: &'a str,
        follows: Version,
        durability: Durability,
    ) -> StoreFuture<'a, ()> {
        Box::pin(async move { self.0.lock().write(kind, key, follows, None, durability).map(|_| ()) })
    }

    fn count<'a>(&'a self, kind: &'a str) -> StoreFuture<'a, u64> {
        Box::pin(async move { Ok(self.0.lock().now.keys().filter(|name| name.0 == kind).count() as u64) })
    }

    fn keys<'a>(&'a self, kind: &'a str, after: Option<&'a str>, limit: usize) -> StoreFuture<'a, Vec<String>> {
        Box::pin(async move {
            let rows = self.0.lock();
            let first = (kind.to_owned(), after.unwrap_or_default().to_owned());
            let from = if after.is_some() { Bound::Excluded(first) } else { Bound::Included(first) };
            let of_kind = rows.now.range((from, Bound::Unbounded)).take_while(|(name, _)| name.0 == kind);
            Ok(of_kind.take(limit).map(|(name, _)| name.1.clone()).collect())
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_conforms() {
    conformance::all(Arc::new(LosesPower::default())).await;
}

#[tokio::test]
async fn it_keeps_what_is_to_survive_the_loss_of_power() {
    let store = LosesPower::default();
    let kept = Kept::write(&store, Durability::Power).await;
    store.save("cart", "later", Version::NONE, "x".into(), Durability::Process).await.unwrap();
    store.lose_power();
    kept.check(&store).await;
    assert_eq!(store.load("cart", "later").await.unwrap(), None, "control: it was not synced");
}
