//! From a specification to a running actor.

use std::{
    num::NonZeroU32,
    sync::{Arc, atomic::Ordering},
};

use airssys_wasm_registry::{ComponentId, NameTaken};
use futures_util::future::BoxFuture;
use tokio::sync::{Semaphore, mpsc};

use crate::{
    ActorRef, ConcurrencyError, Keeper, KeptActor, LinksError, NoHandler, RestartPolicy, StartError,
    contract::Unfit,
    failure::{policy::History, report::Failure},
    runtime::{
        cell::{Cell, Tenure},
        endpoint::Endpoint,
        incarnation::Blueprint,
        keeper::Kept,
        options::ActorOptions,
        owner::{ChildEvent, Owner},
        task::{ActorTask, announce},
    },
    supervision::supervisor::Child,
    system::SystemCore,
};

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
    /// It cannot have several messages in flight.
    #[error(transparent)]
    Concurrency(#[from] ConcurrencyError),
    /// It cannot be linked to actors as its specification says.
    #[error(transparent)]
    Links(#[from] LinksError),
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
    /// The supervisor that was to have it is starting, suspended by its own, ending, or gone.
    #[error("the supervisor `{supervisor}` is not running")]
    SupervisorNotRunning {
        /// The supervisor.
        supervisor: ComponentId,
    },
    /// The system is shutting down.
    #[error("the system is shutting down")]
    ShuttingDown,
}

impl From<Unfit> for SpawnError {
    fn from(unfit: Unfit) -> Self {
        match unfit {
            Unfit::NoHandler(error) => error.into(),
            Unfit::Concurrency(error) => error.into(),
        }
    }
}

/// An actor that is about to be spawned.
pub(super) struct Spawn<B> {
    pub(super) options: ActorOptions,
    pub(super) blueprint: B,
}

impl<B: Blueprint> Spawn<B> {
    /// Registers an actor that does not live yet.
    fn prepare(self, core: &Arc<SystemCore>, owner: Owner, kept: Option<Kept>) -> Result<ActorTask<B>, SpawnError> {
        if core.closing.load(Ordering::SeqCst) {
            return Err(SpawnError::ShuttingDown);
        }
        let ActorOptions { id, mailbox, subscriptions, restart, redelivery, depends_on, recycle, fence } = self.options;
        if !(1..=Semaphore::MAX_PERMITS).contains(&mailbox.messages) {
            return Err(SpawnError::Mailbox { id, size: mailbox.messages });
        }
        let level = core.level(&id, &depends_on)?;
        let supervised = matches!(owner, Owner::Supervisor { .. });
        // Made before the entry is locked: this calls the embedder's recorder.
        let is_kept = kept.is_some();
        // Names of actors that come and go are without number.
        let metrics = if is_kept { core.services.metrics() } else { core.services.metrics_of(&id) };
        let mut made = None;
        core.services.registry.register_with(&id, |address| {
            let tenure = Tenure { can_be_passivated: is_kept, fence };
            let (cell, inbox) = Cell::new(&core.services, address.clone(), metrics, level, supervised, mailbox, tenure);
            // Before anybody finds it.
            announce(&cell, &self.blueprint);
            made = Some((Arc::clone(&cell), inbox));
            Arc::new(Endpoint::Actor(cell))
        })?;
        let (cell, inbox) = made.expect("made while it was registered");
        let actor = ActorTask::new(cell, inbox, self.blueprint, restart, redelivery, recycle, owner).kept_by(kept);
        if !subscriptions.is_empty() {
            actor.cell().set_patterns(&subscriptions);
        }
        // A shutdown either finds the actor in the registry, or is seen here.
        if core.closing.load(Ordering::SeqCst) { Err(SpawnError::ShuttingDown) } else { Ok(actor) }
    }

    pub(super) async fn spawn(self, core: &Arc<SystemCore>) -> Result<ActorRef, SpawnError> {
        let RestartPolicy { intensity, backoff, .. } = self.options.restart;
        let history = History::new(intensity, backoff, core.services.random());
        let mut actor = self.prepare(core, Owner::Itself(history), None)?;
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

    /// Registers an actor whose state is kept, and starts it on a task of its own.
    pub(super) fn activate(
        self,
        core: &Arc<SystemCore>,
        before: Option<(B, NonZeroU32)>,
        keeper: Box<dyn Keeper>,
    ) -> Result<KeptActor, SpawnError> {
        let RestartPolicy { intensity, backoff, .. } = self.options.restart;
        let history = History::new(intensity, backoff, core.services.random());
        let mut actor = self.prepare(core, Owner::Itself(history), Some(Kept::new(keeper)))?;
        if let Some((before, probation)) = before {
            actor.begin_probation(before, probation);
        }
        let cell = Arc::clone(actor.cell());
        tokio::spawn(actor.activate());
        Ok(KeptActor::new(ActorRef(cell)))
    }

    pub(super) fn supervised(
        self,
        core: &Arc<SystemCore>,
        child: usize,
        events: mpsc::UnboundedSender<ChildEvent>,
    ) -> Result<Prepared, SpawnError> {
        let policy = self.options.restart.clone();
        let actor = self.prepare(core, Owner::Supervisor { child, order: 0, events }, None)?;
        let cell = Arc::clone(actor.cell());
        Ok(Prepared {
            level: cell.level.load(Ordering::Relaxed),
            child: Child::Actor(cell),
            policy,
            tasks: vec![Box::pin(actor.run(None))],
        })
    }
}

pub(super) fn not_started(id: &ComponentId, failure: Failure) -> SpawnError {
    let id = id.clone();
    match failure {
        Failure::Start(error) => SpawnError::Start { id, error },
        Failure::Crash(report) => SpawnError::Start { id, error: Arc::new(StartError::Crash(report)) },
        Failure::GaveUp(None) => SpawnError::GaveUp { id },
        Failure::GaveUp(Some(below)) => not_started(&below.0, below.1.clone()),
    }
}

/// A registered child, whose tasks are spawned when all its siblings are prepared.
pub(super) struct Prepared {
    pub(super) level: u32,
    pub(super) child: Child,
    pub(super) policy: RestartPolicy,
    pub(super) tasks: Vec<BoxFuture<'static, ()>>,
}
