//! Token buckets: what activations a kind admits, in all and for each caller. Told the time.

use std::collections::HashMap;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::options::{Admission, Rate};

/// The admission of a kind.
pub(crate) struct Buckets {
    limits: Admission,
    all: Mutex<All>,
}

struct All {
    kind: Bucket,
    /// Those that are not full.
    callers: HashMap<Box<str>, Bucket>,
}

/// What is left, as of a time.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    fn full(rate: Rate, now: Instant) -> Self {
        Self { tokens: f64::from(rate.burst), at: now }
    }

    fn fill(&mut self, rate: Rate, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + passed * rate.per_second).min(f64::from(rate.burst));
        self.at = self.at.max(now);
    }
}

/// Callers that are counted by themselves at a time. Those beyond share one bucket.
const CALLERS: usize = 4_096;

impl Buckets {
    pub(crate) fn new(limits: Admission, now: Instant) -> Self {
        let all = All { kind: Bucket::full(limits.kind, now), callers: HashMap::new() };
        Self { limits, all: Mutex::new(all) }
    }

    /// Takes a token of the kind's, and of the caller's if it is not the host. None is taken where one of them is missing.
    pub(crate) fn admit(&self, caller: Option<&str>, now: Instant) -> bool {
        let All { kind, callers } = &mut *self.all.lock();
        kind.fill(self.limits.kind, now);
        if kind.tokens < 1.0 {
            return false;
        }
        if let Some(caller) = caller {
            let rate = self.limits.caller;
            if !callers.contains_key(caller) && callers.len() >= CALLERS {
                prune(callers, rate, now);
            }
            let caller = if callers.contains_key(caller) || callers.len() < CALLERS { caller } else { "" };
            let bucket = match callers.get_mut(caller) {
                Some(bucket) => bucket,
                None => callers.entry(caller.into()).or_insert_with(|| Bucket::full(rate, now)),
            };
            bucket.fill(rate, now);
            if bucket.tokens < 1.0 {
                return false;
            }
            bucket.tokens -= 1.0;
        }
        kind.tokens -= 1.0;
        true
    }

    /// Forgets callers whose buckets are full.
    pub(crate) fn prune(&self, now: Instant) {
        prune(&mut self.all.lock().callers, self.limits.caller, now);
    }
}

fn prune(callers: &mut HashMap<Box<str>, Bucket>, rate: Rate, now: Instant) {
    callers.retain(|_, bucket| {
        bucket.fill(rate, now);
        bucket.tokens < f64::from(rate.burst)
    });
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn admission(kind: u32, caller: u32) -> Admission {
        let rate = |burst| Rate { per_second: f64::from(burst), burst };
        Admission { kind: rate(kind), caller: rate(caller) }
    }

    #[test]
    fn a_caller_that_has_used_up_its_tokens_harms_no_other() {
        let now = Instant::now();
        let buckets = Buckets::new(admission(10, 2), now);
        let admitted = |caller| (0..5).filter(|_| buckets.admit(Some(caller), now)).count();
        assert_eq!((admitted("greedy"), admitted("modest")), (2, 2));
        // The host is held to the kind's alone, of which 4 are gone.
        assert_eq!((0..10).filter(|_| buckets.admit(None, now)).count(), 6);
        assert!(!buckets.admit(Some("third"), now));
        // A second later there are new ones, and no more than the burst.
        let later = now + Duration::from_secs(100);
        assert_eq!((0..5).filter(|_| buckets.admit(Some("greedy"), later)).count(), 2);
        assert_eq!((0..20).filter(|_| buckets.admit(None, later)).count(), 8);
    }

    #[test]
    fn callers_without_number_take_no_memory_without_end() {
        let now = Instant::now();
        let buckets = Buckets::new(admission(1_000_000, 2), now);
        for caller in 0..3 * CALLERS {
            buckets.admit(Some(&caller.to_string()), now);
        }
        assert!(buckets.all.lock().callers.len() <= CALLERS + 1);
        buckets.prune(now + Duration::from_secs(1));
        assert_eq!(buckets.all.lock().callers.len(), 0);
    }
}
