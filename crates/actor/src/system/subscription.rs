//! Subscriptions of the host.

use airssys_wasm_limits::CancellationToken;
use airssys_wasm_registry::{MessageEnvelope, Subscription};
use tokio::sync::mpsc;

use crate::runtime::endpoint::Endpoint;

/// A subscription of the host, which ends when this is dropped.
#[derive(Debug)]
pub struct HostSubscription {
    pub(super) messages: mpsc::Receiver<MessageEnvelope>,
    pub(super) subscription: Subscription<Endpoint>,
    pub(super) closed: CancellationToken,
}

impl HostSubscription {
    /// The next message; none when the system has shut down and there are no more.
    pub async fn recv(&mut self) -> Option<MessageEnvelope> {
        tokio::select! {
            biased;
            message = self.messages.recv() => message,
            () = self.closed.cancelled() => None,
        }
    }

    /// The next message, if there is one.
    pub fn try_recv(&mut self) -> Option<MessageEnvelope> {
        self.messages.try_recv().ok()
    }

    /// Messages that it let go because it was full, [`WhenFull::DropNew`].
    pub fn dropped(&self) -> u64 {
        self.subscription.dropped()
    }
}
