//! A message on its way, and what takes it.

use std::{fmt, num::NonZeroU64, sync::Arc};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::{ActorAddress, Topic};

/// A message on its way. Cloning it copies no payload.
///
/// Serialised, it leaves behind its deadline and its target, which mean nothing in another process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessageEnvelope {
    pub(crate) sender: Option<ActorAddress>,
    #[serde(skip)]
    pub(crate) target: Option<NonZeroU64>,
    pub(crate) topic: Option<Topic>,
    pub(crate) correlation: Option<CorrelationId>,
    #[serde(skip)]
    pub(crate) deadline: Option<Instant>,
    pub(crate) trace: Option<Box<TraceContext>>,
    pub(crate) content_type: Option<ContentType>,
    pub(crate) payload: Bytes,
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

    /// The content. Shared, and never copied on the way.
    #[inline]
    pub fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// The content alone.
    #[inline]
    pub fn into_payload(self) -> Bytes {
        self.payload
    }

    /// Bytes of payload and content type: what the sender chose.
    #[inline]
    pub fn size(&self) -> usize {
        self.payload.len() + self.content_type.as_ref().map_or(0, |ty| ty.0.len())
    }

    /// Who sent it, where that is a component.
    #[inline]
    pub fn sender(&self) -> Option<&ActorAddress> {
        self.sender.as_ref()
    }

    /// From this component. Receivers believe it: set it only for the component that sends.
    #[must_use]
    pub fn with_sender(mut self, sender: impl Into<Option<ActorAddress>>) -> Self {
        self.sender = sender.into();
        self
    }

    /// The registration it was delivered to, [`ActorAddress::generation`], set by the router. A bare generation avoids
    /// reference-count traffic between cores.
    #[inline]
    pub fn target(&self) -> Option<NonZeroU64> {
        self.target
    }

    /// To this registration, or to none, for delivery without the router.
    #[must_use]
    pub fn with_target(mut self, generation: impl Into<Option<NonZeroU64>>) -> Self {
        self.target = generation.into();
        self
    }

    /// The topic it was published to, set by the broker.
    #[inline]
    pub fn topic(&self) -> Option<&Topic> {
        self.topic.as_ref()
    }

    /// To this topic, for delivery without the broker.
    #[must_use]
    pub fn with_topic(mut self, topic: impl Into<Option<Topic>>) -> Self {
        self.topic = topic.into();
        self
    }

    /// What ties an answer to its question.
    #[inline]
    pub fn correlation(&self) -> Option<CorrelationId> {
        self.correlation
    }

    /// With this between question and answer.
    #[must_use]
    pub fn with_correlation(mut self, correlation: impl Into<Option<CorrelationId>>) -> Self {
        self.correlation = correlation.into();
        self
    }

    /// From this moment on the router and the broker refuse it, and an actor does not handle it.
    #[inline]
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// With this deadline, or none, by tokio's clock, which tests can stop.
    #[must_use]
    pub fn with_deadline(mut self, deadline: impl Into<Option<Instant>>) -> Self {
        self.deadline = deadline.into();
        self
    }

    /// The trace it belongs to.
    #[inline]
    pub fn trace(&self) -> Option<&TraceContext> {
        self.trace.as_deref()
    }

    /// In this trace.
    #[must_use]
    pub fn with_trace(mut self, trace: impl Into<Option<TraceContext>>) -> Self {
        self.trace = trace.into().map(Box::new);
        self
    }

    /// What the payload is.
    #[inline]
    pub fn content_type(&self) -> Option<&ContentType> {
        self.content_type.as_ref()
    }

    /// With a payload of this type.
    #[must_use]
    pub fn with_content_type(mut self, content_type: impl Into<Option<ContentType>>) -> Self {
        self.content_type = content_type.into();
        self
    }

    /// Whether its deadline is over. Reads the clock only if there is a deadline.
    #[inline]
    pub fn is_late(&self) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= Instant::now())
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CorrelationId(pub NonZeroU64);

/// A trace as W3C's Trace Context has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TraceContext {
    /// The whole trace.
    pub trace_id: u128,
    /// The span that sent the message.
    pub parent_id: u64,
    /// Whether the trace is recorded.
    pub sampled: bool,
}

/// A media type, `application/json`. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
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
    /// It is called, and takes no messages.
    #[error("it has no handler: it is called by its exports, and takes no messages")]
    NoHandler,
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
