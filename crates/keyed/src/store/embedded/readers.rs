//! Threads that read, and when they are not needed.

use std::{
    io,
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

type Job = Box<dyn FnOnce() + Send>;

/// Threads that read, so many at most at the same time. They end when this is dropped.
pub(super) struct Readers(mpsc::Sender<Job>);

impl Readers {
    pub(super) fn start(threads: NonZeroUsize) -> io::Result<Self> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..threads.get() {
            let queue = Arc::clone(&queue);
            thread::Builder::new().name("keyed-read".to_owned()).spawn(move || {
                loop {
                    // One waits, holding the lock, and the others wait for it.
                    let job = queue.lock().recv();
                    match job {
                        Ok(job) => job(),
                        Err(_) => break,
                    }
                }
            })?;
        }
        Ok(Self(jobs))
    }

    pub(super) fn read(&self, job: impl FnOnce() + Send + 'static) {
        // Fails if a read has panicked in each thread; the job goes, and with it the sender of its answer.
        _ = self.0.send(Box::new(job));
    }
}

/// Slower than this, a read did not come from memory.
const SLOW: Duration = Duration::from_micros(500);

/// After a slow read where it was asked for, others are left to the threads for so long at first, and at most.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(64);

/// Whether reads may be made where they are asked for, since rows come from memory, the store's or the system's. Handing
/// such a read to a thread would take longer than the read. A slow one shows that they do not: then reads are left to
/// the threads, for twice as long each time that the first read after it is slow again.
pub(super) struct Pace {
    begun: Instant,
    /// In microseconds since `begun`.
    pause_ends: AtomicU64,
    /// In microseconds.
    next_pause: AtomicU64,
}

impl Pace {
    pub(super) fn new() -> Self {
        Self { begun: Instant::now(), pause_ends: AtomicU64::new(0), next_pause: AtomicU64::new(micros(PAUSE)) }
    }

    pub(super) fn is_quick(&self, now: Instant) -> bool {
        micros(now - self.begun) >= self.pause_ends.load(Ordering::Relaxed)
    }

    /// Notes a read where it was asked for, from `begun` to `ended`.
    pub(super) fn note(&self, begun: Instant, ended: Instant) {
        if ended - begun <= SLOW {
            // Written only when it changes: all who read look at it.
            if self.next_pause.load(Ordering::Relaxed) != micros(PAUSE) {
                self.next_pause.store(micros(PAUSE), Ordering::Relaxed);
            }
            return;
        }
        let pause = self.next_pause.load(Ordering::Relaxed);
        self.next_pause.store((pause * 2).min(micros(LONGEST_PAUSE)), Ordering::Relaxed);
        self.pause_ends.store(micros(ended - self.begun) + pause, Ordering::Relaxed);
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_read_sends_others_to_the_threads_for_longer_each_time() {
        let pace = Pace::new();
        let at = |seconds| pace.begun + Duration::from_secs(seconds);
        let slow = Duration::from_millis(1);
        assert!(pace.is_quick(at(0)));
        pace.note(at(1), at(1) + slow);
        assert!(!pace.is_quick(at(2)) && pace.is_quick(at(3)));
        pace.note(at(3), at(3) + slow);
        assert!(!pace.is_quick(at(4)) && !pace.is_quick(at(5)) && pace.is_quick(at(6)));
        // A quick one, and it is as at the beginning.
        pace.note(at(6), at(6));
        assert!(pace.is_quick(at(6)));
        pace.note(at(7), at(7) + slow);
        assert!(!pace.is_quick(at(8)) && pace.is_quick(at(9)));
    }

    #[test]
    fn pauses_do_not_grow_for_ever() {
        let pace = Pace::new();
        let mut now = pace.begun;
        for _ in 0..100 {
            pace.note(now, now + Duration::from_millis(1));
            now += Duration::from_secs(100);
            assert!(pace.is_quick(now));
        }
    }
}
