//! The task that sends what is due, in the order of time: it reads a page of the store at a time, and holds no more than
//! what is in flight.

use std::{
    collections::{HashMap, HashSet},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use airssys_wasm_actor::AskError;
use airssys_wasm_registry::{MessageEnvelope, Topic};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, OwnedSemaphorePermit},
    time::{Instant, sleep_until},
};

use super::{
    Receiver, Receivers,
    book::Book,
    rows::{before, kind_of, parts},
};
use crate::store::StoreError;

/// Keys that are read at a time.
const PAGE: usize = 256;

/// The longest that it sleeps: the clock that says what is due may jump.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);

/// After what was not handled, the next attempt comes so much later, and twice as much each time, up to the longest.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(64);

/// How long an actor may take for a reminder before it counts as not handled.
const LONGEST: Duration = Duration::from_secs(60);

struct Server {
    book: Arc<Book>,
    receivers: Arc<Receivers>,
    in_flight: Arc<Mutex<HashSet<String>>>,
    /// A kind has room for another.
    freed: Arc<Notify>,
    /// Whether any was not handled since the last attempts began.
    failed: Arc<AtomicBool>,
}

pub(super) async fn serve(book: Arc<Book>, receivers: Arc<Receivers>) {
    let server = Server { book, receivers, in_flight: Arc::default(), freed: Arc::default(), failed: Arc::default() };
    let mut waiting = Waiting::new();
    let mut again = Again { pause: PAUSE, at: None, last: None };
    loop {
        server.book.progress.lock().waits_until = u64::MAX;
        if again.is_due() {
            server.failed.store(false, Ordering::Relaxed);
            let upto = before(server.book.progress.lock().sent);
            if server.send_all(String::new(), |key| key < upto.as_str(), &mut waiting).await.is_err() {
                server.failed.store(true, Ordering::Relaxed);
            }
        }
        let sent = before(server.book.progress.lock().sent);
        if server.send_waiting(&sent, &mut waiting).await.is_err() {
            server.failed.store(true, Ordering::Relaxed);
        }
        let upto = server.book.now().saturating_add(1);
        // Before the look, so that one that is set meanwhile says that it may have been missed. If the clock was set back, what was
        // set since comes before.
        let sent = std::mem::replace(&mut server.book.progress.lock().sent, upto).min(upto);
        let end = before(upto);
        let next = match server.send_all(before(sent), |key| key < end.as_str(), &mut waiting).await {
            Ok(next) => next,
            Err(error) => {
                tracing::warn!("reminders are not read: {error}; trying again");
                let mut progress = server.book.progress.lock();
                progress.sent = progress.sent.min(sent);
                server.failed.store(true, Ordering::Relaxed);
                None
            }
        };
        let next = next.and_then(|key| parts(&key).map(|(due, ..)| due));
        server.book.progress.lock().waits_until = next.unwrap_or(u64::MAX);
        let sleep = next.map_or(LONGEST_SLEEP, |due| Duration::from_millis(due.saturating_sub(server.book.now())));
        if server.failed.load(Ordering::Relaxed) {
            again.set();
        }
        let wakes = Instant::now() + sleep.min(LONGEST_SLEEP);
        tokio::select! {
            () = sleep_until(again.at.map_or(wakes, |again| again.min(wakes))) => {}
            () = server.book.sooner.notified() => {}
            // Perhaps it was waited for.
            () = server.receivers.changed.notified() => again.hasten(),
            () = server.fails(), if again.at.is_none() => {}
            () = server.freed.notified(), if !waiting.is_empty() => {}
        }
    }
}

/// The kinds that have as many in flight as they may, and the key after which each goes on: so a kind whose handlers hang
/// holds up no other, and its rows are read once and not at each attempt.
type Waiting = HashMap<Box<str>, String>;

/// When what was not handled is sent again.
struct Again {
    pause: Duration,
    at: Option<Instant>,
    last: Option<Instant>,
}

impl Again {
    fn is_due(&mut self) -> bool {
        let now = Instant::now();
        let due = self.at.is_some_and(|at| at <= now);
        if due {
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
            (self.at, self.last) = (None, Some(now));
        }
        due
    }

    fn hasten(&mut self) {
        if let Some(at) = &mut self.at {
            *at = Instant::now();
        }
    }

    /// One was not handled.
    fn set(&mut self) {
        let now = Instant::now();
        if self.last.is_some_and(|last| now - last > 2 * LONGEST_PAUSE) {
            self.pause = PAUSE;
        }
        self.at.get_or_insert(now + self.pause);
    }
}

impl Server {
    /// Sends those after a key, as long as they are to be, but for those of kinds that wait. Gives the first that is not.
    async fn send_all(
        &self,
        mut after: String,
        is_due: impl Fn(&str) -> bool,
        waiting: &mut Waiting,
    ) -> Result<Option<String>, StoreError> {
        loop {
            let keys = self.book.store.keys(&self.book.by_time, Some(&after), PAGE).await?;
            let is_last = keys.len() < PAGE;
            for key in keys {
                if !is_due(&key) {
                    return Ok(Some(key));
                }
                let kind = parts(&key).and_then(|(_, of, _)| kind_of(of)).unwrap_or_default();
                let is_later = waiting.get(kind).is_some_and(|goes_on| key > *goes_on);
                if !is_later && !self.send(&key).await {
                    waiting.insert(kind.into(), after);
                }
                after = key;
            }
            if is_last {
                return Ok(None);
            }
        }
    }

    /// Sends those of kinds that wait, up to a key, as far as there is room again.
    async fn send_waiting(&self, upto: &str, waiting: &mut Waiting) -> Result<(), StoreError> {
        let kinds: Vec<_> = waiting.keys().filter(|kind| self.has_room(kind)).cloned().collect();
        for kind in kinds {
            let Some(after) = waiting.get_mut(&kind) else { continue };
            let is_done = 'rows: loop {
                let keys = self.book.store.keys(&self.book.by_time, Some(after), PAGE).await?;
                let is_last = keys.len() < PAGE;
                for key in keys {
                    if *key >= *upto {
                        break 'rows true;
                    }
                    let is_of_kind = parts(&key).and_then(|(_, of, _)| kind_of(of)) == Some(&*kind);
                    if is_of_kind && !self.send(&key).await {
                        break 'rows false;
                    }
                    *after = key;
                }
                if is_last {
                    break true;
                }
            };
            if is_done {
                waiting.remove(&kind);
            }
        }
        Ok(())
    }

    fn has_room(&self, kind: &str) -> bool {
        self.receivers.by_kind.read().get(kind).is_none_or(|receiver| receiver.permits.available_permits() > 0)
    }

    /// Hands one over, and leaves it to a task to wait for what becomes of it. `false` if its kind has no room for it.
    async fn send(&self, key: &str) -> bool {
        let Some((due, of, name)) = parts(key) else { return true };
        let Some(receiver) = kind_of(of).and_then(|kind| self.receivers.by_kind.read().get(kind).cloned()) else {
            self.has_failed();
            return true;
        };
        if self.in_flight.lock().contains(key) {
            return true;
        }
        let Ok(permit) = Arc::clone(&receiver.permits).try_acquire_owned() else { return false };
        self.in_flight.lock().insert(key.to_owned());
        let flight = Flight { server: self.share(), key: key.to_owned(), is_handled: false, permit: Some(permit) };
        let payload = match self.book.due(due, of, name).await {
            Ok(Some(payload)) => payload,
            Ok(None) => {
                flight.ends();
                return true;
            }
            Err(_) => return true,
        };
        let Some(mut asking) = ask(&receiver, of, name, payload) else { return true };
        // Polled here first, so that they are in mailboxes in their order.
        let first = asking.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        let (of, name) = (of.to_owned(), name.to_owned());
        tokio::spawn(async move {
            let answer = match first {
                Poll::Ready(answer) => answer,
                Poll::Pending => asking.await,
            };
            if !is_handled(&answer) {
                tracing::debug!(%of, %name, "a reminder is not handled, and comes again: {answer:?}");
            } else if flight.server.book.settle(due, &of, &name).await.is_ok() {
                flight.ends();
            }
        });
        true
    }

    fn share(&self) -> Self {
        Self {
            book: Arc::clone(&self.book),
            receivers: Arc::clone(&self.receivers),
            in_flight: Arc::clone(&self.in_flight),
            freed: Arc::clone(&self.freed),
            failed: Arc::clone(&self.failed),
        }
    }

    /// One was not handled.
    fn has_failed(&self) {
        self.failed.store(true, Ordering::Relaxed);
        self.receivers.failed.notify_one();
    }

    /// Waits until one was not handled.
    async fn fails(&self) {
        while !self.failed.load(Ordering::Relaxed) {
            self.receivers.failed.notified().await;
        }
    }
}

fn ask(receiver: &Receiver, of: &str, name: &str, payload: Bytes) -> Option<Pin<Box<BoxFuture<'static, Answer>>>> {
    let (_, key) = of.split_once('/')?;
    let topic = Topic::new(&format!("reminder.{name}")).ok()?;
    let until = Instant::now() + LONGEST;
    let message = MessageEnvelope::new(payload).with_topic(topic).with_deadline(until);
    Some(Box::pin((receiver.ask)(key, message)))
}

type Answer = Result<Bytes, AskError>;

/// Whether a handler has come to its end over it.
fn is_handled(answer: &Answer) -> bool {
    match answer {
        Ok(_) | Err(AskError::NoReply | AskError::Failed { .. } | AskError::Rejected { .. }) => true,
        Err(_) => false,
    }
}

/// One that is being handed over or handled.
struct Flight {
    server: Server,
    key: String,
    is_handled: bool,
    permit: Option<OwnedSemaphorePermit>,
}

impl Flight {
    /// Not to come again.
    fn ends(mut self) {
        self.is_handled = true;
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.server.in_flight.lock().remove(&self.key);
        // Before it is told.
        drop(self.permit.take());
        self.server.freed.notify_one();
        if !self.is_handled {
            self.server.has_failed();
        }
    }
}
