//! Actors that are asked by HTTP.

use std::time::Duration;

use airssys_wasm_actor::{ActorRef, ActorSandbox, ActorSpec, ActorSystem, SystemConfig};
use airssys_wasm_engine::{EngineConfig, Profile, WasmEngine};
use airssys_wasm_http::{AskActor, HttpState, Outgoing, RouteLimits, add_http};
use airssys_wasm_isolation::SandboxSpec;
use airssys_wasm_limits::{ByteSize, ResourceLimits};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::Server;

async fn counter() -> (ActorSystem, ActorRef) {
    actor(|sandbox| ActorSpec::new("counter".parse().unwrap(), sandbox)).await
}

pub(crate) async fn actor(spec: impl FnOnce(ActorSandbox) -> ActorSpec) -> (ActorSystem, ActorRef) {
    let engine = WasmEngine::new(EngineConfig::small().compile_in_process()).unwrap();
    let system = ActorSystem::new(engine, SystemConfig::default());
    let component = system.engine().load(airssys_wasm_fixtures::COUNTER, Profile::Plain).await.unwrap();
    let limits = ResourceLimits { message_size: ByteSize::kib(64), ..ResourceLimits::with_memory(ByteSize::mib(8)) };
    let sandbox = SandboxSpec::new(system.link(&component).unwrap(), limits).unwrap();
    let actor = system.spawn(spec(sandbox)).await.unwrap();
    (system, actor)
}

#[tokio::test]
async fn an_actor_answers_as_its_handler_does() {
    let (_system, actor) = counter().await;
    let target = AskActor::new(actor.clone(), Duration::from_secs(10), RouteLimits::default());
    let server = Server::of(target).await;
    server.post("/", "add 40").await.is(200, "40");
    server.post("/", "add 2").await.is(200, "42");
    server.get("/").await.is(405, "");
    server.post("/", vec![b'x'; 65 << 10]).await.is(413, "");
    let crashed = server.post("/", "crash").await;
    assert_eq!(crashed.status, 500);
    assert!(crashed.body.starts_with("the component failed; report "));
    server.post("/", "get").await.is(200, "0");
    actor.kill();
    actor.ended().await;
    let gone = server.post("/", "get").await;
    gone.is(503, "");
    assert_eq!(gone.retry_after(), Some(1));
}

#[tokio::test]
async fn actors_are_linked_in_the_same_way() {
    let engine = WasmEngine::new(EngineConfig::small().compile_in_process()).unwrap();
    let web = engine.load(airssys_wasm_fixtures::WEB, Profile::Plain).await.unwrap();
    let without = ActorSystem::new(engine.clone(), SystemConfig::default());
    assert!(without.link(&web).is_err());
    let grants = Outgoing::default();
    let state = move |_: &_| HttpState::new(grants.clone());
    let system = ActorSystem::with_host(engine, SystemConfig::default(), state, add_http);
    system.link(&web).unwrap();
}

#[tokio::test]
async fn a_message_has_the_bounds_of_its_route() {
    let (_system, actor) = counter().await;
    let limits = RouteLimits { request_body: ByteSize::b(10), ..RouteLimits::default() };
    let server = Server::of(AskActor::new(actor, Duration::from_secs(10), limits)).await;
    server.post("/", "add 40").await.is(200, "40");
    server.post("/", "add 4000000").await.is(413, "");
}

#[tokio::test]
async fn a_message_that_the_actor_would_not_take_is_not_collected() {
    let (_system, actor) = counter().await;
    let server = Server::of(AskActor::new(actor, Duration::from_secs(10), RouteLimits::default())).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let head = "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
    let chunk = format!("10001\r\n{}\r\n", "x".repeat(0x10001));
    stream.write_all([head, &chunk].concat().as_bytes()).await.unwrap();
    // Without an end of it.
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 413");
    // By its length.
    let answer = server.raw(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 65537\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
}
