//! `[http]` of a `Component.toml`.

use std::{fs, time::Duration};

use airssys_wasm_engine::{EngineConfig, WasmEngine};
use airssys_wasm_http::{
    AskActor, HttpManifest, HttpService, HttpTable, LoadHttpError, OutgoingScheme, Reuse, ServerLimits,
};
use airssys_wasm_limits::{ByteSize, ManifestError};
use http::Request;

use crate::{
    outgoing::{HELLO, other},
    support::{Server, empty},
};

const MANIFEST: &str = r#"
    [component]
    name = "cart"

    [resources]
    memory = "32MiB"

    [http]
    routes = [{ host = "*.shop.test", path = "/count" }, { path = "/hello" }]
    allow = [{ host = "db.test", scheme = "http", port = 8080, methods = ["GET"], addresses = ["10.0.0.0/8"] }]

    [http.limits]
    concurrency = 2
    request_body = "10 B"
    request_idle = "1s"
    reuse = { requests = 2, memory = "16MiB" }

    [http.outgoing]
    connections = 3

    [supervision]
    intensity = { restarts = 1, within = "1m" }
"#;

#[test]
fn a_manifest_says_what_a_component_gets_and_may() {
    let manifest = HttpManifest::from_toml(MANIFEST).unwrap();
    let HttpTable { routes, ask, limits, allow, outgoing } = &manifest.http;
    assert_eq!(
        routes.iter().map(|route| format!("{}{}", route.host, route.path)).collect::<Vec<_>>(),
        ["*.shop.test/count", "*/hello"]
    );
    assert!(!ask);
    assert_eq!((limits.concurrency, limits.request_body), (2, ByteSize::b(10)));
    assert_eq!(limits.reuse, Some(Reuse { memory: Some(ByteSize::mib(16)), ..Reuse::requests(2) }));
    assert_eq!((allow[0].scheme, allow[0].port), (OutgoingScheme::Http, Some(8080)));
    assert_eq!((outgoing.connections, outgoing.connect), (3, Duration::from_secs(5)));
    assert_eq!(manifest.supervision.intensity.restarts, 1);
    // What the table leaves out is as without it.
    assert_eq!(manifest.supervision.backoff.first, Duration::from_secs(1));
}

#[test]
fn what_is_wrong_is_said() {
    let wrong = |from: &str, to: &str| HttpManifest::from_toml(&MANIFEST.replace(from, to)).unwrap_err();
    let unknown = wrong("routes =", "rutes =");
    assert!(matches!(unknown, ManifestError::UnknownKey { table, key, .. } if table == "http" && key == "rutes"));
    for (from, to) in [
        ("\"GET\"", "\"G E T\""),
        ("10.0.0.0/8", "10.0.0.0/33"),
        ("\"*.shop.test\"", "\"shop.*\""),
        ("\"/hello\"", "\"hello\""),
        ("[http]\n", "[http]\nask = true\n"),
        ("concurrency", "concurency"),
    ] {
        assert!(matches!(wrong(from, to), ManifestError::Toml(_)), "{to}");
    }
    // Tables of actors would do nothing.
    assert!(matches!(wrong("[http]", "[messaging]\n[http]"), ManifestError::UnknownKey { .. }));
}

#[tokio::test]
async fn a_component_is_loaded_by_its_manifest() {
    let folder = tempfile::tempdir().unwrap();
    let (path, wasm) = (folder.path().join("Component.toml"), folder.path().join("web.wasm"));
    fs::write(&path, MANIFEST).unwrap();
    let engine = WasmEngine::new(EngineConfig::small().compile_in_process()).unwrap();
    let missing = HttpManifest::load(&engine, &path, None).await.unwrap_err();
    assert!(matches!(missing, LoadHttpError::WhichFile { found: 0, .. }));
    fs::write(&wasm, airssys_wasm_fixtures::WEB).unwrap();
    let (manifest, component) = HttpManifest::load(&engine, &path, None).await.unwrap();
    let service = HttpService::builder().routes(manifest.http.routes, component).build().unwrap();
    let server = Server::with(service, ServerLimits::default()).await;
    server.get("/hello").await.is(200, "hello");
    server.get("/count").await.is(404, "");
    let request = Request::get("/count").header("host", "a.shop.test").body(empty()).unwrap();
    server.request(request).await.is(200, "2");
    server.post("/hello", "x".repeat(11)).await.is(413, "");
    // It sends what it is granted.
    let (address, mut got) = other(HELLO).await;
    let port = address.port();
    let granted =
        format!("allow = [{{ host = '127.0.0.1', scheme = 'http', port = {port}, addresses = ['127.0.0.0/8'] }}]");
    let (from, to) = (MANIFEST.find("allow").unwrap(), MANIFEST.find("\n\n    [http.limits]").unwrap());
    fs::write(&path, [&MANIFEST[..from], &granted, &MANIFEST[to..]].concat()).unwrap();
    let (_, component) = HttpManifest::load(&engine, &path, None).await.unwrap();
    let server = Server::of(component).await;
    for (url, answer) in [
        (format!("http://127.0.0.1:{port}/"), "hello"),
        ("http://db.test:8080/".to_owned(), "ErrorCode::HttpRequestDenied"),
    ] {
        server.request(Request::get("/fetch").header("x-url", url).body(empty()).unwrap()).await.is(200, answer);
    }
    assert!(got.recv().await.is_some());
    // One that answers no HTTP.
    fs::write(&wasm, airssys_wasm_fixtures::WASI_PROBE).unwrap();
    assert!(matches!(HttpManifest::load(&engine, &path, None).await, Err(LoadHttpError::NoHandler(_))));
}

#[tokio::test]
async fn an_actor_is_asked_if_its_manifest_says_so() {
    let text = r#"
        [component]
        name = "counter"

        [resources]
        memory = "8MiB"

        [http]
        ask = true
        routes = [{ path = "/counter" }]
    "#;
    let (http, actor) = HttpTable::with_actor(text).unwrap();
    assert!(http.ask);
    let (_system, counter) = crate::asks::actor(|sandbox| actor.spec(sandbox)).await;
    let target = AskActor::new(counter, Duration::from_secs(10), http.limits);
    let service = HttpService::builder().routes(http.routes, target).build().unwrap();
    let server = Server::with(service, ServerLimits::default()).await;
    server.post("/counter", "add 2").await.is(200, "2");
    server.post("/other", "add 2").await.is(404, "");
}
