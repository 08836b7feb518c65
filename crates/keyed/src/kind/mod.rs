//! A kind: brings actors into memory when there is a message for them, and out of it when there is none.

mod admission;
pub(crate) mod core;
mod forgetting;
mod keeper;
mod leaving;
mod live;
mod quarantine;
mod sweep;
pub(crate) mod upgrade;

use std::{
    sync::Arc,
    task::{Context, Poll, Waker},
};

use airssys_wasm_actor::{ActorRef, ActorSpec, ActorSystem, Elsewhere, KeptActor, SpawnError, WeakActorSystem};
use airssys_wasm_registry::{ActorAddress, ComponentId, Refusal};
use parking_lot::RwLock;
use tokio::{runtime::Handle, sync::Mutex, task::coop, time::Instant};

pub(crate) use self::sweep::sweep;
use self::{
    core::{Core, count},
    keeper::KeyKeeper,
    live::Marks,
    upgrade::{Activation, Versions},
};

/// How often a name is tried that others have and give up meanwhile.
const ATTEMPTS: usize = 16;

/// What one who sends to a name that is not in memory uses up of its turn on a worker, as so many messages would: an activation
/// is about as much work.
const TURN: usize = 16;

/// A kind whose actors have the embedder's state `U`.
pub(crate) struct Kind<U: 'static> {
    pub(crate) core: Arc<Core>,
    /// Weak: the system holds the kind.
    pub(crate) system: WeakActorSystem<U>,
    pub(crate) template: ActorSpec<U>,
    pub(crate) versions: RwLock<Versions<U>>,
    /// Held while actors go over to a version, or back.
    pub(crate) going_over: Mutex<()>,
    /// Where actors run, whatever thread their first message comes from.
    pub(crate) runtime: Handle,
}

impl<U: Send + 'static> Kind<U> {
    pub(crate) fn id(&self, key: &str) -> Result<ComponentId, airssys_wasm_registry::InvalidId> {
        ComponentId::new(&format!("{}/{key}", self.core.kind))
    }

    pub(crate) fn system(&self) -> Option<ActorSystem<U>> {
        self.system.upgrade()
    }

    /// The actor in memory of this name.
    pub(crate) fn live(&self, id: &ComponentId) -> Option<KeptActor> {
        self.core.live.find(self.system()?.find(id)?.address())?
    }

    /// The same. One that is about to be in memory is waited for.
    pub(crate) async fn live_soon(&self, id: &ComponentId) -> Option<KeptActor> {
        loop {
            let found = self.core.live.find(self.system()?.find(id)?.address())?;
            if found.is_some() {
                return found;
            }
            tokio::task::yield_now().await;
        }
    }

    /// The actor of this name, brought into memory if it is not there. [`Refusal::Moved`] if the key is not this host's.
    pub(crate) fn actor(&self, id: &ComponentId, by: Option<&ActorAddress>) -> Result<ActorRef, Refusal> {
        let Some(system) = self.system() else { return Err(Refusal::Stopped) };
        for attempt in 0..ATTEMPTS {
            if let Some(actor) = system.find(id) {
                return Ok(actor);
            }
            if attempt == 0 {
                if !self.core.owned.owns(id) {
                    return Err(Refusal::Moved);
                }
                use_up_turn();
                self.admit(id, by)?;
            }
            // Somebody else was faster, and may have been in memory for a moment only.
            if let Some(actor) = self.activate(&system, id)? {
                return Ok(actor);
            }
        }
        // A group has the name, or others come and go.
        self.refused(Refusal::Full)
    }

    fn refused<T>(&self, reason: Refusal) -> Result<T, Refusal> {
        count!(self.core, refused);
        Err(reason)
    }

    /// Whether there may be an activation now.
    fn admit(&self, id: &ComponentId, by: Option<&ActorAddress>) -> Result<(), Refusal> {
        let core = &self.core;
        let now = Instant::now();
        let key = core.key(id.as_str()).unwrap_or_default();
        if !core.quarantine.lock().admits(key, now) {
            return self.refused(Refusal::Quarantined);
        }
        // Actors of one kind count as one.
        let caller = by.map(|by| by.id().as_str().split('/').next().unwrap_or_default());
        if !core.admission.admit(caller, now) {
            return self.refused(Refusal::Full);
        }
        // After that, so that who finds no room cannot ask for it more often than it is admitted.
        if core.live.len() >= core.options.live {
            core.wake.notify_one();
            return self.refused(Refusal::Full);
        }
        Ok(())
    }

    /// Brings an actor into memory. `None` if somebody has its name.
    fn activate(&self, system: &ActorSystem<U>, id: &ComponentId) -> Result<Option<ActorRef>, Refusal> {
        let core = &self.core;
        let now = Instant::now();
        // An upgrade that does not see it yet is seen by it, and one that sees it waits until it has its version.
        let marks = Arc::new(Marks::new(core.tick(now), core.live.left(), 0));
        let part = core.owned.part(id);
        let Some((number, live)) = core.live.reserve(&marks, part, core.options.live) else {
            core.wake.notify_one();
            return self.refused(Refusal::Full);
        };
        // Whatever becomes of this one: the sweep has seen none, and others that come now do not wake it.
        if live == 1 || sweep::is_crowded(core, live) {
            core.wake.notify_one();
        }
        let Activation { number: version, sandbox, before } = self.version();
        marks.set_version(version);
        // Who gives the part away either finds this place, or is seen here.
        let fence = core.owned.fence(part);
        let keeper = KeyKeeper::new(core, id.clone(), marks, number, fence.as_ref().ok().cloned().flatten());
        let Ok(fence) = fence else { return Err(Refusal::Moved) };
        let _entered = self.runtime.enter();
        let mut spec = self.template.clone().with_id(id.clone()).with_sandbox(sandbox);
        if let Some(fence) = fence {
            spec = spec.with_fence(fence);
        }
        match system.activate(spec, before, Box::new(keeper)) {
            Ok(actor) => {
                core.live.fill(number, actor.clone());
                Ok(Some(actor.actor().clone()))
            }
            Err(SpawnError::NameTaken(_)) => Ok(None),
            Err(SpawnError::ShuttingDown) => Err(Refusal::Stopped),
            Err(error) => {
                tracing::error!(actor = %id, "not activated: {error}");
                self.refused(Refusal::Stopped)
            }
        }
    }
}

/// Otherwise one who wakes names without number would fill the worker's queue with as many tasks as a turn has messages, and
/// all others would wait for them.
fn use_up_turn() {
    let mut cx = Context::from_waker(Waker::noop());
    for _ in 0..TURN {
        // What comes next waits for another turn, this message does not.
        let Poll::Ready(unit) = coop::poll_proceed(&mut cx) else { break };
        unit.made_progress();
    }
}

impl<U: Send + 'static> Elsewhere for Kind<U> {
    fn awaken(&self, to: &ComponentId, by: Option<&ActorAddress>) -> Option<Result<ActorRef, Refusal>> {
        self.core.key(to.as_str())?;
        match self.actor(to, by) {
            // Whoever knows where it is comes next.
            Err(Refusal::Moved) => None,
            found => Some(found),
        }
    }
}

impl<U> Drop for Kind<U> {
    fn drop(&mut self) {
        self.core.closed.cancel();
    }
}
