//! What can be seen from outside: metrics, spans, lines of guests.

use std::{cell::RefCell, io, sync::Once};

use airssys_wasm_actor::{ActorSystem, SystemConfig};
use airssys_wasm_registry::{MessageEnvelope, TraceContext};
use metrics_util::debugging::{DebugValue, DebuggingRecorder};
use tracing_subscriber::fmt::format::FmtSpan;

use crate::support::{ACTOR, ask, spawn, spec, system};

/// Counters and histograms as `name{label=value}` with their number or their count.
fn snapshot(snapshotter: &metrics_util::debugging::Snapshotter) -> Vec<(String, u64)> {
    let mut found: Vec<_> = snapshotter
        .snapshot()
        .into_vec()
        .into_iter()
        .map(|(key, _, _, value)| {
            let labels: Vec<_> = key.key().labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
            let value = match value {
                DebugValue::Counter(count) => count,
                DebugValue::Gauge(gauge) => gauge.into_inner() as u64,
                DebugValue::Histogram(values) => values.len() as u64,
            };
            (format!("{}{{{}}}", key.key().name(), labels.join(",")), value)
        })
        .collect();
    found.sort();
    found
}

#[test]
fn messages_crashes_and_dead_letters_are_counted_without_names_by_default() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    metrics::with_local_recorder(&recorder, || {
        runtime.block_on(async {
            let engine = system().engine().clone();
            let config = SystemConfig { latencies: true, ..SystemConfig::default() };
            let system = ActorSystem::new(engine.clone(), config);
            let actor = spawn(&system, "actor", &ACTOR).await;
            for command in ["echo x", "echo y", "fail z"] {
                _ = ask(&actor, command).await;
            }
            for command in ["panic", "overflow"] {
                actor.tell(command).await.unwrap();
            }
            let mut silent = spec(&system, "silent", &ACTOR);
            silent = silent.with_capabilities(airssys_wasm_actor::Capabilities::default());
            let silent = system.spawn(silent).await.unwrap();
            _ = ask(&silent, "send actor x").await;
            ask(&actor, "echo x").await.unwrap();

            let values = snapshot(&snapshotter);
            let value = |name: &str| {
                values.iter().find(|(key, _)| key == name).unwrap_or_else(|| panic!("{name}: {values:#?}")).1
            };
            assert_eq!(value("airssys_actor_messages_total{}"), 7);
            assert_eq!(value("airssys_actor_handler_errors_total{}"), 2);
            assert_eq!(value("airssys_actor_handler_seconds{}"), 5);
            assert_eq!(value("airssys_actor_mailbox_depth{}"), 7);
            assert_eq!(value("airssys_actor_memory_bytes{}"), 5);
            assert_eq!(value("airssys_actor_restarts_total{}"), 2);
            assert_eq!(value("airssys_actor_crashes_total{kind=trap}"), 1);
            assert_eq!(value("airssys_actor_crashes_total{kind=stack-overflow}"), 1);
            assert_eq!(value("airssys_actor_crashes_total{kind=memory}"), 0);
            assert_eq!(value("airssys_actor_dead_letters_total{}"), 2);
            assert_eq!(value("airssys_actor_denied_total{}"), 1);
            assert_eq!(value("airssys_actors{}"), 2);
            assert!(values.iter().all(|(key, _)| !key.contains("actor=")), "{values:#?}");

            let each = ActorSystem::new(engine, SystemConfig { metrics_per_actor: true, ..SystemConfig::default() });
            let named = spawn(&each, "named", &ACTOR).await;
            ask(&named, "echo x").await.unwrap();
            let values = snapshot(&snapshotter);
            assert!(values.contains(&("airssys_actor_messages_total{actor=named}".to_owned(), 1)), "{values:#?}");
        });
    });
}

thread_local! {
    /// What this thread has logged.
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
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(run());
    String::from_utf8(LINES.take()).unwrap()
}

#[test]
fn each_message_has_a_span_in_its_trace() {
    let text = logged(async || {
        let system = system();
        let actor = spawn(&system, "traced", &ACTOR).await;
        let mut message = MessageEnvelope::from("echo x");
        message = message.with_trace(TraceContext { trace_id: 0xabc, parent_id: 0xdef, sampled: true });
        actor.ask(message).await.unwrap();
        ask(&actor, "echo y").await.unwrap();
    });
    let spans: Vec<_> = text.lines().filter(|line| line.contains("handle{actor=traced incarnation=1")).collect();
    assert_eq!(spans.iter().filter(|line| line.contains("trace_id=abc")).count(), 1, "{text}");
    assert!(spans.iter().any(|line| line.contains("parent_id=def")), "{text}");
    assert_eq!(spans.iter().filter(|line| !line.contains("trace_id")).count(), 1, "{text}");
}

#[test]
fn lines_of_guests_are_logged_with_their_name_and_cannot_forge_others() {
    let text = logged(async || {
        let system = system();
        let actor = spawn(&system, "loud", &ACTOR).await;
        ask(&actor, "log warn first\nINFO forged \u{1b}[2J").await.unwrap();
        ask(&actor, &format!("log info {}", "x".repeat(5_000))).await.unwrap();
        ask(&actor, "fail \u{1b}[2J").await.unwrap_err();
        actor.tell("fail \u{1b}[2J").await.unwrap();
        ask(&actor, "echo").await.unwrap();
    });
    assert!(text.contains("WARN handle") && text.contains(r"first\nINFO forged \u{1b}[2J"), "{text}");
    assert!(text.contains("actor=loud"), "{text}");
    assert!(text.contains("bytes=5000") && !text.contains(&"x".repeat(4_097)), "{text}");
    assert!(!text.contains('\u{1b}') && !text.lines().any(|line| line.starts_with("INFO forged")), "{text}");
}
