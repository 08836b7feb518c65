//! A message to a name that is not in memory brings the actor there, once, and none is lost on the way.

use std::{ops::Range, sync::Arc, time::Duration};

use airssys_wasm_actor::{Capabilities, NamePattern, NativeActor, NativeContext, NativeSpec};
use airssys_wasm_engine::Profile;
use airssys_wasm_fixtures as fixtures;
use airssys_wasm_keyed::{Admission, Keyed, KeyedOptions, Rate, SaveWhen};
use airssys_wasm_registry::{MessageEnvelope, Topic};
use bytes::Bytes;
use tokio::task::JoinHandle;

use crate::support::{ACTOR, COUNTER, Faulty, ask, carts, id, install, system, system_of, template, until};

#[tokio::test]
async fn a_guest_wakes_whom_it_may_send_to_and_nobody_else() {
    let (system, store) = (system(), Faulty::new());
    let carts = carts(&system, &COUNTER, KeyedOptions::default(), &store).await;
    let mut capabilities = Capabilities::default();
    capabilities.send = vec!["cart/*".parse::<NamePattern>().unwrap()];
    capabilities.request = capabilities.send.clone();
    let shop = template(&system, "shop", &ACTOR).with_capabilities(capabilities);
    let shop = system.spawn(shop).await.unwrap();
    let told = async |text: &str| String::from_utf8(shop.ask(text.to_owned()).await.unwrap().to_vec()).unwrap();
    let failed = async |text: &str| shop.ask(text.to_owned()).await.unwrap_err().to_string();

    assert_eq!(told("send cart/4711 add 2").await, "done");
    assert_eq!(told("request cart/4711 1000 add 40").await, "42");
    carts.passivate("4711").await.unwrap();
    assert_eq!(told("request cart/4711 1000 get").await, "42");
    assert_eq!(told("request cart/4712 1000 get").await, "0");

    let live = carts.stats().live;
    assert!(failed("send room/1 x").await.contains("Denied"));
    assert!(failed("send cart/ x").await.contains("Unknown"));
    assert_eq!(carts.stats().live, live);
}

#[tokio::test]
async fn native_actors_and_dead_letters_wake_as_well() {
    struct Waker;

    impl NativeActor for Waker {
        async fn handle(&mut self, message: &MessageEnvelope, here: &NativeContext) -> Result<Option<Bytes>, String> {
            here.send(&id("cart/1"), message.payload().clone()).map_err(|error| error.to_string())?;
            Ok(Some(Bytes::new()))
        }
    }

    let (system, store) = (system(), Faulty::new());
    let carts = carts(&system, &COUNTER, KeyedOptions::default(), &store).await;
    let waker = system.spawn_native(NativeSpec::new(id("waker"), || Waker)).await.unwrap();
    waker.ask("add 3").await.unwrap();
    assert_eq!(ask(&carts, "1", "get").await.unwrap(), "3");

    store.put("2", b"rubbish").await;
    carts.actor("2").unwrap().tell("add 5").await.unwrap();
    until(|| !system.dead_letters().is_empty() && system.find("cart/2").is_none()).await;
    let letter = system.dead_letters().list().remove(0);
    carts.forget("2").await.unwrap();
    system.resend(letter.number).unwrap();
    assert_eq!(ask(&carts, "2", "get").await.unwrap(), "5");
}

#[tokio::test]
async fn a_thread_outside_the_runtime_wakes_too() {
    let (system, store) = (system(), Faulty::new());
    let carts = carts(&system, &COUNTER, KeyedOptions::default(), &store).await;
    let elsewhere = std::thread::spawn({
        let system = system.clone();
        move || system.send(&id("cart/1"), "add 3")
    });
    elsewhere.join().unwrap().unwrap();
    assert_eq!(ask(&carts, "1", "get").await.unwrap(), "3");
}

#[tokio::test]
async fn a_circle_of_requests_among_sleepers_is_seen() {
    let (system, store) = (system(), Faulty::new());
    let carts = carts(&system, &ACTOR, KeyedOptions::default(), &store).await;
    let circle = "request cart/2 5000 request cart/3 5000 request cart/1 5000 count";
    let error = ask(&carts, "1", circle).await.unwrap_err().to_string();
    assert!(error.contains("Cycle"), "{error}");
    let chain = "request cart/2 5000 request cart/3 5000 request cart/4 5000 self";
    assert_eq!(ask(&carts, "1", chain).await.unwrap(), "cart/4");
}

#[tokio::test]
async fn a_circle_of_sends_among_sleepers_goes_round_and_leaves_room_for_others() {
    const ROUNDS: usize = 200;
    let (system, store) = (system(), Faulty::new());
    let carts = carts(&system, &ACTOR, KeyedOptions::default(), &store).await;
    let neighbour = system.spawn(template(&system, "neighbour", &ACTOR)).await.unwrap();
    let leaving = made_to_leave(&carts, 3);
    let around = ["send cart/1 ", "send cart/2 ", "send cart/0 "].concat().repeat(ROUNDS) + "self";
    carts.actor("0").unwrap().tell(around).await.unwrap();
    let mut answers = 0;
    while store.row("0").await.is_none_or(|row| row != format!("{}\n", ROUNDS + 1)) {
        assert_eq!(neighbour.ask("count").await.unwrap(), answers.to_string());
        answers += 1;
        assert!(answers < 1_000 * ROUNDS, "it has come to rest: {:?}", carts.stats());
    }
    leaving.iter().for_each(JoinHandle::abort);
    assert!(carts.stats().activations > ROUNDS as u64 / 4, "control: they were asleep: {:?}", carts.stats());
    for key in ["1", "2"] {
        assert_eq!(ask(&carts, key, "count").await.unwrap(), ROUNDS.to_string(), "once for each of its messages");
    }
    assert_eq!((system.dead_letters().total(), carts.stats().not_saved), (0, 0));
}

#[tokio::test]
async fn a_guest_that_wakes_names_without_number_is_refused_and_harms_nobody() {
    let (system, store) = (system(), Faulty::new());
    let slow = |burst| Rate { per_second: 0.001, burst };
    let admission = Admission { kind: slow(1_000), caller: slow(20) };
    let carts = carts(&system, &COUNTER, KeyedOptions { admission, ..KeyedOptions::default() }, &store).await;
    let [waker, neighbour] = ["waker", "neighbour"].map(|name| template(&system, name, &ACTOR));
    let (waker, neighbour) = (system.spawn(waker).await.unwrap(), system.spawn(neighbour).await.unwrap());
    let mut refused = 0;
    for key in 0..100 {
        if let Err(error) = waker.ask(format!("send cart/{key} add 1")).await {
            assert!(error.to_string().contains("Full"), "{error}");
            refused += 1;
        }
    }
    assert_eq!((refused, carts.stats().refused, carts.stats().live), (80, 80, 20));
    // One that is in memory needs no activation.
    waker.ask("send cart/1 add 1").await.unwrap();
    assert_eq!(neighbour.ask("request cart/200 1000 add 1").await.unwrap(), "1");
    assert_eq!(ask(&carts, "201", "get").await.unwrap(), "0");
}

#[tokio::test]
async fn who_wakes_many_names_gives_way_to_others() {
    struct Waker;

    impl NativeActor for Waker {
        async fn handle(&mut self, message: &MessageEnvelope, here: &NativeContext) -> Result<Option<Bytes>, String> {
            // Refused or not.
            _ = here.send(&id(str::from_utf8(message.payload()).unwrap()), "x");
            Ok(Some(Bytes::new()))
        }
    }

    for burst in [200, 1] {
        let (system, store) = (system_of(256), Faulty::new());
        let echo = system.engine().load_wat_blocking(fixtures::SMALLEST_ACTOR, Profile::Plain).unwrap();
        let admission = Admission { caller: Rate { per_second: 0.001, burst }, ..Admission::default() };
        let carts = carts(&system, &echo, KeyedOptions { admission, ..KeyedOptions::default() }, &store).await;
        let [waker, neighbour] = ["waker", "neighbour"].map(|name| NativeSpec::new(id(name), || Waker));
        let waker = system.spawn_native(waker).await.unwrap();
        let neighbour = system.spawn_native(neighbour).await.unwrap();
        for key in 0..200 {
            waker.try_tell(format!("cart/{key}")).unwrap();
        }
        let woken = move || carts.stats().live as u64 + carts.stats().refused;
        let asked = tokio::spawn({
            let woken = woken.clone();
            async move {
                neighbour.ask("waker").await.unwrap();
                woken()
            }
        });
        let meanwhile = asked.await.unwrap();
        assert!(meanwhile < 64, "{meanwhile} of them come before another's message");
        // Control: all of them come.
        until(|| woken() == 200).await;
    }
}

#[tokio::test]
async fn actors_of_one_kind_are_one_caller() {
    let (system, store) = (system(), Faulty::new());
    let slow = |burst| Rate { per_second: 0.001, burst };
    let admission = Admission { kind: slow(1_000), caller: slow(5) };
    let carts = carts(&system, &ACTOR, KeyedOptions { admission, ..KeyedOptions::default() }, &store).await;
    // Each of them wakes one.
    let mut woken = 0;
    for key in 0..10 {
        woken += usize::from(ask(&carts, &key.to_string(), &format!("send cart/x{key} self")).await.is_ok());
    }
    assert_eq!(woken, 5);
}

/// Has keys leave the memory as often as it goes.
fn made_to_leave(carts: &Keyed, keys: usize) -> Vec<JoinHandle<()>> {
    (0..keys)
        .map(|key| {
            let carts = carts.clone();
            tokio::spawn(async move {
                loop {
                    carts.passivate(&key.to_string()).await.unwrap();
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect()
}

/// Many senders and few keys, which are made to leave as often as it goes.
async fn books(carts: &Keyed, senders: usize, messages: Range<usize>, keys: usize) {
    let leaving = made_to_leave(carts, keys);
    let senders: Vec<_> = (0..senders)
        .map(|sender| {
            let (carts, messages) = (carts.clone(), messages.clone());
            tokio::spawn(async move {
                for n in messages {
                    let cart = carts.actor(&(n / 4 % keys).to_string()).unwrap();
                    let text = format!("{sender}.{n}");
                    let message = MessageEnvelope::new(text).with_topic(Topic::new("t").unwrap());
                    match n % 4 {
                        0 | 1 => cart.tell(message).await.unwrap(),
                        2 => cart.try_tell(message).unwrap(),
                        // A handler of a topic gives no answer.
                        _ => _ = cart.ask(message).await.unwrap_err(),
                    }
                }
            })
        })
        .collect();
    for sender in senders {
        sender.await.unwrap();
    }
    leaving.iter().for_each(JoinHandle::abort);
    for key in 0..keys {
        assert!(carts.passivate(&key.to_string()).await.unwrap());
    }
}

/// What each key has heard, by its senders.
async fn check(carts: &Keyed, senders: usize, messages: usize, keys: usize) {
    for key in 0..keys {
        let heard = ask(carts, &key.to_string(), "heard").await.unwrap();
        let mut by_sender = vec![Vec::new(); senders];
        for text in heard.split(',') {
            let (sender, n) = text.split_once('.').unwrap();
            by_sender[sender.parse::<usize>().unwrap()].push(n.parse::<usize>().unwrap());
        }
        let expected: Vec<_> = (0..messages).filter(|n| n / 4 % keys == key).collect();
        for heard in by_sender {
            assert_eq!(heard, expected, "of key {key}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn none_is_lost_doubled_or_overtaken_while_actors_come_and_go() {
    for save in [SaveWhen::OnIdle, SaveWhen::EachMessage] {
        let (system, store) = (system(), Faulty::new());
        let carts = carts(&system, &ACTOR, KeyedOptions { save, ..KeyedOptions::default() }, &store).await;
        let (senders, keys) = (4, 3);
        // Until they have come and gone often enough.
        let mut messages = 0;
        while carts.stats().activations < 30 {
            books(&carts, senders, messages..messages + 120, keys).await;
            messages += 120;
        }
        check(&carts, senders, messages, keys).await;
        assert_eq!((system.dead_letters().total(), carts.stats().not_saved), (0, 0));
        system.shutdown(Duration::from_secs(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_sends_to_a_sleeper_at_the_same_time_finds_one_actor() {
    let (system, store) = (system(), Faulty::new());
    let carts = install(&system, template(&system, "cart", &COUNTER), KeyedOptions::default(), &store).await;
    for key in 0..50 {
        let barrier = Arc::new(tokio::sync::Barrier::new(4));
        let senders: Vec<_> = (0..4)
            .map(|_| {
                let (cart, barrier) = (carts.actor(&key.to_string()).unwrap(), Arc::clone(&barrier));
                tokio::spawn(async move {
                    barrier.wait().await;
                    cart.ask("add 1").await.unwrap()
                })
            })
            .collect();
        for sender in senders {
            sender.await.unwrap();
        }
        assert_eq!(ask(&carts, &key.to_string(), "get").await.unwrap(), "4");
    }
    assert_eq!(carts.stats().activations, 50);
}

#[tokio::test]
async fn a_name_that_a_group_has_is_refused() {
    let (system, store) = (system(), Faulty::new());
    let carts = carts(&system, &COUNTER, KeyedOptions::default(), &store).await;
    system.create_group(&id("cart/1")).unwrap();
    let error = ask(&carts, "1", "get").await.unwrap_err();
    assert_eq!(error.refusal(), Some(airssys_wasm_registry::Refusal::Full));
    assert_eq!((carts.stats().live, carts.stats().refused), (0, 1));
    assert_eq!(ask(&carts, "2", "get").await.unwrap(), "0");
}
