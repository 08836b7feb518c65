//! Actors that are asked by HTTP.

use std::{convert::Infallible, time::Duration};

use airssys_wasm_actor::{ActorRef, ActorSandbox, ActorSpec, ActorSystem, SystemConfig, registry::TraceContext};
use airssys_wasm_engine::{EngineConfig, Profile, WasmEngine};
use airssys_wasm_http::{AskActor, HttpEvent, HttpState, Outgoing, RouteLimits, add_http};
use airssys_wasm_isolation::SandboxSpec;
use airssys_wasm_limits::{ByteSize, ResourceLimits};
use bytes::Bytes;
use http::Request;
use http_body::Frame;
use http_body_util::{Full, StreamBody};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    fronts::Site,
    support::{PATIENCE, Server},
};

pub(crate) async fn counter() -> (ActorSystem, ActorRef) {
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
    let mut events = target.events();
    let server = Server::of(target).await;
    server.post("/", "add 40").await.is(200, "40");
    server.post("/", "add 2").await.is(200, "42");
    server.get("/").await.is(405, "");
    server.post("/", vec![b'x'; 65 << 10]).await.is(413, "");
    let crashed = server.post("/", "crash").await;
    let HttpEvent::Crashed { component, id, .. } = events.recv().await.unwrap() else { panic!("it crashed") };
    assert_eq!(&*component, "counter");
    crashed.is(500, &format!("the component failed; report {id}\n"));
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

#[tokio::test]
async fn a_message_is_in_the_requests_trace() {
    let site = Site::new();
    let mut worker = site.worker_with(|spec| spec).await;
    worker.free.add_permits(2);
    let server = Server::of(AskActor::new(worker.actor.clone(), PATIENCE, RouteLimits::default())).await;
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let request = Request::post("/").header("traceparent", trace).body(Full::from("x")).unwrap();
    server.request(request).await.is(200, "heard x");
    let heard = worker.messages.recv().await.unwrap();
    let sent = TraceContext {
        trace_id: 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c,
        parent_id: 0xb7ad_6b71_6920_3331,
        sampled: true,
    };
    assert_eq!(heard.trace(), Some(&sent));
    server.post("/", "x").await.is(200, "heard x");
    assert_eq!(worker.messages.recv().await.unwrap().trace(), None);
}

#[tokio::test]
async fn what_an_actor_answers_decides_the_status() {
    let site = Site::new();
    let worker = site.worker_with(|spec| spec).await;
    worker.free.add_permits(3);
    let server = Server::of(AskActor::new(worker.actor.clone(), PATIENCE, RouteLimits::default())).await;
    server.post("/", "say nothing").await.is(204, "");
    // With nothing of what it says.
    server.post("/", "fail").await.is(422, "");
    server.post("/", "x").await.is(200, "heard x");
}

#[tokio::test]
async fn an_actor_that_does_not_answer_in_time_is_504() {
    let site = Site::new();
    let worker = site.worker_with(|spec| spec).await;
    let target = |deadline| AskActor::new(worker.actor.clone(), deadline, RouteLimits::default());
    let server = Server::of(target(Duration::from_millis(100))).await;
    server.post("/", "x").await.is(504, "");
    // The control: it is let, and answers who asks now.
    worker.free.add_permits(2);
    Server::of(target(PATIENCE)).await.post("/", "y").await.is(200, "heard y");
}

#[tokio::test]
async fn no_room_is_503_until_there_is() {
    let site = Site::new();
    let mut worker = site.worker_with(|spec| spec.with_mailbox(1)).await;
    let limits = RouteLimits { concurrency: 1, ..RouteLimits::default() };
    let narrow = Server::of(AskActor::new(worker.actor.clone(), PATIENCE, limits)).await;
    let wide = Server::of(AskActor::new(worker.actor.clone(), PATIENCE, RouteLimits::default())).await;
    let asking = async {
        let (first, ()) = tokio::join!(narrow.post("/", "x"), async {
            worker.messages.recv().await.unwrap();
            // Of the route, while the mailbox has room.
            let refused = narrow.post("/", "y").await;
            refused.is(503, "");
            assert_eq!(refused.retry_after(), Some(1));
            // Of the mailbox.
            worker.actor.try_tell("z").unwrap();
            let refused = wide.post("/", "y").await;
            refused.is(503, "");
            assert_eq!(refused.retry_after(), Some(1));
            worker.free.add_permits(3);
        });
        first
    };
    asking.await.is(200, "heard x");
    assert_eq!(worker.messages.recv().await.unwrap().payload(), "z");
    narrow.post("/", "y").await.is(200, "heard y");
}

#[tokio::test]
async fn a_message_that_stands_still_is_408() {
    let site = Site::new();
    let worker = site.worker_with(|spec| spec).await;
    worker.free.add_permits(1);
    let limits = RouteLimits { request_idle: Duration::from_millis(100), ..RouteLimits::default() };
    let server = Server::of(AskActor::new(worker.actor.clone(), PATIENCE, limits)).await;
    let still = StreamBody::new(futures_util::stream::pending::<Result<Frame<Bytes>, Infallible>>());
    server.request(Request::post("/").body(still).unwrap()).await.is(408, "");
    server.post("/", "x").await.is(200, "heard x");
}
