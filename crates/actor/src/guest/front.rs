//! Fronts: actors in whose name sandboxes of the embedder's speak, and that take no messages themselves.

use std::{
    convert::Infallible,
    fmt,
    future::ready,
    sync::{Arc, atomic::AtomicU64},
};

use airssys_wasm_isolation::Crash;
use airssys_wasm_limits::CancellationToken;
use airssys_wasm_registry::{ComponentId, MessageEnvelope, TraceContext};
use bytes::Bytes;
use tokio::time::Instant;

use crate::{
    ActorRef, ActorSandbox, ActorState, Grants, HealthError, StartError, UpgradeError,
    guest::spec::TurnState,
    runtime::{
        cell::Cell,
        incarnation::{Blueprint, Handled, Live},
        turn::Turn,
    },
};

/// A component that is called by the embedder, in any number of sandboxes, and that sends and asks in the name of one actor:
/// made by [`ActorSystem::front`](crate::ActorSystem::front). The actor has the name, and ends when this is dropped. It takes no
/// messages, and its sandboxes can subscribe to nothing.
///
/// ```
/// # use airssys_wasm_actor::{ActorSpec, ActorSystem, BoxError, Front};
/// async fn call(system: &ActorSystem, spec: ActorSpec) -> Result<(), BoxError> {
///     let front: Front = system.front(spec).await?;
///     // One for each request, or for several.
///     let mut sandbox = front.sandbox().instantiate(front.state(())).await?;
///     let until = tokio::time::Instant::now() + std::time::Duration::from_secs(5);
///     sandbox.ext_mut().begin_request(until, None);
///     // ... a call of one of its exports
/// #   Ok(())
/// }
/// ```
pub struct Front<U: 'static = ()> {
    pub(crate) actor: ActorRef,
    pub(crate) sandbox: ActorSandbox<U>,
    pub(crate) capabilities: Arc<Grants>,
    /// Calls denied in all its sandboxes: the log and the events hear ever more rarely of them.
    pub(crate) denials: Arc<AtomicU64>,
}

impl<U: Send + 'static> Front<U> {
    /// The actor.
    pub fn actor(&self) -> &ActorRef {
        &self.actor
    }

    /// What its sandboxes are made from.
    pub fn sandbox(&self) -> &ActorSandbox<U> {
        &self.sandbox
    }

    /// The state of a new sandbox, with the embedder's in it.
    pub fn state(&self, user: U) -> ActorState<U> {
        let mut state = ActorState::new(user, &self.actor.0, &self.capabilities);
        state.denials = Some(Arc::clone(&self.denials));
        state
    }
}

impl<U> Drop for Front<U> {
    fn drop(&mut self) {
        self.actor.kill();
    }
}

impl<U> fmt::Debug for Front<U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Front").field(&self.actor).finish()
    }
}

impl<U> ActorState<U> {
    /// A request begins for which a sandbox of a [`Front`] is called: nothing that the guest asks of others lasts longer than
    /// until then, and what it sends is in this trace.
    pub fn begin_request(&mut self, until: Instant, trace: Option<TraceContext>) {
        self.turn = TurnState { trace: trace.map(Box::new), deadline: Some(until) };
        self.ends = Some(until);
    }
}

/// An actor that only has a name.
pub(crate) struct FrontBlueprint {
    pub(crate) message_size: u64,
}

pub(crate) struct FrontLive;

impl Blueprint for FrontBlueprint {
    type Live = FrontLive;
    type Version = Infallible;

    async fn start(&self, _: &Arc<Cell>, _: Option<Bytes>, _: &CancellationToken) -> Result<FrontLive, StartError> {
        Ok(FrontLive)
    }

    fn upgraded(&self, _: &ComponentId, version: Infallible) -> Result<Self, UpgradeError> {
        match version {}
    }

    fn takes_only_calls(&self) -> bool {
        true
    }

    /// Its sandboxes wait for others at the same time. Nobody can wait for it, so no circle goes through it.
    fn at_a_time(&self) -> usize {
        usize::MAX
    }

    fn message_size(&self) -> u64 {
        self.message_size
    }

    fn keeps_state(&self) -> (bool, bool) {
        (false, false)
    }
}

impl Live for FrontLive {
    async fn handle(
        &mut self,
        _: &MessageEnvelope,
        _: Option<Box<TraceContext>>,
        _: &mut Turn<'_>,
        _: &CancellationToken,
    ) -> Result<Handled, Crash> {
        // Its mailbox refuses them.
        Ok(Err("it takes no messages".to_owned()))
    }

    async fn health(&mut self, _: &CancellationToken) -> Result<Result<(), HealthError>, Crash> {
        Ok(Err(HealthError::NotOffered))
    }

    async fn snapshot(&mut self, _: &CancellationToken) -> Result<Result<Bytes, String>, Crash> {
        Ok(Ok(Bytes::new()))
    }

    fn shutdown(self, _: &CancellationToken) -> impl Future<Output = Result<(), Crash>> + Send {
        ready(Ok(()))
    }

    fn memory(&self) -> u64 {
        0
    }
}
