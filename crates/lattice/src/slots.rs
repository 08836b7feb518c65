//! Keyed kinds over hosts: a name belongs to a slot, and a slot to one host, which alone activates the names in it.
//!
//! Pure, as [`lease`](crate::lease) is: told what was seen and when, it says what to write, each write with the revision
//! that it follows. A slot's record names its owner, and is free as long as there is none. It is written by
//! - a host that the slot should belong to, if it is free or its owner's session is over;
//! - its owner, to hand it over. Whoever is named there owns it from then on.
//!
//! Before it hands a slot over, the owner drains it: it activates nothing in it and passivates what is in memory. That
//! may take too long, and then it goes on as owner. From the first attempt to hand it over on it owns nothing in that
//! slot until a later record says so, since what was sent may be written at any time.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::lease::{Fence, Owner, Sessions, Standing, Token};

pub(crate) const SLOTS: usize = 1_024;

/// The slot of a name.
pub(crate) fn slot_of(name: &str) -> usize {
    // 1,024 divides 2³², so that the rest of the first bytes is as even as the digest.
    let [a, b, c, d, ..] = *blake3::hash(name.as_bytes()).as_bytes();
    u32::from_le_bytes([a, b, c, d]) as usize % SLOTS
}

/// Whom of the hosts a slot should belong to: rendezvous hashing. Of n hosts, one that comes or goes moves one slot in n,
/// and no other.
pub(crate) fn place<'a, H: AsRef<str> + Ord + 'a>(
    slot: usize,
    hosts: impl IntoIterator<Item = &'a H>,
) -> Option<&'a H> {
    hosts.into_iter().max_by_key(|host| (weight(slot, host.as_ref()), *host))
}

fn weight(slot: usize, host: &str) -> [u8; 8] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(slot as u64).to_le_bytes()).update(host.as_bytes());
    let mut weight = [0; 8];
    hasher.finalize_xof().fill(&mut weight);
    weight
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// How many slots are claimed, drained or handed over at a time.
    pub(crate) moving: usize,
    /// How long a slot may drain.
    pub(crate) drain: Duration,
    /// After a drain that took longer, until the next.
    pub(crate) rest: Duration,
    /// How long to wait for the answer to a write before it is sent again.
    pub(crate) answer: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            moving: 64,
            // Meanwhile keys of the slot that are not in memory are nobody's.
            drain: Duration::from_secs(2),
            rest: Duration::from_secs(30),
            answer: Duration::from_secs(2),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action<H> {
    /// Write this host as the owner.
    Claim { slot: usize, follows: u64 },
    /// Activate nothing in the slot, passivate what is in memory, then say [`drained`](Slots::drained).
    Drain { slot: usize, to: H, attempt: u64 },
    /// The slot is not to be drained any more.
    Resume { slot: usize },
    /// Write another host as the owner.
    HandOver { slot: usize, to: Owner<H>, follows: u64 },
    /// The host is fenced: it owns no slot, and has to end all that runs in them. It is the last action.
    Fenced,
}

/// What a host may do in a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub(crate) enum Holding {
    Nothing = 0,
    /// Handle messages to what is in memory.
    Draining = 1,
    /// Activate as well.
    All = 2,
}

/// What a host owns under a session, for any thread to look at.
#[derive(Debug)]
pub(crate) struct Holdings {
    fence: Fence,
    /// The revision of each slot's record, and in the two lowest bits what the host may do in it.
    slots: Box<[AtomicU64]>,
}

impl Holdings {
    pub(crate) fn get(&self, slot: usize, now: Duration) -> Holding {
        if self.fence.is_up(now) { Holding::Nothing } else { self.load(slot).1 }
    }

    pub(crate) fn owns(&self, slot: usize, now: Duration) -> bool {
        self.get(slot, now) != Holding::Nothing
    }

    /// How many slots it owns.
    pub(crate) fn count(&self, now: Duration) -> usize {
        (0..self.slots.len()).filter(|slot| self.owns(*slot, now)).count()
    }

    /// The latest revision by which it owns a slot in which it may activate: a later one when a slot has come.
    pub(crate) fn latest(&self, now: Duration) -> u64 {
        (0..self.slots.len()).filter_map(|slot| self.tenure(slot, now)).max().unwrap_or_default()
    }

    /// Since which revision it owns a slot in which it may activate.
    pub(crate) fn tenure(&self, slot: usize, now: Duration) -> Option<u64> {
        let (revision, holding) = self.load(slot);
        (holding == Holding::All && !self.fence.is_up(now)).then_some(revision)
    }

    /// Whether it has owned a slot ever since that revision.
    pub(crate) fn holds(&self, slot: usize, since: u64, now: Duration) -> bool {
        let (revision, holding) = self.load(slot);
        revision == since && holding != Holding::Nothing && !self.fence.is_up(now)
    }

    fn load(&self, slot: usize) -> (u64, Holding) {
        let word = self.slots.get(slot).map_or(0, |slot| slot.load(Ordering::Acquire));
        let holding = match word & 3 {
            1 => Holding::Draining,
            2 => Holding::All,
            _ => Holding::Nothing,
        };
        (word >> 2, holding)
    }

    fn set(&self, slot: usize, revision: u64, holding: Holding) {
        self.slots[slot].store(revision << 2 | holding as u64, Ordering::Release);
    }
}

/// The slots as one host sees them, for as long as a session.
pub(crate) struct Slots<H> {
    me: H,
    token: Token,
    bounds: Bounds,
    holdings: Arc<Holdings>,
    slots: Vec<Slot<H>>,
    attempts: u64,
    /// Whether it takes no slots any more.
    is_leaving: bool,
    is_fenced: bool,
}

struct Slot<H> {
    /// Of the last record known, 0 if there is none.
    revision: u64,
    owner: Option<Owner<H>>,
    /// Whom it should belong to.
    place: Option<H>,
    phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Still,
    /// It is not drained before that time.
    Resting {
        until: Duration,
    },
    Claiming {
        sent: Duration,
    },
    Draining {
        attempt: u64,
        until: Duration,
    },
    /// This host is the owner by the last record known, and may be it no longer.
    HandingOver {
        /// `None`: not yet.
        sent: Option<Duration>,
    },
}

impl<H: Clone + Ord + AsRef<str>> Slots<H> {
    pub(crate) fn new(me: H, token: Token, fence: Fence, bounds: Bounds) -> Self {
        Self::with_count(me, token, fence, bounds, SLOTS)
    }

    pub(crate) fn with_count(me: H, token: Token, fence: Fence, bounds: Bounds, count: usize) -> Self {
        let slots = (0..count).map(|_| AtomicU64::new(0)).collect();
        let new = || Slot { revision: 0, owner: None, place: None, phase: Phase::Still };
        Self {
            me,
            token,
            bounds,
            holdings: Arc::new(Holdings { fence, slots }),
            slots: std::iter::repeat_with(new).take(count).collect(),
            attempts: 0,
            is_leaving: false,
            is_fenced: false,
        }
    }

    pub(crate) fn holdings(&self) -> Arc<Holdings> {
        self.holdings.clone()
    }

    /// The hosts that take slots are these: live ones that are not about to leave.
    pub(crate) fn hosts(&mut self, hosts: &BTreeSet<H>) {
        self.is_leaving = !hosts.contains(&self.me);
        for (number, slot) in self.slots.iter_mut().enumerate() {
            slot.place = place(number, hosts).cloned();
        }
    }

    /// A slot's record was seen, or written by this host. There is nothing to do for a number that is too high.
    pub(crate) fn record(&mut self, number: usize, owner: Owner<H>, revision: u64) {
        let Some(slot) = self.slots.get_mut(number) else { return };
        // What was written here may be known before the watch shows what was there before.
        if revision <= slot.revision {
            return;
        }
        let is_mine = owner.token.is_same_session(&self.token) && !self.is_fenced;
        self.holdings.set(number, revision, if is_mine { Holding::All } else { Holding::Nothing });
        slot.revision = revision;
        slot.owner = Some(owner);
        slot.phase = Phase::Still;
    }

    /// A write to a slot's record was refused, and the record has been read since, where it is decided.
    pub(crate) fn refused(&mut self, number: usize, follows: u64, found: Option<(Owner<H>, u64)>) -> Standing {
        match found {
            Some((owner, revision)) if revision >= follows => self.record(number, owner, revision),
            None if follows == 0 => {}
            Some(_) | None => return Standing::Anew,
        }
        Standing::Holds
    }

    /// A slot is drained, as was asked for.
    pub(crate) fn drained(&mut self, number: usize, attempt: u64) {
        let Some(slot) = self.slots.get_mut(number) else { return };
        if matches!(slot.phase, Phase::Draining { attempt: current, .. } if current == attempt) {
            slot.phase = Phase::HandingOver { sent: None };
            self.holdings.set(number, slot.revision, Holding::Nothing);
        }
    }

    /// What is to be done now. To be asked after what was told, and at every renewal.
    pub(crate) fn actions(&mut self, sessions: &Sessions<H>, now: Duration) -> Vec<Action<H>> {
        if self.holdings.fence.is_up(now) {
            let is_news = !std::mem::replace(&mut self.is_fenced, true);
            (0..self.slots.len()).for_each(|slot| self.holdings.set(slot, 0, Holding::Nothing));
            return is_news.then_some(Action::Fenced).into_iter().collect();
        }
        let mut room = self.bounds.moving.saturating_sub(self.moving());
        let mut actions = Vec::new();
        // A host that leaves tries those again that would rest, behind all others: they may be too busy for as long as it is there.
        let is_last = |number: &usize| self.is_leaving && self.slots[*number].phase.rests(now);
        let (last, first): (Vec<_>, Vec<_>) = (0..self.slots.len()).partition(is_last);
        for number in first.into_iter().chain(last) {
            let moved = self.slots[number].phase.moves();
            actions.extend(self.action(number, moved || room > 0, sessions, now));
            match (moved, self.slots[number].phase.moves()) {
                (false, true) => room -= 1,
                (true, false) => room += 1,
                (true, true) | (false, false) => {}
            }
        }
        actions
    }

    /// How many slots have this host as their owner by the last record known, or may have it by what it has written since.
    pub(crate) fn named(&self) -> usize {
        self.slots.iter().filter(|slot| self.is_mine(slot) || matches!(slot.phase, Phase::Claiming { .. })).count()
    }

    fn is_mine(&self, slot: &Slot<H>) -> bool {
        slot.owner.as_ref().is_some_and(|owner| owner.token.is_same_session(&self.token))
    }

    /// How many slots are on their way.
    pub(crate) fn moving(&self) -> usize {
        self.slots.iter().filter(|slot| slot.phase.moves()).count()
    }

    fn action(&mut self, number: usize, has_room: bool, sessions: &Sessions<H>, now: Duration) -> Option<Action<H>> {
        let slot = &mut self.slots[number];
        let follows = slot.revision;
        let is_mine = slot.owner.as_ref().is_some_and(|owner| owner.token.is_same_session(&self.token));
        let is_for_me = slot.place.as_ref() == Some(&self.me);
        // Another, if that is there.
        let other = || {
            let host = slot.place.as_ref().filter(|_| !is_for_me)?;
            let (_, token) = sessions.live(now).find(|(live, _)| *live == host)?;
            Some(Owner { host: host.clone(), token })
        };
        match slot.phase {
            Phase::Draining { until, .. } if other().is_none() || now >= until => {
                let until = if now >= until { now + self.bounds.rest } else { now };
                slot.phase = Phase::Resting { until };
                self.holdings.set(number, follows, Holding::All);
                Some(Action::Resume { slot: number })
            }
            Phase::Draining { .. } => None,
            Phase::Claiming { sent } | Phase::HandingOver { sent: Some(sent) } if now < sent + self.bounds.answer => {
                None
            }
            Phase::HandingOver { .. } => {
                let other = other();
                slot.phase = Phase::HandingOver { sent: Some(now) };
                Some(match other {
                    Some(to) => Action::HandOver { slot: number, to, follows },
                    // A new revision, after which nothing that was sent before can be written.
                    None => Action::Claim { slot: number, follows },
                })
            }
            // A host that leaves has not the time.
            Phase::Resting { until } if now < until && !self.is_leaving => None,
            Phase::Still | Phase::Resting { .. } | Phase::Claiming { .. } if !has_room => None,
            Phase::Still | Phase::Resting { .. } | Phase::Claiming { .. } if is_mine => {
                let to = other()?.host;
                self.attempts += 1;
                slot.phase = Phase::Draining { attempt: self.attempts, until: now + self.bounds.drain };
                self.holdings.set(number, follows, Holding::Draining);
                Some(Action::Drain { slot: number, to, attempt: self.attempts })
            }
            Phase::Still | Phase::Resting { .. } | Phase::Claiming { .. } => {
                let may_claim = match &slot.owner {
                    None => sessions.is_settled(now),
                    Some(owner) => sessions.is_over(owner, now),
                };
                let claims = is_for_me && may_claim;
                slot.phase = if claims { Phase::Claiming { sent: now } } else { Phase::Still };
                claims.then_some(Action::Claim { slot: number, follows })
            }
        }
    }
}

impl Phase {
    fn moves(self) -> bool {
        match self {
            Self::Claiming { .. } | Self::Draining { .. } | Self::HandingOver { .. } => true,
            Self::Still | Self::Resting { .. } => false,
        }
    }

    fn rests(self, now: Duration) -> bool {
        matches!(self, Self::Resting { until } if now < until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::{Bucket, Joining, Session, Timing};

    const BUCKET: Bucket = Bucket(1);
    const BOUNDS: Bounds = Bounds {
        moving: 2,
        drain: Duration::from_secs(3),
        rest: Duration::from_secs(4),
        answer: Duration::from_secs(1),
    };

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn session(process: u64) -> Session {
        Session { process, number: 1 }
    }

    fn owner(host: &'static str, process: u64) -> Owner<&'static str> {
        Owner { host, token: Token { bucket: BUCKET, revision: process, session: session(process) } }
    }

    /// The host `a`, process 1, joined at 100 s, with `b`, process 2, and a bucket that was found at 0 s. Nothing is
    /// renewed: the fence is at 107 s.
    struct Case {
        slots: Slots<&'static str>,
        sessions: Sessions<&'static str>,
        holdings: Arc<Holdings>,
    }

    impl Case {
        fn new(hosts: &[&'static str]) -> Self {
            let mut joining = Joining::new(Timing::default(), 1);
            let attempt = joining.attempt(None, at(100)).expect("there is no record");
            let holder = joining.joined(attempt, BUCKET, 1).ok().expect("it is the last attempt");
            let mut sessions = Sessions::new(Timing::default(), BUCKET, at(0));
            for (host, process) in [("a", 1), ("b", 2)] {
                assert_eq!(sessions.saw(host, Some(session(process)), process, at(100)), Standing::Holds);
            }
            sessions.caught_up(2);
            let mut slots = Slots::new("a", holder.token(), holder.fence(), BOUNDS);
            slots.hosts(&hosts.iter().copied().collect());
            let holdings = slots.holdings();
            Self { slots, sessions, holdings }
        }

        fn actions(&mut self, now: Duration) -> Vec<Action<&'static str>> {
            self.slots.actions(&self.sessions, now)
        }

        /// Owns the slot 0, which should be `b`'s, and has drained it.
        fn drained() -> Self {
            let mut case = Self::new(&["b"]);
            case.slots.record(0, owner("a", 1), 10);
            assert_eq!(case.actions(at(101)), [Action::Drain { slot: 0, to: "b", attempt: 1 }]);
            case.slots.drained(0, 1);
            case
        }
    }

    #[test]
    fn a_host_that_leaves_tries_no_slot_again_before_it_has_tried_all() {
        let mut case = Case::new(&["b"]);
        (0..10).for_each(|slot| case.slots.record(slot, owner("a", 1), 10));
        let (mut drained, mut tries) = (BTreeSet::new(), [0; 2]);
        // Renewed often, so that the fence is not in the way.
        for quarter in 0..22 {
            for action in case.actions(at(100) + Duration::from_millis(250) * quarter) {
                match action {
                    // Too busy.
                    Action::Drain { slot: slot @ 0..2, .. } => tries[slot] += 1,
                    Action::Drain { slot, attempt, .. } => case.slots.drained(slot, attempt),
                    Action::HandOver { slot, .. } => {
                        drained.insert(slot);
                        case.slots.record(slot, owner("b", 2), 20 + slot as u64);
                    }
                    Action::Resume { .. } => {}
                    other => panic!("{other:?}"),
                }
                assert!(tries.iter().all(|tries| *tries < 2) || drained.len() == 8, "{tries:?} {drained:?}");
            }
        }
        assert_eq!((drained.len(), tries), (8, [2, 2]));
    }

    #[test]
    fn slots_of_names_are_spread() {
        let mut counts = [0_u32; SLOTS];
        (0..SLOTS * 100).for_each(|number| counts[slot_of(&format!("cart/{number}"))] += 1);
        // Six standard deviations from 100.
        assert!(counts.iter().all(|count| (40..160).contains(count)), "{counts:?}");
        // All hosts and versions have to agree.
        assert_eq!((slot_of("cart/4711"), slot_of("")), (433, 943));
    }

    #[test]
    fn a_host_that_joins_takes_its_part_and_moves_nothing_else() {
        let names: Vec<String> = (0..9).map(|number| format!("host-{number}")).collect();
        for n in 1..names.len() {
            let before = |slot| place(slot, &names[..n]);
            let after = |slot| place(slot, &names[..=n]);
            let moved: Vec<_> = (0..SLOTS).filter(|&slot| before(slot) != after(slot)).collect();
            assert!(moved.iter().all(|&slot| after(slot) == Some(&names[n])));
            let part = SLOTS / (n + 1);
            assert!((part * 3 / 4..part * 5 / 4).contains(&moved.len()), "{} of {n} hosts", moved.len());
        }
        assert_eq!(place::<String>(0, []), None);
    }

    #[test]
    fn where_slots_are_placed_is_the_same_in_all_versions() {
        let hosts = ["a", "b", "c"];
        let count = |hosts: &[&str], host| (0..SLOTS).filter(|&slot| place(slot, hosts) == Some(&host)).count();
        assert_eq!(hosts[..2].iter().map(|host| count(&hosts[..2], *host)).collect::<Vec<_>>(), [512, 512]);
        assert_eq!(hosts.map(|host| count(&hosts, host)), [340, 336, 348]);
    }

    #[test]
    fn a_free_slot_is_claimed_by_the_host_that_it_should_belong_to() {
        let mut case = Case::new(&["a", "b"]);
        let mine = (0..SLOTS).filter(|&slot| place(slot, &["a", "b"]) == Some(&"a"));
        let claims: Vec<_> = mine.take(2).map(|slot| Action::Claim { slot, follows: 0 }).collect();
        assert_eq!(case.actions(at(101)), claims, "no more at a time than the bound");
        assert_eq!(case.actions(at(101)), [], "they are unanswered");
        assert_eq!(case.actions(at(102)), claims, "they may be lost");

        let Action::Claim { slot, .. } = claims[0] else { unreachable!() };
        assert!(!case.holdings.owns(slot, at(102)));
        case.slots.record(slot, owner("a", 1), 10);
        assert!(case.holdings.owns(slot, at(102)));
        assert!(matches!(case.actions(at(102))[..], [Action::Claim { follows: 0, .. }]), "there is room again");
    }

    #[test]
    fn nothing_free_is_claimed_in_a_bucket_that_was_just_found() {
        let mut case = Case::new(&["a"]);
        case.sessions = Sessions::new(Timing::default(), BUCKET, at(92));
        assert_eq!(case.actions(at(102)), []);
        assert_eq!(case.actions(at(103)).len(), BOUNDS.moving);
    }

    #[test]
    fn a_slot_of_another_is_claimed_when_its_session_is_over_and_not_before() {
        let mut case = Case::new(&["a"]);
        (0..SLOTS).for_each(|slot| case.slots.record(slot, owner("b", 2), 10 + slot as u64));
        assert_eq!(case.actions(at(101)), []);
        assert_eq!(case.sessions.saw("b", None, 2_000, at(102)), Standing::Holds);
        let claims = [Action::Claim { slot: 0, follows: 10 }, Action::Claim { slot: 1, follows: 11 }];
        assert_eq!(case.actions(at(102)), claims);
    }

    #[test]
    fn a_refused_claim_says_who_owns_the_slot() {
        let mut case = Case::new(&["a"]);
        (2..SLOTS).for_each(|slot| case.slots.record(slot, owner("a", 1), 10));
        assert_eq!(case.actions(at(101)).len(), 2);
        assert_eq!(case.slots.refused(0, 0, Some((owner("b", 2), 20))), Standing::Holds);
        // An earlier claim of its own was written, and nobody has said so.
        assert_eq!(case.slots.refused(1, 0, Some((owner("a", 1), 21))), Standing::Holds);
        assert!(!case.holdings.owns(0, at(101)) && case.holdings.owns(1, at(101)));
        assert_eq!(case.actions(at(103)), []);
    }

    #[test]
    fn a_refusal_with_less_than_was_seen_is_of_a_bucket_made_anew() {
        let mut case = Case::new(&["a"]);
        assert_eq!(case.slots.refused(0, 7, Some((owner("b", 2), 6))), Standing::Anew);
        assert_eq!(case.slots.refused(0, 7, None), Standing::Anew);
        assert_eq!(case.slots.refused(0, 0, None), Standing::Holds);
    }

    #[test]
    fn a_record_that_is_older_than_what_is_known_changes_nothing() {
        let mut case = Case::new(&["a", "b"]);
        case.slots.record(0, owner("b", 2), 10);
        for revision in [9, 10] {
            case.slots.record(0, owner("a", 1), revision);
            assert!(!case.holdings.owns(0, at(101)));
        }
        case.slots.record(0, owner("a", 1), 11);
        assert!(case.holdings.owns(0, at(101)));
    }

    #[test]
    fn a_record_of_no_slot_is_left_alone() {
        let mut case = Case::new(&["a"]);
        case.slots.record(SLOTS, owner("a", 1), 10);
        case.slots.drained(SLOTS, 1);
        assert!(!case.holdings.owns(SLOTS, at(101)));
        case.slots.record(SLOTS - 1, owner("a", 1), 10);
        assert!(case.holdings.owns(SLOTS - 1, at(101)));
    }

    #[test]
    fn a_slot_for_another_is_drained_and_handed_over() {
        let mut case = Case::new(&["b"]);
        case.slots.record(0, owner("a", 1), 10);
        assert_eq!(case.actions(at(101)), [Action::Drain { slot: 0, to: "b", attempt: 1 }]);
        assert_eq!(case.holdings.get(0, at(101)), Holding::Draining);
        case.slots.drained(0, 1);
        assert_eq!(case.holdings.get(0, at(101)), Holding::Nothing, "it is not its owner's from here on");
        let hand_over = [Action::HandOver { slot: 0, to: owner("b", 2), follows: 10 }];
        assert_eq!(case.actions(at(101)), hand_over);
        assert_eq!(case.actions(at(101)), []);
        assert_eq!(case.actions(at(102)), hand_over, "it may be lost");
        // A late answer to its own claim.
        case.slots.record(0, owner("a", 1), 10);
        assert!(!case.holdings.owns(0, at(102)));
        case.slots.record(0, owner("b", 2), 11);
        assert_eq!(case.actions(at(104)), []);
        assert_eq!(case.slots.moving(), 0);
    }

    #[test]
    fn a_slot_that_is_handed_to_this_host_is_its_own() {
        let mut case = Case::new(&["a", "b"]);
        case.slots.record(0, owner("b", 2), 10);
        case.slots.record(0, owner("a", 1), 11);
        assert_eq!(case.holdings.get(0, at(101)), Holding::All);
        // Not if that was for a session before.
        case.slots.record(0, owner("a", 7), 12);
        assert_eq!(case.holdings.get(0, at(101)), Holding::Nothing);
    }

    #[test]
    fn a_slot_that_comes_back_is_held_anew() {
        let mut case = Case::new(&["b"]);
        case.slots.record(0, owner("a", 1), 10);
        assert_eq!(case.holdings.tenure(0, at(101)), Some(10));
        assert_eq!(case.actions(at(101)).len(), 1);
        assert_eq!(case.holdings.tenure(0, at(101)), None, "nothing is activated while it is drained");
        assert!(case.holdings.holds(0, 10, at(101)));
        case.slots.record(0, owner("b", 2), 11);
        assert!(!case.holdings.holds(0, 10, at(101)));
        case.slots.record(0, owner("a", 1), 12);
        assert_eq!((case.holdings.tenure(0, at(101)), case.holdings.count(at(101))), (Some(12), 1));
        assert!(!case.holdings.holds(0, 10, at(101)), "what is in memory is of before");
        assert!(case.holdings.holds(0, 12, at(106)) && !case.holdings.holds(0, 12, at(107)));
        assert_eq!((case.holdings.tenure(0, at(107)), case.holdings.count(at(107))), (None, 0));
    }

    #[test]
    fn a_drain_that_takes_too_long_leaves_the_slot_with_its_owner() {
        let hosts = ["a", "b"];
        let of_b: Vec<_> = (0..SLOTS).filter(|&slot| place(slot, &hosts) == Some(&"b")).take(2).collect();
        let mut case = Case::new(&hosts);
        (0..SLOTS).for_each(|slot| case.slots.record(slot, owner("b", 2), 9));
        case.slots.record(of_b[0], owner("a", 1), 10);
        assert_eq!(case.actions(at(100)).len(), 1);
        assert_eq!(case.actions(at(102)), []);
        assert_eq!(case.actions(at(103)), [Action::Resume { slot: of_b[0] }]);
        assert_eq!(case.holdings.get(of_b[0], at(103)), Holding::All);
        assert_eq!(case.actions(at(105)), [], "it rests");
        // Others may move meanwhile.
        case.slots.record(of_b[1], owner("a", 1), 11);
        assert_eq!(case.actions(at(105)), [Action::Drain { slot: of_b[1], to: "b", attempt: 2 }]);
        // It activates again: what is drained now is not what has to be.
        case.slots.drained(of_b[0], 1);
        assert_eq!(case.holdings.get(of_b[0], at(105)), Holding::All);
        // Unless the host leaves, to which no time may be left.
        case.slots.hosts(&["b"].into());
        assert_eq!(case.actions(at(105)), [Action::Drain { slot: of_b[0], to: "b", attempt: 3 }]);
    }

    #[test]
    fn a_slot_has_its_owner_until_another_is_written() {
        let mut case = Case::new(&["a"]);
        (2..SLOTS).for_each(|slot| case.slots.record(slot, owner("b", 2), 10));
        assert_eq!((case.actions(at(101)).len(), case.slots.named()), (2, 2), "it may be written any time");
        case.slots.record(0, owner("a", 1), 20);
        case.slots.record(1, owner("b", 2), 21);
        assert_eq!(case.slots.named(), 1);
        let mut case = Case::drained();
        assert_eq!((case.holdings.count(at(101)), case.slots.named()), (0, 1));
        assert_eq!((case.actions(at(101)).len(), case.slots.named()), (1, 1));
        case.slots.record(0, owner("b", 2), 11);
        assert_eq!(case.slots.named(), 0);
    }

    #[test]
    fn a_report_of_an_attempt_before_does_not_count() {
        let mut case = Case::new(&["b"]);
        case.slots.bounds.rest = Duration::ZERO;
        case.slots.record(0, owner("a", 1), 10);
        assert_eq!(case.actions(at(100)).len(), 1);
        assert_eq!(case.actions(at(103)), [Action::Resume { slot: 0 }]);
        assert_eq!(case.actions(at(103)), [Action::Drain { slot: 0, to: "b", attempt: 2 }]);
        case.slots.drained(0, 1);
        assert_eq!(case.actions(at(104)), []);
        case.slots.drained(0, 2);
        assert_eq!(case.actions(at(104)).len(), 1);
    }

    #[test]
    fn a_drain_for_a_host_that_is_gone_ends() {
        let mut case = Case::new(&["b"]);
        case.slots.record(0, owner("a", 1), 10);
        assert_eq!(case.actions(at(101)).len(), 1);
        assert_eq!(case.sessions.saw("b", None, 20, at(101)), Standing::Holds);
        assert_eq!(case.actions(at(101)), [Action::Resume { slot: 0 }]);
        assert_eq!(case.holdings.get(0, at(101)), Holding::All);
    }

    #[test]
    fn a_slot_is_taken_back_by_a_write_alone() {
        let mut case = Case::drained();
        assert_eq!(case.actions(at(101)).len(), 1);
        assert_eq!(case.sessions.saw("b", None, 20, at(101)), Standing::Holds);
        // What was sent may be written still.
        assert_eq!(case.actions(at(102)), [Action::Claim { slot: 0, follows: 10 }]);
        assert!(!case.holdings.owns(0, at(102)));
        case.slots.record(0, owner("a", 1), 21);
        assert!(case.holdings.owns(0, at(102)));
    }

    #[test]
    fn a_fenced_host_owns_nothing_and_is_told_once() {
        let mut case = Case::new(&["a"]);
        case.slots.record(0, owner("a", 1), 10);
        assert!(case.holdings.owns(0, at(106)));
        // For all threads, before anybody has asked for actions.
        assert!(!case.holdings.owns(0, at(107)));
        assert_eq!(case.actions(at(107)), [Action::Fenced]);
        assert_eq!(case.actions(at(107)), []);
        case.slots.record(1, owner("a", 1), 11);
        assert!(!case.holdings.owns(1, at(107)));
    }
}
