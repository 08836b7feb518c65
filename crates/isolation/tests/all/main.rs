//! Sandboxes on real guests: each limit seen to fire with a control that passes, each kind of crash, each grant.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod advisories;
mod call_with;
mod calls;
mod collected;
mod crashes;
mod ecosystem;
mod files;
#[cfg(unix)]
mod folders;
mod free;
mod inline;
mod keyvalue;
mod limits;
mod manifest;
mod probe;
mod several;
mod sockets;
mod tasks;
mod time;
mod unwinding;
mod wasi;
mod wasi3;
mod wasi3_files;
mod wasi3_general;
mod wasi3_sockets;
mod wasi_bounds;

use std::{sync::Arc, time::Duration};

use airssys_wasm_engine::{EngineConfig, Linker, Profile, WasmEngine, wasmtime::component::Accessor};
use airssys_wasm_isolation::{Crash, HostState, InstantiateError, Sandbox, SandboxSpec, add_wasi};
use airssys_wasm_limits::{ByteSize, ResourceLimits, give_way};
use tokio::sync::Notify;

/// What the host functions of the tests share with them.
#[derive(Clone, Default)]
struct Host {
    /// What `wait` waits for.
    gate: Arc<Notify>,
    /// Notified whenever a guest begins to wait.
    waiting: Arc<Notify>,
    steps: u32,
    /// Whether each step leaves a resource in the host's table.
    step_makes_resource: bool,
    /// How many epochs end during each step.
    ticks_in_step: Option<(WasmEngine, u32)>,
    /// Whether `wait-async` waits for the gate when they have ended.
    waits_after_ticks: bool,
    /// How much time passes by hand during each step.
    time_in_step: Option<(WasmEngine, Duration)>,
    wait: Wait,
    taken: u64,
    lines: Vec<String>,
}

/// What the host function `wait` does.
#[derive(Clone, Copy, Default)]
enum Wait {
    #[default]
    ForGate,
    /// For a second of paused time, and leaves nothing of tokio's budget for whoever comes next.
    UsingUpTheBudget,
    ForeverAndPanicOnDrop,
    /// For other tasks, after as many epochs as each step ends.
    GivingWay,
    /// Until all other tasks of the worker had their turn.
    GivesWay,
    /// The same, after work that takes as long as a step.
    WorksAndGivesWay,
    /// The same without end: the guest never comes to a place where it is held against its CPU time.
    WorksWithoutEnd,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the host function refuses")]
struct HostRefuses;

fn engine() -> WasmEngine {
    WasmEngine::new(EngineConfig::small().compile_in_process().with_manual_ticks()).unwrap()
}

fn limits() -> ResourceLimits {
    ResourceLimits::with_memory(ByteSize::mib(64))
}

fn spec_in(engine: &WasmEngine, component: &[u8], profile: Profile, limits: ResourceLimits) -> SandboxSpec<Host> {
    let binary = wat::parse_bytes(component).unwrap();
    let component = engine.load_blocking(&binary, profile).unwrap();
    let mut linker = component.linker();
    define_host(&mut linker);
    if component.features().component_async {
        let wait_async = |tasks: &Accessor<HostState<Host>>| {
            let Host { gate, waiting, ticks_in_step, waits_after_ticks, .. } =
                tasks.with(|mut store| store.data_mut().ext.clone());
            async move {
                if let Some((engine, ticks)) = ticks_in_step {
                    (0..ticks).for_each(|_| engine.tick());
                    if !waits_after_ticks {
                        tokio::task::yield_now().await;
                        return Ok(());
                    }
                }
                waiting.notify_one();
                gate.notified().await;
                Ok(())
            }
        };
        linker.root().func_wrap_concurrent("wait-async", move |tasks, (): ()| Box::pin(wait_async(tasks))).unwrap();
    }
    add_wasi(&mut linker).unwrap();
    SandboxSpec::new(component.link(&linker).unwrap(), limits).unwrap()
}

fn spec(component: impl AsRef<[u8]>, limits: ResourceLimits) -> SandboxSpec<Host> {
    spec_in(&engine(), component.as_ref(), Profile::Plain, limits)
}

async fn sandbox(component: impl AsRef<[u8]>, limits: ResourceLimits) -> (SandboxSpec<Host>, Sandbox<Host>) {
    let spec = spec(component, limits);
    let sandbox = spec.instantiate(Host::default()).await.unwrap();
    (spec, sandbox)
}

fn define_host(linker: &mut Linker<HostState<Host>>) {
    let mut root = linker.root();
    root.func_wrap_async("wait", |mut store, (): ()| {
        let Host { gate, waiting, wait, ticks_in_step, time_in_step, .. } = store.data().ext.clone();
        Box::new(async move {
            match wait {
                Wait::GivesWay => tokio::task::yield_now().await,
                Wait::WorksWithoutEnd => {
                    let (engine, time) = time_in_step.unwrap();
                    loop {
                        engine.pass_time(time);
                        tokio::task::yield_now().await;
                    }
                }
                Wait::WorksAndGivesWay => {
                    let (engine, time) = time_in_step.unwrap();
                    engine.pass_time(time);
                    tokio::task::yield_now().await;
                }
                Wait::ForGate => {
                    waiting.notify_one();
                    gate.notified().await;
                }
                Wait::UsingUpTheBudget => {
                    tokio::time::advance(Duration::from_secs(1)).await;
                    while tokio::task::coop::has_budget_remaining() {
                        tokio::task::coop::consume_budget().await;
                    }
                    tokio::task::yield_now().await;
                }
                Wait::GivingWay => {
                    if let Some((engine, ticks)) = ticks_in_step {
                        (0..ticks).for_each(|_| engine.tick());
                    }
                    give_way(&mut store).await?;
                }
                Wait::ForeverAndPanicOnDrop => {
                    struct PanicsOnDrop;
                    impl Drop for PanicsOnDrop {
                        fn drop(&mut self) {
                            panic!("dropped");
                        }
                    }
                    let _guard = PanicsOnDrop;
                    std::future::pending::<()>().await;
                }
            }
            Ok(())
        })
    })
    .unwrap();
    root.func_wrap("step", |mut store, (): ()| {
        let host = &mut store.data_mut().ext;
        host.steps += 1;
        let steps = host.steps;
        if let Some((engine, ticks)) = &host.ticks_in_step {
            (0..*ticks).for_each(|_| engine.tick());
        }
        if let Some((engine, time)) = &host.time_in_step {
            engine.pass_time(*time);
        }
        if host.step_makes_resource {
            store.data_mut().table().push("a resource")?;
        }
        Ok((steps,))
    })
    .unwrap();
    root.func_wrap("fail", |_, (): ()| -> Result<(), _> { Err(HostRefuses.into()) }).unwrap();
    root.func_wrap("panic", |_, (): ()| -> Result<(), _> { panic!("host function out of order") }).unwrap();
    root.func_wrap("take", |mut store, (bytes,): (Vec<u8>,)| {
        store.data_mut().ext.taken += bytes.len() as u64;
        Ok(())
    })
    .unwrap();
    let mut host = linker.instance("fixture:guest/host@1.0.0").unwrap();
    host.func_wrap_async("wait", |store, (): ()| {
        let Host { gate, waiting, .. } = store.data().ext.clone();
        Box::new(async move {
            waiting.notify_one();
            gate.notified().await;
            Ok(())
        })
    })
    .unwrap();
    host.func_wrap("log", |mut store, (line,): (String,)| {
        store.data_mut().ext.lines.push(line);
        Ok(())
    })
    .unwrap();
}

/// Calls `name` with one number or none and gives what `u32` it returns, if it returns one.
async fn call(
    spec: &SandboxSpec<Host>,
    mut sandbox: Sandbox<Host>,
    name: &str,
    argument: Option<u32>,
) -> Result<Sandbox<Host>, Crash> {
    use airssys_wasm_engine::wasmtime::component::Val;
    let export = sandbox.dynamic(&spec.export(name).unwrap()).unwrap();
    let arguments: Vec<_> = argument.into_iter().map(Val::U32).collect();
    match sandbox.call_dynamic(&export, &arguments).await {
        Ok((_, sandbox)) => Ok(sandbox),
        Err(airssys_wasm_isolation::DynamicCallError::Crash(crash)) => Err(crash),
        Err(other) => panic!("{other}"),
    }
}

async fn start_crash(spec: &SandboxSpec<Host>) -> Crash {
    match spec.instantiate(Host::default()).await {
        Err(InstantiateError::Crash(crash)) => crash,
        other => panic!("{other:?}"),
    }
}
