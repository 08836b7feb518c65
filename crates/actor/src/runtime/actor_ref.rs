//! The handle on an actor: send, ask, stop, look at.

use std::{
    fmt,
    hash::{Hash, Hasher},
    sync::Arc,
    time::Duration,
};

use airssys_wasm_registry::{ActorAddress, ComponentId, Load, MessageEnvelope, Refusal, Undelivered};
use bytes::Bytes;
use tokio::{
    sync::oneshot,
    time::{Instant, timeout_at},
};

use crate::{
    CrashReport, Lifecycle,
    failure::policy::later,
    runtime::{
        cell::Cell,
        endpoint::undelivered,
        mailbox::{Answer, Delivery, ReplyTo, Unanswered},
        orders::Control,
    },
};

/// A handle on an actor. It holds the mailbox, so that sending needs no look-up. Cheap to clone.
///
/// An actor lives until it is stopped or given up, however many handles there are.
#[derive(Clone)]
pub struct ActorRef(pub(crate) Arc<Cell>);

/// An ask has no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AskError {
    /// The actor did not take the message, which comes back.
    #[error(transparent)]
    NotSent(Undelivered),
    /// The deadline was over before there was an answer.
    #[error("there was no answer within the deadline")]
    Deadline,
    /// The actor crashed over this message.
    #[error("the actor crashed: {0}")]
    Crashed(Arc<CrashReport>),
    /// The actor's handler came back with an error.
    #[error("the actor's handler failed: {}", message.escape_debug())]
    Failed {
        /// What the handler says. It comes from the guest as it is.
        message: String,
    },
    /// The handler came back without an answer.
    #[error("the actor's handler came back without an answer")]
    NoReply,
    /// The actor stopped, or was given up, before it came to this message.
    #[error("the actor stopped before it came to this message")]
    Stopped,
}

/// How an actor is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// After all messages that are in its mailbox.
    Drain,
    /// After the message in flight. Those in the mailbox go to the dead letters, and their askers are told.
    Now,
}

/// An actor is not well, or cannot say how it is.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HealthError {
    /// It says so itself.
    #[error("the actor is not well: {}", message.escape_debug())]
    Unwell {
        /// What it says.
        message: String,
    },
    /// It crashed over the question.
    #[error("the actor crashed: {0}")]
    Crashed(Arc<CrashReport>),
    /// It does not export `airssys:actor/health`.
    #[error("the actor does not say how it is: it does not export `airssys:actor/health`")]
    NotOffered,
    /// What it exports as `check` has another type.
    #[error(transparent)]
    Contract(airssys_wasm_engine::ExportError),
    /// It is not running.
    #[error("the actor is {state}")]
    NotRunning {
        /// What it is doing.
        state: Lifecycle,
    },
}

/// What can be seen of an actor from outside.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ActorInfo {
    /// Its name and registration.
    pub address: ActorAddress,
    /// What it is doing.
    pub state: Lifecycle,
    /// Messages that wait, and how many can.
    pub mailbox: Load,
    /// Its incarnation, counted from 1: each start, restart and upgrade is one.
    pub incarnation: u64,
    /// How often it was started again after a failure.
    pub restarts: u64,
    /// How often it was recycled.
    pub recycled: u64,
    /// Bytes of linear memory after its last message. 0 for a native actor.
    pub memory: u64,
}

impl ActorRef {
    /// Its name.
    pub fn id(&self) -> &ComponentId {
        self.0.id()
    }

    /// Its name and registration.
    pub fn address(&self) -> &ActorAddress {
        &self.0.address
    }

    /// What can be seen of it now.
    pub fn info(&self) -> ActorInfo {
        ActorInfo {
            address: self.0.address.clone(),
            state: self.0.state(),
            mailbox: self.0.load(),
            incarnation: self.0.incarnation(),
            restarts: self.0.restarts(),
            recycled: self.0.recycled(),
            memory: self.0.memory(),
        }
    }

    /// What it is doing.
    pub fn state(&self) -> Lifecycle {
        self.0.state()
    }

    /// Puts a message into its mailbox at once.
    ///
    /// # Errors
    ///
    /// [`Undelivered`], with the message: the mailbox or the sender's share of it is full, the actor has stopped or is
    /// restarting, or the message is larger than the actor's `message_size`.
    pub fn try_tell(&self, message: impl Into<MessageEnvelope>) -> Result<(), Undelivered> {
        self.0.try_push(Delivery::new(message.into(), None)).map_err(undelivered)
    }

    /// Puts a message into its mailbox as soon as there is room.
    ///
    /// # Errors
    ///
    /// [`Undelivered`], with the message: the actor has stopped, or the message is larger than its `message_size`.
    pub async fn tell(&self, message: impl Into<MessageEnvelope>) -> Result<(), Undelivered> {
        match self.0.try_push(Delivery::new(message.into(), None)) {
            Err((Refusal::Full | Refusal::Restarting, delivery)) => {
                Box::pin(self.0.mailbox.push_later(delivery)).await.map_err(undelivered)
            }
            done => done.map_err(undelivered),
        }
    }

    /// Sends a message as soon as there is room, and waits for the answer: until the message's deadline if it has one,
    /// else until the actor answers, crashes over it, or stops.
    ///
    /// Dropping the future does not take the message back.
    ///
    /// # Errors
    ///
    /// [`AskError`].
    pub async fn ask(&self, message: impl Into<MessageEnvelope>) -> Result<Bytes, AskError> {
        let message = message.into();
        let deadline = message.deadline();
        let (reply, answer) = oneshot::channel();
        match self.0.try_push(Delivery::new(message, Some(ReplyTo(reply)))) {
            Ok(()) => answered(answer, deadline).await,
            Err((Refusal::Full | Refusal::Restarting, delivery)) => {
                // In a box, for it is rare, and its future would lie in that of every asker.
                let later = Box::pin(async {
                    match self.0.mailbox.push_later(delivery).await {
                        Ok(()) => answered(answer, None).await,
                        Err(refused) => Err(AskError::NotSent(undelivered(refused))),
                    }
                });
                match deadline {
                    None => later.await,
                    Some(deadline) => timeout_at(deadline, later).await.unwrap_or(Err(AskError::Deadline)),
                }
            }
            Err(refused) => Err(AskError::NotSent(undelivered(refused))),
        }
    }

    /// [`ask`](Self::ask) that does not wait for room.
    ///
    /// # Errors
    ///
    /// [`AskError`]: also [`AskError::NotSent`] where the mailbox is full, with the message.
    pub async fn try_ask(&self, message: impl Into<MessageEnvelope>) -> Result<Bytes, AskError> {
        let message = message.into();
        let deadline = message.deadline();
        let (reply, answer) = oneshot::channel();
        match self.0.try_push(Delivery::new(message, Some(ReplyTo(reply)))) {
            Ok(()) => answered(answer, deadline).await,
            Err(refused) => Err(AskError::NotSent(undelivered(refused))),
        }
    }

    /// [`ask`](Self::ask) with this long to answer.
    ///
    /// # Errors
    ///
    /// [`AskError`].
    pub async fn ask_within(&self, longest: Duration, message: impl Into<MessageEnvelope>) -> Result<Bytes, AskError> {
        self.ask(within(longest, message.into())).await
    }

    /// [`try_ask`](Self::try_ask) with this long to answer.
    ///
    /// # Errors
    ///
    /// [`AskError`].
    pub async fn try_ask_within(
        &self,
        longest: Duration,
        message: impl Into<MessageEnvelope>,
    ) -> Result<Bytes, AskError> {
        self.try_ask(within(longest, message.into())).await
    }

    /// Asks it to end, and does not wait for that; [`ended`](Self::ended) does. It takes no more messages from when it
    /// hears this, and is not started again.
    pub fn stop(&self, how: Stop) {
        self.0.orders.give(Control::Stop { drain: how == Stop::Drain });
    }

    /// Ends it wherever it is: at once where it waits, within a tick where it computes. The message in flight ends as
    /// cancelled, those in the mailbox go to the dead letters, and it is not started again.
    pub fn kill(&self) {
        self.0.kill();
    }

    /// Waits until it is gone.
    pub async fn ended(&self) {
        self.0.ended.cancelled().await;
    }

    /// Asks the guest how it is, between two messages.
    ///
    /// # Errors
    ///
    /// [`HealthError`].
    pub async fn health(&self) -> Result<(), HealthError> {
        let health = self.0.ordered(|done| Control::Health { done }).await;
        health.unwrap_or(Err(HealthError::NotRunning { state: Lifecycle::Stopped }))
    }
}

fn within(longest: Duration, message: MessageEnvelope) -> MessageEnvelope {
    message.with_deadline(later(Instant::now(), longest))
}

/// The answer to a message that was taken.
async fn answered(answer: oneshot::Receiver<Answer>, deadline: Option<Instant>) -> Result<Bytes, AskError> {
    let answer = match deadline {
        None => answer.await,
        Some(deadline) => match timeout_at(deadline, answer).await {
            Ok(answer) => answer,
            Err(_) => return Err(AskError::Deadline),
        },
    };
    match answer {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(unanswered)) => Err(unanswered.into()),
        Err(_) => Err(AskError::Stopped),
    }
}

impl From<Unanswered> for AskError {
    fn from(unanswered: Unanswered) -> Self {
        match unanswered {
            Unanswered::Crashed(report) => Self::Crashed(report),
            Unanswered::Failed(message) => Self::Failed { message },
            Unanswered::NoReply => Self::NoReply,
            Unanswered::Late => Self::Deadline,
            Unanswered::TooLarge(undelivered) => Self::NotSent(*undelivered),
        }
    }
}

impl AskError {
    /// The reason of one that was not sent.
    pub fn refusal(&self) -> Option<Refusal> {
        match self {
            Self::NotSent(undelivered) => Some(undelivered.reason),
            _ => None,
        }
    }
}

/// Of the same registration, in the same system.
impl PartialEq for ActorRef {
    fn eq(&self, other: &Self) -> bool {
        // Addresses of two systems may be equal.
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for ActorRef {}

impl Hash for ActorRef {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.0.address.hash(hasher);
    }
}

impl fmt::Debug for ActorRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ActorRef").field(self.0.id()).finish()
    }
}
