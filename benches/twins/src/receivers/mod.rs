//! Who takes messages, each behind the same two operations: a task that owns a channel, and the actors of kameo and
//! ractor. The suite adds our own actors.

mod kameo;
mod plain;
mod ractor;

pub use self::{
    kameo::Kameo,
    plain::{Instance, Plain},
    ractor::{Ractor, RactorSupervised},
};

use std::panic::resume_unwind;

use bytes::Bytes;

/// Messages that a mailbox holds. ractor's have no bound.
pub const MAILBOX: usize = 1_024;

/// What crashes a handler of the host, and [`COUNTER`](crate::actors::COUNTER).
pub const CRASH: Bytes = Bytes::from_static(b"crash");

/// Somebody who takes messages.
pub trait Receiver: Clone + Send + Sync + 'static {
    /// Sends a message as soon as there is room for it.
    fn tell(&self, payload: Bytes) -> impl Future<Output = ()> + Send;

    /// Sends a message and waits for the answer; `None` when the receiver crashed over it.
    fn ask(&self, payload: Bytes) -> impl Future<Output = Option<Bytes>> + Send;
}

/// What all handlers of the host do.
pub fn echo(payload: Bytes) -> Bytes {
    if payload == CRASH {
        // Past the hook, which would write a line each time.
        resume_unwind(Box::new("told to crash"));
    }
    payload
}
