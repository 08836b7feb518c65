//! What WASI 0.3 adds: streams of the component model in front of the files, and jobs that outlive the calls they are of.

mod convert;
mod descriptors;
mod in_flight;
mod listing;
mod reading;
mod writing;

use airssys_wasm_engine::{
    wasmtime,
    wasmtime_wasi::{
        p2::{StreamError, StreamResult},
        p3::bindings::filesystem::types::ErrorCode,
    },
};
use tokio::sync::oneshot;

pub(crate) use convert::{
    advice, descriptor_flags, error, hash, kind, open_flags, path_flags, shown_flags, stat, timestamp,
};
pub(crate) use descriptors::Descriptors;
pub(crate) use in_flight::InFlight;
pub(crate) use listing::Listing;
pub(crate) use reading::Reading;
pub(crate) use writing::Writing;

/// How a stream ends: the value of the future that goes with it. A stream that is dropped has ended well.
pub(crate) struct End(Option<oneshot::Sender<Result<(), ErrorCode>>>);

impl End {
    pub(crate) fn new() -> (Self, oneshot::Receiver<Result<(), ErrorCode>>) {
        let (end, ended) = oneshot::channel();
        (Self(Some(end)), ended)
    }

    fn is(&mut self, end: Result<(), ErrorCode>) {
        if let Some(sender) = self.0.take() {
            // The guest may not wait for it.
            _ = sender.send(end);
        }
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.is(Ok(()));
    }
}

/// What a stream of 0.2 gives, in the words of 0.3.
///
/// # Errors
///
/// What is a trap in 0.2.
fn outcome<R>(result: StreamResult<R>) -> wasmtime::Result<Result<R, Option<ErrorCode>>> {
    match result {
        Ok(value) => Ok(Ok(value)),
        Err(StreamError::Closed) => Ok(Err(None)),
        Err(StreamError::LastOperationFailed(error)) => {
            Ok(Err(Some(error.downcast_ref::<std::io::Error>().map_or(ErrorCode::Io, ErrorCode::from))))
        }
        Err(StreamError::Trap(error)) => Err(error),
    }
}
