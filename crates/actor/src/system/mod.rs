//! A system of actors: who is there, what they share, and how it all begins and ends.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    num::NonZeroU64,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use airssys_wasm_engine::{ComponentTemplate, LinkError, Linker, LoadedComponent, WasmEngine, wasmtime};
use airssys_wasm_isolation::{HostState, SandboxSpec, add_wasi};
use airssys_wasm_limits::{CancellationToken, MemoryBudget};
use airssys_wasm_registry::{
    ActorAddress, ComponentId, ComponentRegistry, GroupError, MessageBroker, MessageEnvelope, MessageRouter, NameTaken,
    PublishReport, SendError, Subscription, Topic, TopicPattern, WhenFull,
};
use futures_util::future::{BoxFuture, join_all};
use parking_lot::Mutex;
use tokio::{
    sync::{Semaphore, broadcast, mpsc, oneshot},
    time::Instant,
};

use crate::{
    ActorInfo, ActorManifest, ActorRef, ActorSpec, ActorState, CrashReport, DeadLetterLimits, DeadLetters,
    LoadManifestError, NativeActor, NativeSpec, NoHandler, RestartPolicy, StartError, SupervisorPolicy, SupervisorRef,
    UpgradeError, UpgradeOptions,
    failure::policy::{History, later},
    failure::report::Failure,
    guest::imports,
    guest::incarnation::{GuestBlueprint, MakeUser},
    native::NativeBlueprint,
    runtime::cell::{Cell, Control, Endpoint, Room, Upgrade},
    runtime::metrics::Metrics,
    runtime::task::{Blueprint, ComponentActor, Owner},
    supervision::supervisor::{Above, Child, ChildEvent, Supervisor},
};

/// What can be chosen about a system.
#[derive(Debug, Clone, Default)]
pub struct SystemConfig {
    /// How many dead letters are kept.
    pub dead_letters: DeadLetterLimits,
    /// Whether each actor has metrics of its own, by the label `actor`. Default: no, for names may be without number.
    pub metrics_per_actor: bool,
    /// Whether the time that handlers take is measured, which costs two readings of the clock a message. Default: where
    /// a metrics recorder is installed that has any state of its own.
    pub latencies: Option<bool>,
    /// What the memory of components that are loaded by their manifest comes out of. Default: no budget.
    pub memory: Option<MemoryBudget>,
    /// What jitter begins with, for runs that can be repeated. Default: at random.
    pub seed: Option<u64>,
}

/// Something that happened in a system. A receiver that lags more than a thousand behind is told how many it missed.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum SystemEvent {
    /// An incarnation came to life.
    Started {
        /// Whose.
        actor: ActorAddress,
        /// Its number, from 1.
        incarnation: u64,
    },
    /// An incarnation crashed.
    Crashed(Arc<CrashReport>),
    /// An actor will be started again.
    Restarting {
        /// Which.
        actor: ActorAddress,
        /// How long from now.
        after: Duration,
    },
    /// An actor or a supervisor failed too often and was given up.
    GivenUp {
        /// Its name.
        name: ComponentId,
    },
    /// An actor went over to another version.
    Upgraded {
        /// Which.
        actor: ActorAddress,
        /// Its number, from 1.
        incarnation: u64,
    },
    /// A new version failed while it was on probation, and the one before takes over.
    RolledBack {
        /// Whose.
        actor: ActorAddress,
    },
    /// An actor is gone.
    Stopped {
        /// Which.
        actor: ActorAddress,
    },
    /// A guest tried what it is not granted.
    Denied {
        /// Who.
        actor: ActorAddress,
        /// What.
        action: DeniedAction,
        /// With whom: a valid name, topic or pattern.
        target: String,
        /// How often that has happened in this incarnation. There is an event for the first, the second, the fourth, and
        /// so on: no guest is to drown the others' events.
        denials: u64,
    },
}

/// What a guest tried to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each is the import of that name")]
pub enum DeniedAction {
    Send,
    Request,
    Publish,
    Subscribe,
}

impl fmt::Display for DeniedAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Send => "send",
            Self::Request => "request",
            Self::Publish => "publish",
            Self::Subscribe => "subscribe",
        })
    }
}

/// An actor or a supervisor was not spawned. Nothing is left of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpawnError {
    /// Somebody has the name.
    #[error(transparent)]
    NameTaken(#[from] NameTaken),
    /// The component is no actor.
    #[error(transparent)]
    NoHandler(#[from] NoHandler),
    /// An actor that it depends on is not there.
    #[error("`{of}` depends on `{missing}`, and nobody is registered under that name; spawn that first")]
    Dependency {
        /// Who depends.
        of: ComponentId,
        /// On whom.
        missing: ComponentId,
    },
    /// It did not come to life.
    #[error("`{id}` did not start: {error}")]
    Start {
        /// Who.
        id: ComponentId,
        /// Why.
        error: Arc<StartError>,
    },
    /// A supervisor below failed.
    #[error("the supervisor `{id}` gave up")]
    GaveUp {
        /// Which.
        id: ComponentId,
    },
    /// A mailbox for no messages, or for more than can be counted.
    #[error(
        "`{id}` has a mailbox for {size} messages; it must be for one at least and {} at the most",
        Semaphore::MAX_PERMITS
    )]
    Mailbox {
        /// Whose.
        id: ComponentId,
        /// What it is to hold.
        size: usize,
    },
    /// The system is shutting down.
    #[error("the system is shutting down")]
    ShuttingDown,
}

/// What became of a system that was shut down.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ShutdownReport {
    /// Actors that ended by themselves.
    pub stopped: usize,
    /// Those that did not within the deadline and were killed.
    pub killed: Vec<ComponentId>,
    /// Those that could not be killed: a host function blocks their thread.
    pub stuck: Vec<ComponentId>,
}

/// A dead letter was not sent again. It is where it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResendError {
    /// There is none of this number.
    #[error("there is no dead letter {0}")]
    Unknown(u64),
    /// Its receiver did not take it.
    #[error(transparent)]
    NotSent(SendError),
}

/// A system of actors. Cheap to clone; all clones are one system. When the last is dropped, all actors are killed.
///
/// `U` is the embedder's own state in each sandbox, for its own host functions.
pub struct ActorSystem<U: 'static = ()>(Arc<Handle<U>>);

struct Handle<U: 'static> {
    core: Arc<SystemCore>,
    engine: WasmEngine,
    user: MakeUser<U>,
    link: LinkHook<U>,
    memory: Option<MemoryBudget>,
}

type LinkHook<U> = Box<dyn Fn(&mut Linker<HostState<ActorState<U>>>) -> wasmtime::Result<()> + Send + Sync>;

/// What all actors of a system share.
pub(crate) struct SystemCore {
    pub(crate) registry: ComponentRegistry<Endpoint>,
    pub(crate) router: MessageRouter<Endpoint>,
    pub(crate) broker: MessageBroker<Endpoint>,
    pub(crate) dead_letters: DeadLetters,
    /// Who waits for whom, by generation.
    pub(crate) waits: Mutex<HashMap<NonZeroU64, NonZeroU64>>,
    events: broadcast::Sender<SystemEvent>,
    metrics: Arc<Metrics>,
    metrics_per_actor: bool,
    latencies: Option<bool>,
    random: Mutex<fastrand::Rng>,
    /// Supervisors that have none above them, with their level.
    supervisors: Mutex<Vec<(u32, SupervisorRef)>>,
    closing: AtomicBool,
    /// Cancelled when all is over.
    closed: CancellationToken,
}

/// Events that a receiver may lag behind.
const EVENTS: usize = 1_024;

impl SystemCore {
    pub(crate) fn event(&self, event: impl FnOnce() -> SystemEvent) {
        if self.events.receiver_count() > 0 {
            // Fails when the last receiver has just gone.
            _ = self.events.send(event());
        }
    }

    pub(crate) fn metrics_of(&self, id: &ComponentId) -> Arc<Metrics> {
        if self.metrics_per_actor {
            Arc::new(Metrics::new(Some(id), self.latencies))
        } else {
            Arc::clone(&self.metrics)
        }
    }

    pub(crate) fn random(&self) -> fastrand::Rng {
        self.random.lock().fork()
    }

    pub(crate) fn forget_supervisor(&self, supervisor: &SupervisorRef) {
        self.supervisors.lock().retain(|(_, other)| !Arc::ptr_eq(&other.0, &supervisor.0));
    }

    fn find(&self, id: &ComponentId) -> Option<ActorRef> {
        let address = self.registry.lookup(id)?;
        match &*self.registry.resolve(&address).ok()? {
            Endpoint::Actor(cell) => Some(ActorRef(Arc::clone(cell))),
            Endpoint::Host(_) => None,
        }
    }

    fn actors(&self) -> Vec<ActorRef> {
        let resolve = |address: ActorAddress| match &*self.registry.resolve(&address).ok()? {
            Endpoint::Actor(cell) => Some(ActorRef(Arc::clone(cell))),
            Endpoint::Host(_) => None,
        };
        self.registry.list().into_iter().filter_map(resolve).collect()
    }

    /// Those that nobody else would end, with their level.
    fn roots(&self) -> Vec<(u32, Child)> {
        let actors = self.actors().into_iter().filter(|actor| !actor.0.supervised);
        let mut roots: Vec<_> =
            actors.map(|actor| (actor.0.level.load(Ordering::Relaxed), Child::Actor(actor.0))).collect();
        let supervisors = self.supervisors.lock();
        roots.extend(supervisors.iter().map(|(level, root)| (*level, Child::Supervisor(Arc::clone(&root.0)))));
        roots
    }

    /// One more than those it depends on.
    fn level(&self, of: &ComponentId, depends_on: &[ComponentId]) -> Result<u32, SpawnError> {
        let mut level = 0;
        for dependency in depends_on {
            let Some(actor) = self.find(dependency) else {
                return Err(SpawnError::Dependency { of: of.clone(), missing: dependency.clone() });
            };
            level = level.max(actor.0.level.load(Ordering::Relaxed) + 1);
        }
        Ok(level)
    }
}

impl<U> Drop for Handle<U> {
    fn drop(&mut self) {
        self.core.closing.store(true, Ordering::SeqCst);
        for (_, root) in self.core.roots() {
            root.kill();
        }
        self.core.closed.cancel();
    }
}

impl<U> Clone for ActorSystem<U> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<U> fmt::Debug for ActorSystem<U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ActorSystem").field("actors", &self.0.core.registry.len()).finish_non_exhaustive()
    }
}

/// What is common to all that can be spawned.
struct Birth<B> {
    id: ComponentId,
    blueprint: B,
    room: Room,
    policy: RestartPolicy,
    redelivery: Option<u32>,
    depends_on: Vec<ComponentId>,
    subscriptions: Vec<TopicPattern>,
}

impl<B: Blueprint> Birth<B> {
    /// Registers an actor that does not live yet.
    fn prepare(self, core: &Arc<SystemCore>, owner: Owner) -> Result<ComponentActor<B>, SpawnError> {
        if core.closing.load(Ordering::SeqCst) {
            return Err(SpawnError::ShuttingDown);
        }
        if !(1..=Semaphore::MAX_PERMITS).contains(&self.room.messages) {
            return Err(SpawnError::Mailbox { id: self.id, size: self.room.messages });
        }
        let level = core.level(&self.id, &self.depends_on)?;
        let supervised = matches!(owner, Owner::Supervisor { .. });
        // Made before, because it turns to the embedder's recorder.
        let metrics = core.metrics_of(&self.id);
        let mut made = None;
        core.registry.register_with(&self.id, |address| {
            let (cell, inbox) = Cell::new(core, address.clone(), metrics, level, supervised, self.room);
            made = Some((Arc::clone(&cell), inbox));
            Arc::new(Endpoint::Actor(cell))
        })?;
        let (cell, inbox) = made.expect("made while it was registered");
        let actor = ComponentActor::new(cell, inbox, self.blueprint, self.policy, self.redelivery, owner);
        if !self.subscriptions.is_empty() {
            actor.cell().set_patterns(&self.subscriptions);
        }
        // Whoever shuts down either finds it in the registry, or is seen here.
        if core.closing.load(Ordering::SeqCst) { Err(SpawnError::ShuttingDown) } else { Ok(actor) }
    }

    async fn spawn(self, core: &Arc<SystemCore>) -> Result<ActorRef, SpawnError> {
        let mut actor = self.prepare(core, Owner::Itself(History::default()))?;
        let cell = Arc::clone(actor.cell());
        // Where this fails or is given up, dropping the actor takes everything back.
        match actor.start().await {
            Ok(live) => {
                tokio::spawn(actor.run(Some(live)));
                Ok(ActorRef(cell))
            }
            Err(failure) => Err(not_started(cell.id(), failure)),
        }
    }

    fn supervised(
        self,
        core: &Arc<SystemCore>,
        child: usize,
        events: mpsc::UnboundedSender<ChildEvent>,
    ) -> Result<Prepared, SpawnError> {
        let policy = self.policy.clone();
        let actor = self.prepare(core, Owner::Supervisor { child, order: 0, events })?;
        let cell = Arc::clone(actor.cell());
        Ok(Prepared {
            level: cell.level.load(Ordering::Relaxed),
            child: Child::Actor(cell),
            policy,
            tasks: vec![Box::pin(actor.run(None))],
        })
    }
}

fn not_started(id: &ComponentId, failure: Failure) -> SpawnError {
    let id = id.clone();
    match failure {
        Failure::Start(error) => SpawnError::Start { id, error },
        Failure::Crash(report) => SpawnError::Start { id, error: Arc::new(StartError::Crash(report)) },
        Failure::GaveUp(None) => SpawnError::GaveUp { id },
        Failure::GaveUp(Some(below)) => not_started(&below.0, below.1.clone()),
    }
}

/// Somebody supervised, whose tasks are to be spawned when all the others are prepared as well.
struct Prepared {
    level: u32,
    child: Child,
    policy: RestartPolicy,
    tasks: Vec<BoxFuture<'static, ()>>,
}

type PrepareChild =
    Box<dyn FnOnce(&Arc<SystemCore>, usize, mpsc::UnboundedSender<ChildEvent>) -> Result<Prepared, SpawnError> + Send>;

/// A supervisor to be, with its children in the order of their start.
pub struct SupervisorSpec<U: 'static> {
    /// Its name, which is for people: messages cannot be sent to it.
    pub name: ComponentId,
    /// How it answers its children's failures.
    pub policy: SupervisorPolicy,
    children: Vec<ChildSpec<U>>,
}

enum ChildSpec<U: 'static> {
    Actor(Box<ActorSpec<U>>),
    Native(PrepareChild),
    Supervisor(SupervisorSpec<U>),
}

impl<U: Send + 'static> SupervisorSpec<U> {
    /// A supervisor without children.
    pub fn new(name: ComponentId, policy: SupervisorPolicy) -> Self {
        Self { name, policy, children: Vec::new() }
    }

    /// With this component as its next child.
    #[must_use]
    pub fn actor(mut self, spec: ActorSpec<U>) -> Self {
        self.children.push(ChildSpec::Actor(Box::new(spec)));
        self
    }

    /// With this native actor as its next child.
    #[must_use]
    pub fn native<N: NativeActor>(mut self, spec: NativeSpec<N>) -> Self {
        let birth = native_birth(spec);
        self.children
            .push(ChildSpec::Native(Box::new(move |core, child, events| birth.supervised(core, child, events))));
        self
    }

    /// With this supervisor as its next child.
    #[must_use]
    pub fn supervisor(mut self, spec: Self) -> Self {
        self.children.push(ChildSpec::Supervisor(spec));
        self
    }
}

impl<U> fmt::Debug for SupervisorSpec<U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SupervisorSpec")
            .field("name", &self.name)
            .field("policy", &self.policy)
            .field("children", &self.children.len())
            .finish_non_exhaustive()
    }
}

fn native_birth<N: NativeActor>(spec: NativeSpec<N>) -> Birth<NativeBlueprint<N>> {
    Birth {
        id: spec.id,
        blueprint: NativeBlueprint(spec.make),
        room: Room { messages: spec.mailbox, bytes: spec.mailbox_bytes, shares: spec.mailbox_shares },
        policy: spec.restart,
        redelivery: spec.redelivery,
        depends_on: spec.depends_on,
        subscriptions: spec.subscriptions,
    }
}

impl ActorSystem {
    /// A system whose sandboxes hold nothing of the embedder's.
    pub fn new(engine: WasmEngine, config: SystemConfig) -> Self {
        Self::with_host(engine, config, |_| (), |_| Ok(()))
    }
}

impl<U: Send + 'static> ActorSystem<U> {
    /// A system with state of the embedder's in each sandbox, made anew for each incarnation, and host functions of its
    /// own, which are defined in each linker.
    ///
    /// ```
    /// use airssys_wasm_actor::{ActorSystem, SystemConfig};
    /// use airssys_wasm_engine::{EngineConfig, WasmEngine};
    ///
    /// struct Account { calls: u64 }
    ///
    /// let engine = WasmEngine::new(EngineConfig::small().compile_in_process())?;
    /// let system = ActorSystem::with_host(
    ///     engine,
    ///     SystemConfig::default(),
    ///     |_name| Account { calls: 0 },
    ///     |linker| {
    ///         linker.root().func_wrap("charge", |mut store, (): ()| {
    ///             let account: &mut Account = &mut store.data_mut().ext.user;
    ///             account.calls += 1;
    ///             Ok((account.calls,))
    ///         })
    ///     },
    /// );
    /// # drop(system);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn with_host(
        engine: WasmEngine,
        config: SystemConfig,
        user: impl Fn(&ComponentId) -> U + Send + Sync + 'static,
        link: impl Fn(&mut Linker<HostState<ActorState<U>>>) -> wasmtime::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let registry = ComponentRegistry::new();
        let random = config.seed.map_or_else(fastrand::Rng::new, fastrand::Rng::with_seed);
        let core = SystemCore {
            router: MessageRouter::new(registry.clone()),
            registry,
            broker: MessageBroker::new(),
            dead_letters: DeadLetters::new(config.dead_letters),
            waits: Mutex::default(),
            events: broadcast::Sender::new(EVENTS),
            metrics: Arc::new(Metrics::new(None, config.latencies)),
            metrics_per_actor: config.metrics_per_actor,
            latencies: config.latencies,
            random: Mutex::new(random),
            supervisors: Mutex::default(),
            closing: AtomicBool::new(false),
            closed: CancellationToken::new(),
        };
        Self(Arc::new(Handle {
            core: Arc::new(core),
            engine,
            user: Arc::new(user),
            link: Box::new(link),
            memory: config.memory,
        }))
    }

    fn core(&self) -> &Arc<SystemCore> {
        &self.0.core
    }

    /// The engine.
    pub fn engine(&self) -> &WasmEngine {
        &self.0.engine
    }

    /// Links a component with WASI, with what actors import, and with the embedder's own host functions.
    ///
    /// # Errors
    ///
    /// [`LinkError`] when the component imports anything else.
    pub fn link(&self, component: &LoadedComponent) -> Result<ComponentTemplate<HostState<ActorState<U>>>, LinkError> {
        let mut linker = component.linker();
        add_wasi(&mut linker)
            .and_then(|()| imports::link(&mut linker))
            .and_then(|()| (self.0.link)(&mut linker))
            .map_err(|source| LinkError::HostFunctions { source })?;
        component.link(&linker)
    }

    /// Spawns an actor. It is registered first, so that it can be found from its `init` on; it is started here, and lives
    /// on a task of its own from then on.
    ///
    /// # Errors
    ///
    /// [`SpawnError`], after which nothing is left of it.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with timers.
    pub async fn spawn(&self, spec: ActorSpec<U>) -> Result<ActorRef, SpawnError> {
        self.birth(spec)?.spawn(self.core()).await
    }

    fn birth(&self, spec: ActorSpec<U>) -> Result<Birth<GuestBlueprint<U>>, SpawnError> {
        Ok(Birth {
            blueprint: GuestBlueprint::new(&spec, Arc::clone(&self.0.user))?,
            id: spec.id,
            room: Room { messages: spec.mailbox, bytes: spec.mailbox_bytes, shares: spec.mailbox_shares },
            policy: spec.restart,
            redelivery: spec.redelivery,
            depends_on: spec.depends_on,
            subscriptions: spec.subscriptions,
        })
    }

    /// Spawns an actor that is code of the host.
    ///
    /// # Errors
    ///
    /// [`SpawnError`].
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with timers.
    pub async fn spawn_native<N: NativeActor>(&self, spec: NativeSpec<N>) -> Result<ActorRef, SpawnError> {
        native_birth(spec).spawn(self.core()).await
    }

    /// Loads the component that a `Component.toml` stands for, links it, and gives what it can be spawned from.
    ///
    /// # Errors
    ///
    /// [`LoadManifestError`].
    pub async fn load(&self, manifest: impl AsRef<Path>) -> Result<ActorSpec<U>, LoadManifestError> {
        let (manifest, wasm) = ActorManifest::read(manifest.as_ref())?;
        let component = self.engine().load_file(wasm, manifest.profile()).await?;
        let sandbox = manifest.sandbox.clone();
        let mut sandbox = SandboxSpec::new(self.link(&component)?, sandbox.limits)?.with_wasi(sandbox.wasi);
        if let Some(budget) = &self.0.memory {
            sandbox = sandbox.with_budget(budget.clone());
        }
        Ok(manifest.spec(sandbox))
    }

    /// Spawns a supervisor with all that is below it, in order.
    ///
    /// # Errors
    ///
    /// [`SpawnError`] of the first that does not start. Those before it are ended again, and nothing is left.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with timers.
    pub async fn supervise(&self, spec: SupervisorSpec<U>) -> Result<SupervisorRef, SpawnError> {
        let (first, outcome) = oneshot::channel();
        let (supervisor, level, tasks) = self.prepare(spec, Above::Maker(Some(first)))?;
        let handle = SupervisorRef(Arc::clone(supervisor.cell()));
        for actor in handle.actors() {
            actor.0.level.store(level, Ordering::Relaxed);
        }
        self.core().supervisors.lock().push((level, handle.clone()));
        if self.core().closing.load(Ordering::SeqCst) {
            // Dropping the supervisor and the tasks takes everything back.
            return Err(SpawnError::ShuttingDown);
        }
        // From here on it ends with the system, also where nobody waits for this.
        for task in tasks {
            tokio::spawn(task);
        }
        tokio::spawn(supervisor.run());
        match outcome.await {
            Ok(Ok(())) => Ok(handle),
            Ok(Err((id, failure))) => {
                handle.ended().await;
                Err(not_started(&id, failure))
            }
            Err(_) => Err(SpawnError::ShuttingDown),
        }
    }

    /// Registers all that is below a supervisor. What was registered is taken back by dropping it.
    fn prepare(
        &self,
        spec: SupervisorSpec<U>,
        above: Above,
    ) -> Result<(Supervisor, u32, Vec<BoxFuture<'static, ()>>), SpawnError> {
        let (events_to, events) = mpsc::unbounded_channel();
        let (mut children, mut tasks, mut level) = (Vec::new(), Vec::new(), 0);
        for (at, child) in spec.children.into_iter().enumerate() {
            let prepared = match child {
                ChildSpec::Actor(spec) => self.birth(*spec)?.supervised(self.core(), at, events_to.clone())?,
                ChildSpec::Native(prepare) => prepare(self.core(), at, events_to.clone())?,
                ChildSpec::Supervisor(spec) => {
                    let policy = RestartPolicy { restart: spec.policy.restart, ..RestartPolicy::default() };
                    let above = Above::Supervisor { child: at, order: 0, events: events_to.clone() };
                    let (supervisor, level, mut tasks) = self.prepare(spec, above)?;
                    let child = Child::Supervisor(Arc::clone(supervisor.cell()));
                    tasks.push(Box::pin(supervisor.run()));
                    Prepared { level, child, policy, tasks }
                }
            };
            level = level.max(prepared.level);
            tasks.extend(prepared.tasks);
            children.push((prepared.child, prepared.policy));
        }
        let supervisor = Supervisor::new(self.core(), spec.name, &spec.policy, children, events, above);
        Ok((supervisor, level, tasks))
    }

    /// The actor of this name.
    pub fn find(&self, id: &ComponentId) -> Option<ActorRef> {
        self.core().find(id)
    }

    /// All actors, by name.
    pub fn actors(&self) -> Vec<ActorInfo> {
        let mut actors: Vec<_> = self.core().actors().iter().map(ActorRef::info).collect();
        actors.sort_by(|a, b| a.address.id().cmp(b.address.id()));
        actors
    }

    /// Sends a message at once, to a component or to the next member of a group that takes it.
    ///
    /// # Errors
    ///
    /// [`SendError`], with the message.
    pub fn send(&self, to: &ComponentId, message: impl Into<MessageEnvelope>) -> Result<(), SendError> {
        self.core().router.send(to, message.into())
    }

    /// Delivers a message to all who subscribed to its topic.
    pub async fn publish(&self, topic: &Topic, message: impl Into<MessageEnvelope>) -> PublishReport {
        self.core().broker.publish(topic, message.into()).await
    }

    /// Subscribes the host to a pattern of topics, with room for so many messages.
    ///
    /// # Panics
    ///
    /// With room for none.
    pub fn subscribe(&self, pattern: &TopicPattern, room: usize, when_full: WhenFull) -> HostSubscription {
        let (to, messages) = mpsc::channel(room);
        let subscription = self.core().broker.subscribe(pattern, Arc::new(Endpoint::Host(to)), when_full);
        HostSubscription { messages, subscription, closed: self.core().closed.clone() }
    }

    /// Makes an empty group. Messages for its name go to its members in turn.
    ///
    /// # Errors
    ///
    /// [`NameTaken`].
    pub fn create_group(&self, group: &ComponentId) -> Result<(), NameTaken> {
        self.core().registry.create_group(group).map(|_| ())
    }

    /// Makes an actor a member of a group.
    ///
    /// # Errors
    ///
    /// [`GroupError`].
    pub fn join(&self, group: &ComponentId, member: &ComponentId) -> Result<(), GroupError> {
        self.core().registry.join(group, member)
    }

    /// Ends a membership.
    ///
    /// # Errors
    ///
    /// [`GroupError`].
    pub fn leave(&self, group: &ComponentId, member: &ComponentId) -> Result<(), GroupError> {
        self.core().registry.leave(group, member)
    }

    /// What was taken and not handled.
    pub fn dead_letters(&self) -> &DeadLetters {
        &self.core().dead_letters
    }

    /// Sends a dead letter again, to whoever has its receiver's name now. Nobody waits for its answer.
    ///
    /// # Errors
    ///
    /// [`ResendError`]; the letter stays where it was.
    pub fn resend(&self, number: u64) -> Result<(), ResendError> {
        let letters = self.dead_letters();
        let mut letter = letters.take(number).ok_or(ResendError::Unknown(number))?;
        let mut message = letter.message.clone();
        message.deadline = None;
        self.core().router.send(letter.to.id(), message).map_err(|error| {
            letter.message.target = None;
            letters.put_back(letter);
            ResendError::NotSent(error)
        })
    }

    /// What happens from now on.
    pub fn events(&self) -> broadcast::Receiver<SystemEvent> {
        self.core().events.subscribe()
    }

    /// Goes over to another version of a component between two messages: address, mailbox and, where both versions
    /// export `airssys:actor/state`, state are kept. If the new one does not come to life, the old one goes on. Gives the
    /// new incarnation.
    ///
    /// # Errors
    ///
    /// [`UpgradeError`].
    pub async fn upgrade(
        &self,
        actor: &ActorAddress,
        version: SandboxSpec<ActorState<U>>,
        options: UpgradeOptions,
    ) -> Result<u64, UpgradeError> {
        self.order(actor, |done| {
            Control::Upgrade(Box::new(Upgrade { version: Some(Box::new(version)), options, done }))
        })
        .await
    }

    /// Goes back to the version before the last upgrade, in the same way. Gives the new incarnation.
    ///
    /// # Errors
    ///
    /// [`UpgradeError`].
    pub async fn rollback(&self, actor: &ActorAddress, options: UpgradeOptions) -> Result<u64, UpgradeError> {
        self.order(actor, |done| Control::Upgrade(Box::new(Upgrade { version: None, options, done }))).await
    }

    async fn order(
        &self,
        actor: &ActorAddress,
        order: impl FnOnce(oneshot::Sender<Result<u64, UpgradeError>>) -> Control,
    ) -> Result<u64, UpgradeError> {
        match &*self.core().registry.resolve(actor)? {
            Endpoint::Actor(cell) => cell.ordered(order).await.unwrap_or(Err(UpgradeError::Stopped)),
            Endpoint::Host(_) => Err(UpgradeError::OtherSystem),
        }
    }

    /// Ends all actors, those that others depend on last, each after what is in its mailbox. Those that have not ended by
    /// the deadline are killed, which may take a second more for each link of the longest chain of dependencies.
    pub async fn shutdown(&self, longest: Duration) -> ShutdownReport {
        let core = self.core();
        core.closing.store(true, Ordering::SeqCst);
        let until = later(Instant::now(), longest);
        let mut levels: BTreeMap<u32, Vec<Child>> = BTreeMap::new();
        for (level, root) in core.roots() {
            levels.entry(level).or_default().push(root);
        }
        let mut report = ShutdownReport::default();
        for roots in levels.values().rev() {
            let mut left: Vec<_> = roots.iter().flat_map(Child::actors).collect();
            report.stopped += left.len();
            roots.iter().for_each(Child::stop);
            if tokio::time::timeout_at(until, join_all(roots.iter().map(Child::ended))).await.is_err() {
                left.retain(|actor| !actor.0.ended.is_cancelled());
                report.stopped -= left.len();
                roots.iter().for_each(Child::kill);
                // A kill takes a tick; what takes longer is stuck.
                _ = tokio::time::timeout(KILL, join_all(roots.iter().map(Child::ended))).await;
                for actor in left {
                    let list = if actor.0.ended.is_cancelled() { &mut report.killed } else { &mut report.stuck };
                    list.push(actor.id().clone());
                }
            }
        }
        core.closed.cancel();
        report
    }
}

/// How long a killed actor may take to be gone.
const KILL: Duration = Duration::from_secs(1);

/// A subscription of the host, which ends when this is dropped.
#[derive(Debug)]
pub struct HostSubscription {
    messages: mpsc::Receiver<MessageEnvelope>,
    subscription: Subscription<Endpoint>,
    closed: CancellationToken,
}

impl HostSubscription {
    /// The next message; none when the system has shut down and there are no more.
    pub async fn recv(&mut self) -> Option<MessageEnvelope> {
        tokio::select! {
            biased;
            message = self.messages.recv() => message,
            () = self.closed.cancelled() => None,
        }
    }

    /// The next message, if there is one.
    pub fn try_recv(&mut self) -> Option<MessageEnvelope> {
        self.messages.try_recv().ok()
    }

    /// Messages that it let go because it was full, [`WhenFull::DropNew`].
    pub fn dropped(&self) -> u64 {
        self.subscription.dropped()
    }
}
