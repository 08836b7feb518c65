//! What is logged and counted.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    io,
    sync::{
        Arc, Mutex, Once,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use airssys_wasm_limits::ResourceLimits;
use http::Request;
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use tracing_subscriber::fmt::format::FmtSpan;

use crate::support::{Server, empty, limits, spec_with};

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
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(run());
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

#[test]
fn requests_refusals_and_crashes_are_counted_by_component_and_kind() {
    let counts = Counts::default();
    let component = metrics::with_local_recorder(&counts, || {
        spec_with(ResourceLimits { cpu_time: std::time::Duration::from_millis(20), ..limits() }).build().unwrap()
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let server = Server::of(component).await;
        for (path, status) in [("/hello", 200), ("/nowhere", 404), ("/trap", 500), ("/trap", 500), ("/spin", 500)] {
            assert_eq!(server.get(path).await.status, status, "{path}");
        }
    });
    assert_eq!(counts.read("airssys_http_requests_total{component=web}"), 5);
    // What a guest answers is no refusal.
    assert_eq!(counts.read("airssys_http_refused_total{component=web}"), 3);
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
