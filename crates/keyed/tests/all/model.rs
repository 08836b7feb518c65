//! The life of keys by random steps, against a model: what was saved and what is in memory, for each kind of saving.

use std::{collections::HashMap, time::Duration};

use airssys_wasm_actor::{ActorRef, AskError, Lifecycle};
use airssys_wasm_keyed::{KeyedOptions, SaveWhen};
use proptest::{prelude::*, test_runner::Config};

use crate::support::{COUNTER, Faulty, ask, carts, settle, system, until};

#[derive(Debug, Clone)]
enum Step {
    Add(u8),
    Crash(u8),
    Kill(u8),
    Passivate(u8),
    Forget(u8),
    /// Whether the store is full from here on.
    Full(bool),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let key = 0..3_u8;
    let step = prop_oneof![
        6 => key.clone().prop_map(Step::Add),
        1 => key.clone().prop_map(Step::Crash),
        1 => key.clone().prop_map(Step::Kill),
        3 => key.clone().prop_map(Step::Passivate),
        1 => key.prop_map(Step::Forget),
        1 => any::<bool>().prop_map(Step::Full),
    ];
    prop::collection::vec(step, 1..40)
}

/// What a key must have.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
struct Key {
    saved: u64,
    now: u64,
    in_memory: bool,
    /// A write was refused, and none was made since: it is made again, so that it cannot come late.
    in_doubt: bool,
}

async fn run(save: SaveWhen, steps: &[Step]) {
    let (system, store) = (system(), Faulty::new());
    // Nobody leaves by itself. The clock is not paused: it would run ahead while a thread frees memory.
    let idle = Duration::from_secs(3_600);
    let carts = carts(&system, &COUNTER, KeyedOptions { save, idle, ..KeyedOptions::default() }, &store).await;
    let each = save == SaveWhen::EachMessage;
    let mut model = HashMap::<u8, Key>::new();
    let (mut full, mut crashes) = (false, 0);
    for step in steps {
        match *step {
            Step::Add(n) => {
                let key = model.entry(n).or_default();
                (key.now, key.in_memory) = (key.now + 1, true);
                let answer = ask(&carts, &n.to_string(), "add 1").await;
                if each && full {
                    assert!(matches!(answer, Err(AskError::NotSaved)), "{answer:?}");
                    key.in_doubt = true;
                } else {
                    assert_eq!(answer.unwrap(), key.now.to_string(), "{step:?}");
                    (key.saved, key.in_doubt) = if each { (key.now, false) } else { (key.saved, key.in_doubt) };
                }
            }
            Step::Crash(n) => {
                // No more often than restarts are allowed: the actor is made to leave first.
                let key = model.entry(n).or_default();
                let name = format!("cart/{n}");
                let before = system.find(name.as_str()).map_or(1, |actor| actor.info().incarnation);
                assert!(matches!(ask(&carts, &n.to_string(), "crash").await, Err(AskError::Crashed(_))));
                let is_back =
                    |actor: ActorRef| actor.state() == Lifecycle::Running && actor.info().incarnation > before;
                until(|| system.find(name.as_str()).is_none_or(is_back)).await;
                *key = Key { now: key.saved, in_memory: true, ..*key };
                crashes += 1;
                if system.find(name.as_str()).is_none() {
                    // Given up; nobody else knows how often it may.
                    return;
                }
            }
            Step::Kill(n) => {
                if let Some(actor) = system.find(format!("cart/{n}").as_str()) {
                    actor.kill();
                    actor.ended().await;
                    settle().await;
                    let key = model.entry(n).or_default();
                    *key = Key { now: key.saved, saved: key.saved, ..Key::default() };
                }
            }
            Step::Passivate(n) => {
                let left = carts.passivate(&n.to_string()).await.unwrap();
                let key = model.entry(n).or_default();
                let has_to_write = key.in_memory && (key.now != key.saved || key.in_doubt);
                assert_eq!(left, !(full && has_to_write), "{key:?}");
                *key = if left {
                    Key { saved: key.now, now: key.now, ..Key::default() }
                } else {
                    Key { in_doubt: true, ..*key }
                };
            }
            Step::Forget(n) => {
                let key = model.entry(n).or_default();
                let forgotten = carts.forget(&n.to_string()).await;
                assert!(forgotten.is_ok() || full, "{forgotten:?}");
                *key = if forgotten.is_ok() {
                    Key { in_memory: key.in_memory, ..Key::default() }
                } else {
                    Key { in_doubt: key.in_memory, ..*key }
                };
            }
            Step::Full(is_full) => {
                full = is_full;
                store.set_full(full);
            }
        }
        for (n, key) in &model {
            let row = store.count_of(&n.to_string()).await.unwrap_or_default();
            assert_eq!(row, key.saved, "the row of {n} after {step:?}");
            assert_eq!(system.find(format!("cart/{n}").as_str()).is_some(), key.in_memory, "{n} after {step:?}");
        }
    }
    let rows = model.values().filter(|key| key.saved > 0).count() as u64;
    assert_eq!((carts.stats().rows, system.dead_letters().total()), (rows, crashes));
    store.set_full(false);
    for (n, key) in &model {
        assert_eq!(ask(&carts, &n.to_string(), "get").await.unwrap(), key.now.to_string(), "{n}");
    }
}

proptest! {
    #![proptest_config(Config { cases: 64, failure_persistence: None, ..Config::default() })]

    #[test]
    fn a_key_has_what_was_saved_last_and_what_came_since(
        steps in steps(),
        save in prop_oneof![Just(SaveWhen::OnIdle), Just(SaveWhen::EachMessage)],
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(run(save, &steps));
    }
}
