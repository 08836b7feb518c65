//! What is counted of a kind, and by which name.

use std::collections::BTreeMap;

use airssys_wasm_keyed::{KeyedOptions, SaveWhen};
use metrics_util::debugging::{DebugValue, DebuggingRecorder};

use crate::support::{COUNTER, Faulty, ask, carts, system, until};

#[test]
fn what_happens_to_a_kind_is_counted_by_its_name() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    metrics::with_local_recorder(&recorder, || {
        runtime.block_on(async {
            let (system, store) = (system(), Faulty::new());
            store.put("rubbish", b"rubbish").await;
            let options = KeyedOptions { save: SaveWhen::EachMessage, live: 3, ..KeyedOptions::default() };
            let carts = carts(&system, &COUNTER, options, &store).await;
            for key in ["1", "2"] {
                ask(&carts, key, "add 1").await.unwrap();
                ask(&carts, key, "get").await.unwrap();
            }
            assert!(carts.passivate("1").await.unwrap());
            ask(&carts, "rubbish", "get").await.unwrap_err();
            until(|| system.find("cart/rubbish").is_none()).await;
            ask(&carts, "rubbish", "get").await.unwrap_err();
            store.set_full(true);
            ask(&carts, "2", "add 1").await.unwrap_err();
        });
    });
    let found: BTreeMap<_, _> = snapshotter
        .snapshot()
        .into_vec()
        .into_iter()
        .filter_map(|(key, _, _, value)| {
            let name = key.key().name().strip_prefix("airssys_keyed_")?.to_owned();
            let labels: Vec<_> = key.key().labels().map(|label| (label.key(), label.value())).collect();
            assert_eq!(labels, [("kind", "cart")]);
            match value {
                DebugValue::Counter(count) => Some((name, count as f64)),
                DebugValue::Gauge(level) => Some((name, level.0)),
                DebugValue::Histogram(_) => None,
            }
        })
        .collect();
    let of = |name: &str| found[name];
    assert_eq!((of("activations_total"), of("not_activated_total"), of("passivations_total")), (2.0, 1.0, 1.0));
    // Two that asked, and the one that left.
    assert_eq!((of("saves_total"), of("unchanged_total"), of("not_saved_total")), (2.0, 3.0, 1.0));
    assert_eq!((of("refused_total"), of("live"), of("waiting")), (1.0, 1.0, 0.0));
    // One that was there before, and two that were made.
    assert_eq!(of("rows"), 3.0);
}
