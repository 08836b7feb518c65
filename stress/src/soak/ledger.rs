//! Who sent what to whom, and what became of it. Pure accounting, which finds what is lost, doubled or out of order; who
//! sends and who handles it leaves to others.
//!
//! A message is known by its [`Tag`]. Its sender notes its [`Fate`] in an [`Outbox`]. At the receiver's [`Desk`] stands
//! what was begun and done there, and what became a dead letter. Both keep for each pair how many there were and the sum
//! of their numbers, so that the one that is missing among millions is known by its number.
//!
//! Exact is: to natives, each pair of sender and receiver by itself, for each way of sending; what was published, by
//! publisher and kind of receiver. A guest's handling is counted by the system's own metrics: exact as well, for each
//! receiver, but whose message is missing is not known. Within bounds only is what its sender cannot know: an ask that
//! was given up before there was an answer ([`Fate::Deadline`], [`Fate::Abandoned`]), and what a guest was to pass on
//! and crashed over. Such a message may have been handled once, be a dead letter, or be neither, and is counted as open.

use std::{collections::BTreeMap, fmt, num::NonZeroU64};

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

impl Class {
    pub(crate) const ALL: [Self; 5] = [Self::Tell, Self::Ask, Self::Timed, Self::Relayed, Self::Published];
}

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
            let class = *Class::ALL.get((bits & 15) as usize)?;
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

/// What its sender knows of a message in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Taken,
    Answered,
    Failed,
    NoReply,
    Crashed,
    /// The asker was told that the receiver stopped before it came to it.
    Ended,
    Deadline,
    Abandoned,
    /// The sender was ended itself while it waited for room.
    Withdrawn,
    Full,
    Restarting,
    Stopped,
    TooLarge,
    Unknown,
    Late,
    Cycle,
}

/// What follows from a fate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Means {
    /// It is handled or a dead letter.
    Due,
    Handled,
    /// Its asker was told, and nobody else has it.
    Told,
    /// The sender has it.
    Refused,
    Open,
}

impl Fate {
    /// All of them in their order, with their names.
    const ALL: [(Self, &'static str, Means); 16] = [
        (Self::Taken, "told", Means::Due),
        (Self::Answered, "answered", Means::Handled),
        (Self::Failed, "failed", Means::Handled),
        (Self::NoReply, "no answer", Means::Handled),
        (Self::Crashed, "crashed", Means::Due),
        (Self::Ended, "stopped", Means::Told),
        (Self::Deadline, "deadline", Means::Open),
        (Self::Abandoned, "given up", Means::Open),
        (Self::Withdrawn, "withdrawn", Means::Refused),
        (Self::Full, "full", Means::Refused),
        (Self::Restarting, "restarting", Means::Refused),
        (Self::Stopped, "has stopped", Means::Refused),
        (Self::TooLarge, "too large", Means::Refused),
        (Self::Unknown, "unknown", Means::Refused),
        (Self::Late, "late", Means::Refused),
        (Self::Cycle, "cycle", Means::Refused),
    ];

    pub(crate) fn all() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().map(|(fate, ..)| fate)
    }

    pub(crate) fn name(self) -> &'static str {
        Self::ALL[self as usize].1
    }

    pub(crate) fn is_refusal(self) -> bool {
        self.means() == Means::Refused
    }

    fn means(self) -> Means {
        Self::ALL[self as usize].2
    }
}

/// How many messages, and the sum of their numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Sum {
    pub(crate) count: u64,
    numbers: u64,
}

impl Sum {
    fn add(&mut self, count: u64, number: u64) {
        self.count += count;
        self.numbers = self.numbers.wrapping_add(count.wrapping_mul(number));
    }
}

impl std::ops::Add for Sum {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { count: self.count + other.count, numbers: self.numbers.wrapping_add(other.numbers) }
    }
}

impl std::iter::Sum for Sum {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |a, b| a + b)
    }
}

/// What there is of receivers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Kind {
    Native,
    Supervised,
    Subject,
    Counter,
    Relay,
    Steady,
    Echo,
    Listener,
    Teller,
    Miser,
    Subscription,
}

impl Kind {
    /// All of them in their order, with their names.
    const ALL: [(Self, &'static str); 11] = [
        (Self::Native, "native"),
        (Self::Supervised, "native, supervised"),
        (Self::Subject, "guest, supervised"),
        (Self::Counter, "counter, supervised"),
        (Self::Relay, "guest that sends"),
        (Self::Steady, "counter, upgraded"),
        (Self::Echo, "echo"),
        (Self::Listener, "listener"),
        (Self::Teller, "teller"),
        (Self::Miser, "guest, short of all"),
        (Self::Subscription, "the host's own"),
    ];

    /// Whether its desk knows what it handles.
    pub(crate) fn is_native(self) -> bool {
        matches!(self, Self::Native | Self::Supervised | Self::Subscription)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(Self::ALL[*self as usize].1)
    }
}

/// What one sender has sent.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outbox {
    last: u64,
    fates: [u64; Fate::ALL.len()],
    to: Vec<Sent>,
    published: [Published; Kind::ALL.len()],
}

/// To one receiver.
#[derive(Debug, Clone, Default)]
struct Sent {
    /// What is handled or a dead letter, by class.
    due: [Sum; Class::ALL.len()],
    /// Of these, what is handled for sure.
    handled: [u64; Class::ALL.len()],
    open: [u64; Class::ALL.len()],
    told: u64,
    refused: u64,
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
        self.fates[fate as usize] += 1;
        let sent = &mut self.to[to];
        match fate.means() {
            Means::Due => sent.due[class as usize].add(1, number),
            Means::Handled => {
                sent.due[class as usize].add(1, number);
                sent.handled[class as usize] += 1;
            }
            Means::Told => sent.told += 1,
            Means::Refused => sent.refused += 1,
            Means::Open => sent.open[class as usize] += 1,
        }
    }

    pub(crate) fn published(&mut self, to: Kind, number: u64, delivered: u64, refused: u64) {
        let published = &mut self.published[to as usize];
        published.delivered.add(delivered, number);
        published.refused += refused;
    }

    pub(crate) fn fates(&self) -> impl Iterator<Item = (Fate, u64)> {
        Fate::all().zip(self.fates)
    }

    /// Messages of a class that a receiver took.
    pub(crate) fn taken(&self, to: usize, class: Class) -> u64 {
        self.to[to].due[class as usize].count
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
    handled: [Sum; Class::ALL.len()],
    dead: [Sum; Class::ALL.len()],
}

impl Desk {
    pub(crate) fn new(senders: usize, redelivers: bool) -> Self {
        Self { redelivers, from: vec![Row::default(); senders] }
    }

    /// A handler begins a message. Says whether it is delivered again.
    pub(crate) fn begin(&mut self, tag: Tag) -> Result<bool, Disorder> {
        let row = &mut self.from[usize::from(tag.sender)];
        if tag.number > row.begun {
            row.begun = tag.number;
            return Ok(false);
        }
        let again = tag.number == row.begun;
        if again && self.redelivers && row.done < row.begun {
            return Ok(true);
        }
        Err(if again { Disorder::Again } else { Disorder::After { later: row.begun } })
    }

    /// It has handled it.
    pub(crate) fn done(&mut self, tag: Tag) {
        let row = &mut self.from[usize::from(tag.sender)];
        row.done = tag.number;
        row.handled[tag.class as usize].add(1, tag.number);
    }

    pub(crate) fn dead(&mut self, tag: Tag) {
        self.from[usize::from(tag.sender)].dead[tag.class as usize].add(1, tag.number);
    }

    /// Takes over what another desk has handled.
    pub(crate) fn append(&mut self, other: &Self) {
        for (row, other) in self.from.iter_mut().zip(&other.from) {
            for class in Class::ALL.map(|class| class as usize) {
                row.handled[class] = row.handled[class] + other.handled[class];
            }
        }
    }

    fn handled(&self) -> u64 {
        self.from.iter().flat_map(|row| row.handled).map(|sum| sum.count).sum()
    }

    fn all_dead(&self) -> u64 {
        self.from.iter().flat_map(|row| row.dead).map(|sum| sum.count).sum()
    }
}

/// Why a message must not be begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Disorder {
    /// It was before, and nothing is delivered again here, or it is done.
    Again,
    /// This later one of the same sender was begun before.
    After { later: u64 },
}

/// Between whom, as far as that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Between {
    pub(crate) from: Option<u16>,
    pub(crate) to: Option<usize>,
    pub(crate) kind: Kind,
    pub(crate) class: Option<Class>,
}

/// Something that must not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Finding {
    /// Messages that were taken and are nowhere. Of one alone, its number.
    Lost {
        between: Between,
        count: u64,
        number: Option<u64>,
    },
    /// More are handled and dead letters than were taken.
    TooMany {
        between: Between,
        count: u64,
    },
    /// As many as were taken, and not the same.
    Others {
        between: Between,
    },
    /// So many askers were told that theirs was handled, and so many were.
    Misled {
        between: Between,
        told: u64,
        handled: u64,
    },
    Disorder {
        between: Between,
        number: u64,
        disorder: Disorder,
    },
    /// A guest that was told to count so many.
    Uncounted {
        between: Between,
        told: u64,
        counted: u64,
    },
    /// What a receiver has handled by its own count, and by the metrics.
    Miscounted {
        between: Between,
        handled: u64,
        metered: u64,
    },
    Other(String),
}

impl Finding {
    pub(crate) fn is_loss(&self) -> bool {
        matches!(self, Self::Lost { .. })
    }

    /// Whether it may be nothing but what follows from a loss.
    pub(crate) fn is_of_loss(&self) -> bool {
        self.is_loss() || matches!(self, Self::Uncounted { told, counted, .. } if counted < told)
    }
}

impl fmt::Display for Between {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(class) = self.class {
            write!(f, "{class:?}, ")?;
        }
        match self.from {
            Some(from) => write!(f, "from sender {from} ")?,
            None => f.write_str("from any sender ")?,
        }
        match self.to {
            Some(to) => write!(f, "to r{to} ({})", self.kind),
            None => write!(f, "to a receiver of the kind `{}`", self.kind),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost { between, number: Some(number), .. } => write!(f, "lost: message {number}, {between}"),
            Self::Lost { between, count, number: None } => write!(f, "lost: {count} messages, {between}"),
            Self::TooMany { between, count } => write!(f, "{count} too many were handled or are dead, {between}"),
            Self::Others { between } => write!(f, "some lost and others doubled, {between}"),
            Self::Misled { between, told, handled } => {
                write!(f, "{told} askers were told that theirs was handled, and {handled} were, {between}")
            }
            Self::Disorder { between, number, disorder: Disorder::Again } => {
                write!(f, "begun twice: message {number}, {between}")
            }
            Self::Disorder { between, number, disorder: Disorder::After { later } } => {
                write!(f, "out of order: message {number} after {later}, {between}")
            }
            Self::Uncounted { between, told, counted } => write!(f, "{counted} counted of {told}, {between}"),
            Self::Miscounted { between, handled, metered } => {
                write!(f, "{handled} handled, and {metered} by the metrics, {between}")
            }
            Self::Other(text) => f.write_str(text),
        }
    }
}

/// What all messages to one kind of receiver have come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
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

impl std::ops::AddAssign for Line {
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
        let between = |from, class| Between { from, to: Some(to), kind, class };
        let sent: Vec<_> = outboxes.iter().map(|outbox| &outbox.to[to]).collect();
        let due: Sum = sent.iter().flat_map(|sent| sent.due).sum();
        let open: u64 = sent.iter().flat_map(|sent| sent.open).sum();
        let (told, refused) =
            (sent.iter().map(|sent| sent.told).sum::<u64>(), sent.iter().map(|sent| sent.refused).sum::<u64>());
        let handled = if kind.is_native() { desk.handled() } else { metered };
        let sent_in_all = due.count + open + told + refused;
        *lines.entry(kind).or_default() +=
            Line { sent: sent_in_all, handled, dead: desk.all_dead(), told, refused, open };
        if kind.is_native() {
            for (from, (sent, row)) in (0..).zip(sent.iter().zip(&desk.from)) {
                audit_pair(sent, row, |class| between(Some(from), Some(class)), &mut findings);
            }
            if kind != Kind::Subscription && handled != metered {
                findings.push(Finding::Miscounted { between: between(None, None), handled, metered });
            }
        } else if kind != Kind::Listener {
            let got = handled + desk.all_dead();
            compare_counts(between(None, None), due.count, open, got, &mut findings);
        }
    }
    for (kind, _) in Kind::ALL {
        let published: Vec<_> = outboxes.iter().map(|outbox| outbox.published[kind as usize]).collect();
        let delivered: u64 = published.iter().map(|published| published.delivered.count).sum();
        let refused: u64 = published.iter().map(|published| published.refused).sum();
        let line = lines.entry(kind).or_default();
        *line += Line { sent: delivered + refused, refused, ..Line::default() };
        let between = |from| Between { from, to: None, kind, class: Some(Class::Published) };
        if kind.is_native() {
            for (from, published) in published.iter().enumerate() {
                let rows = receivers.iter().zip(desks).filter(|((other, _), _)| *other == kind);
                let got = rows.map(|(_, desk)| &desk.from[from]);
                let class = Class::Published as usize;
                let got: Sum = got.map(|row| row.handled[class] + row.dead[class]).sum();
                compare(between(Some(from as u16)), published.delivered, 0, got, &mut findings);
            }
        } else if kind == Kind::Listener {
            let due = line.sent - line.told - line.refused - line.open;
            compare_counts(between(None), due, line.open, line.handled + line.dead, &mut findings);
        }
    }
    lines.retain(|_, line| line.sent > 0);
    (findings, lines)
}

/// What one sender has sent to one native.
fn audit_pair(sent: &Sent, row: &Row, between: impl Fn(Class) -> Between, findings: &mut Vec<Finding>) {
    for class in Class::ALL {
        let at = class as usize;
        if class == Class::Published {
            continue;
        }
        compare(between(class), sent.due[at], sent.open[at], row.handled[at] + row.dead[at], findings);
        // Who told has heard nothing; of those who asked, all who were answered were handled, and no others.
        let (told, handled) = (sent.handled[at], row.handled[at].count);
        let is_ask = matches!(class, Class::Ask | Class::Timed);
        if handled < told || is_ask && handled > told + sent.open[at] {
            findings.push(Finding::Misled { between: between(class), told, handled });
        }
    }
}

fn compare(between: Between, due: Sum, open: u64, got: Sum, findings: &mut Vec<Finding>) {
    if got.count + 1 == due.count && open == 0 {
        let number = Some(due.numbers.wrapping_sub(got.numbers));
        findings.push(Finding::Lost { between, count: 1, number });
    } else if got.count == due.count && open == 0 && got.numbers != due.numbers {
        findings.push(Finding::Others { between });
    } else {
        compare_counts(between, due.count, open, got.count, findings);
    }
}

fn compare_counts(between: Between, due: u64, open: u64, got: u64, findings: &mut Vec<Finding>) {
    if got < due {
        findings.push(Finding::Lost { between, count: due - got, number: None });
    } else if got > due + open {
        findings.push(Finding::TooMany { between, count: got - due - open });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NATIVE: [(Kind, u64); 1] = [(Kind::Native, 0)];

    fn tag(number: u64, class: Class) -> Tag {
        Tag { sender: 0, number, class }
    }

    fn between(class: Class) -> Between {
        Between { from: Some(0), to: Some(0), kind: Kind::Native, class: Some(class) }
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

        fn audit(&self) -> Vec<Finding> {
            let kinds = NATIVE.map(|(kind, _)| (kind, self.desk.handled()));
            audit(&kinds, std::slice::from_ref(&self.outbox), std::slice::from_ref(&self.desk)).0
        }
    }

    #[test]
    fn tables_are_in_order() {
        assert!(Fate::ALL.iter().enumerate().all(|(at, (fate, ..))| at == *fate as usize));
        assert!(Kind::ALL.iter().enumerate().all(|(at, (kind, _))| at == *kind as usize));
    }

    #[test]
    fn a_tag_comes_back_out_of_its_message() {
        for class in Class::ALL {
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
        let lost = Finding::Lost { between: between(Class::Tell), count: 1, number: Some(77_777) };
        assert!(lost.is_loss() && lost.to_string().contains("message 77777, Tell, from sender 0 to r0 (native)"));
        assert_eq!(pair.audit(), [lost]);
        pair.handle(tag(100_001, Class::Tell));
        assert_eq!(pair.audit(), [Finding::Others { between: between(Class::Tell) }]);
    }

    #[test]
    fn nothing_is_found_where_all_is_accounted_for() {
        let mut pair = Pair::new(false);
        for fate in Fate::all() {
            let class = if fate == Fate::Taken { Class::Tell } else { Class::Ask };
            let tag = pair.send(class, fate);
            match fate.means() {
                Means::Handled => pair.handle(tag),
                Means::Due => pair.desk.dead(tag),
                Means::Told | Means::Refused | Means::Open => {}
            }
        }
        assert_eq!(pair.audit(), []);
    }

    #[test]
    fn a_swap_is_found() {
        let mut desk = Desk::new(1, true);
        assert_eq!(desk.begin(tag(2, Class::Tell)), Ok(false));
        desk.done(tag(2, Class::Tell));
        assert_eq!(desk.begin(tag(1, Class::Ask)), Err(Disorder::After { later: 2 }));
    }

    #[test]
    fn a_redelivery_is_no_swap() {
        let mut pair = Pair::new(true);
        let (first, second) = (pair.send(Class::Tell, Fate::Taken), pair.send(Class::Tell, Fate::Taken));
        assert_eq!(pair.desk.begin(first), Ok(false));
        assert_eq!(pair.desk.begin(first), Ok(true));
        assert_eq!(pair.desk.begin(first), Ok(true));
        pair.desk.done(first);
        pair.handle(second);
        assert_eq!(pair.audit(), []);
    }

    #[test]
    fn what_is_handled_twice_is_found() {
        let mut pair = Pair::new(false);
        let only = pair.send(Class::Tell, Fate::Taken);
        assert_eq!(pair.desk.begin(only), Ok(false));
        // Without redelivery not even after a crash.
        assert_eq!(pair.desk.begin(only), Err(Disorder::Again));
        pair.desk.done(only);
        pair.desk.done(only);
        assert_eq!(pair.audit(), [Finding::TooMany { between: between(Class::Tell), count: 1 }]);

        let mut desk = Desk::new(1, true);
        assert_eq!(desk.begin(only), Ok(false));
        desk.done(only);
        assert_eq!(desk.begin(only), Err(Disorder::Again));
    }

    #[test]
    fn what_askers_were_told_is_held_against_what_was_handled() {
        let mut pair = Pair::new(false);
        let crashed = pair.send(Class::Ask, Fate::Crashed);
        pair.handle(crashed);
        assert_eq!(pair.audit(), [Finding::Misled { between: between(Class::Ask), told: 0, handled: 1 }]);
        let mut pair = Pair::new(false);
        let answered = pair.send(Class::Ask, Fate::Answered);
        pair.desk.dead(answered);
        assert_eq!(pair.audit(), [Finding::Misled { between: between(Class::Ask), told: 1, handled: 0 }]);
    }

    #[test]
    fn an_ask_that_was_given_up_is_handled_once_at_the_most() {
        let mut pair = Pair::new(false);
        let open = pair.send(Class::Timed, Fate::Deadline);
        assert_eq!(pair.audit(), []);
        pair.handle(open);
        assert_eq!(pair.audit(), []);
        pair.desk.dead(open);
        assert_eq!(pair.audit(), [Finding::TooMany { between: between(Class::Timed), count: 1 }]);
    }

    #[test]
    fn a_lost_publication_is_found_with_its_publisher() {
        let mut pair = Pair::new(false);
        let number = pair.outbox.next();
        pair.outbox.published(Kind::Native, number, 1, 3);
        pair.handle(tag(number, Class::Published));
        assert_eq!(pair.audit(), []);
        let number = pair.outbox.next();
        pair.outbox.published(Kind::Native, number, 1, 0);
        let between = Between { to: None, ..between(Class::Published) };
        assert_eq!(pair.audit(), [Finding::Lost { between, count: 1, number: Some(number) }]);
    }

    #[test]
    fn guests_are_counted_by_the_metrics() {
        let mut pair = Pair::new(false);
        for _ in 0..10 {
            pair.send(Class::Tell, Fate::Taken);
        }
        pair.desk.dead(tag(1, Class::Tell));
        let found = |metered| {
            let guest = [(Kind::Subject, metered)];
            audit(&guest, std::slice::from_ref(&pair.outbox), std::slice::from_ref(&pair.desk)).0
        };
        assert_eq!(found(9), []);
        let between = Between { from: None, to: Some(0), kind: Kind::Subject, class: None };
        assert_eq!(found(8), [Finding::Lost { between, count: 1, number: None }]);
        assert_eq!(found(10), [Finding::TooMany { between, count: 1 }]);
    }
}
