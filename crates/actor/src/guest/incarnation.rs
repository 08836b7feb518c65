//! An incarnation that is a guest in its sandbox.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use airssys_wasm_engine::{
    Export, ExportError, LoadedComponent, Profile,
    wasmtime::{
        StoreContextMut,
        component::{Lift, StreamReader},
    },
};
use airssys_wasm_isolation::{
    Account, Calls, Crash, HostState, InstantiateError, Sandbox, SeveralCrashed, TypedExport,
};
use airssys_wasm_limits::{CallPhase, CancellationToken, RunningCall};
use airssys_wasm_registry::{ComponentId, MessageEnvelope, TraceContext};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::time::Instant;

use crate::{
    ActorSandbox, ActorSpec, ActorState, BoxError, ConcurrencyError, ContractKind, During, Grants, HealthError, Links,
    LinksError, NoHandler, StartError, UpgradeError,
    contract::{Contract, Unfit},
    failure::declined::Declined,
    guest::{
        bodies::MessageBody,
        calls::Found,
        links::linked_interface,
        spec::{TurnState, Turns},
        wire::{BrokerMessage, HandleMessageError, Message, StreamedMessage},
    },
    runtime::{
        call::{Call, LinkedInterface},
        cell::Cell,
        incarnation::{Blueprint, Handled, Live, call, crashed, made},
        several::{Several, Taken},
        turn::Turn,
    },
};

/// Makes the embedder's state for an incarnation.
pub(crate) enum MakeState<U> {
    /// The system's.
    Sync(Arc<dyn Fn(&ComponentId) -> U + Send + Sync>),
    /// A specification's own.
    Async(Arc<StateFactory<U>>),
}

type StateFactory<U> = dyn Fn(&ComponentId) -> BoxFuture<'static, Result<U, BoxError>> + Send + Sync;

impl<U> Clone for MakeState<U> {
    fn clone(&self) -> Self {
        match self {
            Self::Sync(make) => Self::Sync(Arc::clone(make)),
            Self::Async(make) => Self::Async(Arc::clone(make)),
        }
    }
}

impl<U> MakeState<U> {
    async fn make(&self, cell: &Cell, interrupt: &CancellationToken) -> Result<U, StartError> {
        match self {
            Self::Sync(make) => made(cell, || make(cell.id())),
            Self::Async(make) => {
                let made = call("make", interrupt, async { make(cell.id()).await }).await;
                made.map_err(|crash| crashed(cell, During::Start, crash))?.map_err(StartError::State)
            }
        }
    }
}

pub(crate) struct GuestBlueprint<U: 'static> {
    sandbox: ActorSandbox<U>,
    contract: Arc<Contract>,
    capabilities: Arc<Grants>,
    config: Arc<BTreeMap<String, String>>,
    state: MakeState<U>,
    links: Option<Arc<Linked>>,
    /// Messages in flight at the same time.
    at_a_time: usize,
    /// What all versions so far have stored, once one could.
    stored: Option<Account>,
}

/// The linked interfaces of a component, where they lead, and what said so.
pub(crate) struct Linked {
    interfaces: Vec<(ComponentId, Arc<LinkedInterface>)>,
    links: Links,
}

pub(crate) fn linked(component: &LoadedComponent, links: &Links) -> Result<Option<Arc<Linked>>, LinksError> {
    let mut interfaces = Vec::new();
    for (interface, to) in links.iter() {
        interfaces.push((to.clone(), Arc::new(linked_interface(component, interface)?)));
    }
    Ok((!interfaces.is_empty()).then(|| Arc::new(Linked { interfaces, links: links.clone() })))
}

impl<U: Send + 'static> GuestBlueprint<U> {
    pub(crate) fn new(spec: &ActorSpec<U>, links: Option<Arc<Linked>>, default: MakeState<U>) -> Result<Self, Unfit> {
        let contract = contract_of(&spec.sandbox, spec.contract)?;
        check_concurrency(spec.concurrency.get() as usize, &contract, &spec.sandbox)?;
        Ok(Self {
            contract,
            at_a_time: spec.concurrency.get() as usize,
            sandbox: configured(spec.sandbox.clone().with_name(spec.options.id.as_str()), &spec.config),
            capabilities: granted(spec, links.is_some()),
            config: Arc::new(spec.config.clone()),
            state: spec.state.clone().unwrap_or(default),
            links,
            stored: spec.sandbox.keyvalue_account().cloned(),
        })
    }
}

/// The grants for messages, with what links need.
fn granted<U>(spec: &ActorSpec<U>, has_links: bool) -> Arc<Grants> {
    if has_links {
        Arc::new(Grants::clone(&spec.capabilities).with_links(&spec.links))
    } else {
        Arc::clone(&spec.capabilities)
    }
}

/// With the actor's entries for `wasi:config`.
pub(crate) fn configured<U: Send + 'static>(
    sandbox: ActorSandbox<U>,
    config: &BTreeMap<String, String>,
) -> ActorSandbox<U> {
    if config.is_empty() {
        return sandbox;
    }
    sandbox.with_config(config.iter().map(|(key, value)| (key.as_str(), value.as_str())))
}

fn check_concurrency<U: Send + 'static>(
    at_a_time: usize,
    contract: &Contract,
    sandbox: &ActorSandbox<U>,
) -> Result<(), ConcurrencyError> {
    if at_a_time == 1 {
        return Ok(());
    }
    if contract.kind != ContractKind::AsyncActor {
        return Err(ConcurrencyError::NotAsync);
    }
    if sandbox.template().loaded().profile() == Profile::Metered {
        return Err(ConcurrencyError::Metered);
    }
    Ok(())
}

/// Found out once for each component, unless it is said to take no messages.
fn contract_of<U: Send + 'static>(
    sandbox: &ActorSandbox<U>,
    said: Option<ContractKind>,
) -> Result<Arc<Contract>, NoHandler> {
    let component = sandbox.template().loaded();
    if said == Some(ContractKind::Exports) {
        return Ok(Arc::new(Contract::of_exports(component)));
    }
    let contract = component.memo(|component| Contract::of(component).map(Arc::new));
    (*contract).clone()
}

pub(crate) struct GuestLive<U: 'static> {
    /// None during a call, and after one that crashed.
    sandbox: Option<Sandbox<ActorState<U>>>,
    handle: Handle,
    at_a_time: usize,
    contract: Arc<Contract>,
    pub(crate) component: LoadedComponent,
    pub(crate) found: Found,
}

type ActorHandle = TypedExport<(Message,), (Result<Option<Bytes>, String>,)>;
type WasmCloudHandle = TypedExport<(BrokerMessage,), (Result<(), String>,)>;
type AsyncWasmCloudHandle = TypedExport<(StreamedMessage,), (Result<(), HandleMessageError>,)>;

enum Handle {
    Actor(ActorHandle),
    WasmCloud(WasmCloudHandle),
    AsyncWasmCloud(AsyncWasmCloudHandle),
    None,
}

impl<U: Send + 'static> Blueprint for GuestBlueprint<U> {
    type Live = GuestLive<U>;
    type Version = ActorSandbox<U>;

    async fn start(
        &self,
        cell: &Arc<Cell>,
        state: Option<Bytes>,
        interrupt: &CancellationToken,
    ) -> Result<GuestLive<U>, StartError> {
        let crashed = |during, crash| crashed(cell, during, crash);
        let quota = self.sandbox.quota();
        let fits = |what, size| {
            quota.check_message(size).map_err(|too_large| StartError::TooLarge {
                what,
                size: too_large.size,
                allowed: too_large.allowed,
            })
        };
        fits("config", self.config.iter().map(|(key, value)| key.len() + value.len()).sum())?;
        if self.contract.restore.is_some() {
            fits("state", state.as_ref().map_or(0, Bytes::len))?;
        }
        let mut ext = ActorState::new(self.state.make(cell, interrupt).await?, cell, &self.capabilities);
        for (to, interface) in self.links.iter().flat_map(|links| &links.interfaces) {
            ext.fitting.get_or_insert_default().begin(cell, to, interface).map_err(|fault| StartError::Link {
                interface: interface.name.to_string(),
                to: to.clone(),
                fault,
            })?;
        }
        let mut sandbox = self.sandbox.instantiate_on_worker(ext, interrupt).await.map_err(|error| match error {
            InstantiateError::Crash(crash) => crashed(During::Start, crash),
            other => StartError::Instantiate(other),
        })?;
        let contract = &self.contract;
        let handle = match (contract.kind, &contract.handle) {
            (ContractKind::Actor | ContractKind::AsyncActor, Some(handle)) => Handle::Actor(sandbox.typed(handle)?),
            (ContractKind::WasmCloud, Some(handle)) => Handle::WasmCloud(sandbox.typed(handle)?),
            (ContractKind::AsyncWasmCloud, Some(handle)) => Handle::AsyncWasmCloud(sandbox.typed(handle)?),
            _ => Handle::None,
        };
        if let Some(export) = &contract.init {
            let init = sandbox.typed::<(Vec<(String, String)>,), (Result<(), String>,)>(export)?;
            let config = self.config.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
            let called = sandbox.call_in(CallPhase::Init, &init, (config,), interrupt).await;
            let ((outcome,), back) = called.map_err(|crash| crashed(During::Init, crash))?;
            if let Err(message) = outcome {
                back.free().await;
                return Err(StartError::Refused { message });
            }
            sandbox = back;
        }
        if let (Some(state), Some(export)) = (state, &contract.restore) {
            let restore = sandbox.typed::<(Bytes,), (Result<(), String>,)>(export)?;
            let called = sandbox.call_in(CallPhase::Init, &restore, (state,), interrupt).await;
            let ((outcome,), back) = called.map_err(|crash| crashed(During::Restore, crash))?;
            if let Err(message) = outcome {
                back.free().await;
                return Err(StartError::RestoreRefused { message });
            }
            sandbox = back;
        }
        Ok(GuestLive {
            sandbox: Some(sandbox),
            handle,
            at_a_time: self.at_a_time,
            contract: Arc::clone(contract),
            component: self.sandbox.template().loaded().clone(),
            found: Found::default(),
        })
    }

    fn upgraded(&self, id: &ComponentId, sandbox: ActorSandbox<U>) -> Result<Self, UpgradeError> {
        let contract = contract_of(&sandbox, Some(self.contract.kind))?;
        // What the versions before have stored counts against the quota of the new one.
        let sandbox = match &self.stored {
            Some(account) => sandbox.with_keyvalue_account(account),
            None => sandbox,
        };
        if contract.kind != self.contract.kind {
            return Err(UpgradeError::OtherContract { now: self.contract.kind, new: contract.kind });
        }
        check_concurrency(self.at_a_time, &contract, &sandbox)?;
        Ok(Self {
            at_a_time: self.at_a_time,
            links: match &self.links {
                None => None,
                Some(links) => linked(sandbox.template().loaded(), &links.links)?,
            },
            stored: self.stored.as_ref().or(sandbox.keyvalue_account()).cloned(),
            sandbox: configured(sandbox, &self.config).with_name(id.as_str()),
            contract,
            capabilities: Arc::clone(&self.capabilities),
            config: Arc::clone(&self.config),
            state: self.state.clone(),
        })
    }

    fn at_a_time(&self) -> usize {
        self.at_a_time
    }

    fn takes_only_calls(&self) -> bool {
        self.contract.kind == ContractKind::Exports
    }

    fn component(&self) -> Option<&LoadedComponent> {
        Some(self.sandbox.template().loaded())
    }

    fn message_size(&self) -> u64 {
        self.sandbox.quota().limits().message_size.as_u64()
    }

    fn keeps_state(&self) -> (bool, bool) {
        (self.contract.snapshot.is_some(), self.contract.restore.is_some())
    }
}

impl<U: Send + 'static> GuestLive<U> {
    pub(crate) fn sandbox(&mut self) -> Sandbox<ActorState<U>> {
        self.sandbox.take().expect("one that crashed is dropped")
    }

    /// Takes a sandbox back from a call.
    pub(crate) fn back(&mut self, sandbox: Sandbox<ActorState<U>>) {
        self.sandbox = Some(sandbox);
    }

    /// Calls an export that takes nothing; `None` where there is none.
    async fn ask<R>(
        &mut self,
        export: Option<&Export>,
        phase: CallPhase,
        interrupt: &CancellationToken,
    ) -> Result<Option<Result<R, ExportError>>, Crash>
    where
        R: Lift + Send + Sync + 'static,
    {
        let Some(export) = export else { return Ok(None) };
        let mut sandbox = self.sandbox();
        let typed = match sandbox.typed::<(), (R,)>(export) {
            Ok(typed) => typed,
            Err(error) => {
                self.sandbox = Some(sandbox);
                return Ok(Some(Err(error)));
            }
        };
        let ((answer,), sandbox) = sandbox.call_in(phase, &typed, (), interrupt).await?;
        self.sandbox = Some(sandbox);
        Ok(Some(Ok(answer)))
    }
}

/// The messages of an actor as calls of its handler.
struct OfActor<'a>(&'a mut dyn Several);

impl<U: Send + 'static> Calls<(Message,), (Handled,), ActorState<U>> for OfActor<'_> {
    fn begin(&mut self, running: &RunningCall, ext: &mut ActorState<U>) {
        ext.turns = Some(Box::new(Turns { running: running.clone(), ..Turns::default() }));
    }

    fn poll_next(&mut self, cx: &mut Context<'_>, ext: &mut ActorState<U>) -> Poll<Option<(u64, (Message,))>> {
        let Some(taken) = ready!(self.0.poll_next(cx)) else { return Poll::Ready(None) };
        let Taken { number, message, trace, is_asked } = taken;
        if let Some(turns) = &mut ext.turns {
            turns.in_flight.insert(number, TurnState { trace, deadline: message.deadline() });
        }
        Poll::Ready(Some((number, (Message::of(message, is_asked),))))
    }

    fn returned(&mut self, number: u64, (handled,): (Handled,), ext: &mut ActorState<U>, memory: u64) -> bool {
        if let Some(turns) = &mut ext.turns {
            turns.in_flight.remove(&number);
        }
        self.0.handled(number, handled, memory)
    }
}

impl<U: Send + 'static> Live for GuestLive<U> {
    async fn handle(
        &mut self,
        message: &MessageEnvelope,
        trace: Option<Box<TraceContext>>,
        turn: &mut Turn<'_>,
        interrupt: &CancellationToken,
    ) -> Result<Handled, Crash> {
        let mut sandbox = self.sandbox();
        sandbox.ext_mut().turn = TurnState { trace, deadline: message.deadline() };
        let goes_on = self.component.features().component_async;
        let (handled, mut sandbox) = match &self.handle {
            Handle::Actor(export) => {
                let message = Message::of(message, turn.is_asked());
                // Before its tasks have ended.
                let tell = |(handled,): (Handled,)| {
                    if goes_on {
                        turn.end(handled);
                        return Ok(None);
                    }
                    handled
                };
                sandbox.call_telling(export, (message,), interrupt, tell).await?
            }
            // Its mailbox refuses them.
            Handle::None => (Err("it takes no messages".to_owned()), sandbox),
            Handle::WasmCloud(export) => {
                let cell = Arc::clone(&sandbox.ext().cell);
                let reply_to = reply_to(&cell, turn);
                let subject = message.topic().map_or_else(|| cell.id().into(), Arc::from);
                let message = BrokerMessage { subject, body: message.payload().clone(), reply_to };
                let ((handled,), sandbox) =
                    sandbox.call_telling(export, (message,), interrupt, |handled| handled).await?;
                // Still there if nothing was published to it.
                turn.reply = cell.reply_subject.lock().take().map(|(_, reply)| reply);
                (handled.map(|()| None), sandbox)
            }
            Handle::AsyncWasmCloud(export) => {
                let cell = Arc::clone(&sandbox.ext().cell);
                let reply_to = reply_to(&cell, turn);
                let subject = message.topic().map_or_else(|| cell.id().into(), Arc::from);
                // Until all tasks of the message have ended.
                let body = MessageBody::new(message.payload().clone());
                let stream = body.stream();
                let tell = |_: StoreContextMut<'_, _>, (handled,): (Result<(), HandleMessageError>,)| {
                    turn.reply = cell.reply_subject.lock().take().map(|(_, reply)| reply);
                    match handled {
                        Ok(()) => turn.end(Ok(None)),
                        Err(HandleMessageError::Retry) => turn.decline(Declined::Retry),
                        Err(HandleMessageError::Reject) => turn.decline(Declined::Reject(None)),
                        Err(HandleMessageError::Other(reason)) => turn.decline(Declined::Reject(Some(reason))),
                    }
                    Ok(())
                };
                let make = |store: StoreContextMut<'_, HostState<ActorState<U>>>| {
                    Ok((StreamedMessage { subject, body: StreamReader::new(store, stream)?, reply_to },))
                };
                let ((), sandbox) = Box::pin(sandbox.call_making(export, make, interrupt, tell)).await?;
                (Ok(None), sandbox)
            }
        };
        sandbox.ext_mut().end_message();
        self.sandbox = Some(sandbox);
        Ok(handled)
    }

    async fn handle_several(
        &mut self,
        messages: &mut dyn Several,
        interrupt: &CancellationToken,
    ) -> Result<(), SeveralCrashed> {
        let mut sandbox = self.sandbox();
        if let Handle::Actor(export) = &self.handle {
            sandbox = sandbox.call_several(export, self.at_a_time, &mut OfActor(messages), interrupt).await?;
        }
        sandbox.ext_mut().turns = None;
        self.sandbox = Some(sandbox);
        Ok(())
    }

    async fn call(
        &mut self,
        call: &mut Call,
        deadline: Option<Instant>,
        trace: Option<Box<TraceContext>>,
        interrupt: &CancellationToken,
    ) -> Result<(), Crash> {
        if let Some(sandbox) = &mut self.sandbox {
            let ext = sandbox.ext_mut();
            ext.turn = TurnState { trace, deadline };
        }
        self.make(call, interrupt).await?;
        if let Some(sandbox) = &mut self.sandbox {
            sandbox.ext_mut().end_message();
        }
        Ok(())
    }

    async fn health(&mut self, interrupt: &CancellationToken) -> Result<Result<(), HealthError>, Crash> {
        let contract = Arc::clone(&self.contract);
        Ok(match self.ask::<Result<(), String>>(contract.health.as_ref(), CallPhase::Message, interrupt).await? {
            None => Err(HealthError::NotOffered),
            Some(Err(error)) => Err(HealthError::Contract(error)),
            Some(Ok(health)) => health.map_err(|message| HealthError::Unwell { message }),
        })
    }

    async fn snapshot(&mut self, interrupt: &CancellationToken) -> Result<Result<Bytes, String>, Crash> {
        let contract = Arc::clone(&self.contract);
        Ok(
            match self.ask::<Result<Bytes, String>>(contract.snapshot.as_ref(), CallPhase::Snapshot, interrupt).await? {
                None => Ok(Bytes::new()),
                Some(Err(error)) => Err(error.to_string()),
                Some(Ok(state)) => state,
            },
        )
    }

    async fn shutdown(mut self, interrupt: &CancellationToken) -> Result<(), Crash> {
        let Some(mut sandbox) = self.sandbox.take() else { return Ok(()) };
        if let Some(export) = &self.contract.shutdown {
            match sandbox.typed::<(), ()>(export) {
                Ok(shutdown) => {
                    ((), sandbox) = sandbox.call_in(CallPhase::Shutdown, &shutdown, (), interrupt).await?;
                }
                Err(error) => tracing::warn!("not called at the end: {error}"),
            }
        }
        sandbox.free().await;
        Ok(())
    }

    async fn free(self) {
        if let Some(sandbox) = self.sandbox {
            sandbox.free().await;
        }
    }

    fn memory(&self) -> u64 {
        self.sandbox.as_ref().map_or(0, Sandbox::memory)
    }
}

/// Where the asker's answer is to be published, if somebody asks.
fn reply_to(cell: &Cell, turn: &mut Turn<'_>) -> Option<Arc<str>> {
    let reply = turn.reply.take()?;
    let subject = next_reply_subject(cell);
    *cell.reply_subject.lock() = Some((Arc::clone(&subject), reply));
    Some(subject)
}

/// A subject that stands for one asker. Nobody else can publish to it: it means something in its own actor only.
fn next_reply_subject(cell: &Cell) -> Arc<str> {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    format!("_reply.{}.{}", cell.address.generation(), NEXT.fetch_add(1, Ordering::Relaxed)).into()
}
