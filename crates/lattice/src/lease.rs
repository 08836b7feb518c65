//! The session of a host: a record in a KV bucket, renewed by compare-and-set. What the host itself may conclude of it,
//! and what others may.
//!
//! Pure: nothing here waits, sends or looks at a clock. Times are since any zero of the host's own clock, which must go
//! on while the machine is suspended. Two hosts' times are never compared.
//!
//! A session is over when its record says something else. Only two may write that: its host, once it has fenced itself,
//! and another that has seen no renewal for the lease and a second and writes after the revision that it saw last. The
//! compare-and-set finds whether there was a renewal that the other has not seen. Whoever evicts a host has to wait
//! as well.
//!
//! One bucket holds the sessions and what is owned under them, so that a renewal proves that both are there still. A
//! write that follows no revision could succeed in a bucket made anew: it counts if the bucket is found to be the same
//! after it. What a broker acknowledged and lost is found if it was this host's session; for the rest of it there is
//! [`Sessions::is_settled`].

use std::{
    cmp,
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use serde::{Deserialize, Serialize};

/// The longest lease. That of a host counts for all who see it.
pub(crate) const LONGEST_LEASE: Duration = Duration::from_secs(3_600);

/// Others wait that much longer than the lease.
const MARGIN: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Timing {
    pub(crate) lease: Duration,
    /// From one renewal to the next.
    pub(crate) renewal: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self { lease: Duration::from_secs(10), renewal: Duration::from_secs(2) }
    }
}

impl Timing {
    /// From the sending of a renewal to the fence. What is left of the lease is for messages in hand, and for clocks that
    /// run at different rates.
    fn fence(self) -> Duration {
        self.lease * 7 / 10
    }

    /// From the last change that was seen to the claim.
    pub(crate) fn claim(self) -> Duration {
        self.lease + MARGIN
    }
}

/// When a bucket was made, in nanoseconds of the broker's clock. A name for it: which of two came first, nobody can say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Bucket(pub(crate) i128);

/// A process draws its number at random, and numbers its sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Session {
    pub(crate) process: u64,
    pub(crate) number: u64,
}

/// A session that was in a bucket at a revision. Of two tokens of a bucket, that of the higher revision is the later;
/// those of two buckets have no order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Token {
    pub(crate) bucket: Bucket,
    pub(crate) revision: u64,
    pub(crate) session: Session,
}

impl Token {
    pub(crate) fn is_same_session(&self, other: &Self) -> bool {
        self.bucket == other.bucket && self.session == other.session
    }
}

impl PartialOrd for Token {
    fn partial_cmp(&self, other: &Self) -> Option<cmp::Ordering> {
        let order = self.revision.cmp(&other.revision);
        let is_comparable = self.bucket == other.bucket && (order.is_ne() || self.session == other.session);
        is_comparable.then_some(order)
    }
}

/// Who owns something: a name or a slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Owner<H> {
    pub(crate) host: H,
    pub(crate) token: Token,
}

/// What the bucket's answer says of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(crate) enum Standing {
    Holds,
    /// The session is over: join again.
    Rejoin,
    /// The bucket is another, or has lost what was written: forget what was seen of it, and join again.
    Anew,
}

/// When a host has to stop. Any thread may look at it: one load and a comparison. It does not open again; the next
/// session has another.
#[derive(Debug, Clone)]
pub(crate) struct Fence(Arc<AtomicU64>);

impl Fence {
    fn new(at: Duration) -> Self {
        Self(Arc::new(AtomicU64::new(nanoseconds(at))))
    }

    pub(crate) fn is_up(&self, now: Duration) -> bool {
        nanoseconds(now) >= self.0.load(Ordering::Acquire)
    }

    fn put_off(&self, at: Duration) {
        let later = |now: u64| (now != 0).then(|| now.max(nanoseconds(at)));
        // Fails if it was put up, for good.
        _ = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, later);
    }

    /// For good: it was found that the session is over.
    pub(crate) fn put_up(&self) {
        self.0.store(0, Ordering::Release);
    }
}

/// 584 years of them.
fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// A write of a session's record: when it was sent and which revision it follows, 0 if it is to be the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Renewal {
    pub(crate) session: Session,
    pub(crate) sent: Duration,
    pub(crate) follows: u64,
}

/// A host without a session.
pub(crate) struct Joining {
    timing: Timing,
    process: u64,
    /// The last one tried.
    number: u64,
}

impl Joining {
    /// For a process that has just started, and has drawn a number at random.
    pub(crate) fn new(timing: Timing, process: u64) -> Self {
        Self { timing, process, number: 0 }
    }

    /// What to write, given the record of this host's name as it was seen last. `None`: another process may hold it.
    pub(crate) fn attempt(&mut self, found: Option<&Watcher>, now: Duration) -> Option<Renewal> {
        let is_free = |found: &Watcher| {
            // This process has left all sessions it had.
            found.session.is_none_or(|session| session.process == self.process) || found.may_claim(now)
        };
        if !found.is_none_or(is_free) {
            return None;
        }
        self.number += 1;
        let session = Session { process: self.process, number: self.number };
        Some(Renewal { session, sent: now, follows: found.map_or(0, |found| found.revision) })
    }

    /// An attempt was written, and the bucket found to be this one after it. One before the last does not count, as the last may be written after it.
    pub(crate) fn joined(self, attempt: Renewal, bucket: Bucket, revision: u64) -> Result<Holder, Self> {
        if attempt.session.number != self.number {
            return Err(self);
        }
        let token = Token { bucket, revision, session: attempt.session };
        let fence = Fence::new(attempt.sent + self.timing.fence());
        Ok(Holder { joining: self, token, revision, fence, last_sent: attempt.sent })
    }
}

/// What a host knows of its own session.
pub(crate) struct Holder {
    joining: Joining,
    token: Token,
    /// The last one known.
    revision: u64,
    fence: Fence,
    last_sent: Duration,
}

impl Holder {
    /// For what is owned under this session.
    pub(crate) fn token(&self) -> Token {
        self.token
    }

    pub(crate) fn fence(&self) -> Fence {
        self.fence.clone()
    }

    pub(crate) fn is_fenced(&self, now: Duration) -> bool {
        self.fence.is_up(now)
    }

    /// When the next renewal is to be sent.
    pub(crate) fn due(&self) -> Duration {
        self.last_sent + self.joining.timing.renewal
    }

    pub(crate) fn renewal_sent(&mut self, at: Duration) -> Renewal {
        self.last_sent = at;
        Renewal { session: self.token.session, sent: at, follows: self.revision }
    }

    /// A renewal was acknowledged: it counts from when it was sent.
    pub(crate) fn renewed(&mut self, renewal: Renewal, revision: u64, now: Duration) -> Standing {
        if renewal.session != self.token.session {
            return Standing::Holds;
        }
        if revision <= renewal.follows {
            return self.lost(Standing::Anew);
        }
        if self.is_fenced(now) {
            return self.lost(Standing::Rejoin);
        }
        self.revision = self.revision.max(revision);
        self.fence.put_off(renewal.sent + self.joining.timing.fence());
        Standing::Holds
    }

    /// A renewal was refused. The record has been read since, where it is decided: a copy may be behind.
    pub(crate) fn refused(&mut self, renewal: Renewal, bucket: Bucket, found: Option<(Session, u64)>) -> Standing {
        match found {
            _ if bucket != self.token.bucket => self.lost(Standing::Anew),
            _ if renewal.session != self.token.session => Standing::Holds,
            Some((_, revision)) if revision < renewal.follows => self.lost(Standing::Anew),
            Some((session, revision)) if session == self.token.session => {
                // One that nobody has acknowledged was written. Which is not known, so it does not put off the fence; the
                // next will, and is due at once.
                if revision > self.revision {
                    self.revision = revision;
                    self.last_sent = self.last_sent.saturating_sub(self.joining.timing.renewal);
                }
                Standing::Holds
            }
            Some(_) | None => self.lost(Standing::Rejoin),
        }
    }

    fn lost(&mut self, why: Standing) -> Standing {
        self.fence.put_up();
        why
    }

    /// Fences the host for good. Nothing is owned under this session from here on.
    pub(crate) fn leave(self) -> Joining {
        self.fence.put_up();
        self.joining
    }
}

/// What a host knows of the session of another, or of one of its own name before it joins.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Watcher {
    timing: Timing,
    /// `None`: the record says that there is none.
    session: Option<Session>,
    revision: u64,
    seen: Duration,
}

impl Watcher {
    pub(crate) fn new(timing: Timing, session: Option<Session>, revision: u64, now: Duration) -> Self {
        Self { timing, session, revision, seen: now }
    }

    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    pub(crate) fn session(&self) -> Option<Session> {
        self.session
    }

    /// Whether a session that began at a revision is over.
    pub(crate) fn has_ended(&self, since: u64) -> bool {
        self.session.is_none() && self.revision >= since
    }

    /// The record as it was seen now. A watch shows them in order, so a lower revision than before means that the higher
    /// was lost.
    pub(crate) fn saw(&mut self, session: Option<Session>, revision: u64, now: Duration) -> Standing {
        match revision.cmp(&self.revision) {
            cmp::Ordering::Less => return Standing::Anew,
            cmp::Ordering::Equal => {}
            cmp::Ordering::Greater => *self = Self::new(self.timing, session, revision, now),
        }
        Standing::Holds
    }

    /// Whether the session may be ended by a write after [`revision`](Self::revision).
    pub(crate) fn may_claim(&self, now: Duration) -> bool {
        now >= self.seen + self.timing.claim()
    }
}

/// What a host knows of all sessions in a bucket.
pub(crate) struct Sessions<H> {
    timing: Timing,
    bucket: Bucket,
    found: Duration,
    /// All that was written up to this one was seen.
    revision: u64,
    hosts: BTreeMap<H, Watcher>,
}

impl<H: Ord> Sessions<H> {
    /// Of a bucket that was found now.
    pub(crate) fn new(timing: Timing, bucket: Bucket, now: Duration) -> Self {
        Self { timing, bucket, found: now, revision: 0, hosts: BTreeMap::new() }
    }

    pub(crate) fn bucket(&self) -> Bucket {
        self.bucket
    }

    /// Of this bucket instead, which was found now.
    pub(crate) fn reset(&mut self, bucket: Bucket, now: Duration) {
        *self = Self::new(self.timing, bucket, now);
    }

    /// A host has this lease: nothing is claimed before the longest that was seen is over.
    pub(crate) fn has_lease(&mut self, lease: Duration) {
        if lease > self.timing.lease {
            self.timing.lease = lease;
            self.hosts.values_mut().for_each(|watcher| watcher.timing = self.timing);
        }
    }

    /// A host's record as it was seen now: see [`Watcher::saw`].
    pub(crate) fn saw(&mut self, host: H, session: Option<Session>, revision: u64, now: Duration) -> Standing {
        let new = Watcher::new(self.timing, session, revision, now);
        self.hosts.entry(host).or_insert(new).saw(session, revision, now)
    }

    /// All records up to a revision were seen. The first records that a watch shows have gaps between them: this is to
    /// be called after the last of those, and after each that follows.
    pub(crate) fn caught_up(&mut self, revision: u64) {
        self.revision = self.revision.max(revision);
    }

    pub(crate) fn get(&self, host: &H) -> Option<&Watcher> {
        self.hosts.get(host)
    }

    /// The hosts whose sessions may be there still, each with a token of its session.
    pub(crate) fn live(&self, now: Duration) -> impl Iterator<Item = (&H, Token)> {
        self.hosts.iter().filter(move |(_, watcher)| !watcher.may_claim(now)).filter_map(|(host, watcher)| {
            let session = watcher.session?;
            Some((host, Token { bucket: self.bucket, revision: watcher.revision, session }))
        })
    }

    /// Sessions to be ended, each by a write after that revision. One's own may be among them after a pause.
    pub(crate) fn lapsed(&self, now: Duration) -> impl Iterator<Item = (&H, u64)> {
        let is_lapsed = move |watcher: &Watcher| watcher.session.is_some() && watcher.may_claim(now);
        self.hosts.iter().filter(move |(_, watcher)| is_lapsed(watcher)).map(|(host, watcher)| (host, watcher.revision))
    }

    /// When the next session may be ended, of those that could not be yet.
    pub(crate) fn next_lapse(&self, now: Duration) -> Option<Duration> {
        let with_session = self.hosts.values().filter(|watcher| watcher.session.is_some() && !watcher.may_claim(now));
        with_session.map(|watcher| watcher.seen + self.timing.claim()).min()
    }

    /// Whether an owner owns nothing any more, for certain: another may claim what it had.
    pub(crate) fn is_over(&self, owner: &Owner<H>, now: Duration) -> bool {
        if owner.token.bucket != self.bucket {
            // Of one before: a host whose bucket is replaced is fenced before anything can be claimed in the new one.
            return self.is_settled(now);
        }
        let current = self.hosts.get(&owner.host).and_then(|watcher| watcher.session);
        // Later than what was seen here: nothing is known of it.
        owner.token.revision <= self.revision && current != Some(owner.token.session)
    }

    /// Whether what nobody owns in this bucket may be claimed: whoever owned it in one that was lost is fenced by now.
    pub(crate) fn is_settled(&self, now: Duration) -> bool {
        now >= self.found + self.timing.claim()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUCKET: Bucket = Bucket(1);
    const MADE_ANEW: Bucket = Bucket(2);

    fn at(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    fn session(process: u64) -> Session {
        Session { process, number: 1 }
    }

    fn token(revision: u64, process: u64) -> Token {
        Token { bucket: BUCKET, revision, session: session(process) }
    }

    /// Of the process 1. Its record has the revision 5, and was sent at 100 s.
    fn holder() -> Holder {
        let mut joining = Joining::new(Timing::default(), 1);
        let attempt = joining.attempt(None, at(100.0)).expect("there is no record");
        assert_eq!(attempt.follows, 0);
        joining.joined(attempt, BUCKET, 5).ok().expect("it is the last attempt")
    }

    #[test]
    fn a_holder_is_fenced_from_seven_tenths_of_the_lease_after_the_last_acknowledged_renewal_was_sent() {
        let mut holder = holder();
        assert!(!holder.is_fenced(at(106.9)));
        assert!(holder.is_fenced(at(107.0)));
        assert_eq!(holder.due(), at(102.0));

        let renewal = holder.renewal_sent(at(102.0));
        assert_eq!(renewal.follows, 5);
        assert!(holder.is_fenced(at(107.0)), "it is not acknowledged");
        // It counts from when it was sent.
        assert_eq!(holder.renewed(renewal, 8, at(106.5)), Standing::Holds);
        assert!(!holder.is_fenced(at(108.9)));
        assert!(holder.is_fenced(at(109.0)));
    }

    #[test]
    fn an_acknowledgement_out_of_order_moves_nothing_back() {
        let mut holder = holder();
        let first = holder.renewal_sent(at(102.0));
        let second = holder.renewal_sent(at(104.0));
        assert_eq!(holder.renewed(second, 9, at(104.1)), Standing::Holds);
        assert_eq!(holder.renewed(first, 8, at(104.2)), Standing::Holds);
        assert!(!holder.is_fenced(at(110.9)));
        assert_eq!(holder.renewal_sent(at(106.0)).follows, 9);
    }

    #[test]
    fn a_late_acknowledgement_does_not_lift_the_fence() {
        let mut holder = holder();
        let fence = holder.fence();
        let renewal = holder.renewal_sent(at(106.0));
        assert_eq!(holder.renewed(renewal, 8, at(107.0)), Standing::Rejoin);
        assert!(fence.is_up(at(106.5)), "it is up for good");

        // The next session has a fence of its own.
        let mut joining = holder.leave();
        let found = Watcher::new(Timing::default(), Some(session(1)), 8, at(107.0));
        let attempt = joining.attempt(Some(&found), at(108.0)).expect("it is its own");
        let mut holder = joining.joined(attempt, BUCKET, 10).ok().expect("it is the last attempt");
        assert!(!holder.is_fenced(at(108.0)) && fence.is_up(at(108.0)));
        // What was sent under the one before says nothing of this one.
        assert_eq!(holder.renewed(renewal, 8, at(109.0)), Standing::Holds);
        assert_eq!(holder.refused(renewal, BUCKET, None), Standing::Holds);
        assert!(!holder.is_fenced(at(114.9)) && holder.is_fenced(at(115.0)));
    }

    #[test]
    fn a_fence_that_was_put_up_is_not_put_off() {
        let mut holder = holder();
        let fence = holder.fence();
        let renewal = holder.renewal_sent(at(102.0));
        assert_eq!(holder.renewed(renewal, 8, at(102.1)), Standing::Holds);
        assert!(!fence.is_up(at(108.9)), "the control");
        fence.put_up();
        // Another has put it up after the holder has looked at it.
        fence.put_off(at(200.0));
        assert!(fence.is_up(at(102.2)));
    }

    #[test]
    fn a_host_that_leaves_is_fenced_at_once() {
        let holder = holder();
        let fence = holder.fence();
        assert!(!fence.is_up(at(100.0)));
        let _joining = holder.leave();
        assert!(fence.is_up(at(100.0)));
    }

    #[test]
    fn a_renewal_without_an_acknowledgement_is_found_and_followed_by_another_at_once() {
        let mut holder = holder();
        let _lost = holder.renewal_sent(at(102.0));
        let again = holder.renewal_sent(at(104.0));
        assert_eq!(again.follows, 5);
        assert_eq!(holder.refused(again, BUCKET, Some((session(1), 7))), Standing::Holds);
        // Which of the two was written, nobody knows.
        assert!(holder.is_fenced(at(107.0)));
        assert!(holder.due() <= at(104.0));
        let renewal = holder.renewal_sent(at(104.1));
        assert_eq!(renewal.follows, 7);
        assert_eq!(holder.renewed(renewal, 9, at(104.2)), Standing::Holds);
        assert!(!holder.is_fenced(at(111.0)));
    }

    #[test]
    fn a_refusal_says_whether_to_join_again_and_whether_to_forget() {
        let cases = [
            (BUCKET, Some((session(1), 5)), Standing::Holds),
            (BUCKET, Some((session(2), 9)), Standing::Rejoin),
            (BUCKET, None, Standing::Rejoin),
            (BUCKET, Some((session(1), 4)), Standing::Anew),
            (BUCKET, Some((session(2), 4)), Standing::Anew),
            (MADE_ANEW, Some((session(1), 9)), Standing::Anew),
            (MADE_ANEW, None, Standing::Anew),
        ];
        for (bucket, found, standing) in cases {
            let mut holder = holder();
            let renewal = holder.renewal_sent(at(102.0));
            assert_eq!(holder.refused(renewal, bucket, found), standing, "{bucket:?} {found:?}");
            assert_eq!(holder.is_fenced(at(102.0)), standing != Standing::Holds);
        }
    }

    #[test]
    fn a_renewal_whose_revision_is_not_higher_is_in_another_bucket() {
        let mut holder = holder();
        let renewal = holder.renewal_sent(at(102.0));
        assert_eq!(holder.renewed(renewal, 5, at(102.1)), Standing::Anew);
        assert!(holder.is_fenced(at(102.1)));
    }

    #[test]
    fn nothing_is_claimed_before_the_longest_lease_is_over_that_any_host_has() {
        let mut sessions = Sessions::new(Timing::default(), BUCKET, at(0.0));
        assert_eq!(sessions.saw("a", Some(session(1)), 5, at(0.0)), Standing::Holds);
        sessions.has_lease(Duration::from_secs(3));
        let may_claim = |sessions: &Sessions<&str>, now| sessions.get(&"a").expect("it was seen").may_claim(at(now));
        assert!(!may_claim(&sessions, 10.9) && may_claim(&sessions, 11.0) && sessions.is_settled(at(11.0)));
        sessions.has_lease(Duration::from_secs(30));
        assert!(!may_claim(&sessions, 30.9) && may_claim(&sessions, 31.0));
        assert!(!sessions.is_settled(at(30.9)) && sessions.is_settled(at(31.0)));
        // Those of a bucket that is lost are remembered: who had them may have them still.
        sessions.reset(MADE_ANEW, at(100.0));
        assert!(!sessions.is_settled(at(130.9)) && sessions.is_settled(at(131.0)));
    }

    #[test]
    fn only_the_last_attempt_to_join_counts() {
        let mut joining = Joining::new(Timing::default(), 1);
        let first = joining.attempt(None, at(0.0)).expect("there is no record");
        let second = joining.attempt(None, at(2.0)).expect("there is no record");
        assert_ne!(first.session, second.session);
        let joining = joining.joined(first, BUCKET, 1).err().expect("it is not the last");
        let holder = joining.joined(second, BUCKET, 2).ok().expect("it is the last");
        assert!(!holder.is_fenced(at(8.9)) && holder.is_fenced(at(9.0)));
    }

    #[test]
    fn a_host_joins_over_its_own_session_an_ended_one_or_one_that_has_lapsed() {
        let mut joining = Joining::new(Timing::default(), 1);
        let found = |session| Watcher::new(Timing::default(), session, 7, at(50.0));
        let mut follows = |session, now| joining.attempt(Some(&found(session)), now).map(|attempt| attempt.follows);
        assert_eq!(follows(Some(session(1)), at(50.0)), Some(7));
        assert_eq!(follows(None, at(50.0)), Some(7));
        // Another process may have it still.
        assert_eq!(follows(Some(session(2)), at(60.9)), None);
        assert_eq!(follows(Some(session(2)), at(61.0)), Some(7));
    }

    #[test]
    fn a_session_may_be_ended_after_the_lease_and_a_second_without_a_change() {
        let mut watcher = Watcher::new(Timing::default(), Some(session(1)), 5, at(0.0));
        assert!(!watcher.may_claim(at(10.9)) && watcher.may_claim(at(11.0)));
        // The same revision is no change.
        assert_eq!(watcher.saw(Some(session(1)), 5, at(10.0)), Standing::Holds);
        assert!(watcher.may_claim(at(11.0)));
        assert_eq!(watcher.saw(Some(session(1)), 6, at(10.0)), Standing::Holds);
        assert!(!watcher.may_claim(at(20.9)) && watcher.may_claim(at(21.0)));
        assert_eq!(watcher.revision(), 6);
        assert_eq!(watcher.saw(Some(session(1)), 5, at(22.0)), Standing::Anew);
    }

    #[test]
    fn an_owner_is_over_when_its_record_is_known_to_say_something_else() {
        let owner = |revision, process| Owner { host: "a", token: token(revision, process) };
        let mut sessions = Sessions::new(Timing::default(), BUCKET, at(0.0));
        assert_eq!(sessions.saw("a", Some(session(1)), 5, at(0.0)), Standing::Holds);
        sessions.caught_up(9);
        assert!(!sessions.is_over(&owner(5, 1), at(99.0)), "that it has lapsed is not enough");
        assert!(sessions.is_over(&owner(4, 2), at(0.0)));
        assert!(!sessions.is_over(&owner(10, 2), at(0.0)), "later than what was seen");
        assert_eq!(sessions.lapsed(at(11.0)).collect::<Vec<_>>(), [(&"a", 5)]);
        assert_eq!(sessions.live(at(10.9)).collect::<Vec<_>>(), [(&"a", token(5, 1))]);
        assert_eq!((sessions.lapsed(at(10.9)).count(), sessions.live(at(11.0)).count()), (0, 0));

        assert_eq!(sessions.saw("a", None, 12, at(11.0)), Standing::Holds);
        assert!(sessions.is_over(&owner(5, 1), at(11.0)));
        assert_eq!((sessions.lapsed(at(99.0)).count(), sessions.live(at(11.0)).count()), (0, 0));
        // A host without a record had one once.
        let gone = Owner { host: "b", token: token(3, 3) };
        assert!(sessions.is_over(&gone, at(11.0)));
    }

    #[test]
    fn the_next_session_to_be_ended_is_told_before_it_may_be() {
        let mut sessions = Sessions::new(Timing::default(), BUCKET, at(0.0));
        assert_eq!(sessions.next_lapse(at(0.0)), None);
        for (host, process, seen) in [("a", 1, 1.0), ("b", 2, 3.0)] {
            let session = Some(session(process));
            assert_eq!(sessions.saw(host, session, process, at(seen)), Standing::Holds);
        }
        assert_eq!(sessions.saw("c", None, 3, at(0.5)), Standing::Holds);
        assert_eq!(sessions.next_lapse(at(11.9)), Some(at(12.0)));
        assert_eq!(sessions.lapsed(at(12.0)).collect::<Vec<_>>(), [(&"a", 1)]);
        // Those that may be ended already are not waited for.
        assert_eq!(sessions.next_lapse(at(12.0)), Some(at(14.0)));
        assert_eq!(sessions.next_lapse(at(14.0)), None);
    }

    #[test]
    fn what_is_of_a_bucket_before_or_of_nobody_waits_until_all_are_fenced() {
        let sessions = Sessions::new(Timing::default(), MADE_ANEW, at(5.0));
        let owner = Owner { host: "a", token: token(3, 1) };
        assert!(!sessions.is_settled(at(15.9)) && !sessions.is_over(&owner, at(15.9)));
        assert!(sessions.is_settled(at(16.0)) && sessions.is_over(&owner, at(16.0)));
    }

    #[test]
    fn tokens_have_an_order_within_a_bucket_alone() {
        assert!(token(5, 1) < token(6, 2));
        assert!(token(6, 2) > token(5, 1));
        assert_eq!(token(5, 1).partial_cmp(&token(5, 1)), Some(cmp::Ordering::Equal));
        assert_eq!(token(5, 1).partial_cmp(&token(5, 2)), None);
        let anew = Token { bucket: MADE_ANEW, ..token(6, 1) };
        assert_eq!(anew.partial_cmp(&token(5, 1)), None);
        assert!(!anew.is_same_session(&token(6, 1)) && token(6, 1).is_same_session(&token(5, 1)));
    }
}
