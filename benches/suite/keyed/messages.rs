//! Messages to what is in memory, kept after each or not.

use std::{sync::Arc, time::Instant};

use airssys_wasm_harness::{Measure, Suite};
use airssys_wasm_keyed::{KeyedOptions, SaveWhen};
use airssys_wasm_twins::{
    actors::SMALLEST_KEEPING,
    receivers::Receiver,
    work::{Work, Workers, payload},
};
use bytes::Bytes;
use fjall::{Database, KeyspaceCreateOptions, PersistMode};

use super::ours::{Disk, Kind, OfKey, options};
use crate::actor::ours::Ours;

pub(super) fn describe(suite: &mut Suite) {
    ask(suite);
    save(suite);
}

/// Of the same guest by a name that may sleep and does not, and as a plain actor: by its reference, and by its name, which is
/// looked up each time as the other's is.
fn ask(suite: &mut Suite) {
    const LIVE: &str = "keyed/ask/live";
    const PLAIN: &str = "keyed/ask/plain";
    const BY_NAME: &str = "keyed/ask/plain_by_name";
    suite
        .bench(LIVE, || {
            let disk = Arc::new(Disk::new());
            let mut measure = Work::Asks.measure(Workers::One, one(Arc::clone(&disk)), 64);
            Box::new(move |iterations| {
                let _keep = &disk;
                measure(iterations)
            })
        })
        .and(PLAIN, || Work::Asks.measure(Workers::One, Ours::guest(&SMALLEST_KEEPING), 64))
        .and(BY_NAME, || Work::Asks.measure(Workers::One, async { ByName(Ours::guest(&SMALLEST_KEEPING).await) }, 64))
        .ratio(LIVE, PLAIN, 1.03)
        .ratio(LIVE, BY_NAME, None);
}

async fn one(disk: Arc<Disk>) -> OfKey {
    let kind = Kind::new("smallest", &SMALLEST_KEEPING, options(), &disk.store).await;
    OfKey { actor: kind.keyed.actor("1").unwrap(), _kind: kind }
}

/// A plain actor that is looked up for each message.
#[derive(Clone)]
struct ByName(Ours);

impl Receiver for ByName {
    async fn tell(&self, payload: Bytes) {
        self.0.system.find("guest").expect("it lives").tell(payload).await.expect("it lives");
    }

    async fn ask(&self, payload: Bytes) -> Option<Bytes> {
        Some(self.0.system.find("guest").expect("it lives").ask(payload).await.expect("it lives"))
    }
}

/// How many ask at once.
const AT_ONCE: usize = 64;

/// A message to each of so many, which is on the disk when it is answered.
fn save(suite: &mut Suite) {
    suite
        .bench(&format!("keyed/save/each_message/{AT_ONCE}"), saves)
        // 0.7 times as many.
        .twin("raw", 1.0 / 0.7, bare_saves);
}

/// Each asks as soon as it has been answered: the time of as many messages as there are actors.
fn saves() -> Measure {
    let runtime = Workers::Two.runtime();
    let disk = Disk::new();
    let options = KeyedOptions { save: SaveWhen::EachMessage, ..options() };
    let kind = runtime.block_on(Kind::new("smallest", &SMALLEST_KEEPING, options, &disk.store));
    let actors: Vec<_> = (0..AT_ONCE).map(|key| kind.keyed.actor(&key.to_string()).unwrap()).collect();
    Box::new(move |iterations| {
        let _keep = (&kind, &disk);
        let started = Instant::now();
        runtime.block_on(async {
            let clients: Vec<_> = actors
                .iter()
                .cloned()
                .map(|actor| {
                    tokio::spawn(async move {
                        for _ in 0..iterations {
                            assert_eq!(actor.ask(payload(64)).await.unwrap().len(), 64);
                        }
                    })
                })
                .collect();
            for client in clients {
                client.await.unwrap();
            }
        });
        started.elapsed()
    })
}

/// A batch of as many rows of the same size, and a sync.
fn bare_saves() -> Measure {
    let folder = tempfile::tempdir().unwrap();
    let rows = Database::builder(folder.path()).open().unwrap();
    let states = rows.keyspace("states", KeyspaceCreateOptions::default).unwrap();
    let keys: Vec<_> = (0..AT_ONCE).map(|key| format!("smallest{key}")).collect();
    let mut version = 0_u64;
    Box::new(move |iterations| {
        let _keep = &folder;
        let started = Instant::now();
        for _ in 0..iterations {
            let mut batch = rows.batch().durability(Some(PersistMode::SyncData));
            for key in &keys {
                version += 1;
                batch.insert(&states, key.as_bytes(), [version.to_be_bytes(), version.to_le_bytes()].concat());
            }
            batch.commit().unwrap();
        }
        started.elapsed()
    })
}
