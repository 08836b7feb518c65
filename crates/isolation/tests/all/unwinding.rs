//! A guest in Rust whose panics unwind.

use std::time::Duration;

use airssys_wasm_engine::{
    CompileLimits, Complexity, EngineConfig, Feature, LoadError, Profile, WasmEngine, wasmtime::Trap,
};
use airssys_wasm_fixtures::UNWINDING;
use airssys_wasm_isolation::{Crash, CrashKind, Sandbox, SandboxSpec, TrapCode};
use airssys_wasm_limits::ResourceLimits;

use crate::{Host, call, limits, spec_in, time::Neighbour};

fn engine() -> WasmEngine {
    WasmEngine::new(EngineConfig::small().with_exceptions().compile_in_process().with_manual_ticks()).unwrap()
}

fn spec(limits: ResourceLimits) -> SandboxSpec<Host> {
    spec_in(&engine(), UNWINDING, Profile::Plain, limits)
}

async fn parse(
    spec: &SandboxSpec<Host>,
    mut sandbox: Sandbox<Host>,
    text: &str,
) -> Result<(Result<u32, String>, Sandbox<Host>), Crash> {
    let parse = sandbox.typed::<(String,), (Result<u32, String>,)>(&spec.export("parse").unwrap()).unwrap();
    let ((number,), sandbox) = sandbox.call(&parse, (text.to_owned(),)).await?;
    Ok((number, sandbox))
}

async fn catches(
    spec: &SandboxSpec<Host>,
    mut sandbox: Sandbox<Host>,
    times: u32,
    frames: u32,
) -> Result<(u32, Sandbox<Host>), Crash> {
    let catches = sandbox.typed::<(u32, u32), (u32,)>(&spec.export("catches").unwrap()).unwrap();
    let ((drops,), sandbox) = sandbox.call(&catches, (times, frames)).await?;
    Ok((drops, sandbox))
}

#[tokio::test]
async fn a_guest_survives_its_own_panic() {
    let spec = spec(limits());
    let sandbox = spec.instantiate(Host::default()).await.unwrap();
    let (number, sandbox) = parse(&spec, sandbox, "42").await.unwrap();
    assert_eq!(number, Ok(42));
    let (number, sandbox) = parse(&spec, sandbox, "forty-two").await.unwrap();
    assert_eq!(number, Err("`forty-two` is no number".to_owned()));
    let (number, _) = parse(&spec, sandbox, "43").await.unwrap();
    assert_eq!(number, Ok(43));
}

#[tokio::test]
async fn what_is_dropped_on_the_way_is_dropped_and_nothing_grows() {
    let spec = spec(limits());
    let mut sandbox = spec.instantiate(Host::default()).await.unwrap();
    let mut peak = None;
    for (times, frames) in [(1, 1), (1, 100), (100, 100), (10_000, 10)] {
        let drops;
        (drops, sandbox) = catches(&spec, sandbox, times, frames).await.unwrap();
        assert_eq!(drops, times * frames);
        assert_eq!(*peak.get_or_insert(sandbox.usage().memory_peak), sandbox.usage().memory_peak, "{times} {frames}");
    }
}

/// Rust lets no panic out of an export: it aborts there.
#[tokio::test]
async fn a_panic_that_nobody_catches_is_a_trap() {
    let spec = spec(limits());
    let sandbox = spec.instantiate(Host::default()).await.unwrap();
    let crash = call(&spec, sandbox, "panics", None).await.unwrap_err();
    assert_eq!(*crash.kind(), CrashKind::Trap { trap: TrapCode(Trap::UnreachableCodeReached) });
    let frames = format!("{:?}", crash.backtrace());
    assert!(frames.contains("panic_cannot_unwind"), "{frames}");
}

#[tokio::test]
async fn a_trap_is_not_caught() {
    let spec = spec(limits());
    let sandbox = spec.instantiate(Host::default()).await.unwrap();
    let crash = call(&spec, sandbox, "traps", None).await.unwrap_err();
    assert_eq!(*crash.kind(), CrashKind::Trap { trap: TrapCode(Trap::UnreachableCodeReached) });
}

#[tokio::test]
async fn who_panics_for_ever_is_stopped_and_others_have_their_turns() {
    let engine = engine();
    let limits = ResourceLimits { cpu_time: Duration::from_millis(5), ..limits() };
    let spec = spec_in(&engine, UNWINDING, Profile::Plain, limits);
    let sandbox = spec.instantiate(Host::default()).await.unwrap();
    let neighbour = Neighbour::spawn(&engine, || async {});
    let crash = catches(&spec, sandbox, u32::MAX, 10).await.map(|_| ()).unwrap_err();
    assert_eq!(*crash.kind(), CrashKind::CpuTime { allowed: 5 });
    neighbour.end().await;
}

#[tokio::test]
async fn metered_code_runs_out_of_fuel_by_panicking() {
    let limits = ResourceLimits { fuel: Some(1_000_000), ..limits() };
    let spec = spec_in(&engine(), UNWINDING, Profile::Metered, limits);
    let sandbox = spec.instantiate(Host::default()).await.unwrap();
    let (drops, sandbox) = catches(&spec, sandbox, 10, 10).await.unwrap();
    assert_eq!(drops, 100);
    let crash = catches(&spec, sandbox, u32::MAX, 10).await.map(|_| ()).unwrap_err();
    assert_eq!(*crash.kind(), CrashKind::OutOfFuel { allowed: 1_000_000 });
}

#[test]
fn an_engine_without_exceptions_says_what_is_missing() {
    let error = crate::engine().load_blocking(UNWINDING, Profile::Plain).unwrap_err();
    assert!(matches!(error, LoadError::Unsupported { feature: Feature::Exceptions }), "{error}");
}

#[test]
fn it_is_well_within_the_limits_of_what_is_compiled() {
    let limits = CompileLimits::default();
    let found = Complexity::of(UNWINDING, &limits).unwrap();
    assert!(found.features.exceptions);
    assert!(found.function_work < limits.function_work / 10, "{found:?}");
    assert!(found.handlers < limits.handlers / 2, "{found:?}");
}
