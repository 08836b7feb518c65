//! What the tests share: one engine, the guests, and short ways to write them down.

use std::{
    pin::Pin,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use airssys_wasm_actor::{
    ActorRef, ActorSpec, ActorState, ActorSystem, AskError, Backoff, Capabilities, Fence, Intensity, NativeActor,
    NativeContext, NativeSpec, RestartPolicy, Strategy, SupervisorPolicy, SystemConfig,
};
use airssys_wasm_engine::{EngineConfig, LoadedComponent, PoolConfig, Profile, WasmEngine};
use airssys_wasm_fixtures as fixtures;
use airssys_wasm_isolation::SandboxSpec;
use airssys_wasm_limits::{ByteSize, ResourceLimits};
use airssys_wasm_registry::{ComponentId, MessageEnvelope};
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

static ENGINE: LazyLock<WasmEngine> = LazyLock::new(|| {
    let pool = Some(PoolConfig::for_components(256));
    let config = EngineConfig { pool, ..EngineConfig::default() };
    WasmEngine::new(config.with_component_async().compile_in_process()).unwrap()
});

/// Compiled once for all tests.
macro_rules! guests {
    ($($name:ident = $bytes:ident),* $(,)?) => {
        $(pub(crate) static $name: LazyLock<LoadedComponent> =
            LazyLock::new(|| ENGINE.load_blocking(fixtures::$bytes, Profile::Plain).unwrap());)*
    };
}

guests! {
    ACTOR = ACTOR,
    ASYNC_ACTOR = ASYNC_ACTOR,
    COUNTER = COUNTER,
    COUNTER_V2 = COUNTER_V2,
    LISTENER = LISTENER,
    NO_HANDLER = NO_HANDLER,
    WASMCLOUD = WASMCLOUD,
}

pub(crate) static ASYNC_WASMCLOUD: LazyLock<LoadedComponent> =
    LazyLock::new(|| ENGINE.load_wat_blocking(fixtures::ASYNC_WASMCLOUD, Profile::Plain).unwrap());

pub(crate) static LATER: LazyLock<LoadedComponent> =
    LazyLock::new(|| ENGINE.load_wat_blocking(fixtures::LATER, Profile::Plain).unwrap());

/// A fence that holds as long as it says.
#[derive(Debug)]
pub(crate) struct Switch(pub(crate) AtomicBool);

impl Fence for Switch {
    fn holds(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

pub(crate) fn system() -> ActorSystem {
    ActorSystem::new(ENGINE.clone(), SystemConfig { seed: Some(1), ..SystemConfig::default() })
}

pub(crate) fn id(name: &str) -> ComponentId {
    name.parse().unwrap()
}

pub(crate) fn limits() -> ResourceLimits {
    // Much, for a machine that is busy with other things: epochs pass while a worker waits for a core.
    ResourceLimits { cpu_time: Duration::from_millis(500), ..ResourceLimits::with_memory(ByteSize::mib(8)) }
}

pub(crate) fn sandbox(system: &ActorSystem, guest: &LoadedComponent) -> SandboxSpec<ActorState<()>> {
    SandboxSpec::new(system.link(guest).unwrap(), limits()).unwrap()
}

/// The same with other limits.
pub(crate) fn limited(spec: ActorSpec<()>, limits: ResourceLimits) -> ActorSpec<()> {
    let sandbox = SandboxSpec::new(spec.sandbox().template().clone(), limits).unwrap();
    spec.with_sandbox(sandbox)
}

/// Restarts at once, so many times.
pub(crate) fn at_once(restarts: u32) -> RestartPolicy {
    let intensity = Intensity { restarts, ..Intensity::default() };
    RestartPolicy { intensity, backoff: Backoff::NONE, ..RestartPolicy::default() }
}

/// An actor that is restarted at once and may do everything.
pub(crate) fn spec(system: &ActorSystem, name: &str, guest: &LoadedComponent) -> ActorSpec<()> {
    let mut spec = ActorSpec::new(id(name), sandbox(system, guest));
    spec = spec.with_restart(at_once(100));
    spec = spec.with_capabilities(Capabilities::all());
    spec
}

pub(crate) async fn spawn(system: &ActorSystem, name: &str, guest: &LoadedComponent) -> ActorRef {
    system.spawn(spec(system, name, guest)).await.unwrap()
}

/// Lets all that can happen happen.
pub(crate) async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

/// Polls a future that is to be left alone afterwards.
pub(crate) fn poll_once<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

/// An answer as text.
pub(crate) async fn ask(actor: &ActorRef, text: &str) -> Result<String, AskError> {
    let answer = actor.ask(text.to_owned()).await?;
    Ok(String::from_utf8(answer.to_vec()).unwrap())
}

/// A handler of the host that does what it is told, for tests in which only the actor matters.
///
/// `crash` panics, `crash once` the first time, `wait` waits until it is let go, `fail` returns an error, `storm` sends itself another `storm`,
/// `handled` answers what came before; everything else is answered as it is.
pub(crate) struct Probe(Shared);

/// What a probe shares with its test, over all its incarnations.
#[derive(Clone, Default)]
pub(crate) struct Shared {
    /// All it has handled, those that crashed it included.
    pub(crate) log: Log,
    pub(crate) gate: Arc<Notify>,
}

pub(crate) type Log = Arc<Mutex<Vec<String>>>;

impl Probe {
    pub(crate) fn spec(name: &str) -> (NativeSpec<Self>, Shared) {
        let shared = Shared::default();
        let make = {
            let shared = shared.clone();
            move || Self(shared.clone())
        };
        let mut spec = NativeSpec::new(id(name), make);
        spec = spec.with_restart(at_once(1_000));
        (spec, shared)
    }

    pub(crate) async fn spawn(system: &ActorSystem, name: &str) -> (ActorRef, Shared) {
        let (spec, shared) = Self::spec(name);
        (system.spawn_native(spec).await.unwrap(), shared)
    }
}

impl Shared {
    pub(crate) fn handled(&self) -> String {
        self.log.lock().join(",")
    }
}

impl NativeActor for Probe {
    async fn handle(&mut self, message: &MessageEnvelope, context: &NativeContext) -> Result<Option<Bytes>, String> {
        let text = String::from_utf8(message.payload().to_vec()).unwrap();
        let before = self.0.handled();
        self.0.log.lock().push(text.clone());
        match text.as_str() {
            "crash" => panic!("told to crash"),
            "crash once" if !before.ends_with("crash once") => panic!("told to crash"),
            "fail" => return Err("told to fail".to_owned()),
            "wait" => self.0.gate.notified().await,
            "storm" => {
                context.itself().try_tell("storm").unwrap();
            }
            "handled" => return Ok(Some(before.into())),
            _ => {}
        }
        Ok(Some(message.payload().clone()))
    }
}

/// A native actor that is busy until it is let go.
pub(crate) async fn busy(system: &ActorSystem, name: &str) -> Shared {
    let (actor, shared) = Probe::spawn(system, name).await;
    actor.tell("wait").await.unwrap();
    while shared.log.lock().is_empty() {
        tokio::task::yield_now().await;
    }
    shared
}

/// A supervisor's policy: restarts at once, at most three within 5 s.
pub(crate) fn policy(strategy: Strategy) -> SupervisorPolicy {
    SupervisorPolicy {
        strategy,
        backoff: Backoff::NONE,
        intensity: Intensity { restarts: 3, within: Duration::from_secs(5) },
        ..SupervisorPolicy::default()
    }
}
