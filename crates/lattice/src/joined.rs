//! What all handles of one host in a lattice hold.

use std::sync::Arc;

use airssys_wasm_actor::{ActorRef, ActorSystem, WeakActorSystem, registry::ComponentId};

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

/// The member of a group of this host whose turn it is, of those that are there.
pub(crate) fn member<U: Send + 'static>(
    system: &ActorSystem<U>,
    group: &ComponentId,
    turn: impl FnOnce() -> usize,
) -> Option<ActorRef> {
    let members = system.members(group).ok()?;
    let (len, turn) = (members.len(), turn());
    (0..len).find_map(|n| system.find(members[turn.wrapping_add(n) % len].id()))
}
