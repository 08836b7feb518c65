//! Bounds of bodies.

use std::{convert::Infallible, time::Duration};

use airssys_wasm_http::RouteLimits;
use airssys_wasm_limits::{ByteSize, ResourceLimits};
use bytes::Bytes;
use http::Request;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tokio::sync::mpsc;

use crate::support::{Server, empty, limits, spec, spec_with, until_room};

type Sender = mpsc::Sender<Result<Frame<Bytes>, Infallible>>;

/// A body without a length.
fn streamed() -> (Sender, impl http_body::Body<Data = Bytes, Error = Infallible> + Send + 'static) {
    let (sender, mut receiver) = mpsc::channel(4);
    (sender, StreamBody::new(futures_util::stream::poll_fn(move |cx| receiver.poll_recv(cx))))
}

fn small() -> RouteLimits {
    RouteLimits {
        request_body: ByteSize::kib(100),
        response_body: ByteSize::kib(100),
        request_idle: Duration::from_millis(200),
        ..RouteLimits::default()
    }
}

#[tokio::test]
async fn a_body_that_is_too_large_is_413_by_its_length_and_by_its_bytes() {
    let component = spec().with_limits(small()).build().unwrap();
    let server = Server::of(component.clone()).await;
    server.post("/read", vec![0; 100 << 10]).await.is(200, "102400");
    server.post("/read", vec![0; (100 << 10) + 1]).await.is(413, "");
    let (sender, body) = streamed();
    // One byte too many, and then nothing: what is closed with bytes unread is reset, and an answer may be lost with it.
    let sending = tokio::spawn(async move {
        for bytes in [vec![0; 100 << 10], vec![0]] {
            sender.send(Ok(Frame::data(bytes.into()))).await.unwrap();
        }
        sender
    });
    server.request(Request::post("/read").body(body).unwrap()).await.is(413, "");
    drop(sending.await.unwrap());
    until_room(&component, 64).await;
    // The guest is not to blame.
    assert_eq!(component.closed_for(), None);
}

#[tokio::test]
async fn a_body_that_stands_still_is_408() {
    let component = spec().with_limits(small()).build().unwrap();
    let mut events = component.events();
    let server = Server::of(component.clone()).await;
    let (sender, body) = streamed();
    sender.send(Ok(Frame::data(Bytes::from("part")))).await.unwrap();
    server.request(Request::post("/read").body(body).unwrap()).await.is(408, "");
    drop(sender);
    // One that is not read has all the time of the guest.
    let (sender, body) = streamed();
    server.request(Request::post("/wait/500").body(body).unwrap()).await.is(200, "waited");
    drop(sender);
    assert!(events.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn a_body_that_drips_is_408() {
    let drip = async |request_rate| {
        let limits = RouteLimits { request_rate, ..small() };
        let server = Server::of(spec().with_limits(limits).build().unwrap()).await;
        let (sender, body) = streamed();
        let sending = async {
            // Never idle for long, and some 20 KiB a second.
            for _ in 0..20 {
                if sender.send(Ok(Frame::data(Bytes::from_static(&[0; 1 << 10])))).await.is_err() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            drop(sender);
        };
        tokio::join!(server.request(Request::post("/read").body(body).unwrap()), sending).0
    };
    drip(ByteSize::mib(1)).await.is(408, "");
    drip(ByteSize::kib(1)).await.is(200, "20480");
}

#[tokio::test]
async fn a_deadline_while_the_guest_waits_for_the_client_is_408() {
    let limits = ResourceLimits { deadline: Duration::from_millis(300), ..limits() };
    let component = spec_with(limits).build().unwrap();
    let mut events = component.events();
    let server = Server::of(component).await;
    let (_sender, body) = streamed();
    server.request(Request::post("/read").body(body).unwrap()).await.is(408, "");
    assert!(events.try_recv().is_err());
    // The control: while it waits for something else.
    let (_sender, body) = streamed();
    server.request(Request::post("/wait/10000").body(body).unwrap()).await.is(504, "");
    events.recv().await.unwrap();
    // As well after it has asked for the body, and for something else since.
    let (_sender, body) = streamed();
    server.request(Request::post("/peek/10000").body(body).unwrap()).await.is(504, "");
    events.recv().await.unwrap();
}

#[tokio::test]
async fn an_answer_that_is_too_large_is_broken_off() {
    let component = spec().with_limits(small()).build().unwrap();
    let server = Server::of(component.clone()).await;
    let answer = server.get("/flood").await;
    assert!(!answer.is_whole && answer.body.len() <= 100 << 10);
    until_room(&component, 64).await;
    let echoed = server.post("/echo", vec![b'x'; 100 << 10]).await;
    assert!(echoed.is_whole && echoed.body.len() == 100 << 10);
}

#[tokio::test]
async fn a_client_that_reads_nothing_holds_back_the_guest() {
    let limits = ResourceLimits { deadline: Duration::from_millis(500), ..limits() };
    let component = spec_with(limits).build().unwrap();
    let mut events = component.events();
    let server = Server::of(component.clone()).await;
    let response = server.response(Request::get("/flood").body(empty()).unwrap()).await;
    // Its deadline ends it, which closes no route.
    events.recv().await.unwrap();
    until_room(&component, 64).await;
    assert_eq!(component.closed_for(), None);
    let sent = response.into_body().collect().await;
    assert!(sent.is_err());
}

#[tokio::test]
async fn a_guest_has_so_many_bodies_at_a_time() {
    let server = Server::of(spec().build().unwrap()).await;
    // And one of the answer itself: with 64, it would have none.
    server.get("/bodies/63").await.is(200, "63");
    assert_eq!(server.get("/bodies/1000").await.status, 500);
}

#[tokio::test]
async fn a_guest_has_so_many_heads_at_a_time() {
    let server = Server::of(spec().build().unwrap()).await;
    server.get("/heads/100").await.is(200, "100");
    assert_eq!(server.get("/heads/500").await.status, 500);
}

#[tokio::test]
async fn the_lines_of_a_request_that_a_guest_makes_have_bounds() {
    let server = Server::of(spec().build().unwrap()).await;
    server.get("/lines/20").await.is(200, "true true");
    server.get("/lines/1024").await.is(200, "false true");
    server.get("/lines/1025").await.is(200, "false false");
    server.get("/lines/524288").await.is(200, "false false");
}
