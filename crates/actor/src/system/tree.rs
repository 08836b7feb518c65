//! Trees of supervisors, from their specification to their tasks.

use std::{
    fmt,
    sync::{Arc, atomic::Ordering},
};

use airssys_wasm_registry::ComponentId;
use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};

use crate::{
    ActorRef, ActorSpec, ActorSystem, NativeActor, NativeSpec, RestartPolicy, SupervisorPolicy, SupervisorRef,
    native::NativeBlueprint,
    runtime::owner::ChildEvent,
    supervision::supervisor::{Child, Parent, Supervisor},
    system::{
        SpawnError, SystemCore,
        spawn::{Prepared, Spawn, not_started},
    },
};

type PrepareChild =
    Box<dyn FnOnce(&Arc<SystemCore>, usize, mpsc::UnboundedSender<ChildEvent>) -> Result<Prepared, SpawnError> + Send>;

/// What a supervisor is made from, with its children in the order of their start.
pub struct SupervisorSpec<U: 'static> {
    name: ComponentId,
    policy: SupervisorPolicy,
    children: Vec<ChildSpec<U>>,
}

enum ChildSpec<U: 'static> {
    Actor(Box<ActorSpec<U>>),
    Native(PrepareChild),
    Supervisor(SupervisorSpec<U>),
}

impl<U: 'static> ChildSpec<U> {
    fn native<N: NativeActor>(spec: NativeSpec<N>) -> Self {
        let spawn = native(spec);
        Self::Native(Box::new(move |core, key, events| spawn.supervised(core, key, events)))
    }
}

impl<U: Send + 'static> SupervisorSpec<U> {
    /// A supervisor without children. Its name is for people: messages cannot be sent to it.
    ///
    /// With children that come and go under [`Strategy::OneForOne`](crate::Strategy::OneForOne) it is OTP's
    /// simple-one-for-one: see [`ActorSystem::start_child`].
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
        self.children.push(ChildSpec::native(spec));
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

pub(super) fn native<N: NativeActor>(spec: NativeSpec<N>) -> Spawn<NativeBlueprint<N>> {
    Spawn { options: spec.options, blueprint: NativeBlueprint(spec.make) }
}

impl<U: Send + 'static> ActorSystem<U> {
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
        let (supervisor, level, tasks) = self.prepare(spec, Parent::Root(Some(first)))?;
        let handle = SupervisorRef(Arc::clone(supervisor.cell()));
        for actor in handle.actors() {
            actor.0.level.store(level, Ordering::Relaxed);
        }
        self.core().roots.add(level, handle.clone());
        if self.core().closing.load(Ordering::SeqCst) {
            // Dropping the supervisor and the tasks takes everything back.
            return Err(SpawnError::ShuttingDown);
        }
        // From here on it ends with the system, also if this future is dropped.
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
        parent: Parent,
    ) -> Result<(Supervisor, u32, Vec<BoxFuture<'static, ()>>), SpawnError> {
        let events = mpsc::unbounded_channel();
        let (mut children, mut tasks, mut level) = (Vec::new(), Vec::new(), 0);
        for (key, child) in spec.children.into_iter().enumerate() {
            let prepared = self.prepare_child(child, key, events.0.clone())?;
            level = level.max(prepared.level);
            tasks.extend(prepared.tasks);
            children.push((prepared.child, prepared.policy));
        }
        let supervisor = Supervisor::new(
            &self.core().services,
            &self.core().roots,
            spec.name,
            &spec.policy,
            children,
            events,
            parent,
        );
        Ok((supervisor, level, tasks))
    }

    /// Registers a child that does not live yet.
    fn prepare_child(
        &self,
        child: ChildSpec<U>,
        key: usize,
        events: mpsc::UnboundedSender<ChildEvent>,
    ) -> Result<Prepared, SpawnError> {
        match child {
            ChildSpec::Actor(spec) => self.guest(*spec)?.supervised(self.core(), key, events),
            ChildSpec::Native(prepare) => prepare(self.core(), key, events),
            ChildSpec::Supervisor(spec) => {
                let policy = RestartPolicy { restart: spec.policy.restart, ..RestartPolicy::default() };
                let parent = Parent::Supervisor { child: key, order: 0, events };
                let (supervisor, level, mut tasks) = self.prepare(spec, parent)?;
                let child = Child::Supervisor(Arc::clone(supervisor.cell()));
                tasks.push(Box::pin(supervisor.run()));
                Ok(Prepared { level, child, policy, tasks })
            }
        }
    }

    /// Adds a component to a supervisor that runs, as its last child, and starts it. Where the future is dropped, the
    /// child stays.
    ///
    /// # Errors
    ///
    /// [`SpawnError`], after which nothing is left of it: a first start that fails is told here, and is no failure of the
    /// supervisor's.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with timers.
    pub async fn start_child(&self, parent: &SupervisorRef, spec: ActorSpec<U>) -> Result<ActorRef, SpawnError> {
        self.add_child(parent, ChildSpec::Actor(Box::new(spec))).await.map(Child::into_actor)
    }

    /// [`start_child`](Self::start_child) of a native actor.
    ///
    /// # Errors
    ///
    /// [`SpawnError`].
    pub async fn start_native_child<N: NativeActor>(
        &self,
        parent: &SupervisorRef,
        spec: NativeSpec<N>,
    ) -> Result<ActorRef, SpawnError> {
        self.add_child(parent, ChildSpec::native(spec)).await.map(Child::into_actor)
    }

    /// [`start_child`](Self::start_child) of a supervisor with all that is below it.
    ///
    /// # Errors
    ///
    /// [`SpawnError`].
    pub async fn start_supervisor_child(
        &self,
        parent: &SupervisorRef,
        spec: SupervisorSpec<U>,
    ) -> Result<SupervisorRef, SpawnError> {
        self.add_child(parent, ChildSpec::Supervisor(spec)).await.map(Child::into_supervisor)
    }

    async fn add_child(&self, parent: &SupervisorRef, spec: ChildSpec<U>) -> Result<Child, SpawnError> {
        let key = parent.0.next_key();
        let Prepared { level, child, policy, tasks } = self.prepare_child(spec, key, parent.0.events.clone())?;
        let level = self.core().roots.raise(&parent.0, level);
        for actor in child.actors() {
            actor.0.level.store(level, Ordering::Relaxed);
        }
        let (first, outcome) = oneshot::channel();
        parent.0.add(key, child.clone(), policy, first);
        // The supervisor ends them where it does not take the child.
        for task in tasks {
            tokio::spawn(task);
        }
        match outcome.await {
            Ok(Ok(())) => Ok(child),
            Ok(Err((id, failure))) => {
                child.ended().await;
                Err(not_started(&id, failure))
            }
            Err(_) => {
                child.ended().await;
                Err(SpawnError::SupervisorNotRunning { supervisor: parent.name().clone() })
            }
        }
    }
}
