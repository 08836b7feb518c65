//! A stream that a guest reads a file from.

use std::{
    mem,
    pin::Pin,
    task::{Context, Poll},
};

use airssys_wasm_engine::{
    wasmtime::{
        self, StoreContextMut,
        component::{Destination, StreamProducer, StreamResult},
    },
    wasmtime_wasi::p2::{InputStream, StreamResult as Result02},
};
use bytes::Bytes;

use super::{End, outcome};
use crate::wasi::FileIn;

/// Hands out what [`FileIn`] reads, which bounds it.
pub(crate) struct Reading {
    // Dropped before the end is told, so that its slot is free by then.
    state: State,
    end: End,
}

enum State {
    Idle(FileIn),
    Busy(Busy),
    Over,
}

type Busy = Pin<Box<dyn Future<Output = (FileIn, Result02<Bytes>)> + Send>>;

impl Reading {
    pub(crate) fn new(file: FileIn, end: End) -> Self {
        Self { state: State::Idle(file), end }
    }
}

async fn read(mut file: FileIn, bytes: usize) -> (FileIn, Result02<Bytes>) {
    loop {
        match file.blocking_read(bytes).await {
            Ok(bytes) if bytes.is_empty() => {}
            read => return (file, read),
        }
    }
}

impl<D> StreamProducer<D> for Reading {
    type Item = u8;
    type Buffer = Bytes;

    fn poll_produce<'a>(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut store: StoreContextMut<'a, D>,
        mut to: Destination<'a, u8, Bytes>,
        finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        let wanted = to.remaining(&mut store);
        if wanted == Some(0) {
            return Poll::Ready(Ok(StreamResult::Completed));
        }
        let mut reading: Busy = match mem::replace(&mut self.state, State::Over) {
            State::Idle(file) => Box::pin(read(file, wanted.unwrap_or(usize::MAX))),
            State::Busy(reading) => reading,
            State::Over => return Poll::Ready(Ok(StreamResult::Dropped)),
        };
        let Poll::Ready((file, read)) = reading.as_mut().poll(cx) else {
            // What is read by then is for the next read.
            self.state = State::Busy(reading);
            return if finish { Poll::Ready(Ok(StreamResult::Cancelled)) } else { Poll::Pending };
        };
        Poll::Ready(Ok(match outcome(read)? {
            Ok(bytes) => {
                self.state = State::Idle(file);
                to.set_buffer(bytes);
                StreamResult::Completed
            }
            Err(error) => {
                self.end.is(error.map_or(Ok(()), Err));
                StreamResult::Dropped
            }
        }))
    }
}
