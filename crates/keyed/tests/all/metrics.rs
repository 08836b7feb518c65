//! What is counted of a kind, and by which name.

use std::{collections::BTreeMap, time::Duration};

use airssys_wasm_keyed::{KeyedOptions, SaveWhen};
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};

use crate::support::{COUNTER, Faulty, KEEPING, ask, carts, pass, settle, system, until};

/// What was counted since it was last looked at, and the levels that were set.
fn found(snapshotter: &Snapshotter) -> BTreeMap<String, f64> {
    let levels = snapshotter.snapshot().into_vec().into_iter().filter_map(|(key, _, _, value)| {
        let name = key.key().name().strip_prefix("airssys_keyed_")?.to_owned();
        let labels: Vec<_> = key.key().labels().map(|label| (label.key(), label.value())).collect();
        assert_eq!(labels, [("kind", "cart")]);
        match value {
            DebugValue::Counter(count) => Some((name, count as f64)),
            DebugValue::Gauge(level) => Some((name, level.0)),
            DebugValue::Histogram(_) => None,
        }
    });
    levels.collect()
}

/// Records what is counted in a scene, which may have a clock that is paused.
fn recorded(is_paused: bool, scene: impl AsyncFnOnce(&Snapshotter)) {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(is_paused).build().unwrap();
    metrics::with_local_recorder(&recorder, || runtime.block_on(scene(&snapshotter)));
}

#[test]
fn what_happens_to_a_kind_is_counted_by_its_name() {
    recorded(false, async |snapshotter| {
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
        let found = found(snapshotter);
        let of = |name: &str| found[name];
        assert_eq!((of("activations_total"), of("not_activated_total"), of("passivations_total")), (2.0, 1.0, 1.0));
        // Two that asked, and the one that left.
        assert_eq!((of("saves_total"), of("unchanged_total"), of("not_saved_total")), (2.0, 3.0, 1.0));
        assert_eq!((of("refused_total"), of("live")), (1.0, 1.0));
        // One that was there before, and two that were made.
        assert_eq!(of("rows"), 3.0);
    });
}

#[test]
fn those_that_wait_for_their_start_are_counted() {
    recorded(false, async |snapshotter| {
        let (system, store) = (system(), Faulty::new());
        let carts = carts(&system, &COUNTER, KeyedOptions::default(), &store).await;
        store.loads.forget_permits(usize::MAX);
        for key in 0..270 {
            carts.actor(&key.to_string()).unwrap().tell("add 1").await.unwrap();
        }
        settle().await;
        assert_eq!((carts.stats().waiting, found(snapshotter)["waiting"]), (14, 14.0));
        carts.kill_all().await;
        // As the levels are taken away that are looked at.
        assert_eq!((carts.stats().waiting, found(snapshotter)["waiting"]), (0, -14.0));
    });
}

#[test]
fn the_oldest_unsaved_state_has_an_age_and_none_when_there_is_none() {
    recorded(true, async |snapshotter| {
        let (system, store) = (system(), Faulty::new());
        let (save, idle) = (SaveWhen::OnIdle, Duration::from_secs(8));
        let carts = carts(&system, &KEEPING, KeyedOptions { save, idle, ..KeyedOptions::default() }, &store).await;
        ask(&carts, "1", "hello").await.unwrap();
        let mut oldest: f64 = 0.0;
        while carts.stats().live > 0 {
            pass(Duration::from_millis(100)).await;
            oldest = oldest.max(found(snapshotter)["oldest_unsaved_seconds"]);
        }
        assert!(oldest >= 7.0, "{oldest}");
        // It leaves as soon as it is told to, before it is looked at again.
        ask(&carts, "2", "hello").await.unwrap();
        pass(Duration::from_secs(20)).await;
        assert_eq!((carts.stats().live, found(snapshotter)["oldest_unsaved_seconds"]), (0, 0.0));
    });
}
