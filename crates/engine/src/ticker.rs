//! The one thread that advances the epoch of every engine in a [`WasmEngine`](crate::WasmEngine).

use std::{
    fmt,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use wasmtime::{Engine, EngineWeak};

use crate::config::Ticking;

/// A handle on the epoch: keeps it advancing, and knows the period of a tick.
///
/// A template holds one, so that deadlines hold after the [`WasmEngine`](crate::WasmEngine) is dropped. The thread ends
/// with the last handle.
#[derive(Clone)]
pub struct EpochClock(Arc<Shared>);

struct Shared {
    engines: Mutex<Vec<EngineWeak>>,
    ticks: AtomicU64,
    period: Duration,
    time: Time,
    /// Woken when the last handle is dropped, so that the thread ends at once.
    thread: Mutex<Option<thread::Thread>>,
}

/// What the time between two ticks is measured by.
enum Time {
    /// The system's monotonic clock, from when the engine was made.
    Since(Instant),
    /// Nanoseconds, advanced by hand.
    ByHand(AtomicU64),
}

impl fmt::Debug for EpochClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EpochClock").field("period", &self.period()).field("ticks", &self.ticks()).finish()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.get_mut() {
            thread.unpark();
        }
    }
}

impl EpochClock {
    /// Starts the thread unless the ticking is manual, and returns what joins it.
    pub(crate) fn start(ticking: Ticking) -> std::io::Result<(Self, Option<thread::JoinHandle<()>>)> {
        let clock = Self(Arc::new(Shared {
            engines: Mutex::default(),
            ticks: AtomicU64::new(0),
            period: ticking.period(),
            time: match ticking {
                Ticking::Every(_) => Time::Since(Instant::now()),
                Ticking::Manual(_) => Time::ByHand(AtomicU64::new(0)),
            },
            thread: Mutex::new(None),
        }));
        let Ticking::Every(period) = ticking else { return Ok((clock, None)) };
        let shared = Arc::downgrade(&clock.0);
        let thread = thread::Builder::new().name("wasm-epoch".into()).spawn(move || run(&shared, period))?;
        *clock.0.thread.lock() = Some(thread.thread().clone());
        Ok((clock, Some(thread)))
    }

    pub(crate) fn add(&self, engine: &Engine) {
        self.0.engines.lock().push(engine.weak());
    }

    pub(crate) fn tick(&self) {
        if let Time::ByHand(now) = &self.0.time {
            let period = self.period_ns();
            // To the next boundary, wherever in the period it is.
            _ = now.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| {
                Some((now / period).saturating_add(1).saturating_mul(period))
            });
        }
        self.0.tick();
    }

    pub(crate) fn pass_time(&self, time: Duration) {
        let Time::ByHand(now) = &self.0.time else { return };
        let (period, time) = (self.period_ns(), nanoseconds(time));
        let before = now.fetch_add(time, Ordering::Relaxed);
        for _ in before / period..before.saturating_add(time) / period {
            self.0.tick();
        }
    }

    /// The time that one tick stands for.
    pub fn period(&self) -> Duration {
        self.0.period
    }

    /// Ticks since the engine was made.
    pub fn ticks(&self) -> u64 {
        self.0.ticks.load(Ordering::Relaxed)
    }

    /// Nanoseconds since the engine was made, of the system's monotonic clock. With manual ticks, those that were let pass
    /// by [`WasmEngine::tick`](crate::WasmEngine::tick) and [`WasmEngine::pass_time`](crate::WasmEngine::pass_time).
    pub fn now_ns(&self) -> u64 {
        match &self.0.time {
            Time::Since(start) => nanoseconds(start.elapsed()),
            Time::ByHand(now) => now.load(Ordering::Relaxed),
        }
    }

    /// Nanoseconds for which this thread has had a core. With manual ticks, and on a system that does not tell, as
    /// [`now_ns`](Self::now_ns).
    pub fn thread_ns(&self) -> u64 {
        #[cfg(unix)]
        if matches!(self.0.time, Time::Since(_)) {
            let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
            return Duration::try_from(time).map_or(0, nanoseconds);
        }
        self.now_ns()
    }

    /// [`period`](Self::period) in nanoseconds, one at least.
    pub fn period_ns(&self) -> u64 {
        nanoseconds(self.0.period).max(1)
    }

    /// How many ticks this much time is, rounded up: a deadline is never early.
    pub fn ticks_in(&self, time: Duration) -> u64 {
        let period = self.0.period.as_nanos().max(1);
        u64::try_from(time.as_nanos().div_ceil(period)).unwrap_or(u64::MAX)
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl Shared {
    fn tick(&self) {
        self.ticks.fetch_add(1, Ordering::Relaxed);
        self.engines.lock().retain(|engine| match engine.upgrade() {
            Some(engine) => {
                engine.increment_epoch();
                true
            }
            None => false,
        });
    }
}

fn run(shared: &Weak<Shared>, period: Duration) {
    loop {
        // Not a correctness matter: a spurious wake-up is one early tick.
        thread::park_timeout(period);
        match shared.upgrade() {
            Some(shared) => shared.tick(),
            None => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_thread_ends_with_the_last_handle() {
        let (clock, thread) = EpochClock::start(Ticking::Every(Duration::from_secs(3_600))).unwrap();
        let thread = thread.expect("a thread");
        let second = clock.clone();
        drop(clock);
        assert!(!thread.is_finished());
        drop(second);
        // Without the wake-up this would take an hour.
        thread.join().unwrap();
    }

    #[test]
    fn manual_ticking_has_no_thread() {
        let (clock, thread) = EpochClock::start(Ticking::Manual(Duration::from_millis(5))).unwrap();
        assert!(thread.is_none());
        assert_eq!(clock.ticks(), 0);
        clock.tick();
        assert_eq!(clock.ticks(), 1);
    }

    #[test]
    fn time_that_passes_by_hand_ends_the_epochs_that_it_goes_through() {
        let (clock, _) = EpochClock::start(Ticking::Manual(Duration::from_millis(1))).unwrap();
        let seen = |clock: &EpochClock| (clock.now_ns(), clock.ticks());
        clock.pass_time(Duration::from_micros(900));
        assert_eq!(seen(&clock), (900_000, 0));
        clock.pass_time(Duration::from_micros(100));
        assert_eq!(seen(&clock), (1_000_000, 1));
        clock.pass_time(Duration::from_micros(2_500));
        assert_eq!(seen(&clock), (3_500_000, 3));
        clock.tick();
        assert_eq!(seen(&clock), (4_000_000, 4));
    }

    #[cfg(unix)]
    #[test]
    fn a_thread_that_waits_has_no_core() {
        const WORK: u64 = 20_000_000;
        let (clock, _thread) = EpochClock::start(Ticking::Every(Duration::from_secs(3_600))).unwrap();
        let before = clock.thread_ns();
        let theirs = clock.clone();
        let busy = thread::spawn(move || {
            let before = theirs.thread_ns();
            while theirs.thread_ns() - before < WORK {}
        });
        busy.join().unwrap();
        assert!(clock.thread_ns() - before < WORK);

        let (by_hand, _) = EpochClock::start(Ticking::Manual(Duration::from_millis(1))).unwrap();
        by_hand.tick();
        assert_eq!(by_hand.thread_ns(), 1_000_000);
    }

    #[test]
    fn time_is_rounded_up_to_whole_ticks() {
        let (clock, _) = EpochClock::start(Ticking::Manual(Duration::from_millis(5))).unwrap();
        assert_eq!(clock.ticks_in(Duration::ZERO), 0);
        assert_eq!(clock.ticks_in(Duration::from_millis(1)), 1);
        assert_eq!(clock.ticks_in(Duration::from_millis(5)), 1);
        assert_eq!(clock.ticks_in(Duration::from_millis(6)), 2);
        assert_eq!(clock.ticks_in(Duration::MAX), u64::MAX);
    }
}
