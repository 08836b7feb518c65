//! Which target gets a request.

use std::convert::Infallible;

use airssys_wasm_http::{HttpService, Reuse, Route, RouteLimits, SameRoute, ServerLimits};
use bytes::Bytes;
use http::Request;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::support::{Answer, Server, empty, get, spec, until_room};

#[tokio::test]
async fn the_most_exact_route_gets_the_request() {
    let [hello, count, echo] = ["hello", "count", "echo"].map(|_| spec().build().unwrap());
    let hosts = |host: &str, path: &str| Route { host: host.parse().unwrap(), path: path.parse().unwrap() };
    let service = HttpService::builder()
        .route(hosts("*.test", "/"), hello.clone())
        .route(hosts("web.test", "/count"), count.clone())
        .route(hosts("web.test", "/"), echo.clone())
        .build()
        .unwrap();
    let server = Server::with(service, ServerLimits::default()).await;
    let took = async |host: &str, path: &str| {
        let (mut events, name) = ([hello.events(), count.events(), echo.events()], format!("{host}{path}"));
        let request = Request::get("/trap").header("host", host).uri(path).body(empty()).unwrap();
        let status = server.request(request).await.status.as_u16();
        let took = events.iter_mut().position(|events| events.try_recv().is_ok());
        (name, status, took)
    };
    assert_eq!(took("a.test", "/trap").await.2, Some(0));
    assert_eq!(took("WEB.test:80", "/trap").await.2, Some(2));
    let (_, status, took_it) = took("other.example", "/trap").await;
    assert_eq!((status, took_it), (404, None));
    let request = Request::get("/count/x").header("host", "web.test").body(empty()).unwrap();
    server.request(request).await.is(200, "1");
}

#[tokio::test]
async fn a_service_works_inside_a_program_of_ones_own() {
    let router = axum::Router::new().route("/own", axum::routing::get(async || "own"));
    let service = HttpService::builder().route(Route::all(), spec().build().unwrap()).build().unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(axum::serve(listener, router.fallback_service(service)).into_future());
    get(address, "/own").await.is(200, "own");
    get(address, "/hello").await.is(200, "hello");
    assert_eq!(get(address, "/trap").await.status, 500);
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
