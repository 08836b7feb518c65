use std::time::Duration;

use bytes::Bytes;
use kameo::{
    actor::Spawn as _,
    error::SendError,
    mailbox::bounded,
    message::{Context, Message},
};

use super::{MAILBOX, Receiver, echo};

/// The handler.
#[derive(Clone, kameo::Actor)]
pub struct Echo;

/// An actor of kameo, and its supervisor, which would end with its last handle.
#[derive(Clone)]
pub struct Kameo {
    /// The actor.
    pub actor: kameo::actor::ActorRef<Echo>,
    _supervisor: Option<kameo::actor::ActorRef<KameoSupervisor>>,
}

#[derive(Clone, kameo::Actor)]
struct KameoSupervisor;

/// A payload for one of kameo's actors.
pub struct Payload(Bytes);

/// Its answer.
#[derive(kameo::Reply)]
pub struct Answer(Bytes);

impl Message<Payload> for Echo {
    type Reply = Answer;

    async fn handle(&mut self, Payload(payload): Payload, _: &mut Context<Self, Answer>) -> Answer {
        Answer(echo(payload))
    }
}

impl Kameo {
    /// An actor that runs.
    pub async fn spawn() -> Self {
        let actor = Echo::spawn_with_mailbox(Echo, bounded(MAILBOX));
        actor.wait_for_startup().await;
        Self { actor, _supervisor: None }
    }

    /// An actor that is restarted at once, however often.
    pub async fn supervised() -> Self {
        let supervisor = KameoSupervisor::spawn(KameoSupervisor);
        let child = Echo::supervise(&supervisor, Echo).restart_limit(u32::MAX, Duration::from_millis(1));
        Self { actor: child.spawn_with_mailbox(bounded(MAILBOX)).await, _supervisor: Some(supervisor) }
    }
}

impl Receiver for Kameo {
    async fn tell(&self, payload: Bytes) {
        self.actor.tell(Payload(payload)).await.expect("it lives");
    }

    async fn ask(&self, payload: Bytes) -> Option<Bytes> {
        let mut message = Payload(payload);
        loop {
            match self.actor.ask(message).await {
                Ok(Answer(answer)) => return Some(answer),
                Err(SendError::ActorStopped) => return None,
                // It was in the mailbox while the actor was restarted, and comes back.
                Err(SendError::ActorRestarting(back)) => message = back,
                Err(other) => panic!("{other}"),
            }
        }
    }
}
