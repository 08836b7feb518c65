//! The handle on an actor: tell, ask, stop, inspect.

use std::{
    fmt,
    future::pending,
    hash::{Hash, Hasher},
    sync::{Arc, Weak},
    time::Duration,
};

use airssys_wasm_registry::{ActorAddress, ComponentId, Load, MessageEnvelope, Refusal, Undelivered};
use bytes::Bytes;
use tokio::{
    sync::oneshot,
    time::{Instant, timeout_at},
};

use crate::{
    CrashReport, Lifecycle, StartError,
    failure::{declined::Declined, policy::later, report::because},
    runtime::{
        cell::Cell,
        endpoint::undelivered,
        mailbox::{Answer, Delivery, ReplyTo, Unanswered},
        orders::Control,
    },
};

/// A handle on an actor. It holds the mailbox, so sending needs no look-up. Cheap to clone.
///
/// Dropping handles does not stop the actor.
#[derive(Clone)]
pub struct ActorRef(pub(crate) Arc<Cell>);

/// A handle on an actor that does not hold its mailbox: when the actor has ended, and all other handles are gone, so is what it
/// had, but for some hundred bytes. Cheap to clone.
#[derive(Clone, Default)]
pub struct WeakActorRef(Weak<Cell>);

impl WeakActorRef {
    /// The actor, unless it has ended and all other handles are gone. It may have ended nevertheless.
    pub fn upgrade(&self) -> Option<ActorRef> {
        self.0.upgrade().map(ActorRef)
    }
}

impl fmt::Debug for WeakActorRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("WeakActorRef").field(&self.upgrade()).finish()
    }
}

/// An ask failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AskError {
    /// The actor refused the message, which is returned.
    #[error(transparent)]
    NotSent(Undelivered),
    /// The deadline passed before an answer.
    #[error("there was no answer within the deadline")]
    Deadline,
    /// The actor crashed over this message.
    #[error("the actor crashed: {0}")]
    Crashed(Arc<CrashReport>),
    /// The actor's handler returned an error.
    #[error("the actor's handler failed: {}", message.escape_debug())]
    Failed {
        /// The handler's error message, unescaped.
        message: String,
    },
    /// The actor's handler did not handle the message, and may handle it later. It is not redelivered: ask again. Only
    /// components for `wasmcloud:messaging@0.3.0` say so.
    #[error("the actor's handler may take the message later; ask again")]
    Retry,
    /// The actor's handler rejected the message, so that asking again does not help. Only components for
    /// `wasmcloud:messaging@0.3.0` say so.
    #[error("the actor's handler rejected the message{}", because(reason.as_deref()))]
    Rejected {
        /// The handler's reason, unescaped.
        reason: Option<String>,
    },
    /// The handler returned no answer.
    #[error("the actor's handler came back without an answer")]
    NoReply,
    /// The actor stopped, or was given up, before the message's turn.
    #[error("the actor stopped before it came to this message")]
    Stopped,
    /// The actor handled the message, and the state after it is not saved, though each message was to be: it could not be,
    /// which is tried again and lost by a crash until then; or the actor crashed before.
    #[error("the actor handled the message, but its state after it is not saved")]
    NotSaved,
    /// The actor was to be brought into memory for this message, and did not start.
    #[error("the actor did not start for this message: {0}")]
    NotActivated(Arc<StartError>),
    /// The actor is on another host, which is gone or cannot be reached: whether the message was handled is not known.
    #[error("the actor's host was lost{}", if *accepted { " with the message in the actor's mailbox" } else { " with the message on its way" })]
    Lost {
        /// Whether the actor's mailbox is known to have taken it.
        accepted: bool,
    },
    /// The actor is on another host, handled the message, and its answer is larger than the way back takes.
    #[error("the answer has {size} bytes, and {allowed} can come from another host")]
    AnswerTooLarge {
        /// Bytes that it has.
        size: u64,
        /// Bytes that it may have.
        allowed: u64,
    },
}

/// When an actor stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// After the messages in its mailbox.
    Drain,
    /// After the message in flight. Those in the mailbox go to the dead letters; asks fail as [`AskError::Stopped`].
    Now,
}

/// A health check failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HealthError {
    /// The actor's check returned an error.
    #[error("the actor is not well: {}", message.escape_debug())]
    Unwell {
        /// The actor's error message.
        message: String,
    },
    /// The actor crashed in the check.
    #[error("the actor crashed: {0}")]
    Crashed(Arc<CrashReport>),
    /// The component does not export `airssys:actor/health`.
    #[error("the actor does not say how it is: it does not export `airssys:actor/health`")]
    NotOffered,
    /// The component's `check` has another type than the contract's.
    #[error(transparent)]
    Contract(airssys_wasm_engine::ExportError),
    /// The actor is not running.
    #[error("the actor is {state}")]
    NotRunning {
        /// The actor's state.
        state: Lifecycle,
    },
}

/// An actor's state and figures at one moment.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ActorInfo {
    /// The actor's name and registration.
    pub address: ActorAddress,
    /// The actor's state.
    pub state: Lifecycle,
    /// Messages in the mailbox, and its capacity.
    pub mailbox: Load,
    /// The incarnation, counted from 1. Each start, restart and upgrade makes one.
    pub incarnation: u64,
    /// Restarts after failures.
    pub restarts: u64,
    /// How often the instance was recycled.
    pub recycled: u64,
    /// Bytes of linear memory after its last message. 0 for a native actor.
    pub memory: u64,
}

impl ActorRef {
    /// A handle that does not hold the mailbox.
    pub fn downgrade(&self) -> WeakActorRef {
        WeakActorRef(Arc::downgrade(&self.0))
    }

    /// The actor's name.
    pub fn id(&self) -> &ComponentId {
        self.0.id()
    }

    /// The actor's name and registration.
    pub fn address(&self) -> &ActorAddress {
        &self.0.address
    }

    /// The actor's state and figures now.
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

    /// Bytes that a message to it may have now: its `message_size`. An upgrade may change it.
    pub fn message_size(&self) -> u64 {
        self.0.mailbox.message_size()
    }

    /// The actor's state.
    pub fn state(&self) -> Lifecycle {
        self.0.state()
    }

    /// Sends a message without waiting for room.
    ///
    /// # Errors
    ///
    /// [`Undelivered`], with the message: the mailbox or the sender's share of it is full, the actor has stopped or is
    /// restarting, or the message is larger than the actor's `message_size`.
    pub fn try_tell(&self, message: impl Into<MessageEnvelope>) -> Result<(), Undelivered> {
        self.0.try_push(Delivery::new(message.into(), None)).map_err(undelivered)
    }

    /// Sends a message, waiting for room in the mailbox: until the message's deadline if it has one.
    ///
    /// # Errors
    ///
    /// [`Undelivered`], with the message: the actor has stopped, the message is larger than its `message_size`, or there was no room
    /// before the deadline.
    pub async fn tell(&self, message: impl Into<MessageEnvelope>) -> Result<(), Undelivered> {
        match self.0.try_push(Delivery::new(message.into(), None)) {
            Ok(()) => Ok(()),
            Err(refused) => self.0.push_in_time(refused).await.map_err(undelivered),
        }
    }

    /// Sends a message, waiting for room, and waits for the answer: until the message's deadline if it has one, else
    /// until the actor answers, crashes over it, or stops.
    ///
    /// Dropping the future does not take back a message that was sent.
    ///
    /// # Errors
    ///
    /// [`AskError`].
    pub async fn ask(&self, message: impl Into<MessageEnvelope>) -> Result<Bytes, AskError> {
        let message = message.into();
        let deadline = message.deadline();
        let (reply, answer) = oneshot::channel();
        match self.0.try_push(Delivery::new(message, Some(ReplyTo::new(reply)))) {
            Ok(()) => answered(answer, deadline).await,
            Err((Refusal::Full | Refusal::Restarting, delivery)) => {
                // Boxed: rare, and its future would enlarge that of every ask.
                let later = Box::pin(async {
                    match self.0.push_later(delivery, pending()).await {
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
    /// [`AskError`]; [`AskError::NotSent`], with the message, also if the mailbox is full.
    pub async fn try_ask(&self, message: impl Into<MessageEnvelope>) -> Result<Bytes, AskError> {
        let message = message.into();
        let deadline = message.deadline();
        let (reply, answer) = oneshot::channel();
        match self.0.try_push(Delivery::new(message, Some(ReplyTo::new(reply)))) {
            Ok(()) => answered(answer, deadline).await,
            Err(refused) => Err(AskError::NotSent(undelivered(refused))),
        }
    }

    /// Sends a message without waiting for room, and gives the answer to come. Dropping that does not take the message back.
    ///
    /// # Errors
    ///
    /// [`Undelivered`], with the message, as [`try_tell`](Self::try_tell).
    pub fn begin_ask(
        &self,
        message: impl Into<MessageEnvelope>,
    ) -> Result<impl Future<Output = Result<Bytes, AskError>> + Send + 'static, Undelivered> {
        let message = message.into();
        let deadline = message.deadline();
        let (reply, answer) = oneshot::channel();
        self.0.try_push(Delivery::new(message, Some(ReplyTo::new(reply)))).map_err(undelivered)?;
        Ok(answered(answer, deadline))
    }

    /// [`ask`](Self::ask) with a timeout.
    ///
    /// # Errors
    ///
    /// [`AskError`].
    pub async fn ask_within(&self, longest: Duration, message: impl Into<MessageEnvelope>) -> Result<Bytes, AskError> {
        self.ask(within(longest, message.into())).await
    }

    /// [`try_ask`](Self::try_ask) with a timeout.
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

    /// Orders the actor to stop, and returns at once; [`ended`](Self::ended) waits. The actor refuses messages from
    /// when it receives the order, and is not restarted.
    pub fn stop(&self, how: Stop) {
        self.0.orders.give(Control::Stop { drain: how == Stop::Drain });
    }

    /// Interrupts and ends the actor: at once if it waits, within an epoch tick if it computes. The message in flight
    /// ends as cancelled, those in the mailbox go to the dead letters, and the actor is not restarted.
    pub fn kill(&self) {
        self.0.kill();
    }

    /// Waits until the actor has ended.
    pub async fn ended(&self) {
        self.0.ended.cancelled().await;
    }

    /// Calls the actor's health check, between two messages.
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

/// Waits for the answer to a message that was sent.
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
            Unanswered::Declined(declined) => match *declined {
                Declined::Retry => Self::Retry,
                Declined::Reject(reason) => Self::Rejected { reason },
            },
            Unanswered::NoReply => Self::NoReply,
            Unanswered::NotSaved => Self::NotSaved,
            Unanswered::NotActivated(error) => Self::NotActivated(error),
            Unanswered::Late => Self::Deadline,
            Unanswered::TooLarge { size, allowed } => Self::AnswerTooLarge { size, allowed },
            Unanswered::NotTaken(undelivered) => Self::NotSent(*undelivered),
        }
    }
}

impl AskError {
    /// Why the message was not sent, if it was not.
    pub fn refusal(&self) -> Option<Refusal> {
        match self {
            Self::NotSent(undelivered) => Some(undelivered.reason),
            _ => None,
        }
    }
}

/// Handles are equal if they lead to the same registration in the same system.
impl PartialEq for ActorRef {
    fn eq(&self, other: &Self) -> bool {
        // Compare cells: addresses in two systems may be equal.
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
