//! What is logged and counted.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    io,
    sync::{
        Arc, Mutex, Once,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use airssys_wasm_http::{AskActor, HttpService, Outgoing, OutgoingLimits, Route, RouteLimits, ServerLimits};
use airssys_wasm_limits::{ByteSize, ResourceLimits};
use http::Request;
use http_body_util::BodyExt as _;
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use tracing_subscriber::fmt::format::FmtSpan;

use tower_service::Service as _;

use crate::{
    asks::counter,
    fronts::Site,
    outgoing::allow,
    p3::engine,
    support::{Answer, PATIENCE, Server, empty, limits, service, spec, spec_with, until_room},
};

thread_local! {
    static LINES: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Writes to its own thread's lines.
struct Lines;

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        LINES.with_borrow_mut(|lines| lines.extend_from_slice(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What is logged while this runs, at DEBUG. There is one subscriber for all threads: those that come and go disturb each
/// other's callsites.
fn logged(run: impl AsyncFnOnce()) -> String {
    logged_by(tokio::runtime::Builder::new_current_thread().enable_all(), run)
}

fn logged_by(runtime: &mut tokio::runtime::Builder, run: impl AsyncFnOnce()) -> String {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        tracing_subscriber::fmt()
            .with_max_level(tracing::Level::DEBUG)
            .with_span_events(FmtSpan::CLOSE)
            .with_ansi(false)
            .with_writer(|| Lines)
            .init();
    });
    LINES.take();
    runtime.build().unwrap().block_on(run());
    String::from_utf8(LINES.take()).unwrap()
}

/// Counters by name and labels.
#[derive(Clone, Default)]
struct Counts(Arc<Mutex<BTreeMap<String, Arc<AtomicU64>>>>);

impl Counts {
    fn read(&self, name: &str) -> u64 {
        self.0.lock().unwrap().get(name).map_or(0, |count| count.load(Relaxed))
    }
}

impl Recorder for Counts {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        let labels: Vec<_> = key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
        let name = format!("{}{{{}}}", key.name(), labels.join(","));
        Counter::from_arc(Arc::clone(self.0.lock().unwrap().entry(name).or_default()))
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

/// What is counted while this runs, and what is logged.
fn counted(run: impl AsyncFnOnce()) -> (Counts, String) {
    let counts = Counts::default();
    let text = metrics::with_local_recorder(&counts, || logged(run));
    (counts, text)
}

#[test]
fn requests_refusals_and_crashes_are_counted_by_component_and_kind() {
    let (counts, _) = counted(async || {
        let limits = ResourceLimits { cpu_time: Duration::from_millis(20), ..limits() };
        let small = RouteLimits { request_body: ByteSize::b(10), concurrency: 1, ..RouteLimits::default() };
        let component = spec_with(limits).with_limits(small).build().unwrap();
        let server = Server::of(component.clone()).await;
        for (path, status) in [("/hello", 200), ("/nowhere", 404), ("/trap", 500), ("/trap", 500), ("/spin", 500)] {
            assert_eq!(server.get(path).await.status, status, "{path}");
            until_room(&component, 1).await;
        }
        assert_eq!(server.post("/read", "x".repeat(11)).await.status, 413);
        let _in_hand = server.response(Request::get("/drip/1/1000000").body(empty()).unwrap()).await;
        assert_eq!(server.get("/hello").await.status, 503);
    });
    assert_eq!(counts.read("airssys_http_requests_total{component=web}"), 8);
    // What a guest answers is no refusal.
    let refused = |status: u16| counts.read(&format!("airssys_http_refused_total{{component=web,status={status}}}"));
    assert_eq!([404, 413, 500, 503, 504].map(refused), [0, 1, 3, 1, 0]);
    let crashes = |kind: &str| counts.read(&format!("airssys_http_crashes_total{{component=web,kind={kind}}}"));
    assert_eq!((crashes("trap"), crashes("cpu-time"), crashes("memory")), (2, 1, 0));
}

#[test]
fn an_answer_has_a_line_of_the_access_log_without_the_query() {
    let text = logged(async || {
        let server = Server::of(spec_with(limits()).build().unwrap()).await;
        server.get("/hello?password=secret").await.is(200, "hello");
        assert_eq!(server.get(&format!("/nowhere/{}", "x".repeat(1_000))).await.status, 404);
    });
    let lines: Vec<_> = text.lines().filter(|line| line.contains("airssys_http::access")).collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert!(lines[0].contains("INFO"), "{text}");
    assert!(lines[0].contains("method=GET host=web.test path=/hello status=200 micros="), "{text}");
    assert!(!text.contains("secret"), "{text}");
    assert!(lines[1].contains(&"x".repeat(200)) && !lines[1].contains(&"x".repeat(256)), "{text}");
}

#[test]
fn each_request_has_a_span_in_its_trace() {
    let text = logged(async || {
        let server = Server::of(spec_with(limits()).build().unwrap()).await;
        let trace = "00-00000000000000000000000000000abc-0000000000000def-01";
        let request = Request::get("/hello").header("traceparent", trace).body(empty()).unwrap();
        server.request(request).await.is(200, "hello");
        server.get("/hello").await.is(200, "hello");
        assert_eq!(server.get("/trap").await.status, 500);
    });
    let spans: Vec<_> = text.lines().filter(|line| line.contains("request{component=web method=GET")).collect();
    let closed = |line: &&&str| line.contains("close time.busy");
    assert_eq!(spans.iter().filter(closed).count(), 3, "{text}");
    let traced: Vec<_> = spans.iter().filter(|line| line.contains("trace_id=abc")).filter(closed).collect();
    assert_eq!(traced.len(), 1, "{text}");
    assert!(traced[0].contains("parent_id=def") && traced[0].contains("span_id="), "{text}");
}

#[test]
fn what_a_service_refuses_by_itself_is_counted() {
    let (counts, _) = counted(async || {
        let component = spec().build().unwrap();
        let service =
            || HttpService::builder().route(Route::path("/drip").unwrap(), component.clone()).build().unwrap();
        let server = Server::with(service(), ServerLimits::default()).await;
        assert_eq!(server.get("/nowhere").await.status, 404);
        for (request, status) in [
            ("GET /x HTTP/1.1\r\n\r\n".to_owned(), 400),
            (format!("GET /{} HTTP/1.1\r\nhost: a\r\n\r\n", "x".repeat(9 << 10)), 414),
            (format!("GET /x HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "x".repeat(17 << 10)), 431),
            // What is not read to the end of its head is a connection, and no request.
            ("nonsense\r\n\r\n".to_owned(), 400),
        ] {
            let answer = server.raw(request.as_bytes()).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        }
        server.ended().await;

        let limits = ServerLimits { requests_per_address: 1, connections_per_address: 2, ..ServerLimits::default() };
        let server = Server::with(service(), limits).await;
        let mut sender = server.http2().await;
        let drip = || Request::get("http://web.test/drip/1/1000000").body(empty()).unwrap();
        let _in_hand = sender.send_request(drip()).await.unwrap();
        assert_eq!(sender.send_request(drip()).await.unwrap().status(), 503);
        let _second = server.http2().await;
        assert_eq!(server.raw(b"GET /x HTTP/1.1\r\nhost: a\r\n\r\n").await, "");
    });
    let unserved = |status: u16| counts.read(&format!("airssys_http_unserved_total{{status={status}}}"));
    assert_eq!([400, 404, 414, 431, 500, 503].map(unserved), [1, 1, 1, 1, 0, 1]);
    let refused = |reason: &str| counts.read(&format!("airssys_http_connections_refused_total{{reason={reason}}}"));
    assert_eq!(["address", "unreadable"].map(refused), [1, 1]);
}

/// The id that a client is told.
fn id_of(answer: &Answer) -> &str {
    answer.body.trim_end().strip_prefix("the component failed; report ").unwrap()
}

/// Whether there is a warning of this component with this id. Its report may have several lines.
fn warns(text: &str, component: &str, id: &str) -> bool {
    let Some(at) = text.find(&format!(" component={component} id={id} left_out=0")) else { return false };
    let level = ["ERROR", "WARN", "INFO", "DEBUG"].map(|level| (text[..at].rfind(&format!(" {level} ")), level));
    level.into_iter().max().is_some_and(|(_, level)| level == "WARN")
}

#[test]
fn the_id_of_a_report_is_in_the_log() {
    let mut answers = Vec::new();
    let text = logged(async || {
        let server = Server::of(spec().build().unwrap()).await;
        for path in ["/trap", "/silent", "/decline", "/promise"] {
            answers.push(server.get(path).await);
        }
    });
    for answer in &answers {
        assert!(warns(&text, "web", id_of(answer)), "{answer:?}: {text}");
    }
    assert!(!text.contains("secret"), "{text}");
}

#[test]
fn an_actor_that_is_asked_is_counted_and_logged_as_a_component_is() {
    let mut crashed = None;
    let (counts, text) = counted(async || {
        let (_system, actor) = counter().await;
        let server = Server::of(AskActor::new(actor, PATIENCE, RouteLimits::default())).await;
        server.post("/", "add 40").await.is(200, "40");
        server.get("/").await.is(405, "");
        crashed = Some(server.post("/", "crash").await);
    });
    assert!(warns(&text, "counter", id_of(&crashed.unwrap())), "{text}");
    assert_eq!(counts.read("airssys_http_requests_total{component=counter}"), 3);
    let refused =
        |status: u16| counts.read(&format!("airssys_http_refused_total{{component=counter,status={status}}}"));
    assert_eq!([405, 422, 500].map(refused), [1, 0, 1]);
    assert_eq!(counts.read("airssys_http_crashes_total{component=counter,kind=trap}"), 1);
}

#[test]
fn requests_that_are_denied_are_counted_and_logged_by_component_and_reason() {
    let (counts, text) = counted(async || {
        let fetch = async |server: &Server, url: &str| {
            server.request(Request::post("/fetch").header("x-url", url).body(empty()).unwrap()).await.body
        };
        // Nothing is granted to it; a name is; and an actor.
        let server = Server::of(spec().build().unwrap()).await;
        for _ in 0..2 {
            assert_eq!(fetch(&server, "http://denied.test:81/secret").await, "ErrorCode::HttpRequestDenied");
        }
        let outgoing = Outgoing::new(vec![allow("*", 81, &[])], OutgoingLimits::default());
        let server = Server::of(spec().with_outgoing(outgoing).build().unwrap()).await;
        assert_eq!(fetch(&server, "http://127.0.0.1:81/secret").await, "ErrorCode::DestinationIpProhibited");
        let site = Site::with(engine());
        let manifest = "[component]\nname = 'errand'\n[resources]\nmemory = '32MiB'";
        let errand = site.load(airssys_wasm_fixtures::ERRAND, manifest).await.actor;
        assert_eq!(errand.ask("http://denied.test/secret").await.unwrap(), "ErrorCode::HttpRequestDenied");
    });
    let denied = |of: &str| counts.read(&format!("airssys_http_outgoing_denied_total{{component={of}}}"));
    let each = ["web,reason=grant", "web,reason=address", "errand,reason=grant"];
    assert_eq!(each.map(denied), [2, 1, 1]);
    for (component, method, to) in [
        ("web", "GET", "http://denied.test:81"),
        ("web", "GET", "http://127.0.0.1:81"),
        ("errand", "GET", "http://denied.test"),
    ] {
        let said = format!("component=\"{component}\" method={method} to={to} left_out=0");
        assert!(text.lines().any(|line| line.contains("WARN") && line.contains(&said)), "{said}: {text}");
    }
    assert!(!text.contains("secret"), "{text}");
}

#[test]
fn denied_requests_have_ten_lines_a_second() {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let text = logged_by(runtime.enable_all().start_paused(true), async || {
        let mut service = service(spec().build().unwrap());
        let mut fetch = async || {
            let request = Request::post("/fetch").header("host", "web.test").header("x-url", "http://denied.test/");
            service.call(request.body(empty()).unwrap()).await.unwrap().into_body().collect().await.unwrap().to_bytes()
        };
        for _ in 0..15 {
            assert_eq!(fetch().await, "ErrorCode::HttpRequestDenied");
        }
        tokio::time::advance(Duration::from_secs(1)).await;
        fetch().await;
    });
    let lines: Vec<_> = text.lines().filter(|line| line.contains("an outgoing request is denied")).collect();
    assert_eq!(lines.len(), 11, "{text}");
    assert!(lines[9].contains("left_out=0") && lines[10].contains("left_out=5"), "{text}");
}

#[test]
fn the_access_log_has_a_thousand_lines_a_second_and_says_how_many_it_left_out() {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let text = logged_by(runtime.enable_all().start_paused(true), async || {
        let mut service = HttpService::builder().build().unwrap();
        let mut get = async || {
            let request = Request::get("/").header("host", "web.test").body(empty()).unwrap();
            assert_eq!(service.call(request).await.unwrap().status(), 404);
        };
        for _ in 0..1_500 {
            get().await;
        }
        tokio::time::advance(Duration::from_secs(1)).await;
        get().await;
    });
    let lines: Vec<_> = text.lines().filter(|line| line.contains("airssys_http::access")).collect();
    assert_eq!(lines.len(), 1_001, "{}", lines.len());
    assert!(lines[999].contains("left_out=0") && lines[1_000].contains("left_out=500"), "{}", lines[1_000]);
}
