//! A message on its way, and what takes it.

use std::{fmt, num::NonZeroU64, sync::Arc, time::Instant};

use bytes::Bytes;

use crate::{ActorAddress, Topic};

/// A message on its way. Cloning it copies no payload.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct MessageEnvelope {
    /// Who sent it, where that is a component.
    pub sender: Option<ActorAddress>,
    /// The registration it was delivered to, [`ActorAddress::generation`]; set by the router. A number, because a name is
    /// counted by its users: the receiver would let go of it on another core than the sender took it on, which costs
    /// more than the look-up.
    pub target: Option<NonZeroU64>,
    /// The topic it was published to; set by the broker.
    pub topic: Option<Topic>,
    /// What ties an answer to its question.
    pub correlation: Option<CorrelationId>,
    /// After this moment nobody waits for it any more. The router and the broker refuse it from then on.
    pub deadline: Option<Instant>,
    /// The trace it belongs to.
    pub trace: Option<Box<TraceContext>>,
    /// What the payload is.
    pub content_type: Option<ContentType>,
    /// The content. Shared, and never copied on the way.
    pub payload: Bytes,
}

impl MessageEnvelope {
    /// A message with this payload and nothing else.
    pub fn new(payload: impl Into<Bytes>) -> Self {
        Self {
            sender: None,
            target: None,
            topic: None,
            correlation: None,
            deadline: None,
            trace: None,
            content_type: None,
            payload: payload.into(),
        }
    }

    /// Whether its deadline is over, by tokio's clock, which tests can stop. Reads it only if there is a deadline.
    pub fn is_late(&self) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= tokio::time::Instant::now().into_std())
    }
}

impl From<Bytes> for MessageEnvelope {
    fn from(payload: Bytes) -> Self {
        Self::new(payload)
    }
}

impl From<Vec<u8>> for MessageEnvelope {
    fn from(payload: Vec<u8>) -> Self {
        Self::new(payload)
    }
}

impl From<String> for MessageEnvelope {
    fn from(payload: String) -> Self {
        Self::new(payload)
    }
}

impl From<&'static str> for MessageEnvelope {
    fn from(payload: &'static str) -> Self {
        Self::new(payload)
    }
}

/// What ties an answer to its question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CorrelationId(pub NonZeroU64);

/// A trace as W3C's Trace Context has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceContext {
    /// The whole trace.
    pub trace_id: u128,
    /// The span that sent the message.
    pub parent_id: u64,
    /// Whether the trace is recorded.
    pub sampled: bool,
}

/// A media type, `application/json`. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ContentType(pub Arc<str>);

/// What an address leads to: a mailbox, a host's subscriber, a bridge.
pub trait Sink: Send + Sync + 'static {
    /// Takes a message at once, or gives it back.
    ///
    /// # Errors
    ///
    /// [`Undelivered`], with the message and the reason.
    fn try_deliver(&self, message: MessageEnvelope) -> Result<(), Undelivered>;

    /// Takes a message as soon as there is room.
    ///
    /// # Errors
    ///
    /// [`Undelivered`] when there will be none, with the message and the reason.
    fn deliver(&self, message: MessageEnvelope) -> impl Future<Output = Result<(), Undelivered>> + Send;

    /// How full it is.
    fn load(&self) -> Load;
}

impl<S: Sink> Sink for Arc<S> {
    fn try_deliver(&self, message: MessageEnvelope) -> Result<(), Undelivered> {
        S::try_deliver(self, message)
    }

    fn deliver(&self, message: MessageEnvelope) -> impl Future<Output = Result<(), Undelivered>> + Send {
        S::deliver(self, message)
    }

    fn load(&self) -> Load {
        S::load(self)
    }
}

/// How full a sink is, in messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Messages that wait in it.
    pub queued: usize,
    /// Messages that it holds.
    pub capacity: usize,
}

/// Why a sink does not take a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// There is no room now, for anybody or for this sender; there may be later.
    #[error("its mailbox is full")]
    Full,
    /// It has stopped for good.
    #[error("it has stopped")]
    Stopped,
    /// There is no room because it is restarting; there may be some later.
    #[error("it is restarting, and its mailbox is full")]
    Restarting,
    /// It takes no message of this size.
    #[error("it takes messages of {allowed} bytes at the most, and this one has {size}")]
    TooLarge {
        /// The message's bytes.
        size: u64,
        /// Bytes it may have.
        allowed: u64,
    },
}

/// A message that a sink did not take.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("the message was not taken: {reason}")]
#[non_exhaustive]
pub struct Undelivered {
    /// Why.
    pub reason: Refusal,
    /// The message, as it was.
    pub message: MessageEnvelope,
}

impl Undelivered {
    /// A message that is not taken.
    pub fn new(reason: Refusal, message: MessageEnvelope) -> Self {
        Self { reason, message }
    }
}

// Without the payload, which may be anything and long.
impl fmt::Debug for Undelivered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Undelivered").field("reason", &self.reason).finish_non_exhaustive()
    }
}
