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
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

use crate::{
    ComponentId,
    id::{HashedOnce, Name},
};

/// What a name stood for at some time. Cheap to clone, hash and compare.
///
/// Each registration has a generation of its own, so that the address of a component that is gone is told apart from
/// that of another which now has its name.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
// Behind one pointer, because each message between actors has one.
pub struct ActorAddress(Arc<Registration>);

#[derive(PartialEq, Eq, Hash, Serialize, Deserialize)]
struct Registration {
    generation: NonZeroU64,
    id: ComponentId,
}

/// What no registry counts up to.
const ELSEWHERE: u64 = 1 << 63;

impl ActorAddress {
    fn new(id: &ComponentId, generation: NonZeroU64) -> Self {
        Self(Arc::new(Registration { generation, id: id.clone() }))
    }

    /// Of somebody on another host, by a number that tells it apart from others there. It leads nowhere on this one, and equals
    /// no address of a registry.
    pub fn elsewhere(id: &ComponentId, number: u64) -> Self {
        Self::new(id, NonZeroU64::new(number | ELSEWHERE).unwrap_or(NonZeroU64::MAX))
    }

    /// Whether it is of somebody on another host.
    pub fn is_elsewhere(&self) -> bool {
        self.generation().get() & ELSEWHERE != 0
    }

    /// The name.
    pub fn id(&self) -> &ComponentId {
        &self.0.id
    }

    /// The registration. Later ones have larger numbers.
    pub fn generation(&self) -> NonZeroU64 {
        self.0.generation
    }
}

impl fmt::Debug for ActorAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ActorAddress").field("id", self.id()).field("generation", &self.generation()).finish()
    }
}

impl fmt::Display for ActorAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.id(), self.generation())
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
    address: ActorAddress,
    /// The address's, so that a message for a name does not read that.
    generation: NonZeroU64,
    target: Target<S>,
}

enum Target<S> {
    Sink {
        sink: Arc<S>,
        /// Groups to leave when it is gone.
        groups: Vec<ComponentId>,
    },
    Group(Arc<Group>),
}

/// A group. Its members are looked up when they are sent to, so that its lock and a member's are never held together.
struct Group {
    members: RwLock<Arc<[ActorAddress]>>,
    next: AtomicUsize,
}

impl Default for Group {
    fn default() -> Self {
        Self { members: RwLock::new(Arc::from([])), next: AtomicUsize::new(0) }
    }
}

impl Group {
    fn remove(&self, member: NonZeroU64) -> bool {
        let mut members = self.members.write();
        let before = members.len();
        *members = members.iter().filter(|known| known.generation() != member).cloned().collect();
        members.len() < before
    }
}

/// Where messages for a name go.
pub(crate) enum Route<'a, S> {
    Sink(Receiver<S>),
    Group(Turns<'a, S>),
}

/// The members of a group, the one whose turn it is first.
pub(crate) struct Turns<'a, S> {
    registry: &'a ComponentRegistry<S>,
    members: Arc<[ActorAddress]>,
    first: usize,
    done: usize,
}

impl<S> Iterator for Turns<'_, S> {
    type Item = Receiver<S>;

    fn next(&mut self) -> Option<Receiver<S>> {
        while self.done < self.members.len() {
            let member = &self.members[(self.first + self.done) % self.members.len()];
            self.done += 1;
            // One that is gone is about to leave.
            if let Ok(sink) = self.registry.resolve(member) {
                return Some(Receiver { sink, generation: member.generation() });
            }
        }
        None
    }
}

/// A sink, and the registration it stands for.
pub(crate) struct Receiver<S> {
    pub(crate) sink: Arc<S>,
    pub(crate) generation: NonZeroU64,
}

/// The name is taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the name `{}` is taken by {holder}", holder.id())]
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
    #[error("there is no group `{id}`")]
    NoGroup {
        /// The name.
        id: ComponentId,
    },
    /// A component has the name.
    #[error("`{}` is a component, not a group", holder.id())]
    IsComponent {
        /// The component.
        holder: ActorAddress,
    },
    /// Nobody has the member's name, or a group has it.
    #[error("nobody is registered as `{member}`; register it before it joins `{group}`")]
    NobodyThere {
        /// The group.
        group: ComponentId,
        /// Who was to join.
        member: ComponentId,
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
        self.insert(id, |_| Target::Sink { sink, groups: Vec::new() })
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
        self.insert(id, |address| Target::Sink { sink: make(address), groups: Vec::new() })
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
            Entry::Occupied(taken) => Err(NameTaken { holder: taken.get().address.clone() }),
            Entry::Vacant(vacant) => {
                let number = self.0.next_generation.fetch_add(1, Ordering::Relaxed);
                let generation = NonZeroU64::new(number).expect("it would take centuries to come round");
                let address = ActorAddress::new(id, generation);
                let target = target(&address);
                let entry = vacant.insert(Registered { address: address.clone(), generation, target });
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
        let Some(mut entry) = self.0.entries.get_mut(address.id()) else {
            return Err(ResolveError::Unknown { id: address.id().clone() });
        };
        check_generation(address, &entry)?;
        let Target::Sink { sink: current, .. } = &mut entry.target else {
            return Err(ResolveError::IsGroup { id: address.id().clone() });
        };
        let before = std::mem::replace(current, sink);
        self.tell(|| Change::Replaced(address.clone()));
        Ok(before)
    }

    /// Takes a name away from a component or a group. A component leaves its groups.
    ///
    /// # Errors
    ///
    /// [`ResolveError`] when the address is gone.
    pub fn deregister(&self, address: &ActorAddress) -> Result<(), ResolveError> {
        match self.0.entries.entry(address.id().clone()) {
            Entry::Vacant(_) => Err(ResolveError::Unknown { id: address.id().clone() }),
            Entry::Occupied(entry) => {
                check_generation(address, entry.get())?;
                self.tell(|| Change::Deregistered(address.clone()));
                let removed = entry.remove();
                if let Target::Sink { groups, .. } = &removed.target {
                    groups.iter().for_each(|group| self.quit(group, address));
                }
                // A sink may do anything when it is dropped, and does it after the lock is gone.
                drop(removed);
                Ok(())
            }
        }
    }

    /// The address that a name stands for now.
    pub fn lookup(&self, name: &(impl Name + ?Sized)) -> Option<ActorAddress> {
        Some(name.entry(&self.0.entries)?.address.clone())
    }

    /// Whether anybody has this name.
    pub fn exists(&self, name: &(impl Name + ?Sized)) -> bool {
        name.entry(&self.0.entries).is_some()
    }

    /// The sink that has a name. `None` also if the name is that of a group.
    pub fn find(&self, name: &(impl Name + ?Sized)) -> Option<Arc<S>> {
        match &name.entry(&self.0.entries)?.target {
            Target::Sink { sink, .. } => Some(Arc::clone(sink)),
            Target::Group(_) => None,
        }
    }

    /// The sink behind an address.
    ///
    /// # Errors
    ///
    /// [`ResolveError`] when the address is gone, or that of a group.
    pub fn resolve(&self, address: &ActorAddress) -> Result<Arc<S>, ResolveError> {
        let Some(entry) = self.0.entries.get(address.id()) else {
            return Err(ResolveError::Unknown { id: address.id().clone() });
        };
        check_generation(address, &entry)?;
        match &entry.target {
            Target::Sink { sink, .. } => Ok(Arc::clone(sink)),
            Target::Group(_) => Err(ResolveError::IsGroup { id: address.id().clone() }),
        }
    }

    /// Where messages for a name go now. A group's turn moves on.
    pub(crate) fn route(&self, name: &(impl Name + ?Sized)) -> Option<Route<'_, S>> {
        let group = match &*name.entry(&self.0.entries)? {
            Registered { target: Target::Sink { sink, .. }, generation, .. } => {
                return Some(Route::Sink(Receiver { sink: Arc::clone(sink), generation: *generation }));
            }
            Registered { target: Target::Group(group), .. } => Arc::clone(group),
        };
        let members = Arc::clone(&group.members.read());
        let turn = group.next.fetch_add(1, Ordering::Relaxed);
        let first = turn.checked_rem(members.len()).unwrap_or(0);
        Some(Route::Group(Turns { registry: self, members, first, done: 0 }))
    }

    /// What takes the next message for a name: a component's sink, or those of a group's members, the one whose turn it is
    /// first. Members are looked up as the iterator comes to them. Empty when the name is not registered.
    pub fn sinks(&self, name: &(impl Name + ?Sized)) -> impl Iterator<Item = Arc<S>> {
        let (one, group) = match self.route(name) {
            None => (None, None),
            Some(Route::Sink(receiver)) => (Some(receiver), None),
            Some(Route::Group(turns)) => (None, Some(turns)),
        };
        one.into_iter().chain(group.into_iter().flatten()).map(|receiver| receiver.sink)
    }

    /// All addresses, in no order. Those that come and go meanwhile may be in it or not.
    pub fn list(&self) -> Vec<ActorAddress> {
        self.0.entries.iter().map(|entry| entry.address.clone()).collect()
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
            // Fails without a watcher.
            let _ = self.0.changes.send(change());
        }
    }

    /// Makes a component a member of a group, which is made if there is none. It is a member until it leaves or is gone.
    ///
    /// # Errors
    ///
    /// [`GroupError`] when nobody has the member's name, a component has the group's, or it is a member already.
    pub fn join(&self, group: &ComponentId, member: &ComponentId) -> Result<(), GroupError> {
        let nobody = || GroupError::NobodyThere { group: group.clone(), member: member.clone() };
        let address = match self.0.entries.get(member).as_deref() {
            Some(Registered { target: Target::Sink { .. }, address, .. }) => address.clone(),
            _ => return Err(nobody()),
        };
        let joined = match self.create_group(group) {
            Ok(_) => self.group(group),
            Err(NameTaken { holder }) => match self.group(group) {
                Err(GroupError::NoGroup { .. }) => Err(GroupError::IsComponent { holder }),
                group => group,
            },
        }?;
        {
            let mut members = joined.members.write();
            if members.contains(&address) {
                return Err(GroupError::AlreadyMember { group: group.clone(), member: member.clone() });
            }
            *members = members.iter().cloned().chain([address.clone()]).collect();
            self.tell(|| Change::Joined { group: group.clone(), member: member.clone() });
        }
        // Once it is in: from now on `deregister` makes it leave. A `leave` at the same time leaves the group on the list of one
        // that is no member, which does no harm.
        if let Some(Registered { target: Target::Sink { groups, .. }, address: now, .. }) =
            self.0.entries.get_mut(member).as_deref_mut()
            && *now == address
        {
            if !groups.contains(group) {
                groups.push(group.clone());
            }
            return Ok(());
        }
        // It was taken away meanwhile.
        self.quit(group, &address);
        Err(nobody())
    }

    /// Ends a membership. The group stays, also without members.
    ///
    /// # Errors
    ///
    /// [`GroupError`] when there is no such group or member.
    pub fn leave(&self, group: &ComponentId, member: &ComponentId) -> Result<(), GroupError> {
        let known = self.group(group)?;
        // Of two registrations the later: the other is gone, and about to leave.
        let address = known.members.read().iter().rfind(|known| known.id() == member).cloned();
        let Some(address) = address else {
            return Err(GroupError::NotAMember { group: group.clone(), member: member.clone() });
        };
        if let Some(Registered { target: Target::Sink { groups, .. }, address: now, .. }) =
            self.0.entries.get_mut(member).as_deref_mut()
            && *now == address
        {
            groups.retain(|known| known != group);
        }
        self.quit(group, &address);
        Ok(())
    }

    fn quit(&self, group: &ComponentId, member: &ActorAddress) {
        if let Ok(known) = self.group(group)
            && known.remove(member.generation())
        {
            self.tell(|| Change::Left { group: group.clone(), member: member.id().clone() });
        }
    }

    /// The members of a group, in the order they joined.
    ///
    /// # Errors
    ///
    /// [`GroupError::NoGroup`].
    pub fn members(&self, group: &ComponentId) -> Result<Vec<ActorAddress>, GroupError> {
        Ok(self.group(group)?.members.read().to_vec())
    }

    /// All groups, in no order.
    pub fn groups(&self) -> Vec<ActorAddress> {
        let is_group = |registered: &Registered<S>| matches!(registered.target, Target::Group(_));
        let entries = self.0.entries.iter().filter(|entry| is_group(entry.value()));
        entries.map(|entry| entry.address.clone()).collect()
    }

    /// Takes a group away. Its members stay registered.
    ///
    /// # Errors
    ///
    /// [`GroupError::NoGroup`].
    pub fn remove_group(&self, group: &ComponentId) -> Result<(), GroupError> {
        match self.0.entries.entry(group.clone()) {
            Entry::Occupied(entry) if matches!(entry.get().target, Target::Group(_)) => {
                let address = entry.get().address.clone();
                self.tell(|| Change::Deregistered(address));
                drop(entry.remove());
                Ok(())
            }
            _ => Err(GroupError::NoGroup { id: group.clone() }),
        }
    }

    fn group(&self, id: &ComponentId) -> Result<Arc<Group>, GroupError> {
        match self.0.entries.get(id).as_deref() {
            Some(Registered { target: Target::Group(group), .. }) => Ok(Arc::clone(group)),
            _ => Err(GroupError::NoGroup { id: id.clone() }),
        }
    }
}

fn check_generation<S>(address: &ActorAddress, current: &Registered<S>) -> Result<(), ResolveError> {
    if address.generation() == current.generation {
        return Ok(());
    }
    Err(ResolveError::Stale { stale: address.clone(), current: current.address.clone() })
}
