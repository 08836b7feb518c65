//! The access log: an event of `tracing` for each answer, as many as the log may have.

use http::{HeaderMap, Request, StatusCode, Uri, header};
use tokio::time::Instant;

use crate::allowance::{Allowance, shown};

/// Lines in one second.
const LINES: u32 = 1_000;

/// The target of its events.
const TARGET: &str = "airssys_http::access";

#[derive(Debug)]
pub(super) struct Access(Allowance);

impl Default for Access {
    fn default() -> Self {
        Self(Allowance::new(LINES))
    }
}

/// What a line says of a request.
pub(super) struct Asked {
    began: Instant,
    method: String,
    host: String,
    path: String,
}

impl Asked {
    /// `None` where nobody listens.
    pub(super) fn new<B>(request: &Request<B>) -> Option<Self> {
        tracing::enabled!(target: TARGET, tracing::Level::INFO).then(|| Self {
            began: Instant::now(),
            method: shown(request.method().as_str().as_bytes()),
            host: shown(host_of(request.uri(), request.headers())),
            // Without the query, which may have secrets in it.
            path: shown(request.uri().path().as_bytes()),
        })
    }
}

fn host_of<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> &'a [u8] {
    let host = || headers.get(header::HOST).map_or(&b""[..], |host| host.as_bytes());
    uri.authority().map_or_else(host, |authority| authority.as_str().as_bytes())
}

impl Access {
    /// When the head goes out; the body may take longer.
    pub(super) fn log(&self, asked: &Asked, status: StatusCode) {
        let Some(left_out) = self.0.take(Instant::now()) else { return };
        let Asked { began, method, host, path } = asked;
        let (status, micros) = (status.as_u16(), began.elapsed().as_micros() as u64);
        tracing::info!(target: TARGET, %method, %host, %path, status, micros, left_out);
    }
}
