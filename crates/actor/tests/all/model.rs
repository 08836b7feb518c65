//! Seeded schedules of senders, crashes, kills, stops and common restarts, against the plainest of models: what was
//! taken was handled once, or is a dead letter, or its asker was told; and each sender's messages keep their order.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use airssys_wasm_actor::{
    ActorRef, ActorSystem, AskError, Backoff, Intensity, NativeActor, NativeContext, NativeSpec, RestartPolicy, Stop,
    Strategy, SupervisorPolicy, SupervisorSpec, UpgradeOptions,
};
use airssys_wasm_registry::{MessageEnvelope, Refusal};
use bytes::Bytes;
use parking_lot::Mutex;

use crate::support::{COUNTER, COUNTER_V2, ask, id, sandbox, spawn, system};

/// Messages are `KIND ACTOR SENDER NUMBER`: `crash` kills each time, `flaky` the first time, `slow` takes a few turns.
struct Worker {
    handled: Arc<Mutex<Vec<String>>>,
    flaky: Arc<Mutex<BTreeSet<String>>>,
}

impl NativeActor for Worker {
    async fn handle(&mut self, message: &MessageEnvelope, _: &NativeContext) -> Result<Option<Bytes>, String> {
        let text = String::from_utf8(message.payload().to_vec()).unwrap();
        match text.split(' ').next().unwrap() {
            "crash" => panic!("told to crash"),
            "flaky" if self.flaky.lock().insert(text.clone()) => panic!("told to crash once"),
            "slow" => {
                for _ in 0..5 {
                    tokio::task::yield_now().await;
                }
            }
            _ => {}
        }
        self.handled.lock().push(text);
        Ok(Some(message.payload().clone()))
    }
}

/// What its sender knows of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Told,
    Answered,
    Refused,
    Crashed,
    Stopped,
}

const ACTORS: usize = 3;

struct Case {
    system: ActorSystem,
    handled: Arc<Mutex<Vec<String>>>,
    flaky: Arc<Mutex<BTreeSet<String>>>,
    fates: Mutex<BTreeMap<String, Fate>>,
    redelivery: Option<u32>,
    /// Paused time, in which sleeping takes none. On several threads there is only yielding.
    paused: bool,
}

impl Case {
    async fn pass(&self, ms: u64) {
        if self.paused {
            tokio::time::sleep(Duration::from_millis(ms)).await;
        } else {
            for _ in 0..ms {
                tokio::task::yield_now().await;
            }
        }
    }

    fn spec(&self, actor: usize, random: &mut fastrand::Rng) -> NativeSpec<Worker> {
        let (handled, flaky) = (Arc::clone(&self.handled), Arc::clone(&self.flaky));
        let make = move || Worker { handled: Arc::clone(&handled), flaky: Arc::clone(&flaky) };
        let mut spec = NativeSpec::new(id(&format!("a{actor}")), make);
        spec = spec.with_mailbox(random.usize(1..8));
        spec = spec.with_redelivery(self.redelivery);
        spec = spec.with_restart(RestartPolicy {
            intensity: Intensity { restarts: 1_000, within: Duration::from_secs(1) },
            backoff: if self.paused && random.bool() {
                Backoff { first: Duration::from_millis(2), longest: Duration::from_millis(20), ..Backoff::default() }
            } else {
                Backoff::NONE
            },
            ..RestartPolicy::default()
        });
        spec
    }

    fn find(&self, actor: usize) -> Option<ActorRef> {
        self.system.find(&id(&format!("a{actor}")))
    }

    async fn send(&self, sender: usize, mut random: fastrand::Rng) {
        for number in 0..40 {
            let actor = random.usize(..ACTORS);
            let kind = *random.choice(&["plain", "plain", "plain", "slow", "crash", "flaky"]).unwrap();
            let text = format!("{kind} {actor} {sender} {number}");
            let fate = match self.find(actor) {
                None => Fate::Refused,
                Some(to) => match random.u8(..3) {
                    0 => match to.try_tell(text.clone()) {
                        Ok(()) => Fate::Told,
                        Err(refused) => {
                            assert_eq!(&refused.message.payload()[..], text.as_bytes());
                            Fate::Refused
                        }
                    },
                    1 => match to.tell(text.clone()).await {
                        Ok(()) => Fate::Told,
                        Err(refused) => {
                            assert_eq!(refused.reason, Refusal::Stopped);
                            Fate::Refused
                        }
                    },
                    _ => match to.ask(text.clone()).await {
                        Ok(answer) => {
                            assert_eq!(&*answer, text.as_bytes());
                            Fate::Answered
                        }
                        Err(AskError::NotSent(_)) => Fate::Refused,
                        Err(AskError::Crashed(_)) => Fate::Crashed,
                        Err(AskError::Stopped) => Fate::Stopped,
                        Err(other) => panic!("{other:?}"),
                    },
                },
            };
            assert!(self.fates.lock().insert(text, fate).is_none());
            if random.u8(..4) == 0 {
                self.pass(random.u64(..5)).await;
            }
        }
    }

    /// Stops and kills actors, and spawns those again that have no supervisor.
    async fn disturb(&self, supervised: bool, mut random: fastrand::Rng) {
        for _ in 0..if supervised { 2 } else { 10 } {
            self.pass(random.u64(1..15)).await;
            let at = random.usize(..ACTORS);
            let Some(actor) = self.find(at) else { continue };
            match random.u8(..3) {
                0 => actor.stop(Stop::Drain),
                1 => actor.stop(Stop::Now),
                _ => actor.kill(),
            }
            actor.ended().await;
            if !supervised {
                self.system.spawn_native(self.spec(at, &mut random)).await.unwrap();
            }
        }
    }
}

async fn run(seed: u64, paused: bool) {
    let mut random = fastrand::Rng::with_seed(seed);
    let case = Arc::new(Case {
        system: system(),
        handled: Arc::default(),
        flaky: Arc::default(),
        fates: Mutex::default(),
        redelivery: random.bool().then_some(3),
        paused,
    });
    let strategy = *random
        .choice(&[None, None, Some(Strategy::OneForOne), Some(Strategy::OneForAll), Some(Strategy::RestForOne)])
        .unwrap();
    match strategy {
        None => {
            for actor in 0..ACTORS {
                case.system.spawn_native(case.spec(actor, &mut random)).await.unwrap();
            }
        }
        Some(strategy) => {
            let intensity = Intensity { restarts: 1_000, within: Duration::from_secs(1) };
            let backoff = if paused { Backoff::default() } else { Backoff::NONE };
            let policy = SupervisorPolicy { strategy, intensity, backoff, ..SupervisorPolicy::default() };
            let spec = (0..ACTORS)
                .fold(SupervisorSpec::new(id("s"), policy), |spec, at| spec.native(case.spec(at, &mut random)));
            case.system.supervise(spec).await.unwrap();
        }
    }
    let mut tasks = Vec::new();
    for sender in 0..3 {
        let (case, random) = (Arc::clone(&case), random.fork());
        tasks.push(tokio::spawn(async move { case.send(sender, random).await }));
    }
    let (disturbed, random) = (Arc::clone(&case), random.fork());
    tasks.push(tokio::spawn(async move { disturbed.disturb(strategy.is_some(), random).await }));
    for task in tasks {
        task.await.unwrap();
    }
    let report = case.system.shutdown(Duration::from_secs(3_600)).await;
    assert!(report.killed.is_empty() && report.stuck.is_empty(), "seed {seed}: {report:?}");
    check(seed, &case);
}

fn check(seed: u64, case: &Case) {
    let handled = case.handled.lock().clone();
    let dead: Vec<_> = case.system.dead_letters().list();
    let dead: Vec<_> =
        dead.iter().map(|letter| String::from_utf8_lossy(letter.message.payload()).into_owned()).collect();
    let count = |list: &[String], text: &str| list.iter().filter(|other| *other == text).count();
    assert_eq!(case.fates.lock().len(), 3 * 40);
    for (text, fate) in case.fates.lock().iter() {
        let (handled, dead) = (count(&handled, text), count(&dead, text));
        let fits = match fate {
            Fate::Told => handled + dead == 1,
            Fate::Answered => (handled, dead) == (1, 0),
            Fate::Refused | Fate::Stopped => (handled, dead) == (0, 0),
            Fate::Crashed => (handled, dead) == (0, 1),
        };
        assert!(fits, "seed {seed}: `{text}` {fate:?}: handled {handled} times, dead {dead} times");
    }
    // Each pair of sender and actor by itself.
    for sender in 0..3 {
        for actor in 0..ACTORS {
            let numbers: Vec<u32> = handled
                .iter()
                .filter_map(|text| match text.split(' ').collect::<Vec<_>>()[..] {
                    [_, to, from, number] if to == actor.to_string() && from == sender.to_string() => {
                        Some(number.parse().unwrap())
                    }
                    _ => None,
                })
                .collect();
            assert!(numbers.is_sorted(), "seed {seed}: from {sender} to {actor}: {numbers:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn no_message_is_lost_or_doubled_and_order_is_kept() {
    for seed in 0..200 {
        run(seed, true).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_on_several_threads() {
    for seed in 0..100 {
        run(seed, false).await;
    }
}

#[tokio::test]
async fn upgrades_amid_messages_lose_none() {
    for seed in 0..20 {
        let mut random = fastrand::Rng::with_seed(seed);
        let system = system();
        let counter = spawn(&system, "counter", &COUNTER).await;
        let senders: Vec<_> = (0..3)
            .map(|_| {
                let (counter, mut random) = (counter.clone(), random.fork());
                tokio::spawn(async move {
                    for _ in 0..30 {
                        counter.tell("add 1").await.unwrap();
                        if random.bool() {
                            tokio::task::yield_now().await;
                        }
                    }
                })
            })
            .collect();
        for _ in 0..5 {
            for _ in 0..random.u8(..20) {
                tokio::task::yield_now().await;
            }
            let to = if random.bool() { &*COUNTER } else { &*COUNTER_V2 };
            system.upgrade(counter.address(), sandbox(&system, to), UpgradeOptions::default()).await.unwrap();
        }
        for sender in senders {
            sender.await.unwrap();
        }
        let count = ask(&counter, "get").await.unwrap();
        assert_eq!(count.trim_start_matches("count: "), "90", "seed {seed}");
    }
}
