//! When crashes close a route: the policy that restarts actors, held against the crashes of a route.

use std::{collections::VecDeque, time::Duration};

use airssys_wasm_actor::{Backoff, Intensity, Restart, RestartPolicy};
use airssys_wasm_isolation::CrashKind;
use parking_lot::Mutex;
use tokio::time::Instant;

/// Closes a route for a while when its guests crash too often, and for good where the policy says `temporary`.
#[derive(Debug)]
pub(crate) struct Breaker {
    policy: RestartPolicy,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Within the intensity's period, at most as many as it permits.
    crashes: VecDeque<Instant>,
    /// How many times it closed without a quiet period in between.
    in_a_row: u32,
    closed: Option<Closed>,
}

#[derive(Debug, Clone, Copy)]
enum Closed {
    Until(Instant),
    ForGood,
}

/// What a crash did to its route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Open,
    /// Closed by this crash.
    ClosedFor(Duration),
    ClosedForGood,
}

impl Breaker {
    pub(crate) fn new(policy: RestartPolicy) -> Self {
        Self { policy, state: Mutex::default() }
    }

    /// How long the route is still closed, or `None` if it is open.
    pub(crate) fn closed_for(&self, now: Instant) -> Option<Duration> {
        match self.state.lock().closed? {
            Closed::Until(until) => Some(until.saturating_duration_since(now)).filter(|left| !left.is_zero()),
            Closed::ForGood => Some(Duration::MAX),
        }
    }

    /// Opens the route, and forgets its crashes.
    pub(crate) fn reopen(&self) {
        *self.state.lock() = State::default();
    }

    /// Notes a crash that the route's guest is to blame for.
    pub(crate) fn note(&self, kind: &CrashKind, now: Instant) -> Verdict {
        let directive = self.policy.on.get(&kind.class());
        let for_good = match directive.map_or(self.policy.restart, |directive| directive.restart) {
            Restart::Permanent => false,
            Restart::Transient => matches!(kind, CrashKind::Exit { code: 0 }),
            Restart::Temporary => true,
        };
        let mut state = self.state.lock();
        if for_good {
            state.closed = Some(Closed::ForGood);
            return Verdict::ClosedForGood;
        }
        if let Some(closed) = state.closed {
            match closed {
                // It began before the route was closed.
                Closed::ForGood => return Verdict::Open,
                Closed::Until(until) if now < until => return Verdict::Open,
                Closed::Until(_) => {}
            }
        }
        let Intensity { restarts, within } = self.policy.intensity;
        state.crashes.retain(|then| now.saturating_duration_since(*then) < within);
        if (state.crashes.len() as u64) < u64::from(restarts) {
            state.crashes.push_back(now);
            return Verdict::Open;
        }
        if let Some(Closed::Until(until)) = state.closed
            && now.saturating_duration_since(until) >= within
        {
            state.in_a_row = 0;
        }
        state.in_a_row = state.in_a_row.saturating_add(1);
        let wait =
            wait(directive.and_then(|directive| directive.backoff).unwrap_or(self.policy.backoff), state.in_a_row);
        // The crashes are kept: as long as they are recent, the first crash after the wait closes it again.
        for crash in &mut state.crashes {
            *crash += wait;
        }
        state.closed = Some(Closed::Until(now + wait));
        Verdict::ClosedFor(wait)
    }
}

/// The `nth` wait in a row. The jitter is left out: it keeps actors that crashed together from restarting together.
fn wait(backoff: Backoff, nth: u32) -> Duration {
    /// Beyond that, a sum of times might overflow.
    const LONGEST: Duration = Duration::from_secs(365 * 24 * 3_600);
    Backoff { longest: backoff.longest.min(LONGEST), ..backoff }.wait(nth)
}

/// The policy of a route that has none of its own: twenty crashes within ten seconds close it for a second, then for twice as
/// long each time, up to a minute. More lenient than that of actors, because each client can make a route's guest crash.
pub(crate) fn default_policy() -> RestartPolicy {
    RestartPolicy {
        intensity: Intensity { restarts: 20, within: Duration::from_secs(10) },
        backoff: Backoff { first: Duration::from_secs(1), factor: 2.0, longest: Duration::from_secs(60), jitter: 0.0 },
        ..RestartPolicy::default()
    }
}

#[cfg(test)]
mod tests {
    use airssys_wasm_actor::Directive;
    use airssys_wasm_isolation::CrashClass;

    use super::*;

    const CRASH: CrashKind = CrashKind::StackOverflow;

    fn second(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn policy() -> RestartPolicy {
        let mut policy = default_policy();
        policy.intensity.restarts = 2;
        policy
    }

    #[tokio::test(start_paused = true)]
    async fn crashes_in_a_loop_close_the_route_for_longer_each_time() {
        let (breaker, mut now) = (Breaker::new(policy()), Instant::now());
        assert_eq!(breaker.note(&CRASH, now), Verdict::Open);
        assert_eq!(breaker.note(&CRASH, now), Verdict::Open);
        assert_eq!(breaker.closed_for(now), None);
        for wait in [1, 2, 4, 8, 16, 32, 60, 60] {
            assert_eq!(breaker.note(&CRASH, now), Verdict::ClosedFor(second(wait)));
            assert_eq!(breaker.closed_for(now), Some(second(wait)));
            // Of a request that was in hand.
            assert_eq!(breaker.note(&CRASH, now), Verdict::Open);
            now += second(wait);
            assert_eq!(breaker.closed_for(now), None);
        }
        now += second(11);
        assert_eq!(breaker.note(&CRASH, now), Verdict::Open);
        assert_eq!(breaker.note(&CRASH, now), Verdict::Open);
        assert_eq!(breaker.note(&CRASH, now), Verdict::ClosedFor(second(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn crashes_now_and_then_do_not() {
        let (breaker, mut now) = (Breaker::new(policy()), Instant::now());
        for _ in 0..100 {
            assert_eq!(breaker.note(&CRASH, now), Verdict::Open);
            now += second(5);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_kind_that_is_not_restarted_closes_it_for_good() {
        let temporary = Directive { restart: Restart::Temporary, backoff: None };
        let policy = RestartPolicy { on: [(CrashClass::StackOverflow, temporary)].into(), ..policy() };
        let (breaker, now) = (Breaker::new(policy), Instant::now());
        assert_eq!(breaker.note(&CrashKind::Exception, now), Verdict::Open);
        assert_eq!(breaker.note(&CRASH, now), Verdict::ClosedForGood);
        assert_eq!(breaker.closed_for(now + second(100_000)), Some(Duration::MAX));
        breaker.reopen();
        assert_eq!(breaker.closed_for(now), None);
    }
}
