//! What the requests of a guest hold that are on their way at the same time, and what the answers do that wait for it.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicU64, Ordering},
};

/// Bytes of all payloads that are on their way, or of all answers that wait.
#[derive(Debug, Default, Clone)]
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

/// Room for the answer to one request, among those that wait for a guest which can have several. Given back when neither the
/// request nor who answers it holds it any more.
#[derive(Debug)]
pub(crate) struct Room {
    of: InFlight,
    most: u64,
    taken: OnceLock<Share>,
}

impl Room {
    /// Room in so many bytes that all have.
    pub(crate) fn new(of: &InFlight, most: u64) -> Arc<Self> {
        Arc::new(Self { of: of.clone(), most, taken: OnceLock::new() })
    }

    /// Takes it, once, or says how many bytes are left. An answer larger than all there are fits alone.
    pub(crate) fn take(&self, bytes: usize) -> Result<(), u64> {
        // Nothing of it is kept, so that another answer may come after one that says nothing.
        if bytes == 0 {
            return Ok(());
        }
        let bytes = bytes.min(usize::try_from(self.most).unwrap_or(usize::MAX));
        match self.of.take(bytes, self.most) {
            Some(share) => {
                _ = self.taken.set(share);
                Ok(())
            }
            None => Err(self.most.saturating_sub(self.of.0.load(Ordering::Relaxed))),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop, prop_assert_eq, proptest};

    use super::*;

    #[test]
    fn answers_share_their_room_and_one_always_fits() {
        let all = InFlight::default();
        let room = || Room::new(&all, 10);
        let (first, second, third) = (room(), room(), room());
        assert_eq!([first.take(4), second.take(7), second.take(6), third.take(1)], [Ok(()), Err(6), Ok(()), Err(0)]);
        drop(first);
        assert_eq!(third.take(4), Ok(()));
        drop((second, third));
        let (large, other) = (room(), room());
        assert_eq!([large.take(1_000), other.take(1)], [Ok(()), Err(0)]);
        drop(large);
        assert_eq!(other.take(10), Ok(()));
        drop(other);
        // Who says nothing is passed over for who says something.
        let (passed_over, other) = (room(), room());
        assert_eq!([passed_over.take(0), passed_over.take(8), other.take(3)], [Ok(()), Ok(()), Err(2)]);
    }

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
