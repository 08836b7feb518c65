//! The session of a host: joining, renewing, joining again; and what it exports under its sessions.

use std::{
    error::Error,
    iter,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use airssys_wasm_actor::{
    ActorRef,
    limits::CancellationToken,
    registry::{ActorAddress, ComponentId, MessageEnvelope, Topic},
};
use async_nats::{
    Subscriber,
    jetstream::{self, ErrorCode, kv},
};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, future};
use parking_lot::{Mutex, RwLock};
use tokio::{
    runtime::Handle,
    sync::{Notify, broadcast, mpsc},
    time::timeout,
};

use super::{Export, Here, Host, LOOK, Life, receive, topics};
use crate::{
    clock,
    config::{HostName, LatticeConfig},
    connection::{Connection, Look, Records, Subjects, connect},
    directory::{Directory, HostRecord, Key, NameRecord},
    error::{ExportError, JoinError},
    events::LatticeEvent,
    frame::SessionId,
    lease::{Bucket, Holder, Joining, LONGEST_LEASE, Owner, Renewal, Session, Standing, Timing, Watcher},
    offer::Offers,
    stood_by::StoodBy,
};

/// Events that a listener may lag behind.
const EVENTS: usize = 256;
/// Names that are claimed again, or withdrawn, at a time.
const CLAIMS: usize = 64;
/// How long to wait before something that failed is tried again.
const AGAIN: Duration = Duration::from_millis(250);

/// What came of a write that follows a revision.
pub(crate) enum Written {
    /// The record's new revision.
    Yes(u64),
    /// The record has another revision.
    Refused,
}

/// Whether a record has another revision, or another write of it is under way.
fn is_conflict(error: &kv::UpdateError) -> bool {
    let causes = iter::successors(Some(error as &dyn Error), |&error| error.source());
    let mut codes = causes.filter_map(|cause| Some(cause.downcast_ref::<jetstream::Error>()?.error_code()));
    let is_one = |code| {
        matches!(
            code,
            ErrorCode::STREAM_WRONG_LAST_SEQUENCE_CONSTANT | ErrorCode::STREAM_EXPECTED_LAST_SEQ_PER_SUBJECT_NOT_READY
        )
    };
    error.kind() == kv::UpdateErrorKind::WrongLastRevision || codes.any(is_one)
}

fn has_ended(actor: &ActorRef) -> bool {
    actor.ended().now_or_never().is_some()
}

/// A host without a session, which knows the records, and what comes to it.
pub(super) struct Opened {
    pub(super) host: Arc<Host>,
    pub(super) timing: Timing,
    packets: Subscriber,
    nobody: Subscriber,
    heartbeats: Subscriber,
    published: mpsc::Receiver<(Topic, MessageEnvelope, u8)>,
    slow: mpsc::UnboundedReceiver<u64>,
}

/// Joins a lattice.
pub(crate) async fn join(config: LatticeConfig, here: Box<dyn Here>) -> Result<Arc<Host>, JoinError> {
    let left = CancellationToken::new();
    // What was begun ends with this guard if the host does not join.
    let guard = left.clone().drop_guard();
    let Opened { host, timing, packets, nobody, heartbeats, published, slow } = open(config, here, left).await?;
    let holder = begin(&host, Joining::new(timing, fastrand::u64(..))).await?;
    host.run(receive::packets(Arc::clone(&host), packets));
    host.run(receive::nobody(Arc::clone(&host), nobody));
    host.run(receive::heartbeats(Arc::clone(&host), heartbeats));
    host.run(receive::tick(Arc::clone(&host)));
    host.run(receive::online(Arc::clone(&host)));
    host.run(topics::published(Arc::clone(&host), published));
    host.run(topics::slow(Arc::clone(&host), slow));
    host.run(keep(Arc::clone(&host), holder));
    guard.disarm();
    Ok(host)
}

/// Connects, and waits until the records are known. What it begins ends with the token.
pub(super) async fn open(
    config: LatticeConfig,
    here: Box<dyn Here>,
    left: CancellationToken,
) -> Result<Opened, JoinError> {
    let timing = check(&config)?;
    let Connection { client, online, slow } = connect(&config).await?;
    let records = Records::open(&client, &config).await?;
    let bucket = records.bucket().await.map_err(|source| JoinError::Records { source })?;
    let subjects = Subjects::new(&config);
    let (publications, published) = mpsc::channel(topics::PUBLICATIONS);
    let subscribe = async |subject: String| client.subscribe(subject).await.map_err(|_| JoinError::Lost);
    // Before the session begins: whoever sees it may send.
    let packets = subscribe(subjects.packets()).await?;
    let nobody = subscribe(subjects.nobody()).await?;
    let heartbeats = subscribe(subjects.heartbeats()).await?;
    let host = Arc::new(Host {
        directory: Directory::new(timing, config.versions(), bucket, clock::now()),
        config,
        subjects,
        client: client.clone(),
        records,
        here,
        life: RwLock::default(),
        peers: RwLock::default(),
        exports: RwLock::default(),
        offers: Offers::default(),
        stood_by: StoodBy::default(),
        kinds: RwLock::default(),
        room: Mutex::default(),
        topics: Mutex::default(),
        publications,
        publishing: Mutex::default(),
        turn: AtomicUsize::new(0),
        runtime: Handle::current(),
        connected: online,
        renew: Notify::new(),
        is_set_back: AtomicBool::new(false),
        rewatch: Notify::new(),
        events: broadcast::Sender::new(EVENTS),
        leaving: left.child_token(),
        left,
        ended: CancellationToken::new(),
    });
    host.run(watch(Arc::clone(&host)));
    caught_up(&host).await?;
    Ok(Opened { host, timing, packets, nobody, heartbeats, published, slow })
}

fn check(config: &LatticeConfig) -> Result<Timing, JoinError> {
    let small = [
        ("lease", config.lease < Duration::from_secs(1)),
        ("heartbeat", config.heartbeat < Duration::from_millis(100)),
        ("window", config.window < 4),
        ("window-bytes", config.window_bytes < 4),
        ("replicas", config.replicas == 0),
    ];
    if let Some((option, _)) = small.into_iter().find(|(_, is_small)| *is_small) {
        return Err(JoinError::TooSmall { option });
    }
    if config.lease > LONGEST_LEASE {
        return Err(JoinError::TooLarge { option: "lease" });
    }
    Ok(Timing { lease: config.lease, renewal: config.lease / 5 })
}

impl Host {
    /// Runs one of the host's tasks. Without it the host would hold what it has and not answer for it, so it is over when one panics.
    pub(super) fn run(&self, task: impl Future<Output = ()> + Send + 'static) {
        let guard = self.left.clone().drop_guard();
        self.runtime.spawn(async move {
            task.await;
            guard.disarm();
        });
    }

    fn record(&self, session: Option<Session>, since: Option<u64>) -> Vec<u8> {
        let topics = self.topics.lock().iter().cloned().collect();
        let record = HostRecord {
            session,
            since,
            versions: self.config.versions(),
            labels: self.config.labels.clone(),
            topics,
            kinds: self.taken_kinds(),
            room: self.room(),
            lease: u64::try_from(self.config.lease.as_millis()).ok(),
        };
        serde_json::to_vec(&record).expect("its keys are text")
    }

    /// Writes a record if it has this revision, 0 if there is none.
    pub(crate) async fn write(&self, key: &Key, value: Vec<u8>, follows: u64) -> Result<Written, async_nats::Error> {
        let value = Bytes::from(value);
        match self.update(key, value.clone(), follows).await? {
            Written::Refused if follows == 0 => match self.decided(key).await? {
                // There was one, and it is gone.
                Some((None, revision)) => self.update(key, value, revision).await,
                _ => Ok(Written::Refused),
            },
            written => Ok(written),
        }
    }

    /// Not by `create`: that reads what any replica has.
    async fn update(&self, key: &Key, value: Bytes, follows: u64) -> Result<Written, async_nats::Error> {
        match self.records.store.update(key.text(), value, follows).await {
            Ok(revision) => Ok(Written::Yes(revision)),
            Err(error) if is_conflict(&error) => Ok(Written::Refused),
            Err(error) => Err(error.into()),
        }
    }

    /// A record with its revision, also if it is gone, as it is decided.
    pub(crate) async fn decided(&self, key: &Key) -> Result<Option<(Option<Bytes>, u64)>, async_nats::Error> {
        self.records.decided(&key.text()).await
    }

    /// Removes a record if it has this revision.
    pub(crate) async fn remove(&self, key: &Key, revision: u64) -> Result<Written, async_nats::Error> {
        match self.records.store.delete_expect_revision(key.text(), Some(revision)).await {
            // The revision of what says that it is gone is not told.
            Ok(()) => Ok(Written::Yes(revision)),
            Err(error) => match self.decided(key).await? {
                Some((Some(_), found)) if found == revision => Err(error.into()),
                _ => Ok(Written::Refused),
            },
        }
    }

    fn key(&self) -> Key {
        Key::Host(self.config.host.clone())
    }

    /// Exports a group.
    pub(crate) async fn export_group(self: &Arc<Self>, group: &ComponentId) -> Result<(), ExportError> {
        self.export(group, None).await
    }

    /// Exports an actor. One that has ended is no hindrance for another of its name.
    pub(crate) async fn export_actor(self: &Arc<Self>, actor: &ActorRef) -> Result<(), ExportError> {
        self.export(actor.id(), Some(actor)).await
    }

    async fn export(self: &Arc<Self>, name: &ComponentId, actor: Option<&ActorRef>) -> Result<(), ExportError> {
        let Some(life) = self.life().filter(|_| !self.is_leaving()) else { return Err(ExportError::NotJoined) };
        let is_next = |export: &Export| {
            let is_another =
                |(before, actor): (&ActorRef, &ActorRef)| before.address() != actor.address() && !has_ended(actor);
            export.actor.as_ref().zip(actor).is_some_and(is_another)
        };
        let is_taken = self.exports.read().get(name).is_some_and(|export| !is_next(export));
        if is_taken || self.stood_by.serves(name) {
            return Err(ExportError::Exported { name: name.clone() });
        }
        let is_group = actor.is_none();
        let revision = self.claim(name, &life, is_group, false).await?;
        let export = Export { revision, session: life.session, is_group, leased: false, actor: actor.cloned() };
        self.exported_under(name, export);
        self.look_for_end(name);
        if self.is_leaving() {
            // All were withdrawn that it had then.
            self.withdraw(name).await?;
            return Err(ExportError::NotJoined);
        }
        Ok(())
    }

    /// A name that was claimed under a lease is delivered to from now on.
    pub(crate) fn export_claimed(&self, name: &ComponentId, life: &Life, revision: u64) {
        let export = Export { revision, session: life.session, is_group: false, leased: true, actor: None };
        self.exported_under(name, export);
    }

    fn exported_under(&self, name: &ComponentId, export: Export) {
        let mut exports = self.exports.write();
        // Under the lock, under which an offer is made as well.
        if let Some(actor) = &export.actor {
            self.offers.exported(actor.address());
        }
        exports.entry(name.clone()).and_modify(|now| now.follow(&export)).or_insert(export);
    }

    /// Writes the record of a name.
    pub(crate) async fn claim(
        self: &Arc<Self>,
        name: &ComponentId,
        life: &Life,
        is_group: bool,
        leased: bool,
    ) -> Result<u64, ExportError> {
        let owner = Owner { host: self.config.host.clone(), token: life.token };
        let key = self.record_of(name, is_group);
        let value =
            if is_group { serde_json::to_vec(&owner) } else { serde_json::to_vec(&NameRecord { owner, leased }) };
        let value = value.expect("its keys are text");
        let failed = |source| ExportError::Records { source };
        let mut follows = 0;
        loop {
            if let Written::Yes(revision) = self.write(&key, value.clone(), follows).await.map_err(failed)? {
                // A write that follows nothing could have gone into a bucket made anew.
                let bucket = self.records.bucket().await.map_err(failed)?;
                if bucket != life.token.bucket || life.fence.is_up(clock::now()) {
                    // Nobody can take one that is not leased from a host that has it in its records and not in its hands.
                    if !leased {
                        self.runtime.spawn(Arc::clone(self).forsake(name.clone(), is_group, Some(revision)));
                    }
                    return Err(ExportError::NotJoined);
                }
                return Ok(revision);
            }
            follows = match self.decided(&key).await.map_err(failed)? {
                None => 0,
                Some((None, revision)) => revision,
                // That of a group is this host's own.
                Some((Some(_), revision)) if is_group => revision,
                Some((Some(found), revision)) => {
                    // One that cannot be read is of a later version, and somebody's.
                    let found: NameRecord = serde_json::from_slice(&found).map_err(|error| failed(error.into()))?;
                    if !self.may_take(&found) {
                        return Err(ExportError::NameTaken { name: name.clone(), holder: found.owner.host });
                    }
                    revision
                }
            };
        }
    }

    /// Takes back a claim of this revision. Without one it is not known whether it was written, and it is a leased one of whoever stands by
    /// for the name: a claim of a later attempt to export it is left.
    pub(crate) async fn forsake(self: Arc<Self>, name: ComponentId, is_group: bool, claim: Option<u64>) {
        let key = self.record_of(&name, is_group);
        let is_own = |value: &[u8]| {
            let found = serde_json::from_slice::<NameRecord>(value);
            found.is_ok_and(|found| found.leased && found.owner.host == self.config.host)
        };
        while !self.left.is_cancelled() {
            let forsaking = async {
                let revision = match claim {
                    Some(revision) => revision,
                    None => match self.decided(&key).await? {
                        Some((Some(value), revision)) if is_own(&value) => revision,
                        _ => return Ok(()),
                    },
                };
                self.remove(&key, revision).await.map(drop)
            };
            match forsaking.await {
                Ok(()) => return,
                Err(error) => tracing::debug!(%name, %error, "a claim is not taken back"),
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    fn record_of(&self, name: &ComponentId, is_group: bool) -> Key {
        if is_group {
            Key::Member { group: name.clone(), host: self.config.host.clone() }
        } else {
            Key::Name(name.clone())
        }
    }

    /// Whether a name may be taken from its owner.
    fn may_take(&self, record: &NameRecord) -> bool {
        let NameRecord { owner, leased } = record;
        if owner.host == self.config.host {
            // This process has the name of the host, whose sessions before are over.
            return true;
        }
        // Evicted: there is no such host any more. The copy may be behind, and not have seen it yet.
        (*leased || self.directory.host(&owner.host).is_none())
            && self.directory.sessions(|sessions| sessions.is_over(owner, clock::now()))
    }

    /// Ends the export of a name. Whether it was exported. One that this host stands by for is given up by whoever serves it, once its
    /// actor has ended.
    pub(crate) async fn withdraw(self: &Arc<Self>, name: &ComponentId) -> Result<bool, ExportError> {
        let export = {
            let mut exports = self.exports.write();
            if exports.get(name).is_some_and(|export| !export.leased) { exports.remove(name) } else { None }
        };
        let withdrawn = self.withdrawn(name, export).await;
        match &withdrawn {
            Ok(was_exported) if *was_exported => self.offers.end(name),
            Ok(_) => {}
            // It is exported again, of a session before if there is another by now.
            Err(_) => {
                self.look_for_end(name);
                if let Some(life) = self.life() {
                    self.runtime.spawn(Arc::clone(self).claim_all(life));
                }
            }
        }
        withdrawn
    }

    /// Ends the export of an actor that has ended. Its name may be another's by now.
    pub(crate) async fn withdraw_actor(&self, actor: &ActorAddress) -> Result<bool, ExportError> {
        let export = {
            let mut exports = self.exports.write();
            if exports.get(actor.id()).is_some_and(|export| export.is_of(actor)) {
                exports.remove(actor.id())
            } else {
                None
            }
        };
        self.offers.end_of(actor);
        self.withdrawn(actor.id(), export).await
    }

    /// An actor of this host has ended, which may have been exported.
    pub(crate) fn actor_ended(self: &Arc<Self>, actor: &ActorAddress) {
        if self.exports.read().get(actor.id()).is_some_and(|export| export.is_of(actor)) {
            self.runtime.spawn(Self::withdraw_ended(Arc::downgrade(self), actor.clone()));
        }
    }

    /// An actor that ended while this name was not exported was not found by [`actor_ended`](Self::actor_ended).
    fn look_for_end(self: &Arc<Self>, name: &ComponentId) {
        let actor = self.exports.read().get(name).and_then(|export| export.actor.clone());
        if let Some(actor) = actor.filter(has_ended) {
            self.actor_ended(actor.address());
        }
    }

    async fn withdrawn(&self, name: &ComponentId, export: Option<Export>) -> Result<bool, ExportError> {
        let Some(export) = export else { return Ok(false) };
        let unclaimed = self.unclaim(name, &export).await;
        if unclaimed.is_err() && !export.leased {
            // Its record does not end by itself: it can be withdrawn again.
            self.exported_under(name, export);
        }
        unclaimed.map(|()| true)
    }

    /// Ends the export of an actor that has ended, however long that takes.
    async fn withdraw_ended(host: Weak<Self>, actor: ActorAddress) {
        while let Some(host) = host.upgrade().filter(|host| !host.left.is_cancelled()) {
            match host.withdraw_actor(&actor).await {
                Ok(_) => return,
                Err(error) => tracing::warn!(actor = %actor.id(), %error, "an actor that has ended is exported still"),
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Ends the export of a name that is served no more, so that another host may have it: as long as the session lasts, no other can end
    /// it.
    pub(crate) async fn give_up(&self, name: &ComponentId) {
        let Some(export) = self.exports.write().remove(name) else { return };
        while let Err(error) = self.unclaim(name, &export).await {
            tracing::debug!(%name, %error, "not given up");
            tokio::select! {
                () = tokio::time::sleep(AGAIN) => {}
                () = self.left.cancelled() => return,
            }
        }
    }

    /// Ends all exports.
    pub(crate) async fn withdraw_all(self: &Arc<Self>) {
        let withdrawals = futures_util::stream::iter(self.exported()).for_each_concurrent(CLAIMS, async |name| {
            if let Err(error) = self.withdraw(&name).await {
                tracing::warn!(%name, %error, "not withdrawn");
            }
        });
        withdrawals.await;
    }

    /// Ready when no name is served any more that this host stands by for.
    pub(crate) async fn served_all(&self) {
        while self.exports.read().values().any(|export| export.leased) {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Removes the record of a name that is not exported any more, unless another has it since.
    async fn unclaim(&self, name: &ComponentId, export: &Export) -> Result<(), ExportError> {
        let is_of_this_session = self.life().is_some_and(|life| life.session == export.session);
        if export.leased && !is_of_this_session {
            // Of a session that is over: others may have it since, and it may be of another bucket.
            return Ok(());
        }
        let removed = self.remove(&self.record_of(name, export.is_group), export.revision).await;
        // Refused: another has it since, or it is gone.
        removed.map(drop).map_err(|source| ExportError::Records { source })
    }

    pub(crate) fn has_exported(&self, name: &ComponentId) -> bool {
        self.exports.read().contains_key(name)
    }

    pub(crate) fn exported(&self) -> Vec<ComponentId> {
        self.exports.read().keys().cloned().collect()
    }

    /// Removes the record of a host whose session is over, and with it its claim to names. Waits until it is over. `false` if there is
    /// no such host.
    pub(crate) async fn evict(&self, host: &HostName) -> Result<bool, ExportError> {
        let failed = |source| ExportError::Records { source };
        let key = Key::Host(host.clone());
        loop {
            if self.life().is_none() {
                return Err(ExportError::NotJoined);
            }
            let now = clock::now();
            let free = self.directory.sessions(|sessions| {
                let watcher = sessions.get(host)?;
                Some((watcher.may_claim(now) || !sessions.live(now).any(|(live, _)| live == host), watcher.revision()))
            });
            if self.directory.host(host).is_none() {
                return Ok(false);
            }
            if let Some((true, revision)) = free {
                match self.records.store.delete_expect_revision(key.text(), Some(revision)).await {
                    Ok(()) => return Ok(true),
                    Err(error) => {
                        if self.decided(&key).await.map_err(failed)?.is_some_and(|(_, found)| found == revision) {
                            return Err(failed(error.into()));
                        }
                    }
                }
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Claims again what was exported under sessions before, until it is claimed or the session is over.
    async fn claim_all(self: Arc<Self>, life: Life) {
        let holds = || self.life().is_some_and(|now| now.session == life.session) && !self.left.is_cancelled();
        while holds() {
            let before: Vec<_> = {
                let exports = self.exports.read();
                let before = exports.iter().filter(|(_, export)| export.session != life.session);
                before.map(|(name, export)| (name.clone(), export.clone())).collect()
            };
            if before.is_empty() {
                return;
            }
            let claims = before.into_iter().map(|(name, export)| self.claim_again(&life, name, export));
            let failed = futures_util::stream::iter(claims).buffer_unordered(CLAIMS);
            if failed.any(std::future::ready).await {
                tokio::time::sleep(AGAIN).await;
            }
        }
    }

    /// Claims a name again. Whether that failed.
    async fn claim_again(self: &Arc<Self>, life: &Life, name: ComponentId, export: Export) -> bool {
        match self.claim(&name, life, export.is_group, export.leased).await {
            Ok(revision) => {
                let export = Export { revision, session: life.session, ..export };
                let is_exported = self.exports.write().get_mut(&name).map(|now| now.follow(&export)).is_some();
                if !is_exported {
                    // It was withdrawn meanwhile.
                    Arc::clone(self).forsake(name, export.is_group, Some(revision)).await;
                }
                false
            }
            Err(ExportError::NameTaken { holder, .. }) => {
                self.exports.write().remove(&name);
                self.offers.end(&name);
                self.event(LatticeEvent::NameLost { name, holder: Some(holder) });
                false
            }
            Err(error) => {
                tracing::debug!(%name, %error, "not exported again");
                true
            }
        }
    }

    /// Whether a name may be claimed, as far as is known, under a lease.
    pub(crate) fn is_free(&self, name: &ComponentId) -> bool {
        match self.directory.named(name) {
            Some((record, _)) => self.may_take(&record),
            None => self.directory.is_settled(clock::now()),
        }
    }

    /// Which bucket the lattice has, made anew if it was lost. What was known of another is forgotten, or of this one if it `was_lost`
    /// in part.
    async fn find_bucket(&self, was_lost: bool) -> Result<(), async_nats::Error> {
        let bucket = self.records.remake().await?;
        if was_lost || self.directory.sessions(|sessions| sessions.bucket() != bucket) {
            self.directory.reset(bucket, clock::now());
            self.rewatch.notify_one();
        }
        Ok(())
    }
}

/// How long a host that joins waits for something: twice as long as a process that is gone has its name.
fn patience(config: &LatticeConfig) -> Duration {
    2 * (config.lease + Duration::from_secs(1))
}

/// Waits until the records are known, which never comes where they may not be watched.
async fn caught_up(host: &Host) -> Result<(), JoinError> {
    let caught_up = timeout(patience(&host.config), host.directory.is_caught_up()).await;
    caught_up.map_err(|late| JoinError::Records { source: late.into() })
}

/// Begins a session. Waits until that of a process before, which had this host's name, is over.
pub(super) async fn begin(host: &Arc<Host>, mut joining: Joining) -> Result<Holder, JoinError> {
    let failed = |source| JoinError::Records { source };
    let began = clock::now();
    loop {
        let found = host.directory.sessions(|sessions| sessions.get(&host.config.host).copied());
        let now = clock::now();
        let Some(attempt) = joining.attempt(found.as_ref(), now) else {
            if now.saturating_sub(began) > patience(&host.config) {
                return Err(JoinError::HostTaken { host: host.config.host.clone() });
            }
            tokio::time::sleep(AGAIN).await;
            continue;
        };
        let record = host.record(Some(attempt.session), None);
        match host.write(&host.key(), record, attempt.follows).await.map_err(failed)? {
            Written::Yes(revision) => {
                let bucket = host.records.bucket().await.map_err(failed)?;
                if is_another(host, bucket).await? {
                    continue;
                }
                match joining.joined(attempt, bucket, revision) {
                    Ok(holder) => {
                        begun(host, &holder);
                        return Ok(holder);
                    }
                    Err(again) => joining = again,
                }
            }
            // Another has written it, which the watch will show, or into a bucket that was made anew, which it will not.
            Written::Refused => {
                let bucket = host.records.bucket().await.map_err(failed)?;
                if !is_another(host, bucket).await? {
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }
}

/// Whether the lattice has another bucket than was known. Its records are known then.
async fn is_another(host: &Arc<Host>, bucket: Bucket) -> Result<bool, JoinError> {
    if host.directory.sessions(|sessions| sessions.bucket() == bucket) {
        return Ok(false);
    }
    host.find_bucket(false).await.map_err(|source| JoinError::Records { source })?;
    caught_up(host).await?;
    Ok(true)
}

fn begun(host: &Host, holder: &Holder) {
    let token = holder.token();
    let session = SessionId::new(token.bucket, token.revision).expect("revisions begin at one");
    *host.life.write() = Some(Life { session, token, fence: holder.fence() });
}

/// Renews the session, and begins another when it is over.
async fn keep(host: Arc<Host>, mut holder: Holder) {
    // Also where it leaves without a session.
    let _ended = host.ended.clone().drop_guard();
    // When it was looked at sessions of others.
    let mut looked = clock::now();
    loop {
        let (due, now) = (holder.due(), clock::now());
        let lapse_at = host.directory.sessions(|sessions| sessions.next_lapse(looked)).filter(|at| *at < due);
        let is_asked = tokio::select! {
            () = tokio::time::sleep(lapse_at.unwrap_or(due).saturating_sub(now)) => false,
            () = host.renew.notified() => true,
            () = host.left.cancelled() => {
                end(&host, holder).await;
                return;
            }
        };
        let now = clock::now();
        if !is_asked && now < due {
            looked = now;
            for_others(&host, &holder, now).await;
            continue;
        }
        let standing = if host.is_set_back.swap(false, Ordering::Relaxed) {
            Standing::Anew
        } else if holder.is_fenced(clock::now()) {
            Standing::Rejoin
        } else {
            renew(&host, &mut holder).await
        };
        let mut was_lost = match standing {
            Standing::Holds => {
                looked = clock::now();
                for_others(&host, &holder, looked).await;
                continue;
            }
            Standing::Rejoin => false,
            Standing::Anew => true,
        };
        host.event(LatticeEvent::Fenced);
        let mut joining = holder.leave();
        *host.life.write() = None;
        host.drop_peers();
        // Who stands by claims it again.
        host.exports.write().retain(|_, export| !export.leased);
        holder = loop {
            let rejoining = async {
                if host.find_bucket(was_lost).await.is_err() {
                    return Err(joining);
                }
                was_lost = false;
                // It may be lost once more meanwhile.
                if timeout(host.config.lease, host.directory.is_caught_up()).await.is_err() {
                    return Err(joining);
                }
                try_begin(&host, joining).await
            };
            let tried = tokio::select! {
                tried = rejoining => tried,
                () = host.left.cancelled() => return,
            };
            match tried {
                Ok(holder) => break holder,
                Err(again) => {
                    joining = again;
                    tokio::time::sleep(AGAIN).await;
                }
            }
        };
        host.event(LatticeEvent::Rejoined);
        if let Some(life) = host.life() {
            // Beside the renewals, as it may take longer than a lease.
            tokio::spawn(Arc::clone(&host).claim_all(life));
        }
    }
}

/// One attempt to begin a session.
async fn try_begin(host: &Arc<Host>, mut joining: Joining) -> Result<Holder, Joining> {
    let found = host.directory.sessions(|sessions| sessions.get(&host.config.host).copied());
    let Some(attempt) = joining.attempt(found.as_ref(), clock::now()) else { return Err(joining) };
    let record = host.record(Some(attempt.session), None);
    let Ok(Written::Yes(revision)) = host.write(&host.key(), record, attempt.follows).await else {
        return Err(joining);
    };
    let Ok(bucket) = host.records.bucket().await else { return Err(joining) };
    if host.directory.sessions(|sessions| sessions.bucket() != bucket) {
        return Err(joining);
    }
    let holder = joining.joined(attempt, bucket, revision)?;
    begun(host, &holder);
    Ok(holder)
}

/// Renews the session once. What is not answered before the next is due is given up.
async fn renew(host: &Arc<Host>, holder: &mut Holder) -> Standing {
    let renewal = holder.renewal_sent(clock::now());
    let token = holder.token();
    let record = host.record(Some(renewal.session), Some(token.revision));
    let key = host.key();
    let renewing = host.write(&key, record, renewal.follows);
    match timeout(host.config.lease / 5, renewing).await {
        Ok(Ok(Written::Yes(revision))) => holder.renewed(renewal, revision, clock::now()),
        Ok(Ok(Written::Refused)) => refused(host, holder, renewal).await,
        Ok(Err(error)) => {
            tracing::debug!(%error, "the session was not renewed");
            Standing::Holds
        }
        Err(_) => Standing::Holds,
    }
}

async fn refused(host: &Arc<Host>, holder: &mut Holder, renewal: Renewal) -> Standing {
    let found = async {
        let bucket = host.records.bucket().await?;
        let found = host.decided(&host.key()).await?.map(|(value, revision)| {
            let record = value.and_then(|value| serde_json::from_slice::<HostRecord>(&value).ok());
            (record.and_then(|record| record.session), revision)
        });
        Ok::<_, async_nats::Error>((bucket, found))
    };
    match timeout(host.config.lease / 5, found).await {
        // The record of no session is another's word that this one is over.
        Ok(Ok((bucket, found))) => {
            holder.refused(renewal, bucket, found.and_then(|(session, revision)| Some((session?, revision))))
        }
        _ => Standing::Holds,
    }
}

/// Says that the session is over.
async fn end(host: &Arc<Host>, holder: Holder) {
    let (key, session) = (host.key(), holder.token().session);
    // Before others may take what was owned under it.
    holder.leave();
    let ending = async {
        for _ in 0..3 {
            let Some((Some(value), follows)) = host.decided(&key).await? else { return Ok(()) };
            if serde_json::from_slice::<HostRecord>(&value)?.session != Some(session) {
                return Ok(());
            }
            if let Written::Yes(_) = host.write(&key, host.record(None, None), follows).await? {
                return Ok(());
            }
        }
        Ok::<(), async_nats::Error>(())
    };
    *host.life.write() = None;
    _ = timeout(Duration::from_secs(1), ending).await;
    host.drop_peers();
    // What was sent last is on its way.
    _ = timeout(Duration::from_secs(1), host.client.flush()).await;
}

/// Keeps the copy of the records.
async fn watch(host: Arc<Host>) {
    while !host.left.is_cancelled() {
        let mut connected = host.connected.subscribe();
        let is_over = async {
            // A server that is back may have other records, of which the client would not show the first.
            let is_back = async { while connected.changed().await.is_ok() && !*connected.borrow_and_update() {} };
            tokio::select! {
                () = is_back => {}
                () = host.rewatch.notified() => {}
                () = host.left.cancelled() => {}
            }
        };
        let following = async {
            if let Ok(mut records) = host.records.store.watch_with_history(">").await {
                follow(&host, &mut records).await;
            }
            tokio::time::sleep(AGAIN).await;
        };
        tokio::select! {
            () = following => {}
            () = is_over => {}
        }
    }
}

/// Follows a watch until it ends.
async fn follow(host: &Arc<Host>, records: &mut kv::Watch) {
    let bucket = host.directory.sessions(|sessions| sessions.bucket());
    // Looked at after the watch has begun: what is written since is shown.
    let Ok(Look { bucket: watched, is_empty, last }) = host.records.look().await else { return };
    if watched != bucket {
        // The next renewal finds it, and then all is forgotten.
        host.renew.notify_one();
        return;
    }
    if last < host.directory.last_seen() && has_lost(host, bucket).await {
        return host.set_back();
    }
    let mut retained = Some(host.directory.begin());
    // An empty bucket shows nothing.
    if is_empty && let Some(retained) = retained.take() {
        host.directory.caught_up(retained, bucket, 0);
    }
    while let Some(Ok(entry)) = records.next().await {
        if let Some(key) = Key::parse(&entry.key) {
            if let Some(retained) = &mut retained {
                retained.told(&key);
            }
            let value = (entry.operation == kv::Operation::Put).then_some(&*entry.value);
            let before = match &key {
                Key::Host(name) => host.directory.host(name).and_then(|info| info.session),
                _ => None,
            };
            let standing = host.directory.saw(bucket, &key, value, entry.revision, retained.is_none(), clock::now());
            // A watch that begins anew at a server that is behind shows older records, too.
            if standing == Standing::Anew && is_lost(host, &key).await {
                return host.set_back();
            }
            if let Key::Host(name) = &key {
                host.host_changed(name, before);
            }
        } else if retained.is_none() {
            host.directory.passed(entry.revision);
        }
        if entry.seen_current
            && let Some(retained) = retained.take()
        {
            host.directory.caught_up(retained, bucket, entry.revision);
            if host.misses_a_name(entry.revision) {
                return host.set_back();
            }
        }
    }
}

/// Whether a bucket has not all that was seen of it. A server that has just begun to lead may not know all for a moment.
async fn has_lost(host: &Host, bucket: Bucket) -> bool {
    for _ in 0..3 {
        tokio::time::sleep(AGAIN).await;
        match host.records.look().await {
            Ok(look) if look.bucket == bucket && look.last < host.directory.last_seen() => {}
            _ => return false,
        }
    }
    true
}

/// Whether a host's record is older than one that was seen.
async fn is_lost(host: &Host, key: &Key) -> bool {
    let Key::Host(name) = key else { return false };
    let seen = host.directory.sessions(|sessions| sessions.get(name).map_or(0, Watcher::revision));
    host.decided(key).await.is_ok_and(|found| found.is_none_or(|(_, revision)| revision < seen))
}

impl Host {
    /// The servers have lost records that they had acknowledged: what they have left says nothing of who owns what.
    fn set_back(&self) {
        tracing::warn!("the servers have lost records of the lattice");
        self.is_set_back.store(true, Ordering::Relaxed);
        self.renew.notify_one();
    }

    /// Whether the record of a name that this host has is not its own, of all that were written up to a revision.
    fn misses_a_name(&self, seen: u64) -> bool {
        let Some(life) = self.life() else { return false };
        let is_missed = |name: &ComponentId| {
            self.directory.named(name).is_none_or(|(record, _)| !record.owner.token.is_same_session(&life.token))
        };
        let exports = self.exports.read();
        let mut names = exports.iter().filter(|(_, export)| !export.is_group && export.session == life.session);
        names.any(|(name, export)| export.revision <= seen && is_missed(name))
    }

    /// The record of a host was seen.
    fn host_changed(&self, name: &HostName, before: Option<SessionId>) {
        let info = self.directory.host(name);
        let now = info.as_ref().and_then(|info| info.session);
        if now == before {
            return;
        }
        self.event(match now {
            Some(_) => LatticeEvent::Joined { host: name.clone() },
            None => LatticeEvent::Left { host: name.clone() },
        });
        let Some((session, version)) = now.zip(info.and_then(|info| info.version)) else {
            return self.drop_peer_before(name, before);
        };
        if let Some(peer) = self.peers.read().get(name).cloned() {
            let events = peer.with_lane(|lane, mut tell| lane.session(session, version, &mut tell));
            self.settle(&peer, events);
        }
    }
}

/// Does what another host would do as well. The next renewal does not wait for it.
async fn for_others(host: &Host, holder: &Holder, now: Duration) {
    _ = timeout(holder.due().saturating_sub(now), future::join(lapse(host, now), settle(host))).await;
}

/// Ends sessions of others that are over, so that what they had leased is free.
async fn lapse(host: &Host, now: Duration) {
    let lapsed: Vec<_> = host
        .directory
        .sessions(|sessions| sessions.lapsed(now).map(|(host, revision)| (host.clone(), revision)).collect());
    let lapsed = futures_util::stream::iter(lapsed).for_each_concurrent(CLAIMS, async |(name, revision)| {
        let Some(info) = host.directory.host(&name).filter(|_| name != host.config.host) else { return };
        let record = HostRecord { session: None, since: None, ..info.record };
        let value = serde_json::to_vec(&record).expect("its keys are text");
        // Refused: it was renewed, or another has done it.
        if let Err(error) = host.write(&Key::Host(name.clone()), value, revision).await {
            tracing::debug!(host = %name, %error, "a session that is over was not ended");
        }
    });
    lapsed.await;
}

/// Tells the other hosts that what nobody has may be claimed.
async fn settle(host: &Host) {
    if let Some(settled) = host.directory.newly_settled(clock::now())
        && let Err(error) = host.write(&Key::Settled, settled, 0).await
    {
        tracing::debug!(%error, "it is not told that the records are settled");
    }
}
