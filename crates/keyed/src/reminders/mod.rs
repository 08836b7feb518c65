//! Reminders: messages of an actor to itself, stored until they are handled.

mod book;
mod mine;
mod rows;
mod serve;

use std::{
    collections::HashMap,
    fmt,
    num::NonZeroUsize,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::{Duration, SystemTime},
};

use airssys_wasm_actor::{AskError, ReminderError, Reminders};
use airssys_wasm_limits::ByteSize;
use airssys_wasm_registry::{ComponentId, MessageEnvelope};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use parking_lot::RwLock;
use tokio::{
    runtime::Handle,
    sync::{Notify, Semaphore},
    task::AbortHandle,
};

use self::{
    book::Book,
    mine::Mine,
    rows::{BY_TIME, by_actor, by_time_of},
};
use crate::{
    Keyed,
    owner::Owned,
    store::{Durability, StateStore, StoreError},
};

/// What can be chosen about reminders.
#[derive(Clone)]
#[non_exhaustive]
pub struct ReminderConfig {
    /// Reminders that an actor may have. Default: 16.
    pub most: u32,
    /// Bytes that the payload of one may have. Default: 64 KiB.
    pub payload: ByteSize,
    /// What one survives once it is set. Default: [`Durability::Process`].
    pub durability: Durability,
    /// Actors of a kind that may have reminders. Setting the first of another one is [`ReminderError::Unavailable`]. Default:
    /// 1,000,000.
    pub most_actors: u64,
    /// How many of a kind are handed over and not yet handled at a time. Others of it wait; those of other kinds do not.
    /// Default: 64.
    pub in_flight: NonZeroUsize,
    /// What says when they are due. Default: the system's clock.
    pub clock: Option<Arc<dyn Fn() -> SystemTime + Send + Sync>>,
}

impl Default for ReminderConfig {
    fn default() -> Self {
        Self {
            most: 16,
            payload: ByteSize::kib(64),
            durability: Durability::Process,
            most_actors: 1_000_000,
            in_flight: NonZeroUsize::MIN.saturating_add(63),
            clock: None,
        }
    }
}

impl fmt::Debug for ReminderConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { most, payload, durability, most_actors, in_flight, clock: _ } = self;
        f.debug_struct("ReminderConfig")
            .field("most", most)
            .field("payload", payload)
            .field("durability", durability)
            .field("most_actors", most_actors)
            .field("in_flight", in_flight)
            .finish_non_exhaustive()
    }
}

/// Reminders in a store, for any number of kinds.
///
/// Each is a row by the time when it is due. One task sends what is due, in that order, whether its actor is in memory or
/// not, and takes it away when a handler has come to its end over it: at least once. What is not handled, because the
/// actor is not admitted, crashes or cannot save its state, is sent again after a second, after two, and so on up to 64 s,
/// until it is handled or cancelled. Each kind has pauses of its own. A million of them cost no memory: the task reads pages of 256 keys.
pub struct StoredReminders {
    book: Arc<Book>,
    receivers: Arc<Receivers>,
    runtime: Handle,
    tasks: Vec<AbortHandle>,
    /// Parts of the keys have become this host's.
    came: Arc<Notify>,
}

type Ask = Arc<dyn Fn(&str, MessageEnvelope) -> BoxFuture<'static, Result<Bytes, AskError>> + Send + Sync>;

/// Who takes those of a kind.
#[derive(Clone)]
struct Receiver {
    ask: Ask,
    /// For each that is in flight.
    permits: Arc<Semaphore>,
}

/// Who takes reminders.
#[derive(Default)]
struct Receivers {
    by_kind: RwLock<HashMap<Box<str>, Receiver>>,
    changed: Notify,
    /// One was not handled.
    failed: Notify,
}

impl StoredReminders {
    /// Reminders in a store. They are sent until this is dropped.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with timers.
    pub fn start(store: Arc<dyn StateStore>, config: ReminderConfig) -> Self {
        Self::serving(Book::new(store, BY_TIME.to_owned(), Owned::default(), config))
    }

    /// Keeps the reminders of a kind that [several hosts have](crate::KeyedSpec::with_owner), in a store that they share. Each host sends
    /// those of the keys that are its own, and has their names and times in memory; `most_actors` is of each host.
    ///
    /// Whoever is the kind's [`Owner`](crate::Owner) calls [`parts_came`](Self::parts_came), and waits for
    /// [`are_set`](Self::are_set).
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with timers.
    pub fn start_shared<U: Send + 'static>(
        kind: &Keyed<U>,
        store: Arc<dyn StateStore>,
        config: ReminderConfig,
    ) -> Self {
        let (name, owned) = (kind.kind().as_str(), kind.owned().clone());
        let (by_time, by_actor) = (by_time_of(name), by_actor(&format!("{name}/")));
        let mine = Arc::new(Mine::new(store, by_time.clone(), by_actor, owned.clone()));
        let mut reminders = Self::serving(Book::new(Arc::clone(&mine) as _, by_time, owned, config));
        let book = Arc::clone(&reminders.book);
        let reads = mine.reads(Arc::clone(&reminders.came), move |change| {
            change(&mut book.progress.lock());
            book.sooner.notify_one();
        });
        reminders.tasks.push(tokio::spawn(reads).abort_handle());
        reminders.add_kind(kind);
        reminders
    }

    fn serving(book: Book) -> Self {
        let (book, receivers) = (Arc::new(book), Arc::<Receivers>::default());
        let task = tokio::spawn(serve::serve(Arc::clone(&book), Arc::clone(&receivers))).abort_handle();
        Self { book, receivers, runtime: Handle::current(), tasks: vec![task], came: Arc::default() }
    }

    /// Parts of the keys of a [shared](Self::start_shared) kind have become this host's: reads the reminders that there are.
    pub fn parts_came(&self) {
        self.came.notify_one();
    }

    /// Waits until all reminders that are being set are set, or are not. To be waited for before a part goes to another host, when
    /// nothing of it is in memory any more.
    pub async fn are_set(&self) {
        self.book.are_set().await;
    }

    /// Keeps the reminders of a kind, and gives its actors the import `airssys:actor/reminders`.
    ///
    /// ```ignore
    /// let reminders = Arc::new(StoredReminders::start(store, ReminderConfig::default()));
    /// reminders.keep(&carts);
    /// system.add_reminders(reminders);
    /// ```
    ///
    /// Those of a kind that [several hosts have](crate::KeyedSpec::with_owner) are not kept, and its guests are told so: they need
    /// [`start_shared`](Self::start_shared).
    pub fn keep<U: Send + 'static>(&self, kind: &Keyed<U>) {
        if kind.owned().0.is_none() {
            self.add_kind(kind);
        }
    }

    fn add_kind<U: Send + 'static>(&self, kind: &Keyed<U>) {
        let name = kind.kind().clone();
        let kind = kind.clone();
        self.add(name.as_str(), move |key, message| {
            let actor = kind.actor(key);
            Box::pin(async move {
                match actor {
                    Ok(actor) => actor.ask(message).await,
                    Err(_) => Err(AskError::Stopped),
                }
            })
        });
    }

    /// Keeps the reminders of a kind that somebody else brings into memory. `ask` is given the key of an actor, and sends to
    /// it.
    pub fn add(
        &self,
        kind: &str,
        ask: impl Fn(&str, MessageEnvelope) -> BoxFuture<'static, Result<Bytes, AskError>> + Send + Sync + 'static,
    ) {
        let permits = Arc::new(Semaphore::new(self.book.config.in_flight.get()));
        self.receivers.by_kind.write().insert(kind.into(), Receiver { ask: Arc::new(ask), permits });
        self.receivers.changed.notify_one();
    }

    /// Forgets all reminders of an actor. [`Keyed::forget`] does so, of a kind in a system to which this was added.
    ///
    /// # Errors
    ///
    /// [`StoreError`]: some of them may be forgotten.
    pub async fn forget(&self, of: &ComponentId) -> Result<(), StoreError> {
        self.book.forget(of.as_str()).await
    }

    fn knows(&self, of: &ComponentId) -> bool {
        of.as_str().split_once('/').is_some_and(|(kind, _)| self.receivers.by_kind.read().contains_key(kind))
    }
}

impl Drop for StoredReminders {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

impl fmt::Debug for StoredReminders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredReminders").field("config", &self.book.config).finish_non_exhaustive()
    }
}

impl Reminders for StoredReminders {
    fn set(
        &self,
        of: &ComponentId,
        name: &str,
        after: Duration,
        payload: Bytes,
    ) -> Option<BoxFuture<'static, Result<(), ReminderError>>> {
        if !self.knows(of) {
            return None;
        }
        let (book, of, name) = (Arc::clone(&self.book), of.clone(), name.to_owned());
        Some(to_the_end(&self.runtime, async move { book.set(of.as_str(), &name, after, payload).await }))
    }

    fn cancel(&self, of: &ComponentId, name: &str) -> Option<BoxFuture<'static, Result<bool, ReminderError>>> {
        if !self.knows(of) {
            return None;
        }
        let (book, of, name) = (Arc::clone(&self.book), of.clone(), name.to_owned());
        Some(to_the_end(&self.runtime, async move { book.cancel(of.as_str(), &name).await }))
    }

    fn forget(&self, of: &ComponentId) -> Option<BoxFuture<'static, Result<(), ReminderError>>> {
        if !self.knows(of) {
            return None;
        }
        let (book, of) = (Arc::clone(&self.book), of.clone());
        Some(to_the_end(&self.runtime, async move {
            book.forget(of.as_str()).await.map_err(|error| ReminderError::Unavailable(error.into()))
        }))
    }
}

/// Does it whether it is polled or not: a guest need not wait for what it began, and others wait for their turn until that is
/// done.
fn to_the_end<T: Send + 'static>(
    runtime: &Handle,
    doing: impl Future<Output = Result<T, ReminderError>> + Send + 'static,
) -> BoxFuture<'static, Result<T, ReminderError>> {
    let mut doing = Box::pin(doing);
    // Polled here first, so that they have their turns in the order in which they were begun.
    if let Poll::Ready(done) = doing.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        return Box::pin(std::future::ready(done));
    }
    let doing = runtime.spawn(doing);
    Box::pin(async move {
        match doing.await {
            Ok(done) => done,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(error) => Err(ReminderError::Unavailable(error.into())),
        }
    })
}
