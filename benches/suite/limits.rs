//! Limits: whether CPU time is charged to those who used it, and what it costs to charge it.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    pin::pin,
    rc::Rc,
    time::{Duration, Instant},
};

use crate::guests;
use airssys_wasm_engine::Profile;
use airssys_wasm_fixtures::GIVES_WAY;
use airssys_wasm_harness::{Measure, Reading, Suite, now, runtime, timed_async};
use airssys_wasm_isolation::{Sandbox, SandboxSpec, TypedExport};
use airssys_wasm_limits::ResourceLimits;
use airssys_wasm_measurements::process::thread_time;
use airssys_wasm_twins::bare::{self, engine};
use anyhow::Context;
use tokio::task::{LocalSet, yield_now};
use wasmtime::component::{Component, Linker};

pub(crate) fn describe(suite: &mut Suite) {
    waiting(suite);
    suite.reading("limits/charge", charge);
}

/// `rounds`, `turns` and `more` of [`GIVES_WAY`].
type Run = (u32, u32, u32);

fn spec() -> SandboxSpec<()> {
    let component = engine().load_blocking(&bare::binary(GIVES_WAY), Profile::Plain).unwrap();
    let mut linker = component.linker();
    linker
        .root()
        .func_wrap_async("give-way", |_, (): ()| {
            Box::new(async {
                yield_now().await;
                Ok(())
            })
        })
        .unwrap();
    // Nobody is to be ended: what is charged is looked at.
    let hour = Duration::from_secs(3_600);
    let limits = ResourceLimits { cpu_time: hour, deadline: hour, ..guests::limits() };
    SandboxSpec::new(component.link(&linker).unwrap(), limits).unwrap()
}

async fn sandbox(spec: &SandboxSpec<()>) -> (Sandbox<()>, TypedExport<Run, ()>) {
    let mut sandbox = spec.instantiate(()).await.unwrap();
    let run = sandbox.typed(&spec.export("run").unwrap()).unwrap();
    (sandbox, run)
}

/// A call that gives way once, and one that does so a hundred times.
fn waiting(suite: &mut Suite) {
    for (name, rounds) in [("once", 1), ("100_times", 100)] {
        suite.bench(&format!("limits/gives_way/{name}"), move || ours(rounds)).twin("raw", None, move || raw(rounds));
    }
}

fn ours(rounds: u32) -> Measure {
    let (sandbox, run) = now(sandbox(&spec()));
    timed_async((Some(sandbox), run), async move |(sandbox, run)| {
        let live = sandbox.take().expect("put back below");
        *sandbox = Some(live.call(run, (rounds, 0, 0)).await.unwrap().1);
    })
}

fn raw(rounds: u32) -> Measure {
    let engine = engine().wasmtime(Profile::Plain).unwrap();
    let mut linker = Linker::<()>::new(engine);
    linker
        .root()
        .func_wrap_async("give-way", |_, (): ()| {
            Box::new(async {
                yield_now().await;
                Ok(())
            })
        })
        .unwrap();
    let pre = linker.instantiate_pre(&Component::new(engine, bare::binary(GIVES_WAY)).unwrap()).unwrap();
    let (store, run) = bare::instance::<Run, ()>(&pre, "run");
    timed_async((store, run), async move |(store, run)| {
        run.call_async(&mut *store, (rounds, 0, 0)).await.unwrap();
    })
}

/// How long those compute that give way before a tick ends, in microseconds, whether it is the same each time, and how
/// many of them there are.
const SCENES: [(&str, u64, bool, usize); 8] = [
    ("150us/in_phase/1", 150, true, 1),
    ("150us/at_random/1", 150, false, 1),
    ("500us/in_phase/1", 500, true, 1),
    ("500us/at_random/1", 500, false, 1),
    ("900us/in_phase/1", 900, true, 1),
    ("900us/at_random/1", 900, false, 1),
    ("900us/in_phase/5", 900, true, 5),
    ("900us/at_random/5", 900, false, 5),
];

/// What each guest was charged, by what the thread's clock says it ran: of guests that give way before a tick ends, and of
/// one beside them on their worker that computes. And the most that one call was charged beyond what it ran, and less.
fn charge(quick: bool) -> anyhow::Result<Vec<Reading>> {
    thread_time().context("this system does not tell how long a thread ran")?;
    let calls = if quick { 40 } else { 500 };
    let per_millisecond = turns_in_a_millisecond();
    let mut readings = Vec::new();
    for (scene, stretch, same, thieves) in SCENES {
        let turns = |micros: u64| (micros as f64 * per_millisecond / 1_000.0) as u32;
        // At random they take as long on average.
        let stretch = if same { (turns(stretch), 0) } else { (turns(stretch / 2), turns(stretch)) };
        let (thieves, victim) = beside(stretch, thieves, turns(2_000), calls);
        for (who, charged) in [("gives_way", thieves), ("computes", victim)] {
            let id = |what: &str| format!("limits/charge/{scene}/{who}/{what}");
            readings.push(Reading {
                id: id("ratio"),
                unit: "×",
                values: vec![charged.charged.as_secs_f64() / charged.ran.as_secs_f64()],
                target: None,
            });
            for (what, ns) in [("most_beyond", charged.beyond), ("most_short", charged.short)] {
                readings.push(Reading { id: id(what), unit: "ns", values: vec![ns], target: None });
            }
            eprintln!("{scene} {who}: {charged:?}");
        }
    }
    Ok(readings)
}

/// Of all calls of some guests.
#[derive(Debug, Default)]
struct Charged {
    calls: u64,
    ran: Duration,
    charged: Duration,
    /// Nanoseconds that one call was charged beyond what it ran.
    beyond: f64,
    /// Nanoseconds that one call ran beyond what it was charged.
    short: f64,
}

impl Charged {
    fn add(&mut self, ran: Duration, charged: Duration) {
        self.calls += 1;
        self.ran += ran;
        self.charged += charged;
        let beyond = charged.as_nanos() as f64 - ran.as_nanos() as f64;
        self.beyond = self.beyond.max(beyond);
        self.short = self.short.max(-beyond);
    }
}

/// How many turns of its loop a guest takes in a millisecond, at its fastest.
fn turns_in_a_millisecond() -> f64 {
    const TURNS: u32 = 100_000;
    let spec = spec();
    now(async {
        let (mut live, run) = sandbox(&spec).await;
        let mut fastest = Duration::MAX;
        for _ in 0..200 {
            let started = Instant::now();
            live = live.call(&run, (1, TURNS, 0)).await.unwrap().1;
            fastest = fastest.min(started.elapsed());
        }
        f64::from(TURNS) / (fastest.as_secs_f64() * 1e3)
    })
}

/// Calls of one guest that computes for so many turns, and beside it on the same worker of guests that give way after each
/// stretch.
fn beside(stretch: (u32, u32), thieves: usize, work: u32, calls: u64) -> (Charged, Charged) {
    let spec = spec();
    let (of_thieves, of_victim) = (Rc::new(RefCell::new(Charged::default())), RefCell::new(Charged::default()));
    let done = Rc::new(Cell::new(false));
    runtime().block_on(LocalSet::new().run_until(async {
        let mut tasks = Vec::new();
        for _ in 0..thieves {
            let (spec, done, of_thieves) = (spec.clone(), Rc::clone(&done), Rc::clone(&of_thieves));
            tasks.push(tokio::task::spawn_local(async move {
                let (mut live, run) = sandbox(&spec).await;
                while !done.get() {
                    live = called(live, &run, (20, stretch.0, stretch.1), &of_thieves).await;
                }
            }));
        }
        let (mut live, run) = sandbox(&spec).await;
        for _ in 0..calls {
            live = called(live, &run, (1, work, 0), &of_victim).await;
        }
        done.set(true);
        for task in tasks {
            task.await.unwrap();
        }
    }));
    (Rc::into_inner(of_thieves).unwrap().into_inner(), of_victim.into_inner())
}

/// A call, and the thread's clock around each poll of it.
async fn called(live: Sandbox<()>, run: &TypedExport<Run, ()>, how: Run, sum: &RefCell<Charged>) -> Sandbox<()> {
    let mut ran = Duration::ZERO;
    let mut call = pin!(live.call(run, how));
    let ((), live) = poll_fn(|cx| {
        let started = thread_time().unwrap();
        let polled = call.as_mut().poll(cx);
        ran += thread_time().unwrap().saturating_sub(started);
        polled
    })
    .await
    .unwrap();
    let charged = engine().clock().period() * u32::try_from(live.usage().cpu_ticks).unwrap();
    sum.borrow_mut().add(ran, charged);
    live
}
