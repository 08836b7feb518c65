//! Hosts of another version beside this one, as far as they differ on the wire.

use std::time::Duration;

use airssys_wasm_actor::{
    AskError, Bytes,
    registry::{Refusal, Topic, WhenFull},
};
use airssys_wasm_fixtures::nats::NatsServer;
use airssys_wasm_lattice::{
    LatticeConfig,
    async_nats::{self, Subscriber, jetstream},
};
use futures_util::StreamExt;
use serde_json::{Value, json};

use crate::{
    failures::Asker,
    processes::{HostProcess, Settings},
    support::{LONG, TestHost, config, host, id, join, seen_by_server, server, until, until_told, within},
};

/// The versions of the wire that are spoken here.
pub(crate) const OLDEST: u8 = 1;
const PRESENT: u8 = 2;

/// A host that speaks versions up to this one.
pub(crate) fn of_version(server: &NatsServer, name: &str, latest: u8) -> LatticeConfig {
    let mut config = config(server, name);
    config.latest_version = latest;
    config
}

/// The versions of all packets, or publications, that come until one ends so, and all of them as text.
pub(crate) async fn versions(packets: &mut Subscriber, end: &str) -> (Vec<u8>, String) {
    let (mut versions, mut texts) = (Vec::new(), String::new());
    within(async {
        loop {
            let packet = packets.next().await.unwrap().payload;
            versions.push(packet[0]);
            texts += &String::from_utf8_lossy(&packet);
            if packet.ends_with(end.as_bytes()) {
                return;
            }
        }
    })
    .await;
    versions.dedup();
    (versions, texts)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_is_spoken_to_in_a_version_that_both_speak_and_else_it_is_unreachable() {
    let server = server();
    // Nobody's session ends, although a host does not know what is said of it here.
    let long = |host: &str| config(&server, host).with_lease(LONG * 10);
    let (a, b, c, d) = tokio::join!(join(long("a")), join(long("b")), join(long("c")), join(long("d")));
    let client = async_nats::connect(server.url()).await.unwrap();
    let records = jetstream::new(client.clone()).get_key_value("aw_test").await.unwrap();
    let cases = [(&b, 0, OLDEST - 1), (&c, PRESENT, PRESENT + 1), (&d, PRESENT + 1, PRESENT + 2)];
    for (host, oldest, latest) in cases {
        let name = host.lattice.name().to_string();
        host.export(&name).await;
        a.knows(&name).await;
        assert_eq!(a.ask(&name, "before").await.unwrap(), "before");

        let mut packets = client.subscribe(format!("aw.test.h.{name}.a")).await.unwrap();
        seen_by_server(&client).await;
        let entry = records.entry(format!("h.{name}")).await.unwrap().unwrap();
        let mut record: Value = serde_json::from_slice(&entry.value).unwrap();
        assert_eq!(record["versions"], json!([OLDEST, PRESENT]), "what the host itself says");
        record["versions"] = json!([oldest, latest]);
        // Else this is the record that began the session.
        if record["since"].is_null() {
            record["since"] = json!(entry.revision);
        }
        let hosts = a.lattice.hosts().len();
        records.put(format!("h.{name}"), record.to_string().into()).await.unwrap();
        if (oldest..=latest).contains(&PRESENT) {
            assert_eq!(a.ask(&name, "after").await.unwrap(), "after");
            assert_eq!(a.lattice.hosts().len(), hosts);
            assert_eq!(versions(&mut packets, "after").await.0, [PRESENT]);
            continue;
        }
        until(|| a.lattice.hosts().len() == hosts - 1).await;
        match a.ask(&name, "after").await {
            Err(AskError::NotSent(back)) => assert_eq!(back.reason, Refusal::Unreachable),
            other => panic!("{oldest} to {latest}: {other:?}"),
        }
    }
    // Its record has been seen, as one that came after it has.
    assert_eq!(a.ask("c", "last").await.unwrap(), "last");
}

/// Asks and tells both ways, in this version.
async fn speak(client: &async_nats::Client, one: &TestHost, other: &TestHost, version: u8) {
    for (from, to) in [(one, other), (other, one)] {
        let subject = format!("aw.test.h.{}.{}", to.lattice.name(), from.lattice.name());
        let mut packets = client.subscribe(subject).await.unwrap();
        seen_by_server(client).await;
        let name = to.lattice.name().to_string();
        from.knows(&name).await;
        assert_eq!(from.ask(&name, "asked").await.unwrap(), "asked");
        within(from.lattice.recipient(id(&name)).tell("told")).await.unwrap();
        assert!(from.ask(&name, "handled").await.unwrap().ends_with("asked,told"));
        assert_eq!(versions(&mut packets, "handled").await.0, [version]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_of_the_version_before_and_one_of_this_have_all_that_both_know() {
    let server = server();
    let old = join(of_version(&server, "old", OLDEST)).await;
    let (a, b) = tokio::join!(host(&server, "a"), host(&server, "b"));
    let client = async_nats::connect(server.url()).await.unwrap();
    for one in [&old, &a, &b] {
        one.export(one.lattice.name().as_str()).await;
    }
    // Each pair of them speaks the latest that both do.
    speak(&client, &old, &a, OLDEST).await;
    speak(&client, &a, &b, PRESENT).await;

    let topic: Topic = "orders.eu".parse().unwrap();
    let mut publications = client.subscribe("aw.test.t.>").await.unwrap();
    seen_by_server(&client).await;
    let mut takers = Vec::new();
    let steps = [(&b, &a, 1, PRESENT), (&old, &a, 2, OLDEST), (&a, &b, 2, OLDEST), (&a, &old, 2, OLDEST)];
    for (n, (taker, from, hosts, version)) in steps.into_iter().enumerate() {
        if !takers.iter().any(|(name, _)| name == taker.lattice.name()) {
            let heard = taker.system.subscribe(&"orders.>".parse().unwrap(), 16, WhenFull::Error);
            within(taker.lattice.take_topics(&"orders.>".parse().unwrap())).await.unwrap();
            takers.push((taker.lattice.name().clone(), heard));
        }
        // Nobody is told that all who take it are known.
        until_told(async || from.system.publish(&topic, "early").await.hosts == hosts).await;
        let text = format!("publication {n}");
        assert_eq!(from.system.publish(&topic, text.clone()).await.hosts, hosts);
        assert_eq!(versions(&mut publications, &text).await.0.last(), Some(&version), "{text}");
        for (_, heard) in takers.iter_mut().filter(|(name, _)| name != from.lattice.name()) {
            within(async { while *heard.recv().await.unwrap().payload() != text {} }).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_comes_back_with_another_version_is_spoken_to_in_that() {
    let server = server();
    let a = host(&server, "a").await;
    a.export("a").await;
    let client = async_nats::connect(server.url()).await.unwrap();
    for latest in [PRESENT, OLDEST, PRESENT] {
        let b = join(of_version(&server, "b", latest)).await;
        b.export("b").await;
        speak(&client, &a, &b, latest).await;
        within(b.lattice.leave(LONG)).await;
    }
}

/// Each of two processes asks, tells and sends to the actor of the other, which has its name, in this version.
async fn exchange(client: &async_nats::Client, processes: [&mut HostProcess; 2], round: &str, version: u8) {
    let [one, other] = processes;
    let names = [one.name.clone(), other.name.clone()];
    for (from, to) in [(one, &names[1]), (other, &names[0])] {
        for attempt in 0.. {
            let number = format!("{round}-{attempt}-{to}");
            from.tell(&format!("ask {to} {number}"));
            if from.says(&format!("outcome {number}")).await.starts_with("answered ") {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let mut packets = client.subscribe(format!("aw.test.h.{to}.{}", from.name)).await.unwrap();
        seen_by_server(client).await;
        for (how, outcome) in [("tell", "accepted"), ("send", "queued"), ("ask", "answered")] {
            let number = format!("{round}-{how}-{to}");
            from.tell(&format!("{how} {to} {number}"));
            from.says(&format!("outcome {number} {outcome}")).await;
        }
        assert_eq!(versions(&mut packets, &format!("{round}-ask-{to}")).await.0, [version]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_of_the_version_before_is_killed_and_comes_back_with_this_and_the_books_balance() {
    let server = server();
    let settings = Settings::quick(&server);
    let before = Settings { latest: Some(OLDEST), ..settings.clone() };
    let asker = Asker::join(&settings).await;
    let (mut old, mut new) = tokio::join!(HostProcess::join("old", &before), HostProcess::join("new", &settings));
    old.export("old").await;
    new.export("new").await;
    let client = async_nats::connect(server.url()).await.unwrap();
    exchange(&client, [&mut old, &mut new], "before", OLDEST).await;
    let held = asker.held(&old, "old", "held").await;
    old.kill();
    assert!(within(held).await.unwrap().0.starts_with("lost "));

    // It has the name that the process before had.
    let mut next = HostProcess::join("old", &settings).await;
    next.export("old").await;
    exchange(&client, [&mut next, &mut new], "after", PRESENT).await;
    let balance = asker.balance(&mut [&mut old, &mut next, &mut new]).await;
    // What was in hand was begun.
    assert_eq!(balance.unknown, 0, "{balance:?}");
}

/// A packet in which `b` tells the actor `shop` of `a` something.
async fn captured(client: &async_nats::Client, b: &TestHost) -> Bytes {
    b.knows("shop").await;
    let mut packets = client.subscribe("aw.test.h.a.b").await.unwrap();
    seen_by_server(client).await;
    within(b.lattice.recipient(id("shop")).tell("captured")).await.unwrap();
    let captured = async {
        loop {
            let packet = packets.next().await.unwrap().payload;
            if packet.ends_with(b"captured") {
                return packet;
            }
        }
    };
    within(captured).await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_heard_before_its_record_is_seen_is_answered_in_the_version_of_its_packet() {
    let server = server();
    let (a, b) = tokio::join!(join(config(&server, "a")), join(config(&server, "b")));
    a.export("shop").await;
    let client = async_nats::connect(server.url()).await.unwrap();
    let packet = captured(&client, &b).await;
    // From a host of which nothing is known.
    let old = Bytes::from([&[OLDEST], &packet[1..]].concat());
    let mut answers = client.subscribe("aw.test.h.c.a").await.unwrap();
    seen_by_server(&client).await;
    client.publish("aw.test.h.a.c", old.clone()).await.unwrap();
    assert_eq!(within(answers.next()).await.unwrap().payload[0], OLDEST);

    let records = jetstream::new(client.clone()).get_key_value("aw_test").await.unwrap();
    let entry = records.entry("h.b").await.unwrap().unwrap();
    let mut record: Value = serde_json::from_slice(&entry.value).unwrap();
    if record["since"].is_null() {
        record["since"] = json!(entry.revision);
    }
    records.put("h.c", record.to_string().into()).await.unwrap();
    // What it was answered is not confirmed, and is asked for as long as it is heard of.
    within(async {
        loop {
            client.publish("aw.test.h.a.c", old.clone()).await.unwrap();
            let answer = tokio::time::timeout(Duration::from_millis(100), answers.next()).await;
            if answer.is_ok_and(|answer| answer.unwrap().payload[0] == PRESENT) {
                return;
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_packet_of_another_version_is_not_read() {
    let server = server();
    let (a, b) = tokio::join!(join(config(&server, "a")), join(config(&server, "b")));
    let (_, shop) = a.export("shop").await;
    let client = async_nats::connect(server.url()).await.unwrap();
    let packet = captured(&client, &b).await;
    assert_eq!(packet[0], PRESENT);
    // From another host, whose numbers are its own.
    let forged = async |version: u8| {
        let packet = Bytes::from([&[version], &packet[1..]].concat());
        client.publish("aw.test.h.a.c", packet).await.unwrap();
        seen_by_server(&client).await;
        b.ask("shop", "then").await.unwrap();
    };
    forged(PRESENT + 1).await;
    forged(OLDEST - 1).await;
    assert_eq!(shop.handled(), "captured,then,then");
    forged(PRESENT).await;
    until(|| shop.handled().split(',').filter(|it| *it == "captured").count() == 2).await;
}
