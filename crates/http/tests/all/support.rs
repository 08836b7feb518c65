//! A component behind a server on loopback, and clients of it.

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use airssys_wasm_engine::{EngineConfig, LoadedComponent, Profile, WasmEngine};
use airssys_wasm_http::{
    HttpComponent, HttpComponentSpec, HttpHost, HttpServer, HttpService, HttpState, HttpTarget, Route, ServerLimits,
    ServerReport, add_http,
};
use airssys_wasm_isolation::{SandboxSpec, add_wasi};
use airssys_wasm_limits::{ByteSize, ResourceLimits};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Full, combinators::UnsyncBoxBody};
use hyper::{
    body::{Body, Incoming},
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::JoinHandle,
};

/// Longer than any test waits for what must come, so that a test which fails does so.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The guest, compiled once for all tests.
pub(crate) fn web() -> LoadedComponent {
    static WEB: OnceLock<LoadedComponent> = OnceLock::new();
    let load = || {
        let engine = WasmEngine::new(EngineConfig::small().compile_in_process()).unwrap();
        engine.load_blocking(airssys_wasm_fixtures::WEB, Profile::Plain).unwrap()
    };
    WEB.get_or_init(load).clone()
}

pub(crate) fn limits() -> ResourceLimits {
    ResourceLimits { deadline: Duration::from_secs(30), ..ResourceLimits::with_memory(ByteSize::mib(32)) }
}

pub(crate) fn sandbox(component: &LoadedComponent, limits: ResourceLimits) -> SandboxSpec<HttpState> {
    let mut linker = component.linker();
    add_wasi(&mut linker).unwrap();
    add_http(&mut linker).unwrap();
    SandboxSpec::new(component.link(&linker).unwrap(), limits).unwrap()
}

pub(crate) fn spec() -> HttpComponentSpec {
    HttpComponentSpec::new("web", sandbox(&web(), limits()))
}

pub(crate) fn spec_with(limits: ResourceLimits) -> HttpComponentSpec {
    HttpComponentSpec::new("web", sandbox(&web(), limits))
}

/// A server that runs.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    running: JoinHandle<ServerReport>,
}

impl Server {
    pub(crate) async fn of(target: impl Into<HttpTarget>) -> Self {
        Self::with(service(target), ServerLimits::default()).await
    }

    pub(crate) async fn with(service: HttpService, limits: ServerLimits) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let server = HttpServer::new(service).with_limits(limits);
        let running = tokio::spawn(server.serve(listener, async { _ = stopped.await }));
        Self { address, stop: Some(stop), running }
    }

    pub(crate) fn stop(&mut self) {
        self.stop = None;
    }

    pub(crate) async fn ended(mut self) -> ServerReport {
        self.stop();
        tokio::time::timeout(PATIENCE, &mut self.running).await.unwrap().unwrap()
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, Bytes::new()).await
    }

    pub(crate) async fn post(&self, path: &str, body: impl Into<Bytes>) -> Answer {
        self.send(Method::POST, path, body.into()).await
    }

    pub(crate) async fn send(&self, method: Method, path: &str, body: Bytes) -> Answer {
        let request = Request::builder().method(method).uri(path).body(Full::new(body)).unwrap();
        self.request(request).await
    }

    /// By HTTP/1.1, on a connection of its own.
    pub(crate) async fn request<B>(&self, request: Request<B>) -> Answer
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        Answer::of(self.response(request).await).await
    }

    /// Whether an answer is broken off: at its head, or in its body.
    pub(crate) async fn is_broken_off(&self, request: Request<UnsyncBoxBody<Bytes, std::convert::Infallible>>) -> bool {
        match self.try_response(request).await {
            Ok(response) => !Answer::of(response).await.is_whole,
            Err(error) => error.is_incomplete_message(),
        }
    }

    pub(crate) async fn response<B>(&self, request: Request<B>) -> Response<Incoming>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        self.try_response(request).await.unwrap()
    }

    async fn try_response<B>(&self, mut request: Request<B>) -> hyper::Result<Response<Incoming>>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        if !request.headers().contains_key("host") {
            request.headers_mut().insert("host", "web.test".parse().unwrap());
        }
        tokio::time::timeout(PATIENCE, sender.send_request(request)).await.unwrap()
    }

    /// A connection of HTTP/2.
    pub(crate) async fn http2(&self) -> http2::SendRequest<UnsyncBoxBody<Bytes, std::convert::Infallible>> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        sender
    }

    /// Sends bytes as they are, and reads until the server closes.
    pub(crate) async fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        // The server may close before it has read all.
        _ = stream.write_all(bytes).await;
        read_all(&mut stream).await
    }
}

/// Reads until the end, or until the connection breaks.
pub(crate) async fn read_all(stream: &mut TcpStream) -> String {
    let mut read = Vec::new();
    _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut read)).await.unwrap();
    String::from_utf8_lossy(&read).into_owned()
}

/// Asks a server that is none of [`Server`]'s.
pub(crate) async fn get(address: SocketAddr, path: &str) -> Answer {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get(path).header("host", "web.test").body(empty()).unwrap();
    Answer::of(sender.send_request(request).await.unwrap()).await
}

pub(crate) fn service(target: impl Into<HttpTarget>) -> HttpService {
    HttpService::builder().route(Route::all(), target).build().unwrap()
}

/// An answer that was read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
    pub(crate) trailers: HeaderMap,
    /// Whether it ended as it should.
    pub(crate) is_whole: bool,
}

impl Answer {
    pub(crate) async fn of(response: Response<Incoming>) -> Self {
        let (parts, mut body) = response.into_parts();
        let (mut bytes, mut trailers, mut is_whole) = (Vec::new(), HeaderMap::new(), true);
        let reading = async {
            while let Some(frame) = body.frame().await {
                match frame.map(http_body::Frame::into_data) {
                    Ok(Ok(data)) => bytes.extend_from_slice(&data),
                    Ok(Err(frame)) => trailers = frame.into_trailers().unwrap(),
                    Err(_) => {
                        is_whole = false;
                        break;
                    }
                }
            }
        };
        tokio::time::timeout(PATIENCE, reading).await.unwrap();
        let body = String::from_utf8_lossy(&bytes).into_owned();
        Self { status: parts.status, headers: parts.headers, body, trailers, is_whole }
    }

    #[track_caller]
    pub(crate) fn is(&self, status: u16, body: &str) {
        assert_eq!((self.status.as_u16(), &*self.body, self.is_whole), (status, body, true));
    }

    pub(crate) fn retry_after(&self) -> Option<u64> {
        self.headers.get("retry-after")?.to_str().unwrap().parse().ok()
    }
}

pub(crate) fn empty() -> UnsyncBoxBody<Bytes, std::convert::Infallible> {
    Empty::new().boxed_unsync()
}

/// Waits until a component has this much room.
pub(crate) async fn until_room<U: HttpHost>(component: &HttpComponent<U>, room: usize) {
    let waiting = async {
        while component.room() != room {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap();
}

pub(crate) fn shared<T>(value: T) -> Arc<T> {
    Arc::new(value)
}
