//! Who takes part in the actor benchmarks, each behind the same two operations: our actors, tasks that own a channel, and
//! the actors of kameo and ractor.

use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{Arc, LazyLock},
    time::Duration,
};

use airssys_wasm_actor::{
    ActorRef, ActorSpec, ActorState, ActorSystem, AskError, Backoff, Capabilities, Intensity, NativeActor,
    NativeContext, NativeSpec, RestartPolicy, SystemConfig,
};
use airssys_wasm_engine::{Export, LoadedComponent, Profile, WasmEngine};
use airssys_wasm_fixtures as fixtures;
use airssys_wasm_isolation::SandboxSpec;
use airssys_wasm_limits::ResourceLimits;
use airssys_wasm_registry::{ComponentId, MessageEnvelope};
use bytes::Bytes;
use kameo::{
    actor::Spawn as _,
    error::SendError,
    mailbox::bounded,
    message::{Context, Message as KameoMessage},
};
use ractor::{ActorProcessingErr, RpcReplyPort, SupervisionEvent, rpc::CallResult};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};
use wasmtime::{
    Store,
    component::{ComponentNamedList, ComponentType, Instance, InstancePre, Lift, Linker, Lower, TypedFunc},
};

use crate::guests;

/// Messages that a mailbox holds. ractor's have no bound.
pub const MAILBOX: usize = 1_024;

/// What crashes a handler of the host, and [`COUNTER`].
pub const CRASH: Bytes = Bytes::from_static(b"crash");

/// Somebody who takes messages.
pub trait Receiver: Clone + Send + Sync + 'static {
    /// Sends a message as soon as there is room for it.
    fn tell(&self, payload: Bytes) -> impl Future<Output = ()> + Send;

    /// Sends a message and waits for the answer; `None` when the receiver crashed over it.
    fn ask(&self, payload: Bytes) -> impl Future<Output = Option<Bytes>> + Send;
}

/// What all handlers of the host do.
fn echo(payload: Bytes) -> Bytes {
    if payload == CRASH {
        // Past the hook, which would write a line each time.
        resume_unwind(Box::new("told to crash"));
    }
    payload
}

/// A guest, for our actors and for the bare engine.
pub struct Guest {
    loaded: LoadedComponent,
    pre: InstancePre<()>,
    handle: Export,
}

/// [`fixtures::ECHO_ACTOR`].
pub static ECHO: LazyLock<Guest> = LazyLock::new(|| Guest::new(guests::engine(), fixtures::ECHO_ACTOR));
/// [`fixtures::COUNTER`].
pub static COUNTER: LazyLock<Guest> = LazyLock::new(|| Guest::new(guests::engine(), fixtures::COUNTER));
/// [`fixtures::COUNTER_V2`].
pub static COUNTER_V2: LazyLock<Guest> = LazyLock::new(|| Guest::new(guests::engine(), fixtures::COUNTER_V2));
/// [`fixtures::ACTOR`].
pub static ACTOR: LazyLock<Guest> = LazyLock::new(|| Guest::new(guests::engine(), fixtures::ACTOR));

impl Guest {
    /// A guest that is an actor.
    ///
    /// # Panics
    ///
    /// When it is none.
    pub fn new(engine: &WasmEngine, bytes: &[u8]) -> Self {
        let loaded = engine.load_blocking(bytes, Profile::Plain).expect("a valid fixture");
        let mut linker = Linker::new(loaded.wasmtime());
        linker.define_unknown_imports_as_traps(loaded.component()).expect("functions only");
        let pre = linker.instantiate_pre(loaded.component()).expect("all of it is defined");
        let handle = loaded.export("airssys:actor/handler@0.1.0#handle").expect("an actor");
        Self { loaded, pre, handle }
    }

    /// What a sandbox is made from, linked for our actors.
    ///
    /// # Panics
    ///
    /// When the guest cannot be linked, or does not fit the limits.
    pub fn sandbox(&self, system: &ActorSystem, limits: ResourceLimits) -> SandboxSpec<ActorState<()>> {
        SandboxSpec::new(system.link(&self.loaded).expect("what actors import"), limits).expect("limits that fit")
    }

    /// An instance on the bare engine.
    ///
    /// # Panics
    ///
    /// When there is no room for it.
    pub async fn instantiate(&self) -> BareGuest {
        let mut store = guests::store(self.pre.engine());
        let instance = self.pre.instantiate_async(&mut store).await.expect("room for it");
        let handle = instance.get_typed_func(&mut store, self.handle.index()).expect("its type");
        BareGuest { store, instance, handle }
    }

    /// One of its exports, found once.
    ///
    /// # Panics
    ///
    /// When there is none of that name.
    pub fn export(&self, name: &str) -> Export {
        self.loaded.export(name).expect("the export")
    }
}

/// A system on an engine, with everything else as it is by default.
pub fn system(engine: &WasmEngine) -> ActorSystem {
    ActorSystem::new(engine.clone(), SystemConfig::default())
}

/// An actor's name.
///
/// # Panics
///
/// When it is none.
pub fn id(name: &str) -> ComponentId {
    name.parse().expect("a name")
}

/// An actor that may do everything, and is restarted at once, however often.
pub fn spec(name: &str, sandbox: &SandboxSpec<ActorState<()>>) -> ActorSpec<()> {
    let mut spec = ActorSpec::new(id(name), sandbox.clone());
    spec = spec.with_mailbox(MAILBOX);
    spec = spec.with_restart(always());
    spec = spec.with_capabilities(Capabilities::all());
    spec
}

/// An actor of the host that echoes, and is restarted at once, however often.
pub fn native_spec(name: &str) -> NativeSpec<Echo> {
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
pub struct Ours {
    /// The system.
    pub system: ActorSystem,
    /// The actor.
    pub actor: ActorRef,
}

impl Ours {
    /// The only actor of a system.
    ///
    /// # Panics
    ///
    /// When it cannot be spawned.
    pub async fn guest(guest: &Guest) -> Self {
        let system = system(guests::engine());
        let spec = spec("guest", &guest.sandbox(&system, guests::limits()));
        Self { actor: system.spawn(spec).await.expect("an actor"), system }
    }

    /// The same in code of the host.
    ///
    /// # Panics
    ///
    /// When it cannot be spawned.
    pub async fn native() -> Self {
        let system = system(guests::engine());
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

/// The handler of the host, for our actors and for those of the others.
#[derive(Clone, kameo::Actor)]
pub struct Echo;

impl NativeActor for Echo {
    async fn handle(&mut self, message: &MessageEnvelope, _: &NativeContext) -> Result<Option<Bytes>, String> {
        Ok(Some(echo(message.payload().clone())))
    }
}

/// A guest in a store without limits.
pub struct BareGuest {
    store: Store<()>,
    instance: Instance,
    handle: TypedFunc<(Message,), (Result<Option<Bytes>, String>,)>,
}

/// `airssys:actor/types.message`.
#[derive(ComponentType, Lower)]
#[component(record)]
struct Message {
    payload: Bytes,
    sender: Option<Arc<str>>,
    topic: Option<Arc<str>>,
    #[component(name = "content-type")]
    content_type: Option<Arc<str>>,
    #[component(name = "wants-answer")]
    wants_answer: bool,
}

impl BareGuest {
    /// A warm call of its handler.
    ///
    /// # Errors
    ///
    /// When the guest traps.
    ///
    /// # Panics
    ///
    /// When the guest has no answer.
    pub async fn handle(&mut self, payload: Bytes, wants_answer: bool) -> wasmtime::Result<Bytes> {
        let message = Message { payload, sender: None, topic: None, content_type: None, wants_answer };
        self.store.set_epoch_deadline(1 << 40);
        let (answer,) = self.handle.call_async(&mut self.store, (message,)).await?;
        Ok(answer.expect("no error").expect("an answer"))
    }

    /// A call of another export.
    ///
    /// # Panics
    ///
    /// When the export has another type, and when the guest traps.
    pub async fn call<P, R>(&mut self, export: &Export, params: P) -> R
    where
        P: ComponentNamedList + Lower + Send + Sync + 'static,
        R: ComponentNamedList + Lift + Send + Sync + 'static,
    {
        let func = self.instance.get_typed_func::<P, R>(&mut self.store, export.index()).expect("its type");
        self.store.set_epoch_deadline(1 << 40);
        func.call_async(&mut self.store, params).await.expect("no trap")
    }
}

/// A task that owns a channel: what an actor comes to without limits, names, supervision and all the rest.
#[derive(Clone)]
pub struct Plain(mpsc::Sender<Mail>);

type Mail = (Bytes, Option<oneshot::Sender<Bytes>>);

impl Plain {
    /// Around a guest on the bare engine, made anew after a trap.
    pub async fn guest(guest: &'static Guest) -> (Self, JoinHandle<()>) {
        let mut live = guest.instantiate().await;
        let (to, mut mailbox) = mpsc::channel::<Mail>(MAILBOX);
        let task = tokio::spawn(async move {
            while let Some((payload, reply)) = mailbox.recv().await {
                match live.handle(payload, reply.is_some()).await {
                    Ok(answer) => _ = reply.map(|reply| reply.send(answer)),
                    Err(_) => {
                        drop(reply);
                        live = guest.instantiate().await;
                    }
                }
            }
        });
        (Self(to), task)
    }

    /// Around a handler of the host.
    pub fn native() -> (Self, JoinHandle<()>) {
        let (to, mut mailbox) = mpsc::channel::<Mail>(MAILBOX);
        let task = tokio::spawn(async move {
            while let Some((payload, reply)) = mailbox.recv().await {
                if let (Ok(answer), Some(reply)) = (catch_unwind(AssertUnwindSafe(|| echo(payload))), reply) {
                    _ = reply.send(answer);
                }
            }
        });
        (Self(to), task)
    }
}

impl Receiver for Plain {
    async fn tell(&self, payload: Bytes) {
        self.0.send((payload, None)).await.expect("it lives");
    }

    async fn ask(&self, payload: Bytes) -> Option<Bytes> {
        let (reply, answer) = oneshot::channel();
        self.0.send((payload, Some(reply))).await.expect("it lives");
        answer.await.ok()
    }
}

/// An actor of kameo, and its supervisor, which would end with its last handle.
#[derive(Clone)]
pub struct Kameo {
    /// The actor.
    pub actor: kameo::actor::ActorRef<Echo>,
    _supervisor: Option<kameo::actor::ActorRef<KameoSupervisor>>,
}

#[derive(kameo::Actor)]
struct KameoSupervisor;

/// A payload for one of kameo's actors.
pub struct Payload(Bytes);

/// Its answer.
#[derive(kameo::Reply)]
pub struct Answer(Bytes);

impl KameoMessage<Payload> for Echo {
    type Reply = Answer;

    async fn handle(&mut self, Payload(payload): Payload, _: &mut Context<Self, Answer>) -> Answer {
        Answer(echo(payload))
    }
}

impl Kameo {
    /// An actor that runs.
    pub async fn spawn() -> Self {
        let actor = Echo::spawn_with_mailbox(Echo, bounded(MAILBOX));
        actor.wait_for_startup().await;
        Self { actor, _supervisor: None }
    }

    /// An actor that is restarted at once, however often.
    pub async fn supervised() -> Self {
        let supervisor = KameoSupervisor::spawn(KameoSupervisor);
        let child = Echo::supervise(&supervisor, Echo).restart_limit(u32::MAX, Duration::from_millis(1));
        Self { actor: child.spawn_with_mailbox(bounded(MAILBOX)).await, _supervisor: Some(supervisor) }
    }
}

impl Receiver for Kameo {
    async fn tell(&self, payload: Bytes) {
        self.actor.tell(Payload(payload)).await.expect("it lives");
    }

    async fn ask(&self, payload: Bytes) -> Option<Bytes> {
        let mut message = Payload(payload);
        loop {
            match self.actor.ask(message).await {
                Ok(Answer(answer)) => return Some(answer),
                Err(SendError::ActorStopped) => return None,
                // It was in the mailbox while the actor was restarted, and comes back.
                Err(SendError::ActorRestarting(back)) => message = back,
                Err(other) => panic!("{other}"),
            }
        }
    }
}

/// An actor of ractor.
#[derive(Clone)]
pub struct Ractor(pub ractor::ActorRef<RactorMail>);

/// A message for one of ractor's actors.
pub struct RactorMail(Bytes, Option<RpcReplyPort<Bytes>>);

/// The handler of one of ractor's actors.
pub struct RactorEcho;

impl ractor::Actor for RactorEcho {
    type Msg = RactorMail;
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, _: ractor::ActorRef<RactorMail>, (): ()) -> Result<(), ActorProcessingErr> {
        Ok(())
    }

    async fn handle(
        &self,
        _: ractor::ActorRef<RactorMail>,
        RactorMail(payload, reply): RactorMail,
        (): &mut (),
    ) -> Result<(), ActorProcessingErr> {
        let answer = echo(payload);
        if let Some(reply) = reply {
            reply.send(answer)?;
        }
        Ok(())
    }
}

impl Ractor {
    /// An actor that runs.
    ///
    /// # Panics
    ///
    /// When it does not.
    pub async fn spawn() -> (Self, JoinHandle<()>) {
        let (actor, task) = ractor::Actor::spawn(None, RactorEcho, ()).await.expect("an actor");
        (Self(actor), task)
    }

    async fn try_ask(&self, payload: Bytes) -> Option<Bytes> {
        match self.0.call(|reply| RactorMail(payload, Some(reply)), None).await {
            Ok(CallResult::Success(answer)) => Some(answer),
            _ => None,
        }
    }
}

impl Receiver for Ractor {
    async fn tell(&self, payload: Bytes) {
        self.0.cast(RactorMail(payload, None)).expect("it lives");
    }

    async fn ask(&self, payload: Bytes) -> Option<Bytes> {
        self.try_ask(payload).await
    }
}

/// An actor of ractor behind a supervisor that spawns it anew, for ractor leaves that to its users. Whoever asks a new one
/// asks the supervisor for it first.
#[derive(Clone)]
pub struct RactorSupervised(ractor::ActorRef<RpcReplyPort<Ractor>>);

struct RactorSupervisor;

impl RactorSupervised {
    /// A supervisor and its child.
    ///
    /// # Panics
    ///
    /// When it does not start.
    pub async fn spawn() -> Self {
        Self(ractor::Actor::spawn(None, RactorSupervisor, ()).await.expect("an actor").0)
    }

    async fn child(&self) -> Ractor {
        match self.0.call(|reply| reply, None).await {
            Ok(CallResult::Success(child)) => child,
            _ => panic!("the supervisor lives"),
        }
    }
}

impl ractor::Actor for RactorSupervisor {
    type Msg = RpcReplyPort<Ractor>;
    type State = Ractor;
    type Arguments = ();

    async fn pre_start(&self, myself: ractor::ActorRef<Self::Msg>, (): ()) -> Result<Ractor, ActorProcessingErr> {
        let (child, _) = ractor::Actor::spawn_linked(None, RactorEcho, (), myself.get_cell()).await?;
        Ok(Ractor(child))
    }

    async fn handle(
        &self,
        _: ractor::ActorRef<Self::Msg>,
        reply: RpcReplyPort<Ractor>,
        child: &mut Ractor,
    ) -> Result<(), ActorProcessingErr> {
        Ok(reply.send(child.clone())?)
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ractor::ActorRef<Self::Msg>,
        event: SupervisionEvent,
        child: &mut Ractor,
    ) -> Result<(), ActorProcessingErr> {
        if let SupervisionEvent::ActorFailed(..) = event {
            *child = self.pre_start(myself, ()).await?;
        }
        Ok(())
    }
}

impl Receiver for RactorSupervised {
    async fn tell(&self, payload: Bytes) {
        self.child().await.tell(payload).await;
    }

    async fn ask(&self, payload: Bytes) -> Option<Bytes> {
        let crashes = payload == CRASH;
        loop {
            match self.child().await.try_ask(payload.clone()).await {
                // It was the old one, whose end the supervisor has yet to hear of.
                None if !crashes => {}
                answer => return answer,
            }
        }
    }
}
