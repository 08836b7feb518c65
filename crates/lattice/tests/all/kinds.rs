//! Kinds that several hosts have: each key is one host's, and goes on where its slot goes.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, LazyLock, atomic::Ordering, mpsc},
    time::Duration,
};

use airssys_wasm_actor::{
    ActorSandbox, ActorSpec, ActorSystem, AskError, DeadReason, SystemConfig, UpgradeOptions,
    engine::{EngineConfig, LoadedComponent, PoolConfig, Profile, WasmEngine},
    isolation::SandboxSpec,
    limits::{ByteSize, CancellationToken, ResourceLimits},
    registry::Refusal,
};
use airssys_wasm_fixtures::{self as fixtures, ACTOR, COUNTER, COUNTER_V2, nats::NatsServer};
use airssys_wasm_keyed::{ForgetError, Keyed, KeyedOptions, KeyedSpec, ReminderConfig, SaveWhen, StateStore};
use airssys_wasm_lattice::{BucketConfig, ExportKindError, JetStreamStore, Lattice, LatticeConfig, async_nats};
use parking_lot::Mutex;
use tokio::{
    runtime::{Builder, Runtime},
    task::JoinHandle,
};

use crate::{
    failures::{Losing, losing},
    support::{LONG, config, host, id, server, until, until_told, within},
};

const SLOTS: usize = 1_024;
const ASKERS: usize = 6;
/// Soon over.
const LEASE: Duration = Duration::from_secs(2);

pub(crate) static ENGINE: LazyLock<WasmEngine> = LazyLock::new(|| {
    let pool = Some(PoolConfig::for_components(512));
    WasmEngine::new(EngineConfig { pool, ..EngineConfig::default() }.compile_in_process()).unwrap()
});

/// Counts: `add N`, `get`.
static GUEST: LazyLock<LoadedComponent> = LazyLock::new(|| ENGINE.load_blocking(COUNTER, Profile::Plain).unwrap());
/// The same with other answers.
static GUEST_V2: LazyLock<LoadedComponent> =
    LazyLock::new(|| ENGINE.load_blocking(COUNTER_V2, Profile::Plain).unwrap());
/// Takes a count for rubbish, and the other way round.
static OTHER: LazyLock<LoadedComponent> = LazyLock::new(|| ENGINE.load_blocking(ACTOR, Profile::Plain).unwrap());
/// Sets reminders.
pub(crate) static LATER: LazyLock<LoadedComponent> =
    LazyLock::new(|| ENGINE.load_wat_blocking(fixtures::LATER, Profile::Plain).unwrap());

/// A host with the kind `cart`, on threads of its own: what a process would be.
struct Shop {
    system: ActorSystem,
    lattice: Lattice,
    carts: Keyed,
    runtime: Option<Runtime>,
}

impl Shop {
    async fn start(server: &NatsServer, name: &str, save: SaveWhen) -> Self {
        Self::start_for(server, name, save, LEASE).await
    }

    async fn start_for(server: &NatsServer, name: &str, save: SaveWhen, lease: Duration) -> Self {
        Self::start_of(server, config(server, name).with_lease(lease), save, &GUEST, None).await
    }

    /// With reminders.
    async fn reminding(server: &NatsServer, name: &str) -> Self {
        let (config, reminders) = (config(server, name).with_lease(LEASE), Some(ReminderConfig::default()));
        Self::start_of(server, config, SaveWhen::OnIdle, &LATER, reminders).await
    }

    async fn start_of(
        server: &NatsServer,
        config: LatticeConfig,
        save: SaveWhen,
        guest: &'static LoadedComponent,
        reminders: Option<ReminderConfig>,
    ) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let url = server.url();
        let started = runtime.spawn(async move {
            let system = ActorSystem::new(ENGINE.clone(), SystemConfig::default());
            let lattice = Lattice::join(&system, config).await.unwrap();
            let (spec, store) = (spec(&system, guest, save), store(&url).await);
            let carts = match reminders {
                None => lattice.export_kind(spec, store).await,
                Some(config) => lattice.export_kind_with_reminders(spec, store, config).await,
            };
            let carts = carts.unwrap();
            (system, lattice, carts)
        });
        let (system, lattice, carts) = within(started).await.unwrap();
        Self { system, lattice, carts, runtime: Some(runtime) }
    }

    fn slots(&self) -> usize {
        self.lattice.slots(&id("cart"))
    }

    async fn ask(&self, key: &str, text: &str) -> Result<u64, AskError> {
        ask(&self.lattice, key, text).await
    }

    async fn upgrade(&self, guest: &LoadedComponent) {
        let version = sandbox(&self.system, guest);
        let report = within(self.carts.upgrade(version, UpgradeOptions::default())).await.unwrap();
        assert!(report.failed.is_empty(), "{report:?}");
    }

    fn has(&self, key: &str) -> bool {
        self.system.find(format!("cart/{key}").as_str()).is_some()
    }

    /// Ends it as a process that is killed: nobody is told.
    fn kill(mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    /// Nothing of it runs until the other end is dropped.
    async fn pause(&self) -> mpsc::Sender<()> {
        let (resume, paused) = mpsc::channel::<()>();
        let (is_paused, pauses) = tokio::sync::oneshot::channel();
        self.runtime.as_ref().unwrap().spawn(async move {
            is_paused.send(()).unwrap();
            // Its only thread.
            _ = paused.recv();
        });
        within(pauses).await.unwrap();
        resume
    }

    async fn leave(mut self) {
        let lattice = self.lattice.clone();
        let left = self.runtime.as_ref().unwrap().spawn(async move { lattice.leave(LONG).await });
        within(left).await.unwrap();
        self.runtime.take().unwrap().shutdown_background();
    }
}

impl Drop for Shop {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn sandbox(system: &ActorSystem, guest: &LoadedComponent) -> ActorSandbox {
    let limits = ResourceLimits { cpu_time: Duration::from_secs(5), ..ResourceLimits::with_memory(ByteSize::mib(8)) };
    SandboxSpec::new(system.link(guest).unwrap(), limits).unwrap()
}

pub(crate) fn spec(system: &ActorSystem, guest: &LoadedComponent, save: SaveWhen) -> KeyedSpec {
    let options = KeyedOptions { save, idle: LONG, ..KeyedOptions::default() };
    KeyedSpec::new(ActorSpec::new(id("cart"), sandbox(system, guest))).with_options(options)
}

async fn store(url: &str) -> Arc<JetStreamStore> {
    let client = async_nats::connect(url).await.unwrap();
    Arc::new(JetStreamStore::open(client, BucketConfig::new("carts")).await.unwrap())
}

async fn ask(lattice: &Lattice, key: &str, text: &str) -> Result<u64, AskError> {
    Ok(ask_for(lattice, key, text.as_bytes()).await?.parse().unwrap())
}

async fn ask_for(lattice: &Lattice, key: &str, message: &[u8]) -> Result<String, AskError> {
    let cart = lattice.recipient(id(&format!("cart/{key}")));
    let answer = cart.ask_within(LONG, message.to_vec()).await?;
    Ok(String::from_utf8(answer.to_vec()).unwrap())
}

/// Asks until it is not refused: who moves is nowhere for a moment, and who is lost for a lease. What may have been handled is asked
/// again only if it changes nothing.
async fn ask_again(lattice: &Lattice, key: &str, text: &str) -> Result<u64, AskError> {
    Ok(ask_again_for(lattice, key, text.as_bytes()).await?.parse().unwrap())
}

async fn ask_again_for(lattice: &Lattice, key: &str, message: &[u8]) -> Result<String, AskError> {
    within(async {
        loop {
            match ask_for(lattice, key, message).await {
                Err(AskError::NotSent(back)) if matches!(back.reason, Refusal::Moved | Refusal::Unreachable) => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Err(AskError::Lost { .. }) if message == b"get" => {}
                answer => return answer,
            }
        }
    })
    .await
}

/// Waits until the hosts have all slots.
async fn have_all(shops: &[&Shop]) {
    until(|| shops.iter().map(|shop| shop.slots()).sum::<usize>() == SLOTS && shops.iter().all(|it| it.slots() > 0))
        .await;
}

pub(crate) fn keys(count: usize) -> Vec<String> {
    (0..count).map(|key| key.to_string()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_go_on_where_their_slots_go_when_hosts_come_and_leave() {
    let server = server();
    let (a, b) = (Shop::start(&server, "a", SaveWhen::OnIdle).await, Shop::start(&server, "b", SaveWhen::OnIdle).await);
    // It has not the kind, and asks for it.
    let customer = host(&server, "customer").await;
    have_all(&[&a, &b]).await;
    let keys = keys(60);
    for key in &keys {
        assert_eq!(ask_again(&customer.lattice, key, "add 1").await.unwrap(), 1);
        assert_eq!(a.ask(key, "add 1").await.unwrap(), 2);
        assert_eq!(b.ask(key, "add 1").await.unwrap(), 3);
        assert!(a.has(key) != b.has(key), "it is in memory on one host");
    }
    assert!(keys.iter().any(|key| a.has(key)) && keys.iter().any(|key| b.has(key)));
    assert_eq!(a.carts.stats().activations + b.carts.stats().activations, 60);

    // A third of the slots goes to a third host, and what is in memory is saved for it.
    let c = Shop::start(&server, "c", SaveWhen::OnIdle).await;
    until(|| [&a, &b, &c].map(Shop::slots) == [340, 336, 348]).await;
    let moved: Vec<_> = keys.iter().filter(|key| !a.has(key) && !b.has(key)).collect();
    assert!((8..35).contains(&moved.len()), "{moved:?}");
    for key in &keys {
        assert_eq!(ask_again(&customer.lattice, key, "add 1").await.unwrap(), 4);
    }
    assert!(moved.iter().all(|key| c.has(key)));
    assert_eq!(c.carts.stats().activations, moved.len() as u64);
    assert_eq!(a.carts.stats().activations + b.carts.stats().activations, 60, "all others stayed in memory");

    // One leaves in order, and its keys go on.
    c.leave().await;
    have_all(&[&a, &b]).await;
    for key in &keys {
        assert_eq!(ask_again(&customer.lattice, key, "add 1").await.unwrap(), 5);
    }
    // The last one saves what it has.
    b.leave().await;
    until(|| a.slots() == SLOTS).await;
    a.leave().await;
    let a = Shop::start(&server, "a", SaveWhen::OnIdle).await;
    for key in &keys {
        assert_eq!(ask_again(&a.lattice, key, "get").await.unwrap(), 5);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_a_host_that_is_killed_go_on_after_its_lease() {
    let server = server();
    let (a, b) = (
        Shop::start(&server, "a", SaveWhen::EachMessage).await,
        Shop::start(&server, "b", SaveWhen::EachMessage).await,
    );
    have_all(&[&a, &b]).await;
    let keys = keys(30);
    for key in &keys {
        assert_eq!(ask_again(&a.lattice, key, "add 7").await.unwrap(), 7);
    }
    let of_b: Vec<_> = keys.iter().filter(|key| b.has(key)).collect();
    assert!(!of_b.is_empty() && of_b.len() < 30);
    b.kill();
    // Those of the other host go on all the time.
    for key in keys.iter().filter(|key| !of_b.contains(key)) {
        assert_eq!(a.ask(key, "get").await.unwrap(), 7);
    }
    for key in of_b {
        assert_eq!(ask_again(&a.lattice, key, "get").await.unwrap(), 7);
        assert_eq!(ask_again(&a.lattice, key, "add 1").await.unwrap(), 8);
    }
    until(|| a.slots() == SLOTS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_begin_anew_when_the_servers_store_was_wiped() {
    let mut server = server();
    let each = SaveWhen::EachMessage;
    let (a, b) = (Shop::start(&server, "a", each).await, Shop::start(&server, "b", each).await);
    have_all(&[&a, &b]).await;
    let keys = keys(20);
    for round in 0..2 {
        for key in &keys {
            assert_eq!(ask_again(&a.lattice, key, "add 7").await.unwrap(), 7, "{round}");
        }
        assert!(keys.iter().any(|key| a.has(key)) && keys.iter().any(|key| b.has(key)));
        server.kill();
        server.wipe();
        server.restart().unwrap();
        for lattice in [&a.lattice, &b.lattice] {
            let is_new = async |key: &str| match ask_again(lattice, key, "get").await {
                Ok(count) => count == 0,
                // What was in memory saved, or was activated, when that could not be done any more.
                Err(AskError::NotSaved | AskError::NotActivated(_) | AskError::Stopped) => false,
                other => panic!("{other:?}"),
            };
            for key in &keys {
                until_told(async || is_new(key).await).await;
            }
        }
        have_all(&[&a, &b]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_is_paused_beyond_its_lease_handles_nothing_and_saves_nothing() {
    let server = server();
    let (a, b) = (Shop::start(&server, "a", SaveWhen::OnIdle).await, Shop::start(&server, "b", SaveWhen::OnIdle).await);
    have_all(&[&a, &b]).await;
    let mut of_b = Vec::new();
    for key in keys(30) {
        assert_eq!(ask_again(&a.lattice, &key, "add 1").await.unwrap(), 1);
        if b.has(&key) {
            of_b.push(key);
        }
    }
    let key = &of_b[0];
    let cart = b.system.find(format!("cart/{key}").as_str()).unwrap();
    // The control: while it has the key, it handles what comes.
    cart.tell("add 1").await.unwrap();
    assert_eq!(b.ask(key, "get").await.unwrap(), 2);

    let paused = b.pause().await;
    cart.try_tell("add 100").unwrap();
    // Nothing was saved, so it begins anew.
    assert_eq!(ask_again(&a.lattice, key, "get").await.unwrap(), 0);
    assert_eq!(ask_again(&a.lattice, key, "add 10").await.unwrap(), 10);
    drop(paused);
    let is_fenced = |letter: &airssys_wasm_actor::DeadLetter| matches!(letter.reason, DeadReason::Fenced);
    within(cart.ended()).await;
    until(|| b.carts.stats().live == 0).await;
    let letters = b.system.dead_letters().list();
    let letter = letters.iter().find(|letter| letter.message.payload().as_ref() == b"add 100").unwrap();
    assert!(is_fenced(letter) || matches!(letter.reason, DeadReason::Stopped), "{letter:?}");
    assert_eq!(b.carts.stats().saves, 0);
    assert_eq!(ask_again(&a.lattice, key, "add 1").await.unwrap(), 11);
    // It has its slots again, and what the other host has kept.
    have_all(&[&a, &b]).await;
    assert_eq!(ask_again(&b.lattice, key, "add 1").await.unwrap(), 12);
}

/// What was seen of a key.
#[derive(Default)]
struct Seen {
    answers: HashSet<u64>,
    unknown: Vec<AskError>,
}

impl Seen {
    fn note(&mut self, key: &str, asked: Result<u64, AskError>) {
        match asked {
            Ok(answer) => assert!(self.answers.insert(answer), "{answer} of {key} by two owners"),
            // It was certainly not handled.
            Err(AskError::NotSent(_)) => {}
            Err(error) => self.unknown.push(error),
        }
    }
}

/// Tasks that add one to any of some keys, all the time, from any of some hosts.
struct Askers {
    seen: Arc<Mutex<BTreeMap<String, Seen>>>,
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl Askers {
    fn start(shops: &[&Shop]) -> Self {
        let (seen, stop, keys) = (Arc::<Mutex<BTreeMap<_, Seen>>>::default(), CancellationToken::new(), keys(24));
        let task = |number| {
            let (stop, keys, seen) = (stop.clone(), keys.clone(), Arc::clone(&seen));
            let lattices: Vec<_> = shops.iter().map(|shop| shop.lattice.clone()).collect();
            tokio::spawn(async move {
                let mut random = fastrand::Rng::with_seed(number);
                while !stop.is_cancelled() {
                    let key = &keys[random.usize(..keys.len())];
                    let asked = ask(&lattices[random.usize(..lattices.len())], key, "add 1").await;
                    seen.lock().entry(key.clone()).or_default().note(key, asked);
                    tokio::task::yield_now().await;
                }
            })
        };
        let tasks = (0..ASKERS as u64).map(task).collect();
        Self { seen, stop, tasks }
    }

    fn answered(&self) -> usize {
        self.seen.lock().values().map(|seen| seen.answers.len()).sum()
    }

    /// Waits for many more answers.
    async fn go_on(&self) {
        let before = self.answered();
        until(|| self.answered() > before + 200 || self.tasks.iter().any(JoinHandle::is_finished)).await;
    }

    /// Compares what was answered with what is counted. Gives the errors of asks whose fate is unknown.
    async fn balance(self, shop: &Shop) -> Vec<AskError> {
        self.stop.cancel();
        for task in self.tasks {
            within(task).await.unwrap();
        }
        let seen = std::mem::take(&mut *self.seen.lock());
        let mut errors = Vec::new();
        for (key, Seen { answers, unknown }) in seen {
            let counted = ask_again(&shop.lattice, &key, "get").await.unwrap();
            let (answered, most) = (answers.len() as u64, (answers.len() + unknown.len()) as u64);
            assert!((answered..=most).contains(&counted), "{key}: {counted}, {answered} answered");
            errors.extend(unknown);
        }
        errors
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sums_balance_while_hosts_come_go_pause_and_are_killed() {
    let server = server();
    let each = SaveWhen::EachMessage;
    let (a, b) = (Shop::start(&server, "a", each).await, Shop::start(&server, "b", each).await);
    have_all(&[&a, &b]).await;
    let askers = Askers::start(&[&a, &b]);
    askers.go_on().await;
    let c = Shop::start(&server, "c", each).await;
    until(|| c.slots() > 256).await;
    askers.go_on().await;
    let d = Shop::start(&server, "d", each).await;
    until(|| d.slots() > 128).await;
    c.leave().await;
    askers.go_on().await;
    d.kill();
    askers.go_on().await;
    let paused = b.pause().await;
    until(|| a.slots() == SLOTS).await;
    drop(paused);
    askers.go_on().await;
    have_all(&[&a, &b]).await;
    askers.go_on().await;
    let answered = askers.answered();
    let unknown = askers.balance(&a).await;
    assert!(answered > 1_000 && unknown.len() < 500, "{answered} answered, {unknown:?}");
}

/// What is in memory alone is there once, or answers would be given twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_or_counted_twice_while_hosts_come_and_leave_in_order() {
    let server = server();
    // A lease that no busy machine exceeds: nothing is saved but by who leaves the memory.
    let start = async |name| Shop::start_for(&server, name, SaveWhen::OnIdle, Duration::from_secs(8)).await;
    let (a, b) = (start("a").await, start("b").await);
    have_all(&[&a, &b]).await;
    let askers = Askers::start(&[&a, &b]);
    askers.go_on().await;
    let c = start("c").await;
    until(|| c.slots() == 348).await;
    askers.go_on().await;
    c.leave().await;
    let d = start("d").await;
    until(|| d.slots() > 256).await;
    askers.go_on().await;
    d.leave().await;
    askers.go_on().await;
    let unknown = askers.balance(&b).await;
    // At the most the one that each asker had on its way to a host when that was gone.
    let are_lost = unknown.iter().all(|error| matches!(error, AskError::Lost { accepted: false }));
    assert!(are_lost && unknown.len() <= 2 * ASKERS, "{unknown:?}");
    assert!(a.carts.stats().passivations + b.carts.stats().passivations > 0);
}

/// What was drained and not handed over is nobody's for as long as a host takes to leave.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_leaves_waits_until_it_is_written_that_its_slots_are_others() {
    let server = server();
    // Some fifty slots of each: fewer than are moved at a time.
    let Losing { url, loses, mut lost } = losing(&server, "$KV.aw_test.k.cart.9").await;
    loses.store(false, Ordering::SeqCst);
    let behind = config(&server, "b").with_lease(LEASE).with_servers([url]);
    let (a, b) = (
        Shop::start(&server, "a", SaveWhen::OnIdle).await,
        Shop::start_of(&server, behind, SaveWhen::OnIdle, &GUEST, None).await,
    );
    have_all(&[&a, &b]).await;
    loses.store(true, Ordering::SeqCst);
    let slots = {
        let lattice = b.lattice.clone();
        move || lattice.slots(&id("cart"))
    };
    let leaving = tokio::spawn(b.leave());
    within(lost.wait_for(|lost| *lost > 0)).await.unwrap();
    until(|| slots() == 0).await;
    loses.store(false, Ordering::SeqCst);
    within(leaving).await.unwrap();
    until(|| a.slots() == SLOTS).await;

    let client = async_nats::connect(server.url()).await.unwrap();
    let records = async_nats::jetstream::new(client).get_key_value("aw_test").await.unwrap();
    let left = records.entry("h.b").await.unwrap().unwrap();
    for slot in (0..SLOTS).map(|slot| slot.to_string()).filter(|slot| slot.starts_with('9')) {
        let record = records.entry(format!("k.cart.{slot}")).await.unwrap().unwrap();
        assert!(record.revision < left.revision, "the slot {slot} was taken by who found that nobody has it");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_of_another_host_is_not_had_here() {
    let server = server();
    let (a, b) = (Shop::start(&server, "a", SaveWhen::OnIdle).await, Shop::start(&server, "b", SaveWhen::OnIdle).await);
    have_all(&[&a, &b]).await;
    let mut both = [false; 2];
    for key in keys(20) {
        assert_eq!(ask_again(&a.lattice, &key, "add 1").await.unwrap(), 1);
        let is_of_a = a.has(&key);
        let of_a = a.carts.actor(&key).unwrap().ask("get").await;
        let of_b = b.carts.actor(&key).unwrap().ask("get").await;
        let (mine, other) = if is_of_a { (of_a, of_b) } else { (of_b, of_a) };
        assert_eq!(mine.unwrap(), "1");
        assert!(matches!(other, Err(AskError::NotSent(back)) if back.reason == Refusal::Moved));
        let forgotten = a.carts.forget(&key).await;
        assert!(if is_of_a { forgotten.is_ok() } else { matches!(forgotten, Err(ForgetError::Moved)) });
        both[usize::from(is_of_a)] = true;
    }
    assert_eq!(both, [true; 2]);
    let again = a.lattice.export_kind(spec(&a.system, &GUEST, SaveWhen::OnIdle), store(&server.url()).await).await;
    assert!(matches!(again, Err(ExportKindError::Install(_))), "{again:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kind_is_upgraded_host_by_host_and_keys_go_on_between_its_versions() {
    let server = server();
    let (a, b) = (Shop::start(&server, "a", SaveWhen::OnIdle).await, Shop::start(&server, "b", SaveWhen::OnIdle).await);
    have_all(&[&a, &b]).await;
    let keys = keys(60);
    let add = async |key: &str| ask_again_for(&a.lattice, key, b"add 1").await.unwrap();
    for key in &keys {
        assert_eq!(add(key).await, "1");
    }
    a.upgrade(&GUEST_V2).await;
    let is_new = |key: &str, count: u64| if a.has(key) { format!("count: {count}") } else { count.to_string() };
    for key in &keys {
        assert_eq!(add(key).await, is_new(key, 2));
    }
    // Those that go to a host with the version before go on there, and those that come from one go on here.
    let c = Shop::start(&server, "c", SaveWhen::OnIdle).await;
    until(|| [&a, &b, &c].map(Shop::slots) == [340, 336, 348]).await;
    for key in &keys {
        assert_eq!(add(key).await, is_new(key, 3));
    }
    assert!(keys.iter().any(|key| c.has(key)));
    c.leave().await;
    have_all(&[&a, &b]).await;
    for key in &keys {
        assert_eq!(add(key).await, is_new(key, 4));
    }
    b.upgrade(&GUEST_V2).await;
    for key in &keys {
        assert_eq!(add(key).await, "count: 5");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_that_the_version_before_cannot_read_is_told_and_kept() {
    let server = server();
    let (a, b) = (Shop::start(&server, "a", SaveWhen::OnIdle).await, Shop::start(&server, "b", SaveWhen::OnIdle).await);
    have_all(&[&a, &b]).await;
    a.upgrade(&OTHER).await;
    let key = keys(60).into_iter().find(|key| {
        a.lattice.slots(&id("cart")) > 0 && {
            let name = id(&format!("cart/{key}"));
            a.system.awaken(&name, None).unwrap().is_some()
        }
    });
    let key = key.unwrap();
    assert_eq!(ask_again_for(&a.lattice, &key, b"count").await.unwrap(), "0");
    a.leave().await;
    until(|| b.slots() == SLOTS).await;
    let store = store(&server.url()).await;
    let kept = store.load("cart", &key).await.unwrap();
    let refused = ask_again_for(&b.lattice, &key, b"get").await;
    assert!(matches!(refused, Err(AskError::NotActivated(_))), "{refused:?}");
    assert!(kept.is_some());
    assert_eq!(store.load("cart", &key).await.unwrap(), kept);
    b.upgrade(&OTHER).await;
    assert_eq!(ask_again_for(&b.lattice, &key, b"count").await.unwrap(), "1");
}

/// Has a key remind itself.
pub(crate) async fn remind(lattice: &Lattice, key: &str, after: Duration) -> String {
    let after = (after.as_millis() as u64).to_le_bytes();
    ask_again_for(lattice, key, &[&[3, 4][..], b"wake", &after, b"\0again"].concat()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reminders_come_on_the_host_that_has_the_key_when_they_are_due() {
    for is_killed in [true, false] {
        let server = server();
        let (a, b) = (Shop::reminding(&server, "a").await, Shop::reminding(&server, "b").await);
        have_all(&[&a, &b]).await;
        let keys = keys(30);
        for key in &keys {
            assert!(remind(&a.lattice, key, Duration::from_secs(8)).await.starts_with('\0'));
        }
        let of_b = keys.iter().filter(|key| b.has(key)).count();
        assert!(of_b > 0 && of_b < keys.len());
        for key in keys.iter().filter(|key| a.has(key)) {
            assert!(a.carts.passivate(key).await.unwrap());
        }
        let before = a.carts.stats().activations;
        if is_killed {
            b.kill();
        } else {
            b.leave().await;
        }
        // Nobody asks for them.
        until(|| a.carts.stats().activations == before + keys.len() as u64).await;
        let store = store(&server.url()).await;
        let left = async |what| store.count(what).await.unwrap();
        until_told(async || left("!due/cart").await + left("!reminders/cart").await == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guests_of_a_kind_without_reminders_are_told_so() {
    let server = server();
    let config = config(&server, "a").with_lease(LEASE);
    let shop = Shop::start_of(&server, config, SaveWhen::OnIdle, &LATER, None).await;
    until(|| shop.slots() == SLOTS).await;
    let answer = remind(&shop.lattice, "1", Duration::from_secs(1)).await;
    // An error, of the first case.
    assert_eq!((&answer[..1], &answer[4..5]), ("\x01", "\0"), "{answer:?}");
}
