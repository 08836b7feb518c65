//! Detects cycles of guests' requests.

use std::num::NonZeroU64;

use crate::runtime::cell::Cell;

/// An entry in the table of waiting requests: one actor waits for another.
pub(crate) struct Waiting<'a> {
    asker: &'a Cell,
}

impl<'a> Waiting<'a> {
    /// `None` if the receiver waits for the asker, directly or through others.
    pub(crate) fn begin(asker: &'a Cell, receiver: &Cell) -> Option<Self> {
        let (me, other) = (asker.address.generation(), receiver.address.generation());
        let mut waits = asker.services.waits.lock();
        let mut at: Option<NonZeroU64> = Some(other);
        while let Some(actor) = at {
            if actor == me {
                return None;
            }
            at = waits.get(&actor).copied();
        }
        waits.insert(me, other);
        Some(Self { asker })
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.asker.services.waits.lock().remove(&self.asker.address.generation());
    }
}
