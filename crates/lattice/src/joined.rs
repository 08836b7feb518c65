//! What all handles of one host in a lattice hold.

use std::sync::Arc;

use airssys_wasm_actor::{ActorSystem, WeakActorSystem};

use crate::host::Host;

/// A host, and its system, which it does not keep alive. The host leaves when the last is dropped.
pub(crate) struct Joined<U: 'static> {
    pub(crate) host: Arc<Host>,
    pub(crate) system: WeakActorSystem<U>,
}

impl<U> Joined<U> {
    pub(crate) fn system(&self) -> Option<ActorSystem<U>> {
        self.system.upgrade()
    }
}

impl<U> Drop for Joined<U> {
    fn drop(&mut self) {
        self.host.left.cancel();
    }
}
