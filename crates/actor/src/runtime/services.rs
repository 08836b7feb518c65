//! The services that all actors of a system share.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use airssys_wasm_registry::{
    ActorAddress, ComponentId, ComponentRegistry, MessageBroker, MessageEnvelope, MessageRouter, Name, PublishReport,
    Refusal, ResolveError, SendError, Topic, Undelivered,
};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use parking_lot::{Mutex, RwLock};
use tokio::sync::broadcast;

use crate::{
    ActorRef, AskError, CallError, DeadLetterLimits, DeadLetters, SystemEvent,
    runtime::{
        endpoint::Endpoint,
        events::EVENTS,
        keeper::{Elsewhere, FarCall},
        mailbox::Delivery,
        metrics::Metrics,
        reminders::Reminding,
        timers::Timers,
        waits::Waits,
    },
};

pub(crate) struct Services {
    pub(crate) registry: ComponentRegistry<Endpoint>,
    pub(crate) router: MessageRouter<Endpoint>,
    pub(crate) broker: MessageBroker<Endpoint>,
    pub(crate) dead_letters: DeadLetters,
    pub(crate) waits: Waits,
    pub(crate) timers: Timers,
    pub(crate) reminders: Reminding,
    events: broadcast::Sender<SystemEvent>,
    metrics: Arc<Metrics>,
    metrics_per_actor: bool,
    latencies: bool,
    random: Mutex<fastrand::Rng>,
    /// Who knows names that are not registered, in the order they are asked.
    elsewhere: RwLock<Arc<[Arc<dyn Elsewhere>]>>,
    /// Whether there is any of them.
    has_elsewhere: AtomicBool,
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
            timers: Timers::default(),
            reminders: Reminding::default(),
            events: broadcast::Sender::new(EVENTS),
            metrics: Arc::new(Metrics::new(None, latencies)),
            metrics_per_actor,
            latencies,
            random: Mutex::new(seed.map_or_else(fastrand::Rng::new, fastrand::Rng::with_seed)),
            elsewhere: RwLock::new(Arc::from([])),
            has_elsewhere: AtomicBool::new(false),
        }
    }

    pub(crate) fn add_elsewhere(&self, elsewhere: Arc<dyn Elsewhere>) {
        let mut all = self.elsewhere.write();
        *all = all.iter().cloned().chain([elsewhere]).collect();
        self.has_elsewhere.store(true, Ordering::Relaxed);
    }

    /// Brings an actor into being whose name is not registered. `None` if nobody knows the name.
    #[cold]
    pub(crate) fn awaken(&self, to: &ComponentId, by: Option<&ActorAddress>) -> Option<Result<ActorRef, Refusal>> {
        let elsewhere = Arc::clone(&self.elsewhere.read());
        elsewhere.iter().find_map(|elsewhere| elsewhere.awaken(to, by))
    }

    /// Sends a message at once, to a component, to the next member of a group that takes it, or to an actor that is brought
    /// into being for it.
    pub(crate) fn send(&self, to: &ComponentId, message: MessageEnvelope) -> Result<(), SendError> {
        self.router.send(to, message).or_else(|error| self.send_elsewhere(to, error))
    }

    #[cold]
    fn send_elsewhere(&self, to: &ComponentId, mut error: SendError) -> Result<(), SendError> {
        loop {
            if !matches!(
                error,
                SendError::Unresolved { error: ResolveError::Unknown { .. }, .. }
                    | SendError::Refused { reason: Refusal::Moved, .. }
            ) {
                return Err(error);
            }
            let by = match &error {
                SendError::Unresolved { message, .. } | SendError::Refused { message, .. } => message.sender(),
                _ => None,
            };
            match self.awaken(to, by) {
                None => return self.tell_elsewhere(to, error),
                Some(Err(reason)) => {
                    return Err(SendError::Refused { to: to.clone(), reason, message: error.into_message() });
                }
                Some(Ok(actor)) => {
                    let generation = actor.address().generation();
                    let message = error.into_message().with_target(generation);
                    match actor.0.try_push(Delivery::new(message, None)) {
                        Ok(()) => return Ok(()),
                        // It left the memory again before the message came, which takes it some time.
                        Err((reason, Delivery { message, .. })) => {
                            error = SendError::Refused { to: to.clone(), reason, message };
                        }
                    }
                }
            }
        }
    }

    /// Gives a message that nobody here takes to who knows its receiver.
    fn tell_elsewhere(&self, to: &ComponentId, mut error: SendError) -> Result<(), SendError> {
        let all = Arc::clone(&self.elsewhere.read());
        for elsewhere in &*all {
            let message = match &mut error {
                SendError::Unresolved { message, .. } | SendError::Refused { message, .. } => message,
                _ => break,
            };
            match elsewhere.tell(to, std::mem::replace(message, MessageEnvelope::new(Bytes::new()))) {
                Ok(None) => return Ok(()),
                Ok(Some(back)) => *message = back,
                Err(Undelivered { reason, message, .. }) => {
                    return Err(SendError::Refused { to: to.clone(), reason, message });
                }
            }
        }
        Err(error)
    }

    /// Asks who knows an actor that is not here.
    #[cold]
    pub(crate) fn ask_elsewhere(
        &self,
        to: &ComponentId,
        message: &MessageEnvelope,
    ) -> Option<BoxFuture<'static, Result<Bytes, AskError>>> {
        let elsewhere = Arc::clone(&self.elsewhere.read());
        elsewhere.iter().find_map(|elsewhere| elsewhere.ask(to, message))
    }

    /// Whether anybody knows names that are not registered.
    pub(crate) fn has_elsewhere(&self) -> bool {
        self.has_elsewhere.load(Ordering::Relaxed)
    }

    /// Has who knows an actor that is not here call it.
    #[cold]
    pub(crate) fn call_elsewhere(
        &self,
        to: &ComponentId,
        call: &FarCall,
    ) -> Option<BoxFuture<'static, Result<Bytes, CallError>>> {
        let elsewhere = Arc::clone(&self.elsewhere.read());
        elsewhere.iter().find_map(|elsewhere| elsewhere.call(to, call))
    }

    /// Tells those who know other names that an actor has ended.
    pub(crate) fn tell_ended(&self, actor: &ActorAddress) {
        if self.has_elsewhere() {
            let elsewhere = Arc::clone(&self.elsewhere.read());
            elsewhere.iter().for_each(|elsewhere| elsewhere.ended(actor));
        }
    }

    /// Delivers a message to all who subscribed to its topic, here and elsewhere.
    pub(crate) async fn publish(&self, topic: &Topic, message: MessageEnvelope) -> PublishReport {
        let hosts = if self.has_elsewhere() && !message.is_late() {
            let elsewhere = Arc::clone(&self.elsewhere.read());
            elsewhere.iter().map(|elsewhere| elsewhere.publish(topic, &message)).sum()
        } else {
            0
        };
        let mut report = self.broker.publish(topic, message).await;
        report.hosts = hosts;
        report
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

    /// Of all actors together.
    pub(crate) fn metrics(&self) -> Arc<Metrics> {
        Arc::clone(&self.metrics)
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
        of_an_actor(&*self.registry.find(name)?)
    }

    pub(crate) fn actors(&self) -> Vec<ActorRef> {
        let addresses = self.registry.list();
        addresses.iter().filter_map(|address| of_an_actor(&*self.registry.resolve(address).ok()?)).collect()
    }
}

fn of_an_actor(endpoint: &Endpoint) -> Option<ActorRef> {
    match endpoint {
        Endpoint::Actor(cell) => Some(ActorRef(Arc::clone(cell))),
        Endpoint::Host(_) => None,
    }
}
