//! Deployments as records: what each host is ordered to run, what came of it, and what follows from both.
//!
//! Pure, as [`lease`](crate::lease) is. The record of a deployment is written by who changes it, one at a time. Each host that it names has
//! a report of its own. An order has a number that no other has, and a report says which order it is about, so that what came of an
//! earlier order is never taken for the outcome of a later one.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    config::HostName,
    digest::Digest,
    lease::{Owner, Session},
};

/// The record of a deployment, in JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Wanted {
    pub(crate) manifest: String,
    /// What a host must have to be chosen.
    pub(crate) labels: BTreeMap<String, String>,
    /// What each host that it is placed on is to run.
    pub(crate) hosts: BTreeMap<HostName, Order>,
    /// Who changes it now. Nobody else does until that is over, or its session is.
    pub(crate) change: Option<Change>,
}

/// What a host is to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Order {
    /// Drawn at random.
    pub(crate) number: u64,
    pub(crate) digest: Digest,
    /// How to go over to it, until it is known what came of that.
    pub(crate) step: Option<Step>,
}

/// A host's turn in a roll.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Step {
    /// What it ran before, and runs if this comes to nothing.
    pub(crate) from: Digest,
    pub(crate) discard_state: bool,
    pub(crate) probation: u32,
    /// How long the end of the probation is waited for.
    pub(crate) longest: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Change {
    pub(crate) by: Owner<HostName>,
    /// Drawn at random: a host may try several changes.
    pub(crate) number: u64,
}

/// What a host says of its part in a deployment, in JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) by: Owner<HostName>,
    pub(crate) said: Said,
}

/// A report, without who gives it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Said {
    pub(crate) order: u64,
    pub(crate) running: Option<Digest>,
    pub(crate) outcome: Outcome,
}

/// What came of an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Outcome {
    /// The host goes over to another version, or has that on probation.
    Trying,
    Running,
    Refused(String),
    RolledBack,
    /// The actor has ended by itself.
    Ended,
}

/// What a host has of a deployment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Have {
    /// The last order that was carried out, or is being.
    pub(crate) order: Option<u64>,
    pub(crate) running: Option<Digest>,
    /// The digest of the manifest that it runs with.
    pub(crate) manifest: Option<Digest>,
}

/// What a host knows of a deployment's record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Known<T> {
    /// There is none, and none was seen to be removed: it may have been lost.
    Nothing,
    Removed,
    Is(T),
}

/// What a host has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Todo {
    Nothing,
    /// Stop what runs, and say nothing of the deployment any more.
    Leave,
    /// Start this version. That carries the order out with this outcome; without one the order is looked at again.
    Start {
        digest: Digest,
        outcome: Option<Outcome>,
    },
    /// What runs is what the order says.
    Adopt,
    /// Go over to the order's version.
    GoOver,
}

/// What was lost with a host that had begun to go over to another version.
const LOST: &str = "the host was lost before it was known what came of it";

/// What a host has to do, given its order with the digest of the manifest, `None` if the record does not name it, and the last report of its
/// name, which may be of a process before.
///
/// A process goes over to another version at the most once by one order: that may be what has ended the process before.
pub(crate) fn todo(order: &Known<Option<(Order, Digest)>>, have: &Have, last: Option<&Report>) -> Todo {
    let (order, manifest) = match order {
        Known::Nothing => return Todo::Nothing,
        Known::Removed | Known::Is(None) => {
            return if *have == Have::default() && last.is_none() { Todo::Nothing } else { Todo::Leave };
        }
        Known::Is(Some(order)) => order,
    };
    if have.running.is_some() && have.manifest != Some(*manifest) {
        // It was removed and deployed in another way, and only the latter was seen.
        return Todo::Leave;
    }
    if have.order == Some(order.number) {
        return Todo::Nothing;
    }
    let start = |digest, outcome| Todo::Start { digest, outcome };
    match (have.running, &order.step) {
        (Some(running), _) if running == order.digest => Todo::Adopt,
        (Some(_), _) => Todo::GoOver,
        (None, None) => start(order.digest, Some(Outcome::Running)),
        (None, Some(step)) => {
            let known = last.filter(|last| last.said.order == order.number).map(|last| last.said.outcome.clone());
            match known {
                None => start(step.from, None),
                Some(Outcome::Running) => start(order.digest, Some(Outcome::Running)),
                Some(Outcome::Trying) => start(step.from, Some(Outcome::Refused(LOST.to_owned()))),
                Some(outcome) => start(step.from, Some(outcome)),
            }
        }
    }
}

/// What is known of an order by who gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    Pending,
    /// The host is not in the lattice.
    Lost,
    Is(Outcome),
}

/// What came of an order, by the report of its host, whose session this is.
pub(crate) fn verdict(order: u64, report: Option<&Report>, session: Option<Session>) -> Verdict {
    let Some(session) = session else { return Verdict::Lost };
    match report.filter(|report| report.by.token.session == session && report.said.order == order) {
        None => Verdict::Pending,
        Some(Report { said: Said { outcome: Outcome::Trying, .. }, .. }) => Verdict::Pending,
        Some(report) => Verdict::Is(report.said.outcome.clone()),
    }
}

/// Chooses so many of some hosts, each with the room that it has: of two at random the one with more. `below` draws a number below another.
pub(crate) fn choose<H>(mut hosts: Vec<(H, usize)>, most: usize, mut below: impl FnMut(usize) -> usize) -> Vec<H> {
    let mut chosen = Vec::new();
    while chosen.len() < most && !hosts.is_empty() {
        let first = below(hosts.len());
        let mut best = first;
        if hosts.len() > 1 {
            let second = (first + 1 + below(hosts.len() - 1)) % hosts.len();
            if hosts[second].1 > hosts[first].1 {
                best = second;
            }
        }
        chosen.push(hosts.swap_remove(best).0);
    }
    chosen
}

/// Whether a host has what is asked for.
pub(crate) fn has_labels(has: &BTreeMap<String, String>, wanted: &BTreeMap<String, String>) -> bool {
    wanted.iter().all(|(key, value)| has.get(key) == Some(value))
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashMap};

    use proptest::prelude::*;

    use super::*;
    use crate::lease::{Bucket, Token};

    const SESSION: Session = Session { process: 1, number: 1 };

    fn digest(version: u8) -> Digest {
        Digest::of(&[version])
    }

    fn step(from: u8) -> Step {
        Step { from: digest(from), discard_state: false, probation: 3, longest: Duration::from_secs(1) }
    }

    fn order(number: u64, version: u8, step: Option<Step>) -> Order {
        Order { number, digest: digest(version), step }
    }

    const MANIFEST: u8 = 100;

    fn have(order: Option<u64>, version: Option<u8>) -> Have {
        Have { order, running: version.map(digest), manifest: version.map(|_| digest(MANIFEST)) }
    }

    fn is(order: Order) -> Known<Option<(Order, Digest)>> {
        Known::Is(Some((order, digest(MANIFEST))))
    }

    fn report(order: u64, outcome: Outcome) -> Report {
        let token = Token { bucket: Bucket(1), revision: 1, session: SESSION };
        Report { by: Owner { host: "a".parse().unwrap(), token }, said: Said { order, running: None, outcome } }
    }

    fn refused() -> Outcome {
        Outcome::Refused("no".to_owned())
    }

    #[test]
    fn a_host_runs_what_it_is_ordered_to() {
        let start = |version, outcome| Todo::Start { digest: digest(version), outcome };
        let plain = order(7, 2, None);
        let cases = [
            (is(plain.clone()), have(None, None), start(2, Some(Outcome::Running))),
            (is(plain.clone()), have(Some(6), None), start(2, Some(Outcome::Running))),
            (is(plain.clone()), have(Some(7), None), Todo::Nothing),
            (is(plain.clone()), have(Some(7), Some(1)), Todo::Nothing),
            (is(plain.clone()), have(Some(6), Some(2)), Todo::Adopt),
            (is(plain.clone()), have(Some(6), Some(1)), Todo::GoOver),
            (is(order(7, 2, Some(step(1)))), have(Some(6), Some(1)), Todo::GoOver),
            (is(order(7, 2, Some(step(1)))), have(Some(6), Some(2)), Todo::Adopt),
            (is(order(7, 2, Some(step(1)))), have(Some(7), Some(1)), Todo::Nothing),
        ];
        for (order, have, expected) in cases {
            assert_eq!(todo(&order, &have, None), expected, "{order:?} {have:?}");
        }
    }

    #[test]
    fn what_runs_with_another_manifest_is_started_anew() {
        let order = Known::Is(Some((order(7, 2, None), digest(101))));
        for number in [6, 7] {
            assert_eq!(todo(&order, &have(Some(number), Some(2)), None), Todo::Leave);
        }
        let start = Todo::Start { digest: digest(2), outcome: Some(Outcome::Running) };
        assert_eq!(todo(&order, &Have::default(), None), start);
    }

    #[test]
    fn only_a_removal_that_was_seen_stops_what_runs() {
        for (order, is_over) in [(Known::Nothing, false), (Known::Removed, true), (Known::Is(None), true)] {
            let expected = if is_over { Todo::Leave } else { Todo::Nothing };
            assert_eq!(todo(&order, &have(Some(1), Some(1)), None), expected);
            // A report of a process before.
            assert_eq!(todo(&order, &have(None, None), Some(&report(1, Outcome::Running))), expected);
            assert_eq!(todo(&order, &have(None, None), None), Todo::Nothing);
        }
    }

    #[test]
    fn a_process_that_comes_back_does_not_go_over_a_second_time() {
        let order = is(order(7, 2, Some(step(1))));
        let start = |version, outcome| Todo::Start { digest: digest(version), outcome };
        for (last, expected) in [
            (None, start(1, None)),
            (Some(report(6, Outcome::Running)), start(1, None)),
            (Some(report(7, Outcome::Running)), start(2, Some(Outcome::Running))),
            (Some(report(7, Outcome::Trying)), start(1, Some(Outcome::Refused(LOST.to_owned())))),
            (Some(report(7, Outcome::RolledBack)), start(1, Some(Outcome::RolledBack))),
            (Some(report(7, refused())), start(1, Some(refused()))),
        ] {
            assert_eq!(todo(&order, &have(None, None), last.as_ref()), expected, "{last:?}");
        }
        // Then it goes over, if it had not begun.
        assert_eq!(todo(&order, &have(None, Some(1)), None), Todo::GoOver);
    }

    #[test]
    fn an_outcome_is_of_the_order_and_of_the_present_session() {
        let other = Session { process: 2, number: 1 };
        let (running, trying) = (report(7, Outcome::Running), report(7, Outcome::Trying));
        for (order, report, session, expected) in [
            (7, None, Some(SESSION), Verdict::Pending),
            (7, Some(&trying), Some(SESSION), Verdict::Pending),
            (7, Some(&running), Some(SESSION), Verdict::Is(Outcome::Running)),
            (8, Some(&running), Some(SESSION), Verdict::Pending),
            (7, Some(&running), Some(other), Verdict::Pending),
            (7, Some(&running), None, Verdict::Lost),
        ] {
            assert_eq!(verdict(order, report, session), expected, "{order} {report:?} {session:?}");
        }
    }

    #[test]
    fn records_are_read_as_they_are_written() {
        let report = report(u64::MAX, refused());
        let json = serde_json::to_vec(&report).unwrap();
        assert_eq!(serde_json::from_slice::<Report>(&json).unwrap(), report);
        let wanted = Wanted {
            manifest: "[component]".to_owned(),
            labels: BTreeMap::from([("zone".to_owned(), "eu".to_owned())]),
            hosts: BTreeMap::from([("a".parse().unwrap(), order(u64::MAX, 2, Some(step(1))))]),
            change: Some(Change { by: report.by, number: 3 }),
        };
        let json = serde_json::to_vec(&wanted).unwrap();
        assert_eq!(serde_json::from_slice::<Wanted>(&json).unwrap(), wanted);
    }

    #[test]
    fn labels_are_compared_with_their_values() {
        let labels = |labels: &[(&str, &str)]| {
            labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let has: BTreeMap<_, _> = labels(&[("zone", "eu"), ("disk", "fast")]);
        for (wanted, fits) in [
            (labels(&[]), true),
            (labels(&[("zone", "eu")]), true),
            (labels(&[("zone", "us")]), false),
            (labels(&[("zone", "eu"), ("gpu", "")]), false),
        ] {
            assert_eq!(has_labels(&has, &wanted), fits, "{wanted:?}");
        }
    }

    /// What happens to a host that carries out orders.
    #[derive(Debug, Clone)]
    enum Event {
        Deploy(u8),
        Roll(u8),
        Remove,
        /// The process ends, and another takes its place.
        Crash,
        /// Something is done, with success or without, or the process ends of it.
        Work(Work),
    }

    #[derive(Debug, Clone, Copy)]
    enum Work {
        Done,
        Refused,
        RolledBack,
        Fatal,
    }

    #[derive(Default)]
    struct World {
        order: Option<Order>,
        orders: u64,
        have: Have,
        outcome: Option<Outcome>,
        report: Option<Report>,
        /// How often each order had it go over.
        tried: HashMap<u64, usize>,
    }

    impl World {
        fn order(&mut self, version: u8, step: Option<Step>) {
            self.orders += 1;
            self.order = Some(Order { number: self.orders, digest: digest(version), step });
        }

        fn crash(&mut self) {
            (self.have, self.outcome) = (Have::default(), None);
        }

        fn carried_out(&mut self, number: u64, outcome: Outcome) {
            self.have.order = Some(number);
            self.report = Some(report(number, outcome.clone()));
            self.outcome = Some(outcome);
        }

        fn start(&mut self, of: Digest) {
            (self.have.running, self.have.manifest) = (Some(of), Some(digest(MANIFEST)));
        }

        /// Whether there was something to be done.
        fn work(&mut self, work: Work) -> bool {
            let known = match &self.order {
                Some(order) => is(order.clone()),
                None => Known::Removed,
            };
            let to_do = todo(&known, &self.have, self.report.as_ref());
            match (to_do, self.order.clone()) {
                (Todo::Nothing, _) => return false,
                (Todo::Leave, _) => {
                    self.crash();
                    self.report = None;
                }
                (Todo::Start { digest, outcome }, Some(order)) => match work {
                    Work::Fatal => self.crash(),
                    Work::Refused => self.carried_out(order.number, refused()),
                    Work::Done | Work::RolledBack => {
                        self.start(digest);
                        if let Some(outcome) = outcome {
                            self.carried_out(order.number, outcome);
                        }
                    }
                },
                (Todo::Adopt, Some(order)) => self.carried_out(order.number, Outcome::Running),
                (Todo::GoOver, Some(order)) => {
                    let from = self.have.running.expect("something runs");
                    self.report = Some(report(order.number, Outcome::Trying));
                    *self.tried.entry(order.number).or_default() += usize::from(order.step.is_some());
                    match work {
                        Work::Fatal => self.crash(),
                        Work::Refused => self.carried_out(order.number, refused()),
                        Work::RolledBack if order.step.is_some() => {
                            assert_eq!(self.have.running, Some(from));
                            self.carried_out(order.number, Outcome::RolledBack);
                        }
                        Work::RolledBack | Work::Done => {
                            self.start(order.digest);
                            self.carried_out(order.number, Outcome::Running);
                        }
                    }
                }
                (to_do, None) => panic!("{to_do:?} without an order"),
            }
            true
        }

        fn happens(&mut self, event: &Event) {
            match *event {
                Event::Deploy(version) if self.order.is_none() => self.order(version, None),
                Event::Roll(version) => {
                    if let Some(order) = &self.order {
                        let from = order.step.as_ref().map_or(order.digest, |step| step.from);
                        self.order(version, Some(Step { from, ..step(0) }));
                    }
                }
                Event::Remove => self.order = None,
                Event::Crash => self.crash(),
                Event::Work(work) => _ = self.work(work),
                Event::Deploy(_) => {}
            }
        }
    }

    fn event() -> impl Strategy<Value = Event> {
        let work = prop_oneof![
            4 => Just(Work::Done), 1 => Just(Work::Refused), 1 => Just(Work::RolledBack), 1 => Just(Work::Fatal),
        ];
        prop_oneof![
            1 => (0_u8..3).prop_map(Event::Deploy),
            2 => (0_u8..3).prop_map(Event::Roll),
            1 => Just(Event::Remove),
            1 => Just(Event::Crash),
            6 => work.prop_map(Event::Work),
        ]
    }

    proptest! {
        /// Whatever happened, a host comes to what it is ordered to, or says why not, and by no order it goes over twice.
        #[test]
        fn a_host_comes_to_what_it_is_ordered_to(events in proptest::collection::vec(event(), 0..40)) {
            let mut world = World::default();
            for event in &events {
                world.happens(event);
            }
            let mut steps = 0;
            while world.work(Work::Done) {
                steps += 1;
                prop_assert!(steps < 5, "it does not come to an end");
            }
            prop_assert!(world.tried.values().all(|times| *times <= 1), "{:?}", world.tried);
            match &world.order {
                None => prop_assert_eq!((world.have, world.report), (Have::default(), None)),
                Some(order) => {
                    prop_assert_eq!(world.have.order, Some(order.number));
                    if world.outcome == Some(Outcome::Running) {
                        prop_assert_eq!(world.have.running, Some(order.digest));
                    }
                    let report = world.report.expect("it has said what came of it");
                    prop_assert_eq!((report.said.order, Some(report.said.outcome)), (order.number, world.outcome));
                }
            }
        }

        #[test]
        fn as_many_are_chosen_as_there_are_and_each_once(rooms in proptest::collection::vec(1_usize..9, 0..9), most in 0_usize..9, seed: u64) {
            let mut random = fastrand::Rng::with_seed(seed);
            let hosts: Vec<_> = rooms.iter().copied().enumerate().collect();
            let chosen = choose(hosts, most, |below| random.usize(..below));
            prop_assert_eq!(chosen.len(), most.min(rooms.len()));
            prop_assert_eq!(chosen.iter().collect::<BTreeSet<_>>().len(), chosen.len());
        }

        /// The host with the least room is never the better of two.
        #[test]
        fn who_has_less_room_than_all_others_is_chosen_last(len in 2_usize..9, seed: u64) {
            let mut random = fastrand::Rng::with_seed(seed);
            let hosts: Vec<_> = (0..len).map(|host| (host, if host == 0 { 1 } else { 2 })).collect();
            let chosen = choose(hosts, len, |below| random.usize(..below));
            prop_assert_eq!(chosen.last(), Some(&0));
        }
    }

    #[test]
    fn hosts_with_more_room_are_chosen_more_often_and_those_with_the_same_alike() {
        let mut random = fastrand::Rng::with_seed(1);
        let mut times = HashMap::<&str, usize>::new();
        for _ in 0..3_000 {
            for host in choose(vec![("full", 1), ("a", 9), ("b", 9)], 1, |below| random.usize(..below)) {
                *times.entry(host).or_default() += 1;
            }
        }
        assert_eq!(times.get("full"), None, "of any two there is one with more");
        assert!(times["a"] > 1_300 && times["b"] > 1_300, "{times:?}");
    }
}
