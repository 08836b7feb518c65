//! What `wasi:http` needs in a store.

use std::sync::Arc;

use airssys_wasm_actor::{ActorState, registry::TraceContext};
use airssys_wasm_engine::wasmtime::component::{Resource, ResourceTable};
use airssys_wasm_isolation::HostState;
use http::{HeaderMap, HeaderName, HeaderValue, request::Parts};
use http_body_util::BodyExt;
use tokio::time::Instant;
use wasmtime_wasi_http::{
    Error, ForbiddenHeaderFilter, RequestOptions, WasiBody, WasiHttpCtx, WasiHttpCtxView, WasiHttpHooks,
    p2::bindings::http::types::ErrorCode,
    p3::{Request, bindings::http::types as p3},
};

use super::bodies::{Bodies, End, Unsent, Written, length_of};
use crate::outgoing::{Denials, Outgoing};

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
        let trace = self.trace().copied();
        let http = self.user.http();
        http.hooks.trace = trace;
        http
    }

    /// What is asked of other actors does not outlast the request, and is in its trace.
    fn begin(&mut self, head: &Parts, until: Instant) {
        let trace = self.user.http().hooks.trace;
        self.begin_request(until, trace);
        self.user.begin(head, until);
    }
}

/// The trace that a request is in.
pub(crate) fn trace_of(headers: &HeaderMap) -> Option<TraceContext> {
    parsed(headers.get(TRACEPARENT)?.to_str().ok()?)
}

/// The trace of a `traceparent`.
fn parsed(value: &str) -> Option<TraceContext> {
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

/// The trace of a request in hand.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Followed {
    /// With the call of the guest as the span that sends.
    pub(crate) trace: TraceContext,
    /// The span that sent the request.
    pub(crate) parent_id: u64,
}

/// A trace as a `traceparent`.
fn written(trace: &TraceContext) -> Option<HeaderValue> {
    let TraceContext { trace_id, parent_id, sampled } = trace;
    HeaderValue::try_from(format!("00-{trace_id:032x}-{parent_id:016x}-{:02x}", u8::from(*sampled))).ok()
}

/// The state of `wasi:http` in a store. The default grants no outgoing request.
pub struct HttpState {
    pub(super) ctx: WasiHttpCtx,
    pub(super) hooks: Hooks,
    pub(super) bodies: Bodies,
    pub(super) unsent: Unsent,
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
        let hooks = Hooks { outgoing, trace: None, tracestate: None, end: None };
        Self { ctx, hooks, bodies: Bodies::default(), unsent: Unsent::default() }
    }

    /// Replaces the grants of outgoing requests.
    pub fn grant(&mut self, outgoing: Outgoing) {
        self.hooks.outgoing = outgoing;
    }

    /// Says whose requests are told of that are not granted.
    pub(crate) fn tell(&mut self, denials: &Arc<Denials>) {
        self.hooks.outgoing.tell(Arc::clone(denials));
    }

    /// Takes the trace of the request in hand, which goes out with the guest's requests that have none of their own, and gives
    /// the span that sent it.
    pub(crate) fn follow(&mut self, headers: &HeaderMap) -> Option<Followed> {
        let parent = trace_of(headers);
        // The call of the guest is a span of its own.
        let trace = parent.map(|parent| TraceContext { parent_id: fastrand::u64(1..), ..parent });
        self.hooks.trace = trace;
        self.hooks.tracestate = trace.and_then(|_| headers.get(TRACESTATE).cloned());
        Some(Followed { trace: trace?, parent_id: parent?.parent_id })
    }

    /// A request that the guest did not make has a number that one of its own may have had.
    pub(crate) fn received(&mut self, request: &Resource<Request>) {
        _ = self.unsent.take(request.rep());
    }

    /// Bodies that the guest wrote and that nobody has read to the end.
    pub(crate) fn live_bodies(&self) -> usize {
        self.bodies.live()
    }
}

/// A view on what `wasi:http` needs of a store.
pub(crate) fn view<U: HttpHost>(state: &mut HostState<U>) -> WasiHttpCtxView<'_> {
    let (table, ext) = state.table_and_ext();
    view_of(table, ext.http())
}

/// The same for a store whose parts are at hand.
pub(crate) fn view_of<'a>(table: &'a mut ResourceTable, state: &'a mut HttpState) -> WasiHttpCtxView<'a> {
    let HttpState { ctx, hooks, .. } = state;
    WasiHttpCtxView { hooks, table, ctx }
}

pub(super) struct Hooks {
    outgoing: Outgoing,
    /// Of the request in hand, or of an actor's message.
    trace: Option<TraceContext>,
    /// What belongs to it.
    tracestate: Option<HeaderValue>,
    /// How the body of the next request ends.
    pub(super) end: Option<End>,
}

/// Headers of a trace, as the W3C has them.
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

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
        if !request.headers().contains_key(TRACEPARENT)
            && let Some(trace) = self.trace.as_ref().and_then(written)
        {
            request.headers_mut().insert(TRACEPARENT, trace);
            if let Some(state) = &self.tracestate {
                request.headers_mut().insert(TRACESTATE, state.clone());
            }
        }
        if let Some(end) = self.end.take() {
            let length = length_of(request.headers());
            request = request.map(|body| Written::new(body, length, end, None).boxed_unsync());
        }
        Box::new(self.outgoing.clone().send(request, options))
    }

    fn forbidden_header_filter(&mut self) -> ForbiddenHeaderFilter {
        Arc::new(is_forbidden)
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
        let read = parsed(&format!("00-{trace}-b7ad6b7169203331-01")).unwrap();
        assert_eq!((read.trace_id, read.parent_id), (0x0af7651916cd43dd8448eb211c80319c, 0xb7ad6b7169203331));
        assert!(read.sampled);
        assert_eq!(parsed(written(&read).unwrap().to_str().unwrap()), Some(read));
        assert!(parsed(&format!("01-{trace}-b7ad6b7169203331-00-more")).is_some_and(|read| !read.sampled));
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
            assert_eq!(parsed(&wrong), None, "{wrong}");
        }
    }
}
