//! Runs a guest's call and ends it from outside: at its deadline, when it is cancelled, when a host function panics.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    task::{Unconstrained, unconstrained},
    time::Sleep,
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::meter::{Meter, Slice};

/// Why a guarded call was ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Interrupted {
    /// Its deadline passed.
    #[error("the call did not end within its deadline of {0:?}")]
    Deadline(Duration),
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
    GuardFuture { call: Some(call), cancel, slice: &guarded.0, waiting: None }
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

pin_project_lite::pin_project! {
    /// A call under guard, see [`guard`].
    #[must_use = "futures do nothing unless polled"]
    pub struct GuardFuture<'a, F> {
        // Gone once the call has ended, one way or the other.
        #[pin]
        call: Option<F>,
        cancel: Option<&'a CancellationToken>,
        slice: &'a Slice,
        waiting: Option<Waiting>,
    }
}

/// What only a call that was pending needs.
struct Waiting {
    /// Outside tokio's budget: a guest that uses it up must not keep its timer from being looked at.
    timer: Pin<Box<Unconstrained<Sleep>>>,
    cancelled: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
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
            timer: Box::pin(unconstrained(tokio::time::sleep(this.slice.deadline()))),
            cancelled: this.cancel.map(|token| Box::pin(token.clone().cancelled_owned())),
        });
        let interrupted = if let Some(cancelled) = &mut waiting.cancelled
            && cancelled.as_mut().poll(cx).is_ready()
        {
            Interrupted::Cancelled
        } else if waiting.timer.as_mut().poll(cx).is_ready() {
            Interrupted::Deadline(this.slice.deadline())
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
