//! The task that sends what is due, in the order of time: it reads a page of the store at a time, and holds no more than
//! what is in flight.

use std::{
    collections::HashSet,
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
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep_until},
};

use super::{
    Receivers,
    book::Book,
    rows::{BY_TIME, before, parts},
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
    permits: Arc<Semaphore>,
    /// Whether any was not handled since the last attempts began.
    failed: Arc<AtomicBool>,
}

pub(super) async fn serve(book: Arc<Book>, receivers: Arc<Receivers>) {
    let permits = Arc::new(Semaphore::new(book.config.in_flight.get()));
    let server = Server { book, receivers, in_flight: Arc::default(), permits, failed: Arc::default() };
    // All before it were sent once.
    let mut sent = String::new();
    let mut again = Again { pause: PAUSE, at: None, last: None };
    loop {
        *server.book.waits_until.lock() = u64::MAX;
        if again.is_due() {
            server.failed.store(false, Ordering::Relaxed);
            let upto = sent.clone();
            if server.send_all(String::new(), |key| key < upto.as_str()).await.is_err() {
                server.failed.store(true, Ordering::Relaxed);
            }
        }
        let now = server.book.now();
        // The clock was set back: what was set since comes before.
        if sent > before(now.saturating_add(1)) {
            sent = before(now.saturating_add(1));
        }
        let upto = before(now.saturating_add(1));
        let next = match server.send_all(sent.clone(), |key| key < upto.as_str()).await {
            Ok(next) => {
                sent = upto;
                next
            }
            Err(error) => {
                tracing::warn!("reminders are not read: {error}; trying again");
                server.failed.store(true, Ordering::Relaxed);
                None
            }
        };
        let next = next.and_then(|key| parts(&key).map(|(due, ..)| due));
        *server.book.waits_until.lock() = next.unwrap_or(u64::MAX);
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
        }
    }
}

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
    /// Sends those after a key, as long as they are to be. Gives the first that is not.
    async fn send_all(&self, mut after: String, is_due: impl Fn(&str) -> bool) -> Result<Option<String>, StoreError> {
        loop {
            let keys = self.book.store.keys(BY_TIME, Some(&after), PAGE).await?;
            let is_last = keys.len() < PAGE;
            for key in keys {
                if !is_due(&key) {
                    return Ok(Some(key));
                }
                self.send(&key).await;
                after = key;
            }
            if is_last {
                return Ok(None);
            }
        }
    }

    /// Hands one over, and leaves it to a task to wait for what becomes of it.
    async fn send(&self, key: &str) {
        let Some((due, of, name)) = parts(key) else { return };
        let Ok(permit) = Arc::clone(&self.permits).acquire_owned().await else { return };
        if !self.in_flight.lock().insert(key.to_owned()) {
            return;
        }
        let flight = Flight { server: self.share(), key: key.to_owned(), is_handled: false, _permit: permit };
        let payload = match self.book.due(due, of, name).await {
            Ok(Some(payload)) => payload,
            Ok(None) => return flight.ends(),
            Err(_) => return,
        };
        let Some(mut asking) = self.ask(of, name, payload) else { return };
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
    }

    fn ask(&self, of: &str, name: &str, payload: Bytes) -> Option<Pin<Box<BoxFuture<'static, Answer>>>> {
        let (kind, key) = of.split_once('/')?;
        let receiver = self.receivers.by_kind.read().get(kind).cloned()?;
        let topic = Topic::new(&format!("reminder.{name}")).ok()?;
        let until = Instant::now() + LONGEST;
        let message = MessageEnvelope::new(payload).with_topic(topic).with_deadline(until);
        Some(Box::pin(receiver(key, message)))
    }

    fn share(&self) -> Self {
        Self {
            book: Arc::clone(&self.book),
            receivers: Arc::clone(&self.receivers),
            in_flight: Arc::clone(&self.in_flight),
            permits: Arc::clone(&self.permits),
            failed: Arc::clone(&self.failed),
        }
    }

    /// Waits until one was not handled.
    async fn fails(&self) {
        while !self.failed.load(Ordering::Relaxed) {
            self.receivers.failed.notified().await;
        }
    }
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
    _permit: OwnedSemaphorePermit,
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
        if !self.is_handled {
            self.server.failed.store(true, Ordering::Relaxed);
            self.server.receivers.failed.notify_one();
        }
    }
}
