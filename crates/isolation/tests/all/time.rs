//! CPU time, deadlines, fairness and cancellation, with epochs cranked by hand and paused time.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use airssys_wasm_engine::{EngineConfig, Profile, Ticking, WasmEngine};
use airssys_wasm_fixtures::{ADD, COMPUTE, HOST_CALLS, RUST, SPIN, SPIN_IN_START};
use airssys_wasm_isolation::{Crash, CrashKind, Sandbox, SandboxSpec};
use airssys_wasm_limits::{CallLimits, CallPhase, CancellationToken, MemoryBudget, ResourceLimits};
use tokio::task::JoinHandle;

use crate::{Host, call, engine, limits, spec_in, start_crash};

/// A task that is a guest's only neighbour on its worker: it does something whenever it gets a turn, and each turn has
/// a thread end the epoch, which gives it the next.
pub(super) struct Neighbour {
    task: JoinHandle<()>,
    done: Arc<AtomicBool>,
}

impl Neighbour {
    pub(super) fn spawn<F: Future<Output = ()> + Send>(
        engine: &WasmEngine,
        turn: impl Fn() -> F + Send + 'static,
    ) -> Self {
        let turns = Arc::new(AtomicU32::new(0));
        let done = Arc::new(AtomicBool::new(false));
        std::thread::spawn({
            let (engine, turns, done) = (engine.clone(), Arc::clone(&turns), Arc::clone(&done));
            move || {
                while !done.load(Ordering::Relaxed) {
                    let seen = turns.load(Ordering::Relaxed);
                    engine.tick();
                    // An epoch that ended just before the guest was called does not interrupt it: then end another.
                    for _ in 0..1_000 {
                        if turns.load(Ordering::Relaxed) != seen {
                            break;
                        }
                        std::thread::yield_now();
                    }
                }
            }
        });
        let task = tokio::spawn({
            let done = Arc::clone(&done);
            async move {
                while !done.load(Ordering::Relaxed) {
                    turn().await;
                    turns.fetch_add(1, Ordering::Relaxed);
                    tokio::task::yield_now().await;
                }
            }
        });
        Self { task, done }
    }

    pub(super) async fn end(self) {
        self.done.store(true, Ordering::Relaxed);
        self.task.await.unwrap();
    }
}

fn cpu_ticks(ticks: u64) -> ResourceLimits {
    ResourceLimits { cpu_time: Duration::from_millis(ticks), ..limits() }
}

#[tokio::test]
async fn a_tight_loop_is_stopped_a_tick_after_its_cpu_time() {
    let engine = engine();
    let spec = spec_in(&engine, SPIN.as_bytes(), Profile::Plain, cpu_ticks(5));
    let sandbox = spec.instantiate(Host::default()).await.unwrap();
    let neighbour = Neighbour::spawn(&engine, || async {});
    let crash = call(&spec, sandbox, "spin", None).await.unwrap_err();
    assert_eq!(*crash.kind(), CrashKind::CpuTime { allowed: 5 });
    assert!(crash.usage().cpu_ticks > 5);
    assert_eq!(crash.export(), Some("spin"));
    assert_eq!(crash.backtrace().len(), 1);
    neighbour.end().await;
}

#[tokio::test]
async fn a_loop_in_start_code_is_stopped_too() {
    let engine = engine();
    let spec = spec_in(&engine, SPIN_IN_START.as_bytes(), Profile::Plain, cpu_ticks(3));
    let neighbour = Neighbour::spawn(&engine, || async {});
    let crash = start_crash(&spec).await;
    assert_eq!(*crash.kind(), CrashKind::CpuTime { allowed: 3 });
    assert_eq!(crash.export(), None);
    neighbour.end().await;
}

#[tokio::test]
async fn start_code_has_the_cpu_time_of_its_phase() {
    for (init, allowed) in [(Some(6), 6), (Some(2), 2), (None, 3)] {
        let engine = engine();
        let mut limits = cpu_ticks(3);
        limits.init.cpu_time = init.map(Duration::from_millis);
        let spec = spec_in(&engine, SPIN_IN_START.as_bytes(), Profile::Plain, limits);
        let neighbour = Neighbour::spawn(&engine, || async {});
        let crash = start_crash(&spec).await;
        assert_eq!(*crash.kind(), CrashKind::CpuTime { allowed });
        neighbour.end().await;
    }
}

/// Calls an export under the limits of a phase.
async fn call_in(
    phase: CallPhase,
    spec: &SandboxSpec<Host>,
    mut sandbox: Sandbox<Host>,
    name: &str,
    n: u32,
) -> Result<Sandbox<Host>, Crash> {
    let export = spec.export(name).unwrap();
    let token = CancellationToken::new();
    if name == "waits" {
        let waits = sandbox.typed::<(u32,), ()>(&export).unwrap();
        return sandbox.call_in(phase, &waits, (n,), &token).await.map(|((), sandbox)| sandbox);
    }
    let counts = sandbox.typed::<(u32,), (u32,)>(&export).unwrap();
    sandbox.call_in(phase, &counts, (n,), &token).await.map(|(_, sandbox)| sandbox)
}

#[tokio::test]
async fn each_phase_has_its_cpu_time_and_the_next_message_its_own() {
    let engine = engine();
    let ticks = |ticks| CallLimits { cpu_time: Some(Duration::from_millis(ticks)), ..CallLimits::default() };
    let limits = ResourceLimits { init: ticks(9), snapshot: ticks(6), ..cpu_ticks(3) };
    let spec = spec_in(&engine, HOST_CALLS.as_bytes(), Profile::Plain, limits);
    let phases = [(CallPhase::Init, 9), (CallPhase::Snapshot, 6), (CallPhase::Shutdown, 3), (CallPhase::Message, 3)];
    for (phase, allowed) in phases {
        let host = Host { ticks_in_step: Some((engine.clone(), 1)), ..Host::default() };
        let mut sandbox = spec.instantiate(host.clone()).await.unwrap();
        for _ in 0..2 {
            sandbox = call_in(phase, &spec, sandbox, "steps", allowed).await.unwrap();
            sandbox = call(&spec, sandbox, "steps", Some(3)).await.unwrap();
        }
        let crash = call(&spec, sandbox, "steps", Some(4)).await.unwrap_err();
        assert_eq!(*crash.kind(), CrashKind::CpuTime { allowed: 3 }, "after {phase:?}");
        let sandbox = spec.instantiate(host).await.unwrap();
        let crash = call_in(phase, &spec, sandbox, "steps", allowed + 1).await.unwrap_err();
        assert_eq!(*crash.kind(), CrashKind::CpuTime { allowed: allowed.into() }, "{phase:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn each_phase_has_its_deadline() {
    let long = CallLimits { deadline: Some(Duration::from_secs(60)), ..CallLimits::default() };
    let limits = ResourceLimits { deadline: Duration::from_secs(5), init: long, ..limits() };
    let spec = spec_in(&engine(), HOST_CALLS.as_bytes(), Profile::Plain, limits);
    let host = Host::default();
    let gate = Arc::clone(&host.gate);
    let mut sandbox = spec.instantiate(host).await.unwrap();
    let opener = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(50)).await;
        gate.notify_one();
    });
    sandbox = call_in(CallPhase::Init, &spec, sandbox, "waits", 1).await.unwrap();
    opener.await.unwrap();
    let crash = call(&spec, sandbox, "wait", None).await.unwrap_err();
    assert_eq!(*crash.kind(), CrashKind::Deadline { allowed: Duration::from_secs(5) });
    let sandbox = spec.instantiate(Host::default()).await.unwrap();
    let crash = call_in(CallPhase::Init, &spec, sandbox, "waits", 1).await.unwrap_err();
    assert_eq!(*crash.kind(), CrashKind::Deadline { allowed: Duration::from_secs(60) });
}

#[tokio::test]
async fn each_phase_has_its_fuel_also_where_messages_have_all_they_want() {
    let engine = engine();
    for fuel in [Some(1_000), None] {
        let init = CallLimits { fuel: Some(100_000), ..CallLimits::default() };
        let limits = ResourceLimits { fuel, init, ..limits() };
        let spec = spec_in(&engine, COMPUTE.as_bytes(), Profile::Metered, limits);
        let sandbox = spec.instantiate(Host::default()).await.unwrap();
        let sandbox = call_in(CallPhase::Init, &spec, sandbox, "tight", 1_000).await.unwrap();
        assert!(sandbox.usage().fuel.unwrap() > 1_000);
        let message = call(&spec, sandbox, "tight", Some(1_000)).await;
        match fuel {
            Some(allowed) => assert_eq!(*message.unwrap_err().kind(), CrashKind::OutOfFuel { allowed }),
            None => _ = message.unwrap(),
        }
        let sandbox = spec.instantiate(Host::default()).await.unwrap();
        let crash = call_in(CallPhase::Init, &spec, sandbox, "tight", 1_000_000).await.unwrap_err();
        assert_eq!(*crash.kind(), CrashKind::OutOfFuel { allowed: 100_000 });
        assert!(crash.usage().fuel.unwrap() <= 100_000);
    }
}

#[tokio::test]
async fn cpu_time_is_counted_anew_for_each_call() {
    let engine = engine();
    let spec = spec_in(&engine, HOST_CALLS.as_bytes(), Profile::Plain, cpu_ticks(3));
    let host = Host { ticks_in_step: Some((engine.clone(), 1)), ..Host::default() };
    let mut sandbox = spec.instantiate(host).await.unwrap();
    for _ in 0..5 {
        sandbox = call(&spec, sandbox, "steps", Some(3)).await.unwrap();
        assert_eq!(sandbox.usage().cpu_ticks, 3);
    }
    // Work that the host does for a guest without waiting is the guest's.
    let crash = call(&spec, sandbox, "steps", Some(4)).await.unwrap_err();
    assert_eq!(*crash.kind(), CrashKind::CpuTime { allowed: 3 });
}

#[tokio::test]
async fn waiting_is_not_cpu_time() {
    let engine = engine();
    let spec = spec_in(&engine, HOST_CALLS.as_bytes(), Profile::Plain, cpu_ticks(1));
    let host = Host::default();
    let (gate, waiting) = (Arc::clone(&host.gate), Arc::clone(&host.waiting));
    let sandbox = spec.instantiate(host).await.unwrap();
    let opener = tokio::spawn(async move {
        for _ in 0..10 {
            waiting.notified().await;
            (0..5).for_each(|_| engine.tick());
            gate.notify_one();
        }
    });
    let sandbox = call(&spec, sandbox, "waits", Some(10)).await.unwrap();
    assert_eq!(sandbox.usage().cpu_ticks, 0);
    opener.await.unwrap();
}

#[tokio::test]
async fn every_tick_of_a_host_call_that_works_is_counted() {
    let engine = engine();
    let spec = spec_in(&engine, HOST_CALLS.as_bytes(), Profile::Plain, cpu_ticks(7));
    let host = Host { ticks_in_step: Some((engine.clone(), 7)), ..Host::default() };
    let sandbox = spec.instantiate(host).await.unwrap();
    let sandbox = call(&spec, sandbox, "steps", Some(1)).await.unwrap();
    assert_eq!(sandbox.usage().cpu_ticks, 7);
    let crash = call(&spec, sandbox, "steps", Some(2)).await.unwrap_err();
    assert_eq!(*crash.kind(), CrashKind::CpuTime { allowed: 7 });
}

#[tokio::test]
async fn waiting_does_not_wipe_out_what_was_used_before() {
    let engine = engine();
    let spec = spec_in(&engine, HOST_CALLS.as_bytes(), Profile::Plain, cpu_ticks(10));
    let host = Host { ticks_in_step: Some((engine.clone(), 1)), ..Host::default() };
    let (gate, waiting) = (Arc::clone(&host.gate), Arc::clone(&host.waiting));
    let sandbox = spec.instantiate(host).await.unwrap();
    tokio::spawn(async move {
        loop {
            waiting.notified().await;
            engine.tick();
            gate.notify_one();
        }
    });
    let sandbox = call(&spec, sandbox, "steps-and-waits", Some(10)).await.unwrap();
    assert_eq!(sandbox.usage().cpu_ticks, 10);
    let crash = call(&spec, sandbox, "steps-and-waits", Some(11)).await.unwrap_err();
    assert_eq!(*crash.kind(), CrashKind::CpuTime { allowed: 10 });
}

/// A host in which each step takes so many microseconds, and that gives way where the guest waits.
fn stepping(engine: &WasmEngine, micros: u64) -> Host {
    let time_in_step = Some((engine.clone(), Duration::from_micros(micros)));
    Host { time_in_step, wait: crate::Wait::GivesWay, ..Host::default() }
}

#[tokio::test]
async fn a_guest_that_gives_way_before_each_tick_is_charged_what_it_used() {
    let engine = engine();
    let spec = spec_in(&engine, HOST_CALLS.as_bytes(), Profile::Plain, cpu_ticks(9));
    // After each of its stretches somebody else has the worker while the tick ends.
    let neighbour = tokio::spawn({
        let engine = engine.clone();
        async move {
            loop {
                engine.pass_time(Duration::from_micros(100));
                tokio::task::yield_now().await;
            }
        }
    });
    let sandbox = spec.instantiate(stepping(&engine, 900)).await.unwrap();
    // The first stretch is not timed.
    let sandbox = call(&spec, sandbox, "steps-and-waits", Some(11)).await.unwrap();
    assert_eq!(sandbox.usage().cpu_ticks, 9);
    let crash = call(&spec, sandbox, "steps-and-waits", Some(100)).await.unwrap_err();
    assert_eq!(*crash.kind(), CrashKind::CpuTime { allowed: 9 });
    assert_eq!(crash.usage().cpu_ticks, 10);
    neighbour.abort();

    // Short stretches add up as well, and long waits in between do not.
    let sandbox = spec.instantiate(stepping(&engine, 90)).await.unwrap();
    let neighbour = tokio::spawn({
        let engine = engine.clone();
        async move {
            loop {
                engine.pass_time(Duration::from_micros(3_910));
                tokio::task::yield_now().await;
            }
        }
    });
    let sandbox = call(&spec, sandbox, "steps-and-waits", Some(95)).await.unwrap();
    assert!((8..=9).contains(&sandbox.usage().cpu_ticks), "{:?}", sandbox.usage());
    neighbour.abort();
}

#[tokio::test]
async fn a_neighbour_is_not_charged_for_those_who_give_way_before_each_tick() {
    const STRETCHES: u32 = 51;
    let engine = engine();
    let greedy = spec_in(&engine, HOST_CALLS.as_bytes(), Profile::Plain, cpu_ticks(1_000));
    let spec = spec_in(&engine, HOST_CALLS.as_bytes(), Profile::Plain, cpu_ticks(6));
    let sandbox = greedy.instantiate(stepping(&engine, 900)).await.unwrap();
    let thief = tokio::spawn(async move { call(&greedy, sandbox, "steps-and-waits", Some(STRETCHES)).await });
    // Each of its stretches is a tenth of a tick, and has the end of the tick in it.
    let sandbox = spec.instantiate(stepping(&engine, 100)).await.unwrap();
    let sandbox = call(&spec, sandbox, "steps-and-waits", Some(STRETCHES)).await.unwrap();
    let thief = thief.await.unwrap().unwrap();
    // Fifty tenths, and the first stretch, which is charged nothing or a tick.
    assert!((5..=6).contains(&sandbox.usage().cpu_ticks), "{:?}", sandbox.usage());
    assert!((45..=46).contains(&thief.usage().cpu_ticks), "{:?}", thief.usage());
    // Where it uses as much by itself, it is ended.
    let sandbox = spec.instantiate(stepping(&engine, 1_000)).await.unwrap();
    let crash = call(&spec, sandbox, "steps-and-waits", Some(STRETCHES)).await.unwrap_err();
    assert_eq!(*crash.kind(), CrashKind::CpuTime { allowed: 6 });
}

#[tokio::test]
async fn what_the_host_works_before_it_waits_is_charged() {
    let engine = engine();
    let spec = spec_in(&engine, HOST_CALLS.as_bytes(), Profile::Plain, cpu_ticks(5));
    let host = Host { wait: crate::Wait::WorksAndGivesWay, ..stepping(&engine, 1_000) };
    let sandbox = spec.instantiate(host).await.unwrap();
    let sandbox = call(&spec, sandbox, "waits", Some(5)).await.unwrap();
    assert_eq!(sandbox.usage().cpu_ticks, 5);
    let crash = call(&spec, sandbox, "waits", Some(7)).await.unwrap_err();
    assert_eq!(*crash.kind(), CrashKind::CpuTime { allowed: 5 });
}

#[tokio::test(start_paused = true)]
async fn what_the_host_works_without_end_is_ended_by_the_guests_cpu_time() {
    let engine = engine();
    let spec = spec_in(&engine, HOST_CALLS.as_bytes(), Profile::Plain, cpu_ticks(5));
    let host = Host { wait: crate::Wait::WorksWithoutEnd, ..stepping(&engine, 1_000) };
    let sandbox = spec.instantiate(host).await.unwrap();
    let crash = call(&spec, sandbox, "waits", Some(1)).await.unwrap_err();
    assert_eq!(*crash.kind(), CrashKind::CpuTime { allowed: 5 });
    assert!((7..=9).contains(&crash.usage().cpu_ticks), "{:?}", crash.usage());
}

#[tokio::test(start_paused = true)]
async fn a_guest_cannot_keep_the_deadline_from_being_looked_at() {
    let limits = ResourceLimits { deadline: Duration::from_secs(5), ..limits() };
    let spec = spec_in(&engine(), HOST_CALLS.as_bytes(), Profile::Plain, limits);
    let host = Host { wait: crate::Wait::UsingUpTheBudget, ..Host::default() };
    let sandbox = spec.instantiate(host).await.unwrap();
    let sandbox = call(&spec, sandbox, "waits", Some(3)).await.unwrap();
    let crash = call(&spec, sandbox, "waits", Some(100)).await.unwrap_err();
    assert_eq!(*crash.kind(), CrashKind::Deadline { allowed: Duration::from_secs(5) });
}

#[tokio::test(start_paused = true)]
async fn a_host_function_that_panics_when_it_is_given_up_does_not_take_the_host_with_it() {
    let spec = spec_in(&engine(), HOST_CALLS.as_bytes(), Profile::Plain, limits());
    let host = Host { wait: crate::Wait::ForeverAndPanicOnDrop, ..Host::default() };
    let sandbox = spec.instantiate(host).await.unwrap();
    let crash = call(&spec, sandbox, "wait", None).await.unwrap_err();
    assert_eq!(*crash.kind(), CrashKind::HostPanic { message: "dropped".into() });
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_waits_in_a_host_call_is_stopped_at_its_deadline() {
    let limits = ResourceLimits { deadline: Duration::from_secs(5), ..limits() };
    let spec = spec_in(&engine(), HOST_CALLS.as_bytes(), Profile::Plain, limits);
    let sandbox = spec.instantiate(Host::default()).await.unwrap();
    let started = tokio::time::Instant::now();
    let crash = call(&spec, sandbox, "wait", None).await.unwrap_err();
    assert_eq!(*crash.kind(), CrashKind::Deadline { allowed: Duration::from_secs(5) });
    let waited = started.elapsed();
    assert!(waited >= Duration::from_secs(5) && waited < Duration::from_millis(5_010), "{waited:?}");

    // A host that answers a moment earlier.
    let host = Host::default();
    let gate = Arc::clone(&host.gate);
    let sandbox = spec.instantiate(host).await.unwrap();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(4_990)).await;
        gate.notify_one();
    });
    call(&spec, sandbox, "wait", None).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn many_short_waits_do_not_put_off_the_deadline() {
    let limits = ResourceLimits { deadline: Duration::from_secs(5), ..limits() };
    let spec = spec_in(&engine(), HOST_CALLS.as_bytes(), Profile::Plain, limits);
    let host = Host::default();
    let gate = Arc::clone(&host.gate);
    let sandbox = spec.instantiate(host).await.unwrap();
    let opener = tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            gate.notify_one();
        }
    });
    let crash = call(&spec, sandbox, "waits", Some(1_000)).await.unwrap_err();
    assert_eq!(*crash.kind(), CrashKind::Deadline { allowed: Duration::from_secs(5) });
    opener.abort();
}

#[tokio::test(start_paused = true)]
async fn a_deadline_holds_for_a_guest_that_computes() {
    let engine = engine();
    let limits =
        ResourceLimits { deadline: Duration::from_millis(20), cpu_time: Duration::from_secs(3_600), ..limits() };
    let spec = spec_in(&engine, SPIN.as_bytes(), Profile::Plain, limits);
    let sandbox = spec.instantiate(Host::default()).await.unwrap();
    let neighbour = Neighbour::spawn(&engine, || tokio::time::advance(Duration::from_millis(1)));
    let crash = call(&spec, sandbox, "spin", None).await.unwrap_err();
    assert_eq!(*crash.kind(), CrashKind::Deadline { allowed: Duration::from_millis(20) });
    neighbour.end().await;
}

#[tokio::test]
async fn a_neighbour_on_the_same_worker_keeps_answering() {
    let engine = engine();
    let burner = spec_in(&engine, HOST_CALLS.as_bytes(), Profile::Plain, cpu_ticks(100));
    let add = spec_in(&engine, ADD.as_bytes(), Profile::Plain, limits());
    let answers = Arc::new(AtomicU32::new(0));
    let neighbour = tokio::spawn({
        let answers = Arc::clone(&answers);
        let export = add.export("add").unwrap();
        async move {
            loop {
                let mut sandbox = add.instantiate(Host::default()).await.unwrap();
                let add = sandbox.typed::<(i32, i32), (i32,)>(&export).unwrap();
                assert_eq!(sandbox.call(&add, (20, 22)).await.unwrap().0, (42,));
                answers.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
            }
        }
    });
    // An epoch ends with each step, and the guest never waits.
    let host = Host { ticks_in_step: Some((engine.clone(), 1)), ..Host::default() };
    let sandbox = burner.instantiate(host).await.unwrap();
    call(&burner, sandbox, "steps", Some(100)).await.unwrap();
    let answered = answers.load(Ordering::Relaxed);
    assert!((99..=101).contains(&answered), "{answered} answers in 100 ticks");
    neighbour.abort();
}

#[tokio::test]
async fn a_computation_goes_on_after_each_tick() {
    let engine = engine();
    let spec = spec_in(&engine, HOST_CALLS.as_bytes(), Profile::Plain, cpu_ticks(100));
    let host = Host { ticks_in_step: Some((engine.clone(), 1)), ..Host::default() };
    let mut sandbox = spec.instantiate(host).await.unwrap();
    let steps = sandbox.typed::<(u32,), (u32,)>(&spec.export("steps").unwrap()).unwrap();
    let ((last,), sandbox) = sandbox.call(&steps, (100,)).await.unwrap();
    assert_eq!((last, sandbox.usage().cpu_ticks), (100, 100));
}

#[tokio::test]
async fn the_epoch_thread_ticks_by_itself() {
    let config = EngineConfig {
        ticking: Ticking::Every(Duration::from_millis(1)),
        ..EngineConfig::small().compile_in_process()
    };
    let engine = WasmEngine::new(config).unwrap();
    let spec = spec_in(&engine, SPIN.as_bytes(), Profile::Plain, cpu_ticks(5));
    let sandbox = spec.instantiate(Host::default()).await.unwrap();
    // The spec keeps the epoch advancing.
    drop(engine);
    let crash = call(&spec, sandbox, "spin", None).await.unwrap_err();
    assert_eq!(*crash.kind(), CrashKind::CpuTime { allowed: 5 });
}

#[tokio::test]
async fn metered_code_ticks_as_well() {
    let engine = engine();
    let spec = spec_in(&engine, SPIN.as_bytes(), Profile::Metered, cpu_ticks(2));
    let sandbox = spec.instantiate(Host::default()).await.unwrap();
    let neighbour = Neighbour::spawn(&engine, || async {});
    let crash = call(&spec, sandbox, "spin", None).await.unwrap_err();
    assert_eq!(*crash.kind(), CrashKind::CpuTime { allowed: 2 });
    neighbour.end().await;
}

#[tokio::test]
async fn a_waiting_call_is_cancelled_at_once_and_a_computing_one_at_the_next_tick() {
    let engine = engine();
    let token = CancellationToken::new();

    let spec = spec_in(&engine, HOST_CALLS.as_bytes(), Profile::Plain, limits());
    let host = Host::default();
    let waiting = Arc::clone(&host.waiting);
    let mut sandbox = spec.instantiate_until(host, &token).await.unwrap();
    let wait = sandbox.typed::<(), ()>(&spec.export("wait").unwrap()).unwrap();
    let canceller = tokio::spawn({
        let token = token.clone();
        async move {
            waiting.notified().await;
            token.cancel();
        }
    });
    let crash = sandbox.call_until(&wait, (), &token).await.unwrap_err();
    assert_eq!(*crash.kind(), CrashKind::Cancelled);
    canceller.await.unwrap();

    let spec = spec_in(&engine, SPIN.as_bytes(), Profile::Plain, cpu_ticks(1_000_000));
    let mut sandbox = spec.instantiate(Host::default()).await.unwrap();
    let spin = sandbox.typed::<(), ()>(&spec.export("spin").unwrap()).unwrap();
    let neighbour = Neighbour::spawn(&engine, || async {});
    let crash = sandbox.call_until(&spin, (), &token).await.unwrap_err();
    assert_eq!(*crash.kind(), CrashKind::Cancelled);
    assert!(crash.usage().cpu_ticks >= 1);

    let start = spec_in(&engine, SPIN_IN_START.as_bytes(), Profile::Plain, cpu_ticks(1_000_000));
    let error = start.instantiate_until(Host::default(), &token).await.unwrap_err();
    assert!(
        matches!(&error, airssys_wasm_isolation::InstantiateError::Crash(crash) if *crash.kind() == CrashKind::Cancelled)
    );
    neighbour.end().await;
}

#[tokio::test]
async fn a_token_that_is_not_cancelled_changes_nothing() {
    let token = CancellationToken::new();
    let spec = spec_in(&engine(), HOST_CALLS.as_bytes(), Profile::Plain, limits());
    let host = Host::default();
    host.gate.notify_one();
    let mut sandbox = spec.instantiate_until(host, &token).await.unwrap();
    let wait = sandbox.typed::<(), ()>(&spec.export("wait").unwrap()).unwrap();
    sandbox.call_until(&wait, (), &token).await.unwrap();
}

#[tokio::test]
async fn a_dropped_call_frees_what_the_guest_had() {
    let budget = MemoryBudget::new(airssys_wasm_limits::ByteSize::gib(1));
    let spec = spec_in(&engine(), HOST_CALLS.as_bytes(), Profile::Plain, limits()).with_budget(budget.clone());
    let sandbox = spec.instantiate(Host::default()).await.unwrap();
    assert!(budget.used() > 0);
    let mut pending = Box::pin(call(&spec, sandbox, "wait", None));
    assert!(futures_poll(pending.as_mut()).await.is_none());
    drop(pending);
    assert_eq!(budget.used(), 0);
}

/// Polls once.
async fn futures_poll<F: Future>(mut future: std::pin::Pin<&mut F>) -> Option<F::Output> {
    std::future::poll_fn(|cx| match future.as_mut().poll(cx) {
        std::task::Poll::Ready(output) => std::task::Poll::Ready(Some(output)),
        std::task::Poll::Pending => std::task::Poll::Ready(None),
    })
    .await
}

#[tokio::test]
async fn a_compiled_guest_waits_and_goes_on() {
    let spec = spec_in(&engine(), RUST, Profile::Plain, limits());
    let host = Host::default();
    let (gate, waiting) = (Arc::clone(&host.gate), Arc::clone(&host.waiting));
    let mut sandbox = spec.instantiate(host).await.unwrap();
    let pause = sandbox.typed::<(), (String,)>(&spec.export("fixture:guest/api@1.0.0#pause").unwrap()).unwrap();
    tokio::spawn(async move {
        waiting.notified().await;
        gate.notify_one();
    });
    let ((answer,), sandbox) = sandbox.call(&pause, ()).await.unwrap();
    assert_eq!((answer.as_str(), sandbox.ext().lines.as_slice()), ("waited", &["before".into(), "after".into()][..]));
}

#[tokio::test]
async fn what_a_host_function_computes_before_it_gives_way_is_charged() {
    let engine = engine();
    let ticks =
        |ticks| Host { wait: crate::Wait::GivingWay, ticks_in_step: Some((engine.clone(), ticks)), ..Host::default() };
    let limits = ResourceLimits { cpu_time: Duration::from_millis(10), ..limits() };
    let spec = spec_in(&engine, HOST_CALLS.as_bytes(), Profile::Plain, limits);
    let sandbox = spec.instantiate(ticks(10)).await.unwrap();
    let sandbox = call(&spec, sandbox, "wait", None).await.unwrap();
    assert_eq!(sandbox.usage().cpu_ticks, 10);
    let sandbox = spec.instantiate(ticks(11)).await.unwrap();
    let crash = call(&spec, sandbox, "wait", None).await.unwrap_err();
    assert_eq!(*crash.kind(), CrashKind::CpuTime { allowed: 10 });
}
