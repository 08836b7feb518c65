//! The body of a guest's answer, on its way to the client.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use wasmtime_wasi_http::WasiBody;

use crate::answer::BodyBroken;

/// Cancels a guest's call when it is dropped.
pub(super) type CancelOnDrop = tokio_util::sync::DropGuard;

/// Whether nobody reads an answer that its guest has not finished. What the guest makes of that is nobody's fault.
#[derive(Debug, Clone, Default)]
pub(super) struct Unread(Arc<AtomicBool>);

impl Unread {
    /// Before the guest can know: it hears of it by the channel of its body, which orders the two.
    pub(super) fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    pub(super) fn get(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// A guest's body within its bounds. When it is dropped before its end, the client is gone, and the guest is cancelled.
pub(super) struct AnswerBody {
    pub(super) inner: WasiBody,
    pub(super) unread: Unread,
    pub(super) left: u64,
    /// Bytes until the length that the head promises.
    pub(super) missing: Option<u64>,
    /// Gone when the guest is no longer to be cancelled.
    pub(super) guard: Option<CancelOnDrop>,
    pub(super) broken: bool,
}

impl Drop for AnswerBody {
    fn drop(&mut self) {
        // In this order, and before the guest's channel is closed.
        if self.guard.is_some() {
            self.unread.set();
            self.guard = None;
        }
    }
}

impl AnswerBody {
    fn disarm(&mut self) {
        if let Some(guard) = self.guard.take() {
            guard.disarm();
        }
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = BodyBroken;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyBroken>>> {
        let this = &mut *self;
        if this.broken {
            return Poll::Ready(None);
        }
        match ready!(Pin::new(&mut this.inner).poll_frame(cx)) {
            Some(Ok(frame)) => {
                let bytes = frame.data_ref().map_or(0, |data| data.len() as u64);
                match this.left.checked_sub(bytes) {
                    Some(left) => this.left = left,
                    None => {
                        this.broken = true;
                        this.unread.set();
                        this.guard = None;
                        return Poll::Ready(Some(Err(BodyBroken::TooLarge)));
                    }
                }
                this.missing = this.missing.map(|missing| missing.saturating_sub(bytes));
                // The last byte of a promised length comes when the guest has finished.
                if this.inner.is_end_stream() || this.missing == Some(0) {
                    this.disarm();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(_)) => {
                this.broken = true;
                this.guard = None;
                Poll::Ready(Some(Err(BodyBroken::Guest)))
            }
            None => {
                this.disarm();
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        !self.broken && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
