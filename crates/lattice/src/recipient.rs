//! A receiver that is here or on another host.

use std::{fmt, sync::Arc, time::Duration};

use airssys_wasm_actor::{
    ActorRef, AskError, Bytes,
    registry::{ComponentId, MessageEnvelope, Refusal, Undelivered},
};
use tokio::time::Instant;

use crate::{
    error::TellError,
    host::Host,
    joined::{Joined, member},
};

/// Who takes messages: an actor of this host, or a name that is looked up for each message, here first and then in the lattice.
/// Cheap to clone.
#[derive(Clone)]
pub struct Recipient<U: 'static = ()>(Kind<U>);

enum Kind<U: 'static> {
    Local(ActorRef),
    Named { name: ComponentId, lattice: Arc<Joined<U>> },
}

impl<U> Clone for Kind<U> {
    fn clone(&self) -> Self {
        match self {
            Self::Local(actor) => Self::Local(actor.clone()),
            Self::Named { name, lattice } => Self::Named { name: name.clone(), lattice: Arc::clone(lattice) },
        }
    }
}

impl<U> From<ActorRef> for Recipient<U> {
    fn from(actor: ActorRef) -> Self {
        Self(Kind::Local(actor))
    }
}

impl<U: Send + 'static> Recipient<U> {
    pub(crate) fn named(name: ComponentId, lattice: Arc<Joined<U>>) -> Self {
        Self(Kind::Named { name, lattice })
    }

    /// The name.
    pub fn id(&self) -> &ComponentId {
        match &self.0 {
            Kind::Local(actor) => actor.id(),
            Kind::Named { name, .. } => name,
        }
    }

    /// The actor, if it is of this host and in memory.
    pub fn here(&self) -> Option<ActorRef> {
        match &self.0 {
            Kind::Local(actor) => Some(actor.clone()),
            Kind::Named { name, lattice } => lattice.system()?.find(name),
        }
    }

    /// Sends a message, and waits until its receiver's mailbox has it, here or there. With a deadline it waits no longer for room.
    ///
    /// # Errors
    ///
    /// [`TellError`].
    pub async fn tell(&self, message: impl Into<MessageEnvelope>) -> Result<(), TellError> {
        let mut message = message.into();
        loop {
            match self.find() {
                Err(reason) => return Err(Undelivered::new(reason, message).into()),
                Ok(Found::Here(actor)) => match actor.tell(message).await {
                    // It left the memory, or stopped, on the way: its name may lead elsewhere by now.
                    Err(refused) if self.is_named() && refused.reason == Refusal::Moved => message = refused.message,
                    told => return told.map_err(TellError::NotSent),
                },
                Ok(Found::Elsewhere(host, name)) => return host.tell(name, message).await,
            }
        }
    }

    /// Sends a message without waiting. One to another host that is not taken there is a dead letter of this system.
    ///
    /// # Errors
    ///
    /// [`Undelivered`], with the message.
    pub fn try_tell(&self, message: impl Into<MessageEnvelope>) -> Result<(), Undelivered> {
        let mut message = message.into();
        loop {
            match self.find() {
                Err(reason) => return Err(Undelivered::new(reason, message)),
                Ok(Found::Here(actor)) => match actor.try_tell(message) {
                    Err(refused) if self.is_named() && refused.reason == Refusal::Moved => message = refused.message,
                    told => return told,
                },
                Ok(Found::Elsewhere(host, name)) => return host.send(name, message),
            }
        }
    }

    /// Sends a message, waiting for room, and waits for the answer, until the message's deadline if it has one. Without one it
    /// waits until the actor answers or its host is lost.
    ///
    /// # Errors
    ///
    /// [`AskError`]; [`AskError::Lost`] if the receiver's host was lost meanwhile.
    pub async fn ask(&self, message: impl Into<MessageEnvelope>) -> Result<Bytes, AskError> {
        let mut message = message.into();
        loop {
            match self.find() {
                Err(reason) => return Err(AskError::NotSent(Undelivered::new(reason, message))),
                Ok(Found::Here(actor)) => match actor.ask(message).await {
                    Err(AskError::NotSent(refused)) if self.is_named() && refused.reason == Refusal::Moved => {
                        message = refused.message;
                    }
                    asked => return asked,
                },
                Ok(Found::Elsewhere(host, name)) => return host.ask(name, message).await,
            }
        }
    }

    /// [`ask`](Self::ask) with a timeout.
    ///
    /// # Errors
    ///
    /// [`AskError`].
    pub async fn ask_within(&self, longest: Duration, message: impl Into<MessageEnvelope>) -> Result<Bytes, AskError> {
        let message = message.into();
        match Instant::now().checked_add(longest) {
            Some(deadline) => self.ask(message.with_deadline(deadline)).await,
            None => self.ask(message).await,
        }
    }

    /// Whether the name leads somewhere now, as far as this host knows: to an actor or a group here, or to a host that is there.
    pub fn is_known(&self) -> bool {
        self.here().is_some() || self.member().is_some() || self.hosts() > 0
    }

    /// How many hosts of the lattice the name leads to now, this one among them: more than one if it is a group's.
    pub fn hosts(&self) -> usize {
        match &self.0 {
            Kind::Local(_) => 1,
            Kind::Named { name, lattice } => lattice.host.directory.places(name),
        }
    }

    fn is_named(&self) -> bool {
        matches!(self.0, Kind::Named { .. })
    }

    /// Of a group of this host, the member whose turn it is.
    fn member(&self) -> Option<ActorRef> {
        match &self.0 {
            Kind::Local(_) => None,
            Kind::Named { name, lattice } => member(&lattice.system()?, name, || lattice.host.turn()),
        }
    }

    fn find(&self) -> Result<Found<'_>, Refusal> {
        let (name, lattice) = match &self.0 {
            Kind::Local(actor) => return Ok(Found::Here(actor.clone())),
            Kind::Named { name, lattice } => (name, lattice),
        };
        let Some(system) = lattice.system() else { return Err(Refusal::Stopped) };
        let here = system.awaken(name, None)?.or_else(|| self.member());
        Ok(here.map_or(Found::Elsewhere(&lattice.host, name), Found::Here))
    }
}

enum Found<'a> {
    Here(ActorRef),
    Elsewhere(&'a Arc<Host>, &'a ComponentId),
}

impl<U> fmt::Debug for Recipient<U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Local(actor) => f.debug_tuple("Recipient").field(actor).finish(),
            Kind::Named { name, .. } => f.debug_tuple("Recipient").field(name).finish(),
        }
    }
}
