//! Setting, cancelling and settling reminders in a store.

use std::{
    collections::{BTreeSet, hash_map::RandomState},
    hash::BuildHasher,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use airssys_wasm_actor::ReminderError;
use bytes::Bytes;
use tokio::sync::{Mutex, MutexGuard, Notify, watch};

use super::{
    ReminderConfig,
    rows::{Own, by_actor, key},
};
use crate::{
    owner::Owned,
    store::{Durability, StateStore, StoreError, Version},
};

/// Bytes that a name may have.
const LONGEST_NAME: usize = 64;

/// Nothing is due sooner.
const SOONEST: Duration = Duration::from_secs(1);

pub(super) struct Book {
    pub(super) store: Arc<dyn StateStore>,
    /// The kind of the rows by time.
    pub(super) by_time: String,
    pub(super) config: ReminderConfig,
    owned: Owned,
    setting: watch::Sender<Setting>,
    /// One at a time changes the reminders of an actor. Actors share them, by hash.
    turns: [Mutex<()>; 64],
    hasher: RandomState,
    pub(super) progress: parking_lot::Mutex<Progress>,
    /// There is one that is due before.
    pub(super) sooner: Notify,
}

/// Which are being set.
#[derive(Default)]
struct Setting {
    next: u64,
    begun: BTreeSet<u64>,
}

/// One that is being set, until this is dropped.
struct Begun<'a> {
    book: &'a Book,
    number: u64,
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        self.book.setting.send_modify(|setting| _ = setting.begun.remove(&self.number));
    }
}

/// How far the task is, in milliseconds since 1970.
pub(super) struct Progress {
    /// All that are due before were sent once, or are being sent.
    pub(super) sent: u64,
    /// Until when it waits; it does not, if that is never.
    pub(super) waits_until: u64,
}

impl Book {
    pub(super) fn new(store: Arc<dyn StateStore>, by_time: String, owned: Owned, config: ReminderConfig) -> Self {
        Self {
            store,
            by_time,
            config,
            owned,
            setting: watch::Sender::default(),
            turns: [const { Mutex::const_new(()) }; 64],
            hasher: RandomState::new(),
            progress: parking_lot::Mutex::new(Progress { sent: 0, waits_until: u64::MAX }),
            sooner: Notify::new(),
        }
    }

    /// Milliseconds since 1970.
    pub(super) fn now(&self) -> u64 {
        let now = self.config.clock.as_ref().map_or_else(SystemTime::now, |clock| clock());
        millis(now.duration_since(UNIX_EPOCH).unwrap_or_default())
    }

    async fn turn(&self, of: &str) -> MutexGuard<'_, ()> {
        self.turns[self.hasher.hash_one(of) as usize % self.turns.len()].lock().await
    }

    pub(super) async fn set(&self, of: &str, name: &str, after: Duration, payload: Bytes) -> Result<(), ReminderError> {
        check_name(name)?;
        let (size, allowed) = (payload.len() as u64, self.config.payload.as_u64());
        if size > allowed {
            return Err(ReminderError::TooLarge { size, allowed });
        }
        // Those that wait for their turn are waited for as well.
        let _begun = self.begin();
        let _turn = self.turn(of).await;
        self.is_mine(of)?;
        let (mut own, version) = self.own(of).await.map_err(unavailable)?;
        if own.find(name).is_none() && own.0.len() >= self.config.most as usize {
            return Err(ReminderError::TooMany(self.config.most));
        }
        let allowed = self.config.most_actors;
        // Of several at once each may be the last.
        if version == Version::NONE && self.store.count(&by_actor(of)).await.map_err(unavailable)? >= allowed {
            return Err(ReminderError::Unavailable(TooManyActors { allowed }.into()));
        }
        let due = self.now().saturating_add(millis(after.max(SOONEST)));
        self.put(&key(due, of, name), payload).await.map_err(unavailable)?;
        let before = own.set(name, due);
        self.put_own(of, &own, version).await.map_err(unavailable)?;
        // Whoever has the key next may have read without it.
        self.is_mine(of)?;
        if let Some(before) = before.filter(|before| *before != due) {
            // It does not count any more, and is found again when it would have been due.
            _ = self.take(&key(before, of, name), Durability::Process).await;
        }
        let mut progress = self.progress.lock();
        // A store that took its time: the task may have been there before the row was.
        progress.sent = progress.sent.min(due);
        if due < progress.waits_until {
            self.sooner.notify_one();
        }
        Ok(())
    }

    fn is_mine(&self, of: &str) -> Result<(), ReminderError> {
        if self.owned.has(of) { Ok(()) } else { Err(ReminderError::Unavailable(NotHere.into())) }
    }

    fn begin(&self) -> Begun<'_> {
        let mut number = 0;
        self.setting.send_modify(|setting| {
            number = setting.next;
            setting.next += 1;
            setting.begun.insert(number);
        });
        Begun { book: self, number }
    }

    /// Waits until all whose setting has begun are set, or are not.
    pub(super) async fn are_set(&self) {
        let mut setting = self.setting.subscribe();
        let next = setting.borrow().next;
        // Its sender is this.
        _ = setting.wait_for(|setting| setting.begun.first().is_none_or(|first| *first >= next)).await;
    }

    pub(super) async fn cancel(&self, of: &str, name: &str) -> Result<bool, ReminderError> {
        check_name(name)?;
        let _turn = self.turn(of).await;
        let (mut own, version) = self.own(of).await.map_err(unavailable)?;
        let Some(due) = own.remove(name) else { return Ok(false) };
        self.put_own(of, &own, version).await.map_err(unavailable)?;
        _ = self.take(&key(due, of, name), Durability::Process).await;
        Ok(true)
    }

    /// Forgets all of an actor's.
    pub(super) async fn forget(&self, of: &str) -> Result<(), StoreError> {
        let _turn = self.turn(of).await;
        let (own, version) = self.own(of).await?;
        self.put_own(of, &Own::default(), version).await?;
        for (name, due) in own.0 {
            // Its payload is not to come back, although it would not count.
            self.take(&key(due, of, &name), self.config.durability).await?;
        }
        Ok(())
    }

    /// The payload of one that is due. One that does not count is taken away.
    pub(super) async fn due(&self, due: u64, of: &str, name: &str) -> Result<Option<Bytes>, StoreError> {
        let _turn = self.turn(of).await;
        let key = key(due, of, name);
        if self.own(of).await?.0.find(name) != Some(due) {
            self.take(&key, Durability::Process).await?;
            return Ok(None);
        }
        Ok(self.store.load(&self.by_time, &key).await?.map(|row| row.state))
    }

    /// It was handled. Should it have been set again meanwhile, that stays.
    pub(super) async fn settle(&self, due: u64, of: &str, name: &str) -> Result<(), StoreError> {
        let _turn = self.turn(of).await;
        let (mut own, version) = self.own(of).await?;
        if own.find(name) == Some(due) {
            own.remove(name);
            self.put_own(of, &own, version).await?;
        }
        self.take(&key(due, of, name), Durability::Process).await
    }

    async fn own(&self, of: &str) -> Result<(Own, Version), StoreError> {
        let Some(row) = self.store.load(&by_actor(of), of).await? else { return Ok((Own::default(), Version::NONE)) };
        let own = Own::decode(&row.state).ok_or_else(|| StoreError::io(Malformed))?;
        Ok((own, row.version))
    }

    async fn put_own(&self, of: &str, own: &Own, follows: Version) -> Result<(), StoreError> {
        if own.0.is_empty() {
            return self.store.remove(&by_actor(of), of, follows, self.config.durability).await;
        }
        self.store.save(&by_actor(of), of, follows, own.encode().into(), self.config.durability).await.map(|_| ())
    }

    /// Whatever was there before.
    async fn put(&self, key: &str, payload: Bytes) -> Result<(), StoreError> {
        let mut follows = Version::NONE;
        loop {
            match self.store.save(&self.by_time, key, follows, payload.clone(), self.config.durability).await {
                Err(StoreError::Fenced { found }) => follows = found,
                saved => return saved.map(|_| ()),
            }
        }
    }

    /// If it comes back after a loss of power, it does not count: the row of its actor decides.
    async fn take(&self, key: &str, durability: Durability) -> Result<(), StoreError> {
        let mut follows = Version::NONE;
        loop {
            match self.store.remove(&self.by_time, key, follows, durability).await {
                Err(StoreError::Fenced { found }) => follows = found,
                removed => return removed,
            }
        }
    }
}

/// A row was not written by this version.
#[derive(Debug, thiserror::Error)]
#[error("the reminders of an actor are malformed")]
struct Malformed;

/// The key has gone to another host.
#[derive(Debug, thiserror::Error)]
#[error("the key is not this host's any more; the reminder may be set or not")]
struct NotHere;

/// A kind has as many actors with reminders as it may have.
#[derive(Debug, thiserror::Error)]
#[error("{allowed} actors of the kind have reminders, and not more may; raise `most_actors`, or forget some")]
struct TooManyActors {
    allowed: u64,
}

fn check_name(name: &str) -> Result<(), ReminderError> {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if name.is_empty() || name.len() > LONGEST_NAME || !name.chars().all(is_allowed) {
        return Err(ReminderError::Name { len: name.len(), allowed: LONGEST_NAME });
    }
    Ok(())
}

fn unavailable(error: StoreError) -> ReminderError {
    ReminderError::Unavailable(error.into())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
