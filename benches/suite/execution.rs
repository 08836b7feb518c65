//! Execution: what a warm call costs, how fast the code is, and what each kind of interruption adds.

use std::{hint::black_box, time::Duration};

use crate::guests;
use airssys_wasm_fixtures::{ADD, COMPUTE, TRAPS};
use airssys_wasm_harness::{Measure, Suite, now, timed, timed_async};
use airssys_wasm_twins::bare::{self, config};
use wasmtime::{
    Engine,
    component::{InstancePre, Lift, Lower},
};

pub(crate) fn describe(suite: &mut Suite) {
    minimal_overhead(suite);
    call_with(suite);
    compute(suite);
    cost_of_limits(suite);
    traps(suite);
}

fn minimal_overhead(suite: &mut Suite) {
    const ID: &str = "execution/minimal_overhead/wasm_add";
    const NATIVE: &str = "execution/minimal_overhead/native_add";
    suite
        .bench(ID, || {
            let (sandbox, add) = guests::sandbox::<(i32, i32), (i32,)>(ADD, "add");
            timed_async((Some(sandbox), add), async |(sandbox, add)| {
                let live = sandbox.take().expect("put back below");
                let ((sum,), live) = live.call(add, (black_box(42), black_box(42))).await.unwrap();
                assert_eq!(sum, 84);
                *sandbox = Some(live);
            })
        })
        .target("guide: call overhead", Duration::from_nanos(100))
        .twin("raw", 1.25, || raw_add(bare::raw(ADD)))
        // Two and a half times faster.
        .twin("default", 0.4, || raw_add(bare::pre(bare::default_engine(), ADD)))
        .and(NATIVE, || {
            #[inline(never)]
            fn add(a: i32, b: i32) -> i32 {
                a.wrapping_add(b)
            }
            timed(|| assert_eq!(add(black_box(42), black_box(42)), 84))
        })
        // The guide's 5 % over native.
        .ratio(ID, NATIVE, 1.05);
}

fn raw_add(pre: InstancePre<()>) -> Measure {
    let (store, add) = bare::instance::<(i32, i32), (i32,)>(&pre, "add");
    timed_async((store, add), async |(store, add)| {
        assert_eq!(add.call_async(&mut *store, (black_box(42), black_box(42))).await.unwrap(), (84,));
    })
}

/// The world of [`ADD`].
mod adder {
    wasmtime::component::bindgen!({
        inline: "package fixture:add; world adder { export add: func(a: s32, b: s32) -> s32; }",
        exports: { default: async },
    });
}

use adder::Adder;

/// Warm calls by generated bindings, which are made once.
fn call_with(suite: &mut Suite) {
    suite
        .bench("isolation/call_with", || {
            let sandbox = now(guests::spec(ADD).instantiate(())).unwrap();
            let made = sandbox.call_with(async |mut store, instance| Adder::new(&mut store, &instance));
            let (adder, sandbox) = now(made).unwrap();
            timed_async((Some(sandbox), adder), async |(sandbox, adder)| {
                let live = sandbox.take().expect("put back below");
                let called =
                    live.call_with(async |mut store, _| adder.call_add(&mut store, black_box(42), black_box(42)).await);
                let (sum, live) = called.await.unwrap();
                assert_eq!(sum, 84);
                *sandbox = Some(live);
            })
        })
        .twin("raw", 1.1, || {
            let pre = bare::raw(ADD);
            let mut store = bare::store(pre.engine(), ());
            let instance = now(pre.instantiate_async(&mut store)).unwrap();
            let adder = Adder::new(&mut store, &instance).unwrap();
            timed_async((store, adder), async |(store, adder)| {
                assert_eq!(adder.call_add(&mut *store, black_box(42), black_box(42)).await.unwrap(), 84);
            })
        });
}

/// A warm call of a function of one number in a sandbox.
fn called<R>(export: &str, argument: u32, expected: R) -> Measure
where
    R: Lift + PartialEq + std::fmt::Debug + Send + Sync + Copy + 'static,
    (R,): wasmtime::component::ComponentNamedList + Lift,
{
    let (sandbox, func) = guests::sandbox::<(u32,), (R,)>(COMPUTE, export);
    timed_async((Some(sandbox), func), async move |(sandbox, func)| {
        let live = sandbox.take().expect("put back below");
        let (answer, live) = live.call(func, (black_box(argument),)).await.unwrap();
        assert_eq!(answer, (expected,));
        *sandbox = Some(live);
    })
}

/// The same on a bare engine.
fn raw_called<R>(pre: &InstancePre<()>, export: &str, argument: u32, expected: R) -> Measure
where
    R: Lift + PartialEq + std::fmt::Debug + Send + Sync + Copy + 'static,
    (u32,): Lower,
    (R,): wasmtime::component::ComponentNamedList + Lift,
{
    let (mut store, func) = bare::instance::<(u32,), (R,)>(pre, export);
    if store.engine().get_consume_fuel() {
        store.set_fuel(u64::MAX).expect("metered");
    }
    timed_async((store, func), async move |(store, func)| {
        assert_eq!(func.call_async(&mut *store, (black_box(argument),)).await.unwrap(), (expected,));
    })
}

fn fib(n: u32) -> u64 {
    let (mut a, mut b) = (0_u64, 1_u64);
    for _ in 0..n {
        (a, b) = (b, black_box(a.wrapping_add(b)));
    }
    a
}

fn compute(suite: &mut Suite) {
    for (n, expected) in [(10, 55_u64), (20, 6_765), (30, 832_040)] {
        suite
            .bench(&format!("execution/compute_heavy/fib_{n}"), move || called("fib", n, expected))
            .twin("raw", None, move || raw_called(&bare::raw(COMPUTE), "fib", n, expected))
            .twin("native", None, move || timed(move || assert_eq!(fib(black_box(n)), expected)));
    }
    const VALUES: u32 = 10_000;
    suite
        .bench("execution/memory_intensive/fill_memory", || called("fill", VALUES, VALUES - 1))
        .twin("raw", None, || raw_called(&bare::raw(COMPUTE), "fill", VALUES, VALUES - 1))
        .twin("native", None, || {
            let mut values = vec![0_u32; VALUES as usize];
            timed(move || {
                for (i, value) in values.iter_mut().enumerate() {
                    *value = i as u32;
                }
                let values = black_box(&values);
                assert_eq!(values[0] + values[VALUES as usize - 1], VALUES - 1);
            })
        });
}

/// A bare engine like ours but for how it interrupts. On demand, so that many fit in one process.
fn engine_with(epoch: bool, fuel: bool, signals: bool) -> Engine {
    let mut config = config();
    config
        .epoch_interruption(epoch)
        .consume_fuel(fuel)
        .signals_based_traps(signals)
        .allocation_strategy(wasmtime::InstanceAllocationStrategy::OnDemand);
    Engine::new(&config).expect("a valid configuration")
}

fn cost_of_limits(suite: &mut Suite) {
    const STEPS: u32 = 10_000;
    let lcg = (0..STEPS).fold(1_u32, |x, _| x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223));
    for (guest, expected) in [("tight", Some(STEPS * (STEPS + 1) / 2)), ("calls", Some(lcg)), ("scatter", None)] {
        // (name, epoch, fuel, signals)
        let kinds = [
            ("none", false, false, true),
            ("epoch", true, false, true),
            ("fuel", false, true, true),
            ("both", true, true, true),
            ("epoch_no_signals", true, false, false),
        ];
        let id = |kind: &str| format!("execution/limits/{guest}/{kind}");
        let measure = move |epoch, fuel, signals| -> Measure {
            let pre = bare::pre(&engine_with(epoch, fuel, signals), COMPUTE);
            match expected {
                Some(expected) => raw_called(&pre, guest, STEPS, expected),
                // What it gives depends on what it found in memory.
                None => {
                    let (mut store, scatter) = bare::instance::<(u32,), (u32,)>(&pre, guest);
                    if fuel {
                        store.set_fuel(u64::MAX).expect("metered");
                    }
                    let first = now(scatter.call_async(&mut store, (STEPS,))).unwrap();
                    let second = now(scatter.call_async(&mut store, (STEPS,))).unwrap();
                    assert_ne!(first, second, "memory is kept");
                    timed_async((store, scatter), async |(store, scatter)| {
                        scatter.call_async(&mut *store, (black_box(STEPS),)).await.unwrap()
                    })
                }
            }
        };
        let group = suite.bench(&id("none"), move || measure(false, false, true));
        for (kind, epoch, fuel, signals) in kinds.into_iter().skip(1) {
            group.and(&id(kind), move || measure(epoch, fuel, signals)).ratio(&id(kind), &id("none"), None);
        }
        group.ratio(&id("epoch_no_signals"), &id("epoch"), None);
    }
}

/// What a trap costs on a bare engine, with and without signals.
fn traps(suite: &mut Suite) {
    let trap = |signals| -> Measure {
        let pre = bare::pre(&engine_with(true, false, signals), TRAPS);
        let index = pre.component().get_export_index(None, "divide-by-zero").expect("the export");
        timed_async((pre, index), async |(pre, index)| {
            let mut store = bare::store(pre.engine(), ());
            let instance = pre.instantiate_async(&mut store).await.unwrap();
            let divide = instance.get_typed_func::<(), ()>(&mut store, &*index).unwrap();
            divide.call_async(&mut store, ()).await.unwrap_err();
        })
    };
    suite
        .bench("execution/limits/trap/no_signals", move || trap(false))
        .and("execution/limits/trap/signals", move || trap(true))
        .ratio("execution/limits/trap/no_signals", "execution/limits/trap/signals", None);
}
