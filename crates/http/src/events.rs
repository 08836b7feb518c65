//! What happens at a service, for those who watch it: events, lines of the log, and counters.

use std::{fmt, sync::Arc, time::Duration};

use airssys_wasm_isolation::{Crash, CrashClass};
use http::Response;
use metrics::Counter;
use tokio::{sync::broadcast, time::Instant};

use crate::{
    allowance::Allowance,
    answer::{HttpBody, Refused, ReportId},
};

/// What happened at an [`HttpService`](crate::HttpService).
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum HttpEvent {
    /// A guest crashed over a request.
    Crashed {
        /// The name of the component, or of the actor that was asked.
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

/// Where the events of a component go, or of an actor that is asked: to receivers, into the log, and into metrics.
#[derive(Debug)]
pub(crate) struct Events {
    component: Arc<str>,
    sender: broadcast::Sender<HttpEvent>,
    /// Indexed by [`CrashClass`].
    crashes: Box<[Counter]>,
    pub(crate) requests: Counter,
    refused: Refusals,
    log: Allowance,
    unanswered: Allowance,
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
            refused: Refusals::new(
                |status| metrics::counter!("airssys_http_refused_total", "component" => name(), "status" => status),
            ),
            sender: broadcast::Sender::new(BEHIND),
            log: Allowance::new(REPORTS),
            unanswered: Allowance::new(REPORTS),
            faults: Allowance::new(REPORTS),
            component,
        }
    }

    pub(crate) fn receiver(&self) -> broadcast::Receiver<HttpEvent> {
        self.sender.subscribe()
    }

    /// The answer to a request that is refused.
    pub(crate) fn refuse(&self, refused: Refused) -> Response<HttpBody> {
        self.refused.count(refused);
        refused.answer()
    }

    /// A request that the host itself could not serve.
    pub(crate) fn fault(&self, id: ReportId, why: fmt::Arguments<'_>) {
        if let Some(left_out) = self.faults.take(Instant::now()) {
            tracing::error!(component = %self.component, %id, left_out, "{why}");
        }
    }

    /// A request to which there is no answer, though nothing has crashed.
    pub(crate) fn unanswered(&self, id: ReportId, why: fmt::Arguments<'_>) {
        if let Some(left_out) = self.unanswered.take(Instant::now()) {
            tracing::warn!(component = %self.component, %id, left_out, "{why}");
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

/// Refused requests, by status.
#[derive(Debug)]
struct Refusals(Box<[Counter]>);

impl Refusals {
    fn new(counter: impl Fn(String) -> Counter) -> Self {
        Self(Refused::STATUSES.iter().map(|status| counter(status.as_str().to_owned())).collect())
    }

    fn count(&self, refused: Refused) {
        if let Some(at) = Refused::STATUSES.iter().position(|status| *status == refused.status()) {
            self.0[at].increment(1);
        }
    }
}

/// What a service refuses before anybody is asked.
#[derive(Debug)]
pub(crate) struct Unserved {
    requests: Refusals,
    /// Connections of an address that has too many.
    pub(crate) connections: Counter,
    /// Connections of HTTP/1 on which something came that is none.
    pub(crate) unreadable: Counter,
}

impl Default for Unserved {
    fn default() -> Self {
        let connections = |reason| metrics::counter!("airssys_http_connections_refused_total", "reason" => reason);
        Self {
            requests: Refusals::new(|status| metrics::counter!("airssys_http_unserved_total", "status" => status)),
            connections: connections("address"),
            unreadable: connections("unreadable"),
        }
    }
}

impl Unserved {
    /// The answer to a request that is refused.
    pub(crate) fn refuse(&self, refused: Refused) -> Response<HttpBody> {
        self.requests.count(refused);
        refused.answer()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_has_a_counter() {
        use Refused::*;
        let now = Duration::ZERO;
        for refused in [
            Malformed,
            NoRoute,
            Method,
            TooLarge,
            UriTooLong,
            HeadersTooLarge,
            TooSlow,
            NoRoom(now),
            Deadline,
            Failed(None),
            Unprocessable,
            Version,
        ] {
            assert!(Refused::STATUSES.contains(&refused.status()), "{refused:?}");
        }
    }
}
