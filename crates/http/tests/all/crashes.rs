//! Guests that fail, and what the client and the host see of it.

use std::time::Duration;

use airssys_wasm_actor::{Directive, Intensity, Restart, RestartPolicy};
use airssys_wasm_engine::{EngineConfig, PoolConfig, Profile, WasmEngine};
use airssys_wasm_http::{HttpComponentSpec, HttpEvent, Reuse, RouteLimits};
use airssys_wasm_isolation::{CrashClass, CrashKind};
use airssys_wasm_limits::{ByteSize, MemoryBudget, ResourceLimits};
use bytes::Bytes;
use http::{Method, Request};
use http_body_util::BodyExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tower_service::Service as _;

use crate::support::{Answer, PATIENCE, Server, empty, limits, sandbox, service, spec, spec_with, until_room, web};

#[tokio::test]
async fn a_crash_before_the_answer_is_500_with_an_id_that_is_in_the_event() {
    let component = spec().build().unwrap();
    let mut events = component.events();
    let server = Server::of(component).await;
    let answer = server.get("/trap").await;
    let HttpEvent::Crashed { component, id, crash } = events.recv().await.unwrap() else { panic!("it crashed") };
    assert_eq!(&*component, "web");
    assert!(matches!(crash.kind(), CrashKind::Trap { .. }));
    answer.is(500, &format!("the component failed; report {id}\n"));
    // The control.
    server.get("/hello").await.is(200, "hello");
    assert!(events.try_recv().is_err());
}

#[tokio::test]
async fn a_crash_in_the_body_breaks_the_stream() {
    let component = spec().build().unwrap();
    let mut events = component.events();
    let server = Server::of(component).await;
    for path in ["/trap-after", "/trap-at-the-end", "/too-short", "/finish-early"] {
        assert!(server.is_broken_off(Request::get(path).body(empty()).unwrap()).await, "{path}");
        let request = Request::builder().uri(format!("http://web.test{path}")).body(empty()).unwrap();
        let mut sender = server.http2().await;
        match sender.send_request(request).await {
            Ok(response) => assert!(!Answer::of(response).await.is_whole, "{path}"),
            // Reset, and the head with it.
            Err(error) => assert!(!error.is_canceled(), "{path}: {error:?}"),
        }
    }
    for _ in 0..6 {
        assert!(matches!(events.recv().await.unwrap(), HttpEvent::Crashed { .. }));
    }
    // The control: it crashes after the end of a body that is complete.
    server.get("/trap-beyond").await.is(200, "done");
    assert!(matches!(events.recv().await.unwrap(), HttpEvent::Crashed { .. }));
}

#[tokio::test]
async fn to_exit_after_the_answer_is_no_crash() {
    let component = spec().build().unwrap();
    let mut events = component.events();
    let server = Server::of(component).await;
    server.get("/exit").await.is(200, "done");
    server.get("/hello").await.is(200, "hello");
    assert!(events.try_recv().is_err());
    // The control: as failed. The head has gone out if the guest was interrupted in between.
    assert!([200, 500].contains(&server.get("/exit-failed").await.status.as_u16()));
    let HttpEvent::Crashed { crash, .. } = events.recv().await.unwrap() else { panic!("it crashed") };
    assert_eq!(crash.kind(), &CrashKind::Exit { code: 1 });
}

#[tokio::test]
async fn a_deadline_is_504_and_a_spinning_guest_500() {
    let limits =
        ResourceLimits { deadline: Duration::from_millis(300), cpu_time: Duration::from_millis(20), ..limits() };
    let component = spec_with(limits).build().unwrap();
    let mut events = component.events();
    let server = Server::of(component).await;
    server.get("/wait/10000").await.is(504, "");
    let HttpEvent::Crashed { crash, .. } = events.recv().await.unwrap() else { panic!("it crashed") };
    assert_eq!(crash.kind().class(), CrashClass::Deadline);
    assert_eq!(server.get("/spin").await.status, 500);
    let HttpEvent::Crashed { crash, .. } = events.recv().await.unwrap() else { panic!("it crashed") };
    assert_eq!(crash.kind().class(), CrashClass::CpuTime);
    server.get("/wait/1").await.is(200, "waited");
}

#[tokio::test]
async fn memory_beyond_the_limit_is_500() {
    let server = Server::of(spec().build().unwrap()).await;
    assert_eq!(server.get("/grow/40").await.status, 500);
    server.get("/grow/4").await.is(200, "4");
}

#[tokio::test]
async fn an_answer_that_is_none_is_500_and_shows_nothing_of_the_guest() {
    let server = Server::of(spec().build().unwrap()).await;
    for path in ["/silent", "/decline", "/status/101", "/status/103", "/promise"] {
        let answer = server.get(path).await;
        assert_eq!(answer.status, 500);
        assert!(answer.body.starts_with("the component failed; report "), "{answer:?}");
        assert!(!answer.body.contains("secret"));
    }
    // The control.
    server.get("/status/418").await.is(418, "");
    server.get("/status/204").await.is(204, "");
    server.send(Method::HEAD, "/promise", bytes::Bytes::new()).await.is(200, "");
}

#[tokio::test]
async fn no_room_is_503_until_there_is() {
    let component = spec().with_limits(RouteLimits { concurrency: 1, ..RouteLimits::default() }).build().unwrap();
    let server = Server::of(component.clone()).await;
    let dripping = server.response(Request::get("/drip/1/1000000").body(empty()).unwrap()).await;
    let answer = server.get("/hello").await;
    answer.is(503, "");
    assert_eq!(answer.retry_after(), Some(1));
    drop(dripping);
    until_room(&component, 1).await;
    server.get("/hello").await.is(200, "hello");
}

#[tokio::test]
async fn a_full_pool_and_an_empty_budget_are_503() {
    let pool = PoolConfig { components: 1, ..EngineConfig::small().pool.unwrap() };
    let config = EngineConfig { pool: Some(pool), ..EngineConfig::small().compile_in_process() };
    let engine = WasmEngine::new(config).unwrap();
    let loaded = engine.load(airssys_wasm_fixtures::WEB, Profile::Plain).await.unwrap();
    let component = HttpComponentSpec::new("web", sandbox(&loaded, limits())).build().unwrap();
    let server = Server::of(component.clone()).await;
    let dripping = server.response(Request::get("/drip/1/1000000").body(empty()).unwrap()).await;
    server.get("/hello").await.is(503, "");
    drop(dripping);
    until_room(&component, 64).await;
    server.get("/hello").await.is(200, "hello");

    let budget = MemoryBudget::new(ByteSize::kib(64));
    let component = HttpComponentSpec::new("web", sandbox(&web(), limits()).with_budget(budget)).build().unwrap();
    let answer = Server::of(component).await.get("/hello").await;
    answer.is(503, "");
    assert_eq!(answer.retry_after(), Some(1));
}

#[tokio::test]
async fn crashes_in_a_loop_close_the_route_and_others_stay_open() {
    let policy = RestartPolicy {
        intensity: Intensity { restarts: 2, within: Duration::from_secs(60) },
        ..RestartPolicy::default()
    };
    let policy = RestartPolicy {
        backoff: airssys_wasm_actor::Backoff {
            first: Duration::from_secs(40),
            longest: Duration::from_secs(40),
            ..policy.backoff
        },
        ..policy
    };
    let component = spec().with_restart(policy).build().unwrap();
    let mut events = component.events();
    let server = Server::of(component.clone()).await;
    for _ in 0..3 {
        assert_eq!(server.get("/trap").await.status, 500);
    }
    let answer = server.get("/hello").await;
    answer.is(503, "");
    assert!((30..=40).contains(&answer.retry_after().unwrap()), "{answer:?}");
    let mut closed = 0;
    while let Ok(event) = events.try_recv() {
        closed += u32::from(matches!(event, HttpEvent::Closed { lasts: Some(_), .. }));
    }
    assert_eq!(closed, 1);
    Server::of(spec().build().unwrap()).await.get("/hello").await.is(200, "hello");
    component.reopen();
    server.get("/hello").await.is(200, "hello");
}

#[tokio::test]
async fn a_kind_of_crash_can_close_a_route_for_good() {
    let temporary = Directive { restart: Restart::Temporary, backoff: None };
    let policy = RestartPolicy { on: [(CrashClass::Memory, temporary)].into(), ..RestartPolicy::default() };
    let component = spec().with_restart(policy).build().unwrap();
    let server = Server::of(component.clone()).await;
    assert_eq!(server.get("/trap").await.status, 500);
    server.get("/hello").await.is(200, "hello");
    assert_eq!(server.get("/grow/40").await.status, 500);
    server.get("/hello").await.is(503, "");
    assert_eq!(component.closed_for(), Some(Duration::MAX));
}

#[tokio::test]
async fn a_client_that_goes_away_ends_its_guest() {
    let component = spec().build().unwrap();
    let mut events = component.events();
    let server = Server::of(component.clone()).await;
    // In the body.
    for path in ["/drip/1/1000000", "/flood"] {
        let mut response = server.response(Request::get(path).body(empty()).unwrap()).await;
        response.body_mut().frame().await.unwrap().unwrap();
        assert_eq!(component.room(), 63);
        drop(response);
        until_room(&component, 64).await;
    }
    // Before the head, by HTTP/1 and by HTTP/2.
    let waiting = server.request(Request::get("/wait/25000").body(empty()).unwrap());
    let mut waiting = Box::pin(waiting);
    while component.room() == 64 {
        assert!(futures_util::poll!(&mut waiting).is_pending());
        tokio::task::yield_now().await;
    }
    drop(waiting);
    // The task of the connection has its own handle on it; a connection is closed by dropping that.
    let mut sender = server.http2().await;
    let request = Request::builder().method(Method::GET).uri("http://web.test/wait/25000").body(empty()).unwrap();
    let mut waiting = Box::pin(sender.send_request(request));
    let room = component.room();
    while component.room() == room {
        assert!(futures_util::poll!(&mut waiting).is_pending());
        tokio::task::yield_now().await;
    }
    drop(waiting);
    until_room(&component, 64).await;
    // Nobody is to blame for it.
    assert!(events.try_recv().is_err());
    assert_eq!(component.closed_for(), None);
}

/// Closes a component at its third crash.
pub(crate) fn at_the_third() -> RestartPolicy {
    let intensity = Intensity { restarts: 2, within: Duration::from_secs(600) };
    RestartPolicy { intensity, ..RestartPolicy::default() }
}

#[tokio::test]
async fn a_client_that_does_not_read_to_the_end_closes_no_route() {
    let limits = RouteLimits { request_body: ByteSize::b(100), ..RouteLimits::default() };
    let component = spec().with_restart(at_the_third()).with_limits(limits).build().unwrap();
    let mut events = component.events();
    let server = Server::of(component.clone()).await;
    for _ in 0..10 {
        // It hangs up.
        let mut response = server.response(Request::get("/insist").body(empty()).unwrap()).await;
        response.body_mut().frame().await.unwrap().unwrap();
        drop(response);
        until_room(&component, 64).await;
        // It wants no body.
        server.send(Method::HEAD, "/insist", Bytes::new()).await.is(200, "");
        until_room(&component, 64).await;
        let head = Request::head("http://web.test/insist").body(empty()).unwrap();
        Answer::of(server.http2().await.send_request(head).await.unwrap()).await.is(200, "");
        until_room(&component, 64).await;
        // Its body is broken off after the answer has begun.
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let head = b"POST /insist-read HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
        stream.write_all(head).await.unwrap();
        stream.read_exact(&mut [0; 12]).await.unwrap();
        stream.write_all(format!("c8\r\n{}\r\n", "x".repeat(200)).as_bytes()).await.unwrap();
        until_room(&component, 64).await;
    }
    assert!(events.try_recv().is_err());
    assert_eq!(component.closed_for(), None);
    // The control: crashes that are the guest's own.
    for _ in 0..3 {
        assert!(server.is_broken_off(Request::get("/trap-after").body(empty()).unwrap()).await);
        until_room(&component, 64).await;
    }
    for _ in 0..3 {
        assert!(matches!(events.recv().await.unwrap(), HttpEvent::Crashed { .. }));
    }
    assert!(component.closed_for().is_some());
}

#[tokio::test]
async fn a_crash_breaks_the_connection_of_a_client_that_knows_no_chunks() {
    let server = Server::of(spec().build().unwrap()).await;
    let get = async |path: &str| {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(format!("GET {path} HTTP/1.0\r\nhost: a\r\n\r\n").as_bytes()).await.unwrap();
        let mut read = Vec::new();
        let ended = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut read)).await.unwrap();
        (String::from_utf8(read).unwrap(), ended.map_err(|error| error.kind()))
    };
    let (text, ended) = get("/trap-after").await;
    assert_eq!(ended, Err(std::io::ErrorKind::ConnectionReset), "{text}");
    // The control: a body that is complete.
    let (text, ended) = get("/drip/1/2").await;
    assert!(ended.is_ok() && text.ends_with("dropdrop"), "{text}");
}

#[tokio::test]
async fn a_crash_is_told_though_the_client_goes_away_while_the_guest_is_freed() {
    let engine = WasmEngine::new(EngineConfig::small().compile_in_process()).unwrap();
    let web = engine.load_blocking(airssys_wasm_fixtures::WEB, Profile::Plain).unwrap();
    let bounds = RouteLimits { reuse: Some(Reuse::requests(2)), ..RouteLimits::default() };
    let spec = HttpComponentSpec::new("web", sandbox(&web, limits())).with_limits(bounds);
    let component = spec.build().unwrap();
    let mut events = component.events();
    let ask = |path: &str| {
        let request = Request::get(path).header("host", "web.test").body(empty()).unwrap();
        service(component.clone()).call(request)
    };
    // As much that freeing it is left to a thread of the engine's.
    ask("/grow/4").await.unwrap().into_body().collect().await.unwrap();
    until_room(&component, 64).await;
    // Both are busy.
    let (go_on, busy): (Vec<_>, Vec<_>) = (0..2)
        .map(|_| {
            let (go_on, until) = std::sync::mpsc::channel::<()>();
            (go_on, engine.reclaimer().run(move || _ = until.recv()))
        })
        .unzip();
    let mut asking = ask("/trap");
    // The guest waits for nothing, so it has long crashed.
    for _ in 0..1_000 {
        assert!(futures_util::poll!(&mut asking).is_pending());
        tokio::task::yield_now().await;
    }
    assert!(events.try_recv().is_err());
    drop(asking);
    drop(go_on);
    for busy in busy {
        busy.await.unwrap();
    }
    let event = tokio::time::timeout(PATIENCE, events.recv()).await.unwrap().unwrap();
    let HttpEvent::Crashed { crash, .. } = event else { panic!("it crashed") };
    assert!(matches!(crash.kind(), CrashKind::Trap { .. }));
    until_room(&component, 64).await;
}
