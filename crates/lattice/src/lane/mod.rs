//! What two hosts know of the frames between them, as a state machine. It sends nothing and reads no clock: both are done by who
//! has it, who tells it the time as a duration since a zero of their own.
//!
//! Frames are numbered. The other side takes them in order, each at most once: one that it has missed it will never take, and says
//! so. A letter has one outcome here, whatever is lost on the way: the receiver's reply, or that it has certainly not come, or, once
//! the other side is lost, that its fate is unknown. Replies that were missed are sent again.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    iter,
    time::Duration,
};

use airssys_wasm_actor::registry::{ComponentId, Refusal};

use crate::frame::{Answer, Frame, GAPS, Head, Letter, Packet, Reply, SessionId};

/// What a lane may hold, and when it gives up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LaneLimits {
    /// Letters on their way in each direction.
    pub(crate) letters: usize,
    /// Bytes of them.
    pub(crate) bytes: usize,
    /// How often a host says that it is there. One that has not been heard of for three times as long is lost.
    pub(crate) heartbeat: Duration,
    /// How long the broker may be away before what is on its way is lost.
    pub(crate) grace: Duration,
}

/// One sender, or one receiver, has this part of a lane at the most.
const PARTS: usize = 4;
/// Windows of letters that may be in hand here, by number and by bytes.
///
/// An honest side with the same window has one, and another after it has given up what was on its way.
const TAKEN: usize = 2;
/// Windows of letters in hand and of replies that the other side has not confirmed. Beyond that its letters are missed.
///
/// An honest side with the same window has room for a letter when it has the last reply to another, and confirms that reply in the
/// packet of the new letter. A letter has two replies at the most: it makes two windows, and two more each time the other side gives up
/// what was on its way without a packet from here.
const KEPT: usize = 8;
/// Bytes of answers that the other side has not confirmed. Beyond that its letters are refused.
const ANSWERS: usize = 256 << 20;
/// How long to wait between two looks at whether a silent host is there.
const PROBE: Duration = Duration::from_millis(500);

/// What became of a letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The mailbox has taken it.
    Accepted,
    /// It was not handled, and will not be. It comes back.
    Refused(Refusal, Letter),
    Answered(Answer),
    /// Its fate is unknown. It comes back, for the dead letters.
    Lost {
        accepted: bool,
        letter: Letter,
    },
}

/// What a reply names: a letter of a session of the other side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Ticket {
    session: SessionId,
    number: u64,
    /// Bytes of the letter.
    size: usize,
}

/// What a packet brought.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event<T> {
    /// A letter for an actor here.
    Letter(Ticket, Letter),
    /// A letter from here came to an end.
    Settled(T, Outcome),
}

/// A letter from here whose outcome is not known.
struct Pending<T> {
    letter: Letter,
    tag: T,
    /// Whether it has been in a packet.
    sent: bool,
    accepted: bool,
}

/// The frames between this host and another.
pub(crate) struct Lane<T> {
    limits: LaneLimits,
    ours: SessionId,
    theirs: SessionId,
    /// The latest that the other side's session is known to speak, as this one does.
    version: u8,

    /// The number of the next frame.
    next: u64,
    /// Below this it is known which of our frames have come.
    floor: u64,
    /// Frames that wait for a packet, by number.
    unsent: VecDeque<Unsent>,
    pending: BTreeMap<u64, Pending<T>>,
    /// Replies that have been in a packet and may have been missed, by number.
    unconfirmed: BTreeMap<u64, Reply>,
    /// The replies in both, and their bytes.
    replies: Room,
    room: Room,

    /// The next frame to take.
    expected: u64,
    missed: VecDeque<(u64, u64)>,
    /// Letters taken and not replied to for good, also of sessions of the other side that are over.
    taken: Room,
    /// How many of them are of those sessions.
    stale: usize,
    /// Accepted letters of which nothing is said yet.
    accepted: BTreeMap<u64, bool>,

    /// Whether a packet is due even without frames, and whether one is wanted back.
    due: bool,
    wants: bool,
    /// When the other side was last heard of.
    heard: Duration,
    /// When nobody was there, first and last since then.
    nobody: Option<(Duration, Duration)>,
    probed: Duration,
    /// Since when there is no broker.
    offline: Option<Duration>,
    /// When there was one again.
    online: Option<Duration>,
    lost: bool,
    /// Whether the session of this side is over, and with it the lane.
    closed: bool,
}

/// A frame that was not in a packet yet.
enum Unsent {
    /// Of `pending`, by its number.
    Letter(u64),
    Reply(u64, Reply),
}

/// How much of a lane, or of another queue, messages have, in all and of each party.
#[derive(Default)]
pub(crate) struct Room {
    letters: usize,
    bytes: usize,
    parties: HashMap<Party, (usize, usize)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Party {
    Sender(u64),
    Receiver(ComponentId),
}

fn parties(letter: &Letter) -> impl Iterator<Item = Party> {
    let sender = letter.head.sender.as_ref().map(|sender| Party::Sender(sender.number));
    [Some(Party::Receiver(letter.head.to.clone())), sender].into_iter().flatten()
}

impl Room {
    /// Whether there is room for so many bytes of some parties, of so many messages and bytes in all.
    pub(crate) fn has(&self, size: usize, mut parties: impl Iterator<Item = Party>, most: (usize, usize)) -> bool {
        let fits = |(letters, bytes): (usize, usize), parts: usize| {
            // A large one goes if it is the only one.
            letters == 0 || letters < (most.0 / parts).max(1) && bytes + size <= most.1 / parts
        };
        fits((self.letters, self.bytes), 1)
            && parties.all(|party| self.parties.get(&party).is_none_or(|held| fits(*held, PARTS)))
    }

    pub(crate) fn take(&mut self, size: usize, parties: impl Iterator<Item = Party>) {
        self.letters += 1;
        self.bytes += size;
        for party in parties {
            let held = self.parties.entry(party).or_default();
            held.0 += 1;
            held.1 += size;
        }
    }

    pub(crate) fn give_back(&mut self, size: usize, parties: impl Iterator<Item = Party>) {
        self.letters -= 1;
        self.bytes -= size;
        for party in parties {
            if let Some(held) = self.parties.get_mut(&party) {
                held.0 -= 1;
                held.1 -= size;
                if held.0 == 0 {
                    self.parties.remove(&party);
                }
            }
        }
    }
}

impl<T> Lane<T> {
    /// A lane to a session of a host that was heard of now.
    pub(crate) fn new(limits: LaneLimits, ours: SessionId, (theirs, version): (SessionId, u8), now: Duration) -> Self {
        Self {
            limits,
            ours,
            theirs,
            version,
            next: 1,
            floor: 1,
            unsent: VecDeque::new(),
            pending: BTreeMap::new(),
            unconfirmed: BTreeMap::new(),
            replies: Room::default(),
            room: Room::default(),
            expected: 1,
            missed: VecDeque::new(),
            taken: Room::default(),
            stale: 0,
            accepted: BTreeMap::new(),
            due: false,
            wants: false,
            heard: now,
            nobody: None,
            probed: now,
            offline: None,
            online: None,
            lost: false,
            closed: false,
        }
    }

    /// Whether all letters have come to an end, from here and from the other side, and what is replied to them is known there.
    pub(crate) fn is_quiet(&self) -> bool {
        self.pending.is_empty() && self.taken.letters == self.stale && !self.has_packet() && self.unconfirmed.is_empty()
    }

    /// Whether a single letter is on its way from here.
    pub(crate) fn has_one(&self) -> bool {
        self.pending.len() == 1
    }

    /// Whether the other side is there, as far as is known.
    pub(crate) fn is_reachable(&self, now: Duration) -> bool {
        !self.lost && !self.closed && self.offline.is_none() && self.nobody.is_none() && !self.is_silent(now)
    }

    fn is_silent(&self, now: Duration) -> bool {
        now.saturating_sub(self.heard) >= 3 * self.limits.heartbeat
    }

    /// Whether the other side's session is later than this one.
    pub(crate) fn is_after(&self, theirs: SessionId) -> bool {
        theirs < self.theirs
    }

    /// Whether the other side's session is silent, while an earlier one says that it is there. If the records have that one, the later
    /// one was only claimed.
    pub(crate) fn is_outlived_by(&self, theirs: SessionId, now: Duration) -> bool {
        self.is_after(theirs) && self.is_silent(now)
    }

    /// Takes a letter to be sent.
    ///
    /// # Errors
    ///
    /// It comes back: the other side cannot be reached or does not read it, or there is no room.
    pub(crate) fn push(&mut self, letter: Letter, tag: T, now: Duration) -> Result<(), (Refusal, Letter, T)> {
        if !self.is_reachable(now) {
            return Err((Refusal::Unreachable, letter, tag));
        }
        if letter.since() > self.version {
            return Err((Refusal::NotOffered, letter, tag));
        }
        let most = (self.limits.letters, self.limits.bytes);
        if !self.room.has(letter.size(), parties(&letter), most) {
            return Err((Refusal::Full, letter, tag));
        }
        self.room.take(letter.size(), parties(&letter));
        let number = self.number();
        self.unsent.push_back(Unsent::Letter(number));
        self.pending.insert(number, Pending { letter, tag, sent: false, accepted: false });
        Ok(())
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    /// The mailbox has taken a letter. Its sender is told at once, or, if it is answered later, with what is said next.
    pub(crate) fn accept(&mut self, of: Ticket, is_answered: bool) {
        let is_known = if is_answered { of.session == self.theirs } else { self.give_back(of) };
        if is_known {
            self.accepted.insert(of.number, !is_answered);
        }
    }

    /// A letter comes to nothing.
    pub(crate) fn refuse(&mut self, of: Ticket, reason: Refusal) {
        if self.give_back(of) {
            self.reply(Reply::Refused { of: of.number, reason });
        }
    }

    /// A letter was asked, and this came of it.
    pub(crate) fn answer(&mut self, of: Ticket, answer: Answer) {
        if self.give_back(of) {
            self.accepted.remove(&of.number);
            self.reply(Reply::Answered { of: of.number, answer });
        }
    }

    /// A letter is not in hand any more. Whether its session is not over, so that it is replied to.
    fn give_back(&mut self, of: Ticket) -> bool {
        self.taken.give_back(of.size, iter::empty());
        let is_known = of.session == self.theirs;
        if !is_known {
            self.stale -= 1;
        }
        is_known
    }

    fn reply(&mut self, reply: Reply) {
        self.replies.take(reply.size(), iter::empty());
        let number = self.number();
        self.unsent.push_back(Unsent::Reply(number, reply));
    }

    /// Makes frames of what was accepted.
    fn tell_accepted(&mut self) {
        let mut accepted = std::mem::take(&mut self.accepted).into_keys().peekable();
        while let Some(first) = accepted.next() {
            let mut last = first;
            while let Some(next) = accepted.next_if_eq(&(last + 1)) {
                last = next;
            }
            self.reply(Reply::Accepted { first, last });
        }
    }

    /// Whether there is something to be sent.
    pub(crate) fn has_packet(&self) -> bool {
        self.due || !self.unsent.is_empty() || self.accepted.values().any(|urgent| *urgent)
    }

    /// The next packet, of so many bytes at the most where that is possible, as `encode` makes it of a version. `None` if there is
    /// nothing to be said.
    pub(crate) fn packet<P>(
        &mut self,
        most: usize,
        encode: impl FnOnce(u8, &Head, &mut dyn Iterator<Item = &Frame>) -> P,
    ) -> Option<P> {
        if !self.has_packet() {
            return None;
        }
        self.tell_accepted();
        let mut frames = Vec::new();
        let mut size = 0;
        let mut first = None;
        while let Some(unsent) = self.unsent.front() {
            let (number, frame) = match unsent {
                // It may have come to an end before.
                Unsent::Letter(number) => match self.pending.get(number) {
                    Some(pending) => (*number, Frame::Letter(pending.letter.clone())),
                    None => (*number, Frame::Reply(Reply::Accepted { first: 1, last: 0 })),
                },
                Unsent::Reply(number, reply) => (*number, Frame::Reply(reply.clone())),
            };
            size += frame.size();
            if !frames.is_empty() && size > most {
                break;
            }
            match self.unsent.pop_front() {
                Some(Unsent::Reply(number, reply)) => _ = self.unconfirmed.insert(number, reply),
                Some(Unsent::Letter(number)) => {
                    if let Some(pending) = self.pending.get_mut(&number) {
                        pending.sent = true;
                    }
                }
                None => {}
            }
            first.get_or_insert(number);
            frames.push(frame);
        }
        let head = Head {
            from: self.ours,
            to: self.theirs,
            first: first.unwrap_or(self.next),
            expected: self.expected,
            missed: self.missed.iter().copied().collect(),
            floor: self.floor,
            wants: std::mem::take(&mut self.wants),
        };
        self.due = false;
        Some(encode(self.version, &head, &mut frames.iter()))
    }

    /// Takes a packet of the other side. What comes of it is told to `tell`, in order. Gives the number of letters that are missed because
    /// the other side confirms too few replies.
    pub(crate) fn receive(
        &mut self,
        Packet { version, head, frames }: Packet,
        now: Duration,
        tell: &mut impl FnMut(Event<T>),
    ) -> usize {
        // No side that keeps to the rules comes near the last number, or forgets to give up gaps.
        let is_sane = head.first.checked_add(frames.len() as u64).is_some() && head.missed.len() <= GAPS;
        if self.closed || head.from < self.theirs || !is_sane {
            return 0;
        }
        self.session(head.from, version, tell);
        if head.to != self.ours {
            // Of a life of this host that is over. Who sent it is to know that.
            self.due = true;
            return 0;
        }
        self.heard(now);
        self.receipt(&head, tell);
        if head.wants {
            self.due = true;
        }
        while self.missed.front().is_some_and(|(_, last)| *last < head.floor) {
            self.missed.pop_front();
        }
        if head.first > self.expected && !self.miss(self.expected, head.first - 1) {
            return 0;
        }
        let mut untaken = 0;
        for (number, frame) in (head.first..).zip(frames) {
            if number < self.expected {
                continue;
            }
            match frame {
                // Replies are taken all the same: two sides that keep too much for each other would never confirm anything.
                Frame::Letter(_) if self.keeps_too_much() => {
                    if !self.miss(number, number) {
                        break;
                    }
                    untaken += 1;
                }
                Frame::Letter(letter) => {
                    self.expected = number.saturating_add(1);
                    let ticket = Ticket { session: self.theirs, number, size: letter.size() };
                    let may_take = self.may_take();
                    self.taken.take(ticket.size, iter::empty());
                    if may_take {
                        tell(Event::Letter(ticket, letter));
                    } else {
                        self.refuse(ticket, Refusal::Full);
                    }
                }
                Frame::Reply(reply) => {
                    self.expected = number.saturating_add(1);
                    self.replied(reply, tell);
                }
            }
        }
        untaken
    }

    /// Frames of the other side will not be taken, from the next one to the last of them. `false` if that would be one gap too many.
    fn miss(&mut self, first: u64, last: u64) -> bool {
        if let Some(gap) = self.missed.back_mut()
            && gap.1.saturating_add(1) == first
        {
            gap.1 = last;
        } else if self.missed.len() < GAPS {
            self.missed.push_back((first, last));
        } else {
            return false;
        }
        self.expected = last.saturating_add(1);
        // What was missed is to be known soon: a reply is sent again.
        self.due = true;
        true
    }

    /// Whether another letter may be in hand here.
    fn may_take(&self) -> bool {
        self.taken.letters < self.limits.letters.saturating_mul(TAKEN)
            && self.taken.bytes < self.limits.bytes.saturating_mul(TAKEN)
            && self.replies.bytes < ANSWERS
    }

    /// Whether so much is kept for the other side that not even a refusal is added to it.
    fn keeps_too_much(&self) -> bool {
        self.taken.letters + self.accepted.len() + self.replies.letters >= self.limits.letters.saturating_mul(KEPT)
    }

    /// The other side has this session, which speaks this version, as both do: its packet or its record says so.
    pub(crate) fn session(&mut self, theirs: SessionId, version: u8, tell: &mut impl FnMut(Event<T>)) {
        if theirs == self.theirs {
            // A packet may be of an earlier one than its record, if that was not meant for this session.
            self.version = self.version.max(version);
        }
        if theirs <= self.theirs {
            return;
        }
        // Of what was on its way to the session before nothing more will be heard.
        let sent: Vec<_> = self.pending.iter().filter(|(_, pending)| pending.sent).map(|(n, _)| *n).collect();
        for number in sent {
            if let Some(pending) = self.pending.remove(&number) {
                self.lose(pending, tell);
            }
        }
        (self.theirs, self.version) = (theirs, version);
        // The new session has had nothing of ours, and we nothing of it: both begin at one.
        let pending = std::mem::take(&mut self.pending);
        self.unsent.clear();
        self.unconfirmed.clear();
        self.accepted.clear();
        self.missed.clear();
        self.replies = Room::default();
        // What is in hand stays there until it is replied to.
        self.stale = self.taken.letters;
        (self.next, self.floor, self.expected) = (1, 1, 1);
        for (_, pending) in pending {
            if pending.letter.since() > version {
                self.end(pending, |letter| Outcome::Refused(Refusal::NotOffered, letter), tell);
                continue;
            }
            let number = self.number();
            self.unsent.push_back(Unsent::Letter(number));
            self.pending.insert(number, pending);
        }
    }

    /// The other side says that it is there.
    pub(crate) fn heard(&mut self, now: Duration) {
        self.heard = now;
        self.nobody = None;
        self.lost = false;
    }

    /// A session of the other side says that it is there. What a new one speaks is not known by that.
    pub(crate) fn heartbeat(&mut self, session: SessionId, now: Duration) {
        if session == self.theirs {
            self.heard(now);
        }
    }

    /// What the other side knows of our frames.
    fn receipt(&mut self, head: &Head, tell: &mut impl FnMut(Event<T>)) {
        let upto = head.expected.min(self.next);
        if upto <= self.floor {
            return;
        }
        let missed = |number: u64| head.missed.iter().any(|(first, last)| (*first..=*last).contains(&number));
        let mut replies = self.unconfirmed.split_off(&upto);
        std::mem::swap(&mut replies, &mut self.unconfirmed);
        for (number, reply) in replies {
            if missed(number) {
                let number = self.number();
                self.unsent.push_back(Unsent::Reply(number, reply));
            } else {
                self.replies.give_back(reply.size(), iter::empty());
            }
        }
        let lost: Vec<_> = self.pending.range(self.floor..upto).filter(|(n, _)| missed(**n)).map(|(n, _)| *n).collect();
        for number in lost {
            self.settle(number, |letter| Outcome::Refused(Refusal::Unreachable, letter), tell);
        }
        self.floor = upto;
    }

    fn replied(&mut self, reply: Reply, tell: &mut impl FnMut(Event<T>)) {
        match reply {
            Reply::Accepted { first, last } if first <= last => {
                let numbers: Vec<_> = self.pending.range(first..=last).map(|(number, _)| *number).collect();
                for number in numbers {
                    let Some(pending) = self.pending.get_mut(&number) else { continue };
                    if pending.letter.head.how.is_answered() {
                        pending.accepted = true;
                    } else {
                        self.settle(number, |_| Outcome::Accepted, tell);
                    }
                }
            }
            Reply::Accepted { .. } => {}
            Reply::Refused { of, reason } => {
                self.settle(of, |letter| Outcome::Refused(reason, letter), tell);
            }
            Reply::Answered { of, answer } => self.settle(of, |_| Outcome::Answered(answer), tell),
        }
    }

    fn settle(&mut self, of: u64, outcome: impl FnOnce(Letter) -> Outcome, tell: &mut impl FnMut(Event<T>)) {
        // A reply that was sent twice finds nothing.
        if let Some(pending) = self.pending.remove(&of) {
            self.end(pending, outcome, tell);
        }
    }

    fn lose(&mut self, pending: Pending<T>, tell: &mut impl FnMut(Event<T>)) {
        let Pending { sent, accepted, .. } = pending;
        let outcome = |letter| {
            if sent { Outcome::Lost { accepted, letter } } else { Outcome::Refused(Refusal::Unreachable, letter) }
        };
        self.end(pending, outcome, tell);
    }

    fn end(
        &mut self,
        Pending { letter, tag, .. }: Pending<T>,
        outcome: impl FnOnce(Letter) -> Outcome,
        tell: &mut impl FnMut(Event<T>),
    ) {
        self.room.give_back(letter.size(), parties(&letter));
        tell(Event::Settled(tag, outcome(letter)));
    }

    /// The other side is lost, and with it all that is on its way.
    pub(crate) fn lose_all(&mut self, tell: &mut impl FnMut(Event<T>)) {
        self.lost = true;
        for (_, pending) in std::mem::take(&mut self.pending) {
            self.lose(pending, tell);
        }
        // Letters among them leave holes in the numbers, which are filled when their turn comes.
    }

    /// The session of this side is over. Nothing is taken any more, whatever is heard of the other side.
    pub(crate) fn close(&mut self, tell: &mut impl FnMut(Event<T>)) {
        self.closed = true;
        self.lose_all(tell);
    }

    /// The broker says that nobody takes what is sent to the other side.
    pub(crate) fn nobody_there(&mut self, now: Duration, tell: &mut impl FnMut(Event<T>)) {
        let first = self.nobody.map_or(now, |(first, _)| first);
        self.nobody = Some((first, now));
        // One that has lost the broker, too, is not back as soon as this host.
        let is_back = self.online.is_some_and(|online| now.saturating_sub(online) < self.limits.grace);
        // Two answers may come a little closer to each other than what was asked.
        if now.saturating_sub(first) >= if is_back { self.limits.grace } else { PROBE * 4 / 5 } {
            self.lose_all(tell);
        }
    }

    /// There is no broker, or there is one again.
    pub(crate) fn online(&mut self, online: bool, now: Duration) {
        match (online, self.offline) {
            (false, None) => self.offline = Some(now),
            (true, Some(_)) => {
                self.offline = None;
                self.online = Some(now);
                // Nobody could be heard of meanwhile.
                self.heard = now;
                self.due = true;
                self.wants = true;
            }
            _ => {}
        }
    }

    /// To be called some times a second: gives up what is lost, and looks whether a silent host is there.
    pub(crate) fn tick(&mut self, now: Duration, tell: &mut impl FnMut(Event<T>)) {
        if self.offline.is_some_and(|since| now.saturating_sub(since) >= self.limits.grace)
            || self.offline.is_none() && self.is_silent(now)
        {
            if !self.pending.is_empty() {
                self.lose_all(tell);
            }
            return;
        }
        let waits =
            self.pending.values().any(|pending| pending.sent) || !self.unconfirmed.is_empty() || self.nobody.is_some();
        // Two ticks may come a little closer to each other than they are meant to.
        if waits && now.saturating_sub(self.probed) >= PROBE * 9 / 10 {
            self.probed = now;
            self.due = true;
            self.wants = true;
        }
    }
}

#[cfg(test)]
mod model;
