//! What stops actors of a host whose session is over.

use std::sync::Arc;

use airssys_wasm_actor::Fence;

use crate::{clock, lease, slots::Holdings};

/// Holds while a session does.
#[derive(Debug)]
pub(crate) struct SessionFence(lease::Fence);

impl SessionFence {
    pub(crate) fn new(fence: lease::Fence) -> Self {
        Self(fence)
    }
}

impl Fence for SessionFence {
    fn holds(&self) -> bool {
        !self.0.is_up(clock::now())
    }
}

/// Holds while a slot is this host's without a break.
#[derive(Debug)]
pub(crate) struct SlotFence {
    holdings: Arc<Holdings>,
    slot: usize,
    /// The revision of the slot's record that made it this host's.
    since: u64,
}

impl SlotFence {
    /// None if nothing may be activated in the slot.
    pub(crate) fn new(holdings: Arc<Holdings>, slot: usize) -> Option<Self> {
        let since = holdings.tenure(slot, clock::now())?;
        Some(Self { holdings, slot, since })
    }
}

impl Fence for SlotFence {
    fn holds(&self) -> bool {
        self.holdings.holds(self.slot, self.since, clock::now())
    }
}
