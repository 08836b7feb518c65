//! Actors: what supervision, names and limits add to a task that owns a channel and a guest, beside that task, and beside
//! the actors of kameo and ractor.
//!
//! On one worker all runs on one thread; on two, the client is a task among the others.

use std::{
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use airssys_wasm_actor::{ActorRef, Capabilities, Lifecycle, NamePattern, UpgradeOptions};
use airssys_wasm_benches::{
    Measure, Reading, Suite,
    actors::{
        ACTOR, COUNTER, COUNTER_V2, CRASH, ECHO, Guest, Kameo, Ours, Plain, Ractor, RactorSupervised, Receiver, id,
        native_spec, spec, system,
    },
    guests, timed,
};
use airssys_wasm_engine::{EngineConfig, WasmEngine};
use airssys_wasm_fixtures::{ECHO_ACTOR, SMALLEST_ACTOR};
use airssys_wasm_limits::{ByteSize, ResourceLimits};
use airssys_wasm_measurements::{Kind, process};
use airssys_wasm_registry::{ComponentId, Topic, TopicPattern};
use anyhow::Context;
use bytes::Bytes;
use hdrhistogram::Histogram;
use tokio::{
    runtime::{Builder, Handle, Runtime},
    sync::{mpsc, oneshot},
    task::JoinHandle,
};
use tracing::{Level, subscriber::with_default};

pub(crate) fn describe(suite: &mut Suite) {
    for workers in [Workers::One, Workers::Two] {
        ask(suite, workers);
        tell(suite, workers);
        spawn(suite, workers);
        restart(suite, workers);
        upgrade(suite, workers);
    }
    throughput(suite);
    capabilities(suite);
    observability(suite);
    suite.reading("actor/latency", latency);
    suite.reading("actor/neighbour", neighbour);
    suite.reading("actor/density", density);
    for rate in [1_000, 10_000] {
        suite.sample(&format!("actor/latency/{rate}_per_second/p99"), Kind::Tail, move || {
            let mut asked = OpenLoop::new(Ours::guest(&ECHO));
            let length = Duration::from_secs(200) / rate;
            Box::new(move || Ok(asked.run(rate, length).value_at_quantile(0.99) as f64))
        });
    }
    for guest in [SMALLEST, RUST] {
        suite.sample(&format!("actor/density/{guest}/1000/resident"), Kind::Bytes, move || {
            Box::new(|| each_takes(OURS, guest, 1_000, 1_000).map(|[resident, ..]| resident))
        });
    }
}

#[derive(Clone, Copy)]
enum Workers {
    One,
    Two,
}

impl Workers {
    fn name(self) -> &'static str {
        match self {
            Self::One => "one_worker",
            Self::Two => "two_workers",
        }
    }

    fn runtime(self) -> Runtime {
        match self {
            Self::One => airssys_wasm_benches::runtime(),
            Self::Two => Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap(),
        }
    }
}

/// A payload that costs nothing to pass on.
fn payload(bytes: usize) -> Bytes {
    static LARGEST: [u8; 64 << 10] = [b'x'; 64 << 10];
    Bytes::from_static(&LARGEST[..bytes])
}

const PAYLOADS: [(&str, usize); 3] = [("64b", 64), ("1kb", 1 << 10), ("64kb", 64 << 10)];

/// Times what a client does so many times, as a task of its own.
fn client<R: Receiver, F: Future<Output = ()> + Send + 'static>(
    workers: Workers,
    receiver: impl Future<Output = R>,
    run: impl Fn(R, u64) -> F + 'static,
) -> Measure {
    let runtime = workers.runtime();
    let receiver = runtime.block_on(receiver);
    Box::new(move |iterations| {
        let work = run(receiver.clone(), iterations);
        let timed = async {
            let started = Instant::now();
            work.await;
            started.elapsed()
        };
        as_task(&runtime, timed)
    })
}

async fn plain_guest() -> Plain {
    Plain::guest(&ECHO).await.0
}

async fn plain_native() -> Plain {
    Plain::native().0
}

async fn ractor() -> Ractor {
    Ractor::spawn().await.0
}

/// What a client does.
trait Work: 'static {
    /// Times it with a receiver and a payload of that many bytes.
    fn measure<R: Receiver>(workers: Workers, receiver: impl Future<Output = R>, bytes: usize) -> Measure;
}

/// How much longer it may take than with bare tasks and channels, and than with the others' actors.
#[derive(Clone, Copy, Default)]
struct Goals {
    guest: Option<f64>,
    native: Option<f64>,
    peers: Option<f64>,
}

/// With a guest for each payload, and with code of the host, for which the payload makes no difference: nobody copies it.
fn beside_all<W: Work>(suite: &mut Suite, operation: &str, workers: Workers, goals: Goals) {
    for (size, bytes) in PAYLOADS {
        let guest = format!("actor/{operation}/guest/{size}/{}", workers.name());
        let group = suite.bench(&guest, move || W::measure(workers, Ours::guest(&ECHO), bytes));
        let small = size == "64b";
        group.twin("raw", goals.guest.filter(|_| small), move || W::measure(workers, plain_guest(), bytes));
        if small {
            let native = format!("actor/{operation}/native/{}", workers.name());
            let [raw, kameo, ractor] = ["raw", "peer/kameo", "peer/ractor"].map(|whose| format!("{whose}/{native}"));
            group
                .and(&native, move || W::measure(workers, Ours::native(), bytes))
                .and(&raw, move || W::measure(workers, plain_native(), bytes))
                .and(&kameo, move || W::measure(workers, Kameo::spawn(), bytes))
                .and(&ractor, move || W::measure(workers, self::ractor(), bytes))
                .ratio(&native, &raw, goals.native)
                .ratio(&native, &kameo, goals.peers)
                .ratio(&native, &ractor, goals.peers)
                .ratio(&guest, &kameo, None)
                .ratio(&guest, &ractor, None);
        }
    }
}

fn ask(suite: &mut Suite, workers: Workers) {
    beside_all::<Asks>(suite, "ask", workers, Goals { guest: Some(1.25), ..Goals::default() });
}

/// One ask after the other.
struct Asks;

impl Work for Asks {
    fn measure<R: Receiver>(workers: Workers, receiver: impl Future<Output = R>, bytes: usize) -> Measure {
        let payload = payload(bytes);
        client(workers, receiver, move |receiver, iterations| {
            let payload = payload.clone();
            async move {
                for _ in 0..iterations {
                    let answer = receiver.ask(payload.clone()).await.unwrap();
                    assert_eq!(answer.len(), payload.len());
                }
            }
        })
    }
}

fn tell(suite: &mut Suite, workers: Workers) {
    let goals = match workers {
        Workers::One => Goals::default(),
        Workers::Two => Goals { guest: None, native: Some(1.5), peers: Some(1.0) },
    };
    beside_all::<Tells>(suite, "tell", workers, goals);
}

/// Messages that nobody answers, and after so many of them one that is answered when all of them are done with: the time
/// a message, from the client's hand until it is done with.
struct Tells;

const BURST: u64 = 256;

impl Work for Tells {
    fn measure<R: Receiver>(workers: Workers, receiver: impl Future<Output = R>, bytes: usize) -> Measure {
        let payload = payload(bytes);
        client(workers, receiver, move |receiver, iterations| {
            let payload = payload.clone();
            async move {
                let mut left = iterations;
                while left > 0 {
                    let now = left.min(BURST);
                    left -= now;
                    for _ in 1..now {
                        receiver.tell(payload.clone()).await;
                    }
                    receiver.ask(payload.clone()).await.unwrap();
                }
            }
        })
    }
}

/// Runs something as a task among the others.
fn as_task<T: Send + 'static>(runtime: &Runtime, work: impl Future<Output = T> + Send + 'static) -> T {
    runtime.block_on(async { tokio::spawn(work).await.unwrap() })
}

/// That many at a time are spawned, so that instances come out of a pool that was used before.
const BATCH: u64 = 100;

/// Times spawning. What it takes is prepared before, and what came of it ended, outside the time.
fn spawns<P, T, S, E>(
    workers: Workers,
    prepare: impl Fn(u64) -> P + 'static,
    spawn: impl Fn(P) -> S + Clone + Send + 'static,
    end: impl Fn(T) -> E + Copy + Send + 'static,
) -> Measure
where
    P: Send + 'static,
    T: Send + 'static,
    S: Future<Output = T> + Send,
    E: Future + Send,
{
    let runtime = workers.runtime();
    Box::new(move |mut iterations| {
        let mut taken = Duration::ZERO;
        while iterations > 0 {
            let batch = iterations.min(BATCH);
            iterations -= batch;
            let prepared: Vec<P> = (0..batch).map(&prepare).collect();
            let spawn = spawn.clone();
            let work = async move {
                let mut live = Vec::with_capacity(prepared.len());
                let started = Instant::now();
                for one in prepared {
                    live.push(spawn(one).await);
                }
                let taken = started.elapsed();
                for one in live {
                    end(one).await;
                }
                taken
            };
            taken += as_task(&runtime, work);
        }
        taken
    })
}

fn guests_spawned(workers: Workers, guest: &'static Guest) -> Measure {
    let system = system(guests::engine());
    let sandbox = guest.sandbox(&system, guests::limits());
    spawns(
        workers,
        move |n| (system.clone(), spec(&format!("guest-{n}"), &sandbox)),
        async |(system, spec)| system.spawn(spec).await.unwrap(),
        killed,
    )
}

/// Asked before it is ended: what a guest has touched is what the next one in its place has to be rid of.
async fn killed(actor: ActorRef) {
    actor.ask(payload(64)).await.unwrap();
    actor.kill();
    actor.ended().await;
}

async fn finished((plain, task): (Plain, JoinHandle<()>)) {
    plain.ask(payload(64)).await.unwrap();
    drop(plain);
    task.await.unwrap();
}

fn spawn(suite: &mut Suite, workers: Workers) {
    let native = format!("actor/spawn/native/{}", workers.name());
    suite.bench(&format!("actor/spawn/guest/{}", workers.name()), move || guests_spawned(workers, &ECHO)).twin(
        "raw",
        1.5,
        move || spawns(workers, |_| (), |()| Plain::guest(&ECHO), finished),
    );
    suite
        .bench(&native, move || {
            let system = system(guests::engine());
            spawns(
                workers,
                move |n| (system.clone(), native_spec(&format!("native-{n}"))),
                async |(system, spec)| system.spawn_native(spec).await.unwrap(),
                killed,
            )
        })
        .twin("raw", None, move || spawns(workers, |_| (), async |()| Plain::native(), finished))
        .twin("peer/kameo", None, move || {
            spawns(
                workers,
                |_| (),
                |()| Kameo::spawn(),
                async |kameo: Kameo| {
                    kameo.actor.kill();
                    kameo.actor.wait_for_shutdown().await;
                },
            )
        })
        .twin("peer/ractor", None, move || {
            spawns(
                workers,
                |_| (),
                |()| Ractor::spawn(),
                async |(Ractor(actor), task)| {
                    actor.kill();
                    task.await.unwrap();
                },
            )
        });
}

/// A message that crashes its receiver, and one that the next incarnation answers: all of the crash, what it takes to be
/// there again, and an answer.
fn restarts<R: Receiver>(workers: Workers, receiver: impl Future<Output = R>) -> Measure {
    let healthy = payload(64);
    client(workers, receiver, move |receiver, iterations| {
        let healthy = healthy.clone();
        async move {
            for _ in 0..iterations {
                assert!(receiver.ask(CRASH).await.is_none());
                receiver.ask(healthy.clone()).await.unwrap();
            }
        }
    })
}

fn restart(suite: &mut Suite, workers: Workers) {
    let of = |what: &str| format!("actor/restart/{what}/{}", workers.name());
    let (guest, crash, restart, spawn) = (of("guest"), format!("raw/{}", of("crash")), of("after_crash"), of("spawn"));
    suite
        .bench(&guest, move || restarts(workers, Ours::guest(&COUNTER)))
        .twin("raw", None, move || restarts(workers, async { Plain::guest(&COUNTER).await.0 }))
        .and(&crash, move || crashed(workers))
        .and(&spawn, move || guests_spawned(workers, &COUNTER))
        // The trap, and freeing what the guest had, would be there without a restart.
        .difference(&restart, &guest, &crash, None)
        .ratio(&restart, &spawn, 3.0);
    suite
        .bench(&format!("actor/restart/native/{}", workers.name()), move || restarts(workers, Ours::native()))
        .twin("raw", None, move || restarts(workers, plain_native()))
        .twin("peer/kameo", None, move || restarts(workers, Kameo::supervised()))
        .twin("peer/ractor", None, move || restarts(workers, RactorSupervised::spawn()));
}

/// Times what a crash takes on a bare engine: the trap, and freeing what the guest had.
fn crashed(workers: Workers) -> Measure {
    let runtime = workers.runtime();
    Box::new(move |iterations| {
        runtime.block_on(async {
            let mut taken = Duration::ZERO;
            for _ in 0..iterations {
                let mut guest = COUNTER.instantiate().await;
                let started = Instant::now();
                guest.handle(CRASH, true).await.unwrap_err();
                drop(guest);
                taken += started.elapsed();
            }
            taken
        })
    })
}

/// From one version to another and back, each time with what the guest knows.
fn upgrade(suite: &mut Suite, workers: Workers) {
    suite
        .bench(&format!("actor/upgrade/guest/{}", workers.name()), move || {
            let runtime = workers.runtime();
            let Ours { system, actor } = runtime.block_on(Ours::guest(&COUNTER));
            let versions = [&COUNTER_V2, &COUNTER].map(|guest| guest.sandbox(&system, guests::limits()));
            Box::new(move |iterations| {
                let (system, actor, versions) = (system.clone(), actor.clone(), versions.clone());
                let timed = async move {
                    let started = Instant::now();
                    for version in versions.iter().cycle().take(iterations as usize) {
                        let options = UpgradeOptions::default();
                        system.upgrade(actor.address(), version.clone(), options).await.unwrap();
                    }
                    started.elapsed()
                };
                as_task(&runtime, timed)
            })
        })
        .twin("raw", None, move || {
            let runtime = workers.runtime();
            let (to, mut orders) = mpsc::channel::<oneshot::Sender<()>>(1);
            let versions = [&*COUNTER_V2, &*COUNTER].map(|guest: &'static Guest| {
                let state = |name| guest.export(&format!("airssys:actor/state@0.1.0#{name}"));
                (guest, state("snapshot"), state("restore"))
            });
            runtime.spawn(async move {
                let mut live = COUNTER.instantiate().await;
                let mut snapshot = &versions[1].1;
                for (guest, next_snapshot, restore) in versions.iter().cycle() {
                    let Some(done) = orders.recv().await else { return };
                    let (state,): (Result<Bytes, String>,) = live.call(snapshot, ()).await;
                    (live, snapshot) = (guest.instantiate().await, next_snapshot);
                    let (restored,): (Result<(), String>,) = live.call(restore, (state.unwrap(),)).await;
                    restored.unwrap();
                    done.send(()).unwrap();
                }
            });
            Box::new(move |iterations| {
                let to = to.clone();
                let timed = async move {
                    let started = Instant::now();
                    for _ in 0..iterations {
                        let (done, finished) = oneshot::channel();
                        to.send(done).await.unwrap();
                        finished.await.unwrap();
                    }
                    started.elapsed()
                };
                as_task(&runtime, timed)
            })
        });
}

/// Messages through several guests on both cores: the time a message.
fn throughput(suite: &mut Suite) {
    suite
        .bench("actor/throughput/guests/two_workers", || {
            through(async {
                let system = system(guests::engine());
                let sandbox = ECHO.sandbox(&system, guests::limits());
                let mut receivers = Vec::new();
                for n in 0..RECEIVERS {
                    let actor = system.spawn(spec(&format!("guest-{n}"), &sandbox)).await.unwrap();
                    receivers.push(Ours { system: system.clone(), actor });
                }
                receivers
            })
        })
        // Half a million a second.
        .target("goal", Duration::from_micros(2))
        .twin("raw", None, || {
            through(async {
                let mut receivers = Vec::new();
                for _ in 0..RECEIVERS {
                    receivers.push(plain_guest().await);
                }
                receivers
            })
        });
}

const RECEIVERS: usize = 16;

/// Two clients, each of which keeps half of the receivers busy.
fn through<R: Receiver>(receivers: impl Future<Output = Vec<R>>) -> Measure {
    let runtime = Workers::Two.runtime();
    let receivers: Arc<[R]> = runtime.block_on(receivers).into();
    Box::new(move |iterations| {
        let started = Instant::now();
        runtime.block_on(all_told(&receivers, iterations));
        started.elapsed()
    })
}

/// Tells the receivers in turn, by two clients, and waits until all is done with: the last message to each is an ask.
async fn all_told<R: Receiver>(receivers: &Arc<[R]>, messages: u64) {
    let payload = payload(64);
    let share = messages as usize / 2;
    let clients = [(0, share), (receivers.len() / 2, messages as usize - share)].map(|(from, messages)| {
        let (receivers, payload) = (Arc::clone(receivers), payload.clone());
        tokio::spawn(async move {
            let mine = &receivers[from..from + receivers.len() / 2];
            let asks = mine.len().min(messages);
            for receiver in mine.iter().cycle().take(messages - asks) {
                receiver.tell(payload.clone()).await;
            }
            for receiver in &mine[..asks] {
                receiver.ask(payload.clone()).await.unwrap();
            }
        })
    });
    for client in clients {
        client.await.unwrap();
    }
}

/// What a guest is asked for whenever it sends something.
fn capabilities(suite: &mut Suite) {
    let granted = || Capabilities {
        send: ["billing", "clock", "tenant-7/*", "*/public"].map(|name| NamePattern::new(name).unwrap()).to_vec(),
        publish: ["audit.>", "metrics.*", "orders.*.paid", "orders.eu.>"]
            .map(|pattern| TopicPattern::new(pattern).unwrap())
            .to_vec(),
        ..Capabilities::default()
    };
    let goal = Duration::from_nanos(50);
    for (which, name, expected) in [("glob", "tenant-7/orders", true), ("denied", "tenant-8/orders", false)] {
        suite
            .bench(&format!("actor/capabilities/send/{which}"), move || {
                let (granted, to): (_, ComponentId) = (granted(), id(name));
                timed(move || assert_eq!(granted.may_send(std::hint::black_box(&to)), expected))
            })
            .target("goal", goal);
    }
    for (which, topic, expected) in [("last", "orders.eu.created", true), ("denied", "orders.us.created", false)] {
        suite
            .bench(&format!("actor/capabilities/publish/{which}"), move || {
                let (granted, topic) = (granted(), Topic::new(topic).unwrap());
                timed(move || assert_eq!(granted.may_publish(std::hint::black_box(&topic)), expected))
            })
            .target("goal", goal);
    }
}

/// An ask while nobody listens, beside one while somebody does.
fn observability(suite: &mut Suite) {
    const SILENT: &str = "actor/observability/silent";
    let group = suite.bench(SILENT, || Asks::measure(Workers::One, Ours::guest(&ECHO), 64));
    group.and("actor/observability/metrics", || {
        metrics::with_local_recorder(&Counting::default(), || Asks::measure(Workers::One, Ours::guest(&ECHO), 64))
    });
    for (name, level) in [("info", Level::INFO), ("debug", Level::DEBUG)] {
        group.and(&format!("actor/observability/tracing_{name}"), move || {
            let mut measure = Asks::measure(Workers::One, Ours::guest(&ECHO), 64);
            Box::new(move |iterations| {
                let subscriber = tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::sink).finish();
                let taken = with_default(subscriber, || measure(iterations));
                // Or the level would be that of all who come after.
                tracing::callsite::rebuild_interest_cache();
                taken
            })
        });
    }
    for listening in ["metrics", "tracing_info", "tracing_debug"] {
        group.ratio(&format!("actor/observability/{listening}"), SILENT, None);
    }
}

/// A recorder that adds up.
#[derive(Default)]
struct Counting {
    registered: AtomicU64,
}

#[derive(Default)]
struct Sum {
    count: AtomicU64,
    sum: AtomicU64,
}

impl metrics::HistogramFn for Sum {
    fn record(&self, value: f64) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add((value * 1e9) as u64, Ordering::Relaxed);
    }
}

impl metrics::Recorder for Counting {
    fn describe_counter(&self, _: metrics::KeyName, _: Option<metrics::Unit>, _: metrics::SharedString) {}
    fn describe_gauge(&self, _: metrics::KeyName, _: Option<metrics::Unit>, _: metrics::SharedString) {}
    fn describe_histogram(&self, _: metrics::KeyName, _: Option<metrics::Unit>, _: metrics::SharedString) {}

    fn register_counter(&self, _: &metrics::Key, _: &metrics::Metadata<'_>) -> metrics::Counter {
        self.registered.fetch_add(1, Ordering::Relaxed);
        metrics::Counter::from_arc(Arc::new(AtomicU64::new(0)))
    }

    fn register_gauge(&self, _: &metrics::Key, _: &metrics::Metadata<'_>) -> metrics::Gauge {
        self.registered.fetch_add(1, Ordering::Relaxed);
        metrics::Gauge::from_arc(Arc::new(AtomicU64::new(0)))
    }

    fn register_histogram(&self, _: &metrics::Key, _: &metrics::Metadata<'_>) -> metrics::Histogram {
        self.registered.fetch_add(1, Ordering::Relaxed);
        metrics::Histogram::from_arc(Arc::new(Sum::default()))
    }
}

/// Latencies of asks at fixed rates.
fn latency(quick: bool) -> anyhow::Result<Vec<Reading>> {
    let length = if quick { Duration::from_millis(300) } else { Duration::from_millis(1_500) };
    let mut readings = Vec::new();
    for rate in [1_000, 10_000, 100_000] {
        let id = format!("actor/latency/{rate}_per_second");
        readings.extend(distribution(&id, &open_loop(Ours::guest(&ECHO), rate, length)));
        readings.extend(distribution(&format!("raw/{id}"), &open_loop(plain_guest(), rate, length)));
        readings.extend(distribution(&format!("peer/kameo/{id}"), &open_loop(Kameo::spawn(), rate, length)));
    }
    Ok(readings)
}

fn distribution(id: &str, latencies: &Histogram<u64>) -> impl Iterator<Item = Reading> {
    [("p50", 0.5), ("p95", 0.95), ("p99", 0.99), ("p99.9", 0.999)]
        .map(|(name, share)| nanoseconds(format!("{id}/{name}"), latencies.value_at_quantile(share)))
        .into_iter()
}

fn nanoseconds(id: String, value: u64) -> Reading {
    Reading { id, unit: "ns", values: vec![value as f64], target: None }
}

/// Asks at a fixed rate whether or not there are answers, from a thread of its own, while the receiver has another. Each
/// latency counts from when its ask was due, so that one that comes late counts as waiting: nothing is omitted that would
/// have to be corrected.
struct OpenLoop<R> {
    receiver: R,
    client: Runtime,
    _worker: Runtime,
}

impl<R: Receiver> OpenLoop<R> {
    fn new(receiver: impl Future<Output = R>) -> Self {
        let worker = Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap();
        Self { receiver: worker.block_on(receiver), client: airssys_wasm_benches::runtime(), _worker: worker }
    }

    fn run(&mut self, rate: u32, length: Duration) -> Histogram<u64> {
        let (payload, period) = (payload(64), Duration::from_secs(1) / rate);
        let latencies = Arc::new(Mutex::new(Histogram::new(3).unwrap()));
        self.client.block_on(async {
            let mut due = Instant::now();
            let mut asks = Vec::new();
            let end = due + length;
            while due < end {
                // It takes the answers meanwhile. A timer would be a millisecond late.
                while Instant::now() < due {
                    tokio::task::yield_now().await;
                }
                let (receiver, payload, latencies) = (self.receiver.clone(), payload.clone(), Arc::clone(&latencies));
                asks.push(tokio::spawn(async move {
                    receiver.ask(payload).await.unwrap();
                    latencies.lock().unwrap().record(due.elapsed().as_nanos() as u64).unwrap();
                }));
                due += period;
            }
            for ask in asks {
                ask.await.unwrap();
            }
        });
        Arc::into_inner(latencies).unwrap().into_inner().unwrap()
    }
}

fn open_loop<R: Receiver>(receiver: impl Future<Output = R>, rate: u32, length: Duration) -> Histogram<u64> {
    OpenLoop::new(receiver).run(rate, length)
}

/// What an actor does to its neighbours.
#[derive(Clone, Copy)]
enum Neighbour {
    Nobody,
    Spins,
    /// Traps, and is restarted at once.
    Traps,
    /// Sends as fast as it can to somebody else.
    Floods,
    /// Takes memory until it has too much, and is restarted at once.
    Hoards,
}

const NEIGHBOURS: [(&str, Neighbour); 5] = [
    ("alone", Neighbour::Nobody),
    ("spins", Neighbour::Spins),
    ("traps", Neighbour::Traps),
    ("floods", Neighbour::Floods),
    ("hoards", Neighbour::Hoards),
];

/// The 99th percentile of asks of a healthy actor, a thousand a second, beside each kind of neighbour. In rounds, so that
/// drift of the machine hits all of them.
fn neighbour(quick: bool) -> anyhow::Result<Vec<Reading>> {
    let (rounds, asks) = if quick { (2, 200) } else { (4, 500) };
    let tick = EngineConfig::default().ticking.period().as_nanos() as f64;
    let mut readings = Vec::new();
    for workers in [Workers::One, Workers::Two] {
        let mut latencies = NEIGHBOURS.map(|_| Histogram::<u64>::new(3).unwrap());
        for _ in 0..rounds {
            for ((_, kind), latencies) in NEIGHBOURS.iter().zip(&mut latencies) {
                latencies.add(beside(workers, *kind, asks))?;
            }
        }
        let p99 = latencies.map(|latencies| latencies.value_at_quantile(0.99));
        let alone = p99[0] as f64;
        for ((name, kind), p99) in NEIGHBOURS.iter().zip(p99) {
            let mut reading = nanoseconds(format!("actor/neighbour/{name}/{}/p99", workers.name()), p99);
            reading.target = match (kind, workers) {
                (Neighbour::Nobody, _) => None,
                (_, Workers::One) => Some(("goal: alone + a tick", alone + tick)),
                (_, Workers::Two) => Some(("goal: 3 × alone", 3.0 * alone)),
            };
            readings.push(reading);
        }
    }
    Ok(readings)
}

fn beside(workers: Workers, kind: Neighbour, asks: u64) -> Histogram<u64> {
    let runtime = workers.runtime();
    let system = system(guests::engine());
    let limits = ResourceLimits { cpu_time: Duration::from_secs(5), ..ResourceLimits::with_memory(ByteSize::mib(8)) };
    let healthy = runtime.block_on(async {
        let sandbox = ECHO.sandbox(&system, limits.clone());
        let healthy = system.spawn(spec("healthy", &sandbox)).await.unwrap();
        system.spawn(spec("sink", &sandbox)).await.unwrap();
        let hostile = system.spawn(spec("hostile", &ACTOR.sandbox(&system, limits))).await.unwrap();
        tokio::spawn(async move {
            let order = match kind {
                Neighbour::Nobody => return,
                Neighbour::Spins => "spin",
                Neighbour::Traps => "divide",
                Neighbour::Floods => "send sink x",
                Neighbour::Hoards => "hoard 1000000",
            };
            // Until the runtime ends, and the actor with it.
            while hostile.state() != Lifecycle::Stopped {
                _ = match kind {
                    Neighbour::Floods => hostile.tell(order).await.is_ok(),
                    _ => hostile.ask(order).await.is_ok(),
                };
            }
        });
        Ours { system: system.clone(), actor: healthy }
    });
    let latencies = runtime.block_on(paced(runtime.handle().clone(), healthy, asks));
    assert_eq!(latencies.len(), asks);
    latencies
}

/// Asks once a millisecond, whether or not there are answers: each ask a task that a thread outside of the runtime hands to
/// its workers, like a request that comes in, and that takes the time itself. The thread sleeps in between, so that it
/// takes no core away; when it awakes is the system's business, and no part of a latency.
async fn paced<R: Receiver>(workers: Handle, receiver: R, asks: u64) -> Histogram<u64> {
    let (latencies, mut taken) = mpsc::unbounded_channel();
    let payload = payload(64);
    std::thread::spawn(move || {
        let started = Instant::now();
        for n in 0..asks {
            let due = started + Duration::from_millis(n);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            let (receiver, payload, latencies) = (receiver.clone(), payload.clone(), latencies.clone());
            let sent = Instant::now();
            workers.spawn(async move {
                receiver.ask(payload).await.unwrap();
                _ = latencies.send(sent.elapsed());
            });
        }
    });
    let mut histogram = Histogram::new(3).unwrap();
    while let Some(latency) = taken.recv().await {
        histogram.record(latency.as_nanos() as u64).unwrap();
    }
    histogram
}

/// Many live guests, each process with one kind: what each of them takes, and how long messages through all of them take.
fn density(quick: bool) -> anyhow::Result<Vec<Reading>> {
    const LIVE: u64 = 10_000;
    let messages = if quick { LIVE * 20 } else { LIVE * 100 };
    let mut readings = Vec::new();
    // Most of what a Rust guest takes is its own: stack, data and heap, a page each at the least.
    for guest in [SMALLEST, RUST] {
        for (kind, prefix, goal) in [(OURS, "", Some(("goal", 32.0 * 1024.0))), (PLAIN, "raw/", None)] {
            let mut figures: [Vec<f64>; 3] = Default::default();
            for _ in 0..if quick { 1 } else { 3 } {
                let each = each_takes(kind, guest, LIVE, messages)?;
                figures.iter_mut().zip(each).for_each(|(values, figure)| values.push(figure));
            }
            let [resident, spawn, message] = figures;
            let id = |name: &str| format!("{prefix}actor/density/{guest}/{LIVE}/{name}");
            readings.extend([
                Reading { id: id("resident"), unit: "bytes", values: resident, target: goal },
                Reading { id: id("spawn_and_ask"), unit: "ns", values: spawn, target: None },
                Reading { id: id("message"), unit: "ns", values: message, target: None },
            ]);
        }
    }
    Ok(readings)
}

/// What each of so many live guests takes, in a process of its own: resident bytes, nanoseconds until it has answered for
/// the first time, and nanoseconds a message.
fn each_takes(kind: &str, guest: &str, live: u64, messages: u64) -> anyhow::Result<[f64; 3]> {
    let arguments = [kind.to_owned(), guest.to_owned(), live.to_string(), messages.to_string()];
    let output = Command::new(std::env::current_exe()?).args(arguments).output()?;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    let figures = text.split_whitespace().map(str::parse).collect::<Result<Vec<f64>, _>>()?;
    figures.try_into().map_err(|_| anyhow::anyhow!("not three figures: {text}"))
}

/// What tells such a process which guests are meant.
const OURS: &str = "--live-actors";
const PLAIN: &str = "--live-plain";
/// Which guest.
const SMALLEST: &str = "smallest";
const RUST: &str = "rust";

/// What a process of its own is started for, if these are the arguments of one.
pub(crate) fn probe(arguments: &[String]) -> Option<anyhow::Result<()>> {
    let [kind, guest, live, messages] = arguments else { return None };
    [OURS, PLAIN].contains(&&kind[..]).then(|| live_actors(kind, guest, live.parse()?, messages.parse()?))
}

fn live_actors(kind: &str, guest: &str, live: usize, messages: u64) -> anyhow::Result<()> {
    let engine = WasmEngine::new(EngineConfig::large().compile_in_process())?;
    let bytes = if guest == SMALLEST { wat::parse_str(SMALLEST_ACTOR)? } else { ECHO_ACTOR.to_vec() };
    let guest: &Guest = Box::leak(Box::new(Guest::new(&engine, &bytes)));
    let runtime = Workers::Two.runtime();
    if kind == OURS {
        let system = system(&engine);
        let sandbox = guest.sandbox(&system, guests::limits());
        runtime.block_on(populate(live, messages, async |n| {
            let actor = system.spawn(spec(&format!("guest-{n}"), &sandbox)).await.unwrap();
            Ours { system: system.clone(), actor }
        }))
    } else {
        runtime.block_on(populate(live, messages, async |_| Plain::guest(guest).await.0))
    }
}

async fn populate<R: Receiver>(live: usize, messages: u64, spawn: impl AsyncFn(usize) -> R) -> anyhow::Result<()> {
    let payload = payload(64);
    let mut receivers = Vec::with_capacity(live);
    // What the first of all needs once is not the others'.
    receivers.push(spawn(0).await);
    receivers[0].ask(payload.clone()).await.unwrap();
    let before = process::read().context("this system does not tell how much memory a process has")?;
    let started = Instant::now();
    for n in 1..live {
        let receiver = spawn(n).await;
        receiver.ask(payload.clone()).await.unwrap();
        receivers.push(receiver);
    }
    let spawned = started.elapsed();
    let after = process::read().context("read above")?;
    let receivers: Arc<[R]> = receivers.into();
    let started = Instant::now();
    all_told(&receivers, messages).await;
    let told = started.elapsed();
    println!(
        "{} {} {}",
        (after.resident as f64 - before.resident as f64) / (live - 1) as f64,
        spawned.as_nanos() as f64 / (live - 1) as f64,
        told.as_nanos() as f64 / messages as f64
    );
    eprintln!("{} mappings", after.mappings);
    Ok(())
}
