//! Bodies of messages as streams, in both directions. The host holds a bounded number of bytes for them.

use std::{
    mem,
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll},
};

use airssys_wasm_engine::wasmtime::{
    self, AsContextMut, StoreContextMut,
    component::{Destination, Source, StreamConsumer, StreamProducer, StreamResult},
};
use airssys_wasm_isolation::HostState;
use airssys_wasm_limits::Metered;
use bytes::{Buf, Bytes};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::{
    ActorState,
    guest::{imports::share, wire::BrokerError},
    runtime::in_flight::Share,
};

/// The body of the message in flight. Dropping it ends the streams that were made of it.
pub(crate) struct MessageBody(Arc<Mutex<Bytes>>);

impl MessageBody {
    pub(crate) fn new(bytes: Bytes) -> Self {
        Self(Arc::new(Mutex::new(bytes)))
    }

    /// For the guest to read.
    pub(crate) fn stream(&self) -> Reading {
        Reading::Message(Arc::downgrade(&self.0))
    }
}

/// What a guest reads.
pub(crate) enum Reading {
    /// The body of the message in flight, as long as it is that.
    Message(Weak<Mutex<Bytes>>),
    /// An answer, which counts among the guest's bytes in flight until the guest drops the stream.
    Answer { bytes: Bytes, _share: Share },
}

/// Bytes at once, where the host reads: a guest may pass on what it was given.
const CHUNK: usize = 64 << 10;

impl<D: 'static> StreamProducer<D> for Reading {
    type Item = u8;
    type Buffer = Bytes;

    fn poll_produce<'a>(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        store: StoreContextMut<'a, D>,
        to: Destination<'a, u8, Bytes>,
        _finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        let copy = |bytes: &mut Bytes| {
            let mut to = to.as_direct(store, CHUNK);
            let room = to.remaining();
            let copied = room.len().min(bytes.len());
            room[..copied].copy_from_slice(&bytes[..copied]);
            to.mark_written(copied);
            bytes.advance(copied);
            if bytes.is_empty() { StreamResult::Dropped } else { StreamResult::Completed }
        };
        Poll::Ready(Ok(match self.get_mut() {
            Self::Message(body) => match body.upgrade() {
                Some(body) => copy(&mut body.lock()),
                None => copy(&mut Bytes::new()),
            },
            Self::Answer { bytes, .. } => copy(bytes),
        }))
    }
}

/// A whole body, with the share that it has of the guest's bytes in flight.
pub(crate) type Collected = Result<(Bytes, Option<Share>), BrokerError>;

/// Collects what a guest writes, until it ends the stream.
pub(crate) struct Collecting {
    bytes: Vec<u8>,
    share: Option<Share>,
    /// None once it was told.
    told: Option<oneshot::Sender<Collected>>,
}

impl Collecting {
    pub(crate) fn new() -> (Self, oneshot::Receiver<Collected>) {
        let (told, collected) = oneshot::channel();
        (Self { bytes: Vec::new(), share: None, told: Some(told) }, collected)
    }

    fn tell(&mut self, collected: Collected) {
        if let Some(told) = self.told.take() {
            // Fails if the call has ended.
            _ = told.send(collected);
        }
    }
}

impl<U: Send + 'static> StreamConsumer<HostState<ActorState<U>>> for Collecting {
    type Item = u8;

    fn poll_consume(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        mut store: StoreContextMut<'_, HostState<ActorState<U>>>,
        from: Source<'_, u8>,
        _finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        let more = from.remaining(store.as_context_mut());
        if more == 0 {
            return Poll::Ready(Ok(StreamResult::Completed));
        }
        let Some(taken) = share(store.data_mut(), more) else {
            let most = store.data_mut().meter().quota().limits().host_call_bytes.as_u64();
            let alone = (self.bytes.len() + more) as u64;
            (self.bytes, self.share) = (Vec::new(), None);
            self.tell(Err(if alone > most { BrokerError::MessageTooLarge } else { BrokerError::QuotaExceeded }));
            return Poll::Ready(Ok(StreamResult::Dropped));
        };
        match &mut self.share {
            Some(share) => share.add(taken),
            None => self.share = Some(taken),
        }
        let mut from = from.as_direct(store);
        self.bytes.extend_from_slice(from.remaining());
        from.mark_read(more);
        Poll::Ready(Ok(StreamResult::Completed))
    }
}

/// wasmtime drops a consumer when the writer has dropped its end.
impl Drop for Collecting {
    fn drop(&mut self) {
        let bytes = mem::take(&mut self.bytes).into();
        let share = self.share.take();
        self.tell(Ok((bytes, share)));
    }
}
