//! What the requests of a guest hold that are on their way at the same time.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// Bytes of all payloads that are on their way.
#[derive(Debug, Default)]
pub(crate) struct InFlight(Arc<AtomicU64>);

/// Some of these bytes, until it is dropped.
#[derive(Debug)]
pub(crate) struct Share {
    of: Arc<AtomicU64>,
    bytes: u64,
}

impl InFlight {
    /// Takes so many bytes, or none if there would be more than the most.
    pub(crate) fn take(&self, bytes: usize, most: u64) -> Option<Share> {
        let bytes = bytes as u64;
        let fits = |all: u64| Some(all.saturating_add(bytes)).filter(|all| *all <= most);
        // Only the guest's own task takes; others may give back meanwhile.
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).ok()?;
        Some(Share { of: Arc::clone(&self.0), bytes })
    }
}

impl Share {
    /// Adds another share of the same bytes.
    pub(crate) fn add(&mut self, mut other: Self) {
        self.bytes += std::mem::take(&mut other.bytes);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.of.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop, prop_assert_eq, proptest};

    use super::*;

    proptest! {
        #[test]
        fn what_is_taken_is_never_more_than_the_most(
            most in any::<u64>(),
            steps in prop::collection::vec((any::<usize>(), any::<bool>()), 0..40),
        ) {
            let (all, mut shares) = (InFlight::default(), Vec::<Share>::new());
            for (bytes, takes) in steps {
                let bytes = bytes >> (bytes % 64);
                if takes {
                    let taken: u128 = shares.iter().map(|share| u128::from(share.bytes)).sum();
                    let share = all.take(bytes, most);
                    prop_assert_eq!(share.is_some(), taken + bytes as u128 <= u128::from(most));
                    shares.extend(share);
                } else {
                    shares.pop();
                }
            }
            shares.clear();
            prop_assert_eq!(all.0.load(Ordering::Relaxed), 0);
        }
    }
}
