//! Calls without a fiber: the guest runs on the stack of the worker that polls its task.
//!
//! wasmtime gives an async call a stack of its own, so that the call can be put aside. A call in which nothing can wait is put
//! aside only when a tick has ended. Most end before that, and are made on the stack that is there. One that goes on for longer
//! cannot be put aside any more. It gives its worker up to another thread, and from then on runs only while a worker waits for
//! it, a tick at a time, behind all other tasks: as if it had been put aside.

use std::{
    convert::Infallible,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    time::Duration,
};

use airssys_wasm_engine::wasmtime;
use scoped_tls::scoped_thread_local;
use tokio::{
    runtime::Handle,
    task::{block_in_place, yield_now},
};
use tokio_util::sync::CancellationToken;

/// Calls that have given up their worker, in the whole process. Each has a thread.
static AWAY: AtomicUsize = AtomicUsize::new(0);
/// With so many, no further call begins without a fiber. Those that have begun may still come on top: one for each worker.
const MOST_AWAY: usize = 16;
/// How long one of them waits for a worker before it takes a slice all the same. Workers may be blocked, or the runtime may have
/// no thread left for a worker that was given up: the guest's deadline must not wait for that.
const LONGEST_WAIT: Duration = Duration::from_millis(100);

scoped_thread_local!(
    /// By what the inline call of this thread is cancelled.
    static CANCEL: CancellationToken
);

/// Whether the calls of one component may do without a fiber: until the first of them computes for longer than two ticks.
/// Clones are of the same component.
#[derive(Debug, Clone, Default)]
pub struct InlineCalls {
    computes: Arc<AtomicBool>,
}

/// The part of a meter for calls without a fiber.
#[derive(Debug)]
pub(crate) struct Inline {
    calls: InlineCalls,
    /// Bytes of stack that a call may need.
    stack: usize,
    /// None where there is no call, or one with a fiber.
    call: Option<Call>,
}

#[derive(Debug, Default)]
struct Call {
    /// When its first tick ended.
    since: Option<At>,
    away: Option<Away>,
}

/// Nanoseconds, by the epoch's clock and by the thread's: for how long it has had a core.
#[derive(Debug, Clone, Copy)]
pub(crate) struct At {
    pub(crate) now: u64,
    pub(crate) thread: u64,
}

/// Why a call was ended by its own thread.
#[derive(Debug, Clone, Copy, thiserror::Error)]
pub(crate) enum Ended {
    #[error("its deadline passed")]
    Deadline,
    #[error("it was cancelled, or its runtime is shutting down")]
    Cancelled,
}

impl Inline {
    pub(crate) fn new(calls: &InlineCalls, stack: usize) -> Self {
        Self { calls: calls.clone(), stack, call: None }
    }

    pub(crate) fn may_begin(&self) -> bool {
        !self.calls.computes.load(Ordering::Relaxed)
            && AWAY.load(Ordering::Relaxed) < MOST_AWAY
            && stacker::remaining_stack().is_some_and(|left| left >= self.stack)
    }

    /// A call begins on this thread's stack.
    pub(crate) fn begin(&mut self) {
        self.call = Some(Call::default());
    }

    pub(crate) fn end(&mut self) {
        self.call = None;
    }

    /// A tick of `period` has ended, and the call may take so many nanoseconds from its first on. Comes back when it may go on for
    /// another one; `false` if it has a fiber.
    pub(crate) fn tick(&mut self, at: At, period: u64, deadline: u64) -> wasmtime::Result<bool> {
        let Some(Call { since, away }) = &mut self.call else { return Ok(false) };
        // It may have begun just before its first tick.
        let since = *since.get_or_insert(at);
        if at.now.saturating_sub(since.now) >= deadline {
            return Err(Ended::Deadline.into());
        }
        if CANCEL.is_set() && CANCEL.with(CancellationToken::is_cancelled) {
            return Err(Ended::Cancelled.into());
        }
        // Not if others had its core meanwhile.
        if at.thread.saturating_sub(since.thread) >= (period / 2).max(1) {
            self.calls.computes.store(true, Ordering::Relaxed);
            away.get_or_insert_with(Away::new).wait()?;
        }
        Ok(true)
    }
}

/// A call that has given up its worker.
#[derive(Debug)]
struct Away {
    /// Another worker waits until this is dropped.
    slice: Option<mpsc::Sender<Infallible>>,
    /// It runs in a `LocalSet`, whose thread cannot be given up.
    is_stuck: bool,
}

impl Away {
    fn new() -> Self {
        AWAY.fetch_add(1, Ordering::Relaxed);
        Self { slice: None, is_stuck: false }
    }

    /// Ends a slice of time, and waits for the next: for a worker that has had a look at all others.
    fn wait(&mut self) -> Result<(), Ended> {
        self.slice = None;
        if self.is_stuck {
            return Ok(());
        }
        let (begin, begun) = mpsc::sync_channel(1);
        let (slice, end) = mpsc::channel();
        self.slice = Some(slice);
        let runtime = Handle::current();
        let turn = async move {
            // Behind those who gave way, and what has come from outside: a new task comes before them.
            yield_now().await;
            _ = begin.send(());
            // Blocks this worker, as the guest would that runs now. It cannot send.
            _ = end.recv();
        };
        let waited = catch_unwind(AssertUnwindSafe(|| {
            block_in_place(|| {
                runtime.spawn(turn);
                begun.recv_timeout(LONGEST_WAIT)
            })
        }));
        match waited {
            Ok(Ok(()) | Err(RecvTimeoutError::Timeout)) => Ok(()),
            Ok(Err(RecvTimeoutError::Disconnected)) => Err(Ended::Cancelled),
            Err(_) => {
                self.is_stuck = true;
                Ok(())
            }
        }
    }
}

impl Drop for Away {
    fn drop(&mut self) {
        AWAY.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Does something that [`Inline::tick`] ends when this is cancelled.
pub(crate) fn until_cancelled<R>(cancel: Option<&CancellationToken>, call: impl FnOnce() -> R) -> R {
    match cancel {
        Some(cancel) => CANCEL.set(cancel, call),
        None => call(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a call counts as one that computes, after ticks of ten with so much of the thread's time in each.
    fn computes(ticks: u64, each: u64) -> bool {
        let calls = InlineCalls::default();
        let mut inline = Inline::new(&calls, 0);
        inline.begin();
        for tick in 1..=ticks {
            let at = At { now: tick * 10, thread: 1_000 + tick * each };
            assert!(inline.tick(at, 10, u64::MAX).unwrap());
        }
        inline.end();
        calls.computes.load(Ordering::Relaxed)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn who_has_no_core_does_not_compute() {
        tokio::spawn(async {
            assert!(!computes(1, 10), "it may have begun just before");
            assert!(computes(2, 10));
            assert!(!computes(1_000, 0), "others had the core");
            assert!(!computes(5, 1));
            assert!(computes(6, 1));
        })
        .await
        .unwrap();
    }
}
