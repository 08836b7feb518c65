//! Hosts of another version beside this one, as far as they differ on the wire.

use airssys_wasm_actor::{AskError, Bytes, registry::Refusal};
use airssys_wasm_lattice::async_nats::{self, jetstream};
use futures_util::StreamExt;
use serde_json::{Value, json};

use crate::support::{LONG, config, id, join, server, until, within};

/// The version of the wire that is spoken here.
const PRESENT: u8 = 1;

#[tokio::test(flavor = "multi_thread")]
async fn a_host_is_spoken_to_in_a_version_that_both_speak_and_else_it_is_unreachable() {
    let server = server();
    // Nobody's session ends, although one host stops renewing its own.
    let (a, b) = tokio::join!(
        join(config(&server, "a").with_lease(LONG * 10)),
        join(config(&server, "b").with_lease(LONG * 10))
    );
    b.export("shop").await;
    a.knows("shop").await;
    assert_eq!(a.ask("shop", "before").await.unwrap(), "before");

    let client = async_nats::connect(server.url()).await.unwrap();
    let mut packets = client.subscribe("aw.test.h.b.a").await.unwrap();
    client.flush().await.unwrap();
    let records = jetstream::new(client.clone()).get_key_value("aw_test").await.unwrap();
    let speaks = async |oldest: u8, latest: u8| {
        let entry = records.entry("h.b").await.unwrap().unwrap();
        let mut record: Value = serde_json::from_slice(&entry.value).unwrap();
        assert_eq!(record["versions"], json!([PRESENT, PRESENT]), "the control: what the host itself says");
        if record["since"].is_null() {
            // The record that began the session.
            record["since"] = json!(entry.revision);
        }
        record["versions"] = json!([oldest, latest]);
        records.put("h.b", record.to_string().into()).await.unwrap();
        record["versions"] = json!([PRESENT, PRESENT]);
        record
    };
    for (oldest, latest) in [(PRESENT + 1, PRESENT + 2), (0, PRESENT - 1)] {
        let record = speaks(oldest, latest).await;
        until(|| a.lattice.hosts().len() == 1).await;
        match a.ask("shop", "after").await {
            Err(AskError::NotSent(back)) => assert_eq!(back.reason, Refusal::Unreachable),
            other => panic!("{oldest} to {latest}: {other:?}"),
        }
        records.put("h.b", record.to_string().into()).await.unwrap();
        until(|| a.lattice.hosts().len() == 2).await;
    }
    // A later one that speaks the present version as well is spoken to in that.
    speaks(PRESENT, PRESENT + 1).await;
    assert_eq!(a.ask("shop", "later").await.unwrap(), "later");
    within(async {
        loop {
            let packet = packets.next().await.unwrap().payload;
            assert_eq!(packet[0], PRESENT);
            if packet.ends_with(b"later") {
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
    b.knows("shop").await;
    let client = async_nats::connect(server.url()).await.unwrap();
    let mut packets = client.subscribe("aw.test.h.a.b").await.unwrap();
    client.flush().await.unwrap();
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
        client.flush().await.unwrap();
        b.ask("shop", "then").await.unwrap();
    };
    forged(PRESENT + 1).await;
    forged(PRESENT - 1).await;
    assert_eq!(shop.handled(), "captured,then,then");
    forged(PRESENT).await;
    until(|| shop.handled().split(',').filter(|it| *it == "captured").count() == 2).await;
}
