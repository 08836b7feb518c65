//! Actors that are code of the host: the same mailbox, restarts and supervision, without a sandbox.

use std::{convert::Infallible, fmt, future::poll_fn, panic::AssertUnwindSafe, pin::pin, sync::Arc, task::Poll};

use airssys_wasm_isolation::{Crash, CrashKind};
use airssys_wasm_limits::CancellationToken;
use airssys_wasm_registry::{ComponentId, MessageEnvelope, TraceContext};
use bytes::Bytes;
use futures_util::FutureExt;

use crate::{
    HealthError, StartError, UpgradeError,
    runtime::{
        cell::Cell,
        incarnation::{Blueprint, Handled, Live, made},
        mailbox::ReplyTo,
        options::{ActorOptions, option_methods},
    },
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
    /// A native actor with defaults for everything else. The handler is made anew for each incarnation.
    pub fn new(id: ComponentId, make: impl Fn() -> N + Send + Sync + 'static) -> Self {
        Self { options: ActorOptions::new(id), make: Arc::new(make) }
    }

    option_methods!();
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
