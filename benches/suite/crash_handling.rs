//! Crash handling: calls that go well, traps, cleanup, and being ready again.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::guests;
use airssys_wasm_engine::Profile;
use airssys_wasm_fixtures::{COLLECTED, SPIN, TRAPS};
use airssys_wasm_harness::{Measure, Reading, Suite, now, runtime, timed, timed_async};
use airssys_wasm_isolation::{CrashKind, SandboxSpec, TrapCode};
use airssys_wasm_limits::{ByteSize, CancellationToken, MemoryBudget, ResourceLimits};
use airssys_wasm_twins::bare::{self, engine};
use wasmtime::{Store, Trap, component::InstancePre};

pub(crate) fn describe(suite: &mut Suite) {
    suite.bench("crash_handling/normal_execution/successful_execution", || succeed(guests::spec(TRAPS))).twin(
        "raw",
        None,
        || timed_async(bare::raw(TRAPS), async |pre| drop(raw_call(pre, "ok").await)),
    );
    suite
        .bench("crash_handling/trap_detection/trap_categorization", || {
            timed_async(guests::spec(TRAPS), async |spec| trap(spec).await)
        })
        .twin("raw", None, || timed_async(bare::raw(TRAPS), async |pre| drop(raw_trap(pre).await)));
    suite
        .bench("crash_handling/trap_detection/classify", || {
            let quota = guests::spec(TRAPS).quota().clone();
            let (_store, error) = now(raw_trap(&bare::raw(TRAPS)));
            timed(move || CrashKind::of_call(&error, &quota))
        })
        .target("goal; guide: trap categorization", Duration::from_nanos(100));
    cleanup(suite);
    suite
        .bench("crash_handling/recovery_latency/recovery_after_crash", || {
            timed_async(guests::spec(TRAPS), async |spec| {
                trap(spec).await;
                ready(spec).await;
            })
        })
        .target("guide", Duration::from_millis(10))
        .twin("raw", 1.3, || {
            timed_async(bare::raw(TRAPS), async |pre| {
                drop(raw_trap(pre).await);
                drop(raw_call(pre, "ok").await);
            })
        });
    suite
        .bench("crash_handling/fuel_exhaustion/fuel_trap_handling", || {
            let template = guests::template(engine(), SPIN, Profile::Metered);
            let limits = ResourceLimits { fuel: Some(FUEL), ..guests::limits() };
            let spec = SandboxSpec::new(template, limits).unwrap();
            timed_async(spec, async |spec| {
                let mut sandbox = spec.instantiate(()).await.unwrap();
                let spin = sandbox.typed::<(), ()>(&spec.export("spin").unwrap()).unwrap();
                let crash = sandbox.call(&spin, ()).await.unwrap_err();
                assert_eq!(*crash.kind(), CrashKind::OutOfFuel { allowed: FUEL });
            })
        })
        .twin("raw", None, || {
            let metered = engine().wasmtime(Profile::Metered).unwrap();
            timed_async(bare::pre(metered, SPIN), async |pre| {
                let mut store = bare::store(pre.engine(), ());
                store.set_fuel(FUEL).unwrap();
                let instance = pre.instantiate_async(&mut store).await.unwrap();
                let spin = instance.get_typed_func::<(), ()>(&mut store, "spin").unwrap();
                let error = spin.call_async(&mut store, ()).await.unwrap_err();
                assert_eq!(error.downcast_ref(), Some(&Trap::OutOfFuel));
            })
        });
    suite.reading("crash_handling/kill_while_collecting", kill_while_collecting);
}

/// From a kill until all memory is free, of a guest whose heap of so many MiB is full and that does hardly anything but
/// collect. A thread kills it, each time a little later.
fn kill_while_collecting(quick: bool) -> anyhow::Result<Vec<Reading>> {
    let kills = if quick { 10 } else { 100 };
    let mut readings = Vec::new();
    for mib in [16, 64] {
        let budget = MemoryBudget::new(ByteSize::gib(1));
        let long = Duration::from_secs(600);
        let limits =
            ResourceLimits { cpu_time: long, deadline: long, ..ResourceLimits::with_memory(ByteSize::mib(mib)) };
        let template = guests::template(engine(), COLLECTED, Profile::Plain);
        let spec = SandboxSpec::new(template, limits)?.with_budget(budget.clone());
        let kill = |after| {
            runtime().block_on(async {
                let mut sandbox = spec.instantiate(()).await.unwrap();
                let keeps = sandbox.typed::<(u32,), (u32,)>(&spec.export("keeps").unwrap()).unwrap();
                let wastes = sandbox.typed::<(), ()>(&spec.export("drops-for-ever").unwrap()).unwrap();
                // Half of the heap is free when it is collected; objects of 32 bytes take three quarters of the other.
                let (_, sandbox) = sandbox.call(&keeps, (mib as u32 * 12_288,)).await.unwrap();
                let token = CancellationToken::new();
                let killer = thread::spawn({
                    let token = token.clone();
                    move || {
                        thread::sleep(after);
                        let killed = Instant::now();
                        token.cancel();
                        killed
                    }
                });
                let crash = sandbox.call_until(&wastes, (), &token).await.unwrap_err();
                let ended = Instant::now();
                assert_eq!((crash.kind(), budget.used()), (&CrashKind::Cancelled, 0));
                ended.duration_since(killer.join().unwrap()).as_nanos() as f64
            })
        };
        let values: Vec<_> = (1..=kills).map(|n| kill(Duration::from_micros(2_000 + 137 * n))).collect();
        let longest = values.iter().copied().fold(0.0, f64::max);
        let id = format!("crash_handling/kill_while_collecting/{mib}mb");
        let target = Some(("goal: 1 ms for each MiB", mib as f64 * 1e6));
        readings.push(Reading { id: format!("{id}/longest"), unit: "ns", values: vec![longest], target });
        readings.push(Reading { id, unit: "ns", values, target: None });
    }
    Ok(readings)
}

/// Little, so that the trap is what is measured.
const FUEL: u64 = 100;

fn succeed(spec: SandboxSpec<()>) -> Measure {
    timed_async(spec, async |spec| ready(spec).await)
}

async fn ready(spec: &SandboxSpec<()>) {
    let mut sandbox = spec.instantiate(()).await.unwrap();
    let ok = sandbox.typed::<(), ()>(&spec.export("ok").unwrap()).unwrap();
    sandbox.call(&ok, ()).await.unwrap();
}

async fn trap(spec: &SandboxSpec<()>) {
    let mut sandbox = spec.instantiate(()).await.unwrap();
    let divide = sandbox.typed::<(), ()>(&spec.export("divide-by-zero").unwrap()).unwrap();
    let crash = sandbox.call(&divide, ()).await.unwrap_err();
    assert_eq!(*crash.kind(), CrashKind::Trap { trap: TrapCode(Trap::IntegerDivisionByZero) });
}

async fn raw_call(pre: &InstancePre<()>, export: &str) -> (Store<()>, Result<(), wasmtime::Error>) {
    let mut store = bare::store(pre.engine(), ());
    let instance = pre.instantiate_async(&mut store).await.unwrap();
    let func = instance.get_typed_func::<(), ()>(&mut store, export).unwrap();
    let result = func.call_async(&mut store, ()).await;
    (store, result)
}

async fn raw_trap(pre: &InstancePre<()>) -> (Store<()>, wasmtime::Error) {
    let (store, result) = raw_call(pre, "divide-by-zero").await;
    let error = result.unwrap_err();
    assert_eq!(error.downcast_ref(), Some(&Trap::IntegerDivisionByZero));
    (store, error)
}

/// What it takes to free everything. Nothing is deferred: the pool decommits slot by slot (`decommit_batch_size` is 1), so
/// the time on the calling path is all of it.
fn cleanup(suite: &mut Suite) {
    suite
        .bench("crash_handling/resource_cleanup/cleanup_after_success", || drop_of_live(TRAPS, "ok"))
        .target("guide", Duration::from_micros(1))
        .twin("raw", None, || {
            let pre = bare::raw(TRAPS);
            dropped(move || {
                let pre = pre.clone();
                async move { raw_call(&pre, "ok").await.0 }
            })
        })
        // What is left when there is no page of memory to be zeroed.
        .and("crash_handling/resource_cleanup/cleanup_without_memory", || drop_of_live(SPIN, "ok"));
    // A crash frees the sandbox before the call returns, so what it takes is told by what the call takes beyond a bare
    // one whose store is kept.
    const ID: &str = "crash_handling/resource_cleanup/cleanup_after_trap";
    suite
        .bench("crash_handling/resource_cleanup/trap_and_cleanup", || {
            timed_async(guests::spec(TRAPS), async |spec| trap(spec).await)
        })
        .and("raw/crash_handling/resource_cleanup/trap_without_cleanup", || {
            let pre = bare::raw(TRAPS);
            let runtime = runtime();
            Box::new(move |iterations| {
                let mut taken = Duration::ZERO;
                for _ in 0..iterations {
                    let started = Instant::now();
                    let kept = runtime.block_on(raw_trap(&pre));
                    taken += started.elapsed();
                    drop(kept);
                }
                taken
            })
        })
        .difference(
            ID,
            "crash_handling/resource_cleanup/trap_and_cleanup",
            "raw/crash_handling/resource_cleanup/trap_without_cleanup",
            ("guide", 1_000.0),
        )
        .and(&format!("raw/{ID}"), || {
            let pre = bare::raw(TRAPS);
            dropped(move || {
                let pre = pre.clone();
                async move { raw_trap(&pre).await.0 }
            })
        });
}

/// Times dropping sandboxes that were called.
fn drop_of_live(component: &str, export: &'static str) -> Measure {
    let spec = guests::spec(component);
    dropped(move || {
        let spec = spec.clone();
        async move {
            let mut sandbox = spec.instantiate(()).await.unwrap();
            let func = sandbox.typed::<(), ()>(&spec.export(export).unwrap()).unwrap();
            sandbox.call(&func, ()).await.unwrap().1
        }
    })
}

/// Times dropping things; making them is left out.
fn dropped<R, F: Future<Output = R>>(make: impl Fn() -> F + 'static) -> Measure {
    let runtime = runtime();
    Box::new(move |iterations| {
        let mut taken = Duration::ZERO;
        for _ in 0..iterations {
            let thing = runtime.block_on(make());
            let started = Instant::now();
            drop(thing);
            taken += started.elapsed();
        }
        taken
    })
}
