//! From a row to an answer.

use std::{
    cell::{Cell, LazyCell},
    rc::Rc,
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use airssys_wasm_harness::{Measure, Suite, now};
use airssys_wasm_keyed::{FjallStore, KeyedOptions, SaveWhen, StateStore};
use airssys_wasm_twins::{
    actors::{COUNTER, Guest, SMALLEST_KEEPING},
    work::{BATCH, Workers, as_task, spawns},
};
use bytes::Bytes;

use super::ours::{Disk, Kind, options, populate};

/// A guest, and a message that changes nothing, so that nothing is saved.
#[derive(Clone, Copy)]
struct Sleeper {
    kind: &'static str,
    guest: &'static LazyLock<Guest>,
    message: &'static str,
    answer: &'static str,
}

const SLEEPERS: [Sleeper; 2] = [
    Sleeper { kind: "smallest", guest: &SMALLEST_KEEPING, message: "", answer: "" },
    Sleeper { kind: "rust", guest: &COUNTER, message: "get", answer: "7" },
];

/// A count of seven, as both guests keep it.
const STATE: Bytes = Bytes::from_static(&[7, 0, 0, 0, 0, 0, 0, 0]);

/// A store with rows of both, made when somebody needs it.
type Rows = Rc<LazyCell<Disk>>;

pub(super) fn describe(suite: &mut Suite) {
    let rows: Rows = Rc::new(LazyCell::new(|| {
        let disk = Disk::new();
        for Sleeper { kind, .. } in SLEEPERS {
            now(populate(&disk.store, kind, ROWS, STATE));
        }
        disk
    }));
    for sleeper in SLEEPERS {
        let (ours, bare) = (Rc::clone(&rows), Rc::clone(&rows));
        let group = suite.bench(&format!("keyed/activation/{}", sleeper.kind), move || activated(sleeper, ours));
        group.twin("raw", 1.5, move || bare_activated(sleeper, bare));
        if sleeper.kind == "smallest" {
            // Where the machine instantiates in 5 µs.
            group.target("goal", Duration::from_micros(60));
        }
    }
}

/// Rows of each kind.
const ROWS: u64 = 10_000;

/// Keys all over the store, those of a batch different from each other.
fn keys() -> impl Fn() -> String {
    let next = Cell::new(0);
    move || (next.replace(next.get() + 1) * 7_919 % ROWS).to_string()
}

/// One after the other, on one worker. They leave outside the time.
fn activated(sleeper: Sleeper, rows: Rows) -> Measure {
    let Sleeper { kind, guest, message, answer } = sleeper;
    let runtime = Workers::One.runtime();
    let options = KeyedOptions { save: SaveWhen::OnIdle, ..options() };
    let kind = runtime.block_on(Kind::new(kind, guest, options, &rows.store));
    let key = keys();
    Box::new(move |mut iterations| {
        let _keep = (&rows, &kind);
        let mut taken = Duration::ZERO;
        while iterations > 0 {
            let batch = iterations.min(BATCH);
            iterations -= batch;
            let keys: Vec<_> = (0..batch).map(|_| key()).collect();
            let keyed = kind.keyed.clone();
            taken += as_task(&runtime, async move {
                let actors: Vec<_> = keys.iter().map(|key| keyed.actor(key).unwrap()).collect();
                let started = Instant::now();
                for actor in actors {
                    assert_eq!(actor.ask(Bytes::from_static(message.as_bytes())).await.unwrap(), answer);
                }
                let taken = started.elapsed();
                for key in keys {
                    assert!(keyed.passivate(&key).await.unwrap());
                }
                taken
            });
        }
        taken
    })
}

/// The same by hand: the row, an instance, what it restores and what it handles. It is freed outside the time.
fn bare_activated(sleeper: Sleeper, rows: Rows) -> Measure {
    let Sleeper { kind, guest, message, answer } = sleeper;
    let restore: &_ = Box::leak(Box::new(guest.export("airssys:actor/state@0.1.0#restore")));
    let (key, store) = (keys(), Arc::clone(&rows.store));
    let mut measure = spawns(
        Workers::One,
        move |_| (Arc::clone(&store), key()),
        move |(store, key): (Arc<FjallStore>, String)| async move {
            let row = store.load(kind, &key).await.unwrap().unwrap();
            let mut live = guest.instantiate().await;
            let (restored,): (Result<(), String>,) = live.call(restore, (row.state,)).await;
            restored.unwrap();
            assert_eq!(live.handle(Bytes::from_static(message.as_bytes()), true).await.unwrap(), answer);
            live
        },
        async |_| {},
    );
    Box::new(move |iterations| {
        let _keep = &rows;
        measure(iterations)
    })
}
