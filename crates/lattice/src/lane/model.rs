//! Two lanes that face each other over a network that loses, repeats and reorders, and hosts that die and come back.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use airssys_wasm_actor::{Bytes, registry::Refusal};
use proptest::prelude::*;

use super::*;
use crate::{
    frame::{Answer, CALLS, Callee, How, LetterHead, Other, Sender, VERSIONS, Versions},
    lease::Bucket,
};

const LIMITS: LaneLimits =
    LaneLimits { letters: 8, bytes: 1_000, heartbeat: Duration::from_secs(1), grace: Duration::from_secs(3) };

/// A letter by which host and how manieth.
type Id = (usize, u64);

#[derive(Debug, Clone)]
enum Op {
    Push {
        side: usize,
        how: How,
        to: u8,
        sender: Option<u64>,
    },
    /// Makes a packet, of so many bytes.
    Packet {
        side: usize,
        most: usize,
    },
    /// Delivers one of the packets on their way to a side, and leaves it there to come again.
    Deliver {
        side: usize,
        at: usize,
        again: bool,
    },
    Lose {
        side: usize,
        at: usize,
    },
    Reply {
        side: usize,
        at: usize,
        kind: u8,
    },
    Tick {
        side: usize,
        millis: u64,
    },
    Nobody {
        side: usize,
    },
    Online {
        side: usize,
        online: bool,
    },
    Heartbeat {
        side: usize,
    },
    /// A host dies, and one that may be of another version has its name.
    Restart {
        side: usize,
        latest: u8,
    },
    /// The record of a side's session comes to the other.
    Record {
        side: usize,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let side = 0..2_usize;
    let at = 0..6_usize;
    prop_oneof![
        8 => (side.clone(), 0..4_usize, 0..3_u8, proptest::option::of(0..2_u64)).prop_map(|(side, how, to, sender)| {
            let callee = Callee { export: "a:b/c#d".into(), ty: "func()".into() };
            let how = [How::Send, How::Tell, How::Ask, How::Call(callee.into())][how].clone();
            Op::Push { side, how, to, sender }
        }),
        8 => (side.clone(), 1..400_usize).prop_map(|(side, most)| Op::Packet { side, most }),
        8 => (side.clone(), at.clone(), prop::bool::weighted(0.2))
            .prop_map(|(side, at, again)| Op::Deliver { side, at, again }),
        2 => (side.clone(), at.clone()).prop_map(|(side, at)| Op::Lose { side, at }),
        6 => (side.clone(), at, 0..4_u8).prop_map(|(side, at, kind)| Op::Reply { side, at, kind }),
        3 => (side.clone(), 0..2_000_u64).prop_map(|(side, millis)| Op::Tick { side, millis }),
        1 => side.clone().prop_map(|side| Op::Nobody { side }),
        1 => (side.clone(), any::<bool>()).prop_map(|(side, online)| Op::Online { side, online }),
        2 => side.clone().prop_map(|side| Op::Heartbeat { side }),
        1 => (side.clone(), VERSIONS.0..=VERSIONS.1).prop_map(|(side, latest)| Op::Restart { side, latest }),
        1 => side.prop_map(|side| Op::Record { side }),
    ]
}

struct Host {
    lane: Lane<Id>,
    session: SessionId,
    /// The latest version that it speaks.
    latest: u8,
    /// Letters that came here and have no reply yet, and whether they are answered.
    taken: Vec<(Ticket, Id, bool)>,
    /// Packets on their way here.
    inbox: Vec<Packet>,
    pushed: u64,
}

#[derive(Default)]
struct Books {
    /// Letters that came, and what was said of them.
    came: HashMap<Id, Option<Said>>,
    outcomes: HashMap<Id, Outcome>,
    /// Of hosts that died since: nobody waits for an outcome.
    orphans: HashSet<Id>,
    all: HashSet<Id>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    Accepted,
    Refused,
    Answered,
}

struct World {
    hosts: [Host; 2],
    books: Books,
    now: Duration,
    sessions: u64,
    /// Letters that were missed for want of confirmations.
    untaken: usize,
}

fn session(number: u64) -> SessionId {
    SessionId::new(Bucket(1), number).unwrap()
}

fn between<T>(ours: u64, theirs: u64) -> Lane<T> {
    Lane::new(LIMITS, session(ours), (session(theirs), VERSIONS.1), Duration::ZERO)
}

impl World {
    fn new() -> Self {
        let host = |ours: u64, theirs: u64| Host {
            lane: between(ours, theirs),
            session: session(ours),
            latest: VERSIONS.1,
            taken: Vec::new(),
            inbox: Vec::new(),
            pushed: 0,
        };
        Self { hosts: [host(1, 2), host(2, 1)], books: Books::default(), now: Duration::ZERO, sessions: 2, untaken: 0 }
    }

    fn tell(&mut self, side: usize, events: Vec<Event<Id>>) {
        for event in events {
            match event {
                Event::Letter(ticket, letter) => {
                    let id: Id = {
                        let number = u64::from_le_bytes(letter.payload[..8].try_into().unwrap());
                        (1 - side, number)
                    };
                    assert!(self.books.came.insert(id, None).is_none(), "{id:?} came twice");
                    if let Some(outcome) = self.books.outcomes.get(&id) {
                        assert!(matches!(outcome, Outcome::Lost { .. }), "{id:?} came after {outcome:?}");
                    }
                    self.hosts[side].taken.push((ticket, id, letter.head.how.is_answered()));
                }
                Event::Settled(id, outcome) => {
                    let came = self.books.came.get(&id).copied();
                    match &outcome {
                        Outcome::Accepted => assert_eq!(came, Some(Some(Said::Accepted)), "{id:?}"),
                        Outcome::Answered(_) => assert_eq!(came, Some(Some(Said::Answered)), "{id:?}"),
                        Outcome::Refused(Refusal::Unreachable | Refusal::NotOffered, _) => {
                            assert_eq!(came, None, "{id:?} came");
                        }
                        // By the actor, or by a lane that has too many.
                        Outcome::Refused(..) => assert!(matches!(came, None | Some(Some(Said::Refused))), "{id:?}"),
                        Outcome::Lost { accepted: true, .. } => assert!(matches!(came, Some(Some(_))), "{id:?}"),
                        Outcome::Lost { accepted: false, .. } => {}
                    }
                    assert!(self.books.outcomes.insert(id, outcome).is_none(), "{id:?} has two outcomes");
                }
            }
        }
    }

    fn step(&mut self, op: Op) {
        let mut events = Vec::new();
        let mut tell = |event| events.push(event);
        let now = self.now;
        match op {
            Op::Push { side, how, to, sender } => {
                let host = &mut self.hosts[side];
                let id = (side, host.pushed);
                let sender = sender.map(|number| Sender { id: "sender".parse().unwrap(), number });
                let head = LetterHead {
                    to: format!("actor{to}").parse().unwrap(),
                    how,
                    sender,
                    left: None,
                    correlation: None,
                    trace: None,
                    content_type: None,
                };
                let mut payload = host.pushed.to_le_bytes().to_vec();
                payload.resize(8 + usize::from(to) * 60, 0);
                host.pushed += 1;
                if host.lane.push(Letter { head, payload: payload.into() }, id, now).is_ok() {
                    self.books.all.insert(id);
                }
                self.tell(side, events);
            }
            Op::Packet { side, most } => {
                let packet = packet(&mut self.hosts[side].lane, most);
                if let Some(packet) = packet {
                    let other = &mut self.hosts[1 - side];
                    assert!(packet.frames.iter().all(|frame| frame.since() <= packet.version));
                    assert!(packet.head.to != other.session || packet.version <= other.latest, "{packet:?}");
                    other.inbox.push(packet);
                }
            }
            Op::Deliver { side, at, again } => {
                let host = &mut self.hosts[side];
                if at < host.inbox.len() {
                    let packet = if again { host.inbox[at].clone() } else { host.inbox.remove(at) };
                    // One of another version is not read.
                    if packet.version <= host.latest {
                        self.untaken += host.lane.receive(packet, now, &mut tell);
                    }
                    // A letter in hand may have two replies yet.
                    let Lane { taken, replies, accepted, .. } = &host.lane;
                    assert!(taken.letters <= TAKEN * LIMITS.letters);
                    assert!(taken.letters + replies.letters + accepted.len() <= (KEPT + TAKEN) * LIMITS.letters);
                }
                self.tell(side, events);
            }
            Op::Lose { side, at } => {
                let inbox = &mut self.hosts[side].inbox;
                if at < inbox.len() {
                    inbox.remove(at);
                }
            }
            Op::Reply { side, at, kind } => {
                let host = &mut self.hosts[side];
                if at < host.taken.len() {
                    let (ticket, id, is_answered) = host.taken[at];
                    let said = self.books.came.get_mut(&id).unwrap();
                    match (kind, is_answered) {
                        (0, _) if said.is_none() => {
                            *said = Some(Said::Refused);
                            host.taken.remove(at);
                            host.lane.refuse(ticket, Refusal::Full);
                        }
                        (1, true) if said.is_none() => {
                            *said = Some(Said::Accepted);
                            host.lane.accept(ticket, is_answered);
                        }
                        (_, true) => {
                            *said = Some(Said::Answered);
                            host.taken.remove(at);
                            host.lane.answer(ticket, Answer::Other(Other::NoReply));
                        }
                        (_, false) => {
                            *said = Some(Said::Accepted);
                            host.taken.remove(at);
                            host.lane.accept(ticket, is_answered);
                        }
                    }
                }
            }
            Op::Tick { side, millis } => {
                self.now += Duration::from_millis(millis);
                self.hosts[side].lane.tick(self.now, &mut tell);
                self.tell(side, events);
            }
            Op::Nobody { side } => {
                self.hosts[side].lane.nobody_there(now, &mut tell);
                self.tell(side, events);
            }
            Op::Online { side, online } => self.hosts[side].lane.online(online, now),
            Op::Heartbeat { side } => self.hosts[side].lane.heard(now),
            Op::Restart { side, latest } => {
                self.sessions += 1;
                let ours = session(self.sessions);
                let Host { session: theirs, latest: other, .. } = self.hosts[1 - side];
                let host = &mut self.hosts[side];
                // Letters of the host that died, and those that were to be replied to by it.
                self.books.orphans.extend((0..host.pushed).map(|n| (side, n)));
                host.taken.clear();
                (host.session, host.latest) = (ours, latest);
                host.lane = Lane::new(LIMITS, ours, (theirs, latest.min(other)), now);
            }
            Op::Record { side } => {
                let Host { session: theirs, latest, .. } = self.hosts[side];
                let other = &mut self.hosts[1 - side];
                other.lane.session(theirs, latest.min(other.latest), &mut tell);
                self.tell(1 - side, events);
            }
        }
    }

    /// A network without faults, and actors that reply: everything comes to an end.
    fn heal(&mut self) {
        for side in 0..2 {
            self.step(Op::Online { side, online: true });
            self.step(Op::Record { side });
        }
        for _ in 0..200 {
            for side in 0..2 {
                self.step(Op::Heartbeat { side });
                self.step(Op::Tick { side, millis: 300 });
                while self.hosts[side].lane.has_packet() {
                    self.step(Op::Packet { side, most: 300 });
                }
                while !self.hosts[side].inbox.is_empty() {
                    self.step(Op::Deliver { side, at: 0, again: false });
                }
                while !self.hosts[side].taken.is_empty() {
                    self.step(Op::Reply { side, at: 0, kind: 3 });
                }
            }
        }
    }

    fn check(&self) {
        for host in &self.hosts {
            assert_eq!(host.lane.pending.len(), 0);
            assert_eq!((host.lane.room.letters, host.lane.room.bytes, host.lane.room.parties.len()), (0, 0, 0));
            assert!(host.lane.unconfirmed.is_empty());
            let Lane { taken, replies, stale, .. } = &host.lane;
            assert_eq!((taken.letters, taken.bytes, *stale), (0, 0, 0));
            assert_eq!((replies.letters, replies.bytes), (0, 0));
        }
        for id in &self.books.all {
            let outcome = self.books.outcomes.get(id);
            assert!(outcome.is_some() || self.books.orphans.contains(id), "{id:?} has no outcome");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn each_letter_has_one_outcome_and_is_handled_once_at_the_most(ops in prop::collection::vec(op(), 0..120)) {
        let mut world = World::new();
        for op in ops {
            world.step(op);
        }
        world.heal();
        world.check();
    }

    /// Nobody dies, and the network only delays: nothing is lost.
    #[test]
    fn without_faults_nothing_is_lost(ops in prop::collection::vec(op(), 0..120)) {
        let mut world = World::new();
        for op in ops {
            match op {
                Op::Push { .. } | Op::Packet { .. } | Op::Reply { .. } | Op::Heartbeat { .. } => world.step(op),
                Op::Deliver { side, .. } => world.step(Op::Deliver { side, at: 0, again: false }),
                _ => {}
            }
        }
        world.heal();
        world.check();
        prop_assert_eq!(world.untaken, 0);
        for outcome in world.books.outcomes.values() {
            let is_certain = !matches!(outcome, Outcome::Lost { .. } | Outcome::Refused(Refusal::Unreachable, _));
            prop_assert!(is_certain, "{outcome:?}");
        }
    }
}

fn packet<T>(lane: &mut Lane<T>, most: usize) -> Option<Packet> {
    let packet = |version, head: &Head, frames: &mut dyn Iterator<Item = &Frame>| {
        let frames = frames.cloned().collect();
        Packet { version, head: head.clone(), frames }
    };
    lane.packet(most, packet)
}

fn letter(to: &str, sender: Option<u64>, bytes: usize) -> Letter {
    let sender = sender.map(|number| Sender { id: "sender".parse().unwrap(), number });
    let head = LetterHead {
        to: to.parse().unwrap(),
        how: How::Tell,
        sender,
        left: None,
        correlation: None,
        trace: None,
        content_type: None,
    };
    Letter { head, payload: vec![0; bytes].into() }
}

#[test]
fn one_sender_and_one_receiver_have_a_quarter_each() {
    let mut lane = between(1, 2);
    let mut push = |to: &str, sender, bytes| {
        lane.push(letter(to, sender, bytes), 0, Duration::ZERO).map_err(|(reason, ..)| reason)
    };
    push("a", Some(1), 1).unwrap();
    push("b", Some(1), 1).unwrap();
    assert_eq!(push("c", Some(1), 1), Err(Refusal::Full), "the sender has two of eight");
    push("a", Some(2), 1).unwrap();
    assert_eq!(push("a", Some(3), 1), Err(Refusal::Full), "the receiver has two of eight");
    push("c", None, 1_000_000).unwrap_err();
    push("c", None, 250).unwrap();
    assert_eq!(push("c", None, 1), Err(Refusal::Full), "the receiver has a quarter of the bytes");
    push("d", None, 1).unwrap();
}

#[test]
fn a_large_letter_goes_if_it_is_alone() {
    let mut lane = between(1, 2);
    lane.push(letter("a", None, 5_000), 0, Duration::ZERO).unwrap();
    assert!(lane.push(letter("b", None, 1), 0, Duration::ZERO).is_err());
}

#[test]
fn a_silent_host_is_lost_after_three_heartbeats() {
    for (silent, is_lost) in [(2_999, false), (3_000, true)] {
        let mut lane = between(1, 2);
        lane.push(letter("a", None, 1), 7, Duration::ZERO).unwrap();
        packet(&mut lane, 1_000).unwrap();
        let mut events = Vec::new();
        lane.tick(Duration::from_millis(silent), &mut |event| events.push(event));
        let lost = Event::Settled(7, Outcome::Lost { accepted: false, letter: letter("a", None, 1) });
        assert_eq!(events, if is_lost { vec![lost] } else { vec![] });
        let refused = lane.push(letter("a", None, 1), 8, Duration::from_millis(silent)).map_err(|(reason, ..)| reason);
        assert_eq!(refused.err(), is_lost.then_some(Refusal::Unreachable));
    }
}

#[test]
fn a_host_that_nobody_is_at_is_lost_at_the_second_look() {
    let mut lane = between(1, 2);
    lane.push(letter("a", None, 1), 7, Duration::ZERO).unwrap();
    packet(&mut lane, 1_000).unwrap();
    let mut events = 0;
    lane.nobody_there(Duration::ZERO, &mut |_| events += 1);
    assert!(lane.push(letter("a", None, 1), 8, Duration::ZERO).is_err(), "nothing more is sent to it");
    lane.nobody_there(PROBE, &mut |_| events += 1);
    assert_eq!(events, 1);
    lane.heard(PROBE);
    lane.push(letter("a", None, 1), 8, PROBE).unwrap();
}

#[test]
fn without_a_broker_all_is_lost_after_the_grace() {
    let mut lane = between(1, 2);
    lane.push(letter("a", None, 1), 7, Duration::ZERO).unwrap();
    packet(&mut lane, 1_000).unwrap();
    lane.online(false, Duration::ZERO);
    assert!(lane.push(letter("a", None, 1), 8, Duration::ZERO).is_err());
    let mut events = 0;
    lane.tick(LIMITS.grace - Duration::from_millis(1), &mut |_| events += 1);
    assert_eq!(events, 0);
    lane.tick(LIMITS.grace, &mut |_| events += 1);
    assert_eq!(events, 1);
}

#[test]
fn a_closed_lane_takes_nothing_more() {
    for is_closed in [false, true] {
        let mut lane = between(1, 2);
        lane.push(letter("a", None, 1), 7, Duration::ZERO).unwrap();
        let mut events = Vec::new();
        if is_closed {
            lane.close(&mut |event| events.push(event));
            let back = Outcome::Refused(Refusal::Unreachable, letter("a", None, 1));
            assert_eq!(std::mem::take(&mut events), [Event::Settled(7, back)]);
        }
        lane.heard(Duration::ZERO);
        let mut other = between(2, 1);
        other.push(letter("b", None, 1), 9, Duration::ZERO).unwrap();
        let packet = packet(&mut other, 1_000).unwrap();
        lane.receive(packet, Duration::ZERO, &mut |event| events.push(event));
        assert_eq!(events.is_empty(), is_closed);
        assert_eq!(lane.push(letter("a", None, 1), 8, Duration::ZERO).is_err(), is_closed);
    }
}

fn call(to: &str) -> Letter {
    let callee = Callee { export: "a:b/c#d".into(), ty: "func()".into() };
    let letter = letter(to, None, 1);
    Letter { head: LetterHead { how: How::Call(callee.into()), ..letter.head }, ..letter }
}

#[test]
fn a_call_is_not_sent_to_a_session_whose_version_has_none() {
    for latest in VERSIONS.0..=VERSIONS.1 {
        let mut lane = between(1, 2);
        lane.push(call("a"), 7, Duration::ZERO).unwrap();
        lane.push(letter("a", None, 1), 8, Duration::ZERO).unwrap();
        let mut events = Vec::new();
        // It comes back as another, before anything was sent.
        lane.session(session(3), latest, &mut |event| events.push(event));
        let has_calls = latest >= CALLS;
        let refused = Event::Settled(7, Outcome::Refused(Refusal::NotOffered, call("a")));
        assert_eq!(events, if has_calls { vec![] } else { vec![refused] });
        let pushed = lane.push(call("b"), 9, Duration::ZERO).map_err(|(reason, ..)| reason);
        assert_eq!(pushed, if has_calls { Ok(()) } else { Err(Refusal::NotOffered) });
        let sent = packet(&mut lane, 1_000).unwrap();
        assert_eq!((sent.version, sent.frames.len()), (latest, if has_calls { 3 } else { 1 }));
    }
}

#[test]
fn a_session_is_spoken_to_in_the_latest_version_that_it_is_known_to_speak() {
    let mut lane = between::<()>(1, 2);
    let mut speaks = |theirs, version| {
        lane.session(session(theirs), version, &mut |_| {});
        lane.due = true;
        packet(&mut lane, 1_000).unwrap().version
    };
    let Versions(oldest, latest) = VERSIONS;
    // Its packet was for a session of before; then its record is seen.
    assert_eq!(speaks(3, oldest), oldest);
    assert_eq!(speaks(3, latest), latest);
    // A packet that comes late; and another session.
    assert_eq!(speaks(3, oldest), latest);
    assert_eq!(speaks(2, oldest), latest);
    assert_eq!(speaks(4, oldest), oldest);
}

/// A packet of a session to session 1.
fn of(theirs: u64, first: u64, expected: u64, letters: impl IntoIterator<Item = Letter>) -> Packet {
    let (from, to) = (session(theirs), session(1));
    let head = Head { from, to, first, expected, missed: Vec::new(), floor: 1, wants: false };
    Packet { version: VERSIONS.1, head, frames: letters.into_iter().map(Frame::Letter).collect() }
}

/// The letters of a packet that are in hand then, and the number of those that were missed.
fn take(lane: &mut Lane<()>, packet: Packet) -> (Vec<Ticket>, usize) {
    let mut tickets = Vec::new();
    let untaken = lane.receive(packet, Duration::ZERO, &mut |event| {
        if let Event::Letter(ticket, _) = event {
            tickets.push(ticket);
        }
    });
    (tickets, untaken)
}

/// Makes all packets that there are, and loses them. Gives the replies in them.
fn lose_packets(lane: &mut Lane<()>) -> Vec<Reply> {
    let mut replies = Vec::new();
    while let Some(lost) = packet(lane, 1_000) {
        replies.extend(lost.frames.into_iter().filter_map(|frame| match frame {
            Frame::Reply(reply) => Some(reply),
            Frame::Letter(_) => None,
        }));
    }
    replies
}

fn refused(of: u64) -> Reply {
    Reply::Refused { of, reason: Refusal::Full }
}

#[test]
fn replies_that_are_never_confirmed_are_bounded() {
    const PACKETS: usize = 100;
    for confirms in [false, true] {
        let mut lane = between(1, 2);
        let mut missed = 0;
        for n in 0..PACKETS {
            let expected = if confirms { lane.next } else { 1 };
            let first = 1 + (n * LIMITS.letters) as u64;
            let window = vec![letter("a", None, 1); LIMITS.letters];
            let (tickets, untaken) = take(&mut lane, of(2, first, expected, window));
            missed += untaken;
            for ticket in tickets {
                lane.refuse(ticket, Refusal::Unknown);
            }
            lose_packets(&mut lane);
        }
        let kept = if confirms { 1 } else { KEPT };
        assert_eq!((lane.unconfirmed.len(), lane.unsent.len()), (kept * LIMITS.letters, 0));
        assert_eq!(missed, if confirms { 0 } else { (PACKETS - KEPT) * LIMITS.letters });
        // They are one gap.
        assert_eq!(lane.missed.len(), usize::from(!confirms));
    }
}

#[test]
fn answers_that_are_never_confirmed_have_so_many_bytes() {
    const LARGE: usize = ANSWERS / 4;
    let answer = Bytes::from(vec![0; LARGE]);
    for confirms in [false, true] {
        let mut lane = between(1, 2);
        for number in 1..=4 {
            let expected = if confirms { lane.next } else { 1 };
            let (tickets, _) = take(&mut lane, of(2, number, expected, [letter("a", None, 1)]));
            lane.answer(tickets[0], Answer::Given(answer.clone()));
            lose_packets(&mut lane);
        }
        let expected = if confirms { lane.next } else { 1 };
        let (tickets, untaken) = take(&mut lane, of(2, 5, expected, [letter("a", None, 1)]));
        assert_eq!((tickets.len(), untaken), (usize::from(confirms), 0));
        assert_eq!(lose_packets(&mut lane), if confirms { vec![] } else { vec![refused(5)] });
    }
}

#[test]
fn a_host_with_a_larger_window_is_told_what_is_not_taken() {
    const COUNT: usize = 100;
    let limits = LaneLimits { letters: 4 * COUNT, bytes: 1_000_000, ..LIMITS };
    let mut large = Lane::new(limits, session(2), (session(1), VERSIONS.1), Duration::ZERO);
    for n in 0..COUNT {
        large.push(letter("a", None, 1), n, Duration::ZERO).unwrap();
    }
    let mut small = between(1, 2);
    let (tickets, untaken) = take(&mut small, packet(&mut large, 1_000_000).unwrap());
    assert_eq!((tickets.len(), untaken), (TAKEN * LIMITS.letters, COUNT - KEPT * LIMITS.letters));
    let mut outcomes = Vec::new();
    let mut hear = |small: &mut Lane<()>, large: &mut Lane<usize>| {
        while let Some(back) = packet(small, 1_000) {
            large.receive(back, Duration::ZERO, &mut |event| match event {
                Event::Settled(n, Outcome::Refused(reason, _)) => outcomes.push((n, reason)),
                other => panic!("{other:?}"),
            });
        }
        std::mem::take(&mut outcomes)
    };
    let mut told = hear(&mut small, &mut large);
    told.sort_by_key(|(n, _)| *n);
    let reason = |n| if n < KEPT * LIMITS.letters { Refusal::Full } else { Refusal::Unreachable };
    let expected: Vec<_> = (TAKEN * LIMITS.letters..COUNT).map(|n| (n, reason(n))).collect();
    assert_eq!(told, expected);
    // It confirms them with the next letter, which is taken when there is room.
    for ticket in tickets {
        small.refuse(ticket, Refusal::Full);
    }
    assert_eq!(hear(&mut small, &mut large).len(), TAKEN * LIMITS.letters);
    large.push(letter("a", None, 1), COUNT, Duration::ZERO).unwrap();
    let (tickets, untaken) = take(&mut small, packet(&mut large, 1_000).unwrap());
    assert_eq!((tickets.len(), untaken), (1, 0));
}

#[test]
fn letters_in_hand_are_so_many_and_have_so_many_bytes() {
    let many = TAKEN * LIMITS.letters;
    // All have room in a window, or are too large for one.
    for (bytes, are_taken) in [(1, many), (LIMITS.bytes / 2, 2 * TAKEN), (5 * LIMITS.bytes, 1)] {
        let mut lane = between(1, 2);
        let letters = || vec![letter("a", None, bytes); many + 1];
        let (tickets, untaken) = take(&mut lane, of(2, 1, 1, letters()));
        assert_eq!((tickets.len(), untaken), (are_taken, 0), "{bytes}");
        let last = many as u64 + 1;
        let are_refused: Vec<_> = (are_taken as u64 + 1..=last).map(refused).collect();
        assert_eq!(lose_packets(&mut lane), are_refused);
        // The control: what was replied to is not in hand any more.
        for ticket in tickets {
            lane.refuse(ticket, Refusal::Full);
        }
        lose_packets(&mut lane);
        let expected = lane.next;
        let (tickets, _) = take(&mut lane, of(2, last + 1, expected, letters()));
        assert_eq!(tickets.len(), are_taken);
    }
}

#[test]
fn letters_of_a_session_that_is_over_are_in_hand_until_they_are_replied_to() {
    let mut lane = between(1, 2);
    let window = || vec![letter("a", None, 1); LIMITS.letters];
    let mut all = Vec::new();
    for theirs in 2..100 {
        let (tickets, _) = take(&mut lane, of(theirs, 1, 1, window()));
        all.extend(tickets);
        assert_eq!(lane.taken.letters, all.len());
    }
    assert_eq!(all.len(), TAKEN * LIMITS.letters);
    lose_packets(&mut lane);
    lane.session(session(100), VERSIONS.1, &mut |_| {});
    assert!(lane.is_quiet(), "nobody waits for them");
    for (n, ticket) in all.into_iter().enumerate() {
        match n % 3 {
            0 => lane.refuse(ticket, Refusal::Full),
            1 => lane.answer(ticket, Answer::Other(Other::NoReply)),
            _ => lane.accept(ticket, false),
        }
    }
    assert_eq!((lane.taken.letters, lane.taken.bytes, lane.stale), (0, 0, 0));
    assert!(lane.is_quiet(), "nothing is said of them");
    // The control.
    assert_eq!(take(&mut lane, of(100, 1, 1, window())).0.len(), LIMITS.letters);
}

#[test]
fn a_session_is_outlived_by_an_earlier_one_when_it_is_silent() {
    let lane = between::<()>(1, 5);
    let silent = 3 * LIMITS.heartbeat;
    for (theirs, now, is_outlived) in
        [(4, silent, true), (4, silent - Duration::from_millis(1), false), (5, silent, false), (6, silent, false)]
    {
        assert_eq!(lane.is_outlived_by(session(theirs), now), is_outlived, "{theirs} {now:?}");
    }
}
