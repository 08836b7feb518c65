//! A store that drops what was not synced, when the power is lost.

use std::{collections::BTreeMap, ops::Bound, sync::Arc, time::Duration};

use airssys_wasm_keyed::{
    Durability, Keyed, KeyedOptions, KeyedSpec, SaveWhen, Saved, StateStore, StoreError, StoreFuture, Version,
    conformance::{self, Kept},
};
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::timeout;

use crate::support::{COUNTER, ask, system, template};

/// Longer than a save within 10 ms takes on a machine that is busy with other things.
const LATEST: Duration = Duration::from_secs(20);

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
    /// The store after the loss of power: what was not synced is gone. Who has this one may go on with it, and nobody sees.
    pub(crate) fn after_loss(&self) -> Self {
        let Rows { synced, last, .. } = &*self.0.lock();
        Self(Mutex::new(Rows { now: synced.clone(), synced: synced.clone(), last: *last }))
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
    let store = store.after_loss();
    kept.check(&store).await;
    assert_eq!(store.load("cart", "later").await.unwrap(), None, "control: it was not synced");
}

/// Has kinds take random steps, and the power fail after some of them. Gives how often another count was found than the
/// last that was promised to be kept.
async fn others_found(save: SaveWhen, durability: Durability) -> usize {
    let mut random = fastrand::Rng::with_seed(1);
    let mut store = Arc::new(LosesPower::default());
    let mut others = 0;
    for _ in 0..30 {
        let system = system();
        let options = KeyedOptions { save, durability, ..KeyedOptions::default() };
        let spec = KeyedSpec::new(template(&system, "cart", &COUNTER)).with_options(options);
        let carts = Keyed::install(&system, spec, Arc::clone(&store) as _).await.unwrap();
        let mut promised = BTreeMap::new();
        for key in ["a", "b", "c"] {
            promised.insert(key, count_of(&store, key).await);
        }
        for _ in 0..random.usize(1..10) {
            let key = random.choice(["a", "b", "c"]).unwrap();
            let now: u64 = ask(&carts, key, "get").await.unwrap().parse().unwrap();
            let (add, kept) = match random.u8(0..5) {
                0 | 1 => (1, save == SaveWhen::EachMessage),
                // As new: its row is removed.
                2 => (now.wrapping_neg(), save == SaveWhen::EachMessage),
                3 => (0, carts.passivate(key).await.unwrap()),
                _ => {
                    carts.forget(key).await.unwrap();
                    promised.insert(key, 0);
                    continue;
                }
            };
            let answer: u64 = ask(&carts, key, &format!("add {add}")).await.unwrap().parse().unwrap();
            assert_eq!(answer, now.wrapping_add(add));
            let by_time = matches!(save, SaveWhen::Within(_));
            if by_time {
                timeout(LATEST, count_becomes(&store, key, answer)).await.expect("it is saved in time");
            }
            if kept || by_time {
                promised.insert(key, answer);
            }
        }
        store = Arc::new(store.after_loss());
        for (key, count) in promised {
            others += usize::from(count_of(&store, key).await != count);
        }
    }
    others
}

/// Waits until the count is saved, by nothing but time.
async fn count_becomes(store: &LosesPower, key: &str, count: u64) {
    while count_of(store, key).await != count {
        tokio::task::yield_now().await;
    }
}

async fn count_of(store: &LosesPower, key: &str) -> u64 {
    let row = store.load("cart", key).await.unwrap();
    row.map_or(0, |row| u64::from_le_bytes(row.state[..].try_into().unwrap()))
}

#[tokio::test]
async fn the_loss_of_power_leaves_what_a_kind_has_acknowledged_removals_included() {
    for save in [SaveWhen::EachMessage, SaveWhen::OnIdle, SaveWhen::Within(Duration::from_millis(10))] {
        assert_eq!(others_found(save, Durability::Power).await, 0, "{save:?}");
        let without = others_found(save, Durability::Process).await;
        assert!(without > 0, "control: {save:?} without a sync");
    }
}
