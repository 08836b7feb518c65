//! A component that answers HTTP, and an actor, as componentize-js builds them by default. They are built by
//! `cargo xtask fixtures --ecosystem`, and left out with a word where that was not run.

use std::{net::SocketAddr, time::Duration};

use airssys_wasm_engine::{EngineConfig, PoolConfig, Profile, WasmEngine};
use airssys_wasm_fixtures::ecosystem;
use airssys_wasm_http::{Allow, HttpComponent, HttpComponentSpec, Outgoing, OutgoingLimits, OutgoingScheme};
use airssys_wasm_limits::{ByteSize, ResourceLimits};
use http::Request;

use crate::{
    fronts::Site,
    support::{Server, empty, sandbox, spec},
};

/// A guest, if it was built, and an engine for it.
fn guest(name: &str) -> Option<(Vec<u8>, WasmEngine)> {
    let bytes = ecosystem::built(name)?;
    let config = EngineConfig {
        pool: Some(PoolConfig::for_components(8)),
        parallel_compilation: true,
        code_cache: Some(ecosystem::target().join("guests/code-cache")),
        ..EngineConfig::default().compile_in_process()
    };
    Some((bytes, WasmEngine::new(config).unwrap()))
}

/// The component, if it was built.
async fn built(outgoing: Outgoing) -> Option<HttpComponent> {
    let (bytes, engine) = guest("javascript-web")?;
    let component = engine.load(bytes, Profile::Plain).await.unwrap();
    let limits = ResourceLimits {
        cpu_time: Duration::from_secs(5),
        deadline: Duration::from_secs(60),
        ..ResourceLimits::with_memory(ByteSize::mib(128))
    };
    let spec = HttpComponentSpec::new("javascript", sandbox(&component, limits)).with_outgoing(outgoing);
    Some(spec.build().unwrap())
}

fn to(host: SocketAddr) -> Outgoing {
    let grant = Allow {
        scheme: OutgoingScheme::Http,
        port: Some(host.port()),
        addresses: vec!["127.0.0.0/8".parse().unwrap()],
        ..Allow::https(host.ip().to_string().parse().unwrap())
    };
    Outgoing::new(vec![grant], OutgoingLimits::default())
}

#[tokio::test]
async fn a_javascript_component_answers() {
    let other = Server::of(spec().build().unwrap()).await;
    let Some(component) = built(to(other.address)).await else { return };
    let server = Server::of(component.clone()).await;
    server.get("/hello").await.is(200, "hello");
    server.get("/nowhere").await.is(404, "");
    let body = "x".repeat(200_000);
    server.post("/echo", body.clone()).await.is(200, &body);
    let json = server.post("/json?a=b", r#"{"x":[1,2]}"#).await;
    json.is(200, r#"{"method":"POST","search":"?a=b","body":{"x":[1,2]}}"#);
    let ask = |url: String| Request::get("/fetch").header("x-url", url).body(empty()).unwrap();
    server.request(ask(format!("http://{}/hello", other.address))).await.is(200, "hello");
    // What nobody catches: its engine begins a 500, and does not finish it. The second request is not granted.
    for request in ["/throw HTTP/1.1", "/fetch HTTP/1.1\r\nx-url: http://127.0.0.1:1/"] {
        let answer = server.raw(format!("GET {request}\r\nhost: a.test\r\n\r\n").as_bytes()).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 500 "), "{answer}");
        assert!(!answer.contains("told to") && !answer.ends_with("0\r\n\r\n"), "{answer}");
    }
    assert_eq!(server.get("/spin").await.status, 500);
    server.get("/hello").await.is(200, "hello");
    assert_eq!(component.closed_for(), None);
}

#[tokio::test]
async fn a_javascript_actor_sends_as_it_is_granted() {
    let Some((wasm, engine)) = guest("javascript-messaging-defaults") else { return };
    let other = Server::of(spec().build().unwrap()).await;
    let site = Site::with(engine);
    let load = async |name: &str, http: String| {
        let resources = "memory = '128MiB'\ncpu_time = '10s'\ndeadline = '60s'";
        let loaded = site.load(&wasm, &format!("[component]\nname = '{name}'\n[resources]\n{resources}\n{http}")).await;
        // It imports what answers HTTP, and exports none of it.
        assert!(loaded.component.is_none() && loaded.target.is_none());
        loaded.actor
    };
    let port = other.address.port();
    let granted = format!(
        "[http]\nallow = [{{ host = '127.0.0.1', scheme = 'http', port = {port}, addresses = ['127.0.0.0/8'] }}]"
    );
    let (denied, granted) = (load("denied", String::new()).await, load("granted", granted).await);
    let fetch = format!("fetch http://{}/hello", other.address);
    for actor in [&denied, &granted] {
        assert_eq!(actor.ask("echo hello").await.unwrap(), "hello");
    }
    let answer = denied.ask(fetch.clone()).await.unwrap();
    assert!(answer.starts_with(b"failed: "), "{answer:?}");
    assert_eq!(granted.ask(fetch).await.unwrap(), "hello");
    // Of another port nothing is granted.
    let answer = granted.ask("fetch http://127.0.0.1:1/hello").await.unwrap();
    assert!(answer.starts_with(b"failed: "), "{answer:?}");
}
