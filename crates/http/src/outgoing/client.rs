//! One request to another host: checked, connected to the address that was checked, and bounded.

use airssys_wasm_limits::later;
use std::{
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, LazyLock},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, Uri, header, uri::PathAndQuery};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};
use tokio_util::sync::{CancellationToken, DropGuard};
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody};

use super::{
    denials::{Denials, Denied},
    grants::{Allow, Destination, OutgoingLimits, OutgoingScheme, Permitted},
    resolve::{Resolve, SystemResolver},
    tls::Tls,
};
use crate::bounded::{Bounded, Bounds, Side};

/// What a component may request of others, shared by all its sandboxes. Cheap to clone. The default grants nothing.
#[derive(Debug, Clone)]
pub struct Outgoing {
    inner: Arc<Inner>,
    denials: Arc<Denials>,
}

#[derive(Debug)]
struct Inner {
    allow: Vec<Allow>,
    limits: OutgoingLimits,
    connections: Arc<Semaphore>,
    resolver: Arc<dyn Resolve>,
    tls: Tls,
}

impl Default for Outgoing {
    fn default() -> Self {
        // Each sandbox begins with it.
        static NOTHING: LazyLock<Outgoing> = LazyLock::new(|| Outgoing::new(Vec::new(), OutgoingLimits::default()));
        NOTHING.clone()
    }
}

/// The body of a response. When it is gone, so is its connection, though the request's body may have a handle of that.
struct Held {
    body: Bounded,
    _gone: DropGuard,
}

impl Body for Held {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A body and the future that drives its connection.
type Sent = (Response<WasiBody>, Box<dyn Future<Output = Result<(), Error>> + Send>);

impl Outgoing {
    /// These grants within these limits, by the system's resolver.
    pub fn new(allow: Vec<Allow>, limits: OutgoingLimits) -> Self {
        Self::with_resolver(allow, limits, Arc::new(SystemResolver))
    }

    /// These grants within these limits, by a resolver of the embedder's.
    pub fn with_resolver(allow: Vec<Allow>, limits: OutgoingLimits, resolver: Arc<dyn Resolve>) -> Self {
        let permits = (limits.connections as usize).min(Semaphore::MAX_PERMITS);
        let connections = Arc::new(Semaphore::new(permits));
        let inner = Arc::new(Inner { allow, limits, connections, resolver, tls: Tls::default() });
        Self { inner, denials: Denials::new(None) }
    }

    /// With this name of a component where a request is denied: in the log, and as a label of a counter. An
    /// [`HttpComponentSpec`](crate::HttpComponentSpec) and [`load`](crate::load()) name it by themselves.
    #[must_use]
    pub fn named(mut self, component: &str) -> Self {
        self.tell(Denials::new(Some(component.into())));
        self
    }

    pub(crate) fn tell(&mut self, denials: Arc<Denials>) {
        self.denials = denials;
    }

    /// With this configuration for `https`, in place of the roots that Mozilla trusts. Its protocols for ALPN must be none, or
    /// `http/1.1`. What was sent before is not counted among the connections of the result.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn with_tls(self, config: Arc<tokio_rustls::rustls::ClientConfig>) -> Self {
        let Inner { allow, limits, resolver, .. } = &*self.inner;
        let connections = Arc::new(Semaphore::new((limits.connections as usize).min(Semaphore::MAX_PERMITS)));
        let (allow, limits, resolver) = (allow.clone(), *limits, Arc::clone(resolver));
        let inner = Arc::new(Inner { allow, limits, connections, resolver, tls: Tls::by(config) });
        Self { inner, ..self }
    }

    /// Sends a request. Dropping the future, the response's body or the driver ends the connection.
    pub(crate) async fn send(self, request: Request<WasiBody>, options: Option<RequestOptions>) -> Result<Sent, Error> {
        let Inner { allow, limits, connections, resolver, tls } = &*self.inner;
        let options = options.unwrap_or_default();
        let began = Instant::now();
        let end = later(began, limits.time);
        let (mut parts, body) = request.into_parts();
        let authority = parts.uri.authority().cloned().ok_or(Error::HttpRequestUriInvalid)?;
        if authority.as_str().contains('@') || authority.host().is_empty() {
            return Err(Error::HttpRequestUriInvalid);
        }
        let scheme = match parts.uri.scheme_str() {
            Some("http") => OutgoingScheme::Http,
            Some("https") => OutgoingScheme::Https,
            _ => return Err(Error::HttpProtocolError),
        };
        let port = match authority.port() {
            Some(port) => port.as_u16(),
            // `host:` with nothing behind the colon, or with too much.
            None if authority.as_str() != authority.host() => return Err(Error::HttpRequestUriInvalid),
            None => scheme.port(),
        };
        let host = authority.host();
        let to = Destination { host, scheme, port, method: &parts.method };
        let deny = |why| self.denials.note(why, &parts.method, scheme.as_str(), &authority);
        let permitted = Permitted::by(allow, &to).ok_or_else(|| {
            deny(Denied::Grant);
            Error::HttpRequestDenied
        })?;
        let permit = Arc::clone(connections).try_acquire_owned().map_err(|_| Error::ConnectionLimitReached)?;

        let connect = options.connect_timeout.map_or(limits.connect, |wanted| wanted.min(limits.connect));
        let until = later(began, connect).min(end);
        let (addresses, permit) = match literal(host) {
            Some(address) => (vec![address], permit),
            None => {
                let looking_up = resolver.resolve(host);
                // A task of its own, which goes on when the guest is gone: its permit is held as long as its thread.
                let looking_up = tokio::spawn(async move { (looking_up.await, permit) });
                let looked_up = timeout_at(until, looking_up).await.map_err(|_| Error::DnsTimeout)?;
                let no_address = || Error::DnsError { rcode: None, info_code: None };
                let (found, permit) = looked_up.map_err(|_| no_address())?;
                (found.map_err(|_| no_address())?, permit)
            }
        };
        // All of them, so that none can be hidden behind one that is refused or does not answer.
        if !addresses.iter().all(|address| permitted.may_reach(*address)) {
            deny(Denied::Address);
            return Err(Error::DestinationIpProhibited);
        }
        let stream = timeout_at(until, connect_to(&addresses, port)).await.map_err(|_| Error::ConnectionTimeout)??;
        _ = stream.set_nodelay(true);

        // As HTTP/1.1 has it: the path alone, and the authority that was checked as the one `Host`.
        let path = parts.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        parts
            .headers
            .insert(header::HOST, HeaderValue::from_str(authority.as_str()).map_err(|_| Error::HttpRequestUriInvalid)?);
        parts.uri = Uri::from(path);
        parts.version = http::Version::HTTP_11;
        let bounds = |bytes: u64, idle: Duration| Bounds { bytes, idle, rate: 0, time: end - began };
        let body = Bounded::new(body, bounds(limits.request_body.as_u64(), limits.time), Side::Request).boxed_unsync();
        let request = Request::from_parts(parts, body);

        let first_byte =
            options.first_byte_timeout.map_or(end, |wanted| end.min(later(Instant::now(), wanted.min(limits.time))));
        let gone = CancellationToken::new();
        let (response, driver) = match scheme {
            OutgoingScheme::Http => exchange(stream, request, (first_byte, end), (permit, gone.clone())).await?,
            OutgoingScheme::Https => {
                let stream =
                    timeout_at(until, tls.connect(host, stream)).await.map_err(|_| Error::ConnectionTimeout)??;
                exchange(stream, request, (first_byte, end), (permit, gone.clone())).await?
            }
        };
        let idle = options.between_bytes_timeout.map_or(limits.time, |wanted| wanted.min(limits.time));
        let left = end.saturating_duration_since(Instant::now());
        let response = response.map(|body| {
            let body = body.map_err(Error::Hyper).boxed_unsync();
            let bounds = Bounds { time: left, ..bounds(limits.response_body.as_u64(), idle) };
            let body = Bounded::new(body, bounds, Side::Response);
            Held { body, _gone: gone.drop_guard() }.boxed_unsync()
        });
        Ok((response, driver))
    }
}

/// The address that a host is, if it is one.
fn literal(host: &str) -> Option<IpAddr> {
    match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address.parse().map(IpAddr::V6).ok(),
        None => host.parse().map(IpAddr::V4).ok(),
    }
}

/// Connects to the first of these that takes it.
async fn connect_to(addresses: &[IpAddr], port: u16) -> Result<TcpStream, Error> {
    let mut failed = Error::DestinationNotFound;
    for address in addresses {
        match TcpStream::connect(SocketAddr::new(*address, port)).await {
            Ok(stream) => return Ok(stream),
            Err(error) => failed = Error::Connect(error),
        }
    }
    Err(failed)
}

/// Bytes that a response's head may have, and that are read ahead of what is asked for.
const READ_AHEAD: usize = 64 << 10;

/// Headers that a response may have.
const HEADERS: usize = 100;

/// Sends a request; its response begins until the one time, and the connection ends at the other.
async fn exchange<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
    stream: S,
    request: Request<WasiBody>,
    (until, end): (Instant, Instant),
    (permit, gone): (OwnedSemaphorePermit, CancellationToken),
) -> Result<(Response<hyper::body::Incoming>, Box<dyn Future<Output = Result<(), Error>> + Send>), Error> {
    let mut builder = http1::Builder::new();
    builder.max_buf_size(READ_AHEAD).max_headers(HEADERS);
    let (mut requests, connection) = builder.handshake(TokioIo::new(stream)).await?;
    // Ends with its handle, and so with the guest; with the response's body; and in time, though the guest may not read.
    let driver = airssys_wasm_engine::wasmtime_wasi::runtime::spawn(async move {
        _ = timeout_at(end, gone.run_until_cancelled_owned(connection)).await;
        drop(permit);
    });
    let response = match timeout_at(until, requests.send_request(request)).await {
        Ok(Ok(response)) => response,
        Ok(Err(error)) if Instant::now() < end => return Err(error.into()),
        _ => return Err(Error::ConnectionReadTimeout),
    };
    // An error of it is that of the body as well. From here it would be written into the log each time.
    let driver = async move {
        driver.await;
        Ok(())
    };
    Ok((response, Box::new(driver)))
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;
    use crate::bounded::nothing;

    #[tokio::test]
    async fn a_connection_that_fails_is_no_error_of_its_driver() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let addresses = vec!["127.0.0.1/32".parse().unwrap()];
        let host = "127.0.0.1".parse().unwrap();
        let granted =
            Allow { scheme: OutgoingScheme::Http, port: Some(address.port()), addresses, ..Allow::https(host) };
        let outgoing =
            Outgoing::new(vec![granted], OutgoingLimits { time: Duration::MAX, ..OutgoingLimits::default() });
        let request = Request::get(format!("http://{address}/")).body(nothing()).unwrap();
        let sending = outgoing.send(request, None);
        let other = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.read_exact(&mut [0; 16]).await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nnonsense").await.unwrap();
        };
        let (sent, ()) = tokio::join!(sending, other);
        let (response, driver) = sent.unwrap();
        let (body, ended) = tokio::join!(response.into_body().collect(), Box::into_pin(driver));
        assert!(body.is_err());
        assert!(ended.is_ok());
    }
}
