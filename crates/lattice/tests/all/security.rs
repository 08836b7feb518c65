//! Who is let in, and what a host that is let in can pass off as another's: nothing, with these permissions.

use std::{sync::Arc, time::Duration};

use airssys_wasm_actor::{ActorSystem, Bytes, SystemConfig, UpgradeOptions, registry::Topic};
use airssys_wasm_fixtures::{
    COUNTER, COUNTER_V2,
    nats::{NatsConfig, NatsServer},
};
use airssys_wasm_keyed::{ReminderConfig, SaveWhen, StateStore};
use airssys_wasm_lattice::{
    BucketConfig, Credentials, ExportError, JoinError, Lattice, LatticeConfig, RollOptions,
    async_nats::{Client, ConnectOptions, Event, jetstream},
};
use futures_util::StreamExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::mpsc,
};

use crate::{
    deploy::{Fleet, deployment, have_room},
    kinds,
    support::{Probe, TestHost, config as config_of, id, join, seen_by_server, system, until, until_told, within},
};

/// A host, the seed of its nkey, and the public part.
type Key = (&'static str, &'static str, &'static str);

const A: Key = (
    "a",
    "SUAPHCO7PTQAMOOBS6VIZOZIOTXEU2XWPNZ576RRQN4AGETIEJZRU46U3A",
    "UBF6XT5EHQFFR7UOT6VDQFURZGAJEC34LSMH4NGSJD26YY643KTM3IOZ",
);
const B: Key = (
    "b",
    "SUAMOTANV6KCAQF7SZ6D4WOFVDP4XDDABQ6KCE6NJ5QF3POWWVDTM23VUU",
    "UCZ7Z3NMYMJICU6WMWGR7BI4IX4IED75BXQWC6YCCVUXXNRR3Y77NJCG",
);
/// Of a server at 127.0.0.1 or 10.0.0.1, by itself, until the year 2126.
pub(crate) const CERTIFICATE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tls/certificate.pem");
const OUTSIDER: &str = "SUABNIMW3EEKLZ5LU6SBI62QL2ULOVQFX5BATUFSOKSHAZKQ3SF52CWMQI";

/// What the user of a host may do, and no more, as it stands in a server's configuration.
///
/// - It publishes packets, heartbeats and publications under its own name alone, so that these are whose they say.
/// - It hears what is for it, and the heartbeats and publications of all.
/// - It reads and writes the lattice's records. Each host may write those of all, as it ends the sessions of hosts that are gone: hosts trust
///   each other with the records, and with nothing else.
/// - It reads and writes the lattice's components, and the states of its kinds.
/// - `INFO` and `STREAM.CREATE` are for the host that makes the records, and may be left out where an operator makes them.
fn permissions((host, _, public): Key) -> String {
    let lattice = "test";
    let publish = [
        format!("aw.{lattice}.h.*.{host}"),
        format!("aw.{lattice}.b.{host}"),
        format!("aw.{lattice}.t.{host}.>"),
        format!("$KV.aw_{lattice}.>"),
        "$JS.API.INFO".to_owned(),
        format!("$JS.API.STREAM.INFO.KV_aw_{lattice}"),
        format!("$JS.API.STREAM.CREATE.KV_aw_{lattice}"),
        format!("$JS.API.CONSUMER.CREATE.KV_aw_{lattice}"),
        format!("$JS.API.CONSUMER.CREATE.KV_aw_{lattice}.>"),
        format!("$JS.API.CONSUMER.DELETE.KV_aw_{lattice}.>"),
        format!("$JS.FC.KV_aw_{lattice}.>"),
        format!("$JS.API.STREAM.MSG.GET.KV_aw_{lattice}"),
        format!("$O.aw_{lattice}_components.>"),
        format!("$JS.API.STREAM.INFO.OBJ_aw_{lattice}_components"),
        format!("$JS.API.STREAM.CREATE.OBJ_aw_{lattice}_components"),
        format!("$JS.API.STREAM.PURGE.OBJ_aw_{lattice}_components"),
        format!("$JS.API.STREAM.MSG.GET.OBJ_aw_{lattice}_components"),
        "$KV.carts.>".to_owned(),
        "$JS.API.STREAM.INFO.KV_carts".to_owned(),
        "$JS.API.STREAM.CREATE.KV_carts".to_owned(),
        "$JS.API.STREAM.MSG.GET.KV_carts".to_owned(),
        "$JS.API.CONSUMER.CREATE.KV_carts".to_owned(),
        "$JS.API.CONSUMER.INFO.KV_carts.>".to_owned(),
        "$JS.API.CONSUMER.MSG.NEXT.KV_carts.>".to_owned(),
        "$JS.API.CONSUMER.DELETE.KV_carts.>".to_owned(),
    ];
    let subscribe = [
        format!("aw.{lattice}.h.{host}.*"),
        format!("aw.{lattice}.n.{host}.*"),
        format!("aw.{lattice}.b.*"),
        format!("aw.{lattice}.t.*.>"),
        format!("aw.{lattice}.i.{host}.>"),
    ];
    format!("{{ nkey: {public}, permissions: {{ publish: {publish:?}, subscribe: {subscribe:?} }} }}")
}

/// What a server's configuration says for it to speak TLS with who wants that, by [`CERTIFICATE`].
pub(crate) fn tls() -> String {
    let key = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tls/key.pem");
    format!("tls: {{ cert_file: {CERTIFICATE:?}, key_file: {key:?} }}\nallow_non_tls: true")
}

/// A server that lets in two hosts, and an observer who may do anything.
fn guarded() -> NatsServer {
    let observer = "{ user: observer, password: secret }";
    let more = format!("authorization: {{ users: [{}, {}, {observer}] }}", permissions(A), permissions(B));
    NatsConfig { more, ..NatsConfig::jetstream() }.start().unwrap()
}

fn config(server: &NatsServer, (host, seed, _): Key) -> LatticeConfig {
    LatticeConfig::new("test".parse().unwrap(), host.parse().unwrap())
        .with_servers([server.url()])
        .with_credentials(Credentials::NKey(seed.to_owned()))
        .with_lease(Duration::from_secs(2))
}

async fn observer(server: &NatsServer) -> Client {
    let options = ConnectOptions::new().user_and_password("observer".to_owned(), "secret".to_owned());
    options.connect(server.url()).await.unwrap()
}

async fn hosts(server: &NatsServer) -> (TestHost, TestHost) {
    tokio::join!(join(config(server, A)), join(config(server, B)))
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_with_these_permissions_alone_do_all_that_hosts_do() {
    let server = guarded();
    let (a, b) = hosts(&server).await;
    a.export("mine").await;
    b.export("shop").await;
    a.knows("shop").await;
    b.knows("mine").await;
    assert_eq!(a.ask("shop", "x").await.unwrap(), "x");
    assert_eq!(b.ask("mine", "x").await.unwrap(), "x");
    let (spec, _) = Probe::spec("shop");
    let second = a.system.spawn_native(spec).await.unwrap();
    let taken = within(a.lattice.export(&second)).await;
    assert!(matches!(taken, Err(ExportError::NameTaken { .. })), "{taken:?}");
    second.kill();
    let mut heard = a.system.subscribe(&"news".parse().unwrap(), 10, airssys_wasm_actor::registry::WhenFull::Error);
    within(a.lattice.take_topics(&"news".parse().unwrap())).await.unwrap();
    let topic = Topic::new("news").unwrap();
    until_told(async || b.system.publish(&topic, "x").await.hosts > 0).await;
    within(heard.recv()).await.unwrap();
    // The session goes on beyond its first lease, which a renewal that was not permitted would end.
    let mut events = a.lattice.events();
    _ = tokio::time::timeout(Duration::from_secs(3), async {
        loop {
            let event = events.recv().await.unwrap();
            assert!(!format!("{event:?}").contains("Fenced"), "{event:?}");
        }
    })
    .await;
    assert_eq!(a.ask("shop", "y").await.unwrap(), "y");
    within(b.lattice.withdraw(&id("shop"))).await.unwrap();
    within(b.lattice.clone().leave(Duration::from_secs(1))).await;
    until(|| a.lattice.hosts().len() == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn components_are_deployed_with_these_permissions_alone() {
    let server = guarded();
    let (a, b) = tokio::join!(Fleet::join(config(&server, A), 4), Fleet::join(config(&server, B), 4));
    have_room(&[&a], &[(&a, 4), (&b, 4)]).await;
    let digest = within(a.lattice.put(COUNTER)).await.unwrap();
    // Over another object, which is removed.
    let jetstream = jetstream::new(observer(&server).await);
    let store = jetstream.get_object_store("aw_test_components").await.unwrap();
    store.put(digest.to_string().as_str(), &mut &b"something else"[..]).await.unwrap();
    assert_eq!(within(a.lattice.put(COUNTER)).await.unwrap(), digest);

    assert_eq!(a.deploy(deployment("counter", digest).on(2)).await.unwrap(), ["a", "b"]);
    let new = within(a.lattice.put(COUNTER_V2)).await.unwrap();
    let options = RollOptions { upgrade: UpgradeOptions::default(), ..RollOptions::default() };
    within(b.lattice.roll(&id("counter"), new, options)).await.unwrap();
    assert_eq!(within(a.lattice.recipient(id("counter")).ask("add 1")).await.unwrap(), "count: 1");
    assert!(within(b.lattice.undeploy(&id("counter"))).await.unwrap());
    until(|| a.lattice.deployments().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kinds_and_reminders_are_kept_with_these_permissions_alone() {
    let server = guarded();
    let start = async |key: Key| {
        let system = ActorSystem::new(kinds::ENGINE.clone(), SystemConfig::default());
        let lattice = within(Lattice::join(&system, config(&server, key))).await.unwrap();
        let store = Arc::new(within(lattice.store(BucketConfig::new("carts"))).await.unwrap());
        let spec = kinds::spec(&system, &kinds::LATER, SaveWhen::EachMessage);
        let (reminders, kept) = (ReminderConfig::default(), Arc::clone(&store));
        let carts = lattice.export_kind_with_reminders(spec, kept, reminders).await.unwrap();
        (system, lattice, store, carts)
    };
    let (a, b) = tokio::join!(start(A), start(B));
    let cart = id("cart");
    until(|| a.1.slots(&cart) + b.1.slots(&cart) == 1_024 && a.1.slots(&cart) > 0 && b.1.slots(&cart) > 0).await;
    for key in kinds::keys(30) {
        for (_, lattice, ..) in [&a, &b] {
            let answer = kinds::remind(lattice, &key, Duration::from_secs(3_600)).await;
            assert!(answer.starts_with('\0'), "{answer:?}");
        }
    }
    assert!(a.3.stats().activations > 0 && b.3.stats().activations > 0);
    within(a.2.count("cart")).await.unwrap();
    assert_eq!(within(b.2.count("!due/cart")).await.unwrap(), 30);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outsider_is_not_let_in() {
    let server = guarded();
    let without = config(&server, A).with_credentials(Credentials::None);
    let (host, _, public) = A;
    for config in [without, config(&server, (host, OUTSIDER, public))] {
        match within(Lattice::join(&system(), config)).await {
            Err(JoinError::Connect { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_may_not_watch_the_records_is_told_so() {
    let without = permissions(A).replace("CONSUMER.CREATE", "CONSUMER.NONE");
    let more = format!("authorization: {{ users: [{without}] }}");
    let server = NatsConfig { more, ..NatsConfig::jetstream() }.start().unwrap();
    let joined = within(Lattice::join(&system(), config(&server, A))).await;
    assert!(matches!(joined, Err(JoinError::Records { .. })), "{joined:?}");
}

/// A packet with a letter of `b`'s to `a`, and whoever sees all of `a`'s packets.
async fn captured(server: &NatsServer, b: &TestHost) -> (Client, Bytes) {
    let observer = observer(server).await;
    let mut packets = observer.subscribe("aw.test.h.a.b").await.unwrap();
    seen_by_server(&observer).await;
    within(b.lattice.recipient(id("mine")).tell("a captured message")).await.unwrap();
    let has = |packet: &Bytes| packet.windows(18).any(|part| part == b"a captured message");
    let packet = within(async {
        loop {
            let packet = packets.next().await.unwrap().payload;
            if has(&packet) {
                return packet;
            }
        }
    })
    .await;
    (observer, packet)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_cannot_pass_for_another() {
    let server = guarded();
    let (a, b) = hosts(&server).await;
    let (_, mine) = a.export("mine").await;
    b.knows("mine").await;
    let (observer, packet) = captured(&server, &b).await;
    let mut seen = observer.subscribe("aw.test.h.a.c").await.unwrap();
    seen_by_server(&observer).await;

    let (said, mut refused) = mpsc::unbounded_channel();
    let forger = ConnectOptions::with_nkey(B.1.to_owned())
        .custom_inbox_prefix("aw.test.i.b")
        .event_callback(move |event| {
            if let Event::ServerError(error) = event {
                _ = said.send(error.to_string());
            }
            std::future::ready(())
        })
        .connect(server.url())
        .await
        .unwrap();
    // The server refuses what it says itself, and to hear what is another's.
    let direct = "$JS.API.DIRECT.GET.KV_aw_test.$KV.aw_test.x.c";
    for subject in ["aw.test.h.a.c", "aw.test.b.a", "aw.test.t.a.news", "aw.test.n.a.c", direct] {
        forger.publish(subject, packet.clone()).await.unwrap();
        let said = within(refused.recv()).await.unwrap();
        assert!(said.to_lowercase().contains("permissions violation"), "{said}");
    }
    for subject in ["aw.test.h.a.*", "aw.test.i.a.>", ">"] {
        let _heard = forger.subscribe(subject).await.unwrap();
        let said = within(refused.recv()).await.unwrap();
        assert!(said.to_lowercase().contains("permissions violation"), "{said}");
    }

    // What the server publishes for it reaches `a`, who refuses it: what was stored, as an answer, and to a consumer.
    let stored = within(forger.request("$KV.aw_test.x.c", packet.clone())).await.unwrap();
    assert!(stored.payload.windows(5).any(|part| part == b"\"seq\""), "{stored:?}");
    let (get, of) = ("$JS.API.STREAM.MSG.GET.KV_aw_test", r#"{"last_by_subj":"$KV.aw_test.x.c"}"#);
    forger.publish_with_reply(get, "aw.test.h.a.c", of.into()).await.unwrap();
    let forged = within(seen.next()).await.unwrap();
    assert_eq!(forged.payload.first(), Some(&b'{'), "no packet begins so");
    let consumer = r#"{"stream_name":"KV_aw_test","config":{"name":"forger","deliver_subject":"aw.test.h.a.c",
        "deliver_policy":"all","ack_policy":"none","filter_subject":"$KV.aw_test.x.c"}}"#;
    forger
        .publish_with_reply(
            "$JS.API.CONSUMER.CREATE.KV_aw_test.forger.$KV.aw_test.x.c",
            "aw.test.i.b.x",
            consumer.into(),
        )
        .await
        .unwrap();
    let forged = within(seen.next()).await.unwrap();
    assert_eq!(forged.payload, packet, "it came as it is");
    assert_eq!(b.ask("mine", "after").await.unwrap(), "after");
    assert_eq!(mine.handled(), "a captured message,after");

    // With the permission it would have been delivered.
    observer.publish("aw.test.h.a.c", packet).await.unwrap();
    until(|| mine.handled() == "a captured message,after,a captured message").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn packets_that_are_broken_do_no_harm() {
    let server = guarded();
    let (a, b) = hosts(&server).await;
    a.export("mine").await;
    b.knows("mine").await;
    let (observer, packet) = captured(&server, &b).await;
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut broken: Vec<Vec<u8>> = (0..packet.len()).map(|len| packet[..len].to_vec()).collect();
    for version in [0, 2, 3, 127, 255] {
        broken.push([&[version], &packet[1..]].concat());
    }
    for _ in 0..2_000 {
        let mut bytes = packet.to_vec();
        for _ in 0..random.usize(1..6) {
            let at = random.usize(..bytes.len());
            bytes[at] = random.u8(..);
        }
        // Numbers of many bytes, such as the last one that there is.
        if random.bool() {
            let at = random.usize(1..bytes.len());
            bytes.splice(at..at, std::iter::repeat_n(255, 9).chain([1]));
        }
        broken.push(bytes);
        let len = random.usize(..100);
        broken.push(std::iter::repeat_with(|| random.u8(..)).take(len).collect());
    }
    for subject in
        ["aw.test.h.a.c", "aw.test.b.c", "aw.test.n.a.c", "aw.test.t.c.news", "aw.test.h.a.b.c", "aw.test.h.a.ä"]
    {
        for bytes in &broken {
            observer.publish(subject, bytes.clone().into()).await.unwrap();
        }
    }
    seen_by_server(&observer).await;
    assert_eq!(b.ask("mine", "after").await.unwrap(), "after");
    assert_eq!(a.lattice.hosts().len(), 2);
}

/// A packet as one of a session that is later by so many revisions. It begins with its version, a bucket and the revision.
fn of_later_session(packet: &[u8], by: u64) -> Vec<u8> {
    let number = |from: usize| from..from + 1 + packet[from..].iter().position(|byte| byte & 0x80 == 0).unwrap();
    let revision = number(number(1).end);
    let bits = packet[revision.clone()].iter().rev();
    let mut value = by + bits.fold(0_u64, |value, byte| (value << 7) | u64::from(byte & 0x7f));
    let mut later = packet[..revision.start].to_vec();
    while value >= 0x80 {
        later.push(value as u8 | 0x80);
        value >>= 7;
    }
    later.push(value as u8);
    later.extend_from_slice(&packet[revision.end..]);
    later
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_claims_another_session_with_each_packet_has_no_more_in_hand_than_one_lane() {
    const PACKETS: u64 = 100;
    // Beside two windows, one has a place in the mailbox.
    for (window, come) in [(4, 2 * 4 + 1), (8_192, PACKETS as usize)] {
        let server = guarded();
        let mut narrow = config(&server, A);
        narrow.window = window;
        let (a, b) = tokio::join!(join(narrow), join(config(&server, B)));
        let (spec, mine) = Probe::spec("mine");
        let actor = a.system.spawn_native(spec.with_mailbox(1)).await.unwrap();
        within(a.lattice.export(&actor)).await.unwrap();
        a.export("beside").await;
        b.knows("mine").await;
        b.knows("beside").await;
        let (observer, packet) = captured(&server, &b).await;
        let held = b.lattice.recipient(id("mine"));
        let held = tokio::spawn(async move { held.ask("wait").await });
        until(|| mine.handled() == "a captured message,wait").await;

        for n in 0..PACKETS {
            observer.publish("aw.test.h.a.c", of_later_session(&packet, n).into()).await.unwrap();
        }
        seen_by_server(&observer).await;
        assert_eq!(b.ask("beside", "after").await.unwrap(), "after");
        mine.gate.add_permits(1);
        within(held).await.unwrap().unwrap();
        let handled = || mine.handled().split(',').filter(|text| *text == "a captured message").count();
        until(|| handled() == 1 + come).await;
        assert_eq!(b.ask("mine", "last").await.unwrap(), "last");
        assert_eq!(handled(), 1 + come);
    }
}

/// Passes for a server of a version: says so, answers pings, and nothing else. Gives its port, and what it hears.
async fn impostor(version: &'static str) -> (u16, mpsc::UnboundedReceiver<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (told, heard) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let told = told.clone();
            tokio::spawn(async move {
                let info = format!(
                    r#"{{"server_id":"x","version":"{version}","proto":1,"host":"x","port":1,"max_payload":1048576,"headers":true}}"#
                );
                _ = stream.write_all(format!("INFO {info}\r\n").as_bytes()).await;
                let mut some = [0; 4_096];
                while let Ok(read) = stream.read(&mut some).await {
                    _ = told.send(some[..read].to_vec());
                    if read == 0 {
                        return;
                    }
                    if some[..read].windows(4).any(|word| word == b"PING") {
                        _ = stream.write_all(b"PONG\r\n").await;
                    }
                }
                // As a client that says no to TLS.
                _ = told.send(Vec::new());
            });
        }
    });
    (port, heard)
}

#[tokio::test]
async fn a_server_that_is_too_old_is_told() {
    for (version, is_too_old) in [("2.10.29", true), ("1.99.0", true), ("2.11.0", false)] {
        let (port, mut heard) = impostor(version).await;
        let config = LatticeConfig::new("test".parse().unwrap(), "a".parse().unwrap());
        let config = config.with_servers([format!("nats://127.0.0.1:{port}")]);
        let system = system();
        let joining = Lattice::join(&system, config);
        if is_too_old {
            match within(joining).await {
                Err(JoinError::TooOld { found, oldest }) => assert_eq!((&*found, &*oldest), (version, "2.11")),
                other => panic!("{other:?}"),
            }
            continue;
        }
        // The control: it is asked for the records.
        let is_asked = async {
            let mut all = Vec::new();
            while !all.windows(8).any(|word| word == b"$JS.API.") {
                all.extend(heard.recv().await.unwrap());
            }
        };
        tokio::select! {
            joined = joining => panic!("{joined:?}"),
            () = within(is_asked) => {}
        }
    }
}

#[tokio::test]
async fn a_name_that_a_host_has_and_renews_is_not_had_by_another() {
    let server = NatsConfig::jetstream().start().unwrap();
    let config = || config_of(&server, "a").with_lease(Duration::from_secs(1));
    let first = join(config()).await;
    let second = system();
    match within(Lattice::join(&second, config())).await {
        Err(JoinError::HostTaken { host }) => assert_eq!(host.as_str(), "a"),
        other => panic!("{other:?}"),
    }
    // The control: once it has left.
    within(first.lattice.leave(Duration::from_secs(1))).await;
    within(Lattice::join(&second, config())).await.unwrap();
}

#[tokio::test]
async fn nothing_is_said_in_plain_text_to_a_server_that_is_not_on_loopback() {
    let (port, mut heard) = impostor("2.12.0").await;
    // It leads to this machine, but not by a name that says so.
    let join = async |server: String| {
        let config = LatticeConfig::new("test".parse().unwrap(), "a".parse().unwrap()).with_servers([server]);
        tokio::time::timeout(Duration::from_secs(10), Lattice::join(&system(), config)).await
    };
    let joined = join(format!("nats://127.1:{port}")).await;
    assert!(matches!(joined, Ok(Err(JoinError::Connect { .. }))), "{joined:?}");
    let first = within(heard.recv()).await.unwrap();
    assert!(first.first().is_none_or(|first| *first == 22), "nothing but a handshake of TLS: {first:?}");
    // On loopback it is said who one is.
    let joins = tokio::spawn(join(format!("nats://127.0.0.1:{port}")));
    assert!(within(heard.recv()).await.unwrap().starts_with(b"CONNECT"));
    joins.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_speaks_tls_with_who_has_its_certificate() {
    let server = NatsConfig { more: tls(), ..NatsConfig::jetstream() }.start().unwrap();
    let url = server.url().replace("nats://", "tls://");
    let config = |host: &str| config_of(&server, host).with_servers([url.clone()]);
    let without = within(Lattice::join(&system(), config("a"))).await;
    assert!(matches!(without, Err(JoinError::Connect { .. })), "{without:?}");
    let with = |host: &str| {
        let mut config = config(host);
        config.certificates.push(CERTIFICATE.into());
        config
    };
    let (a, b) = tokio::join!(join(with("a")), join(with("b")));
    b.export("shop").await;
    a.knows("shop").await;
    assert_eq!(a.ask("shop", "x").await.unwrap(), "x");
}
