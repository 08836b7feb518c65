//! What a guest that wakes names without number does to a healthy actor, and what the syncs of a kind do to the saves of
//! another.

use std::time::Duration;

use airssys_wasm_actor::Lifecycle;
use airssys_wasm_engine::EngineConfig;
use airssys_wasm_harness::{Reading, Suite};
use airssys_wasm_keyed::{Durability, KeyedOptions, SaveWhen};
use airssys_wasm_limits::{ByteSize, ResourceLimits};
use airssys_wasm_twins::{
    actors::{ACTOR, ECHO, SMALLEST_KEEPING},
    bare::engine,
    work::{Workers, payload},
};
use hdrhistogram::Histogram;

use super::ours::{Disk, Kind, OfKey, install, options};
use crate::actor::{
    ours::{Ours, sandbox, spec, system},
    paced,
};

pub(super) fn describe(suite: &mut Suite) {
    suite.reading("keyed/neighbour", neighbour);
    suite.reading("keyed/save/beside", saves);
}

const NEIGHBOURS: [(&str, bool); 2] = [("alone", false), ("wakes", true)];

/// The 99th percentile of asks of a healthy actor, a thousand a second. In rounds, so that drift of the machine hits both.
fn neighbour(quick: bool) -> anyhow::Result<Vec<Reading>> {
    let (rounds, asks) = if quick { (2, 200) } else { (4, 500) };
    let tick = EngineConfig::default().ticking.period().as_nanos() as f64;
    let mut readings = Vec::new();
    for workers in [Workers::One, Workers::Two] {
        let mut latencies = NEIGHBOURS.map(|_| Histogram::<u64>::new(3).unwrap());
        for _ in 0..rounds {
            for ((_, wakes), latencies) in NEIGHBOURS.iter().zip(&mut latencies) {
                latencies.add(beside(workers, *wakes, asks))?;
            }
        }
        let p99 = latencies.map(|latencies| latencies.value_at_quantile(0.99) as f64);
        for ((name, wakes), value) in NEIGHBOURS.iter().zip(p99) {
            readings.push(Reading {
                id: format!("keyed/neighbour/{name}/{}/p99", workers.name()),
                unit: "ns",
                values: vec![value],
                target: wakes.then_some(("goal: alone + a tick", p99[0] + tick)),
            });
        }
    }
    Ok(readings)
}

/// The kind is as by default: so many are admitted of one caller, and the others refused. A round lasts for half a second, in
/// which the guest comes to a part of the names.
fn beside(workers: Workers, wakes: bool, asks: u64) -> Histogram<u64> {
    const NAMES: u64 = 1_000_000;
    let disk = Disk::new();
    let runtime = workers.runtime();
    let system = system(engine());
    let limits = ResourceLimits { cpu_time: Duration::from_secs(5), ..ResourceLimits::with_memory(ByteSize::mib(20)) };
    let (healthy, kind) = runtime.block_on(async {
        let kind = install(&system, "cart", &SMALLEST_KEEPING, KeyedOptions::default(), &disk.store).await;
        let healthy = system.spawn(spec("healthy", &sandbox(&ECHO, &system, limits.clone()))).await.unwrap();
        let hostile = system.spawn(spec("hostile", &sandbox(&ACTOR, &system, limits))).await.unwrap();
        tokio::spawn(async move {
            let mut names = (0..NAMES).cycle();
            // Until the runtime ends, and the actor with it.
            while let (true, Some(name)) = (wakes && hostile.state() != Lifecycle::Stopped, names.next()) {
                _ = hostile.tell(format!("send cart/{name} x")).await;
            }
        });
        (Ours { system: system.clone(), actor: healthy }, kind)
    });
    let latencies = runtime.block_on(paced(runtime.handle().clone(), healthy, asks));
    assert_eq!(latencies.len(), asks);
    let stats = kind.stats();
    // More than are admitted at once.
    assert_eq!(stats.activations + stats.refused > 2_000, wakes, "{stats:?}");
    latencies
}

/// The 99th percentile of asks that are answered once the operating system has the state, a thousand a second: alone, and
/// while 64 actors of another kind in the same store have each message synced.
fn saves(quick: bool) -> anyhow::Result<Vec<Reading>> {
    let (rounds, asks) = if quick { (2, 200) } else { (4, 500) };
    let mut latencies = [(); 2].map(|()| Histogram::<u64>::new(3).unwrap());
    for _ in 0..rounds {
        for (syncs, latencies) in [false, true].into_iter().zip(&mut latencies) {
            latencies.add(saved_beside(syncs, asks))?;
        }
    }
    let readings = ["nobody", "syncs"].into_iter().zip(latencies).map(|(name, latencies)| Reading {
        id: format!("keyed/save/beside/{name}/p99"),
        unit: "ns",
        values: vec![latencies.value_at_quantile(0.99) as f64],
        target: None,
    });
    Ok(readings.collect())
}

fn saved_beside(syncs: bool, asks: u64) -> Histogram<u64> {
    let disk = Disk::new();
    let runtime = Workers::Two.runtime();
    let each = |durability| KeyedOptions { save: SaveWhen::EachMessage, durability, ..options() };
    let kind = |name: &'static str, durability| {
        runtime.block_on(Kind::new(name, &SMALLEST_KEEPING, each(durability), &disk.store))
    };
    let (synced, saved) = (kind("synced", Durability::Power), kind("saved", Durability::Process));
    for key in 0..if syncs { 64 } else { 0 } {
        let actor = synced.keyed.actor(&key.to_string()).unwrap();
        // Until the runtime ends.
        runtime.spawn(async move { while actor.ask(payload(64)).await.is_ok() {} });
    }
    let actor = OfKey { actor: saved.keyed.actor("1").unwrap(), _kind: saved };
    let latencies = runtime.block_on(paced(runtime.handle().clone(), actor, asks));
    assert_eq!(latencies.len(), asks);
    latencies
}
