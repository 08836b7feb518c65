//! Messages that arrive after their actor has ended: a sender may reserve a slot of the mailbox before, and send later.

use std::{
    pin::pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use parking_lot::Mutex;
use tokio::{sync::mpsc, task::coop::unconstrained};

use crate::runtime::{cell::Cell, mailbox::Delivery, sync::Shared};

/// The receiver of a mailbox whose actor has ended, as long as a sender has reserved a slot.
#[derive(Default)]
pub(crate) struct Late {
    messages: Mutex<Option<Shared<mpsc::Receiver<Delivery>>>>,
    /// Calls of `give_up_late` since it last looked into the mailbox.
    calls: Shared<AtomicUsize>,
}

/// The receiver's waker. Weak: the cell owns the receiver, which owns the waker.
struct GiveUp(Weak<Cell>);

impl Wake for GiveUp {
    fn wake(self: Arc<Self>) {
        // A sender holds the cell while it sends.
        if let Some(cell) = self.0.upgrade() {
            cell.give_up_late();
        }
    }
}

impl Cell {
    /// Takes over the receiver of an actor that has ended. Late messages are given up on the sender's thread, as it wakes
    /// the receiver: a task would be dropped when the runtime shuts down.
    pub(super) fn take_over(self: &Arc<Self>, messages: Shared<mpsc::Receiver<Delivery>>) {
        *self.late.messages.lock() = Some(messages);
        self.give_up_late();
    }

    fn give_up_late(self: &Arc<Self>) {
        let Late { messages, calls } = &self.late;
        // One caller at a time drains. It looks again for those that come meanwhile, on other threads or reentrant.
        if calls.fetch_add(1, Ordering::AcqRel) > 0 {
            return;
        }
        let waker = Waker::from(Arc::new(GiveUp(Arc::downgrade(self))));
        loop {
            let seen = calls.load(Ordering::Acquire);
            let mut receiver = messages.lock();
            while let Some(messages) = &mut *receiver {
                // Unconstrained: if the sender's budget is used up, `recv` would wake this waker at once, without end.
                let received = pin!(unconstrained(messages.recv())).poll(&mut Context::from_waker(&waker));
                match received {
                    Poll::Ready(Some(delivery)) => self.give_up(delivery),
                    Poll::Ready(None) => *receiver = None,
                    Poll::Pending => break,
                }
            }
            drop(receiver);
            if calls.compare_exchange(seen, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                return;
            }
        }
    }
}
