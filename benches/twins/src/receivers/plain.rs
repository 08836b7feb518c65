use std::{
    hint::black_box,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

use super::{MAILBOX, Receiver, echo};
use crate::actors::{BareGuest, Guest};

/// A task that owns a channel: what an actor comes to without limits, names, supervision and all the rest. Its items have so
/// many bytes more than it needs.
#[derive(Clone)]
pub struct Plain<const MORE: usize = 0>(mpsc::Sender<Mail<MORE>>);

type Mail<const MORE: usize> = (Bytes, Option<oneshot::Sender<Bytes>>, [u8; MORE]);

/// What makes an item as large as a delivery to one of our actors.
const AS_OURS: usize = 96 - size_of::<Mail<0>>();
const _: () = assert!(size_of::<Mail<AS_OURS>>() == 96);

impl Plain {
    /// Around a guest on the bare engine, made anew after a trap.
    pub async fn guest(guest: &'static Guest) -> (Self, JoinHandle<()>) {
        let mut live = guest.instantiate().await;
        let (to, mut mailbox) = mpsc::channel::<Mail<0>>(MAILBOX);
        let task = tokio::spawn(async move {
            while let Some((payload, reply, _)) = mailbox.recv().await {
                match live.handle(payload, reply.is_some()).await {
                    Ok(answer) => _ = reply.map(|reply| reply.send(answer)),
                    Err(_) => {
                        drop(reply);
                        live = guest.instantiate().await;
                    }
                }
            }
        });
        (Self(to), task)
    }

    /// Around a guest that is called without a fiber, and does not trap.
    pub fn guest_without_fiber(guest: &'static Guest) -> Self {
        let mut live = guest.instantiate_now();
        let (to, mut mailbox) = mpsc::channel::<Mail<0>>(MAILBOX);
        tokio::spawn(async move {
            while let Some((payload, reply, _)) = mailbox.recv().await {
                let answer = live.handle_now(payload, reply.is_some()).expect("no trap");
                _ = reply.map(|reply| reply.send(answer));
            }
        });
        Self(to)
    }

    /// Around a handler of the host.
    pub fn native() -> (Self, JoinHandle<()>) {
        Self::around_native()
    }
}

impl Plain<AS_OURS> {
    /// Around a handler of the host, with items as large as a delivery to one of our actors.
    pub fn native_of_96_bytes() -> Self {
        Self::around_native().0
    }
}

impl<const MORE: usize> Plain<MORE> {
    fn around_native() -> (Self, JoinHandle<()>) {
        let (to, mut mailbox) = mpsc::channel::<Mail<MORE>>(MAILBOX);
        let task = tokio::spawn(async move {
            while let Some((payload, reply, more)) = mailbox.recv().await {
                if MORE > 0 {
                    // Or it need not be moved.
                    black_box(more);
                }
                if let (Ok(answer), Some(reply)) = (catch_unwind(AssertUnwindSafe(|| echo(payload))), reply) {
                    _ = reply.send(answer);
                }
            }
        });
        (Self(to), task)
    }
}

impl<const MORE: usize> Receiver for Plain<MORE> {
    async fn tell(&self, payload: Bytes) {
        self.0.send((payload, None, [0; MORE])).await.expect("it lives");
    }

    async fn ask(&self, payload: Bytes) -> Option<Bytes> {
        let (reply, answer) = oneshot::channel();
        self.0.send((payload, Some(reply), [0; MORE])).await.expect("it lives");
        answer.await.ok()
    }
}

/// A guest on the bare engine and nothing else: no channel, no task and no fiber.
#[derive(Clone)]
pub struct Instance(Arc<Mutex<BareGuest>>);

impl Instance {
    /// An instance that does not trap.
    pub fn new(guest: &Guest) -> Self {
        Self(Arc::new(Mutex::new(guest.instantiate_now())))
    }

    fn handle(&self, payload: Bytes, wants_answer: bool) -> Bytes {
        self.0.lock().unwrap().handle_now(payload, wants_answer).expect("no trap")
    }
}

impl Receiver for Instance {
    async fn tell(&self, payload: Bytes) {
        self.handle(payload, false);
    }

    async fn ask(&self, payload: Bytes) -> Option<Bytes> {
        Some(self.handle(payload, true))
    }
}
