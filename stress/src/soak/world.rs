//! One round's system: who is there, how to reach them, and the books of all who send and receive.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use airssys_wasm_actor::{
    ActorRef, ActorSystem, DeadLetterLimits, DeadReason, Lifecycle, SpawnError, SupervisorRef, SystemConfig,
};
use airssys_wasm_registry::ComponentId;
use anyhow::Result;
use parking_lot::{Mutex, RwLock};

use super::{
    cast::{self, BLOCK, Code, Sandboxes, TREES, id},
    ledger::{Class, Desk, Finding, Kind, Outbox, Tag},
    load::{NATIVES, Receiver, Sender},
};

/// Findings that are kept of a round.
const FINDINGS: usize = 20;

pub(crate) struct World {
    pub(crate) system: ActorSystem,
    pub(crate) sandboxes: Sandboxes,
    pub(crate) ids: Vec<ComponentId>,
    by_kind: BTreeMap<Kind, Vec<usize>>,
    /// Each actor as it was spawned last.
    actors: Vec<RwLock<Option<ActorRef>>>,
    /// Each supervisor as it was started last, for one at a time to start it anew.
    pub(crate) trees: Vec<tokio::sync::Mutex<Option<SupervisorRef>>>,
    /// By sender.
    pub(crate) outboxes: Vec<Mutex<Outbox>>,
    /// By receiver; the last is that of all the host's subscriptions.
    pub(crate) desks: Vec<Mutex<Desk>>,
    /// Who publishes holds it, and who ends a subscription has it alone: what is still in that could not be counted.
    pub(crate) gate: tokio::sync::RwLock<()>,
    findings: Mutex<Vec<Finding>>,
    /// What has happened, and how often.
    deeds: Mutex<BTreeMap<&'static str, u64>>,
    /// By sender, since when it waits and for what.
    pub(crate) waits: Mutex<HashMap<usize, (Instant, String)>>,
    /// Which messages to natives are lost on purpose.
    pub(crate) lose_one_in: Option<u64>,
    over: AtomicBool,
    random: Mutex<fastrand::Rng>,
}

impl World {
    /// A system in which everybody is spawned.
    pub(crate) async fn new(
        code: &Code,
        blocks: usize,
        mut random: fastrand::Rng,
        lose_one_in: Option<u64>,
    ) -> Result<Arc<Self>> {
        let all = usize::MAX;
        let config = SystemConfig {
            // None makes room for another: they are taken out all the time.
            dead_letters: DeadLetterLimits { letters: all, letters_per_actor: all, bytes: all, bytes_per_actor: all },
            metrics_per_actor: true,
            latencies: true,
            seed: Some(random.u64(..)),
            ..SystemConfig::default()
        };
        let system = ActorSystem::new(code.engine.clone(), config);
        let (receivers, senders) = (blocks * BLOCK, NATIVES + blocks * cast::SENDING);
        let mut by_kind = BTreeMap::<Kind, Vec<usize>>::new();
        for receiver in 0..receivers {
            by_kind.entry(cast::kind_of(receiver)).or_default().push(receiver);
        }
        let desk = |receiver| Mutex::new(Desk::new(senders, cast::redelivery(receiver).is_some()));
        let world = Arc::new(Self {
            sandboxes: Sandboxes::link(&system, code, blocks)?,
            system,
            ids: (0..receivers).map(|receiver| id(format!("r{receiver}"))).collect(),
            by_kind,
            actors: (0..receivers).map(|_| RwLock::default()).collect(),
            trees: (0..blocks * TREES).map(|_| tokio::sync::Mutex::default()).collect(),
            outboxes: (0..senders).map(|_| Mutex::new(Outbox::new(receivers + 1))).collect(),
            desks: (0..receivers).map(desk).chain([Mutex::new(Desk::new(senders, false))]).collect(),
            gate: tokio::sync::RwLock::default(),
            findings: Mutex::default(),
            deeds: Mutex::default(),
            waits: Mutex::default(),
            lose_one_in,
            over: AtomicBool::new(false),
            random: Mutex::new(random),
        });
        // Those that others depend on first.
        let (steady, others): (Vec<_>, Vec<_>) = (0..receivers).partition(|at| cast::kind_of(*at) == Kind::Steady);
        for receiver in steady.into_iter().chain(others) {
            world.spawn(receiver).await;
        }
        for tree in 0..world.trees.len() {
            world.start_anew(tree).await;
        }
        Ok(world)
    }

    pub(crate) fn random(&self) -> fastrand::Rng {
        self.random.lock().fork()
    }

    /// Somebody of these kinds, who may be gone by now.
    pub(crate) fn any(&self, kinds: &[Kind], random: &mut fastrand::Rng) -> Option<Receiver> {
        let kind = random.choice(kinds)?;
        self.receiver(*random.choice(self.by_kind.get(kind)?)?)
    }

    pub(crate) fn receiver(&self, at: usize) -> Option<Receiver> {
        Some(Receiver { at, kind: cast::kind_of(at), actor: self.actors[at].read().clone()? })
    }

    pub(crate) fn all(&self, kind: Kind) -> impl Iterator<Item = Receiver> {
        self.by_kind.get(&kind).into_iter().flatten().filter_map(|&at| self.receiver(at))
    }

    /// Whether the load is to stop.
    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    pub(crate) fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    pub(crate) fn did(&self, deed: &'static str) {
        self.did_often(deed, 1);
    }

    pub(crate) fn did_often(&self, deed: &'static str, times: u64) {
        *self.deeds.lock().entry(deed).or_default() += times;
    }

    pub(crate) fn counts(&self) -> impl Iterator<Item = (String, u64)> {
        self.deeds.lock().clone().into_iter().map(|(deed, count)| (deed.to_owned(), count))
    }

    pub(crate) fn report(&self, finding: Finding) {
        let mut findings = self.findings.lock();
        if findings.len() < FINDINGS {
            findings.push(finding);
        }
    }

    pub(crate) fn findings(&self) -> Vec<Finding> {
        self.findings.lock().clone()
    }

    /// A native begins a message. Says whether it is delivered again.
    pub(crate) fn begin(&self, receiver: usize, tag: Tag) -> bool {
        match self.desks[receiver].lock().begin(tag) {
            Ok(again) => {
                if again {
                    self.did("delivered again");
                }
                again
            }
            Err(finding) => {
                self.report(Finding::Other(format!("{finding}, to r{receiver}")));
                false
            }
        }
    }

    /// What a listener says that it has heard, which must be in order, publisher by publisher.
    pub(crate) fn heard(&self, listener: usize, heard: &str) {
        let mut desk = Desk::new(self.outboxes.len(), false);
        for tag in heard.split(',').filter_map(|text| Tag::of_text(text, Class::Published)) {
            if let Err(finding) = desk.begin(tag) {
                self.report(Finding::Other(format!("{finding}, to the listener r{listener}")));
            }
        }
    }

    /// Spawns an actor that has no supervisor.
    pub(crate) async fn spawn(self: &Arc<Self>, receiver: usize) {
        let spawned = match cast::kind_of(receiver) {
            Kind::Supervised | Kind::Subject | Kind::Counter => return,
            Kind::Native => self.system.spawn_native(cast::native(self, receiver)).await,
            _ => self.system.spawn(cast::guest(self, receiver)).await,
        };
        match spawned {
            Ok(actor) => {
                *self.actors[receiver].write() = Some(actor);
                self.did("spawned");
            }
            Err(error) => self.not_spawned(&error),
        }
    }

    /// Ends a supervisor with all that is below it, and starts it again.
    pub(crate) async fn start_anew(self: &Arc<Self>, tree: usize) {
        // Somebody else is at it.
        let Ok(mut supervisor) = self.trees[tree].try_lock() else { return };
        if let Some(supervisor) = supervisor.take() {
            supervisor.stop();
            supervisor.ended().await;
            self.did("supervisors stopped");
        }
        match self.system.supervise(cast::tree(self, tree)).await {
            Ok(started) => {
                for actor in started.actors() {
                    if let Some(at) = super::receiver_of(actor.id().as_str()) {
                        *self.actors[at].write() = Some(actor);
                    }
                }
                *supervisor = Some(started);
                self.did("supervisors started");
            }
            Err(error) => self.not_spawned(&error),
        }
    }

    fn not_spawned(&self, error: &SpawnError) {
        match error {
            // By whoever was faster.
            SpawnError::NameTaken(_) => self.did("not spawned: name taken"),
            // Killed meanwhile, or without memory.
            SpawnError::Start { .. } | SpawnError::GaveUp { .. } => self.did("not spawned: not started"),
            SpawnError::ShuttingDown => self.did("not spawned: too late"),
            other => self.report(Finding::Other(other.to_string())),
        }
    }

    /// Brings back who was given up.
    pub(crate) async fn revive(self: &Arc<Self>) {
        for receiver in 0..self.actors.len() {
            let is_gone = self.actors[receiver].read().as_ref().is_none_or(|actor| actor.state() == Lifecycle::Stopped);
            if is_gone && !self.is_over() {
                self.spawn(receiver).await;
            }
        }
        for tree in 0..self.trees.len() {
            let is_gone = match self.trees[tree].try_lock() {
                Ok(supervisor) => supervisor.as_ref().is_none_or(|supervisor| supervisor.actors().is_empty()),
                Err(_) => false,
            };
            if is_gone && !self.is_over() {
                self.start_anew(tree).await;
            }
        }
    }

    /// Takes the dead letters out and puts each where it belongs.
    pub(crate) fn bury(&self) {
        for letter in self.system.dead_letters().drain() {
            let receiver = super::receiver_of(letter.to.id().as_str());
            let (Some(receiver), Some(tag)) = (receiver, Tag::of(&letter.message)) else {
                self.report(Finding::Other(format!("a dead letter that nobody has sent: {letter:?}")));
                continue;
            };
            self.desks[receiver].lock().dead(tag);
            self.did(match letter.reason {
                DeadReason::Poison { .. } => "dead: crashed its receiver",
                DeadReason::Interrupted => "dead: interrupted",
                DeadReason::Stopped => "dead: stopped",
                DeadReason::Late => "dead: late",
                DeadReason::TooLarge { .. } => "dead: too large",
                _ => "dead: otherwise",
            });
        }
    }

    /// Asks the counters that nobody has crashed whether they have counted all.
    pub(crate) async fn count(self: &Arc<Self>) {
        // Whoever makes chaos has ended by now.
        let sender = Sender::new(self, NATIVES - 1);
        for counter in self.all(Kind::Steady) {
            let told = self.outboxes.iter().map(|outbox| outbox.lock().taken(counter.at, Class::Tell)).sum::<u64>();
            let says = sender.ask(&counter, "get".into()).await.map(|says| String::from_utf8_lossy(&says).into_owned());
            // The second version says it with a word before.
            if !says.as_ref().is_ok_and(|says| says.trim_start_matches("count: ") == told.to_string()) {
                let counter = counter.at;
                self.report(Finding::Other(format!("r{counter} was told to count {told} times, and says {says:?}")));
            }
        }
    }

    /// Who still waits, and for what; and whom that may be about.
    pub(crate) fn pending(&self) -> String {
        let waits = self.waits.lock();
        let waits = waits.values().map(|(since, what)| format!("{:.1} s: {what}", since.elapsed().as_secs_f64()));
        let actors = self.system.actors();
        let busy = actors.iter().filter(|actor| actor.mailbox.queued > 0 || actor.state != Lifecycle::Running);
        let busy = busy.map(|actor| format!("{} is {}, {} queued", actor.address, actor.state, actor.mailbox.queued));
        format!("{}\nof {} actors", waits.chain(busy).collect::<Vec<_>>().join("\n"), actors.len())
    }
}
