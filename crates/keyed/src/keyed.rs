//! A kind as the host has it, and handles on its actors.

use std::{fmt, sync::Arc, time::Duration};

use airssys_wasm_actor::{
    ActorRef, ActorSandbox, ActorSpec, ActorSystem, AskError, KeepError, Lifecycle, ReminderError, SpawnError,
    UpgradeError, UpgradeOptions, WeakActorRef,
};
use airssys_wasm_registry::{ActorAddress, ComponentId, InvalidId, MessageEnvelope, NameTaken, Refusal, Undelivered};
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use tokio::{sync::broadcast, time::Instant};

use crate::{
    KeyedEvent, KeyedOptions, Owner, Rate, SaveWhen, StateStore, StoreError, Version,
    kind::{
        Kind,
        core::Core,
        sweep,
        upgrade::{KindUpgrade, Versions},
    },
    owner::Owned,
};

/// The specification of a kind: its name, what its actors are made from, and its options.
pub struct KeyedSpec<U: 'static = ()> {
    kind: ComponentId,
    template: ActorSpec<U>,
    options: KeyedOptions,
    owned: Owned,
}

impl<U: Send + 'static> KeyedSpec<U> {
    /// A kind with default options. Its name is that of the template, and has no `/` in it: the actor `4711` of the kind `cart`
    /// has the name `cart/4711`.
    ///
    /// A template's subscriptions and dependencies are those of each of its actors while it is in memory.
    pub fn new(template: ActorSpec<U>) -> Self {
        Self { kind: template.id().clone(), template, options: KeyedOptions::default(), owned: Owned::default() }
    }

    /// The kind's name.
    pub fn kind(&self) -> &ComponentId {
        &self.kind
    }

    /// Sets the options.
    #[must_use]
    pub fn with_options(mut self, options: KeyedOptions) -> Self {
        self.options = options;
        self
    }

    /// Sets who says which keys are this host's, where several hosts have the kind. Others are refused as [`Refusal::Moved`] by
    /// [`KeyedRef`]s, and looked for [elsewhere](airssys_wasm_actor::Elsewhere) by senders to the name.
    #[must_use]
    pub fn with_owner(mut self, owner: Arc<dyn Owner>) -> Self {
        self.owned = Owned(Some(owner));
        self
    }
}

impl<U> Clone for KeyedSpec<U> {
    fn clone(&self) -> Self {
        Self {
            kind: self.kind.clone(),
            template: self.template.clone(),
            options: self.options.clone(),
            owned: self.owned.clone(),
        }
    }
}

impl<U> fmt::Debug for KeyedSpec<U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyedSpec").field("kind", &self.kind).field("options", &self.options).finish_non_exhaustive()
    }
}

/// A kind was not installed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InstallError {
    /// There is a `/` in its name.
    #[error("a kind cannot be named `{kind}`: `/` comes between kind and key")]
    Kind {
        /// The name.
        kind: ComponentId,
    },
    /// Somebody has its name.
    #[error(transparent)]
    NameTaken(#[from] NameTaken),
    /// Its actors cannot be spawned.
    #[error(transparent)]
    Template(#[from] SpawnError),
    /// Its component can do only one of both.
    #[error("the component exports only one of `snapshot` and `restore`; export both, or neither and keep no state")]
    HalfOfState,
    /// Each message is to be saved, and several are to be in flight.
    #[error(
        "with several messages in flight the state after each cannot be saved; save within a time, or set `concurrency` to 1"
    )]
    Concurrency,
    /// An option makes no sense.
    #[error("`{option}` of a kind cannot be zero")]
    Zero {
        /// Which.
        option: &'static str,
    },
    /// A rate of its admission would admit nothing, or without end.
    #[error("`admission.{option}` of a kind needs a finite rate above zero, and a burst of one at the least")]
    Rate {
        /// Which.
        option: &'static str,
    },
    /// The store does not say how many rows there are.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A state was not forgotten.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ForgetError {
    /// The reminders of the actor were not forgotten.
    #[error(transparent)]
    Reminders(#[from] ReminderError),
    /// The system is gone.
    #[error("the kind's system is gone")]
    Stopped,
    /// The key is another host's.
    #[error("the key is not this host's; ask the host that has it")]
    Moved,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The actor is in memory, and its keeper failed.
    #[error(transparent)]
    Keep(#[from] KeepError),
}

/// A key that cannot be one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// It cannot be the rest of a name.
    #[error(transparent)]
    Invalid(#[from] InvalidId),
    /// The kind has no such key.
    #[error("there is no `{id}`: the kind has known keys only")]
    Unknown {
        /// The name that it would have.
        id: ComponentId,
    },
}

/// A kind: actors by key, in memory only while they are needed. Cheap to clone; all clones are one kind.
///
/// Their state is kept if the component exports `airssys:actor/state`; else they begin anew each time. But for `init`,
/// which runs at each activation, a guest does not see whether it was asleep.
///
/// The kind lives as long as its system. It ends with it: [`ActorSystem::shutdown`] saves what is in memory.
pub struct Keyed<U: 'static = ()>(Arc<Kind<U>>);

/// What there is of a kind, and what happened since it was installed.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
pub struct KeyedStats {
    /// Actors in memory.
    pub live: usize,
    /// Keys that have state in the store, as far as this process has written them. A save that a kill cuts off is not counted.
    pub rows: u64,
    /// Those of them that wait for a permit to start.
    pub waiting: u64,
    /// Actors that came into memory.
    pub activations: u64,
    /// Those that were to, and did not start.
    pub not_activated: u64,
    /// Actors that left it.
    pub passivations: u64,
    /// Senders that were refused: admission, no room, quarantine.
    pub refused: u64,
    /// Snapshots that were written, and rows that were removed because the state was as new.
    pub saves: u64,
    /// Snapshots that were as the row.
    pub unchanged: u64,
    /// Snapshots that were not kept.
    pub not_saved: u64,
    /// How often the actors in memory were looked at, for those that are to be saved or to leave.
    pub sweeps: u64,
    /// How long the oldest unsaved state has not been saved. Zero if all is saved.
    pub oldest_unsaved: Duration,
}

impl<U: Send + 'static> Keyed<U> {
    /// Installs a kind in a system. Its name is taken from then on.
    ///
    /// # Errors
    ///
    /// [`InstallError`].
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with timers.
    pub async fn install(
        system: &ActorSystem<U>,
        spec: KeyedSpec<U>,
        store: Arc<dyn StateStore>,
    ) -> Result<Self, InstallError> {
        let KeyedSpec { kind: name, template, options, owned } = spec;
        if name.as_str().contains('/') {
            return Err(InstallError::Kind { kind: name });
        }
        check(&options)?;
        let keeps = match system.keeps_state(&template)? {
            (true, true) => true,
            (false, false) => false,
            _ => return Err(InstallError::HalfOfState),
        };
        if matches!(options.save, SaveWhen::EachMessage) && template.concurrency().get() > 1 {
            return Err(InstallError::Concurrency);
        }
        let rows = store.count(name.as_str()).await?;
        // A group without members: nobody else can have the name, and a message for it leads nowhere.
        system.create_group(&name)?;
        let kind = Arc::new(Kind {
            versions: RwLock::new(Versions { number: 1, sandbox: template.sandbox().clone(), before: None }),
            going_over: tokio::sync::Mutex::default(),
            core: Arc::new(Core::new(name, options, owned, store, rows, keeps)),
            system: system.downgrade(),
            template,
            runtime: tokio::runtime::Handle::current(),
        });
        system.add_elsewhere(Arc::clone(&kind) as _);
        tokio::spawn(sweep(Arc::clone(&kind)));
        Ok(Self(kind))
    }

    /// The kind's name.
    pub fn kind(&self) -> &ComponentId {
        &self.0.core.kind
    }

    pub(crate) fn owned(&self) -> &Owned {
        &self.0.core.owned
    }

    /// A handle on the actor of this key, which need not be in memory, nor have been before.
    ///
    /// # Errors
    ///
    /// [`KeyError`].
    pub fn actor(&self, key: &str) -> Result<KeyedRef<U>, KeyError> {
        let id = self.0.id(key)?;
        if self.0.core.key(id.as_str()).is_none() {
            return Err(KeyError::Unknown { id });
        }
        Ok(KeyedRef { kind: Arc::clone(&self.0), id, found: Mutex::default() })
    }

    /// Has an actor save its state and leave the memory as soon as there is no message for it. Whether it is out of memory:
    /// `false` if the store does not take its state.
    ///
    /// # Errors
    ///
    /// [`KeyError`].
    pub async fn passivate(&self, key: &str) -> Result<bool, KeyError> {
        let id = self.0.id(key)?;
        match self.0.live_soon(&id).await {
            Some(actor) => Ok(actor.passivated().await),
            None => Ok(true),
        }
    }

    /// Has all actors of a [part](Owner::part) of the keys save their states and leave the memory, each as soon as there is no message
    /// for it, and waits until they have. What the store does not take is tried again until then.
    pub async fn passivate_part(&self, part: usize) {
        self.0.passivate(Some(part)).await;
    }

    /// The same of all actors of the kind.
    pub async fn passivate_all(&self) {
        self.0.passivate(None).await;
    }

    /// Kills all actors of the kind that are in memory, and waits until they have ended. What is unsaved is lost.
    pub async fn kill_all(&self) {
        self.0.kill().await;
    }

    /// Forgets the reminders of a key, and its state, kept or in memory: it begins anew. An actor in memory does so between
    /// two messages, and one that is brought there meanwhile begins when it is over. A quarantined key is let out.
    ///
    /// The reminders go first: what a crash leaves has state, so that it is known not to be forgotten, and no reminder comes to
    /// one that has begun anew.
    ///
    /// # Errors
    ///
    /// [`ForgetError`]: the state is as it was, and the reminders may be forgotten. Ask again.
    pub async fn forget(&self, key: &str) -> Result<(), ForgetError> {
        let core = &self.0.core;
        let Ok(id) = self.0.id(key) else { return Ok(()) };
        let system = self.0.system().ok_or(ForgetError::Stopped)?;
        loop {
            if let Some(actor) = self.0.live(&id)
                && actor.forget().await?
            {
                break;
            }
            let _turn = core.forgetting.begin(key).await;
            if !core.owned.owns(&id) {
                return Err(ForgetError::Moved);
            }
            // One that is not in memory here loads nothing before the turn is over.
            if self.0.live(&id).is_some() {
                continue;
            }
            system.forget_reminders(&id).await?;
            let row = core.store.load(core.kind.as_str(), key).await?;
            let version = row.map_or(Version::NONE, |row| row.version);
            match core.store.remove(core.kind.as_str(), key, version, core.options.durability).await {
                // Another process has written it, or one that was killed here.
                Err(StoreError::Fenced { .. }) => continue,
                removed => removed?,
            }
            if version != Version::NONE {
                core.row_removed();
            }
            break;
        }
        core.quarantine.lock().release(key);
        Ok(())
    }

    /// Has the kind go over to another version: each actor in memory when it is next between two messages, the others when
    /// they are next in memory. A snapshot of the old version is given to `restore` of the new one. With a probation, each
    /// actor has the new version on probation for so many messages after each start. If it fails before in any of them, the
    /// whole kind goes back to the old version, and what the new one has saved is given to `restore` of the old one.
    ///
    /// # Errors
    ///
    /// [`UpgradeError`]: the kind has the version that it had.
    pub async fn upgrade(
        &self,
        version: ActorSandbox<U>,
        options: UpgradeOptions,
    ) -> Result<KindUpgrade, UpgradeError> {
        self.0.upgrade(version, options).await
    }

    /// What there is of it now.
    pub fn stats(&self) -> KeyedStats {
        let core = &self.0.core;
        let count = |count: &std::sync::atomic::AtomicU64| count.load(std::sync::atomic::Ordering::Relaxed);
        let counts = &core.counts;
        let oldest = core.live.oldest_unsaved();
        let now = core.tick(Instant::now());
        KeyedStats {
            live: core.live.len(),
            rows: core.rows(),
            waiting: count(&counts.waiting),
            activations: count(&counts.activations),
            not_activated: count(&counts.not_activated),
            passivations: count(&counts.passivations),
            refused: count(&counts.refused),
            saves: count(&counts.saves),
            unchanged: count(&counts.unchanged),
            not_saved: count(&counts.not_saved),
            sweeps: count(&counts.sweeps),
            oldest_unsaved: Duration::from_millis(oldest.map_or(0, |since| now.saturating_sub(since))),
        }
    }

    /// What happens from now on.
    pub fn events(&self) -> broadcast::Receiver<KeyedEvent> {
        self.0.core.events()
    }
}

fn check(options: &KeyedOptions) -> Result<(), InstallError> {
    let zero = [
        ("live", options.live == 0),
        ("idle", options.idle.is_zero()),
        ("state", options.state.as_u64() == 0),
        ("most_keys", options.most_keys == 0),
        ("save", options.save == SaveWhen::Within(Duration::ZERO)),
    ];
    if let Some((option, _)) = zero.into_iter().find(|(_, is_zero)| *is_zero) {
        return Err(InstallError::Zero { option });
    }
    let makes_sense = |rate: Rate| rate.per_second.is_finite() && rate.per_second > 0.0 && rate.burst > 0;
    let rates = [("kind", options.admission.kind), ("caller", options.admission.caller)];
    match rates.into_iter().find(|(_, rate)| !makes_sense(*rate)) {
        Some((option, _)) => Err(InstallError::Rate { option }),
        None => Ok(()),
    }
}

impl<U> Clone for Keyed<U> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<U> fmt::Debug for Keyed<U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyed").field("kind", &self.0.core.kind).field("live", &self.0.core.live.len()).finish()
    }
}

/// A handle on the actor of a key: it sends to it wherever it is, and brings it into memory. Cheap to clone.
pub struct KeyedRef<U: 'static = ()> {
    kind: Arc<Kind<U>>,
    id: ComponentId,
    /// The actor that was found last, so that one in memory is not looked up again.
    found: Mutex<WeakActorRef>,
}

impl<U> Clone for KeyedRef<U> {
    fn clone(&self) -> Self {
        let found = Mutex::new(self.found.lock().clone());
        Self { kind: Arc::clone(&self.kind), id: self.id.clone(), found }
    }
}

impl<U> fmt::Debug for KeyedRef<U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("KeyedRef").field(&self.id).finish()
    }
}

impl<U: Send + 'static> KeyedRef<U> {
    /// The actor's name: kind, `/` and key.
    pub fn id(&self) -> &ComponentId {
        &self.id
    }

    /// The actor, brought into memory if it is not there, for calls of its exports: they follow it when it leaves and comes
    /// back. Messages that are sent by this handle do not; [`ActorRef::tell`] is then refused as [`Refusal::Moved`].
    ///
    /// # Errors
    ///
    /// [`Refusal`]: as [`try_tell`](Self::try_tell), but for a full mailbox.
    pub fn awaken(&self) -> Result<ActorRef, Refusal> {
        self.find(None)
    }

    fn find(&self, by: Option<&ActorAddress>) -> Result<ActorRef, Refusal> {
        let found = self.found.lock().upgrade();
        if let Some(actor) = found
            && actor.state() != Lifecycle::Stopped
        {
            return Ok(actor);
        }
        let actor = self.kind.actor(&self.id, by)?;
        *self.found.lock() = actor.downgrade();
        Ok(actor)
    }

    fn actor(&self, message: MessageEnvelope) -> Result<(ActorRef, MessageEnvelope), Undelivered> {
        match self.find(message.sender()) {
            Ok(actor) => Ok((actor, message)),
            Err(reason) => Err(Undelivered::new(reason, message)),
        }
    }

    /// The actor that was found has left the memory: the name is looked up next.
    fn moved(&self, undelivered: Undelivered) -> MessageEnvelope {
        *self.found.lock() = WeakActorRef::default();
        undelivered.message
    }

    /// Sends a message without waiting for room.
    ///
    /// # Errors
    ///
    /// [`Undelivered`], with the message: as [`ActorRef::try_tell`], and [`Refusal::Full`] also if the kind admits no
    /// activation now, [`Refusal::Quarantined`] if the actor, or the kind, failed too often.
    pub fn try_tell(&self, message: impl Into<MessageEnvelope>) -> Result<(), Undelivered> {
        let mut message = message.into();
        loop {
            let (actor, envelope) = self.actor(message)?;
            match actor.try_tell(envelope) {
                Err(undelivered) if undelivered.reason == Refusal::Moved => message = self.moved(undelivered),
                told => return told,
            }
        }
    }

    /// Sends a message, waiting for room in the mailbox.
    ///
    /// # Errors
    ///
    /// [`Undelivered`], with the message: as [`try_tell`](Self::try_tell), but for a full mailbox.
    pub async fn tell(&self, message: impl Into<MessageEnvelope>) -> Result<(), Undelivered> {
        let mut message = message.into();
        loop {
            let (actor, envelope) = self.actor(message)?;
            match actor.tell(envelope).await {
                Err(undelivered) if undelivered.reason == Refusal::Moved => message = self.moved(undelivered),
                told => return told,
            }
        }
    }

    /// Sends a message, waiting for room, and waits for the answer: until the message's deadline if it has one.
    ///
    /// # Errors
    ///
    /// [`AskError`]: [`AskError::NotSent`] as [`tell`](Self::tell); [`AskError::NotActivated`] if the actor did not start;
    /// [`AskError::NotSaved`] if each message is saved, and this was not.
    pub async fn ask(&self, message: impl Into<MessageEnvelope>) -> Result<Bytes, AskError> {
        let mut message = message.into();
        loop {
            let (actor, envelope) = self.actor(message).map_err(AskError::NotSent)?;
            match actor.ask(envelope).await {
                Err(AskError::NotSent(undelivered)) if undelivered.reason == Refusal::Moved => {
                    message = self.moved(undelivered);
                }
                answer => return answer,
            }
        }
    }

    /// [`ask`](Self::ask) with a timeout.
    ///
    /// # Errors
    ///
    /// [`AskError`].
    pub async fn ask_within(&self, longest: Duration, message: impl Into<MessageEnvelope>) -> Result<Bytes, AskError> {
        let until = airssys_wasm_limits::later(Instant::now(), longest);
        self.ask(message.into().with_deadline(until)).await
    }
}
