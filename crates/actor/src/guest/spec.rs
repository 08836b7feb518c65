//! What a guest is spawned from, and what its store holds beside it.

use std::{collections::BTreeMap, fmt, sync::Arc};

use airssys_wasm_isolation::SandboxSpec;
use airssys_wasm_registry::{ComponentId, TraceContext};

use crate::{
    Capabilities,
    runtime::{
        cell::Cell,
        options::{ActorOptions, option_methods},
    },
};

/// What an actor is spawned from: a sandbox's specification, and how it is an actor.
pub struct ActorSpec<U: 'static> {
    pub(crate) options: ActorOptions,
    pub(crate) sandbox: SandboxSpec<ActorState<U>>,
    pub(crate) capabilities: Capabilities,
    pub(crate) config: BTreeMap<String, String>,
}

/// How many times a message may crash an actor, where redelivery is wanted and there is no reason for another number.
pub const DEFAULT_REDELIVERY: u32 = 3;

impl<U: Send + 'static> ActorSpec<U> {
    /// An actor with defaults for everything else.
    pub fn new(id: ComponentId, sandbox: SandboxSpec<ActorState<U>>) -> Self {
        Self { options: ActorOptions::new(id), sandbox, capabilities: Capabilities::default(), config: BTreeMap::new() }
    }

    /// Its component, limits and grants.
    pub fn sandbox(&self) -> &SandboxSpec<ActorState<U>> {
        &self.sandbox
    }

    /// With another component, or other limits and grants.
    #[must_use]
    pub fn with_sandbox(mut self, sandbox: SandboxSpec<ActorState<U>>) -> Self {
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

    option_methods!();
}

impl<U> Clone for ActorSpec<U> {
    fn clone(&self) -> Self {
        Self {
            options: self.options.clone(),
            sandbox: self.sandbox.clone(),
            capabilities: self.capabilities.clone(),
            config: self.config.clone(),
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

/// What the store of an actor's sandbox holds beside the guest: the embedder's own state, and who the actor is.
///
/// Host functions of the embedder find it in [`HostState::ext`](airssys_wasm_isolation::HostState::ext).
pub struct ActorState<U> {
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
