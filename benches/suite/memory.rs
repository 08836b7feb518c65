//! Memory: what instances of different sizes and numbers take, in time and in bytes, and what the limit costs.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use crate::guests;
use airssys_wasm_engine::{EngineConfig, Profile, WasmEngine};
use airssys_wasm_fixtures::{GROW, MINIMAL, with_memory};
use airssys_wasm_harness::{Measure, Reading, Suite, now, runtime, timed_async};
use airssys_wasm_isolation::{Sandbox, SandboxSpec};
use airssys_wasm_measurements::{Kind, process};
use airssys_wasm_twins::bare::{self, engine};
use anyhow::Context;
use wasmtime::{Store, component::InstancePre};

pub(crate) fn describe(suite: &mut Suite) {
    for (name, pages, goal) in [("64kb", 1, Some(1.1)), ("512kb", 8, None), ("1mb", 16, None), ("2mb", 32, None)] {
        suite
            .bench(&format!("memory/footprint/{name}"), move || {
                timed_async(guests::spec(&with_memory(pages)), async |spec| one(spec).await)
            })
            .twin("raw", goal, move || timed_async(bare::raw(&with_memory(pages)), async |pre| raw_one(pre).await));
    }
    for n in [1, 10, 50] {
        suite
            .bench(&format!("memory/scaling/{n}_components"), move || {
                concurrently(n, guests::spec(MINIMAL), |spec| async move { one(&spec).await })
            })
            .twin("raw", None, move || concurrently(n, bare::raw(MINIMAL), |pre| async move { raw_one(&pre).await }));
    }
    for n in [1, 5, 10, 25, 50] {
        suite
            .bench(&format!("memory/linear_scaling/{n}_sequential"), move || {
                timed_async(guests::spec(MINIMAL), async move |spec| {
                    let mut live = Vec::with_capacity(n);
                    for _ in 0..n {
                        live.push(one(spec).await);
                    }
                })
            })
            .twin("raw", None, move || {
                timed_async(bare::raw(MINIMAL), async move |pre| {
                    let mut live = Vec::with_capacity(n);
                    for _ in 0..n {
                        live.push(raw_one(pre).await);
                    }
                })
            });
    }
    growth(suite);
    suite.reading("memory/resident, memory/virtual", bytes);
    suite.sample("memory/resident/1000", Kind::Bytes, || Box::new(|| each_takes(1_000).map(|[resident, _]| resident)));
}

/// A component that was instantiated and called.
async fn one(spec: &SandboxSpec<()>) -> Sandbox<()> {
    let mut sandbox = spec.instantiate(()).await.unwrap();
    let run = sandbox.typed::<(), (i32,)>(&spec.export("run").unwrap()).unwrap();
    let (answer, sandbox) = sandbox.call(&run, ()).await.unwrap();
    assert_eq!(answer, (42,));
    sandbox
}

async fn raw_one(pre: &InstancePre<()>) -> Store<()> {
    let mut store = bare::store(pre.engine(), ());
    let instance = pre.instantiate_async(&mut store).await.unwrap();
    let run = instance.get_typed_func::<(), (i32,)>(&mut store, "run").unwrap();
    assert_eq!(run.call_async(&mut store, ()).await.unwrap(), (42,));
    store
}

/// As many tasks, each with a component of its own, and all alive until the last is done.
fn concurrently<T, R, F>(n: usize, shared: T, one: impl Fn(T) -> F + 'static) -> Measure
where
    T: Clone + 'static,
    F: Future<Output = R> + Send + 'static,
    R: Send + 'static,
{
    timed_async(shared, async move |shared| {
        let tasks: Vec<_> = (0..n).map(|_| tokio::spawn(one(shared.clone()))).collect();
        all(tasks).await
    })
}

async fn all<R>(tasks: Vec<tokio::task::JoinHandle<R>>) -> Vec<R> {
    let mut done = Vec::with_capacity(tasks.len());
    for task in tasks {
        done.push(task.await.unwrap());
    }
    done
}

/// Growth by a page. A sandbox grows as often as its limit allows, and is then replaced outside the time taken.
fn growth(suite: &mut Suite) {
    const ID: &str = "memory/limit_enforcement/memory_grow_within_limit";
    const PAGES: u64 = 1_000;
    suite
        .bench(ID, || {
            let spec = guests::spec(GROW);
            let export = spec.export("grow").unwrap();
            let runtime = runtime();
            Box::new(move |mut iterations| {
                let mut taken = Duration::ZERO;
                while iterations > 0 {
                    let batch = iterations.min(PAGES);
                    iterations -= batch;
                    taken += runtime.block_on(async {
                        let mut sandbox = spec.instantiate(()).await.unwrap();
                        let grow = sandbox.typed::<(u32,), (i32,)>(&export).unwrap();
                        let started = Instant::now();
                        for before in 1..=batch {
                            let ((found,), back) = sandbox.call(&grow, (1,)).await.unwrap();
                            assert_eq!(found as u64, before);
                            sandbox = back;
                        }
                        started.elapsed()
                    });
                }
                taken
            })
        })
        .twin("raw", None, || raw_growth(false))
        .and("raw_with_calls/memory/limit_enforcement/memory_grow_within_limit", || raw_growth(true))
        .difference(
            "memory/limit_enforcement/check",
            "raw_with_calls/memory/limit_enforcement/memory_grow_within_limit",
            "raw/memory/limit_enforcement/memory_grow_within_limit",
            ("goal", 50.0),
        );

    /// With our limiter on an otherwise bare store, or without any.
    fn raw_growth(limited: bool) -> Measure {
        struct Data(Option<airssys_wasm_limits::Meter>);
        let pre_of = || {
            let engine = engine().wasmtime(Profile::Plain).unwrap();
            let component = wasmtime::component::Component::new(engine, bare::binary(GROW)).unwrap();
            wasmtime::component::Linker::<Data>::new(engine).instantiate_pre(&component).unwrap()
        };
        let pre = pre_of();
        let quota = guests::spec(GROW).quota().clone();
        let index = pre.component().get_export_index(None, "grow").unwrap();
        let runtime = runtime();
        Box::new(move |mut iterations| {
            let mut taken = Duration::ZERO;
            while iterations > 0 {
                let batch = iterations.min(PAGES);
                iterations -= batch;
                taken += runtime.block_on(async {
                    let meter = limited.then(|| airssys_wasm_limits::Meter::new(quota.clone(), None));
                    let mut store = Store::new(pre.engine(), Data(meter));
                    store.set_epoch_deadline(1 << 40);
                    if limited {
                        store.limiter(|data| data.0.as_mut().expect("limited"));
                    }
                    let instance = pre.instantiate_async(&mut store).await.unwrap();
                    let grow = instance.get_typed_func::<(u32,), (i32,)>(&mut store, &index).unwrap();
                    let started = Instant::now();
                    for before in 1..=batch {
                        let (found,) = grow.call_async(&mut store, (1,)).await.unwrap();
                        assert_eq!(found as u64, before);
                    }
                    started.elapsed()
                });
            }
            taken
        })
    }
}

const PROBE: &str = "--live";

/// What each of so many live components takes, in a process of its own: resident bytes, and bytes of address space.
fn each_takes(live: usize) -> anyhow::Result<[f64; 2]> {
    let output = Command::new(std::env::current_exe()?).args([PROBE, &live.to_string()]).output()?;
    anyhow::ensure!(output.status.success(), "{live} components: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    let figures = text.split_whitespace().map(str::parse).collect::<Result<Vec<f64>, _>>()?;
    figures.try_into().map_err(|_| anyhow::anyhow!("not two figures: {text}"))
}

/// Bytes for each live component, in a process of its own for each number of them.
fn bytes(quick: bool) -> anyhow::Result<Vec<Reading>> {
    let mut readings = Vec::new();
    for live in [1, 10, 50, 1_000, 10_000] {
        let (mut resident, mut virtual_) = (Vec::new(), Vec::new());
        for _ in 0..if quick { 1 } else { 5 } {
            let [each_resident, each_virtual] = each_takes(live)?;
            resident.push(each_resident);
            virtual_.push(each_virtual);
        }
        let limits: &[(&str, f64)] = match live {
            // A page more or less decides where there are few.
            1_000 | 10_000 => &[("goal", 16.0 * 1024.0)],
            50 => &[("guide", 512.0 * 1024.0)],
            _ => &[],
        };
        let target = limits.first().copied();
        readings.push(Reading { id: format!("memory/resident/{live}"), unit: "bytes", values: resident, target });
        readings.push(Reading { id: format!("memory/virtual/{live}"), unit: "bytes", values: virtual_, target: None });
    }
    Ok(readings)
}

/// What a process of its own is started for, if these are the arguments of one.
pub(crate) fn probe(arguments: &[String]) -> Option<anyhow::Result<()>> {
    let [flag, live] = arguments else { return None };
    (flag == PROBE).then(|| live_components(live.parse()?))
}

/// Makes so many components, calls each, and prints what each of them added to the process.
fn live_components(live: usize) -> anyhow::Result<()> {
    let config = if live > 1_000 {
        EngineConfig::large().compile_in_process()
    } else {
        EngineConfig::default().compile_in_process()
    };
    let engine = WasmEngine::new(config)?;
    let template = guests::template(&engine, MINIMAL, Profile::Plain);
    let spec = SandboxSpec::new(template, guests::limits())?;
    now(async {
        // What the first call of all needs once is not the components'.
        drop(one(&spec).await);
        let mut sandboxes = Vec::with_capacity(live);
        let before = process::read().context("this system does not tell how much memory a process has")?;
        for _ in 0..live {
            sandboxes.push(one(&spec).await);
        }
        let after = process::read().context("read above")?;
        let each = |after: u64, before: u64| (after as f64 - before as f64) / live as f64;
        println!("{} {}", each(after.resident, before.resident), each(after.virtual_, before.virtual_));
        eprintln!("{} mappings", after.mappings);
        drop(sandboxes);
        Ok(())
    })
}
