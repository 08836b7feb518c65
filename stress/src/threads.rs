//! Threads that come when they are needed and end when they are not. Who counts them has all of them running first.

use std::{
    io,
    sync::{Arc, Barrier},
    time::Duration,
};

use airssys_wasm_engine::WasmEngine;
use futures::future::join_all;
use tokio::{
    runtime::{Builder, Runtime},
    task::spawn_blocking,
};

/// Threads of a [runtime](two_workers) beside its workers: one for each call without a fiber that may have given up its worker
/// at a time, and that another began meanwhile.
pub(crate) const BLOCKING: usize = 18;

/// Threads of an engine that free memory.
const RECLAIMING: usize = 2;

/// A runtime with two workers whose threads do not end.
pub(crate) fn two_workers() -> io::Result<Runtime> {
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(2).max_blocking_threads(BLOCKING).thread_keep_alive(Duration::from_secs(24 * 3_600));
    builder.enable_all().build()
}

/// Has so many blocking threads of this runtime running, and those of the engine. Waits for ever if some are taken.
pub(crate) async fn begin(engine: &WasmEngine, blocking: usize) {
    let all = Arc::new(Barrier::new(blocking + RECLAIMING));
    let meet = || {
        let all = Arc::clone(&all);
        move || _ = all.wait()
    };
    let blocking: Vec<_> = (0..blocking).map(|_| spawn_blocking(meet())).collect();
    let reclaiming: Vec<_> = (0..RECLAIMING).map(|_| engine.reclaimer().run(meet())).collect();
    assert!(join_all(blocking).await.iter().all(Result::is_ok));
    assert!(join_all(reclaiming).await.iter().all(Result::is_ok));
}
