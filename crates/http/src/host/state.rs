//! What `wasi:http` needs in a store.

use airssys_wasm_actor::{ActorState, registry::TraceContext};
use http::{HeaderMap, HeaderName, HeaderValue, request::Parts};
use tokio::time::Instant;
use wasmtime_wasi_http::{
    Error, ForbiddenHeaderFilter, RequestOptions, WasiBody, WasiHttpCtx, WasiHttpHooks,
    p2::bindings::http::types::ErrorCode, p3::bindings::http::types as p3,
};

use super::bodies::Bodies;
use crate::outgoing::Outgoing;

/// An embedder's state that has a place for that of `wasi:http`. [`HttpState`] alone is one, and so is the state of an actor
/// whose embedder's is.
pub trait HttpHost: Send + 'static {
    /// The state of `wasi:http`.
    fn http(&mut self) -> &mut HttpState;

    /// A request begins that the guest is called for, all of which has ended by then. Default: nothing more comes of it.
    fn begin(&mut self, _head: &Parts, _until: Instant) {}
}

impl HttpHost for HttpState {
    fn http(&mut self) -> &mut HttpState {
        self
    }
}

impl<U: HttpHost> HttpHost for ActorState<U> {
    fn http(&mut self) -> &mut HttpState {
        self.user.http()
    }

    /// What is asked of other actors does not outlast the request, and is in its trace.
    fn begin(&mut self, head: &Parts, until: Instant) {
        let trace = head.headers.get(TRACE[0]).and_then(|value| trace_of(value.to_str().ok()?));
        self.begin_request(until, trace);
        self.user.begin(head, until);
    }
}

/// The trace of a `traceparent`.
fn trace_of(value: &str) -> Option<TraceContext> {
    let mut parts = value.split('-');
    let (version, trace, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let is_hex = |text: &str, len| text.len() == len && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    // A later version may have more parts.
    let is_known = is_hex(version, 2) && version != "ff" && (version != "00" || parts.next().is_none());
    if !is_known || !is_hex(trace, 32) || !is_hex(parent, 16) || !is_hex(flags, 2) {
        return None;
    }
    let trace_id = u128::from_str_radix(trace, 16).ok().filter(|id| *id != 0)?;
    let parent_id = u64::from_str_radix(parent, 16).ok().filter(|id| *id != 0)?;
    let sampled = u8::from_str_radix(flags, 16).ok()? & 1 == 1;
    Some(TraceContext { trace_id, parent_id, sampled })
}

/// The state of `wasi:http` in a store. The default grants no outgoing request.
pub struct HttpState {
    pub(super) ctx: WasiHttpCtx,
    pub(super) hooks: Hooks,
    pub(super) bodies: Bodies,
}

/// Bytes that the fields of one header section may take that a guest makes, with some 70 for each name and value beside
/// their own.
const FIELDS: usize = 32 << 10;

/// Bytes of a body that a guest may write at once.
const CHUNK: usize = 64 << 10;

impl Default for HttpState {
    fn default() -> Self {
        Self::new(Outgoing::default())
    }
}

impl HttpState {
    /// With these grants of outgoing requests.
    pub fn new(outgoing: Outgoing) -> Self {
        let mut ctx = WasiHttpCtx::new();
        ctx.set_field_size_limit(FIELDS);
        Self { ctx, hooks: Hooks { outgoing, trace: Vec::new() }, bodies: Bodies::default() }
    }

    /// Replaces the grants of outgoing requests.
    pub fn grant(&mut self, outgoing: Outgoing) {
        self.hooks.outgoing = outgoing;
    }

    /// Takes the trace of the request in hand, which goes out with the guest's requests that have none of their own.
    pub(crate) fn follow(&mut self, headers: &HeaderMap) {
        let found = TRACE.into_iter().filter_map(|name| Some((name, headers.get(name)?.clone())));
        self.hooks.trace = found.collect();
    }

    /// Bodies that the guest wrote and that nobody has read to the end.
    pub(crate) fn live_bodies(&self) -> usize {
        self.bodies.live()
    }
}

pub(super) struct Hooks {
    outgoing: Outgoing,
    trace: Vec<(&'static str, HeaderValue)>,
}

/// Headers of a trace, as the W3C has them.
const TRACE: [&str; 2] = ["traceparent", "tracestate"];

impl WasiHttpHooks for Hooks {
    fn send_request(
        &mut self,
        mut request: http::Request<WasiBody>,
        options: Option<RequestOptions>,
        _: Box<dyn Future<Output = Result<(), Error>> + Send>,
    ) -> Box<
        dyn Future<
                Output = Result<(http::Response<WasiBody>, Box<dyn Future<Output = Result<(), Error>> + Send>), Error>,
            > + Send,
    > {
        // The two belong together.
        if !request.headers().contains_key(TRACE[0]) {
            let trace = self.trace.iter().map(|(name, value)| (HeaderName::from_static(name), value.clone()));
            request.headers_mut().extend(trace);
        }
        Box::new(self.outgoing.clone().send(request, options))
    }

    fn forbidden_header_filter(&mut self) -> ForbiddenHeaderFilter {
        std::sync::Arc::new(is_forbidden)
    }

    fn is_forbidden_header(&mut self, name: &HeaderName) -> bool {
        is_forbidden(name)
    }

    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        CHUNK
    }

    fn p3_outgoing_body_chunk_size(&mut self) -> usize {
        CHUNK
    }

    // Those of wasmtime-wasi-http write each into the log, which a guest could flood.

    fn p3_error_from_hyper(&mut self, _: &hyper::Error) -> p3::ErrorCode {
        p3::ErrorCode::HttpProtocolError
    }

    fn p3_error_from_connect(&mut self, _: &std::io::Error) -> p3::ErrorCode {
        p3::ErrorCode::ConnectionRefused
    }

    fn p3_error_from_tls(&mut self, _: &std::io::Error) -> p3::ErrorCode {
        p3::ErrorCode::TlsProtocolError
    }

    fn p2_error_from_hyper(&mut self, _: &hyper::Error) -> ErrorCode {
        ErrorCode::HttpProtocolError
    }

    fn p2_error_from_connect(&mut self, _: &std::io::Error) -> ErrorCode {
        ErrorCode::ConnectionRefused
    }

    fn p2_error_from_tls(&mut self, _: &std::io::Error) -> ErrorCode {
        ErrorCode::TlsProtocolError
    }
}

fn is_forbidden(name: &HeaderName) -> bool {
    wasmtime_wasi_http::DEFAULT_FORBIDDEN_HEADERS.contains(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_read_as_the_w3c_has_it() {
        let trace = "0af7651916cd43dd8448eb211c80319c";
        let read = trace_of(&format!("00-{trace}-b7ad6b7169203331-01")).unwrap();
        assert_eq!((read.trace_id, read.parent_id), (0x0af7651916cd43dd8448eb211c80319c, 0xb7ad6b7169203331));
        assert!(read.sampled);
        assert!(trace_of(&format!("01-{trace}-b7ad6b7169203331-00-more")).is_some_and(|read| !read.sampled));
        let zeros = "0".repeat(32);
        for wrong in [
            "".to_owned(),
            "own".to_owned(),
            format!("00-{trace}-b7ad6b7169203331"),
            format!("00-{trace}-b7ad6b7169203331-01-more"),
            format!("ff-{trace}-b7ad6b7169203331-01"),
            format!("00-{zeros}-b7ad6b7169203331-01"),
            format!("00-{trace}-0000000000000000-01"),
            format!("00-{trace}-+7ad6b7169203331-01"),
        ] {
            assert_eq!(trace_of(&wrong), None, "{wrong}");
        }
    }
}
