//! Hosts that take what comes to them more slowly than it comes.

use std::time::Duration;

use airssys_wasm_actor::registry::{MessageEnvelope, Topic, WhenFull};
use airssys_wasm_lattice::LatticeEvent;
use tokio::{sync::broadcast::error::TryRecvError, time::Instant};

use crate::{
    processes::{Books, HostProcess, Settings},
    support::{LONG, config, host, join, server, until, until_told, within},
};

const DROPPED: &str = "event Ok(PublicationsDropped)";
const FLOOD: usize = 500;

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_packets_that_a_client_drops_is_refused_and_the_books_balance() {
    let server = server();
    // Nobody is lost, however long a flood takes.
    let (lease, heartbeat) = (Duration::from_secs(30), Duration::from_secs(10));
    let settings = Settings { lease, heartbeat, ..Settings::quick(&server) };
    let slow = Settings { waiting: Some(4), ..settings.clone() };
    let (mut slow, mut fast, c, d) = tokio::join!(
        HostProcess::join("slow", &slow),
        HostProcess::join("fast", &settings),
        HostProcess::join("c", &settings),
        HostProcess::join("d", &settings)
    );
    let mut senders = [c, d];
    slow.export("to-slow").await;
    fast.export("to-fast").await;
    let is_dropped = |host: &HostProcess| host.lines().iter().any(|line| line == DROPPED);
    for round in 0.. {
        for (name, host) in [("to-slow", &slow), ("to-fast", &fast)] {
            // What has come when it goes on is read at once.
            host.stop();
            for sender in &mut senders {
                let first = format!("{}-{name}-{round}", sender.name);
                sender.tell(&format!("flood {name} {first} {FLOOD} 4096"));
                sender.says(&format!("flooded {first}")).await;
            }
            host.cont();
            for sender in &senders {
                for n in 0..FLOOD {
                    sender.says(&format!("outcome {}-{name}-{round}-{n}", sender.name)).await;
                }
            }
        }
        if is_dropped(&slow) {
            break;
        }
        assert!(round < 20, "nothing was dropped");
    }
    assert!(!is_dropped(&fast));
    for (host, was_dropped) in [(&mut slow, true), (&mut fast, false)] {
        host.tell("dropped");
        assert_eq!(host.says("dropped").await != "0", was_dropped);
    }
    let mut lines = Vec::new();
    for host in [&mut slow, &mut fast].into_iter().chain(&mut senders) {
        host.tells_all().await;
        lines.push(host.lines());
    }
    let balance = Books::of(&lines).balance(|_| false);
    println!("{balance:?}");
    assert!(balance.refused > 0 && balance.unknown == 0, "{balance:?}");
    let of_fast: Vec<_> = lines.concat().into_iter().filter(|line| line.contains("-to-fast-")).collect();
    let of_fast = Books::of([&of_fast]).balance(|_| false);
    assert_eq!(of_fast.handled, of_fast.sent, "the control");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_that_does_not_take_holds_up_its_pattern_alone_and_as_many_bytes_as_a_lane_has() {
    const COUNT: usize = 100;
    const SIZE: usize = 4 << 10;
    const ROOM: usize = 16 * SIZE;
    let server = server();
    let small = {
        let mut config = config(&server, "b");
        config.window_bytes = ROOM;
        config
    };
    let (a, b, c) = tokio::join!(host(&server, "a"), join(small), host(&server, "c"));
    let [orders, news] = ["orders.eu", "news"].map(|topic| Topic::new(topic).unwrap());
    let subscribe = |host: &crate::support::TestHost, pattern: &str, room, when_full| {
        host.system.subscribe(&pattern.parse().unwrap(), room, when_full)
    };
    let mut beside = subscribe(&b, "news", 1 << 10, WhenFull::Error);
    let mut takes = subscribe(&c, "orders.>", 1 << 10, WhenFull::Error);
    for (host, pattern) in [(&b, "orders.>"), (&b, "news"), (&c, "orders.>")] {
        within(host.lattice.take_topics(&pattern.parse().unwrap())).await.unwrap();
    }
    let (mut of_b, mut of_c) = (b.lattice.events(), c.lattice.events());
    // Nobody is told that all who take it are known.
    until_told(async || a.system.publish(&news, "early").await.hosts == 1).await;
    until_told(async || a.system.publish(&orders, "early").await.hosts == 2).await;
    let mut stuck = subscribe(&b, "orders.>", 1, WhenFull::Wait(LONG * 10));
    for n in 0..COUNT {
        assert_eq!(a.system.publish(&orders, format!("{n} {}", "x".repeat(SIZE))).await.hosts, 2);
    }
    within(async { while of_b.recv().await.unwrap() != LatticeEvent::PublicationsDropped {} }).await;
    // What is beside it goes on.
    assert_eq!(a.system.publish(&news, "last").await.hosts, 1);
    within(async { while beside.recv().await.unwrap().payload() != "last" {} }).await;
    b.export("shop").await;
    a.knows("shop").await;
    assert_eq!(a.ask("shop", "asked").await.unwrap(), "asked");

    let number = |payload: &[u8]| String::from_utf8_lossy(payload).split(' ').next().unwrap().parse::<usize>().ok();
    // The control: who takes all of it has it, in order.
    let mut taken = Vec::new();
    while taken.len() < COUNT {
        taken.extend(number(within(takes.recv()).await.unwrap().payload()));
    }
    assert!(taken.iter().copied().eq(0..COUNT));
    until_told(async || match of_c.try_recv() {
        Err(TryRecvError::Empty) => true,
        event => {
            assert_ne!(event.unwrap(), LatticeEvent::PublicationsDropped);
            false
        }
    })
    .await;
    // What had room comes when there is a place for it, and what is published then.
    let mut taken = Vec::new();
    let mut is_last = false;
    while !is_last {
        let message = within(stuck.recv()).await.unwrap();
        is_last = message.payload() == "last";
        taken.extend(number(message.payload()));
        if taken.len() == 3 && !is_last {
            assert_eq!(a.system.publish(&orders, "last").await.hosts, 2);
        }
    }
    assert!(taken.is_sorted() && taken[..3] == [0, 1, 2], "{taken:?}");
    // Beside them one was being delivered, and one had its place.
    assert!(taken.len() <= ROOM / SIZE + 2, "{taken:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_a_subscriber_is_what_others_published_to_its_deadline() {
    const SIZE: usize = 4 << 10;
    let server = server();
    let small = {
        let mut config = config(&server, "b");
        config.window_bytes = 8 * SIZE;
        config
    };
    let (a, b) = tokio::join!(host(&server, "a"), join(small));
    let [eu, us] = ["orders.eu", "orders.us"].map(|topic| Topic::new(topic).unwrap());
    within(b.lattice.take_topics(&"orders.eu".parse().unwrap())).await.unwrap();
    until_told(async || a.system.publish(&eu, "early").await.hosts == 1).await;
    let mut stuck = b.system.subscribe(&"orders.eu".parse().unwrap(), 1, WhenFull::Wait(LONG * 10));
    let mut beside = b.system.subscribe(&"orders.us".parse().unwrap(), 1 << 10, WhenFull::Error);
    for n in 0..4 {
        assert_eq!(a.system.publish(&eu, format!("{n}")).await.hosts, 1);
    }
    let deadline = Instant::now() + Duration::from_millis(300);
    assert_eq!(a.system.publish(&eu, MessageEnvelope::new("late").with_deadline(deadline)).await.hosts, 1);
    assert_eq!(a.system.publish(&eu, "4").await.hosts, 1);
    // A pattern that is taken later takes nothing from this one; and what this host publishes itself waits for nobody, and takes no room.
    within(b.lattice.take_topics(&"orders.>".parse().unwrap())).await.unwrap();
    until_told(async || a.system.publish(&us, "early").await.hosts == 1).await;
    let mut events = b.lattice.events();
    for _ in 0..100 {
        _ = b.system.publish(&us, "x".repeat(SIZE)).await;
    }
    assert_eq!(a.system.publish(&us, "last").await.hosts, 1);
    within(async { while beside.recv().await.unwrap().payload() != "last" {} }).await;
    while let Ok(event) = events.try_recv() {
        assert_ne!(event, LatticeEvent::PublicationsDropped);
    }
    until(|| Instant::now() > deadline).await;
    let mut taken = Vec::new();
    while taken.last().is_none_or(|last| last != "4") {
        let message = within(stuck.recv()).await.unwrap();
        taken.push(String::from_utf8(message.payload().to_vec()).unwrap());
    }
    taken.retain(|text| text != "early");
    assert_eq!(taken, ["0", "1", "2", "3", "4"]);
}
