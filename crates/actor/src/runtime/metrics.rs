//! Metrics, through the `metrics` facade. Handles are looked up once; without a recorder they are no-ops.

use std::time::Instant;

use airssys_wasm_isolation::CrashClass;
use airssys_wasm_registry::ComponentId;
use metrics::{Counter, Gauge, Histogram, Label};

/// The metrics of a system, or of one actor with metrics per actor.
pub(crate) struct Metrics {
    pub(crate) messages: Counter,
    pub(crate) failures: Counter,
    latency: Option<Histogram>,
    mailbox_depth: Histogram,
    memory: Histogram,
    pub(crate) restarts: Counter,
    pub(crate) recycled: Counter,
    /// Indexed by [`CrashClass`].
    crashes: Box<[Counter]>,
    pub(crate) dead_letters: Counter,
    pub(crate) denied: Counter,
    pub(crate) unclaimed: Counter,
    pub(crate) refused_publications: Counter,
    pub(crate) actors: Gauge,
}

impl Metrics {
    pub(crate) fn new(actor: Option<&ComponentId>, latencies: bool) -> Self {
        let labels = || -> Vec<Label> { actor.map(|id| Label::new("actor", id.to_string())).into_iter().collect() };
        let crashes = CrashClass::ALL.iter().map(|class| {
            let mut labels = labels();
            labels.push(Label::from_static_parts("kind", class.as_str()));
            metrics::counter!("airssys_actor_crashes_total", labels)
        });
        Self {
            messages: metrics::counter!("airssys_actor_messages_total", labels()),
            failures: metrics::counter!("airssys_actor_handler_errors_total", labels()),
            latency: latencies.then(|| metrics::histogram!("airssys_actor_handler_seconds", labels())),
            mailbox_depth: metrics::histogram!("airssys_actor_mailbox_depth", labels()),
            memory: metrics::histogram!("airssys_actor_memory_bytes", labels()),
            restarts: metrics::counter!("airssys_actor_restarts_total", labels()),
            recycled: metrics::counter!("airssys_actor_recycled_total", labels()),
            crashes: crashes.collect(),
            dead_letters: metrics::counter!("airssys_actor_dead_letters_total", labels()),
            denied: metrics::counter!("airssys_actor_denied_total", labels()),
            unclaimed: metrics::counter!("airssys_actor_unclaimed_answers_total", labels()),
            refused_publications: metrics::counter!("airssys_actor_refused_publications_total", labels()),
            actors: metrics::gauge!("airssys_actors", labels()),
        }
    }

    pub(crate) fn crash(&self, class: CrashClass) {
        self.crashes[class as usize].increment(1);
    }

    /// Counts a message. Reads the clock only if latencies are measured.
    pub(crate) fn taken(&self, queued: impl FnOnce() -> usize) -> Option<Instant> {
        self.messages.increment(1);
        self.latency.as_ref().map(|_| {
            self.mailbox_depth.record(queued() as f64);
            Instant::now()
        })
    }

    /// Records a handled message's latency and the memory after it.
    pub(crate) fn done(&self, taken: Option<Instant>, memory: u64) {
        if let (Some(latency), Some(taken)) = (&self.latency, taken) {
            latency.record(taken.elapsed());
            self.memory.record(memory as f64);
        }
    }
}
