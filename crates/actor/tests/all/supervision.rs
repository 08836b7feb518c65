//! Restarts by an actor's own policy and by supervisors, in paused time, as Erlang/OTP defines them.

use std::time::Duration;

use airssys_wasm_actor::{
    ActorRef, ActorSystem, Backoff, Directive, Intensity, Lifecycle, NativeSpec, Restart, RestartPolicy, SpawnError,
    Strategy, SupervisorPolicy, SupervisorSpec, SystemEvent,
};
use airssys_wasm_isolation::CrashClass;
use tokio::time::Instant;

use crate::support::{ACTOR, Probe, Shared, ask, id, policy, settle, spec, system};

/// Waits, in paused time, until all that can happen at once has happened.
async fn crash(actor: &ActorRef) {
    ask(actor, "crash").await.unwrap_err();
    settle().await;
}

fn at_once(restart: Restart) -> RestartPolicy {
    RestartPolicy { restart, backoff: Backoff::NONE, ..RestartPolicy::default() }
}

fn on_panic(directive: Directive) -> RestartPolicy {
    RestartPolicy { on: [(CrashClass::HostPanic, directive)].into(), ..RestartPolicy::default() }
}

#[tokio::test(start_paused = true)]
async fn permanent_transient_and_temporary_by_how_it_ended() {
    for (restart, comes_back) in [(Restart::Permanent, true), (Restart::Transient, true), (Restart::Temporary, false)] {
        let system = system();
        let (spec, _) = Probe::spec("probe");
        let actor = system.spawn_native(spec.with_restart(at_once(restart))).await.unwrap();
        crash(&actor).await;
        let state = if comes_back { Lifecycle::Running } else { Lifecycle::Stopped };
        assert_eq!(actor.state(), state, "{restart:?}");
        assert_eq!(system.find(&id("probe")).is_some(), comes_back, "{restart:?}");
    }
}

/// A component whose handler ends by WASI's `exit` with 0.
const LEAVES: &str = r#"(component
  (import "wasi:cli/exit@0.2.0" (instance $exit (export "exit" (func (param "status" (result))))))
  (core module $memory (memory (export "memory") 1)
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024)))
  (core instance $memory (instantiate $memory))
  (core func $exit (canon lower (func $exit "exit")))
  (core module $m (import "" "exit" (func $exit (param i32)))
    (func (export "handle") (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)
      (call $exit (i32.const 0)) unreachable))
  (core instance $i (instantiate $m (with "" (instance (export "exit" (func $exit))))))
  (import "airssys:actor/types@0.1.0" (instance $types
    (type $m (record (field "payload" (list u8)) (field "sender" (option string)) (field "topic" (option string))
      (field "content-type" (option string)) (field "wants-answer" bool)))
    (export "message" (type (eq $m)))))
  (alias export $types "message" (type $message))
  (func $handle (param "message" $message) (result (result (option (list u8)) (error string)))
    (canon lift (core func $i "handle") (memory (core memory $memory "memory")) (realloc (core func $memory "realloc"))))
  (instance $handler (export "handle" (func $handle)))
  (export "airssys:actor/handler@0.1.0" (instance $handler)))"#;

#[tokio::test]
async fn a_guest_that_leaves_by_itself_is_started_again_only_if_it_is_permanent() {
    for (restart, comes_back) in [(Restart::Permanent, true), (Restart::Transient, false)] {
        let system = system();
        let guest = system.engine().load_wat_blocking(LEAVES, airssys_wasm_engine::Profile::Plain).unwrap();
        let spec = spec(&system, "leaves", &guest).with_restart(at_once(restart));
        let actor = system.spawn(spec).await.unwrap();
        let airssys_wasm_actor::AskError::Crashed(report) = ask(&actor, "x").await.unwrap_err() else {
            panic!("it left")
        };
        assert_eq!(report.crash.kind().class(), CrashClass::Exit);
        settle().await;
        assert_eq!(actor.state() == Lifecycle::Running, comes_back, "{restart:?}");
    }
}

#[tokio::test]
async fn each_kind_of_crash_may_have_its_policy() {
    let system = system();
    let mut policy = RestartPolicy::default();
    policy.on.insert(CrashClass::Memory, Directive { restart: Restart::Temporary, backoff: None });
    policy.on.insert(CrashClass::Trap, Directive { restart: Restart::Permanent, backoff: Some(Backoff::NONE) });
    let actor = system.spawn(spec(&system, "actor", &ACTOR).with_restart(policy)).await.unwrap();
    for command in ["panic", "spin"] {
        ask(&actor, command).await.unwrap_err();
        assert_eq!(ask(&actor, "echo x").await.unwrap(), "x");
    }
    ask(&actor, "hoard 100000000").await.unwrap_err();
    actor.ended().await;
    assert_eq!(actor.info().restarts, 2);
}

#[tokio::test(start_paused = true)]
async fn back_off_doubles_and_starts_anew_after_a_quiet_period() {
    let system = system();
    let mut events = system.events();
    let (mut spec, _) = Probe::spec("probe");
    spec = spec.with_restart(RestartPolicy {
        intensity: Intensity { restarts: 10, within: Duration::from_secs(60) },
        backoff: Backoff { jitter: 0.0, ..Backoff::default() },
        ..RestartPolicy::default()
    });
    let actor = system.spawn_native(spec).await.unwrap();
    let mut waits = Vec::new();
    for _ in 0..4 {
        let before = Instant::now();
        ask(&actor, "crash").await.unwrap_err();
        assert_eq!(ask(&actor, "x").await.unwrap(), "x");
        waits.push(before.elapsed().as_millis());
    }
    assert_eq!(waits, [10, 20, 40, 80]);
    tokio::time::advance(Duration::from_secs(60)).await;
    let before = Instant::now();
    ask(&actor, "crash").await.unwrap_err();
    ask(&actor, "x").await.unwrap();
    assert_eq!(before.elapsed().as_millis(), 10);
    let mut announced = Vec::new();
    while let Ok(event) = events.try_recv() {
        if let SystemEvent::Restarting { after, .. } = event {
            announced.push(after.as_millis());
        }
    }
    assert_eq!(announced, [10, 20, 40, 80, 10]);
}

#[tokio::test(start_paused = true)]
async fn an_actor_that_fails_too_often_is_given_up_and_one_that_does_not_is_kept() {
    for (crashes, given_up) in [(3, false), (4, true)] {
        let system = system();
        let mut events = system.events();
        let (mut spec, _) = Probe::spec("probe");
        spec = spec.with_restart(Intensity { restarts: 3, within: Duration::from_secs(5) });
        let actor = system.spawn_native(spec).await.unwrap();
        for _ in 0..crashes {
            crash(&actor).await;
        }
        assert_eq!(actor.state() == Lifecycle::Stopped, given_up, "{crashes}");
        let mut said = false;
        while let Ok(event) = events.try_recv() {
            said |= matches!(event, SystemEvent::GivenUp { name } if name == id("probe"));
        }
        assert_eq!(said, given_up, "{crashes}");
    }
}

#[tokio::test(start_paused = true)]
async fn no_back_off_hides_a_crash_loop() {
    let slow = Backoff { first: Duration::from_secs(2), longest: Duration::from_secs(60), ..Backoff::default() };
    let by_kind = on_panic(Directive { restart: Restart::Permanent, backoff: Some(slow) });
    for policy in [RestartPolicy { backoff: slow, ..RestartPolicy::default() }, by_kind] {
        // By its own policy.
        let system = system();
        let actor = system.spawn_native(child("a").0.with_restart(policy.clone())).await.unwrap();
        crash_for_ever(&actor).await;
        assert_eq!(actor.info().restarts, 3);

        // Below a supervisor, which is patient only without a kind's own back-off.
        let system = system_of_supervisor(&policy, slow).await;
        let actor = system.find(&id("a")).unwrap();
        crash_for_ever(&actor).await;
        assert_eq!(actor.info().restarts, 3);
    }
}

async fn system_of_supervisor(child_policy: &RestartPolicy, backoff: Backoff) -> ActorSystem {
    let system = system();
    let policy = SupervisorPolicy { backoff, ..policy(Strategy::OneForOne) };
    let spec = SupervisorSpec::new(id("family"), policy).native(child("a").0.with_restart(child_policy.clone()));
    system.supervise(spec).await.unwrap();
    system
}

async fn crash_for_ever(actor: &ActorRef) {
    for _ in 0..60 {
        if ask(actor, "crash").await.is_err() && actor.state() == Lifecycle::Stopped {
            break;
        }
    }
    actor.ended().await;
}

#[tokio::test(start_paused = true)]
async fn a_killed_actor_does_not_wait_for_its_restart() {
    let system = system();
    let (mut spec, _) = Probe::spec("probe");
    let hour = Duration::from_secs(3_600);
    spec = spec.with_restart(Backoff { first: hour, longest: hour, ..Backoff::default() });
    let actor = system.spawn_native(spec).await.unwrap();
    crash(&actor).await;
    assert_eq!(actor.state(), Lifecycle::Restarting);
    let before = Instant::now();
    actor.kill();
    actor.ended().await;
    assert_eq!(before.elapsed(), Duration::ZERO);
}

/// Three children under a supervisor: how often each has been started, and the order in which they came up.
struct Family {
    system: ActorSystem,
    supervisor: airssys_wasm_actor::SupervisorRef,
    children: Vec<ActorRef>,
}

fn child(name: &str) -> (NativeSpec<Probe>, Shared) {
    Probe::spec(name)
}

async fn family(strategy: Strategy) -> Family {
    let system = system();
    let spec = ["a", "b", "c"]
        .into_iter()
        .fold(SupervisorSpec::new(id("family"), policy(strategy)), |spec, name| spec.native(child(name).0));
    let supervisor = system.supervise(spec).await.unwrap();
    let children = supervisor.actors();
    Family { system, supervisor, children }
}

impl Family {
    fn incarnations(&self) -> Vec<u64> {
        self.children.iter().map(|child| child.info().incarnation).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn strategies_take_whom_they_should() {
    for (strategy, crashed, expected) in [
        (Strategy::OneForOne, 1, [1, 2, 1]),
        (Strategy::OneForAll, 1, [2, 2, 2]),
        (Strategy::RestForOne, 1, [1, 2, 2]),
        (Strategy::RestForOne, 0, [2, 2, 2]),
        (Strategy::RestForOne, 2, [1, 1, 2]),
    ] {
        let family = family(strategy).await;
        assert_eq!(family.incarnations(), [1, 1, 1]);
        crash(&family.children[crashed]).await;
        assert_eq!(family.incarnations(), expected, "{strategy:?} {crashed}");
        for child in &family.children {
            assert_eq!(ask(child, "x").await.unwrap(), "x");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn siblings_are_ended_in_reverse_and_started_in_order() {
    let family = family(Strategy::OneForAll).await;
    let mut events = family.system.events();
    crash(&family.children[1]).await;
    let mut started = Vec::new();
    while let Ok(event) = events.try_recv() {
        if let SystemEvent::Started { actor, .. } = event {
            started.push(actor.id().to_string());
        }
    }
    assert_eq!(started, ["a", "b", "c"]);
    // A stop is an end like any other.
    family.supervisor.stop();
    family.supervisor.ended().await;
    let mut stopped = Vec::new();
    while let Ok(event) = events.try_recv() {
        if let SystemEvent::Stopped { actor } = event {
            stopped.push(actor.id().to_string());
        }
    }
    assert_eq!(stopped, ["c", "b", "a"]);
}

#[tokio::test(start_paused = true)]
async fn siblings_keep_their_queued_messages_over_a_common_restart() {
    let family = family(Strategy::OneForAll).await;
    let [a, b, c] = &family.children[..] else { panic!("three children") };
    b.try_tell("crash").unwrap();
    for n in ["1", "2", "3"] {
        a.try_tell(n).unwrap();
        c.try_tell(n).unwrap();
    }
    settle().await;
    assert_eq!(family.incarnations(), [2, 2, 2]);
    for child in [a, c] {
        assert_eq!(ask(child, "handled").await.unwrap(), "1,2,3");
    }
}

#[tokio::test(start_paused = true)]
async fn a_sibling_that_does_not_end_in_time_is_interrupted() {
    let family = family(Strategy::OneForAll).await;
    let asked = tokio::spawn({
        let a = family.children[0].clone();
        async move { ask(&a, "wait").await }
    });
    settle().await;
    let before = Instant::now();
    ask(&family.children[1], "crash").await.unwrap_err();
    let interrupted = asked.await.unwrap().unwrap_err();
    assert!(
        matches!(&interrupted, airssys_wasm_actor::AskError::Crashed(report)
        if report.crash.kind().class() == CrashClass::Cancelled),
        "{interrupted:?}"
    );
    assert_eq!(before.elapsed(), Duration::from_secs(5));
    settle().await;
    assert_eq!(family.incarnations(), [2, 2, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_supervisor_that_gives_up_ends_all_its_children() {
    let family = family(Strategy::OneForOne).await;
    for _ in 0..3 {
        crash(&family.children[0]).await;
    }
    assert_eq!(family.incarnations(), [4, 1, 1]);
    crash(&family.children[0]).await;
    family.supervisor.ended().await;
    for child in &family.children {
        assert_eq!(child.state(), Lifecycle::Stopped);
    }
    assert!(family.system.actors().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_failure_goes_up_the_tree_and_stops_where_it_is_answered() {
    let system = system();
    let inner = |name: &str, children: &[&str]| {
        children
            .iter()
            .fold(SupervisorSpec::new(id(name), policy(Strategy::OneForOne)), |spec, name| spec.native(child(name).0))
    };
    let spec = SupervisorSpec::new(id("top"), policy(Strategy::OneForOne))
        .supervisor(inner("left", &["a", "b"]))
        .supervisor(inner("right", &["c"]));
    let supervisor = system.supervise(spec).await.unwrap();
    let [a, b, c] = &supervisor.actors()[..] else { panic!("three actors") };
    for _ in 0..4 {
        crash(a).await;
    }
    settle().await;
    // The fourth was too many for `left`, which `top` has started again: `b` with it, `c` not.
    assert_eq!([a, b, c].map(|actor| actor.info().incarnation), [5, 2, 1]);
    for actor in [a, b, c] {
        assert_eq!(ask(actor, "x").await.unwrap(), "x");
    }
    supervisor.stop();
    supervisor.ended().await;
    assert!(system.actors().is_empty());
}

#[tokio::test]
async fn a_supervisor_whose_child_never_starts_is_refused_with_the_reason() {
    let system = system();
    let never = || {
        let mut never = spec(&system, "never", &ACTOR);
        never = never.with_config([("init", "fail")]);
        never
    };
    let supervisor = |name: &str| SupervisorSpec::new(id(name), policy(Strategy::OneForOne));
    // Also where it is below another.
    for family in [
        supervisor("family").native(child("a").0).actor(never()).native(child("c").0),
        supervisor("outer").native(child("a").0).supervisor(supervisor("inner").actor(never())),
    ] {
        let mut events = system.events();
        let error = system.supervise(family).await.unwrap_err();
        assert!(matches!(&error, SpawnError::Start { id: who, .. } if *who == id("never")), "{error:?}");
        assert!(error.to_string().contains("told to fail"), "{error}");
        assert!(system.actors().is_empty());
        while let Ok(event) = events.try_recv() {
            assert!(!matches!(event, SystemEvent::GivenUp { .. }), "{event:?}");
        }
    }
}

#[tokio::test]
async fn a_name_that_is_taken_below_a_supervisor_leaves_nothing() {
    let system = system();
    let (holder, _) = Probe::spawn(&system, "b").await;
    let spec = SupervisorSpec::new(id("family"), policy(Strategy::OneForOne)).native(child("a").0).native(child("b").0);
    assert!(matches!(system.supervise(spec).await, Err(SpawnError::NameTaken(_))));
    assert_eq!(system.actors().len(), 1);
    assert_eq!(ask(&holder, "x").await.unwrap(), "x");
}

#[tokio::test(start_paused = true)]
async fn temporary_children_are_not_started_again_with_their_siblings() {
    let system = system();
    let temporary = child("b").0.with_restart(Restart::Temporary);
    let spec = SupervisorSpec::new(id("family"), policy(Strategy::OneForAll)).native(child("a").0).native(temporary);
    let supervisor = system.supervise(spec).await.unwrap();
    let [a, b] = &supervisor.actors()[..] else { panic!("two actors") };
    crash(a).await;
    assert_eq!((a.info().incarnation, b.state()), (2, Lifecycle::Stopped));
}

#[tokio::test(start_paused = true)]
async fn a_child_that_is_stopped_by_the_host_stays_stopped() {
    let family = family(Strategy::OneForAll).await;
    family.children[1].stop(airssys_wasm_actor::Stop::Drain);
    family.children[1].ended().await;
    settle().await;
    assert_eq!(family.incarnations(), [1, 1, 1]);
    crash(&family.children[0]).await;
    assert_eq!(family.incarnations(), [2, 1, 2]);
}

#[tokio::test(start_paused = true)]
async fn one_child_in_back_off_does_not_keep_another_from_its_restart() {
    let system = system();
    let slow = Backoff { first: Duration::from_secs(60), longest: Duration::from_secs(60), jitter: 0.0, factor: 1.0 };
    let a = child("a").0.with_restart(on_panic(Directive { restart: Restart::Permanent, backoff: Some(slow) }));
    let spec = SupervisorSpec::new(id("family"), policy(Strategy::OneForOne)).native(a).native(child("b").0);
    let supervisor = system.supervise(spec).await.unwrap();
    let [a, b] = &supervisor.actors()[..] else { panic!("two actors") };
    crash(a).await;
    crash(b).await;
    assert_eq!((a.state(), b.state()), (Lifecycle::Restarting, Lifecycle::Running));
    let before = Instant::now();
    assert_eq!(ask(a, "x").await.unwrap(), "x");
    assert_eq!(before.elapsed(), Duration::from_secs(60));
}

#[tokio::test(start_paused = true)]
async fn a_child_that_is_killed_while_it_is_busy_takes_nobody_with_it() {
    let family = family(Strategy::OneForAll).await;
    let mut events = family.system.events();
    for at in [1, 2] {
        let asked = tokio::spawn({
            let child = family.children[at].clone();
            async move { ask(&child, "wait").await }
        });
        settle().await;
        family.children[at].kill();
        asked.await.unwrap().unwrap_err();
        family.children[at].ended().await;
    }
    settle().await;
    assert_eq!(family.incarnations(), [1, 1, 1]);
    assert_eq!(ask(&family.children[0], "x").await.unwrap(), "x");
    while let Ok(event) = events.try_recv() {
        assert!(!matches!(event, SystemEvent::Restarting { .. } | SystemEvent::GivenUp { .. }), "{event:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn transient_children_and_kinds_of_crash_have_their_say_below_a_supervisor() {
    let system = system();
    let a = child("a").0.with_restart(on_panic(Directive { restart: Restart::Temporary, backoff: None }));
    let spec = SupervisorSpec::new(id("family"), policy(Strategy::OneForAll)).native(a).native(child("b").0);
    let supervisor = system.supervise(spec).await.unwrap();
    let [a, b] = &supervisor.actors()[..] else { panic!("two actors") };
    crash(a).await;
    assert_eq!((a.state(), b.info().incarnation), (Lifecycle::Stopped, 1));
}

#[tokio::test]
async fn supervising_that_is_given_up_half_way_leaves_nothing() {
    let system = system();
    {
        let spec = SupervisorSpec::new(id("family"), policy(Strategy::OneForOne)).native(child("a").0);
        let mut supervising = Box::pin(system.supervise(spec));
        assert!(crate::support::poll_once(supervising.as_mut()).is_pending());
        assert!(system.find(&id("a")).is_some());
    }
    while system.find(&id("a")).is_some() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_shortage_of_the_host_is_waited_out() {
    use airssys_wasm_engine::{EngineConfig, PoolConfig, WasmEngine};
    let pool = PoolConfig { components: 1, ..PoolConfig::for_components(1) };
    let engine =
        WasmEngine::new(EngineConfig { pool: Some(pool), ..EngineConfig::default().compile_in_process() }).unwrap();
    let system = ActorSystem::new(engine, airssys_wasm_actor::SystemConfig::default());
    let guest = system.engine().load_blocking(airssys_wasm_fixtures::COUNTER, Default::default()).unwrap();
    let mut patient = spec(&system, "patient", &guest);
    patient = patient.with_restart(RestartPolicy {
        intensity: Intensity { restarts: 1, within: Duration::from_secs(60) },
        backoff: Backoff { jitter: 0.0, ..Backoff::default() },
        ..RestartPolicy::default()
    });
    let patient = system.spawn(patient).await.unwrap();
    patient.try_tell("crash").unwrap();
    while patient.state() != Lifecycle::Restarting {
        tokio::task::yield_now().await;
    }
    // Its place is taken by another for a while.
    let other = system.spawn(spec(&system, "other", &guest)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(patient.state(), Lifecycle::Restarting);
    other.kill();
    other.ended().await;
    assert_eq!(ask(&patient, "add 1").await.unwrap(), "1");
    assert_eq!(patient.info().restarts, 1);
}
