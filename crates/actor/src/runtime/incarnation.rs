//! The interface between an actor's task and its incarnations, guest or native.

use std::{
    future::{poll_fn, ready},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::Arc,
    task::Poll,
};

use airssys_wasm_engine::LoadedComponent;
use airssys_wasm_isolation::{Crash, CrashKind, SeveralCrashed};
use airssys_wasm_limits::CancellationToken;
use airssys_wasm_registry::{ComponentId, MessageEnvelope, TraceContext};
use bytes::Bytes;
use futures_util::FutureExt;
use tokio::time::Instant;

use crate::{
    CallError, CrashReport, During, HealthError, StartError, UpgradeError,
    runtime::{call::Call, cell::Cell, several::Several, turn::Turn},
};

/// Makes incarnations.
pub(crate) trait Blueprint: Send + Sync + Sized + 'static {
    type Live: Live;
    /// The argument of an upgrade.
    type Version: Send + 'static;

    /// Starts an incarnation, with the state of the one before. `interrupt` cancels the start.
    fn start(
        &self,
        cell: &Arc<Cell>,
        state: Option<Bytes>,
        interrupt: &CancellationToken,
    ) -> impl Future<Output = Result<Self::Live, StartError>> + Send;

    /// The blueprint of another version.
    fn upgraded(&self, id: &ComponentId, version: Self::Version) -> Result<Self, UpgradeError>;

    /// Whether incarnations are only called, and handle no messages.
    fn takes_only_calls(&self) -> bool {
        false
    }

    /// The component, for guests.
    fn component(&self) -> Option<&LoadedComponent> {
        None
    }

    /// Messages that an incarnation may have in flight at the same time.
    fn at_a_time(&self) -> usize {
        1
    }

    /// The largest payload that incarnations accept, in bytes.
    fn message_size(&self) -> u64;

    /// Whether incarnations can snapshot their state, and whether they can restore it.
    fn keeps_state(&self) -> (bool, bool);
}

/// An incarnation. After a crash it is dropped without another call.
pub(crate) trait Live: Send + Sized + 'static {
    /// Handles a message, in its trace if it has one. May end its turn before it returns.
    fn handle(
        &mut self,
        message: &MessageEnvelope,
        trace: Option<Box<TraceContext>>,
        turn: &mut Turn<'_>,
        interrupt: &CancellationToken,
    ) -> impl Future<Output = Result<Handled, Crash>> + Send;

    /// Handles messages as they come, several at the same time, until there are none for the moment and all tasks have ended.
    fn handle_several(
        &mut self,
        _messages: &mut dyn Several,
        _interrupt: &CancellationToken,
    ) -> impl Future<Output = Result<(), SeveralCrashed>> + Send {
        ready(Ok(()))
    }

    /// Makes a call with a deadline, and tells its caller what came of it, unless it crashes. Only guests have exports.
    fn call(
        &mut self,
        call: &mut Call,
        _deadline: Option<Instant>,
        _trace: Option<Box<TraceContext>>,
        _interrupt: &CancellationToken,
    ) -> impl Future<Output = Result<(), Crash>> + Send {
        call.pending.fail(CallError::OtherSystem);
        ready(Ok(()))
    }

    fn health(
        &mut self,
        interrupt: &CancellationToken,
    ) -> impl Future<Output = Result<Result<(), HealthError>, Crash>> + Send;

    fn snapshot(
        &mut self,
        interrupt: &CancellationToken,
    ) -> impl Future<Output = Result<Result<Bytes, String>, Crash>> + Send;

    /// The last call.
    fn shutdown(self, interrupt: &CancellationToken) -> impl Future<Output = Result<(), Crash>> + Send;

    /// Ends it without `shutdown`.
    fn free(self) -> impl Future<Output = ()> + Send
    where
        Self: Sized,
    {
        async { drop(self) }
    }

    /// Its linear memory, in bytes.
    fn memory(&self) -> u64;
}

/// A handler's result: an answer or none, or an error message.
pub(crate) type Handled = Result<Option<Bytes>, String>;

/// Calls the embedder's factory for an incarnation. A panic is a crash of the start.
pub(crate) fn made<T>(cell: &Cell, make: impl FnOnce() -> T) -> Result<T, StartError> {
    catch_unwind(AssertUnwindSafe(make))
        .map_err(|payload| crashed(cell, During::Start, Crash::of_host(CrashKind::panicked(payload), "make")))
}

/// A crash as a failed start.
pub(crate) fn crashed(cell: &Cell, during: During, crash: Crash) -> StartError {
    let (actor, incarnation) = (cell.address.clone(), cell.incarnation());
    StartError::Crash(Arc::new(CrashReport { actor, incarnation, during, crash }))
}

/// Runs the embedder's code until it is done or interrupted. A panic is a crash, after which its state is dropped.
pub(crate) async fn call<T>(
    what: &'static str,
    interrupt: &CancellationToken,
    code: impl Future<Output = T> + Send,
) -> Result<T, Crash> {
    let mut code = pin!(AssertUnwindSafe(code).catch_unwind());
    // Poll once before listening for an interruption: most futures are ready at once.
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
