//! What an actor's task shares with everybody else: its mailbox, its orders, and what can be seen of it from outside.

use std::{
    collections::HashMap,
    fmt,
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering},
    },
};

use airssys_wasm_limits::CancellationToken;
use airssys_wasm_registry::{
    ActorAddress, ComponentId, Load, MessageEnvelope, Refusal, Subscription, TopicPattern, TraceContext, WhenFull,
};
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::{sync::oneshot, time::sleep_until};

use crate::{
    DeadReason, Lifecycle,
    runtime::{
        call::Exports,
        endpoint::Endpoint,
        keeper::Fence,
        mailbox::{Delivery, Mailbox, MailboxSize, ReplyTo},
        metrics::Metrics,
        orders::{Control, OrderInbox, Orders},
        queue::Receiver,
        services::Services,
        sync::{Shared, shared},
        timers::OwnTimers,
        waits::Waiting,
    },
};

/// The shared part of an actor: what senders, supervisors and its own task use.
pub(crate) struct Cell {
    pub(crate) address: ActorAddress,
    /// Whether a supervisor looks after it.
    pub(crate) supervised: bool,
    /// How long a chain of dependencies it stands on; of those below a supervisor, the longest of all of them.
    pub(crate) level: AtomicU32,
    pub(crate) mailbox: Mailbox,
    pub(crate) orders: Orders,
    /// Whether it was killed, which no later incarnation takes back.
    killed: Shared<AtomicBool>,
    /// Whether several of its messages may be in flight.
    pub(super) handles_several: AtomicBool,
    /// What became of `timers`; written while they are locked.
    pub(super) later: AtomicU8,
    state: AtomicU8,
    incarnation: AtomicU64,
    restarts: AtomicU64,
    recycled: AtomicU64,
    memory: AtomicU64,
    /// Ends the present incarnation wherever it is.
    interrupt: Shared<Mutex<Option<CancellationToken>>>,
    pub(crate) ended: CancellationToken,
    /// By pattern, so that subscribing twice is subscribing once. None once the actor has ended: each holds the cell.
    pub(super) subscriptions: Mutex<Option<HashMap<TopicPattern, Subscription<Endpoint>>>>,
    /// The asker of the message in flight, and the one-shot subject by which it is answered, where answers are published.
    pub(crate) reply_subject: Mutex<Option<(Arc<str>, ReplyTo)>>,
    pub(crate) exports: Mutex<Exports>,
    /// Of an actor that can be passivated.
    gate: Option<Gate>,
    /// Of an actor whose name another host may take.
    fence: Option<Arc<dyn Fence>>,
    pub(crate) timers: OwnTimers,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) services: Arc<Services>,
}

/// Whether an actor has its name for as long as it likes.
#[derive(Default)]
pub(crate) struct Tenure {
    pub(crate) can_be_passivated: bool,
    /// Where another host may take the name.
    pub(crate) fence: Option<Arc<dyn Fence>>,
}

/// Between senders and the passivation of an actor.
#[derive(Default)]
struct Gate {
    /// Whether its mailbox was closed because it was empty, or is about to be. Senders who were refused look at it.
    closing: AtomicBool,
    /// Held while the mailbox is closed and the name is given up, so that senders wait for what becomes of it.
    moved: Mutex<bool>,
}

/// The receiving ends of a cell.
#[derive(Default)]
pub(crate) struct Inbox {
    pub(crate) messages: Receiver<Delivery>,
    pub(crate) orders: OrderInbox,
}

impl fmt::Debug for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cell").field("address", &self.address).field("state", &self.state()).finish_non_exhaustive()
    }
}

impl Cell {
    pub(crate) fn new(
        services: &Arc<Services>,
        address: ActorAddress,
        metrics: Arc<Metrics>,
        level: u32,
        supervised: bool,
        mailbox: MailboxSize,
        Tenure { can_be_passivated, fence }: Tenure,
    ) -> (Arc<Self>, Inbox) {
        let cell = Self {
            metrics,
            address,
            supervised,
            level: AtomicU32::new(level),
            killed: shared(AtomicBool::new(false)),
            mailbox: Mailbox::new(mailbox),
            orders: Orders::default(),
            handles_several: AtomicBool::new(false),
            later: AtomicU8::new(0),
            state: AtomicU8::new(Lifecycle::Starting as u8),
            incarnation: AtomicU64::new(0),
            restarts: AtomicU64::new(0),
            recycled: AtomicU64::new(0),
            memory: AtomicU64::new(0),
            interrupt: Shared::default(),
            ended: CancellationToken::new(),
            subscriptions: Mutex::new(Some(HashMap::new())),
            reply_subject: Mutex::default(),
            exports: Mutex::default(),
            gate: can_be_passivated.then(Gate::default),
            fence,
            timers: OwnTimers::default(),
            services: Arc::clone(services),
        };
        (Arc::new(cell), Inbox::default())
    }

    pub(crate) fn id(&self) -> &ComponentId {
        self.address.id()
    }

    /// Whether its name may be another host's by now.
    #[inline]
    pub(crate) fn is_fenced(&self) -> bool {
        self.fence.as_ref().is_some_and(|fence| !fence.holds())
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

    pub(crate) fn recycled(&self) -> u64 {
        self.recycled.load(Ordering::Relaxed)
    }

    pub(crate) fn count_recycled(&self) {
        self.recycled.fetch_add(1, Ordering::Relaxed);
        self.metrics.recycled.increment(1);
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

    /// Gives an order, and waits until it is answered or the actor is gone.
    pub(crate) async fn ordered<T>(&self, order: impl FnOnce(oneshot::Sender<T>) -> Control) -> Option<T> {
        let (done, answer) = oneshot::channel();
        self.orders.give(order(done));
        tokio::select! {
            biased;
            answer = answer => answer.ok(),
            () = self.ended.cancelled() => None,
        }
    }

    pub(crate) fn kill(&self) {
        self.killed.store(true, Ordering::SeqCst);
        self.orders.give(Control::Kill);
        self.interrupt();
    }

    pub(crate) fn is_killed(&self) -> bool {
        self.killed.load(Ordering::SeqCst)
    }

    /// A message from this actor, in the trace of the message in flight.
    pub(crate) fn envelope(&self, message: MessageEnvelope, trace: Option<&TraceContext>) -> MessageEnvelope {
        let message = message.with_sender(self.address.clone());
        match trace {
            Some(trace) if message.trace().is_none() => message.with_trace(*trace),
            _ => message,
        }
    }

    /// Puts a message into the mailbox at once.
    #[inline]
    pub(crate) fn try_push(&self, delivery: Delivery) -> Result<(), (Refusal, Delivery)> {
        self.mailbox.try_push(delivery).map_err(|(reason, delivery)| (self.refusal(reason), delivery))
    }

    fn refusal(&self, reason: Refusal) -> Refusal {
        match reason {
            Refusal::Full | Refusal::Stopped if self.is_passivated() => Refusal::Moved,
            Refusal::Full if self.state() == Lifecycle::Restarting => Refusal::Restarting,
            reason => reason,
        }
    }

    /// Whether it has given up its name because there was nothing for it to do. Waits where that is about to be decided.
    fn is_passivated(&self) -> bool {
        self.gate.as_ref().is_some_and(|gate| gate.closing.load(Ordering::SeqCst) && *gate.moved.lock())
    }

    /// Closes the mailbox and gives up the name, unless there is a message in it or on its way into it. Nobody finds the
    /// mailbox closed and the name taken, so that who is refused here finds another by the name, or nobody.
    pub(super) fn passivate(&self) -> bool {
        let Some(gate) = &self.gate else { return false };
        let mut moved = gate.moved.lock();
        gate.closing.store(true, Ordering::SeqCst);
        if self.mailbox.close_if_empty() {
            // Fails if the name is deregistered already.
            _ = self.services.registry.deregister(&self.address);
            *moved = true;
        } else {
            gate.closing.store(false, Ordering::SeqCst);
        }
        let has_moved = *moved;
        // Without the lock: this wakes senders.
        drop(moved);
        if has_moved {
            self.mailbox.close();
        }
        has_moved
    }

    /// Puts a message into the mailbox as soon as there is room, until its deadline if it has one.
    pub(crate) async fn push(&self, delivery: Delivery) -> Result<(), (Refusal, Delivery)> {
        match self.try_push(delivery) {
            Ok(()) => Ok(()),
            Err(refused) => self.push_in_time(refused).await,
        }
    }

    /// [`push`](Self::push) of a message that was refused. Whoever tries first and then this moves it once less.
    ///
    /// Boxed: it is rare, and its future would lie in that of every sender.
    #[cold]
    pub(crate) fn push_in_time(
        &self,
        (reason, delivery): (Refusal, Delivery),
    ) -> BoxFuture<'_, Result<(), (Refusal, Delivery)>> {
        Box::pin(async move {
            if !matches!(reason, Refusal::Full | Refusal::Restarting) {
                return Err((reason, delivery));
            }
            let deadline = delivery.message.deadline();
            let over = async move {
                match deadline {
                    Some(deadline) => sleep_until(deadline).await,
                    None => pending().await,
                }
            };
            self.push_later(delivery, over).await
        })
    }

    /// Puts a message into the mailbox that did not find room at once, as soon as there is some. Gives it back if `over` is ready
    /// before.
    pub(crate) async fn push_later(
        &self,
        delivery: Delivery,
        over: impl Future<Output = ()>,
    ) -> Result<(), (Refusal, Delivery)> {
        let pushed = self.mailbox.push_later(delivery, over).await;
        pushed.map_err(|(reason, delivery)| (self.refusal(reason), delivery))
    }

    pub(crate) fn load(&self) -> Load {
        self.mailbox.load()
    }

    /// Notes that this actor waits for another. `None` if that one waits for this, directly or through others.
    pub(crate) fn waits_for(&self, receiver: &Self) -> Option<Waiting<'_>> {
        // One that has other messages in flight may be asked while it waits: a circle that goes on for ever ends by the
        // requests' timeouts.
        let asker = self.address.generation();
        if self.handles_several.load(Ordering::Relaxed) {
            return Some(self.services.waits.nobody(asker));
        }
        self.services.waits.begin(asker, receiver.address.generation())
    }

    /// Disposes of a message that is not handled. Dropping its `ReplyTo` resolves an ask; else it is a dead letter.
    /// So does dropping a call.
    pub(crate) fn give_up(&self, delivery: Delivery) {
        if delivery.is_call() {
            return;
        }
        let Delivery { message, reply, .. } = delivery;
        if reply.is_none_or(|reply| reply.is_closed()) {
            self.dead_letter(message, DeadReason::Stopped);
        }
    }

    pub(crate) fn dead_letter(&self, message: MessageEnvelope, reason: DeadReason) {
        self.metrics.dead_letters.increment(1);
        self.services.dead_letters.add(self.address.clone(), message, reason);
    }

    /// Subscribes to a pattern, once, unless there are so many subscriptions already. One that has ended does not.
    pub(crate) fn subscribe(self: &Arc<Self>, pattern: TopicPattern, most: u32) -> bool {
        let mut subscriptions = self.subscriptions.lock();
        let Some(subscriptions) = &mut *subscriptions else { return true };
        if subscriptions.contains_key(&pattern) {
            return true;
        }
        if subscriptions.len() as u64 >= u64::from(most) {
            return false;
        }
        let sink = Arc::new(Endpoint::Actor(Arc::clone(self)));
        let subscription = self.services.broker.subscribe(&pattern, sink, WhenFull::Error);
        subscriptions.insert(pattern, subscription);
        true
    }

    pub(crate) fn unsubscribe(&self, pattern: &TopicPattern) {
        let removed = self.subscriptions.lock().as_mut().and_then(|subscriptions| subscriptions.remove(pattern));
        // It locks the broker when it is dropped.
        drop(removed);
    }

    /// What it is subscribed to.
    pub(crate) fn patterns(&self) -> Vec<TopicPattern> {
        self.subscriptions.lock().iter().flat_map(HashMap::keys).cloned().collect()
    }

    /// Subscribes to these and to no others.
    pub(crate) fn set_patterns(self: &Arc<Self>, wanted: &[TopicPattern]) {
        for pattern in self.patterns() {
            if !wanted.contains(&pattern) {
                self.unsubscribe(&pattern);
            }
        }
        for pattern in wanted {
            self.subscribe(pattern.clone(), u32::MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use airssys_wasm_engine::{EngineConfig, WasmEngine};
    use bytes::Bytes;

    use super::*;
    use crate::{ActorSystem, NativeActor, NativeContext, NativeSpec, SystemConfig};

    struct Echo;

    impl NativeActor for Echo {
        async fn handle(&mut self, message: &MessageEnvelope, _: &NativeContext) -> Result<Option<Bytes>, String> {
            Ok(Some(message.payload().clone()))
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
        actor.0.orders.announce();
        // It sees that there is to be one, finds none, and falls asleep.
        actor.ask("x").await.unwrap();
        tokio::task::yield_now().await;
        actor.0.orders.put(Control::Stop { drain: false });
        actor.0.orders.wake();
        actor.ended().await;
    }
}
