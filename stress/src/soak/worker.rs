//! The natives: each records what it handles, and does what the first letter of a message says.

use std::{panic::panic_any, sync::Arc, time::Duration};

use airssys_wasm_actor::{NativeActor, NativeContext};
use airssys_wasm_registry::MessageEnvelope;
use bytes::Bytes;

use super::{
    cast,
    ledger::{Class, Finding, Tag},
    load::Sender,
    world::World,
};

/// The payload of a panic that belongs to the load.
pub(crate) struct OnPurpose;

/// What a native can be told.
pub(crate) mod letter {
    use bytes::Bytes;

    pub(crate) const PLAIN: Bytes = Bytes::from_static(b"p");
    pub(crate) const CRASH: Bytes = Bytes::from_static(b"c");
    /// Crash, unless it is delivered again.
    pub(crate) const FLAKY: Bytes = Bytes::from_static(b"f");
    pub(crate) const YIELD: Bytes = Bytes::from_static(b"y");
    pub(crate) const SLEEP: Bytes = Bytes::from_static(b"s");
    /// For those that can, send to others.
    pub(crate) const SEND: Bytes = Bytes::from_static(b"w");
    pub(crate) const FAIL: Bytes = Bytes::from_static(b"e");
    pub(crate) const SILENT: Bytes = Bytes::from_static(b"n");
    /// Large enough to be counted against a mailbox's bytes.
    pub(crate) const LARGE: Bytes = Bytes::from_static(&[b'p'; 8 << 10]);
}

pub(crate) struct Worker {
    world: Arc<World>,
    me: usize,
    sender: Option<Sender>,
    random: fastrand::Rng,
}

impl Worker {
    pub(crate) fn new(world: &Arc<World>, me: usize) -> Self {
        Self { sender: Sender::of_native(world, me), world: Arc::clone(world), me, random: world.random() }
    }
}

impl NativeActor for Worker {
    async fn handle(&mut self, message: &MessageEnvelope, _: &NativeContext) -> Result<Option<Bytes>, String> {
        let Some(tag) = Tag::of(message) else {
            self.world.report(Finding::Other(format!("r{} got a message that nobody has sent: {message:?}", self.me)));
            return Ok(None);
        };
        let again = self.world.begin(self.me, tag);
        let letter = message.payload().first().copied().unwrap_or_default();
        match letter {
            b'c' => panic_any(OnPurpose),
            b'f' if !again => panic_any(OnPurpose),
            b'y' => {
                for _ in 0..5 {
                    tokio::task::yield_now().await;
                }
            }
            // Now and then longer than its supervisor lets it.
            b's' => {
                let ms = if self.random.u8(..10) == 0 { 50 } else { self.random.u64(1..5) };
                tokio::time::sleep(Duration::from_millis(ms)).await;
            }
            b'w' => {
                if let Some(sender) = &self.sender {
                    sender.pass_on(self.me, &mut self.random).await;
                }
            }
            _ => {}
        }
        // Nothing can come between this and the end.
        self.world.desks[self.me].lock().done(tag);
        match letter {
            b'e' => Err("told to fail".to_owned()),
            b'n' => Ok(None),
            _ if tag.class == Class::Tell => Ok(None),
            _ => Ok(Some(tag.text().into())),
        }
    }
}

impl Sender {
    /// The sender that a native is.
    fn of_native(world: &Arc<World>, native: usize) -> Option<Self> {
        let sends = cast::sends(native)?;
        Some(Self::new(world, super::load::NATIVES + native / cast::BLOCK * cast::SENDING + sends))
    }
}
