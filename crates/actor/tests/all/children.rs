//! Supervisors whose children come and go.

use std::{future::pending, pin::pin, time::Duration};

use airssys_wasm_actor::{
    ActorRef, ActorSystem, Backoff, Bytes, ChildError, Intensity, Lifecycle, NativeActor, NativeContext, NativeSpec,
    Restart, RestartPolicy, SpawnError, StartError, Strategy, SupervisorPolicy, SupervisorRef, SupervisorSpec,
};
use airssys_wasm_registry::MessageEnvelope;
use tokio::time::{Instant, timeout};

use crate::support::{ACTOR, Probe, ask, id, policy, poll_once, settle, spec, system};

async fn supervisor(system: &ActorSystem, strategy: Strategy, children: &[&str]) -> SupervisorRef {
    let spec = SupervisorSpec::new(id("family"), policy(strategy));
    let spec = children.iter().fold(spec, |spec, name| spec.native(child(name)));
    system.supervise(spec).await.unwrap()
}

fn child(name: &str) -> NativeSpec<Probe> {
    Probe::spec(name).0
}

async fn crash(actor: &ActorRef) {
    ask(actor, "crash").await.unwrap_err();
    settle().await;
}

fn incarnations(supervisor: &SupervisorRef) -> Vec<u64> {
    supervisor.actors().iter().map(|actor| actor.info().incarnation).collect()
}

#[tokio::test(start_paused = true)]
async fn children_of_every_kind_are_added_and_supervised() {
    let system = system();
    let family = supervisor(&system, Strategy::OneForOne, &[]).await;
    let native = system.start_native_child(&family, child("native")).await.unwrap();
    let guest = system.start_child(&family, spec(&system, "guest", &ACTOR)).await.unwrap();
    let below = SupervisorSpec::new(id("below"), policy(Strategy::OneForAll)).native(child("deep"));
    let below = system.start_supervisor_child(&family, below).await.unwrap();
    assert_eq!(family.children(), ["native", "guest", "below"].map(id));
    assert_eq!(family.actors().len(), 3);
    crash(&native).await;
    ask(&guest, "panic").await.unwrap_err();
    assert_eq!(ask(&guest, "echo x").await.unwrap(), "x");
    crash(&below.actors()[0]).await;
    assert_eq!(incarnations(&family), [2, 2, 2]);
    // With the fourth failure of its own children it gives up, and they end with it.
    crash(&native).await;
    crash(&native).await;
    family.ended().await;
    for actor in [native, guest] {
        assert_eq!(actor.state(), Lifecycle::Stopped);
    }
}

#[tokio::test(start_paused = true)]
async fn whom_a_failure_takes_with_it_holds_for_those_who_were_added() {
    for (strategy, expected) in
        [(Strategy::OneForOne, [1, 2, 1]), (Strategy::OneForAll, [2, 2, 2]), (Strategy::RestForOne, [1, 2, 2])]
    {
        let system = system();
        let family = supervisor(&system, strategy, &["a", "b"]).await;
        system.start_native_child(&family, child("c")).await.unwrap();
        crash(&family.actors()[1]).await;
        assert_eq!(incarnations(&family), expected, "{strategy:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_child_that_does_not_start_is_nobodys_failure() {
    let system = system();
    let family = supervisor(&system, Strategy::OneForAll, &["a"]).await;
    for _ in 0..10 {
        let never = spec(&system, "never", &ACTOR).with_config([("init", "fail")]);
        let SpawnError::Start { id: name, error } = system.start_child(&family, never).await.unwrap_err() else {
            panic!("a start")
        };
        assert!(name == id("never") && matches!(*error, StartError::Refused { .. }), "{error:?}");
    }
    assert!(system.find("never").is_none());
    assert_eq!((family.children(), incarnations(&family)), (vec![id("a")], vec![1]));
    let taken = system.start_native_child(&family, child("a")).await.unwrap_err();
    assert!(matches!(taken, SpawnError::NameTaken(_)), "{taken}");
}

#[tokio::test(start_paused = true)]
async fn a_child_is_terminated_for_good_and_its_siblings_go_on() {
    for strategy in [Strategy::OneForOne, Strategy::OneForAll, Strategy::RestForOne] {
        let system = system();
        let family = supervisor(&system, strategy, &["a", "b", "c"]).await;
        let handled = family.actors()[0].clone();
        handled.try_tell("x").unwrap();
        family.terminate_child("a").await.unwrap();
        assert_eq!(handled.state(), Lifecycle::Stopped);
        assert!(system.dead_letters().is_empty(), "what it had was handled");
        assert_eq!((family.children(), incarnations(&family)), (vec![id("b"), id("c")], vec![1, 1]));
        let error = family.terminate_child("a").await.unwrap_err();
        assert_eq!(error, ChildError::NoChild { supervisor: id("family"), name: "a".to_owned() });
        // Its name is free again.
        system.start_native_child(&family, child("a")).await.unwrap();
        assert_eq!(family.children(), ["b", "c", "a"].map(id));
    }
}

#[tokio::test(start_paused = true)]
async fn a_child_is_restarted_alone_as_often_as_wanted() {
    let system = system();
    let family = supervisor(&system, Strategy::OneForAll, &["a", "b"]).await;
    for n in 0..20 {
        family.restart_child("a").await.unwrap();
        assert_eq!(incarnations(&family), [n + 2, 1]);
    }
    family.restart_child("none").await.unwrap_err();
    assert_eq!(ask(&family.actors()[0], "x").await.unwrap(), "x");
}

#[tokio::test(start_paused = true)]
async fn one_that_waits_for_its_restart_is_terminated_too() {
    let system = system();
    let hour = Duration::from_secs(3_600);
    let slow = SupervisorPolicy {
        backoff: Backoff { first: hour, longest: hour, ..Backoff::NONE },
        ..policy(Strategy::OneForOne)
    };
    let family = system.supervise(SupervisorSpec::new(id("family"), slow).native(child("a"))).await.unwrap();
    crash(&family.actors()[0]).await;
    let before = tokio::time::Instant::now();
    family.terminate_child("a").await.unwrap();
    assert_eq!(before.elapsed(), Duration::ZERO);
    assert!(family.children().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_supervisor_that_ends_takes_no_more_children() {
    let system = system();
    let family = supervisor(&system, Strategy::OneForOne, &[]).await;
    family.stop();
    family.ended().await;
    let error = system.start_native_child(&family, child("late")).await.unwrap_err();
    assert!(matches!(error, SpawnError::SupervisorNotRunning { .. }), "{error}");
    assert!(system.find("late").is_none());

    let family = supervisor(&system, Strategy::OneForOne, &[]).await;
    system.shutdown(Duration::from_secs(1)).await;
    assert!(matches!(system.start_native_child(&family, child("late")).await, Err(SpawnError::ShuttingDown)));
}

#[tokio::test(start_paused = true)]
async fn who_is_added_ends_before_what_it_depends_on() {
    let system = system();
    let family = supervisor(&system, Strategy::OneForOne, &[]).await;
    let database = system.spawn_native(child("database")).await.unwrap();
    let service = child("service").with_dependencies([id("database")]);
    let service = system.start_native_child(&family, service).await.unwrap();
    let mut events = system.events();
    system.shutdown(Duration::from_secs(1)).await;
    let mut ended = Vec::new();
    while let Ok(event) = events.try_recv() {
        if let airssys_wasm_actor::SystemEvent::Stopped { actor } = event {
            ended.push(actor);
        }
    }
    assert_eq!(ended, [service.address().clone(), database.address().clone()]);
}

#[tokio::test(start_paused = true)]
async fn children_without_number_come_and_go_and_none_is_remembered() {
    let system = system();
    let family = supervisor(&system, Strategy::OneForOne, &[]).await;
    for n in 0..2_000 {
        let temporary = RestartPolicy::from(Restart::Temporary);
        let actor = system.start_native_child(&family, child("short").with_restart(temporary)).await.unwrap();
        match n % 3 {
            0 => _ = ask(&actor, "crash").await.unwrap_err(),
            1 => actor.kill(),
            _ => family.terminate_child("short").await.unwrap(),
        }
        actor.ended().await;
        while !family.children().is_empty() {
            tokio::task::yield_now().await;
        }
    }
    assert!(system.actors().is_empty());
}

#[tokio::test]
async fn a_start_that_nobody_waits_for_goes_on() {
    let system = system();
    let family = supervisor(&system, Strategy::OneForOne, &[]).await;
    {
        let starting = std::pin::pin!(system.start_native_child(&family, child("a")));
        assert!(crate::support::poll_once(starting).is_pending());
    }
    settle().await;
    assert_eq!(ask(&system.find("a").unwrap(), "x").await.unwrap(), "x");
    assert_eq!(family.children(), [id("a")]);
}

#[tokio::test(start_paused = true)]
async fn one_of_a_supervisor_that_does_not_run_is_not_terminated_until_it_runs_again() {
    let system = system();
    let wait = Duration::from_secs(10);
    let waits = SupervisorPolicy {
        backoff: Backoff { first: wait, longest: wait, ..Backoff::NONE },
        ..policy(Strategy::OneForOne)
    };
    let gives_up = SupervisorPolicy {
        intensity: Intensity { restarts: 0, ..Intensity::default() },
        ..policy(Strategy::OneForOne)
    };
    let above = system.supervise(SupervisorSpec::new(id("above"), waits)).await.unwrap();
    let family = SupervisorSpec::new(id("family"), gives_up).native(child("a"));
    let family = system.start_supervisor_child(&above, family).await.unwrap();
    crash(&family.actors()[0]).await;
    // It has given up, and waits until it is started again.
    let terminated = timeout(wait, family.terminate_child("a")).await.expect("it is told at once");
    assert_eq!(terminated, Err(ChildError::NoChild { supervisor: id("family"), name: "a".to_owned() }));
    tokio::time::sleep(wait).await;
    settle().await;
    assert_eq!(incarnations(&family), [2]);
    timeout(wait, family.terminate_child("a")).await.expect("it ends").unwrap();
    assert!(family.children().is_empty());
}

/// Never starts.
struct Hangs;

impl NativeActor for Hangs {
    async fn init(&mut self, _: &NativeContext) -> Result<(), String> {
        pending().await
    }

    async fn handle(&mut self, _: &MessageEnvelope, _: &NativeContext) -> Result<Option<Bytes>, String> {
        Ok(None)
    }
}

#[tokio::test(start_paused = true)]
async fn a_kill_finds_one_that_is_about_to_be_added() {
    let system = system();
    let family = supervisor(&system, Strategy::OneForOne, &[]).await;
    let mut starting = pin!(system.start_native_child(&family, NativeSpec::new(id("late"), || Hangs)));
    assert!(poll_once(starting.as_mut()).is_pending());
    let before = Instant::now();
    system.shutdown(Duration::ZERO).await;
    assert_eq!((before.elapsed(), system.find("late").is_none()), (Duration::ZERO, true));
    assert!(matches!(starting.await, Err(SpawnError::SupervisorNotRunning { .. })));
}
