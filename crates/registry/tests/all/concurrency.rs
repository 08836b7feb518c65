//! Many threads on one registry, with schedules from a seed.

use std::{
    collections::hash_map::DefaultHasher,
    hash::{Hash, Hasher},
    sync::{
        Arc, Barrier,
        atomic::{AtomicUsize, Ordering},
    },
};

use airssys_wasm_registry::{ComponentRegistry, MessageBroker, MessageRouter, WhenFull};

use crate::{Shelf, id, message, pattern, topic};

/// The n-th number of a thread, from a seed.
fn draw(seed: u64, thread: usize, n: usize) -> u64 {
    let mut hasher = DefaultHasher::new();
    (seed, thread, n).hash(&mut hasher);
    hasher.finish()
}

const THREADS: usize = 4;

/// Runs this on several threads that begin at the same moment.
fn at_once(work: impl Fn(usize) + Sync) {
    let barrier = Barrier::new(THREADS);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (barrier, work) = (&barrier, &work);
            scope.spawn(move || {
                barrier.wait();
                work(thread);
            });
        }
    });
}

#[test]
fn of_those_who_want_a_name_one_gets_it() {
    for seed in 0..20 {
        let registry = ComponentRegistry::new();
        let won = AtomicUsize::new(0);
        at_once(|thread| {
            for n in 0..100 {
                let name = id(&format!("c{}", draw(seed, thread, n) % 50));
                if registry.register(&name, Shelf::new(1)).is_ok() {
                    won.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        assert_eq!(registry.len(), won.into_inner(), "seed {seed}");
    }
}

#[test]
fn nothing_is_lost_or_doubled_while_names_come_and_go() {
    for seed in 0..20 {
        let router = MessageRouter::new(ComponentRegistry::new());
        let shelf = Shelf::new(usize::MAX >> 4);
        let (sent, returned) = (AtomicUsize::new(0), AtomicUsize::new(0));
        at_once(|thread| {
            for n in 0..500 {
                let number = draw(seed, thread, n);
                let name = id(&format!("c{}", number % 4));
                match number >> 32 & 3 {
                    0 => drop(router.registry().register(&name, Arc::clone(&shelf))),
                    1 => {
                        if let Some(address) = router.registry().lookup(&name) {
                            let _ = router.registry().deregister(&address);
                        }
                    }
                    _ => match router.send(&name, message("m")) {
                        Ok(()) => drop(sent.fetch_add(1, Ordering::Relaxed)),
                        Err(_) => drop(returned.fetch_add(1, Ordering::Relaxed)),
                    },
                }
            }
        });
        assert_eq!(shelf.payloads().len(), sent.into_inner(), "seed {seed}");
        assert!(returned.into_inner() > 0, "the schedule tries names that are gone");
    }
}

#[test]
fn groups_take_turns_under_contention_without_waiting_for_each_other() {
    for seed in 0..10 {
        let router = MessageRouter::new(ComponentRegistry::new());
        let group = id("g");
        router.registry().create_group(&group).unwrap();
        let shelves: Vec<_> = (0..4).map(|_| Shelf::new(usize::MAX >> 4)).collect();
        for (n, shelf) in shelves.iter().enumerate() {
            let member = id(&format!("m{n}"));
            router.registry().register(&member, Arc::clone(shelf)).unwrap();
            router.registry().join(&group, &member).unwrap();
        }
        at_once(|thread| {
            for n in 0..250 {
                router.send(&group, message("m")).unwrap();
                if draw(seed, thread, n).is_multiple_of(16) {
                    let other = id(&format!("t{thread}-{n}"));
                    router.registry().register(&other, Shelf::new(1)).unwrap();
                }
            }
        });
        let counts: Vec<_> = shelves.iter().map(|shelf| shelf.payloads().len()).collect();
        assert_eq!(counts, [THREADS * 250 / 4; 4], "seed {seed}");
    }
}

#[test]
fn subscriptions_come_and_go_while_messages_are_published() {
    for seed in 0..10 {
        let broker = MessageBroker::new();
        let steady = Shelf::new(usize::MAX >> 4);
        let _steady = broker.subscribe(&pattern("a.>"), Arc::clone(&steady), WhenFull::Error);
        let published = AtomicUsize::new(0);
        at_once(|thread| {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let mut mine = Vec::new();
            for n in 0..200 {
                match draw(seed, thread, n) % 3 {
                    0 => mine.push(broker.subscribe(&pattern("a.*"), Shelf::new(1_000), WhenFull::DropNew)),
                    1 => drop(mine.pop()),
                    _ => {
                        let report = runtime.block_on(broker.publish(&topic("a.b"), message("m")));
                        assert!(report.delivered >= 1);
                        published.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        });
        assert_eq!(steady.payloads().len(), published.into_inner(), "seed {seed}");
        assert_eq!(broker.subscribers(&topic("a.b")), 1, "seed {seed}");
    }
}

#[test]
fn nobody_who_is_gone_stays_a_member() {
    for seed in 0..20 {
        let registry = ComponentRegistry::new();
        at_once(|thread| {
            for n in 0..100 {
                let member = id(&format!("m{}", draw(seed, thread, n) % 4));
                let group = id(&format!("g{}", draw(seed, n, thread) % 2));
                match registry.register(&member, Shelf::new(1)) {
                    Ok(address) => {
                        _ = registry.join(&group, &member);
                        registry.deregister(&address).unwrap();
                    }
                    // Of another thread, which takes it away at any moment.
                    Err(_) => _ = registry.join(&group, &member),
                }
            }
        });
        for group in registry.groups() {
            assert_eq!(registry.members(group.id()), Ok(vec![]), "seed {seed}");
        }
    }
}

#[test]
fn who_joins_while_it_leaves_is_no_member_once_it_is_gone() {
    let registry = ComponentRegistry::new();
    let (group, member) = (id("g"), id("m"));
    for round in 0..2_000 {
        let address = registry.register(&member, Shelf::new(1)).unwrap();
        registry.join(&group, &member).unwrap();
        at_once(|thread| {
            // Either may be refused: another was faster.
            if thread % 2 == 0 {
                _ = registry.leave(&group, &member);
            } else {
                _ = registry.join(&group, &member);
            }
        });
        registry.deregister(&address).unwrap();
        assert_eq!(registry.members(&group), Ok(vec![]), "round {round}");
    }
}
