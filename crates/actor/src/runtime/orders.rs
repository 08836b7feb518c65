//! What an actor is told beside its messages.

use std::{
    any::Any,
    future::poll_fn,
    pin::pin,
    sync::atomic::{AtomicUsize, Ordering},
    task::{Context, Poll, Waker},
};

use tokio::{
    sync::{mpsc, oneshot},
    task::coop::unconstrained,
};

use crate::{
    HealthError, KeepError, UpgradeError, UpgradeOptions,
    runtime::sync::{Shared, shared},
};

/// What an actor is told beside its messages. It is heard before the next message, however many there are.
pub(crate) enum Control {
    /// Of its supervisor: start, or start again.
    Start { order: u64 },
    /// Of its supervisor: end the incarnation and wait for a start, mailbox kept.
    Suspend { order: u64 },
    /// End for good: after all messages in the mailbox, or after the one in flight.
    Stop { drain: bool },
    /// End for good, now.
    Kill,
    /// Go over to another version, or back to the one before, unless the caller has gone. Boxed: the channel allocates
    /// blocks of many orders.
    Upgrade(Box<Upgrade>),
    /// Check health. Takes turns with messages, and is skipped if the caller has gone.
    Health { done: HealthDone },
    /// Of who keeps its state: save it.
    Save,
    /// Of who keeps its state: save it and leave, if there is no message. Where there is somebody to be told, as soon as there
    /// is none. One that has messages to send later leaves only if it `must`.
    Passivate { must: bool, done: Option<oneshot::Sender<()>> },
    /// Of who keeps its state: drop it, and what is kept of it.
    Forget { done: oneshot::Sender<Result<(), KeepError>> },
}

/// The reply to a health check.
pub(crate) type HealthDone = oneshot::Sender<Result<(), HealthError>>;

pub(crate) struct Upgrade {
    /// In a box of the blueprint's type; none for the version before.
    pub(crate) version: Option<Box<dyn Any + Send>>,
    pub(crate) options: UpgradeOptions,
    pub(crate) done: oneshot::Sender<Result<u64, UpgradeError>>,
}

/// The sending end of an actor's orders.
pub(crate) struct Orders {
    to: Shared<mpsc::UnboundedSender<Control>>,
    /// Orders that are sent, or about to be, and not taken yet: a busy actor looks at this number alone.
    pending: Shared<AtomicUsize>,
}

impl Orders {
    pub(crate) fn new() -> (Self, OrderInbox) {
        let (to, from) = mpsc::unbounded_channel();
        let inbox = OrderInbox { from: shared(from), listens: None };
        (Self { to: shared(to), pending: shared(AtomicUsize::new(0)) }, inbox)
    }

    /// Gives an order. One that comes after the end is dropped, with whatever waits for its completion.
    pub(crate) fn give(&self, order: Control) {
        self.announce();
        self.send(order);
    }

    /// Counts the order before it is sent, so that the task it wakes sees it. A busy actor that sees it earlier polls
    /// for it until it comes.
    pub(super) fn announce(&self) {
        self.pending.fetch_add(1, Ordering::Release);
    }

    pub(super) fn send(&self, order: Control) {
        // Fails when the actor is gone.
        _ = self.to.send(order);
    }

    /// Whether there are orders, or will be at any moment.
    pub(crate) fn pending(&self) -> bool {
        self.pending.load(Ordering::Acquire) > 0
    }
}

/// The receiving end of an actor's orders.
pub(crate) struct OrderInbox {
    from: Shared<mpsc::UnboundedReceiver<Control>>,
    /// The waker that the channel has. It has it until an order comes, and then there is one to take: a task that goes to
    /// sleep after each message need not leave it there anew.
    listens: Option<Waker>,
}

impl OrderInbox {
    /// The next order of these. Outside tokio's budget, so that orders come first even if messages have used it up, and that
    /// the channel has the waker whenever this is pending.
    pub(crate) fn poll_next(&mut self, orders: &Orders, cx: &mut Context<'_>) -> Poll<Control> {
        if !orders.pending() && self.listens.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            return Poll::Pending;
        }
        let polled = pin!(unconstrained(self.from.recv())).poll(cx);
        match polled {
            Poll::Ready(order) => Poll::Ready(self.taken(orders, order.expect("the cell holds a sender"))),
            Poll::Pending => {
                self.listens = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    pub(crate) async fn next(&mut self, orders: &Orders) -> Control {
        poll_fn(|cx| self.poll_next(orders, cx)).await
    }

    /// An order that is there already.
    pub(crate) fn try_next(&mut self, orders: &Orders) -> Option<Control> {
        let order = self.from.try_recv().ok()?;
        Some(self.taken(orders, order))
    }

    fn taken(&mut self, orders: &Orders, order: Control) -> Control {
        self.listens = None;
        orders.pending.fetch_sub(1, Ordering::Relaxed);
        order
    }
}
