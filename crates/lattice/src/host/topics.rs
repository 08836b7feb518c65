//! Publications that go to other hosts, and come from them.

use std::sync::Arc;

use airssys_wasm_actor::registry::{ComponentId, MessageEnvelope, Topic, TopicPattern};
use async_nats::{Message, Subscriber};
use futures_util::{StreamExt, future};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::{Host, letter};
use crate::{
    config::HostName,
    error::ExportError,
    events::LatticeEvent,
    frame::{self, How},
    lane::Party,
};

/// Publications that wait to be sent to other hosts. One sender has a quarter of them, and of the bytes of a lane, at the most.
pub(super) const PUBLICATIONS: usize = 4_096;
/// How many of them are sent in one go.
const BATCH: usize = 64;

fn sender(message: &MessageEnvelope) -> impl Iterator<Item = Party> {
    message.sender().map(|sender| Party::Sender(sender.generation().get())).into_iter()
}

impl Host {
    /// Queues what was published here for the hosts that take it. Gives their number.
    pub(crate) fn publish(&self, topic: &Topic, message: &MessageEnvelope) -> usize {
        let (takers, version) = self.directory.takers(topic, &self.config.host);
        if takers == 0 || !self.is_joined() || !*self.connected.borrow() {
            return 0;
        }
        if !self.queue(topic, message, version) {
            metrics::counter!("lattice_unpublished_total").increment(1);
            return 0;
        }
        takers
    }

    /// Whether there was room for a publication.
    fn queue(&self, topic: &Topic, message: &MessageEnvelope, version: u8) -> bool {
        let size = message.size();
        let mut room = self.publishing.lock();
        let has_room = size <= self.largest()
            && room.has(size, sender(message), (PUBLICATIONS, self.config.window_bytes))
            && self.publications.try_send((topic.clone(), message.clone(), version)).is_ok();
        if has_room {
            room.take(size, sender(message));
        }
        has_room
    }

    /// Takes publications of other hosts to topics of a pattern, for this host's subscribers.
    pub(crate) async fn take(self: &Arc<Self>, pattern: &TopicPattern) -> Result<(), ExportError> {
        if self.topics.lock().contains(pattern) {
            return Ok(());
        }
        let subject = self.subjects.publications(pattern.as_str());
        let subscribed = self.client.subscribe(subject).await;
        let subscribed = subscribed.map_err(|error| ExportError::Records { source: error.into() })?;
        // From here on it is not given up. Another may have taken the pattern meanwhile.
        {
            let mut topics = self.topics.lock();
            if topics.contains(pattern) {
                return Ok(());
            }
            topics.push(pattern.clone());
        }
        // Others learn by the record that there is somebody to publish to.
        self.renew.notify_one();
        tokio::spawn(taken(Arc::clone(self), pattern.clone(), subscribed));
        Ok(())
    }

    /// Reads a publication that came to a pattern. `None` if it is not for this host's subscribers, or not by that pattern.
    fn read(&self, pattern: &TopicPattern, publication: Message) -> Option<(Topic, MessageEnvelope)> {
        // Neither what a server publishes for others nor what it has stored: see `receive::origin`.
        let published = publication.subject.strip_prefix(self.subjects.publications("").trim_end_matches("*."))?;
        let (from, topic) = published.split_once('.')?;
        let (from, topic) = (HostName::new(from).ok()?, Topic::new(topic).ok()?);
        if publication.headers.is_some() || from == self.config.host {
            return None;
        }
        // Several patterns may match one topic: it is published once, for the one that was taken first.
        if self.topics.lock().iter().find(|pattern| pattern.matches(&topic)) != Some(pattern) {
            return None;
        }
        match frame::decode_letter(publication.payload, self.config.versions()) {
            Ok(letter) => Some((topic, self.envelope(&from, letter))),
            Err(error) => {
                self.malformed(&from, error);
                None
            }
        }
    }
}

/// Something that other hosts had sent was dropped.
fn count_dropped() {
    metrics::counter!("lattice_dropped_total").increment(1);
}

/// What a publication takes up that waits for a subscriber.
fn weight(message: &MessageEnvelope) -> usize {
    size_of::<(Topic, MessageEnvelope)>() + message.size()
}

/// Takes what comes to a pattern, and delivers one after the other. A subscriber may make it wait: what has come meanwhile has as many
/// bytes as a lane at the most.
async fn taken(host: Arc<Host>, pattern: TopicPattern, mut publications: Subscriber) {
    let bytes = u32::try_from(host.config.window_bytes.min(Semaphore::MAX_PERMITS)).unwrap_or(u32::MAX);
    let room = Arc::new(Semaphore::new(bytes as usize));
    let (queue, mut waiting) = mpsc::unbounded_channel::<(Topic, MessageEnvelope, OwnedSemaphorePermit)>();
    let delivers = async {
        while let Some((topic, message, _room)) = waiting.recv().await {
            host.here.publish(&topic, message).await;
        }
    };
    let takes = async {
        let queue = queue;
        let mut drops = false;
        while let Some(publication) = publications.next().await {
            let Some((topic, message)) = host.read(&pattern, publication) else { continue };
            // A large one goes if it is the only one.
            let size = u32::try_from(weight(&message)).unwrap_or(u32::MAX).min(bytes);
            match Arc::clone(&room).try_acquire_many_owned(size) {
                Ok(room) => {
                    drops = false;
                    // Fails never: both ends are here.
                    _ = queue.send((topic, message, room));
                }
                Err(_) => {
                    count_dropped();
                    // Who publishes without end does not push other events out.
                    if !std::mem::replace(&mut drops, true) {
                        host.event(LatticeEvent::PublicationsDropped);
                    }
                }
            }
        }
    };
    tokio::select! {
        // Deliveries first: both have one budget, and in a flood who takes would use it up.
        _ = future::join(delivers, takes) => {}
        () = host.left.cancelled() => {}
    }
}

/// Publishes what was queued.
pub(super) async fn published(host: Arc<Host>, mut publications: mpsc::Receiver<(Topic, MessageEnvelope, u8)>) {
    // Who reads the head does not look at the name.
    let nobody = ComponentId::new("-").expect("it is a name");
    let mut batch = Vec::new();
    loop {
        let publishing = async {
            publications.recv_many(&mut batch, BATCH).await;
            for (topic, message, version) in &batch {
                let bytes = frame::encode_letter(*version, &letter(&nobody, message, How::Send));
                _ = host.client.publish(host.subjects.publication(topic.as_str()), bytes).await;
            }
            // What the client has and could not send has its room still.
            _ = host.client.flush().await;
        };
        tokio::select! {
            () = publishing => {}
            () = host.left.cancelled() => return,
        }
        if batch.is_empty() {
            return;
        }
        let mut room = host.publishing.lock();
        for (_, message, _) in batch.drain(..) {
            room.give_back(message.size(), sender(&message));
        }
    }
}

/// Tells of subscriptions that were too slow. What was dropped of packets is found by the lanes.
pub(super) async fn slow(host: Arc<Host>, mut slow: mpsc::UnboundedReceiver<u64>) {
    loop {
        tokio::select! {
            dropped = slow.recv() => match dropped {
                Some(_) => {
                    count_dropped();
                    host.event(LatticeEvent::PublicationsDropped);
                }
                None => return,
            },
            () = host.left.cancelled() => return,
        }
    }
}
