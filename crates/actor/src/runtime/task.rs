//! The task of an actor: handles messages, follows orders, ends and starts incarnations. A [`Blueprint`] makes the
//! incarnations, guest or native.

use std::{
    collections::VecDeque,
    future::poll_fn,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
};

use airssys_wasm_isolation::{Crash, CrashKind};
use airssys_wasm_limits::CancellationToken;
use airssys_wasm_registry::{MessageEnvelope, Refusal, TraceContext, Undelivered};
use bytes::Bytes;
use tokio::time::{Instant, Sleep, sleep_until};
use tracing::{Instrument, Span, field};

use crate::{
    CallError, CrashReport, DeadReason, During, HealthError, Lifecycle, ProbationEnd, Recycle, RestartPolicy,
    StartError, SystemEvent, UpgradeError,
    failure::{
        declined::Declined,
        policy::later,
        report::{Failure, Short, shown},
    },
    runtime::{
        call::Call,
        cell::{Cell, Inbox},
        incarnation::{Blueprint, Live},
        keeper::Kept,
        mailbox::{Delivery, ReplyTo, Unanswered},
        orders::{Control, HealthDone, Upgrade},
        owner::{ChildEvent, ChildEventKind, Owner},
        recycle::Recycling,
        several::InFlight,
        turn::Turn,
        upgrade::Probation,
    },
};

/// An actor's task, which owns its incarnation.
pub(crate) struct ActorTask<B: Blueprint> {
    pub(super) cell: Arc<Cell>,
    pub(super) inbox: Inbox,
    pub(super) blueprint: Arc<B>,
    /// The target of a rollback.
    pub(super) previous: Option<Arc<B>>,
    pub(super) policy: RestartPolicy,
    /// Attempts per message. 1 means no redelivery.
    pub(super) attempts_allowed: u32,
    pub(super) owner: Owner,
    pub(super) random: fastrand::Rng,
    /// Incarnations so far, including those of failed upgrades.
    pub(super) incarnations: u64,
    /// Interrupts the present incarnation.
    pub(super) interrupt: CancellationToken,
    /// The probation of a new version.
    pub(super) probation: Option<Probation>,
    /// State for the next incarnation to restore.
    pub(super) state: Option<Bytes>,
    /// The message in flight: being handled, about to be, or to be redelivered.
    pub(super) in_flight: Option<Delivery>,
    /// Whether handling of the message in flight has begun.
    pub(super) attempted: bool,
    /// Failed attempts at the message in flight, and the last one's crash. Without a crash its handler asked to retry.
    pub(super) failed_attempts: Option<(u32, Option<Arc<CrashReport>>)>,
    /// Where several messages may be in flight.
    pub(super) several: Option<Box<InFlight>>,
    /// Until when redelivery of the message in flight waits.
    pub(super) pause: Option<Pin<Box<Sleep>>>,
    /// Handler errors without an asker.
    pub(super) unheard: u64,
    /// `None` if the actor is never recycled.
    pub(super) recycling: Option<Box<Recycling>>,
    /// Pending health checks.
    pub(super) checks: VecDeque<HealthDone>,
    /// Whether a health check came last, so that a message is next.
    pub(super) checked: bool,
    pub(super) terminated: bool,
    /// Of an actor whose state is kept.
    pub(super) kept: Option<Box<Kept>>,
    /// Whether it ends because nobody needs it, its state kept.
    pub(super) is_passivated: bool,
}

/// How an incarnation ended.
pub(super) enum Exit {
    /// By a failure. No `shutdown`.
    Failed(Failure),
    /// By the supervisor, to be restarted. Calls `shutdown`.
    Suspended,
    /// For good. Calls `shutdown`.
    Stopped,
    /// For good, by a kill. No `shutdown`.
    Killed,
    /// For now, since nobody needs it. Its state is kept. Calls `shutdown`.
    Idle,
    /// To begin anew with the state that is kept. No `shutdown`.
    Reload,
}

/// The next health check whose caller still waits.
#[inline]
fn next_check(checks: &mut VecDeque<HealthDone>) -> Option<HealthDone> {
    if checks.is_empty() {
        return None;
    }
    std::iter::from_fn(|| checks.pop_front()).find(|done| !done.is_closed())
}

/// What an actor receives.
pub(super) enum Received {
    /// A message, now in flight.
    Message,
    Order(Control),
    /// A health check.
    Check(HealthDone),
    /// The mailbox is closed and empty.
    Drained,
}

/// Tells callers and senders what a version takes and exports.
pub(crate) fn announce<B: Blueprint>(cell: &Cell, version: &B) {
    cell.mailbox.set_message_size(version.message_size());
    if let Some(component) = version.component() {
        cell.exports.lock().set_component(component);
    }
}

impl<B: Blueprint> ActorTask<B> {
    /// A task without an incarnation.
    pub(crate) fn new(
        cell: Arc<Cell>,
        inbox: Inbox,
        blueprint: B,
        policy: RestartPolicy,
        redelivery: Option<u32>,
        recycle: Recycle,
        owner: Owner,
    ) -> Self {
        if blueprint.takes_only_calls() {
            cell.mailbox.set_only_calls();
        }
        cell.handles_several.store(blueprint.at_a_time() > 1, Ordering::Relaxed);
        cell.metrics.actors.increment(1);
        Self {
            random: cell.services.random(),
            // A placeholder until the first incarnation.
            interrupt: cell.ended.clone(),
            cell,
            inbox,
            blueprint: Arc::new(blueprint),
            previous: None,
            policy,
            attempts_allowed: redelivery.unwrap_or(1).max(1),
            owner,
            incarnations: 0,
            probation: None,
            state: None,
            in_flight: None,
            attempted: false,
            failed_attempts: None,
            several: None,
            pause: None,
            unheard: 0,
            recycling: Recycling::new(recycle),
            checks: VecDeque::new(),
            checked: false,
            terminated: false,
            kept: None,
            is_passivated: false,
        }
    }

    /// The same, with state that is kept.
    pub(crate) fn kept_by(mut self, keeper: Option<Kept>) -> Self {
        self.kept = keeper.map(Box::new);
        self
    }

    /// Tells callers and senders what the version takes and exports.
    pub(super) fn announce(&self, version: &B) {
        announce(&self.cell, version);
    }

    pub(crate) fn cell(&self) -> &Arc<Cell> {
        &self.cell
    }

    /// Starts the next incarnation.
    pub(crate) async fn start(&mut self) -> Result<B::Live, Failure> {
        if self.kept.is_some() {
            return Box::pin(self.start_kept()).await;
        }
        let (blueprint, state) = (Arc::clone(&self.blueprint), self.state.clone());
        let live = self.begin(&blueprint, state).await.map_err(|error| Failure::Start(Arc::new(error)))?;
        self.state = None;
        Ok(live)
    }

    pub(super) async fn begin(&mut self, blueprint: &Arc<B>, state: Option<Bytes>) -> Result<B::Live, StartError> {
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

    /// Runs until the actor is stopped or given up. Without a first incarnation it waits for the order to start.
    ///
    /// Rare steps are boxed, since their futures would make each actor's future several times as large.
    #[expect(clippy::manual_async_fn, reason = "the future of an async function has its arguments twice")]
    pub(crate) fn run(mut self, mut live: Option<B::Live>) -> impl Future<Output = ()> + Send {
        async move {
            if live.is_none() {
                live = Box::pin(self.first()).await;
            }
            while let Some(incarnation) = &mut live {
                if let Some(recycling) = &mut self.recycling {
                    recycling.begin(incarnation.memory());
                }
                let mut exit = self.serve(incarnation).await;
                if self.kept.is_some() && matches!(exit, Exit::Stopped) {
                    exit = Box::pin(self.save_last(incarnation)).await;
                }
                let has_failed = matches!(exit, Exit::Failed(_));
                let Some(incarnation) = live.take() else { return };
                live = Box::pin(self.end(incarnation, exit)).await;
                if has_failed && live.is_some() {
                    // A crash and a restart take time that no tick of a guest's ends.
                    tokio::task::yield_now().await;
                }
            }
        }
    }

    /// Ends an incarnation, and makes the next, unless the actor ends.
    async fn end(&mut self, live: B::Live, exit: Exit) -> Option<B::Live> {
        match exit {
            Exit::Stopped | Exit::Suspended | Exit::Idle => self.shut_down(live).await,
            Exit::Failed(_) | Exit::Killed | Exit::Reload => live.free().await,
        }
        self.next(exit).await
    }

    /// Handles messages and orders until the incarnation ends.
    async fn serve(&mut self, live: &mut B::Live) -> Exit {
        loop {
            match self.receive().await {
                Received::Message => {}
                Received::Drained => return Exit::Stopped,
                Received::Check(done) => {
                    if let Some(exit) = Box::pin(self.check(live, done)).await {
                        return exit;
                    }
                    continue;
                }
                Received::Order(order) => {
                    if let Some(exit) = Box::pin(self.obey(live, order)).await {
                        return exit;
                    }
                    continue;
                }
            }
            if let Some(kept) = &mut self.kept {
                kept.begin(&mut self.in_flight);
            }
            let is_call = self.in_flight.as_ref().is_some_and(Delivery::is_call);
            let handled = if self.blueprint.at_a_time() == 1 || is_call {
                let handled = self.handle(live).await;
                handled.map(|()| self.recycling.as_mut().and_then(|recycling| recycling.handled(live.memory())))
            } else {
                Box::pin(self.handle_several(live)).await
            };
            if let Some(kept) = &self.kept
                && kept.is_due()
                && let Some(exit) = Box::pin(self.keep(live, handled.is_ok())).await
                && handled.is_ok()
            {
                return exit;
            }
            let because = match handled {
                Ok(because) => because,
                Err(failure) => return Exit::Failed(failure),
            };
            if let Some(because) = because
                && self.probation.is_none()
                && let Some(exit) = Box::pin(self.recycle(live, because)).await
            {
                return exit;
            }
        }
    }

    /// Receives orders first, then health checks and messages in turn. Orders given before a message was sent come
    /// before it, even if the message is taken out of the mailbox first.
    async fn receive(&mut self) -> Received {
        poll_fn(|cx| self.poll_received(cx)).await
    }

    pub(super) fn poll_received(&mut self, cx: &mut Context<'_>) -> Poll<Received> {
        if self.several.is_some() {
            if let Some(order) = self.kept_order() {
                return Poll::Ready(Received::Order(order));
            }
            if self.in_flight.is_none() {
                self.take_again();
            }
        }
        let Self { cell, inbox: Inbox { messages, orders }, in_flight, attempted, pause, checks, checked, .. } = self;
        loop {
            while cell.orders.pending()
                && let Poll::Ready(order) = orders.poll_next(&cell.orders, cx)
            {
                match order {
                    Control::Health { done } => checks.push_back(done),
                    order => return Poll::Ready(Received::Order(order)),
                }
            }
            let pauses =
                in_flight.is_some() && pause.as_mut().is_some_and(|pause| pause.as_mut().poll(cx).is_pending());
            if in_flight.is_some() && !pauses {
                *pause = None;
                *checked = false;
                return Poll::Ready(Received::Message);
            }
            if !*checked && let Some(done) = next_check(checks) {
                *checked = true;
                return Poll::Ready(Received::Check(done));
            }
            if !pauses {
                match cell.mailbox.poll_next(messages, in_flight, cx) {
                    Poll::Ready(true) => {
                        *attempted = false;
                        continue;
                    }
                    Poll::Ready(false) => return Poll::Ready(Received::Drained),
                    Poll::Pending => {}
                }
            }
            if let Some(done) = next_check(checks) {
                return Poll::Ready(Received::Check(done));
            }
            return match orders.poll_next(&cell.orders, cx) {
                Poll::Ready(Control::Health { done }) => Poll::Ready(Received::Check(done)),
                Poll::Ready(order) => Poll::Ready(Received::Order(order)),
                // No message or order says that another incarnation has begun.
                Poll::Pending if self.is_to_leave() => {
                    Poll::Ready(Received::Order(Control::Passivate { must: true, done: None }))
                }
                Poll::Pending => Poll::Pending,
            };
        }
    }

    /// Takes who asks for the answer to the message in flight. `None` if the message is refused.
    pub(super) fn begin_turn(&mut self) -> Option<Option<ReplyTo>> {
        self.attempted = true;
        let delivery = self.in_flight.as_mut()?;
        let reply = delivery.reply.take();
        if delivery.message.is_late() {
            match reply {
                Some(reply) => _ = reply.send(Err(Unanswered::Late)),
                None => self.dead_letter_in_flight(DeadReason::Late),
            }
            self.in_flight = None;
            return None;
        }
        if self.cell.is_fenced() {
            match reply {
                Some(reply) => {
                    let Delivery { message, .. } = self.in_flight.take()?;
                    reply.send(Err(Unanswered::NotTaken(Box::new(Undelivered::new(Refusal::Moved, message)))));
                }
                None => self.dead_letter_in_flight(DeadReason::Fenced),
            }
            return None;
        }
        // An upgrade to a smaller `message_size` does not remove waiting messages.
        if let Err(reason @ Refusal::TooLarge { size, allowed }) = self.cell.mailbox.check_size(delivery.size()) {
            match reply {
                Some(reply) => {
                    let Delivery { message, .. } = self.in_flight.take()?;
                    reply.send(Err(Unanswered::NotTaken(Box::new(Undelivered::new(reason, message)))));
                }
                None => self.dead_letter_in_flight(DeadReason::TooLarge { size, allowed }),
            }
            return None;
        }
        Some(reply)
    }

    /// Handles the message in flight.
    async fn handle(&mut self, live: &mut B::Live) -> Result<(), Failure> {
        let Some(delivery) = &mut self.in_flight else { return Ok(()) };
        if delivery.is_call()
            && let Some(mut call) = delivery.take_call()
        {
            if let Some(kept) = &self.kept {
                kept.begin_call(&mut call);
            }
            let called = self.call(live, &mut call).await;
            if let Some(kept) = &mut self.kept {
                kept.end_call(call);
            }
            return called;
        }
        let Some(reply) = self.begin_turn() else { return Ok(()) };
        let Some(delivery) = &self.in_flight else { return Ok(()) };
        let mut turn = Turn::new(&self.cell, reply, &mut self.unheard);
        let message = &delivery.message;
        let taken = self.cell.metrics.taken(|| self.cell.load().queued);
        let (trace, span) = traced(&self.cell, &mut self.random, message);
        // Entering a span costs time even if it is disabled. Boxed, so that the future holds only one of the two.
        let handled = if span.is_disabled() {
            live.handle(message, trace, &mut turn, &self.interrupt).await
        } else {
            Box::pin(live.handle(message, trace, &mut turn, &self.interrupt).instrument(span)).await
        };
        match handled {
            Ok(handled) => {
                let (asked, declined) = (turn.is_asked(), turn.take_declined());
                if declined.is_none() {
                    self.in_flight = None;
                    self.failed_attempts = None;
                }
                self.cell.set_memory(live.memory());
                self.cell.metrics.done(taken, live.memory());
                turn.end(handled);
                if let Some(declined) = declined {
                    self.declined(asked, *declined);
                }
                self.count_for_probation();
                Ok(())
            }
            Err(crash) => {
                let (reply, asked, is_over) = (turn.reply.take(), turn.is_asked(), turn.is_over());
                let declined = turn.take_declined();
                let report = self.report(During::Message, crash);
                if is_over {
                    // Its turn was over, and it crashed over what came after.
                    match declined {
                        Some(declined) => self.declined(asked, *declined),
                        None => (self.in_flight, self.failed_attempts) = (None, None),
                    }
                    return Err(Failure::Crash(report));
                }
                let asker = reply.or_else(|| self.cell.reply_subject.lock().take().map(|(_, reply)| reply));
                if let Some(asker) = asker {
                    asker.send(Err(Unanswered::Crashed(Arc::clone(&report))));
                }
                if !matches!(report.crash.kind(), CrashKind::Cancelled) {
                    let attempts = self.failed_attempts.take().map_or(0, |(attempts, _)| attempts) + 1;
                    self.failed_attempts = Some((attempts, Some(Arc::clone(&report))));
                }
                let attempts = self.failed_attempts.as_ref().map_or(0, |(attempts, _)| *attempts);
                // Redeliver a message without an asker until its attempts are used up.
                if asked || attempts >= self.attempts_allowed || self.attempts_allowed == 1 {
                    self.dead_letter_in_flight(DeadReason::Interrupted);
                }
                Err(Failure::Crash(report))
            }
        }
    }

    /// Makes a call, which is never made twice: from here on it is not in flight.
    async fn call(&mut self, live: &mut B::Live, call: &mut Call) -> Result<(), Failure> {
        let Some(delivery) = self.in_flight.take() else { return Ok(()) };
        let size = call.pending.size();
        if !call.pending.is_wanted() {
            self.cell.metrics.unclaimed.increment(1);
            return Ok(());
        }
        if delivery.message.is_late() {
            call.pending.fail(CallError::Deadline);
            return Ok(());
        }
        if self.cell.is_fenced() {
            call.pending.fail(CallError::NotSent(Refusal::Moved));
            return Ok(());
        }
        if let Err(reason) = self.cell.mailbox.check_size(size) {
            call.pending.fail(CallError::NotSent(reason));
            return Ok(());
        }
        let taken = self.cell.metrics.taken(|| self.cell.load().queued);
        let (trace, span) = traced(&self.cell, &mut self.random, &delivery.message);
        let deadline = delivery.message.deadline();
        let called = if span.is_disabled() {
            live.call(call, deadline, trace, &self.interrupt).await
        } else {
            Box::pin(live.call(call, deadline, trace, &self.interrupt).instrument(span)).await
        };
        match called {
            Ok(()) => {
                self.cell.set_memory(live.memory());
                self.cell.metrics.done(taken, live.memory());
                self.count_for_probation();
                Ok(())
            }
            Err(crash) => {
                let report = self.report(During::Call, crash);
                call.pending.fail(CallError::Crashed(Arc::clone(&report)));
                Err(Failure::Crash(report))
            }
        }
    }

    /// Redelivers the message in flight later, or moves it to the dead letters: its handler declined it, and no asker was
    /// told.
    #[cold]
    fn declined(&mut self, asked: bool, declined: Declined) {
        let attempts = self.failed_attempts.take().map_or(0, |(attempts, _)| attempts) + 1;
        match declined {
            Declined::Reject(because) => self.dead_letter_in_flight(DeadReason::Rejected { because }),
            // An asker that was answered is not answered again.
            Declined::Retry if asked || attempts >= self.attempts_allowed => {
                self.dead_letter_in_flight(DeadReason::RetriesExhausted { attempts });
            }
            Declined::Retry => {
                self.failed_attempts = Some((attempts, None));
                let wait = self.policy.backoff.delay(attempts, &mut self.random);
                self.pause = (!wait.is_zero()).then(|| Box::pin(sleep_until(later(Instant::now(), wait))));
            }
        }
    }

    pub(super) fn count_for_probation(&mut self) {
        if let Some(probation) = &mut self.probation {
            probation.messages -= 1;
            if probation.messages == 0 {
                probation.end(ProbationEnd::Passed);
                self.probation = None;
            }
        }
    }

    /// Moves the message in flight to the dead letters: as poison if its last attempt was a crash, else for `reason`.
    fn dead_letter_in_flight(&mut self, reason: DeadReason) {
        if let Some(delivery) = self.in_flight.take() {
            let attempts = self.failed_attempts.take();
            self.dead_letter(delivery, attempts, reason);
        }
    }

    pub(super) fn dead_letter(
        &self,
        delivery: Delivery,
        attempts: Option<(u32, Option<Arc<CrashReport>>)>,
        reason: DeadReason,
    ) {
        let reason = match attempts {
            Some((attempts, Some(report))) => DeadReason::Poison { attempts, report },
            Some((_, None)) | None => reason,
        };
        self.cell.dead_letter(delivery.message, reason);
    }

    /// Follows an order. Returns how the incarnation ended, if it did.
    async fn obey(&mut self, live: &mut B::Live, order: Control) -> Option<Exit> {
        if self.cell.is_killed() {
            return Some(Exit::Killed);
        }
        match order {
            Control::Kill => return Some(Exit::Killed),
            Control::Stop { drain } => {
                self.cell.set_state(Lifecycle::Stopping);
                self.close();
                if !drain {
                    return Some(Exit::Stopped);
                }
            }
            Control::Suspend { order } => {
                self.follow(order);
                // A draining actor ends for good nevertheless.
                if self.cell.state() == Lifecycle::Stopping {
                    return Some(Exit::Stopped);
                }
                self.cell.set_state(Lifecycle::Restarting);
                return Some(Exit::Suspended);
            }
            Control::Start { order } => {
                // An upgrade has started the incarnation before this order.
                self.follow(order);
                self.tell_supervisor(|| ChildEventKind::Started);
            }
            Control::Health { done } => return self.check(live, done).await,
            Control::Save => return self.save_by_order(live).await,
            Control::Passivate { must, done } => return self.leave(live, must, done).await,
            Control::Forget { done } => return self.forget(done).await,
            Control::Upgrade(upgrade) => {
                let Upgrade { version, options, done } = *upgrade;
                if done.is_closed() {
                    return None;
                }
                if self.kept.is_some() {
                    // Whoever goes back leaves a version that fails, saved or not.
                    let must_be_saved = version.is_some() && !options.discard_state;
                    match self.save_for_upgrade(live).await {
                        Some(Ok(())) => {}
                        Some(Err(exit)) => {
                            _ = done.send(Err(match &exit {
                                Exit::Failed(Failure::Crash(report)) => {
                                    UpgradeError::SnapshotCrashed(Arc::clone(report))
                                }
                                Exit::Killed => UpgradeError::Stopped,
                                _ => UpgradeError::NotSaved,
                            }));
                            return Some(exit);
                        }
                        None if must_be_saved => {
                            _ = done.send(Err(UpgradeError::NotSaved));
                            return None;
                        }
                        None => {}
                    }
                }
                match self.next_version(version) {
                    Ok(next) => return self.switch(live, next, options, done).await,
                    Err(error) => _ = done.send(Err(error)),
                }
            }
        }
        None
    }

    /// Runs a health check. Returns how the incarnation ended, if it did.
    async fn check(&mut self, live: &mut B::Live, done: HealthDone) -> Option<Exit> {
        match live.health(&self.interrupt).await {
            Ok(health) => _ = done.send(health),
            Err(crash) => {
                let report = self.report(During::Health, crash);
                _ = done.send(Err(HealthError::Crashed(Arc::clone(&report))));
                return Some(Exit::Failed(Failure::Crash(report)));
            }
        }
        None
    }

    /// Calls the incarnation's `shutdown`.
    async fn shut_down(&mut self, live: B::Live) {
        if let Err(crash) = live.shutdown(&self.interrupt).await {
            self.report(During::Shutdown, crash);
        }
    }

    /// Closes the mailbox.
    pub(super) fn close(&mut self) {
        self.cell.mailbox.close();
    }

    /// Closes the mailbox, fails pending asks, and removes name and subscriptions.
    fn terminate(&mut self) {
        if std::mem::replace(&mut self.terminated, true) {
            return;
        }
        self.cell.set_state(Lifecycle::Stopping);
        self.close();
        self.cell.cancel_all_later();
        if self.attempted {
            self.dead_letter_in_flight(DeadReason::Interrupted);
        } else if let Some(delivery) = self.in_flight.take() {
            self.cell.give_up(delivery);
        }
        self.give_up_several();
        drop(self.cell.reply_subject.lock().take());
        self.give_up_all();
        let subscriptions = self.cell.subscriptions.lock().take();
        // Dropping subscriptions locks the broker.
        drop(subscriptions);
        // Fails if the name is deregistered already.
        _ = self.cell.services.registry.deregister(&self.cell.address);
        self.cell.set_state(Lifecycle::Stopped);
        self.cell.metrics.actors.decrement(1);
        self.event(|actor| {
            let address = actor.cell.address.clone();
            if actor.is_passivated {
                SystemEvent::Passivated { actor: address }
            } else {
                SystemEvent::Stopped { actor: address }
            }
        });
        self.tell_supervisor(|| ChildEventKind::Gone);
        self.cell.ended.cancel();
        self.cell.services.tell_ended(&self.cell.address);
    }

    /// Gives up all messages in the mailbox, which is closed.
    fn give_up_all(&mut self) {
        while let Some(delivery) = self.cell.mailbox.try_next(&mut self.inbox.messages) {
            self.cell.give_up(delivery);
        }
    }

    pub(super) fn follow(&mut self, to: u64) {
        if let Owner::Supervisor { order, .. } = &mut self.owner {
            *order = to;
        }
    }

    pub(super) fn tell_supervisor(&self, what: impl FnOnce() -> ChildEventKind) {
        if let Owner::Supervisor { child, order, events } = &self.owner {
            // Fails if the supervisor has ended.
            _ = events.send(ChildEvent { child: *child, order: *order, what: what() });
        }
    }

    pub(super) fn report(&self, during: During, crash: Crash) -> Arc<CrashReport> {
        self.report_of(self.cell.incarnation(), during, crash)
    }

    pub(super) fn report_of(&self, incarnation: u64, during: During, crash: Crash) -> Arc<CrashReport> {
        let report = Arc::new(CrashReport { actor: self.cell.address.clone(), incarnation, during, crash });
        self.note_crash(&report);
        report
    }

    fn note_crash(&self, report: &Arc<CrashReport>) {
        self.cell.metrics.crash(report.crash.kind().class());
        tracing::warn!(actor = %report.actor, incarnation = report.incarnation, "{}", Short(&report.crash));
        self.event(|_| SystemEvent::Crashed(Arc::clone(report)));
    }

    pub(super) fn event(&self, event: impl FnOnce(&Self) -> SystemEvent) {
        self.cell.services.event(|| event(self));
    }
}

/// The trace of what a message makes its handler send, with the span of the handler as parent, and that span.
#[inline(always)]
pub(super) fn traced(
    cell: &Cell,
    random: &mut fastrand::Rng,
    message: &MessageEnvelope,
) -> (Option<Box<TraceContext>>, Span) {
    let trace = message.trace().map(|parent| Box::new(TraceContext { parent_id: random.u64(1..), ..*parent }));
    let hex = |number: Option<u128>| number.map(|number| field::display(format!("{number:x}")));
    let span = tracing::debug_span!(
        "handle",
        actor = %cell.id(),
        incarnation = cell.incarnation(),
        trace_id = hex(trace.as_ref().map(|trace| trace.trace_id)),
        span_id = hex(trace.as_ref().map(|trace| trace.parent_id.into())),
        parent_id = hex(message.trace().map(|trace| trace.parent_id.into())),
    );
    (trace, span)
}

/// Ends the actor, also if the task is dropped with its runtime or its spawn is cancelled.
impl<B: Blueprint> Drop for ActorTask<B> {
    fn drop(&mut self) {
        self.terminate();
        self.cell.orders.close();
    }
}
