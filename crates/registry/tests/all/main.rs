//! The registry, the router and the broker from outside.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod broker;
mod concurrency;
mod model;
mod registry;
mod router;

use std::sync::{Arc, Mutex};

use airssys_wasm_registry::{
    ComponentId, ComponentRegistry, Load, MessageEnvelope, MessageRouter, Refusal, Sink, Topic, TopicPattern,
    Undelivered,
};
use tokio::sync::Semaphore;

/// A sink that keeps what it takes, up to a number, and can be told to refuse.
struct Shelf {
    taken: Mutex<Vec<MessageEnvelope>>,
    room: Semaphore,
    capacity: usize,
    refuses: Mutex<Option<Refusal>>,
}

impl Shelf {
    fn new(capacity: usize) -> Arc<Self> {
        let (taken, refuses) = (Mutex::default(), Mutex::default());
        Arc::new(Self { taken, room: Semaphore::new(capacity), capacity, refuses })
    }

    fn refuse(&self, reason: Refusal) {
        *self.refuses.lock().unwrap() = Some(reason);
    }

    /// Takes out the oldest message.
    fn take(&self) -> Option<MessageEnvelope> {
        let mut taken = self.taken.lock().unwrap();
        (!taken.is_empty()).then(|| {
            self.room.add_permits(1);
            taken.remove(0)
        })
    }

    fn payloads(&self) -> Vec<String> {
        let taken = self.taken.lock().unwrap();
        taken.iter().map(|message| String::from_utf8(message.payload().to_vec()).unwrap()).collect()
    }

    fn keep(&self, message: MessageEnvelope) {
        self.taken.lock().unwrap().push(message);
    }
}

impl Sink for Shelf {
    fn try_deliver(&self, message: MessageEnvelope) -> Result<(), Undelivered> {
        if let Some(reason) = *self.refuses.lock().unwrap() {
            return Err(Undelivered::new(reason, message));
        }
        match self.room.try_acquire() {
            Ok(permit) => {
                permit.forget();
                self.keep(message);
                Ok(())
            }
            Err(_) => Err(Undelivered::new(Refusal::Full, message)),
        }
    }

    async fn deliver(&self, message: MessageEnvelope) -> Result<(), Undelivered> {
        if let Some(reason @ Refusal::Stopped) = *self.refuses.lock().unwrap() {
            return Err(Undelivered::new(reason, message));
        }
        self.room.acquire().await.unwrap().forget();
        self.keep(message);
        Ok(())
    }

    fn load(&self) -> Load {
        Load { queued: self.taken.lock().unwrap().len(), capacity: self.capacity }
    }
}

fn id(name: &str) -> ComponentId {
    ComponentId::new(name).unwrap()
}

fn topic(text: &str) -> Topic {
    Topic::new(text).unwrap()
}

fn pattern(text: &str) -> TopicPattern {
    TopicPattern::new(text).unwrap()
}

fn message(payload: &'static str) -> MessageEnvelope {
    MessageEnvelope::new(payload)
}

/// A router with these components, each with room for so many messages.
fn router(components: &[(&str, usize)]) -> (MessageRouter<Shelf>, Vec<Arc<Shelf>>) {
    let registry = ComponentRegistry::new();
    let shelves = components
        .iter()
        .map(|&(name, capacity)| {
            let shelf = Shelf::new(capacity);
            registry.register(&id(name), Arc::clone(&shelf)).unwrap();
            shelf
        })
        .collect();
    (MessageRouter::new(registry), shelves)
}
