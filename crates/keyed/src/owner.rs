//! The seam to a layer that has the keys of a kind on several hosts, each key on one at a time.

use std::{fmt, sync::Arc};

use airssys_wasm_actor::Fence;
use airssys_wasm_registry::ComponentId;

/// Says which keys of a kind are this host's, where several hosts have the kind. [`KeyedSpec::with_owner`] sets one.
///
/// Keys are in parts, which go from host to host as a whole. Before a part goes, no [`fence`](Self::fence) is given for it any more,
/// and [`Keyed::passivate_part`] waits until nothing of it is in memory.
///
/// [`KeyedSpec::with_owner`]: crate::KeyedSpec::with_owner
/// [`Keyed::passivate_part`]: crate::Keyed::passivate_part
pub trait Owner: Send + Sync + 'static {
    /// The part that a name belongs to, always the same.
    fn part(&self, name: &ComponentId) -> usize;

    /// For an actor that is brought into memory now: it handles messages and saves its state only while the fence holds. `None` if
    /// none of this part may be brought into memory here. Called on the sender's thread: it must not block.
    ///
    /// A fence of a part that goes, and comes back later, must not hold again: the state in memory would be of before.
    fn fence(&self, part: usize) -> Option<Arc<dyn Fence>>;

    /// Whether a part is this host's, also while it is about to go. Until this is false, no other host reads what there is of the part.
    fn has(&self, part: usize) -> bool;
}

/// What of a kind's keys is this host's: all of them, if nobody says otherwise.
#[derive(Clone, Default)]
pub(crate) struct Owned(pub(crate) Option<Arc<dyn Owner>>);

impl Owned {
    pub(crate) fn part(&self, name: &ComponentId) -> usize {
        self.0.as_ref().map_or(0, |owner| owner.part(name))
    }

    /// The fence for an actor of a part, where it needs one; [`NotOwned`] if it may not be brought into memory.
    pub(crate) fn fence(&self, part: usize) -> Result<Option<Arc<dyn Fence>>, NotOwned> {
        match &self.0 {
            Some(owner) => owner.fence(part).map(Some).ok_or(NotOwned),
            None => Ok(None),
        }
    }

    /// The same of a name that is text.
    pub(crate) fn owns_name(&self, name: &str) -> bool {
        self.0.is_none() || ComponentId::new(name).is_ok_and(|name| self.owns(&name))
    }

    /// Whether a name is this host's, also while it is about to go.
    pub(crate) fn has(&self, name: &str) -> bool {
        let Some(owner) = &self.0 else { return true };
        ComponentId::new(name).is_ok_and(|name| owner.has(owner.part(&name)))
    }

    pub(crate) fn owns(&self, name: &ComponentId) -> bool {
        self.fence(self.part(name)).is_ok()
    }
}

/// A key is not this host's.
pub(crate) struct NotOwned;

impl fmt::Debug for Owned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Owned").field(&self.0.is_some()).finish()
    }
}
