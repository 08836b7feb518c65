//! Messages: one after the other, through many, and what those are asked for who send them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use airssys_wasm_actor::{Capabilities, Grants, NamePattern};
use airssys_wasm_harness::{Suite, timed};
use airssys_wasm_registry::{ComponentId, Topic, TopicPattern};
use airssys_wasm_twins::{
    actors::{self as twins, ECHO, SMALLEST_ASYNC},
    bare::engine,
    work::{self, RECEIVERS, Twin, Work, Workers, through},
};
use tracing::{Level, subscriber::with_default};

use super::ours::{Ours, id, sandbox, spec, system};
use crate::guests;

const PAYLOADS: [(&str, usize); 3] = [("64b", 64), ("1kb", 1 << 10), ("64kb", 64 << 10)];

/// How much longer it may take than with bare tasks and channels, and than with the others' actors.
#[derive(Clone, Copy, Default)]
struct Goals {
    guest: Option<f64>,
    native: Option<f64>,
    peers: Option<f64>,
}

/// With a guest for each payload, and with code of the host, for which the payload makes no difference: nobody copies it.
fn beside_all(suite: &mut Suite, operation: &str, work: Work, workers: Workers, goals: Goals) {
    for (size, bytes) in PAYLOADS {
        let guest = format!("actor/{operation}/guest/{size}/{}", workers.name());
        let group = suite.bench(&guest, move || work.measure(workers, Ours::guest(&ECHO), bytes));
        let small = size == "64b";
        group.twin("raw", goals.guest.filter(|_| small), move || Twin::PlainGuest.measure(work, workers, bytes));
        if small {
            let native = format!("actor/{operation}/native/{}", workers.name());
            let [raw, kameo, ractor] = ["raw", "peer/kameo", "peer/ractor"].map(|whose| format!("{whose}/{native}"));
            group
                .and(&native, move || work.measure(workers, Ours::native(), bytes))
                .and(&raw, move || Twin::PlainNative.measure(work, workers, bytes))
                .and(&kameo, move || Twin::Kameo.measure(work, workers, bytes))
                .and(&ractor, move || Twin::Ractor.measure(work, workers, bytes))
                .ratio(&native, &raw, goals.native)
                .ratio(&native, &kameo, goals.peers)
                .ratio(&native, &ractor, goals.peers)
                .ratio(&guest, &kameo, None)
                .ratio(&guest, &ractor, None);
            match work {
                Work::Asks => {
                    let bare = format!("raw/actor/ask/guest_without_fiber/64b/{}", workers.name());
                    group
                        .and(&bare, move || work::asks_without_fiber(workers))
                        .ratio(&guest, &bare, None)
                        .ratio(&bare, &kameo, None);
                }
                Work::Tells => {
                    let bare = format!("raw/actor/tell/native_of_96_bytes/{}", workers.name());
                    group.and(&bare, move || work::tells_of_96_bytes(workers)).ratio(&native, &bare, None);
                }
            }
        }
    }
}

pub(super) fn ask(suite: &mut Suite, workers: Workers) {
    let guest = match workers {
        Workers::One => 1.1,
        Workers::Two => 1.15,
    };
    beside_all(suite, "ask", Work::Asks, workers, Goals { guest: Some(guest), ..Goals::default() });
}

/// A guest with async functions, which has more of wasmtime around it, beside the same one without.
pub(super) fn ask_async(suite: &mut Suite) {
    const ASYNC: &str = "actor/ask/async_guest/64b";
    const SMALLEST: &str = "actor/ask/smallest_guest/64b";
    suite
        .bench(ASYNC, || Work::Asks.measure(Workers::One, Ours::guest(&SMALLEST_ASYNC), 64))
        .twin("raw", Some(1.25), || work::asks_of(&SMALLEST_ASYNC))
        .and(SMALLEST, || Work::Asks.measure(Workers::One, Ours::guest(&twins::SMALLEST), 64))
        .ratio(ASYNC, SMALLEST, None);
}

pub(super) fn tell(suite: &mut Suite, workers: Workers) {
    let goals = match workers {
        Workers::One => Goals::default(),
        Workers::Two => Goals { guest: None, native: Some(1.3), peers: Some(1.0) },
    };
    beside_all(suite, "tell", Work::Tells, workers, goals);
}

/// Messages through several guests on both cores: the time a message.
pub(super) fn throughput(suite: &mut Suite) {
    suite
        .bench("actor/throughput/guests/two_workers", || {
            through(async {
                let system = system(engine());
                let sandbox = sandbox(&ECHO, &system, guests::limits());
                let mut receivers = Vec::new();
                for n in 0..RECEIVERS {
                    let actor = system.spawn(spec(&format!("guest-{n}"), &sandbox)).await.unwrap();
                    receivers.push(Ours { system: system.clone(), actor });
                }
                receivers
            })
        })
        // Three million a second.
        .target("goal", Duration::from_nanos(333))
        .twin("raw", None, work::through_plain);
}

/// What a guest is asked for whenever it sends something.
pub(super) fn capabilities(suite: &mut Suite) {
    const NAMES: [&str; 4] = ["billing", "clock", "tenant-7/*", "*/public"];
    // With so many exact names before them.
    let granted = |exact: usize| {
        let names = (0..exact).map(|n| format!("service-{n}"));
        Grants::from(Capabilities {
            send: names.chain(NAMES.map(String::from)).map(|name| NamePattern::new(&name).unwrap()).collect(),
            publish: ["audit.>", "metrics.*", "orders.*.paid", "orders.eu.>"]
                .map(|pattern| TopicPattern::new(pattern).unwrap())
                .to_vec(),
            ..Capabilities::default()
        })
    };
    let goal = Duration::from_nanos(30);
    for (which, exact, name, expected) in [
        ("glob", 0, "tenant-7/orders", true),
        ("denied", 0, "tenant-8/orders", false),
        ("exact_of_1000", 1_000, "service-999", true),
        ("denied_of_1000", 1_000, "service-1000", false),
    ] {
        suite
            .bench(&format!("actor/capabilities/send/{which}"), move || {
                let (granted, to): (_, ComponentId) = (granted(exact), id(name));
                timed(move || assert_eq!(granted.may_send(std::hint::black_box(&to)), expected))
            })
            .target("goal", goal);
    }
    for (which, topic, expected) in [("last", "orders.eu.created", true), ("denied", "orders.us.created", false)] {
        suite
            .bench(&format!("actor/capabilities/publish/{which}"), move || {
                let (granted, topic) = (granted(0), Topic::new(topic).unwrap());
                timed(move || assert_eq!(granted.may_publish(std::hint::black_box(&topic)), expected))
            })
            .target("goal", goal);
    }
}

/// An ask while nobody listens, beside one while somebody does.
pub(super) fn observability(suite: &mut Suite) {
    const SILENT: &str = "actor/observability/silent";
    let group = suite.bench(SILENT, || Work::Asks.measure(Workers::One, Ours::guest(&ECHO), 64));
    group.and("actor/observability/metrics", || {
        metrics::with_local_recorder(&Counting::default(), || Work::Asks.measure(Workers::One, Ours::guest(&ECHO), 64))
    });
    for (name, level) in [("info", Level::INFO), ("debug", Level::DEBUG)] {
        group.and(&format!("actor/observability/tracing_{name}"), move || {
            let mut measure = Work::Asks.measure(Workers::One, Ours::guest(&ECHO), 64);
            Box::new(move |iterations| {
                let subscriber = tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::sink).finish();
                let taken = with_default(subscriber, || measure(iterations));
                // Or the level would be that of all who come after.
                tracing::callsite::rebuild_interest_cache();
                taken
            })
        });
    }
    for listening in ["metrics", "tracing_info", "tracing_debug"] {
        group.ratio(&format!("actor/observability/{listening}"), SILENT, None);
    }
}

/// A recorder that adds up.
#[derive(Default)]
struct Counting {
    registered: AtomicU64,
}

#[derive(Default)]
struct Sum {
    count: AtomicU64,
    sum: AtomicU64,
}

impl metrics::HistogramFn for Sum {
    fn record(&self, value: f64) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add((value * 1e9) as u64, Ordering::Relaxed);
    }
}

impl metrics::Recorder for Counting {
    fn describe_counter(&self, _: metrics::KeyName, _: Option<metrics::Unit>, _: metrics::SharedString) {}
    fn describe_gauge(&self, _: metrics::KeyName, _: Option<metrics::Unit>, _: metrics::SharedString) {}
    fn describe_histogram(&self, _: metrics::KeyName, _: Option<metrics::Unit>, _: metrics::SharedString) {}

    fn register_counter(&self, _: &metrics::Key, _: &metrics::Metadata<'_>) -> metrics::Counter {
        self.registered.fetch_add(1, Ordering::Relaxed);
        metrics::Counter::from_arc(Arc::new(AtomicU64::new(0)))
    }

    fn register_gauge(&self, _: &metrics::Key, _: &metrics::Metadata<'_>) -> metrics::Gauge {
        self.registered.fetch_add(1, Ordering::Relaxed);
        metrics::Gauge::from_arc(Arc::new(AtomicU64::new(0)))
    }

    fn register_histogram(&self, _: &metrics::Key, _: &metrics::Metadata<'_>) -> metrics::Histogram {
        self.registered.fetch_add(1, Ordering::Relaxed);
        metrics::Histogram::from_arc(Arc::new(Sum::default()))
    }
}
