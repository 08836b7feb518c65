//! Who is there: names, the addresses they stand for, and groups of components under one name.

use std::{
    fmt,
    num::NonZeroU64,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
};

use dashmap::{DashMap, mapref::entry::Entry};
use parking_lot::RwLock;
use tokio::sync::broadcast;

use crate::{ComponentId, id::HashedOnce};

/// What a name stood for at some time. Cheap to clone, hash and compare.
///
/// Each registration has a generation of its own, so that the address of a component that is gone is told apart from
/// that of another which now has its name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ActorAddress {
    id: ComponentId,
    generation: NonZeroU64,
}

impl ActorAddress {
    /// The name.
    pub fn id(&self) -> &ComponentId {
        &self.id
    }

    /// The registration. Later ones have larger numbers.
    pub fn generation(&self) -> NonZeroU64 {
        self.generation
    }
}

impl fmt::Display for ActorAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.id, self.generation)
    }
}

/// All names and what takes messages for them. Cheap to clone; all clones are one registry.
pub struct ComponentRegistry<S>(Arc<Inner<S>>);

struct Inner<S> {
    entries: DashMap<ComponentId, Registered<S>, HashedOnce>,
    next_generation: AtomicU64,
    changes: broadcast::Sender<Change>,
    /// Whether anybody ever watched.
    watched: AtomicBool,
}

struct Registered<S> {
    generation: NonZeroU64,
    target: Target<S>,
}

enum Target<S> {
    Sink(Arc<S>),
    Group(Arc<Group>),
}

#[derive(Default)]
struct Group {
    members: RwLock<Vec<ComponentId>>,
    next: AtomicUsize,
}

/// Where messages for a name go.
pub(crate) enum Route<S> {
    Sink(Receiver<S>),
    /// The group's members that are registered, the one whose turn it is first.
    Group(Vec<Receiver<S>>),
}

/// A sink, and the registration it stands for.
pub(crate) struct Receiver<S> {
    pub(crate) sink: Arc<S>,
    pub(crate) generation: NonZeroU64,
}

/// The name is taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the name `{}` is taken by {holder}; deregister that first, or use `replace`", holder.id)]
#[non_exhaustive]
pub struct NameTaken {
    /// Who has it.
    pub holder: ActorAddress,
}

/// A name or an address leads nowhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ResolveError {
    /// Nobody has this name.
    #[error("nobody is registered as `{id}`")]
    Unknown {
        /// The name.
        id: ComponentId,
    },
    /// Somebody else has the name now.
    #[error("{stale} is gone, and its name belongs to {current} now; look the name up again")]
    Stale {
        /// The address that was used.
        stale: ActorAddress,
        /// Who has the name.
        current: ActorAddress,
    },
    /// The name is that of a group, and a component was asked for.
    #[error("`{id}` is a group, not a component")]
    IsGroup {
        /// The name.
        id: ComponentId,
    },
}

/// A group cannot be changed that way.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GroupError {
    /// There is no group of this name.
    #[error("there is no group `{id}`; make it by `create_group`")]
    NoGroup {
        /// The name.
        id: ComponentId,
    },
    /// It is a member already.
    #[error("`{member}` is a member of `{group}` already")]
    AlreadyMember {
        /// The group.
        group: ComponentId,
        /// The member.
        member: ComponentId,
    },
    /// It is no member.
    #[error("`{member}` is not a member of `{group}`")]
    NotAMember {
        /// The group.
        group: ComponentId,
        /// Who is not its member.
        member: ComponentId,
    },
}

/// What changed in a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change {
    /// A component or a group was registered.
    Registered(ActorAddress),
    /// Another sink stands behind the same address.
    Replaced(ActorAddress),
    /// A component or a group is gone.
    Deregistered(ActorAddress),
    /// A component joined a group.
    Joined {
        /// The group.
        group: ComponentId,
        /// Its new member.
        member: ComponentId,
    },
    /// A component left a group.
    Left {
        /// The group.
        group: ComponentId,
        /// Its former member.
        member: ComponentId,
    },
}

/// Names that a new registry has room for, in some 100 kB: growing under a lock is a good part of what registering costs.
const ROOM: usize = 1_024;

/// Changes that a watcher may lag behind before it is told that it missed some.
const WATCH_CAPACITY: usize = 1_024;

impl<S> Clone for ComponentRegistry<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S> fmt::Debug for ComponentRegistry<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ComponentRegistry").field("len", &self.len()).finish_non_exhaustive()
    }
}

impl<S> Default for ComponentRegistry<S> {
    fn default() -> Self {
        Self::new()
    }
}

impl<S> ComponentRegistry<S> {
    /// An empty registry.
    pub fn new() -> Self {
        Self(Arc::new(Inner {
            entries: DashMap::with_capacity_and_hasher(ROOM, HashedOnce),
            next_generation: AtomicU64::new(1),
            changes: broadcast::Sender::new(WATCH_CAPACITY),
            watched: AtomicBool::new(false),
        }))
    }

    /// Gives a name to a sink.
    ///
    /// # Errors
    ///
    /// [`NameTaken`], which names the holder.
    pub fn register(&self, id: &ComponentId, sink: Arc<S>) -> Result<ActorAddress, NameTaken> {
        self.insert(id, |_| Target::Sink(sink))
    }

    /// Gives a name to a sink that is to know its own address. It is made while the name is being registered, and must not
    /// turn to the registry meanwhile.
    ///
    /// # Errors
    ///
    /// [`NameTaken`], which names the holder. Then no sink is made.
    pub fn register_with(
        &self,
        id: &ComponentId,
        make: impl FnOnce(&ActorAddress) -> Arc<S>,
    ) -> Result<ActorAddress, NameTaken> {
        self.insert(id, |address| Target::Sink(make(address)))
    }

    /// Makes an empty group. Messages for its name go to its members in turn.
    ///
    /// # Errors
    ///
    /// [`NameTaken`], which names the holder.
    pub fn create_group(&self, id: &ComponentId) -> Result<ActorAddress, NameTaken> {
        self.insert(id, |_| Target::Group(Arc::default()))
    }

    fn insert(
        &self,
        id: &ComponentId,
        target: impl FnOnce(&ActorAddress) -> Target<S>,
    ) -> Result<ActorAddress, NameTaken> {
        match self.0.entries.entry(id.clone()) {
            Entry::Occupied(taken) => {
                let holder = ActorAddress { id: id.clone(), generation: taken.get().generation };
                Err(NameTaken { holder })
            }
            Entry::Vacant(vacant) => {
                let number = self.0.next_generation.fetch_add(1, Ordering::Relaxed);
                let generation = NonZeroU64::new(number).expect("it would take centuries to come round");
                let address = ActorAddress { id: id.clone(), generation };
                let entry = vacant.insert(Registered { generation, target: target(&address) });
                // Under the entry's lock, so that watchers see the changes of a name in their order.
                self.tell(|| Change::Registered(address.clone()));
                drop(entry);
                Ok(address)
            }
        }
    }

    /// Puts another sink behind an address, and gives back the one before. The address stays as it is.
    ///
    /// # Errors
    ///
    /// [`ResolveError`] when the address is gone, or that of a group.
    pub fn replace(&self, address: &ActorAddress, sink: Arc<S>) -> Result<Arc<S>, ResolveError> {
        let Some(mut entry) = self.0.entries.get_mut(&address.id) else {
            return Err(ResolveError::Unknown { id: address.id.clone() });
        };
        check_generation(address, entry.generation)?;
        let Target::Sink(current) = &mut entry.target else {
            return Err(ResolveError::IsGroup { id: address.id.clone() });
        };
        let before = std::mem::replace(current, sink);
        self.tell(|| Change::Replaced(address.clone()));
        Ok(before)
    }

    /// Takes a name away from a component or a group. Groups that a component is a member of skip it from now on.
    ///
    /// # Errors
    ///
    /// [`ResolveError`] when the address is gone.
    pub fn deregister(&self, address: &ActorAddress) -> Result<(), ResolveError> {
        match self.0.entries.entry(address.id.clone()) {
            Entry::Vacant(_) => Err(ResolveError::Unknown { id: address.id.clone() }),
            Entry::Occupied(entry) => {
                check_generation(address, entry.get().generation)?;
                self.tell(|| Change::Deregistered(address.clone()));
                let removed = entry.remove();
                // A sink may do anything when it is dropped, and does it after the lock is gone.
                drop(removed);
                Ok(())
            }
        }
    }

    /// The address that a name stands for now.
    pub fn lookup(&self, id: &ComponentId) -> Option<ActorAddress> {
        let entry = self.0.entries.get(id)?;
        Some(ActorAddress { id: entry.key().clone(), generation: entry.generation })
    }

    /// Whether anybody has this name.
    pub fn exists(&self, id: &ComponentId) -> bool {
        self.0.entries.contains_key(id)
    }

    /// The sink behind an address.
    ///
    /// # Errors
    ///
    /// [`ResolveError`] when the address is gone, or that of a group.
    pub fn resolve(&self, address: &ActorAddress) -> Result<Arc<S>, ResolveError> {
        let Some(entry) = self.0.entries.get(&address.id) else {
            return Err(ResolveError::Unknown { id: address.id.clone() });
        };
        check_generation(address, entry.generation)?;
        match &entry.target {
            Target::Sink(sink) => Ok(Arc::clone(sink)),
            Target::Group(_) => Err(ResolveError::IsGroup { id: address.id.clone() }),
        }
    }

    /// Where messages for a name go now. A group's turn moves on.
    pub(crate) fn route(&self, id: &ComponentId) -> Option<Route<S>> {
        let group = match &*self.0.entries.get(id)? {
            Registered { target: Target::Sink(sink), generation } => {
                return Some(Route::Sink(Receiver { sink: Arc::clone(sink), generation: *generation }));
            }
            Registered { target: Target::Group(group), .. } => Arc::clone(group),
        };
        // The group's own entry is let go before its members' are looked at: two locks of the map could wait for each
        // other.
        let mut members = group.members.read().clone();
        if !members.is_empty() {
            let turn = group.next.fetch_add(1, Ordering::Relaxed) % members.len();
            members.rotate_left(turn);
        }
        let receivers = members.iter().filter_map(|member| match &*self.0.entries.get(member)? {
            Registered { target: Target::Sink(sink), generation } => {
                Some(Receiver { sink: Arc::clone(sink), generation: *generation })
            }
            Registered { target: Target::Group(_), .. } => None,
        });
        Some(Route::Group(receivers.collect()))
    }

    /// What takes the next message for a name: a component's sink, or those of a group's members, the one whose turn it is
    /// first. Empty when nobody has the name.
    pub fn sinks(&self, id: &ComponentId) -> Vec<Arc<S>> {
        match self.route(id) {
            None => Vec::new(),
            Some(Route::Sink(receiver)) => vec![receiver.sink],
            Some(Route::Group(receivers)) => receivers.into_iter().map(|receiver| receiver.sink).collect(),
        }
    }

    /// All addresses, in no order. Those that come and go meanwhile may be in it or not.
    pub fn list(&self) -> Vec<ActorAddress> {
        let address = |entry: dashmap::mapref::multiple::RefMulti<'_, ComponentId, Registered<S>>| ActorAddress {
            id: entry.key().clone(),
            generation: entry.generation,
        };
        self.0.entries.iter().map(address).collect()
    }

    /// How many names there are.
    pub fn len(&self) -> usize {
        self.0.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.entries.is_empty()
    }

    /// All changes from now on, those of each name in their order. A watcher that lags more than a thousand changes
    /// behind is told how many it missed.
    pub fn watch(&self) -> broadcast::Receiver<Change> {
        self.0.watched.store(true, Ordering::Relaxed);
        self.0.changes.subscribe()
    }

    fn tell(&self, change: impl FnOnce() -> Change) {
        if self.0.watched.load(Ordering::Relaxed) {
            // Fails when nobody watches any more.
            let _ = self.0.changes.send(change());
        }
    }

    /// Makes a component a member of a group. It need not be registered yet: whoever has its name when a message comes
    /// is the member.
    ///
    /// # Errors
    ///
    /// [`GroupError`] when there is no such group, or it is a member already.
    pub fn join(&self, group: &ComponentId, member: &ComponentId) -> Result<(), GroupError> {
        let members = self.group(group)?;
        let mut members = members.members.write();
        if members.contains(member) {
            return Err(GroupError::AlreadyMember { group: group.clone(), member: member.clone() });
        }
        members.push(member.clone());
        self.tell(|| Change::Joined { group: group.clone(), member: member.clone() });
        Ok(())
    }

    /// Ends a membership.
    ///
    /// # Errors
    ///
    /// [`GroupError`] when there is no such group or member.
    pub fn leave(&self, group: &ComponentId, member: &ComponentId) -> Result<(), GroupError> {
        let members = self.group(group)?;
        let mut members = members.members.write();
        let Some(at) = members.iter().position(|known| known == member) else {
            return Err(GroupError::NotAMember { group: group.clone(), member: member.clone() });
        };
        members.remove(at);
        self.tell(|| Change::Left { group: group.clone(), member: member.clone() });
        Ok(())
    }

    /// The members of a group, registered or not, in the order they joined.
    ///
    /// # Errors
    ///
    /// [`GroupError::NoGroup`].
    pub fn members(&self, group: &ComponentId) -> Result<Vec<ComponentId>, GroupError> {
        Ok(self.group(group)?.members.read().clone())
    }

    fn group(&self, id: &ComponentId) -> Result<Arc<Group>, GroupError> {
        match self.0.entries.get(id).as_deref() {
            Some(Registered { target: Target::Group(group), .. }) => Ok(Arc::clone(group)),
            _ => Err(GroupError::NoGroup { id: id.clone() }),
        }
    }
}

fn check_generation(address: &ActorAddress, current: NonZeroU64) -> Result<(), ResolveError> {
    if address.generation == current {
        return Ok(());
    }
    let current = ActorAddress { id: address.id.clone(), generation: current };
    Err(ResolveError::Stale { stale: address.clone(), current })
}
