//! Components with WASI 0.3: what the others are held to holds for them.

use std::{convert::Infallible, sync::OnceLock};

use airssys_wasm_actor::{
    ActorRef,
    registry::{MessageEnvelope, TraceContext},
};
use airssys_wasm_engine::{EngineConfig, WasmEngine};
use airssys_wasm_http::{
    Allow, HttpComponent, HttpComponentSpec, HttpEvent, HttpState, HttpTable, LoadHttpError, Outgoing, OutgoingLimits,
    OutgoingScheme,
};
use airssys_wasm_isolation::{CrashClass, CrashKind};
use bytes::Bytes;
use http::{HeaderMap, Method, Request};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::JoinHandle,
};

use crate::{
    fronts::{COUNTER, STORE, Site, serve},
    outgoing::{HELLO, TRAILER, allow, other, there_and_back},
    support::{Answer, Server, empty, read_all, until_room},
};

type Component = HttpComponent<airssys_wasm_actor::ActorState<HttpState>>;

/// Compiles the guest once for all tests.
pub(crate) fn engine() -> WasmEngine {
    static ENGINE: OnceLock<WasmEngine> = OnceLock::new();
    let config = EngineConfig::small().with_component_async().compile_in_process();
    ENGINE.get_or_init(|| WasmEngine::new(config).unwrap()).clone()
}

fn manifest(more: &str) -> String {
    format!(
        "[component]\nname = 'web'\n[messaging]\nrequest = ['counter']\n[http]\nroutes = [{{ path = '/' }}]\n\
         [resources]\nmemory = '32MiB'\n{more}"
    )
}

/// With so many lines more for `[resources]`, or tables after that.
async fn web(more: &str) -> (Site, Component, Server) {
    let site = Site::with(engine());
    let loaded = site.load(airssys_wasm_fixtures::WEB3, &manifest(more)).await;
    let server = serve(&[&loaded]).await;
    (site, loaded.component.unwrap(), server)
}

/// With these grants.
pub(crate) async fn fetching3(outgoing: Outgoing) -> (Site, Component, Server) {
    let site = Site::with(engine());
    let (http, actor) = HttpTable::with_actor(&manifest("")).unwrap();
    let spec = site.system.load_bytes(actor, airssys_wasm_fixtures::WEB3).await.unwrap();
    let front = site.system.front(spec).await.unwrap();
    let component = HttpComponentSpec::of_front(front, HttpState::default).with_outgoing(outgoing);
    let component = component.with_limits(http.limits).build().unwrap();
    let server = Server::of(component.clone()).await;
    (site, component, server)
}

#[tokio::test]
async fn a_component_answers() {
    let (_site, _, server) = web("").await;
    server.get("/hello").await.is(200, "hello");
    server.get("/empty").await.is(200, "");
    server.get("/nowhere").await.is(404, "");
    server.send(Method::HEAD, "/hello", Bytes::new()).await.is(200, "");
    // A fresh sandbox for each.
    server.get("/count").await.is(200, "1");
    server.get("/count").await.is(200, "1");
    let answer = server.get("/request?x=y").await;
    answer.is(200, "GET\nhttp\nweb.test\n/request?x=y\n");
    let body = Bytes::from("x".repeat(1 << 20));
    server.post("/read", body.clone()).await.is(200, "1048576");
    for path in ["/echo", "/hand-over"] {
        let answer = server.post(path, body.clone()).await;
        assert!(answer.is_whole && answer.body.len() == body.len(), "{path}");
    }
}

#[tokio::test]
async fn trailers_go_both_ways() {
    let (_site, _, server) = web("").await;
    let trailers = HeaderMap::from_iter([("x-sum".parse().unwrap(), "42".parse().unwrap())]);
    let frames = [Frame::data(Bytes::from("hello")), Frame::trailers(trailers)].map(Ok::<_, Infallible>);
    let body = StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync();
    let request = Request::post("http://web.test/echo").header("trailer", "x-sum").body(body).unwrap();
    let answer = Answer::of(server.http2().await.send_request(request).await.unwrap()).await;
    answer.is(200, "hello");
    assert_eq!(answer.trailers.get("x-sum").unwrap(), "42");
}

#[tokio::test]
async fn a_crash_before_the_answer_is_500_with_an_id_that_is_in_the_event() {
    let (_site, component, server) = web("").await;
    let mut events = component.events();
    let answer = server.get("/trap").await;
    let HttpEvent::Crashed { id, crash, .. } = events.recv().await.unwrap() else { panic!("it crashed") };
    assert!(matches!(crash.kind(), CrashKind::Trap { .. }));
    answer.is(500, &format!("the component failed; report {id}\n"));
    let declined = server.get("/decline").await;
    assert!(declined.status == 500 && !declined.body.contains("secret"), "{declined:?}");
    server.get("/hello").await.is(200, "hello");
    assert!(events.try_recv().is_err());
}

#[tokio::test]
async fn a_body_that_is_not_finished_is_broken_off() {
    let (_site, component, server) = web("").await;
    let mut events = component.events();
    for path in ["/trap-after", "/trap-at-the-end", "/too-short", "/give-up"] {
        assert!(server.is_broken_off(Request::get(path).body(empty()).unwrap()).await, "{path}");
        let request = Request::builder().uri(format!("http://web.test{path}")).body(empty()).unwrap();
        match server.http2().await.send_request(request).await {
            Ok(response) => assert!(!Answer::of(response).await.is_whole, "{path}"),
            Err(error) => assert!(!error.is_canceled(), "{path}: {error:?}"),
        }
    }
    for _ in 0..4 {
        assert!(matches!(events.recv().await.unwrap(), HttpEvent::Crashed { .. }));
    }
    // The control: it crashes after the end of a body that is complete.
    server.get("/trap-beyond").await.is(200, "done");
    assert!(matches!(events.recv().await.unwrap(), HttpEvent::Crashed { .. }));
}

#[tokio::test]
async fn a_guest_goes_on_after_its_answer() {
    let (_site, component, server) = web("deadline = '60s'").await;
    let room = component.room();
    // The body has come to its end long before the guest.
    server.get("/go-on/50000").await.is(200, "done");
    assert_eq!(component.room(), room - 1);
    server.get("/go-on/1").await.is(200, "done");
    until_room(&component, room - 1).await;
}

#[tokio::test]
async fn a_deadline_is_504_and_a_spinning_guest_500() {
    let (_site, component, server) = web("deadline = '300ms'\ncpu_time = '20ms'").await;
    let mut events = component.events();
    server.get("/wait/10000").await.is(504, "");
    let HttpEvent::Crashed { crash, .. } = events.recv().await.unwrap() else { panic!("it crashed") };
    assert_eq!(crash.kind().class(), CrashClass::Deadline);
    assert_eq!(server.get("/spin").await.status, 500);
    let HttpEvent::Crashed { crash, .. } = events.recv().await.unwrap() else { panic!("it crashed") };
    assert_eq!(crash.kind().class(), CrashClass::CpuTime);
    server.get("/wait/1").await.is(200, "waited");
}

#[tokio::test]
async fn bodies_have_bounds() {
    let limits = "[http.limits]\nrequest_body = '100KiB'\nresponse_body = '100KiB'\nrequest_idle = '200ms'";
    let (_site, component, server) = web(limits).await;
    let room = component.room();
    server.post("/read", vec![0; 100 << 10]).await.is(200, "102400");
    server.post("/read", vec![0; (100 << 10) + 1]).await.is(413, "");
    let endless = futures_util::stream::repeat_with(|| Ok::<_, Infallible>(Frame::data(Bytes::from(vec![0; 8 << 10]))));
    let request = Request::post("/read").body(StreamBody::new(endless).boxed_unsync()).unwrap();
    server.request(request).await.is(413, "");
    let still = StreamBody::new(futures_util::stream::pending::<Result<Frame<Bytes>, Infallible>>());
    server.request(Request::post("/read").body(still.boxed_unsync()).unwrap()).await.is(408, "");
    assert!(server.is_broken_off(Request::get("/flood").body(empty()).unwrap()).await);
    until_room(&component, room).await;
    assert_eq!(component.closed_for(), None);
}

#[tokio::test]
async fn a_deadline_while_the_guest_waits_for_the_client_is_408() {
    let (_site, component, server) = web("deadline = '300ms'").await;
    let mut events = component.events();
    let still = || StreamBody::new(futures_util::stream::pending::<Result<Frame<Bytes>, Infallible>>()).boxed_unsync();
    server.request(Request::post("/read").body(still()).unwrap()).await.is(408, "");
    assert!(events.try_recv().is_err());
    assert_eq!(component.closed_for(), None);
    // The control: while it waits for something else.
    server.request(Request::post("/wait/10000").body(still()).unwrap()).await.is(504, "");
    assert!(matches!(events.recv().await.unwrap(), HttpEvent::Crashed { .. }));
}

#[tokio::test]
async fn a_client_that_goes_away_cancels_its_guest() {
    let (_site, component, server) = web("deadline = '60s'").await;
    let (room, mut events) = (component.room(), component.events());
    for path in ["/wait/50000", "/drip/1/1000000"] {
        let mut client = TcpStream::connect(server.address).await.unwrap();
        client.write_all(format!("GET {path} HTTP/1.1\r\nhost: a.test\r\n\r\n").as_bytes()).await.unwrap();
        until_room(&component, room - 1).await;
        drop(client);
        until_room(&component, room).await;
    }
    assert!(events.try_recv().is_err());
}

#[tokio::test]
async fn sandboxes_are_used_again_but_not_after_a_crash() {
    let (_site, component, server) = web("[http.limits]\nconcurrency = 1\nreuse = { requests = 3 }").await;
    let count = async || {
        let answer = server.get("/count").await;
        until_room(&component, 1).await;
        answer.body
    };
    assert_eq!([count().await, count().await, count().await, count().await], ["1", "2", "3", "1"]);
    assert_eq!(server.get("/trap").await.status, 500);
    until_room(&component, 1).await;
    assert_eq!(count().await, "1");
}

/// Another host, which answers what has a head, and says what it got until its connection was closed.
pub(crate) async fn listening() -> (Outgoing, String, JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let got = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut got = Vec::new();
        while !got.windows(4).any(|four| four == b"\r\n\r\n") {
            stream.read_buf(&mut got).await.unwrap();
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n").await.unwrap();
        String::from_utf8(got).unwrap() + &read_all(&mut stream).await
    });
    let host = "127.0.0.1".parse().unwrap();
    let addresses = vec!["127.0.0.1/32".parse().unwrap()];
    let granted = Allow { scheme: OutgoingScheme::Http, port: Some(address.port()), addresses, ..Allow::https(host) };
    (Outgoing::new(vec![granted], OutgoingLimits::default()), format!("http://{address}/"), got)
}

#[tokio::test]
async fn a_request_that_is_not_finished_is_broken_off() {
    for (path, length) in [("/fetch-trap", false), ("/fetch-give-up", false), ("/fetch-trap", true)] {
        let (outgoing, url, got) = listening().await;
        let (_site, component, server) = fetching3(outgoing).await;
        let mut events = component.events();
        let request = Request::get(path).header("x-url", url).header("x-method", "POST");
        let request = if length { request.header("x-content-length", "4") } else { request };
        let answer = server.request(request.body(empty()).unwrap()).await;
        let got = got.await.unwrap();
        assert!(got.starts_with("POST / HTTP/1.1\r\n"), "{got}");
        let is_complete = if length { got.ends_with("\r\n\r\npart") } else { got.contains("\r\n0\r\n") };
        assert!(!is_complete, "{path}: {got}");
        if path == "/fetch-trap" {
            assert_eq!(answer.status, 500);
            assert!(matches!(events.recv().await.unwrap(), HttpEvent::Crashed { .. }));
        } else {
            answer.is(200, "an answer");
        }
    }
}

#[tokio::test]
async fn bodies_and_trailers_are_handed_on() {
    let (address, mut got) = other(TRAILER).await;
    let granted = vec![allow("127.0.0.1", address.port(), &["127.0.0.1/32"])];
    let (_site, _, server) = fetching3(Outgoing::new(granted, OutgoingLimits::default())).await;
    let answer = there_and_back(&server, "/hand-on", address).await;
    answer.is(200, "hello");
    assert_eq!(answer.trailers.get("x-sum").unwrap(), "12");
    let sent = got.recv().await.unwrap();
    assert!(sent.contains("\r\nquestion\r\n0\r\nx-more: 42\r\n\r\n"), "{sent}");
}

#[tokio::test]
async fn a_body_that_was_handed_over_outlives_its_guest() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (go_on, told) = oneshot::channel::<()>();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.read_exact(&mut [0; 16]).await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\npart").await.unwrap();
        told.await.unwrap();
        stream.write_all(b"more").await.unwrap();
    });
    let granted = vec![allow("127.0.0.1", address.port(), &["127.0.0.1/32"])];
    let (_site, component, server) = fetching3(Outgoing::new(granted, OutgoingLimits::default())).await;
    let room = component.room();
    let request = Request::get("/hand-on").header("x-url", format!("http://{address}/")).body(empty()).unwrap();
    let response = server.response(request).await;
    until_room(&component, room).await;
    go_on.send(()).unwrap();
    Answer::of(response).await.is(200, "partmore");
}

#[tokio::test]
async fn a_guest_may_ask_for_less_time() {
    let (address, _got) = other("").await;
    let granted = vec![allow("127.0.0.1", address.port(), &["127.0.0.1/32"])];
    let (_site, _, server) = fetching3(Outgoing::new(granted, OutgoingLimits::default())).await;
    let request = Request::get("/fetch").header("x-url", format!("http://{address}/")).header("x-first-byte", "100");
    server.request(request.body(empty()).unwrap()).await.is(200, "ErrorCode::ConnectionReadTimeout");
}

#[tokio::test]
async fn a_guest_has_so_many_heads_at_a_time() {
    let (_site, component, server) = web("").await;
    let mut events = component.events();
    server.get("/heads/100").await.is(200, "100");
    assert!(events.try_recv().is_err());
    assert_eq!(server.get("/heads/129").await.status, 500);
    let HttpEvent::Crashed { crash, .. } = events.recv().await.unwrap() else { panic!("it crashed") };
    assert!(crash.to_string().contains("128 sets of fields"), "{crash}");
}

#[tokio::test]
async fn what_a_request_that_a_guest_makes_holds_beside_its_fields_has_bounds() {
    let (_site, _, server) = web("").await;
    server.get("/lines/20").await.is(200, "true true");
    server.get("/lines/1025").await.is(200, "false false");
    server.get("/lines/524288").await.is(200, "false false");
    // An error that ends a body is kept without its text.
    server.get("/own-end").await.is(200, "ErrorCode::InternalError(None)");
    server.get("/own-result").await.is(200, "ErrorCode::InternalError(None)");
}

#[tokio::test]
async fn an_actor_sends_requests_as_it_is_granted_and_in_the_messages_trace() {
    let (address, mut got) = other(HELLO).await;
    let url = format!("http://{address}/x");
    let site = Site::with(engine());
    let port = address.port();
    let granted = format!(
        "[http]\nallow = [{{ host = '127.0.0.1', scheme = 'http', port = {port}, addresses = ['127.0.0.1/32'] }}]\n"
    );
    let load = async |name: &str, granted: &str| {
        let manifest = format!("[component]\nname = '{name}'\n[resources]\nmemory = '32MiB'\n{granted}");
        site.load(airssys_wasm_fixtures::ERRAND, &manifest).await.actor
    };
    let (denied, actor) = (load("denied", "").await, load("errand", &granted).await);
    let ask = async |actor: &ActorRef| {
        let trace = TraceContext { trace_id: 0xabc, parent_id: 1, sampled: true };
        let message = MessageEnvelope::new(url.clone()).with_trace(trace);
        String::from_utf8(actor.ask(message).await.unwrap().to_vec()).unwrap()
    };
    assert_eq!(ask(&denied).await, "ErrorCode::HttpRequestDenied");
    assert!(got.try_recv().is_err());
    assert_eq!(ask(&actor).await, "200 hello");
    let sent = got.recv().await.unwrap();
    assert!(sent.starts_with("GET /x HTTP/1.1\r\n"), "{sent}");
    assert!(sent.contains("\r\ntraceparent: 00-00000000000000000000000000000abc-"), "{sent}");
}

#[tokio::test]
async fn it_asks_actors() {
    let site = Site::with(engine());
    let counter = site.load(airssys_wasm_fixtures::COUNTER, COUNTER).await;
    let web = site.load(airssys_wasm_fixtures::WEB3, &manifest("")).await;
    let server = serve(&[&counter, &web]).await;
    server.post("/ask/counter", "add 5").await.is(200, "5");
    server.post("/ask/counter", "crash").await.is(200, "RequestError::Crashed");
    server.post("/ask/nobody", "add 5").await.is(200, "RequestError::NotSent(SendError::Denied)");
}

#[tokio::test]
async fn its_imports_lead_to_actors() {
    let site = Site::with(engine());
    let counter = site.load(airssys_wasm_fixtures::COUNTER, COUNTER).await;
    let store = site.load(airssys_wasm_fixtures::KV, STORE).await;
    let link = "[link]\n'acme:kv/store@1.0.0' = 'kv'";
    let front = site.load(airssys_wasm_fixtures::FRONT3, &manifest(link)).await;
    let server = serve(&[&counter, &front]).await;
    server.send(Method::PUT, "/value/sky", "blue".into()).await.is(200, "");
    server.get("/value/sky").await.is(200, "blue");
    server.post("/ask/counter", "add 5").await.is(200, "5");
    // The store crashes, and its interface has a word for that.
    let crashed = server.send(Method::PUT, "/value/crash", Bytes::new()).await;
    assert_eq!((crashed.status.as_u16(), &*crashed.body), (502, "the actor crashed: trap"));
    store.actor.kill();
    store.actor.ended().await;
    assert_eq!(server.get("/value/sky").await.status, 502);
    assert_eq!(front.component.unwrap().closed_for(), None);
    // Nobody says where it leads.
    let unlinked = site.try_load(airssys_wasm_fixtures::FRONT3, &manifest("").replace("'web'", "'other'")).await;
    assert!(matches!(unlinked, Err(LoadHttpError::Actor(_))), "{unlinked:?}");
}

#[tokio::test]
async fn an_engine_without_async_does_not_take_it() {
    let site = Site::with(WasmEngine::new(EngineConfig::small().compile_in_process()).unwrap());
    let refused = site.try_load(airssys_wasm_fixtures::WEB3, &manifest("")).await.unwrap_err();
    assert!(matches!(refused, LoadHttpError::Actor(_)), "{refused}");
}
