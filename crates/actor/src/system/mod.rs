//! A system of actors: who is there, what they share, and how it all begins and ends.

mod calls;
mod spawn;
mod subscription;
mod tree;

use std::{
    collections::BTreeMap,
    fmt,
    num::NonZeroU32,
    path::Path,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use airssys_wasm_engine::{LinkError, Linker, LoadError, LoadedComponent, WasmEngine, wasmtime};
use airssys_wasm_isolation::{HostState, KeyValueStore, SandboxSpec, add_config, add_keyvalue, add_wasi};
use airssys_wasm_limits::{CancellationToken, ManifestError, MemoryBudget};
use airssys_wasm_registry::{
    ActorAddress, ComponentId, GroupError, MessageEnvelope, Name, NameTaken, PublishReport, Refusal, SendError, Topic,
    TopicPattern, WhenFull,
};
use futures_util::future::join_all;
use tokio::{
    sync::{broadcast, mpsc},
    time::Instant,
};

pub use self::{spawn::SpawnError, subscription::HostSubscription, tree::SupervisorSpec};
use crate::{
    ActorInfo, ActorManifest, ActorRef, ActorSandbox, ActorSpec, ActorState, ActorTemplate, DeadLetterLimits,
    DeadLetters, DeadReason, Elsewhere, Grants, Keeper, KeptActor, Links, LinksError, LoadManifestError, NativeActor,
    NativeSpec, ProbationWatch, ReminderError, Reminders, SystemEvent, UpgradeError, UpgradeOptions,
    failure::policy::later,
    guest::{
        front::{Front, FrontBlueprint},
        imports,
        incarnation::{GuestBlueprint, MakeState, configured, linked},
        links, timers, wasmcloud,
    },
    runtime::{
        endpoint::Endpoint,
        incarnation::Blueprint,
        options::ActorOptions,
        orders::{Control, Upgrade},
        services::Services,
        upgrade::UpgradeDone,
    },
    supervision::supervisor::{Child, Roots},
    system::{spawn::Spawn, tree::native},
};

/// What can be chosen about a system.
#[derive(Debug, Clone, Default)]
pub struct SystemConfig {
    /// How many dead letters are kept.
    pub dead_letters: DeadLetterLimits,
    /// Whether each actor has metrics of its own, by the label `actor`. Default: no, for names may be without number.
    pub metrics_per_actor: bool,
    /// Whether the time that handlers take is measured, with the depth of mailboxes and memory: two readings of the clock a
    /// message. Default: no.
    pub latencies: bool,
    /// What the memory of components that are loaded by their manifest comes out of. Default: no budget.
    pub memory: Option<MemoryBudget>,
    /// Where components that are loaded by their manifest find the buckets of their `[keyvalue]` table. Default: nowhere, and
    /// opening one is `no-such-store`.
    pub keyvalue: Option<Arc<dyn KeyValueStore>>,
    /// What jitter begins with, for runs that can be repeated. Default: at random.
    pub seed: Option<u64>,
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
    state: Arc<StateFactory<U>>,
    link: LinkHook<U>,
    memory: Option<MemoryBudget>,
    keyvalue: Option<Arc<dyn KeyValueStore>>,
}

/// Makes the embedder's state for an actor of this name.
pub type StateFactory<U> = dyn Fn(&ComponentId) -> U + Send + Sync;

type LinkHook<U> = Box<dyn Fn(&mut Linker<HostState<ActorState<U>>>) -> wasmtime::Result<()> + Send + Sync>;

/// A system, but for what depends on the embedder's state.
pub(crate) struct SystemCore {
    services: Arc<Services>,
    /// Supervisors without a parent.
    roots: Arc<Roots>,
    closing: AtomicBool,
    /// Cancelled when all is over.
    closed: CancellationToken,
}

impl SystemCore {
    /// Actors and supervisors without a parent, with their level.
    fn roots(&self) -> Vec<(u32, Child)> {
        let actors = self.services.actors().into_iter().filter(|actor| !actor.0.supervised);
        let mut roots: Vec<_> =
            actors.map(|actor| (actor.0.level.load(Ordering::Relaxed), Child::Actor(actor.0))).collect();
        roots.extend(self.roots.all().into_iter().map(|(level, root)| (level, Child::Supervisor(root.0))));
        roots
    }

    /// One more than those it depends on.
    fn level(&self, of: &ComponentId, depends_on: &[ComponentId]) -> Result<u32, SpawnError> {
        let mut level = 0;
        for dependency in depends_on {
            let Some(actor) = self.services.find(dependency) else {
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

/// A handle on a system that does not keep it alive. Cheap to clone.
pub struct WeakActorSystem<U: 'static = ()>(Weak<Handle<U>>);

impl<U> WeakActorSystem<U> {
    /// The system, unless all its handles are gone.
    pub fn upgrade(&self) -> Option<ActorSystem<U>> {
        self.0.upgrade().map(ActorSystem)
    }
}

impl<U> Clone for WeakActorSystem<U> {
    fn clone(&self) -> Self {
        Self(Weak::clone(&self.0))
    }
}

impl<U> fmt::Debug for WeakActorSystem<U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WeakActorSystem").finish_non_exhaustive()
    }
}

impl<U> fmt::Debug for ActorSystem<U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ActorSystem").field("actors", &self.0.core.services.registry.len()).finish_non_exhaustive()
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
        let SystemConfig { dead_letters, metrics_per_actor, latencies, memory, keyvalue, seed } = config;
        let core = SystemCore {
            services: Arc::new(Services::new(dead_letters, metrics_per_actor, latencies, seed)),
            roots: Arc::default(),
            closing: AtomicBool::new(false),
            closed: CancellationToken::new(),
        };
        Self(Arc::new(Handle {
            core: Arc::new(core),
            engine,
            state: Arc::new(user),
            link: Box::new(link),
            memory,
            keyvalue,
        }))
    }

    fn core(&self) -> &Arc<SystemCore> {
        &self.0.core
    }

    fn services(&self) -> &Services {
        &self.0.core.services
    }

    /// The engine.
    pub fn engine(&self) -> &WasmEngine {
        &self.0.engine
    }

    /// Links a component with WASI, `wasi:config` and `wasi:keyvalue`, with what actors import, and with the embedder's own host functions.
    ///
    /// # Errors
    ///
    /// [`LinkError`] when the component imports anything else.
    pub fn link(&self, component: &LoadedComponent) -> Result<ActorTemplate<U>, LinkError> {
        component.link(&self.linker(component)?)
    }

    fn linker(&self, component: &LoadedComponent) -> Result<Linker<HostState<ActorState<U>>>, LinkError> {
        let mut linker = component.linker();
        add_wasi(&mut linker)
            .and_then(|()| add_config(&mut linker))
            .and_then(|()| add_keyvalue(&mut linker))
            .and_then(|()| imports::link(&mut linker, component))
            .and_then(|()| timers::link(&mut linker, component))
            .and_then(|()| wasmcloud::link(&mut linker, component))
            .and_then(|()| (self.0.link)(&mut linker))
            .map_err(|source| LinkError::HostFunctions { source })?;
        Ok(linker)
    }

    /// [`link`](Self::link) with imports that lead to actors, which need not be there yet. The specification says the same
    /// by [`ActorSpec::with_links`].
    ///
    /// # Errors
    ///
    /// [`LinksError`].
    pub fn link_with(&self, component: &LoadedComponent, links: &Links) -> Result<ActorTemplate<U>, LinksError> {
        let mut linker = self.linker(component)?;
        links::define(&mut linker, component, links)?;
        Ok(component.link(&linker)?)
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
        self.guest(spec)?.spawn(self.core()).await
    }

    fn guest(&self, spec: ActorSpec<U>) -> Result<Spawn<GuestBlueprint<U>>, SpawnError> {
        let links = linked(spec.sandbox.template().loaded(), &spec.links)?;
        let blueprint = GuestBlueprint::new(&spec, links, MakeState::Sync(Arc::clone(&self.0.state)))?;
        Ok(Spawn { options: spec.options, blueprint })
    }

    /// Registers an actor whose state is kept, and starts it on a task of its own: the messages that come meanwhile wait. A
    /// version on probation has the sandbox of the one before it, and messages that it is on probation for.
    ///
    /// # Errors
    ///
    /// [`SpawnError`], never [`SpawnError::Start`]: that is told to the `keeper`.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with timers.
    pub fn activate(
        &self,
        spec: ActorSpec<U>,
        before: Option<(ActorSandbox<U>, NonZeroU32)>,
        keeper: Box<dyn Keeper>,
    ) -> Result<KeptActor, SpawnError> {
        let before = before.map(|(sandbox, probation)| {
            self.guest(spec.clone().with_sandbox(sandbox)).map(|spawn| (spawn.blueprint, probation))
        });
        self.guest(spec)?.activate(self.core(), before.transpose()?, keeper)
    }

    /// Adds somebody who knows names that are not registered. Those added before are asked first.
    pub fn add_elsewhere(&self, elsewhere: Arc<dyn Elsewhere>) {
        self.services().add_elsewhere(elsewhere);
    }

    /// Whether components like this can snapshot their state, and whether they can restore it.
    ///
    /// # Errors
    ///
    /// [`SpawnError`] if the specification cannot be spawned.
    pub fn keeps_state(&self, spec: &ActorSpec<U>) -> Result<(bool, bool), SpawnError> {
        Ok(self.guest(spec.clone())?.blueprint.keeps_state())
    }

    /// A handle that does not keep the system alive.
    pub fn downgrade(&self) -> WeakActorSystem<U> {
        WeakActorSystem(Arc::downgrade(&self.0))
    }

    /// Makes a [`Front`]: an actor that only has the specification's name and dependencies, in whose name sandboxes of the
    /// component send and ask, with its grants, configuration and links. What else the specification says is of actors that
    /// take messages, and not looked at. Grants to subscribe are left out.
    ///
    /// # Errors
    ///
    /// [`SpawnError`], after which nothing is left of it.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with timers.
    pub async fn front(&self, spec: ActorSpec<U>) -> Result<Front<U>, SpawnError> {
        linked(spec.sandbox.template().loaded(), &spec.links)?;
        let ActorSpec { options, sandbox, capabilities, config, links, .. } = spec;
        let mut capabilities = Grants::clone(&capabilities).with_links(&links);
        capabilities.subscribe.clear();
        let sandbox = configured(sandbox.with_name(options.id.as_str()), &config);
        let message_size = sandbox.quota().limits().message_size.as_u64();
        let options = ActorOptions { depends_on: options.depends_on, ..ActorOptions::new(options.id) };
        let actor = Spawn { options, blueprint: FrontBlueprint { message_size } }.spawn(self.core()).await?;
        Ok(Front { actor, sandbox, capabilities: Arc::new(capabilities), denials: Arc::default() })
    }

    /// What makes the embedder's state of each incarnation, unless its specification says otherwise. It does not keep the
    /// system alive.
    pub fn state_factory(&self) -> Arc<StateFactory<U>> {
        Arc::clone(&self.0.state)
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
        native(spec).spawn(self.core()).await
    }

    /// Loads the component that a `Component.toml` stands for, links it, and gives what it can be spawned from.
    ///
    /// # Errors
    ///
    /// [`LoadManifestError`].
    pub async fn load(&self, manifest: impl AsRef<Path>) -> Result<ActorSpec<U>, LoadManifestError> {
        Ok(self.load_with(manifest, |_| Ok(())).await?.1)
    }

    /// [`load`](Self::load) for a layer that has tables of its own in a `Component.toml`, and takes them out first. What it made
    /// of them is given back.
    ///
    /// # Errors
    ///
    /// [`LoadManifestError`]; what `take` returns as [`LoadManifestError::Manifest`].
    pub async fn load_with<T: Send + 'static>(
        &self,
        manifest: impl AsRef<Path>,
        take: impl FnOnce(&mut toml::Table) -> Result<T, ManifestError> + Send + 'static,
    ) -> Result<(T, ActorSpec<U>), LoadManifestError> {
        let path = manifest.as_ref().to_owned();
        let (taken, manifest, wasm) = match tokio::task::spawn_blocking(move || ActorManifest::read(&path, take)).await
        {
            Ok(read) => read?,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => return Err(LoadError::Shutdown.into()),
        };
        let component = self.engine().load_file(wasm, manifest.profile()).await?;
        Ok((taken, self.with_manifest(manifest, &component)?))
    }

    /// [`load`](Self::load) of a component that is in memory, with a manifest from
    /// [`ActorManifest::from_toml`]. The manifest's `wasm` is not looked at.
    ///
    /// ```
    /// # use airssys_wasm_actor::{ActorManifest, ActorSystem, SystemConfig};
    /// # use airssys_wasm_engine::{EngineConfig, WasmEngine};
    /// # const COUNTER: &[u8] = airssys_wasm_fixtures::COUNTER;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let system = ActorSystem::new(WasmEngine::new(EngineConfig::small().compile_in_process())?, SystemConfig::default());
    /// let manifest = ActorManifest::from_toml("[component]\nname = 'counter'\n[resources]\nmemory = '8MiB'")?;
    /// let counter = system.spawn(system.load_bytes(manifest, COUNTER).await?).await?;
    /// assert_eq!(counter.ask("add 2").await?, "2");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`LoadManifestError`].
    pub async fn load_bytes(
        &self,
        manifest: ActorManifest,
        component: impl AsRef<[u8]> + Send + 'static,
    ) -> Result<ActorSpec<U>, LoadManifestError> {
        let component = self.engine().load(component, manifest.profile()).await?;
        self.with_manifest(manifest, &component)
    }

    fn with_manifest(
        &self,
        manifest: ActorManifest,
        component: &LoadedComponent,
    ) -> Result<ActorSpec<U>, LoadManifestError> {
        let sandbox = manifest.sandbox.clone();
        let mut sandbox =
            SandboxSpec::new(self.link_with(component, &manifest.links)?, sandbox.limits)?.with_wasi(sandbox.wasi);
        if let Some(store) = &self.0.keyvalue {
            sandbox = sandbox.with_keyvalue(Arc::clone(store), manifest.sandbox.keyvalue.clone());
        }
        if let Some(budget) = &self.0.memory {
            sandbox = sandbox.with_budget(budget.clone());
        }
        Ok(manifest.spec(sandbox))
    }

    /// The actor of this name.
    pub fn find(&self, name: &(impl Name + ?Sized)) -> Option<ActorRef> {
        self.services().find(name)
    }

    /// The actor of this name, brought into memory if it is kept elsewhere. `by` is who needs it, unless that is the host.
    ///
    /// # Errors
    ///
    /// [`Refusal`] if it is not brought into memory now.
    pub fn awaken(&self, name: &ComponentId, by: Option<&ActorAddress>) -> Result<Option<ActorRef>, Refusal> {
        match self.services().find(name) {
            Some(actor) => Ok(Some(actor)),
            None => self.services().awaken(name, by).transpose(),
        }
    }

    /// All actors, by name.
    pub fn actors(&self) -> Vec<ActorInfo> {
        let mut actors: Vec<_> = self.services().actors().iter().map(ActorRef::info).collect();
        actors.sort_by(|a, b| a.address.id().cmp(b.address.id()));
        actors
    }

    /// Sends a message at once, to a component or to the next member of a group that takes it.
    ///
    /// # Errors
    ///
    /// [`SendError`], with the message.
    pub fn send(&self, to: &ComponentId, message: impl Into<MessageEnvelope>) -> Result<(), SendError> {
        self.services().send(to, message.into())
    }

    /// Delivers a message to all who subscribed to its topic.
    pub async fn publish(&self, topic: &Topic, message: impl Into<MessageEnvelope>) -> PublishReport {
        self.services().publish(topic, message.into()).await
    }

    /// [`publish`](Self::publish) to subscribers of this system alone.
    pub async fn publish_here(&self, topic: &Topic, message: impl Into<MessageEnvelope>) -> PublishReport {
        self.services().broker.publish(topic, message.into()).await
    }

    /// Subscribes the host to a pattern of topics, with room for so many messages.
    ///
    /// # Panics
    ///
    /// With room for none.
    pub fn subscribe(&self, pattern: &TopicPattern, room: usize, when_full: WhenFull) -> HostSubscription {
        let (to, messages) = mpsc::channel(room);
        let subscription = self.services().broker.subscribe(pattern, Arc::new(Endpoint::Host(to)), when_full);
        HostSubscription { messages, subscription, closed: Box::pin(self.core().closed.clone().cancelled_owned()) }
    }

    /// Makes an empty group. Messages for its name go to its members in turn.
    ///
    /// # Errors
    ///
    /// [`NameTaken`].
    pub fn create_group(&self, group: &ComponentId) -> Result<(), NameTaken> {
        self.services().registry.create_group(group).map(|_| ())
    }

    /// Makes an actor a member of a group, which is made if there is none. It is a member until it leaves or ends, over
    /// its restarts and upgrades.
    ///
    /// # Errors
    ///
    /// [`GroupError`].
    pub fn join(&self, group: &ComponentId, member: &ComponentId) -> Result<(), GroupError> {
        self.services().registry.join(group, member)
    }

    /// Ends a membership. The group stays, also without members.
    ///
    /// # Errors
    ///
    /// [`GroupError`].
    pub fn leave(&self, group: &ComponentId, member: &ComponentId) -> Result<(), GroupError> {
        self.services().registry.leave(group, member)
    }

    /// All groups, in no order.
    pub fn groups(&self) -> Vec<ActorAddress> {
        self.services().registry.groups()
    }

    /// The members of a group, in the order they joined.
    ///
    /// # Errors
    ///
    /// [`GroupError::NoGroup`].
    pub fn members(&self, group: &ComponentId) -> Result<Vec<ActorAddress>, GroupError> {
        self.services().registry.members(group)
    }

    /// Takes a group away. Its members stay.
    ///
    /// # Errors
    ///
    /// [`GroupError::NoGroup`].
    pub fn remove_group(&self, group: &ComponentId) -> Result<(), GroupError> {
        self.services().registry.remove_group(group)
    }

    /// Adds a message that was to go [elsewhere](Elsewhere), and was not taken there.
    pub fn add_dead_letter(&self, to: ActorAddress, message: MessageEnvelope, reason: DeadReason) {
        self.services().metrics().dead_letters.increment(1);
        self.services().dead_letters.add(to, message, reason);
    }

    /// Messages that were taken and not handled.
    pub fn dead_letters(&self) -> &DeadLetters {
        &self.services().dead_letters
    }

    /// Sends a dead letter again, to the actor that has its receiver's name now. There is no asker.
    ///
    /// # Errors
    ///
    /// [`ResendError`]; the letter stays where it was.
    pub fn resend(&self, number: u64) -> Result<(), ResendError> {
        let letters = self.dead_letters();
        let mut letter = letters.take(number).ok_or(ResendError::Unknown(number))?;
        let message = letter.message.clone().with_deadline(None);
        self.services().send(letter.receiver(), message).map_err(|error| {
            letter.message = letter.message.clone().with_target(None);
            letters.put_back(letter);
            ResendError::NotSent(error)
        })
    }

    /// Has somebody keep reminders for actors that it knows.
    pub fn add_reminders(&self, reminders: Arc<dyn Reminders>) {
        self.services().reminders.add(reminders);
    }

    /// Forgets all reminders of an actor, if anybody keeps them.
    ///
    /// # Errors
    ///
    /// [`ReminderError`]: some of them may be forgotten.
    pub async fn forget_reminders(&self, of: &ComponentId) -> Result<(), ReminderError> {
        self.services().reminders.forget(of).await
    }

    /// What happens from now on.
    pub fn events(&self) -> broadcast::Receiver<SystemEvent> {
        self.services().events()
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
        version: ActorSandbox<U>,
        options: UpgradeOptions,
    ) -> Result<u64, UpgradeError> {
        Ok(self.upgrade_watched(actor, version, options).await?.0)
    }

    /// [`upgrade`](Self::upgrade), and what tells the end of the new version's probation.
    ///
    /// # Errors
    ///
    /// [`UpgradeError`].
    pub async fn upgrade_watched(
        &self,
        actor: &ActorAddress,
        version: ActorSandbox<U>,
        options: UpgradeOptions,
    ) -> Result<(u64, ProbationWatch), UpgradeError> {
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
        Ok(self.order(actor, |done| Control::Upgrade(Box::new(Upgrade { version: None, options, done }))).await?.0)
    }

    async fn order(
        &self,
        actor: &ActorAddress,
        order: impl FnOnce(UpgradeDone) -> Control,
    ) -> Result<(u64, ProbationWatch), UpgradeError> {
        match &*self.services().registry.resolve(actor)? {
            Endpoint::Actor(cell) => cell.ordered(order).await.unwrap_or(Err(UpgradeError::Stopped)),
            Endpoint::Host(_) => Err(UpgradeError::OtherSystem),
        }
    }

    /// Ends all actors, those that others depend on last, each after what is in its mailbox. Those that have not ended by
    /// the deadline are killed, which may take a second more for each link of the longest chain of dependencies. An actor
    /// whose state is kept has not ended before its last state is: one that the store does not take is tried again until
    /// the deadline.
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
