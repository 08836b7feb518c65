//! Requests that are not granted, as they are told: counted, and in the log.

use std::sync::Arc;

use http::{Method, uri::Authority};
use tokio::time::Instant;

use crate::allowance::{Allowance, shown};

/// Lines in one second.
const LINES: u32 = 10;

/// Where the denied requests of a component are told.
#[derive(Debug)]
pub(crate) struct Denials {
    /// Unknown where the embedder has not named it.
    component: Option<Arc<str>>,
    log: Allowance,
}

/// Why a request is denied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Denied {
    /// No grant is of its host, scheme, port and method.
    Grant,
    /// One of the addresses of its host is not public, and not granted.
    Address,
}

impl Denials {
    pub(crate) fn new(component: Option<Arc<str>>) -> Arc<Self> {
        Arc::new(Self { component, log: Allowance::new(LINES) })
    }

    pub(super) fn note(&self, denied: Denied, method: &Method, scheme: &str, authority: &Authority) {
        const NAME: &str = "airssys_http_outgoing_denied_total";
        let (reason, why) = match denied {
            Denied::Grant => ("grant", "nothing grants it"),
            Denied::Address => ("address", "its address is not public"),
        };
        // Looked up here: what is not named is made before there is a recorder.
        let counter = match &self.component {
            Some(component) => metrics::counter!(NAME, "component" => component.to_string(), "reason" => reason),
            None => metrics::counter!(NAME, "reason" => reason),
        };
        counter.increment(1);
        let Some(left_out) = self.log.take(Instant::now()) else { return };
        let (component, method) = (self.component.as_deref(), shown(method.as_str().as_bytes()));
        let to = format!("{scheme}://{}", shown(authority.as_str().as_bytes()));
        tracing::warn!(component, %method, %to, left_out, "an outgoing request is denied: {why}");
    }
}
