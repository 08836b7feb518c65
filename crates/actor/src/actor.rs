//! The task of an actor: takes messages, hears orders, ends and begins incarnations. What an incarnation is, a guest in
//! its sandbox or a handler of the host, it leaves to a [`Blueprint`].

use std::{any::Any, future::poll_fn, sync::Arc, task::Poll};

use airssys_wasm_isolation::{Crash, CrashKind};
use airssys_wasm_limits::CancellationToken;
use airssys_wasm_registry::{MessageEnvelope, TraceContext};
use bytes::Bytes;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until},
};
use tracing::{Instrument, field};

use crate::{
    CrashReport, DeadReason, During, HealthError, StartError, SystemEvent, UpgradeError,
    cell::{Cell, Control, Delivery, Inbox, Lifecycle, ReplyTo, Unanswered},
    policy::{History, RestartPolicy},
    report::Failure,
    supervisor::{ChildEvent, Happened},
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

    /// What it can do with state: snapshot and restore.
    fn keeps_state(&self) -> (bool, bool);
}

/// An incarnation. Whatever crashes it consumes it.
pub(crate) trait Live: Send + Sized + 'static {
    /// Handles a message, in a trace if it came in one. May take the reply and answer by itself.
    fn handle(
        self,
        message: &MessageEnvelope,
        trace: Option<Box<TraceContext>>,
        reply: &mut Option<ReplyTo>,
        interrupt: &CancellationToken,
    ) -> impl Future<Output = Result<(Handled, Self), Crash>> + Send;

    fn health(
        self,
        interrupt: &CancellationToken,
    ) -> impl Future<Output = Result<(Result<(), HealthError>, Self), Crash>> + Send;

    fn snapshot(
        self,
        interrupt: &CancellationToken,
    ) -> impl Future<Output = Result<(Result<Bytes, String>, Self), Crash>> + Send;

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
    /// A new version that has yet to prove itself.
    probation: Option<Probation>,
    /// A message that is delivered again, and how often it has killed.
    again: Option<(MessageEnvelope, u32)>,
    interrupt: CancellationToken,
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

/// What ends the wait for a next incarnation.
enum Wake<L> {
    Start,
    /// Started already, by an upgrade.
    Started(L),
    Over,
}

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
            cell,
            inbox,
            blueprint: Arc::new(blueprint),
            previous: None,
            policy,
            deaths_allowed: redelivery.unwrap_or(1).max(1),
            owner,
            incarnations: 0,
            probation: None,
            again: None,
            interrupt: CancellationToken::new(),
        }
    }

    pub(crate) fn cell(&self) -> &Arc<Cell> {
        &self.cell
    }

    /// Begins the next incarnation.
    pub(crate) async fn start(&mut self) -> Result<B::Live, Failure> {
        let mut state = None;
        if let Some(probation) = self.probation.take()
            && let Some(previous) = self.previous.take()
        {
            state = probation.state;
            self.cell.set_message_size(previous.message_size());
            self.blueprint = previous;
            self.event(|actor| SystemEvent::RolledBack { actor: actor.cell.address.clone() });
        }
        self.begin(&Arc::clone(&self.blueprint), state).await.map_err(|error| Failure::Start(Arc::new(error)))
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
            Err(_) => {}
        }
        live
    }

    /// Lives, from an incarnation or from waiting for the order to start, until it is over for good.
    pub(crate) async fn run(mut self, first: Option<B::Live>) {
        let mut live = match first {
            Some(live) => Some(live),
            None => self.next(Exit::Suspended, true).await,
        };
        while let Some(incarnation) = live {
            let exit = self.serve(incarnation).await;
            live = self.next(exit, false).await;
        }
        self.finish().await;
    }

    /// Takes messages and orders until the incarnation is over.
    async fn serve(&mut self, mut live: B::Live) -> Exit {
        loop {
            while self.cell.is_urgent() {
                while let Ok(control) = self.inbox.control.try_recv() {
                    live = match self.obey(live, control).await {
                        Ok(live) => live,
                        Err(exit) => return exit,
                    };
                }
            }
            let (delivery, deaths) = match self.again.take() {
                Some((message, deaths)) => (Delivery { message, reply: None }, deaths),
                None => match self.receive().await {
                    Received::Message(delivery) => (delivery, 0),
                    Received::Control(control) => {
                        live = match self.obey(live, control).await {
                            Ok(live) => live,
                            Err(exit) => return exit,
                        };
                        continue;
                    }
                    Received::Drained => return self.shut_down(live).await,
                },
            };
            live = match self.handle(live, delivery, deaths).await {
                Ok(live) => live,
                Err(exit) => return exit,
            };
        }
    }

    /// The next message; an order only if there is none, for a busy actor sees those by a flag.
    async fn receive(&mut self) -> Received {
        let Inbox { mailbox, control } = &mut self.inbox;
        poll_fn(|cx| match mailbox.poll_recv(cx) {
            Poll::Ready(Some(delivery)) => Poll::Ready(Received::Message(delivery)),
            Poll::Ready(None) => Poll::Ready(Received::Drained),
            Poll::Pending => match control.poll_recv(cx) {
                Poll::Ready(Some(order)) => Poll::Ready(Received::Control(order)),
                // The cell holds a sender.
                Poll::Ready(None) | Poll::Pending => Poll::Pending,
            },
        })
        .await
    }

    async fn handle(&mut self, live: B::Live, delivery: Delivery, deaths: u32) -> Result<B::Live, Exit> {
        let Delivery { message, mut reply } = delivery;
        if message.is_late() {
            match reply {
                Some(reply) => _ = reply.send(Err(Unanswered::Late)),
                None => self.dead_letter(message, DeadReason::Late),
            }
            return Ok(live);
        }
        let asked = reply.is_some();
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
        let handled = live.handle(&message, trace, &mut reply, &self.interrupt).instrument(span).await;
        match handled {
            Ok((handled, live)) => {
                self.cell.set_memory(live.memory());
                self.cell.metrics.done(taken, live.memory());
                if let Some(probation) = &mut self.probation {
                    probation.messages -= 1;
                    if probation.messages == 0 {
                        self.probation = None;
                    }
                }
                self.answer(reply, asked, handled);
                Ok(live)
            }
            Err(crash) => {
                let report = self.report(During::Message, crash);
                let asker = reply.or_else(|| self.cell.reply_subject.lock().take().map(|(_, reply)| reply));
                let interrupted = matches!(report.crash.kind(), CrashKind::Cancelled);
                let deaths = deaths + u32::from(!interrupted);
                if let Some(asker) = asker {
                    asker.send(Err(Unanswered::Crashed(Arc::clone(&report))));
                }
                if !asked && self.deaths_allowed > 1 && deaths < self.deaths_allowed {
                    self.again = Some((message, deaths));
                } else if interrupted {
                    self.dead_letter(message, DeadReason::Interrupted);
                } else {
                    self.dead_letter(message, DeadReason::Poison { deaths, report: Arc::clone(&report) });
                }
                Err(Exit::Failed(Failure::Crash(report)))
            }
        }
    }

    /// Hands an answer to whoever waits for it.
    fn answer(&self, reply: Option<ReplyTo>, asked: bool, handled: Handled) {
        if let Err(message) = &handled {
            self.cell.metrics.failures.increment(1);
            if !asked {
                tracing::warn!(actor = %self.cell.id(), "the handler failed: {}", message.escape_debug());
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

    /// Follows an order while an incarnation lives.
    async fn obey(&mut self, live: B::Live, control: Control) -> Result<B::Live, Exit> {
        match control {
            Control::Kill => Err(Exit::Over),
            Control::Stop { drain: false } => Err(self.shut_down(live).await),
            Control::Stop { drain: true } => {
                self.cell.set_state(Lifecycle::Stopping);
                self.inbox.mailbox.close();
                Ok(live)
            }
            Control::Suspend { order } => {
                self.follow(order);
                Err(match self.shut_down(live).await {
                    Exit::Over => Exit::Suspended,
                    other => other,
                })
            }
            Control::Start { order } => {
                self.follow(order);
                Ok(live)
            }
            Control::Health { done } => match live.health(&self.interrupt).await {
                Ok((health, live)) => {
                    _ = done.send(health);
                    Ok(live)
                }
                Err(crash) => {
                    let report = self.report(During::Health, crash);
                    _ = done.send(Err(HealthError::Crashed(Arc::clone(&report))));
                    Err(Exit::Failed(Failure::Crash(report)))
                }
            },
            Control::Upgrade { version, options, done } => match self.next_version(version, options.discard_state) {
                Ok(next) => self.switch(live, next, options.probation, done).await,
                Err(error) => {
                    _ = done.send(Err(error));
                    Ok(live)
                }
            },
            Control::Rollback { done } => match self.previous.clone() {
                Some(previous) => self.switch(live, previous, 0, done).await,
                None => {
                    _ = done.send(Err(UpgradeError::NothingBefore));
                    Ok(live)
                }
            },
        }
    }

    fn next_version(&self, version: Box<dyn Any + Send>, discard_state: bool) -> Result<Arc<B>, UpgradeError> {
        let version = version.downcast::<B::Version>().map_err(|_| UpgradeError::OtherSystem)?;
        let next = self.blueprint.upgraded(*version)?;
        let (gives, takes) = (self.blueprint.keeps_state().0, next.keeps_state().1);
        if gives && !takes && !discard_state {
            return Err(UpgradeError::StateWouldBeLost);
        }
        Ok(Arc::new(next))
    }

    /// Goes over to another version between two messages. The old one goes on unless the new one is alive.
    async fn switch(
        &mut self,
        live: B::Live,
        next: Arc<B>,
        probation: u32,
        done: oneshot::Sender<Result<u64, UpgradeError>>,
    ) -> Result<B::Live, Exit> {
        let moves_state = self.blueprint.keeps_state().0 && next.keeps_state().1;
        let (state, live) = if moves_state {
            match live.snapshot(&self.interrupt).await {
                Ok((Ok(state), live)) => (Some(state), live),
                Ok((Err(message), live)) => {
                    _ = done.send(Err(UpgradeError::SnapshotRefused { message }));
                    return Ok(live);
                }
                Err(crash) => {
                    let report = self.report(During::Snapshot, crash);
                    _ = done.send(Err(UpgradeError::SnapshotCrashed(Arc::clone(&report))));
                    return Err(Exit::Failed(Failure::Crash(report)));
                }
            }
        } else {
            (None, live)
        };
        let before = self.cell.incarnation();
        match self.begin(&next, state.clone()).await {
            Ok(new) => {
                if let Err(crash) = live.shutdown(&self.interrupt).await {
                    self.report(During::Shutdown, crash);
                }
                self.adopt(next);
                self.probation = (probation > 0).then_some(Probation { messages: probation, state });
                _ = done.send(Ok(self.cell.incarnation()));
                Ok(new)
            }
            Err(error) => {
                self.cell.set_incarnation(before);
                self.cell.set_memory(live.memory());
                _ = done.send(Err(UpgradeError::NotStarted(error)));
                Ok(live)
            }
        }
    }

    fn adopt(&mut self, next: Arc<B>) {
        self.cell.set_message_size(next.message_size());
        self.previous = Some(std::mem::replace(&mut self.blueprint, next));
        self.event(|actor| SystemEvent::Upgraded {
            actor: actor.cell.address.clone(),
            incarnation: actor.cell.incarnation(),
        });
    }

    async fn shut_down(&mut self, live: B::Live) -> Exit {
        self.cell.set_state(Lifecycle::Stopping);
        if let Err(crash) = live.shutdown(&self.interrupt).await {
            self.report(During::Shutdown, crash);
        }
        Exit::Over
    }

    /// From the end of one incarnation to the next, if there is one.
    async fn next(&mut self, mut exit: Exit, first: bool) -> Option<B::Live> {
        if self.cell.state() == Lifecycle::Stopping && matches!(exit, Exit::Failed(_)) {
            // It was draining: what is left goes to the dead letters.
            exit = Exit::Over;
        }
        let mut announce = !first;
        loop {
            let at = match &exit {
                Exit::Over => return None,
                Exit::Suspended => {
                    if announce {
                        self.tell_supervisor(|| Happened::Suspended);
                    }
                    None
                }
                Exit::Failed(failure) => match self.after(failure) {
                    Some(at) => at,
                    None => return None,
                },
            };
            announce = true;
            if !first {
                self.cell.set_state(Lifecycle::Restarting);
            }
            match self.wait(at).await {
                Wake::Over => return None,
                Wake::Started(live) => return Some(live),
                Wake::Start => match self.start().await {
                    Ok(live) => {
                        if !first {
                            self.cell.count_restart();
                            self.cell.metrics.restarts.increment(1);
                        }
                        self.tell_supervisor(|| Happened::Started);
                        return Some(live);
                    }
                    Err(failure) => exit = Exit::Failed(failure),
                },
            }
        }
    }

    /// What follows a failure: a start at some time, a start by order (`Some(None)`), or the end.
    fn after(&mut self, failure: &Failure) -> Option<Option<Instant>> {
        if let Failure::Start(error) = failure {
            tracing::warn!(actor = %self.cell.id(), "not started: {error}");
        }
        let Owner::Itself(history) = &mut self.owner else {
            self.tell_supervisor(|| Happened::Failed(failure.clone()));
            return Some(None);
        };
        let (restart, backoff) = self.policy.answer(failure);
        if !restart {
            return None;
        }
        let now = Instant::now();
        let Some(nth) = history.note(&self.policy.intensity, now) else {
            tracing::error!(
                actor = %self.cell.id(),
                "given up after {} restarts within {:?}",
                self.policy.intensity.restarts,
                self.policy.intensity.within
            );
            self.event(|actor| SystemEvent::GivenUp { name: actor.cell.id().clone() });
            return None;
        };
        let wait = backoff.unwrap_or(self.policy.backoff).delay(nth, &mut self.random);
        self.event(|actor| SystemEvent::Restarting { actor: actor.cell.address.clone(), after: wait });
        Some(Some(now + wait))
    }

    /// Waits until a time or for an order, without an incarnation.
    async fn wait(&mut self, at: Option<Instant>) -> Wake<B::Live> {
        loop {
            let control = match at {
                Some(at) if at <= Instant::now() => match self.inbox.control.try_recv() {
                    Ok(control) => control,
                    Err(_) => return Wake::Start,
                },
                Some(at) => tokio::select! {
                    biased;
                    control = self.inbox.control.recv() => control.expect("the cell holds a sender"),
                    () = sleep_until(at) => return Wake::Start,
                },
                None => self.inbox.control.recv().await.expect("the cell holds a sender"),
            };
            match control {
                Control::Kill | Control::Stop { .. } => return Wake::Over,
                Control::Start { order } => {
                    self.follow(order);
                    return Wake::Start;
                }
                Control::Suspend { order } => {
                    self.follow(order);
                    self.tell_supervisor(|| Happened::Suspended);
                }
                Control::Health { done } => {
                    _ = done.send(Err(HealthError::NotRunning { state: self.cell.state() }));
                }
                Control::Upgrade { version, done, .. } => {
                    // The cure for a version that keeps crashing. There is no state to take over.
                    let next = match self.next_version(version, true) {
                        Ok(next) => next,
                        Err(error) => {
                            _ = done.send(Err(error));
                            continue;
                        }
                    };
                    if let Some(live) = self.begin_other(next, done).await {
                        return Wake::Started(live);
                    }
                }
                Control::Rollback { done } => match self.previous.clone() {
                    Some(previous) => {
                        if let Some(live) = self.begin_other(previous, done).await {
                            return Wake::Started(live);
                        }
                    }
                    None => _ = done.send(Err(UpgradeError::NothingBefore)),
                },
            }
        }
    }

    async fn begin_other(&mut self, next: Arc<B>, done: oneshot::Sender<Result<u64, UpgradeError>>) -> Option<B::Live> {
        match self.begin(&next, None).await {
            Ok(live) => {
                self.adopt(next);
                self.tell_supervisor(|| Happened::Started);
                _ = done.send(Ok(self.cell.incarnation()));
                Some(live)
            }
            Err(error) => {
                _ = done.send(Err(UpgradeError::NotStarted(error)));
                None
            }
        }
    }

    /// The end: nobody is left waiting, and nothing is left behind.
    async fn finish(mut self) {
        self.cell.set_state(Lifecycle::Stopping);
        self.inbox.mailbox.close();
        // Ends when the last sender that had got hold of a place has used it. The rest is done by dropping.
        while let Some(delivery) = self.inbox.mailbox.recv().await {
            self.give_up(delivery);
        }
    }

    /// A message that nobody will handle. Dropping the reply tells the asker.
    fn give_up(&self, Delivery { message, reply }: Delivery) {
        if reply.is_none() {
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
        let report = Arc::new(CrashReport {
            actor: self.cell.address.clone(),
            incarnation: self.cell.incarnation(),
            during,
            crash,
        });
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
        self.inbox.mailbox.close();
        while let Ok(delivery) = self.inbox.mailbox.try_recv() {
            self.give_up(delivery);
        }
        if let Some((message, _)) = self.again.take() {
            self.dead_letter(message, DeadReason::Interrupted);
        }
        drop(self.cell.reply_subject.lock().take());
        let subscriptions = std::mem::take(&mut *self.cell.subscriptions.lock());
        drop(subscriptions);
        // Fails when somebody took the name away before.
        _ = self.cell.core.registry.deregister(&self.cell.address);
        self.cell.set_state(Lifecycle::Stopped);
        self.cell.metrics.actors.decrement(1);
        self.event(|actor| SystemEvent::Stopped { actor: actor.cell.address.clone() });
        self.tell_supervisor(|| Happened::Gone);
        self.cell.ended.cancel();
    }
}

/// What an actor wakes up for.
enum Received {
    Message(Delivery),
    Control(Control),
    /// No more messages: the mailbox was closed.
    Drained,
}
