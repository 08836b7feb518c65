//! Calls in which a closure has the store, as the code that `bindgen!` generates wants it.

use std::{
    pin::pin,
    sync::Arc,
    task::{Context, Waker},
    time::Duration,
};

use airssys_wasm_engine::{
    EngineConfig, PoolConfig, Profile, WasmEngine,
    wasmtime::{self, Trap, component::ResourceAny},
};
use airssys_wasm_fixtures::{COUNTERS, MINIMAL};
use airssys_wasm_isolation::{CrashKind, InstantiateError, Sandbox};
use airssys_wasm_limits::{CancellationToken, ResourceLimits};

use crate::{Host, call, engine, limits, sandbox, spec, spec_in};

mod guest {
    airssys_wasm_engine::wasmtime::component::bindgen!({
        inline: "
            package fixture:calls;

            interface counters {
                resource counter {
                    constructor(value: u32);
                    value: func() -> u32;
                }
                dropped: func() -> u32;
                trap: func();
                spin: func();
                wait: func();
            }

            world guest {
                import wait: func();
                export counters;
            }
        ",
        wasmtime_crate: airssys_wasm_engine::wasmtime,
        exports: { default: async },
        imports: { default: async },
    });
}

use guest::Guest;

#[tokio::test]
async fn generated_bindings_make_call_and_drop_a_resource_of_the_guest() {
    let (_, sandbox) = sandbox(COUNTERS, limits()).await;
    let (counter, sandbox) = sandbox
        .call_with(async |mut store, instance| {
            let guest = Guest::new(&mut store, &instance)?;
            guest.fixture_calls_counters().counter().call_constructor(&mut store, 7).await
        })
        .await
        .unwrap();
    // The resource outlives the call it was made in.
    let ((value, dropped), sandbox) = sandbox
        .call_with(async |mut store, instance| {
            let guest = Guest::new(&mut store, &instance)?;
            let counters = guest.fixture_calls_counters();
            let value = counters.counter().call_value(&mut store, counter).await?;
            let before = counters.call_dropped(&mut store).await?;
            counter.resource_drop_async(&mut store).await?;
            Ok((value, [before, counters.call_dropped(&mut store).await?]))
        })
        .await
        .unwrap();
    assert_eq!((value, dropped), (7, [0, 1]));
    // One that is gone cannot be dropped again, and to try is an error of the host, not of the guest.
    let crash =
        sandbox.call_with(async |mut store, _| counter.resource_drop_async(&mut store).await).await.unwrap_err();
    assert!(matches!(crash.kind(), CrashKind::HostCall { .. }), "{crash}");
}

#[tokio::test]
async fn the_closure_has_the_embedders_state_and_gives_any_answer() {
    let (spec, sandbox) = sandbox(COUNTERS, limits()).await;
    let (refused, sandbox) = sandbox
        .call_with(async |mut store, _| {
            store.data_mut().ext.taken = 5;
            Ok(Err::<(), _>("not a crash"))
        })
        .await
        .unwrap();
    assert_eq!((refused, sandbox.ext().taken), (Err("not a crash"), 5));
    // It goes on as any other.
    _ = call(&spec, sandbox, "fixture:calls/counters#dropped", None).await.unwrap();
}

#[tokio::test]
async fn a_guest_that_has_trapped_does_not_come_back_though_the_closure_swallows_the_error() {
    for traps in [false, true] {
        let (_, sandbox) = sandbox(COUNTERS, limits()).await;
        let called = sandbox
            .call_with(async |mut store, instance| {
                let guest = Guest::new(&mut store, &instance)?;
                if traps {
                    let error = guest.fixture_calls_counters().call_trap(&mut store).await.unwrap_err();
                    assert_eq!(error.downcast_ref(), Some(&Trap::UnreachableCodeReached));
                }
                Ok(())
            })
            .await;
        match called {
            Ok(_) => assert!(!traps),
            Err(crash) => {
                assert!(traps, "{crash}");
                assert_eq!(*crash.kind(), CrashKind::Swallowed);
                assert_eq!(crash.export(), Some("call_with"));
            }
        }
    }
}

#[tokio::test]
async fn whatever_ends_a_guest_is_found_though_it_is_swallowed() {
    const GUEST: &str = r#"(component
        (import "fail" (func $fail))
        (core func $fail (canon lower (func $fail)))
        (core module $m
            (import "" "fail" (func $fail))
            (memory 1)
            (func (export "fail") (call $fail))
            (func (export "overflow") (call 1))
            (func (export "grow") (drop (memory.grow (i32.const 60000))))
            (func (export "fill") (memory.fill (i32.const 65000) (i32.const 0) (i32.const 9999)))
            (func (export "fine")))
        (core instance $i (instantiate $m (with "" (instance (export "fail" (func $fail))))))
        (func (export "fail") (canon lift (core func $i "fail")))
        (func (export "overflow") (canon lift (core func $i "overflow")))
        (func (export "grow") (canon lift (core func $i "grow")))
        (func (export "fill") (canon lift (core func $i "fill")))
        (func (export "fine") (canon lift (core func $i "fine"))))"#;
    for name in ["fail", "overflow", "grow", "fill", "fine"] {
        let (_, sandbox) = sandbox(GUEST, limits()).await;
        let called = sandbox
            .call_with(async |mut store, instance| {
                let func = instance.get_typed_func::<(), ()>(&mut store, name)?;
                Ok(func.call_async(&mut store, ()).await.is_err())
            })
            .await;
        match called {
            Ok((failed, _)) => assert!(name == "fine" && !failed, "{name}"),
            Err(crash) => assert!(name != "fine" && *crash.kind() == CrashKind::Swallowed, "{name}: {crash}"),
        }
    }
}

#[tokio::test]
async fn an_error_that_is_passed_on_says_what_it_was() {
    let (_, sandbox) = sandbox(COUNTERS, limits()).await;
    let crash = sandbox
        .call_with(async |mut store, instance| {
            Guest::new(&mut store, &instance)?.fixture_calls_counters().call_trap(&mut store).await
        })
        .await
        .unwrap_err();
    assert!(matches!(crash.kind(), CrashKind::Trap { trap } if trap.0 == Trap::UnreachableCodeReached), "{crash}");
    assert_eq!(crash.backtrace().len(), 1);

    #[derive(Debug, PartialEq, thiserror::Error)]
    #[error("the embedder gives up")]
    struct GivesUp;
    let (_, sandbox) = self::sandbox(COUNTERS, limits()).await;
    let crash = sandbox.call_with(async |_, _| Err::<(), _>(wasmtime::Error::new(GivesUp))).await.unwrap_err();
    assert!(matches!(crash.kind(), CrashKind::HostCall { .. }), "{crash}");
    assert_eq!(crash.host_error().unwrap().downcast_ref(), Some(&GivesUp));
}

#[tokio::test]
async fn all_that_a_closure_calls_is_one_call() {
    let engine = engine();
    for cpu in [3, 6] {
        let limits = ResourceLimits { cpu_time: Duration::from_millis(cpu), ..limits() };
        let spec = spec_in(&engine, COUNTERS.as_bytes(), Profile::Plain, limits);
        let sandbox = spec.instantiate(Host::default()).await.unwrap();
        let gate = Arc::clone(&sandbox.ext().gate);
        let called = sandbox
            .call_with(async |mut store, instance| {
                let guest = Guest::new(&mut store, &instance)?;
                // Two computations of two ticks each.
                for _ in 0..2 {
                    store.data_mut().ext.wait = crate::Wait::GivingWay;
                    store.data_mut().ext.ticks_in_step = Some((engine.clone(), 2));
                    guest.fixture_calls_counters().call_wait(&mut store).await?;
                }
                Ok(())
            })
            .await;
        drop(gate);
        match called {
            Ok(_) => assert_eq!(cpu, 6),
            Err(crash) => assert_eq!((crash.kind(), cpu), (&CrashKind::CpuTime { allowed: 3 }, 3)),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_closure_that_waits_has_the_deadline_of_the_call_and_can_be_cancelled() {
    for cancelled in [false, true] {
        let (_, sandbox) = sandbox(COUNTERS, ResourceLimits { deadline: Duration::from_secs(3), ..limits() }).await;
        let cancel = CancellationToken::new();
        if cancelled {
            cancel.cancel();
        }
        let started = tokio::time::Instant::now();
        let waits = async |_: wasmtime::StoreContextMut<'_, _>, _| {
            std::future::pending::<()>().await;
            Ok(())
        };
        let crash = sandbox.call_with_until(waits, &cancel).await.unwrap_err();
        let (kind, after) = match cancelled {
            true => (CrashKind::Cancelled, 0),
            false => (CrashKind::Deadline { allowed: Duration::from_secs(3) }, 3),
        };
        assert_eq!((crash.kind(), started.elapsed().as_secs()), (&kind, after));
    }
}

#[tokio::test]
async fn a_closure_that_panics_is_a_crash_and_the_host_goes_on() {
    let (_, sandbox) = sandbox(COUNTERS, limits()).await;
    let crash = sandbox.call_with(async |_, _| -> wasmtime::Result<()> { panic!("out of order") }).await.unwrap_err();
    assert_eq!(*crash.kind(), CrashKind::HostPanic { message: "out of order".into() });
}

#[tokio::test]
async fn a_call_that_is_dropped_half_way_drops_the_guest() {
    let spec = spec(COUNTERS, limits());
    let token = Arc::new(());
    let held = Arc::downgrade(&token);
    let sandbox = spec.instantiate(Host::default()).await.unwrap();
    // With all that only the first call waits for.
    let ((), sandbox) = sandbox.call_with(async |_, _| Ok(())).await.unwrap();
    let waiting = Arc::clone(&sandbox.ext().waiting);
    let mut calling = Box::pin(sandbox.call_with(async move |mut store, instance| {
        let _held = token;
        Guest::new(&mut store, &instance)?.fixture_calls_counters().call_wait(&mut store).await
    }));
    assert!(calling.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    assert!(pin!(waiting.notified()).poll(&mut Context::from_waker(Waker::noop())).is_ready(), "it waits in the host");
    assert!(held.upgrade().is_some());
    drop(calling);
    assert!(held.upgrade().is_none());
}

#[tokio::test]
async fn a_resource_of_another_sandbox_is_refused() {
    let engine = engine();
    let spec = spec_in(&engine, COUNTERS.as_bytes(), Profile::Plain, limits());
    let made = async |sandbox: Sandbox<Host>| {
        let made = sandbox.call_with(async |mut store, instance| {
            Guest::new(&mut store, &instance)?.fixture_calls_counters().counter().call_constructor(&mut store, 1).await
        });
        made.await.unwrap()
    };
    let (own, first) = made(spec.instantiate(Host::default()).await.unwrap()).await;
    let (theirs, _second) = made(spec.instantiate(Host::default()).await.unwrap()).await;
    let value = async |sandbox: Sandbox<Host>, counter: ResourceAny| {
        sandbox
            .call_with(async move |mut store, instance| {
                let guest = Guest::new(&mut store, &instance)?;
                guest.fixture_calls_counters().counter().call_value(&mut store, counter).await
            })
            .await
    };
    let (one, first) = value(first, own).await.unwrap();
    assert_eq!(one, 1);
    let crash = value(first, theirs).await.unwrap_err();
    assert!(matches!(crash.kind(), CrashKind::HostCall { .. } | CrashKind::HostPanic { .. }), "{crash}");
}

#[tokio::test]
async fn it_takes_no_room_of_the_pool_from_others() {
    let pool = Some(PoolConfig { core_instances: 2, ..PoolConfig::for_components(2) });
    let engine = WasmEngine::new(EngineConfig { pool, ..EngineConfig::default().compile_in_process() }).unwrap();
    let spec = spec_in(&engine, MINIMAL.as_bytes(), Profile::Plain, limits());
    let mut live = Vec::new();
    for _ in 0..2 {
        let sandbox = spec.instantiate(Host::default()).await.unwrap();
        live.push(sandbox.call_with(async |_, _| Ok(())).await.unwrap().1);
    }
    let error = spec.instantiate(Host::default()).await.unwrap_err();
    assert!(matches!(error, InstantiateError::PoolExhausted { .. }), "{error:?}");
    live.pop();
    spec.instantiate(Host::default()).await.unwrap();
}

/// With one core instance. `steps` calls the host so often.
const STEPS: &str = r#"(component
    (import "step" (func $step (result u32)))
    (core func $step (canon lower (func $step)))
    (core module $m
        (import "" "step" (func $step (result i32)))
        (func (export "steps") (param $n i32)
            (loop $again
                (if (local.get $n) (then
                    (drop (call $step))
                    (local.set $n (i32.sub (local.get $n) (i32.const 1)))
                    (br $again))))))
    (core instance $i (instantiate $m (with "" (instance (export "step" (func $step))))))
    (func (export "steps") (param "n" u32) (canon lift (core func $i "steps"))))"#;

#[tokio::test]
async fn a_guest_at_all_its_limits_can_still_be_called_so() {
    for n in [0, 3] {
        let host_calls = u64::from(n);
        let limits = ResourceLimits { instances: 1, handles: 0, host_calls, ..limits() };
        let (_, mut sandbox) = sandbox(STEPS, limits).await;
        let steps = async |sandbox: Sandbox<Host>, n: u32| {
            let steps = sandbox.call_with(async |mut store, instance| {
                let steps = instance.get_typed_func::<(u32,), ()>(&mut store, "steps")?;
                steps.call_async(&mut store, (n,)).await
            });
            steps.await.map(|((), sandbox)| sandbox)
        };
        for _ in 0..3 {
            sandbox = steps(sandbox, n).await.unwrap();
            assert_eq!(sandbox.usage().host_calls, host_calls);
        }
        let crash = steps(sandbox, n + 1).await.unwrap_err();
        assert_eq!(*crash.kind(), CrashKind::HostCalls { allowed: host_calls });
    }
}

#[tokio::test]
async fn a_guest_is_not_charged_for_the_time_between_two_calls() {
    let engine = engine();
    let spec = spec_in(&engine, COUNTERS.as_bytes(), Profile::Plain, limits());
    let mut sandbox = spec.instantiate(Host::default()).await.unwrap();
    for _ in 0..3 {
        // Twice what a call may use.
        (0..2_000).for_each(|_| engine.tick());
        ((), sandbox) = sandbox.call_with(async |_, _| Ok(())).await.unwrap();
        assert_eq!(sandbox.usage().cpu_ticks, 0);
    }
}

#[tokio::test]
async fn nothing_is_compiled_on_the_worker() {
    let spec = spec(COUNTERS, limits());
    let first = spec.instantiate(Host::default()).await.unwrap();
    let mut calling = pin!(first.call_with(async |_, _| Ok(())));
    assert!(calling.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    calling.await.unwrap();
    // Once is enough.
    let second = spec.instantiate(Host::default()).await.unwrap();
    let mut calling = pin!(second.call_with(async |_, _| Ok(())));
    assert!(calling.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready());
}
