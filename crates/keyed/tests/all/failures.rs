//! What does not start is left alone, and its row stays.

use std::{sync::atomic::Ordering, time::Duration};

use airssys_wasm_actor::{AskError, Backoff, DeadReason, During, Restart, RestartPolicy, StartError};
use airssys_wasm_keyed::{KeyedEvent, KeyedOptions};
use airssys_wasm_limits::{ByteSize, MemoryBudget};
use airssys_wasm_registry::Refusal;
use tokio::sync::Semaphore;

use crate::support::{ACTOR, COUNTER, Faulty, ask, carts, install, pass, settle, system, template, until};

#[tokio::test(start_paused = true)]
async fn a_key_whose_restore_fails_is_quarantined_and_its_row_stays() {
    for how in ["fail", "panic"] {
        let (system, store) = (system(), Faulty::new());
        store.put("1", b"5\n").await;
        let failing = template(&system, "cart", &ACTOR).with_config([("restore", how)]);
        let carts = install(&system, failing, KeyedOptions::default(), &store).await;
        let mut events = carts.events();
        let error = ask(&carts, "1", "count").await.unwrap_err();
        let AskError::NotActivated(error) = error else { panic!("{error:?}") };
        match (&*error, how) {
            (StartError::RestoreRefused { .. }, "fail") => {}
            (StartError::Crash(report), "panic") => assert_eq!(report.during, During::Restore),
            other => panic!("{other:?}"),
        }
        assert!(matches!(events.try_recv().unwrap(), KeyedEvent::NotActivated { .. }));
        let KeyedEvent::Quarantined { wait, .. } = events.try_recv().unwrap() else { panic!("not quarantined") };
        assert_eq!(wait, Duration::from_secs(60));
        until(|| system.find("cart/1").is_none()).await;

        assert_eq!(ask(&carts, "1", "count").await.unwrap_err().refusal(), Some(Refusal::Quarantined));
        assert_eq!(ask(&carts, "2", "count").await.unwrap(), "0");
        tokio::time::advance(Duration::from_secs(61)).await;
        // Tried again, and for longer left alone.
        assert!(matches!(ask(&carts, "1", "count").await.unwrap_err(), AskError::NotActivated(_)));
        assert_eq!(store.row("1").await.unwrap(), "5\n");
        // What is forgotten is let out.
        carts.forget("1").await.unwrap();
        assert_eq!(ask(&carts, "1", "count").await.unwrap(), "0");
    }
}

#[tokio::test(start_paused = true)]
async fn a_row_that_another_guest_has_written_is_nobodys_and_stays() {
    // Either takes the state of the other for rubbish.
    for (guest, row, well) in [(&COUNTER, &b"5\n"[..], &5_u64.to_le_bytes()[..]), (&ACTOR, b"12345678", b"5\n")] {
        let (system, store) = (system(), Faulty::new());
        let carts = carts(&system, guest, KeyedOptions::default(), &store).await;
        store.put("1", row).await;
        store.put("2", well).await;
        let ask_one = || async { carts.actor("1").unwrap().ask("count").await.unwrap_err() };
        let AskError::NotActivated(error) = ask_one().await else { panic!("it was activated") };
        assert!(matches!(*error, StartError::RestoreRefused { .. }), "{error:?}");
        assert_eq!(ask_one().await.refusal(), Some(Refusal::Quarantined));
        assert_eq!(store.row("1").await.unwrap(), row);
        // Control: one with a row of its own.
        carts.actor("2").unwrap().ask("count").await.unwrap();
        assert!(carts.passivate("2").await.unwrap());
        assert_ne!(store.row("2").await.unwrap(), well, "it counts this message");
    }
}

#[tokio::test]
async fn messages_for_one_that_does_not_start_are_dead_letters() {
    let (system, store) = (system(), Faulty::new());
    store.put("1", b"rubbish").await;
    let carts = carts(&system, &COUNTER, KeyedOptions::default(), &store).await;
    let cart = carts.actor("1").unwrap();
    cart.tell("add 1").await.unwrap();
    cart.tell("add 2").await.unwrap();
    until(|| carts.stats().live == 0).await;
    let letters = system.dead_letters().list();
    assert_eq!(letters.len(), 2);
    assert!(letters.iter().all(|letter| matches!(letter.reason, DeadReason::NotActivated { .. })), "{letters:?}");
    assert_eq!((carts.stats().live, carts.stats().not_activated), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn one_that_is_given_up_is_quarantined() {
    let (system, store) = (system(), Faulty::new());
    let carts = carts(&system, &COUNTER, KeyedOptions::default(), &store).await;
    for crash in 0..4 {
        assert!(matches!(ask(&carts, "1", "crash").await.unwrap_err(), AskError::Crashed(_)), "{crash}");
    }
    until(|| system.find("cart/1").is_none()).await;
    assert_eq!(ask(&carts, "1", "get").await.unwrap_err().refusal(), Some(Refusal::Quarantined));
    tokio::time::advance(Duration::from_secs(61)).await;
    assert_eq!(ask(&carts, "1", "get").await.unwrap(), "0");
}

#[tokio::test(start_paused = true)]
async fn a_kind_of_which_half_do_not_start_is_tripped_and_one_of_which_fewer_do_not_is_not() {
    for (fails, is_tripped) in [(12, true), (5, false)] {
        let (system, store) = (system(), Faulty::new());
        for key in 0..fails {
            store.put(&key.to_string(), b"rubbish").await;
        }
        let carts = carts(&system, &COUNTER, KeyedOptions::default(), &store).await;
        let mut events = carts.events();
        for key in (0..22).rev() {
            // Those that fail come last.
            _ = ask(&carts, &key.to_string(), "get").await;
        }
        let told = std::iter::from_fn(|| events.try_recv().ok()).filter_map(|event| match event {
            KeyedEvent::Tripped { wait } => Some(wait),
            _ => None,
        });
        assert_eq!(told.collect::<Vec<_>>(), [Duration::from_secs(10)][..usize::from(is_tripped)]);
        let next = ask(&carts, "next", "get").await;
        assert_eq!(next.is_err(), is_tripped, "{fails}");
        tokio::time::advance(Duration::from_secs(11)).await;
        assert_eq!(ask(&carts, "next", "get").await.unwrap(), "0");
    }
}

#[tokio::test]
async fn a_store_that_cannot_be_read_quarantines_nobody() {
    let (system, store) = (system(), Faulty::new());
    let carts = carts(&system, &COUNTER, KeyedOptions::default(), &store).await;
    ask(&carts, "1", "add 3").await.unwrap();
    carts.passivate("1").await.unwrap();
    store.blind.store(true, Ordering::SeqCst);
    let error = ask(&carts, "1", "get").await.unwrap_err();
    assert!(
        matches!(&error, AskError::NotActivated(error) if matches!(**error, StartError::NotLoaded(_))),
        "{error:?}"
    );
    until(|| carts.stats().live == 0).await;
    store.blind.store(false, Ordering::SeqCst);
    assert_eq!(ask(&carts, "1", "get").await.unwrap(), "3");
}

#[tokio::test]
async fn a_kind_has_no_more_keys_with_state_than_it_may() {
    let (system, store) = (system(), Faulty::new());
    let options = KeyedOptions { most_keys: 2, ..KeyedOptions::default() };
    let carts = carts(&system, &COUNTER, options, &store).await;
    for key in ["1", "2"] {
        ask(&carts, key, "add 1").await.unwrap();
        carts.passivate(key).await.unwrap();
    }
    assert!(matches!(ask(&carts, "3", "get").await.unwrap_err(), AskError::NotActivated(_)));
    assert_eq!(ask(&carts, "1", "get").await.unwrap(), "1");
    carts.forget("1").await.unwrap();
    settle().await;
    assert_eq!(ask(&carts, "3", "get").await.unwrap(), "0");
}

#[tokio::test(start_paused = true)]
async fn one_that_is_in_memory_is_restarted_though_there_are_too_many_keys_by_then() {
    let (system, store) = (system(), Faulty::new());
    let slow = template(&system, "cart", &COUNTER).with_restart(RestartPolicy::default());
    let carts = install(&system, slow, KeyedOptions { most_keys: 1, ..KeyedOptions::default() }, &store).await;
    assert_eq!(ask(&carts, "1", "get").await.unwrap(), "0");
    ask(&carts, "2", "add 1").await.unwrap();
    carts.passivate("2").await.unwrap();
    ask(&carts, "1", "crash").await.unwrap_err();
    let answer = tokio::time::timeout(Duration::from_secs(60), ask(&carts, "1", "get")).await;
    assert_eq!(answer.expect("it is restarted").unwrap(), "0");
    // Control: one that is not.
    assert!(matches!(ask(&carts, "3", "get").await.unwrap_err(), AskError::NotActivated(_)));
}

#[tokio::test(start_paused = true)]
async fn one_that_waits_for_its_restart_leaves_unless_there_is_a_message_for_it() {
    for (is_idle, has_message) in [(true, false), (false, false), (true, true)] {
        let (system, store) = (system(), Faulty::new());
        let long = Duration::from_secs(3_600);
        let backoff = Backoff { first: long, longest: long, ..Backoff::default() };
        let slow = template(&system, "cart", &COUNTER).with_restart(backoff);
        let idle = if is_idle { Duration::from_secs(4) } else { long };
        let carts = install(&system, slow, KeyedOptions { live: 10, idle, ..KeyedOptions::default() }, &store).await;
        ask(&carts, "crashed", "crash").await.unwrap_err();
        if has_message {
            carts.actor("crashed").unwrap().tell("add 1").await.unwrap();
        }
        pass(Duration::from_secs(2)).await;
        if !is_idle {
            // They are too many.
            for key in 1..9 {
                ask(&carts, &key.to_string(), "get").await.unwrap();
            }
        }
        pass(Duration::from_secs(8)).await;
        assert_eq!(system.find("cart/crashed").is_some(), has_message, "{is_idle}");
        assert!(has_message || ask(&carts, "crashed", "get").await.unwrap() == "0");
    }
}

#[tokio::test(start_paused = true)]
async fn a_kind_whose_actors_are_killed_while_they_start_is_not_tripped() {
    let (system, store) = (system(), Faulty::new());
    let carts = carts(&system, &COUNTER, KeyedOptions::default(), &store).await;
    let keys: Vec<_> = (0..25).map(|key| key.to_string()).collect();
    for key in &keys {
        store.put(key, &5_u64.to_le_bytes()).await;
    }
    store.loads.forget_permits(usize::MAX);
    for key in &keys {
        carts.actor(key).unwrap().tell("add 1").await.unwrap();
    }
    settle().await;
    carts.kill_all().await;
    assert_eq!((carts.stats().not_activated, carts.stats().live), (25, 0));
    store.loads.add_permits(Semaphore::MAX_PERMITS);
    for key in &keys {
        assert_eq!(ask(&carts, key, "get").await.unwrap(), "5", "{key}");
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_is_never_restarted_is_quarantined_for_its_own_fault_alone() {
    for crashes in [true, false] {
        let (system, store) = (system(), Faulty::new());
        let never = template(&system, "cart", &COUNTER).with_restart(Restart::Temporary);
        let carts = install(&system, never, KeyedOptions::default(), &store).await;
        ask(&carts, "1", "add 1").await.unwrap();
        if crashes {
            ask(&carts, "1", "crash").await.unwrap_err();
        } else {
            // It is to begin with what another has written, and cannot read it.
            store.put("1", &7_u64.to_le_bytes()).await;
            store.blind.store(true, Ordering::SeqCst);
            carts.passivate("1").await.unwrap();
        }
        until(|| carts.stats().live == 0).await;
        store.blind.store(false, Ordering::SeqCst);
        let answer = ask(&carts, "1", "get").await;
        if crashes {
            assert_eq!(answer.unwrap_err().refusal(), Some(Refusal::Quarantined));
        } else {
            assert_eq!(answer.unwrap(), "7");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_actor_that_waits_for_its_restart_forgets_nothing_of_its_mailbox() {
    let (system, store) = (system(), Faulty::new());
    let slow = template(&system, "cart", &COUNTER).with_restart(RestartPolicy::default());
    let carts = install(&system, slow, KeyedOptions::default(), &store).await;
    ask(&carts, "1", "crash").await.unwrap_err();
    let cart = carts.actor("1").unwrap();
    cart.tell("add 4").await.unwrap();
    pass(Duration::from_secs(120)).await;
    assert_eq!(ask(&carts, "1", "get").await.unwrap(), "4");
}

#[tokio::test(start_paused = true)]
async fn keys_that_a_sender_makes_up_do_not_trip_the_kind() {
    let (system, store) = (system(), Faulty::new());
    store.put("good", b"5\n").await;
    let failing = template(&system, "cart", &ACTOR).with_config([("snapshot", "panic")]);
    let carts = install(&system, failing, KeyedOptions::default(), &store).await;
    for key in 0..25 {
        // Fresh ones are asked for a snapshot.
        assert!(
            matches!(ask(&carts, &key.to_string(), "count").await.unwrap_err(), AskError::NotActivated(_)),
            "{key}"
        );
    }
    assert_eq!(ask(&carts, "0", "count").await.unwrap_err().refusal(), Some(Refusal::Quarantined));
    assert_eq!(ask(&carts, "good", "count").await.unwrap(), "5");
}

#[tokio::test(start_paused = true)]
async fn keys_that_never_find_enough_memory_do_not_drive_out_all_others() {
    for is_one_key in [true, false] {
        let (system, store) = (system(), Faulty::new());
        let budget = MemoryBudget::new(ByteSize::gib(1));
        let sandbox = crate::support::sandbox(&system, &ACTOR).with_budget(budget.clone());
        let residency = Duration::from_secs(5);
        let options = KeyedOptions { residency, idle: Duration::from_secs(600), ..KeyedOptions::default() };
        let carts = install(&system, template(&system, "cart", &ACTOR).with_sandbox(sandbox), options, &store).await;
        for key in 0..10 {
            ask(&carts, &key.to_string(), "count").await.unwrap();
        }
        pass(Duration::from_secs(6)).await;
        // Whatever is left, and whatever others leave.
        let (mut all, mut held) = (budget.grant(), 0);
        let each = budget.used() / 10;
        let mut quarantined = 0;
        for n in 0..20 {
            if n > 0 {
                // A fifth has left for the first, and what they had is given back by a thread.
                until(|| carts.stats().live == 8 && budget.used() == held + 8 * each).await;
            }
            let left = budget.total() - budget.used();
            all.grow(left).unwrap();
            held += left;
            let key = if is_one_key { "large".to_owned() } else { format!("large{n}") };
            let error = ask(&carts, &key, "count").await.unwrap_err();
            quarantined += usize::from(error.refusal() == Some(Refusal::Quarantined));
            pass(Duration::from_millis(20)).await;
        }
        until(|| carts.stats().live == 8).await;
        assert_eq!(quarantined, if is_one_key { 18 } else { 0 });
        // When that is over, there is room for those that did not find it.
        drop(all);
        assert_eq!(ask(&carts, "small", "count").await.unwrap(), "0");
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_begins_anew_when_it_is_to_leave_leaves_nevertheless() {
    let (system, store) = (system(), Faulty::new());
    let idle = Duration::from_secs(3_600);
    let carts = carts(&system, &COUNTER, KeyedOptions { idle, ..KeyedOptions::default() }, &store).await;
    ask(&carts, "1", "add 1").await.unwrap();
    // Of another process.
    store.put("1", &7_u64.to_le_bytes()).await;
    let left = tokio::time::timeout(Duration::from_secs(60), carts.passivate("1")).await;
    assert!(left.expect("it is told").unwrap());
    assert_eq!((carts.stats().live, store.count_of("1").await), (0, Some(7)));
}
