//! How much of a mailbox one sender may have: places and bytes of what it sent and nobody has taken yet. Which messages
//! count, and what becomes of those beyond, it leaves to the cell.

use std::{
    collections::HashMap,
    num::{NonZeroU32, NonZeroU64},
    sync::Arc,
};

use parking_lot::Mutex;
use tokio::sync::{AcquireError, Semaphore};

use crate::runtime::sync::{Shared, shared};

/// The shares of all senders of one mailbox.
pub(crate) struct Shares {
    /// Messages of a sender.
    messages: usize,
    /// KiB of its large messages.
    kib: u32,
    senders: Mutex<Senders>,
}

#[derive(Default)]
struct Senders {
    /// By generation.
    shares: HashMap<NonZeroU64, Arc<Share>>,
    /// From how many on those that hold nothing are forgotten.
    most: usize,
}

/// What one sender may still send.
pub(crate) struct Share {
    messages: Shared<Semaphore>,
    kib: Shared<Semaphore>,
}

/// A message's place in a share. Dropping it gives it back.
pub(crate) struct Place(Arc<Share>);

/// KiB of a share that a large message has. Dropping it gives them back.
pub(crate) struct Kib {
    share: Arc<Share>,
    kib: u32,
}

/// What a message has of a share, the latter of large ones only.
pub(crate) type Held = (Place, Option<Kib>);

/// Senders that are remembered, however little they hold.
const FEW: usize = 64;

impl Shares {
    /// Of a mailbox for so many messages, and KiB of large ones, in so many parts. None where there is one part only.
    pub(crate) fn new(mailbox: usize, room_kib: u32, parts: NonZeroU32) -> Option<Self> {
        (parts.get() > 1).then(|| Self {
            messages: (mailbox / parts.get() as usize).max(1),
            kib: (room_kib / parts).max(1),
            senders: Mutex::default(),
        })
    }

    fn of(&self, sender: NonZeroU64) -> Arc<Share> {
        let senders = &mut *self.senders.lock();
        if let Some(share) = senders.shares.get(&sender) {
            return Arc::clone(share);
        }
        if senders.shares.len() >= senders.most.max(FEW) {
            // A sender that holds something, or waits, has a clone.
            senders.shares.retain(|_, share| Arc::strong_count(share) > 1);
            senders.most = 2 * senders.shares.len();
        }
        let share = Arc::new(Share {
            messages: shared(Semaphore::new(self.messages)),
            kib: shared(Semaphore::new(self.kib as usize)),
        });
        senders.shares.insert(sender, Arc::clone(&share));
        share
    }

    /// A place for a message, and KiB for a large one: none where the sender would have more than its share, or more than
    /// is left to all others.
    pub(crate) fn try_hold(&self, sender: NonZeroU64, kib: u32, free: Free) -> Option<Held> {
        let share = self.of(sender);
        let held = self.messages - share.messages.available_permits();
        if held >= free.messages {
            return None;
        }
        let kib = kib.min(self.kib);
        let held_kib = self.kib - share.kib.available_permits() as u32;
        if held_kib > 0 && u64::from(held_kib) + u64::from(kib) > free.kib as u64 {
            return None;
        }
        share.messages.try_acquire().ok()?.forget();
        let place = Place(share);
        if kib == 0 {
            return Some((place, None));
        }
        place.0.kib.try_acquire_many(kib).ok()?.forget();
        let kib = Kib { share: Arc::clone(&place.0), kib };
        Some((place, Some(kib)))
    }

    /// The same as soon as there is room in the share, in the order of those who wait for it.
    pub(crate) async fn hold(&self, sender: NonZeroU64, kib: u32) -> Result<Held, AcquireError> {
        let share = self.of(sender);
        share.messages.acquire().await?.forget();
        let place = Place(share);
        if kib == 0 {
            return Ok((place, None));
        }
        let kib = kib.min(self.kib);
        place.0.kib.acquire_many(kib).await?.forget();
        let kib = Kib { share: Arc::clone(&place.0), kib };
        Ok((place, Some(kib)))
    }

    /// Refuses senders that wait. Later ones find room in a share and are refused by the mailbox.
    pub(crate) fn close(&self) {
        let shares: Vec<_> = self.senders.lock().shares.values().cloned().collect();
        // Without the lock: this wakes them.
        shares.iter().for_each(|share| share.close());
    }
}

/// The free places and KiB of a mailbox.
#[derive(Clone, Copy)]
pub(crate) struct Free {
    pub(crate) messages: usize,
    pub(crate) kib: usize,
}

impl Share {
    fn close(&self) {
        self.messages.close();
        self.kib.close();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.messages.add_permits(1);
    }
}

impl Drop for Kib {
    fn drop(&mut self) {
        self.share.kib.add_permits(self.kib as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: Free = Free { messages: 100, kib: 100 };

    fn shares(parts: u32) -> Option<Shares> {
        Shares::new(100, 100, NonZeroU32::new(parts).unwrap())
    }

    fn sender(n: u64) -> NonZeroU64 {
        NonZeroU64::new(n).unwrap()
    }

    #[test]
    fn senders_that_hold_nothing_are_forgotten() {
        let shares = shares(2).unwrap();
        let held: Vec<_> = (1..=10).map(|n| shares.try_hold(sender(n), 0, ROOM).unwrap()).collect();
        for n in 11..10_000 {
            shares.try_hold(sender(n), 0, ROOM).unwrap();
            assert!(shares.senders.lock().shares.len() <= FEW);
        }
        // Those that hold something are not.
        let more: Vec<_> = std::iter::from_fn(|| shares.try_hold(sender(1), 0, ROOM)).collect();
        assert_eq!(more.len(), 49);
        drop((held, more));
    }

    #[test]
    fn one_share_is_none() {
        assert!(shares(1).is_none());
    }

    #[test]
    fn nobody_has_more_than_is_left_to_others() {
        let shares = shares(2).unwrap();
        let left = Free { messages: 2, kib: 30 };
        let first = shares.try_hold(sender(1), 20, left).unwrap();
        assert!(shares.try_hold(sender(1), 20, left).is_none(), "40 KiB, and 30 are left");
        let second = shares.try_hold(sender(1), 10, left).unwrap();
        assert!(shares.try_hold(sender(1), 0, left).is_none(), "two messages, and two are left");
        drop((first, second));
        shares.try_hold(sender(1), 20, left).unwrap();
    }
}
