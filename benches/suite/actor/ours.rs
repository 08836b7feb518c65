//! Our actors, as everything here uses them.

use std::time::Duration;

use airssys_wasm_actor::{
    ActorRef, ActorSpec, ActorState, ActorSystem, AskError, Backoff, Capabilities, Intensity, NativeActor,
    NativeContext, NativeSpec, RestartPolicy, SystemConfig,
};
use airssys_wasm_engine::WasmEngine;
use airssys_wasm_isolation::SandboxSpec;
use airssys_wasm_limits::ResourceLimits;
use airssys_wasm_registry::{ComponentId, MessageEnvelope};
use airssys_wasm_twins::{
    actors::Guest,
    bare::engine,
    receivers::{MAILBOX, Receiver, echo},
};
use bytes::Bytes;

use crate::guests;

/// What a sandbox of a guest is made from.
pub(crate) fn sandbox(guest: &Guest, system: &ActorSystem, limits: ResourceLimits) -> SandboxSpec<ActorState<()>> {
    SandboxSpec::new(system.link(guest.loaded()).unwrap(), limits).unwrap()
}

/// A system on an engine, with everything else as it is by default.
pub(crate) fn system(engine: &WasmEngine) -> ActorSystem {
    ActorSystem::new(engine.clone(), SystemConfig::default())
}

/// An actor's name.
pub(crate) fn id(name: &str) -> ComponentId {
    name.parse().expect("a name")
}

/// An actor that may do everything, and is restarted at once, however often.
pub(crate) fn spec(name: &str, sandbox: &SandboxSpec<ActorState<()>>) -> ActorSpec<()> {
    let mut spec = ActorSpec::new(id(name), sandbox.clone());
    spec = spec.with_mailbox(MAILBOX);
    spec = spec.with_restart(always());
    spec = spec.with_capabilities(Capabilities::all());
    spec
}

/// An actor of the host that echoes, and is restarted at once, however often.
pub(crate) fn native_spec(name: &str) -> NativeSpec<Echo> {
    let mut spec = NativeSpec::new(id(name), || Echo);
    spec = spec.with_mailbox(MAILBOX);
    spec = spec.with_restart(always());
    spec
}

fn always() -> RestartPolicy {
    // A short period, because all restarts within it are remembered.
    let intensity = Intensity { restarts: u32::MAX, within: Duration::from_millis(1) };
    RestartPolicy { backoff: Backoff::NONE, intensity, ..RestartPolicy::default() }
}

/// One of our actors, and the system that it lives in.
#[derive(Clone)]
pub(crate) struct Ours {
    /// The system.
    pub(crate) system: ActorSystem,
    /// The actor.
    pub(crate) actor: ActorRef,
}

impl Ours {
    /// The only actor of a system.
    pub(crate) async fn guest(guest: &Guest) -> Self {
        let system = system(engine());
        let spec = spec("guest", &sandbox(guest, &system, guests::limits()));
        Self { actor: system.spawn(spec).await.expect("an actor"), system }
    }

    /// The same in code of the host.
    pub(crate) async fn native() -> Self {
        let system = system(engine());
        Self { actor: system.spawn_native(native_spec("native")).await.expect("an actor"), system }
    }
}

impl Receiver for Ours {
    async fn tell(&self, payload: Bytes) {
        self.actor.tell(payload).await.expect("it lives");
    }

    async fn ask(&self, payload: Bytes) -> Option<Bytes> {
        match self.actor.ask(payload).await {
            Ok(answer) => Some(answer),
            Err(AskError::Crashed(_)) => None,
            Err(other) => panic!("{other}"),
        }
    }
}

impl NativeActor for Echo {
    async fn handle(&mut self, message: &MessageEnvelope, _: &NativeContext) -> Result<Option<Bytes>, String> {
        Ok(Some(echo(message.payload().clone())))
    }
}

/// A handler of the host that echoes.
pub(crate) struct Echo;
