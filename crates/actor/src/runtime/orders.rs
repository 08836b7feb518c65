//! What an actor is told beside its messages.

use std::{
    any::Any,
    collections::VecDeque,
    future::poll_fn,
    mem,
    sync::atomic::{AtomicUsize, Ordering},
    task::{Context, Poll, Waker},
};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::{
    HealthError, KeepError, UpgradeOptions,
    runtime::{sync::Shared, upgrade::UpgradeDone},
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
    /// Go over to another version, or back to the one before, unless the caller has gone. Boxed: the others are small.
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
    pub(crate) done: UpgradeDone,
}

/// The orders of an actor that it has not taken yet.
#[derive(Default)]
pub(crate) struct Orders {
    waiting: Shared<Mutex<Waiting>>,
    /// Orders that are given, or about to be, and not taken yet: a busy actor looks at this number alone.
    pending: Shared<AtomicUsize>,
}

#[derive(Default)]
struct Waiting {
    orders: VecDeque<Control>,
    /// Who takes them. It stays here when it is woken, so that a task that goes to sleep after each message need not leave it
    /// anew.
    taker: Option<Waker>,
    closed: bool,
}

impl Orders {
    /// Gives an order. One that comes after the end is dropped, with whatever waits for its completion.
    pub(crate) fn give(&self, order: Control) {
        self.announce();
        self.put(order);
        self.wake();
    }

    /// Counts the order before it is there, so that the task it wakes sees it.
    pub(super) fn announce(&self) {
        self.pending.fetch_add(1, Ordering::Release);
    }

    pub(super) fn put(&self, order: Control) {
        let mut waiting = self.waiting.lock();
        if waiting.closed {
            drop(waiting);
            // Whoever waits for it is told, without the lock.
            drop(order);
        } else {
            waiting.orders.push_back(order);
        }
    }

    pub(super) fn wake(&self) {
        let taker = self.waiting.lock().taker.clone();
        if let Some(taker) = taker {
            taker.wake();
        }
    }

    /// Whether there are orders, or will be at any moment.
    pub(crate) fn pending(&self) -> bool {
        self.pending.load(Ordering::Acquire) > 0
    }

    /// An order that is there already.
    pub(crate) fn try_next(&self) -> Option<Control> {
        let order = self.waiting.lock().orders.pop_front()?;
        self.pending.fetch_sub(1, Ordering::Relaxed);
        Some(order)
    }

    /// Drops the orders that wait, and later ones.
    pub(super) fn close(&self) {
        let mut waiting = self.waiting.lock();
        waiting.closed = true;
        let (orders, taker) = (mem::take(&mut waiting.orders), waiting.taker.take());
        drop(waiting);
        drop((orders, taker));
    }
}

/// Takes the orders of an actor.
#[derive(Default)]
pub(crate) struct OrderInbox {
    /// The waker that the orders have.
    listens: Option<Waker>,
}

impl OrderInbox {
    /// The next order of these. It is outside tokio's budget, so that orders come first even if messages have used it up.
    pub(crate) fn poll_next(&mut self, orders: &Orders, cx: &mut Context<'_>) -> Poll<Control> {
        let listens = self.listens.as_ref().is_some_and(|waker| waker.will_wake(cx.waker()));
        if listens && !orders.pending() {
            return Poll::Pending;
        }
        if !listens {
            let before = orders.waiting.lock().taker.replace(cx.waker().clone());
            // Without the lock.
            drop(before);
            self.listens = Some(cx.waker().clone());
        }
        orders.try_next().map_or(Poll::Pending, Poll::Ready)
    }

    pub(crate) async fn next(&mut self, orders: &Orders) -> Control {
        poll_fn(|cx| self.poll_next(orders, cx)).await
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Arc, atomic::AtomicBool},
        task::Wake,
    };

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicBool);

    impl Woken {
        fn take(&self) -> bool {
            self.0.swap(false, Ordering::SeqCst)
        }
    }

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    #[test]
    fn who_took_an_order_before_it_was_woken_for_it_is_woken_for_the_next() {
        let (orders, mut inbox, woken) = (Orders::default(), OrderInbox::default(), Arc::new(Woken::default()));
        let waker = Waker::from(Arc::clone(&woken));
        let mut cx = Context::from_waker(&waker);
        assert!(inbox.poll_next(&orders, &mut cx).is_pending());
        orders.announce();
        orders.put(Control::Save);
        assert!(inbox.poll_next(&orders, &mut cx).is_ready() && !woken.take());
        assert!(inbox.poll_next(&orders, &mut cx).is_pending());
        orders.wake();
        assert!(woken.take(), "for an order that it has already");
        assert!(inbox.poll_next(&orders, &mut cx).is_pending());
        orders.give(Control::Save);
        assert!(woken.take());
    }

    #[test]
    fn another_task_is_woken_after_it_has_looked() {
        let (orders, mut inbox) = (Orders::default(), OrderInbox::default());
        let [first, second] = [Arc::new(Woken::default()), Arc::new(Woken::default())];
        for woken in [&first, &second] {
            let waker = Waker::from(Arc::clone(woken));
            assert!(inbox.poll_next(&orders, &mut Context::from_waker(&waker)).is_pending());
        }
        orders.give(Control::Save);
        assert!(!first.take() && second.take());
    }

    #[test]
    fn who_waits_for_an_order_that_nobody_will_follow_is_told() {
        let orders = Orders::default();
        let ordered = || {
            let (done, answer) = oneshot::channel();
            orders.give(Control::Health { done });
            answer
        };
        let before = ordered();
        orders.close();
        for mut answer in [before, ordered()] {
            assert_eq!(answer.try_recv().unwrap_err(), oneshot::error::TryRecvError::Closed);
        }
    }
}
