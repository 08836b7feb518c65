//! Calls that are in flight at the same time: each under limits of its own, and one that breaks them is named.

use std::{
    collections::{BTreeMap, VecDeque},
    task::{Context, Poll, Waker},
    time::Duration,
};

use airssys_wasm_engine::{EngineConfig, Profile, WasmEngine};
use airssys_wasm_fixtures::SEVERAL;
use airssys_wasm_isolation::{Calls, CrashKind, Sandbox, SandboxSpec, SeveralCrashed};
use airssys_wasm_limits::{CancellationToken, ResourceLimits};
use tokio::{sync::mpsc, task::unconstrained};

use crate::{Host, limits, spec_in, time::Neighbour};

const RETURNS: u32 = 0;
const WAITS: u32 = 1;
const SPINS: u32 = 2;
const GIVES_WAY: u32 = 3;
const TRAPS: u32 = 4;
const WAITS_AND_SPINS: u32 = 5;
const RETURNS_AND_SPINS: u32 = 6;
const CALLS_THE_HOST: u32 = 7;
const RETURNS_AND_WAITS: u32 = 8;
const RETURNS_AND_WAITS_AGAIN: u32 = 9;

fn engine() -> WasmEngine {
    WasmEngine::new(EngineConfig::small().with_component_async().compile_in_process().with_manual_ticks()).unwrap()
}

/// Calls that come from a list, or through a channel, and what they returned.
struct Told {
    list: VecDeque<(u32, u32)>,
    channel: Option<mpsc::UnboundedReceiver<(u32, u32)>>,
    begun: u64,
    returned: BTreeMap<u64, u32>,
    in_flight: usize,
    most: usize,
    /// Told of each return.
    told: Option<mpsc::UnboundedSender<u64>>,
    at_most: usize,
}

impl Told {
    fn new(list: impl IntoIterator<Item = (u32, u32)>) -> Self {
        Self {
            list: list.into_iter().collect(),
            channel: None,
            begun: 0,
            returned: BTreeMap::new(),
            in_flight: 0,
            most: 0,
            told: None,
            at_most: usize::MAX,
        }
    }
}

impl Calls<(u32, u32), (u32,), Host> for Told {
    fn poll_next(&mut self, cx: &mut Context<'_>, _: &mut Host) -> Poll<Option<(u64, (u32, u32))>> {
        let next = match (self.list.pop_front(), &mut self.channel) {
            (Some(next), _) => Some(next),
            (None, Some(channel)) => std::task::ready!(channel.poll_recv(cx)),
            (None, None) => None,
        };
        let Some(next) = next else { return Poll::Ready(None) };
        self.begun += 1;
        self.in_flight += 1;
        self.most = self.most.max(self.in_flight);
        Poll::Ready(Some((self.begun, next)))
    }

    fn returned(&mut self, number: u64, (result,): (u32,), _: &mut Host, _: u64) -> bool {
        self.in_flight -= 1;
        self.returned.insert(number, result);
        if let Some(told) = &self.told {
            told.send(number).unwrap();
        }
        self.returned.len() < self.at_most
    }
}

async fn run(
    spec: &SandboxSpec<Host>,
    mut sandbox: Sandbox<Host>,
    at_a_time: usize,
    calls: &mut Told,
) -> Result<Sandbox<Host>, SeveralCrashed> {
    let does = sandbox.typed::<(u32, u32), (u32,)>(&spec.export("does").unwrap()).unwrap();
    sandbox.call_several(&does, at_a_time, calls, &CancellationToken::new()).await
}

async fn sandbox(limits: ResourceLimits) -> (WasmEngine, SandboxSpec<Host>, Sandbox<Host>) {
    sandbox_of(SEVERAL, limits).await
}

async fn sandbox_of(component: &str, limits: ResourceLimits) -> (WasmEngine, SandboxSpec<Host>, Sandbox<Host>) {
    let engine = engine();
    let spec = spec_in(&engine, component.as_bytes(), Profile::Plain, limits);
    let sandbox = spec.instantiate(Host::default()).await.unwrap();
    (engine, spec, sandbox)
}

#[tokio::test]
async fn so_many_are_in_flight_and_no_more() {
    let (_, spec, mut sandbox) = sandbox(limits()).await;
    for at_a_time in [1, 3, 100] {
        let mut calls = Told::new((0..200).map(|n| (if n % 2 == 0 { RETURNS } else { GIVES_WAY }, n)));
        sandbox = run(&spec, sandbox, at_a_time, &mut calls).await.unwrap();
        let expected = (0..200).map(|n| if n % 2 == 0 { n } else { 0 }).zip(1..);
        assert_eq!(calls.returned, expected.map(|(result, number)| (number, result)).collect());
        assert_eq!(calls.most, at_a_time.min(200), "{at_a_time}");
    }
    // No more are begun when that is said.
    let mut calls = Told { at_most: 10, ..Told::new((0..200).map(|n| (RETURNS, n))) };
    sandbox = run(&spec, sandbox, 1, &mut calls).await.unwrap();
    assert_eq!(calls.returned.len(), 10);
    // And again, alone.
    let mut calls = Told::new([(RETURNS, 7)]);
    run(&spec, sandbox, 5, &mut calls).await.unwrap();
    assert_eq!(calls.returned[&1], 7);
}

#[tokio::test]
async fn one_that_waits_keeps_no_other_from_being_called() {
    let (_, spec, sandbox) = sandbox(limits()).await;
    let Host { gate, waiting, .. } = sandbox.ext().clone();
    let (calls_to, channel) = mpsc::unbounded_channel();
    let (told, mut returns) = mpsc::unbounded_channel();
    let mut calls = Told { channel: Some(channel), told: Some(told), ..Told::new([]) };
    calls_to.send((WAITS, 1)).unwrap();
    let running = tokio::spawn(async move {
        let sandbox = run(&spec, sandbox, 2, &mut calls).await;
        (sandbox, calls)
    });
    waiting.notified().await;
    for number in 2..10 {
        calls_to.send((RETURNS, 0)).unwrap();
        assert_eq!(returns.recv().await, Some(number));
    }
    gate.notify_waiters();
    assert_eq!(returns.recv().await, Some(1));
    drop(calls_to);
    let (sandbox, calls) = running.await.unwrap();
    sandbox.unwrap();
    assert_eq!((calls.returned.len(), calls.most), (9, 2));
}

/// [`SEVERAL`] behind another component, which does nothing but call it and wait.
fn behind_another() -> String {
    let inner = SEVERAL.replacen("(component", "(component $inner", 1);
    format!(
        r#"(component
  (import "wait-async" (func $wait async))
  {inner}
  (instance $inner (instantiate $inner (with "wait-async" (func $wait))))
  (component $outer
    (import "does" (func $does async (param "what" u32) (param "number" u32) (result u32)))
    (core module $mem (memory (export "memory") 16))
    (core instance $mem (instantiate $mem))
    (core func $start (canon lower (func $does) async (memory (core memory $mem "memory"))))
    (core func $return (canon task.return (result u32)))
    (core func $context-get (canon context.get i32 0))
    (core func $context-set (canon context.set i32 0))
    (core func $set-new (canon waitable-set.new))
    (core func $set-drop (canon waitable-set.drop))
    (core func $join (canon waitable.join))
    (core func $subtask-drop (canon subtask.drop))
    (core module $m
      (import "" "memory" (memory 16))
      (import "" "start" (func $start (param i32 i32 i32) (result i32)))
      (import "" "return" (func $return (param i32)))
      (import "" "context.get" (func $context-get (result i32)))
      (import "" "context.set" (func $context-set (param i32)))
      (import "" "set.new" (func $set-new (result i32)))
      (import "" "set.drop" (func $set-drop (param i32)))
      (import "" "join" (func $join (param i32 i32)))
      (import "" "subtask.drop" (func $subtask-drop (param i32)))
      ;; A task's own 16 bytes: the result, and the set that it waits in.
      (global $next (mut i32) (i32.const 0))
      (func $set (result i32) (i32.load offset=4 (call $context-get)))
      (func $wait (result i32) (i32.or (i32.const 2) (i32.shl (call $set) (i32.const 4))))
      (func $answer (result i32) (call $return (i32.load (call $context-get))) (i32.const 0))
      (func (export "does") (param $what i32) (param $number i32) (result i32)
        (local $own i32) (local $subtask i32)
        (local.set $own (i32.and (i32.add (global.get $next) (i32.const 16)) (i32.const 0xffff)))
        (global.set $next (local.get $own))
        (call $context-set (local.get $own))
        (local.set $subtask (call $start (local.get $what) (local.get $number) (local.get $own)))
        (if (i32.eq (i32.and (local.get $subtask) (i32.const 15)) (i32.const 2)) (then (return (call $answer))))
        (i32.store offset=4 (local.get $own) (call $set-new))
        (call $join (i32.shr_u (local.get $subtask) (i32.const 4)) (call $set))
        (call $wait))
      (func (export "callback") (param $event i32) (param $subtask i32) (param $state i32) (result i32)
        (if (i32.ne (local.get $state) (i32.const 2)) (then (return (call $wait))))
        (call $join (local.get $subtask) (i32.const 0))
        (call $subtask-drop (local.get $subtask))
        (call $set-drop (call $set))
        (call $answer)))
    (core instance $i (instantiate $m (with "" (instance
      (export "memory" (memory $mem "memory"))
      (export "start" (func $start))
      (export "return" (func $return))
      (export "context.get" (func $context-get))
      (export "context.set" (func $context-set))
      (export "set.new" (func $set-new))
      (export "set.drop" (func $set-drop))
      (export "join" (func $join))
      (export "subtask.drop" (func $subtask-drop))))))
    (func (export "does") async (param "what" u32) (param "number" u32) (result u32)
      (canon lift (core func $i "does") async (callback (core func $i "callback")))))
  (instance $outer (instantiate $outer (with "does" (func $inner "does"))))
  (export "does" (func $outer "does")))"#
    )
}

/// The experiment that CPU time is counted by task: whoever computes is named, whatever else is in flight.
#[tokio::test]
async fn the_task_that_computes_is_the_one_that_is_charged() {
    for spins in 0..5_u32 {
        // So much that nobody uses it whose thread is kept from running once.
        let limits =
            ResourceLimits { cpu_time: Duration::from_millis(60), deadline: Duration::from_secs(600), ..limits() };
        let (engine, spec, sandbox) = sandbox(limits).await;
        let mut calls = Told::new((0..5).map(|n| if n == spins { (SPINS, 0) } else { (GIVES_WAY, 100_000_000) }));
        let neighbour = Neighbour::spawn(&engine, || async {});
        let crashed = run(&spec, sandbox, 5, &mut calls).await.unwrap_err();
        assert_eq!(*crashed.crash.kind(), CrashKind::CpuTime { allowed: 60 });
        assert_eq!(crashed.call, Some(u64::from(spins) + 1), "{}", crashed.crash);
        neighbour.end().await;
    }
}

/// Who computes is a task of a component that was called by another: the call from the host is charged.
#[tokio::test]
async fn the_call_is_charged_for_what_other_components_compute_for_it() {
    let component = behind_another();
    let limits =
        || ResourceLimits { cpu_time: Duration::from_millis(60), deadline: Duration::from_secs(600), ..limits() };
    let (_, spec, other) = sandbox_of(&component, limits()).await;
    let mut calls = Told::new((0..20).map(|n| (if n % 2 == 0 { RETURNS } else { GIVES_WAY }, n)));
    run(&spec, other, 5, &mut calls).await.unwrap();
    assert_eq!(calls.returned.len(), 20);
    for what in [SPINS, WAITS_AND_SPINS, RETURNS_AND_SPINS] {
        for spins in 0..3_u32 {
            let (engine, spec, sandbox) = sandbox_of(&component, limits()).await;
            let Host { gate, waiting, .. } = sandbox.ext().clone();
            let mut calls = Told::new((0..3).map(|n| if n == spins { (what, 0) } else { (GIVES_WAY, 100_000_000) }));
            let neighbour = Neighbour::spawn(&engine, || async {});
            let running = run(&spec, sandbox, 3, &mut calls);
            let host = async {
                waiting.notified().await;
                gate.notify_waiters();
                std::future::pending().await
            };
            let crashed = tokio::select! { crashed = running => crashed.unwrap_err(), () = host => unreachable!() };
            assert_eq!(*crashed.crash.kind(), CrashKind::CpuTime { allowed: 60 }, "{what}");
            // What goes on when the call is over is charged to whoever has the call's id by then.
            let is_named = crashed.call == Some(u64::from(spins) + 1);
            assert!(is_named || what == RETURNS_AND_SPINS, "{what}: {crashed:?}");
            neighbour.end().await;
        }
    }
}

/// Together they use more than one may, and none of them does.
#[tokio::test]
async fn each_has_cpu_time_of_its_own() {
    for (ticks, enough) in [(3, true), (30, true), (42, false)] {
        let limits = ResourceLimits { cpu_time: Duration::from_millis(40), ..limits() };
        let (engine, spec, mut sandbox) = sandbox(limits).await;
        sandbox.ext_mut().ticks_in_step = Some((engine, ticks));
        let mut calls = Told::new((0..20).map(|_| (WAITS, 0)));
        match run(&spec, sandbox, 20, &mut calls).await {
            Ok(sandbox) => {
                assert!(enough && sandbox.usage().cpu_ticks >= u64::from(19 * ticks), "{:?}", sandbox.usage());
                assert_eq!(calls.returned.len(), 20);
            }
            Err(crashed) => {
                assert_eq!(*crashed.crash.kind(), CrashKind::CpuTime { allowed: 40 });
                assert!(!enough && crashed.call == Some(1), "{ticks}: {crashed:?}");
            }
        }
    }
}

#[tokio::test]
async fn who_computes_after_waiting_or_returning_is_named_too() {
    for what in [WAITS_AND_SPINS, RETURNS_AND_SPINS] {
        let limits =
            ResourceLimits { cpu_time: Duration::from_millis(60), deadline: Duration::from_secs(600), ..limits() };
        let (engine, spec, sandbox) = sandbox(limits).await;
        let Host { gate, waiting, .. } = sandbox.ext().clone();
        let mut calls = Told::new([(GIVES_WAY, 100_000_000), (what, 0)]);
        let neighbour = Neighbour::spawn(&engine, || async {});
        let running = run(&spec, sandbox, 5, &mut calls);
        let host = async {
            waiting.notified().await;
            gate.notify_waiters();
            std::future::pending().await
        };
        let crashed = tokio::select! { crashed = running => crashed.unwrap_err(), () = host => unreachable!() };
        assert_eq!(
            (crashed.crash.kind().clone(), crashed.call),
            (CrashKind::CpuTime { allowed: 60 }, Some(2)),
            "{what}"
        );
        assert_eq!(calls.returned.contains_key(&2), what == RETURNS_AND_SPINS);
        neighbour.end().await;
    }
}

#[tokio::test]
async fn host_calls_are_counted_by_task() {
    let limits = ResourceLimits { host_calls: 100, ..limits() };
    let (_, spec, sandbox) = sandbox(limits).await;
    // Two for each round, and some for the start and the return.
    let mut calls = Told::new((0..10).map(|_| (CALLS_THE_HOST, 40)));
    let sandbox = run(&spec, sandbox, 10, &mut calls).await.unwrap();
    let mut calls = Told::new([(CALLS_THE_HOST, 40), (CALLS_THE_HOST, 60), (CALLS_THE_HOST, 40)]);
    let crashed = run(&spec, sandbox, 10, &mut calls).await.unwrap_err();
    assert_eq!((crashed.crash.kind().clone(), crashed.call), (CrashKind::HostCalls { allowed: 100 }, Some(2)));
}

#[tokio::test]
async fn a_trap_is_that_of_its_task() {
    let (_, spec, sandbox) = sandbox(limits()).await;
    let mut calls = Told::new([(WAITS, 0), (TRAPS, 0), (WAITS, 0)]);
    let crashed = run(&spec, sandbox, 10, &mut calls).await.unwrap_err();
    assert!(matches!(crashed.crash.kind(), CrashKind::Trap { .. }), "{}", crashed.crash);
    assert_eq!(crashed.call, Some(2));
}

#[tokio::test]
async fn a_trap_is_that_of_its_task_though_others_had_its_id() {
    let (_, spec, sandbox) = sandbox(limits()).await;
    // wasmtime gives the ids of tasks again that have ended.
    let mut calls = Told::new([(RETURNS, 1), (RETURNS, 2), (TRAPS, 0)]);
    let crashed = run(&spec, sandbox, 1, &mut calls).await.unwrap_err();
    assert!(matches!(crashed.crash.kind(), CrashKind::Trap { .. }), "{}", crashed.crash);
    assert_eq!(crashed.call, Some(3));
}

#[tokio::test(start_paused = true)]
async fn each_has_a_deadline_of_its_own() {
    let deadline = Duration::from_secs(10);
    let (_, spec, sandbox) = sandbox(ResourceLimits { deadline, ..limits() }).await;
    let Host { gate, waiting, .. } = sandbox.ext().clone();
    let (calls_to, channel) = mpsc::unbounded_channel();
    let (told, mut returns) = mpsc::unbounded_channel();
    let mut calls = Told { channel: Some(channel), told: Some(told), ..Told::new([]) };
    let running = tokio::spawn(async move { run(&spec, sandbox, 10, &mut calls).await });
    calls_to.send((WAITS, 0)).unwrap();
    waiting.notified().await;
    // For longer than one may take, but none takes as long: each begins six seconds after the one before, which then ends.
    for number in 1..=5 {
        tokio::time::advance(Duration::from_secs(6)).await;
        calls_to.send((WAITS, 0)).unwrap();
        waiting.notified().await;
        gate.notify_one();
        assert_eq!(returns.recv().await, Some(number));
    }
    tokio::time::advance(Duration::from_secs(6)).await;
    calls_to.send((WAITS, 0)).unwrap();
    waiting.notified().await;
    // The sixth waits for six seconds when the seventh begins.
    let now = tokio::time::Instant::now();
    let crashed = running.await.unwrap().unwrap_err();
    assert_eq!((crashed.crash.kind().clone(), crashed.call), (CrashKind::Deadline { allowed: deadline }, Some(6)));
    assert_eq!(now.elapsed().as_secs(), 4);
}

/// A call that returns and goes on, for so many seconds or without end, and others after it, a second apart. Says over which one
/// it crashed, and after how many seconds.
async fn goes_on(until: Option<u32>) -> Option<(CrashKind, Option<u64>, u32)> {
    let (_, spec, sandbox) = sandbox(ResourceLimits { deadline: Duration::from_secs(10), ..limits() }).await;
    let Host { gate, .. } = sandbox.ext().clone();
    let (calls_to, channel) = mpsc::unbounded_channel();
    let (told, mut returns) = mpsc::unbounded_channel();
    let mut calls = Told { channel: Some(channel), told: Some(told), ..Told::new([]) };
    let running = tokio::spawn(async move { run(&spec, sandbox, 10, &mut calls).await });
    calls_to.send((RETURNS_AND_WAITS, 0)).unwrap();
    assert_eq!(returns.recv().await, Some(1));
    let mut second = 0;
    while second < 30 {
        tokio::time::advance(Duration::from_secs(1)).await;
        second += 1;
        if until == Some(second) {
            gate.notify_waiters();
        }
        if calls_to.send((RETURNS, 0)).is_err() || returns.recv().await.is_none() {
            break;
        }
    }
    drop(calls_to);
    let crashed = running.await.unwrap().err()?;
    Some((crashed.crash.kind().clone(), crashed.call, second))
}

#[tokio::test(start_paused = true)]
async fn what_goes_on_after_it_has_returned_has_no_more_time_though_others_come_after_it() {
    let late = CrashKind::Deadline { allowed: Duration::from_secs(10) };
    let crashed = goes_on(None).await;
    assert!(matches!(&crashed, Some((kind, Some(1), 10 | 11)) if *kind == late), "{crashed:?}");
    assert_eq!(goes_on(Some(9)).await, None);
}

#[tokio::test(start_paused = true)]
async fn calls_that_have_ended_keep_no_others_from_beginning() {
    let (_, spec, sandbox) = sandbox(ResourceLimits { deadline: Duration::from_secs(10), ..limits() }).await;
    let Host { gate, waiting, .. } = sandbox.ext().clone();
    let (calls_to, channel) = mpsc::unbounded_channel();
    let (told, mut returns) = mpsc::unbounded_channel();
    let mut calls = Told { channel: Some(channel), told: Some(told), ..Told::new([]) };
    let running = tokio::spawn(async move { run(&spec, sandbox, 10, &mut calls).await });
    // There is always one in flight.
    calls_to.send((WAITS, 0)).unwrap();
    waiting.notified().await;
    // Most of the ids that these have are not given again.
    (0..9).for_each(|_| calls_to.send((GIVES_WAY, 3)).unwrap());
    for _ in 0..9 {
        returns.recv().await.unwrap();
    }
    for second in 1..=30 {
        tokio::time::advance(Duration::from_secs(1)).await;
        if second % 6 == 0 {
            calls_to.send((WAITS, 0)).unwrap();
            waiting.notified().await;
            gate.notify_one();
            returns.recv().await.unwrap();
        }
        let now = tokio::time::Instant::now();
        calls_to.send((RETURNS, 0)).unwrap();
        returns.recv().await.unwrap();
        assert_eq!(now.elapsed(), Duration::ZERO, "after {second} s");
    }
    drop(calls_to);
    gate.notify_one();
    running.await.unwrap().unwrap();
}

#[tokio::test]
async fn what_goes_on_after_it_has_returned_is_charged_though_many_come_after_it() {
    let limits = ResourceLimits { cpu_time: Duration::from_millis(40), deadline: Duration::from_secs(600), ..limits() };
    let (engine, spec, mut sandbox) = sandbox(limits).await;
    let Host { gate, .. } = sandbox.ext().clone();
    (sandbox.ext_mut().ticks_in_step, sandbox.ext_mut().waits_after_ticks) = (Some((engine, 5)), true);
    let (calls_to, channel) = mpsc::unbounded_channel();
    let (told, mut returns) = mpsc::unbounded_channel();
    let mut calls = Told { channel: Some(channel), told: Some(told), ..Told::new([]) };
    // Not so that a channel gives only some at once.
    let running = tokio::spawn(unconstrained(async move { run(&spec, sandbox, 300, &mut calls).await }));
    calls_to.send((RETURNS_AND_WAITS_AGAIN, 0)).unwrap();
    assert_eq!(returns.recv().await, Some(1));
    // Three hundred at once each time that it goes on.
    for _ in 0..20 {
        if (0..300).any(|_| calls_to.send((RETURNS, 0)).is_err()) {
            break;
        }
        for _ in 0..300 {
            returns.recv().await;
        }
        gate.notify_one();
        tokio::task::yield_now().await;
    }
    assert!(running.is_finished(), "it goes on");
    let crashed = running.await.unwrap().unwrap_err();
    assert_eq!((crashed.crash.kind().clone(), crashed.call), (CrashKind::CpuTime { allowed: 40 }, Some(1)));
}

#[tokio::test]
async fn a_deadline_may_be_longer_than_a_clock_can_hold() {
    let (_, spec, sandbox) = sandbox(ResourceLimits { deadline: Duration::MAX, ..limits() }).await;
    let mut calls = Told::new([(RETURNS, 7), (GIVES_WAY, 3)]);
    run(&spec, sandbox, 2, &mut calls).await.unwrap();
    assert_eq!(calls.returned.len(), 2);
}

#[tokio::test]
async fn cancelled_and_dropped_all_end() {
    let (_, spec, mut sandbox) = sandbox(limits()).await;
    let does = sandbox.typed::<(u32, u32), (u32,)>(&spec.export("does").unwrap()).unwrap();
    let token = CancellationToken::new();
    let mut calls = Told::new([(WAITS, 0), (WAITS, 0)]);
    {
        let mut running = std::pin::pin!(sandbox.call_several(&does, 2, &mut calls, &token));
        assert!(running.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        token.cancel();
        let crashed = running.await.unwrap_err();
        assert_eq!((crashed.crash.kind(), crashed.call), (&CrashKind::Cancelled, None));
    }
    let mut sandbox = spec.instantiate(Host::default()).await.unwrap();
    let does = sandbox.typed::<(u32, u32), (u32,)>(&spec.export("does").unwrap()).unwrap();
    let token = CancellationToken::new();
    let mut calls = Told::new([(WAITS, 0), (WAITS, 0)]);
    let mut running = Box::pin(sandbox.call_several(&does, 2, &mut calls, &token));
    assert!(running.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    drop(running);
}

#[tokio::test]
async fn without_async_it_is_an_error() {
    let engine = engine();
    let spec = spec_in(&engine, airssys_wasm_fixtures::ADD.as_bytes(), Profile::Plain, limits());
    let mut sandbox = spec.instantiate(Host::default()).await.unwrap();
    let add = sandbox.typed::<(i32, i32), (i32,)>(&spec.export("add").unwrap()).unwrap();
    struct None;
    impl Calls<(i32, i32), (i32,), Host> for None {
        fn poll_next(&mut self, _: &mut Context<'_>, _: &mut Host) -> Poll<Option<(u64, (i32, i32))>> {
            Poll::Ready(Option::None)
        }
        fn returned(&mut self, _: u64, _: (i32,), _: &mut Host, _: u64) -> bool {
            unreachable!("nothing is called")
        }
    }
    let crashed = sandbox.call_several(&add, 2, &mut None, &CancellationToken::new()).await.unwrap_err();
    assert!(matches!(crashed.crash.kind(), CrashKind::BadValue { .. }), "{}", crashed.crash);
}
