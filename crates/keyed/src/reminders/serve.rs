//! The task that sends what is due, in the order of time: it reads a page of the store at a time, and holds no more than
//! what is in flight.

use std::{
    collections::{HashMap, HashSet},
    pin::Pin,
    sync::Arc,
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
    /// When each kind has its next attempts.
    again: Arc<Mutex<HashMap<Box<str>, Again>>>,
}

pub(super) async fn serve(book: Arc<Book>, receivers: Arc<Receivers>) {
    let server = Server { book, receivers, in_flight: Arc::default(), freed: Arc::default(), again: Arc::default() };
    let mut passes = Passes::new();
    // Of the store.
    let mut reading = Again::default();
    loop {
        server.book.progress.lock().waits_until = u64::MAX;
        reading.begin();
        server.begin_passes(&mut passes);
        let is_more = match server.send_pages(&mut passes).await {
            Ok(is_more) => is_more,
            Err(_) => {
                reading.note(0);
                false
            }
        };
        let upto = server.book.now().saturating_add(1);
        // Before the look, so that one that is set meanwhile says that it may have been missed. If the clock was set back, what was
        // set since comes before.
        let sent = std::mem::replace(&mut server.book.progress.lock().sent, upto).min(upto);
        let next = match server.send_due(before(sent), &before(upto), &mut passes).await {
            Ok(next) => next,
            Err(error) => {
                tracing::warn!("reminders are not read: {error}; trying again");
                let mut progress = server.book.progress.lock();
                progress.sent = progress.sent.min(sent);
                reading.note(0);
                None
            }
        };
        if is_more {
            tokio::task::yield_now().await;
            continue;
        }
        let next = next.and_then(|key| parts(&key).map(|(due, ..)| due));
        server.book.progress.lock().waits_until = next.unwrap_or(u64::MAX);
        let sleep = next.map_or(LONGEST_SLEEP, |due| Duration::from_millis(due.saturating_sub(server.book.now())));
        let wakes = Instant::now() + sleep.min(LONGEST_SLEEP);
        let attempts = [server.next_attempts(&passes), reading.at()];
        tokio::select! {
            () = sleep_until(attempts.into_iter().flatten().fold(wakes, Instant::min)) => {}
            () = server.book.sooner.notified() => {}
            // Perhaps it was waited for.
            () = server.receivers.changed.notified() => server.again.lock().values_mut().for_each(Again::hasten),
            () = server.receivers.failed.notified() => {}
            () = server.freed.notified(), if !passes.is_empty() => {}
        }
    }
}

/// The kinds that are behind, a page at a time: so a kind whose handlers hang, or always fail, holds up no other, and its rows are read
/// once for each attempt.
type Passes = HashMap<Box<str>, Pass>;

/// The rows of a kind between two keys are sent as there is room.
struct Pass {
    after: String,
    upto: String,
    /// Whether there was no room for one: then those that come after these wait for their turn.
    is_full: bool,
    /// After which key there are such.
    later: Option<String>,
}

impl Pass {
    fn new(after: String, upto: String, is_full: bool) -> Self {
        Self { after, upto, is_full, later: None }
    }
}

/// When what was not handled is sent again.
#[derive(Default)]
struct Again {
    next: Option<Attempts>,
    /// When the last attempts began, and after which pause.
    last: Option<(Instant, Duration)>,
}

struct Attempts {
    /// When the first of them was due.
    first: u64,
    at: Instant,
    pause: Duration,
}

impl Again {
    /// One was not handled that was due then. Whether it is the first since the last attempts.
    fn note(&mut self, due: u64) -> bool {
        if let Some(next) = &mut self.next {
            next.first = next.first.min(due);
            return false;
        }
        let now = Instant::now();
        let pause = match self.last {
            Some((last, pause)) if now - last <= 2 * LONGEST_PAUSE => (2 * pause).min(LONGEST_PAUSE),
            _ => PAUSE,
        };
        self.next = Some(Attempts { first: due, at: now + pause, pause });
        true
    }

    /// When the first was due of those that are to be sent now, if any are.
    fn begin(&mut self) -> Option<u64> {
        let now = Instant::now();
        let Attempts { first, pause, .. } = self.next.take_if(|next| next.at <= now)?;
        self.last = Some((now, pause));
        Some(first)
    }

    fn at(&self) -> Option<Instant> {
        Some(self.next.as_ref()?.at)
    }

    fn hasten(&mut self) {
        if let Some(next) = &mut self.next {
            next.at = Instant::now();
        }
    }
}

impl Server {
    /// Sends those that are due, but for those of kinds that are behind. Gives the first that is not due.
    async fn send_due(&self, mut after: String, upto: &str, passes: &mut Passes) -> Result<Option<String>, StoreError> {
        loop {
            let keys = self.book.store.keys(&self.book.by_time, Some(&after), PAGE).await?;
            let is_last = keys.len() < PAGE;
            for key in keys {
                if *key >= *upto {
                    return Ok(Some(key));
                }
                match passes.get_mut(kind_in(&key)) {
                    Some(pass) if key > pass.after && key < pass.upto => {}
                    Some(pass) if key > pass.after => {
                        if pass.is_full || !self.send(&key).await {
                            pass.is_full = true;
                            pass.later.get_or_insert(after);
                        }
                    }
                    _ if self.send(&key).await => {}
                    _ => _ = passes.insert(kind_in(&key).into(), Pass::new(after, upto.to_owned(), true)),
                }
                after = key;
            }
            if is_last {
                return Ok(None);
            }
        }
    }

    /// Begins attempts that are due. Those of a kind that is behind come when it is not.
    fn begin_passes(&self, passes: &mut Passes) {
        let upto = before(self.book.progress.lock().sent);
        for (kind, again) in self.again.lock().iter_mut() {
            if !passes.contains_key(kind)
                && let Some(first) = again.begin()
            {
                passes.insert(kind.clone(), Pass::new(before(first), upto.clone(), false));
            }
        }
    }

    /// What comes after a pass of a kind.
    fn next_pass(&self, kind: &str, pass: &mut Pass) -> Option<Pass> {
        let again = self.again.lock().get_mut(kind).and_then(Again::begin).map(before);
        let is_full = pass.later.is_some();
        let after = again.into_iter().chain(pass.later.take()).min()?;
        Some(Pass::new(after, before(self.book.progress.lock().sent), is_full))
    }

    /// When attempts begin next that wait for nothing else.
    fn next_attempts(&self, passes: &Passes) -> Option<Instant> {
        let again = self.again.lock();
        again.iter().filter(|(kind, _)| !passes.contains_key(*kind)).filter_map(|(_, again)| again.at()).min()
    }

    /// Sends a page of each kind that is behind and has room. Whether any has room for more.
    async fn send_pages(&self, passes: &mut Passes) -> Result<bool, StoreError> {
        let mut is_more = false;
        let kinds: Vec<_> = passes.keys().filter(|kind| self.has_room(kind)).cloned().collect();
        for kind in kinds {
            let Some(pass) = passes.get_mut(&kind) else { continue };
            if self.send_page(&kind, pass).await? {
                match self.next_pass(&kind, pass) {
                    Some(next) => *pass = next,
                    None => _ = passes.remove(&kind),
                }
            }
            is_more |= passes.contains_key(&kind) && self.has_room(&kind);
        }
        Ok(is_more)
    }

    /// Sends those of a kind in a page, as far as there is room. Whether it is the last page.
    async fn send_page(&self, kind: &str, pass: &mut Pass) -> Result<bool, StoreError> {
        let keys = self.book.store.keys(&self.book.by_time, Some(&pass.after), PAGE).await?;
        let is_last = keys.len() < PAGE;
        for key in keys {
            if key >= pass.upto {
                return Ok(true);
            }
            if kind_in(&key) == kind && !self.send(&key).await {
                return Ok(false);
            }
            pass.after = key;
        }
        Ok(is_last)
    }

    fn has_room(&self, kind: &str) -> bool {
        self.receivers.by_kind.read().get(kind).is_none_or(|receiver| receiver.permits.available_permits() > 0)
    }

    /// Hands one over, and leaves it to a task to wait for what becomes of it. `false` if its kind has no room for it.
    async fn send(&self, key: &str) -> bool {
        let Some((due, of, name)) = parts(key) else { return true };
        let Some(receiver) = kind_of(of).and_then(|kind| self.receivers.by_kind.read().get(kind).cloned()) else {
            self.has_failed(key);
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
            again: Arc::clone(&self.again),
        }
    }

    /// One was not handled.
    fn has_failed(&self, key: &str) {
        let due = parts(key).map_or(0, |(due, ..)| due);
        if self.again.lock().entry(kind_in(key).into()).or_default().note(due) {
            self.receivers.failed.notify_one();
        }
    }
}

/// The kind of the actor that a row by time is of.
fn kind_in(key: &str) -> &str {
    parts(key).and_then(|(_, of, _)| kind_of(of)).unwrap_or_default()
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
            self.server.has_failed(&self.key);
        }
    }
}
