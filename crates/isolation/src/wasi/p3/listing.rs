//! A stream of what is in a folder.

use std::{
    mem,
    pin::Pin,
    task::{Context, Poll},
    vec,
};

use airssys_wasm_engine::{
    wasmtime::{
        self, StoreContextMut,
        component::{Destination, StreamProducer, StreamResult, VecBuffer},
    },
    wasmtime_wasi::p3::bindings::filesystem::types::{DirectoryEntry, ErrorCode},
};

use super::End;
use crate::wasi::Slot;

/// Entries that are handed out at once.
const AT_ONCE: usize = 256;

/// The entries up to the first error, and that error.
pub(crate) type Listed = (Vec<DirectoryEntry>, Result<(), ErrorCode>);

/// Lists a folder when the guest begins to read, as one job, and holds the entries until they are read. A listing that
/// nobody reads holds no thread.
pub(crate) struct Listing {
    state: State,
    end: End,
    _slot: Slot,
}

enum State {
    Listing(List),
    Have(vec::IntoIter<DirectoryEntry>, Result<(), ErrorCode>),
    Over,
}

type List = Pin<Box<dyn Future<Output = wasmtime::Result<Listed>> + Send>>;

impl Listing {
    pub(crate) fn new(
        list: impl Future<Output = wasmtime::Result<Listed>> + Send + 'static,
        end: End,
        slot: Slot,
    ) -> Self {
        Self { state: State::Listing(Box::pin(list)), end, _slot: slot }
    }
}

impl<D> StreamProducer<D> for Listing {
    type Item = DirectoryEntry;
    type Buffer = VecBuffer<DirectoryEntry>;

    fn poll_produce<'a>(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut store: StoreContextMut<'a, D>,
        mut to: Destination<'a, DirectoryEntry, Self::Buffer>,
        finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        let wanted = to.remaining(&mut store).unwrap_or(AT_ONCE).min(AT_ONCE);
        if wanted == 0 {
            return Poll::Ready(Ok(StreamResult::Completed));
        }
        if let State::Listing(list) = &mut self.state {
            let Poll::Ready(listed) = list.as_mut().poll(cx) else {
                return if finish { Poll::Ready(Ok(StreamResult::Cancelled)) } else { Poll::Pending };
            };
            let (entries, end) = listed?;
            self.state = State::Have(entries.into_iter(), end);
        }
        let State::Have(entries, _) = &mut self.state else { return Poll::Ready(Ok(StreamResult::Dropped)) };
        let some: Vec<_> = entries.take(wanted).collect();
        if !some.is_empty() {
            to.set_buffer(some.into());
            return Poll::Ready(Ok(StreamResult::Completed));
        }
        if let State::Have(_, end) = mem::replace(&mut self.state, State::Over) {
            self.end.is(end);
        }
        Poll::Ready(Ok(StreamResult::Dropped))
    }
}
