//! What many live guests take.

use std::{process::Command, sync::Arc, time::Instant};

use airssys_wasm_engine::{EngineConfig, WasmEngine};
use airssys_wasm_fixtures::{ECHO_ACTOR, SMALLEST_ACTOR};
use airssys_wasm_harness::{Reading, Suite};
use airssys_wasm_measurements::{Kind, process};
use airssys_wasm_twins::{
    actors::Guest,
    receivers::{Instance, Plain, Receiver},
    work::{Workers, all_told, payload},
};
use anyhow::Context;

use super::ours::{Ours, sandbox, spec, system};
use crate::guests;

pub(super) fn describe(suite: &mut Suite) {
    suite.reading("actor/density", density);
    for guest in [SMALLEST, RUST] {
        suite.sample(&format!("actor/density/{guest}/1000/resident"), Kind::Bytes, move || {
            Box::new(|| each_takes(OURS, guest, 1_000, 1_000).map(|[resident, ..]| resident))
        });
    }
}

/// Many live guests, each process with one kind: what each of them takes, and how long messages through all of them take.
fn density(quick: bool) -> anyhow::Result<Vec<Reading>> {
    const LIVE: u64 = 10_000;
    let messages = if quick { LIVE * 20 } else { LIVE * 100 };
    let mut readings = Vec::new();
    // Most of what a Rust guest takes is its own: stack, data and heap, a page each at the least.
    for (guest, kib) in [(SMALLEST, 16.0), (RUST, 26.0)] {
        for (kind, prefix, goal) in
            [(OURS, "", Some(("goal", kib * 1024.0))), (PLAIN, "raw/", None), (INSTANCE, "raw/", None)]
        {
            let mut figures: [Vec<f64>; 3] = Default::default();
            for _ in 0..if quick { 1 } else { 3 } {
                let each = each_takes(kind, guest, LIVE, messages)?;
                figures.iter_mut().zip(each).for_each(|(values, figure)| values.push(figure));
            }
            let [resident, spawn, message] = figures;
            let id = |name: &str| format!("{prefix}actor/density/{guest}/{LIVE}/{name}");
            if kind == INSTANCE {
                readings.push(Reading { id: id("instance"), unit: "bytes", values: resident, target: None });
                continue;
            }
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
const INSTANCE: &str = "--live-instance";
/// Which guest.
const SMALLEST: &str = "smallest";
const RUST: &str = "rust";

/// What a process of its own is started for, if these are the arguments of one.
pub(crate) fn probe(arguments: &[String]) -> Option<anyhow::Result<()>> {
    let [kind, guest, live, messages] = arguments else { return None };
    [OURS, PLAIN, INSTANCE].contains(&&kind[..]).then(|| live_actors(kind, guest, live.parse()?, messages.parse()?))
}

fn live_actors(kind: &str, guest: &str, live: usize, messages: u64) -> anyhow::Result<()> {
    let engine = WasmEngine::new(EngineConfig::large().compile_in_process())?;
    let bytes = if guest == SMALLEST { wat::parse_str(SMALLEST_ACTOR)? } else { ECHO_ACTOR.to_vec() };
    let guest: &Guest = Box::leak(Box::new(Guest::new(&engine, &bytes)));
    let runtime = Workers::Two.runtime();
    if kind == OURS {
        let system = system(&engine);
        let sandbox = sandbox(guest, &system, guests::limits());
        runtime.block_on(populate(live, messages, async |n| {
            let actor = system.spawn(spec(&format!("guest-{n}"), &sandbox)).await.unwrap();
            Ours { system: system.clone(), actor }
        }))
    } else if kind == PLAIN {
        runtime.block_on(populate(live, messages, async |_| Plain::guest(guest).await.0))
    } else {
        runtime.block_on(populate(live, messages, async |_| Instance::new(guest)))
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
