//! Kinds that several hosts have: each key is one host's, and goes on where its slot goes.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, LazyLock, mpsc},
    time::Duration,
};

use airssys_wasm_actor::{
    ActorSpec, ActorSystem, AskError, DeadReason, SystemConfig,
    engine::{EngineConfig, LoadedComponent, PoolConfig, Profile, WasmEngine},
    isolation::SandboxSpec,
    limits::{ByteSize, CancellationToken, ResourceLimits},
    registry::Refusal,
};
use airssys_wasm_fixtures::{COUNTER, nats::NatsServer};
use airssys_wasm_keyed::{ForgetError, Keyed, KeyedOptions, KeyedSpec, SaveWhen};
use airssys_wasm_lattice::{BucketConfig, ExportKindError, JetStreamStore, Lattice, async_nats};
use parking_lot::Mutex;
use tokio::{
    runtime::{Builder, Runtime},
    task::JoinHandle,
};

use crate::support::{LONG, config, host, id, server, until, within};

const SLOTS: usize = 1_024;
const ASKERS: usize = 6;

static ENGINE: LazyLock<WasmEngine> = LazyLock::new(|| {
    let pool = Some(PoolConfig::for_components(512));
    WasmEngine::new(EngineConfig { pool, ..EngineConfig::default() }.compile_in_process()).unwrap()
});

/// Counts: `add N`, `get`.
static GUEST: LazyLock<LoadedComponent> = LazyLock::new(|| ENGINE.load_blocking(COUNTER, Profile::Plain).unwrap());

/// A host with the kind `cart`, on threads of its own: what a process would be.
struct Shop {
    system: ActorSystem,
    lattice: Lattice,
    carts: Keyed,
    runtime: Option<Runtime>,
}

impl Shop {
    /// With a lease that is soon over.
    async fn start(server: &NatsServer, name: &str, save: SaveWhen) -> Self {
        Self::start_for(server, name, save, Duration::from_secs(2)).await
    }

    async fn start_for(server: &NatsServer, name: &str, save: SaveWhen, lease: Duration) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let config = config(server, name).with_lease(lease);
        let url = server.url();
        let started = runtime.spawn(async move {
            let system = ActorSystem::new(ENGINE.clone(), SystemConfig::default());
            let lattice = Lattice::join(&system, config).await.unwrap();
            let carts = lattice.export_kind(spec(&system, save), store(&url).await).await.unwrap();
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

fn spec(system: &ActorSystem, save: SaveWhen) -> KeyedSpec {
    let limits = ResourceLimits { cpu_time: Duration::from_secs(5), ..ResourceLimits::with_memory(ByteSize::mib(8)) };
    let sandbox = SandboxSpec::new(system.link(&GUEST).unwrap(), limits).unwrap();
    let options = KeyedOptions { save, idle: LONG, ..KeyedOptions::default() };
    KeyedSpec::new(ActorSpec::new(id("cart"), sandbox)).with_options(options)
}

async fn store(url: &str) -> Arc<JetStreamStore> {
    let client = async_nats::connect(url).await.unwrap();
    Arc::new(JetStreamStore::open(client, BucketConfig::new("carts")).await.unwrap())
}

async fn ask(lattice: &Lattice, key: &str, text: &str) -> Result<u64, AskError> {
    let cart = lattice.recipient(id(&format!("cart/{key}")));
    let answer = cart.ask_within(LONG, text.to_owned()).await?;
    Ok(String::from_utf8(answer.to_vec()).unwrap().parse().unwrap())
}

/// Asks until it is not refused: who moves is nowhere for a moment, and who is lost for a lease. What may have been handled is asked
/// again only if it changes nothing.
async fn ask_again(lattice: &Lattice, key: &str, text: &str) -> Result<u64, AskError> {
    within(async {
        loop {
            match ask(lattice, key, text).await {
                Err(AskError::NotSent(back)) if matches!(back.reason, Refusal::Moved | Refusal::Unreachable) => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Err(AskError::Lost { .. }) if text == "get" => {}
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

fn keys(count: usize) -> Vec<String> {
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
    let again = a.lattice.export_kind(spec(&a.system, SaveWhen::OnIdle), store(&server.url()).await).await;
    assert!(matches!(again, Err(ExportKindError::Install(_))), "{again:?}");
}
