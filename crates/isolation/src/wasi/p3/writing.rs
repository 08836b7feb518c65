//! A stream that a guest writes a file by.

use std::{
    mem,
    pin::Pin,
    task::{Context, Poll},
};

use airssys_wasm_engine::{
    wasmtime::{
        self, StoreContextMut,
        component::{Source, StreamConsumer, StreamResult},
    },
    wasmtime_wasi::p2::{OutputStream, Pollable as _, StreamResult as Result02},
};
use bytes::Bytes;

use super::{End, outcome};
use crate::wasi::{FileOut, UNDER_WAY};

/// Passes what a guest writes to [`FileOut`], which bounds it. A write ends when its bytes are in the file.
pub(crate) struct Writing {
    // Dropped before the end is told, so that its slot is free by then.
    state: State,
    end: End,
}

enum State {
    Idle(FileOut),
    Busy(Busy),
    Over,
}

type Busy = Pin<Box<dyn Future<Output = (FileOut, Result02<usize>)> + Send>>;

impl Writing {
    pub(crate) fn new(file: FileOut, end: End) -> Self {
        Self { state: State::Idle(file), end }
    }
}

async fn write(mut file: FileOut, bytes: Bytes) -> (FileOut, Result02<usize>) {
    let len = bytes.len();
    let mut written = file.write(bytes);
    if written.is_ok() {
        file.ready().await;
        written = file.flush();
    }
    (file, written.map(|()| len))
}

impl<D> StreamConsumer<D> for Writing {
    type Item = u8;

    // A write that has begun cannot be taken back, so nothing is cancelled. The guest cannot drop a stream that it writes
    // to: a write that is dropped is of a store that is gone.
    fn poll_consume(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        store: StoreContextMut<'_, D>,
        from: Source<'_, u8>,
        _finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        let mut from = from.as_direct(store);
        let mut writing: Busy = match mem::replace(&mut self.state, State::Over) {
            State::Idle(file) => {
                let bytes = from.remaining();
                if bytes.is_empty() {
                    self.state = State::Idle(file);
                    return Poll::Ready(Ok(StreamResult::Completed));
                }
                Box::pin(write(file, Bytes::copy_from_slice(&bytes[..bytes.len().min(UNDER_WAY)])))
            }
            State::Busy(writing) => writing,
            State::Over => return Poll::Ready(Ok(StreamResult::Dropped)),
        };
        let Poll::Ready((file, written)) = writing.as_mut().poll(cx) else {
            self.state = State::Busy(writing);
            return Poll::Pending;
        };
        Poll::Ready(Ok(match outcome(written)? {
            Ok(bytes) => {
                self.state = State::Idle(file);
                from.mark_read(bytes);
                StreamResult::Completed
            }
            Err(error) => {
                self.end.is(error.map_or(Ok(()), Err));
                StreamResult::Dropped
            }
        }))
    }
}
