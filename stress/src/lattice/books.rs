//! What became of each message of a round, by what all hosts wrote down, and whether that was promised.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    time::Duration,
};

use super::{
    ALONE,
    record::{Dead, Fate, How, Id, Record},
};

/// How long after something was healed messages may be lost of it: a lease and more, until all have joined again.
const AFTERMATH: Duration = Duration::from_secs(8);

/// Findings that are told.
const TOLD: usize = 20;

/// Who was hurt: a host, or the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Who {
    Host(usize),
    Broker,
}

/// Somebody could not work for a while.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hurt {
    pub(super) who: Who,
    pub(super) from: Duration,
    pub(super) to: Duration,
    /// When what it had was lost, if it was: a host's in memory, or what the broker had stored.
    pub(super) killed: Option<Duration>,
}

/// A process of a host, and one tenure of it if it serves a name alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct By {
    pub(super) host: usize,
    pub(super) life: u32,
    pub(super) tenure: u32,
}

/// What is known of the messages of a round.
#[derive(Default)]
pub(super) struct Round {
    messages: BTreeMap<Id, Message>,
    findings: Findings,
}

#[derive(Default)]
struct Message {
    sent: Option<(Duration, How, String)>,
    fate: Option<(Duration, Fate, u64)>,
    dead: Vec<(Duration, Dead)>,
    begun: Vec<(Duration, By, String)>,
    ended: usize,
    heard: Vec<usize>,
}

/// What is not as it was promised. The first of them in words.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub(super) told: Vec<String>,
    pub(super) total: usize,
    /// Messages that they are about.
    pub(super) messages: BTreeSet<Id>,
}

impl Findings {
    pub(super) fn add(&mut self, of: Option<Id>, text: String) {
        self.total += 1;
        self.messages.extend(of);
        if self.told.len() < TOLD {
            self.told.push(of.map_or(text.clone(), |id| format!("message {id}: {text}")));
        }
    }
}

/// Of messages sent in one way.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Counts {
    pub(super) sent: u64,
    /// And the sender knows it.
    pub(super) handled: u64,
    pub(super) refused: u64,
    /// The sender knows that it does not know.
    pub(super) unknown: u64,
    /// Of those, that were handled.
    pub(super) unknown_handled: u64,
    /// A deadline was over.
    pub(super) late: u64,
    /// Accepted, and lost with the receiver's host or its tenure.
    pub(super) gone: u64,
    /// The sender was killed before it was told.
    pub(super) untold: u64,
    /// The longest that a sender waited to be told.
    pub(super) longest: Duration,
}

/// Who has served a name that one serves at a time.
#[derive(Default)]
pub(super) struct Tenures {
    now: Option<By>,
    over: HashSet<By>,
}

impl Tenures {
    pub(super) fn count(&self) -> usize {
        self.over.len() + usize::from(self.now.is_some())
    }

    /// Now it is this one. An error if another has served it in between.
    fn go_on(&mut self, by: By) -> Result<(), String> {
        match self.now {
            Some(now) if now == by => {}
            now if self.over.contains(&by) => return Err(format!("{by:?} comes back while {now:?} serves it")),
            _ => self.over.extend(self.now.replace(by)),
        }
        Ok(())
    }
}

/// What is known of the keys of the kind from the rounds before.
#[derive(Default)]
pub(super) struct Keys(BTreeMap<String, Counter>);

#[derive(Default)]
struct Counter {
    /// When nothing was hurt at the end of the last round.
    count: u64,
    /// Whose answers count: each is an actor that was in memory for a while.
    tenures: Tenures,
}

impl Keys {
    pub(super) fn activations(&self) -> usize {
        self.0.values().map(|key| key.tenures.count()).sum()
    }
}

/// A message that an actor of the kind has counted, as its sender knows.
struct Counted {
    id: Id,
    sent: Duration,
    told: Duration,
    count: u64,
    by: Option<By>,
}

impl Round {
    /// Enters what a process of a host wrote.
    pub(super) fn enter(&mut self, host: usize, life: u32, at: Duration, id: Id, record: Record) {
        let message = self.messages.entry(id).or_default();
        match record {
            Record::Sent { how, to } => message.sent = Some((at, how, to)),
            Record::Outcome(fate, count) if message.fate.is_none() => message.fate = Some((at, fate, count)),
            Record::Outcome(..) => self.findings.add(Some(id), "its sender was told twice".to_owned()),
            Record::Dead(dead) => message.dead.push((at, dead)),
            Record::Begun { by, tenure } => message.begun.push((at, By { host, life, tenure }, by)),
            Record::Ended => message.ended += 1,
            Record::Heard => message.heard.push(host),
        }
    }

    /// Whether all of it was promised. `others` is how many other hosts a publication goes to.
    pub(super) fn check(
        mut self,
        round: u32,
        hurts: &[Hurt],
        others: usize,
        tenures: &mut Tenures,
        keys: &mut Keys,
    ) -> (Findings, BTreeMap<How, Counts>) {
        let mut counts = BTreeMap::<How, Counts>::new();
        let mut findings = std::mem::take(&mut self.findings);
        for (id, message) in &self.messages {
            let Some((sent, how, to)) = &message.sent else {
                let when = if id.round < round { "comes after its round" } else { "was never sent" };
                findings.add(Some(*id), format!("it {when}: {:?} {:?}", message.begun, message.heard));
                continue;
            };
            let count = counts.entry(*how).or_default();
            count.sent += 1;
            if let Some((told, ..)) = message.fate {
                count.longest = count.longest.max(told.saturating_sub(*sent));
            }
            let seen = Seen { id: *id, message, sent: *sent, how: *how, to, hurts };
            let found = if *how == How::Publish { seen.publication(others, count) } else { seen.message(count) };
            if let Err(text) = found {
                findings.add(Some(*id), format!("{} to {to} {text}", how.word()));
            }
        }
        self.in_order(&mut findings);
        self.alone(&mut findings, tenures);
        self.keys(&mut findings, hurts, keys);
        (findings, counts)
    }

    /// What one task sends to one receiver is begun in that order.
    fn in_order(&self, findings: &mut Findings) {
        let mut last = HashMap::<(usize, u32, u32, By, &str), (Duration, Id)>::new();
        for (id, message) in &self.messages {
            for (at, by, name) in &message.begun {
                let key = (id.host, id.life, id.task, *by, name.as_str());
                if let Some((before, earlier)) = last.insert(key, (*at, *id))
                    && before > *at
                {
                    findings.add(Some(*id), format!("it overtook {earlier} at {name}"));
                }
            }
        }
    }

    /// Who handles what comes for the name changes, and none comes back.
    fn alone(&self, findings: &mut Findings, tenures: &mut Tenures) {
        let begun = self.messages.iter().flat_map(|(id, message)| message.begun.iter().map(move |begun| (id, begun)));
        let mut begun: Vec<_> = begun.filter(|(_, (.., name))| name == ALONE).collect();
        begun.sort_unstable_by_key(|(_, (at, ..))| *at);
        for (id, (_, by, _)) in begun {
            if let Err(text) = tenures.go_on(*by) {
                findings.add(Some(*id), format!("`{ALONE}`: {text}"));
            }
        }
    }

    /// Of each key each count is answered once, in the order of their times, by one actor after the other; and nothing is lost that was
    /// answered, nor counted that was not sent.
    fn keys(&self, findings: &mut Findings, hurts: &[Hurt], keys: &mut Keys) {
        let mut counted = BTreeMap::<&str, (Vec<Counted>, u64)>::new();
        for (id, message) in &self.messages {
            let Some((sent, How::Key, to)) = &message.sent else { continue };
            let (answered, unknown) = counted.entry(to).or_default();
            match message.fate {
                Some((told, Fate::Answered, count)) => {
                    let by = message.begun.first().map(|(_, by, _)| *by);
                    answered.push(Counted { id: *id, sent: *sent, told, count, by });
                }
                Some((_, Fate::Refused, _)) => {}
                _ => *unknown += 1,
            }
        }
        // With the broker's store the states are lost: what was sent after that is counted anew, and what was under way meanwhile is
        // counted before or after it.
        let wiped = hurts.iter().find(|hurt| hurt.who == Who::Broker && hurt.killed.is_some());
        for (key, (mut answered, unknown)) in counted {
            let counter = keys.0.entry(key.to_owned()).or_default();
            answered.sort_by_key(|counted| counted.count);
            let most = answered.len() as u64 + unknown;
            let Some(wipe) = wiped else {
                counter.count_on(key, answered.iter(), most, findings);
                continue;
            };
            counter.count_on(key, answered.iter().filter(|counted| counted.told <= wipe.from), most, findings);
            counter.count = 0;
            counter.count_on(key, answered.iter().filter(|counted| counted.sent >= wipe.to), most, findings);
        }
    }

    /// The counts that a host's guest answered in order, with how many additions have no known outcome.
    pub(super) fn counted(&self, host: usize) -> (Vec<u64>, u64) {
        let mut answers = Vec::new();
        let mut unknown = 0;
        for message in self.messages.values() {
            match (&message.sent, message.fate) {
                (Some((_, How::Count, to)), fate) if home(to) == Some(host) => match fate {
                    Some((_, Fate::Answered, count)) => answers.push(count),
                    Some((_, Fate::Refused, _)) => {}
                    _ => unknown += 1,
                },
                _ => {}
            }
        }
        answers.sort_unstable();
        (answers, unknown)
    }
}

/// The host that a name belongs to.
fn home(name: &str) -> Option<usize> {
    name.rsplit_once('-')?.1.parse().ok()
}

impl Counter {
    /// `answered` is in the order of counts, and no more than `most` are counted.
    fn count_on<'a>(
        &mut self,
        key: &str,
        answered: impl Iterator<Item = &'a Counted>,
        most: u64,
        findings: &mut Findings,
    ) {
        let before = self.count;
        let mut sent = Duration::ZERO;
        for Counted { id, sent: its_sent, told, count, by } in answered {
            let mut find = |text| findings.add(Some(*id), format!("{key} {text}"));
            if *count <= self.count {
                find(format!("has counted to {count} after {}, and {before} before", self.count));
            }
            if *told < sent {
                find(format!("answers {count} before a message was sent that is less"));
            }
            if let Some(Err(text)) = by.map(|by| self.tenures.go_on(by)) {
                find(text);
            }
            (self.count, sent) = (self.count.max(*count), sent.max(*its_sent));
        }
        if self.count > before + most {
            findings.add(None, format!("{key} counts {} after {before} and {most} messages", self.count));
        }
    }
}

struct Seen<'a> {
    id: Id,
    message: &'a Message,
    sent: Duration,
    how: How,
    to: &'a str,
    hurts: &'a [Hurt],
}

impl Seen<'_> {
    fn message(&self, count: &mut Counts) -> Result<(), String> {
        let Message { fate, dead, begun, ended, .. } = self.message;
        // A counter writes nothing: what it did is told by its counts.
        let is_seen = self.how != How::Count;
        let handled = begun.len();
        if handled > 1 || *ended > handled {
            return Err(format!("was handled {handled} times: {begun:?}"));
        }
        let at_sender: Vec<_> = dead.iter().filter(|(_, dead)| *dead != Dead::Here).collect();
        if at_sender.len() > usize::from(self.how == How::Send) {
            return Err(format!("is a dead letter {} times", at_sender.len()));
        }
        let Some((told, fate, _)) = *fate else {
            if !self.was_killed(self.id.host, self.sent) {
                return Err("has no outcome".to_owned());
            }
            count.untold += 1;
            return Ok(());
        };
        let (told, fate) = match (fate, at_sender.first()) {
            (Fate::Queued, Some((at, Dead::Refused))) => (*at, Fate::Refused),
            (Fate::Queued, Some((at, _))) => (*at, Fate::Lost),
            // Its dead letter was lost with the sender, or would have been.
            (Fate::Queued, None) if handled == 0 && self.was_killed(self.id.host, self.sent) => {
                count.untold += 1;
                return Ok(());
            }
            (Fate::Queued, None) => (told, Fate::Accepted),
            (fate, None) => (told, fate),
            (fate, Some(_)) => return Err(format!("is {} and a dead letter", fate.word())),
        };
        let is_well = matches!(fate, Fate::Answered | Fate::Accepted) && (*ended == 1 || !is_seen);
        if self.id.is_quiet() && !is_well {
            return Err(format!("is {} when nothing is hurt, and was handled {handled} times", fate.word()));
        }
        match fate {
            Fate::Wrong => return Err("has the answer of another".to_owned()),
            Fate::Refused if handled > 0 => return Err(format!("was refused, and handled: {begun:?}")),
            Fate::Refused => count.refused += 1,
            Fate::Answered if is_seen && *ended == 0 => return Err("was answered, and not handled".to_owned()),
            Fate::Answered => count.handled += 1,
            Fate::Accepted | Fate::Queued if *ended == 1 => count.handled += 1,
            Fate::Accepted | Fate::Queued => {
                let is_gone = dead.iter().any(|(_, dead)| *dead == Dead::Here)
                    || self.receivers().any(|host| self.was_killed(host, self.sent));
                if !is_gone {
                    return Err("was accepted, and is nowhere".to_owned());
                }
                count.gone += 1;
            }
            Fate::Late => {
                count.late += 1;
                count.unknown_handled += handled as u64;
            }
            Fate::Lost if !self.was_hurt(told) => return Err("is lost, though nothing was hurt".to_owned()),
            Fate::Lost | Fate::Unknown => {
                count.unknown += 1;
                count.unknown_handled += handled as u64;
            }
        }
        Ok(())
    }

    /// At most once for each host, and, when nothing is hurt, once for each of them.
    fn publication(&self, others: usize, count: &mut Counts) -> Result<(), String> {
        let mut heard = self.message.heard.clone();
        heard.sort_unstable();
        let times = heard.len();
        heard.dedup();
        if times != heard.len() {
            return Err(format!("was heard {times} times by {heard:?}"));
        }
        let elsewhere = heard.iter().filter(|host| **host != self.id.host).count();
        if self.id.is_quiet() && elsewhere != others {
            return Err(format!("was heard by {heard:?} alone when nothing is hurt"));
        }
        count.handled += u64::from(elsewhere == others);
        count.gone += u64::from(elsewhere != others);
        Ok(())
    }

    fn receivers(&self) -> impl Iterator<Item = usize> {
        let home = home(self.to);
        (0..super::HOSTS).filter(move |host| home.is_none_or(|home| home == *host))
    }

    fn was_killed(&self, host: usize, since: Duration) -> bool {
        self.hurts.iter().any(|hurt| hurt.who == Who::Host(host) && hurt.killed.is_some_and(|at| at >= since))
    }

    /// Whether the sender, the receiver or the broker was hurt before it was told.
    fn was_hurt(&self, told: Duration) -> bool {
        let concerns = |who| match who {
            Who::Broker => true,
            Who::Host(host) => host == self.id.host || self.receivers().any(|receiver| receiver == host),
        };
        self.hurts.iter().any(|hurt| concerns(hurt.who) && hurt.from <= told && hurt.to + AFTERMATH >= self.sent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: Id = Id { round: 1, host: 0, life: 1, task: 3, number: 9 };
    const QUIET: Id = Id { task: super::super::record::QUIET_TASKS, ..ID };

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Three hosts, of which `ECHO` is at 1.
    const ECHO: &str = "echo-1";

    struct Case(Round);

    impl Case {
        fn new(how: How) -> Self {
            Self(Round::default()).and(ID, 0, 10, Record::Sent { how, to: ECHO.to_owned() })
        }

        fn quiet(how: How) -> Self {
            Self(Round::default()).and(QUIET, 0, 10, Record::Sent { how, to: ECHO.to_owned() })
        }

        fn and(mut self, id: Id, host: usize, ms: u64, record: Record) -> Self {
            self.0.enter(host, 1, at(ms), id, record);
            self
        }

        fn told(self, fate: Fate) -> Self {
            let id = *self.0.messages.keys().next().unwrap();
            self.and(id, 0, 20, Record::Outcome(fate, 0))
        }

        fn handled(self, times: u64) -> Self {
            let id = *self.0.messages.keys().next().unwrap();
            (0..times).fold(self, |case, time| {
                let begun = Record::Begun { by: ECHO.to_owned(), tenure: 0 };
                case.and(id, 1, 12 + time, begun).and(id, 1, 13 + time, Record::Ended)
            })
        }

        fn dead(self, dead: Dead) -> Self {
            let host = usize::from(dead == Dead::Here);
            self.and(ID, host, 30, Record::Dead(dead))
        }

        fn findings(self, hurts: &[Hurt]) -> usize {
            self.0.check(1, hurts, 2, &mut Tenures::default(), &mut Keys::default()).0.total
        }
    }

    fn hurt(who: Who, killed: bool) -> Hurt {
        Hurt { who, from: at(5), to: at(15), killed: killed.then_some(at(11)) }
    }

    #[test]
    fn each_outcome_is_held_against_what_was_handled() {
        for (how, fate, handled, findings) in [
            (How::Ask, Fate::Answered, 1, 0),
            (How::Ask, Fate::Answered, 0, 1),
            (How::Ask, Fate::Answered, 2, 1),
            (How::Ask, Fate::Wrong, 1, 1),
            (How::Ask, Fate::Refused, 0, 0),
            (How::Ask, Fate::Refused, 1, 1),
            (How::Timed, Fate::Late, 0, 0),
            (How::Timed, Fate::Late, 1, 0),
            (How::Timed, Fate::Late, 2, 1),
            (How::Tell, Fate::Accepted, 1, 0),
            (How::Tell, Fate::Accepted, 0, 1),
            (How::Send, Fate::Queued, 1, 0),
            (How::Send, Fate::Queued, 0, 1),
            (How::Count, Fate::Answered, 0, 0),
        ] {
            assert_eq!(
                Case::new(how).told(fate).handled(handled).findings(&[]),
                findings,
                "{how:?} {fate:?} {handled}"
            );
        }
        assert_eq!(Case::new(How::Tell).told(Fate::Accepted).told(Fate::Accepted).handled(1).findings(&[]), 1);
    }

    #[test]
    fn a_message_without_an_outcome_is_one_of_a_sender_that_was_killed() {
        let case = || Case::new(How::Ask).handled(1);
        assert_eq!(case().findings(&[hurt(Who::Host(0), true)]), 0);
        assert_eq!(case().findings(&[hurt(Who::Host(0), false)]), 1);
        assert_eq!(case().findings(&[hurt(Who::Host(1), true)]), 1);
    }

    #[test]
    fn what_was_accepted_is_lost_with_its_host_alone() {
        let case = || Case::new(How::Tell).told(Fate::Accepted);
        assert_eq!(case().findings(&[hurt(Who::Host(1), true)]), 0);
        assert_eq!(case().findings(&[hurt(Who::Host(1), false)]), 1);
        assert_eq!(case().findings(&[hurt(Who::Broker, true)]), 1);
        assert_eq!(case().dead(Dead::Here).findings(&[]), 0);
    }

    #[test]
    fn a_fate_is_unknown_only_where_something_was_hurt() {
        let case = || Case::new(How::Tell).told(Fate::Lost);
        assert_eq!(case().findings(&[]), 1);
        for (who, findings) in [(Who::Host(0), 0), (Who::Host(1), 0), (Who::Host(2), 1), (Who::Broker, 0)] {
            assert_eq!(case().findings(&[hurt(who, false)]), findings, "{who:?}");
        }
        let long_before = Hurt { from: at(0), to: at(1), ..hurt(Who::Broker, false) };
        let mut late = Case(Round::default());
        late = late.and(ID, 0, 60_000, Record::Sent { how: How::Tell, to: ECHO.to_owned() });
        assert_eq!(late.and(ID, 0, 60_001, Record::Outcome(Fate::Lost, 0)).findings(&[long_before]), 1);
    }

    #[test]
    fn dead_letters_are_of_what_was_sent_without_waiting() {
        let case = || Case::new(How::Send).told(Fate::Queued);
        assert_eq!(case().dead(Dead::Refused).findings(&[]), 0);
        assert_eq!(case().dead(Dead::Refused).handled(1).findings(&[]), 1);
        assert_eq!(case().dead(Dead::Refused).dead(Dead::Refused).findings(&[]), 1);
        // Nobody can say what became of it who was killed meanwhile.
        assert_eq!(case().findings(&[hurt(Who::Host(0), true)]), 0);
        let broker = [Hurt { from: at(25), ..hurt(Who::Broker, false) }];
        assert_eq!(case().dead(Dead::Lost).handled(1).findings(&broker), 0);
        assert_eq!(case().dead(Dead::Lost).findings(&[]), 1);
        assert_eq!(Case::new(How::Tell).told(Fate::Accepted).handled(1).dead(Dead::Lost).findings(&broker), 1);
    }

    #[test]
    fn when_nothing_is_hurt_all_is_handled() {
        assert_eq!(Case::quiet(How::Tell).told(Fate::Accepted).handled(1).findings(&[]), 0);
        assert_eq!(Case::quiet(How::Tell).told(Fate::Refused).findings(&[]), 1);
        // What was hurt before does not excuse it.
        assert_eq!(Case::quiet(How::Tell).told(Fate::Lost).findings(&[hurt(Who::Broker, false)]), 1);
        let publication = |id: Id, heard: &[usize]| {
            let sent = Record::Sent { how: How::Publish, to: "topic".to_owned() };
            let case = Case(Round::default()).and(id, 0, 10, sent);
            heard.iter().fold(case, |case, host| case.and(id, *host, 11, Record::Heard)).findings(&[])
        };
        assert_eq!(publication(ID, &[0, 2]), 0);
        assert_eq!(publication(ID, &[2, 2]), 1);
        assert_eq!(publication(QUIET, &[0, 1, 2]), 0);
        assert_eq!(publication(QUIET, &[0, 2]), 1);
    }

    #[test]
    fn a_message_of_a_round_before_is_found() {
        let begun = Record::Begun { by: ECHO.to_owned(), tenure: 0 };
        assert_eq!(Case(Round::default()).and(Id { round: 0, ..ID }, 1, 10, begun).findings(&[]), 1);
    }

    #[test]
    fn what_overtakes_is_found() {
        let send = |case: Case, number, begun| {
            let id = Id { number, ..ID };
            let case = case.and(id, 0, 10 + number, Record::Sent { how: How::Send, to: ECHO.to_owned() });
            let case = case.and(id, 0, 10 + number, Record::Outcome(Fate::Queued, 0));
            let case = case.and(id, 1, begun, Record::Begun { by: ECHO.to_owned(), tenure: 0 });
            case.and(id, 1, begun, Record::Ended)
        };
        assert_eq!(send(send(Case(Round::default()), 1, 30), 2, 31).findings(&[]), 0);
        assert_eq!(send(send(Case(Round::default()), 1, 30), 2, 29).findings(&[]), 1);
    }

    #[test]
    fn a_tenure_that_is_over_does_not_come_back() {
        let round = |begun: &[(u64, usize)]| {
            begun.iter().fold(Case(Round::default()), |case, (ms, host)| {
                let id = Id { number: *ms, task: *ms as u32, ..ID };
                let case = case.and(id, 0, 1, Record::Sent { how: How::Tell, to: ALONE.to_owned() });
                let case = case.and(id, 0, 99, Record::Outcome(Fate::Accepted, 0));
                let case = case.and(id, *host, *ms, Record::Begun { by: ALONE.to_owned(), tenure: 1 });
                case.and(id, *host, ms + 50, Record::Ended)
            })
        };
        assert_eq!(round(&[(10, 0), (20, 0), (30, 1), (40, 1)]).findings(&[]), 0);
        assert_eq!(round(&[(10, 0), (30, 1), (31, 0), (40, 1)]).findings(&[]), 1);
        // Nor in a later round.
        let mut tenures = Tenures::default();
        let mut check = |case: Case| case.0.check(1, &[], 2, &mut tenures, &mut Keys::default()).0.total;
        assert_eq!(check(round(&[(10, 0), (30, 1)])), 0);
        assert_eq!(check(round(&[(10, 1)])), 0);
        assert_eq!(check(round(&[(10, 0)])), 1);
    }

    /// Messages to a key, all answered: when they are sent and told, the count, and by whom.
    fn counts(counts: &[(u64, u64, u64, u32)], unknown: u64) -> Case {
        let sent = || Record::Sent { how: How::Key, to: "cart/7".to_owned() };
        let case = counts.iter().enumerate().fold(Case(Round::default()), |case, (n, (sent_at, told, count, life))| {
            let id = Id { number: n as u64, task: n as u32, ..ID };
            let mut case = case.and(id, 0, *sent_at, sent()).and(id, 0, *told, Record::Outcome(Fate::Answered, *count));
            let begun = Record::Begun { by: "cart/7".to_owned(), tenure: 1 };
            case.0.enter(1, *life, at(*sent_at), id, begun);
            case.and(id, 1, *sent_at, Record::Ended)
        });
        (0..unknown).fold(case, |case, n| {
            let id = Id { number: 100 + n, task: 100, ..ID };
            case.and(id, 0, 1, sent()).and(id, 0, 2, Record::Outcome(Fate::Unknown, 0))
        })
    }

    #[test]
    fn each_count_of_a_key_is_answered_once_and_none_is_lost_or_made_up() {
        for (answered, unknown, findings) in [
            (&[(1, 2, 1, 1), (3, 4, 2, 1), (5, 6, 3, 1)][..], 0, 0),
            // Two at the same time.
            (&[(1, 8, 2, 1), (3, 4, 1, 1)], 0, 0),
            (&[(1, 2, 1, 1), (3, 4, 1, 1)], 0, 1),
            (&[(1, 2, 2, 1), (3, 4, 1, 1)], 1, 1),
            // One is counted that is not answered.
            (&[(1, 2, 1, 1), (3, 4, 3, 1)], 1, 0),
            (&[(1, 2, 1, 1), (3, 4, 3, 1)], 0, 1),
            // Another goes on, and the one before comes back.
            (&[(1, 2, 1, 1), (3, 4, 2, 2), (5, 6, 3, 2)], 0, 0),
            (&[(1, 2, 1, 1), (3, 4, 2, 2), (5, 6, 3, 1)], 0, 1),
        ] {
            assert_eq!(counts(answered, unknown).findings(&[]), findings, "{answered:?} {unknown}");
        }
    }

    #[test]
    fn a_key_counts_on_in_the_next_round_and_anew_when_the_brokers_store_was_wiped() {
        let wipe = Hurt { who: Who::Broker, from: at(10), to: at(20), killed: Some(at(15)) };
        let mut keys = Keys::default();
        let mut check =
            |case: Case, hurts: &[Hurt]| case.0.check(1, hurts, 2, &mut Tenures::default(), &mut keys).0.total;
        assert_eq!(check(counts(&[(1, 2, 1, 1), (3, 4, 2, 1)], 0), &[]), 0);
        assert_eq!(check(counts(&[(1, 2, 3, 1)], 0), &[]), 0);
        assert_eq!(check(counts(&[(1, 2, 3, 1)], 0), &[]), 1);
        assert_eq!(check(counts(&[(1, 2, 5, 1)], 0), &[]), 1);
        let wiped = [(1, 2, 6, 1), (9, 12, 7, 1), (11, 21, 1, 2), (22, 23, 2, 2)];
        assert_eq!(check(counts(&wiped, 0), &[wipe]), 0);
        assert_eq!(check(counts(&[(24, 25, 2, 2)], 0), &[]), 1);
        // Control: without the wipe, and one that is twice the same after it.
        assert!(check(counts(&wiped, 0), &[]) > 1);
        assert_eq!(check(counts(&[(21, 22, 1, 3), (22, 23, 1, 3)], 0), &[wipe]), 1);
    }
}
