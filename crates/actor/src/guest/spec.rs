//! What a guest is spawned from, and what its store holds beside it.

use std::{collections::BTreeMap, fmt, sync::Arc};

use airssys_wasm_engine::ComponentTemplate;
use airssys_wasm_isolation::{HostState, SandboxSpec};
use airssys_wasm_registry::{ComponentId, TraceContext};
use futures_util::TryFutureExt;

use crate::{
    BoxError, Capabilities, Recycle,
    guest::incarnation::MakeState,
    runtime::{
        cell::Cell,
        options::{ActorOptions, option_methods},
    },
};

/// What an actor is spawned from: a sandbox's specification, and how it is an actor.
pub struct ActorSpec<U: 'static = ()> {
    pub(crate) options: ActorOptions,
    pub(crate) sandbox: ActorSandbox<U>,
    pub(crate) capabilities: Capabilities,
    pub(crate) config: BTreeMap<String, String>,
    pub(crate) state: Option<MakeState<U>>,
}

/// How many times a message may crash an actor, where redelivery is wanted and there is no reason for another number.
pub const DEFAULT_REDELIVERY: u32 = 3;

impl<U: Send + 'static> ActorSpec<U> {
    /// An actor with defaults for everything else.
    pub fn new(id: ComponentId, sandbox: ActorSandbox<U>) -> Self {
        Self {
            options: ActorOptions::new(id),
            sandbox,
            capabilities: Capabilities::default(),
            config: BTreeMap::new(),
            state: None,
        }
    }

    /// Its component, limits and grants.
    pub fn sandbox(&self) -> &ActorSandbox<U> {
        &self.sandbox
    }

    /// With another component, or other limits and grants.
    #[must_use]
    pub fn with_sandbox(mut self, sandbox: ActorSandbox<U>) -> Self {
        self.sandbox = sandbox;
        self
    }

    /// What it may do with messages. Default: nothing.
    #[must_use]
    pub fn with_capabilities(mut self, capabilities: Capabilities) -> Self {
        self.capabilities = capabilities;
        self
    }

    /// With these among what its `init` is given.
    #[must_use]
    pub fn with_config<K: Into<String>, V: Into<String>>(mut self, entries: impl IntoIterator<Item = (K, V)>) -> Self {
        self.config.extend(entries.into_iter().map(|(key, value)| (key.into(), value.into())));
        self
    }

    /// Going over to a fresh instance of its component from time to time. Default: never.
    #[must_use]
    pub fn with_recycle(mut self, recycle: Recycle) -> Self {
        self.options.recycle = recycle;
        self
    }

    /// With state of the embedder's from this factory, not from the system's. It is called for each incarnation. An error
    /// ends the start ([`StartError::State`](crate::StartError::State)), and is answered as other failed starts are.
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
            capabilities: self.capabilities.clone(),
            config: self.config.clone(),
            state: self.state.clone(),
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

/// A component that is linked to become actors, by [`ActorSystem::link`](crate::ActorSystem::link).
pub type ActorTemplate<U = ()> = ComponentTemplate<HostState<ActorState<U>>>;

/// What an actor's sandbox is made from.
pub type ActorSandbox<U = ()> = SandboxSpec<ActorState<U>>;

/// What the store of an actor's sandbox holds beside the guest: the embedder's own state, and who the actor is.
///
/// Host functions of the embedder find it in [`HostState::ext`](airssys_wasm_isolation::HostState::ext).
pub struct ActorState<U = ()> {
    /// The embedder's own, made anew for each incarnation.
    pub user: U,
    pub(crate) cell: Arc<Cell>,
    pub(crate) capabilities: Arc<Capabilities>,
    /// The trace of the message in flight.
    pub(crate) trace: Option<Box<TraceContext>>,
    /// Calls that were not granted, of this incarnation.
    pub(crate) denials: u64,
}

impl<U> ActorState<U> {
    /// The actor's name.
    pub fn id(&self) -> &ComponentId {
        self.cell.id()
    }

    /// The trace of the message in flight, with the span that is the parent of what is sent meanwhile.
    pub fn trace(&self) -> Option<&TraceContext> {
        self.trace.as_deref()
    }
}
