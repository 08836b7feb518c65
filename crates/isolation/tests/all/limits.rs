//! Each limit: a guest that reaches it, and one that stays below.

use airssys_wasm_engine::{EngineConfig, Feature, LoadError, PoolConfig, Profile, WasmEngine};
use airssys_wasm_fixtures::{COMPUTE, GROW, HANDLES, HOST_CALLS, MINIMAL, VALUES, with_instances, with_memory};
use airssys_wasm_isolation::{CrashKind, InstantiateError, SandboxSpec};
use airssys_wasm_limits::{ByteSize, CallLimits, MemoryBudget, OnGrowthRefused, QuotaError, ResourceLimits};

use crate::{Host, call, engine, limits, sandbox, spec, spec_in, start_crash};

const PAGE: u64 = 65_536;

fn memory(pages: u64) -> ResourceLimits {
    ResourceLimits::with_memory(ByteSize(pages * PAGE))
}

async fn grow(limits: ResourceLimits, export: &str, by: u32) -> Result<i32, CrashKind> {
    let (spec, mut sandbox) = sandbox(GROW, limits).await;
    let grow = sandbox.typed::<(u32,), (i32,)>(&spec.export(export).unwrap()).unwrap();
    sandbox.call(&grow, (by,)).await.map(|((before,), _)| before).map_err(|crash| crash.kind().clone())
}

#[tokio::test]
async fn memory_grows_up_to_its_limit() {
    assert_eq!(grow(memory(4), "grow", 3).await, Ok(1));
    let crash = CrashKind::Memory { asked: 5 * PAGE, allowed: 4 * PAGE };
    assert_eq!(grow(memory(4), "grow", 4).await, Err(crash));
    // A refusal by the memory's own maximum is no crash, and counts for nothing.
    assert_eq!(grow(memory(4), "grow-bounded", 3).await, Ok(-1));
    assert_eq!(grow(memory(4), "grow", 70_000).await, Ok(-1));
}

#[tokio::test]
async fn the_limit_is_on_all_memories_together() {
    let (spec, mut sandbox) = sandbox(GROW, memory(3)).await;
    let first = sandbox.typed::<(u32,), (i32,)>(&spec.export("grow").unwrap()).unwrap();
    let second = sandbox.typed::<(u32,), (i32,)>(&spec.export("grow-bounded").unwrap()).unwrap();
    let (_, sandbox) = sandbox.call(&first, (1,)).await.unwrap();
    let (_, sandbox) = sandbox.call(&second, (1,)).await.unwrap();
    assert_eq!((sandbox.usage().memory, sandbox.usage().memory_peak), (3 * PAGE, 3 * PAGE));
    let crash = sandbox.call(&second, (1,)).await.unwrap_err();
    assert_eq!(*crash.kind(), CrashKind::Memory { asked: 4 * PAGE, allowed: 3 * PAGE });
    assert_eq!(crash.usage().memory, 3 * PAGE, "what it had until then");
}

#[tokio::test]
async fn a_guest_can_be_told_instead() {
    let limits = ResourceLimits { on_growth_refused: OnGrowthRefused::TellGuest, ..memory(4) };
    assert_eq!(grow(limits.clone(), "grow", 4).await, Ok(-1));
    assert_eq!(grow(limits, "grow", 3).await, Ok(1));
}

#[tokio::test]
async fn table_elements_are_limited() {
    let mut limits = limits();
    limits.table_elements = 100;
    assert_eq!(grow(limits.clone(), "grow-table", 99).await, Ok(1));
    assert_eq!(
        grow(limits.clone(), "grow-table", 100).await,
        Err(CrashKind::TableElements { asked: 101, allowed: 100 })
    );
    limits.on_growth_refused = OnGrowthRefused::TellGuest;
    assert_eq!(grow(limits, "grow-table", 100).await, Ok(-1));
}

#[tokio::test]
async fn instances_are_limited() {
    let mut limits = limits();
    limits.instances = 3;
    spec(with_instances(3), limits.clone()).instantiate(Host::default()).await.unwrap();
    let crash = start_crash(&spec(with_instances(4), limits)).await;
    assert!(matches!(crash.kind(), CrashKind::Refused { .. }), "{crash}");
}

#[test]
fn what_a_component_needs_to_start_is_checked_before_it_starts() {
    let engine = engine();
    let refused = |component: &str, limits: ResourceLimits| {
        let component = engine.load_wat_blocking(component, Profile::Plain).unwrap();
        SandboxSpec::<()>::new(component.link(&component.linker()).unwrap(), limits).map(|_| ()).unwrap_err()
    };
    assert_eq!(
        refused(&with_memory(16), memory(15)),
        QuotaError::InitialMemory { needed: ByteSize(16 * PAGE), allowed: ByteSize(15 * PAGE) }
    );
    assert_eq!(
        refused(GROW, ResourceLimits { memories: 1, ..limits() }),
        QuotaError::TooMany { what: "memories", needed: 2, allowed: 1 }
    );
    assert_eq!(
        refused(GROW, ResourceLimits { tables: 0, ..limits() }),
        QuotaError::TooMany { what: "tables", needed: 1, allowed: 0 }
    );
    assert_eq!(
        refused(MINIMAL, ResourceLimits::with_memory(ByteSize::gib(5))),
        QuotaError::MemoryBeyondEngine { asked: ByteSize::gib(5), max: ByteSize::gib(4) }
    );
    assert_eq!(refused(MINIMAL, ResourceLimits { fuel: Some(1), ..limits() }), QuotaError::FuelNeedsMeteredCode);
    assert_eq!(
        refused(MINIMAL, ResourceLimits { cpu_time: std::time::Duration::ZERO, ..limits() }),
        QuotaError::Zero("cpu_time")
    );
    let call = |fuel| CallLimits { fuel: Some(fuel), ..CallLimits::default() };
    assert_eq!(refused(MINIMAL, ResourceLimits { shutdown: call(0), ..limits() }), QuotaError::Zero("shutdown.fuel"));
    assert_eq!(refused(MINIMAL, ResourceLimits { init: call(1), ..limits() }), QuotaError::FuelNeedsMeteredCode);
    spec(with_memory(16), memory(16));
    spec(GROW, ResourceLimits { memories: 2, tables: 1, ..limits() });
}

#[tokio::test]
async fn fuel_is_repeatable_and_refilled_for_each_call() {
    let engine = engine();
    let run = |fuel, n| {
        let spec = spec_in(&engine, COMPUTE.as_bytes(), Profile::Metered, ResourceLimits { fuel, ..limits() });
        async move {
            let sandbox = spec.instantiate(Host::default()).await.unwrap();
            call(&spec, sandbox, "tight", Some(n)).await
        }
    };
    let used = run(None, 1_000).await.unwrap().usage().fuel.unwrap();
    assert!(used > 1_000);
    let sandbox = run(Some(used), 1_000).await.unwrap();
    assert_eq!(sandbox.usage().fuel, Some(used));
    assert_eq!(run(None, 1_000).await.unwrap().usage().fuel, Some(used));
    // It is looked at where a loop begins anew: what comes after the last time is not missed.
    let crash = run(Some(used - 20), 1_000).await.unwrap_err();
    assert_eq!(*crash.kind(), CrashKind::OutOfFuel { allowed: used - 20 });
    assert_eq!(crash.usage().fuel, Some(used - 20));

    let spec = spec_in(&engine, COMPUTE.as_bytes(), Profile::Metered, ResourceLimits { fuel: Some(used), ..limits() });
    let mut sandbox = spec.instantiate(Host::default()).await.unwrap();
    for _ in 0..3 {
        sandbox = call(&spec, sandbox, "tight", Some(1_000)).await.unwrap();
    }
}

#[tokio::test]
async fn host_calls_are_counted_for_each_call() {
    let mut limits = limits();
    limits.host_calls = 10;
    let (spec, sandbox) = sandbox(HOST_CALLS, limits).await;
    let sandbox = call(&spec, sandbox, "steps", Some(10)).await.unwrap();
    assert_eq!(sandbox.usage().host_calls, 10);
    let sandbox = call(&spec, sandbox, "steps", Some(10)).await.unwrap();
    let crash = call(&spec, sandbox, "steps", Some(11)).await.unwrap_err();
    assert_eq!(*crash.kind(), CrashKind::HostCalls { allowed: 10 });
}

#[tokio::test]
async fn a_host_call_carries_only_so_many_bytes() {
    let mut limits = limits();
    limits.host_call_bytes = ByteSize(1_000);
    let (spec, sandbox) = sandbox(HOST_CALLS, limits.clone()).await;
    let sandbox = call(&spec, sandbox, "take", Some(1_000)).await.unwrap();
    assert_eq!(sandbox.ext().taken, 1_000);
    let crash = call(&spec, sandbox, "take", Some(1_001)).await.unwrap_err();
    assert!(matches!(crash.kind(), CrashKind::HostCall { .. }), "{crash}");
    // The limit on what a call returns is another one.
    limits.message_size = ByteSize(10);
    let (spec, mut sandbox) = crate::sandbox(HOST_CALLS, limits).await;
    for _ in 0..2 {
        sandbox = call(&spec, sandbox, "take", Some(1_000)).await.unwrap();
    }
}

#[tokio::test]
async fn a_call_returns_only_so_many_bytes() {
    let mut limits = limits();
    limits.message_size = ByteSize(1_000);
    for (len, fits) in [(1_000, true), (1_001, false)] {
        let (spec, mut sandbox) = sandbox(VALUES, limits.clone()).await;
        let bytes = sandbox.typed::<(u32,), (Vec<u8>,)>(&spec.export("bytes").unwrap()).unwrap();
        match sandbox.call(&bytes, (len,)).await {
            Ok(((bytes,), _)) => assert!(fits && bytes.len() == len as usize),
            Err(crash) => assert!(!fits && matches!(crash.kind(), CrashKind::BadValue { .. }), "{crash}"),
        }
    }
    let quota = spec(VALUES, limits).quota().clone();
    quota.check_message(1_000).unwrap();
    assert_eq!(quota.check_message(1_001).unwrap_err().allowed, 1_000);
}

#[tokio::test]
async fn handles_are_limited() {
    let mut limits = limits();
    limits.handles = 10;
    let (spec, sandbox) = sandbox(HANDLES, limits).await;
    let sandbox = call(&spec, sandbox, "leak", Some(10)).await.unwrap();
    // They were not dropped, so one more is one too many.
    let crash = call(&spec, sandbox, "leak", Some(1)).await.unwrap_err();
    assert!(matches!(crash.kind(), CrashKind::HostCall { .. }), "{crash}");
}

#[tokio::test]
async fn the_hosts_table_of_resources_is_limited() {
    let spec = spec(HOST_CALLS, ResourceLimits { handles: 2, ..limits() });
    let sandbox = spec.instantiate(Host { step_makes_resource: true, ..Host::default() }).await.unwrap();
    let sandbox = call(&spec, sandbox, "steps", Some(2)).await.unwrap();
    let crash = call(&spec, sandbox, "steps", Some(1)).await.unwrap_err();
    assert_eq!(*crash.kind(), CrashKind::Handles { allowed: 2 });
}

#[tokio::test]
async fn the_budget_refuses_the_newcomer_and_the_others_go_on() {
    let budget = MemoryBudget::new(ByteSize(3 * PAGE));
    let spec = spec(GROW, memory(10)).with_budget(budget.clone());
    let first = spec.instantiate(Host::default()).await.unwrap();
    let second = spec.instantiate(Host::default()).await.unwrap();
    assert_eq!(budget.used(), 2 * PAGE);
    let crash = call(&spec, second, "grow", Some(2)).await.unwrap_err();
    assert_eq!(*crash.kind(), CrashKind::Budget { asked: 2 * PAGE, left: PAGE, total: 3 * PAGE });
    assert_eq!(budget.used(), PAGE, "what the crashed one had is back");
    let first = call(&spec, first, "grow", Some(2)).await.unwrap();
    assert_eq!(budget.used(), 3 * PAGE);
    let crash = start_crash(&spec).await;
    assert_eq!(*crash.kind(), CrashKind::Budget { asked: PAGE, left: 0, total: 3 * PAGE });
    drop(first);
    assert_eq!(budget.used(), 0);
    spec.instantiate(Host::default()).await.unwrap();
}

#[tokio::test]
async fn a_full_pool_refuses_the_newcomer_and_the_others_go_on() {
    let pool = Some(PoolConfig::for_components(2));
    let engine = WasmEngine::new(EngineConfig { pool, ..EngineConfig::default().compile_in_process() }).unwrap();
    let spec = spec_in(&engine, MINIMAL.as_bytes(), Profile::Plain, limits());
    let first = spec.instantiate(Host::default()).await.unwrap();
    let first = call(&spec, first, "run", None).await.unwrap();
    let second = spec.instantiate(Host::default()).await.unwrap();
    let error = spec.instantiate(Host::default()).await.unwrap_err();
    assert!(matches!(error, InstantiateError::PoolExhausted { .. }), "{error:?}");
    assert!(error.to_string().contains("PoolConfig::components"));
    call(&spec, second, "run", None).await.unwrap();
    call(&spec, first, "run", None).await.unwrap();
    spec.instantiate(Host::default()).await.unwrap();
}

/// Linux allows a process 65,530 memory mappings by default, of which each called component takes four.
#[tokio::test]
async fn ten_thousand_called_components_live_at_once_in_the_large_pool() {
    let engine = WasmEngine::new(EngineConfig::large().compile_in_process().with_manual_ticks()).unwrap();
    let spec = spec_in(&engine, MINIMAL.as_bytes(), Profile::Plain, limits());
    let mut live = Vec::new();
    for _ in 0..10_000 {
        let sandbox = spec.instantiate(Host::default()).await.unwrap();
        live.push(call(&spec, sandbox, "run", None).await.unwrap());
    }
    let error = spec.instantiate(Host::default()).await.unwrap_err();
    assert!(matches!(error, InstantiateError::PoolExhausted { .. }), "{error:?}");
    for sandbox in live.drain(..) {
        call(&spec, sandbox, "run", None).await.unwrap();
    }
    spec.instantiate(Host::default()).await.unwrap();
}

#[test]
fn a_memory_with_pages_of_a_byte_is_not_taken() {
    // Its growth can fail without the meter having been asked, see `Meter::memory_grow_failed`.
    let binary = |page: &str| wat::parse_str(format!("(component (core module (memory 1 {page})))")).unwrap();
    let load = |page| engine().load_blocking(&binary(page), Profile::Plain);
    assert!(matches!(load("(pagesize 1)"), Err(LoadError::Unsupported { feature: Feature::CustomPageSizes })));
    load("").unwrap();
}
