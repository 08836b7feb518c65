//! Clients that do their worst.

use std::{convert::Infallible, time::Duration};

use airssys_wasm_http::{HttpEvent, ServerLimits};
use airssys_wasm_isolation::CrashClass;
use airssys_wasm_limits::ResourceLimits;
use http::Request;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    crashes::at_the_third,
    support::{Answer, PATIENCE, Server, empty, limits, read_all, service, spec, spec_with, until_room},
};

/// The status of an answer, 0 for none.
fn status(answer: &str) -> u16 {
    answer.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)).map_or(0, |status| status.parse().unwrap())
}

#[tokio::test]
async fn requests_that_could_mean_two_things_are_400() {
    let server = Server::of(spec().build().unwrap()).await;
    for request in [
        "GET /hello HTTP/1.1\r\n\r\n",
        "GET /hello HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        "GET /hello HTTP/1.1\r\nhost: a@b\r\n\r\n",
        "GET http://other.test/hello HTTP/1.1\r\nhost: a\r\n\r\n",
        "POST /read HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\ncontent-length: 5\r\n\r\nxxxxx",
        "POST /read HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n",
        "POST /read HTTP/1.1\r\nhost: a\r\ncontent-length: +4\r\n\r\nxxxx",
        "POST /read HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip\r\n\r\n",
        "GET /hello HTTP/1.1\r\nhost: a\r\nbad header: x\r\n\r\n",
        "GET /hello HTTP/1.1\r\nhost: a\r\nx : y\r\n\r\n",
        "CONNECT web.test:443 HTTP/1.1\r\nhost: web.test:443\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n",
        "AMETHODOFTHIRTYTHREECHARACTERSXXX /hello HTTP/1.1\r\nhost: a\r\n\r\n",
        "nonsense\r\n\r\n",
    ] {
        let answer = server.raw(request.as_bytes()).await;
        assert_eq!(status(&answer), 400, "{request:?}: {answer}");
        // One answer, and the end of the connection.
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{request:?}: {answer}");
    }
    server.get("/hello").await.is(200, "hello");
}

#[tokio::test]
async fn a_request_behind_a_body_is_none() {
    let server = Server::of(spec().build().unwrap()).await;
    // With two lengths: the first counts, and the connection ends with it.
    for lengths in
        ["transfer-encoding: chunked\r\ncontent-length: 40", "content-length: 40\r\ntransfer-encoding: chunked"]
    {
        let smuggled = format!(
            "POST /read HTTP/1.1\r\nhost: a\r\n{lengths}\r\n\r\n0\r\n\r\nGET /trap HTTP/1.1\r\nhost: a\r\n\r\n"
        );
        let answer = server.raw(smuggled.as_bytes()).await;
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{lengths}: {answer}");
    }
    // The control: an absolute URI of the same host.
    let answer = server.raw(b"GET http://a/hello HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    assert!(status(&answer) == 200 && answer.contains("hello"), "{answer}");
}

#[tokio::test]
async fn an_upgrade_is_not_offered() {
    let server = Server::of(spec().build().unwrap()).await;
    let answer = server
        .raw(b"GET /hello HTTP/1.1\r\nhost: a\r\nconnection: upgrade, close\r\nupgrade: h2c\r\nhttp2-settings: x\r\n\r\n")
        .await;
    assert!(status(&answer) == 200 && answer.contains("hello"), "{answer}");
}

#[tokio::test]
async fn heads_that_are_too_large_are_431_or_414() {
    let server = Server::of(spec().build().unwrap()).await;
    let head = |extra: &str| format!("GET /hello HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{extra}\r\n");
    assert_eq!(status(&server.raw(head("").as_bytes()).await), 200);
    let long = format!("x: {}\r\n", "x".repeat(17 << 10));
    assert_eq!(status(&server.raw(head(&long).as_bytes()).await), 431);
    let many = "x: y\r\n".repeat(101);
    assert_eq!(status(&server.raw(head(&many).as_bytes()).await), 431);
    let uri = format!("GET /{} HTTP/1.1\r\nhost: a\r\n\r\n", "x".repeat(9 << 10));
    assert_eq!(status(&server.raw(uri.as_bytes()).await), 414);
    // Without an end.
    let endless = format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}", "x".repeat(1 << 18));
    let answer = server.raw(endless.as_bytes()).await;
    assert_eq!(status(&answer), 431, "{answer}");
    let mut sender = server.http2().await;
    let request = Request::get("http://web.test/hello").header("x", "x".repeat(17 << 10)).body(empty()).unwrap();
    assert_eq!(sender.send_request(request).await.unwrap().status(), 431);
    server.get("/hello").await.is(200, "hello");
}

#[tokio::test]
async fn a_head_may_have_all_that_its_bounds_permit_by_either_protocol() {
    let server = Server::of(spec().build().unwrap()).await;
    let mut sender = server.http2().await;
    for (headers, cookie, expected) in
        [(98, 9 << 10, 200), (98, 15 << 10, 200), (99, 15 << 10, 431), (98, 17 << 10, 431)]
    {
        let request = |uri: &str| {
            let mut request = Request::get(format!("{uri}/hello?{}", "x".repeat(8_000)));
            for at in 0..headers {
                request = request.header(format!("x-{at}"), "y");
            }
            request.header("cookie", "z".repeat(cookie)).header("host", "web.test").body(empty()).unwrap()
        };
        assert_eq!(server.request(request("")).await.status, expected, "{headers}, {cookie}");
        let answer = sender.send_request(request("http://web.test")).await.unwrap();
        assert_eq!(answer.status(), expected, "{headers}, {cookie}");
    }
}

#[tokio::test]
async fn a_slow_head_is_given_up() {
    let limits = ServerLimits { head: Duration::from_millis(100), ..ServerLimits::default() };
    let server = Server::with(service(spec().build().unwrap()), limits).await;
    // Nothing; a part of what HTTP/2 begins with; a part of a head; nothing after a request.
    for begun in ["", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r", "GET /hello HTT", "GET /hello HTTP/1.1\r\nhost: a\r\n"] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(begun.as_bytes()).await.unwrap();
        let answer = read_all(&mut stream).await;
        assert!([0, 408].contains(&status(&answer)), "{begun:?}: {answer}");
    }
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(b"GET /hello HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let answer = read_all(&mut stream).await;
    assert!(status(&answer) == 200 && answer.contains("hello"), "{answer}");
}

#[tokio::test]
async fn an_endless_chunked_body_is_413() {
    let component = spec().build().unwrap();
    let server = Server::of(component.clone()).await;
    let stream = TcpStream::connect(server.address).await.unwrap();
    let (mut reader, mut writer) = stream.into_split();
    let flooding = tokio::spawn(async move {
        let head = "POST /read HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
        let chunk = format!("10000\r\n{}\r\n", "x".repeat(1 << 16));
        if writer.write_all(head.as_bytes()).await.is_ok() {
            while writer.write_all(chunk.as_bytes()).await.is_ok() {}
        }
    });
    let mut answer = [0; 12];
    reader.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 413");
    drop(reader);
    flooding.await.unwrap();
    until_room(&component, 64).await;
}

#[tokio::test]
async fn a_body_in_tiny_chunks_closes_no_route() {
    let limits = ResourceLimits { host_calls: 5_000, cpu_time: Duration::from_secs(20), ..limits() };
    let component = spec_with(limits).with_restart(at_the_third()).build().unwrap();
    let mut events = component.events();
    let server = Server::of(component.clone()).await;
    let post = async |path: &str, chunks: usize| {
        let head =
            format!("POST {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n");
        status(&server.raw([&*head, &"1\r\nx\r\n".repeat(chunks), "0\r\n\r\n"].concat().as_bytes()).await)
    };
    assert_eq!(post("/read", 500).await, 200);
    for _ in 0..5 {
        assert_eq!(post("/read", 50_000).await, 413);
        // It has begun to answer.
        assert_eq!(post("/echo", 50_000).await, 200);
        for _ in 0..2 {
            let HttpEvent::Crashed { crash, .. } = events.recv().await.unwrap() else { panic!("it crashed") };
            assert_eq!(crash.kind().class(), CrashClass::HostCalls);
        }
    }
    assert_eq!(component.closed_for(), None);
    // The control: as many host calls that are the guest's own.
    for _ in 0..3 {
        assert!(!server.get("/drip/0/5000").await.is_whole);
        let HttpEvent::Crashed { crash, .. } = events.recv().await.unwrap() else { panic!("it crashed") };
        assert_eq!(crash.kind().class(), CrashClass::HostCalls);
    }
    assert!(component.closed_for().is_some());
}

#[tokio::test]
async fn a_body_that_breaks_off_is_nobodys_crash() {
    let component = spec().build().unwrap();
    let mut events = component.events();
    let server = Server::of(component.clone()).await;
    for _ in 0..30 {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(b"POST /read HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\npart").await.unwrap();
        drop(stream);
    }
    server.get("/hello").await.is(200, "hello");
    until_room(&component, 64).await;
    assert!(events.try_recv().is_err());
}

#[tokio::test]
async fn requests_that_are_taken_back_in_a_storm_close_the_connection() {
    let component = spec().build().unwrap();
    let limits = ServerLimits { resets: 20, ..ServerLimits::default() };
    let server = Server::with(service(component.clone()), limits).await;
    let mut sender = server.http2().await;
    let mut taken_back = 0;
    while sender.ready().await.is_ok() {
        let request = Request::get("http://web.test/wait/25000").body(empty()).unwrap();
        let mut waiting = Box::pin(sender.send_request(request));
        // Until the guest runs, or the connection is gone.
        while component.room() == 64 {
            if futures_util::poll!(&mut waiting).is_ready() {
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(waiting);
        until_room(&component, 64).await;
        taken_back += 1;
        assert!(taken_back < 100, "the connection is still there");
    }
    assert!(taken_back >= 20);
    // The control: answers do not count, and other connections are served.
    let mut sender = server.http2().await;
    for _ in 0..50 {
        let request = Request::get("http://web.test/hello").body(empty()).unwrap();
        assert_eq!(sender.send_request(request).await.unwrap().status(), 200);
    }
}

#[tokio::test]
async fn bodies_of_http2_that_are_not_as_long_as_they_say_are_reset_and_many_of_them_end_the_connection() {
    let component = spec().build().unwrap();
    let mut events = component.events();
    // Of the requests that end without an answer none is to be counted here.
    let limits = ServerLimits { resets: 1_000, ..ServerLimits::default() };
    let server = Server::with(service(component.clone()), limits).await;
    let read = |said: u64, body: &'static str| {
        let request = Request::post("http://web.test/read").header("content-length", said);
        let frames = StreamBody::new(futures_util::stream::iter([Ok::<_, Infallible>(Frame::data(body.into()))]));
        request.body(frames.boxed_unsync()).unwrap()
    };
    let mut sender = server.http2().await;
    Answer::of(sender.send_request(read(4, "part")).await.unwrap()).await.is(200, "4");
    // Too short and too long.
    let mut reset = 0;
    while sender.ready().await.is_ok() {
        let said = [3, 5][reset % 2];
        match sender.send_request(read(said, "part")).await {
            Ok(answer) => panic!("{said}: {answer:?}"),
            Err(error) => assert!(!error.is_canceled() || reset >= 100, "{reset}: {error:?}"),
        }
        reset += 1;
        assert!(reset < 200, "the connection is still there");
    }
    assert!(reset >= 100, "{reset}");
    until_room(&component, 64).await;
    assert!(events.try_recv().is_err());
    assert_eq!(component.closed_for(), None);
}

#[tokio::test]
async fn idle_connections_in_a_flood_keep_nobody_out() {
    let limits = ServerLimits { connections_per_address: 1_001, ..ServerLimits::default() };
    let server = Server::with(service(spec().build().unwrap()), limits).await;
    let mut idle = Vec::new();
    for _ in 0..1_000 {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(b"GET /hello HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        idle.push(stream);
    }
    for stream in &mut idle {
        stream.read_exact(&mut [0; 12]).await.unwrap();
    }
    server.get("/hello").await.is(200, "hello");
    // A server that stops closes them at once.
    assert_eq!(server.ended().await.broken_off, 0);
}

#[tokio::test]
async fn hostile_clients_leave_no_task_behind() {
    let component = spec().build().unwrap();
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    let server = Server::of(component.clone()).await;
    for _ in 0..10 {
        for begun in [
            "GET /hello HTT",
            "POST /read HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\npart",
            "GET /flood HTTP/1.1\r\nhost: a\r\n\r\n",
            "GET /wait/25000 HTTP/1.1\r\nhost: a\r\n\r\n",
            "GET /trap-after HTTP/1.1\r\nhost: a\r\n\r\n",
        ] {
            let mut stream = TcpStream::connect(server.address).await.unwrap();
            stream.write_all(begun.as_bytes()).await.unwrap();
            if begun.contains("flood") || begun.contains("after") {
                stream.read_exact(&mut [0; 12]).await.unwrap();
            }
        }
    }
    server.get("/hello").await.is(200, "hello");
    until_room(&component, 64).await;
    server.ended().await;
    let gone = async {
        while tasks() > before {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.unwrap();
}

/// A frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&len[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Sends a beginning, and then this without end, until the server has enough. Reads nothing meanwhile.
async fn flood(server: &Server, begin: &[u8], flood: &[u8]) {
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(&[PREFACE, &frame(4, 0, 0, &[]), begin].concat()).await.unwrap();
    let many = flood.repeat(100);
    let flooding = async { while stream.write_all(&many).await.is_ok() {} };
    tokio::time::timeout(PATIENCE, flooding).await.unwrap();
}

#[tokio::test]
async fn floods_of_frames_end_their_connection_and_no_other() {
    let limits = ServerLimits { write_idle: Duration::from_millis(200), ..ServerLimits::default() };
    let server = Server::with(service(spec().build().unwrap()), limits).await;
    let mut other = server.http2().await;
    // Settings and pings, each of which is acknowledged to a client that does not read.
    flood(&server, &[], &frame(4, 0, 0, &[0, 4, 0, 0, 0, 0])).await;
    flood(&server, &[], &frame(6, 0, 0, &[0; 8])).await;
    // A head that never ends: with fields, and with nothing.
    let head = frame(1, 0, 1, &[0x82, 0x86, 0x84]);
    let field = [&[0x40, 1, b'x', 100][..], &[b'y'; 100]].concat();
    flood(&server, &head, &frame(9, 0, 1, &field)).await;
    flood(&server, &head, &frame(9, 0, 1, &[])).await;
    let request = Request::get("http://web.test/hello").body(empty()).unwrap();
    assert_eq!(other.send_request(request).await.unwrap().status(), 200);
}
