//! What guests do with messages: send, request, publish, subscribe; and what they are not granted.

use airssys_wasm_actor::{
    AskError, Bytes, Capabilities, ContractKind, DeniedAction, NativeActor, NativeContext, NativeSpec, SpawnError,
    StartError, Stop, SystemEvent, UpgradeError, UpgradeOptions,
};
use airssys_wasm_isolation::CrashKind;
use airssys_wasm_limits::{ByteSize, ResourceLimits};
use airssys_wasm_registry::{MessageEnvelope, Refusal, Topic, TraceContext, WhenFull};
use tokio::sync::broadcast;

use crate::support::{ACTOR, COUNTER, Probe, WASMCLOUD, ask, id, limited, limits, spawn, spec, system};

/// What a command failed with, as the guest wrote it.
async fn failed(actor: &airssys_wasm_actor::ActorRef, command: &str) -> String {
    match ask(actor, command).await {
        Err(AskError::Failed { message }) => message,
        other => panic!("{command}: {other:?}"),
    }
}

#[tokio::test]
async fn a_guest_sends_to_another() {
    let system = system();
    let sender = spawn(&system, "sender", &ACTOR).await;
    let (_, probe) = Probe::spawn(&system, "probe").await;
    assert_eq!(ask(&sender, "self").await.unwrap(), "sender");
    assert_eq!(ask(&sender, "send probe hello").await.unwrap(), "done");
    assert_eq!(failed(&sender, "send nobody x").await, "SendError::Unknown");
    // Nobody who takes messages.
    let called = spec(&system, "called", &COUNTER).with_contract(ContractKind::Exports);
    system.spawn(called).await.unwrap();
    assert_eq!(failed(&sender, "send called x").await, "SendError::Unknown");
    assert!(failed(&sender, "send a*b x").await.starts_with("SendError::Invalid"));
    while probe.log.lock().is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(probe.handled(), "hello");
}

#[tokio::test]
async fn a_receiver_sees_who_sent_what() {
    let system = system();
    let a = spawn(&system, "a", &ACTOR).await;
    spawn(&system, "b", &ACTOR).await;
    assert_eq!(ask(&a, "what").await.unwrap(), "sender=- topic=- content-type=- wants-answer=true");
    assert_eq!(ask(&a, "request b 1000 what").await.unwrap(), "sender=a topic=- content-type=- wants-answer=true");
}

#[tokio::test]
async fn every_refusal_of_a_send_is_told_apart() {
    let system = system();
    let sender = spawn(&system, "sender", &ACTOR).await;
    let (mut full, _) = Probe::spec("full");
    full = full.with_mailbox(1);
    let full = system.spawn_native(full).await.unwrap();
    full.tell("wait").await.unwrap();
    full.tell("queued").await.unwrap();
    assert_eq!(failed(&sender, "send full x").await, "SendError::Full");

    let mut small = spec(&system, "small", &ACTOR);
    let limits = ResourceLimits { message_size: ByteSize(20), ..limits() };
    small = limited(small, limits);
    system.spawn(small).await.unwrap();
    // The guest sends it as `text/plain`, which counts.
    assert_eq!(failed(&sender, "send small 12345678901").await, "SendError::TooLarge(20)");
    assert_eq!(ask(&sender, "send small 1234567890").await.unwrap(), "done");
}

#[tokio::test(start_paused = true)]
async fn a_request_ends_in_an_answer_or_in_the_reason_why_not() {
    let system = system();
    let asker = spawn(&system, "asker", &ACTOR).await;
    spawn(&system, "b", &ACTOR).await;
    let (_waits, _) = Probe::spawn(&system, "waits").await;
    assert_eq!(ask(&asker, "request b 1000 echo hello").await.unwrap(), "hello");
    assert_eq!(failed(&asker, "request b 1000 panic").await, "RequestError::Crashed");
    assert_eq!(failed(&asker, "request b 1000 none").await, "RequestError::NoAnswer");
    assert_eq!(failed(&asker, "request b 1000 fail so").await, r#"RequestError::Failed("so")"#);
    assert_eq!(failed(&asker, "request nobody 1000 x").await, "RequestError::NotSent(SendError::Unknown)");
    assert_eq!(failed(&asker, "request waits 1000 wait").await, "RequestError::Timeout");
    assert_eq!(failed(&asker, "request waits 0 x").await, "RequestError::Timeout");
    // The asker lives through all of it.
    assert_eq!(asker.info().incarnation, 1);
}

#[tokio::test]
async fn others_go_on_while_one_waits_for_an_answer() {
    let system = system();
    let asker = spawn(&system, "asker", &ACTOR).await;
    let other = spawn(&system, "other", &ACTOR).await;
    let (_, probe) = Probe::spawn(&system, "probe").await;
    let waiting = tokio::spawn(async move { ask(&asker, "request probe 60000 wait").await });
    while probe.log.lock().is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(ask(&other, "echo meanwhile").await.unwrap(), "meanwhile");
    assert!(!waiting.is_finished());
    probe.gate.notify_one();
    assert_eq!(waiting.await.unwrap().unwrap(), "wait");
}

#[tokio::test]
async fn the_asker_of_one_that_stops_is_told() {
    let system = system();
    let asker = spawn(&system, "asker", &ACTOR).await;
    let (stops, probe) = Probe::spawn(&system, "stops").await;
    stops.try_tell("wait").unwrap();
    let waiting = tokio::spawn(async move { ask(&asker, "request stops 60000 x").await });
    while stops.info().mailbox.queued == 0 || probe.log.lock().is_empty() {
        tokio::task::yield_now().await;
    }
    stops.kill();
    let Err(AskError::Failed { message }) = waiting.await.unwrap() else { panic!("it was told") };
    assert_eq!(message, "RequestError::Stopped");
}

#[tokio::test]
async fn a_cycle_of_requests_is_refused_at_once() {
    let system = system();
    let a = spawn(&system, "a", &ACTOR).await;
    for name in ["b", "c"] {
        spawn(&system, name, &ACTOR).await;
    }
    assert_eq!(failed(&a, "request a 60000 echo x").await, "RequestError::Cycle");
    let inner = failed(&a, "request b 60000 request a 60000 echo x").await;
    assert_eq!(inner, r#"RequestError::Failed("RequestError::Cycle")"#);
    let inner = failed(&a, "request b 60000 request c 60000 request a 60000 echo x").await;
    assert!(inner.contains("Cycle"), "{inner}");
    // A chain that comes to an end is no cycle, and neither is the same chain again.
    for _ in 0..2 {
        assert_eq!(ask(&a, "request b 60000 request c 60000 echo x").await.unwrap(), "x");
    }
}

#[tokio::test]
async fn a_crash_in_a_request_leaves_no_trace_of_waiting() {
    let system = system();
    let (a, b) = (spawn(&system, "a", &ACTOR).await, spawn(&system, "b", &ACTOR).await);
    let (_, probe) = Probe::spawn(&system, "probe").await;
    let waiting = tokio::spawn({
        let a = a.clone();
        async move { ask(&a, "request probe 60000 wait").await }
    });
    while probe.log.lock().is_empty() {
        tokio::task::yield_now().await;
    }
    a.kill();
    assert!(waiting.await.unwrap().is_err());
    a.ended().await;
    spawn(&system, "a", &ACTOR).await;
    assert_eq!(ask(&b, "request a 60000 echo x").await.unwrap(), "x");
}

#[tokio::test]
async fn subscribers_hear_what_is_published() {
    let system = system();
    let publisher = spawn(&system, "publisher", &ACTOR).await;
    let listener = spawn(&system, "listener", &ACTOR).await;
    let mut host = system.subscribe(&"orders.>".parse().unwrap(), 10, WhenFull::DropNew);
    assert_eq!(ask(&publisher, "publish orders.eu.created 1").await.unwrap(), "1");
    ask(&listener, "subscribe orders.*.created").await.unwrap();
    ask(&listener, "subscribe orders.*.created").await.unwrap();
    assert_eq!(ask(&publisher, "publish orders.eu.created 2").await.unwrap(), "2");
    assert_eq!(ask(&publisher, "publish orders.eu.paid 3").await.unwrap(), "1");
    assert_eq!(ask(&listener, "heard").await.unwrap(), "2");
    assert_eq!(host.recv().await.unwrap().payload(), "1");
    assert_eq!(host.recv().await.unwrap().topic().unwrap().as_str(), "orders.eu.created");
    ask(&listener, "unsubscribe orders.*.created").await.unwrap();
    assert_eq!(ask(&publisher, "publish orders.eu.created 4").await.unwrap(), "1");
    assert!(failed(&publisher, "publish orders..x 4").await.starts_with("SendError::Invalid"));
    let report = system.publish(&Topic::new("orders.x").unwrap(), "5").await;
    assert_eq!(report.delivered, 1);
}

#[tokio::test]
async fn subscriptions_outlive_restarts_and_are_not_doubled() {
    let system = system();
    let mut spec = spec(&system, "listener", &ACTOR);
    // `init` subscribes in each incarnation.
    spec = spec.with_config([("subscribe", "a.>")]);
    spec = spec.with_subscriptions(["b".parse().unwrap()]);
    let listener = system.spawn(spec).await.unwrap();
    ask(&listener, "subscribe c").await.unwrap();
    ask(&listener, "panic").await.unwrap_err();
    for topic in ["a.1", "b", "c"] {
        let report = system.publish(&Topic::new(topic).unwrap(), topic).await;
        assert_eq!(report.delivered, 1, "{topic}");
    }
    assert_eq!(ask(&listener, "heard").await.unwrap(), "a.1,b,c");
    listener.kill();
    listener.ended().await;
    assert_eq!(system.publish(&Topic::new("b").unwrap(), "x").await, airssys_wasm_registry::PublishReport::default());
}

#[tokio::test]
async fn what_is_not_granted_is_denied_and_seen_by_the_host() {
    let system = system();
    let mut spec = spec(&system, "guest", &ACTOR);
    spec = spec.with_capabilities(
        toml::from_str::<Capabilities>(
            r#"
        send = ["probe", "tenant-1/*"]
        request = ["probe"]
        publish = ["mine.>"]
        subscribe = ["news.*"]
        subscriptions = 2
        "#,
        )
        .unwrap(),
    );
    let guest = system.spawn(spec).await.unwrap();
    Probe::spawn(&system, "probe").await;
    Probe::spawn(&system, "other").await;
    Probe::spawn(&system, "tenant-1/a").await;
    let mut events = system.events();

    for granted in [
        "send probe x",
        "send tenant-1/a x",
        "request probe 1000 x",
        "publish mine.a x",
        "subscribe news.eu",
        "subscribe news.*",
    ] {
        ask(&guest, granted).await.unwrap();
    }
    assert!(matches!(events.try_recv(), Err(broadcast::error::TryRecvError::Empty)));
    assert_eq!(failed(&guest, "subscribe news.us").await, "SubscribeError::TooMany(2)");

    for (command, error, denied, with) in [
        ("send other x", "SendError::Denied", DeniedAction::Send, "other"),
        ("request other 1000 x", "RequestError::NotSent(SendError::Denied)", DeniedAction::Request, "other"),
        ("request tenant-1/a 1000 x", "RequestError::NotSent(SendError::Denied)", DeniedAction::Request, "tenant-1/a"),
        ("publish mine x", "SendError::Denied", DeniedAction::Publish, "mine"),
        ("subscribe news.>", "SubscribeError::Denied", DeniedAction::Subscribe, "news.>"),
        ("subscribe >", "SubscribeError::Denied", DeniedAction::Subscribe, ">"),
    ] {
        assert_eq!(failed(&guest, command).await, error);
        // A new incarnation's first is always news.
        ask(&guest, "panic").await.unwrap_err();
        let event = std::iter::from_fn(|| events.try_recv().ok()).find_map(|event| match event {
            SystemEvent::Denied { actor, action, target, denials } => Some((actor, action, target, denials)),
            _ => None,
        });
        let (actor, action, target, denials) = event.unwrap();
        assert_eq!((actor.id().as_str(), action, target.as_str(), denials), ("guest", denied, with, 1));
    }
}

#[tokio::test]
async fn denials_without_end_do_not_drown_the_others_events() {
    let system = system();
    let mut spec = spec(&system, "guest", &ACTOR);
    spec = spec.with_capabilities(Capabilities::default());
    let guest = system.spawn(spec).await.unwrap();
    let mut events = system.events();
    for _ in 0..1_000 {
        failed(&guest, "send anybody x").await;
    }
    let denials: Vec<_> = std::iter::from_fn(|| events.try_recv().ok())
        .map(|event| match event {
            SystemEvent::Denied { denials, .. } => denials,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(denials, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]);
}

#[tokio::test]
async fn a_group_shares_its_messages_and_answers_requests() {
    let system = system();
    let asker = spawn(&system, "asker", &ACTOR).await;
    system.create_group(&id("workers")).unwrap();
    for name in ["w1", "w2"] {
        spawn(&system, name, &ACTOR).await;
        system.join(&id("workers"), &id(name)).unwrap();
    }
    let mut answers = Vec::new();
    for _ in 0..4 {
        answers.push(ask(&asker, "request workers 1000 self").await.unwrap());
    }
    answers.sort();
    assert_eq!(answers, ["w1", "w1", "w2", "w2"]);
    system.leave(&id("workers"), &id("w1")).unwrap();
    assert_eq!(ask(&asker, "request workers 1000 self").await.unwrap(), "w2");
    // A member that asks its group is passed over, and so is one that takes no more.
    let w1 = system.find(&id("w1")).unwrap();
    system.join(&id("workers"), &id("w1")).unwrap();
    for _ in 0..2 {
        assert_eq!(ask(&w1, "request workers 1000 self").await.unwrap(), "w2");
    }
    let (draining, probe) = Probe::spawn(&system, "w3").await;
    system.join(&id("workers"), &id("w3")).unwrap();
    draining.tell("wait").await.unwrap();
    draining.stop(Stop::Drain);
    while draining.try_tell("x").is_ok() || probe.log.lock().is_empty() {
        tokio::task::yield_now().await;
    }
    for _ in 0..3 {
        ask(&asker, "request workers 1000 self").await.unwrap();
    }
    system.send(&id("workers"), "echo from the host").unwrap();
    assert!(system.create_group(&id("w1")).is_err());
}

#[tokio::test]
async fn the_trace_goes_on_with_a_message() {
    let system = system();
    let sender = spawn(&system, "sender", &ACTOR).await;
    let mut host = system.subscribe(&"t".parse().unwrap(), 10, WhenFull::DropNew);
    let trace = TraceContext { trace_id: 7, parent_id: 8, sampled: true };
    let mut message = MessageEnvelope::from("publish t x");
    message = message.with_trace(trace);
    sender.ask(message).await.unwrap();
    let heard = host.recv().await.unwrap();
    let heard_trace = heard.trace().unwrap();
    assert_eq!((heard_trace.trace_id, heard_trace.sampled), (7, true));
    // Below a span of the actor's own.
    assert_ne!(heard_trace.parent_id, 8);
    assert_eq!(heard.sender().unwrap(), sender.address());
    ask(&sender, "publish t y").await.unwrap();
    assert!(host.recv().await.unwrap().trace().is_none());
}

/// Answers with so many bytes as it is told, or fails with so long a text.
struct Generous;

impl NativeActor for Generous {
    async fn handle(&mut self, message: &MessageEnvelope, _: &NativeContext) -> Result<Option<Bytes>, String> {
        let text = String::from_utf8_lossy(message.payload()).into_owned();
        let (way, bytes) = text.split_once(' ').unwrap();
        let bytes = "x".repeat(bytes.parse().unwrap());
        if way == "answer" { Ok(Some(bytes.into())) } else { Err(bytes) }
    }
}

#[tokio::test]
async fn an_answer_that_the_asker_cannot_take_is_an_error_and_no_crash() {
    let system = system();
    system.spawn_native(NativeSpec::new(id("generous"), || Generous)).await.unwrap();
    let answers = NativeSpec::new(id("answers"), || Generous).with_subscriptions(["t".parse().unwrap()]);
    system.spawn_native(answers).await.unwrap();
    let small = ResourceLimits { message_size: ByteSize::kib(64), ..ResourceLimits::with_memory(ByteSize::mib(2)) };
    let asker = system.spawn(limited(spec(&system, "asker", &ACTOR), small.clone())).await.unwrap();
    let cloud = system.spawn(limited(spec(&system, "cloud", &WASMCLOUD), small)).await.unwrap();
    for way in ["answer", "fail"] {
        for bytes in [65_537, 8 << 20] {
            let asked = failed(&asker, &format!("request generous 10000 {way} {bytes}")).await;
            assert_eq!(asked, "RequestError::TooLarge(65536)");
            let asked = failed(&cloud, &format!("request t 10000 {way} {bytes}")).await;
            assert!(asked.starts_with("too large"), "{asked}");
        }
    }
    assert_eq!(ask(&asker, "request generous 10000 answer 60000").await.unwrap().len(), 60_000);
    assert_eq!(failed(&asker, "request generous 10000 fail 3").await, r#"RequestError::Failed("xxx")"#);
    for actor in [asker, cloud] {
        assert_eq!(actor.info().incarnation, 1, "it lives");
    }
}

#[tokio::test]
async fn config_and_state_are_held_to_the_size_of_a_message() {
    let system = system();
    let small = || ResourceLimits { message_size: ByteSize(1_000), ..limits() };
    for (bytes, fits) in [(996, true), (997, false)] {
        let value = "x".repeat(bytes);
        let actor = limited(spec(&system, "actor", &ACTOR), small()).with_config([("text", value.as_str())]);
        match system.spawn(actor).await {
            Ok(actor) => {
                assert!(fits);
                actor.kill();
                actor.ended().await;
            }
            Err(SpawnError::Start { error, .. }) => {
                assert!(!fits);
                assert!(matches!(*error, StartError::TooLarge { what: "config", size: 1_001, .. }), "{error:?}");
            }
            Err(other) => panic!("{other}"),
        }
    }

    let actor = spec(&system, "actor", &ACTOR).with_subscriptions(["t".parse().unwrap()]);
    let actor = system.spawn(actor).await.unwrap();
    let long = "x".repeat(1_000);
    assert_eq!(system.publish(&"t".parse().unwrap(), long).await.delivered, 1);
    assert_eq!(ask(&actor, "count").await.unwrap(), "1");
    let version = limited(spec(&system, "other", &ACTOR), small());
    let error = system.upgrade(actor.address(), version.sandbox().clone(), UpgradeOptions::default()).await;
    let UpgradeError::NotStarted(error) = error.unwrap_err() else { panic!("another error") };
    assert!(matches!(error, StartError::TooLarge { what: "state", .. }), "{error:?}");
    assert_eq!(ask(&actor, "count").await.unwrap(), "2", "the old one goes on");
}

#[tokio::test]
async fn a_message_needs_memory_and_one_that_is_refused_needs_none() {
    let system = system();
    let message = |bytes: usize| format!("echo {}", "x".repeat(bytes - 5));
    for (name, message_size, crashes) in [("default", None, true), ("small", Some(ByteSize::kib(256)), false)] {
        let mut limits = ResourceLimits::with_memory(ByteSize::mib(2));
        limits.message_size = message_size.unwrap_or(limits.message_size);
        let actor = system.spawn(limited(spec(&system, name, &ACTOR), limits)).await.unwrap();
        match actor.ask(message(1 << 20)).await.unwrap_err() {
            AskError::Crashed(report) => {
                assert!(crashes && matches!(report.crash.kind(), CrashKind::Memory { .. }), "{report}");
            }
            error => assert!(!crashes && matches!(error.refusal(), Some(Refusal::TooLarge { .. })), "{error}"),
        }
        assert_eq!(actor.ask(message(256 << 10)).await.unwrap().len(), (256 << 10) - 5);
    }
}
