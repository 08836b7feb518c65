//! When state is saved, and what a crash loses of it.

use std::{pin::pin, sync::atomic::Ordering, time::Duration};

use airssys_wasm_actor::{AskError, SystemEvent};
use airssys_wasm_keyed::{Durability, KeyedEvent, KeyedOptions, SaveWhen};
use airssys_wasm_limits::ByteSize;
use airssys_wasm_registry::{MessageEnvelope, Topic};

use crate::support::{ACTOR, COUNTER, Faulty, ask, carts, pass, settle, system, until};

fn options(save: SaveWhen) -> KeyedOptions {
    KeyedOptions { save, idle: Duration::from_secs(600), ..KeyedOptions::default() }
}

#[tokio::test(start_paused = true)]
async fn a_crash_loses_what_the_kind_of_saving_says() {
    let within = Duration::from_secs(4);
    for (save, after_a_while, at_once) in
        [(SaveWhen::OnIdle, "0", "0"), (SaveWhen::Within(within), "1", "1"), (SaveWhen::EachMessage, "1", "2")]
    {
        let (system, store) = (system(), Faulty::new());
        let carts = carts(&system, &COUNTER, options(save), &store).await;
        ask(&carts, "1", "add 1").await.unwrap();
        pass(within).await;
        assert!(matches!(ask(&carts, "1", "crash").await.unwrap_err(), AskError::Crashed(_)));
        assert_eq!(ask(&carts, "1", "get").await.unwrap(), after_a_while, "{save:?}");
        if after_a_while == "0" {
            continue;
        }
        ask(&carts, "1", "add 1").await.unwrap();
        ask(&carts, "1", "crash").await.unwrap_err();
        assert_eq!(ask(&carts, "1", "get").await.unwrap(), at_once, "{save:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn state_is_saved_no_later_than_it_may_be_and_not_at_once() {
    let (system, store) = (system(), Faulty::new());
    let carts = carts(&system, &COUNTER, options(SaveWhen::Within(Duration::from_secs(4))), &store).await;
    ask(&carts, "1", "add 1").await.unwrap();
    pass(Duration::from_secs(2)).await;
    assert_eq!(store.row("1").await, None);
    assert!(carts.stats().oldest_unsaved >= Duration::from_secs(2));
    pass(Duration::from_secs(2)).await;
    assert_eq!((store.count_of("1").await, carts.stats().oldest_unsaved), (Some(1), Duration::ZERO));
    // Nothing is written while nothing happens.
    pass(Duration::from_secs(20)).await;
    assert_eq!(store.written(), 1);
}

#[tokio::test(start_paused = true)]
async fn state_that_is_to_be_saved_waits_for_the_message_in_hand() {
    let (system, store) = (system(), Faulty::new());
    let carts = carts(&system, &ACTOR, options(SaveWhen::Within(Duration::from_secs(4))), &store).await;
    let rooms = crate::support::template(&system, "room", &COUNTER);
    let _rooms = crate::support::install(&system, rooms, options(SaveWhen::OnIdle), &store).await;
    assert_eq!(ask(&carts, "1", "count").await.unwrap(), "0");
    store.loads.forget_permits(usize::MAX);
    let mut asked = pin!(ask(&carts, "1", "request room/1 60000 get"));
    tokio::select! {
        biased;
        answer = &mut asked => panic!("{answer:?} of one that is not in memory"),
        () = pass(Duration::from_secs(8)) => {}
    }
    assert_eq!(store.row("1").await, None);
    assert!(carts.stats().oldest_unsaved >= Duration::from_secs(7));
    store.loads.add_permits(1);
    assert_eq!(asked.await.unwrap(), "0");
    settle().await;
    assert_eq!((store.row("1").await.unwrap(), carts.stats().oldest_unsaved), ("2\n".into(), Duration::ZERO));
}

#[tokio::test]
async fn an_answer_waits_for_the_save_where_each_message_is_saved() {
    let (system, store) = (system(), Faulty::new());
    let carts = carts(&system, &COUNTER, options(SaveWhen::EachMessage), &store).await;
    ask(&carts, "1", "get").await.unwrap();
    let writes = store.writes.forget_permits(usize::MAX);
    assert!(writes > 0);
    let mut asked = pin!(ask(&carts, "1", "add 1"));
    tokio::select! {
        biased;
        answer = &mut asked => panic!("{answer:?} before it was saved"),
        () = settle() => {}
    }
    assert_eq!(store.row("1").await, None);
    store.writes.add_permits(1);
    assert_eq!(asked.await.unwrap(), "1");
    assert_eq!((store.count_of("1").await, store.synced.load(Ordering::SeqCst)), (Some(1), 1));
}

#[tokio::test]
async fn a_save_survives_what_the_options_say() {
    for (durability, synced) in [(Durability::Process, 0), (Durability::Power, 1)] {
        let (system, store) = (system(), Faulty::new());
        let options = KeyedOptions { durability, ..options(SaveWhen::EachMessage) };
        let carts = carts(&system, &COUNTER, options, &store).await;
        ask(&carts, "1", "add 1").await.unwrap();
        assert_eq!((store.written(), store.synced.load(Ordering::SeqCst)), (1, synced));
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_full_store_does_not_take_stays_in_memory_and_is_tried_again() {
    let (system, store) = (system(), Faulty::new());
    let idle = Duration::from_secs(4);
    let options = KeyedOptions { idle, ..options(SaveWhen::Within(Duration::from_secs(2))) };
    let carts = carts(&system, &COUNTER, options, &store).await;
    let mut events = carts.events();
    ask(&carts, "1", "add 1").await.unwrap();
    store.set_full(true);
    pass(Duration::from_secs(60)).await;
    assert!(matches!(events.try_recv().unwrap(), KeyedEvent::StoreFailed { .. }));
    assert!(events.try_recv().is_err(), "told once");
    // It does not leave, asked to or not.
    assert!(!carts.passivate("1").await.unwrap());
    assert_eq!((carts.stats().live, store.row("1").await), (1, None));
    assert!(carts.stats().oldest_unsaved >= Duration::from_secs(59));
    assert_eq!(ask(&carts, "1", "add 1").await.unwrap(), "2");

    store.set_full(false);
    pass(Duration::from_secs(10)).await;
    assert!(matches!(events.try_recv().unwrap(), KeyedEvent::StoreRecovered));
    until(|| carts.stats().live == 0).await;
    assert_eq!(store.count_of("1").await, Some(2));
}

#[tokio::test]
async fn who_asks_is_told_that_the_state_is_not_saved() {
    let (system, store) = (system(), Faulty::new());
    let carts = carts(&system, &COUNTER, options(SaveWhen::EachMessage), &store).await;
    store.set_full(true);
    assert!(matches!(ask(&carts, "1", "add 1").await.unwrap_err(), AskError::NotSaved));
    // An error of the handler's is what it is.
    assert!(matches!(ask(&carts, "1", "add x").await.unwrap_err(), AskError::Failed { .. }));
    store.set_full(false);
    assert_eq!(ask(&carts, "1", "get").await.unwrap(), "1");
    assert_eq!(store.count_of("1").await, Some(1));
}

#[tokio::test]
async fn a_write_of_which_nobody_knows_is_looked_up() {
    for was_written in [true, false] {
        let (system, store) = (system(), Faulty::new());
        let carts = carts(&system, &COUNTER, options(SaveWhen::EachMessage), &store).await;
        ask(&carts, "1", "add 1").await.unwrap();
        if was_written {
            store.writes_and_fails.store(true, Ordering::SeqCst);
        } else {
            store.set_full(true);
        }
        assert!(matches!(ask(&carts, "1", "add 1").await.unwrap_err(), AskError::NotSaved));
        store.writes_and_fails.store(false, Ordering::SeqCst);
        store.set_full(false);
        assert_eq!(ask(&carts, "1", "add 1").await.unwrap(), "3", "{was_written}");
        assert_eq!(store.count_of("1").await, Some(3), "{was_written}");
    }
}

#[tokio::test]
async fn a_first_write_that_comes_late_fences_none_of_the_later_ones() {
    for another_writes in [false, true] {
        let (system, store) = (system(), Faulty::new());
        let carts = carts(&system, &COUNTER, options(SaveWhen::OnIdle), &store).await;
        store.fill_up();
        for count in ["1", "2"] {
            assert_eq!(ask(&carts, "1", "add 1").await.unwrap(), count);
            assert!(!carts.passivate("1").await.unwrap());
        }
        store.make_room().await;
        assert_eq!((store.count_of("1").await, carts.stats().rows), (Some(1), 0));
        if another_writes {
            store.put("1", &70_u64.to_le_bytes()).await;
        }
        assert!(carts.passivate("1").await.unwrap());
        // Control: what somebody else has written stays.
        let count = if another_writes { 70 } else { 2 };
        assert_eq!(store.count_of("1").await, Some(count));
        assert_eq!(ask(&carts, "1", "get").await.unwrap(), count.to_string());
        assert!(another_writes || carts.stats().rows == 1);
    }
}

#[tokio::test]
async fn a_write_that_comes_late_does_not_undo_what_was_answered_since() {
    let (system, store) = (system(), Faulty::new());
    let carts = carts(&system, &COUNTER, options(SaveWhen::OnIdle), &store).await;
    ask(&carts, "1", "add 1").await.unwrap();
    carts.passivate("1").await.unwrap();
    for crashes in [true, false] {
        store.fill_up();
        assert_eq!(ask(&carts, "1", "add 1").await.unwrap(), "2");
        assert!(!carts.passivate("1").await.unwrap());
        if crashes {
            ask(&carts, "1", "crash").await.unwrap_err();
        } else {
            // Back by itself.
            ask(&carts, "1", &format!("add {}", u64::MAX)).await.unwrap();
        }
        assert_eq!(ask(&carts, "1", "get").await.unwrap(), "1", "{crashes}");
        assert!(!carts.passivate("1").await.unwrap(), "it is as the row, which may become another");
        store.make_room().await;
        assert_eq!(store.count_of("1").await, Some(2));
        assert!(carts.passivate("1").await.unwrap());
        assert_eq!(store.count_of("1").await, Some(1), "{crashes}");
    }
}

#[tokio::test]
async fn who_finds_that_another_has_written_the_row_begins_with_what_is_there() {
    let (system, store) = (system(), Faulty::new());
    let carts = carts(&system, &COUNTER, options(SaveWhen::EachMessage), &store).await;
    ask(&carts, "1", "add 1").await.unwrap();
    let mut events = system.events();
    store.put("1", &70_u64.to_le_bytes()).await;
    assert!(matches!(ask(&carts, "1", "add 1").await.unwrap_err(), AskError::NotSaved));
    assert!(std::iter::from_fn(|| events.try_recv().ok()).any(|event| matches!(event, SystemEvent::NotSaved { .. })));
    assert_eq!(ask(&carts, "1", "add 1").await.unwrap(), "71");
    assert_eq!(store.count_of("1").await, Some(71));
}

#[tokio::test]
async fn a_state_that_is_too_large_is_not_kept_and_the_actor_goes_on() {
    for (state, count) in [(ByteSize::b(3), "0"), (ByteSize::b(1_000), "2")] {
        let (system, store) = (system(), Faulty::new());
        let carts = carts(&system, &ACTOR, KeyedOptions { state, ..options(SaveWhen::OnIdle) }, &store).await;
        let mut events = system.events();
        let long = MessageEnvelope::new("a long message").with_topic("t".parse::<Topic>().unwrap());
        carts.actor("1").unwrap().tell(long).await.unwrap();
        assert_eq!(ask(&carts, "1", "count").await.unwrap(), "1");
        // It cannot be kept by a later attempt either, so it does not stay in memory for that.
        assert!(carts.passivate("1").await.unwrap());
        let refused =
            std::iter::from_fn(|| events.try_recv().ok()).any(|event| matches!(event, SystemEvent::NotSaved { .. }));
        assert_eq!(refused, count == "0");
        assert_eq!(ask(&carts, "1", "count").await.unwrap(), count);
    }
}

#[tokio::test]
async fn a_state_that_grows_is_kept_until_it_is_too_large() {
    for (state, most) in [(ByteSize::kib(4), 3), (ByteSize::kib(64), 8)] {
        let (system, store) = (system(), Faulty::new());
        let carts = carts(&system, &ACTOR, KeyedOptions { state, ..options(SaveWhen::OnIdle) }, &store).await;
        let cart = carts.actor("1").unwrap();
        for _ in 0..8 {
            let heard = MessageEnvelope::new("x".repeat(1_200)).with_topic("t".parse::<Topic>().unwrap());
            cart.tell(heard).await.unwrap();
            assert!(carts.passivate("1").await.unwrap());
        }
        // Each message is remembered, and the last ones began where the last that was kept has ended.
        let heard = ask(&carts, "1", "heard").await.unwrap();
        assert_eq!(heard.split(',').count(), most, "{state}");
        assert!(store.row("1").await.unwrap().len() as u64 <= state.as_u64());
        assert_eq!(ask(&carts, "2", "count").await.unwrap(), "0", "others are not harmed");
    }
}

#[tokio::test]
async fn a_snapshot_that_is_refused_or_crashes_harms_nobody_else() {
    for how in ["fail", "panic", "spin"] {
        let (system, store) = (system(), Faulty::new());
        store.put("1", b"5\n").await;
        let template = crate::support::template(&system, "cart", &ACTOR).with_config([("snapshot", how)]);
        let carts = crate::support::install(&system, template, options(SaveWhen::OnIdle), &store).await;
        // It has a row, so that no snapshot is needed to begin with.
        assert_eq!(ask(&carts, "1", "count").await.unwrap(), "5");
        // One that crashes is restarted, and one that refuses has nothing that could be kept later.
        assert_eq!(carts.passivate("1").await.unwrap(), how == "fail", "{how}");
        assert_eq!(store.row("1").await.unwrap(), "5\n", "{how}");
        assert_eq!(ask(&carts, "1", "count").await.unwrap(), "5", "{how}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_actor_whose_snapshot_is_refused_leaves_the_memory() {
    for save in [SaveWhen::Within(Duration::from_secs(2)), SaveWhen::EachMessage, SaveWhen::OnIdle] {
        let (system, store) = (system(), Faulty::new());
        store.put("1", b"5\n").await;
        let template = crate::support::template(&system, "cart", &ACTOR).with_config([("snapshot", "fail")]);
        let options = KeyedOptions { idle: Duration::from_secs(8), ..options(save) };
        let carts = crate::support::install(&system, template, options, &store).await;
        let asked = ask(&carts, "1", "count").await;
        assert_eq!(asked.is_err(), save == SaveWhen::EachMessage);
        // Its order to save is long over.
        pass(Duration::from_secs(6)).await;
        let stats = carts.stats();
        assert_eq!((stats.live, stats.oldest_unsaved.is_zero()), (1, save != SaveWhen::OnIdle), "{save:?}");
        pass(Duration::from_secs(4)).await;
        until(|| carts.stats().live == 0).await;
    }
}

#[tokio::test]
async fn who_asked_one_that_crashes_after_its_answer_and_before_the_save_is_not_answered() {
    for (text, is_answered) in [("later-panic", false), ("hello", true)] {
        let (system, store) = (system(), Faulty::new());
        let carts = carts(&system, &crate::support::ASYNC_ACTOR, options(SaveWhen::EachMessage), &store).await;
        let answer = ask(&carts, "1", text).await;
        if is_answered {
            assert_eq!(answer.unwrap(), text);
        } else {
            assert!(matches!(answer, Err(AskError::NotSaved)), "{answer:?}");
        }
    }
}

#[tokio::test]
async fn a_write_that_was_not_acknowledged_is_made_again_though_nothing_has_changed() {
    for crashes in [false, true] {
        let (system, store) = (system(), Faulty::new());
        let carts = carts(&system, &COUNTER, options(SaveWhen::EachMessage), &store).await;
        store.writes_and_fails.store(true, Ordering::SeqCst);
        assert!(matches!(ask(&carts, "1", "add 1").await.unwrap_err(), AskError::NotSaved));
        // It can be read, and nobody knows whether it survives the loss of power.
        assert_eq!((store.count_of("1").await, store.written()), (Some(1), 1));
        if crashes {
            // Nor does one know after a crash.
            ask(&carts, "1", "crash").await.unwrap_err();
        }
        assert!(matches!(ask(&carts, "1", "get").await.unwrap_err(), AskError::NotSaved), "{crashes}");
        store.writes_and_fails.store(false, Ordering::SeqCst);
        assert_eq!(ask(&carts, "1", "get").await.unwrap(), "1");
        assert_eq!((store.written(), store.synced.load(Ordering::SeqCst)), (3, 3));
        // From here on it is as the row.
        assert_eq!(ask(&carts, "1", "get").await.unwrap(), "1");
        assert_eq!((store.written(), carts.stats().unchanged), (3, 1));
    }
}

#[tokio::test]
async fn a_store_that_was_not_written_to_has_not_recovered() {
    let (system, store) = (system(), Faulty::new());
    let carts = carts(&system, &COUNTER, options(SaveWhen::EachMessage), &store).await;
    ask(&carts, "unchanged", "add 1").await.unwrap();
    let mut events = carts.events();
    store.set_full(true);
    for _ in 0..5 {
        ask(&carts, "1", "add 1").await.unwrap_err();
        assert_eq!(ask(&carts, "unchanged", "get").await.unwrap(), "1");
        // One that comes into memory, with a row that can be read.
        assert_eq!(ask(&carts, "new", "get").await.unwrap(), "0");
    }
    assert!(matches!(events.try_recv().unwrap(), KeyedEvent::StoreFailed { .. }));
    assert!(events.try_recv().is_err());
    store.set_full(false);
    ask(&carts, "1", "add 1").await.unwrap();
    assert!(matches!(events.try_recv().unwrap(), KeyedEvent::StoreRecovered));
    assert!(events.try_recv().is_err());
}

/// How often it was told that state is not saved.
fn not_saved(events: &mut tokio::sync::broadcast::Receiver<SystemEvent>) -> usize {
    std::iter::from_fn(|| events.try_recv().ok()).filter(|event| matches!(event, SystemEvent::NotSaved { .. })).count()
}

#[tokio::test(start_paused = true)]
async fn a_last_save_that_a_full_store_does_not_take_is_tried_again_until_the_deadline() {
    for save in [SaveWhen::OnIdle, SaveWhen::Within(Duration::from_secs(60))] {
        for recovers in [true, false] {
            let (system, store) = (system(), Faulty::new());
            let carts = carts(&system, &COUNTER, options(save), &store).await;
            ask(&carts, "1", "add 1").await.unwrap();
            let mut events = system.events();
            store.set_full(true);
            let mut shutdown = pin!(system.shutdown(Duration::from_secs(30)));
            tokio::select! {
                biased;
                report = &mut shutdown => panic!("{report:?} before its deadline"),
                () = pass(Duration::from_secs(20)) => {}
            }
            assert_eq!((carts.stats().not_saved, not_saved(&mut events)), (0, 0), "it may be saved yet");
            assert!(carts.stats().oldest_unsaved > Duration::ZERO);
            store.set_full(!recovers);
            let report = shutdown.await;
            let lost = usize::from(!recovers);
            assert_eq!((report.stopped, report.killed.len(), report.stuck.len()), (1 - lost, lost, 0));
            assert_eq!(store.count_of("1").await, recovers.then_some(1), "{save:?}");
            assert_eq!((carts.stats().not_saved, not_saved(&mut events)), (lost as u64, lost), "{save:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_last_save_that_hangs_until_the_deadline_is_told() {
    let (system, store) = (system(), Faulty::new());
    let carts = carts(&system, &COUNTER, options(SaveWhen::OnIdle), &store).await;
    ask(&carts, "1", "add 1").await.unwrap();
    let mut events = system.events();
    store.writes.forget_permits(usize::MAX);
    let report = system.shutdown(Duration::from_secs(5)).await;
    assert_eq!((report.stopped, report.killed.len()), (0, 1));
    assert_eq!((carts.stats().not_saved, not_saved(&mut events)), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_last_state_that_can_never_be_saved_is_not_waited_for() {
    let (system, store) = (system(), Faulty::new());
    let carts =
        carts(&system, &COUNTER, KeyedOptions { state: ByteSize::b(3), ..options(SaveWhen::OnIdle) }, &store).await;
    ask(&carts, "1", "add 1").await.unwrap();
    let mut events = system.events();
    let begun = tokio::time::Instant::now();
    let report = system.shutdown(Duration::from_secs(30)).await;
    assert!(begun.elapsed() < Duration::from_secs(30));
    assert_eq!((report.stopped, report.killed.len()), (1, 0));
    assert_eq!((carts.stats().not_saved, not_saved(&mut events)), (1, 1));
}
