//! What a system counts by itself, taken from its metrics: it is how the host knows what guests have handled. The handles
//! are looked up when an actor is spawned, and stand for as many messages as the system says, exactly.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use anyhow::{Result, anyhow};
use metrics::{
    Counter, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString, Unit,
    set_global_recorder,
};
use parking_lot::Mutex;

/// The readings of all systems of this process by their names, until they are set to zero. A counter has the name of its
/// metric, with the kind if it has one; messages that an actor has handled have the actor's.
#[derive(Clone, Default)]
pub(crate) struct Meter(Arc<Mutex<BTreeMap<String, Arc<Reading>>>>);

#[derive(Default)]
struct Reading(AtomicU64);

/// Actors that are registered.
pub(crate) const ACTORS: &str = "airssys_actors";

impl Meter {
    /// Listens from now on.
    pub(crate) fn install() -> Result<Self> {
        let meter = Self::default();
        set_global_recorder(meter.clone()).map_err(|_| anyhow!("there is a metrics recorder already"))?;
        Ok(meter)
    }

    pub(crate) fn read(&self, name: &str) -> u64 {
        self.0.lock().get(name).map_or(0, |reading| reading.0.load(Relaxed))
    }

    /// The counters that say what went on, without those of single actors.
    pub(crate) fn counters(&self) -> Vec<(String, u64)> {
        let readings = self.0.lock();
        let counters = readings.iter().filter_map(|(name, reading)| {
            let name = name.strip_prefix("airssys_actor_")?;
            Some((name.to_owned(), reading.0.load(Relaxed)))
        });
        counters.collect()
    }

    /// Sets all to zero but how many actors there are.
    pub(crate) fn reset(&self) {
        for (_, reading) in self.0.lock().iter().filter(|(name, _)| *name != ACTORS) {
            reading.0.store(0, Relaxed);
        }
    }

    fn reading(&self, name: String) -> Arc<Reading> {
        Arc::clone(self.0.lock().entry(name).or_default())
    }
}

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
        let kind = label(key, "kind").map_or_else(String::new, |kind| format!(": {kind}"));
        Counter::from_arc(self.reading(format!("{}{kind}", key.name())))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        if key.name() == ACTORS { Gauge::from_arc(self.reading(ACTORS.into())) } else { Gauge::noop() }
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        match (key.name(), label(key, "actor")) {
            // How long it took is recorded for each message that is done, and for no other.
            ("airssys_actor_handler_seconds", Some(actor)) => Histogram::from_arc(self.reading(actor.into())),
            _ => Histogram::noop(),
        }
    }
}

impl metrics::CounterFn for Reading {
    fn increment(&self, by: u64) {
        self.0.fetch_add(by, Relaxed);
    }

    fn absolute(&self, to: u64) {
        self.0.store(to, Relaxed);
    }
}

impl HistogramFn for Reading {
    fn record(&self, _: f64) {
        self.0.fetch_add(1, Relaxed);
    }
}

impl GaugeFn for Reading {
    fn increment(&self, by: f64) {
        self.0.fetch_add(by as u64, Relaxed);
    }

    fn decrement(&self, by: f64) {
        self.0.fetch_sub(by as u64, Relaxed);
    }

    fn set(&self, to: f64) {
        self.0.store(to as u64, Relaxed);
    }
}
