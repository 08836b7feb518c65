//! Components written for wasmCloud's messaging with async functions, which may ask for a message again or reject it.

use std::time::Duration;

use airssys_wasm_actor::{
    ActorRef, ActorSystem, AskError, Backoff, Capabilities, ContractKind, DeadReason, RestartPolicy, Stop,
    UpgradeError, UpgradeOptions,
};
use airssys_wasm_engine::{EngineConfig, Feature, LoadError, Profile, WasmEngine};
use airssys_wasm_limits::{ByteSize, ResourceLimits};
use airssys_wasm_registry::{Topic, WhenFull};
use tokio::time::Instant;

use crate::support::{
    ACTOR, ASYNC_WASMCLOUD, Probe, WASMCLOUD, ask, at_once, limited, limits, settle, spawn, spec, system,
};

async fn redelivered(system: &ActorSystem, attempts: u32) -> ActorRef {
    let mut spec = spec(system, "cloud", &ASYNC_WASMCLOUD);
    spec = spec.with_redelivery(Some(attempts));
    system.spawn(spec).await.unwrap()
}

/// Why the only dead letter is one.
fn reason(system: &ActorSystem) -> DeadReason {
    let [letter] = &system.dead_letters().drain()[..] else { panic!("not one") };
    letter.reason.clone()
}

#[test]
fn without_the_switch_it_is_not_loaded() {
    let engine = WasmEngine::new(EngineConfig::small().compile_in_process()).unwrap();
    let error = engine.load_wat_blocking(airssys_wasm_fixtures::ASYNC_WASMCLOUD, Profile::Plain).unwrap_err();
    assert!(matches!(error, LoadError::Unsupported { feature: Feature::ComponentAsync }), "{error:?}");
}

#[tokio::test]
async fn an_ask_is_completed_by_publishing_to_its_reply_subject() {
    let system = system();
    let mut spec = spec(&system, "cloud", &ASYNC_WASMCLOUD);
    // Which needs no grant.
    spec = spec.with_capabilities(Capabilities::default());
    let actor = system.spawn(spec).await.unwrap();
    for n in 0..20 {
        assert_eq!(ask(&actor, &format!("ehello {n}")).await.unwrap(), format!("hello {n}"));
    }
    let long = "x".repeat(100_000);
    assert_eq!(ask(&actor, &format!("e{long}")).await.unwrap(), long);
    // The guest's own stream, and the host's, which the guest passes on.
    assert_eq!(ask(&actor, &format!("f{long}")).await.unwrap(), long);
    assert_eq!(ask(&actor, "e").await.unwrap(), "");
    assert!(matches!(ask(&actor, "n").await, Err(AskError::NoReply)));
    assert!(matches!(ask(&actor, "p").await, Err(AskError::Crashed(_))));
    assert_eq!(ask(&actor, "eback").await.unwrap(), "back");
    assert_eq!(actor.info().incarnation, 2);
}

#[tokio::test]
async fn an_asker_is_told_of_retry_and_reject_and_nothing_is_redelivered() {
    let system = system();
    let actor = redelivered(&system, 3).await;
    assert!(matches!(ask(&actor, "r").await, Err(AskError::Retry)));
    assert!(matches!(ask(&actor, "j").await, Err(AskError::Rejected { reason: None })));
    let rejected = ask(&actor, "obecause").await;
    assert!(
        matches!(&rejected, Err(AskError::Rejected { reason: Some(reason) }) if reason == "because"),
        "{rejected:?}"
    );
    assert!(matches!(ask(&actor, "u").await, Err(AskError::Retry)));
    assert!(matches!(ask(&actor, "u").await, Err(AskError::Retry)));
    assert!(matches!(ask(&actor, "u").await, Err(AskError::NoReply)));
    assert!(system.dead_letters().is_empty());
    assert_eq!(actor.info().incarnation, 1);
}

#[tokio::test]
async fn retry_is_redelivery_without_a_crash() {
    let system = system();
    let actor = redelivered(&system, 3).await;
    actor.tell("u").await.unwrap();
    assert_eq!(ask(&actor, "ehello").await.unwrap(), "hello");
    assert!(system.dead_letters().is_empty(), "it was handled the third time");
    // Had it been delivered less often, this would be the third time.
    assert!(matches!(ask(&actor, "u").await, Err(AskError::Retry)));
    assert_eq!(actor.info().incarnation, 1);
}

#[tokio::test]
async fn retries_are_bounded_by_redelivery() {
    for (redelivery, allowed) in [(0, 1), (1, 1), (2, 2), (5, 5)] {
        let system = system();
        let actor = redelivered(&system, redelivery).await;
        actor.tell("r").await.unwrap();
        assert_eq!(ask(&actor, "ehello").await.unwrap(), "hello");
        let reason = reason(&system);
        assert!(matches!(reason, DeadReason::RetriesExhausted { attempts } if attempts == allowed), "{reason:?}");
        assert_eq!(actor.info().incarnation, 1);
        // The next message has all its attempts.
        actor.tell("u").await.unwrap();
        assert_eq!(ask(&actor, "ehello").await.unwrap(), "hello");
        assert_eq!(system.dead_letters().len(), usize::from(allowed < 3));
    }
}

#[tokio::test]
async fn what_is_rejected_is_a_dead_letter_with_the_reason() {
    let system = system();
    let actor = redelivered(&system, 3).await;
    for (message, said) in [("j", None), ("obecause", Some("because"))] {
        actor.tell(message).await.unwrap();
        assert_eq!(ask(&actor, "ehello").await.unwrap(), "hello");
        let reason = reason(&system);
        assert!(matches!(&reason, DeadReason::Rejected { because } if because.as_deref() == said), "{reason:?}");
    }
    actor.tell("n").await.unwrap();
    assert_eq!(ask(&actor, "ehello").await.unwrap(), "hello");
    assert!(system.dead_letters().is_empty());
    assert_eq!(actor.info().incarnation, 1);
}

#[tokio::test]
async fn who_was_answered_is_not_told_again() {
    let system = system();
    let actor = redelivered(&system, 3).await;
    assert_eq!(ask(&actor, "ahello").await.unwrap(), "hello");
    assert_eq!(ask(&actor, "ehello").await.unwrap(), "hello");
    assert!(matches!(reason(&system), DeadReason::RetriesExhausted { attempts: 1 }));
}

#[tokio::test]
async fn a_crash_after_retry_is_the_same_attempt() {
    let system = system();
    let actor = redelivered(&system, 3).await;
    actor.tell("t").await.unwrap();
    assert_eq!(ask(&actor, "ehello").await.unwrap(), "hello");
    let exhausted = reason(&system);
    assert!(matches!(exhausted, DeadReason::RetriesExhausted { attempts: 3 }), "{exhausted:?}");
    assert_eq!(actor.info().incarnation, 4);
    // Without it, a crash is poison.
    actor.tell("p").await.unwrap();
    assert_eq!(ask(&actor, "ehello").await.unwrap(), "hello");
    assert!(matches!(reason(&system), DeadReason::Poison { attempts: 3, .. }));
}

#[tokio::test(start_paused = true)]
async fn redelivery_waits_for_the_back_off_and_orders_do_not() {
    let system = system();
    let backoff = Backoff { first: Duration::from_secs(10), jitter: 0.0, ..Backoff::default() };
    let spec = |redelivery| {
        let policy = RestartPolicy { backoff, ..at_once(100) };
        spec(&system, "cloud", &ASYNC_WASMCLOUD).with_redelivery(Some(redelivery)).with_restart(policy)
    };
    let actor = system.spawn(spec(2)).await.unwrap();
    let begun = Instant::now();
    actor.tell("r").await.unwrap();
    assert_eq!(ask(&actor, "ehello").await.unwrap(), "hello");
    assert_eq!(begun.elapsed().as_secs(), 10);
    reason(&system);
    // The control: what is not retried waits for nothing.
    let begun = Instant::now();
    actor.tell("n").await.unwrap();
    assert_eq!(ask(&actor, "ehello").await.unwrap(), "hello");
    assert_eq!(begun.elapsed().as_secs(), 0);

    for stop in [Some(Stop::Now), None] {
        let actor = system.find("cloud").unwrap();
        actor.tell("r").await.unwrap();
        settle().await;
        let begun = Instant::now();
        match stop {
            Some(stop) => actor.stop(stop),
            None => actor.kill(),
        }
        actor.ended().await;
        assert_eq!(begun.elapsed().as_secs(), 0);
        assert!(matches!(reason(&system), DeadReason::Interrupted));
        system.spawn(spec(2)).await.unwrap();
    }
    // A drain waits.
    let actor = system.find("cloud").unwrap();
    actor.tell("r").await.unwrap();
    let behind = tokio::spawn({
        let actor = actor.clone();
        async move { ask(&actor, "ebehind").await }
    });
    settle().await;
    actor.stop(Stop::Drain);
    actor.ended().await;
    assert_eq!(behind.await.unwrap().unwrap(), "behind");
    assert!(matches!(reason(&system), DeadReason::RetriesExhausted { attempts: 2 }));
}

#[tokio::test]
async fn subjects_are_topics_and_need_a_grant() {
    let system = system();
    let mut spec = spec(&system, "cloud", &ASYNC_WASMCLOUD);
    spec = spec.with_capabilities(Capabilities { publish: vec!["up".parse().unwrap()], ..Capabilities::default() });
    spec = spec.with_subscriptions(["orders.>".parse().unwrap()]);
    let actor = system.spawn(spec).await.unwrap();
    let mut host = system.subscribe(&"up".parse().unwrap(), 10, WhenFull::DropNew);
    assert_eq!(system.publish(&Topic::new("orders.eu").unwrap(), "sfrom orders").await.delivered, 1);
    assert_eq!(host.recv().await.unwrap().payload(), "from orders");
    assert_eq!(ask(&actor, "shello").await.unwrap(), "9");
    assert_eq!(host.recv().await.unwrap().payload(), "hello");
    // `access-denied`.
    assert_eq!(ask(&actor, "dhello").await.unwrap(), "1");
}

#[tokio::test]
async fn a_request_goes_to_a_subscriber_of_any_kind() {
    let system = system();
    let cloud = spawn(&system, "cloud", &ASYNC_WASMCLOUD).await;
    // `other`: nobody is there.
    assert_eq!(ask(&cloud, "qehello").await.unwrap(), "6");
    let mut answers = spec(&system, "answers", &ASYNC_WASMCLOUD);
    answers = answers.with_subscriptions(["up".parse().unwrap()]);
    let answers = system.spawn(answers).await.unwrap();
    assert_eq!(ask(&cloud, "qehello").await.unwrap(), "hello");
    for error in ["qr", "qj", "qobecause", "qp"] {
        assert_eq!(ask(&cloud, error).await.unwrap(), "6", "{error}");
    }
    answers.kill();
    answers.ended().await;
    let probe = Probe::spec("probe").0.with_subscriptions(["up".parse().unwrap()]);
    system.spawn_native(probe).await.unwrap();
    assert_eq!(ask(&cloud, "qhello").await.unwrap(), "hello");
}

#[tokio::test]
async fn a_guest_of_the_other_contract_is_told_in_words() {
    let system = system();
    let asker = spawn(&system, "asker", &ACTOR).await;
    spawn(&system, "cloud", &ASYNC_WASMCLOUD).await;
    for (message, said) in [
        ("r", r#"RequestError::Failed("retry: the handler may take it later")"#),
        ("j", r#"RequestError::Failed("rejected")"#),
        ("obecause", r#"RequestError::Failed("rejected: because")"#),
    ] {
        let Err(AskError::Failed { message }) = ask(&asker, &format!("request cloud 1000 {message}")).await else {
            panic!("{message}")
        };
        assert_eq!(message, said);
    }
    assert_eq!(ask(&asker, "request cloud 1000 ehello").await.unwrap(), "hello");
}

#[tokio::test]
async fn bodies_are_bounded_and_end_with_their_message() {
    let system = system();
    let narrow = ResourceLimits { host_call_bytes: ByteSize::kib(10), ..limits() };
    let cloud = system.spawn(limited(spec(&system, "cloud", &ASYNC_WASMCLOUD), narrow)).await.unwrap();
    let mut probe = Probe::spec("probe").0;
    probe = probe.with_subscriptions(["up".parse().unwrap()]);
    system.spawn_native(probe).await.unwrap();
    let text = |command: &str, bytes: usize| format!("{command}{}", "x".repeat(bytes));
    // `message-too-large`, and the control.
    assert_eq!(ask(&cloud, &text("s", 10_241)).await.unwrap(), "4");
    assert_eq!(ask(&cloud, &text("s", 10_240)).await.unwrap(), "9");
    // Answers that are kept unread count: `quota-exceeded`.
    assert_eq!(ask(&cloud, &text("h", 4_000)).await.unwrap(), "9");
    assert_eq!(ask(&cloud, &text("h", 4_000)).await.unwrap(), "9");
    assert_eq!(ask(&cloud, &text("h", 4_000)).await.unwrap(), "5");
    // Those that are read do not.
    for _ in 0..10 {
        assert_eq!(ask(&cloud, &text("q", 1_000)).await.unwrap().len(), 1_000);
    }
    // Of a body that is kept nothing is there when its message is over.
    assert!(matches!(ask(&cloud, "kept").await, Err(AskError::NoReply)));
    assert_eq!(ask(&cloud, "l").await.unwrap(), "0");
    assert_eq!(cloud.info().incarnation, 1);
}

#[tokio::test]
async fn one_who_keeps_a_stream_of_each_message_has_no_handle_left() {
    let system = system();
    for (message, crashes) in [("kept", true), ("n", false)] {
        let few = ResourceLimits { handles: 20, ..limits() };
        let cloud = system.spawn(limited(spec(&system, message, &ASYNC_WASMCLOUD), few)).await.unwrap();
        for _ in 0..200 {
            cloud.tell(message).await.unwrap();
        }
        assert_eq!(ask(&cloud, "ehello").await.unwrap(), "hello");
        assert_eq!(cloud.info().incarnation > 1, crashes, "{message}");
    }
}

#[tokio::test]
async fn an_upgrade_does_not_change_the_contract() {
    let system = system();
    let cloud = spawn(&system, "cloud", &ASYNC_WASMCLOUD).await;
    let options = UpgradeOptions::default;
    let older = spec(&system, "older", &WASMCLOUD).sandbox().clone();
    let refused = system.upgrade(cloud.address(), older, options()).await.unwrap_err();
    let (now, new) = (ContractKind::AsyncWasmCloud, ContractKind::WasmCloud);
    assert!(matches!(refused, UpgradeError::OtherContract { now: n, new: m } if (n, m) == (now, new)), "{refused}");
    let same = spec(&system, "same", &ASYNC_WASMCLOUD).sandbox().clone();
    system.upgrade(cloud.address(), same, options()).await.unwrap();
    assert_eq!(ask(&cloud, "ehello").await.unwrap(), "hello");
}
