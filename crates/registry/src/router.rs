//! Delivery by name and by address: to one, to many, to a group.

use std::fmt;

use crate::{
    ActorAddress, ComponentId, ComponentRegistry, MessageEnvelope, Refusal, ResolveError, Sink, Undelivered,
    registry::{Receiver, Route},
};

/// Delivers messages to registered sinks. Cheap to clone.
pub struct MessageRouter<S> {
    registry: ComponentRegistry<S>,
}

/// A message was not delivered, and comes back.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// Nobody has the name, or the address is stale.
    #[error("not sent: {error}")]
    Unresolved {
        /// Why it leads nowhere.
        error: ResolveError,
        /// The message, as it was.
        message: MessageEnvelope,
    },
    /// The group has no member that is registered.
    #[error("not sent: the group `{group}` has no members")]
    EmptyGroup {
        /// The group.
        group: ComponentId,
        /// The message, as it was.
        message: MessageEnvelope,
    },
    /// The receiver, or each member of the group, refused it.
    #[error("not sent to `{to}`: {reason}")]
    Refused {
        /// The receiver.
        to: ComponentId,
        /// Why; of a group, the reason of the last member asked.
        reason: Refusal,
        /// The message, as it was.
        message: MessageEnvelope,
    },
    /// Its deadline was over before it was sent.
    #[error("not sent to `{to}`: the message's deadline is over")]
    Late {
        /// The receiver.
        to: ComponentId,
        /// The message, as it was.
        message: MessageEnvelope,
    },
}

impl SendError {
    /// The message, to be sent again or elsewhere.
    pub fn into_message(self) -> MessageEnvelope {
        match self {
            Self::Unresolved { message, .. }
            | Self::EmptyGroup { message, .. }
            | Self::Refused { message, .. }
            | Self::Late { message, .. } => message,
        }
    }
}

// As it reads, and without the payload.
impl fmt::Debug for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SendError({self})")
    }
}

impl<S> Clone for MessageRouter<S> {
    fn clone(&self) -> Self {
        Self { registry: self.registry.clone() }
    }
}

impl<S> fmt::Debug for MessageRouter<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MessageRouter").field("registry", &self.registry).finish()
    }
}

impl<S: Sink> MessageRouter<S> {
    /// A router over a registry.
    pub fn new(registry: ComponentRegistry<S>) -> Self {
        Self { registry }
    }

    /// The registry.
    pub fn registry(&self) -> &ComponentRegistry<S> {
        &self.registry
    }

    /// Delivers a message at once, to a component or to the next member of a group that takes it.
    ///
    /// # Errors
    ///
    /// [`SendError`], with the message.
    pub fn send(&self, to: &ComponentId, mut message: MessageEnvelope) -> Result<(), SendError> {
        if message.is_late() {
            return Err(SendError::Late { to: to.clone(), message });
        }
        let receivers = match self.registry.route(to) {
            Some(Route::Sink(receiver)) => {
                return receiver.try_deliver(message).map_err(|refused| refusal(to, refused));
            }
            Some(Route::Group(receivers)) => receivers,
            None => return Err(unknown(to, message)),
        };
        let mut last = None;
        for receiver in receivers {
            match receiver.try_deliver(message) {
                Ok(()) => return Ok(()),
                Err(undelivered) => {
                    last = Some(undelivered.reason);
                    message = undelivered.message;
                }
            }
        }
        Err(match last {
            Some(reason) => SendError::Refused { to: to.clone(), reason, message },
            None => SendError::EmptyGroup { group: to.clone(), message },
        })
    }

    /// Delivers a message as soon as there is room: to a component, or to the member of a group whose turn it is, unless
    /// another takes it at once. Gives up when the message's deadline is over.
    ///
    /// # Errors
    ///
    /// [`SendError`], with the message; but one whose deadline ends while it waits is gone with its wait, and comes back
    /// as a copy.
    pub async fn send_wait(&self, to: &ComponentId, message: MessageEnvelope) -> Result<(), SendError> {
        let mut message = match self.send(to, message) {
            Err(SendError::Refused { reason: Refusal::Full | Refusal::Restarting, message, .. }) => message,
            done => return done,
        };
        let Receiver { sink, generation } = match self.registry.route(to) {
            Some(Route::Sink(receiver)) => receiver,
            Some(Route::Group(mut receivers)) => match receivers.next() {
                Some(receiver) => receiver,
                None => return Err(SendError::EmptyGroup { group: to.clone(), message }),
            },
            None => return Err(unknown(to, message)),
        };
        message = message.with_target(generation);
        let delivered = match message.deadline() {
            None => sink.deliver(message).await,
            Some(deadline) => {
                let copy = message.clone();
                match tokio::time::timeout_at(deadline, sink.deliver(message)).await {
                    Ok(delivered) => delivered,
                    Err(_) => return Err(SendError::Late { to: to.clone(), message: copy }),
                }
            }
        };
        delivered.map_err(|refused| refusal(to, refused))
    }

    /// Delivers a message at once to the very component that an address stands for.
    ///
    /// # Errors
    ///
    /// [`SendError`], with the message; also when the name was registered anew.
    pub fn send_resolved(&self, to: &ActorAddress, message: MessageEnvelope) -> Result<(), SendError> {
        if message.is_late() {
            return Err(SendError::Late { to: to.id().clone(), message });
        }
        match self.registry.resolve(to) {
            Ok(sink) => Receiver { sink, generation: to.generation() }
                .try_deliver(message)
                .map_err(|refused| refusal(to.id(), refused)),
            Err(error) => Err(SendError::Unresolved { error, message }),
        }
    }

    /// Delivers a message at once to each of these, and says who did not get it. The payload is shared.
    pub fn broadcast<'a>(
        &self,
        to: impl IntoIterator<Item = &'a ComponentId>,
        message: &MessageEnvelope,
    ) -> Vec<SendError> {
        to.into_iter().filter_map(|to| self.send(to, message.clone()).err()).collect()
    }
}

impl<S: Sink> Receiver<S> {
    fn try_deliver(&self, message: MessageEnvelope) -> Result<(), Undelivered> {
        self.sink.try_deliver(message.with_target(self.generation))
    }
}

fn unknown(to: &ComponentId, message: MessageEnvelope) -> SendError {
    SendError::Unresolved { error: ResolveError::Unknown { id: to.clone() }, message }
}

fn refusal(to: &ComponentId, refused: Undelivered) -> SendError {
    SendError::Refused { to: to.clone(), reason: refused.reason, message: refused.message }
}
