//! A stream of what is in a folder.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use airssys_wasm_engine::{
    wasmtime::{
        self, StoreContextMut,
        component::{Destination, StreamProducer, StreamResult, VecBuffer},
    },
    wasmtime_wasi::p3::bindings::filesystem::types::DirectoryEntry,
};

use super::{End, error, kind};
use crate::wasi::FolderIn;

/// Hands out what [`FolderIn`] reads, which bounds it, up to the first error.
pub(crate) struct Listing {
    folder: Option<FolderIn>,
    end: End,
}

impl Listing {
    pub(crate) fn new(folder: FolderIn, end: End) -> Self {
        Self { folder: Some(folder), end }
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
        let wanted = to.remaining(&mut store).unwrap_or(usize::MAX);
        if wanted == 0 {
            return Poll::Ready(Ok(StreamResult::Completed));
        }
        let Some(folder) = &mut self.folder else { return Poll::Ready(Ok(StreamResult::Dropped)) };
        let Poll::Ready(entries) = folder.poll_entries(cx) else {
            // What is read by then is for the next read.
            return if finish { Poll::Ready(Ok(StreamResult::Cancelled)) } else { Poll::Pending };
        };
        let (mut some, mut end) = (Vec::new(), Ok(()));
        for entry in entries.take(wanted) {
            match entry {
                Ok(entry) => some.push(DirectoryEntry { type_: kind(entry.type_), name: entry.name }),
                Err(failed) => {
                    end = Err(error(failed));
                    break;
                }
            }
        }
        if some.is_empty() || end.is_err() {
            self.folder = None;
            self.end.is(end);
        }
        if some.is_empty() {
            return Poll::Ready(Ok(StreamResult::Dropped));
        }
        to.set_buffer(some.into());
        Poll::Ready(Ok(StreamResult::Completed))
    }
}
