//! Actors written in Rust: the same mailbox, restarts and supervision, without a sandbox.

use std::{convert::Infallible, fmt, future::ready, pin::pin, sync::Arc, time::Duration};

use airssys_wasm_isolation::Crash;
use airssys_wasm_limits::CancellationToken;
use airssys_wasm_registry::{
    ActorAddress, ComponentId, MessageEnvelope, Name, PublishReport, Refusal, SendError, Topic, TopicPattern,
    TraceContext, Undelivered,
};
use bytes::Bytes;

use crate::{
    ActorRef, During, HealthError, StartError, UpgradeError,
    runtime::{
        cell::Cell,
        incarnation::{Blueprint, Handled, Live, call, crashed, made},
        options::{ActorOptions, option_methods},
        timers::TimerLimits,
        turn::Turn,
    },
};

/// An actor written in Rust.
///
/// A handler that computes is not interrupted, so it must not block its thread. A panic is a crash
/// ([`CrashKind::HostPanic`](airssys_wasm_isolation::CrashKind::HostPanic)).
///
/// ```
/// use airssys_wasm_actor::{Bytes, NativeActor, NativeContext, registry::MessageEnvelope};
///
/// struct Counter(u64);
///
/// impl NativeActor for Counter {
///     async fn handle(&mut self, _: &MessageEnvelope, _: &NativeContext) -> Result<Option<Bytes>, String> {
///         self.0 += 1;
///         Ok(Some(self.0.to_string().into()))
///     }
/// }
/// ```
pub trait NativeActor: Send + 'static {
    /// Called once, before the first message. An error fails the start.
    fn init(&mut self, _context: &NativeContext) -> impl Future<Output = Result<(), String>> + Send {
        ready(Ok(()))
    }

    /// Handles a message. The returned payload answers an ask.
    fn handle(
        &mut self,
        message: &MessageEnvelope,
        context: &NativeContext,
    ) -> impl Future<Output = Result<Option<Bytes>, String>> + Send;

    /// Called between two messages, for [`ActorRef::health`].
    fn health(&mut self, _context: &NativeContext) -> impl Future<Output = Result<(), String>> + Send {
        ready(Ok(()))
    }

    /// Called once, after the last message, unless the incarnation crashed or was killed.
    fn stop(self, _context: &NativeContext) -> impl Future<Output = ()> + Send
    where
        Self: Sized,
    {
        ready(())
    }
}

/// A native actor's access to its system. Cheap to clone; a clone keeps the trace of the message in flight.
#[derive(Clone)]
pub struct NativeContext {
    cell: Arc<Cell>,
    /// The trace of the message in flight.
    trace: Option<Box<TraceContext>>,
}

impl NativeContext {
    /// The actor's name.
    pub fn id(&self) -> &ComponentId {
        self.cell.id()
    }

    /// The actor's name and registration.
    pub fn address(&self) -> &ActorAddress {
        &self.cell.address
    }

    /// The actor's own handle. An ask to it from its own handler never resolves.
    pub fn itself(&self) -> ActorRef {
        ActorRef(Arc::clone(&self.cell))
    }

    /// Looks up an actor by name.
    pub fn find(&self, name: &(impl Name + ?Sized)) -> Option<ActorRef> {
        self.cell.services.find(name)
    }

    /// Wraps a message with this actor as sender and the trace of the message in flight.
    pub fn envelope(&self, message: impl Into<MessageEnvelope>) -> MessageEnvelope {
        self.cell.envelope(message.into(), self.trace.as_deref())
    }

    /// Sends a message from this actor without waiting, to an actor or to the next member of a group that accepts it.
    ///
    /// # Errors
    ///
    /// [`SendError`], with the message; [`Refusal::Moved`] if another host may have this actor's name by now.
    pub fn send(&self, to: &ComponentId, message: impl Into<MessageEnvelope>) -> Result<(), SendError> {
        let message = self.envelope(message);
        if self.cell.is_fenced() {
            return Err(SendError::Refused { to: to.clone(), reason: Refusal::Moved, message });
        }
        self.cell.services.send(to, message)
    }

    /// Sends a message from this actor later, and gives its number. It is cancelled when the actor ends, and kept when it
    /// restarts. A receiver that does not take it then makes it a dead letter of this actor.
    ///
    /// # Errors
    ///
    /// [`Undelivered`], with the message, if the actor has ended.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with timers.
    pub fn send_after(
        &self,
        after: Duration,
        to: &ComponentId,
        message: impl Into<MessageEnvelope>,
    ) -> Result<u64, Undelivered> {
        let message = self.envelope(message);
        let sent = self.cell.send_later(to.clone(), message, after, TimerLimits::NONE);
        sent.map_err(|(reason, message)| Undelivered::new(reason, message))
    }

    /// Cancels a message that was to be sent later. `false` if it was sent, or is about to be.
    pub fn cancel(&self, number: u64) -> bool {
        self.cell.cancel_later(number)
    }

    /// Publishes a message from this actor to all subscribers of a topic.
    pub async fn publish(&self, topic: &Topic, message: impl Into<MessageEnvelope>) -> PublishReport {
        self.cell.services.publish(topic, self.envelope(message)).await
    }

    /// Subscribes this actor to a pattern. Idempotent. Subscriptions outlive restarts.
    pub fn subscribe(&self, pattern: TopicPattern) {
        self.cell.subscribe(pattern, u32::MAX);
    }

    /// Ends the subscription to this pattern, if there is one.
    pub fn unsubscribe(&self, pattern: &TopicPattern) {
        self.cell.unsubscribe(pattern);
    }
}

impl fmt::Debug for NativeContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("NativeContext").field(&self.cell.address).finish()
    }
}

/// The specification of a native actor.
pub struct NativeSpec<N> {
    pub(crate) options: ActorOptions,
    pub(crate) make: Arc<dyn Fn() -> N + Send + Sync>,
}

impl<N> Clone for NativeSpec<N> {
    fn clone(&self) -> Self {
        Self { options: self.options.clone(), make: Arc::clone(&self.make) }
    }
}

impl<N> fmt::Debug for NativeSpec<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NativeSpec").field("options", &self.options).finish_non_exhaustive()
    }
}

impl<N: NativeActor> NativeSpec<N> {
    /// A native actor with default options. `make` is called for each incarnation.
    pub fn new(id: ComponentId, make: impl Fn() -> N + Send + Sync + 'static) -> Self {
        Self { options: ActorOptions::new(id), make: Arc::new(make) }
    }

    option_methods!();
}

pub(crate) struct NativeBlueprint<N>(pub(crate) Arc<dyn Fn() -> N + Send + Sync>);

pub(crate) struct NativeLive<N> {
    actor: N,
    context: NativeContext,
}

impl<N: NativeActor> Blueprint for NativeBlueprint<N> {
    type Live = NativeLive<N>;
    type Version = Infallible;

    async fn start(
        &self,
        cell: &Arc<Cell>,
        _: Option<Bytes>,
        interrupt: &CancellationToken,
    ) -> Result<NativeLive<N>, StartError> {
        let mut actor = made(cell, || (self.0)())?;
        let context = NativeContext { cell: Arc::clone(cell), trace: None };
        let init = call("init", interrupt, async { actor.init(&context).await }).await;
        init.map_err(|crash| crashed(cell, During::Init, crash))?.map_err(|message| StartError::Refused { message })?;
        Ok(NativeLive { actor, context })
    }

    fn upgraded(&self, _: &ComponentId, version: Infallible) -> Result<Self, UpgradeError> {
        match version {}
    }

    fn message_size(&self) -> u64 {
        u64::MAX
    }

    fn keeps_state(&self) -> (bool, bool) {
        (false, false)
    }
}

impl<N: NativeActor> Live for NativeLive<N> {
    async fn handle(
        &mut self,
        message: &MessageEnvelope,
        trace: Option<Box<TraceContext>>,
        _: &mut Turn<'_>,
        interrupt: &CancellationToken,
    ) -> Result<Handled, Crash> {
        self.context.trace = trace;
        // In a block, because `handle` may panic before it returns a future. Pinned here, so that it is not moved.
        let handling = pin!(async { self.actor.handle(message, &self.context).await });
        call("handle", interrupt, handling).await
    }

    async fn health(&mut self, interrupt: &CancellationToken) -> Result<Result<(), HealthError>, Crash> {
        let health = call("health", interrupt, async { self.actor.health(&self.context).await }).await?;
        Ok(health.map_err(|message| HealthError::Unwell { message }))
    }

    async fn snapshot(&mut self, _: &CancellationToken) -> Result<Result<Bytes, String>, Crash> {
        Ok(Ok(Bytes::new()))
    }

    async fn shutdown(self, interrupt: &CancellationToken) -> Result<(), Crash> {
        let Self { actor, mut context } = self;
        context.trace = None;
        call("stop", interrupt, async { actor.stop(&context).await }).await
    }

    fn memory(&self) -> u64 {
        0
    }
}
