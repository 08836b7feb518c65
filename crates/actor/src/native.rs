//! Actors that are code of the host: the same mailbox, restarts and supervision, without a sandbox.

use std::{panic::AssertUnwindSafe, sync::Arc};

use airssys_wasm_isolation::{Crash, CrashKind};
use airssys_wasm_limits::CancellationToken;
use airssys_wasm_registry::{ComponentId, MessageEnvelope, TraceContext};
use bytes::Bytes;
use futures_util::FutureExt;

use crate::{
    HealthError, RestartPolicy, StartError, UpgradeError,
    actor::{Blueprint, Handled, Live},
    cell::{Cell, ReplyTo},
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
    /// How its failures are answered.
    pub restart: RestartPolicy,
    /// See [`ActorSpec::redelivery`](crate::ActorSpec::redelivery).
    pub redelivery: Option<u32>,
    /// Actors that must be there before it, and are stopped after it.
    pub depends_on: Vec<ComponentId>,
}

impl<N: NativeActor> NativeSpec<N> {
    /// A native actor with defaults for everything else.
    pub fn new(id: ComponentId, make: impl Fn() -> N + Send + Sync + 'static) -> Self {
        Self {
            id,
            make: Arc::new(make),
            mailbox: 1_024,
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
    type Version = Arc<dyn Fn() -> N + Send + Sync>;

    async fn start(&self, _: &Arc<Cell>, _: Option<Bytes>, _: &CancellationToken) -> Result<NativeLive<N>, StartError> {
        Ok(NativeLive((self.0)()))
    }

    fn upgraded(&self, version: Self::Version) -> Result<Self, UpgradeError> {
        Ok(Self(version))
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
        mut self,
        message: &MessageEnvelope,
        _: Option<Box<TraceContext>>,
        _: &mut Option<ReplyTo>,
        interrupt: &CancellationToken,
    ) -> Result<(Handled, Self), Crash> {
        // The handler is never used again after a panic.
        let handling = AssertUnwindSafe(self.0.handle(message)).catch_unwind();
        let handled = tokio::select! {
            biased;
            handled = handling => handled,
            () = interrupt.cancelled() => return Err(Crash::of_host(CrashKind::Cancelled, "handle")),
        };
        match handled {
            Ok(handled) => Ok((handled, self)),
            Err(payload) => Err(Crash::of_host(CrashKind::panicked(payload), "handle")),
        }
    }

    async fn health(self, _: &CancellationToken) -> Result<(Result<(), HealthError>, Self), Crash> {
        Ok((Err(HealthError::NotOffered), self))
    }

    async fn snapshot(self, _: &CancellationToken) -> Result<(Result<Bytes, String>, Self), Crash> {
        Ok((Ok(Bytes::new()), self))
    }

    async fn shutdown(self, _: &CancellationToken) -> Result<(), Crash> {
        Ok(())
    }

    fn memory(&self) -> u64 {
        0
    }
}
