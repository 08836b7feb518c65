//! Guests with async functions: a call ends when all its tasks have, and every limit holds for each of them.

use std::{
    pin::pin,
    task::{Context, Waker},
    time::Duration,
};

use airssys_wasm_engine::{EngineConfig, Profile, WasmEngine, wasmtime::Trap};
use airssys_wasm_fixtures::{ADD, TASKS};
use airssys_wasm_isolation::{Crash, CrashKind, Sandbox, SandboxSpec};
use airssys_wasm_limits::{CancellationToken, ResourceLimits};

use crate::{Host, call, limits, spec_in, time::Neighbour};

fn engine() -> WasmEngine {
    WasmEngine::new(EngineConfig::small().with_component_async().compile_in_process().with_manual_ticks()).unwrap()
}

async fn sandbox(limits: ResourceLimits) -> (SandboxSpec<Host>, Sandbox<Host>) {
    let spec = spec_in(&engine(), TASKS.as_bytes(), Profile::Plain, limits);
    let sandbox = spec.instantiate(Host::default()).await.unwrap();
    (spec, sandbox)
}

async fn ended(spec: &SandboxSpec<Host>, mut sandbox: Sandbox<Host>) -> (u32, Sandbox<Host>) {
    let ended = sandbox.typed::<(), (u32,)>(&spec.export("ended").unwrap()).unwrap();
    let ((ended,), sandbox) = sandbox.call(&ended, ()).await.unwrap();
    (ended, sandbox)
}

async fn crash(name: &str, limits: ResourceLimits) -> Crash {
    let (spec, sandbox) = sandbox(limits).await;
    call(&spec, sandbox, name, None).await.unwrap_err()
}

#[tokio::test]
async fn an_async_function_is_called_like_any_other() {
    for profile in [Profile::Plain, Profile::Metered] {
        let fuel = (profile == Profile::Metered).then_some(1_000);
        let spec = spec_in(&engine(), TASKS.as_bytes(), profile, ResourceLimits { fuel, ..limits() });
        let mut sandbox = spec.instantiate(Host::default()).await.unwrap();
        let add = sandbox.typed::<(u32, u32), (u32,)>(&spec.export("add").unwrap()).unwrap();
        for n in 0..100 {
            let sum;
            ((sum,), sandbox) = sandbox.call(&add, (n, 3)).await.unwrap();
            assert_eq!(sum, n + 3);
        }
        assert_eq!(sandbox.usage().fuel.is_some(), fuel.is_some());
    }
}

#[tokio::test]
async fn the_next_call_begins_when_all_tasks_of_the_last_have_ended() {
    let (spec, mut sandbox) = sandbox(limits()).await;
    let later = sandbox.typed::<(u32,), (u32,)>(&spec.export("later").unwrap()).unwrap();
    let token = CancellationToken::new();
    for before in 0..3 {
        let mut told = None;
        let call = sandbox.call_telling(&later, (10,), &token, |(ended,)| told = Some(ended));
        ((), sandbox) = call.await.unwrap();
        assert_eq!(told, Some(before));
        let ended;
        (ended, sandbox) = self::ended(&spec, sandbox).await;
        assert_eq!(ended, before + 1);
    }
    // The same with values, and by a closure.
    sandbox = call(&spec, sandbox, "later", Some(5)).await.unwrap();
    let (told, sandbox) = sandbox
        .call_with(async |mut store, instance| {
            let later = instance.get_typed_func::<(u32,), (u32,)>(&mut store, "later")?;
            Ok(later.call_async(&mut store, (5,)).await?.0)
        })
        .await
        .unwrap();
    assert_eq!((told, ended(&spec, sandbox).await.0), (4, 5));
}

#[tokio::test]
async fn a_closure_that_does_nothing_makes_no_host_call() {
    let (_, sandbox) = sandbox(ResourceLimits { host_calls: 0, ..limits() }).await;
    let ((), sandbox) = sandbox.call_with(async |_, _| Ok(())).await.unwrap();
    sandbox.call_with(async |_, _| Ok(())).await.unwrap();
}

#[tokio::test]
async fn the_result_is_told_before_the_tasks_have_ended() {
    let (spec, mut sandbox) = sandbox(limits()).await;
    let later = sandbox.typed::<(u32,), (u32,)>(&spec.export("later").unwrap()).unwrap();
    let (mut told, token) = (false, CancellationToken::new());
    let mut call = Box::pin(sandbox.call_telling(&later, (10,), &token, |_| told = true));
    // Each time the guest gives way, so does the call.
    let mut polls = 0;
    while call.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
        polls += 1;
    }
    drop(call);
    assert!(told && polls >= 10, "{polls}");
}

#[tokio::test]
async fn a_task_that_computes_on_is_stopped() {
    for name in ["spin", "forever"] {
        let engine = engine();
        // So much that nobody uses it whose thread is kept from running once.
        let limits = ResourceLimits { cpu_time: Duration::from_millis(60), ..limits() };
        let spec = spec_in(&engine, TASKS.as_bytes(), Profile::Plain, limits);
        let mut sandbox = spec.instantiate(Host::default()).await.unwrap();
        let export = sandbox.typed::<(), ()>(&spec.export(name).unwrap()).unwrap();
        let neighbour = Neighbour::spawn(&engine, || async {});
        let (mut told, token) = (false, CancellationToken::new());
        let crash = sandbox.call_telling(&export, (), &token, |()| told = true).await.unwrap_err();
        assert_eq!(*crash.kind(), CrashKind::CpuTime { allowed: 60 }, "{name}");
        assert_eq!(crash.export(), Some(name));
        assert!(told);
        neighbour.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_task_that_waits_for_nothing_is_stopped() {
    // Nothing can end it, which wasmtime sees as long as somebody waits for its result.
    let stuck = crash("stuck", limits()).await;
    assert!(matches!(stuck.kind(), CrashKind::Trap { trap } if trap.0 == Trap::AsyncDeadlock), "{stuck}");
    let deadline = Duration::from_secs(3);
    let never = crash("never", ResourceLimits { deadline, ..limits() }).await;
    assert_eq!(*never.kind(), CrashKind::Deadline { allowed: deadline });
    let trap = crash("trap-later", limits()).await;
    assert!(matches!(trap.kind(), CrashKind::Trap { .. }), "{trap}");
}

#[tokio::test(start_paused = true)]
async fn a_task_waits_for_the_host_no_longer_than_it_may() {
    let (spec, sandbox) = sandbox(ResourceLimits { deadline: Duration::from_secs(3), ..limits() }).await;
    let Host { gate, waiting, .. } = sandbox.ext().clone();
    let waits = tokio::spawn({
        let spec = spec.clone();
        async move { call(&spec, sandbox, "wait", Some(3)).await }
    });
    // All three wait at the same time.
    waiting.notified().await;
    gate.notify_waiters();
    let sandbox = waits.await.unwrap().unwrap();
    let crash = call(&spec, sandbox, "wait", Some(3)).await.unwrap_err();
    assert_eq!(*crash.kind(), CrashKind::Deadline { allowed: Duration::from_secs(3) });
}

#[tokio::test]
async fn a_task_that_waits_is_cancelled_and_dropped() {
    let (spec, mut sandbox) = sandbox(limits()).await;
    let wait = sandbox.typed::<(u32,), ()>(&spec.export("wait").unwrap()).unwrap();
    let token = CancellationToken::new();
    {
        let mut call = pin!(sandbox.call_until(&wait, (2,), &token));
        assert!(call.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        token.cancel();
        assert_eq!(*call.await.unwrap_err().kind(), CrashKind::Cancelled);
    }
    let (_, sandbox) = (spec.template(), spec.instantiate(Host::default()).await.unwrap());
    let mut sandbox = sandbox;
    let wait = sandbox.typed::<(u32,), ()>(&spec.export("wait").unwrap()).unwrap();
    let mut call = Box::pin(sandbox.call(&wait, (2,)));
    assert!(call.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    drop(call);
}

#[tokio::test]
async fn what_a_guest_holds_of_the_host_is_counted() {
    for (name, each) in [("sets", 1), ("streams", 2), ("futures", 2)] {
        let (spec, sandbox) = sandbox(ResourceLimits { handles: 100, ..limits() }).await;
        let sandbox = call(&spec, sandbox, name, Some(90 / each)).await.unwrap();
        let crash = call(&spec, sandbox, name, Some(20)).await.unwrap_err();
        assert!(matches!(crash.kind(), CrashKind::HostCall { .. } | CrashKind::Handles { .. }), "{name}: {crash}");
    }
    let half = crash("half", limits()).await;
    assert!(matches!(half.kind(), CrashKind::Trap { .. } | CrashKind::HostCall { .. }), "{half}");
}

#[tokio::test]
async fn guests_with_and_without_tasks_live_side_by_side() {
    let engine = engine();
    let spec = spec_in(&engine, ADD.as_bytes(), Profile::Plain, limits());
    let mut sandbox = spec.instantiate(Host::default()).await.unwrap();
    let add = sandbox.typed::<(i32, i32), (i32,)>(&spec.export("add").unwrap()).unwrap();
    let tasks = spec_in(&engine, TASKS.as_bytes(), Profile::Plain, limits());
    let other = tasks.instantiate(Host::default()).await.unwrap();
    assert_eq!(sandbox.call(&add, (2, 3)).await.unwrap().0, (5,));
    call(&tasks, other, "later", Some(1)).await.unwrap();
}
