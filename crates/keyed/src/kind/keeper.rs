//! The keeper of one actor in memory: its row, and what is known of it.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use airssys_wasm_actor::{Fence, KeepError, Keeper, StartError};
use airssys_wasm_registry::ComponentId;
use blake3::Hash;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::{sync::OwnedSemaphorePermit, time::sleep};

use crate::{
    Saved, StoreError, Version,
    kind::{
        core::{Core, RETRY, Use, count},
        live::Marks,
    },
};

/// Between two attempts at a last save, at the least: twice as long each time, up to [`RETRY`].
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);

/// Removals of a row that others write at the same time.
const ATTEMPTS: usize = 16;

pub(crate) struct KeyKeeper {
    core: Arc<Core>,
    id: ComponentId,
    marks: Arc<Marks>,
    /// Its place among those in memory.
    number: u64,
    /// Where the key may become another host's.
    fence: Option<Arc<dyn Fence>>,
    row: Row,
    /// Held until the first incarnation has started.
    permit: Option<OwnedSemaphorePermit>,
    is_activated: bool,
    /// The version that it runs. [`Marks`] have the one that it is to run.
    running: u64,
}

/// What is known of the row.
#[derive(Default)]
struct Row {
    version: Version,
    /// The state that is there.
    state: Option<Hash>,
    /// The state of an incarnation that was given none.
    fresh: Option<Hash>,
    /// What the last write has left, if it is not known whether it was carried out.
    unsure: Option<Option<Hash>>,
    /// Whether what is there may be lost, though it can be read, or become another: the last write of it was not acknowledged.
    is_loose: bool,
}

impl KeyKeeper {
    pub(crate) fn new(
        core: &Arc<Core>,
        id: ComponentId,
        marks: Arc<Marks>,
        number: u64,
        fence: Option<Arc<dyn Fence>>,
    ) -> Self {
        core.metrics.live.increment(1);
        let (row, permit, running) = (Row::default(), None, marks.version());
        Self { core: Arc::clone(core), id, marks, number, fence, row, permit, is_activated: false, running }
    }

    /// Whether the key may be another host's by now.
    fn is_fenced(&self) -> bool {
        self.fence.as_ref().is_some_and(|fence| !fence.holds())
    }

    fn key(&self) -> &str {
        &self.id.as_str()[self.core.kind.as_str().len() + 1..]
    }

    /// Reads the row.
    async fn read(&mut self) -> Result<Option<Bytes>, StoreError> {
        let found = self.core.store.load(self.core.kind.as_str(), self.key()).await?;
        let (version, state) = match found {
            Some(Saved { version, state }) => (version, Some(state)),
            None => (Version::NONE, None),
        };
        let hash = state.as_ref().map(|state| blake3::hash(state));
        if self.row.unsure.is_some() {
            self.count_rows(self.row.state, hash);
        }
        self.core.store_answered(Use::Read, None);
        self.row = Row { version, state: hash, unsure: None, ..self.row };
        Ok(state)
    }

    /// Finds out whether the last write was carried out. Where the row has another state, that may be of a write before it, which
    /// came late: the store knows, and takes the next write or does not.
    async fn make_sure(&mut self) -> Result<(), StoreError> {
        let Some(attempted) = self.row.unsure else { return Ok(()) };
        let found = self.core.store.load(self.core.kind.as_str(), self.key()).await?;
        self.core.store_answered(Use::Read, None);
        let state = found.as_ref().map(|row| blake3::hash(&row.state));
        let version = found.map_or(Version::NONE, |row| row.version);
        if version != self.row.version && state == attempted {
            self.count_rows(self.row.state, state);
            self.row = Row { version, state, unsure: None, ..self.row };
        }
        Ok(())
    }

    /// Writes the row, or removes it.
    async fn write(&mut self, state: Option<(Hash, Bytes)>) -> Result<(), StoreError> {
        let Core { kind, store, options, .. } = &*self.core;
        let follows = self.row.version;
        // What is on its way when the fence falls is refused by the store, if another has written since.
        if self.is_fenced() {
            return Err(StoreError::Fenced { found: follows });
        }
        let hash = state.as_ref().map(|(hash, _)| *hash);
        let written = match state {
            Some((_, state)) => store.save(kind.as_str(), self.key(), follows, state, options.durability).await,
            None => store.remove(kind.as_str(), self.key(), follows, options.durability).await.map(|()| Version::NONE),
        };
        match written {
            Ok(version) => {
                self.count_rows(self.row.state, hash);
                self.row = Row { version, state: hash, fresh: self.row.fresh, ..Row::default() };
                self.core.store_answered(Use::Write, None);
                Ok(())
            }
            Err(error) => {
                if !matches!(error, StoreError::Fenced { .. } | StoreError::TooLarge { .. } | StoreError::Closed) {
                    (self.row.unsure, self.row.is_loose) = (Some(hash), true);
                }
                Err(error)
            }
        }
    }

    fn count_rows(&self, before: Option<Hash>, after: Option<Hash>) {
        match (before, after) {
            (None, Some(_)) => self.core.row_made(),
            (Some(_), None) => self.core.row_removed(),
            _ => {}
        }
    }

    async fn keep(&mut self, state: Bytes) -> Result<(), StoreError> {
        let allowed = self.core.options.state.as_u64();
        if state.len() as u64 > allowed {
            return Err(StoreError::TooLarge { size: state.len() as u64, allowed });
        }
        self.make_sure().await?;
        let hash = blake3::hash(&state);
        let wanted = (self.row.fresh != Some(hash)).then_some((hash, state));
        if !self.row.is_loose && self.row.state == wanted.as_ref().map(|(hash, _)| *hash) {
            count!(self.core, unchanged);
            return Ok(());
        }
        self.write(wanted).await?;
        count!(self.core, saves);
        Ok(())
    }

    /// Whoever has written the row: removes what is there.
    async fn remove(&mut self) -> Result<(), StoreError> {
        for _ in 1..ATTEMPTS {
            self.read().await?;
            match self.write(None).await {
                Err(StoreError::Fenced { .. }) => {}
                removed => return removed,
            }
        }
        self.read().await?;
        self.write(None).await
    }

    /// What the actor is told of an error of the store's.
    fn told(&self, to: Use, error: StoreError) -> KeepError {
        match error {
            StoreError::Fenced { .. } => KeepError::Fenced,
            StoreError::TooLarge { .. } => KeepError::Refused(error.into()),
            error => {
                let error = Arc::new(error);
                self.core.store_answered(to, Some(&error));
                KeepError::Unavailable(error.into())
            }
        }
    }

    async fn activated(&mut self) -> Result<Option<Bytes>, KeepError> {
        // Who forgets the key finds it in memory from here on, or is waited for.
        while !self.core.live.is_filled(self.number) {
            tokio::task::yield_now().await;
        }
        self.core.forgetting.over(self.key()).await;
        if !self.is_activated && self.permit.is_none() {
            let starts = Arc::clone(&self.core.starts);
            self.permit = match Arc::clone(&starts).try_acquire_owned() {
                Ok(permit) => Some(permit),
                Err(_) => {
                    let _waiting = Waiting::new(&self.core);
                    // Never closed.
                    starts.acquire_owned().await.ok()
                }
            };
        }
        if self.is_fenced() {
            return Err(KeepError::Fenced);
        }
        self.marks.begin();
        self.row.fresh = None;
        let state = self.read().await.map_err(|error| self.told(Use::Read, error))?;
        // Whoever is in memory was admitted.
        if state.is_none() && !self.is_activated && self.core.rows() >= self.core.options.most_keys {
            return Err(KeepError::Refused(TooManyKeys { allowed: self.core.options.most_keys }.into()));
        }
        Ok(state)
    }
}

/// Counts a state that is lost, also where the actor is killed while it is saved.
struct Unsaved(Option<Arc<Core>>);

impl Drop for Unsaved {
    fn drop(&mut self) {
        if let Some(core) = &self.0 {
            count!(core, not_saved);
        }
    }
}

/// A kind has as many keys with state as it may have.
#[derive(Debug, thiserror::Error)]
#[error("the kind has {allowed} keys with state, and may not have more; raise `most_keys`, or forget some")]
struct TooManyKeys {
    allowed: u64,
}

/// One that waits for its start.
struct Waiting<'a>(&'a Core);

impl<'a> Waiting<'a> {
    fn new(core: &'a Core) -> Self {
        core.counts.waiting.fetch_add(1, Ordering::Relaxed);
        core.metrics.waiting.increment(1);
        Self(core)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.counts.waiting.fetch_sub(1, Ordering::Relaxed);
        self.0.metrics.waiting.decrement(1);
    }
}

impl Keeper for KeyKeeper {
    fn load(&mut self) -> BoxFuture<'_, Result<Option<Bytes>, KeepError>> {
        Box::pin(self.activated())
    }

    fn save(&mut self, state: Bytes) -> BoxFuture<'_, Result<(), KeepError>> {
        Box::pin(async move {
            let since = self.marks.save_begins();
            match self.keep(state).await {
                Ok(()) => Ok(()),
                Err(error) => {
                    count!(self.core, not_saved);
                    let error = self.told(Use::Write, error);
                    if let KeepError::Unavailable(_) = error {
                        let now = self.core.now();
                        self.marks.save_failed(if since == 0 { now } else { since }, now + RETRY);
                    }
                    Err(error)
                }
            }
        })
    }

    fn save_last(&mut self, state: Bytes) -> BoxFuture<'_, Result<(), KeepError>> {
        Box::pin(async move {
            self.marks.ends();
            let mut unsaved = Unsaved(Some(Arc::clone(&self.core)));
            let mut pause = SHORTEST_PAUSE;
            loop {
                let Err(error) = self.keep(state.clone()).await else {
                    unsaved.0 = None;
                    return Ok(());
                };
                let is_for_good = matches!(error, StoreError::Closed);
                match self.told(Use::Write, error) {
                    KeepError::Unavailable(_) if !is_for_good => sleep(pause).await,
                    error => return Err(error),
                }
                pause = (2 * pause).min(Duration::from_millis(RETRY));
            }
        })
    }

    fn not_given(&mut self) {
        self.marks.save_begins();
    }

    fn stayed(&mut self) {
        self.marks.stayed();
    }

    fn forget(&mut self) -> BoxFuture<'_, Result<(), KeepError>> {
        Box::pin(async move {
            self.remove().await.map_err(|error| self.told(Use::Write, error))?;
            self.marks.save_begins();
            Ok(())
        })
    }

    fn started(&mut self) -> bool {
        self.permit = None;
        if !std::mem::replace(&mut self.is_activated, true) {
            count!(self.core, activations);
            self.core.quarantine.lock().succeeded(tokio::time::Instant::now());
        }
        self.row.state.is_none()
    }

    fn fresh(&mut self, state: Bytes) {
        self.row.fresh = Some(blake3::hash(&state));
    }

    fn touched(&mut self) {
        let core = &self.core;
        self.marks.touched(core.now(), core.live.left(), core.keeps.load(Ordering::Relaxed));
    }

    fn saves_each_message(&self) -> bool {
        matches!(self.core.options.save, crate::SaveWhen::EachMessage)
    }

    fn not_activated(&mut self, error: &Arc<StartError>) {
        self.core.not_activated(&self.id, error, self.row.state.is_some());
    }

    fn upgraded(&mut self) {
        self.row.fresh = None;
        self.running = self.marks.version();
    }

    fn rolled_back(&mut self) {
        // It went back by itself; so do all the others, unless the kind has another version by now.
        if self.core.failed_version.fetch_max(self.running, Ordering::SeqCst) < self.running {
            self.core.wake.notify_one();
        }
    }

    fn gave_up(&mut self) {
        self.core.gave_up(&self.id);
    }

    fn passivated(&mut self) {
        count!(self.core, passivations);
    }
}

impl Drop for KeyKeeper {
    fn drop(&mut self) {
        self.core.live.remove(self.number);
        self.core.metrics.live.decrement(1);
    }
}
