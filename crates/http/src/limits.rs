//! What requests to a route may take, as people write it.

use std::time::Duration;

use airssys_wasm_limits::ByteSize;
use serde::{Deserialize, Serialize};

use crate::bounded::Bounds;

/// What requests to a route may take. What a guest may use for each is in its
/// [`ResourceLimits`](airssys_wasm_limits::ResourceLimits): CPU time, memory, and the deadline, by which all that it does for
/// a request has ended, with what it does after its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RouteLimits {
    /// Requests at a time, until the guest has ended. One more is answered with 503. Default: 64.
    pub concurrency: u32,
    /// Bytes of the body of a request. One more is 413. Default: 16 MiB.
    pub request_body: ByteSize,
    /// Time from one part of a request's body to the next, while the guest waits for it. More is 408. Default: five seconds.
    #[serde(with = "humantime_serde")]
    pub request_idle: Duration,
    /// Bytes a second that a request's body must have, over the time that the guest has waited for it, once that is longer than
    /// `request_idle`. Less is 408. Default: 1 KiB.
    pub request_rate: ByteSize,
    /// Bytes of the body of a response. The stream is broken off at one more. Default: 64 MiB.
    pub response_body: ByteSize,
    /// When a sandbox is used for more than one request. Default: never.
    pub reuse: Option<Reuse>,
}

impl Default for RouteLimits {
    fn default() -> Self {
        Self {
            concurrency: 64,
            request_body: ByteSize::mib(16),
            request_idle: Duration::from_secs(5),
            request_rate: ByteSize::kib(1),
            response_body: ByteSize::mib(64),
            reuse: None,
        }
    }
}

impl RouteLimits {
    pub(crate) fn request_bounds(&self, time: Duration) -> Bounds {
        Bounds { bytes: self.request_body.as_u64(), idle: self.request_idle, rate: self.request_rate.as_u64(), time }
    }
}

/// How long a sandbox is used for one request after another. What a guest keeps from one is there at the next. A sandbox is
/// not used again once one of these is reached, nor after a crash, nor while clients still read sixteen bodies that it wrote,
/// nor if it keeps a handle on a request, on one that it sent, on a body of theirs, or on one that it has not finished, nor if it
/// keeps more than a hundred handles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reuse {
    /// Requests.
    pub requests: u32,
    /// Bytes of its memory after a request. Default: the half of its `memory`.
    #[serde(default)]
    pub memory: Option<ByteSize>,
    /// Its age. Default: one minute.
    #[serde(default = "minute", with = "humantime_serde")]
    pub age: Duration,
}

fn minute() -> Duration {
    Duration::from_secs(60)
}

impl Reuse {
    /// This many requests, and the defaults for the rest.
    pub fn requests(requests: u32) -> Self {
        Self { requests, memory: None, age: minute() }
    }
}
