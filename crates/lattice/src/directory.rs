//! What is known of the lattice: a copy of its records, kept by watching them. It may be behind: what is decided is decided by a
//! write that follows a revision.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use airssys_wasm_actor::registry::{ComponentId, Topic, TopicPattern};
use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::{
    config::HostName,
    digest::Digest,
    frame::{SessionId, VERSIONS, Versions},
    lease::{Bucket, LONGEST_LEASE, Owner, Session, Sessions, Standing, Timing, Watcher},
    name,
    placement::{Known, Order, Report, Wanted},
    slots::{SLOTS, slot_of},
};

/// The record of a host, in JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HostRecord {
    /// None once the session is over.
    pub(crate) session: Option<Session>,
    /// The revision at which the session began. None in the record that began it.
    pub(crate) since: Option<u64>,
    /// The versions of the wire that it speaks.
    pub(crate) versions: Versions,
    pub(crate) labels: BTreeMap<String, String>,
    /// What it takes of others' publications.
    pub(crate) topics: Vec<TopicPattern>,
    /// The kinds whose slots it takes.
    #[serde(default)]
    pub(crate) kinds: Vec<ComponentId>,
    /// How many more components may be placed on it.
    #[serde(default)]
    pub(crate) room: usize,
    /// Its lease, in milliseconds.
    #[serde(default)]
    pub(crate) lease: Option<u64>,
}

/// What is understood of the record of a host of a later version.
#[derive(Deserialize)]
struct LaterRecord {
    session: Option<Session>,
    lease: Option<u64>,
}

/// The record of a name, in JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NameRecord {
    pub(crate) owner: Owner<HostName>,
    /// Whether another host may take it when the owner's session is over. Else it stays its host's.
    pub(crate) leased: bool,
}

/// What a key is the record of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Key {
    Host(HostName),
    Name(ComponentId),
    Member {
        group: ComponentId,
        host: HostName,
    },
    Slot {
        kind: ComponentId,
        number: usize,
    },
    /// What is placed under a name.
    Deployment(ComponentId),
    /// What a host says of that.
    Report {
        name: ComponentId,
        host: HostName,
    },
    /// That a host has known the bucket for so long that whoever owned something in one before is fenced.
    Settled,
}

impl Key {
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Host(host) => format!("h.{host}"),
            Self::Name(id) => format!("n.{}", name::key(id.as_str())),
            Self::Member { group, host } => format!("g.{}.{host}", name::key(group.as_str())),
            Self::Slot { kind, number } => format!("k.{}.{number}", name::key(kind.as_str())),
            Self::Deployment(name) => format!("d.{}", name::key(name.as_str())),
            Self::Report { name, host } => format!("r.{}.{host}", name::key(name.as_str())),
            Self::Settled => "s.settled".to_owned(),
        }
    }

    /// None if it is a key of a later version.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (kind, rest) = text.split_once('.')?;
        let id = |key: &str| ComponentId::new(&name::text(key)?).ok();
        match kind {
            "h" => Some(Self::Host(HostName::new(rest).ok()?)),
            "n" => Some(Self::Name(id(rest)?)),
            "s" if rest == "settled" => Some(Self::Settled),
            "g" => {
                let (group, host) = rest.split_once('.')?;
                Some(Self::Member { group: id(group)?, host: HostName::new(host).ok()? })
            }
            "d" => Some(Self::Deployment(id(rest)?)),
            "r" => {
                let (name, host) = rest.split_once('.')?;
                Some(Self::Report { name: id(name)?, host: HostName::new(host).ok()? })
            }
            "k" => {
                let (kind, digits) = rest.split_once('.')?;
                let number =
                    digits.parse::<usize>().ok().filter(|number| *number < SLOTS && number.to_string() == digits)?;
                Some(Self::Slot { kind: id(kind)?, number })
            }
            _ => None,
        }
    }
}

/// A host as its record says.
#[derive(Debug, Clone)]
pub(crate) struct HostInfo {
    pub(crate) record: HostRecord,
    pub(crate) session: Option<SessionId>,
    /// The version of the wire in which it is spoken to. A host without one has no session for this one.
    pub(crate) version: Option<u8>,
}

/// Where a name leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// To a host, and the session of it that exported the name.
    Host(HostName, SessionId),
    /// To a host that has it, and is not in the lattice with the session that exported it.
    Away(HostName),
    /// To a key of a kind, which no host has yet.
    Nobody,
}

pub(crate) struct Directory {
    state: RwLock<State>,
    sessions: Mutex<Sessions<HostName>>,
    /// The versions of the wire that are spoken here.
    versions: Versions,
    /// The revision of the last record seen, and whether all of those at the beginning were.
    seen: watch::Sender<(u64, bool)>,
    /// Told when those of hosts or slots are.
    slots_seen: watch::Sender<()>,
    /// Told when those of hosts, deployments or reports are.
    placements_seen: watch::Sender<()>,
}

#[derive(Default)]
struct State {
    hosts: HashMap<HostName, HostInfo>,
    names: HashMap<ComponentId, Named>,
    groups: HashMap<ComponentId, BTreeMap<HostName, Owner<HostName>>>,
    is_settled: bool,
    /// Whether the servers have lost some of the bucket: that it is settled was written before that.
    is_set_back: bool,
    /// What hosts with a session take of others' publications, of those that take any, and in which version.
    topics: HashMap<HostName, (Vec<TopicPattern>, u8)>,
    /// The slots of each kind.
    kinds: HashMap<Box<str>, Box<[Option<Slot>]>>,
    /// Without a record where that was removed.
    deployments: HashMap<ComponentId, Option<Placement>>,
    /// With their revisions.
    reports: HashMap<ComponentId, BTreeMap<HostName, (Report, u64)>>,
}

/// The record of a slot.
#[derive(Debug, Clone)]
struct Slot {
    owner: Owner<HostName>,
    revision: u64,
}

/// The record of a deployment.
struct Placement {
    wanted: Wanted,
    manifest: Digest,
}

struct Named {
    record: NameRecord,
    revision: u64,
}

impl Directory {
    pub(crate) fn new(timing: Timing, versions: Versions, bucket: Bucket, now: Duration) -> Self {
        Self {
            state: RwLock::default(),
            sessions: Mutex::new(Sessions::new(timing, bucket, now)),
            versions,
            seen: watch::Sender::new((0, false)),
            slots_seen: watch::Sender::new(()),
            placements_seen: watch::Sender::new(()),
        }
    }

    /// Forgets all, of a bucket that is no more, or that has lost some of it if it is the same.
    pub(crate) fn reset(&self, bucket: Bucket, now: Duration) {
        let state = &mut *self.state.write();
        let sessions = &mut *self.sessions.lock();
        let is_set_back = sessions.bucket() == bucket;
        // A key stays one, though nobody has its slot.
        let kinds = std::mem::take(&mut state.kinds).into_keys().map(|kind| (kind, vec![None; SLOTS].into()));
        *state = State { kinds: kinds.collect(), is_set_back, ..State::default() };
        sessions.reset(bucket, now);
        self.seen.send_replace((0, false));
    }

    /// Whether a name without a record has no owner, for certain: see [`Sessions::is_settled`].
    pub(crate) fn is_settled(&self, now: Duration) -> bool {
        let is_told = {
            let state = self.state.read();
            state.is_settled && !state.is_set_back
        };
        is_told || self.sessions.lock().is_settled(now)
    }

    /// What the other hosts are to be told of that, if they are not told yet: of which bucket it is so. What was sent before the
    /// records were made anew may come to them afterwards.
    pub(crate) fn newly_settled(&self, now: Duration) -> Option<Vec<u8>> {
        let state = self.state.read();
        let sessions = self.sessions.lock();
        let is_new = !state.is_settled && sessions.is_settled(now);
        is_new.then(|| serde_json::to_vec(&sessions.bucket()).expect("it is a number"))
    }

    pub(crate) fn sessions<R>(&self, look: impl FnOnce(&Sessions<HostName>) -> R) -> R {
        look(&self.sessions.lock())
    }

    /// Forgets names and groups before all of them are told again, as a watch does that begins anew.
    pub(crate) fn begin(&self) -> Retained {
        let state = self.state.read();
        Retained {
            names: state.names.keys().cloned().collect(),
            members: state
                .groups
                .iter()
                .flat_map(|(group, members)| members.keys().map(|host| (group.clone(), host.clone())))
                .collect(),
            deployments: state.deployments.keys().cloned().collect(),
            reports: state
                .reports
                .iter()
                .flat_map(|(name, reports)| reports.keys().map(|host| (name.clone(), host.clone())))
                .collect(),
        }
    }

    /// All that a watch of a bucket had at its beginning was told. What was known before and is not among it is gone.
    pub(crate) fn caught_up(&self, retained: Retained, bucket: Bucket, revision: u64) {
        let state = &mut *self.state.write();
        if self.sessions.lock().bucket() != bucket {
            return;
        }
        for name in retained.names {
            state.names.remove(&name);
        }
        for (group, host) in retained.members {
            leave(&mut state.groups, &group, &host);
        }
        for name in retained.deployments {
            state.deployments.remove(&name);
        }
        for (name, host) in retained.reports {
            leave(&mut state.reports, &name, &host);
        }
        self.sessions.lock().caught_up(revision);
        self.seen.send_replace((revision, true));
        self.placements_seen.send_replace(());
    }

    /// A record was seen in a bucket.
    pub(crate) fn saw(
        &self,
        bucket: Bucket,
        key: &Key,
        value: Option<&[u8]>,
        revision: u64,
        is_current: bool,
        now: Duration,
    ) -> Standing {
        let mut standing = Standing::Holds;
        let state = &mut *self.state.write();
        if self.sessions.lock().bucket() != bucket {
            return standing;
        }
        match key {
            Key::Host(host) => {
                let record = value.and_then(|value| serde_json::from_slice::<HostRecord>(value).ok());
                state.topics.remove(host);
                let sessions = &mut *self.sessions.lock();
                let (session, lease) = match (&record, value) {
                    (Some(record), _) => (record.session, record.lease),
                    // Of a later version: it is not spoken to, and has what it has.
                    (None, Some(value)) => match serde_json::from_slice::<LaterRecord>(value) {
                        Ok(LaterRecord { session, lease }) => (session, lease),
                        Err(_) => (sessions.get(host).and_then(Watcher::session), None),
                    },
                    (None, None) => (None, None),
                };
                sessions.has_lease(Duration::from_millis(lease.unwrap_or(0)).min(LONGEST_LEASE));
                standing = sessions.saw(host.clone(), session, revision, now);
                match record {
                    Some(record) => {
                        let since = record.since.unwrap_or(revision);
                        // One that speaks no version of the wire that is spoken here is not there for this host.
                        let version = self.versions.common(record.versions);
                        let id = session.and(version).and_then(|_| SessionId::new(bucket, since));
                        if let Some(version) = version.filter(|_| id.is_some() && !record.topics.is_empty()) {
                            state.topics.insert(host.clone(), (record.topics.clone(), version));
                        }
                        state.hosts.insert(host.clone(), HostInfo { record, session: id, version });
                    }
                    None => _ = state.hosts.remove(host),
                }
            }
            Key::Name(id) => match value.and_then(|value| serde_json::from_slice(value).ok()) {
                Some(record) => _ = state.names.insert(id.clone(), Named { record, revision }),
                None => _ = state.names.remove(id),
            },
            Key::Member { group, host } => match value.and_then(|value| serde_json::from_slice(value).ok()) {
                Some(owner) => _ = state.groups.entry(group.clone()).or_default().insert(host.clone(), owner),
                None => leave(&mut state.groups, group, host),
            },
            Key::Deployment(name) => match value.map(serde_json::from_slice::<Wanted>) {
                Some(Ok(wanted)) => {
                    let manifest = Digest::of(wanted.manifest.as_bytes());
                    state.deployments.insert(name.clone(), Some(Placement { wanted, manifest }));
                }
                // Of a later version: nothing is known of it.
                Some(Err(_)) => _ = state.deployments.remove(name),
                None => _ = state.deployments.insert(name.clone(), None),
            },
            Key::Report { name, host } => match value.and_then(|value| serde_json::from_slice(value).ok()) {
                Some(report) => {
                    _ = state.reports.entry(name.clone()).or_default().insert(host.clone(), (report, revision));
                }
                None => leave(&mut state.reports, name, host),
            },
            Key::Slot { kind, number } => {
                // Nobody takes them away.
                if let Some(owner) = value.and_then(|value| serde_json::from_slice(value).ok()) {
                    state.slots(kind)[*number] = Some(Slot { owner, revision });
                }
            }
            Key::Settled => {
                let of = value.and_then(|value| serde_json::from_slice::<Bucket>(value).ok());
                state.is_settled = of == Some(bucket);
            }
        }
        if is_current {
            self.sessions.lock().caught_up(revision);
        }
        self.seen.send_modify(|seen| seen.0 = seen.0.max(revision));
        if matches!(key, Key::Host(_) | Key::Slot { .. }) {
            self.slots_seen.send_replace(());
        }
        if matches!(key, Key::Host(_) | Key::Deployment(_) | Key::Report { .. }) {
            self.placements_seen.send_replace(());
        }
        standing
    }

    /// A record was seen that is none of this version's.
    pub(crate) fn passed(&self, revision: u64) {
        self.sessions.lock().caught_up(revision);
    }

    /// Ready when all that was there at the beginning was seen, or at once.
    pub(crate) async fn is_caught_up(&self) {
        // The sender is this.
        _ = self.seen.subscribe().wait_for(|seen| seen.1).await;
    }

    /// The highest revision of what was seen.
    pub(crate) fn last_seen(&self) -> u64 {
        self.seen.borrow().0
    }

    /// Told when records are seen.
    pub(crate) fn changes(&self) -> watch::Receiver<(u64, bool)> {
        self.seen.subscribe()
    }

    /// Told when records of hosts or of slots are seen.
    pub(crate) fn slot_changes(&self) -> watch::Receiver<()> {
        self.slots_seen.subscribe()
    }

    /// Told when records of hosts, deployments or reports are seen.
    pub(crate) fn placement_changes(&self) -> watch::Receiver<()> {
        self.placements_seen.subscribe()
    }

    /// All deployments, by name, with their reports: those whose records are lost have reports alone.
    pub(crate) fn deployments(&self) -> BTreeMap<ComponentId, (Option<Wanted>, BTreeMap<HostName, Report>)> {
        let state = self.state.read();
        let mut all = BTreeMap::<_, (Option<Wanted>, BTreeMap<_, _>)>::new();
        for (name, placement) in &state.deployments {
            if let Some(placement) = placement {
                all.entry(name.clone()).or_default().0 = Some(placement.wanted.clone());
            }
        }
        for (name, reports) in &state.reports {
            let reports = reports.iter().map(|(host, (report, _))| (host.clone(), report.clone()));
            all.entry(name.clone()).or_default().1.extend(reports);
        }
        all
    }

    /// The names that are placed on a host, or of which it has a report.
    pub(crate) fn placed_on(&self, host: &HostName) -> BTreeSet<ComponentId> {
        let state = self.state.read();
        let is_placed = |it: &Option<Placement>| it.as_ref().is_some_and(|it| it.wanted.hosts.contains_key(host));
        let placed = state.deployments.iter().filter(|(_, placement)| is_placed(placement)).map(|(name, _)| name);
        let reported = state.reports.iter().filter(|(_, reports)| reports.contains_key(host)).map(|(name, _)| name);
        placed.chain(reported).cloned().collect()
    }

    /// The order of a host, if a name is placed on it, with the digest of the manifest.
    pub(crate) fn order(&self, name: &ComponentId, host: &HostName) -> Known<Option<(Order, Digest)>> {
        match self.state.read().deployments.get(name) {
            None => Known::Nothing,
            Some(None) => Known::Removed,
            Some(Some(Placement { wanted, manifest })) => {
                Known::Is(wanted.hosts.get(host).map(|order| (order.clone(), *manifest)))
            }
        }
    }

    /// The manifest of what is placed under a name.
    pub(crate) fn manifest(&self, name: &ComponentId) -> Option<String> {
        Some(self.state.read().deployments.get(name)?.as_ref()?.wanted.manifest.clone())
    }

    /// What hosts say of a name, with the revisions of the reports.
    pub(crate) fn reports(&self, name: &ComponentId) -> BTreeMap<HostName, (Report, u64)> {
        self.state.read().reports.get(name).cloned().unwrap_or_default()
    }

    /// What a host says of a name.
    pub(crate) fn report(&self, name: &ComponentId, host: &HostName) -> Option<(Report, u64)> {
        self.state.read().reports.get(name)?.get(host).cloned()
    }

    /// The session that a host has now.
    pub(crate) fn session(&self, host: &HostName) -> Option<Session> {
        let state = self.state.read();
        let info = state.hosts.get(host)?;
        info.session.and(info.record.session)
    }

    /// The version of the wire in which a host is spoken to, under the session that it has now.
    pub(crate) fn version(&self, host: &HostName, session: SessionId) -> Option<u8> {
        let state = self.state.read();
        state.hosts.get(host).filter(|info| info.session == Some(session))?.version
    }

    /// Whether the record of a host says that this session of it is over.
    pub(crate) fn has_ended(&self, host: &HostName, session: SessionId) -> bool {
        let sessions = self.sessions.lock();
        let is_of_bucket = sessions.bucket().0 == session.bucket;
        is_of_bucket && sessions.get(host).is_some_and(|watcher| watcher.has_ended(session.revision.get()))
    }

    /// Where a name leads. None if nobody has exported it.
    pub(crate) fn find(&self, name: &ComponentId, turn: usize) -> Option<Place> {
        self.find_for(name, turn, VERSIONS.0)
    }

    /// Where a message leads that is of this version: of a group, to a host that speaks it, if there is one.
    pub(crate) fn find_for(&self, name: &ComponentId, turn: usize, version: u8) -> Option<Place> {
        let state = self.state.read();
        if let Some(named) = state.names.get(name) {
            return Some(state.place(&named.record.owner));
        }
        // Of a group, a host that is there.
        let Some(members) = state.groups.get(name) else { return state.find_key(name) };
        let places: Vec<_> = members.values().map(|owner| state.place(owner)).collect();
        let mut there: Vec<_> = places.iter().filter(|place| matches!(place, Place::Host(..))).collect();
        let speaks = |place: &&Place| match place {
            Place::Host(host, _) => state.hosts.get(host).is_some_and(|info| info.version >= Some(version)),
            Place::Away(_) | Place::Nobody => false,
        };
        if there.iter().any(speaks) {
            there.retain(speaks);
        }
        match there.len() {
            0 => places.into_iter().next(),
            len => there.get(turn % len).map(|&place| place.clone()),
        }
    }

    /// How many names are exported.
    pub(crate) fn names(&self) -> usize {
        self.state.read().names.len()
    }

    /// How many hosts that are there a name leads to.
    pub(crate) fn places(&self, name: &ComponentId) -> usize {
        let state = self.state.read();
        let is_there = |owner| matches!(state.place(owner), Place::Host(..));
        match state.names.get(name) {
            Some(named) => usize::from(is_there(&named.record.owner)),
            None => match state.groups.get(name) {
                Some(group) => group.values().filter(|owner| is_there(owner)).count(),
                None => usize::from(matches!(state.find_key(name), Some(Place::Host(..)))),
            },
        }
    }

    /// Whether a name is one that a host has exported, or a key in one of its slots.
    pub(crate) fn has_exported(&self, host: &HostName, name: &ComponentId) -> bool {
        let state = self.state.read();
        let owner = match state.names.get(name) {
            Some(named) => Some(&named.record.owner),
            None => state.slot(name).and_then(|slot| slot.as_ref()).map(|slot| &slot.owner),
        };
        owner.is_some_and(|owner| owner.host == *host)
    }

    /// The record of a name, with its revision.
    pub(crate) fn named(&self, name: &ComponentId) -> Option<(NameRecord, u64)> {
        self.state.read().names.get(name).map(|named| (named.record.clone(), named.revision))
    }

    /// The revision of the record that says where a name leads.
    pub(crate) fn revision(&self, name: &ComponentId) -> Option<u64> {
        let state = self.state.read();
        match state.names.get(name) {
            Some(named) => Some(named.revision),
            None => state.slot(name)?.as_ref().map(|slot| slot.revision),
        }
    }

    /// Whether a name is a key of a kind, and no name of its own.
    pub(crate) fn is_key(&self, name: &ComponentId) -> bool {
        let state = self.state.read();
        !state.names.contains_key(name) && state.slot(name).is_some()
    }

    /// Has keys of a kind known as such, also before there are records of its slots.
    pub(crate) fn add_kind(&self, kind: &ComponentId) {
        self.state.write().slots(kind);
    }

    /// The records of a kind's slots: number, owner, revision.
    pub(crate) fn slots(&self, kind: &ComponentId) -> Vec<(usize, Owner<HostName>, u64)> {
        let state = self.state.read();
        let slots = state.kinds.get(kind.as_str()).into_iter().flatten().enumerate();
        slots.filter_map(|(number, slot)| slot.as_ref().map(|it| (number, it.owner.clone(), it.revision))).collect()
    }

    /// What the record of a slot was found to be, whatever was seen of it before.
    pub(crate) fn set_slot(&self, kind: &ComponentId, number: usize, found: Option<(Owner<HostName>, u64)>) {
        self.state.write().slots(kind)[number] = found.map(|(owner, revision)| Slot { owner, revision });
    }

    /// The hosts with a session that take slots of a kind.
    pub(crate) fn kind_takers(&self, kind: &ComponentId, now: Duration) -> BTreeSet<HostName> {
        let state = self.state.read();
        let takes = |host: &HostName| state.hosts.get(host).is_some_and(|info| info.record.kinds.contains(kind));
        self.sessions.lock().live(now).map(|(host, _)| host).filter(|host| takes(host)).cloned().collect()
    }

    /// Something else than a record has changed that decides where a name leads.
    pub(crate) fn touch(&self) {
        self.seen.send_modify(|_| {});
    }

    pub(crate) fn host(&self, host: &HostName) -> Option<HostInfo> {
        self.state.read().hosts.get(host).cloned()
    }

    /// The hosts with a session, by name.
    pub(crate) fn hosts(&self) -> Vec<(HostName, SessionId, HostRecord)> {
        let state = self.state.read();
        let mut hosts: Vec<_> = state
            .hosts
            .iter()
            .filter_map(|(host, info)| Some((host.clone(), info.session?, info.record.clone())))
            .collect();
        hosts.sort_by(|a, b| a.0.cmp(&b.0));
        hosts
    }

    /// How many other hosts take publications to a topic, and the version of the wire that all of them read.
    pub(crate) fn takers(&self, topic: &Topic, but: &HostName) -> (usize, u8) {
        let state = self.state.read();
        let others = state.topics.iter().filter(|(host, _)| *host != but).map(|(_, takes)| takes);
        let takers = others.filter(|(patterns, _)| patterns.iter().any(|pattern| pattern.matches(topic)));
        takers.fold((0, self.versions.1), |(count, version), (_, spoken)| (count + 1, version.min(*spoken)))
    }
}

impl State {
    /// The slots of a kind.
    fn slots(&mut self, kind: &ComponentId) -> &mut [Option<Slot>] {
        self.kinds.entry(kind.as_str().into()).or_insert_with(|| vec![None; SLOTS].into())
    }

    /// The slot of a name that is a key of a kind.
    fn slot(&self, name: &ComponentId) -> Option<&Option<Slot>> {
        let (kind, _) = name.as_str().split_once('/')?;
        Some(&self.kinds.get(kind)?[slot_of(name.as_str())])
    }

    fn find_key(&self, name: &ComponentId) -> Option<Place> {
        let Some(Slot { owner: Owner { host, token }, .. }) = self.slot(name)? else { return Some(Place::Nobody) };
        // A slot is handed over to a session whose first revision is not known there.
        let info = self.hosts.get(host).filter(|info| info.record.session == Some(token.session));
        Some(match info.and_then(|info| info.session) {
            Some(session) => Place::Host(host.clone(), session),
            None => Place::Away(host.clone()),
        })
    }

    fn place(&self, owner: &Owner<HostName>) -> Place {
        let session = SessionId::new(owner.token.bucket, owner.token.revision);
        let is_there = |session: &SessionId| {
            self.hosts.get(&owner.host).is_some_and(|info| info.session.is_some_and(|now| now == *session))
        };
        match session.filter(is_there) {
            Some(session) => Place::Host(owner.host.clone(), session),
            None => Place::Away(owner.host.clone()),
        }
    }
}

/// Removes what a host has under a name.
fn leave<T>(all: &mut HashMap<ComponentId, BTreeMap<HostName, T>>, name: &ComponentId, host: &HostName) {
    if let Some(of_name) = all.get_mut(name) {
        of_name.remove(host);
        if of_name.is_empty() {
            all.remove(name);
        }
    }
}

/// What was known before a watch began anew, and was not told since.
pub(crate) struct Retained {
    names: std::collections::HashSet<ComponentId>,
    members: std::collections::HashSet<(ComponentId, HostName)>,
    deployments: std::collections::HashSet<ComponentId>,
    reports: std::collections::HashSet<(ComponentId, HostName)>,
}

impl Retained {
    /// This one was told.
    pub(crate) fn told(&mut self, key: &Key) {
        match key {
            Key::Name(name) => _ = self.names.remove(name),
            Key::Member { group, host } => _ = self.members.remove(&(group.clone(), host.clone())),
            Key::Deployment(name) => _ = self.deployments.remove(name),
            Key::Report { name, host } => _ = self.reports.remove(&(name.clone(), host.clone())),
            Key::Host(_) | Key::Slot { .. } | Key::Settled => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::Token;

    const BUCKET: Bucket = Bucket(1);

    struct World {
        directory: Directory,
        revision: u64,
    }

    fn host(name: &str) -> HostName {
        name.parse().unwrap()
    }

    fn id(name: &str) -> ComponentId {
        name.parse().unwrap()
    }

    fn session(process: u64) -> Session {
        Session { process, number: 1 }
    }

    impl World {
        fn new() -> Self {
            Self { directory: Directory::new(Timing::default(), VERSIONS, BUCKET, Duration::ZERO), revision: 0 }
        }

        fn saw(&mut self, key: &Key, value: Option<Vec<u8>>) -> u64 {
            self.revision += 1;
            let standing =
                self.directory.saw(BUCKET, key, value.as_deref(), self.revision, true, Duration::from_secs(1));
            assert_eq!(standing, Standing::Holds);
            self.revision
        }

        /// A host begins a session, or renews one.
        fn host(&mut self, name: &str, process: u64, since: Option<u64>, (oldest, latest): (u8, u8)) -> u64 {
            let (session, versions) = (Some(session(process)), Versions(oldest, latest));
            let topics = vec!["orders.>".parse().unwrap()];
            let (labels, kinds) = (BTreeMap::new(), Vec::new());
            let record = HostRecord { session, since, versions, labels, topics, kinds, room: 0, lease: None };
            self.saw(&Key::Host(host(name)), Some(serde_json::to_vec(&record).unwrap()))
        }

        fn owner(name: &str, process: u64, since: u64) -> Owner<HostName> {
            let token = Token { bucket: BUCKET, revision: since, session: session(process) };
            Owner { host: host(name), token }
        }

        fn name(&mut self, name: &str, of: Owner<HostName>) {
            let record = NameRecord { owner: of, leased: false };
            self.saw(&Key::Name(id(name)), Some(serde_json::to_vec(&record).unwrap()));
        }
    }

    #[test]
    fn keys_are_read_as_they_are_written() {
        for key in [
            Key::Host(host("a-1")),
            Key::Name(id("cart/4711")),
            Key::Member { group: id("a.b:c@d"), host: host("H_2") },
            Key::Slot { kind: id("cart.v1"), number: 0 },
            Key::Slot { kind: id("cart"), number: SLOTS - 1 },
            Key::Deployment(id("a.b:c@d")),
            Key::Report { name: id("a.b:c@d"), host: host("H_2") },
        ] {
            assert_eq!(Key::parse(&key.text()), Some(key));
        }
        for text in
            ["", "h", "h.", "h.a.b", "n.a/b", "g.a", "x.a", "n.=41", "k.cart.1024", "k.cart.01", "k.cart.+1", "k.cart."]
        {
            assert_eq!(Key::parse(text), None, "{text}");
        }
        for text in ["d", "d.", "d.a.b", "r.a", "r.a.", "r.a.b.c"] {
            assert_eq!(Key::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_deployment_that_was_removed_is_told_from_one_that_is_not_known() {
        let mut world = World::new();
        let (key, name) = (Key::Deployment(id("shop")), id("shop"));
        let order = |world: &World| world.directory.order(&name, &host("a"));
        assert_eq!(order(&world), Known::Nothing);
        let wanted = Wanted {
            manifest: String::new(),
            labels: BTreeMap::new(),
            hosts: BTreeMap::from([(host("a"), Order { number: 7, digest: Digest::of(b""), step: None })]),
            change: None,
        };
        let placed = Known::Is(Some((wanted.hosts[&host("a")].clone(), Digest::of(b""))));
        let json = serde_json::to_vec(&wanted).unwrap();
        world.saw(&key, Some(json.clone()));
        assert_eq!(order(&world), placed);
        assert_eq!(world.directory.order(&name, &host("b")), Known::Is(None));
        assert!(
            world.directory.placed_on(&host("a")).contains(&name) && world.directory.placed_on(&host("b")).is_empty()
        );
        world.saw(&key, None);
        assert_eq!(order(&world), Known::Removed);
        // A watch that begins anew and does not tell it: the record was lost, and so was its removal.
        world.saw(&key, Some(json));
        let retained = world.directory.begin();
        world.directory.caught_up(retained, BUCKET, world.revision);
        assert_eq!(order(&world), Known::Nothing);
    }

    #[test]
    fn that_the_records_are_settled_is_believed_of_the_same_records() {
        let mut world = World::new();
        let (now, later) = (Duration::from_secs(1), Duration::from_secs(3_600));
        assert_eq!(world.directory.newly_settled(now), None);
        let of_these = world.directory.newly_settled(later).unwrap();
        for (value, is_believed) in [
            (Some(Vec::new()), false),
            (Some(serde_json::to_vec(&Bucket(BUCKET.0 + 1)).unwrap()), false),
            (Some(of_these), true),
            (None, false),
        ] {
            world.saw(&Key::Settled, value);
            assert_eq!(world.directory.is_settled(now), is_believed);
            assert_eq!(world.directory.newly_settled(later).is_none(), is_believed);
        }
    }

    #[test]
    fn that_the_records_are_settled_is_not_believed_of_those_that_were_set_back() {
        let mut world = World::new();
        let (now, later) = (Duration::from_secs(1), Duration::from_secs(3_600));
        let settled = world.directory.newly_settled(later).unwrap();
        world.saw(&Key::Settled, Some(settled.clone()));
        assert!(world.directory.is_settled(now));
        world.directory.reset(BUCKET, now);
        world.saw(&Key::Settled, Some(settled));
        assert!(
            !world.directory.is_settled(Duration::from_secs(11)) && world.directory.is_settled(Duration::from_secs(12))
        );
    }

    #[test]
    fn a_host_whose_record_is_of_a_later_version_has_what_it_has() {
        let mut world = World::new();
        let since = world.host("a", 1, None, (1, 1));
        let owner = World::owner("a", 1, since);
        let is_over =
            |world: &World| world.directory.sessions(|sessions| sessions.is_over(&owner, Duration::from_secs(2)));
        let session = r#"{"session":{"process":1,"number":1},"later":true}"#;
        // One that is understood in part, and one that is not.
        for record in [session, "later"] {
            world.saw(&Key::Host(host("a")), Some(record.as_bytes().to_vec()));
            assert!(!is_over(&world) && world.directory.host(&host("a")).is_none(), "{record}");
        }
        world.saw(&Key::Host(host("a")), Some(br#"{"session":null}"#.to_vec()));
        assert!(is_over(&world));
    }

    #[test]
    fn a_name_leads_to_the_session_that_exported_it_and_to_no_other() {
        let mut world = World::new();
        let since = world.host("a", 1, None, (1, 1));
        world.name("shop", World::owner("a", 1, since));
        let there = |since: u64| Some(Place::Host(host("a"), SessionId::new(BUCKET, since).unwrap()));
        assert_eq!(world.directory.find(&id("shop"), 0), there(since));
        // A renewal changes nothing.
        world.host("a", 1, Some(since), (1, 1));
        assert_eq!(world.directory.find(&id("shop"), 0), there(since));
        // Another session has the name only once it has exported it.
        let again = world.host("a", 2, None, (1, 1));
        assert_eq!(world.directory.find(&id("shop"), 0), Some(Place::Away(host("a"))));
        world.name("shop", World::owner("a", 2, again));
        assert_eq!(world.directory.find(&id("shop"), 0), there(again));
        world.saw(&Key::Name(id("shop")), None);
        assert_eq!(world.directory.find(&id("shop"), 0), None);
    }

    #[test]
    fn who_speaks_no_common_version_is_not_there() {
        let Versions(oldest, latest) = VERSIONS;
        for (versions, spoken) in [
            ((latest, latest), Some(latest)),
            ((latest, latest + 1), Some(latest)),
            ((oldest, latest), Some(latest)),
            ((0, oldest), Some(oldest)),
            ((0, latest), Some(latest)),
            ((latest + 1, latest + 2), None),
            ((0, oldest - 1), None),
            // No version at all.
            ((latest, oldest), None),
        ] {
            let mut world = World::new();
            let since = world.host("a", 1, None, versions);
            world.name("shop", World::owner("a", 1, since));
            let place = world.directory.find(&id("shop"), 0);
            assert_eq!(matches!(place, Some(Place::Host(..))), spoken.is_some(), "{versions:?}");
            assert_eq!(world.directory.hosts().len(), usize::from(spoken.is_some()));
            let session = SessionId::new(BUCKET, since).unwrap();
            assert_eq!(world.directory.version(&host("a"), session), spoken, "{versions:?}");
            // Another session may speak another.
            let before = SessionId::new(BUCKET, since + 1).unwrap();
            assert_eq!(world.directory.version(&host("a"), before), None);
        }
    }

    #[test]
    fn a_group_leads_to_its_hosts_in_turn_without_those_that_are_gone() {
        let mut world = World::new();
        for (n, name) in ["a", "b", "c"].into_iter().enumerate() {
            let since = world.host(name, n as u64, None, (1, 1));
            let owner = serde_json::to_vec(&World::owner(name, n as u64, since)).unwrap();
            world.saw(&Key::Member { group: id("g"), host: host(name) }, Some(owner));
        }
        // Another session of it has not joined the group.
        world.host("b", 7, None, (1, 1));
        let turns: Vec<_> = (0..4)
            .map(|turn| match world.directory.find(&id("g"), turn) {
                Some(Place::Host(host, _)) => host.to_string(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(turns, ["a", "c", "a", "c"]);
        assert_eq!(world.directory.places(&id("g")), 2);
        for name in ["a", "c"] {
            world.saw(&Key::Host(host(name)), None);
        }
        assert!(matches!(world.directory.find(&id("g"), 0), Some(Place::Away(_))));
    }

    #[test]
    fn a_group_leads_to_those_of_its_hosts_that_speak_a_version_if_any_does() {
        let mut world = World::new();
        let Versions(oldest, latest) = VERSIONS;
        for (n, (name, speaks)) in [("a", oldest), ("b", latest), ("c", latest)].into_iter().enumerate() {
            let since = world.host(name, n as u64, None, (oldest, speaks));
            let owner = serde_json::to_vec(&World::owner(name, n as u64, since)).unwrap();
            world.saw(&Key::Member { group: id("g"), host: host(name) }, Some(owner));
        }
        let turns = |world: &World, version| {
            let place = |turn| match world.directory.find_for(&id("g"), turn, version) {
                Some(Place::Host(host, _)) => host.to_string(),
                other => panic!("{other:?}"),
            };
            (0..3).map(place).collect::<Vec<_>>()
        };
        assert_eq!(turns(&world, oldest), ["a", "b", "c"]);
        assert_eq!(turns(&world, latest), ["b", "c", "b"]);
        for name in ["b", "c"] {
            world.saw(&Key::Host(host(name)), None);
        }
        assert_eq!(turns(&world, latest), ["a", "a", "a"]);
    }

    #[test]
    fn what_a_watch_that_begins_anew_does_not_tell_is_gone() {
        let mut world = World::new();
        let since = world.host("a", 1, None, (1, 1));
        world.name("kept", World::owner("a", 1, since));
        world.name("gone", World::owner("a", 1, since));
        let mut retained = world.directory.begin();
        world.name("kept", World::owner("a", 1, since));
        retained.told(&Key::Name(id("kept")));
        world.directory.caught_up(retained, BUCKET, world.revision);
        assert!(world.directory.find(&id("kept"), 0).is_some());
        assert_eq!(world.directory.find(&id("gone"), 0), None);
    }

    #[test]
    fn a_key_is_nobodys_when_all_is_forgotten() {
        let mut world = World::new();
        let since = world.host("a", 1, None, (1, 1));
        world.name("shop", World::owner("a", 1, since));
        let (kind, owner) = (id("cart"), World::owner("a", 1, since));
        for number in 0..SLOTS {
            let key = Key::Slot { kind: kind.clone(), number };
            world.saw(&key, Some(serde_json::to_vec(&owner).unwrap()));
        }
        let find = |world: &World, name| world.directory.find(&id(name), 0);
        assert!(matches!(find(&world, "cart/1"), Some(Place::Host(..))));
        world.directory.reset(Bucket(2), Duration::from_secs(2));
        assert_eq!((find(&world, "cart/1"), find(&world, "shop")), (Some(Place::Nobody), None));
    }

    #[test]
    fn hosts_are_counted_that_take_a_topic() {
        let mut world = World::new();
        world.host("a", 1, None, (1, 1));
        world.host("b", 2, None, (1, 1));
        let takers = |world: &World, topic: &str, but| world.directory.takers(&topic.parse().unwrap(), &host(but)).0;
        let of = |world: &World| {
            (takers(world, "orders.eu", "a"), takers(world, "orders.eu", "c"), takers(world, "other", "c"))
        };
        assert_eq!(of(&world), (1, 2, 0));
        // One that is not understood, and one that is gone.
        world.host("a", 1, None, (VERSIONS.1 + 1, VERSIONS.1 + 1));
        assert_eq!(of(&world), (1, 1, 0));
        world.saw(&Key::Host(host("b")), None);
        assert_eq!(of(&world), (0, 0, 0));
    }

    #[test]
    fn a_publication_is_of_the_latest_version_that_all_who_take_it_speak() {
        let mut world = World::new();
        let topic = "orders.eu".parse().unwrap();
        let version = |world: &World, but| world.directory.takers(&topic, &host(but)).1;
        for (name, versions, latest) in
            [("a", VERSIONS, VERSIONS.1), ("b", Versions(VERSIONS.0, VERSIONS.0), VERSIONS.0)]
        {
            world.host(name, 1, None, (versions.0, versions.1));
            assert_eq!(version(&world, "c"), latest);
        }
        assert_eq!((version(&world, "a"), version(&world, "b")), (VERSIONS.0, VERSIONS.1));
    }

    #[test]
    fn a_key_leads_to_the_session_that_has_its_slot() {
        let (bucket, now) = (Bucket(1), Duration::ZERO);
        let timing = Timing { lease: Duration::from_secs(10), renewal: Duration::from_secs(2) };
        let directory = Directory::new(timing, VERSIONS, bucket, now);
        let (kind, name) = (id("cart"), id("cart/4711"));
        assert_eq!(directory.find(&name, 0), None);
        directory.add_kind(&kind);
        assert_eq!((directory.find(&name, 0), directory.find(&id("other/4711"), 0)), (Some(Place::Nobody), None));
        assert!(directory.is_key(&name) && !directory.is_key(&id("cart")));

        let session = |number| Session { process: 1, number };
        let saw = |key: &Key, value: Vec<u8>, revision| directory.saw(bucket, key, Some(&value), revision, true, now);
        let record = |number| HostRecord {
            session: Some(session(number)),
            since: Some(5),
            versions: VERSIONS,
            labels: BTreeMap::new(),
            topics: Vec::new(),
            kinds: vec![kind.clone()],
            room: 0,
            lease: None,
        };
        let of_a = Key::Host(host("a"));
        _ = saw(&of_a, serde_json::to_vec(&record(1)).unwrap(), 7);
        assert_eq!(directory.kind_takers(&kind, now), BTreeSet::from([host("a")]));
        // Handed over to it by one that knew a later revision of its record than the first.
        let owner = Owner { host: host("a"), token: Token { bucket, revision: 7, session: session(1) } };
        let slot = Key::Slot { kind: kind.clone(), number: slot_of(name.as_str()) };
        _ = saw(&slot, serde_json::to_vec(&owner).unwrap(), 8);
        let there = Place::Host(host("a"), SessionId::new(bucket, 5).unwrap());
        assert_eq!((directory.find(&name, 0), directory.revision(&name)), (Some(there), Some(8)));
        assert!(directory.has_exported(&host("a"), &name) && !directory.has_exported(&host("b"), &name));
        // What cannot be read changes nothing.
        _ = saw(&slot, b"{}".to_vec(), 9);
        assert_eq!(directory.revision(&name), Some(8));
        // Its next session has it not.
        _ = saw(&of_a, serde_json::to_vec(&record(2)).unwrap(), 10);
        assert_eq!(directory.find(&name, 0), Some(Place::Away(host("a"))));
        directory.set_slot(&kind, slot_of(name.as_str()), None);
        assert_eq!(directory.find(&name, 0), Some(Place::Nobody));
    }
}
