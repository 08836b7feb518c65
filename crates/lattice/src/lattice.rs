//! A lattice as an embedder has it.

use std::{fmt, sync::Arc, time::Duration};

use airssys_wasm_actor::{
    ActorRef, ActorSystem, AskError, Bytes, CallError, DeadReason, Elsewhere, FarCall, Fence, SpawnError,
    WeakActorSystem, limits,
    registry::{ActorAddress, ComponentId, MessageEnvelope, Refusal, Topic, TopicPattern, Undelivered},
};
use airssys_wasm_keyed::{Keyed, KeyedSpec, ReminderConfig, StoredReminders};
use futures_util::future::BoxFuture;
use tokio::{sync::broadcast, time::Instant};

use crate::{
    alone::{self, StandBy},
    config::{HostName, LatticeConfig},
    error::{ExportError, ExportKindError, JoinError},
    events::LatticeEvent,
    host::{self, Here, Host, SharedKind},
    joined::{Joined, member},
    offer::{self, OfferError},
    recipient::Recipient,
    store::{BucketConfig, BucketError, JetStreamStore},
};

/// A host's part in a lattice. Cheap to clone; all clones are one. The host leaves when the last is dropped.
pub struct Lattice<U: 'static = ()>(Arc<Joined<U>>);

impl<U> Clone for Lattice<U> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<U: Send + 'static> Lattice<U> {
    /// Joins a lattice. From then on names that are not registered in the system are looked for on its other hosts: by
    /// [`ActorSystem::send`], by guests that send and request, and by [`Recipient`]s.
    ///
    /// Waits until the session of a process that had this host's name before is over: a lease and a second, unless that had
    /// [left](Self::leave).
    ///
    /// # Errors
    ///
    /// [`JoinError`].
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with timers and input and output.
    pub async fn join(system: &ActorSystem<U>, config: LatticeConfig) -> Result<Self, JoinError> {
        let host = host::join(config, Box::new(system.downgrade())).await?;
        system.add_elsewhere(Arc::new(Others(Arc::downgrade(&host))));
        Ok(Self(Arc::new(Joined { host, system: system.downgrade() })))
    }

    pub(crate) fn host(&self) -> &Arc<Host> {
        &self.0.host
    }

    pub(crate) fn system(&self) -> Option<ActorSystem<U>> {
        self.0.system()
    }

    pub(crate) fn weak_system(&self) -> WeakActorSystem<U> {
        self.0.system.clone()
    }

    /// This host's name.
    pub fn name(&self) -> &HostName {
        &self.host().config.host
    }

    /// Gives other hosts a way to an actor of this one, until the actor ends. Its name is this host's in the whole lattice from then
    /// on, and stays so while the host is away, until it is [evicted](Self::evict).
    ///
    /// # Errors
    ///
    /// [`ExportError`].
    pub async fn export(&self, actor: &ActorRef) -> Result<(), ExportError> {
        self.host().export_actor(actor).await
    }

    /// Gives other hosts a way to a group of this one, beside groups of the same name that others export. What is sent to it from a
    /// host that has no such group goes to each host in turn, and there to each member in turn. Who waits for room gets that of
    /// the first of the hosts that has any.
    ///
    /// # Errors
    ///
    /// [`ExportError`].
    pub async fn export_group(&self, group: &ComponentId) -> Result<(), ExportError> {
        self.host().export_group(group).await
    }

    /// Lets actors of other hosts call these interfaces of an actor, a group or a kind that this host exports, by imports that are linked
    /// to its name. An interface is named as callers import it, with the version that they import. What was offered under the name
    /// before is offered no longer.
    ///
    /// It may be offered before it is exported. An offer ends with the export: when that is withdrawn, when the actor has ended, or when
    /// another host has the name; that of a name that this host [stands by](Self::stand_by) for when the [`StandBy`] is dropped. What is
    /// exported under the name later has to be offered again.
    ///
    /// An export alone opens messages, and no calls. Interfaces of `wasi`, of `wasmcloud` and of `airssys:actor` are never offered.
    ///
    /// # Errors
    ///
    /// [`OfferError`]: nothing has changed.
    pub fn offer<S: Into<String>>(
        &self,
        name: &ComponentId,
        interfaces: impl IntoIterator<Item = S>,
    ) -> Result<(), OfferError> {
        let interfaces: Vec<String> = interfaces.into_iter().map(Into::into).collect();
        interfaces.iter().try_for_each(|interface| offer::check(interface))?;
        self.host().offer(name, interfaces);
        Ok(())
    }

    /// Opens a bucket of states on the lattice's servers, over this host's connection, and makes it if there is none.
    ///
    /// # Errors
    ///
    /// [`BucketError`].
    pub async fn store(&self, config: BucketConfig) -> Result<JetStreamStore, BucketError> {
        JetStreamStore::open(self.host().client().clone(), config).await
    }

    /// Installs a kind that other hosts of the lattice have as well, with the same bucket of states. Its keys are spread over them: each
    /// is in one of 1,024 slots by the hash of its name, and each slot is one host's. A key's actor is in memory there, and is
    /// asked from any host by its name. Slots move when hosts come, leave or are lost, and the states stay where they are.
    ///
    /// A slot that nobody has had yet is taken a lease and a second after this host has joined; until then its keys are
    /// [`Unreachable`](Refusal::Unreachable).
    ///
    /// # Errors
    ///
    /// [`ExportKindError`].
    pub async fn export_kind(
        &self,
        spec: KeyedSpec<U>,
        store: Arc<JetStreamStore>,
    ) -> Result<Keyed<U>, ExportKindError> {
        self.install(spec, store, None).await
    }

    /// [`export_kind`](Self::export_kind), with reminders for its actors, kept beside the states and moved with the slots. All hosts that
    /// have the kind have it so.
    ///
    /// # Errors
    ///
    /// [`ExportKindError`].
    pub async fn export_kind_with_reminders(
        &self,
        spec: KeyedSpec<U>,
        store: Arc<JetStreamStore>,
        config: ReminderConfig,
    ) -> Result<Keyed<U>, ExportKindError> {
        self.install(spec, store, Some(config)).await
    }

    async fn install(
        &self,
        spec: KeyedSpec<U>,
        store: Arc<JetStreamStore>,
        reminders: Option<ReminderConfig>,
    ) -> Result<Keyed<U>, ExportKindError> {
        let system = self.system().ok_or(ExportKindError::Left)?;
        let kind = SharedKind::new(spec.kind().clone());
        let spec = spec.with_owner(Arc::clone(&kind) as _);
        let keyed = Keyed::install(&system, spec, Arc::clone(&store) as _).await?;
        let start = |config| Arc::new(StoredReminders::start_shared(&keyed, Arc::clone(&store) as _, config));
        let reminders = reminders.map(start);
        if let Some(reminders) = &reminders {
            system.add_reminders(Arc::clone(reminders) as _);
        }
        self.host().take_slots(keyed.clone(), kind, store, reminders);
        Ok(keyed)
    }

    /// How many of the 1,024 slots of a kind are this host's now.
    pub fn slots(&self, kind: &ComponentId) -> usize {
        self.host().kind(kind).map_or(0, |kind| kind.owned())
    }

    /// Ends an export. `false` if there was none. A name that this host stands by for is given up by dropping the [`StandBy`].
    ///
    /// # Errors
    ///
    /// [`ExportError::Records`]: it is exported still, and can be withdrawn again.
    pub async fn withdraw(&self, name: &ComponentId) -> Result<bool, ExportError> {
        self.host().withdraw(name).await
    }

    /// What this host has exported.
    pub fn exported(&self) -> Vec<ComponentId> {
        self.host().exported()
    }

    /// Who has a name: an actor here, or one of another host that has exported it. It need not be there yet.
    pub fn recipient(&self, name: ComponentId) -> Recipient<U> {
        Recipient::named(name, Arc::clone(&self.0))
    }

    /// Takes what other hosts publish to topics of a pattern, for subscribers of this one. What is published here goes to hosts that
    /// take it without further ado.
    ///
    /// # Errors
    ///
    /// [`ExportError::Records`].
    pub async fn take_topics(&self, pattern: &TopicPattern) -> Result<(), ExportError> {
        self.host().take(pattern).await
    }

    /// The hosts that are in the lattice now, by name, as far as this one knows.
    pub fn hosts(&self) -> Vec<HostName> {
        self.host().directory.hosts().into_iter().map(|(host, ..)| host).collect()
    }

    /// How many names the hosts have exported, as far as this one knows, without groups.
    pub fn names(&self) -> usize {
        self.host().directory.names()
    }

    /// Declares that a host will not come back: its names are free. Waits until its session is over.
    ///
    /// # Errors
    ///
    /// [`ExportError`].
    pub async fn evict(&self, host: &HostName) -> Result<bool, ExportError> {
        self.host().evict(host).await
    }

    /// Serves a name that one host of the lattice serves at a time, of those that stand by for it: whenever it is free, this host
    /// may get it, and spawns the actor. When the host's session is over, the actor handles nothing more and is killed; another
    /// host serves the name after the lease and a second.
    ///
    /// `spawn` is given the name, and the fence that the actor must have:
    /// [`ActorSpec::with_fence`](airssys_wasm_actor::ActorSpec::with_fence). Where it fails, it is tried again.
    pub fn stand_by<F, Fut>(&self, name: ComponentId, spawn: F) -> StandBy
    where
        F: Fn(ComponentId, Arc<dyn Fence>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<ActorRef, SpawnError>> + Send,
    {
        alone::stand_by(Arc::clone(self.host()), name, spawn)
    }

    /// What happens from now on.
    pub fn events(&self) -> broadcast::Receiver<LatticeEvent> {
        self.host().events()
    }

    /// Leaves: slots of kinds are handed over to other hosts, actors that this host stands by for are stopped and their names given up,
    /// exports are withdrawn, and what is on its way comes to an end, all in so long at the most. Then the session is ended, so that a process of this host's name can join at once. What there was no time
    /// to withdraw stays this host's, until it is back or is [evicted](Self::evict).
    pub async fn leave(self, longest: Duration) {
        let host = Arc::clone(self.host());
        let until = limits::later(Instant::now(), longest);
        host.leave_kinds(until).await;
        let withdrawn = futures_util::future::join(host.withdraw_all(), host.served_all());
        if tokio::time::timeout_at(until, withdrawn).await.is_err() {
            tracing::warn!("there was no time to withdraw all exports");
        }
        _ = tokio::time::timeout_at(until, host.settled_all()).await;
        host.left.cancel();
        host.ended().await;
    }
}

impl<U> fmt::Debug for Lattice<U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lattice").field("host", &self.0.host.config.host).finish_non_exhaustive()
    }
}

/// The names of other hosts.
struct Others(std::sync::Weak<Host>);

impl Elsewhere for Others {
    fn tell(&self, to: &ComponentId, message: MessageEnvelope) -> Result<Option<MessageEnvelope>, Undelivered> {
        match self.0.upgrade().filter(|host| host.is_elsewhere(to)) {
            Some(host) => host.send(to, message).map(|()| None),
            None => Ok(Some(message)),
        }
    }

    fn ask(&self, to: &ComponentId, message: &MessageEnvelope) -> Option<BoxFuture<'static, Result<Bytes, AskError>>> {
        let host = self.0.upgrade().filter(|host| host.is_elsewhere(to))?;
        let (to, message) = (to.clone(), message.clone());
        Some(Box::pin(async move { host.ask(&to, message).await }))
    }

    fn call(&self, to: &ComponentId, call: &FarCall) -> Option<BoxFuture<'static, Result<Bytes, CallError>>> {
        let host = self.0.upgrade().filter(|host| host.is_elsewhere(to))?;
        let (to, call) = (to.clone(), call.clone());
        Some(Box::pin(async move { host.call(&to, call).await }))
    }

    fn publish(&self, topic: &Topic, message: &MessageEnvelope) -> usize {
        self.0.upgrade().map_or(0, |host| host.publish(topic, message))
    }

    fn ended(&self, actor: &ActorAddress) {
        if let Some(host) = self.0.upgrade() {
            host.actor_ended(actor);
        }
    }
}

impl<U: Send + 'static> Here for WeakActorSystem<U> {
    fn actor(&self, name: &ComponentId, by: Option<&ActorAddress>, turn: usize) -> Result<ActorRef, Refusal> {
        let system = self.upgrade().ok_or(Refusal::Stopped)?;
        if let Some(actor) = system.awaken(name, by)? {
            return Ok(actor);
        }
        member(&system, name, || turn).ok_or(Refusal::Stopped)
    }

    fn call(&self, actor: &ActorRef, call: FarCall) -> Result<BoxFuture<'static, Result<Bytes, CallError>>, Refusal> {
        self.upgrade().ok_or(Refusal::Stopped)?.call_encoded(actor, call)
    }

    fn call_waiting(&self, actor: &ActorRef, call: FarCall) -> BoxFuture<'static, Result<Bytes, CallError>> {
        match self.upgrade() {
            Some(system) => system.call_encoded_waiting(actor, call),
            None => Box::pin(std::future::ready(Err(CallError::NotSent(Refusal::Stopped)))),
        }
    }

    fn publish<'a>(&'a self, topic: &'a Topic, message: MessageEnvelope) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            if let Some(system) = self.upgrade() {
                let report = system.publish_here(topic, message).await;
                metrics::counter!("lattice_refused_publications_total")
                    .increment((report.refused.len() + report.dropped) as u64);
            }
        })
    }

    fn dead_letter(&self, to: ActorAddress, message: MessageEnvelope, reason: DeadReason) {
        if let Some(system) = self.upgrade() {
            system.add_dead_letter(to, message, reason);
        }
    }
}
