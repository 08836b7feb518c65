//! Topics: who subscribed to what, and what happens when a subscriber is full.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use parking_lot::RwLock;
use tokio::{
    task::yield_now,
    time::{Instant, timeout},
};

use crate::{MessageEnvelope, Refusal, Sink, Topic, TopicPattern};

/// Delivers messages to the subscribers of their topic. Cheap to clone; all clones are one broker.
pub struct MessageBroker<S>(Arc<Inner<S>>);

struct Inner<S> {
    subscribers: RwLock<Node<S>>,
}

/// A tree of patterns, a level a token.
struct Node<S> {
    /// By the next token of a pattern, `*` among them.
    children: HashMap<Box<str>, Node<S>>,
    /// Those whose pattern ends here.
    here: Vec<Arc<Subscriber<S>>>,
    /// Those whose pattern ends here with `>`.
    rest: Vec<Arc<Subscriber<S>>>,
}

struct Subscriber<S> {
    pattern: TopicPattern,
    sink: Arc<S>,
    when_full: WhenFull,
    dropped: AtomicU64,
    /// Where it stands in its list, so that ending a subscription looks for nothing. Changed under the broker's lock only.
    at: AtomicUsize,
}

/// What happens to a message for a subscriber that has no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum WhenFull {
    /// The publisher waits for room, this long at the most.
    Wait(Duration),
    /// The subscriber does not get it, which is counted.
    DropNew,
    /// The publisher is told.
    Error,
}

/// What became of a published message.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[must_use = "a message that a subscriber refused is not delivered"]
pub struct PublishReport {
    /// Subscribers that took it.
    pub delivered: usize,
    /// Subscribers that were full and let it go.
    pub dropped: usize,
    /// Subscribers that refused it, with their patterns and reasons.
    pub refused: Vec<(TopicPattern, Refusal)>,
    /// Other hosts that it was queued for. What becomes of it there is not known here.
    pub hosts: usize,
    /// Whether its deadline was over: no subscriber was tried.
    pub late: bool,
}

/// A subscription, which ends when this is dropped.
pub struct Subscription<S> {
    broker: Weak<Inner<S>>,
    subscriber: Arc<Subscriber<S>>,
}

impl<S> Subscription<S> {
    /// What it is for.
    pub fn pattern(&self) -> &TopicPattern {
        &self.subscriber.pattern
    }

    /// Messages that it let go because it was full, [`WhenFull::DropNew`].
    pub fn dropped(&self) -> u64 {
        self.subscriber.dropped.load(Ordering::Relaxed)
    }
}

impl<S> fmt::Debug for Subscription<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription")
            .field("pattern", &self.subscriber.pattern)
            .field("dropped", &self.dropped())
            .finish_non_exhaustive()
    }
}

impl<S> Drop for Subscription<S> {
    fn drop(&mut self) {
        if let Some(broker) = self.broker.upgrade() {
            broker.subscribers.write().remove(&self.subscriber, &mut self.subscriber.pattern.tokens());
        }
    }
}

impl<S> Default for Node<S> {
    fn default() -> Self {
        Self { children: HashMap::new(), here: Vec::new(), rest: Vec::new() }
    }
}

impl<S> Node<S> {
    fn insert(&mut self, subscriber: Arc<Subscriber<S>>) {
        let pattern = subscriber.pattern.clone();
        let mut node = self;
        for token in pattern.tokens() {
            if token == ">" {
                return push(&mut node.rest, subscriber);
            }
            node = node.children.entry(token.into()).or_default();
        }
        push(&mut node.here, subscriber);
    }

    /// Removes a subscriber, and branches without subscribers.
    fn remove<'a>(&mut self, subscriber: &Arc<Subscriber<S>>, tokens: &mut impl Iterator<Item = &'a str>) {
        let list = match tokens.next() {
            None => &mut self.here,
            Some(">") => &mut self.rest,
            Some(token) => {
                if let Some(child) = self.children.get_mut(token) {
                    child.remove(subscriber, tokens);
                    if child.is_empty() {
                        self.children.remove(token);
                    }
                }
                return;
            }
        };
        let at = subscriber.at.load(Ordering::Relaxed);
        list.swap_remove(at);
        if let Some(moved) = list.get(at) {
            moved.at.store(at, Ordering::Relaxed);
        }
    }

    fn is_empty(&self) -> bool {
        self.children.is_empty() && self.here.is_empty() && self.rest.is_empty()
    }

    /// Those whose patterns match the remaining tokens.
    fn find<'a>(&self, mut tokens: impl Iterator<Item = &'a str> + Clone, found: &mut Vec<Arc<Subscriber<S>>>) {
        let Some(token) = tokens.next() else {
            found.extend_from_slice(&self.here);
            return;
        };
        found.extend_from_slice(&self.rest);
        if let Some(child) = self.children.get(token) {
            child.find(tokens.clone(), found);
        }
        if let Some(any) = self.children.get("*") {
            any.find(tokens, found);
        }
    }
}

fn push<S>(list: &mut Vec<Arc<Subscriber<S>>>, subscriber: Arc<Subscriber<S>>) {
    subscriber.at.store(list.len(), Ordering::Relaxed);
    list.push(subscriber);
}

/// Subscribers that are served at a stretch, before others on the worker have their turn.
const STRETCH: usize = 256;

impl<S> Clone for MessageBroker<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S> Default for MessageBroker<S> {
    fn default() -> Self {
        Self::new()
    }
}

impl<S> fmt::Debug for MessageBroker<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MessageBroker").finish_non_exhaustive()
    }
}

impl<S> MessageBroker<S> {
    /// A broker without subscribers.
    pub fn new() -> Self {
        Self(Arc::new(Inner { subscribers: RwLock::default() }))
    }

    /// Subscribes a sink to all topics that match. A sink that subscribes twice gets a message twice.
    #[must_use = "the subscription ends when it is dropped"]
    pub fn subscribe(&self, pattern: &TopicPattern, sink: Arc<S>, when_full: WhenFull) -> Subscription<S> {
        let subscriber = Arc::new(Subscriber {
            pattern: pattern.clone(),
            sink,
            when_full,
            dropped: AtomicU64::new(0),
            at: AtomicUsize::new(0),
        });
        self.0.subscribers.write().insert(Arc::clone(&subscriber));
        Subscription { broker: Arc::downgrade(&self.0), subscriber }
    }

    /// The sinks of all who subscribed to a topic, in no order.
    pub fn sinks(&self, topic: &Topic) -> Vec<Arc<S>> {
        self.matching(topic).iter().map(|subscriber| Arc::clone(&subscriber.sink)).collect()
    }

    /// How many subscribers a topic has.
    pub fn subscribers(&self, topic: &Topic) -> usize {
        self.matching(topic).len()
    }

    fn matching(&self, topic: &Topic) -> Vec<Arc<Subscriber<S>>> {
        let mut found = Vec::new();
        self.0.subscribers.read().find(topic.tokens(), &mut found);
        found
    }
}

impl<S: Sink> MessageBroker<S> {
    /// Delivers a message to all who subscribed to its topic, in no order among them. The payload is shared.
    ///
    /// Subscribers that are full and want the publisher to wait are waited for after all others have been served, all at
    /// once, each no longer than it asked for, nor than until the message's deadline.
    pub async fn publish(&self, topic: &Topic, message: MessageEnvelope) -> PublishReport {
        let mut report = PublishReport { late: message.is_late(), ..PublishReport::default() };
        if report.late {
            return report;
        }
        let message = message.with_topic(topic.clone());
        let mut full = Vec::new();
        for (at, subscriber) in self.matching(topic).into_iter().enumerate() {
            if at > 0 && at % STRETCH == 0 {
                yield_now().await;
            }
            match (subscriber.sink.try_deliver(message.clone()), subscriber.when_full) {
                (Ok(()), _) => report.delivered += 1,
                (Err(refused), WhenFull::Wait(longest)) if refused.reason != Refusal::Stopped => {
                    full.push((subscriber, longest));
                }
                (Err(refused), WhenFull::DropNew) if refused.reason == Refusal::Full => {
                    subscriber.dropped.fetch_add(1, Ordering::Relaxed);
                    report.dropped += 1;
                }
                (Err(refused), _) => report.refused.push((subscriber.pattern.clone(), refused.reason)),
            }
        }
        let waits = full.into_iter().map(|(subscriber, longest)| {
            let message = message.clone();
            async move {
                let left = message.deadline().map(|deadline| deadline.saturating_duration_since(Instant::now()));
                let longest = left.map_or(longest, |left| left.min(longest));
                match timeout(longest, subscriber.sink.deliver(message)).await {
                    Ok(Ok(())) => Ok(()),
                    Ok(Err(refused)) => Err((subscriber.pattern.clone(), refused.reason)),
                    Err(_) => Err((subscriber.pattern.clone(), Refusal::Full)),
                }
            }
        });
        for waited in join_all(waits).await {
            match waited {
                Ok(()) => report.delivered += 1,
                Err(refused) => report.refused.push(refused),
            }
        }
        report
    }
}
