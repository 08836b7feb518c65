//! Hosts, a broker and what is between them, for the models of leases and slots.
//!
//! Each host has a clock of its own zero and rate. It can pause, while its clock goes on, or be killed. What it sends and
//! what is sent to it may be late, lost or overtaken; a watch may have gaps, but no disorder, as a watch of NATS. The
//! broker may be away, and its bucket may be wiped.

mod names;
mod process;
mod slots;

use std::{collections::BTreeMap, time::Duration};

use proptest::{
    prelude::{Just, any, prop, prop_oneof},
    strategy::Strategy,
};

use self::process::Process;
use crate::lease::{Bucket, Holder, Owner, Renewal, Session, Sessions, Standing, Timing, Token};

type Host = &'static str;

/// How many processes there may be.
const MOST: usize = 5;
const TIMING: Timing = Timing { lease: Duration::from_secs(10), renewal: Duration::from_secs(2) };
/// Of true time, in milliseconds.
const TICK: u64 = 50;
/// In a million.
const DRIFT: u64 = 10_000;

/// What happens next in the world. Hosts are given by number.
#[derive(Debug, Clone, Copy)]
enum Step {
    Pass {
        ms: u64,
    },
    Pause(usize),
    Resume(usize),
    /// Ends the process of a host, and starts another.
    Kill(usize),
    Link {
        host: usize,
        link: Link,
    },
    Broker {
        away: bool,
    },
    Wipe,
    /// Whether a host is to take what is claimed.
    Takes {
        host: usize,
        takes: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let host = 0..MOST;
    let delay = prop_oneof![0..100_u64, 0..2_000_u64, 3_000..10_000_u64];
    let link = (delay, prop::sample::select(vec![0, 0, 10, 50, 100]), prop::bool::weighted(0.7));
    let link = link.prop_map(|(delay, loss, has_watch)| Link { delay, loss, has_watch });
    prop_oneof![
        4 => (0..1_500_u64).prop_map(|ms| Step::Pass { ms }),
        6 => (0..9_000_u64).prop_map(|ms| Step::Pass { ms }),
        2 => host.clone().prop_map(Step::Pause),
        2 => host.clone().prop_map(Step::Resume),
        1 => host.clone().prop_map(Step::Kill),
        3 => (host.clone(), link).prop_map(|(host, link)| Step::Link { host, link }),
        1 => any::<bool>().prop_map(|away| Step::Broker { away }),
        1 => Just(Step::Wipe),
        1 => (host, any::<bool>()).prop_map(|(host, takes)| Step::Takes { host, takes }),
    ]
}

/// What hosts claim.
trait Claims: Sized {
    fn new(me: Host, holder: &Holder) -> Self;
    /// The record of a thing was seen, or written by this host.
    fn record(&mut self, thing: usize, owner: Owner<Host>, revision: u64);
    fn refused(&mut self, thing: usize, follows: u64, found: Option<(Owner<Host>, u64)>) -> Standing;
    /// Which owners to write, after which revisions.
    fn writes(&mut self, sessions: &Sessions<Host>, takers: &[Host], now: Duration) -> Vec<(usize, Owner<Host>, u64)>;
    fn owns(&self, thing: usize, now: Duration) -> bool;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Session(Host),
    Thing(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Value {
    Session(Option<Session>),
    Owner(Host, Token),
}

/// To the broker.
#[derive(Debug, Clone, Copy)]
struct Write {
    key: Key,
    follows: u64,
    value: Value,
    renewal: Option<Renewal>,
}

/// To a host.
#[derive(Debug, Clone)]
enum Notice {
    Answer { write: Write, bucket: Bucket, result: Result<u64, Option<(u64, Value)>> },
    Change { key: Key, value: Value, revision: u64 },
    All { bucket: Bucket, records: BTreeMap<Key, (u64, Value)>, revision: u64 },
}

/// How long a message takes at the most, in milliseconds, and how many of a hundred are lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Link {
    delay: u64,
    loss: u8,
    /// Whether its watch gets anything.
    has_watch: bool,
}

const GOOD: Link = Link { delay: 20, loss: 0, has_watch: true };

struct Parcel<T> {
    due: u64,
    number: u64,
    host: usize,
    /// Of which process.
    life: u64,
    content: T,
}

struct Broker {
    bucket: i128,
    revision: u64,
    records: BTreeMap<Key, (u64, Value)>,
    is_away: bool,
}

impl Broker {
    fn write(&mut self, write: &Write) -> Result<u64, Option<(u64, Value)>> {
        let found = self.records.get(&write.key).copied();
        if found.map_or(0, |(revision, _)| revision) != write.follows {
            return Err(found);
        }
        self.revision += 1;
        self.records.insert(write.key, (self.revision, write.value));
        Ok(self.revision)
    }
}

struct Node<C> {
    zero: u64,
    /// Millionths by which its clock is fast or slow.
    drift: i64,
    is_awake: bool,
    link: Link,
    life: u64,
    /// Its watch has missed something, and begins anew.
    has_gap: bool,
    /// When the last of its watch arrives.
    watch: u64,
    process: Process<C>,
}

impl<C> Node<C> {
    fn clock(&self, now: u64) -> Duration {
        let fast = now as i64 * 1_000 * self.drift / 1_000_000;
        Duration::from_micros((self.zero + now * 1_000).saturating_add_signed(fast))
    }
}

struct World<C> {
    now: u64,
    random: fastrand::Rng,
    broker: Broker,
    nodes: Vec<Node<C>>,
    takes: Vec<bool>,
    things: usize,
    parcels: u64,
    to_broker: Vec<Parcel<Write>>,
    to_hosts: Vec<Parcel<Notice>>,
}

impl<C: Claims> World<C> {
    fn new(things: usize, hosts: &[Host], seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let nodes = hosts.iter().map(|&host| Node {
            zero: random.u64(0..1_000_000_000_000),
            drift: random.u64(0..=2 * DRIFT) as i64 - DRIFT as i64,
            is_awake: true,
            link: GOOD,
            life: 0,
            has_gap: true,
            watch: 0,
            process: Process::new(host, random.u64(..)),
        });
        let nodes: Vec<_> = nodes.collect();
        Self {
            now: 0,
            random,
            broker: Broker { bucket: 0, revision: 0, records: BTreeMap::new(), is_away: false },
            takes: vec![true; nodes.len()],
            nodes,
            things,
            parcels: 0,
            to_broker: Vec::new(),
            to_hosts: Vec::new(),
        }
    }

    fn take(&mut self, step: Step) {
        let hosts = self.nodes.len();
        match step {
            Step::Pass { ms } => self.pass(ms),
            Step::Pause(host) => self.nodes[host % hosts].is_awake = false,
            Step::Resume(host) => self.nodes[host % hosts].is_awake = true,
            Step::Kill(host) => {
                let number = self.random.u64(..);
                let node = &mut self.nodes[host % hosts];
                node.process = Process::new(node.process.me, number);
                node.life += 1;
                node.has_gap = true;
                node.is_awake = true;
            }
            Step::Link { host, link } => self.nodes[host % hosts].link = link,
            Step::Broker { away } => {
                self.broker.is_away = away;
                self.nodes.iter_mut().for_each(|node| node.has_gap = true);
            }
            Step::Wipe => {
                self.broker.bucket += 1;
                self.broker.revision = 0;
                self.broker.records.clear();
                self.nodes.iter_mut().for_each(|node| node.has_gap = true);
            }
            Step::Takes { host, takes } => self.takes[host % hosts] = takes,
        }
        self.check();
    }

    fn pass(&mut self, ms: u64) {
        let until = self.now + ms;
        while self.now < until {
            self.tick();
        }
    }

    /// No further faults. The hosts that are gone stay paused.
    fn heal(&mut self, gone: impl Fn(usize) -> bool) {
        self.broker.is_away = false;
        for (host, node) in self.nodes.iter_mut().enumerate() {
            node.link = GOOD;
            node.has_gap = true;
            node.is_awake = !gone(host);
            node.watch = node.watch.min(self.now + GOOD.delay);
        }
        let soon = self.now + GOOD.delay;
        self.to_broker.iter_mut().for_each(|parcel| parcel.due = parcel.due.min(soon));
        self.to_hosts.iter_mut().for_each(|parcel| parcel.due = parcel.due.min(soon));
    }

    fn tick(&mut self) {
        self.now += TICK;
        self.deliver_to_broker();
        for host in 0..self.nodes.len() {
            let node = &mut self.nodes[host];
            if node.has_gap
                && node.link.has_watch
                && !self.broker.is_away
                && (node.link == GOOD || self.random.u8(0..4) == 0)
            {
                node.has_gap = false;
                let bucket = Bucket(self.broker.bucket);
                let (records, revision) = (self.broker.records.clone(), self.broker.revision);
                self.show(host, Notice::All { bucket, records, revision });
            }
        }
        self.deliver_to_hosts();
        let takers = self.takers();
        for host in 0..self.nodes.len() {
            let node = &mut self.nodes[host];
            if node.is_awake {
                let now = node.clock(self.now);
                for write in node.process.tick(&takers, now) {
                    self.send(host, write);
                }
                // It has forgotten what it saw.
                let node = &mut self.nodes[host];
                node.has_gap |= node.process.sessions.is_none();
            }
        }
        self.check();
    }

    fn deliver_to_broker(&mut self) {
        if self.broker.is_away {
            // Half of what is sent meanwhile waits.
            self.to_broker.retain(|parcel| parcel.due > self.now || parcel.number % 2 == 0);
            return;
        }
        for parcel in due(&mut self.to_broker, |parcel| parcel.due <= self.now) {
            let write = parcel.content;
            let result = self.broker.write(&write);
            if let Ok(revision) = result {
                for host in 0..self.nodes.len() {
                    self.show(host, Notice::Change { key: write.key, value: write.value, revision });
                }
            }
            let bucket = Bucket(self.broker.bucket);
            let answer = Notice::Answer { write, bucket, result };
            if let Some(due) = self.arrival(parcel.host) {
                self.parcels += 1;
                let number = self.parcels;
                self.to_hosts.push(Parcel { due, number, host: parcel.host, life: parcel.life, content: answer });
            }
        }
    }

    fn deliver_to_hosts(&mut self) {
        let (now, nodes) = (self.now, &mut self.nodes);
        for parcel in due(&mut self.to_hosts, |parcel| parcel.due <= now && nodes[parcel.host].is_awake) {
            let node = &mut nodes[parcel.host];
            let clock = node.clock(now);
            if parcel.life == node.life {
                node.process.hear(parcel.content, clock);
            }
        }
    }

    fn send(&mut self, host: usize, content: Write) {
        self.parcels += 1;
        if let Some(due) = self.arrival(host) {
            self.to_broker.push(Parcel { due, number: self.parcels, host, life: self.nodes[host].life, content });
        }
    }

    /// To a host's watch: in order, and nothing after what was lost.
    fn show(&mut self, host: usize, content: Notice) {
        if self.nodes[host].has_gap {
            return;
        }
        let Some(due) = self.arrival(host).filter(|_| self.nodes[host].link.has_watch) else {
            self.nodes[host].has_gap = true;
            return;
        };
        self.parcels += 1;
        let node = &mut self.nodes[host];
        node.watch = node.watch.max(due);
        self.to_hosts.push(Parcel { due: node.watch, number: self.parcels, host, life: node.life, content });
    }

    /// When what is sent now arrives, if it does.
    fn arrival(&mut self, host: usize) -> Option<u64> {
        let Link { delay, loss, .. } = self.nodes[host].link;
        (self.random.u8(0..100) >= loss).then(|| self.now + self.random.u64(0..=delay))
    }

    fn takers(&self) -> Vec<Host> {
        self.nodes.iter().zip(&self.takes).filter(|(_, takes)| **takes).map(|(node, _)| node.process.me).collect()
    }

    /// Who owns a thing, whether it is paused or not.
    fn owners(&self, thing: usize) -> Vec<Host> {
        let owns = |node: &&Node<C>| {
            let claims = node.process.joined.as_ref();
            claims.is_some_and(|(_, claims)| claims.owns(thing, node.clock(self.now)))
        };
        self.nodes.iter().filter(owns).map(|node| node.process.me).collect()
    }

    fn check(&self) {
        for thing in 0..self.things {
            let owners = self.owners(thing);
            assert!(owners.len() <= 1, "{thing} is owned by {owners:?} at {} ms", self.now);
        }
    }
}

/// Takes out what is due, the first first.
fn due<T>(parcels: &mut Vec<Parcel<T>>, is_due: impl Fn(&Parcel<T>) -> bool) -> Vec<Parcel<T>> {
    let mut due: Vec<_> = parcels.extract_if(.., |parcel| is_due(parcel)).collect();
    due.sort_by_key(|parcel| (parcel.due, parcel.number));
    due
}
