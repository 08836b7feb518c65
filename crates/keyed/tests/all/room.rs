//! How many are in memory, and who makes room for whom.

use std::time::Duration;

use airssys_wasm_actor::AskError;
use airssys_wasm_keyed::KeyedOptions;
use airssys_wasm_limits::{ByteSize, MemoryBudget};
use airssys_wasm_registry::Refusal;

use crate::support::{COUNTER, Faulty, ask, carts, install, load, pass, settle, system, system_of, template, until};

#[tokio::test(start_paused = true)]
async fn those_longest_without_a_message_make_room() {
    let (system, store) = (system(), Faulty::new());
    let options = KeyedOptions { live: 10, idle: Duration::from_secs(600), ..KeyedOptions::default() };
    let carts = carts(&system, &COUNTER, options, &store).await;
    for key in 0..8 {
        ask(&carts, &key.to_string(), "add 1").await.unwrap();
        pass(Duration::from_secs(1)).await;
    }
    // Used again.
    ask(&carts, "0", "add 1").await.unwrap();
    pass(Duration::from_secs(2)).await;
    assert_eq!(carts.stats().live, 8, "below nine tenths nobody leaves");
    ask(&carts, "8", "add 1").await.unwrap();
    until(|| carts.stats().live == 8).await;
    let gone: Vec<_> = (0..9).filter(|key| system.find(format!("cart/{key}").as_str()).is_none()).collect();
    assert_eq!(gone, [1]);
    assert_eq!(ask(&carts, "1", "get").await.unwrap(), "1");
}

#[tokio::test(start_paused = true)]
async fn the_busy_stay_for_longer_and_not_for_ever() {
    for (messages, leaves) in [(1, 8..=8), (5, 30..=60), (1_000, 100..=200)] {
        let (system, store) = (system(), Faulty::new());
        let options = KeyedOptions { live: 10, idle: Duration::from_secs(600), ..KeyedOptions::default() };
        let carts = carts(&system, &COUNTER, options, &store).await;
        for _ in 0..messages {
            ask(&carts, "0", "add 1").await.unwrap();
        }
        let mut others = 0;
        while system.find("cart/0").is_some() {
            assert!(others < 1_000, "it stays for ever");
            others += 1;
            pass(Duration::from_secs(1)).await;
            ask(&carts, &others.to_string(), "add 1").await.unwrap();
            pass(Duration::from_secs(1)).await;
            until(|| carts.stats().live <= 8).await;
        }
        assert!(leaves.contains(&others), "with {messages} messages it left after {others} others");
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_leaves_before_the_least_residency_and_who_finds_no_room_is_refused() {
    let (system, store) = (system(), Faulty::new());
    let residency = Duration::from_secs(10);
    let options = KeyedOptions { live: 4, residency, ..KeyedOptions::default() };
    let carts = carts(&system, &COUNTER, options, &store).await;
    for key in 0..4 {
        ask(&carts, &key.to_string(), "add 1").await.unwrap();
    }
    settle().await;
    assert_eq!(ask(&carts, "5", "get").await.unwrap_err().refusal(), Some(Refusal::Full));
    // Those in memory are served.
    assert_eq!(ask(&carts, "0", "get").await.unwrap(), "1");
    pass(residency + Duration::from_secs(1)).await;
    until(|| carts.stats().live < 4).await;
    assert_eq!(ask(&carts, "5", "get").await.unwrap(), "0");
    assert!(carts.stats().passivations > 0);
}

#[tokio::test(start_paused = true)]
async fn many_more_names_than_may_be_in_memory_cost_their_rows_alone() {
    let (system, store) = (system(), Faulty::new());
    let options = KeyedOptions { live: 20, residency: Duration::ZERO, ..KeyedOptions::default() };
    let carts = carts(&system, &COUNTER, options, &store).await;
    let keys = 500;
    for round in 1..=2 {
        for key in 0..keys {
            loop {
                match ask(&carts, &key.to_string(), "add 1").await {
                    Ok(count) => break assert_eq!(count, round.to_string(), "{key}"),
                    Err(error) => assert_eq!(error.refusal(), Some(Refusal::Full), "{error}"),
                }
                // Until the sweep has made room.
                pass(Duration::from_millis(10)).await;
            }
            assert!(carts.stats().live <= 20);
        }
    }
    assert!(system.actors().len() <= 20);
    system.shutdown(Duration::from_secs(10)).await;
    assert_eq!(carts.stats().rows, keys);
}

#[tokio::test(start_paused = true)]
async fn memory_that_is_nearly_used_up_makes_them_leave_too() {
    for (pages, leave) in [(12, true), (1_000, false)] {
        let (system, store) = (system(), Faulty::new());
        // What one of them takes.
        let probe = MemoryBudget::new(ByteSize::mib(64));
        let sandbox = crate::support::sandbox(&system, &COUNTER).with_budget(probe.clone());
        let actor = system.spawn(template(&system, "probe", &COUNTER).with_sandbox(sandbox.clone())).await.unwrap();
        let one = probe.used();
        actor.kill();
        actor.ended().await;
        assert!(one > 0);

        let budget = MemoryBudget::new(ByteSize::b(one * pages));
        let limited = template(&system, "cart", &COUNTER).with_sandbox(sandbox.with_budget(budget.clone()));
        let options = KeyedOptions { memory: Some(budget), idle: Duration::from_secs(600), ..KeyedOptions::default() };
        let carts = install(&system, limited, options, &store).await;
        for key in 0..11 {
            ask(&carts, &key.to_string(), "add 1").await.unwrap();
        }
        pass(Duration::from_secs(3)).await;
        until(|| carts.stats().live < 11 || !leave).await;
        let stats = carts.stats();
        assert_eq!(stats.live < 11, leave, "{stats:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_pool_without_an_instance_makes_them_leave_and_quarantines_nobody() {
    let (system, store) = (system_of(4), Faulty::new());
    let options = KeyedOptions { idle: Duration::from_secs(600), ..KeyedOptions::default() };
    let carts = carts(&system, &load(&system), options, &store).await;
    for key in 0..4 {
        ask(&carts, &key.to_string(), "add 1").await.unwrap();
    }
    pass(Duration::from_secs(5)).await;
    assert_eq!(carts.stats().live, 4);
    assert!(matches!(ask(&carts, "4", "get").await.unwrap_err(), AskError::NotActivated(_)));
    until(|| carts.stats().live == 3).await;
    assert_eq!(ask(&carts, "4", "add 1").await.unwrap(), "1");
}

#[tokio::test(start_paused = true)]
async fn who_finds_no_room_uses_up_its_tokens_and_does_not_have_all_looked_at_each_time() {
    let (system, store) = (system(), Faulty::new());
    let slow = |burst| airssys_wasm_keyed::Rate { per_second: 0.001, burst };
    let admission = airssys_wasm_keyed::Admission { kind: slow(10_000), caller: slow(500) };
    let residency = Duration::from_secs(600);
    let options = KeyedOptions { live: 4, residency, admission, ..KeyedOptions::default() };
    let carts = carts(&system, &COUNTER, options, &store).await;
    for key in 0..4 {
        ask(&carts, &key.to_string(), "add 1").await.unwrap();
    }
    let waker = system.spawn(template(&system, "waker", &crate::support::ACTOR)).await.unwrap();
    settle().await;
    let before = carts.stats();
    for key in 4..1_004 {
        waker.ask(format!("send cart/{key} add 1")).await.unwrap_err();
    }
    settle().await;
    let after = carts.stats();
    assert_eq!(after.refused - before.refused, 1_000);
    // All of it at one time.
    assert!(after.sweeps - before.sweeps <= 2, "{} sweeps", after.sweeps - before.sweeps);
    // It is woken all the same.
    pass(Duration::from_millis(100)).await;
    assert!(carts.stats().sweeps > before.sweeps);
    // There is room again, and it has no tokens left.
    for key in 0..4 {
        assert!(carts.passivate(&key.to_string()).await.unwrap());
    }
    waker.ask("send cart/1 add 1").await.unwrap_err();
    assert_eq!(ask(&carts, "1", "get").await.unwrap(), "1");
}
