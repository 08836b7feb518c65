//! Metrics of a kind, through the `metrics` facade. Handles are looked up once; without a recorder they are no-ops.

use metrics::{Counter, Gauge, Label};

pub(crate) struct Metrics {
    pub(crate) live: Gauge,
    pub(crate) waiting: Gauge,
    pub(crate) rows: Gauge,
    pub(crate) oldest_unsaved: Gauge,
    pub(crate) activations: Counter,
    pub(crate) not_activated: Counter,
    pub(crate) passivations: Counter,
    pub(crate) refused: Counter,
    pub(crate) saves: Counter,
    pub(crate) unchanged: Counter,
    pub(crate) not_saved: Counter,
}

impl Metrics {
    pub(crate) fn new(kind: &str) -> Self {
        let labels = || vec![Label::new("kind", kind.to_owned())];
        Self {
            live: metrics::gauge!("airssys_keyed_live", labels()),
            waiting: metrics::gauge!("airssys_keyed_waiting", labels()),
            rows: metrics::gauge!("airssys_keyed_rows", labels()),
            oldest_unsaved: metrics::gauge!("airssys_keyed_oldest_unsaved_seconds", labels()),
            activations: metrics::counter!("airssys_keyed_activations_total", labels()),
            not_activated: metrics::counter!("airssys_keyed_not_activated_total", labels()),
            passivations: metrics::counter!("airssys_keyed_passivations_total", labels()),
            refused: metrics::counter!("airssys_keyed_refused_total", labels()),
            saves: metrics::counter!("airssys_keyed_saves_total", labels()),
            unchanged: metrics::counter!("airssys_keyed_unchanged_total", labels()),
            not_saved: metrics::counter!("airssys_keyed_not_saved_total", labels()),
        }
    }
}
