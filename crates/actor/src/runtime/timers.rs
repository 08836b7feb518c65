//! Messages that are sent later: those of all actors of a system in one table, in the order they are due, and one task
//! while there are any.

use std::{
    collections::{BTreeMap, HashMap},
    mem,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use airssys_wasm_registry::{ComponentId, MessageEnvelope, Refusal};
use parking_lot::Mutex;
use tokio::{
    runtime::Handle,
    sync::Notify,
    task::yield_now,
    time::{Instant, sleep_until},
};

use crate::{DeadReason, failure::policy::later, runtime::cell::Cell};

/// What an actor may have in the table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TimerLimits {
    pub(crate) timers: u32,
    pub(crate) bytes: u64,
}

impl TimerLimits {
    pub(crate) const NONE: Self = Self { timers: u32::MAX, bytes: u64::MAX };
}

/// What became of the timers of an actor.
const OPEN: u8 = 0;
const CANCELLED: u8 = 1;
const GIVEN_UP: u8 = 2;

/// The timers of a system.
#[derive(Default)]
pub(crate) struct Timers(Arc<Table>);

#[derive(Default)]
struct Table {
    due: Mutex<Due>,
    /// There is an earlier one than before, or none any more.
    changed: Notify,
}

#[derive(Default)]
struct Due {
    timers: BTreeMap<(Instant, u64), Timer>,
    last: u64,
    /// Whether the task runs.
    is_served: bool,
}

struct Timer {
    by: Arc<Cell>,
    to: ComponentId,
    message: MessageEnvelope,
}

/// The timers of one actor, by number. Locked before the table of the system, never the other way round.
#[derive(Default)]
pub(crate) struct OwnTimers(Mutex<Option<Box<Own>>>);

#[derive(Default)]
struct Own {
    due: HashMap<u64, Instant>,
    bytes: u64,
}

impl OwnTimers {
    /// Takes one out that is about to be sent. `false` if it has been cancelled.
    fn take(&self, number: u64, bytes: u64) -> bool {
        let mut own = self.0.lock();
        let Some(own) = &mut *own else { return false };
        let taken = own.due.remove(&number).is_some();
        if taken {
            own.bytes -= bytes;
        }
        taken
    }
}

impl Cell {
    /// Sends a message from this actor later, unless the actor ends before. Gives its number.
    ///
    /// Panics outside a tokio runtime.
    pub(crate) fn send_later(
        self: &Arc<Self>,
        to: ComponentId,
        message: MessageEnvelope,
        after: Duration,
        most: TimerLimits,
    ) -> Result<u64, (Refusal, MessageEnvelope)> {
        let mut own = self.timers.0.lock();
        if self.later.load(Ordering::Relaxed) != OPEN {
            return Err((Refusal::Stopped, message));
        }
        let own = own.get_or_insert_default();
        let bytes = own.bytes.saturating_add(message.size() as u64);
        if own.due.len() as u64 >= u64::from(most.timers) || bytes > most.bytes {
            return Err((Refusal::Full, message));
        }
        let due = later(Instant::now(), after);
        let number = self.services.timers.add(due, Timer { by: Arc::clone(self), to, message });
        own.due.insert(number, due);
        own.bytes = bytes;
        Ok(number)
    }

    /// Whether there was such a message of this actor, which is now not sent.
    pub(crate) fn cancel_later(&self, number: u64) -> bool {
        let mut own = self.timers.0.lock();
        let Some(own) = &mut *own else { return false };
        let Some(due) = own.due.get(&number) else { return false };
        let Some(timer) = self.services.timers.remove((*due, number)) else { return false };
        own.due.remove(&number);
        own.bytes -= timer.message.size() as u64;
        true
    }

    /// Whether there are any of this actor.
    pub(crate) fn has_later(&self) -> bool {
        self.timers.0.lock().as_ref().is_some_and(|own| !own.due.is_empty())
    }

    /// Cancels all of this actor's, and refuses more.
    pub(crate) fn cancel_all_later(&self) {
        self.end_later(CANCELLED, drop);
    }

    /// The same for an actor that leaves the memory: what it would have sent are dead letters.
    pub(crate) fn give_up_all_later(&self) {
        self.end_later(GIVEN_UP, |timer| timer.give_up());
    }

    fn end_later(&self, how: u8, end: impl FnMut(Timer)) {
        let own = {
            let mut own = self.timers.0.lock();
            self.later.fetch_max(how, Ordering::Relaxed);
            own.take()
        };
        let Some(own) = own else { return };
        let mut timers: Vec<_> = own.due.into_iter().map(|(number, due)| (due, number)).collect();
        timers.sort_unstable();
        timers.into_iter().filter_map(|timer| self.services.timers.remove(timer)).for_each(end);
    }
}

impl Timers {
    fn add(&self, due: Instant, timer: Timer) -> u64 {
        let runtime = Handle::current();
        let mut table = self.0.due.lock();
        table.last += 1;
        let number = table.last;
        let is_first = table.timers.first_key_value().is_none_or(|((first, _), _)| due < *first);
        table.timers.insert((due, number), timer);
        let is_served = mem::replace(&mut table.is_served, true);
        drop(table);
        // Not under the lock: a runtime that ends drops the task at once, and with it `Served`.
        if !is_served {
            runtime.spawn(serve(Served { table: Arc::clone(&self.0), has_ended: false }));
        } else if is_first {
            self.0.changed.notify_one();
        }
        number
    }

    fn remove(&self, key: (Instant, u64)) -> Option<Timer> {
        let mut table = self.0.due.lock();
        let timer = table.timers.remove(&key)?;
        if table.timers.is_empty() {
            // The task ends.
            self.0.changed.notify_one();
        }
        Some(timer)
    }
}

/// Says that the table is no longer served when the task goes with its runtime.
struct Served {
    table: Arc<Table>,
    has_ended: bool,
}

impl Drop for Served {
    fn drop(&mut self) {
        if !self.has_ended {
            self.table.due.lock().is_served = false;
        }
    }
}

/// Messages that are sent before others on the worker have a turn.
const TURN: usize = 64;

async fn serve(mut served: Served) {
    loop {
        match send_due(&served.table) {
            Next::Now => yield_now().await,
            Next::At(due) => tokio::select! {
                () = sleep_until(due) => {}
                () = served.table.changed.notified() => {}
            },
            Next::Never => {
                let mut due = served.table.due.lock();
                // Another may have come since the look.
                if due.timers.is_empty() {
                    due.is_served = false;
                    served.has_ended = true;
                    return;
                }
            }
        }
    }
}

enum Next {
    Now,
    At(Instant),
    Never,
}

/// Sends what is due, in order.
fn send_due(table: &Table) -> Next {
    for _ in 0..TURN {
        let (number, timer) = {
            let mut table = table.due.lock();
            match table.timers.first_entry() {
                None => return Next::Never,
                Some(first) if first.key().0 > Instant::now() => return Next::At(first.key().0),
                Some(first) => {
                    let ((_, number), timer) = first.remove_entry();
                    (number, timer)
                }
            }
        };
        timer.send(number);
    }
    Next::Now
}

impl Timer {
    fn give_up(self) {
        let Self { by, to, message } = self;
        let because = "its sender had to leave the memory before".to_owned();
        by.dead_letter(message, DeadReason::NotSent { to, because });
    }

    fn send(self, number: u64) {
        let Self { by, to, message } = self;
        if !by.timers.take(number, message.size() as u64) {
            // It was out of the table when the others were given up.
            if by.later.load(Ordering::Relaxed) == GIVEN_UP {
                Self { by, to, message }.give_up();
            }
            return;
        }
        if by.is_fenced() {
            let because = "its sender's name may be another host's by now".to_owned();
            return by.dead_letter(message, DeadReason::NotSent { to, because });
        }
        if let Err(error) = by.services.send(&to, message) {
            let because = error.to_string();
            by.dead_letter(error.into_message(), DeadReason::NotSent { to, because });
        }
    }
}
