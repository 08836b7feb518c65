//! Kinds and their store, as everything here uses them.

use std::{path::Path, sync::Arc, time::Duration};

use airssys_wasm_actor::ActorSystem;
use airssys_wasm_harness::now;
use airssys_wasm_keyed::{
    Admission, Durability, FjallStore, Keyed, KeyedOptions, KeyedRef, KeyedSpec, Rate, StateStore, StoreConfig, Version,
};
use airssys_wasm_twins::{actors::Guest, bare::engine, receivers::Receiver};
use bytes::Bytes;
use tempfile::TempDir;

use crate::{
    actor::ours::{sandbox, spec, system},
    guests,
};

/// A store on disk, in a folder that goes when it goes. Not to be dropped where a runtime runs.
pub(super) struct Disk {
    pub(super) store: Arc<FjallStore>,
    _folder: TempDir,
}

impl Disk {
    pub(super) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { store: now(open(folder.path())), _folder: folder }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Or it would write in a folder that is gone.
        now(self.store.close());
    }
}

pub(super) async fn open(folder: &Path) -> Arc<FjallStore> {
    Arc::new(FjallStore::open(StoreConfig::new(folder)).await.unwrap())
}

/// A row for each key from 0 on.
pub(super) async fn populate(store: &Arc<FjallStore>, kind: &'static str, keys: u64, state: Bytes) {
    const WRITERS: u64 = 512;
    let writers: Vec<_> = (0..WRITERS)
        .map(|first| {
            let (store, state) = (Arc::clone(store), state.clone());
            tokio::spawn(async move {
                for key in (first..keys).step_by(WRITERS as usize) {
                    let (key, state) = (key.to_string(), state.clone());
                    store.save(kind, &key, Version::NONE, state, Durability::Process).await.unwrap();
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
}

/// As by default, but that activations are admitted without end and nobody leaves because it is idle.
pub(super) fn options() -> KeyedOptions {
    let unbounded = Rate { per_second: 1e9, burst: u32::MAX };
    KeyedOptions {
        idle: Duration::from_secs(3600),
        admission: Admission { kind: unbounded, caller: unbounded },
        ..KeyedOptions::default()
    }
}

/// A kind, whose actors run where this is awaited.
pub(super) async fn install(
    system: &ActorSystem,
    kind: &str,
    guest: &Guest,
    options: KeyedOptions,
    store: &Arc<FjallStore>,
) -> Keyed {
    let template = spec(kind, &sandbox(guest, system, guests::limits()));
    let spec = KeyedSpec::new(template).with_options(options);
    Keyed::install(system, spec, Arc::clone(store) as _).await.unwrap()
}

/// A kind, and the system that it lives in.
#[derive(Clone)]
pub(super) struct Kind {
    /// Which the kind does not keep alive.
    _system: ActorSystem,
    pub(super) keyed: Keyed,
}

impl Kind {
    /// The only one of a system.
    pub(super) async fn new(kind: &str, guest: &Guest, options: KeyedOptions, store: &Arc<FjallStore>) -> Self {
        let system = system(engine());
        Self { keyed: install(&system, kind, guest, options, store).await, _system: system }
    }
}

/// One of its actors.
#[derive(Clone)]
pub(super) struct OfKey {
    pub(super) _kind: Kind,
    pub(super) actor: KeyedRef,
}

impl Receiver for OfKey {
    async fn tell(&self, payload: Bytes) {
        self.actor.tell(payload).await.expect("it is there");
    }

    async fn ask(&self, payload: Bytes) -> Option<Bytes> {
        Some(self.actor.ask(payload).await.expect("it is there"))
    }
}
