//! What the tests share: one engine, the guests, a store that fails when it is told to, and short ways to write them down.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, LazyLock, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use airssys_wasm_actor::{
    ActorSpec, ActorState, ActorSystem, AskError, Backoff, Capabilities, Intensity, RestartPolicy, SystemConfig,
};
use airssys_wasm_engine::{EngineConfig, LoadedComponent, PoolConfig, Profile, WasmEngine};
use airssys_wasm_fixtures as fixtures;
use airssys_wasm_isolation::SandboxSpec;
use airssys_wasm_keyed::{
    Durability, Keyed, KeyedOptions, KeyedSpec, MemoryStore, Saved, StateStore, StoreError, StoreFuture, Version,
};
use airssys_wasm_limits::{ByteSize, ResourceLimits};
use airssys_wasm_registry::ComponentId;
use bytes::Bytes;
use tokio::sync::Semaphore;

static ENGINE: LazyLock<WasmEngine> = LazyLock::new(|| {
    let pool = Some(PoolConfig::for_components(256));
    let config = EngineConfig { pool, ..EngineConfig::default() };
    WasmEngine::new(config.with_component_async().compile_in_process()).unwrap()
});

/// Compiled once for all tests.
macro_rules! guests {
    ($($name:ident = $bytes:ident),* $(,)?) => {
        $(pub(crate) static $name: LazyLock<LoadedComponent> =
            LazyLock::new(|| ENGINE.load_blocking(fixtures::$bytes, Profile::Plain).unwrap());)*
    };
}

guests! {
    // Counts: `add N`, `get`, `crash`.
    COUNTER = COUNTER,
    COUNTER_V2 = COUNTER_V2,
    // Does what it is told, and counts messages.
    ACTOR = ACTOR,
    ASYNC_ACTOR = ASYNC_ACTOR,
}

pub(crate) static ECHO: LazyLock<LoadedComponent> =
    LazyLock::new(|| ENGINE.load_wat_blocking(fixtures::SMALLEST_ACTOR, Profile::Plain).unwrap());

/// Gives back what it is asked, and counts its bytes.
pub(crate) static KEEPING: LazyLock<LoadedComponent> =
    LazyLock::new(|| ENGINE.load_wat_blocking(fixtures::SMALLEST_KEEPING_ACTOR, Profile::Plain).unwrap());

pub(crate) static LATER: LazyLock<LoadedComponent> =
    LazyLock::new(|| ENGINE.load_wat_blocking(fixtures::LATER, Profile::Plain).unwrap());

pub(crate) fn system() -> ActorSystem {
    ActorSystem::new(ENGINE.clone(), SystemConfig { seed: Some(1), ..SystemConfig::default() })
}

/// A system whose pool has room for so many actors.
pub(crate) fn system_of(actors: u32) -> ActorSystem {
    let pool = Some(PoolConfig::for_components(actors));
    let engine = WasmEngine::new(EngineConfig { pool, ..EngineConfig::default() }.compile_in_process()).unwrap();
    ActorSystem::new(engine, SystemConfig { seed: Some(1), ..SystemConfig::default() })
}

/// A counter of that system.
pub(crate) fn load(system: &ActorSystem) -> LoadedComponent {
    system.engine().load_blocking(fixtures::COUNTER, Profile::Plain).unwrap()
}

pub(crate) fn id(name: &str) -> ComponentId {
    name.parse().unwrap()
}

pub(crate) fn sandbox(system: &ActorSystem, guest: &LoadedComponent) -> SandboxSpec<ActorState<()>> {
    // Much, for a machine that is busy with other things: epochs pass while a worker waits for a core.
    let limits = ResourceLimits {
        cpu_time: Duration::from_millis(500),
        message_size: ByteSize::kib(64),
        ..ResourceLimits::with_memory(ByteSize::mib(8))
    };
    SandboxSpec::new(system.link(guest).unwrap(), limits).unwrap()
}

/// An actor that is restarted at once and may do everything.
pub(crate) fn template(system: &ActorSystem, name: &str, guest: &LoadedComponent) -> ActorSpec<()> {
    let intensity = Intensity { restarts: 3, ..Intensity::default() };
    let restart = RestartPolicy { intensity, backoff: Backoff::NONE, ..RestartPolicy::default() };
    ActorSpec::new(id(name), sandbox(system, guest)).with_restart(restart).with_capabilities(Capabilities::all())
}

/// The kind `cart`.
pub(crate) async fn carts(
    system: &ActorSystem,
    guest: &LoadedComponent,
    options: KeyedOptions,
    store: &Arc<Faulty>,
) -> Keyed {
    install(system, template(system, "cart", guest), options, store).await
}

pub(crate) async fn install(
    system: &ActorSystem,
    template: ActorSpec<()>,
    options: KeyedOptions,
    store: &Arc<Faulty>,
) -> Keyed {
    let spec = KeyedSpec::new(template).with_options(options);
    Keyed::install(system, spec, Arc::clone(store) as _).await.unwrap()
}

/// An answer as text.
pub(crate) async fn ask(kind: &Keyed, key: &str, text: &str) -> Result<String, AskError> {
    let answer = kind.actor(key).unwrap().ask(text.to_owned()).await?;
    Ok(String::from_utf8(answer.to_vec()).unwrap())
}

/// Lets all that can happen happen.
pub(crate) async fn settle() {
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
}

/// Waits for what other threads have a part in: they free what has much memory.
pub(crate) async fn until(is_so: impl Fn() -> bool) {
    while !is_so() {
        tokio::task::yield_now().await;
    }
}

/// Lets time pass, in steps in which what is due happens.
pub(crate) async fn pass(time: Duration) {
    let step = Duration::from_millis(100);
    let mut left = time;
    while !left.is_zero() {
        let now = left.min(step);
        tokio::time::advance(now).await;
        settle().await;
        left -= now;
    }
}

/// A store in memory that fails, or takes its time, when it is told to.
#[derive(Debug)]
pub(crate) struct Faulty {
    pub(crate) rows: MemoryStore,
    /// Whether it is full, but for reading.
    pub(crate) full: AtomicBool,
    /// Whether it writes what it says that it failed to.
    pub(crate) writes_and_fails: AtomicBool,
    /// The first write of each key that comes while it is there, which is carried out late.
    late: Mutex<Option<BTreeMap<String, Late>>>,
    /// Which version the late write of a key followed, and which it made.
    settled: Mutex<BTreeMap<String, (Version, Version)>>,
    /// Whether it fails to read.
    pub(crate) blind: AtomicBool,
    /// A permit for each write.
    pub(crate) writes: Semaphore,
    /// A permit for each row that is read or removed.
    pub(crate) loads: Semaphore,
    pub(crate) removals: Semaphore,
    /// How many writes there were.
    pub(crate) written: AtomicU64,
    /// Of them, those that must survive the loss of power.
    pub(crate) synced: AtomicU64,
}

/// What a write followed, and its state.
type Late = (Version, Bytes);

impl Faulty {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            rows: MemoryStore::new(),
            full: AtomicBool::new(false),
            writes_and_fails: AtomicBool::new(false),
            late: Mutex::default(),
            settled: Mutex::default(),
            blind: AtomicBool::new(false),
            writes: Semaphore::new(Semaphore::MAX_PERMITS),
            loads: Semaphore::new(Semaphore::MAX_PERMITS),
            removals: Semaphore::new(Semaphore::MAX_PERMITS),
            written: AtomicU64::new(0),
            synced: AtomicU64::new(0),
        })
    }

    /// The state of a cart, as text.
    pub(crate) async fn row(&self, key: &str) -> Option<Bytes> {
        self.rows.load("cart", key).await.unwrap().map(|row| row.state)
    }

    /// The count of a cart of counters.
    pub(crate) async fn count_of(&self, key: &str) -> Option<u64> {
        Some(u64::from_le_bytes(self.row(key).await?[..].try_into().unwrap()))
    }

    pub(crate) async fn put(&self, key: &str, state: &[u8]) {
        let before = self.rows.load("cart", key).await.unwrap().map_or(Version::NONE, |row| row.version);
        self.rows.save("cart", key, before, Bytes::copy_from_slice(state), Durability::Process).await.unwrap();
    }

    pub(crate) fn written(&self) -> u64 {
        self.written.load(Ordering::SeqCst)
    }

    pub(crate) fn set_full(&self, full: bool) {
        self.full.store(full, Ordering::SeqCst);
    }

    /// From now on it is full, and has the first write of each key in a buffer.
    pub(crate) fn fill_up(&self) {
        *self.late.lock().unwrap() = Some(BTreeMap::new());
    }

    /// There is room, and what is in the buffer is written. A write that follows the same version is not fenced by that.
    pub(crate) async fn make_room(&self) {
        let late = self.late.lock().unwrap().take().unwrap();
        for (key, (follows, state)) in late {
            let made = self.rows.save("cart", &key, follows, state, Durability::Process).await.unwrap();
            self.settled.lock().unwrap().insert(key, (follows, made));
        }
    }

    /// What a write really follows.
    fn follows(&self, key: &str, follows: Version) -> Version {
        match self.settled.lock().unwrap().remove(key) {
            Some((followed, made)) if followed == follows => made,
            _ => follows,
        }
    }
}

impl StateStore for Faulty {
    fn load<'a>(&'a self, kind: &'a str, key: &'a str) -> StoreFuture<'a, Option<Saved>> {
        Box::pin(async move {
            self.loads.acquire().await.unwrap().forget();
            if self.blind.load(Ordering::SeqCst) {
                return Err(StoreError::io("told to be blind"));
            }
            self.rows.load(kind, key).await
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
        Box::pin(async move {
            self.writes.acquire().await.unwrap().forget();
            if self.full.load(Ordering::SeqCst) {
                return Err(StoreError::Full);
            }
            if let Some(late) = &mut *self.late.lock().unwrap() {
                late.entry(key.to_owned()).or_insert((follows, state));
                return Err(StoreError::Full);
            }
            let version = self.rows.save(kind, key, self.follows(key, follows), state, durability).await?;
            self.written.fetch_add(1, Ordering::SeqCst);
            if durability == Durability::Power {
                self.synced.fetch_add(1, Ordering::SeqCst);
            }
            if self.writes_and_fails.load(Ordering::SeqCst) {
                return Err(StoreError::io("told to fail"));
            }
            Ok(version)
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
            self.removals.acquire().await.unwrap().forget();
            if self.full.load(Ordering::SeqCst) {
                return Err(StoreError::Full);
            }
            self.rows.remove(kind, key, self.follows(key, follows), durability).await
        })
    }

    fn count<'a>(&'a self, kind: &'a str) -> StoreFuture<'a, u64> {
        self.rows.count(kind)
    }

    fn keys<'a>(&'a self, kind: &'a str, after: Option<&'a str>, limit: usize) -> StoreFuture<'a, Vec<String>> {
        self.rows.keys(kind, after, limit)
    }
}
