//! How many async calls of a kind a sandbox may have in flight.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Calls on files that a sandbox has among the [`FileJobs`](crate::FileJobs), so that it does not fill the queue of those
/// that share them. Its streams and listings are there besides, one job each: `file_streams` bounds them.
const FILE_JOBS: usize = 8;

/// Datagrams in flight in each direction. Each takes up to 64 KiB.
const DATAGRAMS: usize = 16;

/// Datagrams that are sent or wait until one is: those are held, too.
const DATAGRAMS_TO_SEND: usize = 32;

/// Permits of one sandbox. Each call waits for its own, which is held until the work ends, also when the guest has
/// cancelled the call.
#[derive(Clone)]
pub(crate) struct InFlight {
    files: Arc<Semaphore>,
    sends: Arc<Semaphore>,
    to_send: Arc<Semaphore>,
    receives: Arc<Semaphore>,
}

impl Default for InFlight {
    fn default() -> Self {
        let of = |permits| Arc::new(Semaphore::new(permits));
        Self { files: of(FILE_JOBS), sends: of(DATAGRAMS), to_send: of(DATAGRAMS_TO_SEND), receives: of(DATAGRAMS) }
    }
}

impl InFlight {
    pub(crate) async fn file(self) -> OwnedSemaphorePermit {
        permit(self.files).await
    }

    /// None if there is no place left to wait.
    pub(crate) async fn send(self) -> Option<[OwnedSemaphorePermit; 2]> {
        let place = self.to_send.try_acquire_owned().ok()?;
        Some([permit(self.sends).await, place])
    }

    /// A permit, if one is free. A datagram may never come, and to wait behind others that wait would be to hang.
    pub(crate) fn try_receive(self) -> Option<OwnedSemaphorePermit> {
        self.receives.try_acquire_owned().ok()
    }
}

async fn permit(semaphore: Arc<Semaphore>) -> OwnedSemaphorePermit {
    semaphore.acquire_owned().await.expect("never closed")
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll, Waker};

    use super::*;

    #[test]
    fn calls_in_flight_are_limited() {
        let mut cx = Context::from_waker(Waker::noop());
        let in_flight = InFlight::default();
        let mut received: Vec<_> = (0..DATAGRAMS).map(|_| in_flight.clone().try_receive()).collect();
        assert!(received.iter().all(Option::is_some));
        assert!(in_flight.clone().try_receive().is_none());
        received.pop();
        assert!(in_flight.clone().try_receive().is_some());

        let mut sends: Vec<_> = (0..DATAGRAMS_TO_SEND).map(|_| Box::pin(in_flight.clone().send())).collect();
        let begun: Vec<_> = sends.iter_mut().map(|send| send.as_mut().poll(&mut cx)).collect();
        assert_eq!(begun.iter().filter(|send| send.is_ready()).count(), DATAGRAMS);
        let mut refused = Box::pin(in_flight.clone().send());
        assert!(matches!(refused.as_mut().poll(&mut cx), Poll::Ready(None)), "to wait takes a place, too");
        drop(sends.pop());
        assert!(Box::pin(in_flight.clone().send()).as_mut().poll(&mut cx).is_pending(), "who is gone has none");
        drop(begun);
        assert!(matches!(sends[DATAGRAMS].as_mut().poll(&mut cx), Poll::Ready(Some(_))));
    }
}
