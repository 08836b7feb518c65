//! How long answers take at fixed rates, and beside other actors.

use std::{
    num::NonZeroU32,
    time::{Duration, Instant},
};

use airssys_wasm_actor::{Lifecycle, NativeActor, NativeContext, NativeSpec};
use airssys_wasm_engine::EngineConfig;
use airssys_wasm_harness::{Reading, Suite};
use airssys_wasm_limits::{ByteSize, ResourceLimits};
use airssys_wasm_measurements::Kind;
use airssys_wasm_registry::MessageEnvelope;
use airssys_wasm_twins::{
    actors::{ACTOR, ASYNC_ACTOR, COLLECTING, ECHO, Guest},
    bare::engine,
    receivers::Receiver,
    work::{OpenLoop, Twin, Workers, payload},
};
use bytes::Bytes;
use hdrhistogram::Histogram;
use tokio::{runtime::Handle, sync::mpsc};

use super::ours::{Ours, id, sandbox, spec, system};

pub(super) fn describe(suite: &mut Suite) {
    suite.reading("actor/latency", latency);
    suite.reading("actor/neighbour", neighbour);
    for rate in [1_000, 10_000] {
        suite.sample(&format!("actor/latency/{rate}_per_second/p99"), Kind::Tail, move || {
            let mut asked = OpenLoop::new(Ours::guest(&ECHO));
            let length = Duration::from_secs(200) / rate;
            Box::new(move || Ok(asked.run(rate, length).value_at_quantile(0.99) as f64))
        });
    }
}

/// Latencies of asks at fixed rates.
fn latency(quick: bool) -> anyhow::Result<Vec<Reading>> {
    let length = if quick { Duration::from_millis(300) } else { Duration::from_millis(1_500) };
    let mut readings = Vec::new();
    for rate in [1_000, 10_000, 100_000] {
        let id = format!("actor/latency/{rate}_per_second");
        readings.extend(distribution(&id, &OpenLoop::new(Ours::guest(&ECHO)).run(rate, length)));
        readings.extend(distribution(&format!("raw/{id}"), &Twin::PlainGuest.latencies(rate, length)));
        readings.extend(distribution(&format!("peer/kameo/{id}"), &Twin::Kameo.latencies(rate, length)));
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
    /// Has a hundred requests on their way at the same time.
    AsyncAsks,
    /// Has answered, and gives way without end.
    AsyncYields,
    /// Has a hundred messages in flight at the same time, each of which asks somebody.
    AsyncSeveral,
    /// Has a hundred messages in flight that wait for somebody who never answers.
    AsyncWaits,
    /// Keeps many objects, and makes garbage.
    Collects,
}

impl Neighbour {
    fn guest(self) -> &'static Guest {
        match self {
            Self::AsyncAsks | Self::AsyncYields | Self::AsyncSeveral | Self::AsyncWaits => &ASYNC_ACTOR,
            Self::Collects => &COLLECTING,
            _ => &ACTOR,
        }
    }

    /// Messages that it is sent at the same time.
    fn at_a_time(self) -> u32 {
        match self {
            Self::AsyncSeveral | Self::AsyncWaits => 100,
            _ => 1,
        }
    }
}

const NEIGHBOURS: [(&str, Neighbour); 10] = [
    ("alone", Neighbour::Nobody),
    ("spins", Neighbour::Spins),
    ("traps", Neighbour::Traps),
    ("floods", Neighbour::Floods),
    ("hoards", Neighbour::Hoards),
    ("async_asks", Neighbour::AsyncAsks),
    ("async_yields", Neighbour::AsyncYields),
    ("async_several", Neighbour::AsyncSeveral),
    ("async_waits", Neighbour::AsyncWaits),
    ("collects", Neighbour::Collects),
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
                (_, Workers::Two) => Some(("goal: 2 × alone", 2.0 * alone)),
            };
            readings.push(reading);
        }
    }
    Ok(readings)
}

fn beside(workers: Workers, kind: Neighbour, asks: u64) -> Histogram<u64> {
    let runtime = workers.runtime();
    let system = system(engine());
    let limits = ResourceLimits { cpu_time: Duration::from_secs(5), ..ResourceLimits::with_memory(ByteSize::mib(20)) };
    let healthy = runtime.block_on(async {
        let echo = sandbox(&ECHO, &system, limits.clone());
        let healthy = system.spawn(spec("healthy", &echo)).await.unwrap();
        system.spawn(spec("sink", &echo)).await.unwrap();
        system.spawn_native(NativeSpec::new(id("silent"), || Silent)).await.unwrap();
        let at_a_time = NonZeroU32::new(kind.at_a_time()).unwrap();
        let hostile = spec("hostile", &sandbox(kind.guest(), &system, limits)).with_concurrency(at_a_time);
        let hostile = system.spawn(hostile).await.unwrap();
        for _ in 0..kind.at_a_time() {
            let hostile = hostile.clone();
            tokio::spawn(async move {
                let order = match kind {
                    Neighbour::Nobody => return,
                    Neighbour::Spins => "spin",
                    Neighbour::Traps => "divide",
                    Neighbour::Floods => "send sink x",
                    Neighbour::Hoards => "hoard 1000000",
                    Neighbour::AsyncAsks => "burden sink 100 64",
                    Neighbour::AsyncYields => "later-forever",
                    Neighbour::AsyncSeveral => "ask sink",
                    Neighbour::AsyncWaits => "ask silent",
                    Neighbour::Collects => "x",
                };
                // Until the runtime ends, and the actor with it.
                while hostile.state() != Lifecycle::Stopped {
                    _ = match kind {
                        Neighbour::Floods => hostile.tell(order).await.is_ok(),
                        _ => hostile.ask(order).await.is_ok(),
                    };
                }
            });
        }
        Ours { system: system.clone(), actor: healthy }
    });
    let latencies = runtime.block_on(paced(runtime.handle().clone(), healthy, asks));
    assert_eq!(latencies.len(), asks);
    latencies
}

/// Never answers.
struct Silent;

impl NativeActor for Silent {
    async fn handle(&mut self, _: &MessageEnvelope, _: &NativeContext) -> Result<Option<Bytes>, String> {
        std::future::pending().await
    }
}

/// Asks once a millisecond, whether or not there are answers: each ask a task that a thread outside of the runtime hands to
/// its workers, like a request that comes in, and that takes the time itself. The thread sleeps in between, so that it
/// takes no core away; when it awakes is the system's business, and no part of a latency.
pub(crate) async fn paced<R: Receiver>(workers: Handle, receiver: R, asks: u64) -> Histogram<u64> {
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
