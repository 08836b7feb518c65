//! Which failures restart an actor, how soon, and how often. Plain data and arithmetic, without tasks or timers.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Range,
    time::Duration,
};

use airssys_wasm_isolation::CrashClass;
pub(crate) use airssys_wasm_limits::later;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::failure::report::Failure;

/// When an actor is restarted, as in Erlang/OTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// Always.
    #[default]
    Permanent,
    /// Unless the guest called `exit` with 0.
    Transient,
    /// Never.
    Temporary,
}

/// Decides about an actor's restarts: the `[supervision]` table of a `Component.toml`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RestartPolicy {
    /// Which failures restart it.
    pub restart: Restart,
    /// Exceptions by kind of crash.
    pub on: BTreeMap<CrashClass, Directive>,
    /// How many restarts are permitted. Under a supervisor, the supervisor's intensity applies instead.
    pub intensity: Intensity,
    /// The wait before a restart. Under a supervisor, the supervisor's back-off applies instead.
    pub backoff: Backoff,
}

/// What follows one kind of crash.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Directive {
    /// Whether the actor is restarted.
    pub restart: Restart,
    /// The wait before the restart. Default: the policy's.
    #[serde(default)]
    pub backoff: Option<Backoff>,
}

/// How many restarts are permitted within a period. One more failure escalates to the parent supervisor; without a
/// parent the actor or supervisor is given up, and the system's events say so.
///
/// Only time in which the restarted child runs counts towards the period. Back-off does not, so a crash loop ends
/// however long its back-off is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Intensity {
    /// Permitted restarts. Default: 3.
    pub restarts: u32,
    /// The period. Default: five seconds.
    #[serde(with = "humantime_serde")]
    pub within: Duration,
}

impl Default for Intensity {
    fn default() -> Self {
        Self { restarts: 3, within: Duration::from_secs(5) }
    }
}

/// How long to wait before a restart: `first`, then each time `factor` times as long, up to `longest`. It resets after
/// an incarnation that has lived for the intensity's period.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Backoff {
    /// The first wait. Zero restarts at once. Default: ten milliseconds.
    #[serde(with = "humantime_serde")]
    pub first: Duration,
    /// The growth of each wait over the one before. Default: 2.
    pub factor: f64,
    /// The longest wait. Default: ten seconds.
    #[serde(with = "humantime_serde")]
    pub longest: Duration,
    /// The fraction of a wait by which it varies at random, so that actors that crashed together do not restart
    /// together. Default: 0.1.
    pub jitter: f64,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { first: Duration::from_millis(10), factor: 2.0, longest: Duration::from_secs(10), jitter: 0.1 }
    }
}

impl Backoff {
    /// Restarts at once, always.
    pub const NONE: Self = Self { first: Duration::ZERO, factor: 1.0, longest: Duration::ZERO, jitter: 0.0 };

    /// The least wait after a shortage of the host. Shortages do not count against the intensity, so restarts without a
    /// wait would spin.
    const SHORTAGE: Self =
        Self { first: Duration::from_millis(10), factor: 2.0, longest: Duration::from_secs(1), jitter: 0.1 };

    /// The wait before the `nth` restart in a row, counted from 1, without jitter.
    pub fn wait(&self, nth: u32) -> Duration {
        self.spread(nth, 0.0)
    }

    /// The wait before the `nth` restart in a row, counted from 1.
    pub(crate) fn delay(&self, nth: u32, random: &mut fastrand::Rng) -> Duration {
        self.spread(nth, self.jitter.clamp(0.0, 1.0) * (2.0 * random.f64() - 1.0))
    }

    fn spread(&self, nth: u32, jitter: f64) -> Duration {
        let grown = self.first.as_secs_f64() * self.factor.max(1.0).powf(f64::from(nth.saturating_sub(1)));
        // `min` also handles an infinite power.
        let seconds = grown.min(self.longest.as_secs_f64()) * (1.0 + jitter);
        Duration::try_from_secs_f64(seconds).unwrap_or(self.longest)
    }
}

/// What follows a failure.
pub(crate) struct Reply {
    /// Whether the actor is restarted.
    pub(crate) restart: bool,
    /// The back-off of the kind of crash, if it has one.
    pub(crate) backoff: Option<Backoff>,
    /// Whether the failure counts against the intensity. A shortage of the host does not.
    pub(crate) counts: bool,
}

impl From<Restart> for RestartPolicy {
    fn from(restart: Restart) -> Self {
        Self { restart, ..Self::default() }
    }
}

impl From<Intensity> for RestartPolicy {
    fn from(intensity: Intensity) -> Self {
        Self { intensity, ..Self::default() }
    }
}

impl From<Backoff> for RestartPolicy {
    fn from(backoff: Backoff) -> Self {
        Self { backoff, ..Self::default() }
    }
}

impl RestartPolicy {
    pub(crate) fn answer(&self, failure: &Failure) -> Reply {
        let kind = failure.kind();
        let directive = kind.and_then(|kind| self.on.get(&kind.class()));
        let restart = match directive.map_or(self.restart, |directive| directive.restart) {
            Restart::Permanent => true,
            Restart::Transient => !failure.is_exit(),
            Restart::Temporary => false,
        };
        Reply { restart, backoff: directive.and_then(|directive| directive.backoff), counts: !failure.is_shortage() }
    }
}

/// Recent restarts, to enforce an [`Intensity`].
#[derive(Debug)]
pub(crate) struct History {
    intensity: Intensity,
    backoff: Backoff,
    random: fastrand::Rng,
    restarts: VecDeque<Restarted>,
    /// Consecutive failures without a quiet period between.
    in_a_row: u32,
    /// When the last restart was due.
    due: Option<Instant>,
}

/// A restart of one child.
#[derive(Debug)]
struct Restarted {
    child: usize,
    /// The time of the failure, plus the time its child has waited since. Only running time ages a restart, or a long
    /// back-off would hide a crash loop.
    at: Instant,
}

impl History {
    pub(crate) fn new(intensity: Intensity, backoff: Backoff, random: fastrand::Rng) -> Self {
        Self { intensity, backoff, random, restarts: VecDeque::new(), in_a_row: 0, due: None }
    }

    /// Notes a child's failure, for which the children `waiting` wait. Returns the wait before the restart, or `None`
    /// if the intensity is exceeded.
    pub(crate) fn note(
        &mut self,
        child: usize,
        waiting: Range<usize>,
        reply: &Reply,
        now: Instant,
    ) -> Option<Duration> {
        let within = self.intensity.within;
        let is_past = |then: Instant| now.saturating_duration_since(then) >= within;
        if reply.counts {
            self.restarts.retain(|restart| !is_past(restart.at));
            if self.restarts.len() as u64 >= u64::from(self.intensity.restarts) {
                return None;
            }
            self.restarts.push_back(Restarted { child, at: now });
        }
        if self.due.is_none_or(is_past) {
            self.in_a_row = 0;
        }
        self.in_a_row = self.in_a_row.saturating_add(1);
        let mut wait = reply.backoff.unwrap_or(self.backoff).delay(self.in_a_row, &mut self.random);
        if !reply.counts {
            wait = wait.max(Backoff::SHORTAGE.delay(self.in_a_row, &mut self.random));
        }
        for restart in &mut self.restarts {
            if waiting.contains(&restart.child) {
                restart.at = later(restart.at, wait);
            }
        }
        self.due = Some(later(now, wait));
        Some(wait)
    }

    pub(crate) fn intensity(&self) -> Intensity {
        self.intensity
    }

    /// Notes that a child runs, perhaps before its wait was over.
    pub(crate) fn started(&mut self, child: usize, now: Instant) {
        for restart in &mut self.restarts {
            if restart.child == child {
                restart.at = restart.at.min(now);
            }
        }
    }

    pub(crate) fn forget(&mut self) {
        self.restarts.clear();
        (self.in_a_row, self.due) = (0, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_longest_and_no_further() {
        let backoff = Backoff { jitter: 0.0, ..Backoff::default() };
        let mut random = fastrand::Rng::with_seed(1);
        let ms: Vec<_> = (1..=12).map(|nth| backoff.delay(nth, &mut random).as_millis()).collect();
        assert_eq!(ms, [10, 20, 40, 80, 160, 320, 640, 1_280, 2_560, 5_120, 10_000, 10_000]);
        assert_eq!(backoff.delay(u32::MAX, &mut random), Duration::from_secs(10));
        assert_eq!(Backoff::NONE.delay(5, &mut random), Duration::ZERO);
    }

    #[test]
    fn jitter_stays_within_its_part() {
        let backoff = Backoff { jitter: 0.5, ..Backoff::default() };
        let mut random = fastrand::Rng::with_seed(1);
        let waits: Vec<_> = (0..1_000).map(|_| backoff.delay(1, &mut random).as_micros()).collect();
        assert!(waits.iter().all(|us| (5_000..=15_000).contains(us)));
        assert!(waits.iter().any(|&us| us < 7_000) && waits.iter().any(|&us| us > 13_000));
    }

    #[test]
    fn absurd_figures_neither_panic_nor_wait_for_ever() {
        let mut random = fastrand::Rng::with_seed(1);
        for factor in [f64::NAN, f64::INFINITY, -1.0, 0.0, 1e300] {
            let backoff = Backoff { factor, jitter: f64::MAX, ..Backoff::default() };
            assert!(backoff.delay(1_000, &mut random) <= 2 * backoff.longest, "{factor}");
        }
    }

    const STEADY: Backoff =
        Backoff { first: Duration::from_millis(10), factor: 2.0, longest: Duration::from_secs(10), jitter: 0.0 };

    fn every(wait: Duration) -> Backoff {
        Backoff { first: wait, longest: wait, ..STEADY }
    }

    fn history(restarts: u32, backoff: Backoff) -> History {
        let within = Duration::from_secs(5);
        History::new(Intensity { restarts, within }, backoff, fastrand::Rng::with_seed(1))
    }

    const FAILURE: Reply = Reply { restart: true, backoff: None, counts: true };
    const SHORTAGE: Reply = Reply { counts: false, ..FAILURE };

    /// A failure of the only child, and the milliseconds it waits.
    fn note(history: &mut History, at: Instant) -> Option<u128> {
        history.note(0, 0..1, &FAILURE, at).map(|wait| wait.as_millis())
    }

    #[test]
    fn one_restart_too_many_within_the_period_is_refused() {
        let mut history = history(2, STEADY);
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(note(&mut history, at(0)), Some(10));
        assert_eq!(note(&mut history, at(4)), Some(20));
        assert_eq!(note(&mut history, at(4)), None);
        // A shortage does not count.
        assert!(history.note(0, 0..1, &SHORTAGE, at(4)).is_some());
        // The first has left the period, waits not counted.
        assert_eq!(note(&mut history, at(5)), None);
        assert_eq!(note(&mut history, at(5) + Duration::from_millis(200)), Some(80));
        assert_eq!(note(&mut history, at(100)), Some(10));
    }

    #[test]
    fn a_crash_loop_ends_whatever_its_back_off_is() {
        for children in [1, 3] {
            for seconds in [0, 2, 6, 3_600] {
                let mut history = history(3, every(Duration::from_secs(seconds)));
                let (mut now, mut restarts) = (Instant::now(), 0);
                while let Some(wait) = history.note(restarts % children, 0..children, &FAILURE, now) {
                    restarts += 1;
                    assert!(restarts <= 3, "{children} {seconds}");
                    now += wait + Duration::from_millis(100);
                }
                assert_eq!(restarts, 3, "{children} {seconds}");
            }
        }
    }

    #[test]
    fn one_that_runs_for_the_period_between_failures_is_kept() {
        let minute = Duration::from_secs(60);
        let mut history = history(1, every(minute));
        let mut now = Instant::now();
        for _ in 0..100 {
            now += history.note(0, 0..1, &FAILURE, now).unwrap() + Duration::from_secs(5);
        }
        // One child's wait does not stop the period of the others.
        for child in 1..100 {
            assert!(history.note(child, child..child + 1, &FAILURE, now).is_some());
            now += minute + Duration::from_secs(5);
        }
    }

    #[test]
    fn a_wait_that_is_cut_short_counts_as_long_as_it_was() {
        for (started_early, kept) in [(true, true), (false, false)] {
            let mut history = history(1, every(Duration::from_secs(3_600)));
            let now = Instant::now();
            history.note(0, 0..1, &FAILURE, now).unwrap();
            if started_early {
                history.started(0, now);
            }
            let again = history.note(0, 0..1, &FAILURE, now + Duration::from_secs(5));
            assert_eq!(again.is_some(), kept);
        }
    }

    #[test]
    fn shortages_are_waited_out_and_failures_without_back_off_are_not() {
        for (reply, least, most) in [(SHORTAGE, 9, 1_100), (FAILURE, 0, 0)] {
            let mut history = history(3, Backoff::NONE);
            for _ in 0..3 {
                let wait = history.note(0, 0..1, &reply, Instant::now()).unwrap();
                assert!((least..=most).contains(&wait.as_millis()), "{wait:?}");
            }
        }
    }

    #[test]
    fn the_wait_reaches_its_longest_for_one_that_fails_at_once_each_time() {
        let mut history = history(u32::MAX, STEADY);
        let mut now = Instant::now();
        let mut waits = Vec::new();
        for _ in 0..13 {
            let wait = note(&mut history, now).unwrap();
            waits.push(wait);
            now += Duration::from_millis(wait as u64);
        }
        assert!(waits.is_sorted(), "{waits:?}");
        assert_eq!(waits[12], 10_000);
    }

    #[test]
    fn the_longest_durations_are_far_off_and_no_panic() {
        let now = Instant::now();
        assert!(later(now, Duration::MAX) > now);
        assert_eq!(later(now, Duration::from_secs(1)), now + Duration::from_secs(1));
    }
}
