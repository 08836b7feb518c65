//! A total of memory for all components of a host, of which each holds its share for as long as it lives.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use crate::ByteSize;

/// A host-wide total of linear memory. Cheap to clone; all clones are one budget.
#[derive(Debug, Clone)]
pub struct MemoryBudget(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    total: u64,
    used: AtomicU64,
}

/// The host-wide budget has less left than was asked for. Others keep their shares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the host's memory budget of {total} bytes has {left} left, and {asked} were asked for")]
#[non_exhaustive]
pub struct BudgetExhausted {
    /// Bytes asked for.
    pub asked: u64,
    /// Bytes left at that moment.
    pub left: u64,
    /// Bytes in all.
    pub total: u64,
}

impl MemoryBudget {
    /// A budget of this size.
    pub fn new(total: ByteSize) -> Self {
        Self(Arc::new(Inner { total: total.as_u64(), used: AtomicU64::new(0) }))
    }

    /// Bytes in all.
    pub fn total(&self) -> u64 {
        self.0.total
    }

    /// Bytes granted now.
    pub fn used(&self) -> u64 {
        self.0.used.load(Ordering::Relaxed)
    }

    /// An empty share, which grows as it is needed.
    pub fn grant(&self) -> MemoryGrant {
        MemoryGrant { budget: self.clone(), bytes: 0 }
    }
}

/// A share of a [`MemoryBudget`], given back when it is dropped.
#[derive(Debug)]
pub struct MemoryGrant {
    budget: MemoryBudget,
    bytes: u64,
}

impl MemoryGrant {
    /// Bytes held.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes more.
    ///
    /// # Errors
    ///
    /// When the budget has less left; the grant stays as it was.
    pub fn grow(&mut self, more: u64) -> Result<(), BudgetExhausted> {
        let Inner { total, used } = &*self.budget.0;
        used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            used.checked_add(more).filter(|sum| sum <= total)
        })
        .map_err(|used| BudgetExhausted { asked: more, left: total - used, total: *total })?;
        self.bytes += more;
        Ok(())
    }

    /// Gives some back, all of it at the most.
    pub fn shrink(&mut self, less: u64) {
        let less = less.min(self.bytes);
        self.bytes -= less;
        self.budget.0.used.fetch_sub(less, Ordering::Relaxed);
    }
}

impl Drop for MemoryGrant {
    fn drop(&mut self) {
        self.shrink(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_is_refused_beyond_the_total_and_returned_on_drop() {
        let budget = MemoryBudget::new(ByteSize(100));
        let mut first = budget.grant();
        first.grow(60).unwrap();
        let mut second = budget.grant();
        assert_eq!(second.grow(41), Err(BudgetExhausted { asked: 41, left: 40, total: 100 }));
        assert_eq!(second.bytes(), 0);
        second.grow(40).unwrap();
        assert_eq!(budget.used(), 100);
        drop(first);
        assert_eq!(budget.used(), 40);
        second.shrink(1_000);
        assert_eq!((second.bytes(), budget.used()), (0, 0));
    }

    #[test]
    fn an_absurd_request_does_not_wrap_around() {
        let budget = MemoryBudget::new(ByteSize(u64::MAX));
        let mut grant = budget.grant();
        grant.grow(1).unwrap();
        assert!(grant.grow(u64::MAX).is_err());
        assert_eq!(budget.used(), 1);
    }

    #[test]
    fn threads_never_hold_more_than_the_total() {
        let budget = MemoryBudget::new(ByteSize(1_000));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1_000 {
                        let mut grant = budget.grant();
                        let _ = grant.grow(300);
                        assert!(budget.used() <= 1_000);
                    }
                });
            }
        });
        assert_eq!(budget.used(), 0);
    }
}
