//! A server on a port: connections, their protocol, their bounds, and how they end.

mod addresses;
mod io;
mod limits;
mod sent;
mod tls;

use std::{
    convert::Infallible,
    io as std_io,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use http::{Request, Version};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::graceful::GracefulConnection,
};
use metrics::Counter;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tower_service::Service as _;

pub use self::limits::ServerLimits;
use self::{
    addresses::{Addresses, Counted},
    io::{Abort, ClientIo, Protocol},
    sent::{Sent, Unsent},
    tls::Tls,
};
use crate::{
    answer::Refused,
    request::{ByTls, CanCut, HeadLimits, LONGEST_METHOD},
    service::HttpService,
};

/// Serves an [`HttpService`] on a port, by HTTP/1.1 and HTTP/2.
///
/// Upgrades are not offered: a request that asks for one is served as if it did not.
#[derive(Debug)]
pub struct HttpServer {
    service: HttpService,
    limits: ServerLimits,
    tls: Tls,
}

/// How a server ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServerReport {
    /// Connections that it accepted.
    pub accepted: u64,
    /// Connections that were closed at once, because their address had too many.
    pub refused: u64,
    /// Connections that were broken off, because their requests did not end within the time for that.
    pub broken_off: u64,
}

impl HttpServer {
    /// A server with the default limits.
    pub fn new(service: HttpService) -> Self {
        Self { service, limits: ServerLimits::default(), tls: Tls::default() }
    }

    /// With these limits.
    #[must_use]
    pub fn with_limits(mut self, limits: ServerLimits) -> Self {
        self.limits = limits;
        self
    }

    /// With TLS on all connections. What the configuration says of ALPN is replaced by `h2` and `http/1.1`.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn with_tls(mut self, config: &tokio_rustls::rustls::ServerConfig) -> Self {
        self.tls = Tls::by(config);
        self
    }

    /// Serves until it is told to stop. Then it accepts nothing, waits for the requests in hand, and breaks off those that are
    /// not answered within [`ServerLimits::drain`]. Dropping the future breaks off all.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with timers.
    pub async fn serve(self, listener: TcpListener, stop: impl Future<Output = ()> + Send) -> ServerReport {
        let Self { service, limits, tls } = self;
        let places = Arc::new(Semaphore::new((limits.connections as usize).min(Semaphore::MAX_PERMITS)));
        let addresses = Addresses::new(limits.connections_per_address, limits.requests_per_address);
        let stopping = CancellationToken::new();
        let mut connections = JoinSet::new();
        let mut report = ServerReport { accepted: 0, refused: 0, broken_off: 0 };
        let mut stop = pin!(stop);
        loop {
            let accepting = async {
                let place = Arc::clone(&places).acquire_owned().await.ok()?;
                Some((listener.accept().await, place))
            };
            let accepted = tokio::select! {
                biased;
                () = &mut stop => break,
                Some(ended) = connections.join_next() => {
                    report.note(ended);
                    continue;
                }
                accepted = accepting => accepted,
            };
            let Some((accepted, place)) = accepted else { break };
            match accepted {
                Ok((stream, peer)) => match addresses.one_more(peer.ip()) {
                    Some(counted) => {
                        report.accepted += 1;
                        let connection = Connection {
                            service: service.clone(),
                            limits,
                            tls: tls.clone(),
                            stopping: stopping.clone(),
                            counted: Arc::new(counted),
                            _place: place,
                        };
                        connections.spawn(connection.serve(stream));
                    }
                    None => {
                        report.refused += 1;
                        service.unserved().connections.increment(1);
                    }
                },
                Err(error) if is_of_the_client(&error) => {}
                Err(error) => {
                    tracing::error!("no connection can be accepted, the next try is in {ACCEPT_AGAIN:?}: {error}");
                    tokio::select! {
                        () = &mut stop => break,
                        () = sleep(ACCEPT_AGAIN) => {}
                    }
                }
            }
        }
        drop(listener);
        stopping.cancel();
        let draining = async {
            while let Some(ended) = connections.join_next().await {
                report.note(ended);
            }
        };
        if timeout(limits.drain, draining).await.is_err() {
            report.broken_off += connections.len() as u64;
            connections.shutdown().await;
        }
        report
    }
}

impl ServerReport {
    /// A connection has ended by itself.
    fn note<E>(&mut self, ended: Result<Ended, E>) {
        self.broken_off += u64::from(matches!(ended, Ok(Ended::BrokenOff)));
    }
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    Closed,
    /// With requests in hand, for which it had no more time.
    BrokenOff,
}

/// When to accept again after the host had no descriptor for a connection, or the like.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

fn is_of_the_client(error: &std_io::Error) -> bool {
    use std_io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// Bytes that a connection reads ahead of what is asked for. A head must fit.
const READ_AHEAD: usize = 64 << 10;

/// Headers of a head that hyper takes where nothing is said.
const HEADERS: usize = 100;

/// Bytes in flight that a client of HTTP/2 may send ahead: for a stream, and for a connection.
const WINDOWS: (u32, u32) = (64 << 10, 512 << 10);

/// Bytes that wait to be sent on a stream of HTTP/2.
const SEND_BUFFER: usize = 64 << 10;

/// Streams that a client may reset before they are accepted, and errors of a client's that are answered by a reset.
const RESETS: (usize, usize) = (20, 100);

/// When to come back, where an address has too many requests in hand.
const SOON: Duration = Duration::from_secs(1);

/// How often a client of HTTP/2 is asked whether it is there, and how long it may take to say so.
const ALIVE: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(10));

/// Longer than a connection lasts. hyper adds such a time to the present, which must not overflow.
const NEVER: Duration = Duration::from_secs(365 * 24 * 3_600);

/// One connection.
struct Connection {
    service: HttpService,
    limits: ServerLimits,
    tls: Tls,
    stopping: CancellationToken,
    counted: Arc<Counted>,
    _place: OwnedSemaphorePermit,
}

impl Connection {
    async fn serve(self, stream: TcpStream) -> Ended {
        // An answer in parts is not to wait for the client's acknowledgement.
        _ = stream.set_nodelay(true);
        if self.tls.is_off() {
            return self.serve_io(stream, None).await;
        }
        let accepted = tokio::select! {
            () = self.stopping.clone().cancelled_owned() => return Ended::Closed,
            accepted = timeout(self.limits.head, self.tls.accept(stream)) => accepted,
        };
        match accepted {
            Ok(Ok((stream, protocol))) => self.serve_io(stream, Some(protocol)).await,
            // Errors are the client's.
            _ => Ended::Closed,
        }
    }

    /// Serves a stream, which is of this protocol if both sides have agreed on it by TLS.
    async fn serve_io<S>(&self, stream: S, agreed: Option<Protocol>) -> Ended
    where
        S: Abort + AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let mut io = ClientIo::new(stream, self.limits.write_idle);
        let protocol = tokio::select! {
            () = self.stopping.clone().cancelled_owned() => return Ended::Closed,
            protocol = timeout(self.limits.head, io.protocol()) => protocol,
        };
        let Ok(Ok(protocol)) = protocol else { return Ended::Closed };
        // A client that agrees on one and speaks another is not served, nor is one that says nothing.
        if agreed.is_some_and(|agreed| agreed != protocol) {
            return Ended::Closed;
        }
        let too_many_resets = CancellationToken::new();
        let resets =
            Arc::new(Resets { left: AtomicI64::new(self.limits.resets.into()), too_many: too_many_resets.clone() });
        let unsent = (protocol == Protocol::Http2).then(Unsent::default);
        let stuck = unsent.clone().map(|unsent| (unsent, self.limits.write_idle));
        let ServerLimits { age, drain, .. } = self.limits;
        let ends = Ends { stopping: self.stopping.clone(), too_many_resets, stuck, age, drain };
        let (service, counted, cut) = (self.service.clone(), Arc::clone(&self.counted), io.cut());
        let by_tls = agreed.is_some();
        let service = service_fn(move |mut request: Request<Incoming>| {
            if by_tls {
                request.extensions_mut().insert(ByTls);
            }
            let answered = Unanswered::new(&resets);
            let cut = (request.version() == Version::HTTP_10).then(|| cut.clone());
            if cut.is_some() {
                request.extensions_mut().insert(CanCut);
            }
            let in_hand = counted.request();
            let mut service = service.clone();
            let answer = in_hand.is_some().then(|| service.call(request));
            let unsent = unsent.clone();
            async move {
                let answer = match answer {
                    Some(answer) => answer.await.unwrap_or_else(|never| match never {}),
                    None => service.unserved().refuse(Refused::NoRoom(SOON)),
                };
                answered.disarm();
                Ok::<_, Infallible>(answer.map(|body| match (unsent, cut) {
                    (Some(unsent), _) => Sent::among(&unsent, body, in_hand),
                    (None, Some(cut)) => Sent::alone(body, in_hand).or(cut),
                    (None, None) => Sent::alone(body, in_hand),
                }))
            }
        });
        let (head, unreadable) = (self.service.head(), &self.service.unserved().unreadable);
        match protocol {
            Protocol::Http1 => {
                let mut builder = http1::Builder::new();
                builder
                    .timer(TokioTimer::new())
                    .header_read_timeout(self.limits.head.min(NEVER))
                    .max_buf_size(READ_AHEAD)
                    .half_close(false);
                // To say what it has anyway costs time for each head.
                if head.count != HEADERS {
                    builder.max_headers(head.count);
                }
                boxed(drive(builder.serve_connection(TokioIo::new(io), service), ends, unreadable)).await
            }
            Protocol::Http2 => {
                let mut builder = http2::Builder::new(TokioExecutor::new());
                builder
                    .timer(TokioTimer::new())
                    .max_concurrent_streams(self.limits.streams)
                    .max_pending_accept_reset_streams(RESETS.0)
                    .max_local_error_reset_streams(RESETS.1)
                    .max_header_list_size(header_list(head))
                    .initial_stream_window_size(WINDOWS.0)
                    .initial_connection_window_size(WINDOWS.1)
                    .max_send_buf_size(SEND_BUFFER)
                    .keep_alive_interval(ALIVE.0)
                    .keep_alive_timeout(ALIVE.1);
                boxed(drive(builder.serve_connection(TokioIo::new(io), service), ends, unreadable)).await
            }
        }
    }
}

/// What ends a connection from outside.
struct Ends {
    stopping: CancellationToken,
    too_many_resets: CancellationToken,
    /// The answers that the client must take, and in which time.
    stuck: Option<(Unsent, Duration)>,
    age: Duration,
    drain: Duration,
}

async fn drive<C: GracefulConnection<Error = hyper::Error>>(connection: C, ends: Ends, unreadable: &Counter) -> Ended {
    let Ends { stopping, too_many_resets, stuck, age, drain } = ends;
    let stuck = async {
        match stuck {
            Some((unsent, write_idle)) => unsent.stuck(write_idle).await,
            None => std::future::pending().await,
        }
    };
    // Errors are the client's: what it sent is no HTTP, or it is gone.
    let closed = |ended: hyper::Result<()>| {
        if ended.is_err_and(|error| error.is_parse()) {
            unreadable.increment(1);
        }
        Ended::Closed
    };
    let mut connection = pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return closed(ended),
        () = too_many_resets.clone().cancelled_owned() => return Ended::Closed,
        () = stopping.cancelled_owned() => {}
        () = stuck => {}
        () = sleep(age) => {}
    }
    connection.as_mut().graceful_shutdown();
    tokio::select! {
        ended = connection => closed(ended),
        () = too_many_resets.clone().cancelled_owned() => Ended::Closed,
        () = sleep(drain) => Ended::BrokenOff,
    }
}

/// Counts the requests of a connection that the client takes back.
struct Resets {
    left: AtomicI64,
    too_many: CancellationToken,
}

/// A request in hand.
struct Unanswered(Option<Arc<Resets>>);

impl Unanswered {
    fn new(resets: &Arc<Resets>) -> Self {
        Self(Some(Arc::clone(resets)))
    }

    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        if let Some(resets) = &self.0
            && resets.left.fetch_sub(1, Ordering::Relaxed) <= 0
        {
            resets.too_many.cancel();
        }
    }
}

/// What HTTP/2 counts of a head within these limits: beside its own bytes 32 for each header, and the target, the method and the
/// scheme as four headers more.
fn header_list(head: &HeadLimits) -> u32 {
    /// The names of those four, the longest method, and the scheme.
    const REQUEST: usize = 29 + LONGEST_METHOD + 5;
    let beside = head.count.saturating_add(4).saturating_mul(32).saturating_add(REQUEST);
    let bytes = head.bytes.saturating_add(head.uri).saturating_add(beside);
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// Says that a future can be sent where the compiler can still see it.
fn boxed<'a>(future: impl Future<Output = Ended> + Send + 'a) -> Pin<Box<dyn Future<Output = Ended> + Send + 'a>> {
    Box::pin(future)
}
