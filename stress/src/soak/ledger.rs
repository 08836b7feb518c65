//! Who sent what to whom, and what became of it. Pure accounting, which finds what is lost, doubled or out of order; who
//! sends and who handles it leaves to others.
//!
//! A message is known by its [`Tag`]. Its sender notes its [`Fate`] in an [`Outbox`]. The receiver's [`Desk`] has what was
//! begun and done there, and what became a dead letter. Both keep for each pair how many there were and the sum of their
//! numbers, so that the one that is missing among millions is known by its number.
//!
//! Exact is: to natives, each pair of sender and receiver by itself, for each way of sending; what was published, by
//! publisher and kind of receiver. A guest's handling is counted by the system's own metrics: exact as well, for each
//! receiver, but whose message is missing is not known. Within bounds only is what its sender cannot know: an ask that
//! was given up before there was an answer, and what a guest was to pass on and crashed over. Such a message may have
//! been handled once, be a dead letter, or be neither, and is counted as open.

use std::{collections::BTreeMap, fmt, num::NonZeroU64, ops::AddAssign};

use airssys_wasm_registry::{CorrelationId, MessageEnvelope};

/// How a message was sent, which says what can be known of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    Tell,
    /// Its asker waits until the end.
    Ask,
    /// An ask that may be given up.
    Timed,
    /// Sent by a guest that was asked to.
    Relayed,
    /// How many took it is known, and not who.
    Published,
}

const CLASSES: [Class; 5] = [Class::Tell, Class::Ask, Class::Timed, Class::Relayed, Class::Published];

/// By what a message is known: it travels in its correlation or, where a guest has sent it, at the end of its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tag {
    pub(crate) sender: u16,
    /// From 1, in the order in which the sender sends, whoever the receiver is.
    pub(crate) number: u64,
    pub(crate) class: Class,
}

impl Tag {
    pub(crate) fn correlation(self) -> CorrelationId {
        let bits = self.number << 20 | u64::from(self.sender) << 4 | self.class as u64;
        CorrelationId(NonZeroU64::new(bits).expect("numbers begin with 1"))
    }

    /// `None` for a message that is none of ours.
    pub(crate) fn of(message: &MessageEnvelope) -> Option<Self> {
        if let Some(CorrelationId(bits)) = message.correlation() {
            let bits = bits.get();
            let class = *CLASSES.get((bits & 15) as usize)?;
            return Some(Self { sender: (bits >> 4) as u16, number: bits >> 20, class });
        }
        let class = if message.topic().is_some() { Class::Published } else { Class::Relayed };
        Self::of_text(std::str::from_utf8(message.payload()).ok()?, class)
    }

    /// Of text that ends with [`text`](Self::text).
    pub(crate) fn of_text(text: &str, class: Class) -> Option<Self> {
        let mut words = text.rsplit(' ');
        let number = words.next()?.parse().ok()?;
        Some(Self { sender: words.next()?.parse().ok()?, number, class })
    }

    pub(crate) fn text(self) -> String {
        format!("{} {}", self.sender, self.number)
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "message {}, {:?}, from sender {}", self.number, self.class, self.sender)
    }
}

/// What its sender knows of a message in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is handled or a dead letter.
    Taken,
    Handled,
    /// Its asker was told that the receiver stopped before it came to it.
    Told,
    /// Its asker has given it up.
    Open,
    /// The sender has it.
    Refused,
}

/// How many messages, and the sum of their numbers.
#[derive(Debug, Clone, Copy, Default)]
struct Sum {
    count: u64,
    numbers: u64,
}

impl AddAssign for Sum {
    fn add_assign(&mut self, other: Self) {
        self.count += other.count;
        self.numbers = self.numbers.wrapping_add(other.numbers);
    }
}

/// So many messages of one number.
fn times(count: u64, number: u64) -> Sum {
    Sum { count, numbers: count.wrapping_mul(number) }
}

/// What there is of receivers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Native,
    /// A native below a supervisor.
    Supervised,
    /// A guest below a supervisor, and a counter there.
    Subject,
    Counter,
    /// A guest that sends.
    Relay,
    /// A counter that nobody crashes, and that is upgraded.
    Steady,
    Echo,
    Listener,
    /// A guest that publishes.
    Teller,
    /// A guest that is short of everything.
    Miser,
    /// What the host itself subscribes to.
    Subscription,
}

impl Kind {
    /// Whether its desk knows what it handles.
    pub(crate) fn is_native(self) -> bool {
        matches!(self, Self::Native | Self::Supervised | Self::Subscription)
    }
}

/// What one sender has sent.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outbox {
    last: u64,
    to: Vec<Sent>,
    published: BTreeMap<Kind, Published>,
}

/// To one receiver.
#[derive(Debug, Clone, Default)]
struct Sent {
    by_class: [SentSo; CLASSES.len()],
    told: u64,
    refused: u64,
}

#[derive(Debug, Clone, Default)]
struct SentSo {
    /// What is handled or a dead letter.
    due: Sum,
    /// Of these, what is handled for sure.
    handled: u64,
    open: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Published {
    delivered: Sum,
    refused: u64,
}

impl Outbox {
    pub(crate) fn new(receivers: usize) -> Self {
        Self { to: vec![Sent::default(); receivers], ..Self::default() }
    }

    /// The next message's number.
    pub(crate) fn next(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    pub(crate) fn note(&mut self, to: usize, class: Class, number: u64, fate: Fate) {
        let sent = &mut self.to[to];
        let so = &mut sent.by_class[class as usize];
        match fate {
            Fate::Taken => so.due += times(1, number),
            Fate::Handled => {
                so.due += times(1, number);
                so.handled += 1;
            }
            Fate::Told => sent.told += 1,
            Fate::Open => so.open += 1,
            Fate::Refused => sent.refused += 1,
        }
    }

    pub(crate) fn published(&mut self, to: Kind, number: u64, delivered: u64, refused: u64) {
        let published = self.published.entry(to).or_default();
        published.delivered += times(delivered, number);
        published.refused += refused;
    }

    /// Messages of a class that a receiver took.
    pub(crate) fn taken(&self, to: usize, class: Class) -> u64 {
        self.to[to].by_class[class as usize].due.count
    }
}

/// What one receiver has handled, by sender. Of guests it knows the dead letters alone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Desk {
    /// Whether a message that crashes its receiver may be begun again.
    redelivers: bool,
    from: Vec<Row>,
}

#[derive(Debug, Clone, Default)]
struct Row {
    begun: u64,
    done: u64,
    handled: [Sum; CLASSES.len()],
    dead: [Sum; CLASSES.len()],
}

impl Desk {
    pub(crate) fn new(senders: usize, redelivers: bool) -> Self {
        Self { redelivers, from: vec![Row::default(); senders] }
    }

    /// A handler begins a message. Says whether it is delivered again, or why it must not be.
    pub(crate) fn begin(&mut self, tag: Tag) -> Result<bool, Finding> {
        let row = &mut self.from[usize::from(tag.sender)];
        if tag.number > row.begun {
            row.begun = tag.number;
            return Ok(false);
        }
        if tag.number < row.begun {
            return Err(Finding::Other(format!("out of order: {tag}, after {}", row.begun)));
        }
        if self.redelivers && row.done < row.begun {
            return Ok(true);
        }
        Err(Finding::Other(format!("begun twice: {tag}")))
    }

    /// It has handled it.
    pub(crate) fn done(&mut self, tag: Tag) {
        let row = &mut self.from[usize::from(tag.sender)];
        row.done = tag.number;
        row.handled[tag.class as usize] += times(1, tag.number);
    }

    pub(crate) fn dead(&mut self, tag: Tag) {
        self.from[usize::from(tag.sender)].dead[tag.class as usize] += times(1, tag.number);
    }

    /// Takes over what another desk has handled.
    pub(crate) fn append(&mut self, other: &Self) {
        for (row, other) in self.from.iter_mut().zip(&other.from) {
            for (sum, other) in row.handled.iter_mut().zip(other.handled) {
                *sum += other;
            }
        }
    }

    fn count(&self, of: fn(&Row) -> &[Sum]) -> u64 {
        self.from.iter().flat_map(of).map(|sum| sum.count).sum()
    }
}

/// Something that must not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Finding {
    /// So many messages that were taken are nowhere.
    Lost(u64, String),
    Other(String),
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Lost(_, text) | Self::Other(text)) = self;
        f.write_str(text)
    }
}

/// What all messages to one kind of receiver have come to.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Line {
    /// By a sender, or to a subscriber.
    pub(crate) sent: u64,
    pub(crate) handled: u64,
    pub(crate) dead: u64,
    pub(crate) told: u64,
    pub(crate) refused: u64,
    /// What may be among the handled and the dead, or nowhere.
    pub(crate) open: u64,
}

impl AddAssign for Line {
    fn add_assign(&mut self, other: Self) {
        self.sent += other.sent;
        self.handled += other.handled;
        self.dead += other.dead;
        self.told += other.told;
        self.refused += other.refused;
        self.open += other.open;
    }
}

/// Compares what was sent with what became of it, for receivers with their kind and with what the metrics say that they
/// have handled.
pub(crate) fn audit(
    receivers: &[(Kind, u64)],
    outboxes: &[Outbox],
    desks: &[Desk],
) -> (Vec<Finding>, BTreeMap<Kind, Line>) {
    let (mut findings, mut lines) = (Vec::new(), BTreeMap::<Kind, Line>::new());
    for (to, (&(kind, metered), desk)) in receivers.iter().zip(desks).enumerate() {
        let sent: Vec<_> = outboxes.iter().map(|outbox| &outbox.to[to]).collect();
        let all = |of: fn(&SentSo) -> u64| sent.iter().flat_map(|sent| &sent.by_class).map(of).sum::<u64>();
        let (due, open) = (all(|so| so.due.count), all(|so| so.open));
        let (told, refused) = (sent.iter().map(|sent| sent.told).sum(), sent.iter().map(|sent| sent.refused).sum());
        let handled = if kind.is_native() { desk.count(|row| &row.handled) } else { metered };
        let dead = desk.count(|row| &row.dead);
        *lines.entry(kind).or_default() +=
            Line { sent: due + open + told + refused, handled, dead, told, refused, open };
        if kind.is_native() {
            for (from, (sent, row)) in sent.iter().zip(&desk.from).enumerate() {
                let to = format!("from sender {from} to r{to} ({kind:?})");
                findings.extend(CLASSES[..4].iter().flat_map(|&class| pair(sent, row, class, &to)).flatten());
            }
            if kind != Kind::Subscription && handled != metered {
                findings.push(Finding::Other(format!("{handled} handled, and {metered} by the metrics, to r{to}")));
            }
        } else if kind != Kind::Listener {
            findings.extend(compare(due, None, open, handled + dead, &format!("to r{to} ({kind:?})")));
        }
    }
    let published = |outbox: &Outbox, kind| outbox.published.get(&kind).copied().unwrap_or_default();
    for kind in [Kind::Native, Kind::Listener, Kind::Subscription] {
        let line = lines.entry(kind).or_default();
        for (from, Published { delivered, refused }) in
            outboxes.iter().map(|outbox| published(outbox, kind)).enumerate()
        {
            *line += Line { sent: delivered.count + refused, refused, ..Line::default() };
            if kind.is_native() {
                let rows = receivers.iter().zip(desks).filter(|((other, _), _)| *other == kind);
                let mut got = Sum::default();
                for (_, desk) in rows {
                    got += desk.from[from].handled[Class::Published as usize];
                    got += desk.from[from].dead[Class::Published as usize];
                }
                let numbers = Some(delivered.numbers.wrapping_sub(got.numbers));
                let what = format!("Published, from sender {from} to receivers of the kind {kind:?}");
                findings.extend(compare(delivered.count, numbers, 0, got.count, &what));
            }
        }
        if kind == Kind::Listener {
            let due = line.sent - line.told - line.refused - line.open;
            findings.extend(compare(due, None, line.open, line.handled + line.dead, "to listeners"));
        }
    }
    lines.retain(|_, line| line.sent > 0);
    (findings, lines)
}

/// What one sender has sent to one native in one way.
fn pair(sent: &Sent, row: &Row, class: Class, between: &str) -> [Option<Finding>; 2] {
    let SentSo { due, handled: told, open } = sent.by_class[class as usize];
    let handled = row.handled[class as usize];
    let mut got = row.dead[class as usize];
    got += handled;
    let numbers = (open == 0).then(|| due.numbers.wrapping_sub(got.numbers));
    // Who told has heard nothing; of those who asked, all who were answered were handled, and no others.
    let is_ask = matches!(class, Class::Ask | Class::Timed);
    let misled = handled.count < told || is_ask && handled.count > told + open;
    [
        compare(due.count, numbers, open, got.count, &format!("{class:?}, {between}")),
        misled.then(|| {
            let handled = handled.count;
            Finding::Other(format!("{told} askers were told that theirs was handled, and {handled} were, {between}"))
        }),
    ]
}

/// Holds how many there were against how many there must be. The numbers are by how much their sums differ, where that is
/// known.
fn compare(due: u64, numbers: Option<u64>, open: u64, got: u64, between: &str) -> Option<Finding> {
    Some(match (due.checked_sub(got), numbers) {
        (Some(1), Some(number)) => Finding::Lost(1, format!("lost: message {number}, {between}")),
        (Some(lost @ 1..), _) => Finding::Lost(lost, format!("lost: {lost} messages, {between}")),
        (Some(0), Some(1..)) => Finding::Other(format!("some lost and others doubled, {between}")),
        (None, _) if got > due + open => {
            Finding::Other(format!("{} too many were handled or are dead, {between}", got - due - open))
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(number: u64, class: Class) -> Tag {
        Tag { sender: 0, number, class }
    }

    /// One sender and one receiver.
    struct Pair {
        outbox: Outbox,
        desk: Desk,
    }

    impl Pair {
        fn new(redelivers: bool) -> Self {
            Self { outbox: Outbox::new(1), desk: Desk::new(1, redelivers) }
        }

        fn send(&mut self, class: Class, fate: Fate) -> Tag {
            let number = self.outbox.next();
            self.outbox.note(0, class, number, fate);
            tag(number, class)
        }

        fn handle(&mut self, tag: Tag) {
            assert_eq!(self.desk.begin(tag), Ok(false));
            self.desk.done(tag);
        }

        #[track_caller]
        fn finds(&self, expected: &[&str]) {
            let handled = self.desk.count(|row| &row.handled);
            self.finds_of((Kind::Native, handled), expected);
        }

        #[track_caller]
        fn finds_of(&self, receiver: (Kind, u64), expected: &[&str]) {
            let (outboxes, desks) = (std::slice::from_ref(&self.outbox), std::slice::from_ref(&self.desk));
            let findings: Vec<_> = audit(&[receiver], outboxes, desks).0.iter().map(Finding::to_string).collect();
            assert_eq!(findings, expected);
        }
    }

    #[test]
    fn a_tag_comes_back_out_of_its_message() {
        for class in CLASSES {
            let tag = Tag { sender: 40_000, number: 1 << 40, class };
            let mut message = MessageEnvelope::new("p");
            message = message.with_correlation(tag.correlation());
            assert_eq!(Tag::of(&message), Some(tag));
        }
        let relayed = Tag { sender: 7, number: 8, class: Class::Relayed };
        assert_eq!(Tag::of(&MessageEnvelope::new(format!("p {}", relayed.text()))), Some(relayed));
        assert_eq!(Tag::of(&MessageEnvelope::new("p")), None);
    }

    #[test]
    fn one_lost_message_of_many_is_found_and_named() {
        let mut pair = Pair::new(false);
        for number in 1..=100_000 {
            let tag = pair.send(Class::Tell, Fate::Taken);
            match number {
                77_777 => {}
                5 => pair.desk.dead(tag),
                _ => pair.handle(tag),
            }
        }
        pair.finds(&["lost: message 77777, Tell, from sender 0 to r0 (Native)"]);
        pair.handle(tag(100_001, Class::Tell));
        pair.finds(&["some lost and others doubled, Tell, from sender 0 to r0 (Native)"]);
    }

    #[test]
    fn nothing_is_found_where_all_is_accounted_for() {
        let mut pair = Pair::new(false);
        pair.send(Class::Tell, Fate::Taken);
        pair.desk.dead(tag(1, Class::Tell));
        let handled = pair.send(Class::Ask, Fate::Handled);
        pair.handle(handled);
        for fate in [Fate::Told, Fate::Open, Fate::Refused] {
            pair.send(Class::Ask, fate);
        }
        pair.finds(&[]);
    }

    #[test]
    fn a_swap_and_a_repetition_are_found_and_a_redelivery_is_neither() {
        for redelivers in [false, true] {
            let mut desk = Desk::new(1, redelivers);
            assert_eq!(desk.begin(tag(2, Class::Tell)), Ok(false));
            // After a crash.
            assert_eq!(desk.begin(tag(2, Class::Tell)).ok(), redelivers.then_some(true));
            desk.done(tag(2, Class::Tell));
            let again = desk.begin(tag(2, Class::Tell)).unwrap_err();
            assert_eq!(again.to_string(), "begun twice: message 2, Tell, from sender 0");
            let swapped = desk.begin(tag(1, Class::Ask)).unwrap_err();
            assert_eq!(swapped.to_string(), "out of order: message 1, Ask, from sender 0, after 2");
        }
    }

    #[test]
    fn what_is_done_twice_is_found() {
        let mut pair = Pair::new(false);
        let only = pair.send(Class::Tell, Fate::Taken);
        pair.handle(only);
        pair.desk.done(only);
        pair.finds(&["1 too many were handled or are dead, Tell, from sender 0 to r0 (Native)"]);
    }

    #[test]
    fn what_askers_were_told_is_held_against_what_was_handled() {
        let mut pair = Pair::new(false);
        let crashed = pair.send(Class::Ask, Fate::Taken);
        pair.handle(crashed);
        pair.finds(&["0 askers were told that theirs was handled, and 1 were, from sender 0 to r0 (Native)"]);
        let mut pair = Pair::new(false);
        let answered = pair.send(Class::Ask, Fate::Handled);
        pair.desk.dead(answered);
        pair.finds(&["1 askers were told that theirs was handled, and 0 were, from sender 0 to r0 (Native)"]);
    }

    #[test]
    fn an_ask_that_was_given_up_is_handled_once_at_the_most() {
        let mut pair = Pair::new(false);
        let open = pair.send(Class::Timed, Fate::Open);
        pair.finds(&[]);
        pair.handle(open);
        pair.finds(&[]);
        pair.desk.dead(open);
        pair.finds(&["1 too many were handled or are dead, Timed, from sender 0 to r0 (Native)"]);
    }

    #[test]
    fn a_lost_publication_is_found_with_its_publisher() {
        let mut pair = Pair::new(false);
        let number = pair.outbox.next();
        pair.outbox.published(Kind::Native, number, 1, 3);
        pair.handle(tag(number, Class::Published));
        pair.finds(&[]);
        let number = pair.outbox.next();
        pair.outbox.published(Kind::Native, number, 1, 0);
        pair.finds(&["lost: message 2, Published, from sender 0 to receivers of the kind Native"]);
    }

    #[test]
    fn guests_are_counted_by_the_metrics() {
        let mut pair = Pair::new(false);
        for _ in 0..10 {
            pair.send(Class::Tell, Fate::Taken);
        }
        pair.desk.dead(tag(1, Class::Tell));
        pair.finds_of((Kind::Subject, 9), &[]);
        pair.finds_of((Kind::Subject, 8), &["lost: 1 messages, to r0 (Subject)"]);
        pair.finds_of((Kind::Subject, 10), &["1 too many were handled or are dead, to r0 (Subject)"]);
    }
}
