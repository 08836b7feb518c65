//! What comes to a host: packets, heartbeats, and word that nobody is there.

use std::{collections::HashMap, iter, sync::Arc, time::Duration};

use airssys_wasm_actor::{
    AskError, Bytes, CallError, FarCall,
    registry::{ComponentId, MessageEnvelope, Refusal},
};
use async_nats::{HeaderMap, Message, StatusCode, Subscriber, connection::State};
use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::time::Instant;

use super::{Host, peer};
use crate::{
    clock,
    config::HostName,
    frame::{self, How, Letter, LetterHead, SessionId},
    host::peer::Peer,
    lane::Ticket,
    slots::Holding,
};

/// What came of a letter that took its time. `None` if the lane was closed before the mailbox had room for it.
type Later = BoxFuture<'static, Option<(Arc<Peer>, Ticket, Said)>>;

/// What is replied to a letter.
enum Said {
    Accepted,
    Refused(Refusal),
    Answered(Result<Bytes, AskError>),
    Called(Result<Bytes, CallError>),
}

/// How often an actor that leaves the memory is brought back for one message.
const ATTEMPTS: usize = 16;

/// How often lanes and the connection are looked at.
const OFTEN: Duration = Duration::from_millis(250);

/// How many hosts may have a lane to this one.
const HOSTS: usize = 4_096;

/// Takes packets, has actors handle what is in them, and replies.
pub(super) async fn packets(host: Arc<Host>, mut packets: Subscriber) {
    let mut later = FuturesUnordered::<Later>::new();
    let subscribed = host.subjects.packets();
    loop {
        tokio::select! {
            packet = packets.next() => match packet {
                Some(packet) => host.packet(packet, &subscribed, &mut later).await,
                None => return,
            },
            Some(first) = later.next() => {
                // What is ready after others have run shares a packet.
                if !later.is_empty() {
                    tokio::task::yield_now().await;
                }
                let mut peers = Vec::new();
                let ready = iter::once(first).chain(iter::from_fn(|| later.next().now_or_never()?));
                for (peer, ticket, said) in ready.flatten() {
                    host.reply(&peer, ticket, said);
                    if !peers.iter().any(|other| Arc::ptr_eq(other, &peer)) {
                        peers.push(peer);
                    }
                }
                for peer in peers {
                    host.flush(&peer).await;
                }
            }
            () = host.left.cancelled() => return,
        }
    }
}

/// Takes word of the server that a host is not there.
pub(super) async fn nobody(host: Arc<Host>, mut nobody: Subscriber) {
    while let Some(message) = next(&host, &mut nobody).await {
        if message.status == Some(StatusCode::NO_RESPONDERS)
            && message.payload.is_empty()
            && message.headers.as_ref().is_none_or(is_of_nobody)
            && let Some(from) = last_token(&message.subject, &host.subjects.nobody())
            && let Some(peer) = host.peers.read().get(&from).cloned()
        {
            let events = peer.with_lane(|lane, mut tell| lane.nobody_there(clock::now(), &mut tell));
            host.settle(&peer, events);
        }
    }
}

/// Takes heartbeats.
pub(super) async fn heartbeats(host: Arc<Host>, mut heartbeats: Subscriber) {
    let subscribed = host.subjects.heartbeats();
    while let Some(message) = next(&host, &mut heartbeats).await {
        let Some(from) = origin(&message, &subscribed) else { continue };
        let mut payload = message.payload;
        let Ok(session) = frame::take::<SessionId>(&mut payload) else { continue };
        if !payload.is_empty() || !host.is_beside(session) {
            continue;
        }
        let peer = host.peers.read().get(&from).cloned();
        let is_outlived = peer.is_some_and(|peer| {
            let now = clock::now();
            let lane = &mut *peer.lane.lock();
            lane.heartbeat(session, now);
            lane.is_outlived_by(session, now)
        });
        // Who had the name before claimed a session that no record has. As long as the lane has that, nobody else is heard.
        if is_outlived && host.directory.host(&from).and_then(|info| info.session) == Some(session) {
            host.drop_peer(&from);
        }
    }
}

/// Looks at all lanes some times a second, and tells the other hosts that this one is there.
pub(super) async fn tick(host: Arc<Host>) {
    let often = (host.config.heartbeat / 4).min(OFTEN);
    let mut ticks = tokio::time::interval(often);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut told = None;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = host.left.cancelled() => return,
        }
        let now = clock::now();
        // Ticks may come a little closer to each other than they are meant to.
        if told.is_none_or(|told| now.saturating_sub(told) >= host.config.heartbeat * 9 / 10)
            && let Some(life) = host.life()
        {
            told = Some(now);
            let mut payload = Vec::new();
            frame::append(&life.session, &mut payload);
            host.while_online(host.client.publish(host.subjects.heartbeat(), payload.into())).await;
        }
        for peer in host.peers() {
            let events = peer.with_lane(|lane, mut tell| lane.tick(now, &mut tell));
            host.settle(&peer, events);
            host.flush(&peer).await;
        }
    }
}

/// Tells all lanes whether there is a server.
///
/// It sends nothing, which would wait where the client does not tell that there is none: that drops its events when many of them wait.
pub(super) async fn online(host: Arc<Host>) {
    let mut connected = host.connected.subscribe();
    let mut was = true;
    let mut looks = tokio::time::interval(OFTEN);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let is = *connected.borrow_and_update();
        if is != was {
            was = is;
            host.event(if is { crate::LatticeEvent::Online } else { crate::LatticeEvent::Offline });
            for peer in host.peers() {
                peer.lane.lock().online(is, clock::now());
                peer.wake.notify_one();
            }
        }
        tokio::select! {
            _ = connected.changed() => {}
            _ = looks.tick() => {
                let is = host.client.connection_state() == State::Connected;
                host.connected.send_if_modified(|connected| std::mem::replace(connected, is) != is);
            }
            () = host.left.cancelled() => return,
        }
    }
}

async fn next(host: &Host, messages: &mut Subscriber) -> Option<Message> {
    tokio::select! {
        message = messages.next() => message,
        () = host.left.cancelled() => None,
    }
}

/// Whether a server says by these headers that nobody is there. What it has stored comes with more of them.
fn is_of_nobody(headers: &HeaderMap) -> bool {
    headers.iter().all(|(name, _)| *name == async_nats::header::NATS_SUBJECT)
}

/// Whose message it is. None unless the host itself has published it: a server publishes for others what it has stored, with headers
/// or to another subject than it came by.
fn origin(message: &Message, subscribed: &str) -> Option<HostName> {
    last_token(&message.subject, subscribed).filter(|_| message.headers.is_none() && message.status.is_none())
}

/// The last token of a subject, where `*` is that of what was subscribed to.
fn last_token(subject: &str, subscribed: &str) -> Option<HostName> {
    HostName::new(subject.strip_prefix(subscribed.strip_suffix('*')?)?).ok()
}

impl Host {
    async fn packet(self: &Arc<Self>, message: Message, subscribed: &str, later: &mut FuturesUnordered<Later>) {
        let from = origin(&message, subscribed).filter(|from| *from != self.config.host);
        let Some(from) = from else { return };
        let packet = match frame::decode(message.payload, self.config.versions()) {
            Ok(packet) => packet,
            Err(error) => return self.malformed(&from, error),
        };
        let theirs = packet.head.from;
        let is_one_too_many = |peers: &HashMap<HostName, _>| peers.len() >= HOSTS && !peers.contains_key(&from);
        if is_one_too_many(&self.peers.read()) {
            metrics::counter!("lattice_refused_packets_total").increment(1);
            return;
        }
        if !self.is_beside(theirs) {
            return;
        }
        let Some(peer) = self.peer(&from, theirs, Some(packet.version)) else { return };
        let mut untaken = 0;
        let events = peer.with_lane(|lane, mut tell| untaken = lane.receive(packet, clock::now(), &mut tell));
        if untaken > 0 {
            metrics::counter!("lattice_untaken_letters_total").increment(untaken as u64);
        }
        for (ticket, letter) in self.settle(&peer, events) {
            match self.deliver(&peer.name, letter) {
                Delivered::Now(said) => self.reply(&peer, ticket, said),
                Delivered::Later { said, is_taken } => {
                    if is_taken {
                        peer.lane.lock().accept(ticket, true);
                    }
                    let peer = Arc::clone(&peer);
                    later.push(Box::pin(async move {
                        tokio::select! {
                            biased;
                            said = said => Some((Arc::clone(&peer), ticket, said)),
                            // Its sender, if it lives, is told that its fate is unknown.
                            () = peer.over.cancelled(), if !is_taken => {
                                metrics::counter!("lattice_dropped_total").increment(1);
                                None
                            }
                        }
                    }));
                }
            }
        }
        self.flush(&peer).await;
    }

    /// What came of another host cannot be read.
    pub(super) fn malformed(&self, from: &HostName, error: frame::Malformed) {
        metrics::counter!("lattice_malformed_packets_total").increment(1);
        tracing::debug!(%from, %error, "a packet was not read");
    }

    fn reply(&self, peer: &Peer, ticket: Ticket, said: Said) {
        let answered = match said {
            Said::Accepted => return peer.lane.lock().accept(ticket, false),
            Said::Refused(reason) => Err(reason),
            Said::Answered(answered) => peer::answer(answered, self.largest()),
            Said::Called(called) => peer::result(called, self.largest()),
        };
        let lane = &mut *peer.lane.lock();
        match answered {
            Ok(answer) => lane.answer(ticket, answer),
            Err(reason) => lane.refuse(ticket, reason),
        }
    }

    /// Whether this host has a session beside that of another. Over records made anew it has nothing to do with sessions of those before:
    /// which is the later cannot be told.
    fn is_beside(&self, theirs: SessionId) -> bool {
        self.life().is_some_and(|life| life.session.bucket == theirs.bucket)
    }

    /// Whether a name is this host's to answer for, as far as other hosts are concerned.
    fn may_deliver(&self, to: &ComponentId) -> Result<(), Refusal> {
        let Some(life) = self.life() else { return Err(Refusal::Moved) };
        match self.exports.read().get(to) {
            Some(export) if export.session == life.session => Ok(()),
            // Of the session before, and not claimed again yet.
            Some(_) => Err(Refusal::Moved),
            None if self.directory.named(to).is_some() => Err(Refusal::Moved),
            None => match self.kind_of(to).map(|kind| kind.holding(to)) {
                Some(Holding::Nothing) => Err(Refusal::Moved),
                Some(Holding::Draining | Holding::All) => Ok(()),
                None => Err(Refusal::Unknown),
            },
        }
    }

    /// Whether actors of other hosts may call an export of a name, or of a key of a kind.
    fn offers(&self, to: &ComponentId, export: &str) -> bool {
        let Some((interface, _)) = export.split_once('#') else { return false };
        let kind = to.as_str().split_once('/').filter(|_| !self.exports.read().contains_key(to)).map(|(kind, _)| kind);
        self.offers.has(kind.unwrap_or(to.as_str()), interface)
    }

    fn deliver(&self, from: &HostName, letter: Letter) -> Delivered {
        let (to, how) = (letter.head.to.clone(), letter.head.how.clone());
        let may_deliver = self.may_deliver(&to).and_then(|()| match &how {
            How::Call(callee) if !self.offers(&to, &callee.export) => Err(Refusal::NotOffered),
            _ => Ok(()),
        });
        if let Err(reason) = may_deliver {
            return Delivered::Now(Said::Refused(reason));
        }
        self.hand(&to, how, self.envelope(from, letter), ATTEMPTS)
    }

    /// The message in a letter of another host.
    pub(super) fn envelope(&self, from: &HostName, Letter { head, payload }: Letter) -> MessageEnvelope {
        let LetterHead { sender, left, correlation, trace, content_type, .. } = head;
        let sender = sender.and_then(|sender| {
            // A name is an actor's in the whole lattice only if it is exported.
            let id = if self.directory.has_exported(from, &sender.id) {
                sender.id
            } else {
                ComponentId::new(&format!("{}@{from}", sender.id)).ok()?
            };
            Some(self.address(from, &id, sender.number))
        });
        MessageEnvelope::new(payload)
            .with_sender(sender)
            .with_correlation(correlation)
            .with_trace(trace)
            .with_content_type(content_type)
            .with_deadline(left.and_then(|left| Instant::now().checked_add(Duration::from_millis(left))))
    }

    /// Gives a message to the actor of a name. One that leaves the memory meanwhile is brought back so often.
    fn hand(&self, to: &ComponentId, how: How, message: MessageEnvelope, attempts: usize) -> Delivered {
        let kind = self.kind_of(to);
        let actor = match self.here.actor(to, message.sender(), self.turn()) {
            Ok(actor) => actor,
            Err(Refusal::Stopped) if let Some(kind) = kind => {
                // A key that the kind has not, or one that is about to move.
                let is_none = kind.holding(to) == Holding::All;
                return Delivered::Now(Said::Refused(if is_none { Refusal::Unknown } else { Refusal::Moved }));
            }
            Err(reason) => return Delivered::Now(Said::Refused(reason)),
        };
        let message = message.with_target(actor.address().generation());
        let has_left = |reason: Refusal| reason == Refusal::Moved && kind.is_some() && attempts > 0;
        let may_wait = |reason: Refusal| matches!(reason, Refusal::Full | Refusal::Restarting);
        let later = |said, is_taken| Delivered::Later { said, is_taken };
        match how {
            How::Send | How::Tell => match actor.try_tell(message) {
                Ok(()) => Delivered::Now(Said::Accepted),
                Err(refused) if has_left(refused.reason) => self.hand(to, how, refused.message, attempts - 1),
                Err(refused) if how == How::Tell && may_wait(refused.reason) => {
                    let told = async move {
                        let told = actor.tell(refused.message).await;
                        told.map_or_else(|refused| Said::Refused(refused.reason), |()| Said::Accepted)
                    };
                    later(Box::pin(told), false)
                }
                Err(refused) => Delivered::Now(Said::Refused(refused.reason)),
            },
            How::Ask => match actor.begin_ask(message) {
                Ok(answer) => later(Box::pin(answer.map(Said::Answered)), true),
                Err(refused) if has_left(refused.reason) => self.hand(to, how, refused.message, attempts - 1),
                Err(refused) if may_wait(refused.reason) => {
                    later(Box::pin(async move { Said::Answered(actor.ask(refused.message).await) }), false)
                }
                Err(refused) => Delivered::Now(Said::Refused(refused.reason)),
            },
            How::Call(ref callee) => {
                let (export, ty) = (Arc::clone(&callee.export), Arc::clone(&callee.ty));
                let call = FarCall { export, ty, message };
                match self.here.call(&actor, call.clone()) {
                    Ok(result) => later(Box::pin(result.map(Said::Called)), true),
                    Err(reason) if has_left(reason) => self.hand(to, how, call.message, attempts - 1),
                    Err(reason) if may_wait(reason) => {
                        later(Box::pin(self.here.call_waiting(&actor, call).map(Said::Called)), false)
                    }
                    Err(reason) => Delivered::Now(Said::Refused(reason)),
                }
            }
        }
    }
}

/// What becomes of a letter that came.
enum Delivered {
    Now(Said),
    /// This will be said of it. If it is not taken, the mailbox has no room yet.
    Later {
        said: BoxFuture<'static, Said>,
        is_taken: bool,
    },
}
