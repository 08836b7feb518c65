//! Keys that are forgotten while they come into memory, or leave it.

use std::{pin::pin, time::Duration};

use airssys_wasm_keyed::{KeyedOptions, SaveWhen};
use tokio::sync::Semaphore;

use crate::support::{COUNTER, Faulty, ask, carts, settle, system, until};

#[tokio::test]
async fn one_that_is_brought_into_memory_while_it_is_forgotten_begins_anew_when_that_is_over() {
    let (system, store) = (system(), Faulty::new());
    let carts = carts(&system, &COUNTER, KeyedOptions::default(), &store).await;
    ask(&carts, "1", "add 5").await.unwrap();
    assert!(carts.passivate("1").await.unwrap());
    store.removals.forget_permits(usize::MAX);
    let mut forgotten = pin!(carts.forget("1"));
    let mut asked = pin!(ask(&carts, "1", "add 1"));
    for is_begun in [false, true] {
        tokio::select! {
            biased;
            result = &mut forgotten => panic!("{result:?} before the row was removed"),
            answer = &mut asked, if is_begun => panic!("{answer:?} of what is being forgotten"),
            () = settle() => {}
        }
    }
    assert_eq!((carts.stats().live, store.count_of("1").await), (1, Some(5)));
    // Others of the kind come and go meanwhile.
    assert_eq!(ask(&carts, "2", "add 1").await.unwrap(), "1");
    store.removals.add_permits(Semaphore::MAX_PERMITS);
    forgotten.await.unwrap();
    assert_eq!(asked.await.unwrap(), "1");
    assert!(carts.passivate("1").await.unwrap());
    assert_eq!((store.count_of("1").await, carts.stats().rows), (Some(1), 1));
}

#[tokio::test]
async fn one_that_comes_into_memory_is_forgotten_before_its_first_message() {
    let (system, store) = (system(), Faulty::new());
    let carts = carts(&system, &COUNTER, KeyedOptions::default(), &store).await;
    ask(&carts, "1", "add 5").await.unwrap();
    assert!(carts.passivate("1").await.unwrap());
    store.loads.forget_permits(usize::MAX);
    let mut asked = pin!(ask(&carts, "1", "add 1"));
    let mut forgotten = pin!(carts.forget("1"));
    tokio::select! {
        biased;
        answer = &mut asked => panic!("{answer:?} before it was loaded"),
        result = &mut forgotten => panic!("{result:?} of one that is about to start"),
        () = settle() => {}
    }
    store.loads.add_permits(Semaphore::MAX_PERMITS);
    let (answer, result) = tokio::join!(asked, forgotten);
    result.unwrap();
    assert_eq!(answer.unwrap(), "1");
}

#[tokio::test]
async fn who_gives_up_forgetting_leaves_the_key_as_it_is() {
    let (system, store) = (system(), Faulty::new());
    let carts = carts(&system, &COUNTER, KeyedOptions::default(), &store).await;
    ask(&carts, "1", "add 5").await.unwrap();
    assert!(carts.passivate("1").await.unwrap());
    store.removals.forget_permits(usize::MAX);
    {
        let (first, second) = (pin!(carts.forget("1")), pin!(carts.forget("1")));
        tokio::select! {
            biased;
            result = first => panic!("{result:?} before the row was removed"),
            result = second => panic!("{result:?} before the row was removed"),
            () = settle() => {}
        }
    }
    assert_eq!(ask(&carts, "1", "get").await.unwrap(), "5");
    assert!(carts.passivate("1").await.unwrap());
    store.removals.add_permits(Semaphore::MAX_PERMITS);
    let (first, second) = tokio::join!(carts.forget("1"), carts.forget("1"));
    first.unwrap();
    second.unwrap();
    assert_eq!((store.row("1").await, carts.stats().rows), (None, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_was_answered_after_a_key_was_forgotten_is_of_its_new_life() {
    for save in [SaveWhen::OnIdle, SaveWhen::EachMessage] {
        let (system, store) = (system(), Faulty::new());
        let carts = carts(&system, &COUNTER, KeyedOptions { save, ..KeyedOptions::default() }, &store).await;
        let others: Vec<_> = [true, false]
            .map(|asks| {
                let carts = carts.clone();
                tokio::spawn(async move {
                    loop {
                        // It adds nothing, and brings it into memory.
                        if asks {
                            _ = ask(&carts, "1", "get").await
                        } else {
                            _ = carts.passivate("1").await
                        }
                        tokio::task::yield_now().await;
                    }
                })
            })
            .into_iter()
            .collect();
        let mut rounds = 0;
        while rounds < 30 || carts.stats().activations < 20 {
            rounds += 1;
            assert_eq!(ask(&carts, "1", "add 1").await.unwrap(), "1", "in round {rounds}");
            if rounds % 3 == 0 {
                carts.passivate("1").await.unwrap();
            }
            carts.forget("1").await.unwrap();
        }
        others.iter().for_each(tokio::task::JoinHandle::abort);
        assert!(carts.passivate("1").await.unwrap());
        assert_eq!((store.row("1").await, carts.stats().rows), (None, 0), "{save:?}");
        system.shutdown(Duration::from_secs(10)).await;
        until(|| carts.stats().live == 0).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_kill_does_not_wait_for_a_store_that_forgets() {
    let (system, store) = (system(), Faulty::new());
    let carts = carts(&system, &COUNTER, KeyedOptions::default(), &store).await;
    ask(&carts, "1", "add 5").await.unwrap();
    assert!(carts.passivate("1").await.unwrap());
    assert_eq!(ask(&carts, "1", "get").await.unwrap(), "5");
    store.removals.forget_permits(usize::MAX);
    let mut forgotten = pin!(carts.forget("1"));
    tokio::select! {
        biased;
        result = &mut forgotten => panic!("{result:?} before the row was removed"),
        () = settle() => {}
    }
    tokio::time::timeout(Duration::from_secs(60), carts.kill_all()).await.expect("it is killed");
    assert_eq!((carts.stats().live, store.count_of("1").await), (0, Some(5)));
    // Who wants it forgotten goes on without the actor.
    store.removals.add_permits(Semaphore::MAX_PERMITS);
    forgotten.await.unwrap();
    assert_eq!(store.row("1").await, None);
}
