//! Components written for wasmCloud's messaging, as they are.

use std::time::Duration;

use airssys_wasm_actor::{ActorRef, AskError, Capabilities};
use airssys_wasm_registry::{Topic, WhenFull};

use crate::support::{ACTOR, Probe, WASMCLOUD, ask, spawn, spec, system};

#[tokio::test]
async fn an_ask_is_completed_by_publishing_to_its_reply_subject() {
    let system = system();
    let actor = spawn(&system, "cloud", &WASMCLOUD).await;
    assert_eq!(ask(&actor, "echo hello").await.unwrap(), "hello");
    assert_eq!(ask(&actor, "subject").await.unwrap(), "cloud");
    assert!(matches!(ask(&actor, "none").await, Err(AskError::NoReply)));
    assert!(matches!(ask(&actor, "fail so").await, Err(AskError::Failed { message }) if message == "so"));
    assert!(matches!(ask(&actor, "panic").await, Err(AskError::Crashed(_))));
    assert_eq!(ask(&actor, "echo back").await.unwrap(), "back");
    assert_eq!(actor.info().incarnation, 2);
}

#[tokio::test]
async fn replying_needs_no_grant_and_happens_once() {
    let system = system();
    let mut spec = spec(&system, "cloud", &WASMCLOUD);
    spec = spec.with_capabilities(Capabilities::default());
    let actor = system.spawn(spec).await.unwrap();
    assert_eq!(ask(&actor, "echo hello").await.unwrap(), "hello");
    // The second goes to a subject that means nothing any more, and is not granted.
    assert_eq!(ask(&actor, "twice hello").await.unwrap(), "hello");
    actor.tell("publish a x").await.unwrap();
    assert_eq!(ask(&actor, "echo still there").await.unwrap(), "still there");
}

#[tokio::test]
async fn subjects_are_topics() {
    let system = system();
    let mut cloud = spec(&system, "cloud", &WASMCLOUD);
    cloud = cloud.with_subscriptions(["orders.>".parse().unwrap()]);
    let cloud = system.spawn(cloud).await.unwrap();
    let mut host = system.subscribe(&"news".parse().unwrap(), 10, WhenFull::DropNew);
    let report = system.publish(&Topic::new("orders.eu").unwrap(), "publish news from orders").await;
    assert_eq!(report.delivered, 1);
    assert_eq!(host.recv().await.unwrap().payload(), "from orders");
    assert_eq!(ask(&cloud, "echo x").await.unwrap(), "x");
}

async fn failed(actor: &ActorRef, command: &str) -> String {
    match ask(actor, command).await {
        Err(AskError::Failed { message }) => message,
        other => panic!("{command}: {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_goes_to_a_subscriber_of_either_kind() {
    let system = system();
    let cloud = spawn(&system, "cloud", &WASMCLOUD).await;
    let mut answers = spec(&system, "answers", &WASMCLOUD);
    answers = answers.with_subscriptions(["cloud.echo".parse().unwrap()]);
    system.spawn(answers).await.unwrap();
    assert_eq!(ask(&cloud, "request cloud.echo 1000 echo hello").await.unwrap(), "hello");
    assert!(failed(&cloud, "request nobody.there 1000 x").await.starts_with("unknown"));
    assert!(failed(&cloud, "request a..b 1000 x").await.starts_with("invalid"));
    assert!(failed(&cloud, "request cloud.echo 1000 none").await.starts_with("no answer"));
    assert!(failed(&cloud, "request cloud.echo 1000 panic").await.starts_with("crashed"));

    let mut actor = spec(&system, "actor", &ACTOR);
    actor = actor.with_subscriptions(["actor.echo".parse().unwrap()]);
    system.spawn(actor).await.unwrap();
    // The test guest only remembers what comes with a topic.
    assert!(failed(&cloud, "request actor.echo 1000 echo x").await.starts_with("no answer"));
    // One that only listens does not keep another from answering.
    let mut listens = Probe::spec("listens").0;
    listens = listens.with_subscriptions(["first.>".parse().unwrap()]);
    let mut actor = spec(&system, "listener", &ACTOR);
    actor = actor.with_subscriptions(["first.echo".parse().unwrap()]);
    system.spawn(actor).await.unwrap();
    system.spawn_native(listens).await.unwrap();
    assert_eq!(ask(&cloud, "request first.echo 1000 hello").await.unwrap(), "hello");
}

#[tokio::test(start_paused = true)]
async fn what_is_not_granted_is_denied() {
    let system = system();
    let mut spec = spec(&system, "cloud", &WASMCLOUD);
    spec = spec.with_capabilities(Capabilities { publish: vec!["mine".parse().unwrap()], ..Capabilities::default() });
    let cloud = system.spawn(spec).await.unwrap();
    assert!(failed(&cloud, "publish other x").await.starts_with("denied"));
    assert!(failed(&cloud, "request other 1000 x").await.starts_with("denied"));
    assert!(failed(&cloud, "request mine 1000 x").await.starts_with("unknown"));
    let granted = cloud.ask_within(Duration::from_secs(1), "publish mine x").await;
    assert!(matches!(granted, Err(AskError::NoReply)), "{granted:?}");
}
