//! The target of a name or a subscription.

use std::sync::Arc;

use airssys_wasm_registry::{Load, MessageEnvelope, Refusal, Sink, Undelivered};
use tokio::sync::mpsc::{self, error::TrySendError};

use crate::runtime::{cell::Cell, mailbox::Delivery};

/// The target of a name or a subscription.
#[derive(Debug)]
pub(crate) enum Endpoint {
    Actor(Arc<Cell>),
    /// A host subscriber.
    Host(mpsc::Sender<MessageEnvelope>),
}

pub(crate) fn undelivered((reason, delivery): (Refusal, Delivery)) -> Undelivered {
    Undelivered::new(reason, delivery.message)
}

impl Sink for Endpoint {
    fn try_deliver(&self, message: MessageEnvelope) -> Result<(), Undelivered> {
        match self {
            Self::Actor(cell) => cell.try_push(Delivery::new(message, None)).map_err(undelivered),
            Self::Host(channel) => channel.try_send(message).map_err(|error| match error {
                TrySendError::Full(message) => Undelivered::new(Refusal::Full, message),
                TrySendError::Closed(message) => Undelivered::new(Refusal::Stopped, message),
            }),
        }
    }

    async fn deliver(&self, message: MessageEnvelope) -> Result<(), Undelivered> {
        match self {
            Self::Actor(cell) => cell.push(Delivery::new(message, None)).await.map_err(undelivered),
            Self::Host(channel) => {
                channel.send(message).await.map_err(|error| Undelivered::new(Refusal::Stopped, error.0))
            }
        }
    }

    fn load(&self) -> Load {
        match self {
            Self::Actor(cell) => cell.load(),
            Self::Host(channel) => {
                let capacity = channel.max_capacity();
                Load { queued: capacity - channel.capacity(), capacity }
            }
        }
    }
}
