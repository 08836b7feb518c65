//! Gives back what a guest had, where that takes long on a thread for it.

use std::panic::resume_unwind;

use tokio::{runtime::Handle, sync::Semaphore};

/// Bytes of memory from which on it is not freed by a worker: the system takes some 0.1 ms to take back a MiB, for which a
/// worker's other tasks would wait.
const LARGE: u64 = 1 << 20;

/// Threads that free memory at a time. More would only wait for each other in the system.
static THREADS: Semaphore = Semaphore::const_new(2);

/// Drops a store with so many bytes of memory, and comes back when they are free.
pub(crate) async fn free(store: impl Send + 'static, memory: u64) {
    if memory < LARGE {
        return;
    }
    let Ok(runtime) = Handle::try_current() else { return };
    // Never closed.
    let permit = THREADS.acquire().await;
    let freed = runtime.spawn_blocking(move || {
        drop(store);
        drop(permit);
    });
    if let Err(error) = freed.await
        && let Ok(panic) = error.try_into_panic()
    {
        resume_unwind(panic);
    }
}
