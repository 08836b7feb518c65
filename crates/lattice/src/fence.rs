//! What stops actors of a host whose session is over.

use airssys_wasm_actor::Fence;

use crate::{clock, lease};

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
