//! What a system counts by itself, taken from its metrics: it is how the host knows what guests have handled. The handles
//! are looked up when an actor is spawned, and stand for as many messages as the system says, exactly.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
};

use anyhow::{Result, anyhow};
use metrics::{
    Counter, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString, Unit,
    set_global_recorder,
};
use parking_lot::Mutex;

/// The readings of all systems of this process, until they are set to zero.
#[derive(Clone, Default)]
pub(crate) struct Meter(Arc<Readings>);

#[derive(Default)]
struct Readings {
    /// Messages handled, by receiver.
    handled: Vec<Arc<Handled>>,
    /// By name, and crashes by their kind.
    counters: Mutex<BTreeMap<String, Arc<AtomicU64>>>,
    actors: Arc<Actors>,
}

#[derive(Default)]
struct Handled(AtomicU64);

#[derive(Default)]
struct Actors(AtomicI64);

impl Meter {
    /// Listens from now on to what is counted about actors of the names `r0`, `r1` and so on.
    pub(crate) fn install(receivers: usize) -> Result<Self> {
        let handled = (0..receivers).map(|_| Arc::default()).collect();
        let meter = Self(Arc::new(Readings { handled, ..Readings::default() }));
        set_global_recorder(meter.clone()).map_err(|_| anyhow!("there is a metrics recorder already"))?;
        Ok(meter)
    }

    /// Messages whose handling a receiver has completed.
    pub(crate) fn handled(&self, receiver: usize) -> u64 {
        self.0.handled[receiver].0.load(Relaxed)
    }

    /// Actors that are registered.
    pub(crate) fn actors(&self) -> i64 {
        self.0.actors.0.load(Relaxed)
    }

    /// A counter without its labels, or a kind of crash.
    pub(crate) fn counter(&self, name: &str) -> u64 {
        self.0.counters.lock().get(name).map_or(0, |counter| counter.load(Relaxed))
    }

    /// Crashes by their kind.
    pub(crate) fn crashes(&self) -> Vec<(String, u64)> {
        let counters = self.0.counters.lock();
        let kinds = counters.iter().filter(|(name, _)| !name.starts_with(PREFIX));
        kinds.map(|(kind, count)| (kind.clone(), count.load(Relaxed))).filter(|(_, count)| *count > 0).collect()
    }

    pub(crate) fn reset(&self) {
        self.0.handled.iter().for_each(|handled| handled.0.store(0, Relaxed));
        self.0.counters.lock().values().for_each(|counter| counter.store(0, Relaxed));
    }
}

const PREFIX: &str = "airssys_";

fn label<'k>(key: &'k Key, name: &str) -> Option<&'k str> {
    key.labels().find(|label| label.key() == name).map(metrics::Label::value)
}

impl Recorder for Meter {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        // Each message adds to this one, and nothing is worked out from it.
        if key.name() == "airssys_actor_messages_total" {
            return Counter::noop();
        }
        let name = label(key, "kind").unwrap_or(key.name());
        Counter::from_arc(Arc::clone(self.0.counters.lock().entry(name.to_owned()).or_default()))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        if key.name() == "airssys_actors" { Gauge::from_arc(Arc::clone(&self.0.actors)) } else { Gauge::noop() }
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        let receiver = label(key, "actor").and_then(super::receiver_of);
        match (key.name(), receiver.and_then(|receiver| self.0.handled.get(receiver))) {
            // How long it took is recorded for each message that is done, and for no other.
            ("airssys_actor_handler_seconds", Some(handled)) => Histogram::from_arc(Arc::clone(handled)),
            _ => Histogram::noop(),
        }
    }
}

impl HistogramFn for Handled {
    fn record(&self, _: f64) {
        self.0.fetch_add(1, Relaxed);
    }
}

impl GaugeFn for Actors {
    fn increment(&self, by: f64) {
        self.0.fetch_add(by as i64, Relaxed);
    }

    fn decrement(&self, by: f64) {
        self.0.fetch_sub(by as i64, Relaxed);
    }

    fn set(&self, to: f64) {
        self.0.store(to as i64, Relaxed);
    }
}
