//! In memory while it is needed, and its state kept meanwhile.

use std::{sync::Arc, time::Duration};

use airssys_wasm_actor::{AskError, DeadReason, Stop, SystemEvent};
use airssys_wasm_engine::Profile;
use airssys_wasm_fixtures as fixtures;
use airssys_wasm_keyed::{InstallError, KeyError, Keyed, KeyedOptions, KeyedSpec, Keys, SaveWhen};
use airssys_wasm_registry::MessageEnvelope;

use crate::support::{ACTOR, COUNTER, ECHO, Faulty, LATER, ask, carts, install, pass, settle, system, template, until};

#[tokio::test]
async fn state_is_there_again_after_the_actor_has_left_the_memory() {
    let (system, store) = (system(), Faulty::new());
    let carts = carts(&system, &COUNTER, KeyedOptions::default(), &store).await;
    assert!(system.find("cart/1").is_none());
    assert_eq!(ask(&carts, "1", "add 2").await.unwrap(), "2");
    assert_eq!(ask(&carts, "2", "add 5").await.unwrap(), "5");
    let before = system.find("cart/1").unwrap();
    assert!(carts.passivate("1").await.unwrap());
    assert!(system.find("cart/1").is_none() && system.find("cart/2").is_some());
    before.ended().await;
    assert_eq!((store.count_of("1").await, store.count_of("2").await), (Some(2), None));

    assert_eq!(ask(&carts, "1", "add 40").await.unwrap(), "42");
    // Who holds the registration that is gone is told to send to the name.
    let refused = before.tell("get").await.unwrap_err();
    assert_eq!(refused.reason, airssys_wasm_registry::Refusal::Moved);
    let stats = carts.stats();
    assert_eq!((stats.activations, stats.passivations, stats.live), (3, 1, 2));
}

#[tokio::test]
async fn a_key_that_never_had_state_costs_no_row() {
    let (system, store) = (system(), Faulty::new());
    let carts = carts(&system, &COUNTER, KeyedOptions::default(), &store).await;
    for key in ["1", "2"] {
        ask(&carts, key, if key == "1" { "get" } else { "add 1" }).await.unwrap();
        assert!(carts.passivate(key).await.unwrap());
    }
    assert_eq!((store.row("1").await, store.count_of("2").await), (None, Some(1)));
    assert_eq!(carts.stats().rows, 1);
}

#[tokio::test]
async fn a_snapshot_that_is_as_the_row_is_not_written_again() {
    let (system, store) = (system(), Faulty::new());
    let carts = carts(&system, &COUNTER, KeyedOptions::default(), &store).await;
    for (text, writes) in [("add 1", 1), ("get", 1), ("add 1", 2), ("get", 2)] {
        ask(&carts, "1", text).await.unwrap();
        carts.passivate("1").await.unwrap();
        assert_eq!(store.written(), writes, "{text}");
    }
    assert_eq!((carts.stats().saves, carts.stats().unchanged), (2, 2));
}

#[tokio::test]
async fn a_guest_sees_nothing_of_it_but_init() {
    let (system, store) = (system(), Faulty::new());
    let carts = carts(&system, &ACTOR, KeyedOptions::default(), &store).await;
    assert_eq!(ask(&carts, "1", "self").await.unwrap(), "cart/1");
    carts.passivate("1").await.unwrap();
    assert_eq!(ask(&carts, "1", "events").await.unwrap(), "init,restore");
    assert_eq!(ask(&carts, "1", "count").await.unwrap(), "2");
}

#[tokio::test(start_paused = true)]
async fn an_actor_without_messages_leaves_the_memory() {
    let (system, store) = (system(), Faulty::new());
    let idle = Duration::from_secs(4);
    let carts = carts(&system, &COUNTER, KeyedOptions { idle, ..KeyedOptions::default() }, &store).await;
    let mut events = system.events();
    for _ in 0..3 {
        ask(&carts, "busy", "add 1").await.unwrap();
        pass(Duration::from_secs(3)).await;
    }
    ask(&carts, "idle", "add 1").await.unwrap();
    ask(&carts, "busy", "add 1").await.unwrap();
    assert_eq!(carts.stats().live, 2);
    pass(Duration::from_secs(2)).await;
    ask(&carts, "busy", "add 1").await.unwrap();
    pass(Duration::from_secs(3)).await;
    until(|| system.find("cart/idle").is_none()).await;
    assert!(system.find("cart/busy").is_some());
    let passivated = std::iter::from_fn(|| events.try_recv().ok())
        .filter_map(|event| match event {
            SystemEvent::Passivated { actor } => Some(actor.id().to_string()),
            _ => None,
        })
        .collect::<Vec<_>>();
    assert_eq!(passivated, ["cart/idle"]);
    assert_eq!(ask(&carts, "idle", "get").await.unwrap(), "1");
}

#[tokio::test]
async fn a_guest_without_snapshot_can_be_keyed_and_keeps_nothing() {
    let (system, store) = (system(), Faulty::new());
    let each = KeyedOptions { save: SaveWhen::EachMessage, ..KeyedOptions::default() };
    let carts = carts(&system, &ECHO, each, &store).await;
    assert_eq!(ask(&carts, "1", "hello").await.unwrap(), "hello");
    assert!(carts.passivate("1").await.unwrap());
    assert_eq!(ask(&carts, "1", "again").await.unwrap(), "again");
    assert_eq!((store.row("1").await, store.written(), carts.stats().oldest_unsaved), (None, 0, Duration::ZERO));
}

#[tokio::test]
async fn what_is_asked_to_leave_handles_first_what_waits() {
    let (system, store) = (system(), Faulty::new());
    let carts = carts(&system, &COUNTER, KeyedOptions::default(), &store).await;
    let cart = carts.actor("1").unwrap();
    for _ in 0..10 {
        cart.tell("add 1").await.unwrap();
    }
    assert!(carts.passivate("1").await.unwrap());
    assert_eq!(store.count_of("1").await, Some(10));
}

#[tokio::test]
async fn what_was_forgotten_begins_anew() {
    let (system, store) = (system(), Faulty::new());
    let carts = carts(&system, &COUNTER, KeyedOptions::default(), &store).await;
    for key in ["in memory", "asleep", "control"].map(|key| key.replace(' ', "-")) {
        ask(&carts, &key, "add 3").await.unwrap();
        carts.passivate(&key).await.unwrap();
    }
    ask(&carts, "in-memory", "add 1").await.unwrap();
    carts.forget("in-memory").await.unwrap();
    carts.forget("asleep").await.unwrap();
    carts.forget("never-there").await.unwrap();
    assert_eq!(
        (carts.stats().rows, store.count_of("in-memory").await, store.count_of("asleep").await),
        (1, None, None)
    );
    for (key, count) in [("in-memory", "0"), ("asleep", "0"), ("control", "3")] {
        assert_eq!(ask(&carts, key, "get").await.unwrap(), count, "{key}");
    }
    // And it can have state again.
    assert_eq!(ask(&carts, "in-memory", "add 2").await.unwrap(), "2");
    carts.passivate("in-memory").await.unwrap();
    assert_eq!(store.count_of("in-memory").await, Some(2));
}

#[tokio::test]
async fn a_system_that_is_shut_down_saves_what_is_in_memory() {
    let (system, store) = (system(), Faulty::new());
    let never = KeyedOptions { save: SaveWhen::OnIdle, ..KeyedOptions::default() };
    let carts = carts(&system, &COUNTER, never, &store).await;
    for key in ["1", "2"] {
        ask(&carts, key, "add 7").await.unwrap();
    }
    let report = system.shutdown(Duration::from_secs(10)).await;
    assert_eq!(report.stopped, 2);
    assert_eq!((store.count_of("1").await, store.count_of("2").await), (Some(7), Some(7)));
    let refused = ask(&carts, "3", "get").await.unwrap_err();
    assert_eq!(refused.refusal(), Some(airssys_wasm_registry::Refusal::Stopped));
}

#[tokio::test]
async fn two_kinds_and_two_systems_have_nothing_in_common_but_the_store() {
    let store = Faulty::new();
    {
        let system = system();
        let carts = carts(&system, &COUNTER, KeyedOptions::default(), &store).await;
        let rooms = install(&system, template(&system, "room", &COUNTER), KeyedOptions::default(), &store).await;
        ask(&carts, "1", "add 1").await.unwrap();
        ask(&rooms, "1", "add 10").await.unwrap();
        system.shutdown(Duration::from_secs(10)).await;
    }
    let system = system();
    let carts = carts(&system, &COUNTER, KeyedOptions::default(), &store).await;
    let rooms = install(&system, template(&system, "room", &COUNTER), KeyedOptions::default(), &store).await;
    assert_eq!(carts.stats().rows, 1);
    assert_eq!(ask(&carts, "1", "get").await.unwrap(), "1");
    assert_eq!(ask(&rooms, "1", "get").await.unwrap(), "10");
}

#[tokio::test]
async fn only_keys_that_can_be_are_addressed() {
    let (system, store) = (system(), Faulty::new());
    let keys = Keys::Known(Arc::new(|key| key.starts_with('4')));
    let carts = carts(&system, &COUNTER, KeyedOptions { keys, ..KeyedOptions::default() }, &store).await;
    assert_eq!(ask(&carts, "4711", "add 1").await.unwrap(), "1");
    assert!(matches!(carts.actor("5").unwrap_err(), KeyError::Unknown { .. }));
    assert!(matches!(carts.actor("").unwrap_err(), KeyError::Unknown { .. }));
    assert!(matches!(carts.actor("a b").unwrap_err(), KeyError::Invalid(_)));
    for unknown in ["cart/5", "cart", "cart/", "carts/4", "ca"] {
        let error = system.send(&unknown.parse().unwrap(), MessageEnvelope::new("x")).unwrap_err();
        assert!(!matches!(error, airssys_wasm_registry::SendError::Refused { .. }), "{unknown}: {error}");
    }
    system.send(&"cart/4712".parse().unwrap(), MessageEnvelope::new("add 2")).unwrap();
    assert_eq!(ask(&carts, "4712", "get").await.unwrap(), "2");
}

#[tokio::test]
async fn a_kind_that_makes_no_sense_is_not_installed() {
    let (system, store) = (system(), Faulty::new());
    let spec = |name: &str| KeyedSpec::new(template(&system, name, &COUNTER));
    let install = |spec| Keyed::install(&system, spec, store.clone());
    assert!(matches!(install(spec("cart/x")).await.unwrap_err(), InstallError::Kind { .. }));
    let zero = KeyedOptions { live: 0, ..KeyedOptions::default() };
    let error = install(spec("cart").with_options(zero)).await.unwrap_err();
    assert!(matches!(error, InstallError::Zero { option: "live" }));
    for (per_second, burst) in [(f64::NAN, 1), (f64::INFINITY, 1), (-1.0, 1), (0.0, 1), (1.0, 0)] {
        let mut odd = KeyedOptions::default();
        odd.admission.caller = airssys_wasm_keyed::Rate { per_second, burst };
        let error = install(spec("cart").with_options(odd)).await.unwrap_err();
        assert!(matches!(error, InstallError::Rate { option: "caller" }), "{error}");
    }
    let each = KeyedOptions { save: SaveWhen::EachMessage, ..KeyedOptions::default() };
    let several = template(&system, "cart", &crate::support::ASYNC_ACTOR).with_concurrency(2.try_into().unwrap());
    let error = install(KeyedSpec::new(several).with_options(each)).await.unwrap_err();
    assert!(matches!(error, InstallError::Concurrency));
    install(spec("cart")).await.unwrap();
    assert!(matches!(install(spec("cart")).await.unwrap_err(), InstallError::NameTaken(_)));
}

#[tokio::test]
async fn a_component_that_exports_half_of_the_state_is_not_installed() {
    let (system, store) = (system(), Faulty::new());
    for half in ["snapshot", "restore"] {
        let export = format!("(export \"{half}\" (func ${half}))");
        assert!(fixtures::SMALLEST_KEEPING_ACTOR.contains(&export));
        let wat = fixtures::SMALLEST_KEEPING_ACTOR.replace(&export, "");
        let guest = system.engine().load_wat_blocking(&wat, Profile::Plain).unwrap();
        let spec = KeyedSpec::new(template(&system, "cart", &guest));
        let error = Keyed::install(&system, spec, store.clone()).await.unwrap_err();
        assert!(matches!(error, InstallError::HalfOfState), "{error}");
    }
}

#[tokio::test]
async fn a_kind_may_have_no_bound() {
    let (system, store) = (system(), Faulty::new());
    let carts = carts(&system, &COUNTER, KeyedOptions { live: usize::MAX, ..KeyedOptions::default() }, &store).await;
    assert_eq!(ask(&carts, "1", "add 1").await.unwrap(), "1");
    settle().await;
    assert_eq!(carts.stats().live, 1);
}

#[tokio::test]
async fn a_killed_actor_is_a_crash_and_comes_back_with_what_was_saved() {
    let (system, store) = (system(), Faulty::new());
    let carts = carts(&system, &COUNTER, KeyedOptions::default(), &store).await;
    ask(&carts, "1", "add 1").await.unwrap();
    carts.passivate("1").await.unwrap();
    ask(&carts, "1", "add 1").await.unwrap();
    let actor = system.find("cart/1").unwrap();
    actor.kill();
    actor.ended().await;
    settle().await;
    assert_eq!(ask(&carts, "1", "get").await.unwrap(), "1");
    let crashed = ask(&carts, "1", "crash").await.unwrap_err();
    assert!(matches!(crashed, AskError::Crashed(_)));
    assert_eq!(ask(&carts, "1", "get").await.unwrap(), "1");
}

/// Has the cart send a message later.
async fn send_after(carts: &Keyed, key: &str, to: &str, after: Duration, payload: &str) {
    let after = u64::try_from(after.as_millis()).unwrap().to_le_bytes();
    let command = [&[1, to.len() as u8], to.as_bytes(), &after, payload.as_bytes()].concat();
    let answer = carts.actor(key).unwrap().ask(command).await.unwrap();
    assert_eq!(answer[0], 0);
}

#[tokio::test(start_paused = true)]
async fn an_actor_with_a_message_to_send_later_stays_until_it_is_sent() {
    let (system, store) = (system(), Faulty::new());
    let idle = Duration::from_secs(4);
    let carts = carts(&system, &LATER, KeyedOptions { idle, ..KeyedOptions::default() }, &store).await;
    let counters = install(&system, template(&system, "room", &COUNTER), KeyedOptions::default(), &store).await;
    send_after(&carts, "1", "room/1", Duration::from_secs(20), "add 1").await;
    pass(Duration::from_secs(19)).await;
    assert_eq!((carts.stats().live, counters.stats().live), (1, 0));
    pass(Duration::from_secs(2)).await;
    until(|| carts.stats().live == 0).await;
    assert_eq!(system.dead_letters().total(), 0);
    assert_eq!(ask(&counters, "1", "get").await.unwrap(), "1");
}

#[tokio::test(start_paused = true)]
async fn what_one_that_has_to_leave_would_have_sent_later_are_dead_letters() {
    for is_asked_to in [true, false] {
        let (system, store) = (system(), Faulty::new());
        let residency = Duration::from_secs(1);
        let options = KeyedOptions { live: 10, residency, idle: Duration::from_secs(600), ..KeyedOptions::default() };
        let carts = carts(&system, &LATER, options, &store).await;
        for (after, payload) in [(60, "b"), (50, "a")] {
            send_after(&carts, "1", "cart/x", Duration::from_secs(after), payload).await;
        }
        pass(Duration::from_secs(2)).await;
        if is_asked_to {
            assert!(carts.passivate("1").await.unwrap());
        } else {
            for key in 2..10 {
                send_after(&carts, &key.to_string(), "cart/x", Duration::from_secs(50), "c").await;
            }
            pass(Duration::from_millis(20)).await;
        }
        until(|| system.dead_letters().total() == 2).await;
        assert!(system.find("cart/1").is_none());
        let letters = system.dead_letters().list();
        assert!(letters.iter().all(|letter| matches!(letter.reason, DeadReason::NotSent { .. })), "{letters:?}");
        let texts: Vec<_> = letters.iter().map(|letter| letter.message.payload().clone()).collect();
        assert_eq!(texts, ["a", "b"]);
    }
}

#[tokio::test]
async fn a_handle_keeps_nothing_of_the_actor_that_it_found_and_finds_the_next() {
    let (system, store) = (system(), Faulty::new());
    let each = KeyedOptions { save: SaveWhen::EachMessage, ..KeyedOptions::default() };
    let carts = carts(&system, &COUNTER, each, &store).await;
    let cart = carts.actor("1").unwrap();
    let clone = cart.clone();
    assert_eq!(cart.ask("add 1").await.unwrap(), "1");
    let first = system.find("cart/1").unwrap().downgrade();
    assert!(first.upgrade().is_some_and(|first| first == cart.awaken().unwrap()));
    assert!(carts.passivate("1").await.unwrap());
    until(|| first.upgrade().is_none()).await;
    assert_eq!(cart.ask("add 1").await.unwrap(), "2");

    // Also while somebody else holds the one that has left, was killed or was stopped.
    for how in ["left", "killed", "stopped"] {
        let before = system.find("cart/1").unwrap();
        assert_eq!(before, cart.awaken().unwrap());
        match how {
            "left" => assert!(carts.passivate("1").await.unwrap()),
            "killed" => before.kill(),
            _ => before.stop(Stop::Now),
        }
        before.ended().await;
        cart.tell("add 1").await.unwrap();
        clone.try_tell("add 1").unwrap();
        let after = system.find("cart/1").unwrap();
        assert!(after != before && after == cart.awaken().unwrap() && after == clone.awaken().unwrap(), "{how}");
        // What was sent is handled before the next one ends.
        clone.ask("add 0").await.unwrap();
    }
    assert_eq!(cart.ask("get").await.unwrap(), "8");
    assert_eq!(carts.stats().activations, 5);
    system.shutdown(Duration::from_secs(10)).await;
    assert_eq!(cart.ask("get").await.unwrap_err().refusal(), Some(airssys_wasm_registry::Refusal::Stopped));
}
