//! A host in a lattice: what it sends, what comes to it, its session, and what it exports.

mod kinds;
mod peer;
mod receive;
mod session;
#[cfg(test)]
pub(crate) mod tests;
mod topics;

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use airssys_wasm_actor::{
    ActorRef, AskError, Bytes, CallError, DeadReason, FarCall, Lifecycle,
    limits::CancellationToken,
    registry::{ActorAddress, ComponentId, MessageEnvelope, Refusal, Topic, TopicPattern, Undelivered},
};
use async_nats::Client;
use futures_util::{
    FutureExt,
    future::{BoxFuture, select_all},
};
use parking_lot::{Mutex, RwLock};
use tokio::{
    runtime::Handle,
    sync::{broadcast, futures::OwnedNotified, mpsc, oneshot},
    time::{Instant, timeout_at},
};

use self::peer::{Came, Peer, Tag, Waiter};
use crate::{
    clock,
    config::{HostName, LatticeConfig},
    connection::{Records, Subjects},
    directory::{Directory, Place},
    error::TellError,
    events::LatticeEvent,
    frame::{Callee, How, Letter, LetterHead, OVERHEAD, Sender, SessionId},
    lane::{Event, Lane, LaneLimits, Outcome, Room},
    lease::{self, Token},
    offer::Offers,
    slots::Holding,
    stood_by::StoodBy,
};

pub(crate) use self::{
    kinds::SharedKind,
    session::{Written, join},
};

/// How long a sender whose receiver has moved waits until it is known where to.
const MOVED: Duration = Duration::from_secs(1);
/// How often in that time a message to a key of a kind is sent again.
const KEY_MOVED: u32 = 10;
/// How often a host that leaves looks whether all is settled.
const LOOK: Duration = Duration::from_millis(10);

/// The system of this host.
pub(crate) trait Here: Send + Sync + 'static {
    /// The actor of a name, or the member of a group whose turn it is, brought into memory if it is asleep.
    fn actor(&self, name: &ComponentId, by: Option<&ActorAddress>, turn: usize) -> Result<ActorRef, Refusal>;
    /// Calls an export of an actor, if there is room in its mailbox.
    fn call(&self, actor: &ActorRef, call: FarCall) -> Result<BoxFuture<'static, Result<Bytes, CallError>>, Refusal>;
    /// Calls an export of an actor as soon as there is room.
    fn call_waiting(&self, actor: &ActorRef, call: FarCall) -> BoxFuture<'static, Result<Bytes, CallError>>;
    fn publish<'a>(&'a self, topic: &'a Topic, message: MessageEnvelope) -> BoxFuture<'a, ()>;
    fn dead_letter(&self, to: ActorAddress, message: MessageEnvelope, reason: DeadReason);
}

pub(crate) struct Host {
    pub(crate) config: LatticeConfig,
    subjects: Subjects,
    client: Client,
    records: Records,
    here: Box<dyn Here>,
    pub(crate) directory: Directory,
    life: RwLock<Option<Life>>,
    peers: RwLock<HashMap<HostName, Arc<Peer>>>,
    /// What this host has exported: names and groups.
    exports: RwLock<HashMap<ComponentId, Export>>,
    /// What actors of other hosts may call: of names, groups and kinds.
    offers: Offers,
    /// The names that it stands by for.
    pub(crate) stood_by: StoodBy,
    /// The kinds that it has with others.
    kinds: RwLock<HashMap<Box<str>, Arc<SharedKind>>>,
    /// How many more components may be placed here, if any may.
    room: Mutex<Option<usize>>,
    /// Patterns of topics whose publications are taken, in the order in which they were.
    topics: Mutex<Vec<TopicPattern>>,
    publications: mpsc::Sender<(Topic, MessageEnvelope, u8)>,
    /// What those that wait to be sent have of what they may have.
    publishing: Mutex<Room>,
    turn: AtomicUsize,
    /// For tasks that are begun from any thread.
    pub(crate) runtime: Handle,
    /// Whether there is a server.
    connected: tokio::sync::watch::Sender<bool>,
    /// Told when the session's record is to be written before its time.
    renew: tokio::sync::Notify,
    /// Whether the servers have lost records that they had acknowledged. The next renewal makes all anew.
    is_set_back: AtomicBool,
    /// Told when the records are to be watched from the beginning.
    rewatch: tokio::sync::Notify,
    events: broadcast::Sender<LatticeEvent>,
    pub(crate) left: CancellationToken,
    /// Cancelled before: slots, and names that this host stands by for, go to other hosts.
    pub(crate) leaving: CancellationToken,
    /// Cancelled when the session is ended after that.
    ended: CancellationToken,
}

/// The session that this host has now.
#[derive(Debug, Clone)]
pub(crate) struct Life {
    pub(crate) session: SessionId,
    pub(crate) token: Token,
    pub(crate) fence: lease::Fence,
}

/// Something that this host has exported.
#[derive(Debug, Clone)]
pub(crate) struct Export {
    /// The revision of its record, under the session that wrote it.
    pub(crate) revision: u64,
    pub(crate) session: SessionId,
    /// Whether it is a group, whose members the host has.
    pub(crate) is_group: bool,
    /// Whether another host may take it when this one's session is over.
    pub(crate) leased: bool,
    /// The actor of the name, if it is exported for as long as that lives.
    pub(crate) actor: Option<ActorRef>,
}

impl Export {
    fn is_of(&self, actor: &ActorAddress) -> bool {
        self.actor.as_ref().is_some_and(|its| its.address() == actor)
    }

    /// Becomes another of the same name, unless that was written before this one.
    fn follow(&mut self, other: &Self) {
        // Revisions of two buckets have no order.
        if self.session.bucket != other.session.bucket || self.revision < other.revision {
            self.clone_from(other);
        }
    }
}

/// A message that no lane took.
struct Back {
    undelivered: Undelivered,
    waiter: Option<Waiter>,
    /// The host whose lane is full.
    full: Option<Arc<Peer>>,
}

impl Host {
    pub(crate) fn life(&self) -> Option<Life> {
        self.life.read().clone().filter(|life| !life.fence.is_up(clock::now()))
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// Lets components be placed here from now on. `false` if they are already.
    pub(crate) fn begin_placement(&self) -> bool {
        self.room.lock().replace(0).is_none()
    }

    /// Tells the other hosts how many more components may be placed here: `None` if none may any more.
    pub(crate) fn set_room(&self, room: Option<usize>) {
        let before = std::mem::replace(&mut *self.room.lock(), room);
        if before.unwrap_or(0) != room.unwrap_or(0) {
            self.renew.notify_one();
        }
    }

    /// How many more components may be placed here.
    fn room(&self) -> usize {
        if self.is_leaving() { 0 } else { self.room.lock().unwrap_or(0) }
    }

    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving.is_cancelled()
    }

    /// Lets actors of other hosts call these interfaces of a name, and no others, until its export ends.
    pub(crate) fn offer(&self, name: &ComponentId, interfaces: Vec<String>) {
        let exports = self.exports.read();
        let actor = exports.get(name).and_then(|export| export.actor.as_ref());
        // One that has ended may be exported still.
        let lives = actor.filter(|actor| actor.state() != Lifecycle::Stopped);
        self.offers.set(name, interfaces, lives.map(|actor| actor.address().clone()));
    }

    /// Lets them call nothing any more.
    pub(crate) fn end_offer(&self, name: &ComponentId) {
        self.offers.end(name);
    }

    /// Whether there is a session.
    fn is_joined(&self) -> bool {
        self.life.read().as_ref().is_some_and(|life| !life.fence.is_up(clock::now()))
    }

    pub(crate) fn event(&self, event: LatticeEvent) {
        // Fails if nobody listens.
        _ = self.events.send(event);
    }

    pub(crate) fn events(&self) -> broadcast::Receiver<LatticeEvent> {
        self.events.subscribe()
    }

    fn limits(&self) -> LaneLimits {
        LaneLimits {
            letters: self.config.window,
            bytes: self.config.window_bytes,
            heartbeat: self.config.heartbeat,
            grace: self.config.grace,
        }
    }

    /// The lane to a host, of which a packet of some version may have come before its record.
    fn peer(self: &Arc<Self>, name: &HostName, theirs: SessionId, version: Option<u8>) -> Option<Arc<Peer>> {
        if let Some(peer) = self.peers.read().get(name) {
            return Some(Arc::clone(peer));
        }
        let mut peers = self.peers.write();
        // Looked at under the lock: who ends a session drops its lanes afterwards, and who sees that one of another has ended.
        let ours = self.life.read().as_ref()?.session;
        if self.directory.has_ended(name, theirs) {
            return None;
        }
        let version = self.directory.version(name, theirs).or(version)?;
        let peer = peers.entry(name.clone()).or_insert_with(|| {
            let mut lane = Lane::new(self.limits(), ours, (theirs, version), clock::now());
            lane.online(*self.connected.borrow(), clock::now());
            let (to, nobody) = (self.subjects.packets_to(name), self.subjects.nobody_at(name));
            let peer = Arc::new(Peer::new(name.clone(), lane, to, nobody));
            self.runtime.spawn(carry(Arc::clone(self), Arc::clone(&peer)));
            peer
        });
        Some(Arc::clone(peer))
    }

    fn peers(&self) -> Vec<Arc<Peer>> {
        self.peers.read().values().cloned().collect()
    }

    /// Whether a name that is not to be had here leads to another host, or is a key that will be to be had here or there.
    pub(crate) fn is_elsewhere(&self, to: &ComponentId) -> bool {
        match self.directory.find(to, 0) {
            Some(Place::Host(host, _) | Place::Away(host)) => host != self.config.host || self.kind_of(to).is_some(),
            Some(Place::Nobody) => true,
            None => false,
        }
    }

    /// Puts a message into the lane to its receiver's host, of several to that whose turn it is.
    fn push(
        self: &Arc<Self>,
        to: &ComponentId,
        message: MessageEnvelope,
        how: &How,
        waiter: Option<Waiter>,
        turn: usize,
    ) -> Result<Arc<Peer>, Box<Back>> {
        let refused = |reason, message, waiter, full| {
            Err(Box::new(Back { undelivered: Undelivered::new(reason, message), waiter, full }))
        };
        // One that is fenced sends nothing.
        if !self.is_joined() {
            return refused(Refusal::Unreachable, message, waiter, None);
        }
        let (host, session) = match self.directory.find_for(to, turn, how.since()) {
            Some(Place::Host(host, session)) if host != self.config.host => (host, session),
            Some(Place::Away(host)) if host != self.config.host => {
                return refused(Refusal::Unreachable, message, waiter, None);
            }
            Some(Place::Nobody) => return refused(Refusal::Unreachable, message, waiter, None),
            // A key that is about to move from this host, or to it.
            Some(_) if self.kind_of(to).is_some() => return refused(Refusal::Moved, message, waiter, None),
            _ => return refused(Refusal::Unknown, message, waiter, None),
        };
        let allowed = self.largest();
        let size = message.size() + how.size();
        if size > allowed {
            let reason = Refusal::TooLarge { size: size as u64, allowed: allowed as u64 };
            return refused(reason, message, waiter, None);
        }
        let Some(peer) = self.peer(&host, session, None) else {
            return refused(Refusal::Unreachable, message, waiter, None);
        };
        let letter = letter(to, &message, how.clone());
        let pushed = peer.lane.lock().push(letter, Tag { to: to.clone(), message, waiter }, clock::now());
        match pushed {
            Ok(()) => Ok(peer),
            Err((reason, _, Tag { message, waiter, .. })) => {
                refused(reason, message, waiter, (reason == Refusal::Full).then_some(peer))
            }
        }
    }

    /// Bytes that a message may have on its way.
    pub(crate) fn largest(&self) -> usize {
        self.client.max_payload().saturating_sub(OVERHEAD)
    }

    pub(crate) fn turn(&self) -> usize {
        self.turn.fetch_add(1, Ordering::Relaxed)
    }

    /// Sends a message that nobody waits for.
    ///
    /// # Errors
    ///
    /// It comes back.
    pub(crate) fn send(self: &Arc<Self>, to: &ComponentId, message: MessageEnvelope) -> Result<(), Undelivered> {
        let peer = self.push(to, message, &How::Send, None, self.turn()).map_err(|back| back.undelivered)?;
        peer.wake.notify_one();
        Ok(())
    }

    /// Sends a message as soon as there is room, and waits until its receiver's mailbox has it.
    ///
    /// # Errors
    ///
    /// [`TellError`].
    pub(crate) async fn tell(self: &Arc<Self>, to: &ComponentId, message: MessageEnvelope) -> Result<(), TellError> {
        match self.exchange(to, message, How::Tell).await {
            Ok(Came::Accepted | Came::Answered(_)) => Ok(()),
            Ok(Came::NotSent(undelivered)) => Err(undelivered.into()),
            Ok(Came::Lost { message, .. }) => Err(TellError::Lost { message }),
            Err((actor, message)) => actor.tell(message).await.map_err(TellError::NotSent),
        }
    }

    /// Asks an actor of another host, until the message's deadline.
    ///
    /// # Errors
    ///
    /// [`AskError`].
    pub(crate) async fn ask(self: &Arc<Self>, to: &ComponentId, message: MessageEnvelope) -> Result<Bytes, AskError> {
        let deadline = message.deadline();
        let asking = async {
            match self.exchange(to, message, How::Ask).await {
                Ok(came) => peer::asked(came),
                Err((actor, message)) => actor.ask(message).await,
            }
        };
        by(deadline, asking).await.unwrap_or(Err(AskError::Deadline))
    }

    /// Calls an export of an actor of another host, until the message's deadline.
    ///
    /// # Errors
    ///
    /// [`CallError`].
    pub(crate) async fn call(self: &Arc<Self>, to: &ComponentId, call: FarCall) -> Result<Bytes, CallError> {
        let deadline = call.message.deadline();
        let calling = async {
            let callee = Callee { export: Arc::clone(&call.export), ty: Arc::clone(&call.ty) };
            match self.exchange(to, call.message.clone(), How::Call(callee.into())).await {
                Ok(came) => peer::called(came, &call),
                Err((actor, _)) => self.here.call_waiting(&actor, call.clone()).await,
            }
        };
        by(deadline, calling).await.unwrap_or(Err(CallError::Deadline))
    }

    /// Sends a message as soon as there is room, again where its receiver has moved, and gives what came of it. `Err` gives it back
    /// with its receiver, if that has moved to this host.
    async fn exchange(
        self: &Arc<Self>,
        to: &ComponentId,
        message: MessageEnvelope,
        how: How,
    ) -> Result<Came, (ActorRef, MessageEnvelope)> {
        let mut message = message;
        let mut sent_again = 0;
        loop {
            let before = self.directory.revision(to);
            let (told, came) = oneshot::channel();
            let back = match self.push_waiting(to, message, &how, told).await {
                Ok(()) => match came.await {
                    Ok(Came::NotSent(back)) => back,
                    Ok(came) => return Ok(came),
                    // Who was to tell is gone, with the lattice.
                    Err(_) => {
                        let message = MessageEnvelope::new(Bytes::new());
                        return Ok(Came::Lost { accepted: false, message });
                    }
                },
                Err(back) => back,
            };
            if back.reason != Refusal::Moved || !self.moved(to, before, &mut sent_again).await {
                return Ok(Came::NotSent(back));
            }
            message = back.message;
            if let Some(actor) = self.moved_here(to, &message) {
                return Err((actor, message));
            }
        }
    }

    /// Puts a message into a lane as soon as there is room, and sends it. Gives up at its deadline.
    async fn push_waiting(
        self: &Arc<Self>,
        to: &ComponentId,
        message: MessageEnvelope,
        how: &How,
        waiter: Waiter,
    ) -> Result<(), Undelivered> {
        let (mut message, mut waiter, mut turn) = (message, Some(waiter), self.turn());
        // Hosts whose lanes were full, and how often one was full again since the last of them was added.
        let mut full = Vec::<(Arc<Peer>, Pin<Box<OwnedNotified>>)>::new();
        let mut again = 0;
        loop {
            let back = match self.push(to, message, how, waiter, turn) {
                Ok(peer) => {
                    let is_single = peer.lane.lock().has_one();
                    if !(is_single && self.flush_now(&peer)) {
                        peer.wake.notify_one();
                    }
                    return Ok(());
                }
                Err(back) => *back,
            };
            let Some(peer) = back.full else { return Err(back.undelivered) };
            if full.iter().any(|(other, _)| Arc::ptr_eq(other, &peer)) {
                again += 1;
            } else {
                let mut room = Box::pin(Arc::clone(&peer.room).notified_owned());
                // What is given back from here on is told to it.
                room.as_mut().enable();
                full.push((peer, room));
                again = 0;
            }
            // Each of them was tried again since.
            if again == full.len() {
                let room = select_all(full.drain(..).map(|(_, room)| room));
                match back.undelivered.message.deadline() {
                    None => _ = room.await,
                    Some(deadline) => {
                        if timeout_at(deadline, room).await.is_err() {
                            return Err(back.undelivered);
                        }
                    }
                }
                again = 0;
            }
            (message, waiter, turn) = (back.undelivered.message, back.waiter, turn.wrapping_add(1));
        }
    }

    /// Waits until it is known where a name has moved to, for a while. Before, its record had this revision. `false` if a message
    /// to it was sent again often enough.
    async fn moved(&self, name: &ComponentId, before: Option<u64>, sent_again: &mut u32) -> bool {
        // Who has got a key may know it a little later than who sends to it.
        let times = if self.directory.is_key(name) { KEY_MOVED } else { 1 };
        if *sent_again >= times {
            return false;
        }
        *sent_again += 1;
        let mut changes = self.directory.changes();
        let changed = async {
            while self.directory.revision(name) == before && !self.may_activate(name) {
                if changes.changed().await.is_err() {
                    return;
                }
            }
        };
        _ = tokio::time::timeout(MOVED / times, changed).await;
        true
    }

    fn may_activate(&self, key: &ComponentId) -> bool {
        self.kind_of(key).is_some_and(|kind| kind.holding(key) == Holding::All)
    }

    /// The actor of a key that has become this host's.
    fn moved_here(&self, key: &ComponentId, message: &MessageEnvelope) -> Option<ActorRef> {
        if self.may_activate(key) { self.here.actor(key, message.sender(), 0).ok() } else { None }
    }

    /// Tells those who wait what became of their letters, and gives back the letters that came.
    fn settle(&self, peer: &Peer, events: Vec<Event<Tag>>) -> Vec<(crate::lane::Ticket, Letter)> {
        let mut letters = Vec::new();
        let mut has_room = false;
        for event in events {
            match event {
                Event::Letter(ticket, letter) => letters.push((ticket, letter)),
                Event::Settled(tag, outcome) => {
                    has_room = true;
                    self.settled(peer, tag, outcome);
                }
            }
        }
        if has_room {
            peer.room.notify_waiters();
        }
        letters
    }

    fn settled(&self, peer: &Peer, Tag { to, message, waiter }: Tag, outcome: Outcome) {
        let came = Came::of(outcome, message);
        if let Some(told) = waiter {
            // Who does not wait any more has dropped the other end.
            _ = told.send(came);
            return;
        }
        let (message, reason) = match came {
            Came::NotSent(back) => (back.message, DeadReason::Undeliverable { because: back.reason }),
            Came::Lost { message, .. } => (message, DeadReason::Lost),
            Came::Accepted | Came::Answered(_) => return,
        };
        self.here.dead_letter(self.address(&peer.name, &to, 0), message, reason);
    }

    /// The address of somebody on another host.
    fn address(&self, host: &HostName, id: &ComponentId, number: u64) -> ActorAddress {
        let mut hasher = blake3::Hasher::new();
        hasher
            .update(host.as_str().as_bytes())
            .update(&[0])
            .update(id.as_str().as_bytes())
            .update(&number.to_le_bytes());
        let mut bytes = [0; 8];
        hasher.finalize_xof().fill(&mut bytes);
        ActorAddress::elsewhere(id, u64::from_le_bytes(bytes))
    }

    /// Ready when nothing is on its way to other hosts, nor from them.
    pub(crate) async fn settled_all(&self) {
        while self.peers().iter().any(|peer| !peer.lane.lock().is_quiet()) {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Ready when the session is ended, after this host has left.
    pub(crate) async fn ended(&self) {
        self.ended.cancelled().await;
    }

    /// Sends what there is to be sent to a host if that needs no waiting. `false` if it was left to another.
    ///
    /// For a future that may never be polled again, which must not hold up others.
    fn flush_now(&self, peer: &Peer) -> bool {
        *self.connected.borrow() && peer.flush(&self.client).now_or_never().is_some()
    }

    /// Sends what there is to be sent to a host, while there is a server.
    async fn flush(&self, peer: &Peer) {
        self.while_online(peer.flush(&self.client)).await;
    }

    /// Does something until it is done or the server is lost: the client takes so much without one, and then waits.
    async fn while_online(&self, act: impl Future) {
        let mut connected = self.connected.subscribe();
        if *connected.borrow_and_update() {
            tokio::select! {
                biased;
                _ = act => {}
                _ = connected.wait_for(|connected| !connected) => {}
            }
        }
    }

    /// All lanes are over, and what is on its way in them is lost.
    fn drop_peers(&self) {
        let peers = std::mem::take(&mut *self.peers.write());
        peers.into_values().for_each(|peer| self.close(&peer));
    }

    /// The session of a host has ended, and the lane to it. One to a later session stays, whose packet came before its record: the other side
    /// goes on numbering its frames.
    fn drop_peer_before(&self, name: &HostName, ended: Option<SessionId>) {
        let peer = self.peers.read().get(name).cloned();
        if peer.is_some_and(|peer| ended.is_none_or(|ended| !peer.lane.lock().is_after(ended))) {
            self.drop_peer(name);
        }
    }

    /// The lane to a host is over. With the next session of either side, frames are numbered anew.
    fn drop_peer(&self, name: &HostName) {
        let peer = self.peers.write().remove(name);
        if let Some(peer) = peer {
            self.close(&peer);
        }
    }

    fn close(&self, peer: &Peer) {
        let events = peer.with_lane(|lane, mut tell| lane.close(&mut tell));
        self.settle(peer, events);
        peer.over.cancel();
        peer.wake.notify_one();
    }
}

/// Sends what nobody sends by itself, until the lane is dropped. First it lets others run, so that what they send is in the same
/// packet.
async fn carry(host: Arc<Host>, peer: Arc<Peer>) {
    loop {
        tokio::select! {
            () = peer.wake.notified() => {}
            () = host.left.cancelled() => return,
        }
        // Two are this task's and the caller's: nobody else has it once it is dropped by the host.
        if !host.peers.read().get(&peer.name).is_some_and(|now| Arc::ptr_eq(now, &peer)) {
            return;
        }
        tokio::task::yield_now().await;
        host.flush(&peer).await;
    }
}

/// What comes before a deadline, if there is one.
async fn by<F: Future>(deadline: Option<Instant>, future: F) -> Option<F::Output> {
    match deadline {
        None => Some(future.await),
        Some(deadline) => timeout_at(deadline, future).await.ok(),
    }
}

fn letter(to: &ComponentId, message: &MessageEnvelope, how: How) -> Letter {
    let left = message.deadline().map(|deadline| {
        let left = deadline.saturating_duration_since(Instant::now());
        u64::try_from(left.as_millis()).unwrap_or(u64::MAX).saturating_add(1)
    });
    let sender = message.sender().map(|sender| Sender { id: sender.id().clone(), number: sender.generation().get() });
    let head = LetterHead {
        to: to.clone(),
        how,
        sender,
        left,
        correlation: message.correlation(),
        trace: message.trace().copied(),
        content_type: message.content_type().cloned(),
    };
    Letter { head, payload: message.payload().clone() }
}
