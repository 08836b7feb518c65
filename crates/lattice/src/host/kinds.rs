//! Kinds that several hosts have: which of their slots are this host's, and how those come and go.
//!
//! [`slots`](crate::slots) says what to write and to drain; this does it, with a task for each kind.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    sync::Arc,
    time::Duration,
};

use airssys_wasm_actor::{Fence, limits::CancellationToken, registry::ComponentId};
use airssys_wasm_keyed::{Keyed, Owner as KeyOwner, StoredReminders};
use parking_lot::RwLock;
use tokio::{
    sync::watch,
    task::{AbortHandle, JoinSet},
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout, timeout_at},
};

use super::{Host, Life, session::Written};
use crate::{
    clock,
    config::HostName,
    directory::Key,
    fence::SlotFence,
    lease::{Owner, Standing},
    slots::{Action, Bounds, Holding, Holdings, Slots, slot_of},
    store::JetStreamStore,
};

/// How often slots are looked at if nothing happens: the fence falls, others' sessions end.
const OFTEN: Duration = Duration::from_millis(100);

/// A kind that this host has with others.
pub(crate) struct SharedKind {
    kind: ComponentId,
    /// Under the present session.
    holdings: RwLock<Option<Arc<Holdings>>>,
    owned: watch::Sender<usize>,
    /// How many slots have this host as their owner by what others may know. One that is handed over is among them until that is written.
    named: watch::Sender<usize>,
    /// Nothing more is brought into memory, and all that is there leaves.
    closing: CancellationToken,
    closed: CancellationToken,
}

impl fmt::Debug for SharedKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedKind").field("kind", &self.kind).field("owned", &self.owned()).finish_non_exhaustive()
    }
}

impl SharedKind {
    pub(crate) fn new(kind: ComponentId) -> Arc<Self> {
        Arc::new(Self {
            kind,
            holdings: RwLock::default(),
            owned: watch::Sender::new(0),
            named: watch::Sender::new(0),
            closing: CancellationToken::new(),
            closed: CancellationToken::new(),
        })
    }

    /// How many slots are this host's.
    pub(crate) fn owned(&self) -> usize {
        *self.owned.borrow()
    }

    /// What this host may do with a key.
    pub(crate) fn holding(&self, name: &ComponentId) -> Holding {
        match &*self.holdings.read() {
            Some(holdings) if !self.closing.is_cancelled() => holdings.get(slot_of(name.as_str()), clock::now()),
            _ => Holding::Nothing,
        }
    }
}

impl KeyOwner for SharedKind {
    fn part(&self, name: &ComponentId) -> usize {
        slot_of(name.as_str())
    }

    fn fence(&self, slot: usize) -> Option<Arc<dyn Fence>> {
        if self.closing.is_cancelled() {
            return None;
        }
        let holdings = self.holdings.read().clone()?;
        Some(Arc::new(SlotFence::new(holdings, slot)?))
    }

    fn has(&self, slot: usize) -> bool {
        self.holdings.read().as_ref().is_some_and(|holdings| holdings.owns(slot, clock::now()))
    }
}

/// What became of something that was begun.
enum Done {
    Written {
        slot: usize,
        owner: Owner<HostName>,
        revision: u64,
    },
    Refused {
        slot: usize,
        follows: u64,
        found: Option<(Owner<HostName>, u64)>,
    },
    /// It is not known whether it was written. It is tried again.
    Unknown,
    Drained {
        slot: usize,
        attempt: u64,
    },
}

impl Host {
    /// The kind of a key, if this host has it with others.
    pub(crate) fn kind_of(&self, name: &ComponentId) -> Option<Arc<SharedKind>> {
        let (kind, _) = name.as_str().split_once('/')?;
        self.kinds.read().get(kind).cloned()
    }

    pub(crate) fn kind(&self, kind: &ComponentId) -> Option<Arc<SharedKind>> {
        self.kinds.read().get(kind.as_str()).cloned()
    }

    /// Takes slots of a kind from now on.
    pub(crate) fn take_slots<U: Send + 'static>(
        self: &Arc<Self>,
        keyed: Keyed<U>,
        kind: Arc<SharedKind>,
        store: Arc<JetStreamStore>,
        reminders: Option<Arc<StoredReminders>>,
    ) {
        self.kinds.write().insert(kind.kind.as_str().into(), Arc::clone(&kind));
        self.renew.notify_one();
        tokio::spawn(drive(Arc::clone(self), Actors { keyed, reminders }, kind, store));
    }

    /// The kinds whose slots this host takes, by name.
    pub(super) fn taken_kinds(&self) -> Vec<ComponentId> {
        if self.leaving.is_cancelled() {
            return Vec::new();
        }
        let mut kinds: Vec<_> = self.kinds.read().values().map(|kind| kind.kind.clone()).collect();
        kinds.sort();
        kinds
    }

    /// Hands all slots over to other hosts, as far as there are others and time. What is in memory then is saved, and leaves it.
    pub(crate) async fn leave_kinds(&self, until: Instant) {
        let kinds: Vec<_> = self.kinds.read().values().cloned().collect();
        self.leaving.cancel();
        self.renew.notify_one();
        for kind in &kinds {
            let (mut named, mut changes) = (kind.named.subscribe(), self.directory.changes());
            let is_over = async {
                while *named.borrow_and_update() > 0 && self.has_other_takers(&kind.kind) {
                    tokio::select! {
                        changed = named.changed() => if changed.is_err() { return },
                        changed = changes.changed() => if changed.is_err() { return },
                        () = self.left.cancelled() => return,
                    }
                }
            };
            _ = timeout_at(until, is_over).await;
        }
        kinds.iter().for_each(|kind| kind.closing.cancel());
        for kind in &kinds {
            _ = timeout_at(until, kind.closed.cancelled()).await;
        }
        if !kinds.is_empty() {
            // What others send before they see where the slots are is refused, and not lost with the session.
            sleep_until(until.min(Instant::now() + self.config.heartbeat)).await;
        }
    }

    fn takers(&self, kind: &ComponentId) -> BTreeSet<HostName> {
        let mut takers = self.directory.kind_takers(kind, clock::now());
        if self.leaving.is_cancelled() {
            takers.remove(&self.config.host);
        } else {
            takers.insert(self.config.host.clone());
        }
        takers
    }

    fn has_other_takers(&self, kind: &ComponentId) -> bool {
        self.directory.kind_takers(kind, clock::now()).iter().any(|host| *host != self.config.host)
    }

    /// Writes the owner of a slot.
    async fn write_slot(
        &self,
        kind: &ComponentId,
        slot: usize,
        owner: Owner<HostName>,
        follows: u64,
        life: &Life,
    ) -> Done {
        let key = Key::Slot { kind: kind.clone(), number: slot };
        let value = serde_json::to_vec(&owner).expect("its keys are text");
        let writing = async {
            let mut follows_now = follows;
            loop {
                if let Written::Yes(revision) = self.write(&key, value.clone(), follows_now).await? {
                    // A write that follows nothing could have gone into a bucket made anew.
                    let is_same = follows_now > 0 || self.records.bucket().await? == life.token.bucket;
                    return Ok(if is_same { Done::Written { slot, owner, revision } } else { Done::Unknown });
                }
                let found = match self.records.decided(&key.text()).await? {
                    // Somebody has removed it by hand. That makes nobody its owner who was not.
                    Some((None, revision)) if revision != follows_now => {
                        follows_now = revision;
                        continue;
                    }
                    Some((None, _)) => return Ok(Done::Unknown),
                    Some((Some(value), revision)) => match serde_json::from_slice(&value) {
                        Ok(owner) => Some((owner, revision)),
                        // Of a later version.
                        Err(_) => return Ok(Done::Unknown),
                    },
                    None => None,
                };
                return Ok::<_, async_nats::Error>(Done::Refused { slot, follows, found });
            }
        };
        match timeout(self.config.lease / 5, writing).await {
            Ok(Ok(done)) => done,
            Ok(Err(error)) => {
                tracing::debug!(%kind, slot, %error, "the owner of a slot was not written");
                Done::Unknown
            }
            Err(_) => Done::Unknown,
        }
    }
}

/// The actors of a kind, and their reminders if those are kept.
struct Actors<U: 'static> {
    keyed: Keyed<U>,
    reminders: Option<Arc<StoredReminders>>,
}

impl<U> Clone for Actors<U> {
    fn clone(&self) -> Self {
        Self { keyed: self.keyed.clone(), reminders: self.reminders.clone() }
    }
}

impl<U: Send + 'static> Actors<U> {
    /// Those of a slot, or all, leave the memory, and what they have set is set.
    async fn leave(&self, slot: Option<usize>) {
        match slot {
            Some(slot) => self.keyed.passivate_part(slot).await,
            None => self.keyed.passivate_all().await,
        }
        if let Some(reminders) = &self.reminders {
            reminders.are_set().await;
        }
    }

    fn slots_came(&self) {
        if let Some(reminders) = &self.reminders {
            reminders.parts_came();
        }
    }
}

/// Takes, drains and hands over slots, until the host leaves.
async fn drive<U: Send + 'static>(
    host: Arc<Host>,
    actors: Actors<U>,
    kind: Arc<SharedKind>,
    store: Arc<JetStreamStore>,
) {
    let _closed = kind.closed.clone().drop_guard();
    let is_over = || host.left.is_cancelled() || kind.closing.is_cancelled();
    while !is_over() {
        // The servers may have lost the states as well as the session. Nothing of before is in memory any more.
        let reopened = store.reopen().await;
        if let Err(error) = &reopened {
            tracing::debug!(kind = %kind.kind, %error, "the states of a kind are not to be had");
        }
        if let Some(life) = host.life().filter(|_| reopened.is_ok()) {
            serve(&host, &actors, &kind, &life).await;
            if kind.closing.is_cancelled() {
                // The session is there still: what is in memory can be saved.
                tokio::select! {
                    () = actors.leave(None) => {}
                    () = host.left.cancelled() => {}
                }
            }
            *kind.holdings.write() = None;
            kind.count();
            kind.named.send_replace(0);
            actors.keyed.kill_all().await;
        }
        tokio::select! {
            () = tokio::time::sleep(OFTEN) => {}
            () = host.left.cancelled() => {}
            () = kind.closing.cancelled() => {}
        }
    }
}

impl SharedKind {
    /// Tells how many slots are this host's. Whether that is news.
    fn count(&self) -> bool {
        let now = self.holdings.read().as_ref().map_or(0, |holdings| holdings.count(clock::now()));
        let is_news = self.owned.send_if_modified(|owned| std::mem::replace(owned, now) != now);
        if is_news {
            metrics::gauge!("lattice_slots", "kind" => self.kind.to_string()).set(now as f64);
        }
        is_news
    }
}

/// Does so under a session, until that is over or the kind is closed.
async fn serve<U: Send + 'static>(host: &Arc<Host>, actors: &Actors<U>, kind: &Arc<SharedKind>, life: &Life) {
    let me = &host.config.host;
    let mut slots = Slots::new(me.clone(), life.token, life.fence.clone(), Bounds::default());
    let (holdings, mut latest) = (slots.holdings(), 0);
    *kind.holdings.write() = Some(Arc::clone(&holdings));
    host.directory.add_kind(&kind.kind);
    let mut changes = host.directory.slot_changes();
    // Before anything is claimed that somebody has.
    let play = |slots: &mut Slots<_>| {
        for (slot, owner, revision) in host.directory.slots(&kind.kind) {
            slots.record(slot, owner, revision);
        }
    };
    play(&mut slots);
    let mut takers = BTreeSet::new();
    let mut begun = JoinSet::new();
    // The last of each slot, by the number of its attempt.
    let mut drains = HashMap::<usize, (u64, AbortHandle)>::new();
    let mut ticks = interval(OFTEN);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while host.life().is_some_and(|now| now.session == life.session) {
        tokio::select! {
            _ = ticks.tick() => {}
            changed = changes.changed() => match changed {
                Ok(()) => play(&mut slots),
                Err(_) => return,
            },
            Some(done) = begun.join_next() => match done {
                Ok(Done::Written { slot, owner, revision }) => slots.record(slot, owner, revision),
                Ok(Done::Refused { slot, follows, found }) => {
                    if slots.refused(slot, follows, found.clone()) == Standing::Anew {
                        tracing::warn!(kind = %kind.kind, slot, "the record of a slot was lost");
                        host.directory.set_slot(&kind.kind, slot, found);
                        life.fence.put_up();
                        host.renew.notify_one();
                        return;
                    }
                }
                Ok(Done::Drained { slot, attempt }) => {
                    drains.retain(|of, (last, _)| (*of, *last) != (slot, attempt));
                    slots.drained(slot, attempt);
                }
                // It was not to be drained any more.
                Ok(Done::Unknown) | Err(_) => {}
            },
            () = kind.closing.cancelled() => return,
            () = host.left.cancelled() => return,
        }
        let now_take = host.takers(&kind.kind);
        if now_take != takers {
            slots.hosts(&now_take);
            takers = now_take;
        }
        let actions = host.directory.sessions(|sessions| slots.actions(sessions, clock::now()));
        for action in actions {
            let (slot, owner, follows) = match action {
                Action::Claim { slot, follows } => (slot, Owner { host: me.clone(), token: life.token }, follows),
                Action::HandOver { slot, to, follows } => (slot, to, follows),
                Action::Drain { slot, attempt, .. } => {
                    let actors = actors.clone();
                    let drain = begun.spawn(async move {
                        actors.leave(Some(slot)).await;
                        Done::Drained { slot, attempt }
                    });
                    drains.insert(slot, (attempt, drain));
                    continue;
                }
                Action::Resume { slot } => {
                    if let Some((_, drain)) = drains.remove(&slot) {
                        drain.abort();
                    }
                    // Meanwhile none was sent.
                    actors.slots_came();
                    continue;
                }
                Action::Fenced => return,
            };
            let (host, kind, life) = (Arc::clone(host), kind.kind.clone(), life.clone());
            begun.spawn(async move { host.write_slot(&kind, slot, owner, follows, &life).await });
        }
        let before = std::mem::replace(&mut latest, holdings.latest(clock::now()));
        if latest > before {
            actors.slots_came();
        }
        let named = slots.named();
        kind.named.send_if_modified(|before| std::mem::replace(before, named) != named);
        if kind.count() {
            // Who waits for a key that has moved looks again.
            host.directory.touch();
        }
    }
}
