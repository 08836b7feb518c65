//! What the entries of a component take, held against its quota.

use std::{fmt, sync::Arc};

use airssys_wasm_limits::ByteSize;
use parking_lot::Mutex;

/// Bytes that each entry costs besides its key and its value. About what [`MemoryStore`](crate::MemoryStore) needs for its
/// maps.
pub const ENTRY_COST: u64 = 256;

/// The quota of a component, and what its entries take of it. Clones share one count.
///
/// A component pays for an entry that it wrote last, in whichever bucket, until somebody replaces or deletes it.
#[derive(Debug, Clone)]
pub struct Account {
    bytes: u64,
    keys: u64,
    used: Arc<Mutex<Used>>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Used {
    bytes: u64,
    keys: u64,
}

/// The quota of a component has no room for an entry. Nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum QuotaExceeded {
    /// Keys, values and [`ENTRY_COST`] for each.
    #[error(
        "quota exceeded: the component would store {asked} bytes and may store {allowed}, {ENTRY_COST} for each key included"
    )]
    Bytes {
        /// Bytes it would have had in all.
        asked: u64,
        /// Bytes it may have.
        allowed: u64,
    },
    /// Keys.
    #[error("quota exceeded: the component would store {asked} keys and may store {allowed}")]
    Keys {
        /// Keys it would have had in all.
        asked: u64,
        /// Keys it may have.
        allowed: u64,
    },
}

impl Account {
    /// An empty account.
    pub fn new(bytes: ByteSize, keys: u64) -> Self {
        Self { bytes: bytes.as_u64(), keys, used: Arc::default() }
    }

    /// An account without a quota, for what the embedder writes itself.
    pub fn unlimited() -> Self {
        Self::new(ByteSize(u64::MAX), u64::MAX)
    }

    /// This quota over the count of another account.
    #[must_use]
    pub fn counting_with(self, other: &Self) -> Self {
        Self { used: Arc::clone(&other.used), ..self }
    }

    /// Bytes that its entries take, with [`ENTRY_COST`] for each.
    pub fn bytes_used(&self) -> u64 {
        self.used.lock().bytes
    }

    /// The number of its entries.
    pub fn keys_used(&self) -> u64 {
        self.used.lock().keys
    }

    /// Charges for an entry before it is stored. `old` is the charge for the entry that it replaces, and is given back.
    /// An account that is over its quota, because that was lowered, may still replace entries by smaller ones.
    ///
    /// # Errors
    ///
    /// [`QuotaExceeded`]; `old` stays as it was.
    pub fn charge(&self, key: &str, value: usize, old: Option<&mut Charge>) -> Result<Charge, QuotaExceeded> {
        let bytes = (key.len() as u64).saturating_add(value as u64).saturating_add(ENTRY_COST);
        let mut used = self.used.lock();
        let own = old.as_ref().filter(|old| Arc::ptr_eq(&old.used, &self.used)).map(|old| old.cost).unwrap_or_default();
        let asked = Used { bytes: (used.bytes - own.bytes).saturating_add(bytes), keys: used.keys - own.keys + 1 };
        if asked.bytes > self.bytes.max(used.bytes) {
            return Err(QuotaExceeded::Bytes { asked: asked.bytes, allowed: self.bytes });
        }
        if asked.keys > self.keys.max(used.keys) {
            return Err(QuotaExceeded::Keys { asked: asked.keys, allowed: self.keys });
        }
        *used = Used { bytes: used.bytes.saturating_add(bytes), keys: used.keys + 1 };
        match old {
            Some(old) if Arc::ptr_eq(&old.used, &self.used) => old.give_back(&mut used),
            Some(old) => {
                // One lock at a time: two components may replace each other's entries.
                drop(used);
                let other = Arc::clone(&old.used);
                old.give_back(&mut other.lock());
            }
            None => {}
        }
        Ok(Charge { used: Arc::clone(&self.used), cost: Used { bytes, keys: 1 } })
    }
}

/// What an account pays for an entry. A store keeps it with the entry; dropping it gives it back.
pub struct Charge {
    used: Arc<Mutex<Used>>,
    cost: Used,
}

impl Charge {
    fn give_back(&mut self, used: &mut Used) {
        let Used { bytes, keys } = std::mem::take(&mut self.cost);
        used.bytes -= bytes;
        used.keys -= keys;
    }
}

impl fmt::Debug for Charge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Charge").field(&self.cost.bytes).finish()
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        let used = Arc::clone(&self.used);
        self.give_back(&mut used.lock());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(account: &Account) -> (u64, u64) {
        (account.bytes_used(), account.keys_used())
    }

    #[test]
    fn the_old_value_is_subtracted_before_the_quota_is_checked() {
        let account = Account::new(ByteSize(ENTRY_COST + 11), 1);
        let mut entry = account.charge("k", 10, None).unwrap();
        let over = account.charge("k", 11, Some(&mut entry)).unwrap_err();
        assert_eq!(over, QuotaExceeded::Bytes { asked: ENTRY_COST + 12, allowed: ENTRY_COST + 11 });
        assert_eq!(used(&account), (ENTRY_COST + 11, 1));
        let replaced = account.charge("k", 10, Some(&mut entry)).unwrap();
        drop(entry);
        assert_eq!(used(&account), (ENTRY_COST + 11, 1));
        drop(replaced);
        assert_eq!(used(&account), (0, 0));
    }

    #[test]
    fn keys_are_counted_by_themselves() {
        let account = Account::new(ByteSize::mib(1), 1);
        let entry = account.charge("", 0, None).unwrap();
        assert_eq!(account.charge("k", 0, None).unwrap_err(), QuotaExceeded::Keys { asked: 2, allowed: 1 });
        drop(entry);
        account.charge("k", 0, None).unwrap();
    }

    #[test]
    fn who_replaces_an_entry_pays_for_it() {
        let (one, other) = (Account::new(ByteSize::kib(1), 1), Account::new(ByteSize::kib(1), 1));
        let mut entry = one.charge("k", 1, None).unwrap();
        let replaced = other.charge("k", 2, Some(&mut entry)).unwrap();
        assert_eq!((used(&one), used(&other)), ((0, 0), (ENTRY_COST + 3, 1)));
        drop((entry, replaced));
        assert_eq!((used(&one), used(&other)), ((0, 0), (0, 0)));
    }

    #[test]
    fn under_a_lowered_quota_entries_can_shrink() {
        let wide = Account::unlimited();
        let mut entry = wide.charge("k", 100, None).unwrap();
        let narrow = Account::new(ByteSize(0), 0).counting_with(&wide);
        narrow.charge("k", 101, Some(&mut entry)).unwrap_err();
        let _smaller = narrow.charge("k", 99, Some(&mut entry)).unwrap();
        narrow.charge("l", 0, None).unwrap_err();
    }

    #[test]
    fn absurd_sizes_do_not_wrap_around() {
        let account = Account::new(ByteSize::mib(1), 9);
        account.charge("k", usize::MAX, None).unwrap_err();
        assert_eq!(used(&account), (0, 0));
    }
}
