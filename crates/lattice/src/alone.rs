//! A name that one host of a lattice serves at a time, and another when that is gone.

use std::{
    fmt,
    panic::AssertUnwindSafe,
    sync::{Arc, Weak},
    time::Duration,
};

use airssys_wasm_actor::{ActorRef, Fence, SpawnError, Stop, limits::CancellationToken, registry::ComponentId};
use futures_util::FutureExt;
use tokio::sync::watch;

use crate::{
    clock,
    error::ExportError,
    events::LatticeEvent,
    fence::SessionFence,
    host::{Host, Life},
};

/// How often a host looks whether a name is free, or whether it may go on serving it.
const OFTEN: Duration = Duration::from_millis(100);
/// How long a host leaves a name to others, at the most, that it could not serve for so long.
const LONGEST: Duration = Duration::from_secs(10);

/// This host's part in serving a name. It ends when this is dropped: the actor is stopped, and another host may have the name.
#[must_use = "dropping it ends this host's part"]
pub struct StandBy {
    host: Weak<Host>,
    name: ComponentId,
    actor: watch::Receiver<Option<ActorRef>>,
    stop: CancellationToken,
    ended: CancellationToken,
}

impl StandBy {
    /// The name.
    pub fn name(&self) -> &ComponentId {
        &self.name
    }

    /// The actor, while this host serves the name.
    pub fn actor(&self) -> Option<ActorRef> {
        self.actor.borrow().clone()
    }

    /// Waits until this host serves the name, and gives the actor. None once the host has left.
    pub async fn serving(&mut self) -> Option<ActorRef> {
        self.actor.wait_for(Option::is_some).await.ok()?.clone()
    }

    /// Stops the actor after the message in flight, and gives the name up.
    pub async fn stop(self) {
        self.stop.cancel();
        self.ended.cancelled().await;
    }
}

impl Drop for StandBy {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(host) = self.host.upgrade()
            && host.stood_by.end(&self.name)
        {
            host.end_offer(&self.name);
        }
    }
}

impl fmt::Debug for StandBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StandBy").field("name", &self.name).field("actor", &self.actor()).finish_non_exhaustive()
    }
}

/// Serves a name whenever it is free.
pub(crate) fn stand_by<F, Fut>(host: Arc<Host>, name: ComponentId, spawn: F) -> StandBy
where
    F: Fn(ComponentId, Arc<dyn Fence>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<ActorRef, SpawnError>> + Send,
{
    let (serving, actor) = watch::channel(None);
    // A host that leaves gives up the name, and stays until its actor has ended.
    let (stop, ended) = (host.leaving.child_token(), CancellationToken::new());
    host.stood_by.begin(&name);
    let handle =
        StandBy { host: Arc::downgrade(&host), name: name.clone(), actor, stop: stop.clone(), ended: ended.clone() };
    host.runtime.clone().spawn(async move {
        let _ended = ended.drop_guard();
        let mut pause = OFTEN;
        // Whether a claim may have been written of which that is not known.
        let mut is_doubtful = false;
        while !stop.is_cancelled() {
            let mut wait = OFTEN;
            if let Some(life) = host.life().filter(|_| host.is_free(&name) && !host.has_exported(&name))
                && let Some(_serves) = host.stood_by.serve(&name)
            {
                match host.claim(&name, &life, false, true).await {
                    Ok(revision) => {
                        is_doubtful = false;
                        let began = clock::now();
                        serve(&host, &name, &life, revision, &spawn, &serving, &stop).await;
                        // One that does not start, or ends at once, is not tried all the time.
                        let has_served = clock::now().saturating_sub(began) >= LONGEST;
                        wait = if has_served { OFTEN } else { pause };
                        pause = (2 * wait).min(LONGEST);
                    }
                    Err(ExportError::NameTaken { .. }) => {}
                    Err(error) => {
                        is_doubtful = true;
                        tracing::debug!(%name, %error, "not claimed");
                    }
                }
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = stop.cancelled() => {}
            }
        }
        if is_doubtful && let Some(_serves) = host.stood_by.serve(&name) {
            Arc::clone(&host).forsake(name, false, None).await;
        }
    });
    handle
}

/// Serves a name until its actor has ended or the session is over.
async fn serve<F, Fut>(
    host: &Arc<Host>,
    name: &ComponentId,
    life: &Life,
    revision: u64,
    spawn: &F,
    serving: &watch::Sender<Option<ActorRef>>,
    stop: &CancellationToken,
) where
    F: Fn(ComponentId, Arc<dyn Fence>) -> Fut,
    Fut: Future<Output = Result<ActorRef, SpawnError>>,
{
    let fence = Arc::new(SessionFence::new(life.fence.clone()));
    // A panic of theirs must not end it with the name in this host's hands.
    let spawned = AssertUnwindSafe(async { spawn(name.clone(), Arc::clone(&fence) as _).await }).catch_unwind().await;
    match spawned {
        Ok(Ok(actor)) => {
            host.export_claimed(name, life, revision);
            serving.send_replace(Some(actor.clone()));
            host.event(LatticeEvent::Serving { name: name.clone() });
            let is_over = async {
                while fence.holds() {
                    tokio::time::sleep(OFTEN).await;
                }
            };
            tokio::select! {
                () = is_over => actor.kill(),
                () = actor.ended() => {}
                () = stop.cancelled() => actor.stop(Stop::Now),
            }
            actor.ended().await;
            serving.send_replace(None);
        }
        failed => {
            match failed {
                Ok(Err(error)) => tracing::warn!(%name, %error, "a name that this host has is not served"),
                _ => tracing::warn!(%name, "a name that this host has is not served: to spawn its actor panicked"),
            }
            host.export_claimed(name, life, revision);
        }
    }
    // Another host may serve it. If the session is over it has nothing to say any more.
    host.give_up(name).await;
}
