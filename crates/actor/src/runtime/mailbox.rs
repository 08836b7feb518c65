//! The sending end of a mailbox, and what lies in it: a message, where its answer goes, and the permits that it holds.

use std::{
    num::NonZeroU32,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use airssys_wasm_registry::{Load, MessageEnvelope, Refusal, Undelivered};
use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError, oneshot};

use crate::{
    CrashReport, StartError,
    failure::declined::Declined,
    runtime::{
        call::Call,
        in_flight::Room,
        queue::{Queue, Receiver},
        shares::{Free, Held, Kib, Place, Shares},
        sync::{Shared, quiet, shared},
    },
};

/// A message in a mailbox.
pub(crate) struct Delivery {
    pub(crate) message: MessageEnvelope,
    pub(crate) reply: Option<ReplyTo>,
    /// What it has of its sender's share, until it is taken.
    pub(crate) place: Option<Place>,
    /// What few have. In one box, because deliveries are moved.
    rare: Option<Box<Rare>>,
}

#[derive(Default)]
struct Rare {
    /// What a large message holds of the mailbox's bytes.
    permits: Option<OwnedSemaphorePermit>,
    kib: Option<Kib>,
    /// What is to be called instead of the handler.
    call: Option<Call>,
}

impl Rare {
    #[cold]
    fn size(&self) -> usize {
        self.call.as_ref().map_or(0, |call| call.pending.size())
    }
}

impl Delivery {
    #[inline]
    pub(crate) fn new(message: MessageEnvelope, reply: Option<ReplyTo>) -> Self {
        Self { message, reply, place: None, rare: None }
    }

    /// A call. The message says by whom and until when.
    pub(crate) fn of_call(message: MessageEnvelope, call: Call) -> Self {
        let rare = Rare { call: Some(call), ..Rare::default() };
        Self { message, reply: None, place: None, rare: Some(Box::new(rare)) }
    }

    fn rare(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    fn hold(&mut self, (place, kib): Held) {
        self.place = Some(place);
        if kib.is_some() {
            self.rare().kib = kib;
        }
    }

    #[inline]
    pub(crate) fn is_call(&self) -> bool {
        self.rare.as_ref().is_some_and(|rare| rare.call.is_some())
    }

    pub(crate) fn call_mut(&mut self) -> Option<&mut Call> {
        self.rare.as_mut()?.call.as_mut()
    }

    pub(crate) fn take_call(&mut self) -> Option<Call> {
        self.rare.as_mut()?.call.take()
    }

    /// It is out of the mailbox.
    #[inline]
    pub(crate) fn taken(&mut self) {
        if self.place.is_some() {
            self.give_back();
        }
    }

    // Out of the way of the host's messages, which have no share.
    #[inline(never)]
    fn give_back(&mut self) {
        self.place = None;
        if let Some(rare) = &mut self.rare {
            rare.kib = None;
        }
    }

    /// Gives back what it holds of a mailbox that did not take it, before it goes to another.
    pub(crate) fn let_go(&mut self) {
        self.give_back();
        if let Some(rare) = &mut self.rare {
            rare.permits = None;
        }
    }

    /// Bytes that its sender chose.
    #[inline]
    pub(crate) fn size(&self) -> usize {
        self.message.size() + self.rare.as_ref().map_or(0, |rare| rare.size())
    }
}

/// Bytes of a message up to which it is not counted against the mailbox's bytes: as many of them as a mailbox holds are
/// little enough.
pub(crate) const SMALL: usize = 4 << 10;

/// Where the answer to a message goes. Dropping it tells the asker that the actor has stopped.
pub(crate) struct ReplyTo(To);

enum To {
    Asker(oneshot::Sender<Answer>),
    /// And the room there is for it, where others wait too. Boxed: few have it, and deliveries are moved.
    Shared(Box<(oneshot::Sender<Answer>, Arc<Room>)>),
}

pub(crate) type Answer = Result<Bytes, Unanswered>;

/// Why a message that was taken got no answer.
#[derive(Debug)]
pub(crate) enum Unanswered {
    Crashed(Arc<CrashReport>),
    Failed(String),
    /// The handler did not handle it, and says whether it could.
    Declined(Box<Declined>),
    NoReply,
    /// It was handled, and the state after it is not kept.
    NotSaved,
    /// The actor was to be brought into memory for it, and did not start.
    NotActivated(Arc<StartError>),
    Late,
    /// There is an answer, or an error, and no room for it.
    TooLarge {
        size: u64,
        allowed: u64,
    },
    /// It is not taken after all: larger than the version takes that an upgrade has brought, or for one that is fenced.
    NotTaken(Box<Undelivered>),
}

/// Bytes of an answer that who answers chose.
pub(crate) fn size_of_answer(answer: &Answer) -> usize {
    match answer {
        Ok(answer) => answer.len(),
        Err(Unanswered::Failed(message)) => message.len(),
        Err(Unanswered::Declined(declined)) => declined.to_string().len(),
        Err(_) => 0,
    }
}

impl ReplyTo {
    pub(crate) fn new(to: oneshot::Sender<Answer>) -> Self {
        Self(To::Asker(to))
    }

    /// For an asker for whom several answers may wait.
    pub(crate) fn in_room(to: oneshot::Sender<Answer>, room: Option<Arc<Room>>) -> Self {
        match room {
            None => Self::new(to),
            Some(room) => Self(To::Shared(Box::new((to, room)))),
        }
    }

    /// Whether nobody waits for it any more.
    pub(crate) fn is_closed(&self) -> bool {
        match &self.0 {
            To::Asker(to) => to.is_closed(),
            To::Shared(shared) => shared.0.is_closed(),
        }
    }

    /// Says whether anybody was still there to hear it.
    pub(crate) fn send(self, mut answer: Answer) -> bool {
        let to = match self.0 {
            To::Asker(to) => to,
            To::Shared(shared) => {
                let (to, room) = *shared;
                let size = size_of_answer(&answer);
                if let Err(allowed) = room.take(size) {
                    answer = Err(Unanswered::TooLarge { size: size as u64, allowed });
                }
                to
            }
        };
        to.send(answer).is_ok()
    }
}

/// How large a mailbox is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MailboxSize {
    pub(crate) messages: usize,
    /// Of large messages.
    pub(crate) bytes: u64,
    /// How many shares there are, of which a sender may have one.
    pub(crate) shares: NonZeroU32,
}

/// The sending end of a mailbox.
pub(crate) struct Mailbox {
    messages: Shared<Queue<Delivery>>,
    /// A permit for each KiB that large messages may take up, and how many there are in all.
    permits: Shared<Arc<Semaphore>>,
    kib: u32,
    /// What each sender may hold of it, unless that is all.
    shares: Option<Shares>,
    /// Bytes of payload that a message may have, and whether calls are all that it takes: in one word, which every sender
    /// reads.
    takes: AtomicU64,
}

/// Says that calls are all that a mailbox takes. No message is as large.
const ONLY_CALLS: u64 = 1 << 63;

impl Mailbox {
    pub(crate) fn new(MailboxSize { messages, bytes, shares }: MailboxSize) -> Self {
        let kib = u32::try_from(bytes >> 10).unwrap_or(u32::MAX).max(1);
        let shares = Shares::new(messages, kib, shares);
        let messages = shared(Queue::new(messages));
        let permits = shared(Arc::new(Semaphore::new(kib as usize)));
        Self { messages, permits, kib, shares, takes: AtomicU64::new(!ONLY_CALLS) }
    }

    pub(crate) fn set_message_size(&self, bytes: u64) {
        let only_calls = self.takes.load(Ordering::Relaxed) & ONLY_CALLS;
        self.takes.store(bytes.min(!ONLY_CALLS) | only_calls, Ordering::Relaxed);
    }

    pub(crate) fn set_only_calls(&self) {
        self.takes.fetch_or(ONLY_CALLS, Ordering::Relaxed);
    }

    pub(crate) fn message_size(&self) -> u64 {
        self.takes.load(Ordering::Relaxed) & !ONLY_CALLS
    }

    /// Holds what is to be lowered into the actor's memory against what a message may have.
    pub(crate) fn check_size(&self, size: usize) -> Result<(), Refusal> {
        let allowed = self.message_size();
        if size as u64 > allowed { Err(Refusal::TooLarge { size: size as u64, allowed }) } else { Ok(()) }
    }

    /// Whether it takes such a delivery of so many bytes, room aside.
    #[inline]
    fn check(&self, delivery: &Delivery, size: usize) -> Result<(), Refusal> {
        let takes = self.takes.load(Ordering::Relaxed);
        // Neither too large, nor one that takes only calls.
        if size as u64 <= takes && takes < ONLY_CALLS {
            return Ok(());
        }
        if takes >= ONLY_CALLS && !delivery.is_call() {
            return Err(Refusal::NoHandler);
        }
        self.check_size(size)
    }

    /// KiB that a message takes up of the mailbox's: none for a small one, all of them for one that is larger than that.
    fn kib_of(&self, size: usize) -> u32 {
        if size <= SMALL { 0 } else { u32::try_from(size.div_ceil(1 << 10)).unwrap_or(u32::MAX).min(self.kib) }
    }

    /// Puts a message into the mailbox at once.
    #[inline]
    pub(crate) fn try_push(&self, mut delivery: Delivery) -> Result<(), (Refusal, Delivery)> {
        let size = delivery.size();
        if let Err(refusal) = self.check(&delivery, size) {
            return Err((refusal, delivery));
        }
        // Messages of the host are in no share.
        if delivery.message.sender().is_some()
            && let Err(refusal) = self.try_hold(&mut delivery, size)
        {
            return Err((refusal, delivery));
        }
        if size > SMALL {
            match Arc::clone(&self.permits).try_acquire_many_owned(self.kib_of(size)) {
                Ok(permits) => delivery.rare().permits = Some(permits),
                Err(TryAcquireError::NoPermits) => return Err((Refusal::Full, delivery)),
                Err(TryAcquireError::Closed) => return Err((Refusal::Stopped, delivery)),
            }
        }
        self.messages.try_push(delivery)
    }

    /// Takes what a message needs of its sender's share.
    #[inline(never)]
    fn try_hold(&self, delivery: &mut Delivery, size: usize) -> Result<(), Refusal> {
        let (Some(shares), Some(sender)) = (&self.shares, delivery.message.sender()) else { return Ok(()) };
        let free = Free { messages: self.messages.room(), kib: self.permits.available_permits() };
        match shares.try_hold(sender.generation(), self.kib_of(size), free) {
            Some(held) => {
                delivery.hold(held);
                Ok(())
            }
            None if self.messages.is_closed() => Err(Refusal::Stopped),
            None => Err(Refusal::Full),
        }
    }

    /// Puts a message into it that did not find room at once, as soon as there is some. Gives it back if `over` is ready before.
    pub(crate) async fn push_later(
        &self,
        mut delivery: Delivery,
        over: impl Future<Output = ()>,
    ) -> Result<(), (Refusal, Delivery)> {
        let (kib, mut over) = (self.kib_of(delivery.size()), pin!(over));
        // Before the permits: who waits takes no more of them than the sender may have.
        if let Some(shares) = &self.shares
            && let Some(sender) = delivery.message.sender()
            && delivery.place.is_none()
        {
            let held = tokio::select! {
                biased;
                held = shares.hold(sender.generation(), kib) => held.map_err(|_| Refusal::Stopped),
                () = &mut over => Err(Refusal::Full),
            };
            match held {
                Ok(held) => delivery.hold(held),
                Err(refusal) => return Err((refusal, delivery)),
            }
        }
        if kib > 0 && delivery.rare().permits.is_none() {
            let permits = tokio::select! {
                biased;
                permits = Arc::clone(&self.permits).acquire_many_owned(kib) => permits.map_err(|_| Refusal::Stopped),
                () = &mut over => Err(Refusal::Full),
            };
            match permits {
                Ok(permits) => delivery.rare().permits = Some(permits),
                Err(refusal) => return Err((refusal, delivery)),
            }
        }
        self.messages.push(delivery, over).await
    }

    /// The next message. `false` once it is closed and empty.
    #[inline]
    pub(crate) fn poll_next(
        &self,
        receiver: &mut Receiver<Delivery>,
        next: &mut Option<Delivery>,
        cx: &mut Context<'_>,
    ) -> Poll<bool> {
        let taken = self.messages.poll_next(receiver, next, cx);
        if let Some(delivery) = next {
            delivery.taken();
        }
        taken
    }

    /// The next message, if there is one.
    pub(crate) fn try_next(&self, receiver: &mut Receiver<Delivery>) -> Option<Delivery> {
        self.messages.try_next(receiver)
    }

    /// Bytes that large messages may take up in it.
    pub(crate) fn bytes(&self) -> u64 {
        u64::from(self.kib) << 10
    }

    /// Whether there is nothing in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.messages.len() == 0
    }

    /// Takes no more messages, unless there is one in it. Senders that wait for a share of it are refused by
    /// [`close`](Self::close).
    pub(crate) fn close_if_empty(&self) -> bool {
        quiet(&self.messages).close_if_empty()
    }

    /// Takes no more messages. Senders that wait for room are refused.
    pub(crate) fn close(&self) {
        self.messages.close();
        self.permits.close();
        if let Some(shares) = &self.shares {
            shares.close();
        }
    }

    pub(crate) fn load(&self) -> Load {
        Load { queued: self.messages.len(), capacity: self.messages.capacity() }
    }
}

#[cfg(test)]
mod tests {
    use airssys_wasm_registry::ActorAddress;

    use super::*;

    #[test]
    fn a_delivery_is_a_message_and_four_words() {
        // It is moved some six times on its way, and its size is most of what that costs.
        assert_eq!(size_of::<Delivery>(), size_of::<MessageEnvelope>() + 32);
    }

    #[test]
    fn a_message_that_goes_to_another_mailbox_has_no_place_in_the_first() {
        let size = |shares| MailboxSize { messages: 4, bytes: 8 << 10, shares: NonZeroU32::new(shares).unwrap() };
        let (first, second) = (Mailbox::new(size(4)), Mailbox::new(size(1)));
        let sender = ActorAddress::elsewhere(&"sender".parse().unwrap(), 1);
        let of = |payload: &str| {
            let message = MessageEnvelope::new(payload.to_owned());
            Delivery::new(message.with_sender(sender.clone()), None)
        };
        let (small, large) = ("x", "x".repeat(6_000));
        assert!(first.try_push(Delivery::new(large.clone().into(), None)).is_ok());
        let (refusal, mut back) = first.try_push(of(&large)).err().unwrap();
        assert_eq!(refusal, Refusal::Full, "of its bytes");
        // It waits there with its place, if it does.
        assert!(first.try_push(of(small)).is_err());
        back.let_go();
        assert!(second.try_push(back).is_ok());
        assert!(first.try_push(of(small)).is_ok());
    }
}
