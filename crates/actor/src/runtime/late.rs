//! Messages that are sent into a mailbox whose actor has ended: a sender may have reserved a place before, and send when
//! it is polled again.

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

/// The receiving end of a mailbox whose actor has ended, if a sender may still use it.
#[derive(Default)]
pub(crate) struct Late {
    messages: Mutex<Option<Shared<mpsc::Receiver<Delivery>>>>,
    /// Calls of `give_up_late` since it last looked into the mailbox.
    calls: Shared<AtomicUsize>,
}

/// Gives up what wakes it. Weak, for the cell has the receiver that has the waker.
struct GiveUp(Weak<Cell>);

impl Wake for GiveUp {
    fn wake(self: Arc<Self>) {
        // A sender has the cell as long as it sends.
        if let Some(cell) = self.0.upgrade() {
            cell.give_up_late();
        }
    }
}

impl Cell {
    /// Takes over the mailbox of an actor that has ended. Whoever sends into it gives its message up, on its own thread: a
    /// task would be dropped where the runtime shuts down.
    pub(super) fn take_over(self: &Arc<Self>, messages: Shared<mpsc::Receiver<Delivery>>) {
        *self.late.messages.lock() = Some(messages);
        self.give_up_late();
    }

    fn give_up_late(self: &Arc<Self>) {
        let Late { messages, calls } = &self.late;
        // The first caller does it for those who come meanwhile: from other threads, or from within.
        if calls.fetch_add(1, Ordering::AcqRel) > 0 {
            return;
        }
        let waker = Waker::from(Arc::new(GiveUp(Arc::downgrade(self))));
        loop {
            let seen = calls.load(Ordering::Acquire);
            let mut receiver = messages.lock();
            while let Some(messages) = &mut *receiver {
                // Unconstrained: a wake-up for want of the sender's budget would come back here at once.
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
