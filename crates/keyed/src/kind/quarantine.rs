//! Keys, and kinds, that fail whenever they are activated: left alone for a while, longer each time. Told the time.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use tokio::time::Instant;

/// How long a key is left alone for the first time.
const FIRST: Duration = Duration::from_secs(60);
/// How long at the most.
const LONGEST: Duration = Duration::from_secs(3_600);
/// How long a kind is left alone for the first time.
const TRIPPED: Duration = Duration::from_secs(10);
/// How long a kind is at the most.
const LONGEST_TRIPPED: Duration = Duration::from_secs(600);
/// Activations that a kind is judged by, and how new they must be.
const JUDGED: usize = 20;
const WITHIN: Duration = Duration::from_secs(10);
/// Keys that are remembered.
const KEYS: usize = 65_536;
/// Between two times that all of them are looked at, at the least.
const PRUNED: Duration = Duration::from_secs(1);

/// A wait that is over at some time, and how long it was.
#[derive(Debug, Clone, Copy)]
struct Wait {
    until: Instant,
    long: Duration,
}

impl Wait {
    fn after(before: Option<Self>, now: Instant, first: Duration, longest: Duration) -> Self {
        // One that is long over counts no more.
        let long = match before {
            Some(before) if now < before.until + before.long => (before.long * 2).min(longest),
            _ => first,
        };
        Self { until: now + long, long }
    }
}

/// The keys of a kind that are left alone, and whether the kind is.
#[derive(Default)]
pub(crate) struct Quarantine {
    keys: HashMap<Box<str>, Wait>,
    /// When the last activations ended, and whether they failed.
    last: VecDeque<(Instant, bool)>,
    tripped: Option<Wait>,
    /// Keys for which memory was short: how often others had left for that, and when it was.
    short: HashMap<Box<str>, (u64, Instant)>,
    /// When those were last forgotten that are over.
    pruned: Option<Instant>,
}

impl Quarantine {
    /// Whether a key may be activated.
    pub(crate) fn admits(&self, key: &str, now: Instant) -> bool {
        let is_over = |wait: &Wait| wait.until <= now;
        self.tripped.as_ref().is_none_or(is_over) && self.keys.get(key).is_none_or(is_over)
    }

    /// A key was activated.
    pub(crate) fn succeeded(&mut self, now: Instant) {
        self.note(now, false);
    }

    /// An activation of a key failed through its own fault. For how long the kind is tripped over it, if it is: not over keys
    /// without a row, which senders can make up.
    pub(crate) fn failed(&mut self, key: &str, has_row: bool, now: Instant) -> Option<Duration> {
        self.leave_alone(key, now);
        if !has_row {
            return None;
        }
        self.note(now, true);
        let failed = self.last.iter().filter(|(at, failed)| *failed && now.duration_since(*at) <= WITHIN).count();
        let is_recent = self.last.front().is_some_and(|(at, _)| now.duration_since(*at) <= WITHIN);
        if self.last.len() < JUDGED || !is_recent || 2 * failed < JUDGED {
            return None;
        }
        self.last.clear();
        let wait = Wait::after(self.tripped, now, TRIPPED, LONGEST_TRIPPED);
        self.tripped = Some(wait);
        Some(wait.long)
    }

    /// An activation of a key failed because memory is short; so often others left for that. Whether it failed in the same
    /// way a short while ago, before the last of those.
    pub(crate) fn is_short_again(&mut self, key: &str, made_room: u64, now: Instant) -> bool {
        match self.short.get(key) {
            Some((before, at)) if now < *at + FIRST => return *before < made_room,
            _ => {}
        }
        if self.short.len() >= KEYS {
            self.make_room(now);
        }
        if self.short.len() < KEYS {
            self.short.insert(key.into(), (made_room, now));
        }
        false
    }

    /// Leaves a key alone for a while. For how long.
    pub(crate) fn leave_alone(&mut self, key: &str, now: Instant) -> Duration {
        if self.keys.len() >= KEYS && !self.keys.contains_key(key) {
            self.make_room(now);
        }
        let wait = Wait::after(self.keys.get(key).copied(), now, FIRST, LONGEST);
        if self.keys.len() < KEYS {
            self.keys.insert(key.into(), wait);
        }
        wait.long
    }

    /// How long a key is left alone.
    pub(crate) fn wait(&self, key: &str) -> Option<Duration> {
        Some(self.keys.get(key)?.long)
    }

    /// Lets a key be activated again.
    pub(crate) fn release(&mut self, key: &str) {
        self.keys.remove(key);
    }

    /// Lets all be activated again: another version is there.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    fn note(&mut self, now: Instant, failed: bool) {
        if self.last.len() == JUDGED {
            self.last.pop_front();
        }
        self.last.push_back((now, failed));
    }

    /// Looks at all of them no more often than each second, however many fail.
    fn make_room(&mut self, now: Instant) {
        if self.pruned.is_none_or(|pruned| now >= pruned + PRUNED) {
            self.prune(now);
        }
    }

    /// Forgets those whose next wait would be the first again.
    pub(crate) fn prune(&mut self, now: Instant) {
        self.pruned = Some(now);
        self.keys.retain(|_, wait| now < wait.until + wait.long);
        self.short.retain(|_, (_, at)| now < *at + FIRST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_fails_is_left_alone_longer_each_time_and_others_are_not() {
        let mut quarantine = Quarantine::default();
        let mut now = Instant::now();
        for seconds in [60, 120, 240, 480, 960, 1_920, 3_600, 3_600] {
            assert!(quarantine.admits("a", now));
            quarantine.failed("a", true, now);
            now += Duration::from_secs(seconds - 1);
            assert!(!quarantine.admits("a", now) && quarantine.admits("b", now), "{seconds}");
            now += Duration::from_secs(1);
        }
        // What was well for as long as it was left alone begins anew.
        now += LONGEST;
        assert_eq!(quarantine.leave_alone("a", now), FIRST);
    }

    #[test]
    fn a_kind_is_tripped_by_half_of_its_last_activations() {
        for (failing, expected) in [(9, None), (10, Some(TRIPPED))] {
            let mut quarantine = Quarantine::default();
            let now = Instant::now();
            for _ in 0..JUDGED - failing {
                quarantine.succeeded(now);
            }
            let tripped = (0..failing).filter_map(|key| quarantine.failed(&key.to_string(), true, now)).next();
            assert_eq!(tripped, expected);
            assert_eq!(quarantine.admits("another", now), expected.is_none());
            assert!(quarantine.admits("another", now + TRIPPED));
        }
    }

    #[test]
    fn keys_that_senders_make_up_trip_no_kind() {
        let mut quarantine = Quarantine::default();
        let now = Instant::now();
        for key in 0..2 * JUDGED {
            let key = key.to_string();
            assert_eq!(quarantine.failed(&key, false, now), None);
            assert!(!quarantine.admits(&key, now));
        }
        assert!(quarantine.admits("another", now));
    }

    #[test]
    fn memory_is_short_again_for_a_key_if_others_have_left_since() {
        let mut quarantine = Quarantine::default();
        let now = Instant::now();
        assert!(!quarantine.is_short_again("a", 0, now));
        assert!(!quarantine.is_short_again("a", 0, now), "nobody has left yet");
        assert!(quarantine.is_short_again("a", 1, now));
        assert!(!quarantine.is_short_again("b", 1, now));
        assert!(!quarantine.is_short_again("a", 1, now + FIRST), "that was long ago");
        quarantine.prune(now + 3 * FIRST);
        assert!(quarantine.short.is_empty());
    }

    #[test]
    fn failures_long_ago_trip_no_kind() {
        let mut quarantine = Quarantine::default();
        let mut now = Instant::now();
        for key in 0..100 {
            assert_eq!(quarantine.failed(&key.to_string(), true, now), None);
            now += Duration::from_secs(1);
        }
    }

    #[test]
    fn keys_that_fail_without_number_are_looked_at_once_a_second() {
        let mut quarantine = Quarantine::default();
        let now = Instant::now();
        for key in 0..KEYS {
            quarantine.leave_alone(&key.to_string(), now);
        }
        let over = now + 2 * FIRST;
        let milliseconds = Duration::from_millis;
        quarantine.leave_alone("a", over - milliseconds(500));
        assert_eq!(quarantine.wait("a"), None, "there is no room");
        quarantine.leave_alone("b", over);
        assert_eq!(quarantine.wait("b"), None, "nobody has looked yet");
        quarantine.leave_alone("c", over + milliseconds(500));
        assert!(quarantine.wait("c").is_some() && quarantine.keys.len() == 1);
    }

    #[test]
    fn keys_that_fail_without_number_take_no_memory_without_end() {
        let mut quarantine = Quarantine::default();
        let now = Instant::now();
        for key in 0..KEYS + 100 {
            quarantine.leave_alone(&key.to_string(), now);
        }
        assert_eq!(quarantine.keys.len(), KEYS);
        quarantine.prune(now + 2 * FIRST);
        assert_eq!(quarantine.keys.len(), 0);
    }
}
