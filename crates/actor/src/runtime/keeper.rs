//! The seam to layers that keep the state of actors which need not be in memory, or know actors of other hosts.

use std::{fmt, sync::Arc};

use airssys_wasm_registry::{ActorAddress, ComponentId, MessageEnvelope, Refusal, Topic, Undelivered};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::oneshot;

use crate::{
    ActorRef, AskError, CallError, KeepError, StartError,
    runtime::{
        call::{Call, Pending},
        mailbox::{Answer, Delivery, ReplyTo, Unanswered},
        orders::Control,
    },
};

/// Who knows names that are not registered: it brings actors into being, or has others that are not of this system. Asked only
/// then. All those added are asked for an actor first, and only then whether they take the message themselves.
///
/// [`ActorSystem::add_elsewhere`](crate::ActorSystem::add_elsewhere) adds one.
pub trait Elsewhere: Send + Sync + 'static {
    /// Brings the actor of this name into being, or finds that somebody else has: the name is registered when it returns,
    /// and the message that it is needed for comes next. `None` if the name is not its own. `by` is the sender, unless that
    /// is the host.
    ///
    /// Called on the sender's thread, which may be that of a guest's import: it must not block.
    fn awaken(&self, to: &ComponentId, by: Option<&ActorAddress>) -> Option<Result<ActorRef, Refusal>> {
        _ = (to, by);
        None
    }

    /// Takes a message to a name that it knows, on its way to the actor. If that does not take it in the end, it is a
    /// [dead letter](crate::ActorSystem::add_dead_letter) here. `Ok(Some)` gives back a message to a name that is not its own.
    ///
    /// Must not block.
    ///
    /// # Errors
    ///
    /// [`Undelivered`], with the message.
    fn tell(&self, to: &ComponentId, message: MessageEnvelope) -> Result<Option<MessageEnvelope>, Undelivered> {
        _ = to;
        Ok(Some(message))
    }

    /// Asks the actor of a name that it knows, until the message's deadline. `None` if the name is not its own.
    fn ask(&self, to: &ComponentId, message: &MessageEnvelope) -> Option<BoxFuture<'static, Result<Bytes, AskError>>> {
        _ = (to, message);
        None
    }

    /// Calls an export of the actor of a name that it knows, until the message's deadline. `None` if the name is not its own.
    ///
    /// Asked only if the caller may call that name, and nobody here has it. Whoever has the actor makes the call by
    /// [`ActorSystem::call_encoded`](crate::ActorSystem::call_encoded), of which the result is given back as it is.
    fn call(&self, to: &ComponentId, call: &FarCall) -> Option<BoxFuture<'static, Result<Bytes, CallError>>> {
        _ = (to, call);
        None
    }

    /// Takes what an actor or the host has published here, for others who subscribed to its topic. Gives the number of hosts it
    /// is queued for. Must not block.
    fn publish(&self, topic: &Topic, message: &MessageEnvelope) -> usize {
        _ = (topic, message);
        0
    }

    /// An actor of this system has ended, whoever knew its name. Told to all, once. Must not block.
    fn ended(&self, actor: &ActorAddress) {
        _ = actor;
    }
}

/// A call of an export of an actor that is not here.
#[derive(Debug, Clone)]
pub struct FarCall {
    /// The export: `interface#function`, as links name it. The actor may have a later version that is compatible.
    pub export: Arc<str>,
    /// The function's type in full, as the caller imports it: `func(key: string) -> option<string>`. At most
    /// [`LONGEST_TYPE`](Self::LONGEST_TYPE) bytes.
    pub ty: Arc<str>,
    /// Sender, deadline and trace. The payload is the encoded parameters.
    pub message: MessageEnvelope,
}

impl FarCall {
    /// Bytes of a type, as text. A call of a function whose type is longer fails at the caller.
    pub const LONGEST_TYPE: usize = 8 << 10;
}

/// Whether an actor may act now: one whose name another host may have taken meanwhile must not.
///
/// Looked at before each message that it handles, and before each that it sends.
pub trait Fence: fmt::Debug + Send + Sync + 'static {
    /// Whether it may. Must be cheap.
    fn holds(&self) -> bool;
}

/// Keeps the state of one actor while that is in memory, and is dropped with it.
///
/// Its futures may be dropped when the actor is killed; then the actor ends.
pub trait Keeper: Send + 'static {
    /// The state for an incarnation that is about to start, `None` for a fresh one.
    fn load(&mut self) -> BoxFuture<'_, Result<Option<Bytes>, KeepError>>;

    /// Keeps a snapshot.
    fn save(&mut self, state: Bytes) -> BoxFuture<'_, Result<(), KeepError>>;

    /// Keeps the last snapshot of an actor that stops. While that is [`KeepError::Unavailable`] and may not stay so, it is
    /// tried again. The future is dropped when the actor is killed; then the snapshot is lost.
    fn save_last(&mut self, state: Bytes) -> BoxFuture<'_, Result<(), KeepError>>;

    /// There is no snapshot to keep: the guest refused it, or its version has no state. Nothing is unsaved until the next
    /// message.
    fn not_given(&mut self);

    /// The actor was ordered to leave the memory, and stays.
    fn stayed(&mut self);

    /// Keeps nothing of it any more.
    fn forget(&mut self) -> BoxFuture<'_, Result<(), KeepError>>;

    /// An incarnation started. Whether it is to be given a [snapshot](Self::fresh) of it, before the first message.
    fn started(&mut self) -> bool;

    /// What the snapshot of an incarnation is that was given no state.
    fn fresh(&mut self, state: Bytes);

    /// A message is about to be handled.
    fn touched(&mut self);

    /// Whether a message counts as handled only when the state after it is kept: its asker is not answered before.
    fn saves_each_message(&self) -> bool;

    /// The first incarnation did not start. Messages that waited for it are refused, or dead letters.
    fn not_activated(&mut self, error: &Arc<StartError>);

    /// Another version goes on from the state of the one before, and what was [fresh](Self::fresh) is no longer.
    fn upgraded(&mut self);

    /// An upgrade that this actor had on probation was undone.
    fn rolled_back(&mut self);

    /// The actor failed by its own fault more often than its [`RestartPolicy`](crate::RestartPolicy) allows, and ends.
    fn gave_up(&mut self);

    /// The actor is out of memory, its name free. Called before it is dropped.
    fn passivated(&mut self);
}

/// A handle on an actor whose state is kept, for who keeps it. Cheap to clone.
#[derive(Clone)]
pub struct KeptActor(ActorRef);

impl KeptActor {
    pub(crate) fn new(actor: ActorRef) -> Self {
        Self(actor)
    }

    /// The actor.
    pub fn actor(&self) -> &ActorRef {
        &self.0
    }

    /// Orders a save, between two messages.
    pub fn save(&self) {
        self.0.0.orders.give(Control::Save);
    }

    /// Orders the actor to save its state and leave the memory, unless there is a message for it, or it has one to send later.
    /// One whose state cannot be saved now stays.
    pub fn passivate(&self) {
        self.0.0.orders.give(Control::Passivate { must: false, done: None });
    }

    /// Orders the same, since there is no room for it. The messages that it has to send later are dead letters.
    pub fn evict(&self) {
        self.0.0.orders.give(Control::Passivate { must: true, done: None });
    }

    /// Orders the same as [`evict`](Self::evict) as soon as there is no message for it, and waits. Whether the actor is out of memory.
    pub async fn passivated(&self) -> bool {
        let done = self.0.0.ordered(|done| Control::Passivate { must: true, done: Some(done) }).await;
        done.is_some() || self.0.0.ended.is_cancelled()
    }

    /// Orders the actor to forget its reminders and its state, kept or not, between two messages. `false` if it had ended
    /// before.
    ///
    /// # Errors
    ///
    /// [`KeepError`]: the actor goes on as it was. Its reminders may be forgotten.
    pub async fn forget(&self) -> Result<bool, KeepError> {
        self.0.0.ordered(|done| Control::Forget { done }).await.transpose().map(|done| done.is_some())
    }
}

impl fmt::Debug for KeptActor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("KeptActor").field(self.0.id()).finish()
    }
}

/// What the task of an actor has whose state is kept.
pub(crate) struct Kept {
    pub(super) keeper: Box<dyn Keeper>,
    /// Who waits for it to be passivated, once that was ordered.
    pub(super) leaving: Option<Vec<oneshot::Sender<()>>>,
    /// What is held back until the state is kept.
    held: Option<Held>,
    pub(super) saves_each_message: bool,
}

enum Held {
    /// Who asked, and the answer.
    Answer(ReplyTo, oneshot::Receiver<Answer>),
    /// A call, which has its result.
    Call(Box<dyn Pending>),
}

impl Kept {
    pub(crate) fn new(keeper: Box<dyn Keeper>) -> Self {
        Self { saves_each_message: keeper.saves_each_message(), keeper, leaving: None, held: None }
    }

    /// Somebody waits for it to leave.
    pub(super) fn leaves(&mut self, done: oneshot::Sender<()>) {
        let leaving = self.leaving.get_or_insert_default();
        // Who asks again and again leaves those before.
        leaving.retain(|done| !done.is_closed());
        leaving.push(done);
    }

    /// A message is about to be handled.
    pub(super) fn begin(&mut self, in_flight: &mut Option<Delivery>) {
        self.keeper.touched();
        if self.saves_each_message
            && let Some(delivery) = in_flight
            && let Some(reply) = delivery.reply.take()
        {
            let (instead, answer) = oneshot::channel();
            delivery.reply = Some(ReplyTo::new(instead));
            self.held = Some(Held::Answer(reply, answer));
        }
    }

    /// Makes a call, whose result is held back.
    pub(super) fn begin_call(&self, call: &mut Call) {
        if self.saves_each_message {
            call.pending.hold();
        }
    }

    /// A call was made.
    pub(super) fn end_call(&mut self, call: Call) {
        if self.saves_each_message {
            self.held = Some(Held::Call(call.pending));
        }
    }

    /// Whether there is something to do after a message.
    #[inline]
    pub(super) fn is_due(&self) -> bool {
        self.saves_each_message || self.leaving.is_some()
    }

    /// Gives who asked or called what is held back, or tells it that the state is not kept.
    pub(super) fn release(&mut self, is_kept: bool) {
        let (reply, mut answer) = match self.held.take() {
            Some(Held::Answer(reply, answer)) => (reply, answer),
            Some(Held::Call(mut call)) => return call.release(is_kept),
            None => return,
        };
        match answer.try_recv() {
            Ok(Ok(_) | Err(Unanswered::NoReply)) if !is_kept => {
                reply.send(Err(Unanswered::NotSaved));
            }
            Ok(answer) => _ = reply.send(answer),
            // It was given up, and so is this.
            Err(_) => {}
        }
    }
}
