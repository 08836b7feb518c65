//! What an actor's task shares with everybody else: its mailbox, its orders, and what can be seen of it from outside.

use std::{
    any::Any,
    collections::HashMap,
    fmt,
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
};

use airssys_wasm_limits::CancellationToken;
use airssys_wasm_registry::{
    ActorAddress, ComponentId, Load, MessageEnvelope, Refusal, Sink, Subscription, TopicPattern, Undelivered,
};
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{
    OwnedSemaphorePermit, Semaphore, TryAcquireError,
    mpsc::{self, error::TrySendError},
    oneshot,
};

use crate::{
    CrashReport, HealthError, UpgradeError, UpgradeOptions,
    runtime::metrics::Metrics,
    runtime::shares::{Free, Held, Kib, Place, Shares},
    system::SystemCore,
};

/// A message in a mailbox.
pub(crate) struct Delivery {
    pub(crate) message: MessageEnvelope,
    pub(crate) reply: Option<ReplyTo>,
    /// What a large message holds of the mailbox's bytes.
    room: Option<Box<OwnedSemaphorePermit>>,
    /// What it has of its sender's share, until it is taken.
    place: Option<Place>,
    kib: Option<Box<Kib>>,
}

impl Delivery {
    #[inline]
    pub(crate) fn new(message: MessageEnvelope, reply: Option<ReplyTo>) -> Self {
        Self { message, reply, room: None, place: None, kib: None }
    }

    fn hold(&mut self, (place, kib): Held) {
        (self.place, self.kib) = (Some(place), kib);
    }

    /// It is out of the mailbox.
    #[inline]
    pub(crate) fn taken(&mut self) {
        if self.place.is_some() {
            (self.place, self.kib) = (None, None);
        }
    }

    /// Bytes that its sender chose.
    fn size(&self) -> usize {
        self.message.payload.len() + self.message.content_type.as_ref().map_or(0, |ty| ty.0.len())
    }
}

/// Bytes of a message up to which it is not counted against the mailbox's bytes: as many of them as a mailbox holds are
/// little enough.
const SMALL: usize = 4 << 10;

/// Where the answer to a message goes. Dropping it tells the asker that the actor has stopped.
pub(crate) struct ReplyTo(pub(crate) oneshot::Sender<Answer>);

pub(crate) type Answer = Result<Bytes, Unanswered>;

/// Why a message that was taken got no answer.
#[derive(Debug)]
pub(crate) enum Unanswered {
    Crashed(Arc<CrashReport>),
    Failed(String),
    NoReply,
    Late,
}

impl ReplyTo {
    /// Says whether anybody was still there to hear it.
    pub(crate) fn send(self, answer: Answer) -> bool {
        self.0.send(answer).is_ok()
    }
}

/// What an actor is told beside its messages. It is heard before the next message, however many there are.
pub(crate) enum Control {
    /// Of its supervisor: start, or start again.
    Start { order: u64 },
    /// Of its supervisor: end the incarnation and wait for a start, mailbox kept.
    Suspend { order: u64 },
    /// End for good: after all messages in the mailbox, or after the one in hand.
    Stop { drain: bool },
    /// End for good, now.
    Kill,
    /// Go over to another version, or back to the one before. In a box, for the channel keeps room for many orders.
    Upgrade(Box<Upgrade>),
    /// Say how you are.
    Health { done: oneshot::Sender<Result<(), HealthError>> },
}

pub(crate) struct Upgrade {
    /// In a box of the blueprint's type; none for the version before.
    pub(crate) version: Option<Box<dyn Any + Send>>,
    pub(crate) options: UpgradeOptions,
    pub(crate) done: oneshot::Sender<Result<u64, UpgradeError>>,
}

/// What an actor is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Lifecycle {
    /// It is coming to life for the first time. Messages wait in its mailbox.
    Starting,
    /// It takes messages.
    Running,
    /// It has failed and will be started again. Messages wait in its mailbox.
    Restarting,
    /// It handles what is in its mailbox and takes no more.
    Stopping,
    /// It is gone.
    Stopped,
}

impl Lifecycle {
    const ALL: [Self; 5] = [Self::Starting, Self::Running, Self::Restarting, Self::Stopping, Self::Stopped];
}

impl fmt::Display for Lifecycle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Restarting => "restarting",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
        })
    }
}

/// One actor as all others see it.
pub(crate) struct Cell {
    pub(crate) address: ActorAddress,
    /// Whether a supervisor looks after it.
    pub(crate) supervised: bool,
    /// How long a chain of dependencies it stands on; of those below a supervisor, the longest of all of them.
    pub(crate) level: AtomicU32,
    mailbox: mpsc::Sender<Delivery>,
    control: mpsc::UnboundedSender<Control>,
    /// Orders that are on their way or there, so that a busy actor looks at one number only.
    orders: AtomicUsize,
    /// Whether it was killed, which no later incarnation takes back.
    killed: AtomicBool,
    /// KiB that large messages may take up in the mailbox, and how many there are in all.
    room: Arc<Semaphore>,
    room_kib: u32,
    /// What each sender may have of it, unless that is all.
    shares: Option<Shares>,
    /// Bytes of payload that it takes.
    message_size: AtomicU64,
    state: AtomicU8,
    incarnation: AtomicU64,
    restarts: AtomicU64,
    memory: AtomicU64,
    /// Ends the present incarnation wherever it is.
    interrupt: Mutex<Option<CancellationToken>>,
    pub(crate) ended: CancellationToken,
    /// By pattern, so that subscribing twice is subscribing once.
    pub(crate) subscriptions: Mutex<HashMap<TopicPattern, Subscription<Endpoint>>>,
    /// The asker of the message in hand, and the one-shot subject by which it is answered, where answers are published.
    pub(crate) reply_subject: Mutex<Option<(Arc<str>, ReplyTo)>>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) core: Arc<SystemCore>,
}

/// How large a mailbox is.
#[derive(Clone, Copy)]
pub(crate) struct Room {
    pub(crate) messages: usize,
    /// Of large messages.
    pub(crate) bytes: u64,
    /// How many shares there are, of which a sender may have one.
    pub(crate) shares: NonZeroU32,
}

/// The receiving ends of a cell.
pub(crate) struct Inbox {
    pub(crate) mailbox: mpsc::Receiver<Delivery>,
    pub(crate) control: mpsc::UnboundedReceiver<Control>,
}

impl fmt::Debug for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cell").field("address", &self.address).field("state", &self.state()).finish_non_exhaustive()
    }
}

impl Cell {
    pub(crate) fn new(
        core: &Arc<SystemCore>,
        address: ActorAddress,
        metrics: Arc<Metrics>,
        level: u32,
        supervised: bool,
        Room { messages, bytes, shares }: Room,
    ) -> (Arc<Self>, Inbox) {
        let (mailbox, mailbox_end) = mpsc::channel(messages);
        let (control, control_end) = mpsc::unbounded_channel();
        let room_kib = u32::try_from(bytes >> 10).unwrap_or(u32::MAX).max(1);
        let cell = Self {
            metrics,
            address,
            supervised,
            level: AtomicU32::new(level),
            killed: AtomicBool::new(false),
            room: Arc::new(Semaphore::new(room_kib as usize)),
            room_kib,
            shares: Shares::new(messages, room_kib, shares),
            mailbox,
            control,
            orders: AtomicUsize::new(0),
            message_size: AtomicU64::new(u64::MAX),
            state: AtomicU8::new(Lifecycle::Starting as u8),
            incarnation: AtomicU64::new(0),
            restarts: AtomicU64::new(0),
            memory: AtomicU64::new(0),
            interrupt: Mutex::default(),
            ended: CancellationToken::new(),
            subscriptions: Mutex::default(),
            reply_subject: Mutex::default(),
            core: Arc::clone(core),
        };
        (Arc::new(cell), Inbox { mailbox: mailbox_end, control: control_end })
    }

    pub(crate) fn id(&self) -> &ComponentId {
        self.address.id()
    }

    pub(crate) fn state(&self) -> Lifecycle {
        Lifecycle::ALL[usize::from(self.state.load(Ordering::Relaxed))]
    }

    pub(crate) fn set_state(&self, state: Lifecycle) {
        self.state.store(state as u8, Ordering::Relaxed);
    }

    pub(crate) fn incarnation(&self) -> u64 {
        self.incarnation.load(Ordering::Relaxed)
    }

    pub(crate) fn restarts(&self) -> u64 {
        self.restarts.load(Ordering::Relaxed)
    }

    pub(crate) fn count_restart(&self) {
        self.restarts.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn memory(&self) -> u64 {
        self.memory.load(Ordering::Relaxed)
    }

    pub(crate) fn set_memory(&self, bytes: u64) {
        // Written only when it changes: senders read the same cache line.
        if self.memory() != bytes {
            self.memory.store(bytes, Ordering::Relaxed);
        }
    }

    pub(crate) fn set_message_size(&self, bytes: u64) {
        self.message_size.store(bytes, Ordering::Relaxed);
    }

    pub(crate) fn set_incarnation(&self, number: u64) {
        self.incarnation.store(number, Ordering::Relaxed);
    }

    /// The next incarnation, and what interrupts it.
    pub(crate) fn begin_incarnation(&self, number: u64) -> CancellationToken {
        self.set_incarnation(number);
        let token = CancellationToken::new();
        *self.interrupt.lock() = Some(token.clone());
        // A kill either finds this token, or is seen here.
        if self.is_killed() {
            token.cancel();
        }
        token
    }

    /// Ends the incarnation wherever it is: at once where it waits, at the next tick where it computes.
    pub(crate) fn interrupt(&self) {
        let token = self.interrupt.lock().clone();
        if let Some(token) = token {
            token.cancel();
        }
    }

    /// Gives an order. One that comes after the end is lost, with whatever waits for its completion.
    pub(crate) fn order(&self, control: Control) {
        self.announce_order();
        self.send_order(control);
    }

    /// Before it is sent, so that whoever is woken by it sees that it is there. A busy actor that sees it earlier asks for
    /// it until it comes.
    fn announce_order(&self) {
        self.orders.fetch_add(1, Ordering::Release);
    }

    fn send_order(&self, control: Control) {
        // Fails when the actor is gone.
        _ = self.control.send(control);
    }

    /// Gives an order, and waits until it is answered or the actor is gone.
    pub(crate) async fn ordered<T>(&self, order: impl FnOnce(oneshot::Sender<T>) -> Control) -> Option<T> {
        let (done, answer) = oneshot::channel();
        self.order(order(done));
        tokio::select! {
            biased;
            answer = answer => answer.ok(),
            () = self.ended.cancelled() => None,
        }
    }

    pub(crate) fn kill(&self) {
        self.killed.store(true, Ordering::SeqCst);
        self.order(Control::Kill);
        self.interrupt();
    }

    pub(crate) fn is_killed(&self) -> bool {
        self.killed.load(Ordering::SeqCst)
    }

    /// Whether there are orders, or will be at any moment.
    pub(crate) fn has_orders(&self) -> bool {
        self.orders.load(Ordering::Acquire) > 0
    }

    /// That an order was taken.
    pub(crate) fn order_taken(&self) {
        self.orders.fetch_sub(1, Ordering::Relaxed);
    }

    fn check_size(&self, size: usize) -> Result<(), Refusal> {
        let allowed = self.message_size.load(Ordering::Relaxed);
        if size as u64 > allowed { Err(Refusal::TooLarge { size: size as u64, allowed }) } else { Ok(()) }
    }

    /// KiB that a message takes up of the mailbox's: none for a small one, all of them for one that is larger than that.
    fn kib(&self, size: usize) -> u32 {
        if size <= SMALL { 0 } else { u32::try_from(size.div_ceil(1 << 10)).unwrap_or(u32::MAX).min(self.room_kib) }
    }

    fn full(&self) -> Refusal {
        if self.state() == Lifecycle::Restarting { Refusal::Restarting } else { Refusal::Full }
    }

    /// Puts a message into the mailbox at once.
    #[inline]
    pub(crate) fn try_push(&self, mut delivery: Delivery) -> Result<(), (Refusal, Delivery)> {
        let size = delivery.size();
        if let Err(refusal) = self.check_size(size) {
            return Err((refusal, delivery));
        }
        // Messages of the host are in no share.
        if delivery.message.sender.is_some()
            && let Err(refusal) = self.try_hold(&mut delivery, size)
        {
            return Err((refusal, delivery));
        }
        if size > SMALL {
            match Arc::clone(&self.room).try_acquire_many_owned(self.kib(size)) {
                Ok(room) => delivery.room = Some(Box::new(room)),
                Err(TryAcquireError::NoPermits) => return Err((self.full(), delivery)),
                Err(TryAcquireError::Closed) => return Err((Refusal::Stopped, delivery)),
            }
        }
        // Not `try_send`, which moves the message twice more.
        match self.mailbox.try_reserve() {
            Ok(place) => {
                #[cfg(feature = "lossy")]
                if lossy::is_lost() {
                    return Ok(());
                }
                place.send(delivery);
                Ok(())
            }
            Err(TrySendError::Full(())) => Err((self.full(), delivery)),
            Err(TrySendError::Closed(())) => Err((Refusal::Stopped, delivery)),
        }
    }

    /// Takes what a message needs of its sender's share.
    #[inline(never)]
    fn try_hold(&self, delivery: &mut Delivery, size: usize) -> Result<(), Refusal> {
        let (Some(shares), Some(sender)) = (&self.shares, &delivery.message.sender) else { return Ok(()) };
        let free = Free { messages: self.mailbox.capacity(), kib: self.room.available_permits() };
        match shares.try_hold(sender.generation(), self.kib(size), free) {
            Some(held) => {
                delivery.hold(held);
                Ok(())
            }
            None if self.mailbox.is_closed() => Err(Refusal::Stopped),
            None => Err(self.full()),
        }
    }

    /// Puts a message into the mailbox as soon as there is room.
    pub(crate) async fn push(&self, delivery: Delivery) -> Result<(), (Refusal, Delivery)> {
        match self.try_push(delivery) {
            // In a box, for it is rare, and its future would lie in that of every sender.
            Err((Refusal::Full | Refusal::Restarting, delivery)) => Box::pin(self.push_later(delivery)).await,
            done => done,
        }
    }

    /// [`push`](Self::push) of one that did not find room at once.
    pub(crate) async fn push_later(&self, mut delivery: Delivery) -> Result<(), (Refusal, Delivery)> {
        let kib = self.kib(delivery.size());
        // Before the room: who waits takes no more of it than the sender may have.
        if let Some(shares) = &self.shares
            && let Some(sender) = &delivery.message.sender
            && delivery.place.is_none()
        {
            match shares.hold(sender.generation(), kib).await {
                Ok(held) => delivery.hold(held),
                Err(_) => return Err((Refusal::Stopped, delivery)),
            }
        }
        if kib > 0 && delivery.room.is_none() {
            match Arc::clone(&self.room).acquire_many_owned(kib).await {
                Ok(room) => delivery.room = Some(Box::new(room)),
                Err(_) => return Err((Refusal::Stopped, delivery)),
            }
        }
        self.mailbox.send(delivery).await.map_err(|error| (Refusal::Stopped, error.0))
    }

    /// Refuses whoever waits for room, and whoever will.
    pub(crate) fn close_room(&self) {
        self.room.close();
        if let Some(shares) = &self.shares {
            shares.close();
        }
    }

    pub(crate) fn load(&self) -> Load {
        let capacity = self.mailbox.max_capacity();
        Load { queued: capacity - self.mailbox.capacity(), capacity }
    }
}

/// Losing messages, so that it can be seen that a soak notices.
#[cfg(feature = "lossy")]
mod lossy {
    use std::sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    };

    static ONE_IN: LazyLock<Option<u64>> =
        LazyLock::new(|| std::env::var("AIRSSYS_WASM_LOSE_ONE_IN").ok()?.parse().ok());
    static DELIVERIES: AtomicU64 = AtomicU64::new(1);

    /// Whether this delivery is one of those.
    pub(super) fn is_lost() -> bool {
        ONE_IN.is_some_and(|one_in| DELIVERIES.fetch_add(1, Ordering::Relaxed).is_multiple_of(one_in))
    }
}

/// What a name or a subscription leads to.
#[derive(Debug)]
pub(crate) enum Endpoint {
    Actor(Arc<Cell>),
    /// A subscriber of the host.
    Host(mpsc::Sender<MessageEnvelope>),
}

pub(crate) fn undelivered((reason, delivery): (Refusal, Delivery)) -> Undelivered {
    Undelivered::new(reason, delivery.message)
}

impl Sink for Endpoint {
    fn try_deliver(&self, message: MessageEnvelope) -> Result<(), Undelivered> {
        match self {
            Self::Actor(cell) => cell.try_push(Delivery::new(message, None)).map_err(undelivered),
            Self::Host(channel) => channel.try_send(message).map_err(|error| match error {
                TrySendError::Full(message) => Undelivered::new(Refusal::Full, message),
                TrySendError::Closed(message) => Undelivered::new(Refusal::Stopped, message),
            }),
        }
    }

    async fn deliver(&self, message: MessageEnvelope) -> Result<(), Undelivered> {
        match self {
            Self::Actor(cell) => cell.push(Delivery::new(message, None)).await.map_err(undelivered),
            Self::Host(channel) => {
                channel.send(message).await.map_err(|error| Undelivered::new(Refusal::Stopped, error.0))
            }
        }
    }

    fn load(&self) -> Load {
        match self {
            Self::Actor(cell) => cell.load(),
            Self::Host(channel) => {
                let capacity = channel.max_capacity();
                Load { queued: capacity - channel.capacity(), capacity }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use airssys_wasm_engine::{EngineConfig, WasmEngine};
    use airssys_wasm_registry::MessageEnvelope;

    use super::*;
    use crate::{ActorSystem, NativeActor, NativeSpec, SystemConfig};

    struct Echo;

    impl NativeActor for Echo {
        async fn handle(&mut self, message: &MessageEnvelope) -> Result<Option<Bytes>, String> {
            Ok(Some(message.payload.clone()))
        }
    }

    #[tokio::test]
    async fn an_order_that_is_announced_long_before_it_comes_is_heard() {
        let system = ActorSystem::new(
            WasmEngine::new(EngineConfig::small().compile_in_process()).unwrap(),
            SystemConfig::default(),
        );
        let actor = system.spawn_native(NativeSpec::new("echo".parse().unwrap(), || Echo)).await.unwrap();
        actor.ask("x").await.unwrap();
        actor.0.announce_order();
        // It sees that there is to be one, finds none, and falls asleep.
        actor.ask("x").await.unwrap();
        tokio::task::yield_now().await;
        actor.0.send_order(Control::Stop { drain: false });
        actor.ended().await;
    }
}
