//! Topics: who gets what, and what happens when a subscriber is full.

use std::{sync::Arc, time::Duration};

use airssys_wasm_registry::{Instant, MessageBroker, Refusal, WhenFull};

use crate::{Shelf, message, pattern, topic};

#[tokio::test]
async fn all_who_match_get_it_and_nobody_else() {
    let broker = MessageBroker::new();
    let shelves: Vec<_> = (0..5).map(|_| Shelf::new(10)).collect();
    let patterns = ["orders.eu.created", "orders.*.created", "orders.>", "orders.*", ">"];
    let _subscriptions: Vec<_> = patterns
        .iter()
        .zip(&shelves)
        .map(|(text, shelf)| broker.subscribe(&pattern(text), Arc::clone(shelf), WhenFull::Error))
        .collect();
    let report = broker.publish(&topic("orders.eu.created"), message("m")).await;
    assert_eq!((report.delivered, report.refused.len()), (4, 0));
    let got: Vec<_> = shelves.iter().map(|shelf| shelf.payloads().len()).collect();
    assert_eq!(got, [1, 1, 1, 0, 1]);
    assert_eq!(shelves[0].take().unwrap().topic(), Some(&topic("orders.eu.created")));
    assert_eq!(broker.publish(&topic("orders.eu"), message("m")).await.delivered, 3);
    assert_eq!(broker.publish(&topic("payments"), message("m")).await.delivered, 1);
}

#[tokio::test]
async fn a_subscription_ends_when_it_is_dropped() {
    let broker = MessageBroker::new();
    let shelf = Shelf::new(10);
    for text in ["a.b", "a.*", "a.>", ">"] {
        let subscription = broker.subscribe(&pattern(text), Arc::clone(&shelf), WhenFull::Error);
        let twin = broker.subscribe(&pattern(text), Arc::clone(&shelf), WhenFull::Error);
        assert_eq!(broker.subscribers(&topic("a.b")), 2);
        drop(subscription);
        assert_eq!(broker.subscribers(&topic("a.b")), 1);
        drop(twin);
        assert_eq!(broker.subscribers(&topic("a.b")), 0);
    }
    assert_eq!(broker.publish(&topic("a.b"), message("m")).await.delivered, 0);
    let subscription = broker.subscribe(&pattern("a"), shelf, WhenFull::Error);
    drop(broker);
    drop(subscription);
}

#[tokio::test(start_paused = true)]
async fn a_subscriber_that_never_drains_harms_nobody_else() {
    let broker = MessageBroker::new();
    let (dropping, failing, waiting, healthy) = (Shelf::new(1), Shelf::new(1), Shelf::new(1), Shelf::new(100));
    let wait = WhenFull::Wait(Duration::from_secs(2));
    let all = pattern("t");
    let counted = broker.subscribe(&all, Arc::clone(&dropping), WhenFull::DropNew);
    let _failing = broker.subscribe(&all, Arc::clone(&failing), WhenFull::Error);
    let _waiting = broker.subscribe(&all, Arc::clone(&waiting), wait);
    let _waiting_too = broker.subscribe(&all, Shelf::new(0), wait);
    let _healthy = broker.subscribe(&all, Arc::clone(&healthy), WhenFull::Error);
    let _ = broker.publish(&topic("t"), message("fits")).await;
    let started = tokio::time::Instant::now();
    for n in 1..=3 {
        let report = broker.publish(&topic("t"), message("too many")).await;
        assert_eq!((report.delivered, report.dropped), (1, 1));
        assert_eq!(report.refused, vec![(all.clone(), Refusal::Full); 3]);
        assert_eq!(counted.dropped(), n);
    }
    // Those who wait, wait at the same time.
    assert_eq!(started.elapsed(), Duration::from_secs(6));
    assert_eq!(healthy.payloads().len(), 4);
    assert_eq!(waiting.payloads(), ["fits"]);
}

#[tokio::test(start_paused = true)]
async fn a_publisher_waits_for_room() {
    let broker = MessageBroker::new();
    let shelf = Shelf::new(1);
    let _subscription = broker.subscribe(&pattern("t"), Arc::clone(&shelf), WhenFull::Wait(Duration::from_secs(60)));
    assert_eq!(broker.publish(&topic("t"), message("first")).await.delivered, 1);
    let publishing = tokio::spawn({
        let broker = broker.clone();
        async move { broker.publish(&topic("t"), message("second")).await }
    });
    tokio::task::yield_now().await;
    assert_eq!(shelf.take().unwrap().payload(), "first");
    assert_eq!(publishing.await.unwrap().delivered, 1);

    // By the clock that is stopped, which is not std's any more.
    tokio::time::advance(Duration::from_secs(3_600)).await;
    let urgent = message("urgent").with_deadline(Instant::now() + Duration::from_secs(1));
    let started = tokio::time::Instant::now();
    assert_eq!(broker.publish(&topic("t"), urgent).await.refused, [(pattern("t"), Refusal::Full)]);
    assert!(started.elapsed() <= Duration::from_secs(2), "no longer than the deadline");
}

#[tokio::test]
async fn what_is_late_or_refused_is_reported() {
    let broker = MessageBroker::new();
    let shelf = Shelf::new(1);
    let _subscription = broker.subscribe(&pattern("t"), Arc::clone(&shelf), WhenFull::DropNew);
    let late = message("late").with_deadline(Instant::now());
    let report = broker.publish(&topic("t"), late).await;
    assert!(report.late && report.delivered == 0 && shelf.payloads().is_empty());
    for reason in [Refusal::Restarting, Refusal::Stopped] {
        shelf.refuse(reason);
        let report = broker.publish(&topic("t"), message("m")).await;
        assert_eq!(report.refused, [(pattern("t"), reason)]);
    }
}
