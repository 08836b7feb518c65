//! Which target gets a request.

use std::convert::Infallible;

use airssys_wasm_http::{AskActor, HttpService, Reuse, Route, RouteLimits, SameRoute, ServerLimits};
use bytes::Bytes;
use http::Request;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::{
    asks::counter,
    support::{Answer, PATIENCE, Server, empty, get, read_all, spec, until_room},
};

#[tokio::test]
async fn the_most_exact_route_gets_the_request() {
    let [domain, path, host] = [(); 3].map(|()| spec().build().unwrap());
    let hosts = |host: &str, path: &str| Route { host: host.parse().unwrap(), path: path.parse().unwrap() };
    let service = HttpService::builder()
        .route(hosts("*.test", "/"), domain.clone())
        .route(hosts("web.test", "/trap"), path.clone())
        .route(hosts("web.test", "/"), host.clone())
        .build()
        .unwrap();
    let server = Server::with(service, ServerLimits::default()).await;
    // Who crashes has got it.
    let took = async |to: &str, at: &str| {
        let mut events = [domain.events(), path.events(), host.events()];
        let request = Request::get(at).header("host", to).body(empty()).unwrap();
        let status = server.request(request).await.status.as_u16();
        (status, events.iter_mut().position(|events| events.try_recv().is_ok()))
    };
    assert_eq!(took("a.test", "/trap").await, (500, Some(0)));
    assert_eq!(took("WEB.test:80", "/trap").await, (500, Some(1)));
    assert_eq!(took("web.test", "/trap/below").await, (500, Some(1)));
    assert_eq!(took("web.test", "/grow/40").await, (500, Some(2)));
    assert_eq!(took("other.example", "/trap").await, (404, None));
}

#[tokio::test]
async fn a_service_works_inside_a_program_of_ones_own() {
    let router = axum::Router::new().route("/own", axum::routing::get(async || "own"));
    let (_system, counter) = counter().await;
    let service = HttpService::builder()
        .route(Route::all(), spec().build().unwrap())
        .route(Route::path("/ask").unwrap(), AskActor::new(counter, PATIENCE, RouteLimits::default()))
        .build()
        .unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(axum::serve(listener, router.fallback_service(service)).into_future());
    get(address, "/own").await.is(200, "own");
    get(address, "/hello").await.is(200, "hello");
    assert_eq!(get(address, "/trap").await.status, 500);
    // Where the end of a connection is that of a body, a crash would look like it.
    let raw = async |version: &str, path: &str| {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request =
            format!("POST {path} HTTP/{version}\r\nhost: a\r\nconnection: close\r\ncontent-length: 3\r\n\r\nget");
        stream.write_all(request.as_bytes()).await.unwrap();
        read_all(&mut stream).await
    };
    for path in ["/hello", "/trap-after"] {
        let refused = raw("1.0", path).await;
        assert!(refused.starts_with("HTTP/1.0 505 ") && refused.ends_with("\r\n\r\n"), "{refused}");
    }
    let broken = raw("1.1", "/trap-after").await;
    assert!(broken.starts_with("HTTP/1.1 200 ") && !broken.ends_with("0\r\n\r\n"), "{broken}");
    // What an actor answers has a length.
    let answer = raw("1.0", "/ask").await;
    assert!(answer.starts_with("HTTP/1.0 200 ") && answer.ends_with("\r\n\r\n0"), "{answer}");
}

/// A connection that is kept open.
async fn kept_open(server: &Server) -> SendRequest<UnsyncBoxBody<Bytes, Infallible>> {
    let stream = TcpStream::connect(server.address).await.unwrap();
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

async fn ask(sender: &mut SendRequest<UnsyncBoxBody<Bytes, Infallible>>, path: &str) -> Answer {
    sender.ready().await.unwrap();
    let request = Request::get(path).header("host", "web.test").body(empty()).unwrap();
    Answer::of(sender.send_request(request).await.unwrap()).await
}

#[tokio::test]
async fn a_component_is_replaced_under_open_connections_and_requests_in_hand_end_on_the_old() {
    let reused = || spec().with_limits(RouteLimits { reuse: Some(Reuse::requests(100)), ..RouteLimits::default() });
    let [old, new] = [reused().build().unwrap(), reused().build().unwrap()];
    let other = spec().build().unwrap();
    let service = HttpService::builder()
        .routes([Route::path("/count").unwrap(), Route::path("/drip").unwrap()], old.clone())
        .route(Route::all(), other.clone())
        .build()
        .unwrap();
    let server = Server::with(service.clone(), ServerLimits::default()).await;
    let (mut idle, mut busy) = (kept_open(&server).await, kept_open(&server).await);
    ask(&mut idle, "/count").await.is(200, "1");
    ask(&mut idle, "/count").await.is(200, "2");
    // A body that is being sent.
    busy.ready().await.unwrap();
    let request = Request::get("/drip/20/10").header("host", "web.test").body(empty()).unwrap();
    let in_hand = busy.send_request(request).await.unwrap();
    assert_eq!(service.replace(old.clone(), new.clone()), 2);
    assert_eq!(old.room(), 63);
    // A sandbox of the new one.
    ask(&mut idle, "/count").await.is(200, "1");
    Answer::of(in_hand).await.is(200, &"drop".repeat(10));
    until_room(&old, 64).await;
    // There is no route to it any more.
    assert_eq!(service.replace(old, other), 0);
    ask(&mut busy, "/count").await.is(200, "2");
}

#[tokio::test]
async fn routes_are_replaced_all_at_once_or_not_at_all() {
    let component = spec().build().unwrap();
    let service = HttpService::builder().route(Route::path("/hello").unwrap(), component.clone()).build().unwrap();
    let server = Server::with(service.clone(), ServerLimits::default()).await;
    let mut open = kept_open(&server).await;
    ask(&mut open, "/hello").await.is(200, "hello");
    let twice = HttpService::builder().route(Route::all(), component.clone()).route(Route::all(), component.clone());
    assert_eq!(service.set_routes(twice).unwrap_err(), SameRoute(Route::all()));
    ask(&mut open, "/hello").await.is(200, "hello");
    service.set_routes(HttpService::builder().route(Route::path("/count").unwrap(), component)).unwrap();
    ask(&mut open, "/hello").await.is(404, "");
    ask(&mut open, "/count").await.is(200, "1");
}

#[test]
fn the_same_route_twice_is_an_error() {
    let component = spec().build().unwrap();
    let twice = HttpService::builder().route(Route::all(), component.clone()).route(Route::all(), component);
    assert_eq!(twice.build().unwrap_err(), SameRoute(Route::all()));
}
