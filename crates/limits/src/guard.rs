//! Runs a guest's call and ends it from outside: at its deadline, when it is cancelled, when a host function panics.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use airssys_wasm_engine::wasmtime::{self, Store};
use tokio::{
    task::{Unconstrained, unconstrained},
    time::{Instant, Sleep, sleep, sleep_until},
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::{
    Metered,
    inline::{Ended, Inline, until_cancelled},
    meter::{Meter, Slice},
};

/// Why a guarded call was ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Interrupted {
    /// Its deadline passed.
    #[error("the call did not end within its deadline of {0:?}")]
    Deadline(Duration),
    /// The host has worked for it for longer than its CPU time, of so many ticks.
    #[error("the call used its CPU time of {0} ticks")]
    CpuTime(u64),
    /// It was cancelled.
    #[error("the call was cancelled")]
    Cancelled,
    /// A host function panicked; this is what it panicked with.
    #[error("a host function panicked")]
    Panicked(Box<dyn Any + Send>),
}

/// Runs one call under a meter's quota, until a token is cancelled.
///
/// Timer and token are checked from when the call is first pending, which is at the first epoch tick at the latest: a
/// call that ends at once pays for neither. Dropping the future drops the call.
///
/// # Panics
///
/// When the call is pending outside a tokio runtime, or in one without timers.
pub fn guard<'a, F: Future>(
    call: F,
    cancel: Option<&'a CancellationToken>,
    guarded: &'a Guarded,
) -> GuardFuture<'a, F> {
    GuardFuture { call: Some(call), cancel, slice: &guarded.0, due: None, waiting: None }
}

/// Runs several calls as [`guard`] does, until one of them is [`Due`]. CPU time is left to the meter, which counts it for
/// each.
pub fn guard_several<'a, F: Future>(
    calls: F,
    cancel: Option<&'a CancellationToken>,
    guarded: &'a Guarded,
    due: &'a Due,
) -> GuardFuture<'a, F> {
    GuardFuture { call: Some(calls), cancel, slice: &guarded.0, due: Some(due), waiting: None }
}

/// Until when the first of several calls must have ended. It may move on, and never back.
#[derive(Debug)]
pub struct Due {
    since: Instant,
    /// Nanoseconds from then on.
    after: AtomicU64,
}

impl Due {
    /// At this time.
    pub fn at(due: Instant) -> Self {
        Self { since: due, after: AtomicU64::new(0) }
    }

    /// Moves on. Due further ahead than [`later`] goes is due there.
    pub fn move_to(&self, due: Instant) {
        let after = u64::try_from(due.saturating_duration_since(self.since).as_nanos()).unwrap_or(u64::MAX);
        self.after.store(after, Ordering::Relaxed);
    }

    fn when(&self) -> Instant {
        later(self.since, Duration::from_nanos(self.after.load(Ordering::Relaxed)))
    }
}

/// `now + wait`, at most 30 years ahead. Durations come from embedders and guests, and the sum must not overflow.
pub fn later(now: Instant, wait: Duration) -> Instant {
    const YEARS: Duration = Duration::from_secs(30 * 365 * 24 * 3_600);
    now.checked_add(wait.min(YEARS)).unwrap_or(now)
}

/// State that a call's guard shares with the meter in the store, which is out of reach while the call runs.
#[derive(Debug)]
pub struct Guarded(Arc<Slice>);

impl Guarded {
    /// For a store with this meter.
    pub fn by(meter: &Meter) -> Self {
        Self(Arc::clone(meter.slice()))
    }
}

/// Whether the next call of this store can be made by [`guard_inline`] on this thread.
pub fn may_call_inline<T: Metered>(store: &mut Store<T>) -> bool {
    store.data_mut().meter().inline.as_ref().is_some_and(|inline| inline.may_begin())
}

/// Makes one call on this thread's stack, under the meter's quota, until a token is cancelled: where it computes at the next
/// tick.
///
/// One that computes for longer than two ticks gives up its worker, and then waits for a worker before each tick.
///
/// # Panics
///
/// When the store's meter does not [allow it](crate::Meter::allow_inline).
// Out of the way of calls with fibers.
#[inline(never)]
pub fn guard_inline<T: Metered, R>(
    store: &mut Store<T>,
    cancel: Option<&CancellationToken>,
    call: impl FnOnce(&mut Store<T>) -> wasmtime::Result<R>,
) -> Result<wasmtime::Result<R>, Interrupted> {
    fn inline<T: Metered>(store: &mut Store<T>) -> &mut Inline {
        store.data_mut().meter().inline.as_mut().expect("it was asked whether it may")
    }
    inline(store).begin();
    store.data_mut().meter().slice().begin();
    // The store is never used again after a panic: its owner drops it.
    let called = catch_unwind(AssertUnwindSafe(|| until_cancelled(cancel, || call(store))));
    inline(store).end();
    match called {
        Ok(Err(error)) => match error.downcast_ref() {
            Some(Ended::Deadline) => Err(Interrupted::Deadline(store.data_mut().meter().slice().deadline())),
            Some(Ended::Cancelled) => Err(Interrupted::Cancelled),
            None => Ok(Err(error)),
        },
        Ok(result) => Ok(result),
        Err(payload) => Err(Interrupted::Panicked(payload)),
    }
}

pin_project_lite::pin_project! {
    /// A call under guard, see [`guard`].
    #[must_use = "futures do nothing unless polled"]
    pub struct GuardFuture<'a, F> {
        // Gone once the call has ended, one way or the other.
        #[pin]
        call: Option<F>,
        cancel: Option<&'a CancellationToken>,
        slice: &'a Slice,
        // For several calls at a time.
        due: Option<&'a Due>,
        waiting: Option<Waiting>,
    }
}

/// What only a call that was pending needs.
struct Waiting {
    /// Outside tokio's budget: a guest that uses it up must not keep its timer from being looked at.
    timer: Pin<Box<Unconstrained<Sleep>>>,
    cancelled: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
}

impl Waiting {
    fn is_late(&mut self, due: Option<&Due>, cx: &mut Context<'_>) -> bool {
        while self.timer.as_mut().poll(cx).is_ready() {
            match due.map(Due::when) {
                // It has moved on since.
                Some(due) if due > Instant::now() => self.timer.set(unconstrained(sleep_until(due))),
                _ => return true,
            }
        }
        false
    }
}

impl<F: Future> Future for GuardFuture<'_, F> {
    type Output = Result<F::Output, Interrupted>;

    /// # Panics
    ///
    /// When it is polled again after it was ready.
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        // Only a call that was pending is timed: one that ends at once reads no clock.
        let resumed = this.waiting.is_some();
        if resumed {
            this.slice.resume();
        } else {
            this.slice.begin();
        }
        let call = this.call.as_mut().as_pin_mut().expect("not polled after it was ready");
        // The store is never used again after a panic: its owner drops it.
        match catch_unwind(AssertUnwindSafe(|| call.poll(cx))) {
            Ok(Poll::Ready(output)) => {
                if resumed {
                    this.slice.charge();
                }
                return Poll::Ready(Ok(output));
            }
            Ok(Poll::Pending) => this.slice.charge(),
            Err(payload) => return Poll::Ready(Err(Interrupted::Panicked(payload))),
        }
        let waiting = this.waiting.get_or_insert_with(|| Waiting {
            timer: Box::pin(unconstrained(match this.due {
                None => sleep(this.slice.deadline()),
                Some(due) => sleep_until(due.when()),
            })),
            cancelled: this.cancel.map(|token| Box::pin(token.clone().cancelled_owned())),
        });
        let interrupted = if let Some(cancelled) = &mut waiting.cancelled
            && cancelled.as_mut().poll(cx).is_ready()
        {
            Interrupted::Cancelled
        } else if waiting.is_late(*this.due, cx) {
            Interrupted::Deadline(this.slice.deadline())
        } else if this.due.is_none() && this.slice.is_used_up() {
            Interrupted::CpuTime(this.slice.cpu_ticks())
        } else {
            return Poll::Pending;
        };
        // Dropping a host function's state may panic as well.
        match catch_unwind(AssertUnwindSafe(|| this.call.set(None))) {
            Ok(()) => Poll::Ready(Err(interrupted)),
            Err(payload) => Poll::Ready(Err(Interrupted::Panicked(payload))),
        }
    }
}
