//! What a supervisor does next, as Erlang/OTP defines it. A state machine without tasks, channels or clocks of its own:
//! it is told what happened and when, and says whom to start and whom to end.

use std::collections::BTreeMap;

use tokio::time::Instant;

use crate::{
    Backoff, Intensity, Strategy,
    failure::policy::{History, Reply, later},
};

/// A supervisor's view of its children.
pub(crate) struct Plan {
    strategy: Strategy,
    history: History,
    /// In the order of their start. Numbers are never used again.
    children: BTreeMap<usize, Slot>,
    /// Groups on their way down and up again. Only under one-for-one is there more than one.
    batches: Vec<Batch>,
    mode: Mode,
    orders: Vec<Order>,
}

struct Slot {
    phase: Phase,
    /// It is not started again, and so not with its siblings either.
    temporary: bool,
}

/// Of a child that is not gone for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Not there, and to be started when its turn comes.
    Down,
    Starting,
    Up,
    Ending,
}

struct Batch {
    /// In the order of their start.
    members: Vec<usize>,
    stage: Stage,
}

enum Stage {
    /// Ends them, the last first; then waits until that time.
    Ending(Instant),
    Waiting(Instant),
    /// Starts them, the first first, each when the one before is up.
    Starting,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Idle,
    /// The first start of all: one failure is enough.
    First,
    Live,
    /// Ends them all: for good, or to be started again.
    Closing {
        for_good: bool,
    },
}

/// What a supervisor has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    Start(usize),
    /// End it, to be started again.
    Suspend(usize),
    /// End it for good.
    Dismiss(usize),
    /// All are up for the first time.
    Started,
    /// Too many failures: its parent's turn.
    GiveUp,
    /// All are ended.
    Closed,
}

impl Plan {
    /// For children of which some are temporary, in the order of their start.
    pub(crate) fn new(
        strategy: Strategy,
        intensity: Intensity,
        backoff: Backoff,
        temporary: Vec<bool>,
        random: fastrand::Rng,
    ) -> Self {
        Self {
            strategy,
            history: History::new(intensity, backoff, random),
            children: temporary
                .into_iter()
                .map(|temporary| Slot { phase: Phase::Down, temporary })
                .enumerate()
                .collect(),
            batches: Vec::new(),
            mode: Mode::Idle,
            orders: Vec::new(),
        }
    }

    /// What is to be done now. Asking takes it away.
    pub(crate) fn orders(&mut self) -> Vec<Order> {
        std::mem::take(&mut self.orders)
    }

    /// When [`tick`](Self::tick) has something to do next.
    pub(crate) fn due(&self) -> Option<Instant> {
        let due = |batch: &Batch| match batch.stage {
            Stage::Waiting(at) => Some(at),
            Stage::Ending(_) | Stage::Starting => None,
        };
        self.batches.iter().filter_map(due).min()
    }

    /// Whether this is the first start of all.
    pub(crate) fn is_first_start(&self) -> bool {
        self.mode == Mode::First
    }

    /// Starts all of them, in order.
    pub(crate) fn start(&mut self, now: Instant) {
        self.mode = Mode::First;
        self.history.forget();
        self.batches = vec![Batch { members: self.children.keys().copied().collect(), stage: Stage::Starting }];
        self.tick(now);
    }

    /// Ends all of them, the last first.
    pub(crate) fn close(&mut self, for_good: bool, now: Instant) {
        // Once for good is for good.
        let for_good = for_good || self.mode == (Mode::Closing { for_good: true });
        self.mode = Mode::Closing { for_good };
        self.batches = vec![Batch { members: self.children.keys().copied().collect(), stage: Stage::Ending(now) }];
        self.tick(now);
    }

    /// Whether children may be added, ended and started again.
    pub(crate) fn is_live(&self) -> bool {
        self.mode == Mode::Live
    }

    /// One more, the last. It starts at once, or with those that are on their way.
    pub(crate) fn add(&mut self, child: usize, temporary: bool, now: Instant) {
        self.children.insert(child, Slot { phase: Phase::Down, temporary });
        match &mut self.batches[..] {
            [batch] if self.strategy != Strategy::OneForOne => batch.members.push(child),
            _ => self.batches.push(Batch { members: vec![child], stage: Stage::Starting }),
        }
        self.tick(now);
    }

    /// Ends one for good.
    pub(crate) fn dismiss(&mut self, child: usize, now: Instant) {
        if let Some(slot) = self.children.get_mut(&child) {
            slot.phase = Phase::Ending;
            self.orders.push(Order::Dismiss(child));
            self.leave_batches(child);
        }
        self.tick(now);
    }

    /// Ends one that is up, and starts it again.
    pub(crate) fn restart(&mut self, child: usize, now: Instant) {
        if self.phase(child) == Some(Phase::Up) {
            self.leave_batches(child);
            self.batches.push(Batch { members: vec![child], stage: Stage::Ending(now) });
        }
        self.tick(now);
    }

    fn phase(&self, child: usize) -> Option<Phase> {
        self.children.get(&child).map(|slot| slot.phase)
    }

    fn set_phase(&mut self, child: usize, phase: Phase) {
        if let Some(slot) = self.children.get_mut(&child) {
            slot.phase = phase;
        }
    }

    fn leave_batches(&mut self, child: usize) {
        for batch in &mut self.batches {
            batch.members.retain(|&member| member != child);
        }
    }

    pub(crate) fn started(&mut self, child: usize, now: Instant) {
        if matches!(self.phase(child), Some(Phase::Starting | Phase::Down)) {
            self.set_phase(child, Phase::Up);
            self.history.started(child, now);
        }
        self.tick(now);
    }

    pub(crate) fn suspended(&mut self, child: usize, now: Instant) {
        if self.phase(child) == Some(Phase::Ending) {
            self.set_phase(child, Phase::Down);
        }
        self.tick(now);
    }

    /// A child is gone for good, and forgotten.
    pub(crate) fn gone(&mut self, child: usize, now: Instant) {
        self.children.remove(&child);
        self.leave_batches(child);
        self.tick(now);
    }

    /// A child failed without an order to end.
    pub(crate) fn failed(&mut self, child: usize, reply: &Reply, now: Instant) {
        self.set_phase(child, Phase::Down);
        match self.mode {
            Mode::First => return self.orders.push(Order::GiveUp),
            Mode::Live if !reply.restart => {
                self.set_phase(child, Phase::Ending);
                self.orders.push(Order::Dismiss(child));
            }
            Mode::Live => {
                let waiting = match self.strategy {
                    Strategy::OneForOne => child..child + 1,
                    Strategy::OneForAll => 0..usize::MAX,
                    Strategy::RestForOne => child..usize::MAX,
                };
                let Some(wait) = self.history.note(child, waiting, reply, now) else {
                    return self.orders.push(Order::GiveUp);
                };
                let until = later(now, wait);
                let first = match self.strategy {
                    Strategy::OneForOne => {
                        self.leave_batches(child);
                        self.batches.push(Batch { members: vec![child], stage: Stage::Ending(until) });
                        return self.tick(now);
                    }
                    Strategy::OneForAll => 0,
                    Strategy::RestForOne => child,
                };
                // Together with those that are on their way already.
                let first = self.batches.iter().flat_map(|batch| batch.members.first()).fold(first, |a, &b| a.min(b));
                let members = self.children.range(first..).map(|(&member, _)| member).collect();
                self.batches = vec![Batch { members, stage: Stage::Ending(until) }];
            }
            Mode::Idle | Mode::Closing { .. } => {}
        }
        self.tick(now);
    }

    /// Moves on whatever can move on.
    pub(crate) fn tick(&mut self, now: Instant) {
        let mut batches = std::mem::take(&mut self.batches);
        batches.retain_mut(|batch| self.advance(batch, now));
        self.batches = batches;
        if !self.batches.is_empty() {
            return;
        }
        match self.mode {
            Mode::First => {
                self.mode = Mode::Live;
                self.orders.push(Order::Started);
            }
            Mode::Closing { .. } => {
                self.mode = Mode::Idle;
                self.orders.push(Order::Closed);
            }
            Mode::Idle | Mode::Live => {}
        }
    }

    /// Says whether the batch is still needed.
    fn advance(&mut self, batch: &mut Batch, now: Instant) -> bool {
        let for_good = self.mode == (Mode::Closing { for_good: true });
        if let Stage::Ending(until) = batch.stage {
            let lives = |&member: &usize| match self.phase(member) {
                Some(Phase::Up | Phase::Starting | Phase::Ending) => true,
                Some(Phase::Down) => for_good,
                None => false,
            };
            match batch.members.iter().copied().rev().find(|member| lives(member)) {
                Some(member) if self.phase(member) == Some(Phase::Ending) => return true,
                Some(member) => {
                    let temporary = self.children.get(&member).is_some_and(|slot| slot.temporary);
                    let dismiss = for_good || (temporary && self.mode == Mode::Live);
                    self.orders.push(if dismiss { Order::Dismiss(member) } else { Order::Suspend(member) });
                    self.set_phase(member, Phase::Ending);
                    return true;
                }
                None if matches!(self.mode, Mode::Closing { .. }) => return false,
                None => batch.stage = Stage::Waiting(until),
            }
        }
        if let Stage::Waiting(until) = batch.stage {
            if now < until {
                return true;
            }
            batch.stage = Stage::Starting;
        }
        let next = batch
            .members
            .iter()
            .copied()
            .find(|&member| matches!(self.phase(member), Some(Phase::Down | Phase::Starting | Phase::Ending)));
        match next {
            None => false,
            Some(member) => {
                if self.phase(member) == Some(Phase::Down) {
                    self.set_phase(member, Phase::Starting);
                    self.orders.push(Order::Start(member));
                }
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, time::Duration};

    use proptest::{
        prelude::{any, prop, prop_assert, prop_oneof, proptest},
        strategy::Strategy as Arbitrary,
    };

    use super::*;

    /// Children as a supervisor's orders leave them.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Child {
        Down,
        Starting,
        Up,
        Ending { for_good: bool },
        Gone,
    }

    /// What happens next in the world.
    #[derive(Debug, Clone, Copy)]
    enum Step {
        /// The oldest order still open is carried out, or its start fails.
        Obey {
            fails: bool,
        },
        /// A child that is up fails.
        Fail {
            child: usize,
            restart: bool,
        },
        /// A child is stopped by the host.
        Stop {
            child: usize,
        },
        Add {
            temporary: bool,
        },
        Dismiss {
            child: usize,
        },
        Restart {
            child: usize,
        },
        Pass {
            ms: u64,
        },
    }

    fn step() -> impl Arbitrary<Value = Step> {
        prop_oneof![
            8 => prop::bool::weighted(0.1).prop_map(|fails| Step::Obey { fails }),
            3 => (0..4_usize, prop::bool::weighted(0.9)).prop_map(|(child, restart)| Step::Fail { child, restart }),
            1 => (0..4_usize).prop_map(|child| Step::Stop { child }),
            1 => any::<bool>().prop_map(|temporary| Step::Add { temporary }),
            1 => (0..8_usize).prop_map(|child| Step::Dismiss { child }),
            1 => (0..8_usize).prop_map(|child| Step::Restart { child }),
            3 => (0..30_u64).prop_map(|ms| Step::Pass { ms }),
        ]
    }

    const INTENSITY: Intensity = Intensity { restarts: 5, within: Duration::from_millis(200) };

    struct World {
        plan: Plan,
        strategy: Strategy,
        children: Vec<Child>,
        open: VecDeque<usize>,
        now: Instant,
        restarts: Vec<Instant>,
        given_up: bool,
        closed: bool,
        /// That one alone is ended out of its turn.
        restarted: Option<usize>,
    }

    impl World {
        fn new(strategy: Strategy, temporary: Vec<bool>) -> Self {
            let backoff = Backoff { first: Duration::from_millis(10), jitter: 0.0, ..Backoff::default() };
            let now = Instant::now();
            let count = temporary.len();
            let mut plan = Plan::new(strategy, INTENSITY, backoff, temporary, fastrand::Rng::with_seed(1));
            plan.start(now);
            Self {
                plan,
                strategy,
                children: vec![Child::Down; count],
                open: VecDeque::new(),
                now,
                restarts: Vec::new(),
                given_up: false,
                closed: false,
                restarted: None,
            }
        }

        /// Takes the plan's orders, and sees that each makes sense.
        fn take_orders(&mut self) {
            for order in self.plan.orders() {
                match order {
                    Order::Start(child) => {
                        assert_eq!(self.children[child], Child::Down);
                        if self.strategy != Strategy::OneForOne && self.restarted.is_none() {
                            // In order, each when those before are up.
                            let is_settled =
                                |c: &Child| matches!(c, Child::Up | Child::Gone | Child::Ending { for_good: true });
                            assert!(self.children[..child].iter().all(is_settled));
                        }
                        self.children[child] = Child::Starting;
                        self.open.push_back(child);
                    }
                    Order::Suspend(child) | Order::Dismiss(child) => {
                        let ends = matches!(self.children[child], Child::Gone | Child::Ending { for_good: true });
                        assert!(!ends, "{order:?}");
                        if matches!(order, Order::Suspend(_)) && self.restarted.is_none() {
                            // The last first.
                            let ended =
                                |c: &Child| matches!(c, Child::Down | Child::Gone | Child::Ending { for_good: true });
                            assert!(self.children[child + 1..].iter().all(ended));
                        }
                        self.children[child] = Child::Ending { for_good: matches!(order, Order::Dismiss(_)) };
                        self.open.retain(|&open| open != child);
                        self.open.push_back(child);
                    }
                    Order::Started => assert!(!self.closed),
                    Order::GiveUp => {
                        assert!(!self.given_up);
                        self.given_up = true;
                        self.plan.close(true, self.now);
                        return self.take_orders();
                    }
                    Order::Closed => self.closed = true,
                }
            }
        }

        fn take(&mut self, step: Step) {
            match step {
                Step::Obey { fails } => {
                    let Some(child) = self.open.pop_front() else { return };
                    match self.children[child] {
                        Child::Starting if fails => {
                            self.children[child] = Child::Down;
                            self.fail(child, true);
                        }
                        Child::Starting => {
                            self.children[child] = Child::Up;
                            self.plan.started(child, self.now);
                        }
                        Child::Ending { for_good: true } => {
                            self.children[child] = Child::Gone;
                            self.plan.gone(child, self.now);
                        }
                        Child::Ending { for_good: false } => {
                            self.children[child] = Child::Down;
                            self.plan.suspended(child, self.now);
                        }
                        Child::Down | Child::Up | Child::Gone => {}
                    }
                }
                Step::Fail { child, restart } => {
                    if self.children.get(child) == Some(&Child::Up) {
                        self.children[child] = Child::Down;
                        self.fail(child, restart);
                    }
                }
                Step::Stop { child } => {
                    if matches!(self.children.get(child), Some(Child::Up | Child::Down)) {
                        self.children[child] = Child::Gone;
                        self.plan.gone(child, self.now);
                    }
                }
                Step::Add { temporary } => {
                    if self.plan.is_live() && self.children.len() < 8 {
                        self.children.push(Child::Down);
                        self.plan.add(self.children.len() - 1, temporary, self.now);
                    }
                }
                Step::Dismiss { child } => {
                    let lives = |child: &Child| !matches!(child, Child::Gone | Child::Ending { for_good: true });
                    if self.plan.is_live() && self.children.get(child).is_some_and(lives) {
                        self.plan.dismiss(child, self.now);
                    }
                }
                Step::Restart { child } => {
                    if self.plan.is_live() {
                        self.plan.restart(child, self.now);
                        self.restarted = Some(child);
                    }
                }
                Step::Pass { ms } => {
                    self.now += Duration::from_millis(ms);
                    self.plan.tick(self.now);
                }
            }
            self.take_orders();
        }

        fn fail(&mut self, child: usize, restart: bool) {
            let first = self.plan.mode == Mode::First;
            let closing = matches!(self.plan.mode, Mode::Closing { .. });
            self.plan.failed(child, &Reply { restart, backoff: None, counts: true }, self.now);
            if closing || (!restart && !first) {
                return;
            }
            // One too many within the period gives up, or any at the first start. Waits make the period longer.
            let since = self.now.checked_sub(INTENSITY.within);
            let recent = self.restarts.iter().filter(|&&at| since.is_none_or(|since| at > since)).count();
            let (permitted, given_up) = (INTENSITY.restarts as usize, self.plan.orders.contains(&Order::GiveUp));
            assert!(given_up || (!first && recent < permitted));
            assert!(!given_up || first || self.restarts.len() >= permitted);
            self.restarts.push(self.now);
        }

        /// Lets everything come to rest.
        fn settle(&mut self) {
            for _ in 0..1_000 {
                while !self.open.is_empty() {
                    self.take(Step::Obey { fails: false });
                }
                let Some(due) = self.plan.due() else { return };
                self.now = self.now.max(due);
                self.plan.tick(self.now);
                self.take_orders();
            }
            panic!("it never comes to rest");
        }
    }

    fn strategies() -> impl Arbitrary<Value = Strategy> {
        prop::sample::select(vec![Strategy::OneForOne, Strategy::OneForAll, Strategy::RestForOne])
    }

    proptest! {
        #[test]
        fn whatever_happens_all_come_up_or_are_given_up(
            strategy in strategies(),
            temporary in prop::collection::vec(prop::bool::weighted(0.2), 1..4),
            steps in prop::collection::vec(step(), 0..60),
        ) {
            let mut world = World::new(strategy, temporary);
            world.take_orders();
            for step in steps {
                world.take(step);
            }
            world.settle();
            if world.given_up {
                prop_assert!(world.closed);
                prop_assert!(world.children.iter().all(|child| *child == Child::Gone), "{:?}", world.children);
            } else {
                prop_assert!(
                    world.children.iter().all(|child| matches!(child, Child::Up | Child::Gone)),
                    "{:?}",
                    world.children
                );
            }
        }

        #[test]
        fn closing_at_any_moment_ends_all(
            strategy in strategies(),
            steps in prop::collection::vec(step(), 0..40),
            for_good in any::<bool>(),
        ) {
            let mut world = World::new(strategy, vec![false; 3]);
            world.take_orders();
            for step in steps {
                world.take(step);
            }
            let was_given_up = world.given_up;
            world.closed = false;
            world.plan.close(for_good || was_given_up, world.now);
            world.take_orders();
            world.settle();
            prop_assert!(world.closed);
            let ended = |child: &Child| if for_good || was_given_up {
                *child == Child::Gone
            } else {
                matches!(child, Child::Down | Child::Gone)
            };
            prop_assert!(world.children.iter().all(ended), "{:?}", world.children);
            if !(for_good || was_given_up) {
                // And all come back when they are told to.
                world.closed = false;
                world.plan.start(world.now);
                world.take_orders();
                world.settle();
                prop_assert!(world.children.iter().all(|child| matches!(child, Child::Up | Child::Gone)));
            }
        }
    }
}
