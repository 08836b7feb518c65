//! Subscriptions of the host.

use std::{
    fmt,
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll, ready},
};

use airssys_wasm_registry::{MessageEnvelope, Subscription};
use futures_util::{Stream, future::BoxFuture};
use tokio::sync::mpsc;

use crate::runtime::endpoint::Endpoint;

/// A subscription of the host, which ends when this is dropped. As a stream it ends when the system has shut down and
/// there are no more messages.
#[must_use = "dropping it ends the subscription"]
pub struct HostSubscription {
    pub(super) messages: mpsc::Receiver<MessageEnvelope>,
    pub(super) subscription: Subscription<Endpoint>,
    pub(super) closed: BoxFuture<'static, ()>,
}

impl HostSubscription {
    /// The next message; none when the system has shut down and there are no more.
    pub async fn recv(&mut self) -> Option<MessageEnvelope> {
        poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }

    /// The next message, if there is one.
    pub fn try_recv(&mut self) -> Option<MessageEnvelope> {
        self.messages.try_recv().ok()
    }

    /// Messages that it let go because it was full, [`WhenFull::DropNew`](airssys_wasm_registry::WhenFull::DropNew).
    pub fn dropped(&self) -> u64 {
        self.subscription.dropped()
    }
}

impl Stream for HostSubscription {
    type Item = MessageEnvelope;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<MessageEnvelope>> {
        if let Poll::Ready(message) = self.messages.poll_recv(cx) {
            return Poll::Ready(message);
        }
        ready!(self.closed.as_mut().poll(cx));
        // What is left, and then nothing for ever.
        self.messages.close();
        self.closed = Box::pin(std::future::ready(()));
        self.messages.poll_recv(cx)
    }
}

impl fmt::Debug for HostSubscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostSubscription").field("subscription", &self.subscription).finish_non_exhaustive()
    }
}
