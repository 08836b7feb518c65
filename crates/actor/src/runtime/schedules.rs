//! Mailbox, orders and shares under seeded schedules: at each [`point`] shuttle decides which task runs next. A lost
//! wake-up is a deadlock, which shuttle reports with its schedule. Semaphores are tokio's own; each of their operations, and
//! of the queue's under its lock, is one step. Memory is sequentially consistent, so that a wrong `Ordering` is not found.
//!
//! In the environment, `SCHEDULES` is the number of schedules for each test, `SHUTTLE_RANDOM_SEED` the seed.

use std::{
    future::{pending, poll_fn},
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
};

use airssys_wasm_isolation::{Crash, CrashKind};
use airssys_wasm_limits::CancellationToken;
use airssys_wasm_registry::{ActorAddress, ComponentId, MessageEnvelope, Refusal, TraceContext};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use shuttle::{
    Config, MaxSteps, Runner,
    future::{JoinHandle, block_on, spawn},
    scheduler::{PctScheduler, RandomScheduler},
};
use tokio::sync::{mpsc, oneshot};

use crate::{
    DeadLetterLimits, During, HealthError, KeepError, Keeper, Recycle, RestartPolicy, StartError, UpgradeError,
    UpgradeOptions,
    runtime::{
        cell::{Cell, Tenure},
        endpoint::Endpoint,
        incarnation::{Blueprint, Handled, Live, crashed},
        keeper::Kept,
        mailbox::{Delivery, MailboxSize, ReplyTo},
        orders::{Control, Upgrade},
        owner::{ChildEvent, Owner},
        services::Services,
        sync::{point, shared},
        task::{ActorTask, announce},
        turn::Turn,
    },
};

/// Runs a test under random schedules, and under as many with few preemptions (PCT).
fn schedules(test: impl Fn() + Send + Sync + Clone + 'static) {
    let schedules = std::env::var("SCHEDULES").map_or(400, |schedules| schedules.parse().unwrap());
    let mut config = Config::new();
    config.stack_size = 1 << 20;
    config.max_steps = MaxSteps::FailAfter(10_000);
    Runner::new(RandomScheduler::new_from_seed(1, schedules / 2), config.clone()).run(test.clone());
    Runner::new(PctScheduler::new_from_seed(1, 3, schedules / 2), config).run(test);
}

/// How an incarnation starts.
#[derive(Clone, Copy)]
pub(super) enum Start {
    Lives,
    /// The first time alone.
    LivesOnce,
    Refuses,
    /// Until it is interrupted.
    Hangs,
}

/// Incarnations that record what they handle, and answer it.
pub(super) struct Script {
    start: Start,
    started: AtomicBool,
    handled: Arc<Mutex<Vec<Bytes>>>,
}

impl Blueprint for Script {
    type Live = Notes;
    type Version = Start;

    async fn start(
        &self,
        cell: &Arc<Cell>,
        _: Option<Bytes>,
        interrupt: &CancellationToken,
    ) -> Result<Notes, StartError> {
        point();
        match self.start {
            Start::LivesOnce if self.started.swap(true, Ordering::Relaxed) => {
                Err(StartError::Refused { message: "told to live once".to_owned() })
            }
            Start::Lives | Start::LivesOnce => Ok(Notes(Arc::clone(&self.handled))),
            Start::Refuses => Err(StartError::Refused { message: "told to refuse".to_owned() }),
            Start::Hangs => {
                interrupt.cancelled().await;
                Err(crashed(cell, During::Start, Crash::of_host(CrashKind::Cancelled, "start")))
            }
        }
    }

    fn upgraded(&self, _: &ComponentId, start: Start) -> Result<Self, UpgradeError> {
        Ok(Self { start, started: AtomicBool::new(false), handled: Arc::clone(&self.handled) })
    }

    fn message_size(&self) -> u64 {
        u64::MAX
    }

    fn keeps_state(&self) -> (bool, bool) {
        (false, false)
    }
}

pub(super) struct Notes(Arc<Mutex<Vec<Bytes>>>);

impl Live for Notes {
    async fn handle(
        &mut self,
        message: &MessageEnvelope,
        _: Option<Box<TraceContext>>,
        _: &mut Turn<'_>,
        _: &CancellationToken,
    ) -> Result<Handled, Crash> {
        self.0.lock().push(message.payload().clone());
        point();
        if message.payload() == "shortage" {
            let kind = CrashKind::Budget { asked: 1, left: 0, total: 0 };
            return Err(Crash::of_host(kind, "handle"));
        }
        Ok(Ok(Some(message.payload().clone())))
    }

    async fn health(&mut self, _: &CancellationToken) -> Result<Result<(), HealthError>, Crash> {
        point();
        Ok(Ok(()))
    }

    async fn snapshot(&mut self, _: &CancellationToken) -> Result<Result<Bytes, String>, Crash> {
        Ok(Ok(Bytes::new()))
    }

    async fn shutdown(self, _: &CancellationToken) -> Result<(), Crash> {
        point();
        Ok(())
    }

    fn memory(&self) -> u64 {
        0
    }
}

/// An actor, and what becomes of messages to it.
#[derive(Clone)]
pub(super) struct Scene {
    pub(super) cell: Arc<Cell>,
    handled: Arc<Mutex<Vec<Bytes>>>,
    sent: Arc<Mutex<Vec<(Bytes, Fate)>>>,
    /// Some other actor, whose messages are in a share.
    sender: ActorAddress,
}

/// What the sender of a message was told.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    Taken,
    Refused,
    Answered,
    Stopped,
}

/// How a message is sent.
#[derive(Clone, Copy)]
enum How {
    TryTell,
    Tell,
    Ask,
    /// As a tell whose deadline is soon over.
    Briefly,
}

impl Scene {
    /// An actor that has not started. Its mailbox has room for so many messages, and for one large one.
    pub(super) fn new(messages: usize, start: Start) -> (Self, ActorTask<Script>, mpsc::UnboundedReceiver<ChildEvent>) {
        Self::with(messages, start, None)
    }

    /// One whose state is kept by this keeper, if there is one.
    fn with(
        messages: usize,
        start: Start,
        keeper: Option<Box<dyn Keeper>>,
    ) -> (Self, ActorTask<Script>, mpsc::UnboundedReceiver<ChildEvent>) {
        let services = Arc::new(Services::new(DeadLetterLimits::default(), false, false, Some(1)));
        let size = MailboxSize { messages, bytes: 8 << 10, shares: NonZeroU32::new(2).unwrap() };
        let (mut made, is_kept) = (None, keeper.is_some());
        let metrics = services.metrics_of(&"actor".parse().unwrap());
        let mut register = |name: &str| {
            let make = |address: &ActorAddress| {
                let tenure = Tenure { can_be_passivated: is_kept, fence: None };
                let (cell, inbox) = Cell::new(&services, address.clone(), Arc::clone(&metrics), 0, true, size, tenure);
                made = Some((Arc::clone(&cell), inbox));
                Arc::new(Endpoint::Actor(cell))
            };
            services.registry.register_with(&name.parse().unwrap(), make).unwrap()
        };
        let sender = register("sender");
        register("actor");
        let (cell, inbox) = made.unwrap();
        let (events, told) = mpsc::unbounded_channel();
        let handled = Arc::default();
        let script = Script { start, started: AtomicBool::new(false), handled: Arc::clone(&handled) };
        let owner = Owner::Supervisor { child: 0, order: 0, events };
        announce(&cell, &script);
        let task =
            ActorTask::new(Arc::clone(&cell), inbox, script, RestartPolicy::default(), None, Recycle::default(), owner)
                .kept_by(keeper.map(Kept::new));
        (Self { cell, handled, sent: Arc::default(), sender }, task, told)
    }

    /// Sends a message to it, and notes what becomes of that.
    async fn send(self, how: How, message: MessageEnvelope) {
        let payload = message.payload().clone();
        let (reply, answer) = oneshot::channel();
        let delivery = Delivery::new(message, matches!(how, How::Ask).then_some(ReplyTo::new(reply)));
        let taken = match how {
            How::TryTell => self.cell.try_push(delivery),
            How::Tell | How::Ask => self.cell.push(delivery).await,
            How::Briefly => match self.cell.try_push(delivery) {
                Err((Refusal::Full, delivery)) => self.cell.push_later(delivery, shuttle::future::yield_now()).await,
                done => done,
            },
        };
        let fate = match (taken, how) {
            (Err(_), _) => Fate::Refused,
            (Ok(()), How::TryTell | How::Tell | How::Briefly) => Fate::Taken,
            (Ok(()), How::Ask) => match answer.await {
                Ok(answer) => {
                    assert_eq!(answer.unwrap(), payload);
                    Fate::Answered
                }
                Err(_) => Fate::Stopped,
            },
        };
        self.sent.lock().push((payload, fate));
    }

    /// A sender that is dropped while it waits, or when its message has found room.
    fn spawn_abandoned(&self) -> JoinHandle<()> {
        let cell = Arc::clone(&self.cell);
        spawn(async move {
            let mut push = Box::pin(cell.push(Delivery::new("abandoned".into(), None)));
            poll_fn(|cx| Poll::Ready(_ = push.as_mut().poll(cx))).await;
            shuttle::future::yield_now().await;
        })
    }

    fn spawn_sender(&self, how: How, message: impl Into<MessageEnvelope>) -> JoinHandle<()> {
        spawn(self.clone().send(how, message.into()))
    }

    /// A message of another actor, counted in bytes.
    fn large(&self, name: &str) -> MessageEnvelope {
        let message = MessageEnvelope::new(format!("{name:6000}"));
        message.with_sender(self.sender.clone())
    }

    /// Each message was handled once, or is a dead letter, or its sender was told otherwise.
    fn check(&self, messages: usize) {
        let (handled, sent) = (self.handled.lock(), self.sent.lock());
        let letters = self.cell.services.dead_letters.list();
        assert_eq!(sent.len(), messages);
        for (payload, fate) in &*sent {
            let handled = handled.iter().filter(|handled| *handled == payload).count();
            let dead = letters.iter().filter(|letter| letter.message.payload() == payload).count();
            let expected = match fate {
                Fate::Taken => handled + dead == 1,
                Fate::Refused | Fate::Stopped => (handled, dead) == (0, 0),
                Fate::Answered => (handled, dead) == (1, 0),
            };
            assert!(expected, "{fate:?}, handled {handled} times, dead {dead} times");
        }
    }
}

async fn join(tasks: impl IntoIterator<Item = JoinHandle<()>>) {
    for task in tasks {
        task.await.unwrap();
    }
}

/// Starts an actor and runs it.
async fn live(mut task: ActorTask<Script>) -> JoinHandle<()> {
    let live = task.start().await.unwrap_or_else(|_| panic!("told to live"));
    spawn(task.run(Some(live)))
}

#[test]
fn an_order_is_heard_whatever_comes_with_it() {
    for order in 0..3 {
        schedules(move || {
            block_on(async move {
                let (scene, task, _told) = Scene::new(4, Start::Lives);
                let actor = live(task).await;
                let cell = Arc::clone(&scene.cell);
                let health = spawn(async move { _ = cell.ordered(|done| Control::Health { done }).await });
                let senders = [
                    scene.spawn_sender(How::Ask, "asked"),
                    scene.spawn_sender(How::TryTell, "told"),
                    scene.spawn_sender(How::TryTell, "told too"),
                ];
                let cell = Arc::clone(&scene.cell);
                let stopping = spawn(async move {
                    match order {
                        0 => cell.kill(),
                        _ => cell.orders.give(Control::Stop { drain: order == 1 }),
                    }
                });
                join(senders.into_iter().chain([health, stopping, actor])).await;
                scene.check(3);
            });
        });
    }
}

/// Keeps nothing.
struct Forgetful;

impl Keeper for Forgetful {
    fn load(&mut self) -> BoxFuture<'_, Result<Option<Bytes>, KeepError>> {
        point();
        Box::pin(async { Ok(None) })
    }

    fn save(&mut self, _: Bytes) -> BoxFuture<'_, Result<(), KeepError>> {
        point();
        Box::pin(async { Ok(()) })
    }

    fn save_last(&mut self, state: Bytes) -> BoxFuture<'_, Result<(), KeepError>> {
        self.save(state)
    }

    fn not_given(&mut self) {}

    fn stayed(&mut self) {}

    fn forget(&mut self) -> BoxFuture<'_, Result<(), KeepError>> {
        Box::pin(async { Ok(()) })
    }

    fn started(&mut self) -> bool {
        false
    }

    fn fresh(&mut self, _: Bytes) {}

    fn touched(&mut self) {}

    fn saves_each_message(&self) -> bool {
        false
    }

    fn not_activated(&mut self, _: &Arc<StartError>) {}

    fn upgraded(&mut self) {}

    fn rolled_back(&mut self) {}

    fn gave_up(&mut self) {}

    fn passivated(&mut self) {}
}

#[test]
fn a_message_to_one_that_leaves_is_handled_or_refused() {
    schedules(|| {
        block_on(async {
            let (scene, mut task, _told) = Scene::with(2, Start::Lives, Some(Box::new(Forgetful)));
            let live = task.start().await.unwrap_or_else(|_| panic!("told to live"));
            let actor = spawn(task.run(Some(live)));
            let senders = [
                scene.spawn_sender(How::Ask, "asked"),
                scene.spawn_sender(How::TryTell, "told"),
                scene.spawn_sender(How::Tell, scene.large("large")),
                scene.spawn_sender(How::Tell, scene.large("large too")),
            ];
            // One that finds a message stays, and one who is waited for does not.
            scene.cell.orders.give(Control::Passivate { must: false, done: None });
            let cell = Arc::clone(&scene.cell);
            let leaving = spawn(async move {
                _ = cell.ordered(|done| Control::Passivate { must: true, done: Some(done) }).await;
                // Whoever finds the name free does not find the actor.
                assert!(cell.services.registry.lookup("actor").is_none());
                let (refusal, _) = cell.try_push(Delivery::new("late".into(), None)).unwrap_err();
                assert_eq!(refusal, Refusal::Moved);
            });
            join(senders.into_iter().chain([leaving, actor])).await;
            scene.check(4);
            assert!(scene.cell.services.dead_letters.is_empty());
        });
    });
}

#[test]
fn one_that_is_to_leave_does_not_wait_for_a_sender_that_has_gone() {
    schedules(|| {
        block_on(async {
            let (scene, mut task, _told) = Scene::with(1, Start::Lives, Some(Box::new(Forgetful)));
            let live = task.start().await.unwrap_or_else(|_| panic!("told to live"));
            let actor = spawn(task.run(Some(live)));
            let sender = scene.spawn_sender(How::TryTell, "told");
            let abandoned = scene.spawn_abandoned();
            let cell = Arc::clone(&scene.cell);
            let leaving = spawn(async move {
                _ = cell.ordered(|done| Control::Passivate { must: true, done: Some(done) }).await;
            });
            join([sender, abandoned, leaving, actor]).await;
            scene.check(1);
        });
    });
}

#[test]
fn what_is_sent_after_an_order_is_not_handled_before_it() {
    schedules(|| {
        block_on(async {
            let (scene, task, _told) = Scene::new(4, Start::Lives);
            let actor = live(task).await;
            let before = scene.spawn_sender(How::TryTell, "before");
            scene.cell.orders.give(Control::Stop { drain: false });
            let after = scene.spawn_sender(How::TryTell, "after");
            join([before, after, actor]).await;
            scene.check(2);
            assert!(!scene.handled.lock().iter().any(|message| message == "after"));
        });
    });
}

#[test]
fn a_kill_reaches_the_version_that_an_upgrade_brings() {
    for start in [Start::Hangs, Start::Lives] {
        schedules(move || {
            block_on(async move {
                let (scene, task, _told) = Scene::new(4, Start::Lives);
                let actor = live(task).await;
                let cell = Arc::clone(&scene.cell);
                let upgrade = spawn(async move {
                    let upgrade = |done| {
                        let version = Some(Box::new(start) as Box<dyn std::any::Any + Send>);
                        Control::Upgrade(Box::new(Upgrade { version, options: UpgradeOptions::default(), done }))
                    };
                    _ = cell.ordered(upgrade).await;
                });
                let cell = Arc::clone(&scene.cell);
                let kill = spawn(async move { cell.kill() });
                let sender = scene.spawn_sender(How::Ask, "asked");
                join([upgrade, kill, sender, actor]).await;
                scene.check(1);
            });
        });
    }
}

#[test]
fn nobody_waits_for_room_for_ever() {
    for drain in [true, false] {
        schedules(move || {
            block_on(async move {
                let (scene, task, _told) = Scene::new(1, Start::Lives);
                let actor = live(task).await;
                let senders = [
                    scene.spawn_sender(How::Tell, scene.large("first")),
                    scene.spawn_sender(How::Ask, scene.large("second")),
                    scene.spawn_sender(How::Tell, format!("{:6000}", "of the host")),
                    scene.spawn_sender(How::Tell, "small"),
                    scene.spawn_sender(How::Briefly, scene.large("brief")),
                    scene.spawn_sender(How::Briefly, "small and brief"),
                ];
                let abandoned = scene.spawn_abandoned();
                let cell = Arc::clone(&scene.cell);
                let stopping = spawn(async move { cell.orders.give(Control::Stop { drain }) });
                join(senders.into_iter().chain([abandoned, stopping, actor])).await;
                scene.check(6);
            });
        });
    }
}

#[test]
fn a_sender_that_does_not_use_its_place_holds_up_nobody() {
    for (drain, drops) in [(true, true), (true, false), (false, false)] {
        schedules(move || {
            block_on(async move {
                let (scene, task, _told) = Scene::new(1, Start::Lives);
                scene.clone().send(How::TryTell, "first".into()).await;
                let other = scene.clone();
                let idle = Delivery::new(other.large("idle"), None);
                let mut push = Box::pin(async move { other.cell.push(idle).await });
                let polled = poll_fn(|cx| Poll::Ready(push.as_mut().poll(cx).is_pending())).await;
                assert!(polled);
                // Dropped at some time, or when all is over.
                let (kept, dropping) = if drops { (None, Some(push)) } else { (Some(push), None) };
                let dropping = spawn(async move { drop(dropping) });
                let senders = [
                    scene.spawn_sender(How::Tell, scene.large("of the same")),
                    scene.spawn_sender(How::Tell, format!("{:6000}", "of the host")),
                ];
                let actor = live(task).await;
                let cell = Arc::clone(&scene.cell);
                let stopping = spawn(async move { cell.orders.give(Control::Stop { drain }) });
                join(senders.into_iter().chain([stopping, dropping, actor])).await;
                scene.check(3);
                drop(kept);
            });
        });
    }
}

#[test]
fn a_start_that_fails_loses_nothing() {
    schedules(|| {
        block_on(async {
            let (scene, mut task, _told) = Scene::new(2, Start::Refuses);
            let senders = [
                scene.spawn_sender(How::TryTell, "told"),
                scene.spawn_sender(How::Tell, scene.large("large")),
                scene.spawn_sender(How::Ask, "asked"),
                scene.spawn_sender(How::Ask, "asked too"),
            ];
            let starting = spawn(async move { assert!(task.start().await.is_err()) });
            join(senders.into_iter().chain([starting])).await;
            scene.check(4);
        });
    });
}

#[test]
fn a_task_that_goes_with_its_runtime_loses_nothing() {
    schedules(|| {
        block_on(async {
            let (scene, mut task, _told) = Scene::new(2, Start::Lives);
            let (go, gone) = oneshot::channel::<()>();
            let running = spawn(async move {
                let live = task.start().await.unwrap_or_else(|_| panic!("told to live"));
                tokio::select! {
                    biased;
                    _ = gone => {}
                    () = task.run(Some(live)) => {}
                }
            });
            let senders = [
                scene.spawn_sender(How::TryTell, "told"),
                scene.spawn_sender(How::Tell, "told too"),
                scene.spawn_sender(How::Ask, "asked"),
                scene.spawn_sender(How::Ask, "asked too"),
            ];
            let ending = spawn(async move { go.send(()).unwrap() });
            join(senders.into_iter().chain([ending, running])).await;
            scene.check(4);
        });
    });
}

/// A lost wake-up is found: the reader clears the flag of an order before the order arrives, and polls the orders no more
/// once its waker is registered.
#[test]
#[should_panic(expected = "deadlock")]
fn control_an_order_whose_flag_is_taken_away_is_slept_through() {
    schedules(|| {
        block_on(async {
            let urgent = Arc::new(shared(AtomicBool::new(false)));
            let (to, orders) = mpsc::unbounded_channel::<()>();
            let (messages_to, messages) = mpsc::unbounded_channel::<()>();
            let (mut orders, mut messages) = (shared(orders), shared(messages));
            let flag = Arc::clone(&urgent);
            let reader = spawn(async move {
                let mut listens = false;
                poll_fn(|cx| {
                    loop {
                        if flag.swap(false, Ordering::Acquire) {
                            listens = false;
                            if orders.try_recv().is_ok() {
                                return Poll::Ready(());
                            }
                        } else if messages.poll_recv(cx).is_pending() {
                            if !listens && orders.poll_recv(cx).is_ready() {
                                return Poll::Ready(());
                            }
                            listens = true;
                            return Poll::Pending;
                        }
                    }
                })
                .await;
            });
            let order = spawn(async move {
                urgent.store(true, Ordering::Release);
                point();
                to.send(()).unwrap();
                pending::<()>().await;
            });
            messages_to.send(()).unwrap();
            reader.await.unwrap();
            order.abort();
        });
    });
}
