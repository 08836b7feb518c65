//! Requests of guests to others, by `outgoing-handler` of 0.2 and by `client` of 0.3.

use std::{
    convert::Infallible,
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use airssys_wasm_http::{Allow, AllowedMethod, HttpEvent, Outgoing, OutgoingLimits, OutgoingScheme, Resolve};
use airssys_wasm_limits::ByteSize;
use bytes::Bytes;
use http::{HeaderMap, Method, Request};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::mpsc,
    time::timeout,
};

use crate::{
    fronts::Site,
    p3::{fetching3, listening},
    support::{Answer, PATIENCE, Server, empty, shared, spec},
};

/// Gives these addresses, each at one look-up, and counts them.
#[derive(Debug)]
struct Addresses {
    answers: Vec<Vec<IpAddr>>,
    asked: AtomicUsize,
}

impl Addresses {
    fn of(answers: &[&[&str]]) -> std::sync::Arc<Self> {
        let answers = answers.iter().map(|answer| answer.iter().map(|address| address.parse().unwrap()).collect());
        shared(Self { answers: answers.collect(), asked: AtomicUsize::new(0) })
    }
}

impl Resolve for Addresses {
    fn resolve(&self, _: &str) -> Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>> {
        let nth = self.asked.fetch_add(1, Ordering::Relaxed);
        let answer = self.answers[nth.min(self.answers.len() - 1)].clone();
        Box::pin(async move { Ok(answer) })
    }
}

/// Another host, which answers each request by these bytes and says what it got.
pub(crate) async fn other(answer: &'static str) -> (SocketAddr, mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (got, received) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let got = got.clone();
            tokio::spawn(async move {
                let mut request = Vec::new();
                // A body, if there is one, is chunked: it ends with an empty chunk and trailers.
                loop {
                    if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
                        break;
                    }
                    let text = String::from_utf8_lossy(&request);
                    let is_whole = match text.split_once("\r\n\r\n") {
                        Some((head, body)) if head.contains("chunked") => {
                            body.contains("0\r\n") && body.ends_with("\r\n\r\n")
                        }
                        Some(_) => true,
                        None => false,
                    };
                    if is_whole {
                        break;
                    }
                }
                _ = got.send(String::from_utf8_lossy(&request).into_owned());
                _ = stream.write_all(answer.as_bytes()).await;
                // Until the client is gone.
                _ = stream.read_to_end(&mut request).await;
            });
        }
    });
    (address, received)
}

pub(crate) const HELLO: &str = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";

pub(crate) fn allow(host: &str, port: u16, addresses: &[&str]) -> Allow {
    Allow {
        scheme: OutgoingScheme::Http,
        port: Some(port),
        addresses: addresses.iter().map(|range| range.parse().unwrap()).collect(),
        ..Allow::https(host.parse().unwrap())
    }
}

/// A guest of each version of WASI, and its server.
struct Fetching {
    servers: [Server; 2],
    _site: Site,
}

impl Fetching {
    fn servers(&self) -> &[Server] {
        &self.servers
    }
}

async fn fetching(outgoing: Outgoing) -> Fetching {
    let (_site, _, other) = fetching3(outgoing.clone()).await;
    Fetching { servers: [Server::of(spec().with_outgoing(outgoing).build().unwrap()).await, other], _site }
}

async fn fetch(server: &Server, url: &str) -> Answer {
    server.request(Request::post("/fetch").header("x-url", url).body(empty()).unwrap()).await
}

#[tokio::test]
async fn nothing_is_granted_that_is_not_named() {
    let (address, mut got) = other(HELLO).await;
    for server in fetching(Outgoing::default()).await.servers() {
        fetch(server, &format!("http://{address}/")).await.is(200, "ErrorCode::HttpRequestDenied");
    }
    let get = Allow {
        methods: Some(vec![AllowedMethod(Method::GET)]),
        ..allow("127.0.0.1", address.port(), &["127.0.0.1/32"])
    };
    let port = address.port();
    let with = |url: String, method: &str| {
        Request::post("/fetch").header("x-url", url).header("x-method", method).body(empty()).unwrap()
    };
    for server in fetching(Outgoing::new(vec![get], OutgoingLimits::default())).await.servers() {
        for (url, method) in [
            (format!("http://127.0.0.1:{port}/"), "POST"),
            (format!("http://127.0.0.1:{port}/"), "CONNECT"),
            (format!("http://127.0.0.1:{}/", port ^ 1), "GET"),
            (format!("http://localhost:{port}/"), "GET"),
            (format!("https://127.0.0.1:{port}/"), "GET"),
        ] {
            server.request(with(url.clone(), method)).await.is(200, "ErrorCode::HttpRequestDenied");
        }
        assert!(got.try_recv().is_err());
        server.request(with(format!("http://127.0.0.1:{port}/"), "GET")).await.is(200, "hello");
        assert!(got.recv().await.unwrap().starts_with("GET / HTTP/1.1\r\n"));
    }
}

#[tokio::test]
async fn an_address_that_is_not_public_is_refused_unless_it_is_granted() {
    let (address, mut got) = other(HELLO).await;
    let port = address.port();
    // By name: what it resolves to counts, every one of it.
    for addresses in [&["127.0.0.1"][..], &["1.1.1.1", "127.0.0.1"], &["::ffff:127.0.0.1"], &["169.254.169.254"]] {
        let resolver = Addresses::of(&[addresses]);
        let outgoing = Outgoing::with_resolver(vec![allow("*", port, &[])], OutgoingLimits::default(), resolver);
        for server in fetching(outgoing).await.servers() {
            let answer = fetch(server, &format!("http://evil.test:{port}/")).await;
            answer.is(200, "ErrorCode::DestinationIpProhibited");
        }
    }
    // By address, in all the ways to write one.
    for server in fetching(Outgoing::new(vec![allow("*", port, &[])], OutgoingLimits::default())).await.servers() {
        for host in
            ["127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "127.1", "2130706433", "0x7f000001", "localhost", "0.0.0.0"]
        {
            let answer = fetch(server, &format!("http://{host}:{port}/")).await;
            answer.is(200, "ErrorCode::DestinationIpProhibited");
        }
    }
    assert!(got.try_recv().is_err());
    let resolver = Addresses::of(&[&["127.0.0.1"]]);
    let granted = vec![allow("good.test", port, &["127.0.0.0/8"])];
    for server in fetching(Outgoing::with_resolver(granted, OutgoingLimits::default(), resolver)).await.servers() {
        fetch(server, &format!("http://good.test:{port}/")).await.is(200, "hello");
        assert!(got.recv().await.is_some());
    }
}

#[tokio::test]
async fn a_name_is_looked_up_once_and_what_was_checked_is_connected_to() {
    let (address, mut got) = other(HELLO).await;
    let port = address.port();
    for version in 0..2 {
        // The second answer would not be permitted, and is not asked for.
        let resolver = Addresses::of(&[&["127.0.0.1"], &["169.254.169.254"]]);
        let granted = vec![allow("rebind.test", port, &["127.0.0.1/32"])];
        let fetching = fetching(Outgoing::with_resolver(granted, OutgoingLimits::default(), resolver.clone())).await;
        let server = &fetching.servers()[version];
        fetch(server, &format!("http://rebind.test:{port}/x?y")).await.is(200, "hello");
        assert_eq!(resolver.asked.load(Ordering::Relaxed), 1);
        let request = got.recv().await.unwrap();
        assert!(request.starts_with("GET /x?y HTTP/1.1\r\n"), "{request}");
        assert_eq!(request.to_lowercase().matches("host:").count(), 1, "{request}");
        assert!(request.contains(&format!("host: rebind.test:{port}\r\n")), "{request}");
        // The next request asks again, and is refused.
        fetch(server, &format!("http://rebind.test:{port}/")).await.is(200, "ErrorCode::DestinationIpProhibited");
    }
}

#[tokio::test]
async fn a_guest_cannot_name_another_host() {
    let (address, mut got) = other(HELLO).await;
    let port = address.port();
    let granted = vec![allow("127.0.0.1", port, &["127.0.0.1/32"])];
    for server in fetching(Outgoing::new(granted, OutgoingLimits::default())).await.servers() {
        for name in ["host", "transfer-encoding", "connection", "upgrade", "proxy-authorization"] {
            let request = Request::post("/fetch").header("x-url", format!("http://127.0.0.1:{port}/"));
            let request = request.header(format!("x-{name}"), "evil").body(empty()).unwrap();
            server.request(request).await.is(200, &format!("header {name} refused"));
        }
        for url in [
            format!("http://evil@127.0.0.1:{port}/"),
            format!("http://127.0.0.1:{port}x/"),
            "http://127.0.0.1:/".into(),
        ] {
            let answer = fetch(server, &url).await;
            assert!(
                ["not a request", "ErrorCode::HttpRequestUriInvalid"].contains(&&*answer.body),
                "{url}: {answer:?}"
            );
        }
        assert!(got.try_recv().is_err());
        let request =
            Request::post("/fetch").header("x-url", format!("http://127.0.0.1:{port}/")).header("x-mine", "yes");
        server.request(request.body(empty()).unwrap()).await.is(200, "hello");
        assert!(got.recv().await.unwrap().contains("mine: yes\r\n"));
    }
}

#[tokio::test]
async fn redirects_are_the_guests_business() {
    let (address, mut got) =
        other("HTTP/1.1 302 Found\r\nlocation: http://169.254.169.254/\r\ncontent-length: 0\r\n\r\n").await;
    let granted = vec![allow("127.0.0.1", address.port(), &["127.0.0.1/32"])];
    for server in fetching(Outgoing::new(granted, OutgoingLimits::default())).await.servers() {
        let answer = fetch(server, &format!("http://{address}/")).await;
        assert_eq!(answer.status, 302);
        assert_eq!(answer.headers["location"], "http://169.254.169.254/");
        got.recv().await.unwrap();
        assert!(got.try_recv().is_err());
    }
}

#[tokio::test]
async fn trailers_of_a_response_survive() {
    let (address, _got) = other(
        "HTTP/1.1 200 OK\r\ntrailer: x-sum\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nx-sum: 12\r\n\r\n",
    )
    .await;
    let granted = vec![allow("127.0.0.1", address.port(), &["127.0.0.1/32"])];
    for server in fetching(Outgoing::new(granted, OutgoingLimits::default())).await.servers() {
        let request = Request::post("/fetch").header("x-url", format!("http://{address}/")).header("te", "trailers");
        let answer = server.request(request.body(empty()).unwrap()).await;
        answer.is(200, "hello");
        assert_eq!(answer.trailers["x-sum"], "12");
    }
}

#[tokio::test]
async fn responses_have_bounds() {
    let (address, _got) = other(HELLO).await;
    let granted = || vec![allow("127.0.0.1", address.port(), &["127.0.0.1/32"])];
    let url = format!("http://{address}/");
    let limits = OutgoingLimits { response_body: ByteSize::b(5), ..OutgoingLimits::default() };
    for server in fetching(Outgoing::new(granted(), limits)).await.servers() {
        fetch(server, &url).await.is(200, "hello");
    }
    let limits = OutgoingLimits { response_body: ByteSize::b(4), ..limits };
    for server in fetching(Outgoing::new(granted(), limits)).await.servers() {
        let request = Request::post("/fetch").header("x-url", &url).body(empty()).unwrap();
        assert!(server.is_broken_off(request).await);
    }
    let limits = OutgoingLimits { connections: 0, ..OutgoingLimits::default() };
    for server in fetching(Outgoing::new(granted(), limits)).await.servers() {
        fetch(server, &url).await.is(200, "ErrorCode::ConnectionLimitReached");
    }
}

#[tokio::test]
async fn a_host_that_does_not_answer_is_given_up() {
    let (address, _got) = other("").await;
    let granted = vec![allow("127.0.0.1", address.port(), &["127.0.0.1/32"])];
    let limits = OutgoingLimits { time: Duration::from_millis(200), ..OutgoingLimits::default() };
    for server in fetching(Outgoing::new(granted, limits)).await.servers() {
        fetch(server, &format!("http://{address}/")).await.is(200, "ErrorCode::ConnectionReadTimeout");
    }
}

#[tokio::test]
async fn connections_end_with_their_guest() {
    let (address, mut got) = other("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n").await;
    let granted = vec![allow("127.0.0.1", address.port(), &["127.0.0.1/32"])];
    let limits = OutgoingLimits { connections: 1, ..OutgoingLimits::default() };
    let request = || Request::post("/fetch").header("x-url", format!("http://{address}/")).body(empty()).unwrap();
    for version in 0..2 {
        let fetching = fetching(Outgoing::new(granted.clone(), limits)).await;
        let server = &fetching.servers()[version];
        let hanging = server.response(request()).await;
        got.recv().await.unwrap();
        server.request(request()).await.is(200, "ErrorCode::ConnectionLimitReached");
        drop(hanging);
        let again = async {
            loop {
                let response = server.response(request()).await;
                if let Ok(_request) = got.try_recv() {
                    break drop(response);
                }
            }
        };
        tokio::time::timeout(crate::support::PATIENCE, again).await.unwrap();
    }
}

#[tokio::test]
async fn a_trace_goes_on_unless_the_guest_has_its_own() {
    let (address, mut got) = other(HELLO).await;
    let granted = vec![allow("127.0.0.1", address.port(), &["127.0.0.1/32"])];
    let fetching = fetching(Outgoing::new(granted, OutgoingLimits::default())).await;
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let request = || {
        let request = Request::post("/fetch").header("x-url", format!("http://{address}/"));
        request.header("traceparent", trace).header("tracestate", "vendor=it")
    };
    for server in fetching.servers() {
        server.request(request().body(empty()).unwrap()).await.is(200, "hello");
        let sent = got.recv().await.unwrap();
        // The call of the guest is the span that sends.
        let (of_trace, _) = trace.split_at(36);
        let (_, rest) = sent.split_once(of_trace).unwrap();
        let (span, rest) = rest.split_once('-').unwrap();
        assert!(span.len() == 16 && span != "b7ad6b7169203331" && rest.starts_with("01\r\n"), "{sent}");
        assert!(sent.contains("\r\ntracestate: vendor=it\r\n"), "{sent}");
        server.request(request().header("x-traceparent", "own").body(empty()).unwrap()).await.is(200, "hello");
        let sent = got.recv().await.unwrap();
        assert!(sent.contains("traceparent: own\r\n") && !sent.contains(trace), "{sent}");
        // It belongs to the other trace.
        assert!(!sent.contains("tracestate"), "{sent}");
    }
}

#[tokio::test]
async fn a_connection_has_its_time_though_the_guest_does_not_read() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let granted = vec![allow("127.0.0.1", address.port(), &["127.0.0.1/32"])];
    let limits = OutgoingLimits { time: Duration::from_millis(200), ..OutgoingLimits::default() };
    for server in fetching(Outgoing::new(granted, limits)).await.servers() {
        let url = format!("http://{address}");
        let request = Request::get("/hold/25000").header("x-url", url).body(empty()).unwrap();
        let holding = server.request(request);
        let other = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 16];
            stream.read_exact(&mut request).await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n").await.unwrap();
            _ = stream.read_to_end(&mut Vec::new()).await;
        };
        // The connection ends while the guest waits for something else, and long before it has done so.
        tokio::select! {
            ended = tokio::time::timeout(Duration::from_secs(10), other) => ended.unwrap(),
            answer = holding => panic!("{answer:?} came first"),
        }
    }
}

/// Never answers.
#[derive(Debug)]
struct Silent;

impl Resolve for Silent {
    fn resolve(&self, _: &str) -> Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>> {
        Box::pin(std::future::pending())
    }
}

#[tokio::test]
async fn a_look_up_has_its_time() {
    let limits = OutgoingLimits { connect: Duration::from_millis(100), ..OutgoingLimits::default() };
    let outgoing = Outgoing::with_resolver(vec![allow("slow.test", 80, &[])], limits, shared(Silent));
    for server in fetching(outgoing).await.servers() {
        fetch(server, "http://slow.test/").await.is(200, "ErrorCode::DnsTimeout");
    }
}

#[tokio::test]
async fn connecting_has_its_time() {
    // Linux answers nobody for whom a listener has no place.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut waiting = Vec::new();
    while let Ok(connected) = timeout(Duration::from_millis(500), TcpStream::connect(address)).await {
        waiting.push(connected.unwrap());
        assert!(waiting.len() < 100, "it has a place for everybody");
    }
    let granted = || vec![allow("127.0.0.1", address.port(), &["127.0.0.1/32"])];
    let limits = OutgoingLimits { connect: Duration::from_millis(100), ..OutgoingLimits::default() };
    for server in fetching(Outgoing::new(granted(), limits)).await.servers() {
        fetch(server, &format!("http://{address}/")).await.is(200, "ErrorCode::ConnectionTimeout");
    }
}

/// Sends this body on to another host, with such a trailer, and gives what comes back.
pub(crate) async fn there_and_back(server: &Server, path: &str, to: SocketAddr) -> Answer {
    let trailers = HeaderMap::from_iter([("x-more".parse().unwrap(), "42".parse().unwrap())]);
    let frames = [Frame::data(Bytes::from("question")), Frame::trailers(trailers)].map(Ok::<_, Infallible>);
    let body = StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync();
    let request = Request::post(format!("http://web.test{path}")).header("x-url", format!("http://{to}/"));
    let request = request.header("x-method", "POST").header("x-trailer", "x-more").header("trailer", "x-more");
    Answer::of(server.http2().await.send_request(request.body(body).unwrap()).await.unwrap()).await
}

pub(crate) const TRAILER: &str =
    "HTTP/1.1 200 OK\r\ntrailer: x-sum\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nx-sum: 12\r\n\r\n";

#[tokio::test]
async fn bodies_and_trailers_go_out_and_come_back() {
    let (address, mut got) = other(TRAILER).await;
    let granted = vec![allow("127.0.0.1", address.port(), &["127.0.0.1/32"])];
    for server in fetching(Outgoing::new(granted, OutgoingLimits::default())).await.servers() {
        let answer = there_and_back(server, "/fetch", address).await;
        answer.is(200, "hello");
        assert_eq!(answer.trailers.get("x-sum").unwrap(), "12");
        let sent = got.recv().await.unwrap();
        assert!(sent.contains("\r\nquestion\r\n0\r\nx-more: 42\r\n\r\n"), "{sent}");
    }
}

#[tokio::test]
async fn a_request_that_is_too_large_is_broken_off() {
    let (address, mut got) = other(HELLO).await;
    let granted = vec![allow("127.0.0.1", address.port(), &["127.0.0.1/32"])];
    let limits = OutgoingLimits { request_body: ByteSize::b(4), ..OutgoingLimits::default() };
    for server in fetching(Outgoing::new(granted, limits)).await.servers() {
        let post = |body: &'static str| {
            let request = Request::post("/fetch").header("x-url", format!("http://{address}/"));
            server.request(request.header("x-method", "POST").body(Full::from(body)).unwrap())
        };
        let answer = post("12345").await;
        assert!(answer.body.starts_with("ErrorCode::"), "{answer:?}");
        let sent = timeout(PATIENCE, got.recv()).await.unwrap().unwrap();
        assert!(!sent.contains("\r\n0\r\n") && !sent.contains("12345"), "{sent}");
        post("1234").await.is(200, "hello");
        let sent = got.recv().await.unwrap();
        assert!(sent.ends_with("\r\n4\r\n1234\r\n0\r\n\r\n"), "{sent}");
    }
}

#[tokio::test]
async fn a_request_that_a_guest_of_0_2_does_not_finish_is_broken_off() {
    for (path, length) in [("/fetch-trap", false), ("/fetch-give-up", false), ("/fetch-trap", true)] {
        let (outgoing, url, got) = listening().await;
        let component = spec().with_outgoing(outgoing).build().unwrap();
        let mut events = component.events();
        let request = Request::get(path).header("x-url", url);
        let request = if length { request.header("x-content-length", "4") } else { request };
        let answer = Server::of(component).await.request(request.body(empty()).unwrap()).await;
        let got = timeout(PATIENCE, got).await.unwrap().unwrap();
        assert!(got.starts_with("POST / HTTP/1.1\r\n"), "{got}");
        let is_complete = if length { got.ends_with("\r\n\r\npart") } else { got.contains("\r\n0\r\n") };
        assert!(!is_complete, "{path}: {got}");
        if path == "/fetch-trap" {
            assert_eq!(answer.status, 500);
            assert!(matches!(events.recv().await.unwrap(), HttpEvent::Crashed { .. }));
        } else {
            answer.is(200, "an answer");
        }
    }
}
