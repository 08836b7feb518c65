//! Which target gets a request.

use airssys_wasm_http::{HttpService, Route, SameRoute, ServerLimits};
use http::Request;

use crate::support::{Server, empty, get, spec};

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

#[test]
fn the_same_route_twice_is_an_error() {
    let component = spec().build().unwrap();
    let twice = HttpService::builder().route(Route::all(), component.clone()).route(Route::all(), component);
    assert_eq!(twice.build().unwrap_err(), SameRoute(Route::all()));
}
