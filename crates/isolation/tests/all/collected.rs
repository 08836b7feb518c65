//! Guests with exceptions and with a heap that is collected: the heap is memory, and every limit holds.

use airssys_wasm_engine::{EngineConfig, Profile, WasmEngine, wasmtime::Trap};
use airssys_wasm_fixtures::{COLLECTED, EXCEPTIONS};
use airssys_wasm_isolation::{Crash, CrashKind, Sandbox, SandboxSpec, TrapCode};
use airssys_wasm_limits::{ByteSize, MemoryBudget, OnGrowthRefused, ResourceLimits};

use crate::{Host, call, limits, spec_in, time::Neighbour};

fn engine() -> WasmEngine {
    WasmEngine::new(EngineConfig::small().with_garbage_collection().compile_in_process().with_manual_ticks()).unwrap()
}

fn spec(component: &str, limits: ResourceLimits) -> SandboxSpec<Host> {
    spec_in(&engine(), component.as_bytes(), Profile::Plain, limits)
}

async fn number(
    spec: &SandboxSpec<Host>,
    mut sandbox: Sandbox<Host>,
    export: &str,
    n: u32,
) -> Result<(u32, Sandbox<Host>), Crash> {
    let export = sandbox.typed::<(u32,), (u32,)>(&spec.export(export).unwrap()).unwrap();
    let ((number,), sandbox) = sandbox.call(&export, (n,)).await?;
    Ok((number, sandbox))
}

async fn once(component: &str, limits: ResourceLimits, export: &str, n: u32) -> Result<u32, CrashKind> {
    let spec = spec(component, limits);
    let sandbox = spec.instantiate(Host::default()).await.unwrap();
    number(&spec, sandbox, export, n).await.map(|(n, _)| n).map_err(|crash| crash.kind().clone())
}

fn memory(mib: u64) -> ResourceLimits {
    ResourceLimits { memory: ByteSize::mib(mib), ..limits() }
}

#[tokio::test]
async fn the_heap_is_charged_to_memory() {
    let spec = spec(COLLECTED, memory(4));
    let sandbox = spec.instantiate(Host::default()).await.unwrap();
    assert_eq!(sandbox.memory(), 0);
    let (_, sandbox) = number(&spec, sandbox, "keeps", 10_000).await.unwrap();
    // 24 bytes each, and as many for the next collection, in powers of two.
    assert_eq!(sandbox.memory(), 1 << 20, "{:?}", sandbox.usage());
    let crash = number(&spec, sandbox, "keeps", 1_000_000).await.unwrap_err();
    let asked = 8 << 20;
    assert_eq!(*crash.kind(), CrashKind::Memory { asked, allowed: 4 << 20 });
    assert_eq!(crash.usage().memory, 4 << 20);
    assert!(!crash.backtrace().is_empty());
}

#[tokio::test]
async fn a_refusal_after_which_a_collection_suffices_is_no_crash() {
    assert_eq!(once(COLLECTED, memory(1), "drops", 100_000).await, Ok(1));
    let spec = spec(COLLECTED, memory(1));
    let mut sandbox = spec.instantiate(Host::default()).await.unwrap();
    // More than there is room for, but not at a time.
    for _ in 0..10 {
        (_, sandbox) = number(&spec, sandbox, "keeps", 15_000).await.unwrap();
        assert_eq!(sandbox.memory(), 1 << 20);
        sandbox = call(&spec, sandbox, "forgets", None).await.unwrap();
    }
    let (_, sandbox) = number(&spec, sandbox, "keeps", 15_000).await.unwrap();
    let crash = number(&spec, sandbox, "keeps", 15_000).await.unwrap_err();
    assert_eq!(*crash.kind(), CrashKind::Memory { asked: 2 << 20, allowed: 1 << 20 });
}

/// Of what is refused, only the guest's own instructions can be told.
#[tokio::test]
async fn who_is_to_be_told_crashes_all_the_same() {
    let limits = ResourceLimits { on_growth_refused: OnGrowthRefused::TellGuest, ..memory(1) };
    let kind = once(COLLECTED, limits.clone(), "keeps", 100_000).await;
    assert_eq!(kind, Err(CrashKind::Memory { asked: 2 << 20, allowed: 1 << 20 }));
    assert_eq!(once(COLLECTED, limits, "drops", 10_000).await, Ok(1));
}

#[tokio::test]
async fn one_object_larger_than_the_limit_is_refused_whatever_its_size() {
    for (n, fits) in [(0, true), (1_000, true), (400_000, true), (600_000, false), (1 << 20, false), (1 << 30, false)] {
        match once(COLLECTED, memory(1), "large", n).await {
            Ok(length) => assert!(fits && length == n, "{n}"),
            Err(CrashKind::Memory { asked, allowed }) => {
                assert!(!fits && allowed == 1 << 20 && asked > allowed, "{n}: {asked}");
            }
            Err(other) => panic!("{n}: {other:?}"),
        }
    }
    for n in [u32::MAX, u32::MAX - 16] {
        let kind = once(COLLECTED, memory(1), "large", n).await.unwrap_err();
        assert_eq!(kind, CrashKind::Trap { trap: TrapCode(Trap::AllocationTooLarge) }, "{n}");
    }
    // Just below a power of two, wasmtime asks for too little, and for no more.
    let all = ByteSize::gib(4);
    let kind = once(COLLECTED, ResourceLimits { memory: all, ..limits() }, "large", (1 << 20) - 20).await;
    assert!(matches!(kind, Ok(_) | Err(CrashKind::HeapFull)), "{kind:?}");
}

#[tokio::test]
async fn the_budget_is_charged_and_given_back() {
    let budget = MemoryBudget::new(ByteSize::mib(3));
    let spec = spec(COLLECTED, memory(64)).with_budget(budget.clone());
    let sandbox = spec.instantiate(Host::default()).await.unwrap();
    let (_, sandbox) = number(&spec, sandbox, "keeps", 10_000).await.unwrap();
    assert_eq!(budget.used(), 1 << 20);
    let crash = number(&spec, sandbox, "keeps", 1_000_000).await.unwrap_err();
    assert_eq!(*crash.kind(), CrashKind::Budget { asked: 2 << 20, left: 1 << 20, total: 3 << 20 });
    assert_eq!(budget.used(), 0);
}

#[tokio::test]
async fn who_allocates_or_throws_for_ever_is_stopped_and_others_have_their_turns() {
    for (component, export) in [(COLLECTED, "drops-for-ever"), (EXCEPTIONS, "throws-for-ever")] {
        let engine = engine();
        let limits = ResourceLimits { cpu_time: std::time::Duration::from_millis(5), ..memory(4) };
        let spec = spec_in(&engine, component.as_bytes(), Profile::Plain, limits);
        let sandbox = spec.instantiate(Host::default()).await.unwrap();
        let neighbour = Neighbour::spawn(&engine, || async {});
        let crash = call(&spec, sandbox, export, None).await.unwrap_err();
        assert_eq!(*crash.kind(), CrashKind::CpuTime { allowed: 5 }, "{export}");
        neighbour.end().await;
    }
}

#[tokio::test]
async fn metered_code_runs_out_of_fuel_by_allocating_and_by_throwing() {
    let limits = ResourceLimits { fuel: Some(10_000), ..memory(4) };
    for (component, export) in [(COLLECTED, "drops-for-ever"), (EXCEPTIONS, "throws-for-ever")] {
        let spec = spec_in(&engine(), component.as_bytes(), Profile::Metered, limits.clone());
        let sandbox = spec.instantiate(Host::default()).await.unwrap();
        let crash = call(&spec, sandbox, export, None).await.unwrap_err();
        assert_eq!(*crash.kind(), CrashKind::OutOfFuel { allowed: 10_000 }, "{export}");
    }
}

/// What the collector does for a guest, each call of a method for one, is counted and not held against it. Each exception is.
#[tokio::test]
async fn methods_are_no_host_calls_and_exceptions_are() {
    let limits = ResourceLimits { host_calls: 100, ..memory(4) };
    // With an import, so that host calls are watched.
    let with_import = |component: &str| {
        component.replacen("(component", r#"(component (import "step" (func $step (result u32)))"#, 1)
    };
    let spec = spec(&with_import(COLLECTED), limits.clone());
    let (sum, sandbox) =
        number(&spec, spec.instantiate(Host::default()).await.unwrap(), "calls", 10_000).await.unwrap();
    assert_eq!(sum, 10_000);
    assert!(sandbox.usage().host_calls >= 10_000, "{:?}", sandbox.usage());
    let exceptions = with_import(EXCEPTIONS);
    let throws = |n| once(&exceptions, limits.clone(), "throws", n);
    assert_eq!(throws(40).await, Ok(40));
    assert_eq!(throws(200).await, Err(CrashKind::HostCalls { allowed: 100 }));
}

#[tokio::test]
async fn exceptions_are_caught_and_nothing_grows() {
    let spec = spec(EXCEPTIONS, memory(1));
    let mut sandbox = spec.instantiate(Host::default()).await.unwrap();
    for n in [0, 1, 1_000, 100_000] {
        let caught;
        (caught, sandbox) = number(&spec, sandbox, "throws", n).await.unwrap();
        assert_eq!(caught, n);
    }
    assert_eq!(sandbox.usage().memory_peak, 64 << 10);
    let (zero, _) = number(&spec, sandbox, "deep", 1_000).await.unwrap();
    assert_eq!(zero, 0);
    let kind = once(EXCEPTIONS, memory(1), "deep", 10_000_000).await.unwrap_err();
    assert_eq!(kind, CrashKind::StackOverflow);
}

#[tokio::test]
async fn an_exception_that_nobody_catches_is_a_crash_and_traps_are_not_caught() {
    let spec = spec(EXCEPTIONS, limits());
    let instantiate = || async { spec.instantiate(Host::default()).await.unwrap() };
    let crash = call(&spec, instantiate().await, "uncaught", None).await.unwrap_err();
    assert_eq!(*crash.kind(), CrashKind::Exception);
    assert_eq!(crash.backtrace().len(), 2, "{crash}");
    let crash = call(&spec, instantiate().await, "traps", None).await.unwrap_err();
    assert_eq!(*crash.kind(), CrashKind::Trap { trap: TrapCode(Trap::UnreachableCodeReached) });
    // Nor does a closure keep it to itself.
    let closure = async |mut store: airssys_wasm_engine::wasmtime::StoreContextMut<'_, _>,
                         instance: airssys_wasm_engine::wasmtime::component::Instance| {
        let uncaught = instance.get_typed_func::<(), ()>(&mut store, "uncaught")?;
        _ = uncaught.call_async(&mut store, ()).await;
        Ok(())
    };
    let crash = instantiate().await.call_with(closure).await.unwrap_err();
    assert_eq!(*crash.kind(), CrashKind::Swallowed);
}

#[tokio::test]
async fn exceptions_take_memory_and_are_refused_without() {
    let limits = ResourceLimits { memory: ByteSize::kib(32), ..limits() };
    let kind = once(EXCEPTIONS, limits, "throws", 1).await.unwrap_err();
    assert_eq!(kind, CrashKind::Memory { asked: 64 << 10, allowed: 32 << 10 });
}
