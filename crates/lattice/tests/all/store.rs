//! States in a bucket of JetStream's, on a real server: what other stores promise as well, and what becomes of it when
//! the server is full, stopped, killed, wiped, or shared.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use airssys_wasm_fixtures::nats::{NatsConfig, NatsServer};
use airssys_wasm_keyed::{
    Durability::{Power, Process},
    Saved, StateStore, StoreError, Version,
    conformance::{self, Kept},
};
use airssys_wasm_lattice::{
    BucketConfig, BucketError, JetStreamStore,
    async_nats::{
        Client, ConnectOptions, Event,
        jetstream::{self, kv, stream},
    },
};
use bytes::Bytes;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

/// What a test waits for a server at the most.
const LONG: Duration = Duration::from_secs(60);

fn server() -> NatsServer {
    NatsConfig { max_payload: Some(8 << 20), ..NatsConfig::jetstream() }.start().unwrap()
}

/// A client, and whether it is connected.
async fn connect(server: &NatsServer) -> (Client, watch::Receiver<bool>) {
    let (connected, is_connected) = watch::channel(false);
    let options = ConnectOptions::new()
        .ping_interval(Duration::from_secs(1))
        .reconnect_delay_callback(|_| Duration::from_millis(10))
        .event_callback(move |event| {
            let connected = connected.clone();
            async move {
                match event {
                    Event::Connected => _ = connected.send_replace(true),
                    Event::Disconnected => _ = connected.send_replace(false),
                    _ => {}
                }
            }
        });
    let client = options.connect(server.url()).await.unwrap();
    let mut connected = is_connected.clone();
    until(&mut connected, true).await;
    (client, is_connected)
}

async fn until(connected: &mut watch::Receiver<bool>, is: bool) {
    timeout(LONG, connected.wait_for(|connected| *connected == is)).await.unwrap().unwrap();
}

async fn open(client: &Client) -> JetStreamStore {
    JetStreamStore::open(client.clone(), BucketConfig::new("states")).await.unwrap()
}

/// What the stream of the bucket has.
async fn stream_state(client: &Client) -> stream::State {
    let context = jetstream::new(client.clone());
    context.get_stream("KV_states").await.unwrap().get_info().await.unwrap().state
}

fn fenced_by<T: std::fmt::Debug>(written: Result<T, StoreError>) -> Version {
    match written {
        Err(StoreError::Fenced { found }) => found,
        other => panic!("it is not fenced: {other:?}"),
    }
}

fn is_io<T>(done: &Result<T, StoreError>) -> bool {
    matches!(done, Err(StoreError::Io { .. }))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_conforms() {
    let server = server();
    let (client, _) = connect(&server).await;
    conformance::all(Arc::new(open(&client).await)).await;
}

#[tokio::test]
async fn rows_are_there_when_the_server_was_killed() {
    for (durability, sync_interval) in [(Process, None), (Power, Some("always"))] {
        let config = NatsConfig { sync_interval, ..NatsConfig::jetstream() };
        let mut server = config.start().unwrap();
        let (client, mut connected) = connect(&server).await;
        let store = open(&client).await;
        let kept = Kept::write(&store, durability).await;
        server.kill();
        until(&mut connected, false).await;
        let done = store.load("cart", "a").await;
        assert!(is_io(&done), "without a connection: {done:?}");
        server.restart().unwrap();
        until(&mut connected, true).await;
        kept.check(&store).await;
    }
}

#[tokio::test]
async fn removed_rows_leave_a_marker_each_and_removals_of_nothing_leave_nothing() {
    let server = server();
    let (client, _) = connect(&server).await;
    let store = open(&client).await;
    for n in 0..50 {
        store.remove("cart", &n.to_string(), Version::NONE, Process).await.unwrap();
    }
    assert_eq!(stream_state(&client).await.last_sequence, 0, "nothing was written");
    let version = store.save("cart", "stays", Version::NONE, "x".into(), Process).await.unwrap();
    for n in 0..50 {
        let key = (n % 2).to_string();
        let version = store.save("cart", &key, Version::NONE, "x".into(), Process).await.unwrap();
        store.remove("cart", &key, version, Process).await.unwrap();
    }
    // One for each key, however often, and the server removes it by itself.
    assert_eq!(stream_state(&client).await.messages, 3);
    let stream = jetstream::new(client.clone()).get_stream("KV_states").await.unwrap();
    let marker = stream.get_last_raw_message_by_subject("$KV.states.cart.1").await.unwrap();
    assert_eq!(marker.headers.get("Nats-TTL").unwrap().as_str(), "1h");
    assert_eq!((store.count("cart").await.unwrap(), store.load("cart", "1").await.unwrap()), (1, None));
    assert_eq!(store.load("cart", "stays").await.unwrap().unwrap().version, version);
}

#[tokio::test]
async fn a_full_bucket_takes_what_needs_no_more_room() {
    let server = server();
    let (client, _) = connect(&server).await;
    let mut config = BucketConfig::new("states");
    config.max_bytes = Some("256KiB".parse().unwrap());
    let store = JetStreamStore::open(client.clone(), config).await.unwrap();
    let state = Bytes::from(vec![7; 10_000]);
    let mut versions = Vec::new();
    let refused = loop {
        match store.save("cart", &versions.len().to_string(), Version::NONE, state.clone(), Process).await {
            Ok(version) => versions.push(version),
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, StoreError::Full), "{refused:?}");
    assert!(versions.len() > 20, "{}", versions.len());
    assert_eq!(store.count("cart").await.unwrap(), versions.len() as u64, "the refused one is no row");
    let larger = store.save("cart", "0", versions[0], vec![7; 30_000].into(), Process).await;
    assert!(matches!(larger, Err(StoreError::Full)), "{larger:?}");
    // Numbers in its headers may be longer.
    let same = store.save("cart", "0", versions[0], vec![8; 9_900].into(), Process).await.unwrap();
    // Empty rows, until there is not a byte left.
    let mut small = Vec::new();
    while let Ok(version) = store.save("small", &small.len().to_string(), Version::NONE, Bytes::new(), Process).await {
        small.push(version);
    }
    for (n, version) in small.into_iter().enumerate() {
        store.remove("small", &n.to_string(), version, Process).await.unwrap();
    }
    store.remove("cart", "0", same, Process).await.unwrap();
    store.save("cart", "again", Version::NONE, vec![7; 9_000].into(), Process).await.unwrap();
    for (n, version) in versions.iter().enumerate().skip(1) {
        assert_eq!(
            store.load("cart", &n.to_string()).await.unwrap(),
            Some(Saved { version: *version, state: state.clone() })
        );
    }
}

#[tokio::test]
async fn states_have_a_largest_size() {
    let server = NatsServer::start().unwrap();
    let (client, _) = connect(&server).await;
    let mut bounded = BucketConfig::new("bounded");
    bounded.max_state = Some("10KiB".parse().unwrap());
    let by_the_server = open(&client).await;
    let by_the_bucket = JetStreamStore::open(client.clone(), bounded).await.unwrap();
    for (store, at_least, at_most) in [(by_the_server, 1_000_000, 1 << 20), (by_the_bucket, 10 << 10, 10 << 10)] {
        let save = |key: String, size| {
            let store = &store;
            async move { store.save("cart", &key, Version::NONE, vec![7; size].into(), Process).await }
        };
        let (size, allowed) = match save("a".to_owned(), 2 << 20).await {
            Err(StoreError::TooLarge { size, allowed }) => (size, allowed as usize),
            other => panic!("{other:?}"),
        };
        assert_eq!(size, 2 << 20);
        assert!((at_least..=at_most).contains(&allowed), "{allowed}");
        match save("a".to_owned(), allowed + 1).await {
            Err(StoreError::TooLarge { size, .. }) => assert_eq!(size, allowed as u64 + 1),
            other => panic!("{other:?}"),
        }
        assert_eq!(store.load("cart", "a").await.unwrap(), None);
        save("ä".repeat(64), allowed).await.unwrap();
        assert_eq!(store.load("cart", &"ä".repeat(64)).await.unwrap().unwrap().state.len(), allowed);
        let done = save("k".repeat(4_000), 0).await;
        assert!(is_io(&done), "{done:?}");
        assert_eq!(store.count("cart").await.unwrap(), 1);
    }
}

async fn all_is_closed(store: &JetStreamStore, follows: Version) {
    for _ in 0..2 {
        let saved = store.save("cart", "a", follows, "x".into(), Process).await;
        assert!(matches!(saved, Err(StoreError::Closed)), "{saved:?}");
        let saved = store.save("cart", "new", Version::NONE, "x".into(), Process).await;
        assert!(matches!(saved, Err(StoreError::Closed)), "{saved:?}");
        let removed = store.remove("cart", "a", follows, Process).await;
        assert!(matches!(removed, Err(StoreError::Closed)), "{removed:?}");
        let loaded = store.load("cart", "a").await;
        assert!(matches!(loaded, Err(StoreError::Closed)), "{loaded:?}");
        let counted = store.count("cart").await;
        assert!(matches!(counted, Err(StoreError::Closed)), "{counted:?}");
        let keys = store.keys("cart", None, 1).await;
        assert!(matches!(keys, Err(StoreError::Closed)), "{keys:?}");
    }
}

#[tokio::test]
async fn a_wiped_server_is_not_taken_for_the_same() {
    for is_made_anew in [false, true] {
        let mut server = server();
        let (client, mut connected) = connect(&server).await;
        let store = open(&client).await;
        let version = store.save("cart", "a", Version::NONE, "x".into(), Process).await.unwrap();
        server.kill();
        until(&mut connected, false).await;
        server.wipe();
        server.restart().unwrap();
        until(&mut connected, true).await;
        let others = open(&client);
        if is_made_anew {
            // More than there was, so that the numbers give nothing away.
            let others = others.await;
            for n in 0..10 {
                others.save("cart", &n.to_string(), Version::NONE, "x".into(), Process).await.unwrap();
            }
        }
        all_is_closed(&store, version).await;
        let store = open(&client).await;
        store.save("cart", "a", Version::NONE, "x".into(), Process).await.unwrap();
    }
}

#[tokio::test]
async fn what_a_bucket_that_was_made_anew_acknowledges_is_refused() {
    let server = server();
    let (client, _) = connect(&server).await;
    let store = open(&client).await;
    let mut version = Version::NONE;
    for _ in 0..10 {
        version = store.save("cart", "a", version, "x".into(), Process).await.unwrap();
    }
    // All the time on the same connection.
    jetstream::new(client.clone()).delete_stream("KV_states").await.unwrap();
    let others = open(&client).await;
    let saved = store.save("cart", "new", Version::NONE, "x".into(), Process).await;
    assert!(matches!(saved, Err(StoreError::Closed)), "{saved:?}");
    all_is_closed(&store, version).await;
    others.save("cart", "b", Version::NONE, "x".into(), Process).await.unwrap();
}

#[tokio::test]
async fn a_bucket_that_is_gone_is_closed() {
    let server = server();
    let (client, _) = connect(&server).await;
    let store = open(&client).await;
    let version = store.save("cart", "a", Version::NONE, "x".into(), Process).await.unwrap();
    // The control: one that is there is not made anew.
    store.reopen().await.unwrap();
    assert_eq!(store.load("cart", "a").await.unwrap().unwrap().version, version);
    jetstream::new(client.clone()).delete_stream("KV_states").await.unwrap();
    all_is_closed(&store, version).await;
    // It is as a new one then.
    store.reopen().await.unwrap();
    assert!(store.load("cart", "a").await.unwrap().is_none());
    let first = store.save("cart", "a", Version::NONE, "y".into(), Process).await.unwrap();
    store.save("cart", "a", first, "z".into(), Process).await.unwrap();
}

#[tokio::test]
async fn a_write_whose_answer_was_lost_can_be_made_again() {
    let server = server();
    let (client, _) = connect(&server).await;
    let others = open(&connect(&server).await.0).await;
    let mut config = BucketConfig::new("states");
    config.timeout = Duration::from_millis(200);
    let store = JetStreamStore::open(client.clone(), config).await.unwrap();
    let save =
        |key: &'static str, follows, state: &'static str| store.save("cart", key, follows, state.into(), Process);
    let first = save("saved", Version::NONE, "1").await.unwrap();
    let taken = save("removed", Version::NONE, "1").await.unwrap();
    let both = save("both", Version::NONE, "1").await.unwrap();
    let lost = save("lost", Version::NONE, "1").await.unwrap();

    server.stop();
    let done = timeout(LONG, save("saved", first, "2")).await.unwrap();
    assert!(is_io(&done), "{done:?}");
    let done = save("new", Version::NONE, "1").await;
    assert!(is_io(&done), "{done:?}");
    let done = store.remove("cart", "removed", taken, Process).await;
    assert!(is_io(&done), "{done:?}");
    let done = save("both", both, "2").await;
    assert!(is_io(&done), "{done:?}");
    let done = save("lost", lost, "2").await;
    assert!(is_io(&done), "{done:?}");
    assert!(is_io(&store.load("cart", "saved").await));
    assert!(is_io(&store.count("cart").await));
    server.cont();

    // All that was sent has come there once something that was sent later is answered.
    timeout(LONG, async { while is_io(&store.load("cart", "saved").await) {} }).await.unwrap();
    assert_eq!(others.load("cart", "saved").await.unwrap().unwrap().state, "2", "it was carried out");
    assert_eq!(others.load("cart", "removed").await.unwrap(), None, "it was carried out");

    // With another state than before, or as another write.
    let second = save("saved", first, "3").await.unwrap();
    assert_eq!(others.load("cart", "saved").await.unwrap(), Some(Saved { version: second, state: "3".into() }));
    assert_eq!(fenced_by(save("saved", first, "4").await), second, "a write is in doubt until another succeeds");
    let new = save("new", Version::NONE, "2").await.unwrap();
    assert_eq!(others.load("cart", "new").await.unwrap(), Some(Saved { version: new, state: "2".into() }));
    store.remove("cart", "removed", taken, Process).await.unwrap();
    assert_eq!(fenced_by(store.remove("cart", "removed", taken, Process).await), Version::NONE);
    store.remove("cart", "both", both, Process).await.unwrap();
    assert_eq!(others.load("cart", "both").await.unwrap(), None);

    // One that has another's behind it is fenced, for all the doubt.
    let found = others.load("cart", "lost").await.unwrap().unwrap();
    let theirs = others.save("cart", "lost", found.version, "theirs".into(), Process).await.unwrap();
    assert_eq!(fenced_by(save("lost", lost, "3").await), theirs);
    assert_eq!(fenced_by(store.remove("cart", "lost", lost, Process).await), theirs);
}

#[tokio::test]
async fn a_first_save_that_comes_late_makes_no_row() {
    let server = server();
    let (client, _) = connect(&server).await;
    let store = open(&client).await;
    let version = store.save("cart", "a", Version::NONE, "x".into(), Process).await.unwrap();
    // As it was sent: it expects the marker.
    let context = jetstream::new(client.clone());
    let sent = context.get_stream("KV_states").await.unwrap().get_raw_message(version.number()).await.unwrap();
    let late = || async {
        context
            .publish_with_headers(sent.subject.clone(), sent.headers.clone(), sent.payload.clone())
            .await
            .unwrap()
            .await
    };
    late().await.unwrap_err();
    store.remove("cart", "a", version, Process).await.unwrap();
    let error = late().await.unwrap_err();
    assert_eq!(error.kind(), jetstream::context::PublishErrorKind::WrongLastSequence);
    assert_eq!((store.load("cart", "a").await.unwrap(), store.count("cart").await.unwrap()), (None, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_stores_fence_each_other() {
    let server = server();
    let ours = Arc::new(open(&connect(&server).await.0).await);
    let theirs = Arc::new(open(&connect(&server).await.0).await);
    let first = ours.save("cart", "a", Version::NONE, "1".into(), Process).await.unwrap();
    assert_eq!(theirs.load("cart", "a").await.unwrap(), Some(Saved { version: first, state: "1".into() }));
    assert_eq!(fenced_by(theirs.save("cart", "a", Version::NONE, "x".into(), Process).await), first);
    let second = theirs.save("cart", "a", first, "2".into(), Process).await.unwrap();
    assert_eq!(fenced_by(ours.save("cart", "a", first, "x".into(), Process).await), second);
    assert_eq!(fenced_by(ours.remove("cart", "a", first, Process).await), second);
    ours.remove("cart", "a", second, Process).await.unwrap();
    assert_eq!(fenced_by(theirs.save("cart", "a", second, "x".into(), Process).await), Version::NONE);
    assert_eq!(theirs.count("cart").await.unwrap(), 0);

    // Many at the same time, who also remove: each number is made once.
    let made = Arc::new(AtomicU64::new(0));
    let writers = [ours, theirs].into_iter().cycle().take(8).map(|store| {
        let made = Arc::clone(&made);
        tokio::spawn(async move {
            let mut done = 0;
            while done < 20 {
                let row = store.load("race", "a").await.unwrap();
                let follows = row.as_ref().map_or(Version::NONE, |row| row.version);
                let written = if row.is_some_and(|row| row.state == "remove") {
                    store.remove("race", "a", follows, Process).await
                } else {
                    let n = made.load(Ordering::SeqCst);
                    let state = if n.is_multiple_of(5) { "remove" } else { "x" };
                    store.save("race", "a", follows, state.into(), Process).await.map(|_| ())
                };
                match written {
                    Ok(()) => {
                        made.fetch_add(1, Ordering::SeqCst);
                        done += 1;
                    }
                    Err(StoreError::Fenced { .. }) => {}
                    Err(error) => panic!("{error:?}"),
                }
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        timeout(LONG, writer).await.unwrap().unwrap();
    }
    assert_eq!(made.load(Ordering::SeqCst), 160);
}

#[tokio::test]
async fn buckets_that_would_lose_rows_are_refused() {
    let server = server();
    let (client, _) = connect(&server).await;
    let context = jetstream::new(client.clone());
    let made = kv::Config { bucket: "states".to_owned(), history: 5, ..kv::Config::default() };
    context.create_key_value(made).await.unwrap();
    let opened = JetStreamStore::open(client.clone(), BucketConfig::new("states")).await;
    assert!(matches!(opened, Err(BucketError::Unfit { setting: "max_msgs_per_subject", .. })), "{opened:?}");
    for name in ["", "a.b", "a b", "a*", "ä"] {
        let opened = JetStreamStore::open(client.clone(), BucketConfig::new(name)).await;
        assert!(matches!(opened, Err(BucketError::Name { .. })), "{name}: {opened:?}");
    }
    let without = NatsConfig::default().start().unwrap();
    let opened = JetStreamStore::open(connect(&without).await.0, BucketConfig::new("states")).await;
    assert!(matches!(opened, Err(BucketError::Server { .. })), "{opened:?}");
}

#[tokio::test]
async fn rows_are_values_of_the_bucket_to_others() {
    let server = server();
    let (client, _) = connect(&server).await;
    let store = open(&client).await;
    store.save("cart", "a", Version::NONE, "x".into(), Process).await.unwrap();
    let bucket = jetstream::new(client.clone()).get_key_value("states").await.unwrap();
    let key = timeout(LONG, async {
        use futures_util::StreamExt;
        bucket.keys().await.unwrap().next().await.unwrap().unwrap()
    });
    let key = key.await.unwrap();
    assert_eq!(key, "cart.a");
    assert_eq!(bucket.get(&key).await.unwrap().unwrap(), "x");
    // What they remove is removed.
    bucket.delete(&key).await.unwrap();
    assert_eq!(store.load("cart", "a").await.unwrap(), None);
    store.remove("cart", "a", Version::NONE, Process).await.unwrap();
    let version = store.save("cart", "a", Version::NONE, "y".into(), Process).await.unwrap();
    assert_eq!(store.load("cart", "a").await.unwrap(), Some(Saved { version, state: "y".into() }));
}

/// A row, as the one who writes it knows it.
#[derive(Default)]
struct Known {
    version: Version,
    state: Option<Bytes>,
}

/// One step of a writer with keys of its own: what fails is made again, perhaps as another write, and is not fenced.
async fn step(store: &JetStreamStore, key: &str, known: &mut Known, random: &mut fastrand::Rng, failures: &AtomicU64) {
    if random.u8(..8) == 0 {
        // One that never comes, however late this write does.
        let stale = Version::new(u64::MAX / 2);
        match store.save("model", key, stale, "stale".into(), Process).await {
            Err(StoreError::Fenced { found }) => assert_eq!(found, known.version, "{key}"),
            Err(StoreError::Io { .. }) => {}
            other => panic!("{key}: {other:?}"),
        }
    }
    loop {
        let state = (random.u8(..3) > 0).then(|| Bytes::from(vec![random.u8(..); random.usize(..5_000)]));
        let written = match &state {
            Some(state) => store.save("model", key, known.version, state.clone(), Process).await,
            None => store.remove("model", key, known.version, Process).await.map(|()| Version::NONE),
        };
        match written {
            Ok(version) => {
                assert!(state.is_none() || version.number() > known.version.number(), "{key}");
                *known = Known { version, state };
                return;
            }
            Err(StoreError::Io { .. }) => {
                failures.fetch_add(1, Ordering::Relaxed);
                // The connection comes back.
                sleep(Duration::from_millis(5)).await;
            }
            Err(error) => panic!("{key}: {error:?}"),
        }
    }
}

/// Loads until there is an answer.
async fn loaded(store: &JetStreamStore, key: &str) -> Option<Saved> {
    loop {
        match store.load("model", key).await {
            Ok(row) => return row,
            Err(StoreError::Io { .. }) => sleep(Duration::from_millis(5)).await,
            Err(error) => panic!("{key}: {error:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn random_writes_are_as_in_a_model_though_the_server_is_killed() {
    const WRITERS: u64 = 6;
    const KEYS: usize = 4;
    let seed = std::env::var("STORE_SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    println!("STORE_SEED={seed}");
    let mut server = server();
    let (client, mut connected) = connect(&server).await;
    let mut config = BucketConfig::new("states");
    config.timeout = Duration::from_millis(500);
    let store = Arc::new(JetStreamStore::open(client.clone(), config).await.unwrap());
    let (failures, steps) = (Arc::new(AtomicU64::new(0)), watch::channel(0_u64).0);
    let ends = watch::channel(false).0;
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let (store, failures) = (Arc::clone(&store), Arc::clone(&failures));
            let (steps, ends) = (steps.clone(), ends.subscribe());
            let mut random = fastrand::Rng::with_seed(seed ^ writer);
            tokio::spawn(async move {
                let mut rows: Vec<_> = (0..KEYS).map(|_| Known::default()).collect();
                while !*ends.borrow() {
                    let n = random.usize(..KEYS);
                    let key = format!("{writer}/{n}");
                    step(&store, &key, &mut rows[n], &mut random, &failures).await;
                    let row = loaded(&store, &key).await;
                    assert_eq!(row.as_ref().map_or(Version::NONE, |row| row.version), rows[n].version, "{key}");
                    assert!(row.map(|row| row.state) == rows[n].state, "{key} has another state");
                    steps.send_modify(|steps| *steps += 1);
                }
                (writer, rows)
            })
        })
        .collect();
    let mut random = fastrand::Rng::with_seed(seed);
    for round in 0..8 {
        // From then on: after so many writes, in the middle of others.
        let until_then = *steps.borrow() + random.u64(50..300);
        timeout(LONG, steps.subscribe().wait_for(|steps| *steps >= until_then)).await.unwrap().unwrap();
        if round % 4 == 3 {
            // Longer than the store waits: what is answered then is answered to nobody.
            let before = failures.load(Ordering::Relaxed);
            server.stop();
            timeout(LONG, async {
                while failures.load(Ordering::Relaxed) < before + 2 * WRITERS {
                    sleep(Duration::from_millis(20)).await;
                }
            })
            .await
            .unwrap();
            server.cont();
        } else {
            server.kill();
            until(&mut connected, false).await;
            server.restart().unwrap();
            until(&mut connected, true).await;
        }
    }
    ends.send_replace(true);
    let mut expected = Vec::new();
    for writer in writers {
        let (writer, rows) = timeout(LONG, writer).await.unwrap().unwrap();
        for (n, known) in rows.into_iter().enumerate().filter(|(_, known)| known.state.is_some()) {
            let key = format!("{writer}/{n}");
            assert!(loaded(&store, &key).await.map(|row| row.state) == known.state, "{key}");
            expected.push(key);
        }
    }
    assert!(failures.load(Ordering::Relaxed) > 0, "the server was never missed");
    expected.sort_unstable();
    assert_eq!(store.keys("model", None, 100).await.unwrap(), expected);
    assert_eq!(store.count("model").await.unwrap(), expected.len() as u64);
}
