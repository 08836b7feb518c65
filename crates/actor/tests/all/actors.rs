//! One actor: told, asked, crashed, stopped.

use std::{
    collections::{BTreeMap, HashSet},
    time::Duration,
};

use airssys_wasm_actor::{AskError, Backoff, DeadReason, During, HealthError, Lifecycle, SpawnError, StartError, Stop};
use airssys_wasm_engine::Profile;
use airssys_wasm_fixtures::SMALLEST_ACTOR;
use airssys_wasm_isolation::CrashClass;
use airssys_wasm_limits::ByteSize;
use airssys_wasm_registry::{MessageEnvelope, Refusal};
use tokio::time::Instant;

use crate::support::{
    ACTOR, COUNTER, NO_HANDLER, Probe, ask, at_once, id, limited, limits, poll_once, spawn, spec, system,
};

#[tokio::test]
async fn a_component_answers() {
    let system = system();
    let counter = spawn(&system, "counter", &COUNTER).await;
    assert_eq!(ask(&counter, "add 5").await.unwrap(), "5");
    counter.tell("add 1").await.unwrap();
    counter.try_tell("add 1").unwrap();
    assert_eq!(ask(&counter, "get").await.unwrap(), "7");
    assert_eq!(counter.state(), Lifecycle::Running);
}

#[tokio::test]
async fn the_least_of_an_actor_answers() {
    let system = system();
    let guest = system.engine().load_wat_blocking(SMALLEST_ACTOR, Profile::Plain).unwrap();
    let actor = spawn(&system, "actor", &guest).await;
    for payload in ["hello", "", "again"] {
        assert_eq!(ask(&actor, payload).await.unwrap(), payload);
    }
}

#[tokio::test]
async fn it_comes_back_after_a_crash_behind_the_same_address() {
    let system = system();
    let actor = spawn(&system, "actor", &ACTOR).await;
    let before = actor.info();
    ask(&actor, "echo x").await.unwrap();
    assert_eq!(ask(&actor, "count").await.unwrap(), "1");
    let AskError::Crashed(report) = ask(&actor, "panic").await.unwrap_err() else { panic!("it crashed") };
    assert_eq!((report.incarnation, report.during), (1, During::Message));
    assert_eq!(report.crash.kind().class(), CrashClass::Trap);
    assert_eq!(ask(&actor, "count").await.unwrap(), "0");
    let after = actor.info();
    assert_eq!((after.incarnation, after.restarts), (2, 1));
    assert_eq!(after.address, before.address);
    assert!(after.memory > 0);
}

#[tokio::test]
async fn each_way_to_crash_is_told_to_the_asker_and_survived() {
    let system = system();
    let actor = spawn(&system, "actor", &ACTOR).await;
    let table = [
        ("panic", CrashClass::Trap),
        ("divide", CrashClass::Trap),
        ("overflow", CrashClass::StackOverflow),
        ("spin", CrashClass::CpuTime),
        ("hoard 100000000", CrashClass::Memory),
        ("big 2000000", CrashClass::BadValue),
    ];
    for (command, class) in table {
        match ask(&actor, command).await {
            Err(AskError::Crashed(report)) => assert_eq!(report.crash.kind().class(), class, "{command}"),
            other => panic!("{command}: {other:?}"),
        }
        assert_eq!(ask(&actor, "echo again").await.unwrap(), "again");
    }
    assert_eq!(actor.info().restarts, table.len() as u64);
}

#[tokio::test]
async fn queued_messages_outlive_a_restart_in_their_order() {
    let system = system();
    let actor = spawn(&system, "actor", &ACTOR).await;
    // Nothing runs until this task waits.
    for message in ["panic", "echo a", "panic", "echo b"] {
        actor.try_tell(message).unwrap();
    }
    assert_eq!(ask(&actor, "count").await.unwrap(), "1");
    assert_eq!(actor.info().incarnation, 3);
}

#[tokio::test]
async fn an_ask_ends_in_what_the_handler_came_back_with() {
    let system = system();
    let actor = spawn(&system, "actor", &ACTOR).await;
    assert!(matches!(ask(&actor, "none").await, Err(AskError::NoReply)));
    let failed = ask(&actor, "fail \u{1b}[2J").await.unwrap_err();
    assert!(matches!(&failed, AskError::Failed { message } if message == "\u{1b}[2J"));
    assert!(!failed.to_string().contains('\u{1b}'), "{failed}");
    assert_eq!(ask(&actor, "echo").await.unwrap(), "");
    // An error of the handler is no crash.
    assert_eq!(actor.info().incarnation, 1);
}

#[tokio::test]
async fn a_full_mailbox_gives_the_message_back() {
    let system = system();
    let actor = system.spawn({
        let mut spec = spec(&system, "actor", &ACTOR);
        spec = spec.with_mailbox(2);
        spec
    });
    let actor = actor.await.unwrap();
    actor.try_tell("echo 1").unwrap();
    actor.try_tell("echo 2").unwrap();
    let refused = actor.try_tell("echo 3").unwrap_err();
    assert_eq!((refused.reason, &refused.message.payload()[..]), (Refusal::Full, &b"echo 3"[..]));
    assert_eq!((actor.info().mailbox.queued, actor.info().mailbox.capacity), (2, 2));
    // Whoever waits gets room.
    actor.tell("echo 3").await.unwrap();
    assert_eq!(ask(&actor, "count").await.unwrap(), "3");
}

#[tokio::test(start_paused = true)]
async fn full_stopped_and_restarting_are_told_apart() {
    let system = system();
    let (mut probe, _) = Probe::spec("probe");
    probe = probe.with_mailbox(1);
    let second = Duration::from_secs(1);
    probe = probe.with_restart(Backoff { first: second, longest: second, factor: 1.0, jitter: 0.0 });
    let actor = system.spawn_native(probe).await.unwrap();
    actor.try_tell("crash").unwrap();
    assert_eq!(actor.try_tell("a").unwrap_err().reason, Refusal::Full);
    while actor.state() != Lifecycle::Restarting {
        tokio::task::yield_now().await;
    }
    actor.try_tell("a").unwrap();
    assert_eq!(actor.try_tell("b").unwrap_err().reason, Refusal::Restarting);
    // It waits its second, then takes what was queued.
    let before = Instant::now();
    assert_eq!(ask(&actor, "b").await.unwrap(), "b");
    assert_eq!(before.elapsed(), Duration::from_secs(1));
    actor.stop(Stop::Drain);
    actor.ended().await;
    let refused = actor.try_tell("c").unwrap_err();
    assert_eq!((refused.reason, &refused.message.payload()[..]), (Refusal::Stopped, &b"c"[..]));
    assert!(
        matches!(ask(&actor, "d").await, Err(AskError::NotSent(undelivered)) if undelivered.reason == Refusal::Stopped)
    );
    assert_eq!(actor.state(), Lifecycle::Stopped);
}

#[tokio::test]
async fn a_message_over_the_size_limit_is_refused_before_it_is_queued() {
    let system = system();
    let mut small = spec(&system, "actor", &ACTOR);
    let limits = airssys_wasm_limits::ResourceLimits { message_size: ByteSize(100), ..limits() };
    small = limited(small, limits);
    let actor = system.spawn(small).await.unwrap();
    let fits = format!("echo {}", "x".repeat(95));
    assert_eq!(ask(&actor, &fits).await.unwrap().len(), 95);
    let reason = Refusal::TooLarge { size: 101, allowed: 100 };
    assert_eq!(actor.try_tell(format!("{fits}x")).unwrap_err().reason, reason);
    assert_eq!(actor.tell(format!("{fits}x")).await.unwrap_err().reason, reason);
    assert_eq!(ask(&actor, &format!("{fits}x")).await.unwrap_err().refusal(), Some(reason));
    assert_eq!(actor.info().mailbox.queued, 0);
}

#[tokio::test(start_paused = true)]
async fn an_ask_ends_at_its_deadline_wherever_the_message_is() {
    let system = system();
    let (actor, probe) = Probe::spawn(&system, "probe").await;
    let before = Instant::now();
    let waits = actor.ask_within(Duration::from_millis(20), "wait");
    let queued = actor.ask_within(Duration::from_millis(30), "behind it");
    let (waits, queued) = tokio::join!(waits, queued);
    assert!(matches!(waits, Err(AskError::Deadline)) && matches!(queued, Err(AskError::Deadline)));
    assert_eq!(before.elapsed(), Duration::from_millis(30));
    // The first is let go, and its answer has nobody to go to; the second is not handled any more.
    probe.gate.notify_one();
    assert_eq!(ask(&actor, "handled").await.unwrap(), "wait");
}

#[tokio::test(start_paused = true)]
async fn a_late_message_is_a_dead_letter_and_one_in_time_is_not() {
    let system = system();
    let (actor, probe) = Probe::spawn(&system, "probe").await;
    let within = |ms, payload: &'static str| {
        let mut message = MessageEnvelope::from(payload);
        message = message.with_deadline(Instant::now() + Duration::from_millis(ms));
        message
    };
    actor.try_tell("wait").unwrap();
    actor.try_tell(within(10, "late")).unwrap();
    actor.try_tell(within(1_000, "in time")).unwrap();
    tokio::time::advance(Duration::from_millis(100)).await;
    probe.gate.notify_one();
    assert_eq!(ask(&actor, "handled").await.unwrap(), "wait,in time");
    let letters = system.dead_letters().list();
    assert_eq!(letters.len(), 1);
    assert!(matches!(letters[0].reason, DeadReason::Late));
    assert_eq!(letters[0].message.payload(), "late");
}

#[tokio::test]
async fn a_guest_may_answer_after_its_asker_has_gone() {
    let system = system();
    let actor = spawn(&system, "counter", &COUNTER).await;
    {
        let mut ask = Box::pin(actor.ask("add 5"));
        // Polled once: the message is on its way, and nobody waits any more.
        assert!(poll_once(ask.as_mut()).is_pending());
    }
    assert_eq!(ask(&actor, "get").await.unwrap(), "5");
    assert_eq!(actor.info().incarnation, 1);
}

#[tokio::test]
async fn draining_handles_what_is_queued_and_stopping_now_does_not() {
    for (how, handled, dead) in [(Stop::Drain, "1,2,3", 0), (Stop::Now, "", 3)] {
        let system = system();
        let (actor, probe) = Probe::spawn(&system, "probe").await;
        for message in ["1", "2", "3"] {
            actor.try_tell(message).unwrap();
        }
        actor.stop(how);
        actor.ended().await;
        assert_eq!(probe.handled(), handled, "{how:?}");
        assert_eq!(system.dead_letters().len(), dead, "{how:?}");
        assert!(system.find(&id("probe")).is_none());
    }
}

#[tokio::test]
async fn a_spinning_guest_is_killed_and_its_asker_told() {
    let system = system();
    let mut slow = spec(&system, "actor", &ACTOR);
    let limits = airssys_wasm_limits::ResourceLimits { cpu_time: Duration::from_secs(600), ..limits() };
    slow = limited(slow, limits);
    let actor = system.spawn(slow).await.unwrap();
    let asked = tokio::spawn({
        let actor = actor.clone();
        async move { ask(&actor, "spin").await }
    });
    let queued = tokio::spawn({
        let actor = actor.clone();
        async move { ask(&actor, "echo").await }
    });
    while actor.info().mailbox.queued != 1 {
        tokio::task::yield_now().await;
    }
    actor.kill();
    let AskError::Crashed(report) = asked.await.unwrap().unwrap_err() else { panic!("it was killed") };
    assert_eq!(report.crash.kind().class(), CrashClass::Cancelled);
    assert!(matches!(queued.await.unwrap(), Err(AskError::Stopped)));
    actor.ended().await;
    assert!(matches!(system.dead_letters().list()[0].reason, DeadReason::Interrupted));
    // The name is free again.
    let again = spawn(&system, "actor", &ACTOR).await;
    assert!(again.address().generation() > actor.address().generation());
}

#[tokio::test]
async fn an_order_goes_before_any_number_of_messages() {
    let system = system();
    let (actor, probe) = Probe::spawn(&system, "probe").await;
    // It sends to itself for as long as it lives, so that its mailbox is never empty.
    actor.try_tell("storm").unwrap();
    while probe.log.lock().len() < 10 {
        tokio::task::yield_now().await;
    }
    actor.stop(Stop::Now);
    actor.ended().await;
}

#[tokio::test]
async fn a_component_without_a_handler_is_refused_and_its_exports_listed() {
    let system = system();
    let error = system.spawn(spec(&system, "actor", &NO_HANDLER)).await.unwrap_err();
    let SpawnError::NoHandler(no_handler) = &error else { panic!("{error:?}") };
    assert_eq!(no_handler.exports, ["airssys:actor/health@0.1.0#check: func() -> result<_, string>"]);
    assert!(error.to_string().contains("airssys:actor/handler@0.1.0#handle"), "{error}");
    assert!(system.actors().is_empty());
}

#[tokio::test]
async fn a_handler_of_another_type_is_found_when_the_actor_starts() {
    let system = system();
    let wat = r#"(component
        (core module $m (func (export "handle")))
        (core instance $i (instantiate $m))
        (func $handle (canon lift (core func $i "handle")))
        (instance $handler (export "handle" (func $handle)))
        (export "airssys:actor/handler@0.1.0" (instance $handler)))"#;
    let guest = system.engine().load_wat_blocking(wat, airssys_wasm_engine::Profile::Plain).unwrap();
    let error = system.spawn(spec(&system, "actor", &guest)).await.unwrap_err();
    let SpawnError::Start { error, .. } = &error else { panic!("{error:?}") };
    assert!(matches!(&**error, StartError::Contract(_)), "{error:?}");
}

#[tokio::test]
async fn two_actors_cannot_have_one_name() {
    let system = system();
    let first = spawn(&system, "actor", &ACTOR).await;
    let error = system.spawn(spec(&system, "actor", &COUNTER)).await.unwrap_err();
    assert!(matches!(&error, SpawnError::NameTaken(taken) if taken.holder == *first.address()), "{error:?}");
    assert_eq!(ask(&first, "echo still there").await.unwrap(), "still there");
    spawn(&system, "actor2", &COUNTER).await;
}

#[tokio::test]
async fn a_mailbox_for_nothing_or_for_everything_is_refused() {
    let system = system();
    for size in [0, usize::MAX] {
        let mut spec = spec(&system, "actor", &ACTOR);
        spec = spec.with_mailbox(size);
        assert!(matches!(system.spawn(spec).await, Err(SpawnError::Mailbox { .. })));
    }
    assert!(system.actors().is_empty());
}

#[tokio::test]
async fn init_gets_the_config_and_may_refuse() {
    let system = system();
    let with = |pairs: &[(&str, &str)]| {
        let mut spec = spec(&system, "actor", &ACTOR);
        spec =
            spec.with_config(pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<BTreeMap<_, _>>());
        spec
    };
    let actor = system.spawn(with(&[("b", "2"), ("a", "1")])).await.unwrap();
    assert_eq!(ask(&actor, "config").await.unwrap(), "a=1,b=2");
    assert_eq!(ask(&actor, "events").await.unwrap(), "init");
    actor.kill();
    actor.ended().await;

    let error = system.spawn(with(&[("init", "fail")])).await.unwrap_err();
    let SpawnError::Start { error, .. } = &error else { panic!("{error:?}") };
    assert!(matches!(&**error, StartError::Refused { message } if message == "told to fail"), "{error:?}");
    for (how, class) in [("panic", CrashClass::Trap), ("spin", CrashClass::CpuTime)] {
        let error = system.spawn(with(&[("init", how)])).await.unwrap_err();
        let SpawnError::Start { error, .. } = &error else { panic!("{error:?}") };
        let StartError::Crash(report) = &**error else { panic!("{error:?}") };
        assert_eq!((report.during, report.crash.kind().class()), (During::Init, class));
    }
    // Nothing is left of those that failed.
    assert!(system.actors().is_empty());
}

#[tokio::test]
async fn giving_up_a_spawn_half_way_leaves_nothing() {
    let system = system();
    let mut slow = spec(&system, "actor", &ACTOR);
    slow = slow.with_config([("init", "spin")]);
    {
        let mut spawning = Box::pin(system.spawn(slow));
        assert!(poll_once(spawning.as_mut()).is_pending());
        assert!(system.find(&id("actor")).is_some());
    }
    assert!(system.find(&id("actor")).is_none());
    spawn(&system, "actor", &ACTOR).await;
}

#[tokio::test]
async fn health_is_asked_between_messages() {
    let system = system();
    let actor = spawn(&system, "actor", &ACTOR).await;
    actor.health().await.unwrap();
    ask(&actor, "unwell").await.unwrap();
    assert!(matches!(actor.health().await, Err(HealthError::Unwell { message }) if message == "unwell"));
    // That is no crash.
    assert_eq!(actor.info().incarnation, 1);

    let counter = spawn(&system, "counter", &COUNTER).await;
    assert!(matches!(counter.health().await, Err(HealthError::NotOffered)));
    counter.kill();
    assert!(matches!(counter.health().await, Err(HealthError::NotRunning { state: Lifecycle::Stopped })));

    let mut sick = spec(&system, "sick", &ACTOR);
    sick = sick.with_config([("health", "panic")]);
    let sick = system.spawn(sick).await.unwrap();
    assert!(matches!(sick.health().await, Err(HealthError::Crashed(report)) if report.during == During::Health));
    assert_eq!(ask(&sick, "echo back").await.unwrap(), "back");
}

#[tokio::test]
async fn a_hostile_shutdown_ends_all_the_same() {
    let system = system();
    for how in ["spin", "panic", "fail", "nothing"] {
        let mut spec = spec(&system, "actor", &ACTOR);
        spec = spec.with_config([("shutdown", how)]);
        let actor = system.spawn(spec).await.unwrap();
        assert_eq!(ask(&actor, "echo x").await.unwrap(), "x");
        actor.stop(Stop::Drain);
        actor.ended().await;
    }
}

#[tokio::test]
async fn a_system_that_is_dropped_kills_its_actors() {
    let system = system();
    let actor = spawn(&system, "actor", &ACTOR).await;
    drop(system);
    actor.ended().await;
    assert!(matches!(actor.try_tell("echo"), Err(refused) if refused.reason == Refusal::Stopped));
}

#[tokio::test]
async fn a_mailbox_is_bounded_in_bytes_and_small_messages_still_fit() {
    let system = system();
    let (mut spec, probe) = Probe::spec("probe");
    spec = spec.with_mailbox_bytes(ByteSize::kib(64));
    let actor = system.spawn_native(spec).await.unwrap();
    let large = || "x".repeat(40 << 10);
    actor.try_tell("wait").unwrap();
    actor.try_tell(large()).unwrap();
    let refused = actor.try_tell(large()).unwrap_err();
    assert_eq!((refused.reason, refused.message.payload().len()), (Refusal::Full, 40 << 10));
    actor.try_tell("small").unwrap();
    // Whoever waits for room gets it, also for one that is larger than all of it.
    let mut waits = Box::pin(actor.tell("y".repeat(100 << 10)));
    assert!(poll_once(waits.as_mut()).is_pending());
    probe.gate.notify_one();
    waits.await.unwrap();
    ask(&actor, "all").await.unwrap();
    assert_eq!(probe.log.lock().iter().map(String::len).collect::<Vec<_>>(), [4, 40 << 10, 5, 100 << 10, 3]);
    // And whoever waits for room that will not come is told.
    actor.try_tell("wait").unwrap();
    actor.try_tell(large()).unwrap();
    let mut waits = Box::pin(actor.tell(large()));
    assert!(poll_once(waits.as_mut()).is_pending());
    actor.kill();
    assert_eq!(waits.await.unwrap_err().reason, Refusal::Stopped);
}

#[tokio::test]
async fn what_is_sent_after_a_stop_is_not_handled() {
    let system = system();
    let (actor, probe) = Probe::spawn(&system, "probe").await;
    ask(&actor, "before").await.unwrap();
    // It sleeps by now, and wakes up to both.
    tokio::task::yield_now().await;
    actor.stop(Stop::Now);
    actor.try_tell("after").unwrap();
    actor.ended().await;
    assert_eq!(probe.handled(), "before");
    assert_eq!(system.dead_letters().len(), 1);
}

#[tokio::test]
async fn a_sender_that_is_never_polled_keeps_no_actor_alive() {
    for stop in [None, Some(Stop::Now), Some(Stop::Drain)] {
        let system = system();
        let (mut spec, probe) = Probe::spec("probe");
        spec = spec.with_mailbox(1);
        let actor = system.spawn_native(spec).await.unwrap();
        actor.try_tell("first").unwrap();
        let mut waits = Box::pin(actor.tell("second"));
        assert!(poll_once(waits.as_mut()).is_pending());
        match stop {
            None => actor.kill(),
            Some(how) => actor.stop(how),
        }
        actor.ended().await;
        assert!(system.find(&id("probe")).is_none());
        assert_eq!(waits.await.unwrap_err().reason, Refusal::Stopped);
        assert_eq!(probe.handled(), if stop == Some(Stop::Drain) { "first" } else { "" });
    }
}

#[tokio::test]
async fn what_a_sender_waits_to_send_is_handled_though_nobody_polls_it() {
    let system = system();
    let (mut spec, probe) = Probe::spec("probe");
    spec = spec.with_mailbox(1);
    let actor = system.spawn_native(spec).await.unwrap();
    actor.try_tell("first").unwrap();
    let mut waits = Box::pin(actor.tell("second"));
    assert!(poll_once(waits.as_mut()).is_pending());
    while !probe.handled().ends_with("second") {
        tokio::task::yield_now().await;
    }
    waits.await.unwrap();
}

#[tokio::test]
async fn a_kill_is_for_good_whatever_was_ordered_before() {
    let system = system();
    let mut spec = spec(&system, "actor", &ACTOR);
    spec = spec.with_config([("restore", "spin")]);
    let limits = airssys_wasm_limits::ResourceLimits { cpu_time: Duration::from_secs(600), ..limits() };
    spec = limited(spec, limits);
    let version = spec.sandbox().clone();
    let actor = system.spawn(spec).await.unwrap();
    actor.try_tell("spin").unwrap();
    let upgrade = tokio::spawn({
        let (system, address) = (system.clone(), actor.address().clone());
        async move { system.upgrade(&address, version, airssys_wasm_actor::UpgradeOptions::default()).await }
    });
    for _ in 0..3 {
        tokio::task::yield_now().await;
    }
    // Otherwise the new version would spin for ten minutes.
    actor.kill();
    actor.ended().await;
    assert!(upgrade.await.unwrap().is_err());
    assert_eq!(actor.info().restarts, 0);
}

/// Panics before it gives a future, and, made for the second time, while it is made.
struct Panics;

impl airssys_wasm_actor::NativeActor for Panics {
    fn handle(
        &mut self,
        _: &MessageEnvelope,
        _: &airssys_wasm_actor::NativeContext,
    ) -> impl Future<Output = Result<Option<airssys_wasm_actor::Bytes>, String>> + Send {
        if true {
            panic!("told to crash");
        }
        async { Ok(None) }
    }
}

#[tokio::test]
async fn a_panic_of_the_hosts_code_is_a_crash_wherever_it_is() {
    let system = system();
    let made = std::sync::atomic::AtomicU32::new(0);
    let mut spec = airssys_wasm_actor::NativeSpec::new(id("panics"), move || {
        let nth = made.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        assert_ne!(nth, 1, "told to crash");
        Panics
    });
    spec = spec.with_restart(Backoff::NONE);
    let actor = system.spawn_native(spec).await.unwrap();
    for _ in 0..2 {
        match ask(&actor, "x").await {
            Err(AskError::Crashed(report)) => assert_eq!(report.crash.kind().class(), CrashClass::HostPanic),
            other => panic!("{other:?}"),
        }
    }
    actor.health().await.unwrap();
    assert_eq!(actor.info().incarnation, 4);
}

#[tokio::test(start_paused = true)]
async fn the_longest_waits_are_no_panic() {
    let system = system();
    let (actor, _) = Probe::spawn(&system, "probe").await;
    assert_eq!(&*actor.ask_within(Duration::MAX, "x").await.unwrap(), b"x");
    let policy = airssys_wasm_actor::SupervisorPolicy {
        shutdown: Duration::MAX,
        ..airssys_wasm_actor::SupervisorPolicy::default()
    };
    let spec = airssys_wasm_actor::SupervisorSpec::new(id("s"), policy).native(Probe::spec("child").0);
    system.supervise(spec).await.unwrap();
    assert_eq!(system.shutdown(Duration::MAX).await.stopped, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_that_comes_right_after_an_answer_is_heard() {
    let system = system();
    for _ in 0..20_000 {
        let (actor, _) = Probe::spawn(&system, "probe").await;
        ask(&actor, "x").await.unwrap();
        actor.kill();
        actor.ended().await;
    }
}

#[tokio::test]
#[expect(clippy::mutable_key_type, reason = "the address is hashed, which does not change")]
async fn handles_are_equal_that_lead_to_the_same_registration() {
    let (here, there) = (system(), system());
    let (actor, _) = Probe::spawn(&here, "probe").await;
    let (elsewhere, _) = Probe::spawn(&there, "probe").await;
    assert_eq!(actor, here.find("probe").unwrap());
    assert_eq!(actor.address(), elsewhere.address());
    assert_ne!(actor, elsewhere);
    actor.kill();
    actor.ended().await;
    let (later, _) = Probe::spawn(&here, "probe").await;
    assert_ne!(actor, later);
    let handles: HashSet<_> = [&actor, &actor, &elsewhere, &later].into();
    assert_eq!(handles.len(), 3);
}

#[tokio::test]
async fn a_storm_of_crashes_gives_way() {
    let system = system();
    // One page of memory, which is freed on the spot.
    let text = SMALLEST_ACTOR.replacen("(global.set $next (i32.const 1024))", "unreachable", 1);
    let traps = system.engine().load_wat_blocking(&text, Profile::Plain).unwrap();
    let actor = system.spawn(spec(&system, "traps", &traps).with_restart(at_once(1_000))).await.unwrap();
    let mut incarnations = Vec::new();
    for _ in 0..50 {
        actor.try_tell("x").unwrap();
    }
    while actor.info().restarts < 50 {
        incarnations.push(actor.info().restarts);
        tokio::task::yield_now().await;
    }
    assert!(incarnations.len() >= 50, "{incarnations:?}");
}
