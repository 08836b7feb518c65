//! What happens to a kind.

use std::{sync::Arc, time::Duration};

use airssys_wasm_actor::StartError;
use airssys_wasm_registry::ComponentId;

use crate::StoreError;

/// How many events a receiver may lag behind.
pub(crate) const EVENTS: usize = 1_024;

/// An event of a kind. What happens to each of its actors is among the
/// [`SystemEvent`](airssys_wasm_actor::SystemEvent)s. A receiver that lags by more than a thousand events learns how many
/// it missed.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum KeyedEvent {
    /// An actor was to be brought into memory, and did not start.
    NotActivated {
        /// The actor.
        actor: ComponentId,
        /// Why.
        error: Arc<StartError>,
    },
    /// An actor failed so often that it is left alone for a while. Its row stays.
    Quarantined {
        /// The actor.
        actor: ComponentId,
        /// For how long.
        wait: Duration,
    },
    /// So many activations failed that none is tried for a while.
    Tripped {
        /// For how long.
        wait: Duration,
    },
    /// The store does not take states, or not give them. What is unsaved stays in memory, and is tried again.
    StoreFailed {
        /// Why.
        error: Arc<StoreError>,
    },
    /// The store does again what it failed at.
    StoreRecovered,
    /// A version on probation failed, and the kind goes back to the one before.
    RolledBack,
}
