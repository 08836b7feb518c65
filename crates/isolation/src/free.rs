//! Gives back what a guest had, where that takes long on a thread for it.

use std::{panic::resume_unwind, sync::mpsc::channel};

use airssys_wasm_engine::Reclaimer;
use tokio::runtime::Handle;

/// Bytes of memory from which on it is not freed by a worker: the system takes some 0.1 ms to take back a MiB, for which a
/// worker's other tasks would wait. Less than half a tick for what is smaller, as most guests are that are no interpreter.
const LARGE: u64 = 4 << 20;

/// Drops a store with so many bytes of memory, and comes back when they are free.
pub(crate) async fn free(store: impl Send + 'static, memory: u64, reclaimer: &Reclaimer) {
    if memory < LARGE {
        return;
    }
    let Ok(runtime) = Handle::try_current() else { return };
    // In tests, whose clocks may be paused: tokio moves such a clock on when there is nothing to do but wait, unless there is a
    // blocking task.
    let _until_freed = cfg!(debug_assertions).then(|| {
        let (freed, until_freed) = channel::<()>();
        drop(runtime.spawn_blocking(move || until_freed.recv()));
        freed
    });
    let freed = reclaimer.run(move || {
        // What is dropped may start tasks: files are closed by one.
        let _runtime = runtime.enter();
        drop(store);
    });
    if let Err(panic) = freed.await {
        resume_unwind(panic);
    }
}
