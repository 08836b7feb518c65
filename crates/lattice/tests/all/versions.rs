//! Hosts of another version beside this one, as far as they differ on the wire.

use airssys_wasm_actor::{AskError, Bytes, registry::Refusal};
use airssys_wasm_lattice::async_nats::{self, jetstream};
use futures_util::StreamExt;
use serde_json::{Value, json};

use crate::support::{LONG, config, id, join, seen_by_server, server, until, within};

/// The version of the wire that is spoken here.
const PRESENT: u8 = 1;

#[tokio::test(flavor = "multi_thread")]
async fn a_host_is_spoken_to_in_a_version_that_both_speak_and_else_it_is_unreachable() {
    let server = server();
    // Nobody's session ends, although a host does not know what is said of it here.
    let long = |host: &str| config(&server, host).with_lease(LONG * 10);
    let (a, b, c, d) = tokio::join!(join(long("a")), join(long("b")), join(long("c")), join(long("d")));
    let client = async_nats::connect(server.url()).await.unwrap();
    let records = jetstream::new(client.clone()).get_key_value("aw_test").await.unwrap();
    let cases = [(&b, 0, PRESENT - 1), (&c, PRESENT, PRESENT + 1), (&d, PRESENT + 1, PRESENT + 2)];
    for (host, oldest, latest) in cases {
        let name = host.lattice.name().to_string();
        host.export(&name).await;
        a.knows(&name).await;
        assert_eq!(a.ask(&name, "before").await.unwrap(), "before");

        let mut packets = client.subscribe(format!("aw.test.h.{name}.a")).await.unwrap();
        seen_by_server(&client).await;
        let entry = records.entry(format!("h.{name}")).await.unwrap().unwrap();
        let mut record: Value = serde_json::from_slice(&entry.value).unwrap();
        assert_eq!(record["versions"], json!([PRESENT, PRESENT]), "what the host itself says");
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
            within(async {
                loop {
                    let packet = packets.next().await.unwrap().payload;
                    assert_eq!(packet[0], PRESENT);
                    if packet.ends_with(b"after") {
                        return;
                    }
                }
            })
            .await;
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

#[tokio::test(flavor = "multi_thread")]
async fn a_packet_of_another_version_is_not_read() {
    let server = server();
    let (a, b) = tokio::join!(join(config(&server, "a")), join(config(&server, "b")));
    let (_, shop) = a.export("shop").await;
    b.knows("shop").await;
    let client = async_nats::connect(server.url()).await.unwrap();
    let mut packets = client.subscribe("aw.test.h.a.b").await.unwrap();
    seen_by_server(&client).await;
    within(b.lattice.recipient(id("shop")).tell("captured")).await.unwrap();
    let packet = within(async {
        loop {
            let packet = packets.next().await.unwrap().payload;
            if packet.ends_with(b"captured") {
                return packet;
            }
        }
    })
    .await;
    assert_eq!(packet[0], PRESENT);
    // From another host, whose numbers are its own.
    let forged = async |version: u8| {
        let packet = Bytes::from([&[version], &packet[1..]].concat());
        client.publish("aw.test.h.a.c", packet).await.unwrap();
        seen_by_server(&client).await;
        b.ask("shop", "then").await.unwrap();
    };
    forged(PRESENT + 1).await;
    forged(PRESENT - 1).await;
    assert_eq!(shop.handled(), "captured,then,then");
    forged(PRESENT).await;
    until(|| shop.handled().split(',').filter(|it| *it == "captured").count() == 2).await;
}
