//! Going over to another version, and back.

use std::time::Duration;

use airssys_wasm_actor::{
    ActorSpec, ActorSystem, AskError, Backoff, ContractKind, DeadReason, During, Lifecycle, ProbationEnd, StartError,
    Strategy, SupervisorPolicy, SupervisorSpec, SystemConfig, SystemEvent, UpgradeError, UpgradeOptions,
};
use airssys_wasm_engine::Profile;
use airssys_wasm_fixtures::SMALLEST_KEEPING_ACTOR;
use airssys_wasm_isolation::{CrashClass, SandboxSpec};
use airssys_wasm_limits::{ByteSize, ResourceLimits};
use airssys_wasm_registry::Refusal;

use crate::support::{
    ACTOR, COUNTER, COUNTER_V2, LISTENER, NO_HANDLER, Probe, WASMCLOUD, ask, id, limited, limits, poll_once, sandbox,
    settle, spawn, spec, system,
};

const PLAIN: UpgradeOptions = UpgradeOptions { discard_state: false, probation: 0 };

#[tokio::test]
async fn address_mailbox_and_state_are_kept() {
    let system = system();
    let counter = spawn(&system, "counter", &COUNTER).await;
    ask(&counter, "add 40").await.unwrap();
    let before = counter.info();
    // An order goes before messages: this is for the new version.
    counter.try_tell("add 2").unwrap();
    let incarnation = system.upgrade(counter.address(), sandbox(&system, &COUNTER_V2), PLAIN).await.unwrap();
    assert_eq!(incarnation, 2);
    assert_eq!(ask(&counter, "get").await.unwrap(), "count: 42");
    assert_eq!(counter.info().address, before.address);
    assert_eq!(counter.info().restarts, 0);

    assert_eq!(system.rollback(counter.address(), PLAIN).await.unwrap(), 3);
    assert_eq!(ask(&counter, "get").await.unwrap(), "42");
    // And forth again: the version before is the one that was left.
    assert_eq!(system.rollback(counter.address(), PLAIN).await.unwrap(), 4);
    assert_eq!(ask(&counter, "get").await.unwrap(), "count: 42");
}

#[tokio::test]
async fn a_restart_after_an_upgrade_is_of_the_new_version() {
    let system = system();
    let counter = spawn(&system, "counter", &COUNTER).await;
    system.upgrade(counter.address(), sandbox(&system, &COUNTER_V2), PLAIN).await.unwrap();
    ask(&counter, "crash").await.unwrap_err();
    assert_eq!(ask(&counter, "get").await.unwrap(), "count: 0");
}

fn with(system: &ActorSystem, key: &str, value: &str) -> ActorSpec<()> {
    let mut spec = spec(system, "actor", &ACTOR);
    spec = spec.with_config([(key, value)]);
    spec
}

#[tokio::test]
async fn if_the_new_version_does_not_start_the_old_one_goes_on_with_nothing_lost() {
    for (how, during, class) in [
        ("panic", Some(During::Restore), Some(CrashClass::Trap)),
        ("spin", Some(During::Restore), Some(CrashClass::CpuTime)),
        ("fail", None, None),
    ] {
        let system = system();
        let actor = system.spawn(with(&system, "restore", how)).await.unwrap();
        for _ in 0..3 {
            ask(&actor, "echo x").await.unwrap();
        }
        actor.try_tell("echo queued").unwrap();
        let error = system.upgrade(actor.address(), sandbox(&system, &ACTOR), PLAIN).await.unwrap_err();
        let UpgradeError::NotStarted(error) = error else { panic!("{error:?}") };
        match error {
            airssys_wasm_actor::StartError::Crash(report) => {
                assert_eq!((Some(report.during), Some(report.crash.kind().class())), (during, class));
                assert_eq!(report.incarnation, 2);
            }
            airssys_wasm_actor::StartError::RestoreRefused { message } => {
                assert_eq!((message.as_str(), during), ("told to fail", None));
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(ask(&actor, "count").await.unwrap(), "4");
        assert_eq!((actor.info().incarnation, actor.info().restarts), (1, 0));
    }
}

#[tokio::test]
async fn a_snapshot_may_be_refused_or_crash() {
    let system = system();
    let actor = system.spawn(with(&system, "snapshot", "fail")).await.unwrap();
    ask(&actor, "echo x").await.unwrap();
    let error = system.upgrade(actor.address(), sandbox(&system, &ACTOR), PLAIN).await.unwrap_err();
    assert!(matches!(&error, UpgradeError::SnapshotRefused { message } if message == "told to fail"), "{error:?}");
    assert_eq!(ask(&actor, "count").await.unwrap(), "1");
    actor.kill();
    actor.ended().await;

    let actor = system.spawn(with(&system, "snapshot", "panic")).await.unwrap();
    actor.try_tell("echo queued").unwrap();
    let error = system.upgrade(actor.address(), sandbox(&system, &ACTOR), PLAIN).await.unwrap_err();
    assert!(matches!(&error, UpgradeError::SnapshotCrashed(report) if report.during == During::Snapshot), "{error:?}");
    // The old version is restarted, and what was queued is still there.
    assert_eq!(ask(&actor, "count").await.unwrap(), "1");
    assert_eq!(actor.info().restarts, 1);
}

#[tokio::test]
async fn another_contract_or_none_is_refused_and_so_is_losing_state() {
    let system = system();
    let counter = spawn(&system, "counter", &COUNTER).await;
    ask(&counter, "add 1").await.unwrap();
    let upgrade = async |guest, options| system.upgrade(counter.address(), sandbox(&system, guest), options).await;
    let error = upgrade(&*WASMCLOUD, PLAIN).await.unwrap_err();
    assert!(
        matches!(error, UpgradeError::OtherContract { now: ContractKind::Actor, new: ContractKind::WasmCloud }),
        "{error:?}"
    );
    assert!(matches!(upgrade(&*NO_HANDLER, PLAIN).await, Err(UpgradeError::NoHandler(_))));
    assert!(matches!(upgrade(&*LISTENER, PLAIN).await, Err(UpgradeError::StateWouldBeLost)));
    assert_eq!(ask(&counter, "get").await.unwrap(), "1");
    assert!(matches!(system.rollback(counter.address(), PLAIN).await, Err(UpgradeError::NothingBefore)));
}

#[tokio::test]
async fn state_is_lost_only_where_that_is_asked_for() {
    let system = system();
    let mut spec = spec(&system, "counter", &COUNTER);
    spec = spec.with_config([("topic", "t")]);
    let counter = system.spawn(spec).await.unwrap();
    let options = UpgradeOptions { discard_state: true, ..PLAIN };
    system.upgrade(counter.address(), sandbox(&system, &LISTENER), options).await.unwrap();
    assert_eq!(ask(&counter, "heard").await.unwrap(), "");
}

#[tokio::test]
async fn a_new_version_that_crashes_on_probation_goes_back_by_itself() {
    let system = system();
    let mut events = system.events();
    let counter = spawn(&system, "counter", &COUNTER).await;
    ask(&counter, "add 7").await.unwrap();
    let options = UpgradeOptions { probation: 3, ..PLAIN };
    system.upgrade(counter.address(), sandbox(&system, &COUNTER_V2), options).await.unwrap();
    assert_eq!(ask(&counter, "get").await.unwrap(), "count: 7");
    ask(&counter, "crash").await.unwrap_err();
    assert_eq!(ask(&counter, "get").await.unwrap(), "7");
    let mut rolled_back = 0;
    while let Ok(event) = events.try_recv() {
        rolled_back += u32::from(matches!(event, SystemEvent::RolledBack { .. }));
    }
    assert_eq!(rolled_back, 1);

    // One that has proved itself stays.
    system.upgrade(counter.address(), sandbox(&system, &COUNTER_V2), options).await.unwrap();
    for _ in 0..3 {
        ask(&counter, "get").await.unwrap();
    }
    ask(&counter, "crash").await.unwrap_err();
    assert_eq!(ask(&counter, "get").await.unwrap(), "count: 0");
}

#[tokio::test]
async fn the_end_of_a_probation_is_told() {
    let system = system();
    let counter = spawn(&system, "counter", &COUNTER).await;
    let watched = async |guest, probation| {
        let options = UpgradeOptions { probation, ..PLAIN };
        system.upgrade_watched(counter.address(), sandbox(&system, guest), options).await.unwrap().1
    };
    assert_eq!(watched(&*COUNTER_V2, 0).await.ended().await, ProbationEnd::Passed);

    let mut watch = watched(&*COUNTER, 2).await;
    ask(&counter, "get").await.unwrap();
    assert!(poll_once(std::pin::pin!(watch.ended())).is_pending());
    ask(&counter, "get").await.unwrap();
    assert_eq!(watch.ended().await, ProbationEnd::Passed);

    let mut watch = watched(&*COUNTER_V2, 2).await;
    ask(&counter, "crash").await.unwrap_err();
    assert_eq!(watch.ended().await, ProbationEnd::RolledBack);

    let (mut first, mut second) = (watched(&*COUNTER_V2, 2).await, watched(&*COUNTER, 2).await);
    assert_eq!(first.ended().await, ProbationEnd::Interrupted);
    counter.kill();
    assert_eq!(second.ended().await, ProbationEnd::Interrupted);
}

#[tokio::test(start_paused = true)]
async fn an_upgrade_cures_an_actor_that_waits_for_its_restart() {
    let system = system();
    let mut spec = spec(&system, "counter", &COUNTER);
    let hour = Duration::from_secs(3_600);
    spec = spec.with_restart(Backoff { first: hour, longest: hour, ..Backoff::default() });
    let counter = system.spawn(spec).await.unwrap();
    ask(&counter, "crash").await.unwrap_err();
    counter.try_tell("add 1").unwrap();
    let before = tokio::time::Instant::now();
    system.upgrade(counter.address(), sandbox(&system, &COUNTER_V2), PLAIN).await.unwrap();
    assert_eq!(ask(&counter, "get").await.unwrap(), "count: 1");
    assert_eq!(before.elapsed(), Duration::ZERO);
}

#[tokio::test]
async fn what_is_not_a_component_of_the_system_is_not_upgraded() {
    let system = system();
    let (native, _) = Probe::spawn(&system, "native").await;
    let error = system.upgrade(native.address(), sandbox(&system, &COUNTER), PLAIN).await.unwrap_err();
    assert!(matches!(error, UpgradeError::OtherSystem), "{error:?}");
    assert_eq!(ask(&native, "x").await.unwrap(), "x");
    native.kill();
    native.ended().await;
    let error = system.upgrade(native.address(), sandbox(&system, &COUNTER), PLAIN).await.unwrap_err();
    assert!(matches!(error, UpgradeError::Unresolved(_)), "{error:?}");
}

#[tokio::test]
async fn subscriptions_are_as_they_were_when_the_new_version_does_not_start() {
    let system = system();
    let mut spec = with(&system, "subscribe", "mine");
    spec = spec.with_config([("restore", "fail")]);
    let actor = system.spawn(spec).await.unwrap();
    ask(&actor, "unsubscribe mine").await.unwrap();
    ask(&actor, "subscribe other").await.unwrap();
    // Its `init` subscribes; then it fails.
    system.upgrade(actor.address(), sandbox(&system, &ACTOR), PLAIN).await.unwrap_err();
    for (topic, subscribers) in [("mine", 0), ("other", 1)] {
        let report = system.publish(&topic.parse().unwrap(), "x").await;
        assert_eq!(report.delivered, subscribers, "{topic}");
    }
}

#[tokio::test]
async fn a_rollback_loses_state_only_where_that_is_asked_for() {
    let system = system();
    let mut spec = spec(&system, "listener", &LISTENER);
    spec = spec.with_config([("topic", "t")]);
    let actor = system.spawn(spec).await.unwrap();
    system.upgrade(actor.address(), sandbox(&system, &COUNTER), PLAIN).await.unwrap();
    let error = system.rollback(actor.address(), PLAIN).await.unwrap_err();
    assert!(matches!(error, UpgradeError::StateWouldBeLost), "{error:?}");
    assert_eq!(ask(&actor, "add 1").await.unwrap(), "1");
    system.rollback(actor.address(), UpgradeOptions { discard_state: true, ..PLAIN }).await.unwrap();
    assert_eq!(ask(&actor, "heard").await.unwrap(), "");
}

#[tokio::test(start_paused = true)]
async fn a_supervised_child_that_is_cured_by_an_upgrade_holds_up_nobody() {
    let system = system();
    let hour = Duration::from_secs(3_600);
    let policy = SupervisorPolicy {
        strategy: Strategy::OneForAll,
        backoff: Backoff { first: hour, longest: hour, jitter: 0.0, factor: 1.0 },
        ..SupervisorPolicy::default()
    };
    let family = SupervisorSpec::new("family".parse().unwrap(), policy)
        .actor(spec(&system, "counter", &COUNTER))
        .native(Probe::spec("sibling").0);
    let supervisor = system.supervise(family).await.unwrap();
    let [counter, sibling] = &supervisor.actors()[..] else { panic!("two actors") };
    ask(counter, "crash").await.unwrap_err();
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
    system.upgrade(counter.address(), sandbox(&system, &COUNTER_V2), PLAIN).await.unwrap();
    assert_eq!(ask(counter, "add 1").await.unwrap(), "count: 1");
    // The sibling comes back when the back-off is over, and the cured one is left alone.
    assert_eq!(ask(sibling, "x").await.unwrap(), "x");
    assert_eq!(ask(counter, "get").await.unwrap(), "count: 1");
}

#[tokio::test]
async fn a_siblings_crash_does_not_roll_back_a_healthy_version() {
    let system = system();
    let policy =
        SupervisorPolicy { strategy: Strategy::OneForAll, backoff: Backoff::NONE, ..SupervisorPolicy::default() };
    let family = SupervisorSpec::new("family".parse().unwrap(), policy)
        .actor(spec(&system, "counter", &COUNTER))
        .native(Probe::spec("sibling").0);
    let supervisor = system.supervise(family).await.unwrap();
    let [counter, sibling] = &supervisor.actors()[..] else { panic!("two actors") };
    let options = UpgradeOptions { probation: 100, ..PLAIN };
    system.upgrade(counter.address(), sandbox(&system, &COUNTER_V2), options).await.unwrap();
    ask(sibling, "crash").await.unwrap_err();
    while counter.info().incarnation < 3 || counter.state() != Lifecycle::Running {
        tokio::task::yield_now().await;
    }
    assert_eq!(ask(counter, "get").await.unwrap(), "count: 0");
    // Its own crash does, and its siblings hear nothing of it.
    let incarnation = sibling.info().incarnation;
    ask(counter, "crash").await.unwrap_err();
    assert_eq!(ask(counter, "get").await.unwrap(), "0");
    assert_eq!(sibling.info().incarnation, incarnation);
}

#[tokio::test(start_paused = true)]
async fn a_version_on_probation_that_is_interrupted_with_its_siblings_stays() {
    for (interrupted, rolled_back) in [(true, 0), (false, 1)] {
        let system = system();
        let mut events = system.events();
        let silent = Probe::spawn(&system, "silent").await.0;
        let policy =
            SupervisorPolicy { strategy: Strategy::OneForAll, backoff: Backoff::NONE, ..SupervisorPolicy::default() };
        let family = SupervisorSpec::new("family".parse().unwrap(), policy)
            .actor(spec(&system, "actor", &ACTOR))
            .native(Probe::spec("sibling").0);
        let supervisor = system.supervise(family).await.unwrap();
        let [actor, sibling] = &supervisor.actors()[..] else { panic!("two actors") };
        let options = UpgradeOptions { probation: 2, ..PLAIN };
        system.upgrade(actor.address(), sandbox(&system, &ACTOR), options).await.unwrap();
        // It waits for an answer that never comes, longer than its supervisor waits for it.
        if interrupted {
            actor.tell("request silent 600000 wait").await.unwrap();
            while silent.info().mailbox.queued == 0 && actor.info().mailbox.queued > 0 {
                tokio::task::yield_now().await;
            }
            ask(sibling, "crash").await.unwrap_err();
        } else {
            ask(actor, "panic").await.unwrap_err();
        }
        while actor.info().incarnation < 3 || actor.state() != Lifecycle::Running {
            tokio::task::yield_now().await;
            tokio::time::advance(Duration::from_millis(100)).await;
        }
        let seen = std::iter::from_fn(|| events.try_recv().ok());
        assert_eq!(seen.filter(|event| matches!(event, SystemEvent::RolledBack { .. })).count(), rolled_back);
        if interrupted {
            // It is on probation still.
            ask(actor, "panic").await.unwrap_err();
            settle().await;
            let seen = std::iter::from_fn(|| events.try_recv().ok());
            assert_eq!(seen.filter(|event| matches!(event, SystemEvent::RolledBack { .. })).count(), 1);
        }
    }
}

#[tokio::test]
async fn a_rollback_restores_the_subscriptions_too() {
    let system = system();
    let actor = spawn(&system, "actor", &ACTOR).await;
    ask(&actor, "subscribe before").await.unwrap();
    let options = UpgradeOptions { probation: 10, ..PLAIN };
    system.upgrade(actor.address(), sandbox(&system, &ACTOR), options).await.unwrap();
    ask(&actor, "unsubscribe before").await.unwrap();
    ask(&actor, "subscribe after").await.unwrap();
    ask(&actor, "panic").await.unwrap_err();
    ask(&actor, "echo x").await.unwrap();
    for (topic, subscribers) in [("before", 1), ("after", 0)] {
        assert_eq!(system.publish(&topic.parse().unwrap(), "x").await.delivered, subscribers, "{topic}");
    }
}

#[tokio::test]
async fn an_upgrade_that_nobody_waits_for_is_not_carried_out() {
    let system = system();
    let actor = spawn(&system, "actor", &ACTOR).await;
    for (abandoned, incarnation) in [(true, 1), (false, 2)] {
        let version = sandbox(&system, &ACTOR);
        let mut upgrade = Box::pin(system.upgrade(actor.address(), version, PLAIN));
        assert!(poll_once(upgrade.as_mut()).is_pending());
        if abandoned {
            drop(upgrade);
        } else {
            upgrade.await.unwrap();
        }
        ask(&actor, "echo x").await.unwrap();
        assert_eq!(actor.info().incarnation, incarnation);
    }
}

#[tokio::test]
async fn what_waits_and_is_too_large_for_the_new_version_does_not_crash_it() {
    let system = system();
    let actor = spawn(&system, "actor", &ACTOR).await;
    let asker = spawn(&system, "asker", &ACTOR).await;
    let message = |bytes: usize| format!("echo {}", "x".repeat(bytes - 5));
    let small = ResourceLimits { message_size: ByteSize::kib(64), memory: ByteSize::mib(2), ..limits() };
    let version = limited(spec(&system, "other", &ACTOR), small);
    // All of it waits before the order to go over, which is heard first.
    let told = actor.try_tell(message(1 << 20));
    told.unwrap();
    let mut asked = Box::pin(actor.ask(message(1 << 20)));
    assert!(poll_once(asked.as_mut()).is_pending());
    let mut fits = Box::pin(actor.ask(message(64 << 10)));
    assert!(poll_once(fits.as_mut()).is_pending());
    system.upgrade(actor.address(), version.sandbox().clone(), PLAIN).await.unwrap();

    let Err(AskError::NotSent(refused)) = asked.await else { panic!("it was not taken") };
    assert_eq!(refused.reason, Refusal::TooLarge { size: 1 << 20, allowed: 64 << 10 });
    assert_eq!(refused.message.payload().len(), 1 << 20, "it comes back");
    assert_eq!(fits.await.unwrap().len(), (64 << 10) - 5);
    let letters = system.dead_letters().list();
    assert_eq!(letters.len(), 1);
    assert!(matches!(letters[0].reason, DeadReason::TooLarge { size: 1_048_576, allowed: 65_536 }), "{letters:?}");
    assert_eq!((actor.info().incarnation, actor.info().restarts), (2, 0));
    // One that is refused at once is told the same.
    let error = ask(&asker, &format!("request actor 1000 {}", "x".repeat(65_537))).await.unwrap_err();
    let AskError::Failed { message } = error else { panic!("{error}") };
    assert_eq!(message, "RequestError::NotSent(SendError::TooLarge(65536))");
}

/// Says which thread drops it.
struct Dropped(std::sync::mpsc::Sender<std::thread::ThreadId>);

impl Drop for Dropped {
    fn drop(&mut self) {
        _ = self.0.send(std::thread::current().id());
    }
}

#[tokio::test]
async fn a_version_that_refuses_its_state_is_freed_elsewhere_if_it_is_large() {
    for (pages, elsewhere) in [(64, true), (63, false)] {
        let (to, dropped) = std::sync::mpsc::channel();
        let make = move |_: &_| Dropped(to.clone());
        let engine = system().engine().clone();
        let system = ActorSystem::with_host(engine, SystemConfig::default(), make, |_| Ok(()));
        let spec = |text: &str| {
            let component = system.engine().load_wat_blocking(text, Profile::Plain).unwrap();
            SandboxSpec::new(system.link(&component).unwrap(), limits()).unwrap()
        };
        let actor = system.spawn(ActorSpec::new(id("keeps"), spec(SMALLEST_KEEPING_ACTOR))).await.unwrap();
        let refuses = SMALLEST_KEEPING_ACTOR
            .replace("(memory (export \"memory\") 1)", &format!("(memory (export \"memory\") {pages})"))
            .replace(
                "(global.set $end (global.get $next))\n      (i32.store (i32.const 0) (i32.const 0))",
                "(i32.store (i32.const 0) (i32.const 1)) (i32.store (i32.const 8) (i32.const 0))",
            );
        let error = system.upgrade(actor.address(), spec(&refuses), PLAIN).await.unwrap_err();
        assert!(matches!(error, UpgradeError::NotStarted(StartError::RestoreRefused { .. })), "{error:?}");
        assert_eq!(dropped.try_recv().unwrap() != std::thread::current().id(), elsewhere);
        ask(&actor, "x").await.unwrap();
    }
}
