//! What an actor's task runs: a guest in its sandbox, or a handler of the host.

use std::{
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::Arc,
    task::Poll,
};

use airssys_wasm_isolation::{Crash, CrashKind};
use airssys_wasm_limits::CancellationToken;
use airssys_wasm_registry::{ComponentId, MessageEnvelope, TraceContext};
use bytes::Bytes;
use futures_util::FutureExt;

use crate::{
    CrashReport, During, HealthError, StartError, UpgradeError,
    runtime::{cell::Cell, mailbox::ReplyTo},
};

/// What incarnations are made from.
pub(crate) trait Blueprint: Send + Sync + Sized + 'static {
    type Live: Live;
    /// What an upgrade brings.
    type Version: Send + 'static;

    /// Brings an incarnation to life, with what another version left behind, until the token is cancelled.
    fn start(
        &self,
        cell: &Arc<Cell>,
        state: Option<Bytes>,
        interrupt: &CancellationToken,
    ) -> impl Future<Output = Result<Self::Live, StartError>> + Send;

    /// The same with another version.
    fn upgraded(&self, id: &ComponentId, version: Self::Version) -> Result<Self, UpgradeError>;

    /// Bytes of payload that its incarnations take.
    fn message_size(&self) -> u64;

    /// Whether its incarnations can leave state behind, and whether they can take it.
    fn keeps_state(&self) -> (bool, bool);
}

/// An incarnation. After a crash it is dropped, and never called again.
pub(crate) trait Live: Send + Sized + 'static {
    /// Handles a message, in a trace if it came in one. May take the reply and answer by itself.
    fn handle(
        &mut self,
        message: &MessageEnvelope,
        trace: Option<Box<TraceContext>>,
        reply: &mut Option<ReplyTo>,
        interrupt: &CancellationToken,
    ) -> impl Future<Output = Result<Handled, Crash>> + Send;

    fn health(
        &mut self,
        interrupt: &CancellationToken,
    ) -> impl Future<Output = Result<Result<(), HealthError>, Crash>> + Send;

    fn snapshot(
        &mut self,
        interrupt: &CancellationToken,
    ) -> impl Future<Output = Result<Result<Bytes, String>, Crash>> + Send;

    /// The last thing it does.
    fn shutdown(self, interrupt: &CancellationToken) -> impl Future<Output = Result<(), Crash>> + Send;

    /// Bytes of memory that it has.
    fn memory(&self) -> u64;
}

/// What a handler came back with.
pub(crate) type Handled = Result<Option<Bytes>, String>;

/// What code of the embedder makes for an incarnation. A panic there is a crash of the start.
pub(crate) fn made<T>(cell: &Cell, make: impl FnOnce() -> T) -> Result<T, StartError> {
    catch_unwind(AssertUnwindSafe(make))
        .map_err(|payload| crashed(cell, During::Start, Crash::of_host(CrashKind::panicked(payload), "make")))
}

/// A start that crashed.
pub(crate) fn crashed(cell: &Cell, during: During, crash: Crash) -> StartError {
    let (actor, incarnation) = (cell.address.clone(), cell.incarnation());
    StartError::Crash(Arc::new(CrashReport { actor, incarnation, during, crash }))
}

/// Runs the embedder's code until it is done or interrupted. A panic is a crash, and so its state is never used again.
pub(crate) async fn call<T>(
    what: &'static str,
    interrupt: &CancellationToken,
    code: impl Future<Output = T> + Send,
) -> Result<T, Crash> {
    let mut code = pin!(AssertUnwindSafe(code).catch_unwind());
    // Most are done at once, and need not listen for an interruption.
    let done = match poll_fn(|cx| Poll::Ready(code.as_mut().poll(cx))).await {
        Poll::Ready(done) => done,
        Poll::Pending => tokio::select! {
            biased;
            done = code => done,
            () = interrupt.cancelled() => return Err(Crash::of_host(CrashKind::Cancelled, what)),
        },
    };
    done.map_err(|payload| Crash::of_host(CrashKind::panicked(payload), what))
}
