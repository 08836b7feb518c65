//! The task of an actor: takes messages, hears orders, ends and begins incarnations. What an incarnation is, a guest in
//! its sandbox or a handler of the host, it leaves to a [`Blueprint`].

use std::{any::Any, future::poll_fn, sync::Arc, task::Poll};

use airssys_wasm_isolation::{Crash, CrashKind};
use airssys_wasm_limits::CancellationToken;
use airssys_wasm_registry::{MessageEnvelope, TraceContext};
use bytes::Bytes;
use tokio::{
    sync::{
        mpsc::{self, error::TryRecvError},
        oneshot,
    },
    time::{Instant, sleep_until},
};
use tracing::{Instrument, field};

use crate::{
    CrashReport, DeadReason, During, HealthError, Intensity, StartError, SystemEvent, UpgradeError, UpgradeOptions,
    failure::policy::{History, RestartPolicy, later},
    failure::report::{Failure, is_news, shown},
    runtime::cell::{Cell, Control, Delivery, Inbox, Lifecycle, ReplyTo, Unanswered, Upgrade},
    supervision::supervisor::{ChildEvent, Happened},
};

/// What incarnations are made from.
pub(crate) trait Blueprint: Send + Sync + Sized + 'static {
    type Live: Live;
    /// What an upgrade brings.
    type Version: Send + 'static;

    /// Brings an incarnation to life, with what another version left behind, until the token is cancelled.
    fn start(
        &self,
        cell: &Arc<Cell>,
        state: Option<Bytes>,
        interrupt: &CancellationToken,
    ) -> impl Future<Output = Result<Self::Live, StartError>> + Send;

    /// The same with another version.
    fn upgraded(&self, version: Self::Version) -> Result<Self, UpgradeError>;

    /// Bytes of payload that its incarnations take.
    fn message_size(&self) -> u64;

    /// Whether its incarnations can leave state behind, and whether they can take it.
    fn keeps_state(&self) -> (bool, bool);
}

/// An incarnation. After a crash it is dropped, and never called again.
pub(crate) trait Live: Send + Sized + 'static {
    /// Handles a message, in a trace if it came in one. May take the reply and answer by itself.
    fn handle(
        &mut self,
        message: &MessageEnvelope,
        trace: Option<Box<TraceContext>>,
        reply: &mut Option<ReplyTo>,
        interrupt: &CancellationToken,
    ) -> impl Future<Output = Result<Handled, Crash>> + Send;

    fn health(
        &mut self,
        interrupt: &CancellationToken,
    ) -> impl Future<Output = Result<Result<(), HealthError>, Crash>> + Send;

    fn snapshot(
        &mut self,
        interrupt: &CancellationToken,
    ) -> impl Future<Output = Result<Result<Bytes, String>, Crash>> + Send;

    /// The last thing it does.
    fn shutdown(self, interrupt: &CancellationToken) -> impl Future<Output = Result<(), Crash>> + Send;

    /// Bytes of memory that it has.
    fn memory(&self) -> u64;
}

/// What a handler came back with.
pub(crate) type Handled = Result<Option<Bytes>, String>;

/// Who decides on restarts.
pub(crate) enum Owner {
    /// The actor's own policy.
    Itself(History),
    /// A supervisor, which is told what happened and gives orders.
    Supervisor { child: usize, order: u64, events: mpsc::UnboundedSender<ChildEvent> },
}

/// One actor: the task that owns an incarnation.
pub(crate) struct ComponentActor<B: Blueprint> {
    cell: Arc<Cell>,
    inbox: Inbox,
    blueprint: Arc<B>,
    /// What a rollback goes back to.
    previous: Option<Arc<B>>,
    policy: RestartPolicy,
    /// How many times a message may kill the actor before it is not delivered again. 1 is without redelivery.
    deaths_allowed: u32,
    owner: Owner,
    random: fastrand::Rng,
    /// How many there have been, those of upgrades that failed included.
    incarnations: u64,
    /// What ends the present incarnation.
    interrupt: CancellationToken,
    /// A new version that has yet to prove itself.
    probation: Option<Probation>,
    /// State that waits for an incarnation to take it.
    state: Option<Bytes>,
    /// The message that is being handled, or is to be delivered again.
    hand: Option<Delivery>,
    /// The crashes that it caused: how many, and the last of them.
    deaths: Option<(u32, Arc<CrashReport>)>,
    /// Errors that the handler came back with and nobody waited for.
    unheard: u64,
    buried: bool,
}

/// A new version that goes back by itself if it fails before it has handled so many messages.
struct Probation {
    messages: u32,
    /// What the version before had left.
    state: Option<Bytes>,
}

/// Why an incarnation is over.
enum Exit {
    Failed(Failure),
    /// By order of the supervisor, to be started again.
    Suspended,
    /// For good.
    Over,
}

/// What comes after an incarnation.
enum Next {
    StartAt(Instant),
    StartByOrder,
    End,
}

/// What ends the wait for a next incarnation.
enum Wake<L> {
    Start,
    /// Started already, by an upgrade.
    Started(L),
    Over,
}

/// What an actor wakes up for.
enum Received {
    /// A message, which is in its hand now.
    Message,
    Order(Control),
    /// No more messages: the mailbox was closed.
    Drained,
}

type Done = oneshot::Sender<Result<u64, UpgradeError>>;

impl<B: Blueprint> ComponentActor<B> {
    /// An actor without an incarnation yet.
    pub(crate) fn new(
        cell: Arc<Cell>,
        inbox: Inbox,
        blueprint: B,
        policy: RestartPolicy,
        redelivery: Option<u32>,
        owner: Owner,
    ) -> Self {
        cell.set_message_size(blueprint.message_size());
        cell.metrics.actors.increment(1);
        Self {
            random: cell.core.random(),
            // One that begins with the first incarnation.
            interrupt: cell.ended.clone(),
            cell,
            inbox,
            blueprint: Arc::new(blueprint),
            previous: None,
            policy,
            deaths_allowed: redelivery.unwrap_or(1).max(1),
            owner,
            incarnations: 0,
            probation: None,
            state: None,
            hand: None,
            deaths: None,
            unheard: 0,
            buried: false,
        }
    }

    pub(crate) fn cell(&self) -> &Arc<Cell> {
        &self.cell
    }

    /// Begins the next incarnation.
    pub(crate) async fn start(&mut self) -> Result<B::Live, Failure> {
        let (blueprint, state) = (Arc::clone(&self.blueprint), self.state.clone());
        let live = self.begin(&blueprint, state).await.map_err(|error| Failure::Start(Arc::new(error)))?;
        self.state = None;
        Ok(live)
    }

    async fn begin(&mut self, blueprint: &Arc<B>, state: Option<Bytes>) -> Result<B::Live, StartError> {
        self.incarnations += 1;
        self.interrupt = self.cell.begin_incarnation(self.incarnations);
        let live = blueprint.start(&self.cell, state, &self.interrupt).await;
        match &live {
            Ok(live) => {
                self.cell.set_memory(live.memory());
                if self.cell.state() != Lifecycle::Stopping {
                    self.cell.set_state(Lifecycle::Running);
                }
                self.event(|actor| SystemEvent::Started {
                    actor: actor.cell.address.clone(),
                    incarnation: actor.cell.incarnation(),
                });
            }
            Err(StartError::Crash(report)) => self.note_crash(report),
            Err(error) => tracing::warn!(actor = %self.cell.id(), "not started: {}", shown(&error.to_string())),
        }
        live
    }

    /// Lives, from an incarnation or from waiting for the order to start, until it is over for good.
    ///
    /// What happens rarely is in a box: its futures would make that of each actor several times as large.
    pub(crate) async fn run(mut self, first: Option<B::Live>) {
        let mut live = match first {
            Some(live) => Some(live),
            None => Box::pin(self.first()).await,
        };
        while let Some(mut incarnation) = live {
            let exit = match self.serve(&mut incarnation).await {
                Some(exit) => {
                    drop(incarnation);
                    exit
                }
                // It has ended by itself, and may say good-bye.
                None => Box::pin(self.shut_down(incarnation)).await,
            };
            live = Box::pin(self.next(exit)).await;
        }
        self.finish().await;
    }

    /// Takes messages and orders until the incarnation is over: by a failure or a kill, or (`None`) by a stop.
    async fn serve(&mut self, live: &mut B::Live) -> Option<Exit> {
        loop {
            if self.hand.is_none() {
                match self.receive().await {
                    Received::Message => {}
                    Received::Drained => return None,
                    Received::Order(order) => {
                        self.cell.order_taken();
                        if let Some(over) = Box::pin(self.obey(live, order)).await {
                            return over;
                        }
                        continue;
                    }
                }
            }
            if let Err(failure) = self.handle(live).await {
                return Some(Exit::Failed(failure));
            }
        }
    }

    /// Orders first; then messages. An idle actor listens to both.
    async fn receive(&mut self) -> Received {
        let Self { cell, inbox: Inbox { mailbox, control }, hand, .. } = self;
        poll_fn(|cx| {
            if cell.has_orders()
                && let Poll::Ready(Some(order)) = control.poll_recv(cx)
            {
                return Poll::Ready(Received::Order(order));
            }
            match mailbox.poll_recv(cx) {
                Poll::Ready(Some(mut delivery)) => {
                    delivery.taken();
                    *hand = Some(delivery);
                    Poll::Ready(Received::Message)
                }
                Poll::Ready(None) => Poll::Ready(Received::Drained),
                Poll::Pending => match control.poll_recv(cx) {
                    Poll::Ready(Some(order)) => Poll::Ready(Received::Order(order)),
                    // The cell holds a sender.
                    Poll::Ready(None) | Poll::Pending => Poll::Pending,
                },
            }
        })
        .await
    }

    /// Handles the message in hand.
    async fn handle(&mut self, live: &mut B::Live) -> Result<(), Failure> {
        let Some(delivery) = &mut self.hand else { return Ok(()) };
        let mut reply = delivery.reply.take();
        if delivery.message.is_late() {
            match reply {
                Some(reply) => _ = reply.send(Err(Unanswered::Late)),
                None => self.bury_hand(DeadReason::Late),
            }
            self.hand = None;
            return Ok(());
        }
        let asked = reply.is_some();
        let message = &delivery.message;
        let taken = self.cell.metrics.taken(|| self.inbox.mailbox.len());
        // What this actor sends meanwhile is below a span of its own.
        let trace = message
            .trace
            .as_deref()
            .map(|parent| Box::new(TraceContext { parent_id: self.random.u64(1..), ..*parent }));
        let hex = |number: Option<u128>| number.map(|number| field::display(format!("{number:x}")));
        let span = tracing::debug_span!(
            "handle",
            actor = %self.cell.id(),
            incarnation = self.cell.incarnation(),
            trace_id = hex(trace.as_ref().map(|trace| trace.trace_id)),
            span_id = hex(trace.as_ref().map(|trace| trace.parent_id.into())),
            parent_id = hex(message.trace.as_ref().map(|trace| trace.parent_id.into())),
        );
        // Entering and leaving a span costs something even where it is none. In a box, for there is room for one of them.
        let handled = if span.is_disabled() {
            live.handle(message, trace, &mut reply, &self.interrupt).await
        } else {
            Box::pin(live.handle(message, trace, &mut reply, &self.interrupt).instrument(span)).await
        };
        match handled {
            Ok(handled) => {
                self.hand = None;
                self.deaths = None;
                self.cell.set_memory(live.memory());
                self.cell.metrics.done(taken, live.memory());
                if let Some(probation) = &mut self.probation {
                    probation.messages -= 1;
                    if probation.messages == 0 {
                        self.probation = None;
                    }
                }
                self.answer(reply, asked, handled);
                Ok(())
            }
            Err(crash) => {
                let report = self.report(During::Message, crash);
                let asker = reply.or_else(|| self.cell.reply_subject.lock().take().map(|(_, reply)| reply));
                if let Some(asker) = asker {
                    asker.send(Err(Unanswered::Crashed(Arc::clone(&report))));
                }
                if !matches!(report.crash.kind(), CrashKind::Cancelled) {
                    let deaths = self.deaths.take().map_or(0, |(deaths, _)| deaths) + 1;
                    self.deaths = Some((deaths, Arc::clone(&report)));
                }
                let deaths = self.deaths.as_ref().map_or(0, |(deaths, _)| *deaths);
                // One that is not asked is delivered again, as long as that is allowed.
                if asked || deaths >= self.deaths_allowed || self.deaths_allowed == 1 {
                    self.bury_hand(DeadReason::Interrupted);
                }
                Err(Failure::Crash(report))
            }
        }
    }

    /// Puts the message in hand to the dead letters: as poison if it has killed, else for that reason.
    fn bury_hand(&mut self, reason: DeadReason) {
        if let Some(Delivery { message, .. }) = self.hand.take() {
            let reason = match self.deaths.take() {
                Some((deaths, report)) => DeadReason::Poison { deaths, report },
                None => reason,
            };
            self.dead_letter(message, reason);
        }
    }

    /// Hands an answer to whoever waits for it.
    fn answer(&mut self, reply: Option<ReplyTo>, asked: bool, handled: Handled) {
        if let Err(message) = &handled {
            self.cell.metrics.failures.increment(1);
            // Nobody else hears of it.
            if !asked || reply.is_none() {
                self.unheard += 1;
                if is_news(self.unheard) {
                    tracing::warn!(actor = %self.cell.id(), nth = self.unheard, "the handler failed: {}", shown(message));
                }
            }
        }
        let Some(reply) = reply else { return };
        let answer = match handled {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err(Unanswered::NoReply),
            Err(message) => Err(Unanswered::Failed(message)),
        };
        if !reply.send(answer) {
            self.cell.metrics.unclaimed.increment(1);
            tracing::debug!(actor = %self.cell.id(), "nobody waits for the answer any more");
        }
    }

    /// Follows an order while an incarnation lives, and says whether that is over: by a kill, by a crash, or (`Some(None)`)
    /// with a good-bye.
    async fn obey(&mut self, live: &mut B::Live, order: Control) -> Option<Option<Exit>> {
        if self.cell.is_killed() {
            return Some(Some(Exit::Over));
        }
        match order {
            Control::Kill => return Some(Some(Exit::Over)),
            Control::Stop { drain } => {
                self.cell.set_state(Lifecycle::Stopping);
                self.close();
                if !drain {
                    return Some(None);
                }
            }
            Control::Suspend { order } => {
                self.follow(order);
                // One that drains ends for good all the same.
                if self.cell.state() != Lifecycle::Stopping {
                    self.cell.set_state(Lifecycle::Restarting);
                }
                return Some(None);
            }
            Control::Start { order } => {
                // An upgrade was faster than its supervisor.
                self.follow(order);
                self.tell_supervisor(|| Happened::Started);
            }
            Control::Health { done } => match live.health(&self.interrupt).await {
                Ok(health) => _ = done.send(health),
                Err(crash) => {
                    let report = self.report(During::Health, crash);
                    _ = done.send(Err(HealthError::Crashed(Arc::clone(&report))));
                    return Some(Some(Exit::Failed(Failure::Crash(report))));
                }
            },
            Control::Upgrade(upgrade) => {
                let Upgrade { version, options, done } = *upgrade;
                match self.next_version(version) {
                    Ok(next) => return self.switch(live, next, options, done).await.map(Some),
                    Err(error) => _ = done.send(Err(error)),
                }
            }
        }
        None
    }

    /// The version that is asked for, or the one before.
    fn next_version(&self, version: Option<Box<dyn Any + Send>>) -> Result<Arc<B>, UpgradeError> {
        let Some(version) = version else { return self.previous.clone().ok_or(UpgradeError::NothingBefore) };
        let version = version.downcast::<B::Version>().map_err(|_| UpgradeError::OtherSystem)?;
        self.blueprint.upgraded(*version).map(Arc::new)
    }

    /// Goes over to another version between two messages. The old one goes on unless the new one is alive. Says whether
    /// the old one crashed over it.
    async fn switch(&mut self, live: &mut B::Live, next: Arc<B>, options: UpgradeOptions, done: Done) -> Option<Exit> {
        let (gives, takes) = (self.blueprint.keeps_state().0, next.keeps_state().1);
        let mut state = None;
        if gives && takes {
            match live.snapshot(&self.interrupt).await {
                Ok(Ok(left)) => state = Some(left),
                Ok(Err(_)) if options.discard_state => {}
                Ok(Err(message)) => {
                    _ = done.send(Err(UpgradeError::SnapshotRefused { message }));
                    return None;
                }
                Err(crash) => {
                    let report = self.report(During::Snapshot, crash);
                    _ = done.send(Err(UpgradeError::SnapshotCrashed(Arc::clone(&report))));
                    return Some(Exit::Failed(Failure::Crash(report)));
                }
            }
        } else if gives && !options.discard_state {
            _ = done.send(Err(UpgradeError::StateWouldBeLost));
            return None;
        }
        let (incarnation, patterns) = (self.cell.incarnation(), self.cell.patterns());
        match self.begin(&next, state.clone()).await {
            Ok(new) => {
                let old = std::mem::replace(live, new);
                let subscribed = self.cell.patterns();
                if let Err(crash) = old.shutdown(&self.interrupt).await {
                    self.report_of(incarnation, During::Shutdown, crash);
                }
                // What the old version did at its end to subscriptions is not the new one's will.
                self.cell.set_patterns(&subscribed);
                self.adopt(next, options.probation, state);
                _ = done.send(Ok(self.cell.incarnation()));
            }
            Err(error) => {
                self.cell.set_incarnation(incarnation);
                self.cell.set_memory(live.memory());
                self.cell.set_patterns(&patterns);
                _ = done.send(Err(UpgradeError::NotStarted(error)));
            }
        }
        None
    }

    fn adopt(&mut self, next: Arc<B>, probation: u32, state: Option<Bytes>) {
        self.cell.set_message_size(next.message_size());
        self.previous = Some(std::mem::replace(&mut self.blueprint, next));
        self.probation = (probation > 0).then_some(Probation { messages: probation, state });
        self.event(|actor| SystemEvent::Upgraded {
            actor: actor.cell.address.clone(),
            incarnation: actor.cell.incarnation(),
        });
    }

    /// Lets an incarnation say good-bye, which is to be started again or is over.
    async fn shut_down(&mut self, live: B::Live) -> Exit {
        let exit = if self.cell.state() == Lifecycle::Restarting { Exit::Suspended } else { Exit::Over };
        if let Err(crash) = live.shutdown(&self.interrupt).await {
            self.report(During::Shutdown, crash);
        }
        exit
    }

    /// Waits for the order to start for the first time, as those under a supervisor do.
    async fn first(&mut self) -> Option<B::Live> {
        loop {
            match self.wait(None).await {
                Wake::Over => return None,
                Wake::Started(live) => return Some(live),
                Wake::Start => match self.start().await {
                    Ok(live) => {
                        self.tell_supervisor(|| Happened::Started);
                        return Some(live);
                    }
                    Err(failure) => self.tell_supervisor(|| Happened::Failed(failure)),
                },
            }
        }
    }

    /// From the end of one incarnation to the next, if there is one.
    async fn next(&mut self, mut exit: Exit) -> Option<B::Live> {
        if let Exit::Failed(_) = exit
            && let Some(probation) = self.probation.take()
            && let Some(previous) = self.previous.take()
            && !self.cell.is_killed()
            && self.cell.state() != Lifecycle::Stopping
        {
            // Whatever the policy: this failure is the new version's.
            self.cell.set_state(Lifecycle::Restarting);
            self.state = probation.state;
            self.cell.set_message_size(previous.message_size());
            self.blueprint = previous;
            self.event(|actor| SystemEvent::RolledBack { actor: actor.cell.address.clone() });
            match self.start().await {
                Ok(live) => return Some(self.count_restart(live)),
                Err(failure) => exit = Exit::Failed(failure),
            }
        }
        loop {
            // A drain that fails is over: what is left goes to the dead letters.
            if self.cell.is_killed() || self.cell.state() == Lifecycle::Stopping {
                return None;
            }
            let at = match &exit {
                Exit::Over => return None,
                Exit::Suspended => {
                    self.tell_supervisor(|| Happened::Suspended);
                    None
                }
                Exit::Failed(failure) => match self.after(failure) {
                    Next::StartAt(at) => Some(at),
                    Next::StartByOrder => None,
                    Next::End => return None,
                },
            };
            self.cell.set_state(Lifecycle::Restarting);
            match self.wait(at).await {
                Wake::Over => return None,
                Wake::Started(live) => return Some(live),
                Wake::Start => match self.start().await {
                    Ok(live) => {
                        self.tell_supervisor(|| Happened::Started);
                        return Some(self.count_restart(live));
                    }
                    Err(failure) => {
                        exit = Exit::Failed(failure);
                        // One that fails at once, without end, leaves the worker to others in between.
                        tokio::task::yield_now().await;
                    }
                },
            }
        }
    }

    fn count_restart(&self, live: B::Live) -> B::Live {
        self.cell.count_restart();
        self.cell.metrics.restarts.increment(1);
        live
    }

    /// What follows a failure.
    fn after(&mut self, failure: &Failure) -> Next {
        let Owner::Itself(history) = &mut self.owner else {
            self.tell_supervisor(|| Happened::Failed(failure.clone()));
            return Next::StartByOrder;
        };
        let RestartPolicy { intensity, backoff, .. } = &self.policy;
        let reply = self.policy.answer(failure);
        if !reply.restart {
            return Next::End;
        }
        let (backoff, now) = (reply.backoff.unwrap_or(*backoff), Instant::now());
        let Some(wait) = history.note(intensity, &backoff, reply.counts, now, &mut self.random) else {
            let Intensity { restarts, within } = *intensity;
            tracing::error!(actor = %self.cell.id(), "given up after {restarts} restarts within {within:?}");
            self.event(|actor| SystemEvent::GivenUp { name: actor.cell.id().clone() });
            return Next::End;
        };
        self.event(|actor| SystemEvent::Restarting { actor: actor.cell.address.clone(), after: wait });
        Next::StartAt(later(now, wait))
    }

    /// Waits until a time or for an order, without an incarnation.
    async fn wait(&mut self, at: Option<Instant>) -> Wake<B::Live> {
        loop {
            if self.cell.is_killed() {
                return Wake::Over;
            }
            let order = match at {
                Some(at) if at <= Instant::now() => match self.inbox.control.try_recv() {
                    Ok(order) => order,
                    Err(_) => return Wake::Start,
                },
                Some(at) => tokio::select! {
                    biased;
                    order = self.inbox.control.recv() => order.expect("the cell holds a sender"),
                    () = sleep_until(at) => return Wake::Start,
                },
                None => self.inbox.control.recv().await.expect("the cell holds a sender"),
            };
            self.cell.order_taken();
            let Upgrade { version, options, done } = match order {
                Control::Kill | Control::Stop { .. } => return Wake::Over,
                Control::Start { order } => {
                    self.follow(order);
                    return Wake::Start;
                }
                Control::Suspend { order } => {
                    self.follow(order);
                    self.tell_supervisor(|| Happened::Suspended);
                    continue;
                }
                Control::Health { done } => {
                    _ = done.send(Err(HealthError::NotRunning { state: self.cell.state() }));
                    continue;
                }
                // The cure for a version that keeps crashing. There is no state but what waits already.
                Control::Upgrade(upgrade) => *upgrade,
            };
            let next = match self.next_version(version) {
                Ok(next) => next,
                Err(error) => {
                    _ = done.send(Err(error));
                    continue;
                }
            };
            let patterns = self.cell.patterns();
            match self.begin(&next, self.state.clone()).await {
                Ok(live) => {
                    let state = self.state.take();
                    self.adopt(next, options.probation, state);
                    self.tell_supervisor(|| Happened::Started);
                    _ = done.send(Ok(self.cell.incarnation()));
                    return Wake::Started(live);
                }
                Err(error) => {
                    self.cell.set_patterns(&patterns);
                    _ = done.send(Err(UpgradeError::NotStarted(error)));
                }
            }
        }
    }

    /// Takes no more messages.
    fn close(&mut self) {
        self.inbox.mailbox.close();
        self.cell.close_room();
    }

    /// The end.
    async fn finish(mut self) {
        self.bury();
        // Senders that had got hold of a place may still use it, whenever they are polled.
        while let Some(delivery) = self.inbox.mailbox.recv().await {
            self.give_up(delivery);
        }
    }

    /// Nobody is left waiting, and nothing is left behind.
    fn bury(&mut self) {
        if std::mem::replace(&mut self.buried, true) {
            return;
        }
        self.cell.set_state(Lifecycle::Stopping);
        self.close();
        self.bury_hand(DeadReason::Interrupted);
        drop(self.cell.reply_subject.lock().take());
        self.give_up_all();
        let subscriptions = std::mem::take(&mut *self.cell.subscriptions.lock());
        // They lock the broker when they are dropped.
        drop(subscriptions);
        // Fails when somebody took the name away before.
        _ = self.cell.core.registry.deregister(&self.cell.address);
        self.cell.set_state(Lifecycle::Stopped);
        self.cell.metrics.actors.decrement(1);
        self.event(|actor| SystemEvent::Stopped { actor: actor.cell.address.clone() });
        self.tell_supervisor(|| Happened::Gone);
        self.cell.ended.cancel();
    }

    fn give_up_all(&mut self) {
        while let Ok(delivery) = self.inbox.mailbox.try_recv() {
            self.give_up(delivery);
        }
    }

    /// A message that nobody will handle. Dropping the reply tells the asker, if there is still one.
    fn give_up(&self, Delivery { message, reply, .. }: Delivery) {
        if reply.is_none_or(|reply| reply.0.is_closed()) {
            self.dead_letter(message, DeadReason::Stopped);
        }
    }

    fn follow(&mut self, to: u64) {
        if let Owner::Supervisor { order, .. } = &mut self.owner {
            *order = to;
        }
    }

    fn tell_supervisor(&self, what: impl FnOnce() -> Happened) {
        if let Owner::Supervisor { child, order, events } = &self.owner {
            // Fails when the supervisor is gone, and then nobody waits for it.
            _ = events.send(ChildEvent { child: *child, order: *order, what: what() });
        }
    }

    fn dead_letter(&self, message: MessageEnvelope, reason: DeadReason) {
        self.cell.metrics.dead_letters.increment(1);
        self.cell.core.dead_letters.add(self.cell.address.clone(), message, reason);
    }

    fn report(&self, during: During, crash: Crash) -> Arc<CrashReport> {
        self.report_of(self.cell.incarnation(), during, crash)
    }

    fn report_of(&self, incarnation: u64, during: During, crash: Crash) -> Arc<CrashReport> {
        let report = Arc::new(CrashReport { actor: self.cell.address.clone(), incarnation, during, crash });
        self.note_crash(&report);
        report
    }

    fn note_crash(&self, report: &Arc<CrashReport>) {
        self.cell.metrics.crash(report.crash.kind().class());
        tracing::warn!(actor = %report.actor, incarnation = report.incarnation, "{}", report.crash);
        self.event(|_| SystemEvent::Crashed(Arc::clone(report)));
    }

    fn event(&self, event: impl FnOnce(&Self) -> SystemEvent) {
        self.cell.core.event(|| event(self));
    }
}

/// Also where the task is dropped with its runtime, or the spawning of it is given up half-way.
impl<B: Blueprint> Drop for ComponentActor<B> {
    fn drop(&mut self) {
        self.bury();
        // A sender on another thread may be about to use its place; it takes it a moment.
        for _ in 0..1_000 {
            match self.inbox.mailbox.try_recv() {
                Ok(delivery) => self.give_up(delivery),
                Err(TryRecvError::Disconnected) => return,
                Err(TryRecvError::Empty) => std::hint::spin_loop(),
            }
        }
    }
}
