//! A message on its way, and what takes it.

use std::{
    fmt,
    num::NonZeroU64,
    sync::{Arc, LazyLock},
    time::Duration,
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::{ActorAddress, Topic};

/// A message on its way. Cloning it copies no payload.
///
/// Serialised, it leaves behind its deadline and its target, which mean nothing in another process.
//
// 64 bytes, a cache line: it is moved some ten times on its way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Flat", into = "Flat")]
pub struct MessageEnvelope {
    payload: Bytes,
    sender: Option<ActorAddress>,
    target: Option<NonZeroU64>,
    deadline: Option<Deadline>,
    /// Shared by the clones for all who subscribed to a topic.
    rare: Option<Arc<Rare>>,
}

/// What few messages have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Rare {
    topic: Option<Topic>,
    correlation: Option<CorrelationId>,
    trace: Option<TraceContext>,
    content_type: Option<ContentType>,
}

/// A message as it is serialised.
#[derive(Serialize, Deserialize)]
struct Flat {
    sender: Option<ActorAddress>,
    topic: Option<Topic>,
    correlation: Option<CorrelationId>,
    trace: Option<TraceContext>,
    content_type: Option<ContentType>,
    payload: Bytes,
}

impl From<MessageEnvelope> for Flat {
    fn from(MessageEnvelope { payload, sender, rare, .. }: MessageEnvelope) -> Self {
        let Rare { topic, correlation, trace, content_type } = rare.map(Arc::unwrap_or_clone).unwrap_or_default();
        Self { sender, topic, correlation, trace, content_type, payload }
    }
}

impl From<Flat> for MessageEnvelope {
    fn from(Flat { sender, topic, correlation, trace, content_type, payload }: Flat) -> Self {
        let rare = Rare { topic, correlation, trace, content_type };
        let rare = (rare != Rare::default()).then(|| Arc::new(rare));
        Self { payload, sender, target: None, deadline: None, rare }
    }
}

/// A moment in half of the bytes of an [`Instant`]: nanoseconds from [`Deadline::zero`], beyond `1 << 63`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Deadline(NonZeroU64);

impl Deadline {
    fn zero() -> Instant {
        static ZERO: LazyLock<std::time::Instant> = LazyLock::new(std::time::Instant::now);
        Instant::from_std(*ZERO)
    }

    /// Some 292 years from now at most.
    fn new(at: Instant) -> Self {
        const LONGEST: u64 = i64::MAX as u64;
        let nanos = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(LONGEST).min(LONGEST);
        let zero = Self::zero();
        let at = match at.checked_duration_since(zero) {
            Some(after) => (1 << 63) + nanos(after),
            None => (1 << 63) - nanos(zero.duration_since(at)),
        };
        Self(NonZeroU64::new(at).expect("the longest is less than what it is taken from"))
    }

    fn instant(self) -> Instant {
        let (at, zero) = (self.0.get(), Self::zero());
        match at.checked_sub(1 << 63) {
            Some(after) => zero + Duration::from_nanos(after),
            None => zero - Duration::from_nanos((1 << 63) - at),
        }
    }
}

impl MessageEnvelope {
    /// A message with this payload and nothing else.
    pub fn new(payload: impl Into<Bytes>) -> Self {
        Self { payload: payload.into(), sender: None, target: None, deadline: None, rare: None }
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

    /// With another payload.
    #[must_use]
    pub fn with_payload(mut self, payload: impl Into<Bytes>) -> Self {
        self.payload = payload.into();
        self
    }

    /// Bytes of payload and content type: what the sender chose.
    #[inline]
    pub fn size(&self) -> usize {
        self.payload.len() + self.content_type().map_or(0, |ty| ty.0.len())
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
        self.rare.as_ref()?.topic.as_ref()
    }

    /// To this topic, for delivery without the broker.
    #[must_use]
    pub fn with_topic(mut self, topic: impl Into<Option<Topic>>) -> Self {
        let topic = topic.into();
        self.set_rare(topic.is_some(), |rare| rare.topic = topic);
        self
    }

    /// What ties an answer to its question.
    #[inline]
    pub fn correlation(&self) -> Option<CorrelationId> {
        self.rare.as_ref()?.correlation
    }

    /// With this between question and answer.
    #[must_use]
    pub fn with_correlation(mut self, correlation: impl Into<Option<CorrelationId>>) -> Self {
        let correlation = correlation.into();
        self.set_rare(correlation.is_some(), |rare| rare.correlation = correlation);
        self
    }

    /// From this moment on the router and the broker refuse it, and an actor does not handle it.
    #[inline]
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline.map(Deadline::instant)
    }

    /// With this deadline, or none, by tokio's clock, which tests can stop. One beyond 292 years is one of 292 years.
    #[must_use]
    pub fn with_deadline(mut self, deadline: impl Into<Option<Instant>>) -> Self {
        self.deadline = deadline.into().map(Deadline::new);
        self
    }

    /// The trace it belongs to.
    #[inline]
    pub fn trace(&self) -> Option<&TraceContext> {
        self.rare.as_ref()?.trace.as_ref()
    }

    /// In this trace.
    #[must_use]
    pub fn with_trace(mut self, trace: impl Into<Option<TraceContext>>) -> Self {
        let trace = trace.into();
        self.set_rare(trace.is_some(), |rare| rare.trace = trace);
        self
    }

    /// What the payload is.
    #[inline]
    pub fn content_type(&self) -> Option<&ContentType> {
        self.rare.as_ref()?.content_type.as_ref()
    }

    /// With a payload of this type.
    #[must_use]
    pub fn with_content_type(mut self, content_type: impl Into<Option<ContentType>>) -> Self {
        let content_type = content_type.into();
        self.set_rare(content_type.is_some(), |rare| rare.content_type = content_type);
        self
    }

    /// Whether its deadline is over. Reads the clock only if there is a deadline.
    #[inline]
    pub fn is_late(&self) -> bool {
        self.deadline.is_some_and(|deadline| deadline.instant() <= Instant::now())
    }

    /// Sets something that few messages have, or takes it away, so that what is equal has equal parts.
    fn set_rare(&mut self, some: bool, set: impl FnOnce(&mut Rare)) {
        if some || self.rare.is_some() {
            set(Arc::make_mut(self.rare.get_or_insert_default()));
            self.rare.take_if(|rare| **rare == Rare::default());
        }
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
// It is sent to other hosts by its number: new ones are appended, and `lattice` has a version of the wire for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
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
    /// It is not in memory under this address any more, and its name may stand for it again: send to the name.
    #[error("it is no longer in memory under this address; send to its name")]
    Moved,
    /// It fails whenever it is brought to life, and is left alone for a while.
    #[error("it failed too often and is left alone for a while; send again later")]
    Quarantined,
    /// It is called, and takes no messages.
    #[error("it has no handler: it is called by its exports, and takes no messages")]
    NoHandler,
    /// It is on another host, which is not there or cannot be reached now. It was certainly not handled.
    #[error("its host cannot be reached; send again later")]
    Unreachable,
    /// It was to go to another host, which has nobody of this name.
    #[error("nobody has its name on the host that it is said to be on")]
    Unknown,
    /// It is a call of an actor on another host, whose interface that does not offer to other hosts.
    #[error("its host does not offer this interface to other hosts; name it in `calls` where the actor is exported")]
    NotOffered,
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ComponentRegistry;

    #[test]
    fn a_message_is_a_cache_line() {
        assert_eq!(size_of::<MessageEnvelope>(), 64);
    }

    proptest! {
        #[test]
        fn a_deadline_is_kept_to_the_nanosecond(before: bool, nanos in 0..i64::MAX as u64) {
            let (zero, off) = (Deadline::zero(), Duration::from_nanos(nanos));
            let at = if before { zero.checked_sub(off) } else { zero.checked_add(off) };
            let Some(at) = at else { return Ok(()) };
            prop_assert_eq!(MessageEnvelope::new("x").with_deadline(at).deadline(), Some(at));
        }
    }

    #[test]
    fn a_deadline_beyond_all_others_is_late_or_not_as_it_was() {
        let now = Instant::now();
        let longest = Duration::from_secs(1 << 40);
        let (soonest, latest) = (now.checked_sub(longest), now.checked_add(longest).unwrap());
        assert!(!MessageEnvelope::new("x").with_deadline(latest).is_late());
        assert!(soonest.is_none_or(|soonest| MessageEnvelope::new("x").with_deadline(soonest).is_late()));
        assert!(!MessageEnvelope::new("x").with_deadline(now).with_deadline(None).is_late());
    }

    fn with_all() -> MessageEnvelope {
        let registry = ComponentRegistry::<()>::new();
        let sender = registry.register(&"a".parse().unwrap(), Arc::new(())).unwrap();
        MessageEnvelope::new("x")
            .with_sender(sender)
            .with_topic("b.c".parse::<Topic>().unwrap())
            .with_correlation(CorrelationId(NonZeroU64::MIN))
            .with_trace(TraceContext { trace_id: u128::MAX, parent_id: 2, sampled: true })
            .with_content_type(ContentType("text/plain".into()))
    }

    #[test]
    fn what_was_taken_away_again_leaves_nothing() {
        let plain = with_all().with_sender(None).with_topic(None).with_correlation(None).with_trace(None);
        assert_eq!(plain.size(), 11);
        assert_eq!(plain.with_content_type(None), MessageEnvelope::new("x"));
    }

    #[test]
    fn setting_something_leaves_clones_as_they_were() {
        let first = with_all();
        let second = first.clone().with_topic("d".parse::<Topic>().unwrap());
        assert_eq!((first.topic().unwrap().as_str(), second.topic().unwrap().as_str()), ("b.c", "d"));
        assert_eq!(first, with_all().with_sender(first.sender().cloned()));
    }

    #[test]
    fn serialised_it_has_all_but_deadline_and_target() {
        let message = with_all().with_deadline(Instant::now()).with_target(NonZeroU64::MIN);
        let text = serde_json::to_string(&message).unwrap();
        let back: MessageEnvelope = serde_json::from_str(&text).unwrap();
        assert_eq!(back, message.with_deadline(None).with_target(None));
        assert!(text.contains(r#""topic":"b.c""#), "{text}");
        let plain = serde_json::to_string(&MessageEnvelope::new("x")).unwrap();
        assert_eq!(serde_json::from_str::<MessageEnvelope>(&plain).unwrap(), MessageEnvelope::new("x"));
    }
}
