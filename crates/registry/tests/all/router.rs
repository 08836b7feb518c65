//! Delivery to one, to many and to a group, and what comes back.

use std::{sync::Arc, time::Duration};

use airssys_wasm_registry::{Instant, MessageEnvelope, Refusal, ResolveError, SendError, Sink};
use bytes::Bytes;

use crate::{Shelf, id, message, router};

#[test]
fn a_message_arrives_with_its_target_and_the_very_payload() {
    let (router, shelves) = router(&[("a", 2)]);
    let payload = Bytes::from(vec![7; 1_000]);
    let at = payload.as_ptr();
    router.send(&id("a"), MessageEnvelope::new(payload)).unwrap();
    let taken = shelves[0].take().unwrap();
    assert_eq!(taken.target(), Some(router.registry().lookup(&id("a")).unwrap().generation()));
    assert_eq!(taken.payload().as_ptr(), at, "never copied");
}

#[test]
fn what_is_refused_comes_back_with_its_reason() {
    let (router, shelves) = router(&[("a", 1)]);
    router.send(&id("a"), message("first")).unwrap();
    assert_eq!((shelves[0].load().queued, shelves[0].load().capacity), (1, 1));
    for reason in [None, Some(Refusal::Restarting), Some(Refusal::Stopped)] {
        if let Some(reason) = reason {
            shelves[0].refuse(reason);
        }
        let error = router.send(&id("a"), message("second")).unwrap_err();
        let SendError::Refused { to, reason: found, .. } = &error else { panic!("{error:?}") };
        assert_eq!((to, *found), (&id("a"), reason.unwrap_or(Refusal::Full)));
        assert_eq!(error.into_message().payload(), "second");
    }
    assert_eq!(shelves[0].payloads(), ["first"]);
}

#[test]
fn unknown_targets_and_stale_addresses_are_told_apart() {
    let (router, _) = router(&[("a", 1)]);
    let error = router.send(&id("none"), message("m")).unwrap_err();
    assert!(matches!(&error, SendError::Unresolved { error: ResolveError::Unknown { .. }, .. }), "{error:?}");
    assert_eq!(error.into_message().payload(), "m");

    let address = router.registry().lookup(&id("a")).unwrap();
    router.send_resolved(&address, message("m")).unwrap();
    router.registry().deregister(&address).unwrap();
    let error = router.send_resolved(&address, message("m")).unwrap_err();
    assert!(matches!(error, SendError::Unresolved { error: ResolveError::Unknown { .. }, .. }), "{error:?}");
    let again = Shelf::new(1);
    router.registry().register(&id("a"), Arc::clone(&again)).unwrap();
    let error = router.send_resolved(&address, message("m")).unwrap_err();
    assert!(matches!(error, SendError::Unresolved { error: ResolveError::Stale { .. }, .. }), "{error:?}");
    assert!(again.payloads().is_empty());
}

#[test]
fn a_message_that_is_late_is_not_sent() {
    let (router, shelves) = router(&[("a", 2)]);
    let mut late = message("late");
    late = late.with_deadline(Instant::now());
    assert!(matches!(router.send(&id("a"), late.clone()), Err(SendError::Late { .. })));
    late = late.with_deadline(Instant::now() + Duration::from_secs(3_600));
    router.send(&id("a"), late).unwrap();
    assert_eq!(shelves[0].payloads(), ["late"]);
}

#[test]
fn a_broadcast_says_who_did_not_get_it() {
    let (router, shelves) = router(&[("a", 1), ("b", 0), ("c", 1)]);
    let to = [id("a"), id("b"), id("none"), id("c")];
    let failed = router.broadcast(&to, &message("m"));
    assert_eq!(failed.len(), 2);
    assert!(matches!(&failed[0], SendError::Refused { to, reason: Refusal::Full, .. } if *to == id("b")));
    assert!(matches!(&failed[1], SendError::Unresolved { .. }));
    assert_eq!((shelves[0].payloads(), shelves[2].payloads()), (vec!["m".into()], vec!["m".into()]));
}

#[test]
fn a_group_takes_turns_and_passes_on_what_one_refuses() {
    let (router, shelves) = router(&[("a", 10), ("b", 10), ("c", 10)]);
    let registry = router.registry();
    let group = id("g");
    registry.create_group(&group).unwrap();
    let empty = router.send(&group, message("m")).unwrap_err();
    assert!(matches!(empty, SendError::EmptyGroup { .. }), "{empty:?}");
    for member in ["a", "b", "c"] {
        registry.join(&group, &id(member)).unwrap();
    }
    for _ in 0..12 {
        router.send(&group, message("m")).unwrap();
    }
    let taken: usize = shelves.iter().map(|shelf| shelf.payloads().len()).sum();
    assert_eq!(taken, 12);
    assert!(shelves.iter().all(|shelf| shelf.payloads().len() >= 3));

    shelves[0].refuse(Refusal::Stopped);
    shelves[1].refuse(Refusal::Restarting);
    let before = shelves[2].payloads().len();
    for _ in 0..4 {
        router.send(&group, message("m")).unwrap();
    }
    assert_eq!(shelves[2].payloads().len(), before + 4);
    shelves[2].refuse(Refusal::Full);
    let refused = router.send(&group, message("back")).unwrap_err();
    assert!(matches!(refused, SendError::Refused { .. }), "{refused:?}");
    assert_eq!(refused.into_message().payload(), "back");
}

#[tokio::test(start_paused = true)]
async fn waiting_ends_with_room_or_with_the_deadline() {
    let (router, shelves) = router(&[("a", 1)]);
    router.send(&id("a"), message("first")).unwrap();
    let waiting = tokio::spawn({
        let router = router.clone();
        async move { router.send_wait(&id("a"), message("second")).await }
    });
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    assert_eq!(shelves[0].take().unwrap().payload(), "first");
    waiting.await.unwrap().unwrap();
    assert_eq!(shelves[0].payloads(), ["second"]);

    let mut urgent = message("urgent");
    urgent = urgent.with_deadline(Instant::now() + Duration::from_secs(5));
    let error = router.send_wait(&id("a"), urgent).await.unwrap_err();
    assert!(matches!(error, SendError::Late { .. }), "{error:?}");
    assert_eq!(error.into_message().payload(), "urgent");

    shelves[0].refuse(Refusal::Stopped);
    let error = router.send_wait(&id("a"), message("m")).await.unwrap_err();
    assert!(matches!(error, SendError::Refused { reason: Refusal::Stopped, .. }), "{error:?}");
}
