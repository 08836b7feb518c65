//! Reminders in a store: when they come, in which order, how often, and what outlives what.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Waker},
    time::{Duration, SystemTime},
};

use airssys_wasm_actor::{ActorSystem, AskError, ReminderError, Reminders};
use airssys_wasm_keyed::{
    Admission, Durability, ForgetError, Keyed, KeyedOptions, MemoryStore, Rate, ReminderConfig, SaveWhen, Saved,
    StateStore, StoreError, StoreFuture, StoredReminders, Version,
};
use airssys_wasm_registry::{ComponentId, MessageEnvelope};
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::{
    runtime::Handle,
    sync::{Notify, Semaphore},
    time::Instant,
};

use crate::{
    owners::{self, Parts},
    support::{COUNTER, Faulty, LATER, ask, carts, system},
};

type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

fn started(store: Arc<dyn StateStore>, clock: Clock) -> StoredReminders {
    let mut config = ReminderConfig::default();
    config.clock = Some(clock);
    StoredReminders::start(store, config)
}

/// A store that can be told to fail.
#[derive(Debug, Default)]
struct Fails {
    store: MemoryStore,
    writes: AtomicBool,
}

impl StateStore for Fails {
    fn load<'a>(&'a self, kind: &'a str, key: &'a str) -> StoreFuture<'a, Option<Saved>> {
        self.store.load(kind, key)
    }

    fn save<'a>(
        &'a self,
        kind: &'a str,
        key: &'a str,
        follows: Version,
        state: Bytes,
        durability: Durability,
    ) -> StoreFuture<'a, Version> {
        if self.writes.load(Ordering::SeqCst) {
            return Box::pin(async { Err(StoreError::Full) });
        }
        self.store.save(kind, key, follows, state, durability)
    }

    fn remove<'a>(
        &'a self,
        kind: &'a str,
        key: &'a str,
        follows: Version,
        durability: Durability,
    ) -> StoreFuture<'a, ()> {
        if self.writes.load(Ordering::SeqCst) {
            return Box::pin(async { Err(StoreError::Full) });
        }
        self.store.remove(kind, key, follows, durability)
    }

    fn count<'a>(&'a self, kind: &'a str) -> StoreFuture<'a, u64> {
        self.store.count(kind)
    }

    fn keys<'a>(&'a self, kind: &'a str, after: Option<&'a str>, limit: usize) -> StoreFuture<'a, Vec<String>> {
        self.store.keys(kind, after, limit)
    }
}

/// What actors of the kind `cart` heard, each as key, name and payload; and which keys do not handle it.
#[derive(Clone, Default)]
struct Carts {
    heard: Arc<Mutex<Vec<String>>>,
    refuse: Arc<Mutex<HashSet<String>>>,
    /// Those whose key is `slow` wait for it.
    go: Arc<Notify>,
}

impl Carts {
    fn heard(&self) -> String {
        self.heard.lock().join(", ")
    }
}

struct Scene {
    store: Arc<Fails>,
    carts: Carts,
    clock: Clock,
    reminders: Option<StoredReminders>,
}

impl Scene {
    fn new() -> Self {
        let (begun, epoch) = (Instant::now(), SystemTime::now());
        let clock = Arc::new(move || epoch + begun.elapsed());
        let mut scene = Self { store: Arc::default(), carts: Carts::default(), clock, reminders: None };
        scene.start();
        scene
    }

    /// As after a start of the process.
    fn start(&mut self) {
        self.reminders = None;
        let reminders = started(Arc::clone(&self.store) as _, Arc::clone(&self.clock));
        let carts = self.carts.clone();
        reminders.add("cart", move |key, message| {
            let (carts, key) = (carts.clone(), key.to_owned());
            Box::pin(async move {
                let name = message.topic().unwrap().to_string();
                let payload = String::from_utf8(message.payload().to_vec()).unwrap();
                carts.heard.lock().push(format!("{key} {} {payload}", name.strip_prefix("reminder.").unwrap()));
                if key == "slow" {
                    carts.go.notified().await;
                }
                if carts.refuse.lock().contains(&key) { Err(AskError::Stopped) } else { Ok(Bytes::new()) }
            })
        });
        self.reminders = Some(reminders);
    }

    async fn set(&self, key: &str, name: &str, after_ms: u64, payload: &str) -> Result<(), ReminderError> {
        let reminders = self.reminders.as_ref().unwrap();
        let payload = Bytes::from(payload.to_owned());
        reminders.set(&cart(key), name, Duration::from_millis(after_ms), payload).expect("the kind is known").await
    }

    async fn cancel(&self, key: &str, name: &str) -> bool {
        self.reminders.as_ref().unwrap().cancel(&cart(key), name).expect("the kind is known").await.unwrap()
    }

    async fn rows(&self) -> (u64, u64) {
        (self.store.count("!due").await.unwrap(), self.store.count("!reminders/cart").await.unwrap())
    }
}

fn cart(key: &str) -> ComponentId {
    format!("cart/{key}").parse().unwrap()
}

async fn pass(ms: u64) {
    tokio::time::sleep(Duration::from_millis(ms)).await;
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn they_come_once_in_the_order_of_time_and_leave_no_row() {
    let scene = Scene::new();
    for (key, name, after) in [("1", "c", 3_000), ("2", "b", 2_000), ("1", "a", 1_000), ("3", "c2", 3_001)] {
        scene.set(key, name, after, "x").await.unwrap();
    }
    assert_eq!(scene.rows().await, (4, 3));
    pass(999).await;
    assert_eq!(scene.carts.heard(), "");
    pass(2).await;
    assert_eq!(scene.carts.heard(), "1 a x");
    pass(1_000).await;
    assert_eq!(scene.carts.heard(), "1 a x, 2 b x");
    pass(1_010).await;
    assert_eq!(scene.carts.heard(), "1 a x, 2 b x, 1 c x, 3 c2 x");
    assert_eq!(scene.rows().await, (0, 0));
    pass(1_000_000).await;
    assert_eq!(scene.carts.heard.lock().len(), 4, "once");
}

#[tokio::test(start_paused = true)]
async fn none_comes_sooner_than_after_a_second() {
    let scene = Scene::new();
    scene.set("1", "at-once", 0, "x").await.unwrap();
    pass(998).await;
    assert_eq!(scene.carts.heard(), "");
    pass(4).await;
    assert_eq!(scene.carts.heard(), "1 at-once x");
}

#[tokio::test(start_paused = true)]
async fn one_of_the_same_name_is_replaced() {
    let scene = Scene::new();
    scene.set("1", "a", 1_000, "first").await.unwrap();
    scene.set("1", "a", 3_000, "second").await.unwrap();
    scene.set("1", "b", 5_000, "third").await.unwrap();
    scene.set("1", "b", 2_000, "fourth").await.unwrap();
    scene.set("1", "b", 2_000, "fifth").await.unwrap();
    assert_eq!(scene.rows().await, (2, 1));
    pass(6_000).await;
    assert_eq!(scene.carts.heard(), "1 b fifth, 1 a second");
}

#[tokio::test(start_paused = true)]
async fn what_is_cancelled_does_not_come() {
    let scene = Scene::new();
    scene.set("1", "a", 1_000, "x").await.unwrap();
    scene.set("1", "b", 1_000, "x").await.unwrap();
    assert!(scene.cancel("1", "a").await);
    assert!(!scene.cancel("1", "a").await && !scene.cancel("2", "b").await);
    pass(2_000).await;
    assert_eq!(scene.carts.heard(), "1 b x");
    assert!(!scene.cancel("1", "b").await, "it came");
    assert_eq!(scene.rows().await, (0, 0));
}

#[tokio::test(start_paused = true)]
async fn an_actor_has_so_many_of_so_many_bytes() {
    let scene = Scene::new();
    for n in 0..16 {
        scene.set("1", &format!("name-{n}"), 5_000, "x").await.unwrap();
    }
    assert!(matches!(scene.set("1", "one-more", 5_000, "x").await, Err(ReminderError::TooMany(16))));
    scene.set("1", "name-3", 9_000, "in place of another").await.unwrap();
    scene.set("2", "of-another", 5_000, "x").await.unwrap();
    let large = "x".repeat(64 << 10);
    scene.set("3", "fits", 5_000, &large).await.unwrap();
    let too_large = scene.set("3", "does-not", 5_000, &format!("{large}x")).await;
    assert!(matches!(too_large, Err(ReminderError::TooLarge { size: 65_537, allowed: 65_536 })), "{too_large:?}");
    for name in ["", "a b", "a.b", "ä", &"x".repeat(65)] {
        let refused = scene.set("3", name, 5_000, "x").await;
        assert!(matches!(refused, Err(ReminderError::Name { .. })), "{name:?}");
    }
    scene.set("3", &"x".repeat(64), 5_000, "x").await.unwrap();
    assert!(scene.cancel("1", "name-0").await);
    scene.set("1", "one-more", 5_000, "x").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_is_not_handled_comes_again_and_what_is_handled_does_not() {
    let scene = Scene::new();
    scene.carts.refuse.lock().insert("1".to_owned());
    scene.set("1", "a", 1_000, "x").await.unwrap();
    scene.set("2", "b", 1_000, "x").await.unwrap();
    pass(1_002).await;
    assert_eq!(scene.carts.heard(), "1 a x, 2 b x");
    // After a second, after two more, after four more.
    for (wait, times) in [(1_010, 2), (1_900, 2), (200, 3), (3_700, 3), (300, 4)] {
        pass(wait).await;
        let heard = scene.carts.heard.lock().iter().filter(|heard| *heard == "1 a x").count();
        assert_eq!(heard, times);
    }
    // It holds up nobody.
    scene.set("3", "c", 1_000, "x").await.unwrap();
    pass(1_010).await;
    assert!(scene.carts.heard().ends_with("3 c x"));
    scene.carts.refuse.lock().clear();
    pass(100_000).await;
    assert_eq!(scene.rows().await, (0, 0));
    let heard = scene.carts.heard.lock().len();
    pass(1_000_000).await;
    assert_eq!(scene.carts.heard.lock().len(), heard);
    assert_eq!(scene.carts.heard.lock().iter().filter(|heard| *heard == "2 b x").count(), 1);
}

#[tokio::test(start_paused = true)]
async fn they_outlive_the_process_and_come_late_rather_than_never() {
    let mut scene = Scene::new();
    scene.set("1", "a", 1_000, "x").await.unwrap();
    scene.set("2", "b", 60_000, "x").await.unwrap();
    scene.reminders = None;
    pass(10_000).await;
    assert_eq!(scene.carts.heard(), "", "nobody sends them");
    scene.start();
    pass(1_001).await;
    assert_eq!(scene.carts.heard(), "1 a x");
    pass(50_000).await;
    assert_eq!(scene.carts.heard(), "1 a x, 2 b x");
}

#[tokio::test(start_paused = true)]
async fn one_that_was_being_handled_when_the_process_ended_comes_again() {
    let mut scene = Scene::new();
    scene.set("slow", "a", 1_000, "x").await.unwrap();
    pass(1_010).await;
    assert_eq!(scene.carts.heard(), "slow a x");
    scene.start();
    // The first is not heard of any more.
    scene.carts = Carts::default();
    scene.start();
    pass(1_010).await;
    assert_eq!(scene.carts.heard(), "slow a x");
    assert_eq!(scene.rows().await, (1, 1), "it is being handled");
    scene.carts.go.notify_one();
    pass(1).await;
    assert_eq!(scene.rows().await, (0, 0));
}

#[tokio::test(start_paused = true)]
async fn one_that_its_handler_sets_again_stays() {
    let scene = Scene::new();
    scene.set("slow", "a", 1_000, "first").await.unwrap();
    pass(1_010).await;
    scene.set("slow", "a", 5_000, "second").await.unwrap();
    scene.carts.go.notify_one();
    pass(1).await;
    assert_eq!(scene.rows().await, (1, 1));
    pass(5_000).await;
    assert_eq!(scene.carts.heard(), "slow a first, slow a second");
}

#[tokio::test(start_paused = true)]
async fn what_a_crash_left_between_two_rows_does_not_come() {
    let scene = Scene::new();
    scene.set("1", "a", 1_000, "x").await.unwrap();
    let mut keys = scene.store.keys("!due", None, 10).await.unwrap();
    let orphan = keys.pop().unwrap().replace(" a", " orphan");
    scene.store.save("!due", &orphan, Version::NONE, "x".into(), Durability::Process).await.unwrap();
    pass(1_010).await;
    assert_eq!(scene.carts.heard(), "1 a x");
    assert_eq!(scene.rows().await, (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_is_told_and_loses_none() {
    let scene = Scene::new();
    scene.set("1", "a", 1_000, "x").await.unwrap();
    scene.store.writes.store(true, Ordering::SeqCst);
    assert!(matches!(scene.set("1", "b", 1_000, "x").await, Err(ReminderError::Unavailable(_))));
    pass(5_000).await;
    assert!(scene.carts.heard().starts_with("1 a x"));
    assert_eq!(scene.rows().await, (1, 1), "it is not settled");
    scene.store.writes.store(false, Ordering::SeqCst);
    pass(100_000).await;
    assert_eq!(scene.rows().await, (0, 0));
    assert!(!scene.carts.heard().contains("1 b"), "it was refused");
}

#[tokio::test(start_paused = true)]
async fn those_of_a_forgotten_actor_are_forgotten() {
    let scene = Scene::new();
    for name in ["a", "b"] {
        scene.set("1", name, 1_000, "x").await.unwrap();
        scene.set("2", name, 1_000, "x").await.unwrap();
    }
    scene.reminders.as_ref().unwrap().forget(&cart("1")).await.unwrap();
    assert_eq!(scene.rows().await, (2, 1));
    pass(2_000).await;
    assert_eq!(scene.carts.heard(), "2 a x, 2 b x");
}

#[tokio::test(start_paused = true)]
async fn a_kind_that_is_installed_later_gets_those_that_waited_for_it() {
    let mut scene = Scene::new();
    scene.set("1", "a", 1_000, "x").await.unwrap();
    let reminders = started(Arc::clone(&scene.store) as _, Arc::clone(&scene.clock));
    scene.reminders = None;
    assert!(reminders.set(&cart("1"), "b", Duration::ZERO, Bytes::new()).is_none(), "control: it is not known");
    pass(10_000).await;
    assert_eq!(scene.rows().await, (1, 1));
    let heard = Arc::new(AtomicBool::new(false));
    reminders.add("cart", {
        let heard = Arc::clone(&heard);
        move |_, _: MessageEnvelope| {
            heard.store(true, Ordering::SeqCst);
            Box::pin(async { Ok(Bytes::new()) })
        }
    });
    pass(1).await;
    assert!(heard.load(Ordering::SeqCst));
    assert_eq!(scene.rows().await, (0, 0));
}

#[tokio::test(start_paused = true)]
async fn many_cost_one_task() {
    let scene = Scene::new();
    pass(1).await;
    let before = Handle::current().metrics().num_alive_tasks();
    for n in 0..5_000 {
        scene.set(&n.to_string(), "a", 3_600_000 + n, "x").await.unwrap();
    }
    assert_eq!(Handle::current().metrics().num_alive_tasks(), before);
    pass(3_700_000).await;
    let heard = scene.carts.heard.lock();
    assert!((0..5_000).all(|n| heard[n] == format!("{n} a x")), "in the order of time");
    assert_eq!(heard.len(), 5_000);
}

#[tokio::test(start_paused = true)]
async fn a_kind_whose_handlers_hang_holds_up_no_other() {
    let scene = Scene::new();
    let reminders = scene.reminders.as_ref().unwrap();
    let (begun, ended) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Semaphore::new(0)));
    reminders.add("room", {
        let (begun, ended) = (Arc::clone(&begun), Arc::clone(&ended));
        move |key, _| {
            begun.lock().push(key.to_owned());
            let ended = Arc::clone(&ended);
            Box::pin(async move {
                ended.acquire().await.unwrap().forget();
                Ok(Bytes::new())
            })
        }
    });
    let set = async |of: String, after_ms| {
        let of: ComponentId = of.parse().unwrap();
        reminders.set(&of, "a", Duration::from_millis(after_ms), Bytes::new()).unwrap().await.unwrap();
    };
    // More pages than one, and more than may be in flight.
    for n in 0..600 {
        set(format!("room/{n}"), 1_000 + n).await;
    }
    set("cart/1".to_owned(), 1_300).await;
    set("cart/2".to_owned(), 2_000).await;
    pass(2_010).await;
    assert_eq!(scene.carts.heard(), "1 a , 2 a ");
    assert_eq!(begun.lock().len(), 64, "control: no more of them at a time");
    // The rest come as there is room, in their order.
    ended.add_permits(1);
    pass(1).await;
    assert_eq!(begun.lock().len(), 65);
    set("cart/3".to_owned(), 1_000).await;
    pass(1_010).await;
    assert!(scene.carts.heard().ends_with(", 3 a "));
    ended.add_permits(10_000);
    pass(1_000).await;
    let begun = begun.lock().clone();
    assert!((0..600).all(|n| begun[n] == n.to_string()) && begun.len() == 600, "once, in the order of time");
    assert_eq!(scene.store.count("!due").await.unwrap(), 0);
}

#[tokio::test(start_paused = true)]
async fn those_that_hang_for_too_long_come_again_and_no_other_waits_for_them() {
    let scene = Scene::new();
    let reminders = scene.reminders.as_ref().unwrap();
    let attempts = Arc::new(AtomicUsize::new(0));
    reminders.add("room", {
        let attempts = Arc::clone(&attempts);
        move |_, message| {
            attempts.fetch_add(1, Ordering::SeqCst);
            let until = message.deadline().unwrap();
            Box::pin(async move {
                tokio::time::sleep_until(until).await;
                Err(AskError::Stopped)
            })
        }
    });
    for n in 0..100 {
        let of: ComponentId = format!("room/{n}").parse().unwrap();
        reminders.set(&of, "a", Duration::from_secs(1), Bytes::new()).unwrap().await.unwrap();
    }
    // Each of them takes a minute, again and again.
    for round in 1..20 {
        scene.set(&round.to_string(), "a", 30_000, "x").await.unwrap();
        pass(30_010).await;
        assert!(scene.carts.heard().ends_with(&format!("{round} a x")), "{round}");
    }
    assert!(attempts.load(Ordering::SeqCst) > 200, "they come again");
    assert_eq!(scene.store.count("!due").await.unwrap(), 100, "control: none of them was handled");
}

#[tokio::test(start_paused = true)]
async fn a_kind_that_always_fails_puts_off_no_attempt_of_another() {
    let scene = Scene::new();
    let reminders = scene.reminders.as_ref().unwrap();
    let attempts = Arc::new(AtomicUsize::new(0));
    reminders.add("room", {
        let attempts = Arc::clone(&attempts);
        move |_, _| {
            attempts.fetch_add(1, Ordering::SeqCst);
            Box::pin(async { Err(AskError::Stopped) })
        }
    });
    let of: ComponentId = "room/1".parse().unwrap();
    reminders.set(&of, "a", Duration::from_secs(1), Bytes::new()).unwrap().await.unwrap();
    pass(600_000).await;
    let before = attempts.load(Ordering::SeqCst);
    assert!((8..20).contains(&before), "control: {before} attempts, with pauses up to 64 s");
    // Wherever that one is between two of its attempts.
    for round in 0..10 {
        let key = round.to_string();
        scene.carts.refuse.lock().insert(key.clone());
        scene.set(&key, "a", 1_000, "x").await.unwrap();
        pass(1_010).await;
        scene.carts.refuse.lock().clear();
        pass(1_100).await;
        assert!(scene.carts.heard().ends_with(&format!("{key} a x, {key} a x")), "{}", scene.carts.heard());
        pass(130_000 + 7_000 * round).await;
    }
    assert!(attempts.load(Ordering::SeqCst) > before + 20, "they go on");
}

#[tokio::test(start_paused = true)]
async fn what_is_due_while_many_are_sent_again_does_not_wait_for_all_of_them() {
    const MANY: usize = 4_000;
    let mut config = ReminderConfig::default();
    config.in_flight = MANY.try_into().unwrap();
    // By this clock an attempt takes a millisecond.
    let (epoch, ms) = (SystemTime::now(), Arc::new(AtomicU64::new(0)));
    config.clock = Some({
        let ms = Arc::clone(&ms);
        Arc::new(move || epoch + Duration::from_millis(ms.load(Ordering::SeqCst)))
    });
    let reminders = StoredReminders::start(Arc::new(MemoryStore::new()), config);
    let (attempts, heard) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(None)));
    reminders.add("room", {
        let (attempts, ms) = (Arc::clone(&attempts), Arc::clone(&ms));
        move |_, _| {
            attempts.fetch_add(1, Ordering::SeqCst);
            ms.fetch_add(1, Ordering::SeqCst);
            Box::pin(async { Err(AskError::Stopped) })
        }
    });
    reminders.add("cart", {
        let (attempts, heard) = (Arc::clone(&attempts), Arc::clone(&heard));
        move |_, _| {
            *heard.lock() = Some(attempts.load(Ordering::SeqCst));
            Box::pin(async { Ok(Bytes::new()) })
        }
    });
    let set = async |of: &str, after_ms| {
        let of: ComponentId = of.parse().unwrap();
        reminders.set(&of, "a", Duration::from_millis(after_ms), Bytes::new()).unwrap().await.unwrap();
    };
    for n in 0..MANY {
        set(&format!("room/{n}"), 1_000).await;
    }
    ms.store(1_001, Ordering::SeqCst);
    pass(30_000).await;
    let before = attempts.load(Ordering::SeqCst);
    assert!(before >= 2 * MANY && before.is_multiple_of(MANY), "control: each of them is sent again: {before}");
    // Due soon after the next attempts have begun.
    set("cart/1", 1_000).await;
    ms.fetch_add(900, Ordering::SeqCst);
    pass(64_000).await;
    let heard = heard.lock().expect("it came") - before;
    assert!((100..1_000).contains(&heard), "{heard} of the others were sent before it");
    assert!(attempts.load(Ordering::SeqCst) >= before + MANY);
}

#[tokio::test(start_paused = true)]
async fn so_many_actors_of_a_kind_have_reminders() {
    let mut config = ReminderConfig::default();
    config.most_actors = 2;
    let store = Arc::new(MemoryStore::new());
    let reminders = StoredReminders::start(Arc::clone(&store) as Arc<dyn StateStore>, config);
    for kind in ["cart", "room"] {
        reminders.add(kind, |_, _| Box::pin(async { Ok(Bytes::new()) }));
    }
    let set = async |of: &str, name: &str| {
        let of: ComponentId = of.parse().unwrap();
        reminders.set(&of, name, Duration::from_secs(60), Bytes::new()).unwrap().await
    };
    set("cart/1", "a").await.unwrap();
    set("cart/2", "a").await.unwrap();
    let refused = set("cart/3", "a").await;
    assert!(matches!(refused, Err(ReminderError::Unavailable(_))), "{refused:?}");
    assert_eq!(store.count("!due").await.unwrap(), 2, "it has left no row");
    // Control: others of those that have some, and of another kind.
    set("cart/2", "b").await.unwrap();
    set("room/1", "a").await.unwrap();
    reminders.forget(&cart("1")).await.unwrap();
    set("cart/3", "a").await.unwrap();
}

/// Guests of a kind whose reminders are kept, by a clock that is stopped with tokio's.
async fn guests_with_reminders() -> (ActorSystem, Arc<Faulty>, Keyed) {
    let (system, store) = (system(), Faulty::new());
    let carts = carts(&system, &LATER, KeyedOptions::default(), &store).await;
    let (begun, epoch) = (Instant::now(), SystemTime::now());
    let reminders = started(Arc::clone(&store) as _, Arc::new(move || epoch + begun.elapsed()));
    reminders.keep(&carts);
    system.add_reminders(Arc::new(reminders) as Arc<dyn Reminders>);
    (system, store, carts)
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_is_not_in_memory_is_brought_there_for_its_reminder() {
    let (_system, store, carts) = guests_with_reminders().await;

    let set = |after_ms: u64| [&[3, 4][..], b"wake", &after_ms.to_le_bytes(), b"\0a payload"].concat();
    let actor = carts.actor("4711").unwrap();
    assert_eq!(actor.ask(set(5_000)).await.unwrap()[0], 0);
    assert!(carts.passivate("4711").await.unwrap());
    assert_eq!((carts.stats().live, carts.stats().activations), (0, 1));
    pass(4_900).await;
    assert_eq!(carts.stats().activations, 1, "not before it is due");
    pass(200).await;
    assert_eq!(carts.stats().activations, 2);
    assert_eq!(store.rows.count("!due").await.unwrap(), 0, "it was handled");

    // One that is cancelled does not.
    assert_eq!(actor.ask(set(5_000)).await.unwrap()[0], 0);
    let cancelled = actor.ask("\x04\x04wake").await.unwrap();
    assert_eq!((cancelled[0], cancelled[8]), (0, 1));
    assert!(carts.passivate("4711").await.unwrap());
    let activations = carts.stats().activations;
    pass(10_000).await;
    assert_eq!(carts.stats().activations, activations);
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_crashes_over_its_reminder_gets_it_again() {
    let (system, store, carts) = guests_with_reminders().await;
    let trap = [&[3, 4][..], b"trap", &1_000_u64.to_le_bytes(), &[9]].concat();
    assert_eq!(carts.actor("1").unwrap().ask(trap).await.unwrap()[0], 0);
    let mut events = system.events();
    pass(30_000).await;
    let crashes = std::iter::from_fn(|| events.try_recv().ok())
        .filter(|event| matches!(event, airssys_wasm_actor::SystemEvent::Crashed(_)))
        .count();
    // After 1 s, and 1, 2, 4, 8 and 16 s later, unless it is quarantined then.
    assert!((3..=6).contains(&crashes), "{crashes}");
    assert_eq!(store.rows.count("!due").await.unwrap(), 1, "it is kept");
}

#[tokio::test(start_paused = true)]
async fn they_are_admitted_like_messages_and_those_that_are_not_come_again() {
    let (system, store) = (system(), Faulty::new());
    let admission = Admission { kind: Rate { per_second: 0.5, burst: 1 }, ..Admission::default() };
    let carts = carts(&system, &COUNTER, KeyedOptions { admission, ..KeyedOptions::default() }, &store).await;
    let (begun, epoch) = (Instant::now(), SystemTime::now());
    let reminders = started(Arc::clone(&store) as _, Arc::new(move || epoch + begun.elapsed()));
    reminders.keep(&carts);
    for key in ["1", "2"] {
        let set = reminders.set(&cart(key), "a", Duration::from_secs(5), Bytes::from("add 7"));
        set.unwrap().await.unwrap();
    }
    pass(5_010).await;
    let stats = carts.stats();
    assert_eq!((stats.activations, stats.refused, store.rows.count("!due").await.unwrap()), (1, 1, 1));
    pass(10_000).await;
    assert_eq!((carts.stats().activations, store.rows.count("!due").await.unwrap()), (2, 0));
    for key in ["1", "2"] {
        assert_eq!(ask(&carts, key, "get").await.unwrap(), "7");
    }
}

/// Counters of a kind with the reminders of one of them, in a store of their own.
async fn with_a_reminder() -> (ActorSystem, Arc<Faulty>, Keyed, Arc<Fails>, Arc<StoredReminders>) {
    let (system, store) = (system(), Faulty::new());
    let carts = carts(&system, &COUNTER, KeyedOptions::default(), &store).await;
    let fails = Arc::<Fails>::default();
    let (begun, epoch) = (Instant::now(), SystemTime::now());
    let reminders = started(Arc::clone(&fails) as _, Arc::new(move || epoch + begun.elapsed()));
    reminders.keep(&carts);
    let reminders = Arc::new(reminders);
    system.add_reminders(Arc::clone(&reminders) as Arc<dyn Reminders>);
    ask(&carts, "1", "add 5").await.unwrap();
    assert!(carts.passivate("1").await.unwrap());
    reminders.set(&cart("1"), "a", Duration::from_secs(5), Bytes::from("add 7")).unwrap().await.unwrap();
    (system, store, carts, fails, reminders)
}

#[tokio::test(start_paused = true)]
async fn who_forgets_a_key_forgets_its_reminders() {
    for is_in_memory in [true, false] {
        let (_system, store, carts, rows, reminders) = with_a_reminder().await;
        reminders.set(&cart("2"), "a", Duration::from_secs(5), Bytes::from("add 7")).unwrap().await.unwrap();
        if is_in_memory {
            ask(&carts, "1", "get").await.unwrap();
        }
        carts.forget("1").await.unwrap();
        assert_eq!((rows.count("!due").await.unwrap(), rows.count("!reminders/cart").await.unwrap()), (1, 1));
        assert_eq!(store.row("1").await, None);
        pass(10_000).await;
        assert_eq!(ask(&carts, "1", "get").await.unwrap(), "0", "{is_in_memory}");
        // Control: that of another comes.
        assert_eq!(ask(&carts, "2", "get").await.unwrap(), "7");
    }
}

#[tokio::test(start_paused = true)]
async fn reminders_are_forgotten_before_the_state() {
    for is_in_memory in [true, false] {
        let (_system, store, carts, rows, _reminders) = with_a_reminder().await;
        if is_in_memory {
            ask(&carts, "1", "get").await.unwrap();
        }
        // What is not forgotten leaves the state, which says so.
        rows.writes.store(true, Ordering::SeqCst);
        let error = carts.forget("1").await.unwrap_err();
        assert_eq!(matches!(error, ForgetError::Reminders(_)), !is_in_memory, "{error:?}");
        assert_eq!((rows.count("!due").await.unwrap(), store.count_of("1").await), (1, Some(5)));
        rows.writes.store(false, Ordering::SeqCst);
        store.set_full(true);
        carts.forget("1").await.unwrap_err();
        assert_eq!((rows.count("!due").await.unwrap(), store.count_of("1").await), (0, Some(5)));
        store.set_full(false);
        carts.forget("1").await.unwrap();
        assert_eq!(ask(&carts, "1", "get").await.unwrap(), "0", "{is_in_memory}");
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_a_guest_does_not_wait_for_is_set_and_holds_up_nobody() {
    let store = Faulty::new();
    let reminders = StoredReminders::start(Arc::clone(&store) as _, ReminderConfig::default());
    reminders.add("cart", |_, _| Box::pin(async { Ok(Bytes::new()) }));
    store.writes.forget_permits(usize::MAX);
    // Polled once, until it waits for the store.
    let mut begun = reminders.set(&cart("1"), "a", Duration::from_secs(60), Bytes::new()).unwrap();
    assert!(begun.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    store.writes.add_permits(10);
    let others = async {
        assert!(reminders.cancel(&cart("1"), "a").unwrap().await.unwrap());
        // In the order in which they are begun, whether they are waited for or not.
        let set = reminders.set(&cart("1"), "b", Duration::from_secs(60), Bytes::new());
        reminders.forget(&cart("1")).await.unwrap();
        drop(set);
    };
    tokio::time::timeout(Duration::from_secs(30), others).await.unwrap();
    assert_eq!((store.rows.count("!due").await.unwrap(), store.rows.count("!reminders/cart").await.unwrap()), (0, 0));
    drop(begun);
}

/// What is heard where one is stored only when it is due, and another is due meanwhile. `None` if their two actors share a
/// turn, which is drawn at random: then the other waits as well.
async fn heard_with_one_stored_late() -> Option<Vec<String>> {
    let store = Faulty::new();
    let (begun, epoch) = (Instant::now(), SystemTime::now());
    let reminders = started(Arc::clone(&store) as _, Arc::new(move || epoch + begun.elapsed()));
    let heard = Arc::<Mutex<Vec<String>>>::default();
    reminders.add("cart", {
        let heard = Arc::clone(&heard);
        move |key, _| {
            heard.lock().push(key.to_owned());
            Box::pin(async { Ok(Bytes::new()) })
        }
    });
    let set = |key, after| reminders.set(&cart(key), "a", Duration::from_millis(after), Bytes::new()).unwrap();
    set("other", 1_500).await.unwrap();
    store.writes.forget_permits(usize::MAX);
    let late = set("late", 1_000);
    pass(2_000).await;
    if heard.lock().is_empty() {
        return None;
    }
    store.writes.add_permits(Semaphore::MAX_PERMITS);
    late.await.unwrap();
    pass(100_000).await;
    let heard = heard.lock().clone();
    Some(heard)
}

#[tokio::test(start_paused = true)]
async fn one_that_is_stored_only_when_it_is_due_comes_nevertheless() {
    for _ in 0..8 {
        if let Some(heard) = heard_with_one_stored_late().await {
            return assert_eq!(heard, ["other", "late"]);
        }
    }
    panic!("of 64 turns all had the same eight times");
}

/// A host with counters that others have as well, and their reminders.
struct Host {
    _system: ActorSystem,
    owner: Arc<Parts>,
    carts: Keyed,
    reminders: Arc<StoredReminders>,
}

impl Host {
    async fn new(parts: &[usize], store: &Arc<Faulty>, clock: &Clock) -> Self {
        let (system, owner) = (system(), Parts::of(parts));
        let carts = owners::carts(&system, &owner, SaveWhen::OnIdle, store).await;
        let mut config = ReminderConfig::default();
        (config.clock, config.most_actors) = (Some(Arc::clone(clock)), 3);
        let reminders = Arc::new(StoredReminders::start_shared(&carts, Arc::clone(store) as _, config));
        system.add_reminders(Arc::clone(&reminders) as _);
        Self { _system: system, owner, carts, reminders }
    }

    async fn set(&self, key: &str, after_ms: u64, payload: &'static str) -> Result<(), ReminderError> {
        let after = Duration::from_millis(after_ms);
        self.reminders.set(&cart(key), "a", after, Bytes::from(payload)).expect("the kind is known").await
    }

    async fn get(&self, key: &str) -> String {
        ask(&self.carts, key, "get").await.unwrap()
    }
}

/// Two hosts, each with a part of the keys.
async fn two_hosts() -> (Arc<Faulty>, Host, Host) {
    let (store, begun, epoch) = (Faulty::new(), Instant::now(), SystemTime::now());
    let clock: Clock = Arc::new(move || epoch + begun.elapsed());
    let (a, b) = (Host::new(&[1], &store, &clock).await, Host::new(&[2], &store, &clock).await);
    (store, a, b)
}

#[tokio::test(start_paused = true)]
async fn each_host_sends_those_of_its_own_keys_once() {
    let (store, a, b) = two_hosts().await;
    for (host, key) in [(&a, "11"), (&b, "21"), (&a, "12"), (&b, "22")] {
        host.set(key, 2_000, "add 7").await.unwrap();
    }
    assert_eq!((store.rows.count("!due/cart").await.unwrap(), store.rows.count("!due").await.unwrap()), (4, 0));
    pass(1_900).await;
    assert_eq!((a.carts.stats().activations, b.carts.stats().activations), (0, 0));
    pass(200).await;
    assert_eq!((a.carts.stats().activations, b.carts.stats().activations), (2, 2));
    for (host, key) in [(&a, "11"), (&b, "21"), (&a, "12"), (&b, "22")] {
        assert_eq!(host.get(key).await, "7");
    }
    pass(1_000_000).await;
    assert_eq!((a.get("11").await, b.get("22").await), ("7".to_owned(), "7".to_owned()));
    assert_eq!(store.rows.count("!due/cart").await.unwrap(), 0);
    assert_eq!(store.rows.count("!reminders/cart").await.unwrap(), 0);
    // So many actors of each host have any.
    for (key, is_set) in [("11", true), ("12", true), ("13", true), ("14", false), ("11", true)] {
        assert_eq!(a.set(key, 1_000, "get").await.is_ok(), is_set, "{key}");
    }
    b.set("21", 1_000, "get").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn they_go_where_a_part_goes_and_come_late_if_it_was_nobodys() {
    let (_store, a, b) = two_hosts().await;
    a.set("11", 5_000, "add 7").await.unwrap();
    a.set("12", 50_000, "add 7").await.unwrap();
    assert!(matches!(a.set("21", 5_000, "add 7").await, Err(ReminderError::Unavailable(_))), "it is not its key");
    a.owner.lose(1);
    pass(10_000).await;
    assert_eq!((a.carts.stats().activations, b.carts.stats().activations), (0, 0), "nobody has the part");
    b.owner.give(1);
    b.reminders.parts_came();
    pass(100).await;
    assert_eq!((a.carts.stats().activations, b.carts.stats().activations), (0, 1));
    assert_eq!(b.get("11").await, "7");
    // Set anew or cancelled by who has it now.
    b.set("12", 1_000, "add 9").await.unwrap();
    pass(1_100).await;
    assert_eq!(b.get("12").await, "9");
    pass(100_000).await;
    assert_eq!((b.get("11").await, b.get("12").await), ("7".to_owned(), "9".to_owned()));
    assert_eq!(a.carts.stats().activations, 0);
}

#[tokio::test(start_paused = true)]
async fn a_part_that_goes_waits_for_what_is_being_set() {
    let (store, a, b) = two_hosts().await;
    store.writes.forget_permits(Semaphore::MAX_PERMITS);
    let sets = a.reminders.set(&cart("11"), "a", Duration::from_secs(5), Bytes::from("add 7")).unwrap();
    let mut are_set = std::pin::pin!(a.reminders.are_set());
    assert!(futures_util::poll!(&mut are_set).is_pending());
    store.writes.add_permits(100);
    are_set.await;
    sets.await.unwrap();
    a.owner.lose(1);
    b.owner.give(1);
    b.reminders.parts_came();
    pass(6_000).await;
    assert_eq!(b.get("11").await, "7");
}

#[tokio::test(start_paused = true)]
async fn one_that_is_set_while_the_key_is_lost_is_not_promised() {
    let (store, a, _b) = two_hosts().await;
    store.writes.forget_permits(Semaphore::MAX_PERMITS);
    let sets = a.reminders.set(&cart("11"), "a", Duration::from_secs(5), Bytes::from("add 7")).unwrap();
    a.owner.lose(1);
    store.writes.add_permits(100);
    assert!(matches!(sets.await, Err(ReminderError::Unavailable(_))));
}

#[tokio::test(start_paused = true)]
async fn those_of_a_kind_of_several_hosts_are_not_kept_as_those_of_one() {
    let (system, store, owner) = (system(), Faulty::new(), Parts::of(&[1]));
    let carts = owners::carts(&system, &owner, SaveWhen::OnIdle, &store).await;
    let reminders = StoredReminders::start(Arc::clone(&store) as _, ReminderConfig::default());
    reminders.keep(&carts);
    assert!(reminders.set(&cart("11"), "a", Duration::from_secs(1), Bytes::new()).is_none());
}
