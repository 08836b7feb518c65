//! A kind goes over to another version, and back.

use std::{pin::pin, time::Duration};

use airssys_wasm_actor::{AskError, UpgradeError, UpgradeOptions};
use airssys_wasm_keyed::{KeyedEvent, KeyedOptions, SaveWhen};
use tokio::sync::Semaphore;

use crate::support::{
    ACTOR, COUNTER, COUNTER_V2, ECHO, Faulty, ask, carts, install, pass, sandbox, settle, system, template,
};

#[tokio::test]
async fn each_actor_goes_over_when_it_is_next_between_two_messages_or_in_memory() {
    let (system, store) = (system(), Faulty::new());
    let carts = carts(&system, &COUNTER, KeyedOptions::default(), &store).await;
    for key in ["awake", "asleep"] {
        assert_eq!(ask(&carts, key, "add 3").await.unwrap(), "3");
    }
    carts.passivate("asleep").await.unwrap();
    let report = carts.upgrade(sandbox(&system, &COUNTER_V2), UpgradeOptions::default()).await.unwrap();
    assert_eq!((report.upgraded, report.failed.len()), (1, 0));
    for key in ["awake", "asleep"] {
        assert_eq!(ask(&carts, key, "add 1").await.unwrap(), "count: 4", "{key}");
    }
    assert_eq!(ask(&carts, "new", "get").await.unwrap(), "count: 0");
}

#[tokio::test]
async fn a_version_on_probation_that_cannot_restore_is_undone_for_all() {
    for probation in [0, 5] {
        let (system, store) = (system(), Faulty::new());
        let carts = carts(&system, &COUNTER, KeyedOptions::default(), &store).await;
        for key in ["1", "2"] {
            ask(&carts, key, "add 3").await.unwrap();
            carts.passivate(key).await.unwrap();
        }
        let mut events = carts.events();
        let options = UpgradeOptions { probation, ..UpgradeOptions::default() };
        // It takes a count for rubbish.
        carts.upgrade(sandbox(&system, &ACTOR), options).await.unwrap();
        // A fresh one has nothing to restore.
        assert_eq!(ask(&carts, "new", "self").await.unwrap(), "cart/new");
        let answer = ask(&carts, "1", "get").await;
        if probation == 0 {
            assert!(matches!(answer.unwrap_err(), AskError::NotActivated(_)));
            assert_eq!(store.count_of("1").await, Some(3));
            continue;
        }
        assert_eq!(answer.unwrap(), "3");
        assert!(matches!(events.recv().await.unwrap(), KeyedEvent::RolledBack));
        settle().await;
        assert_eq!(ask(&carts, "2", "get").await.unwrap(), "3");
        assert_eq!(ask(&carts, "1", "get").await.unwrap(), "3");
        assert_eq!(ask(&carts, "newer", "get").await.unwrap(), "0");
    }
}

#[tokio::test]
async fn a_version_that_crashes_on_probation_leaves_what_was_saved_to_the_one_before() {
    let (system, store) = (system(), Faulty::new());
    let each = KeyedOptions { save: SaveWhen::EachMessage, ..KeyedOptions::default() };
    let carts = carts(&system, &COUNTER, each, &store).await;
    for key in ["1", "2"] {
        ask(&carts, key, "add 3").await.unwrap();
    }
    let options = UpgradeOptions { probation: 5, ..UpgradeOptions::default() };
    carts.upgrade(sandbox(&system, &COUNTER_V2), options).await.unwrap();
    assert_eq!(ask(&carts, "1", "add 1").await.unwrap(), "count: 4");
    ask(&carts, "1", "crash").await.unwrap_err();
    assert_eq!(ask(&carts, "1", "get").await.unwrap(), "4", "what was answered is not lost");
    settle().await;
    assert_eq!(ask(&carts, "2", "get").await.unwrap(), "3");
}

#[tokio::test]
async fn a_version_that_would_lose_the_state_is_not_taken_unless_that_is_wanted() {
    let (system, store) = (system(), Faulty::new());
    let carts = carts(&system, &COUNTER, KeyedOptions::default(), &store).await;
    ask(&carts, "1", "add 3").await.unwrap();
    let error = carts.upgrade(sandbox(&system, &ECHO), UpgradeOptions::default()).await.unwrap_err();
    assert!(matches!(error, UpgradeError::StateWouldBeLost));
    assert_eq!(ask(&carts, "1", "get").await.unwrap(), "3");
    let discard = UpgradeOptions { discard_state: true, ..UpgradeOptions::default() };
    carts.upgrade(sandbox(&system, &ECHO), discard).await.unwrap();
    assert_eq!(ask(&carts, "1", "get").await.unwrap(), "get");
}

#[tokio::test]
async fn what_was_fresh_to_the_version_before_is_kept_by_the_next() {
    for is_upgraded in [true, false] {
        let (system, store) = (system(), Faulty::new());
        let carts = carts(&system, &COUNTER, KeyedOptions::default(), &store).await;
        ask(&carts, "1", "get").await.unwrap();
        if is_upgraded {
            carts.upgrade(sandbox(&system, &COUNTER_V2), UpgradeOptions::default()).await.unwrap();
        }
        carts.passivate("1").await.unwrap();
        // The next version's own fresh state need not be this one.
        assert_eq!(store.count_of("1").await, is_upgraded.then_some(0));
    }
}

#[tokio::test(start_paused = true)]
async fn an_actor_whose_state_cannot_be_saved_is_not_upgraded_and_loses_nothing() {
    let (system, store) = (system(), Faulty::new());
    let carts = carts(&system, &COUNTER, KeyedOptions::default(), &store).await;
    ask(&carts, "1", "add 3").await.unwrap();
    store.set_full(true);
    let on_probation = UpgradeOptions { probation: 5, ..UpgradeOptions::default() };
    let report = carts.upgrade(sandbox(&system, &COUNTER_V2), on_probation).await.unwrap();
    assert!(matches!(*report.failed, [UpgradeError::NotSaved]), "{report:?}");
    assert_eq!(ask(&carts, "1", "add 1").await.unwrap(), "4", "of the version before");
    // Others are.
    assert_eq!(ask(&carts, "2", "get").await.unwrap(), "count: 0");
    // And it when it comes into memory the next time.
    store.set_full(false);
    assert!(carts.passivate("1").await.unwrap());
    assert_eq!(ask(&carts, "1", "get").await.unwrap(), "count: 4");
}

#[tokio::test]
async fn who_would_rather_lose_the_state_upgrades_while_the_store_is_full() {
    let (system, store) = (system(), Faulty::new());
    let carts = carts(&system, &COUNTER, KeyedOptions::default(), &store).await;
    ask(&carts, "1", "add 3").await.unwrap();
    store.set_full(true);
    let discard = UpgradeOptions { discard_state: true, ..UpgradeOptions::default() };
    let report = carts.upgrade(sandbox(&system, &COUNTER_V2), discard).await.unwrap();
    assert_eq!((report.upgraded, report.failed.len()), (1, 0));
    assert_eq!(ask(&carts, "1", "get").await.unwrap(), "count: 3");
}

#[tokio::test]
async fn an_actor_that_ends_over_its_upgrade_is_told_of_and_goes_on_with_the_version_before() {
    for crashes in [false, true] {
        let (system, store) = (system(), Faulty::new());
        let guest = if crashes { &ACTOR } else { &COUNTER };
        let template = template(&system, "cart", guest).with_config([("snapshot", if crashes { "panic" } else { "" })]);
        if crashes {
            store.put("1", b"4\n").await;
        }
        let carts = install(&system, template, KeyedOptions::default(), &store).await;
        if crashes {
            assert_eq!(ask(&carts, "1", "count").await.unwrap(), "4");
        } else {
            ask(&carts, "1", "add 3").await.unwrap();
            // Of another process.
            store.put("1", &7_u64.to_le_bytes()).await;
        }
        let version = sandbox(&system, if crashes { &ACTOR } else { &COUNTER_V2 });
        let report = carts.upgrade(version, UpgradeOptions::default()).await.unwrap();
        let is_told = match &*report.failed {
            [UpgradeError::SnapshotCrashed(_)] => crashes,
            [UpgradeError::NotSaved] => !crashes,
            _ => false,
        };
        assert!(is_told, "{report:?}");
        let (text, answer) = if crashes { ("count", "4") } else { ("get", "7") };
        assert_eq!(ask(&carts, "1", text).await.unwrap(), answer);
    }
}

#[tokio::test]
async fn a_version_that_fails_undoes_none_that_came_after_it() {
    let (system, store) = (system(), Faulty::new());
    // A state that all of them take: as a number, and as a text.
    let state = *b"1234567\n";
    store.put("1", &state).await;
    let template = template(&system, "cart", &COUNTER).with_config([("snapshot", "panic")]);
    let carts = install(&system, template, KeyedOptions::default(), &store).await;
    ask(&carts, "1", "get").await.unwrap();
    let on_probation = UpgradeOptions { probation: 5, ..UpgradeOptions::default() };
    carts.upgrade(sandbox(&system, &ACTOR), on_probation).await.unwrap();
    assert_eq!(ask(&carts, "1", "count").await.unwrap(), "1234567");
    let mut events = carts.events();
    // It crashes over its last snapshot, before it goes over to the next version, which is not on probation.
    let report = carts.upgrade(sandbox(&system, &COUNTER_V2), UpgradeOptions::default()).await.unwrap();
    assert!(matches!(*report.failed, [UpgradeError::SnapshotCrashed(_)]), "{report:?}");
    settle().await;
    assert!(events.try_recv().is_err(), "the kind goes back to nothing");
    assert_eq!(ask(&carts, "2", "get").await.unwrap(), "count: 0");
    assert!(carts.passivate("1").await.unwrap());
    assert_eq!(ask(&carts, "1", "get").await.unwrap(), format!("count: {}", u64::from_le_bytes(state)));
}

#[tokio::test(start_paused = true)]
async fn the_sweep_does_not_wait_for_those_that_go_back() {
    let (system, store) = (system(), Faulty::new());
    let within = KeyedOptions { save: SaveWhen::Within(Duration::from_secs(1)), ..KeyedOptions::default() };
    let carts = carts(&system, &COUNTER, within, &store).await;
    for key in ["busy", "fails", "other"] {
        ask(&carts, key, "add 3").await.unwrap();
    }
    let on_probation = UpgradeOptions { probation: 5, ..UpgradeOptions::default() };
    carts.upgrade(sandbox(&system, &COUNTER_V2), on_probation).await.unwrap();
    store.removals.forget_permits(usize::MAX);
    let mut forgotten = pin!(carts.forget("busy"));
    tokio::select! {
        biased;
        result = &mut forgotten => panic!("{result:?} before the row was removed"),
        () = settle() => {}
    }
    ask(&carts, "fails", "crash").await.unwrap_err();
    settle().await;
    assert_eq!(ask(&carts, "other", "add 1").await.unwrap(), "4", "of the version before");
    pass(Duration::from_secs(2)).await;
    assert_eq!(store.count_of("other").await, Some(4));
    store.removals.add_permits(Semaphore::MAX_PERMITS);
    forgotten.await.unwrap();
    assert_eq!(ask(&carts, "busy", "get").await.unwrap(), "0", "of the version before");
}
