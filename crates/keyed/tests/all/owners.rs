//! Keys of which another host may have some.

use std::{
    collections::BTreeMap,
    pin::pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    time::Duration,
};

use airssys_wasm_actor::{ActorSystem, AskError, DeadReason, Fence, UpgradeOptions};
use airssys_wasm_keyed::{ForgetError, Keyed, KeyedOptions, KeyedSpec, Owner, SaveWhen};
use airssys_wasm_registry::{ComponentId, Refusal};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::support::{COUNTER, COUNTER_V2, Faulty, ask, id, pass, sandbox, settle, system, template};

/// Has parts of the keys, by their first digit.
#[derive(Default)]
pub(crate) struct Parts(Mutex<BTreeMap<usize, Arc<Held>>>);

#[derive(Debug)]
pub(crate) struct Held(AtomicBool);

impl Fence for Held {
    fn holds(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

impl Owner for Parts {
    fn part(&self, name: &ComponentId) -> usize {
        name.as_str()["cart/".len()..][..1].parse().unwrap()
    }

    fn fence(&self, part: usize) -> Option<Arc<dyn Fence>> {
        let held = Arc::clone(self.0.lock().get(&part)?);
        Some(held)
    }

    fn has(&self, part: usize) -> bool {
        self.0.lock().contains_key(&part)
    }
}

impl Parts {
    pub(crate) fn of(parts: &[usize]) -> Arc<Self> {
        let owner = Self::default();
        parts.iter().for_each(|part| owner.give(*part));
        Arc::new(owner)
    }

    pub(crate) fn give(&self, part: usize) {
        self.0.lock().insert(part, Arc::new(Held(AtomicBool::new(true))));
    }

    /// Nothing more is activated; what is in memory goes on.
    fn close(&self, part: usize) -> Arc<Held> {
        self.0.lock().remove(&part).unwrap()
    }

    pub(crate) fn lose(&self, part: usize) {
        self.close(part).0.store(false, Ordering::SeqCst);
    }
}

/// Has all keys, and does something when it is asked for the fence of `cart/slow` the second time: when a place in memory is
/// taken for it, and it is not registered yet.
struct Meanwhile<F> {
    asked: AtomicUsize,
    does: F,
}

impl<F: Fn() + Send + Sync + 'static> Meanwhile<F> {
    fn new(does: F) -> Arc<Self> {
        Arc::new(Self { asked: AtomicUsize::new(0), does })
    }
}

impl<F: Fn() + Send + Sync + 'static> Owner for Meanwhile<F> {
    fn part(&self, name: &ComponentId) -> usize {
        usize::from(name.as_str() == "cart/slow")
    }

    fn fence(&self, part: usize) -> Option<Arc<dyn Fence>> {
        if part == 1 && self.asked.fetch_add(1, Ordering::SeqCst) == 1 {
            (self.does)();
        }
        Some(Arc::new(Held(AtomicBool::new(true))))
    }

    fn has(&self, _: usize) -> bool {
        true
    }
}

pub(crate) async fn carts<O: Owner>(
    system: &ActorSystem,
    owner: &Arc<O>,
    save: SaveWhen,
    store: &Arc<Faulty>,
) -> Keyed {
    let options = KeyedOptions { save, ..KeyedOptions::default() };
    let spec = KeyedSpec::new(template(system, "cart", &COUNTER)).with_options(options);
    Keyed::install(system, spec.with_owner(Arc::clone(owner) as _), Arc::clone(store) as _).await.unwrap()
}

fn is_moved(asked: Result<String, AskError>) -> bool {
    matches!(asked, Err(AskError::NotSent(back)) if back.reason == Refusal::Moved)
}

#[tokio::test]
async fn a_key_of_another_host_is_not_brought_into_memory() {
    let (system, store, owner) = (system(), Faulty::new(), Parts::of(&[1]));
    let carts = carts(&system, &owner, SaveWhen::OnIdle, &store).await;
    assert_eq!(ask(&carts, "11", "add 1").await.unwrap(), "1");
    assert!(is_moved(ask(&carts, "21", "add 1").await));
    // Who knows other hosts is asked next; there is nobody.
    assert!(system.awaken(&id("cart/21"), None).unwrap().is_none());
    assert!(system.awaken(&id("cart/12"), None).unwrap().is_some());
    assert!(matches!(carts.forget("21").await, Err(ForgetError::Moved)));
    carts.forget("11").await.unwrap();
    // It costs no admission, and is not the key's fault.
    assert_eq!((carts.stats().activations, carts.stats().refused), (2, 0));
    owner.give(2);
    assert_eq!(ask(&carts, "21", "add 1").await.unwrap(), "1");
}

#[tokio::test]
async fn a_part_that_goes_to_another_host_goes_on_there() {
    let (store, owners) = (Faulty::new(), [Parts::of(&[1, 2]), Parts::of(&[])]);
    let systems = [system(), system()];
    let a = carts(&systems[0], &owners[0], SaveWhen::OnIdle, &store).await;
    let b = carts(&systems[1], &owners[1], SaveWhen::OnIdle, &store).await;
    for key in ["11", "12", "21"] {
        ask(&a, key, "add 5").await.unwrap();
    }
    owners[0].close(1);
    // What is in memory goes on until it leaves; nothing else comes there.
    assert_eq!(ask(&a, "11", "add 1").await.unwrap(), "6");
    assert!(is_moved(ask(&a, "13", "add 1").await));
    a.passivate_part(1).await;
    assert!(is_moved(ask(&a, "11", "get").await));
    assert_eq!(a.stats().live, 1);
    owners[1].give(1);
    assert_eq!(ask(&b, "11", "add 1").await.unwrap(), "7");
    assert_eq!(ask(&b, "12", "get").await.unwrap(), "5");
    assert_eq!(ask(&a, "21", "get").await.unwrap(), "5");
    a.passivate_all().await;
    assert_eq!((a.stats().live, store.count_of("21").await), (0, Some(5)));
}

#[tokio::test]
async fn one_that_is_about_to_start_is_waited_for() {
    let (system, store, owner) = (system(), Faulty::new(), Parts::of(&[1]));
    let carts = carts(&system, &owner, SaveWhen::OnIdle, &store).await;
    store.loads.forget_permits(usize::MAX);
    let mut asked = pin!(ask(&carts, "11", "add 1"));
    tokio::select! {
        biased;
        answer = &mut asked => panic!("{answer:?} before it was loaded"),
        () = settle() => {}
    }
    owner.close(1);
    let mut gone = pin!(carts.passivate_part(1));
    tokio::select! {
        biased;
        () = &mut gone => panic!("it is in memory still"),
        () = settle() => {}
    }
    store.loads.add_permits(Semaphore::MAX_PERMITS);
    let (answer, ()) = tokio::join!(asked, gone);
    assert_eq!(answer.unwrap(), "1");
    assert_eq!((carts.stats().live, store.count_of("11").await), (0, Some(1)));
}

#[tokio::test(start_paused = true)]
async fn what_the_store_does_not_take_stays_until_it_does() {
    let (system, store, owner) = (system(), Faulty::new(), Parts::of(&[1]));
    let carts = carts(&system, &owner, SaveWhen::OnIdle, &store).await;
    ask(&carts, "11", "add 1").await.unwrap();
    store.set_full(true);
    owner.close(1);
    let gone = tokio::time::timeout(Duration::from_secs(5), carts.passivate_part(1)).await;
    assert!(gone.is_err() && carts.stats().live == 1);
    store.set_full(false);
    carts.passivate_part(1).await;
    assert_eq!((carts.stats().live, store.count_of("11").await), (0, Some(1)));
}

#[tokio::test]
async fn one_whose_key_is_lost_handles_nothing_and_saves_nothing() {
    for save in [SaveWhen::OnIdle, SaveWhen::EachMessage] {
        let (system, store, owner) = (system(), Faulty::new(), Parts::of(&[1, 2]));
        let carts = carts(&system, &owner, save, &store).await;
        for key in ["11", "21"] {
            ask(&carts, key, "add 1").await.unwrap();
        }
        let before = store.written();
        let (lost, kept) = (system.find("cart/11").unwrap(), system.find("cart/21").unwrap());
        owner.lose(1);
        assert!(matches!(lost.ask("add 1").await, Err(AskError::NotSent(back)) if back.reason == Refusal::Moved));
        lost.tell("add 1").await.unwrap();
        assert_eq!(kept.ask("add 1").await.unwrap(), "2");
        settle().await;
        let letters = system.dead_letters().list();
        assert!(matches!(&letters[..], [letter] if matches!(letter.reason, DeadReason::Fenced)), "{letters:?}");
        // It is out of memory, and its state is not saved.
        carts.passivate("11").await.unwrap();
        assert!(carts.passivate("21").await.unwrap());
        carts.kill_all().await;
        assert_eq!((carts.stats().live, store.count_of("21").await), (0, Some(2)));
        let of_lost = if save == SaveWhen::EachMessage { Some(1) } else { None };
        assert_eq!((store.count_of("11").await, store.written()), (of_lost, before + 1));
        // Nobody is to blame for it: when the part comes back, it goes on from what is saved.
        owner.give(1);
        let again = if save == SaveWhen::EachMessage { "2" } else { "1" };
        assert_eq!(ask(&carts, "11", "add 1").await.unwrap(), again);
    }
}

#[tokio::test(start_paused = true)]
async fn the_sweep_wakes_for_one_that_somebody_else_brought_into_memory_meanwhile() {
    let (system, store) = (system(), Faulty::new());
    let kind = Arc::new(OnceLock::<Keyed>::new());
    let owner = Meanwhile::new({
        let kind = Arc::clone(&kind);
        move || kind.get().unwrap().actor("slow").unwrap().try_tell("add 1").unwrap()
    });
    let carts = carts(&system, &owner, SaveWhen::Within(Duration::from_secs(1)), &store).await;
    kind.set(carts.clone()).unwrap();
    // It has seen that there is nobody.
    settle().await;
    assert_eq!(ask(&carts, "slow", "add 1").await.unwrap(), "2");
    pass(Duration::from_secs(2)).await;
    assert_eq!(store.count_of("slow").await, Some(2));
}

#[tokio::test]
async fn one_that_was_about_to_start_with_a_version_that_failed_goes_back_too() {
    let (system, store) = (system(), Faulty::new());
    let (enters, entered) = mpsc::channel();
    let (go, gone) = mpsc::channel::<()>();
    let gone = Mutex::new(gone);
    let owner = Meanwhile::new(move || {
        enters.send(()).unwrap();
        gone.lock().recv().unwrap();
    });
    let carts = carts(&system, &owner, SaveWhen::OnIdle, &store).await;
    ask(&carts, "fails", "add 1").await.unwrap();
    let on_probation = UpgradeOptions { probation: 5, ..UpgradeOptions::default() };
    carts.upgrade(sandbox(&system, &COUNTER_V2), on_probation).await.unwrap();
    let slow = carts.actor("slow").unwrap();
    let sender = std::thread::spawn(move || slow.try_tell("add 1").unwrap());
    entered.recv().unwrap();
    ask(&carts, "fails", "crash").await.unwrap_err();
    settle().await;
    go.send(()).unwrap();
    sender.join().unwrap();
    settle().await;
    assert_eq!(ask(&carts, "slow", "get").await.unwrap(), "1", "of the version before");
}
