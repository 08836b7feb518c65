//! What happens at a service, for those who watch it.

use std::{fmt, sync::Arc, time::Duration};

use airssys_wasm_isolation::{Crash, CrashClass};
use metrics::Counter;
use tokio::{sync::broadcast, time::Instant};

use crate::{allowance::Allowance, answer::ReportId};

/// What happened at an [`HttpService`](crate::HttpService).
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum HttpEvent {
    /// A guest crashed over a request.
    Crashed {
        /// The component's name.
        component: Arc<str>,
        /// What the client was told, if it was told anything.
        id: ReportId,
        /// How it crashed.
        crash: Arc<Crash>,
    },
    /// A component crashed too often. Requests to it are answered with 503.
    Closed {
        /// The component's name.
        component: Arc<str>,
        /// For how long; `None` is until [`reopen`](crate::HttpComponent::reopen).
        lasts: Option<Duration>,
    },
}

/// Events that a receiver may be behind before it loses the oldest.
const BEHIND: usize = 256;

/// Where a component's events go: to receivers, into the log, and into metrics.
pub(crate) struct Events {
    component: Arc<str>,
    sender: broadcast::Sender<HttpEvent>,
    /// Indexed by [`CrashClass`].
    crashes: Box<[Counter]>,
    pub(crate) requests: Counter,
    pub(crate) refused: Counter,
    log: Allowance,
    faults: Allowance,
}

/// Bytes of a report in the log, some of which are the guest's.
const LONGEST_REPORT: usize = 4 << 10;

/// Reports of crashes that go into the log in one second.
const REPORTS: u32 = 10;

impl Events {
    pub(crate) fn new(component: Arc<str>) -> Self {
        let name = || component.to_string();
        let crashes = CrashClass::ALL.iter().map(
            |class| metrics::counter!("airssys_http_crashes_total", "component" => name(), "kind" => class.as_str()),
        );
        Self {
            crashes: crashes.collect(),
            requests: metrics::counter!("airssys_http_requests_total", "component" => name()),
            refused: metrics::counter!("airssys_http_refused_total", "component" => name()),
            sender: broadcast::Sender::new(BEHIND),
            log: Allowance::new(REPORTS),
            faults: Allowance::new(REPORTS),
            component,
        }
    }

    pub(crate) fn receiver(&self) -> broadcast::Receiver<HttpEvent> {
        self.sender.subscribe()
    }

    /// A request that the host itself could not serve.
    pub(crate) fn fault(&self, id: ReportId, why: fmt::Arguments<'_>) {
        if let Some(left_out) = self.faults.take(Instant::now()) {
            tracing::error!(component = %self.component, %id, left_out, "{why}");
        }
    }

    pub(crate) fn crashed(&self, id: ReportId, crash: Crash) {
        self.crashes[crash.kind().class() as usize].increment(1);
        if let Some(left_out) = self.log.take(Instant::now()) {
            let report = crash.to_string();
            let report = &report[..report.floor_char_boundary(LONGEST_REPORT)];
            tracing::warn!(component = %self.component, %id, left_out, "{report}");
        }
        // Fails if nobody listens.
        _ = self.sender.send(HttpEvent::Crashed { component: Arc::clone(&self.component), id, crash: Arc::new(crash) });
    }

    pub(crate) fn closed(&self, lasts: Option<Duration>) {
        tracing::error!(component = %self.component, ?lasts, "closed after too many crashes");
        _ = self.sender.send(HttpEvent::Closed { component: Arc::clone(&self.component), lasts });
    }
}
