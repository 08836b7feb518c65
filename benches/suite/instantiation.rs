//! Instantiation: from nothing, from an engine, by code size, and from a linked component.

use crate::guests;
use airssys_wasm_engine::{EngineConfig, Profile, WasmEngine};
use airssys_wasm_fixtures::{ADD, MINIMAL, with_code};
use airssys_wasm_harness::{Measure, Reading, Suite, timed_async};
use airssys_wasm_isolation::SandboxSpec;
use airssys_wasm_measurements::stats::quantile;
use airssys_wasm_twins::bare::{self, binary, config, engine};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use wasmtime::{
    Config, Engine,
    component::{Component, Linker},
};

pub(crate) fn describe(suite: &mut Suite) {
    suite
        .bench("instantiation/cold_start/minimal_component", || {
            timed_async(binary(MINIMAL), async |bytes| {
                let engine = WasmEngine::new(EngineConfig::default().compile_in_process()).unwrap();
                from_bytes(&engine, bytes, 42).await;
            })
        })
        .target("guide", Duration::from_millis(10))
        .twin("raw", None, || {
            timed_async((binary(MINIMAL), config()), async |state: &mut (Vec<u8>, Config)| {
                raw_from_bytes(&Engine::new(&state.1).unwrap(), &state.0, 42).await;
            })
        });
    suite
        .bench("instantiation/warm_start/minimal_component", || warm(MINIMAL.to_owned(), 42))
        .target("guide", Duration::from_millis(1))
        .twin("raw", None, || raw_warm(MINIMAL.to_owned(), 42));
    for (name, bytes) in [("1kb", 1_000), ("10kb", 10_000), ("100kb", 100_000)] {
        let functions = (bytes / 35) as i32;
        suite.bench(&format!("instantiation/size_scaling/{name}"), move || warm(with_code(bytes), functions)).twin(
            "raw",
            None,
            move || raw_warm(with_code(bytes), functions),
        );
    }
    suite
        .bench("instantiation/prelinked/minimal_component", || {
            timed_async(guests::spec(MINIMAL), async |spec| drop(spec.instantiate(()).await.unwrap()))
        })
        .twin("raw", None, || {
            timed_async(bare::raw(MINIMAL), async |pre| {
                let mut store = bare::store(pre.engine(), ());
                pre.instantiate_async(&mut store).await.unwrap();
            })
        });
    suite.reading("instantiation/neighbour_delay", neighbour_delay);
}

fn warm(component: String, expected: i32) -> Measure {
    timed_async(binary(component), async move |bytes: &mut Vec<u8>| from_bytes(engine(), bytes, expected).await)
}

fn raw_warm(component: String, expected: i32) -> Measure {
    let engine = engine().wasmtime(Profile::Plain).unwrap();
    timed_async(binary(component), async move |bytes: &mut Vec<u8>| raw_from_bytes(engine, bytes, expected).await)
}

/// Load, compile, link, instantiate and call once. Nothing keeps the component, so each time compiles.
async fn from_bytes(engine: &WasmEngine, bytes: &[u8], expected: i32) {
    let component = engine.load_blocking(bytes, Profile::Plain).unwrap();
    let spec = SandboxSpec::new(component.link(&component.linker()).unwrap(), guests::limits()).unwrap();
    let mut sandbox = spec.instantiate(()).await.unwrap();
    let run = sandbox.typed::<(), (i32,)>(&spec.export("run").unwrap()).unwrap();
    assert_eq!(sandbox.call(&run, ()).await.unwrap().0, (expected,));
}

async fn raw_from_bytes(engine: &Engine, bytes: &[u8], expected: i32) {
    let component = Component::new(engine, bytes).unwrap();
    let pre = Linker::new(engine).instantiate_pre(&component).unwrap();
    let mut store = bare::store(engine, ());
    let instance = pre.instantiate_async(&mut store).await.unwrap();
    let run = instance.get_typed_func::<(), (i32,)>(&mut store, "run").unwrap();
    assert_eq!(run.call_async(&mut store, ()).await.unwrap(), (expected,));
}

/// How long a yield and a warm call take, over and over, on two workers, while nothing else happens and while a large
/// component compiles.
fn neighbour_delay(quick: bool) -> anyhow::Result<Vec<Reading>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build()?;
    let large = binary(with_code(if quick { 400_000 } else { 2_000_000 }));
    let idle = runtime.block_on(latencies(Arc::new(AtomicBool::new(false)), Duration::from_millis(500)))?;
    let mut compiling = Vec::new();
    for _ in 0..if quick { 1 } else { 3 } {
        let done = Arc::new(AtomicBool::new(false));
        let neighbour = runtime.spawn(latencies(Arc::clone(&done), Duration::from_secs(60)));
        let large = large.clone();
        runtime.block_on(async move { engine().load(large, Profile::Plain).await.map(drop) })?;
        done.store(true, Ordering::Relaxed);
        compiling.extend(runtime.block_on(neighbour)??);
    }
    // The kernel's time slice, which is what one more runnable thread than cores can cost.
    let slice = 4e6;
    let reading = |name: &str, sorted: &[f64], share, target| Reading {
        id: format!("instantiation/neighbour_delay/{name}"),
        unit: "ns",
        values: vec![quantile(sorted, share)],
        target,
    };
    let sorted = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values
    };
    let (idle, compiling) = (sorted(idle), sorted(compiling));
    Ok(vec![
        reading("idle_p50", &idle, 0.5, None),
        reading("idle_p99", &idle, 0.99, None),
        reading("compiling_p50", &compiling, 0.5, None),
        reading("compiling_p99", &compiling, 0.99, Some(("goal", slice))),
        reading("compiling_max", &compiling, 1.0, None),
    ])
}

/// Calls a warm component over and over, giving the worker away in between, until told to end.
async fn latencies(done: Arc<AtomicBool>, longest: Duration) -> anyhow::Result<Vec<f64>> {
    let spec = guests::spec(ADD);
    let mut sandbox = spec.instantiate(()).await?;
    let add = sandbox.typed::<(i32, i32), (i32,)>(&spec.export("add")?)?;
    let begun = Instant::now();
    let mut latencies = Vec::new();
    while !done.load(Ordering::Relaxed) && begun.elapsed() < longest {
        let started = Instant::now();
        tokio::task::yield_now().await;
        let (sum, back) = sandbox.call(&add, (20, 22)).await?;
        assert_eq!(sum, (42,));
        sandbox = back;
        latencies.push(started.elapsed().as_nanos() as f64);
    }
    Ok(latencies)
}
