//! What goes in and comes out.

use bytes::Bytes;
use http::{HeaderMap, Method, Request};
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt, Full, StreamBody};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{Answer, Server, empty, read_all, spec};

#[tokio::test]
async fn a_component_answers() {
    let server = Server::of(spec().build().unwrap()).await;
    server.get("/hello").await.is(200, "hello");
    server.get("/nothing").await.is(404, "");
    assert_eq!(server.ended().await.accepted, 2);
}

#[tokio::test]
async fn a_component_answers_by_http2_many_times_at_once() {
    let server = Server::of(spec().build().unwrap()).await;
    let mut sender = server.http2().await;
    // Now the client knows how many it may send at a time.
    let first = Request::get("http://web.test/hello").body(empty()).unwrap();
    Answer::of(sender.send_request(first).await.unwrap()).await.is(200, "hello");
    let requests = (0..50).map(|_| {
        let mut sender = sender.clone();
        tokio::spawn(async move {
            let request = Request::builder().uri("http://web.test/hello").body(empty()).unwrap();
            Answer::of(sender.send_request(request).await.unwrap()).await
        })
    });
    for request in requests.collect::<Vec<_>>() {
        request.await.unwrap().is(200, "hello");
    }
}

#[tokio::test]
async fn each_request_has_a_sandbox_of_its_own() {
    let server = Server::of(spec().build().unwrap()).await;
    for _ in 0..3 {
        server.get("/count").await.is(200, "1");
    }
}

#[tokio::test]
async fn a_guest_sees_the_request_as_it_came() {
    let server = Server::of(spec().build().unwrap()).await;
    let request = Request::builder()
        .method(Method::PUT)
        .uri("/request?x=%20")
        .header("host", "web.test:81")
        .header("x-mine", "yes")
        .header("connection", "keep-alive, upgrade")
        .header("upgrade", "websocket")
        .header("proxy-authorization", "secret")
        .body(Full::new(Bytes::new()))
        .unwrap();
    let answer = server.request(request).await;
    answer.is(200, "PUT\nhttp\nweb.test:81\n/request?x=%20\nx-mine: yes\n");
}

#[tokio::test]
async fn bodies_and_trailers_go_both_ways() {
    let server = Server::of(spec().build().unwrap()).await;
    let body = vec![b'x'; 1 << 20];
    let answer = server.post("/echo", body.clone()).await;
    assert!(answer.is_whole && answer.body.as_bytes() == body);

    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", "12".parse().unwrap());
    let frames = || {
        let trailers = trailers.clone();
        let frames = [Frame::data(Bytes::from("part")), Frame::data(Bytes::from("ial")), Frame::trailers(trailers)];
        StreamBody::new(futures_util::stream::iter(frames.map(Ok::<_, std::convert::Infallible>)))
    };
    let request = Request::post("/echo").header("trailer", "x-sum").header("te", "trailers").body(frames()).unwrap();
    let answer = server.request(request).await;
    answer.is(200, "partial");
    assert_eq!(answer.trailers, trailers);

    let request = Request::post("http://web.test/echo").body(frames().boxed_unsync()).unwrap();
    let answer = Answer::of(server.http2().await.send_request(request).await.unwrap()).await;
    answer.is(200, "partial");
    assert_eq!(answer.trailers, trailers);
}

#[tokio::test]
async fn a_body_is_echoed_before_its_end() {
    let server = Server::of(spec().build().unwrap()).await;
    let (sender, mut receiver) = tokio::sync::mpsc::channel::<Result<Frame<Bytes>, std::convert::Infallible>>(1);
    let body = StreamBody::new(futures_util::stream::poll_fn(move |cx| receiver.poll_recv(cx)));
    let mut response = server.response(Request::post("/echo").body(body).unwrap()).await;
    for part in ["one", "two", "three"] {
        sender.send(Ok(Frame::data(Bytes::from(part)))).await.unwrap();
        assert_eq!(response.body_mut().frame().await.unwrap().unwrap().into_data().unwrap(), part);
    }
    drop(sender);
    assert!(response.body_mut().frame().await.is_none());
}

#[tokio::test]
async fn a_head_request_has_no_body() {
    let server = Server::of(spec().build().unwrap()).await;
    server.send(Method::HEAD, "/hello", Bytes::new()).await.is(200, "");
    server.send(Method::HEAD, "/too-short", Bytes::new()).await.is(200, "");
}

#[tokio::test]
async fn an_answer_without_a_body_ends_with_its_head() {
    let server = Server::of(spec().build().unwrap()).await;
    for (method, path, status, length) in [
        (Method::HEAD, "/hello", 200, None),
        (Method::HEAD, "/trap-at-the-end", 200, Some("4")),
        (Method::GET, "/status/204", 204, None),
        (Method::GET, "/status/304", 304, None),
    ] {
        let request = Request::builder().method(&method).uri(format!("http://web.test{path}")).body(empty()).unwrap();
        let response = server.http2().await.send_request(request).await.unwrap();
        assert!(response.body().is_end_stream(), "{path}");
        assert_eq!(response.status(), status);
        assert_eq!(response.headers().get("content-length").map(|length| length.to_str().unwrap()), length, "{path}");
        let request = Request::builder().method(method).uri(path).body(empty()).unwrap();
        let answer = server.request(request).await;
        answer.is(status, "");
        assert_eq!(answer.headers.get("content-length").map(|length| length.to_str().unwrap()), length, "{path}");
    }
}

#[tokio::test]
async fn a_connection_serves_one_request_after_the_other() {
    let server = Server::of(spec().build().unwrap()).await;
    let hello = "GET /hello HTTP/1.1\r\nhost: a\r\n\r\n";
    let echo = "POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nyes";
    // A crash is no reason to close it; a body that nobody reads is read over.
    let trap = "POST /trap HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc";
    let last = "GET /hello HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    let answers = server.raw([hello, echo, hello, trap, last].concat().as_bytes()).await;
    let statuses: Vec<_> = answers.split("HTTP/1.1 ").skip(1).map(|answer| &answer[..3]).collect();
    assert_eq!(statuses, ["200", "200", "200", "500", "200"], "{answers}");
}

#[tokio::test]
async fn a_client_that_asks_first_is_told_to_go_on_when_the_guest_reads() {
    let server = Server::of(spec().build().unwrap()).await;
    let head = |path: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 3\r\nconnection: close\r\n\r\n"
        )
    };
    let mut stream = tokio::net::TcpStream::connect(server.address).await.unwrap();
    stream.write_all(head("/read").as_bytes()).await.unwrap();
    let mut go_on = [0; 25];
    stream.read_exact(&mut go_on).await.unwrap();
    assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"abc").await.unwrap();
    assert!(read_all(&mut stream).await.starts_with("HTTP/1.1 200"));
    // The control: one that does not read.
    assert!(server.raw(head("/hello").as_bytes()).await.starts_with("HTTP/1.1 200"));
}
