//! The services that all actors of a system share.

use std::sync::Arc;

use airssys_wasm_registry::{ActorAddress, ComponentId, ComponentRegistry, MessageBroker, MessageRouter, Name};
use parking_lot::Mutex;
use tokio::sync::broadcast;

use crate::{
    ActorRef, DeadLetterLimits, DeadLetters, SystemEvent,
    runtime::{endpoint::Endpoint, events::EVENTS, metrics::Metrics, waits::Waits},
};

pub(crate) struct Services {
    pub(crate) registry: ComponentRegistry<Endpoint>,
    pub(crate) router: MessageRouter<Endpoint>,
    pub(crate) broker: MessageBroker<Endpoint>,
    pub(crate) dead_letters: DeadLetters,
    pub(crate) waits: Waits,
    events: broadcast::Sender<SystemEvent>,
    metrics: Arc<Metrics>,
    metrics_per_actor: bool,
    latencies: bool,
    random: Mutex<fastrand::Rng>,
}

impl Services {
    pub(crate) fn new(
        dead_letters: DeadLetterLimits,
        metrics_per_actor: bool,
        latencies: bool,
        seed: Option<u64>,
    ) -> Self {
        let registry = ComponentRegistry::new();
        Self {
            router: MessageRouter::new(registry.clone()),
            registry,
            broker: MessageBroker::new(),
            dead_letters: DeadLetters::new(dead_letters),
            waits: Waits::default(),
            events: broadcast::Sender::new(EVENTS),
            metrics: Arc::new(Metrics::new(None, latencies)),
            metrics_per_actor,
            latencies,
            random: Mutex::new(seed.map_or_else(fastrand::Rng::new, fastrand::Rng::with_seed)),
        }
    }

    pub(crate) fn event(&self, event: impl FnOnce() -> SystemEvent) {
        if self.events.receiver_count() > 0 {
            // Fails if the last receiver has just gone.
            _ = self.events.send(event());
        }
    }

    pub(crate) fn events(&self) -> broadcast::Receiver<SystemEvent> {
        self.events.subscribe()
    }

    pub(crate) fn metrics_of(&self, id: &ComponentId) -> Arc<Metrics> {
        if self.metrics_per_actor {
            Arc::new(Metrics::new(Some(id), self.latencies))
        } else {
            Arc::clone(&self.metrics)
        }
    }

    pub(crate) fn random(&self) -> fastrand::Rng {
        self.random.lock().fork()
    }

    pub(crate) fn find(&self, name: &(impl Name + ?Sized)) -> Option<ActorRef> {
        self.actor(&self.registry.lookup(name)?)
    }

    pub(crate) fn actors(&self) -> Vec<ActorRef> {
        self.registry.list().iter().filter_map(|address| self.actor(address)).collect()
    }

    fn actor(&self, address: &ActorAddress) -> Option<ActorRef> {
        match &*self.registry.resolve(address).ok()? {
            Endpoint::Actor(cell) => Some(ActorRef(Arc::clone(cell))),
            Endpoint::Host(_) => None,
        }
    }
}
