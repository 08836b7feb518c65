//! Trees of supervisors, from their specification to their tasks.

use std::{fmt, sync::Arc};

use airssys_wasm_registry::ComponentId;
use tokio::sync::mpsc;

use crate::{
    ActorSpec, NativeActor, NativeSpec, SupervisorPolicy,
    native::NativeBlueprint,
    runtime::owner::ChildEvent,
    system::{
        SpawnError, SystemCore,
        spawn::{Prepared, Spawn},
    },
};

pub(super) type PrepareChild =
    Box<dyn FnOnce(&Arc<SystemCore>, usize, mpsc::UnboundedSender<ChildEvent>) -> Result<Prepared, SpawnError> + Send>;

/// A supervisor to be, with its children in the order of their start.
pub struct SupervisorSpec<U: 'static> {
    /// Its name, which is for people: messages cannot be sent to it.
    pub name: ComponentId,
    /// How it answers its children's failures.
    pub policy: SupervisorPolicy,
    pub(super) children: Vec<ChildSpec<U>>,
}

pub(super) enum ChildSpec<U: 'static> {
    Actor(Box<ActorSpec<U>>),
    Native(PrepareChild),
    Supervisor(SupervisorSpec<U>),
}

impl<U: Send + 'static> SupervisorSpec<U> {
    /// A supervisor without children.
    pub fn new(name: ComponentId, policy: SupervisorPolicy) -> Self {
        Self { name, policy, children: Vec::new() }
    }

    /// With this component as its next child.
    #[must_use]
    pub fn actor(mut self, spec: ActorSpec<U>) -> Self {
        self.children.push(ChildSpec::Actor(Box::new(spec)));
        self
    }

    /// With this native actor as its next child.
    #[must_use]
    pub fn native<N: NativeActor>(mut self, spec: NativeSpec<N>) -> Self {
        let spawn = native(spec);
        self.children
            .push(ChildSpec::Native(Box::new(move |core, child, events| spawn.supervised(core, child, events))));
        self
    }

    /// With this supervisor as its next child.
    #[must_use]
    pub fn supervisor(mut self, spec: Self) -> Self {
        self.children.push(ChildSpec::Supervisor(spec));
        self
    }
}

impl<U> fmt::Debug for SupervisorSpec<U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SupervisorSpec")
            .field("name", &self.name)
            .field("policy", &self.policy)
            .field("children", &self.children.len())
            .finish_non_exhaustive()
    }
}

pub(super) fn native<N: NativeActor>(spec: NativeSpec<N>) -> Spawn<NativeBlueprint<N>> {
    Spawn { options: spec.options, blueprint: NativeBlueprint(spec.make) }
}
