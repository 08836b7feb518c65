//! Routing: names, addresses and messages, beside what a plain map and a plain channel take.

use std::{
    collections::HashMap,
    hint::black_box,
    sync::{
        Arc, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use airssys_wasm_harness::{Measure, Suite, timed};
use airssys_wasm_registry::{
    ComponentId, ComponentRegistry, Load, MessageBroker, MessageEnvelope, MessageRouter, Refusal, Sink, Subscription,
    Topic, TopicPattern, Undelivered, WhenFull,
};
use dashmap::DashMap;
use tokio::{
    runtime::Runtime,
    sync::{
        Notify,
        mpsc::{self, error::TrySendError},
    },
};

pub(crate) fn describe(suite: &mut Suite) {
    look_up(suite);
    register(suite);
    look_up_at_once(suite);
    exist(suite);
    send(suite);
    publish(suite);
    throughput(suite);
}

/// A sink that is never asked for anything.
struct Nowhere;

impl Sink for Nowhere {
    fn try_deliver(&self, _: MessageEnvelope) -> Result<(), Undelivered> {
        Ok(())
    }

    async fn deliver(&self, _: MessageEnvelope) -> Result<(), Undelivered> {
        Ok(())
    }

    fn load(&self) -> Load {
        Load { queued: 0, capacity: 0 }
    }
}

/// A bounded channel as a sink.
struct Channel(mpsc::Sender<MessageEnvelope>);

impl Sink for Channel {
    fn try_deliver(&self, message: MessageEnvelope) -> Result<(), Undelivered> {
        self.0.try_send(message).map_err(|error| match error {
            TrySendError::Full(message) => Undelivered::new(Refusal::Full, message),
            TrySendError::Closed(message) => Undelivered::new(Refusal::Stopped, message),
        })
    }

    async fn deliver(&self, message: MessageEnvelope) -> Result<(), Undelivered> {
        self.0.send(message).await.map_err(|error| Undelivered::new(Refusal::Stopped, error.0))
    }

    fn load(&self) -> Load {
        Load { queued: self.0.max_capacity() - self.0.capacity(), capacity: self.0.max_capacity() }
    }
}

fn name(n: usize) -> String {
    format!("component-{n}")
}

fn id(n: usize) -> ComponentId {
    ComponentId::new(&name(n)).unwrap()
}

/// A registry with so many components, and some of their names in no order.
fn filled(entries: usize) -> (ComponentRegistry<Nowhere>, Vec<ComponentId>) {
    let registry = ComponentRegistry::new();
    for n in 0..entries {
        registry.register(&id(n), Arc::new(Nowhere)).unwrap();
    }
    (registry, asked(entries).map(id).collect())
}

/// Which of so many are asked for: more than a branch predictor learns, all over the map.
fn asked(entries: usize) -> impl Iterator<Item = usize> {
    (0..1_024).map(move |n: usize| n.wrapping_mul(7_919) % entries)
}

/// What the guide's implementation keeps: names to addresses, behind one lock.
#[derive(Clone)]
struct SeedAddress {
    _name: String,
    _mailbox: Arc<()>,
}

impl SeedAddress {
    fn new(name: &str) -> Self {
        Self { _name: name.to_owned(), _mailbox: Arc::new(()) }
    }
}

type SeedPath = Arc<RwLock<HashMap<String, SeedAddress>>>;

fn seed_path(entries: usize) -> (SeedPath, Vec<String>) {
    let map = (0..entries).map(|n| (name(n), SeedAddress::new(&name(n)))).collect();
    (Arc::new(RwLock::new(map)), asked(entries).map(name).collect())
}

/// Times asking for one after the other.
fn in_turn<K: 'static, R>(keys: Vec<K>, mut ask: impl FnMut(&K) -> R + 'static) -> Measure {
    let mut at = 0;
    timed(move || {
        at = (at + 1) % keys.len();
        ask(black_box(&keys[at]))
    })
}

fn looked_up(entries: usize) -> Measure {
    let (registry, ids) = filled(entries);
    in_turn(ids, move |id| {
        let address = registry.lookup(id);
        assert!(address.is_some());
        address
    })
}

fn seed_looked_up(entries: usize) -> Measure {
    let (map, names) = seed_path(entries);
    in_turn(names, move |name| map.read().unwrap().get(name).cloned().unwrap())
}

fn look_up(suite: &mut Suite) {
    suite
        .bench("registry_lookup", || looked_up(100))
        .target("guide", Duration::from_nanos(100))
        // Seven tenths.
        .twin("seed_path", 0.7, || seed_looked_up(100))
        .twin("dashmap", None, || {
            let map: DashMap<_, _> = (0..100).map(|n| (name(n), Arc::new(n))).collect();
            in_turn(asked(100).map(name).collect(), move |name: &String| Arc::clone(&map.get(name).unwrap()))
        })
        .twin("papaya", None, || {
            let map: papaya::HashMap<_, _> = (0..100).map(|n| (name(n), Arc::new(n))).collect();
            in_turn(asked(100).map(name).collect(), move |name: &String| Arc::clone(map.pin().get(name).unwrap()))
        });
    const FEWEST: &str = "registry_lookup_scalability/10";
    const MOST: &str = "registry_lookup_scalability/10000";
    let group = suite.bench(FEWEST, || looked_up(10));
    for entries in [100, 1_000, 10_000, 1_000_000] {
        group.and(&format!("registry_lookup_scalability/{entries}"), move || looked_up(entries));
    }
    for entries in [10, 100, 1_000, 10_000] {
        let id = format!("registry_lookup_scalability/{entries}");
        group.and(&format!("seed_path/{id}"), move || seed_looked_up(entries));
        group.ratio(&id, &format!("seed_path/{id}"), 0.7);
    }
    group.ratio(MOST, FEWEST, None).target("goal", Duration::from_nanos(100));
    suite.bench("registry_lookup/two_threads_and_a_writer", || {
        let (registry, ids) = filled(1_000);
        let written = registry.clone();
        let comes_and_goes: Vec<_> = (1_000..1_100).map(id).collect();
        beside_others(
            move |n| assert!(registry.lookup(&ids[n % ids.len()]).is_some()),
            move |n| {
                let id = &comes_and_goes[n % comes_and_goes.len()];
                match written.lookup(id) {
                    Some(address) => written.deregister(&address).unwrap(),
                    None => drop(written.register(id, Arc::new(Nowhere)).unwrap()),
                }
            },
        )
    });
}

/// Times work on this thread while another thread does the same and writes steadily.
fn beside_others(
    read: impl Fn(usize) + Send + Sync + 'static,
    write: impl Fn(usize) + Send + Sync + 'static,
) -> Measure {
    let (read, write) = (Arc::new(read), Arc::new(write));
    Box::new(move |iterations| {
        let done = Arc::new(AtomicBool::new(false));
        let other = std::thread::spawn({
            let (done, read, write) = (Arc::clone(&done), Arc::clone(&read), Arc::clone(&write));
            move || {
                let mut n = 0;
                while !done.load(Ordering::Relaxed) {
                    // A hundredth of what it does.
                    if n % 100 == 0 {
                        write(n)
                    } else {
                        read(n)
                    }
                    n += 1;
                }
            }
        });
        let started = Instant::now();
        (0..iterations as usize).for_each(|n| read(n));
        let taken = started.elapsed();
        done.store(true, Ordering::Relaxed);
        other.join().unwrap();
        taken
    })
}

/// Registers components that have their names and sinks, in an empty map for each thousand of them.
fn register(suite: &mut Suite) {
    const BATCH: usize = 1_000;
    fn in_batches<M>(make: impl Fn() -> M + 'static, add: impl Fn(&M, usize) + 'static) -> Measure {
        Box::new(move |iterations| {
            let mut left = iterations as usize;
            let mut taken = Duration::ZERO;
            while left > 0 {
                let batch = left.min(BATCH);
                left -= batch;
                let map = make();
                let started = Instant::now();
                (0..batch).for_each(|n| add(&map, n));
                taken += started.elapsed();
            }
            taken
        })
    }
    suite
        .bench("registry_registration", || {
            let ids: Vec<_> = (0..BATCH).map(id).collect();
            let sink = Arc::new(Nowhere);
            in_batches(ComponentRegistry::new, move |registry, n| {
                black_box(registry.register(&ids[n], Arc::clone(&sink)).unwrap());
            })
        })
        // Six tenths.
        .twin("seed_path", 0.6, || {
            let addresses: Vec<_> = (0..BATCH).map(|n| (name(n), SeedAddress::new(&name(n)))).collect();
            in_batches(SeedPath::default, move |map, n| {
                let (name, address) = &addresses[n];
                map.write().unwrap().insert(name.clone(), address.clone());
            })
        })
        .twin("dashmap", None, || {
            let names: Vec<_> = (0..BATCH).map(name).collect();
            let sink = Arc::new(Nowhere);
            in_batches(DashMap::new, move |map, n| drop(map.insert(names[n].clone(), Arc::clone(&sink))))
        })
        .twin("papaya", None, || {
            let names: Vec<_> = (0..BATCH).map(name).collect();
            let sink = Arc::new(Nowhere);
            in_batches(papaya::HashMap::new, move |map, n| {
                map.pin().insert(names[n].clone(), Arc::clone(&sink));
            })
        })
        // The same from a name that is only text yet.
        .and("registry_registration/from_text", || {
            in_batches(ComponentRegistry::new, |registry, n| {
                black_box(registry.register(&id(n), Arc::new(Nowhere)).unwrap());
            })
        });
}

/// Ten tasks on two workers, each of which looks up one name.
fn look_up_at_once(suite: &mut Suite) {
    fn ten(look_up: impl Fn(usize) + Send + Sync + 'static) -> Measure {
        let runtime = two_workers();
        let look_up = Arc::new(look_up);
        Box::new(move |iterations| {
            runtime.block_on(async {
                let started = Instant::now();
                for _ in 0..iterations {
                    let tasks: [_; 10] = std::array::from_fn(|n| {
                        let look_up = Arc::clone(&look_up);
                        tokio::spawn(async move { look_up(n) })
                    });
                    for task in tasks {
                        task.await.unwrap();
                    }
                }
                started.elapsed()
            })
        })
    }
    suite
        .bench("concurrent_registry_lookups", || {
            let (registry, ids) = filled(100);
            ten(move |n| assert!(registry.lookup(&ids[n]).is_some()))
        })
        .twin("seed_path", 1.0, || {
            let (map, names) = seed_path(100);
            ten(move |n| drop(black_box(map.read().unwrap().get(&names[n]).cloned().unwrap())))
        });
}

fn two_workers() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap()
}

fn exist(suite: &mut Suite) {
    for (which, from) in [("exists", 0), ("not_exists", 1_000)] {
        suite
            .bench(&format!("component_exists/{which}"), move || {
                let (registry, _) = filled(100);
                let ids = asked(100).map(|n| id(n + from)).collect();
                in_turn(ids, move |id| assert_eq!(registry.exists(id), from == 0))
            })
            .twin("seed_path", None, move || {
                let (map, _) = seed_path(100);
                let names = asked(100).map(|n| name(n + from)).collect();
                in_turn(names, move |name| assert_eq!(map.read().unwrap().contains_key(name), from == 0))
            })
            .twin("dashmap", None, move || {
                let map: DashMap<_, _> = (0..100).map(|n| (name(n), ())).collect();
                let names = asked(100).map(|n| name(n + from)).collect();
                in_turn(names, move |name: &String| assert_eq!(map.contains_key(name), from == 0))
            })
            .twin("papaya", None, move || {
                let map: papaya::HashMap<_, _> = (0..100).map(|n| (name(n), ())).collect();
                let names = asked(100).map(|n| name(n + from)).collect();
                in_turn(names, move |name: &String| assert_eq!(map.pin().contains_key(name), from == 0))
            });
    }
}

/// Messages that a channel of these benchmarks holds.
const CAPACITY: usize = 1_024;

/// A task that takes messages out of a channel, on a worker of its own, whenever it is told to: after a burst. Were it to
/// take them as they come, whether a send finds it asleep and must wake it by a system call would be a matter of chance
/// that decides everything; what that costs in all is what `routing/throughput` shows.
struct Consumer {
    runtime: Runtime,
    go: Arc<Notify>,
    taken: Arc<AtomicU64>,
}

impl Consumer {
    fn spawn<M: Send + 'static>() -> (mpsc::Sender<M>, Self) {
        let (sender, mut receiver) = mpsc::channel(CAPACITY);
        let consumer = Self { runtime: two_workers(), go: Arc::default(), taken: Arc::default() };
        let (go, taken) = (consumer.go.clone(), consumer.taken.clone());
        consumer.runtime.spawn(async move {
            loop {
                go.notified().await;
                while receiver.try_recv().is_ok() {
                    taken.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        (sender, consumer)
    }

    /// Times sends of so many messages each, half a channel at a time, which is emptied outside the time taken.
    fn in_bursts(self, each: u64, mut send: impl FnMut() + 'static) -> Measure {
        let burst = (CAPACITY as u64 / 2 / each).max(1);
        Box::new(move |mut iterations| {
            // All of it, or the runtime would not be kept.
            let consumer = &self;
            let mut time = Duration::ZERO;
            while iterations > 0 {
                let now = iterations.min(burst);
                iterations -= now;
                let expected = consumer.taken.load(Ordering::Relaxed) + now * each;
                let started = Instant::now();
                (0..now).for_each(|_| send());
                time += started.elapsed();
                consumer.go.notify_one();
                while consumer.taken.load(Ordering::Relaxed) < expected {
                    std::thread::yield_now();
                }
            }
            time
        })
    }
}

/// A router to so many components, all of which are one channel.
fn routed(receivers: usize) -> (MessageRouter<Channel>, Vec<ComponentId>, Consumer) {
    let registry = ComponentRegistry::new();
    let (sender, consumer) = Consumer::spawn();
    let ids: Vec<_> = (0..receivers).map(id).collect();
    for id in &ids {
        registry.register(id, Arc::new(Channel(sender.clone()))).unwrap();
    }
    (MessageRouter::new(registry), ids, consumer)
}

fn message() -> MessageEnvelope {
    MessageEnvelope::new(&b"sixteen bytes..."[..])
}

fn send(suite: &mut Suite) {
    suite
        .bench("routing/send_message", || {
            let (router, ids, consumer) = routed(1);
            consumer.in_bursts(1, move || router.send(&ids[0], message()).unwrap())
        })
        .target("goal", Duration::from_nanos(300))
        // A look-up in the map that the registry is made of, and a send into the same channel.
        .twin("raw", 1.3, || {
            let (sender, consumer) = Consumer::spawn();
            let map: DashMap<_, _> = [(name(0), sender)].into_iter().collect();
            let name = name(0);
            consumer.in_bursts(1, move || {
                let sender = map.get(&name).unwrap().clone();
                sender.try_send(message()).unwrap();
            })
        })
        .and("routing/send_resolved", || {
            let (router, ids, consumer) = routed(1);
            let address = router.registry().lookup(&ids[0]).unwrap();
            consumer.in_bursts(1, move || router.send_resolved(&address, message()).unwrap())
        })
        .and("routing/broadcast/10", || broadcast(10))
        .and("routing/broadcast/100", || broadcast(100))
        .ratio("routing/send_resolved", "routing/send_message", None)
        .ratio("routing/broadcast/10", "routing/send_message", 12.0)
        .ratio("routing/broadcast/100", "routing/send_message", None)
        // The guide's 3.7 µs were a sum of estimates.
        .target_of("routing/broadcast/10", "goal", Duration::from_nanos(3_700));
}

fn broadcast(receivers: usize) -> Measure {
    let (router, ids, consumer) = routed(receivers);
    consumer.in_bursts(receivers as u64, move || assert!(router.broadcast(&ids, &message()).is_empty()))
}

fn publish(suite: &mut Suite) {
    for (subscribers, others) in [(1, 0), (10, 0), (1_000, 0), (1, 100_000)] {
        let id = match others {
            0 => format!("routing/publish/{subscribers}_subscribers"),
            others => format!("routing/publish/{subscribers}_of_{others}_subscribers"),
        };
        suite.bench(&id, move || {
            let broker = MessageBroker::new();
            let topic = Topic::new("orders.eu.created").unwrap();
            let pattern = TopicPattern::new("orders.*.created").unwrap();
            let also = (0..others).map(|n| TopicPattern::new(&format!("orders.region-{n}.*")).unwrap());
            let subscriptions: Vec<Subscription<Nowhere>> = std::iter::repeat_n(pattern, subscribers)
                .chain(also)
                .map(|pattern| broker.subscribe(&pattern, Arc::new(Nowhere), WhenFull::Error))
                .collect();
            airssys_wasm_harness::timed_async((broker, topic, subscriptions), async move |(broker, topic, _)| {
                assert_eq!(broker.publish(topic, message()).await.delivered, subscribers);
            })
        });
    }
}

/// Messages in all, sender and receiver each on a core: the time a message.
fn throughput(suite: &mut Suite) {
    suite
        .bench("routing/throughput", || {
            let registry = ComponentRegistry::new();
            let (sender, mut receiver) = mpsc::channel(CAPACITY);
            registry.register(&id(0), Arc::new(Channel(sender))).unwrap();
            let (router, to) = (MessageRouter::new(registry), id(0));
            let runtime = two_workers();
            let taken = Arc::new(AtomicU64::new(0));
            runtime.spawn({
                let taken = Arc::clone(&taken);
                async move {
                    let mut batch = Vec::with_capacity(CAPACITY);
                    while receiver.recv_many(&mut batch, CAPACITY).await > 0 {
                        taken.fetch_add(batch.drain(..).len() as u64, Ordering::Relaxed);
                    }
                }
            });
            Box::new(move |iterations| {
                let expected = taken.load(Ordering::Relaxed) + iterations;
                let started = Instant::now();
                runtime.block_on(async {
                    for _ in 0..iterations {
                        router.send_wait(&to, message()).await.unwrap();
                    }
                });
                while taken.load(Ordering::Relaxed) < expected {
                    std::hint::spin_loop();
                }
                started.elapsed()
            })
        })
        // A million a second.
        .target("goal", Duration::from_micros(1));
}
