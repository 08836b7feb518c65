//! What one host has of another: asks, tells, sends, groups and topics.

use std::{pin::pin, time::Duration};

use airssys_wasm_actor::{
    ActorRef, ActorSpec, AskError, Capabilities, DeadReason,
    engine::Profile,
    isolation::SandboxSpec,
    limits::{ByteSize, ResourceLimits},
    registry::{ContentType, MessageEnvelope, Refusal, Topic, WhenFull},
};
use airssys_wasm_fixtures::ACTOR;
use airssys_wasm_lattice::{ExportError, Recipient, TellError, async_nats};

use futures_util::{FutureExt, StreamExt};

use crate::{
    calls::limits,
    support::{ENGINE, LONG, Probe, TestHost, config, host, id, join, seen_by_server, server, until, within},
};

#[tokio::test]
async fn an_actor_of_another_host_is_asked_told_and_sent_to() {
    let server = server();
    let (a, b) = (host(&server, "a").await, host(&server, "b").await);
    let (_, probe) = b.export("shop").await;
    a.knows("shop").await;
    let shop = a.lattice.recipient(id("shop"));

    assert_eq!(within(shop.ask("asked")).await.unwrap(), "asked");
    within(shop.tell("told")).await.unwrap();
    assert_eq!(probe.handled(), "asked,told");
    shop.try_tell("tried").unwrap();
    a.system.send(&id("shop"), "sent").unwrap();
    until(|| probe.handled() == "asked,told,tried,sent").await;

    // From where it is, the same handle leads to the actor itself.
    let at_home: Recipient = b.lattice.recipient(id("shop"));
    assert!(at_home.here().is_some() && shop.here().is_none());
    assert_eq!(within(at_home.ask("home")).await.unwrap(), "home");
    assert_eq!(a.lattice.hosts(), ["a".parse().unwrap(), "b".parse().unwrap()]);
}

#[tokio::test]
async fn each_outcome_of_an_ask_comes_back() {
    let server = server();
    let (a, b) = (host(&server, "a").await, host(&server, "b").await);
    let (actor, _) = b.export("shop").await;
    a.knows("shop").await;
    assert_eq!(a.ask("shop", "sender").await.unwrap(), "-");
    assert!(matches!(a.ask("shop", "fail").await, Err(AskError::Failed { message }) if message == "told to fail"));
    assert!(matches!(a.ask("shop", "none").await, Err(AskError::NoReply)));
    match a.ask("shop", "crash").await {
        Err(AskError::Crashed(report)) => assert_eq!(report.actor, *actor.address()),
        other => panic!("{other:?}"),
    }
    let large = vec![0; 2 << 20];
    match within(a.lattice.recipient(id("shop")).ask(large)).await {
        Err(AskError::NotSent(back)) => {
            assert!(matches!(back.reason, Refusal::TooLarge { .. }), "{back:?}");
            assert_eq!(back.message.payload().len(), 2 << 20);
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(a.ask("nobody", "x").await, Err(AskError::NotSent(back)) if back.reason == Refusal::Unknown));
}

/// A guest that does what it is told, takes and gives so much, and may send to these and ask them.
async fn guest(host: &TestHost, name: &str, message_size: ByteSize, others: &[&str]) -> ActorRef {
    let component = ENGINE.load_blocking(ACTOR, Profile::Plain).unwrap();
    let limits = ResourceLimits { message_size, ..limits() };
    let sandbox = SandboxSpec::new(host.system.link(&component).unwrap(), limits).unwrap();
    let others: Vec<_> = others.iter().map(|name| name.parse().unwrap()).collect();
    let capabilities = Capabilities { send: others.clone(), request: others, ..Capabilities::default() };
    host.system.spawn(ActorSpec::new(id(name), sandbox).with_capabilities(capabilities)).await.unwrap()
}

/// What a guest answers, or the error of its import in words.
async fn told(guest: &ActorRef, command: &str) -> String {
    match within(guest.ask(command.to_owned())).await {
        Ok(answer) => String::from_utf8(answer.to_vec()).unwrap(),
        Err(AskError::Failed { message }) => message,
        Err(error) => panic!("{command}: {error:?}"),
    }
}

#[tokio::test]
async fn a_guest_asks_and_sends_to_a_guest_of_another_host_if_it_may() {
    let server = server();
    let (a, b) = (host(&server, "a").await, host(&server, "b").await);
    let far = guest(&b, "far", ByteSize::mib(4), &[]).await;
    within(b.lattice.export(&far)).await.unwrap();
    let (shop, probe) = b.export("shop").await;
    a.knows("far").await;
    a.knows("shop").await;
    let clerk = guest(&a, "clerk", ByteSize::kib(64), &["far", "shop"]).await;
    let what = "sender=clerk@a topic=- content-type=- wants-answer=true";
    assert_eq!(told(&clerk, "request far 60000 what").await, what);
    assert_eq!(told(&clerk, "request far 60000 fail why").await, "RequestError::Failed(\"why\")");
    assert_eq!(told(&clerk, "send far none").await, "done");
    assert_eq!(told(&clerk, "request far 60000 count").await, "3");

    // A guest without the capability is refused here, and nothing reaches the other host.
    let stranger = guest(&a, "stranger", ByteSize::kib(64), &["shop"]).await;
    assert_eq!(told(&stranger, "request far 60000 what").await, "RequestError::NotSent(SendError::Denied)");
    assert_eq!(told(&stranger, "send far none").await, "SendError::Denied");
    assert_eq!(a.ask("far", "count").await.unwrap(), "4");

    // An answer is larger than the asker takes, and another than the broker takes.
    let large = format!("big {}", 64 * 1_024 + 1);
    assert_eq!(told(&clerk, &format!("request far 60000 {large}")).await, "RequestError::TooLarge(65536)");
    assert_eq!(a.ask("far", &large).await.unwrap().len(), 64 * 1_024 + 1);
    match a.ask("far", &format!("big {}", 2 << 20)).await {
        Err(AskError::AnswerTooLarge { size, allowed }) => assert!(size == 2 << 20 && allowed < 1 << 20, "{allowed}"),
        other => panic!("{other:?}"),
    }

    // An actor is killed with the question in hand. Then its name is gone.
    let asked = tokio::spawn({
        let clerk = clerk.clone();
        async move { told(&clerk, "request shop 60000 wait").await }
    });
    until(|| probe.handled() == "wait").await;
    shop.kill();
    assert_eq!(within(asked).await.unwrap(), "RequestError::Crashed");
    let shop = a.lattice.recipient(id("shop"));
    until(|| !shop.is_known()).await;
    assert_eq!(told(&clerk, "request shop 60000 x").await, "RequestError::NotSent(SendError::Unknown)");
    assert_eq!((told(&clerk, "send shop x").await.as_str(), probe.handled().as_str()), ("SendError::Unknown", "wait"));
}

#[tokio::test]
async fn a_name_that_is_not_exported_is_of_its_host_alone() {
    let server = server();
    let (a, b) = (host(&server, "a").await, host(&server, "b").await);
    let (spec, probe) = Probe::spec("private");
    b.system.spawn_native(spec).await.unwrap();
    let (_, _) = b.export("shop").await;
    a.knows("shop").await;
    assert!(a.system.send(&id("private"), "x").is_err());
    assert_eq!(probe.handled(), "");
}

#[tokio::test]
async fn a_name_is_one_hosts() {
    let server = server();
    let (a, b) = (host(&server, "a").await, host(&server, "b").await);
    let (_, _) = b.export("shop").await;
    let (spec, _) = Probe::spec("shop");
    let mine = a.system.spawn_native(spec).await.unwrap();
    match within(a.lattice.export(&mine)).await {
        Err(ExportError::NameTaken { holder, .. }) => assert_eq!(holder.as_str(), "b"),
        other => panic!("{other:?}"),
    }
    // Once it is withdrawn, it is free.
    assert!(within(b.lattice.withdraw(&id("shop"))).await.unwrap());
    within(a.lattice.export(&mine)).await.unwrap();
    b.system.find("shop").unwrap().kill();
    b.knows("shop").await;
    until(|| b.system.find("shop").is_none()).await;
    assert_eq!(b.ask("shop", "x").await.unwrap(), "x");
}

#[tokio::test]
async fn an_actor_that_ends_is_not_exported_any_more() {
    let server = server();
    let (a, b) = (host(&server, "a").await, host(&server, "b").await);
    let (actor, _) = b.export("shop").await;
    a.knows("shop").await;
    actor.kill();
    let shop = a.lattice.recipient(id("shop"));
    until(|| !shop.is_known()).await;
    assert!(matches!(a.ask("shop", "x").await, Err(AskError::NotSent(back)) if back.reason == Refusal::Unknown));
}

#[tokio::test]
async fn a_full_mailbox_makes_a_tell_wait_and_refuses_a_send() {
    let server = server();
    let (a, b) = (host(&server, "a").await, host(&server, "b").await);
    let (spec, probe) = Probe::spec("shop");
    let actor = b.system.spawn_native(spec.with_mailbox(1)).await.unwrap();
    within(b.lattice.export(&actor)).await.unwrap();
    a.knows("shop").await;
    let shop = a.lattice.recipient(id("shop"));
    within(shop.tell("wait")).await.unwrap();
    until(|| probe.handled() == "wait").await;
    within(shop.tell("first")).await.unwrap();
    // Nobody waits for it: a dead letter of the sender's system.
    shop.try_tell("lost").unwrap();
    until(|| a.system.dead_letters().len() == 1).await;
    let letter = a.system.dead_letters().list().remove(0);
    assert!(matches!(letter.reason, DeadReason::Undeliverable { because: Refusal::Full }), "{letter:?}");
    assert_eq!((letter.to.id(), letter.message.payload().as_ref()), (&id("shop"), b"lost".as_ref()));
    // One with a deadline comes back when that is over, certainly not handled, from home as from elsewhere.
    for shop in [&shop, &b.lattice.recipient(id("shop"))] {
        let deadline = tokio::time::Instant::now() + Duration::from_millis(50);
        let told = within(shop.tell(MessageEnvelope::new("late").with_deadline(deadline))).await;
        assert!(matches!(told, Err(TellError::NotSent(back)) if back.reason == Refusal::Full));
    }
    // One without waits.
    let waits = tokio::spawn({
        let shop = shop.clone();
        async move { shop.tell("second").await }
    });
    probe.gate.add_permits(1);
    within(waits).await.unwrap().unwrap();
    until(|| probe.handled() == "wait,first,second").await;
    a.system.resend(letter.number).unwrap();
    until(|| probe.handled() == "wait,first,second,lost").await;
}

#[tokio::test]
async fn messages_of_one_sender_stay_in_order_and_none_is_lost() {
    let server = server();
    let (a, b) = (host(&server, "a").await, host(&server, "b").await);
    let (_, probe) = b.export("shop").await;
    a.knows("shop").await;
    let shop = a.lattice.recipient(id("shop"));
    for n in 0..500 {
        if n % 3 == 0 {
            within(shop.ask(format!("{n}"))).await.unwrap();
        } else {
            within(shop.tell(format!("{n}"))).await.unwrap();
        }
    }
    let expected: Vec<_> = (0..500).map(|n| n.to_string()).collect();
    until(|| probe.log.lock().len() == 500).await;
    assert_eq!(*probe.log.lock(), expected);
}

#[tokio::test]
async fn a_sender_is_known_by_its_name_if_that_is_exported() {
    let server = server();
    let (a, b) = (host(&server, "a").await, host(&server, "b").await);
    let (_, _) = b.export("shop").await;
    let (_, _) = a.export("customer").await;
    a.knows("shop").await;
    b.knows("customer").await;
    let customer = a.system.find("customer").unwrap();
    let shop = a.lattice.recipient(id("shop"));
    let from = |sender| MessageEnvelope::new("sender").with_sender(Some(sender));
    assert_eq!(within(shop.ask(from(customer.address().clone()))).await.unwrap(), "customer");
    let (spec, _) = Probe::spec("secret");
    let secret = a.system.spawn_native(spec).await.unwrap();
    assert_eq!(within(shop.ask(from(secret.address().clone()))).await.unwrap(), "secret@a");
    let typed = MessageEnvelope::new("x").with_content_type(ContentType("text/plain".into()));
    within(shop.tell(typed)).await.unwrap();
}

#[tokio::test]
async fn a_group_over_hosts_has_its_members_in_turn() {
    let server = server();
    let (a, b, c) = (host(&server, "a").await, host(&server, "b").await, host(&server, "c").await);
    let mut probes = Vec::new();
    for (host, name) in [(&b, "b1"), (&b, "b2"), (&c, "c1")] {
        let (spec, probe) = Probe::spec(name);
        host.system.spawn_native(spec).await.unwrap();
        host.system.join(&id("workers"), &id(name)).unwrap();
        probes.push(probe);
    }
    for host in [&b, &c] {
        within(host.lattice.export_group(&id("workers"))).await.unwrap();
    }
    let workers = a.lattice.recipient(id("workers"));
    until(|| workers.hosts() == 2).await;
    for _ in 0..8 {
        within(workers.tell("x")).await.unwrap();
    }
    until(|| probes.iter().map(|probe| probe.log.lock().len()).sum::<usize>() == 8).await;
    let counts: Vec<_> = probes.iter().map(|probe| probe.log.lock().len()).collect();
    assert_eq!(counts, [2, 2, 4]);

    // A host that has members asks these.
    let at_home = b.lattice.recipient(id("workers"));
    until(|| at_home.hosts() == 2).await;
    for _ in 0..2 {
        within(at_home.tell("x")).await.unwrap();
        at_home.try_tell("x").unwrap();
        assert_eq!(within(at_home.ask("handled")).await.unwrap().first(), Some(&b'x'));
    }
    assert_eq!(probes[2].log.lock().len(), 4);
    // Also where nobody else has any.
    within(c.lattice.clone().leave(Duration::from_secs(1))).await;
    until(|| at_home.hosts() == 1).await;
    assert_eq!(within(at_home.ask("alone")).await.unwrap(), "alone");
    // The control: those that have ended are not asked.
    b.system.find("b1").unwrap().kill();
    until(|| b.system.find("b1").is_none()).await;
    for _ in 0..2 {
        assert_eq!(within(at_home.ask("x")).await.unwrap(), "x");
    }
}

#[tokio::test]
async fn who_waits_for_a_group_is_heard_by_the_first_host_that_has_room() {
    let server = server();
    let mut narrow = config(&server, "a");
    // A receiver has a quarter of it: one message.
    narrow.window = 4;
    let (a, b, c) = (join(narrow).await, host(&server, "b").await, host(&server, "c").await);
    let mut probes = Vec::new();
    for (host, name) in [(&b, "b1"), (&c, "c1")] {
        let (spec, probe) = Probe::spec(name);
        host.system.spawn_native(spec).await.unwrap();
        host.system.join(&id("workers"), &id(name)).unwrap();
        within(host.lattice.export_group(&id("workers"))).await.unwrap();
        probes.push(probe);
    }
    let workers = a.lattice.recipient(id("workers"));
    until(|| workers.hosts() == 2).await;
    for _ in 0..2 {
        let workers = workers.clone();
        tokio::spawn(async move { workers.ask("wait").await });
    }
    until(|| probes.iter().all(|probe| probe.handled() == "wait")).await;
    let mut next = pin!(workers.ask("next"));
    assert!(next.as_mut().now_or_never().is_none(), "both lanes are full");
    // It was the other's turn.
    probes[1].gate.add_permits(1);
    assert_eq!(within(next).await.unwrap(), "next");
    assert_eq!(probes[1].handled(), "wait,next");
}

#[tokio::test]
async fn a_send_may_come_from_any_thread() {
    let server = server();
    let (a, b) = (host(&server, "a").await, host(&server, "b").await);
    let (_, probe) = b.export("shop").await;
    a.knows("shop").await;
    let system = a.system.clone();
    std::thread::spawn(move || system.send(&id("shop"), "sent")).join().unwrap().unwrap();
    until(|| probe.handled() == "sent").await;
}

#[tokio::test]
async fn a_topic_reaches_the_hosts_that_take_it_once() {
    let server = server();
    let (a, b, c) = (host(&server, "a").await, host(&server, "b").await, host(&server, "c").await);
    let mut heard = b.system.subscribe(&"orders.>".parse().unwrap(), 10, WhenFull::Error);
    let mut not_heard = c.system.subscribe(&"orders.>".parse().unwrap(), 10, WhenFull::Error);
    // Two patterns that match the same topic.
    for pattern in ["orders.>", "orders.*.created"] {
        within(b.lattice.take_topics(&pattern.parse().unwrap())).await.unwrap();
    }
    let topic = Topic::new("orders.eu.created").unwrap();
    within(async {
        while a.system.publish(&topic, "early").await.hosts == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let deadline = tokio::time::Instant::now() + LONG;
    let last = MessageEnvelope::new("last").with_deadline(deadline);
    assert_eq!(a.system.publish(&topic, last).await.hosts, 1);
    // Nobody takes it.
    assert_eq!(a.system.publish(&Topic::new("other").unwrap(), "x").await.hosts, 0);
    let mut texts = Vec::new();
    while texts.last().is_none_or(|text| text != "last") {
        let message = within(heard.recv()).await.unwrap();
        assert_eq!(message.topic(), Some(&topic));
        // It comes with the message, later by what that was on its way.
        assert_eq!(message.deadline().is_some(), message.payload() == "last");
        assert!(message.deadline().is_none_or(|there| there >= deadline && there < deadline + LONG));
        texts.push(String::from_utf8(message.into_payload().to_vec()).unwrap());
    }
    assert_eq!(texts, ["early", "last"], "once each");
    assert!(not_heard.try_recv().is_none(), "c takes none");
}

#[tokio::test]
async fn what_is_decided_is_read_from_the_leader() {
    let server = server();
    let client = async_nats::connect(server.url()).await.unwrap();
    let mut asked = client.subscribe("$JS.API.>").await.unwrap();
    seen_by_server(&client).await;
    let quick = |name| config(&server, name).with_lease(Duration::from_secs(1));
    let (a, b) = tokio::join!(join(quick("a")), join(quick("b")));
    let store = async_nats::jetstream::new(client.clone()).get_key_value("aw_test").await.unwrap();
    // A name that was had before, one that another has, and a renewal that follows another's write.
    let (actor, _) = b.export("shop").await;
    assert!(within(b.lattice.withdraw(&id("shop"))).await.unwrap());
    within(b.lattice.export(&actor)).await.unwrap();
    let (spec, _) = Probe::spec("shop");
    let mine = a.system.spawn_native(spec).await.unwrap();
    assert!(matches!(within(a.lattice.export(&mine)).await, Err(ExportError::NameTaken { .. })));
    let mut renewals = store.watch_with_history("h.a").await.unwrap();
    let seen = within(renewals.next()).await.unwrap().unwrap();
    let put = within(store.put("h.a", seen.value)).await.unwrap();
    let mut after = 0;
    while after < 2 {
        after += usize::from(within(renewals.next()).await.unwrap().unwrap().revision > put);
    }
    within(b.lattice.clone().leave(Duration::from_secs(1))).await;
    until(|| a.lattice.hosts().len() == 1).await;
    assert!(within(a.lattice.evict(b.lattice.name())).await.unwrap());
    let mut asks = async || {
        seen_by_server(&client).await;
        let asks = std::iter::from_fn(|| asked.next().now_or_never().flatten());
        asks.map(|ask| ask.subject.to_string()).collect::<Vec<_>>()
    };
    let by_hosts = asks().await;
    let has = |asks: &[String], what: &str| asks.iter().any(|ask| ask.contains(what));
    assert!(has(&by_hosts, "STREAM.MSG.GET.KV_aw_test") && !has(&by_hosts, "DIRECT.GET"), "{by_hosts:#?}");
    // The control: what the client itself asks.
    store.entry("h.a").await.unwrap();
    assert!(has(&asks().await, "DIRECT.GET.KV_aw_test"));
}
