//! So many at a time who do something over and over. The actors of others, in a program of their own, are timed by this very file:
//! see `benches/peers`.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::runtime::Runtime;

/// So many are timed together at the least where many are in flight: a few of them say how long one takes, not how many go
/// through.
pub(crate) const BATCH: u64 = 4_096;

/// What so many take, when more were timed.
pub(crate) fn share(taken: Duration, iterations: u64, of: u64) -> Duration {
    taken.mul_f64(iterations as f64 / of as f64)
}

/// Has so many at a time do something over and over, and gives the time of so many.
pub(crate) fn in_flight<F: Future<Output = ()> + Send + 'static>(
    runtime: &Runtime,
    in_flight: usize,
    iterations: u64,
    run: impl Fn() -> F + Clone + Send + Sync + 'static,
) -> Duration {
    let times = if in_flight == 1 { iterations } else { iterations.max(BATCH) };
    let left = Arc::new(AtomicU64::new(times));
    let take = move |left: &AtomicU64| {
        left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
    };
    runtime.block_on(async move {
        let started = Instant::now();
        let clients: Vec<_> = (0..in_flight)
            .map(|_| {
                let (left, run) = (Arc::clone(&left), run.clone());
                tokio::spawn(async move {
                    while take(&left) {
                        run().await;
                    }
                })
            })
            .collect();
        for client in clients {
            client.await.unwrap();
        }
        share(started.elapsed(), iterations, times)
    })
}
