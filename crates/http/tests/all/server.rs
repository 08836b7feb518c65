//! Connections: how many, how long, and how they end.

use std::{convert::Infallible, time::Duration};

use airssys_wasm_http::{RouteLimits, ServerLimits};
use bytes::Bytes;
use http::Request;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
    time::Instant,
};

use crate::support::{Answer, PATIENCE, Server, empty, read_all, service, spec, until_room};

#[tokio::test]
async fn a_server_that_stops_answers_what_it_has() {
    let component = spec().build().unwrap();
    let mut server = Server::of(component.clone()).await;
    let response = server.response(Request::get("/drip/20/10").body(empty()).unwrap()).await;
    let mut idle = TcpStream::connect(server.address).await.unwrap();
    idle.write_all(b"GET /hello HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut some = [0; 12];
    idle.read_exact(&mut some).await.unwrap();
    server.stop();
    // An idle connection is closed; nobody is accepted.
    read_all(&mut idle).await;
    Answer::of(response).await.is(200, &"drop".repeat(10));
    let address = server.address;
    let report = server.ended().await;
    assert_eq!((report.accepted, report.broken_off), (2, 0));
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn a_server_that_stops_answers_what_it_has_by_http2() {
    let mut server = Server::of(spec().build().unwrap()).await;
    let mut sender = server.http2().await;
    let drip = || Request::get("http://web.test/drip/20/10").body(empty()).unwrap();
    let response = sender.send_request(drip()).await.unwrap();
    server.stop();
    Answer::of(response).await.is(200, &"drop".repeat(10));
    // And takes no more.
    let refused = async { while sender.send_request(drip()).await.is_ok() {} };
    tokio::time::timeout(PATIENCE, refused).await.unwrap();
    assert_eq!(server.ended().await.broken_off, 0);
}

#[tokio::test(start_paused = true)]
async fn a_client_of_http2_that_answers_no_ping_is_gone() {
    let server = Server::of(spec().build().unwrap()).await;
    let began = Instant::now();
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    // With its settings, and nothing after that.
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    read_all(&mut stream).await;
    let lasted = began.elapsed().as_secs();
    assert!((30..40).contains(&lasted), "{lasted}");
    // The control: one that answers them.
    let mut sender = server.http2().await;
    tokio::time::sleep(Duration::from_secs(100)).await;
    let request = Request::get("http://web.test/hello").body(empty()).unwrap();
    Answer::of(sender.send_request(request).await.unwrap()).await.is(200, "hello");
}

#[tokio::test]
async fn what_does_not_end_in_time_is_broken_off() {
    let component = spec().build().unwrap();
    let limits = ServerLimits { drain: Duration::from_millis(100), ..ServerLimits::default() };
    let server = Server::with(service(component.clone()), limits).await;
    let response = server.response(Request::get("/drip/1/1000000").body(empty()).unwrap()).await;
    // Not one that has nothing in hand.
    let idle = TcpStream::connect(server.address).await.unwrap();
    let report = server.ended().await;
    assert_eq!(report.broken_off, 1);
    drop(idle);
    assert!(!Answer::of(response).await.is_whole);
    until_room(&component, 64).await;
}

#[tokio::test]
async fn an_old_connection_takes_no_more_requests() {
    let limits = ServerLimits { age: Duration::from_millis(200), ..ServerLimits::default() };
    let server = Server::with(service(spec().build().unwrap()), limits).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(b"GET /wait/400 HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let answer = read_all(&mut stream).await;
    assert!(answer.contains("connection: close") && answer.contains("waited"), "{answer}");
}

#[tokio::test]
async fn times_may_be_without_end() {
    let never = Duration::MAX;
    let limits = ServerLimits { head: never, write_idle: never, age: never, drain: never, ..ServerLimits::default() };
    let server = Server::with(service(spec().build().unwrap()), limits).await;
    server.get("/hello").await.is(200, "hello");
    let request = Request::get("http://web.test/hello").body(empty()).unwrap();
    Answer::of(server.http2().await.send_request(request).await.unwrap()).await.is(200, "hello");
    server.ended().await;
}

#[tokio::test]
async fn an_address_has_so_many_connections() {
    let limits = ServerLimits { connections_per_address: 2, ..ServerLimits::default() };
    let server = Server::with(service(spec().build().unwrap()), limits).await;
    let hello = b"GET /hello HTTP/1.1\r\nhost: a\r\n\r\n";
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(hello).await.unwrap();
        stream.read_exact(&mut [0; 12]).await.unwrap();
        held.push(stream);
    }
    assert_eq!(server.raw(hello).await, "");
    held.clear();
    let again = async {
        loop {
            if server.raw(b"GET /hello HTTP/1.0\r\nhost: a\r\n\r\n").await.starts_with("HTTP/1.0 200") {
                break;
            }
        }
    };
    tokio::time::timeout(PATIENCE, again).await.unwrap();
    assert!(server.ended().await.refused >= 1);
}

#[tokio::test]
async fn there_are_so_many_connections_and_the_next_waits() {
    let limits = ServerLimits { connections: 1, ..ServerLimits::default() };
    let server = Server::with(service(spec().build().unwrap()), limits).await;
    let hello = b"GET /hello HTTP/1.0\r\nhost: a\r\n\r\n";
    let mut held = TcpStream::connect(server.address).await.unwrap();
    held.write_all(b"GET /hello HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    held.read_exact(&mut [0; 12]).await.unwrap();
    let mut waiting = Box::pin(server.raw(hello));
    // The server has all the time that another answer takes.
    for _ in 0..100 {
        assert!(futures_util::poll!(&mut waiting).is_pending());
        tokio::task::yield_now().await;
    }
    held.write_all(b"GET /hello HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    held.read_exact(&mut [0; 12]).await.unwrap();
    assert!(futures_util::poll!(&mut waiting).is_pending());
    drop(held);
    assert!(waiting.await.starts_with("HTTP/1.0 200"));
}

/// A client of HTTP/2 whose window is this large. Its connection says when it ends.
async fn with_window(
    server: &Server,
    window: u32,
) -> (http2::SendRequest<UnsyncBoxBody<Bytes, Infallible>>, JoinHandle<()>) {
    let stream = TcpStream::connect(server.address).await.unwrap();
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.initial_stream_window_size(window);
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.unwrap();
    (sender, tokio::spawn(async { _ = connection.await }))
}

#[tokio::test]
async fn a_client_that_opens_no_window_is_given_up() {
    let component = spec().build().unwrap();
    let limits = ServerLimits {
        write_idle: Duration::from_millis(100),
        drain: Duration::from_millis(100),
        ..ServerLimits::default()
    };
    let server = Server::with(service(component.clone()), limits).await;
    // The guest has ended; it has not; the client takes a byte.
    for (path, window) in [("/hello", 0), ("/flood", 0), ("/flood", 1)] {
        let (mut sender, ended) = with_window(&server, window).await;
        let request = Request::get(format!("http://web.test{path}")).body(empty()).unwrap();
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.status(), 200);
        tokio::time::timeout(Duration::from_secs(10), ended).await.unwrap().unwrap();
        drop(response);
        until_room(&component, 64).await;
    }
    // The control: a client that waits for its guest, for longer than that.
    let (mut sender, _ended) = with_window(&server, 1 << 16).await;
    let request = Request::get("http://web.test/drip/700/2").body(empty()).unwrap();
    Answer::of(sender.send_request(request).await.unwrap()).await.is(200, "dropdrop");
}

#[tokio::test]
async fn an_address_has_so_many_requests_in_hand() {
    let component = spec().build().unwrap();
    let limits = ServerLimits { requests_per_address: 2, ..ServerLimits::default() };
    let server = Server::with(service(component.clone()), limits).await;
    let first = server.response(Request::get("/drip/1/1000000").body(empty()).unwrap()).await;
    let mut sender = server.http2().await;
    let request = Request::get("http://web.test/drip/1/1000000").body(empty()).unwrap();
    let second = sender.send_request(request).await.unwrap();
    for _ in 0..2 {
        let answer = server.get("/hello").await;
        answer.is(503, "");
        assert_eq!(answer.retry_after(), Some(1));
    }
    drop(first);
    until_room(&component, 63).await;
    server.get("/hello").await.is(200, "hello");
    drop(second);
}

#[tokio::test]
async fn one_connection_does_not_hold_all_of_a_route() {
    let (route, defaults) = (RouteLimits { concurrency: 4, ..RouteLimits::default() }, ServerLimits::default());
    assert!(defaults.streams * 2 <= RouteLimits::default().concurrency);
    let component = spec().with_limits(route).build().unwrap();
    let server = Server::with(service(component.clone()), ServerLimits { streams: 2, ..defaults }).await;
    let mut sender = server.http2().await;
    let request = |path: &str| Request::get(format!("http://web.test{path}")).body(empty()).unwrap();
    Answer::of(sender.send_request(request("/hello")).await.unwrap()).await.is(200, "hello");
    let mut waiting: Vec<_> = (0..10).map(|_| Box::pin(sender.send_request(request("/wait/25000")))).collect();
    let all = async {
        while component.room() != 2 {
            waiting.iter_mut().for_each(|waiting| _ = futures_util::FutureExt::now_or_never(waiting));
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, all).await.unwrap();
    server.get("/hello").await.is(200, "hello");
    assert_eq!(component.room(), 2);
}
