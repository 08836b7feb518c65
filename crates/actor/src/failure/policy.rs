//! Which failures restart an actor, how soon, and how often. Plain data and arithmetic: nothing here runs anything.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use airssys_wasm_isolation::{CrashClass, CrashKind, InstantiateError};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::{StartError, failure::report::Failure};

/// Whether an actor is started again when it has ended, as Erlang/OTP has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// However it ended.
    #[default]
    Permanent,
    /// Unless it ended by its own will: a guest that called `exit` with 0.
    Transient,
    /// Never.
    Temporary,
}

/// How an actor's failures are answered: the `[supervision]` table of a `Component.toml`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RestartPolicy {
    /// Whether it is started again.
    pub restart: Restart,
    /// Other answers for some kinds of crash.
    pub on: BTreeMap<CrashClass, Directive>,
    /// How often. An actor below a supervisor is held to the supervisor's instead.
    pub intensity: Intensity,
    /// How soon. An actor below a supervisor is held to the supervisor's instead.
    pub backoff: Backoff,
}

/// The answer to one kind of crash.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Directive {
    /// Whether the actor is started again.
    pub restart: Restart,
    /// How soon, where that differs.
    #[serde(default)]
    pub backoff: Option<Backoff>,
}

/// Restarts within a period after which a failure goes up: to the supervisor's supervisor, or, at the top, to whoever
/// watches the system's events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Intensity {
    /// Restarts that are permitted within the period. Default: 3.
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

/// How long to wait before a restart: `first`, then each time `factor` times as long, up to `longest`. It begins anew
/// after an incarnation that has lived for the intensity's period.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Backoff {
    /// Before the first restart. Default: ten milliseconds. Zero restarts at once.
    #[serde(with = "humantime_serde")]
    pub first: Duration,
    /// How much longer each time. Default: 2.
    pub factor: f64,
    /// The longest. Default: ten seconds.
    #[serde(with = "humantime_serde")]
    pub longest: Duration,
    /// By which part a wait is made longer or shorter at random, so that those who crashed together do not come back
    /// together. Default: 0.1.
    pub jitter: f64,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { first: Duration::from_millis(10), factor: 2.0, longest: Duration::from_secs(10), jitter: 0.1 }
    }
}

impl Backoff {
    /// At once, always.
    pub const NONE: Self = Self { first: Duration::ZERO, factor: 1.0, longest: Duration::ZERO, jitter: 0.0 };

    /// The wait before the `nth` restart in a row, counted from 1.
    pub(crate) fn delay(&self, nth: u32, random: &mut fastrand::Rng) -> Duration {
        let grown = self.first.as_secs_f64() * self.factor.max(1.0).powf(f64::from(nth.saturating_sub(1)));
        let jitter = self.jitter.clamp(0.0, 1.0) * (2.0 * random.f64() - 1.0);
        // `min` also where the power is infinite.
        let seconds = grown.min(self.longest.as_secs_f64()) * (1.0 + jitter);
        Duration::try_from_secs_f64(seconds).unwrap_or(self.longest)
    }
}

/// How a failure is answered.
pub(crate) struct Reply {
    /// Whether the actor is started again.
    pub(crate) restart: bool,
    /// How soon, where the kind of crash says so.
    pub(crate) backoff: Option<Backoff>,
    /// Whether it counts against the intensity. What the host has run short of is nobody's failure.
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
        let (kind, is_pool) = match failure {
            Failure::Crash(report) => (Some(report.crash.kind()), false),
            Failure::Start(error) => match &**error {
                StartError::Crash(report) => (Some(report.crash.kind()), false),
                StartError::Instantiate(InstantiateError::PoolExhausted { .. }) => (None, true),
                _ => (None, false),
            },
            Failure::GaveUp(_) => (None, false),
        };
        let directive = kind.and_then(|kind| self.on.get(&kind.class()));
        let restart = match directive.map_or(self.restart, |directive| directive.restart) {
            Restart::Permanent => true,
            Restart::Transient => !matches!(kind, Some(CrashKind::Exit { code: 0 })),
            Restart::Temporary => false,
        };
        let is_shortage = is_pool || matches!(kind, Some(CrashKind::Budget { .. }));
        Reply { restart, backoff: directive.and_then(|directive| directive.backoff), counts: !is_shortage }
    }
}

/// The failures of late, held against an [`Intensity`].
#[derive(Debug, Default)]
pub(crate) struct History {
    restarts: VecDeque<Instant>,
    /// Failures that followed each other without a quiet period between.
    in_a_row: u32,
    /// When the last restart was due.
    restarted: Option<Instant>,
}

impl History {
    /// Notes a failure, and says how long to wait before the restart; `None` when it is one too many.
    pub(crate) fn note(
        &mut self,
        intensity: &Intensity,
        backoff: &Backoff,
        counts: bool,
        now: Instant,
        random: &mut fastrand::Rng,
    ) -> Option<Duration> {
        let is_past = |then: Instant| now.saturating_duration_since(then) >= intensity.within;
        if counts {
            while self.restarts.front().is_some_and(|&then| is_past(then)) {
                self.restarts.pop_front();
            }
            if self.restarts.len() as u64 >= u64::from(intensity.restarts) {
                return None;
            }
            self.restarts.push_back(now);
        }
        if self.restarted.is_none_or(is_past) {
            self.in_a_row = 0;
        }
        self.in_a_row = self.in_a_row.saturating_add(1);
        let wait = backoff.delay(self.in_a_row, random);
        self.restarted = Some(later(now, wait));
        Some(wait)
    }

    pub(crate) fn forget(&mut self) {
        *self = Self::default();
    }
}

/// A moment that far from another, or so far that nobody will see it: durations come from outside, and may be the longest
/// there is.
pub(crate) fn later(now: Instant, wait: Duration) -> Instant {
    const YEARS: Duration = Duration::from_secs(30 * 365 * 24 * 3_600);
    now.checked_add(wait.min(YEARS)).unwrap_or(now)
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

    fn note(history: &mut History, intensity: &Intensity, counts: bool, at: Instant) -> Option<u128> {
        let backoff = Backoff { jitter: 0.0, ..Backoff::default() };
        history.note(intensity, &backoff, counts, at, &mut fastrand::Rng::with_seed(1)).map(|wait| wait.as_millis())
    }

    #[test]
    fn one_restart_too_many_within_the_period_is_refused() {
        let intensity = Intensity { restarts: 2, within: Duration::from_secs(5) };
        let mut history = History::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(note(&mut history, &intensity, true, at(0)), Some(10));
        assert_eq!(note(&mut history, &intensity, true, at(4)), Some(20));
        assert_eq!(note(&mut history, &intensity, true, at(4)), None);
        // What is nobody's failure does not count.
        assert_eq!(note(&mut history, &intensity, false, at(4)), Some(40));
        // The first is out of the period by now.
        assert_eq!(note(&mut history, &intensity, true, at(5)), Some(80));
        assert_eq!(note(&mut history, &intensity, true, at(100)), Some(10));
    }

    #[test]
    fn the_wait_reaches_its_longest_for_one_that_fails_at_once_each_time() {
        let intensity = Intensity { restarts: u32::MAX, within: Duration::from_secs(5) };
        let mut history = History::default();
        let mut now = Instant::now();
        let mut waits = Vec::new();
        for _ in 0..13 {
            let wait = note(&mut history, &intensity, true, now).unwrap();
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
