//! The actors of a kind that are in memory, and which of them are to be saved or to leave.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use airssys_wasm_actor::KeptActor;
use airssys_wasm_registry::ActorAddress;
use parking_lot::Mutex;

/// What an actor's keeper notes for the sweep, which reads it. Times are milliseconds of the kind's clock, as of its last
/// tick: a message costs no reading of a clock.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    /// When it came into memory.
    pub(crate) since: u64,
    /// When it had its last message.
    used: AtomicU64,
    /// How many messages it has had, up to [`Self::MOST`].
    messages: AtomicU64,
    /// Those with the lowest leave when there are too many: the rank of who left last when it had its last message, and its messages.
    /// So the busy stay, until they have been without a message for longer. Of equal ones, who has been for longest.
    rank: AtomicU64,
    /// When it had the first message that is not saved; 0 if all are.
    unsaved: AtomicU64,
    /// Whether a save or a passivation was ordered and not begun.
    ordered: AtomicBool,
    /// Until when no save is ordered, since the last one failed.
    not_before: AtomicU64,
    /// The component that it runs, by the kind's count of versions.
    version: AtomicU64,
}

impl Marks {
    /// Of names that are drawn by Zipf's distribution from a million, 8,000 of which have room, 42 % of the messages find theirs
    /// asleep, and 47 % where those longest without a message leave. More than these make no difference.
    const MOST: u64 = 16;

    /// `left` is the rank of who left last.
    pub(crate) fn new(now: u64, left: u64, version: u64) -> Self {
        let (used, rank, version) = (AtomicU64::new(now), AtomicU64::new(left), AtomicU64::new(version));
        Self { since: now, used, rank, version, ..Self::default() }
    }

    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::SeqCst)
    }

    pub(crate) fn set_version(&self, version: u64) {
        self.version.store(version, Ordering::SeqCst);
    }

    /// A message is about to be handled, which changes state that is kept, or not.
    #[inline]
    pub(crate) fn touched(&self, now: u64, left: u64, is_kept: bool) {
        self.used.store(now, Ordering::Relaxed);
        // Nobody else writes it.
        let messages = (self.messages.load(Ordering::Relaxed) + 1).min(Self::MOST);
        self.messages.store(messages, Ordering::Relaxed);
        self.rank.store(left + messages, Ordering::Relaxed);
        if is_kept && self.unsaved.load(Ordering::Relaxed) == 0 {
            self.unsaved.store(now, Ordering::Relaxed);
        }
        // An order to leave is obeyed by those alone that have nothing to do.
        if self.ordered.load(Ordering::Relaxed) {
            self.ordered.store(false, Ordering::Relaxed);
        }
    }

    /// A save begins. Since when it was not saved.
    pub(crate) fn save_begins(&self) -> u64 {
        self.ordered.store(false, Ordering::Relaxed);
        self.unsaved.swap(0, Ordering::Relaxed)
    }

    /// What was ordered did not happen.
    pub(crate) fn stayed(&self) {
        self.ordered.store(false, Ordering::Relaxed);
    }

    /// A save failed and is tried again later.
    pub(crate) fn save_failed(&self, since: u64, not_before: u64) {
        self.unsaved.store(since, Ordering::Relaxed);
        self.not_before.store(not_before, Ordering::Relaxed);
    }

    /// The actor stops, and follows no more orders to save.
    pub(crate) fn ends(&self) {
        self.not_before.store(u64::MAX, Ordering::Relaxed);
    }

    /// Whatever was ordered is over: another incarnation is about to start.
    pub(crate) fn begin(&self) {
        self.save_begins();
    }

    pub(crate) fn unsaved(&self) -> Option<u64> {
        Some(self.unsaved.load(Ordering::Relaxed)).filter(|since| *since > 0)
    }
}

struct Entry {
    marks: Arc<Marks>,
    /// Of the kind's keys: see [`Owner`](crate::Owner).
    part: usize,
    /// Once it is registered.
    actor: Option<KeptActor>,
}

/// The actors in memory, by number.
#[derive(Default)]
pub(crate) struct Live {
    table: Mutex<Table>,
    /// How many there are, for who must not wait for a sweep.
    len: AtomicUsize,
    /// The highest rank of who left since there were too many.
    left: AtomicU64,
}

#[derive(Default)]
struct Table {
    entries: HashMap<u64, Entry>,
    next: u64,
}

/// What a sweep is to look for.
pub(crate) struct Sweep {
    pub(crate) now: u64,
    pub(crate) idle: u64,
    pub(crate) residency: u64,
    /// How old unsaved state may be.
    pub(crate) unsaved: Option<u64>,
    /// How many are to leave because there is no room.
    pub(crate) too_many: usize,
}

/// What a sweep found.
#[derive(Default)]
pub(crate) struct Found {
    pub(crate) save: Vec<KeptActor>,
    pub(crate) leave: Vec<KeptActor>,
    /// Those that are to make room.
    pub(crate) evict: Vec<KeptActor>,
    /// Since when the oldest unsaved state is not saved.
    pub(crate) oldest_unsaved: Option<u64>,
}

impl Live {
    /// Takes a place, unless there are so many. Its number, and how many there are now.
    pub(crate) fn reserve(&self, marks: &Arc<Marks>, part: usize, most: usize) -> Option<(u64, usize)> {
        if self.len() >= most {
            return None;
        }
        let table = &mut *self.table.lock();
        if table.entries.len() >= most {
            return None;
        }
        table.next += 1;
        table.entries.insert(table.next, Entry { marks: Arc::clone(marks), part, actor: None });
        let len = table.entries.len();
        self.len.store(len, Ordering::Relaxed);
        Some((table.next, len))
    }

    /// The actor of a place, unless it has ended already.
    pub(crate) fn fill(&self, number: u64, actor: KeptActor) {
        if let Some(entry) = self.table.lock().entries.get_mut(&number) {
            entry.actor = Some(actor);
        }
    }

    /// Whether a place has its actor.
    pub(crate) fn is_filled(&self, number: u64) -> bool {
        self.table.lock().entries.get(&number).is_some_and(|entry| entry.actor.is_some())
    }

    pub(crate) fn remove(&self, number: u64) {
        // Dropped without the lock.
        let entry = {
            let mut table = self.table.lock();
            let entry = table.entries.remove(&number);
            self.len.store(table.entries.len(), Ordering::Relaxed);
            entry
        };
        drop(entry);
    }

    pub(crate) fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    pub(crate) fn left(&self) -> u64 {
        self.left.load(Ordering::Relaxed)
    }

    /// Since when the oldest unsaved state is not saved.
    pub(crate) fn oldest_unsaved(&self) -> Option<u64> {
        self.table.lock().entries.values().filter_map(|entry| entry.marks.unsaved()).min()
    }

    /// The actor of this registration. `Some(None)` if it may be one of those that are about to be filled in.
    pub(crate) fn find(&self, address: &ActorAddress) -> Option<Option<KeptActor>> {
        let table = self.table.lock();
        let mut is_coming = false;
        for entry in table.entries.values() {
            match &entry.actor {
                Some(actor) if actor.actor().address() == address => return Some(Some(actor.clone())),
                Some(_) => {}
                None => is_coming = true,
            }
        }
        is_coming.then_some(None)
    }

    /// All, or those of a part. `None` for each that is about to be registered.
    pub(crate) fn of(&self, part: Option<usize>) -> Vec<Option<KeptActor>> {
        let table = self.table.lock();
        let of = table.entries.values().filter(|entry| part.is_none_or(|part| entry.part == part));
        of.map(|entry| entry.actor.clone()).collect()
    }

    /// Those that run an older version.
    pub(crate) fn older_than(&self, version: u64) -> Vec<(Arc<Marks>, Option<KeptActor>)> {
        let table = self.table.lock();
        let older = table.entries.values().filter(|entry| entry.marks.version() < version);
        older.map(|entry| (Arc::clone(&entry.marks), entry.actor.clone())).collect()
    }

    /// Looks at all of them: whose state is old, who has been idle, and, where there are too many, who has the lowest rank.
    pub(crate) fn sweep(&self, sweep: &Sweep) -> Found {
        let Sweep { now, idle, residency, unsaved, too_many } = *sweep;
        let mut found = Found::default();
        let mut candidates = Vec::new();
        let order = |marks: &Marks| !marks.ordered.swap(true, Ordering::Relaxed);
        let table = self.table.lock();
        for Entry { marks, actor, .. } in table.entries.values() {
            let since = marks.unsaved();
            found.oldest_unsaved = found.oldest_unsaved.into_iter().chain(since).min();
            let Some(actor) = actor else { continue };
            let may_be_saved = since.is_none() || marks.not_before.load(Ordering::Relaxed) <= now;
            let used = marks.used.load(Ordering::Relaxed);
            if may_be_saved && now.saturating_sub(marks.since) >= residency {
                if now.saturating_sub(used) >= idle {
                    if order(marks) {
                        found.leave.push(actor.clone());
                    }
                    continue;
                }
                if too_many > 0 {
                    candidates.push(((marks.rank.load(Ordering::Relaxed), used), marks, actor));
                }
            }
            let is_old = since.zip(unsaved).is_some_and(|(since, most)| now.saturating_sub(since) >= most);
            if is_old && may_be_saved && order(marks) {
                found.save.push(actor.clone());
            }
        }
        let too_many = too_many.saturating_sub(found.leave.len());
        if too_many > 0 && too_many < candidates.len() {
            candidates.select_nth_unstable_by_key(too_many, |(rank, ..)| *rank);
            candidates.truncate(too_many);
        }
        if too_many > 0 {
            let left = candidates.iter().map(|((rank, _), ..)| *rank).max();
            self.left.fetch_max(left.unwrap_or_default(), Ordering::Relaxed);
            found
                .evict
                .extend(candidates.into_iter().filter(|(_, marks, _)| order(marks)).map(|(.., actor)| actor.clone()));
        }
        found
    }
}

/// Milliseconds of a duration, at least one unless it is zero.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_is_registered_and_not_filled_in_is_not_taken_for_one_that_is_gone() {
        let (live, address) = (Live::default(), ActorAddress::elsewhere(&"cart/1".parse().unwrap(), 1));
        assert!(live.find(&address).is_none());
        let (number, len) = live.reserve(&Arc::default(), 0, 2).unwrap();
        assert_eq!(len, 1);
        assert!(live.find(&address).is_some_and(|actor| actor.is_none()));
        live.remove(number);
        assert!(live.find(&address).is_none());
    }
}
