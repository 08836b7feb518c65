//! The specification of a guest, and the host's data in its store.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    num::NonZeroU32,
    sync::{Arc, atomic::AtomicU64},
};

use airssys_wasm_engine::ComponentTemplate;
use airssys_wasm_isolation::{HostState, SandboxSpec};
use airssys_wasm_limits::RunningCall;
use airssys_wasm_registry::{ComponentId, TraceContext};
use futures_util::TryFutureExt;
use tokio::time::Instant;

use crate::{
    BoxError, Capabilities, ContractKind, Grants, Links, Recycle,
    guest::{incarnation::MakeState, links::Fitting},
    runtime::{
        cell::Cell,
        in_flight::InFlight,
        options::{ActorOptions, option_methods},
    },
};

/// The specification of an actor that runs a component: its sandbox, and its options as an actor.
pub struct ActorSpec<U: 'static = ()> {
    pub(crate) options: ActorOptions,
    pub(crate) sandbox: ActorSandbox<U>,
    pub(crate) capabilities: Arc<Grants>,
    pub(crate) config: BTreeMap<String, String>,
    pub(crate) state: Option<MakeState<U>>,
    /// Found out where it is not said.
    pub(crate) contract: Option<ContractKind>,
    pub(crate) concurrency: NonZeroU32,
    pub(crate) links: Links,
}

/// Attempts per message for [`ActorSpec::with_redelivery`], if no other number suggests itself.
pub const DEFAULT_REDELIVERY: u32 = 3;

impl<U: Send + 'static> ActorSpec<U> {
    /// An actor with default options.
    pub fn new(id: ComponentId, sandbox: ActorSandbox<U>) -> Self {
        Self {
            options: ActorOptions::new(id),
            sandbox,
            capabilities: Grants::none(),
            config: BTreeMap::new(),
            state: None,
            contract: None,
            concurrency: NonZeroU32::MIN,
            links: Links::default(),
        }
    }

    /// The sandbox: component, limits and grants.
    pub fn sandbox(&self) -> &ActorSandbox<U> {
        &self.sandbox
    }

    /// Sets the sandbox: component, limits and grants.
    #[must_use]
    pub fn with_sandbox(mut self, sandbox: ActorSandbox<U>) -> Self {
        self.sandbox = sandbox;
        self
    }

    /// Grants the use of messages. Default: none.
    #[must_use]
    pub fn with_capabilities(mut self, capabilities: Capabilities) -> Self {
        self.capabilities = Arc::new(capabilities.into());
        self
    }

    /// Adds entries to the configuration that `init` and `wasi:config` receive.
    #[must_use]
    pub fn with_config<K: Into<String>, V: Into<String>>(mut self, entries: impl IntoIterator<Item = (K, V)>) -> Self {
        self.config.extend(entries.into_iter().map(|(key, value)| (key.into(), value.into())));
        self
    }

    /// Says by what the component is reached, instead of finding it out: with [`ContractKind::Exports`] it needs no handler,
    /// takes no messages, and is called by its exports.
    #[must_use]
    pub fn with_contract(mut self, contract: ContractKind) -> Self {
        self.contract = Some(contract);
        self
    }

    /// Messages that it may have in flight at the same time. Default: one, so that nothing comes between the steps of a
    /// message. More than one needs a component that exports `airssys:actor/handler@0.2.0`, and no fuel.
    ///
    /// Each message has its own CPU time, host calls and deadline. None can be ended alone: a crash over one ends all that are
    /// in flight. Their askers are told by [`During::OtherMessage`](crate::During::OtherMessage), and the messages themselves
    /// are redelivered, where there is [redelivery](Self::with_redelivery), without having used an attempt. Health checks,
    /// calls, recycling, upgrades and stopping wait until none is in flight. Circles of requests are not seen, and end by the
    /// requests' timeouts.
    #[must_use]
    pub fn with_concurrency(mut self, messages: NonZeroU32) -> Self {
        self.concurrency = messages;
        self
    }

    /// Messages that it may have in flight at the same time.
    pub fn concurrency(&self) -> NonZeroU32 {
        self.concurrency
    }

    /// Says which of its imports [`ActorSystem::link_with`](crate::ActorSystem::link_with) has linked to actors, and grants
    /// calling them. Those that are there are held against the imports at each start.
    #[must_use]
    pub fn with_links(mut self, links: Links) -> Self {
        self.links = links;
        self
    }

    /// Replaces the instance by a fresh one from time to time. Default: never.
    #[must_use]
    pub fn with_recycle(mut self, recycle: Recycle) -> Self {
        self.options.recycle = recycle;
        self
    }

    /// Makes the embedder's state by this factory instead of the system's, once for each incarnation. An error fails
    /// the start ([`StartError::State`](crate::StartError::State)).
    ///
    /// ```
    /// # use airssys_wasm_actor::ActorSpec;
    /// # struct Account { balance: u64 }
    /// # async fn read_balance(name: String) -> std::io::Result<u64> { Ok(0) }
    /// fn with_account(spec: ActorSpec<Account>) -> ActorSpec<Account> {
    ///     spec.with_state(|id| {
    ///         let name = id.to_string();
    ///         async move { std::io::Result::Ok(Account { balance: read_balance(name).await? }) }
    ///     })
    /// }
    /// ```
    #[must_use]
    pub fn with_state<F, E>(mut self, make: impl Fn(&ComponentId) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<U, E>> + Send + 'static,
        E: Into<BoxError> + 'static,
    {
        self.state = Some(MakeState::Async(Arc::new(move |id| Box::pin(make(id).map_err(Into::into)))));
        self
    }

    option_methods!();
}

impl<U> Clone for ActorSpec<U> {
    fn clone(&self) -> Self {
        Self {
            options: self.options.clone(),
            sandbox: self.sandbox.clone(),
            capabilities: Arc::clone(&self.capabilities),
            config: self.config.clone(),
            state: self.state.clone(),
            contract: self.contract,
            concurrency: self.concurrency,
            links: self.links.clone(),
        }
    }
}

impl<U> fmt::Debug for ActorSpec<U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ActorSpec")
            .field("options", &self.options)
            .field("sandbox", &self.sandbox)
            .finish_non_exhaustive()
    }
}

/// A component linked for actors, by [`ActorSystem::link`](crate::ActorSystem::link).
pub type ActorTemplate<U = ()> = ComponentTemplate<HostState<ActorState<U>>>;

/// The specification of an actor's sandbox.
pub type ActorSandbox<U = ()> = SandboxSpec<ActorState<U>>;

/// The host's data in an actor's store: the embedder's state, and the actor's identity.
///
/// Host functions find it in [`HostState::ext`](airssys_wasm_isolation::HostState::ext).
pub struct ActorState<U = ()> {
    /// The embedder's state, made for each incarnation.
    pub user: U,
    pub(crate) cell: Arc<Cell>,
    pub(crate) capabilities: Arc<Grants>,
    /// Of the message in flight.
    pub(crate) turn: TurnState,
    /// Of each message in flight, where there may be several.
    pub(crate) turns: Option<Box<Turns>>,
    /// Requests on their way, of a guest that can have several.
    pub(crate) in_flight: Option<InFlight>,
    /// Answers to them that wait until the guest takes them.
    pub(crate) answers: Option<InFlight>,
    /// Where links were called.
    pub(crate) fitting: Option<Box<Fitting>>,
    /// Calls denied in this incarnation, or in all sandboxes of a [`Front`](crate::Front).
    pub(crate) denials: Option<Arc<AtomicU64>>,
    /// Until when all that it asks must have ended: that of a [`Front`](crate::Front)'s request.
    pub(crate) ends: Option<Instant>,
}

impl<U> ActorState<U> {
    pub(crate) fn new(user: U, cell: &Arc<Cell>, capabilities: &Arc<Grants>) -> Self {
        Self {
            user,
            cell: Arc::clone(cell),
            capabilities: Arc::clone(capabilities),
            turn: TurnState::default(),
            turns: None,
            in_flight: None,
            answers: None,
            fitting: None,
            denials: None,
            ends: None,
        }
    }

    /// The actor's name.
    pub fn id(&self) -> &ComponentId {
        self.cell.id()
    }

    /// What held for the message in flight holds no longer.
    pub(crate) fn end_message(&mut self) {
        if self.turn.trace.is_some() {
            self.turn.trace = None;
        }
        self.turn.deadline = None;
    }

    fn turn(&self) -> Option<&TurnState> {
        match &self.turns {
            None => Some(&self.turn),
            Some(turns) => turns.in_flight.get(&turns.running.number()?),
        }
    }

    /// Until when the sender of the message in flight waits.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.turn()?.deadline
    }

    /// The trace of the message in flight; where there are several, of the one over which the host was called. Its
    /// `parent_id` is the span under which this actor sends.
    pub fn trace(&self) -> Option<&TraceContext> {
        self.turn()?.trace.as_deref()
    }
}

/// What is known of a message while it is handled.
#[derive(Default)]
pub(crate) struct TurnState {
    pub(crate) trace: Option<Box<TraceContext>>,
    /// Until when its sender waits.
    pub(crate) deadline: Option<Instant>,
}

/// What is known of the messages in flight, by number.
#[derive(Default)]
pub(crate) struct Turns {
    pub(crate) running: RunningCall,
    pub(crate) in_flight: HashMap<u64, TurnState>,
}
