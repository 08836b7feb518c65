//! What all actors of a kind share, whatever the embedder's state is.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
};

use airssys_wasm_actor::StartError;
use airssys_wasm_isolation::{CrashKind, InstantiateError};
use airssys_wasm_limits::CancellationToken;
use airssys_wasm_registry::ComponentId;
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, Semaphore, broadcast},
    time::Instant,
};

use crate::{
    KeyedEvent, KeyedOptions, StateStore, StoreError,
    events::EVENTS,
    kind::{
        admission::Buckets,
        forgetting::Forgetting,
        live::{Live, millis},
        quarantine::Quarantine,
    },
    metrics::Metrics,
    owner::Owned,
};

/// Activations that are under way at a time.
const STARTS: usize = 256;

/// How long a store that failed is left alone by a key that has something to save, in milliseconds.
pub(crate) const RETRY: u64 = 1_000;

pub(crate) struct Core {
    pub(crate) kind: ComponentId,
    pub(crate) options: KeyedOptions,
    pub(crate) owned: Owned,
    pub(crate) store: Arc<dyn StateStore>,
    pub(crate) live: Live,
    pub(crate) admission: Buckets,
    pub(crate) quarantine: Mutex<Quarantine>,
    pub(crate) forgetting: Forgetting,
    pub(crate) starts: Arc<Semaphore>,
    pub(crate) metrics: Metrics,
    pub(crate) counts: Counts,
    events: broadcast::Sender<KeyedEvent>,
    /// The clock's beginning.
    begun: Instant,
    /// The clock as of its last tick, in milliseconds. Never 0.
    now: AtomicU64,
    /// Keys that have a row.
    rows: AtomicU64,
    /// Wakes the sweep.
    pub(crate) wake: Notify,
    /// The version that is known to fail, which actors are not activated with.
    pub(crate) failed_version: AtomicU64,
    /// What the store fails at, by [`Use`].
    store_fails: AtomicU8,
    /// Whether an actor did not start because the host has no room for another.
    pub(crate) is_short: AtomicBool,
    /// How often others left for that, and when they did last.
    pub(crate) made_room: AtomicU64,
    pub(crate) made_room_at: AtomicU64,
    /// Whether the present version can snapshot and restore its state.
    pub(crate) keeps: AtomicBool,
    pub(crate) closed: CancellationToken,
}

/// What a store is used for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Use {
    Read = 1,
    Write = 2,
}

/// Since the kind was installed.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) activations: AtomicU64,
    pub(crate) not_activated: AtomicU64,
    pub(crate) passivations: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) saves: AtomicU64,
    pub(crate) unchanged: AtomicU64,
    pub(crate) not_saved: AtomicU64,
    pub(crate) waiting: AtomicU64,
    pub(crate) sweeps: AtomicU64,
}

/// Counts in both.
macro_rules! count {
    ($core:expr, $what:ident) => {{
        $core.counts.$what.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        $core.metrics.$what.increment(1);
    }};
}
pub(crate) use count;

impl Core {
    pub(crate) fn new(
        kind: ComponentId,
        options: KeyedOptions,
        owned: Owned,
        store: Arc<dyn StateStore>,
        rows: u64,
        keeps: bool,
    ) -> Self {
        let begun = Instant::now();
        Self {
            metrics: Metrics::new(kind.as_str()),
            admission: Buckets::new(options.admission, begun),
            kind,
            options,
            owned,
            store,
            live: Live::default(),
            quarantine: Mutex::default(),
            forgetting: Forgetting::default(),
            starts: Arc::new(Semaphore::new(STARTS)),
            counts: Counts::default(),
            events: broadcast::Sender::new(EVENTS),
            begun,
            now: AtomicU64::new(1),
            rows: AtomicU64::new(rows),
            wake: Notify::new(),
            failed_version: AtomicU64::new(0),
            store_fails: AtomicU8::new(0),
            is_short: AtomicBool::new(false),
            made_room: AtomicU64::new(0),
            made_room_at: AtomicU64::new(0),
            keeps: AtomicBool::new(keeps),
            closed: CancellationToken::new(),
        }
    }

    /// The key in a name of this kind.
    pub(crate) fn key<'a>(&self, name: &'a str) -> Option<&'a str> {
        let key = name.strip_prefix(self.kind.as_str())?.strip_prefix('/')?;
        let is_known = match &self.options.keys {
            _ if key.is_empty() => false,
            crate::Keys::Any => true,
            crate::Keys::Known(known) => known(key),
        };
        is_known.then_some(key)
    }

    /// The clock as of its last tick.
    #[inline]
    pub(crate) fn now(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }

    /// Reads the clock.
    pub(crate) fn tick(&self, now: Instant) -> u64 {
        let now = 1 + millis(now.saturating_duration_since(self.begun));
        self.now.fetch_max(now, Ordering::Relaxed).max(now)
    }

    pub(crate) fn event(&self, event: impl FnOnce() -> KeyedEvent) {
        if self.events.receiver_count() > 0 {
            // Fails if the last receiver has just gone.
            _ = self.events.send(event());
        }
    }

    pub(crate) fn events(&self) -> broadcast::Receiver<KeyedEvent> {
        self.events.subscribe()
    }

    pub(crate) fn rows(&self) -> u64 {
        self.rows.load(Ordering::Relaxed)
    }

    pub(crate) fn row_made(&self) {
        self.metrics.rows.set((self.rows.fetch_add(1, Ordering::Relaxed) + 1) as f64);
    }

    pub(crate) fn row_removed(&self) {
        let rows = self.rows.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |rows| Some(rows.saturating_sub(1)));
        self.metrics.rows.set(rows.unwrap_or(0).saturating_sub(1) as f64);
    }

    /// An activation failed. If that was the actor's own fault, it is left alone for a while.
    pub(crate) fn not_activated(&self, actor: &ComponentId, error: &Arc<StartError>, has_row: bool) {
        count!(self, not_activated);
        self.event(|| KeyedEvent::NotActivated { actor: actor.clone(), error: Arc::clone(error) });
        let Some(key) = self.key(actor.as_str()) else { return };
        let now = Instant::now();
        if let Some(shortage) = shortage(error) {
            let too_large = match shortage {
                Shortage::Instances => None,
                // Others have left for it already: it is the one that is too large.
                Shortage::Memory => {
                    let mut quarantine = self.quarantine.lock();
                    let is_again = quarantine.is_short_again(key, self.made_room.load(Ordering::Relaxed), now);
                    is_again.then(|| quarantine.leave_alone(key, now))
                }
            };
            if let Some(wait) = too_large {
                self.event(|| KeyedEvent::Quarantined { actor: actor.clone(), wait });
                return;
            }
            self.is_short.store(true, Ordering::Relaxed);
            self.wake.notify_one();
            return;
        }
        let is_its_own = match &**error {
            StartError::NotLoaded(_) | StartError::Instantiate(_) => false,
            // By a kill, which only the host can order.
            StartError::Crash(report) => !matches!(report.crash.kind(), CrashKind::Cancelled),
            _ => true,
        };
        if !is_its_own {
            return;
        }
        let (tripped, wait) = {
            let mut quarantine = self.quarantine.lock();
            (quarantine.failed(key, has_row, now), quarantine.wait(key))
        };
        if let Some(wait) = wait {
            self.event(|| KeyedEvent::Quarantined { actor: actor.clone(), wait });
        }
        if let Some(wait) = tripped {
            tracing::error!(kind = %self.kind, "half of the last activations failed; none is tried for {wait:?}");
            self.event(|| KeyedEvent::Tripped { wait });
        }
    }

    pub(crate) fn gave_up(&self, actor: &ComponentId) {
        let Some(key) = self.key(actor.as_str()) else { return };
        let wait = self.quarantine.lock().leave_alone(key, Instant::now());
        self.event(|| KeyedEvent::Quarantined { actor: actor.clone(), wait });
    }

    /// The store did what it was used for, or did not.
    pub(crate) fn store_answered(&self, to: Use, failed: Option<&Arc<StoreError>>) {
        let bit = to as u8;
        let fails = self.store_fails.load(Ordering::Relaxed);
        if (fails & bit != 0) == failed.is_some() {
            return;
        }
        let before = match failed {
            Some(_) => self.store_fails.fetch_or(bit, Ordering::Relaxed),
            None => self.store_fails.fetch_and(!bit, Ordering::Relaxed),
        };
        match failed {
            // Of several that see it at the same time one tells it; it has not recovered before it does both again.
            Some(_) if before != 0 => {}
            None if before != bit => {}
            Some(error) => {
                tracing::error!(kind = %self.kind, "the store fails, and what is unsaved stays in memory: {error}");
                self.event(|| KeyedEvent::StoreFailed { error: Arc::clone(error) });
            }
            None => self.event(|| KeyedEvent::StoreRecovered),
        }
    }
}

/// What the host is short of.
enum Shortage {
    Instances,
    Memory,
}

fn shortage(error: &StartError) -> Option<Shortage> {
    match error {
        StartError::Instantiate(InstantiateError::PoolExhausted { .. }) => Some(Shortage::Instances),
        StartError::Crash(report) if matches!(report.crash.kind(), CrashKind::Budget { .. }) => Some(Shortage::Memory),
        _ => None,
    }
}
