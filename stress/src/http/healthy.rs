//! Clients that ask, wait, and look at what they get.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request, Response,
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use tokio::{net::TcpSocket, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    book::{Answer, Book, Verdict, judge},
    site::{ASKED, COUNTS, DEADLINE, FRESH, HEAD, REUSED, THREE},
};

/// Who asks.
pub(super) struct Client {
    pub(super) server: SocketAddr,
    /// Its own address: what others do is not to be held against it.
    pub(super) from: IpAddr,
    pub(super) random: fastrand::Rng,
    pub(super) book: Arc<Mutex<Book>>,
}

/// A request and its answer.
struct Question {
    kind: &'static str,
    request: Request<Full<Bytes>>,
    right: Vec<u8>,
}

enum Connection {
    One(http1::SendRequest<Full<Bytes>>),
    Two(http2::SendRequest<Full<Bytes>>),
}

/// Longer than any request takes that is refused for its time.
const PATIENCE: Duration = DEADLINE.saturating_mul(3);

/// What a guest asks others for.
const PASSED_ON: &str = "what another has";

impl Client {
    /// Asks until it is over. What is asked by then is waited for.
    pub(super) async fn run(mut self, over: CancellationToken) {
        while !over.is_cancelled() {
            let is_two = self.random.bool();
            let mut connection = match tokio::time::timeout(PATIENCE, self.connect(is_two)).await {
                Ok(Ok(connection)) => connection,
                failed => {
                    self.book.lock().find(format!("a healthy client cannot connect: {:?}", failed.map(|_| ())));
                    return;
                }
            };
            let mut idle_since = Instant::now();
            // Some questions, on one connection.
            for _ in 0..self.random.u32(1..50) {
                if over.is_cancelled() {
                    break;
                }
                let Question { kind, request, right } = self.question();
                self.book.lock().asks(kind);
                // A server may close what is idle for so long, and may do so when the next request is on its way.
                let may_be_closed = idle_since.elapsed() >= HEAD / 2;
                let asked = tokio::time::timeout(PATIENCE, connection.ask(request)).await;
                let (verdict, goes_on) = match asked {
                    Ok(Ok(answer)) => (judge(&answer, &right, kind == PASSED_ON), answer.status == 200),
                    Ok(Err(_)) if may_be_closed => (Verdict::Again, false),
                    Ok(Err(error)) => (Verdict::Wrong(format!("no answer, {error:?}")), false),
                    Err(_) => (Verdict::Wrong("no answer in time".to_owned()), false),
                };
                self.book.lock().note(kind, verdict);
                if !goes_on {
                    break;
                }
                idle_since = Instant::now();
            }
        }
    }

    async fn connect(&self, is_two: bool) -> anyhow::Result<Connection> {
        let stream = connect(self.server, self.from).await?;
        stream.set_nodelay(true)?;
        let io = TokioIo::new(stream);
        Ok(if is_two {
            let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
            tokio::spawn(connection);
            Connection::Two(sender)
        } else {
            let (sender, connection) = http1::handshake(io).await?;
            tokio::spawn(connection);
            Connection::One(sender)
        })
    }

    fn question(&mut self) -> Question {
        let host = [FRESH, REUSED, THREE][self.random.usize(..3)];
        let is_fresh = host != REUSED;
        let ask_of = |host: &str, kind, method: Method, path: &str, body: Vec<u8>, right: Vec<u8>| {
            let request = Request::builder().method(method).uri(format!("http://{host}{path}"));
            let request = request.header("x-url", format!("http://127.0.0.1:{}/hello", self.server.port()));
            let request = request.body(Full::new(body.into())).expect("a request");
            Question { kind, request, right }
        };
        let ask = |kind, method, path: &str, body, right| ask_of(host, kind, method, path, body, right);
        match self.random.u32(0..12) {
            0..4 => ask("hello", Method::GET, "/hello", Vec::new(), b"hello".to_vec()),
            4 => ask("the head of hello", Method::HEAD, "/hello", Vec::new(), Vec::new()),
            5 => {
                let body: Vec<u8> = (0..self.random.usize(..200 << 10)).map(|at| at as u8).collect();
                ask("an echo", Method::POST, "/echo", body.clone(), body)
            }
            6 => {
                let bytes = self.random.usize(..100 << 10);
                ask("a length", Method::POST, "/read", vec![0; bytes], bytes.to_string().into_bytes())
            }
            7 => ask("drops", Method::GET, "/drip/1/5", Vec::new(), b"drop".repeat(5)),
            // Of fresh sandboxes it is known what they count.
            8 if is_fresh => ask("a count", Method::GET, "/count", Vec::new(), b"1".to_vec()),
            8 => ask("a wait", Method::GET, "/wait/5", Vec::new(), b"waited".to_vec()),
            9 => ask(PASSED_ON, Method::POST, "/fetch", Vec::new(), b"hello".to_vec()),
            // Nobody makes it count.
            10 => ask_of(ASKED, "an actor", Method::POST, "/", b"get".to_vec(), b"0".to_vec()),
            _ => {
                let path = format!("/ask/{COUNTS}");
                ask_of(THREE, "an actor behind another", Method::POST, &path, b"get".to_vec(), b"0".to_vec())
            }
        }
    }
}

impl Connection {
    async fn ask(&mut self, mut request: Request<Full<Bytes>>) -> hyper::Result<Answer> {
        let response = match self {
            Self::One(sender) => {
                let host = request.uri().host().and_then(|host| host.parse().ok()).expect("it has one");
                request.headers_mut().insert("host", host);
                *request.uri_mut() = request.uri().path().parse().expect("it has one");
                sender.ready().await?;
                sender.send_request(request).await?
            }
            Self::Two(sender) => {
                sender.ready().await?;
                sender.send_request(request).await?
            }
        };
        Ok(read(response).await)
    }
}

async fn read(response: Response<Incoming>) -> Answer {
    let status = response.status().as_u16();
    let header = response.headers().get("retry-after");
    let retry_after = header.and_then(|value| value.to_str().ok()?.parse().ok());
    let (mut incoming, mut body, mut is_whole) = (response.into_body(), Vec::new(), true);
    while let Some(frame) = incoming.frame().await {
        match frame {
            Ok(frame) => body.extend_from_slice(frame.data_ref().map_or(&[], |data| &data[..])),
            Err(_) => {
                is_whole = false;
                break;
            }
        }
    }
    Answer { status, retry_after, body, is_whole }
}

/// A connection from an address of its own, as far as the system has it.
pub(super) async fn connect(server: SocketAddr, from: IpAddr) -> std::io::Result<tokio::net::TcpStream> {
    let socket = TcpSocket::new_v4()?;
    _ = socket.bind(SocketAddr::new(from, 0));
    socket.connect(server).await
}
