use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

use super::{MAILBOX, Receiver, echo};
use crate::actors::Guest;

/// A task that owns a channel: what an actor comes to without limits, names, supervision and all the rest.
#[derive(Clone)]
pub struct Plain(mpsc::Sender<Mail>);

type Mail = (Bytes, Option<oneshot::Sender<Bytes>>);

impl Plain {
    /// Around a guest on the bare engine, made anew after a trap.
    pub async fn guest(guest: &'static Guest) -> (Self, JoinHandle<()>) {
        let mut live = guest.instantiate().await;
        let (to, mut mailbox) = mpsc::channel::<Mail>(MAILBOX);
        let task = tokio::spawn(async move {
            while let Some((payload, reply)) = mailbox.recv().await {
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

    /// Around a handler of the host.
    pub fn native() -> (Self, JoinHandle<()>) {
        let (to, mut mailbox) = mpsc::channel::<Mail>(MAILBOX);
        let task = tokio::spawn(async move {
            while let Some((payload, reply)) = mailbox.recv().await {
                if let (Ok(answer), Some(reply)) = (catch_unwind(AssertUnwindSafe(|| echo(payload))), reply) {
                    _ = reply.send(answer);
                }
            }
        });
        (Self(to), task)
    }
}

impl Receiver for Plain {
    async fn tell(&self, payload: Bytes) {
        self.0.send((payload, None)).await.expect("it lives");
    }

    async fn ask(&self, payload: Bytes) -> Option<Bytes> {
        let (reply, answer) = oneshot::channel();
        self.0.send((payload, Some(reply))).await.expect("it lives");
        answer.await.ok()
    }
}
