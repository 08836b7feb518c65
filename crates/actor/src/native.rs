//! Actors that are code of the host: the same mailbox, restarts and supervision, without a sandbox.

use std::{
    convert::Infallible,
    fmt,
    future::poll_fn,
    num::NonZeroU32,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::Arc,
    task::Poll,
};

use airssys_wasm_isolation::{Crash, CrashKind};
use airssys_wasm_limits::CancellationToken;
use airssys_wasm_registry::{ComponentId, MessageEnvelope, TopicPattern, TraceContext};
use bytes::Bytes;
use futures_util::FutureExt;

use crate::{
    CrashReport, During, HealthError, RestartPolicy, StartError, UpgradeError,
    guest::incarnation::{DEFAULT_MAILBOX_BYTES, DEFAULT_MAILBOX_SHARES},
    runtime::cell::{Cell, ReplyTo},
    runtime::task::{Blueprint, Handled, Live},
};

/// A handler of the host, by which a system gives its components somebody to talk to.
///
/// It is not interrupted while it computes: it must not block its thread. A panic is a crash
/// ([`CrashKind::HostPanic`]).
pub trait NativeActor: Send + 'static {
    /// Takes a message. What it returns is the answer, for whoever waits for one.
    fn handle(&mut self, message: &MessageEnvelope) -> impl Future<Output = Result<Option<Bytes>, String>> + Send;
}

/// What a native actor is spawned from.
pub struct NativeSpec<N> {
    /// Its name.
    pub id: ComponentId,
    /// Makes the handler, anew for each incarnation.
    pub make: Arc<dyn Fn() -> N + Send + Sync>,
    /// Messages that its mailbox holds. Default: 1,024.
    pub mailbox: usize,
    /// Bytes of large messages that its mailbox holds, see [`ActorSpec::mailbox_bytes`](crate::ActorSpec::mailbox_bytes).
    pub mailbox_bytes: u64,
    /// See [`ActorSpec::mailbox_shares`](crate::ActorSpec::mailbox_shares).
    pub mailbox_shares: NonZeroU32,
    /// Topics that it is subscribed to.
    pub subscriptions: Vec<TopicPattern>,
    /// How its failures are answered.
    pub restart: RestartPolicy,
    /// See [`ActorSpec::redelivery`](crate::ActorSpec::redelivery).
    pub redelivery: Option<u32>,
    /// Actors that must be there before it, and are stopped after it.
    pub depends_on: Vec<ComponentId>,
}

impl<N> Clone for NativeSpec<N> {
    fn clone(&self) -> Self {
        Self {
            id: self.id.clone(),
            make: Arc::clone(&self.make),
            mailbox: self.mailbox,
            mailbox_bytes: self.mailbox_bytes,
            mailbox_shares: self.mailbox_shares,
            subscriptions: self.subscriptions.clone(),
            restart: self.restart.clone(),
            redelivery: self.redelivery,
            depends_on: self.depends_on.clone(),
        }
    }
}

impl<N> fmt::Debug for NativeSpec<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NativeSpec").field("id", &self.id).finish_non_exhaustive()
    }
}

impl<N: NativeActor> NativeSpec<N> {
    /// A native actor with defaults for everything else.
    pub fn new(id: ComponentId, make: impl Fn() -> N + Send + Sync + 'static) -> Self {
        Self {
            id,
            make: Arc::new(make),
            mailbox: 1_024,
            mailbox_bytes: DEFAULT_MAILBOX_BYTES,
            mailbox_shares: DEFAULT_MAILBOX_SHARES,
            subscriptions: Vec::new(),
            restart: RestartPolicy::default(),
            redelivery: None,
            depends_on: Vec::new(),
        }
    }
}

pub(crate) struct NativeBlueprint<N>(pub(crate) Arc<dyn Fn() -> N + Send + Sync>);

pub(crate) struct NativeLive<N>(N);

impl<N: NativeActor> Blueprint for NativeBlueprint<N> {
    type Live = NativeLive<N>;
    type Version = Infallible;

    async fn start(
        &self,
        cell: &Arc<Cell>,
        _: Option<Bytes>,
        _: &CancellationToken,
    ) -> Result<NativeLive<N>, StartError> {
        made(cell, || (self.0)()).map(NativeLive)
    }

    fn upgraded(&self, version: Infallible) -> Result<Self, UpgradeError> {
        match version {}
    }

    fn message_size(&self) -> u64 {
        u64::MAX
    }

    fn keeps_state(&self) -> (bool, bool) {
        (false, false)
    }
}

/// What code of the embedder makes for an incarnation. A panic there is a crash of the start.
pub(crate) fn made<T>(cell: &Cell, make: impl FnOnce() -> T) -> Result<T, StartError> {
    catch_unwind(AssertUnwindSafe(make)).map_err(|payload| {
        StartError::Crash(Arc::new(CrashReport {
            actor: cell.address.clone(),
            incarnation: cell.incarnation(),
            during: During::Start,
            crash: Crash::of_host(CrashKind::panicked(payload), "make"),
        }))
    })
}

impl<N: NativeActor> Live for NativeLive<N> {
    async fn handle(
        &mut self,
        message: &MessageEnvelope,
        _: Option<Box<TraceContext>>,
        _: &mut Option<ReplyTo>,
        interrupt: &CancellationToken,
    ) -> Result<Handled, Crash> {
        // The handler is never used again after a panic. In a block, because it may panic before it gives a future.
        let mut handling = pin!(AssertUnwindSafe(async { self.0.handle(message).await }).catch_unwind());
        // Most are done at once, and need not listen for an interruption.
        let handled = match poll_fn(|cx| Poll::Ready(handling.as_mut().poll(cx))).await {
            Poll::Ready(handled) => handled,
            Poll::Pending => tokio::select! {
                biased;
                handled = handling => handled,
                () = interrupt.cancelled() => return Err(Crash::of_host(CrashKind::Cancelled, "handle")),
            },
        };
        handled.map_err(|payload| Crash::of_host(CrashKind::panicked(payload), "handle"))
    }

    async fn health(&mut self, _: &CancellationToken) -> Result<Result<(), HealthError>, Crash> {
        Ok(Err(HealthError::NotOffered))
    }

    async fn snapshot(&mut self, _: &CancellationToken) -> Result<Result<Bytes, String>, Crash> {
        Ok(Ok(Bytes::new()))
    }

    async fn shutdown(self, _: &CancellationToken) -> Result<(), Crash> {
        Ok(())
    }

    fn memory(&self) -> u64 {
        0
    }
}
