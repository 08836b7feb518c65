//! Slots over hosts that come, go, pause and leave.

use std::collections::BTreeSet;

use proptest::prelude::{any, prop, proptest};

use super::*;
use crate::slots::{Action, Bounds, Holding, Slots, place};

const COUNT: usize = 12;
const BOUNDS: Bounds = Bounds {
    moving: 4,
    drain: Duration::from_secs(2),
    rest: Duration::from_millis(500),
    answer: Duration::from_secs(2),
};

/// The slots of a host, and what it does in them.
struct Claimant {
    me: Host,
    token: Token,
    slots: Slots<Host>,
    takers: BTreeSet<Host>,
    /// Reports of drained slots to come: the slot, the attempt, and when.
    reports: Vec<(usize, u64, Duration)>,
    /// In which nothing is to be activated, each with the attempt.
    closed: BTreeMap<usize, u64>,
    /// In which nothing is in memory.
    empty: BTreeSet<usize>,
    random: fastrand::Rng,
    was_fenced: bool,
}

impl Claims for Claimant {
    fn new(me: Host, holder: &Holder) -> Self {
        let token = holder.token();
        let slots = Slots::with_count(me, token, holder.fence(), BOUNDS, COUNT);
        let random = fastrand::Rng::with_seed(token.session.process ^ token.session.number);
        Self {
            me,
            token,
            slots,
            takers: BTreeSet::new(),
            reports: Vec::new(),
            closed: BTreeMap::new(),
            empty: BTreeSet::new(),
            random,
            was_fenced: false,
        }
    }

    fn record(&mut self, slot: usize, owner: Owner<Host>, revision: u64) {
        self.slots.record(slot, owner, revision);
    }

    fn refused(&mut self, slot: usize, follows: u64, found: Option<(Owner<Host>, u64)>) -> Standing {
        self.slots.refused(slot, follows, found)
    }

    fn writes(&mut self, sessions: &Sessions<Host>, takers: &[Host], now: Duration) -> Vec<(usize, Owner<Host>, u64)> {
        let takers = sessions.live(now).map(|(host, _)| *host).filter(|host| takers.contains(host)).collect();
        if self.takers != takers {
            self.slots.hosts(&takers);
            self.takers = takers;
        }
        for (slot, attempt, _) in self.reports.extract_if(.., |(_, _, at)| now >= *at) {
            if self.closed.get(&slot) == Some(&attempt) {
                self.empty.insert(slot);
            }
            self.slots.drained(slot, attempt);
        }
        let mut writes = Vec::new();
        for action in self.slots.actions(sessions, now) {
            assert!(!self.was_fenced);
            match action {
                Action::Claim { slot, follows } => {
                    writes.push((slot, Owner { host: self.me, token: self.token }, follows));
                }
                Action::HandOver { slot, to, follows } => {
                    assert!(self.empty.contains(&slot) && !self.slots.holdings().owns(slot, now));
                    writes.push((slot, to, follows));
                }
                Action::Drain { slot, attempt, .. } => {
                    assert_eq!(self.slots.holdings().get(slot, now), Holding::Draining);
                    self.closed.insert(slot, attempt);
                    self.empty.remove(&slot);
                    // Some take too long, and report when they are not asked to any more.
                    let most = if self.random.u8(0..5) == 0 { 6_000 } else { 1_500 };
                    self.reports.push((slot, attempt, now + Duration::from_millis(self.random.u64(0..most))));
                }
                Action::Resume { slot } => {
                    assert_eq!(self.slots.holdings().get(slot, now), Holding::All);
                    self.closed.remove(&slot);
                    self.empty.remove(&slot);
                }
                Action::Fenced => self.was_fenced = true,
            }
        }
        assert!(self.slots.moving() <= BOUNDS.moving);
        writes
    }

    fn owns(&self, slot: usize, now: Duration) -> bool {
        self.slots.holdings().owns(slot, now)
    }
}

proptest! {
    #[test]
    fn a_slot_has_one_owner_whatever_happens_and_the_right_one_when_nothing_does(
        steps in prop::collection::vec(step(), 0..40),
        gone in 0..15_usize,
        seed in any::<u64>(),
    ) {
        let mut world = World::<Claimant>::new(COUNT, &["a", "b", "c", "d"], seed);
        for step in steps {
            world.take(step);
        }
        world.heal(|host| gone >> host & 1 == 1);
        // One that is there has to take them.
        let there = (0..4).find(|host| gone >> host & 1 == 0).expect("not all are gone");
        world.takes[there] = true;
        world.pass(60_000);
        let takers = world.takers();
        let takers: Vec<_> = takers.iter().filter(|host| {
            world.nodes.iter().any(|node| node.process.me == **host && node.is_awake)
        }).copied().collect();
        for slot in 0..COUNT {
            let right = place(slot, &takers).copied();
            assert_eq!(world.owners(slot), Vec::from_iter(right), "slot {slot}");
        }
        for node in world.nodes.iter().filter(|node| node.is_awake) {
            let (_, host) = node.process.joined.as_ref().expect("it has joined");
            assert_eq!(host.slots.moving(), 0);
        }
    }
}
