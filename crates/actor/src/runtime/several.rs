//! Several messages that an incarnation has in flight at the same time.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Instant,
};

use airssys_wasm_isolation::{CrashKind, SeveralCrashed};
use airssys_wasm_registry::{MessageEnvelope, TraceContext};
use tracing::Span;

use crate::{
    CrashReport, DeadReason, During, RecycleReason,
    failure::report::Failure,
    runtime::{
        incarnation::{Blueprint, Handled, Live},
        mailbox::{Delivery, ReplyTo, Unanswered},
        orders::Control,
        task::{ActorTask, Received, traced},
        turn::Turn,
    },
};

/// Where an incarnation takes messages from that it handles at the same time.
pub(crate) trait Several: Send {
    /// The next one, `None` if none is to be begun.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Taken<'_>>>;

    /// A message was handled. Says whether more may be begun.
    fn handled(&mut self, number: u64, handled: Handled, memory: u64) -> bool;
}

/// A message that is to be handled.
pub(crate) struct Taken<'a> {
    /// Larger than that of all before.
    pub(crate) number: u64,
    pub(crate) message: &'a MessageEnvelope,
    pub(crate) trace: Option<Box<TraceContext>>,
    pub(crate) is_asked: bool,
}

/// What a task has beside its message in flight, if there may be several.
#[derive(Default)]
pub(super) struct InFlight {
    begun: BTreeMap<u64, Begun>,
    next: u64,
    /// To be redelivered, with their attempts and the last crash.
    again: VecDeque<(Delivery, Attempts)>,
    /// An order that came while messages were in flight.
    order: Option<Control>,
}

type Attempts = Option<(u32, Option<Arc<CrashReport>>)>;

struct Begun {
    delivery: Delivery,
    reply: Option<ReplyTo>,
    is_asked: bool,
    taken: Option<Instant>,
    attempts: Attempts,
    /// Ends with it.
    _span: Span,
}

/// Takes messages until an order, a health check or a call comes, which wait until none is in flight.
struct Episode<'a, B: Blueprint> {
    task: &'a mut ActorTask<B>,
    is_over: bool,
    because: Option<RecycleReason>,
}

impl InFlight {
    /// Whether there is a message that was begun or is to be redelivered, or an order to be obeyed.
    pub(super) fn holds_any(&self) -> bool {
        !self.begun.is_empty() || !self.again.is_empty() || self.order.is_some()
    }
}

impl<B: Blueprint> ActorTask<B> {
    /// Handles the message in flight and those that come meanwhile. Says why the incarnation is to be recycled, if it is.
    pub(super) async fn handle_several(&mut self, live: &mut B::Live) -> Result<Option<RecycleReason>, Failure> {
        let interrupt = self.interrupt.clone();
        let mut episode = Episode { task: self, is_over: false, because: None };
        let handled = live.handle_several(&mut episode, &interrupt).await;
        let because = episode.because;
        match handled {
            Ok(()) => {
                self.cell.set_memory(live.memory());
                Ok(because)
            }
            Err(crashed) => Err(self.several_crashed(crashed)),
        }
    }

    /// Tells all askers, once each. Who caused it has used an attempt; if nobody knows, all have.
    fn several_crashed(&mut self, SeveralCrashed { crash, call }: SeveralCrashed) -> Failure {
        let is_cancelled = matches!(crash.kind(), CrashKind::Cancelled);
        let report = self.report(During::Message, crash);
        let beside = Arc::new(CrashReport { during: During::OtherMessage, ..CrashReport::clone(&report) });
        let Some(several) = &mut self.several else { return Failure::Crash(report) };
        for (number, begun) in std::mem::take(&mut several.begun) {
            let Begun { delivery, reply, is_asked, mut attempts, .. } = begun;
            let is_cause = call.is_none_or(|call| call == number);
            if let Some(reply) = reply {
                let told = if is_cause { &report } else { &beside };
                reply.send(Err(Unanswered::Crashed(Arc::clone(told))));
            }
            if is_cause && !is_cancelled {
                attempts = Some((attempts.map_or(0, |(attempts, _)| attempts) + 1, Some(Arc::clone(&report))));
            }
            let used = attempts.as_ref().map_or(0, |(attempts, _)| *attempts);
            if is_asked || used >= self.attempts_allowed || self.attempts_allowed == 1 {
                self.dead_letter(delivery, attempts, DeadReason::Interrupted);
            } else if let Some(several) = &mut self.several {
                several.again.push_back((delivery, attempts));
            }
        }
        Failure::Crash(report)
    }

    /// The order that came while messages were in flight.
    pub(super) fn kept_order(&mut self) -> Option<Control> {
        self.several.as_mut()?.order.take()
    }

    /// Puts the next message in flight that is to be redelivered.
    pub(super) fn take_again(&mut self) {
        if let Some(several) = &mut self.several
            && let Some((delivery, attempts)) = several.again.pop_front()
        {
            (self.in_flight, self.failed_attempts, self.attempted) = (Some(delivery), attempts, true);
        }
    }

    /// Moves all that was begun to the dead letters. Their askers are told that the actor has stopped.
    pub(super) fn give_up_several(&mut self) {
        let Some(several) = self.several.take() else { return };
        let begun = several.begun.into_values().map(|begun| (begun.delivery, begun.attempts));
        for (delivery, attempts) in begun.chain(several.again) {
            self.dead_letter(delivery, attempts, DeadReason::Interrupted);
        }
    }
}

impl<B: Blueprint> Episode<'_, B> {
    /// Begins the message in flight, unless it is refused, or a call.
    fn begin(&mut self) -> Option<u64> {
        let task = &mut *self.task;
        if task.in_flight.as_ref().is_some_and(Delivery::is_call) {
            self.is_over = true;
            return None;
        }
        let reply = task.begin_turn()?;
        let delivery = task.in_flight.take()?;
        let taken = task.cell.metrics.taken(|| task.cell.load().queued);
        if let Some(kept) = &mut task.kept {
            kept.keeper.touched();
        }
        let several = task.several.get_or_insert_default();
        several.next += 1;
        let begun = Begun {
            is_asked: reply.is_some(),
            reply,
            taken,
            attempts: task.failed_attempts.take(),
            _span: Span::none(),
            delivery,
        };
        several.begun.insert(several.next, begun);
        Some(several.next)
    }
}

impl<B: Blueprint> Several for Episode<'_, B> {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Taken<'_>>> {
        let number = loop {
            if self.is_over {
                return Poll::Ready(None);
            }
            match ready!(self.task.poll_received(cx)) {
                Received::Message => {
                    if let Some(number) = self.begin() {
                        break number;
                    }
                }
                Received::Order(order) => {
                    self.task.several.get_or_insert_default().order = Some(order);
                    self.is_over = true;
                }
                Received::Check(done) => {
                    self.task.checks.push_front(done);
                    self.task.checked = false;
                    self.is_over = true;
                }
                Received::Drained => self.is_over = true,
            }
        };
        let ActorTask { cell, random, several, .. } = &mut *self.task;
        let begun = several.as_mut().and_then(|several| several.begun.get_mut(&number)).expect("begun above");
        let (trace, span) = traced(cell, random, &begun.delivery.message);
        begun._span = span;
        Poll::Ready(Some(Taken { number, message: &begun.delivery.message, trace, is_asked: begun.is_asked }))
    }

    fn handled(&mut self, number: u64, handled: Handled, memory: u64) -> bool {
        let task = &mut *self.task;
        let Some(begun) = task.several.as_mut().and_then(|several| several.begun.remove(&number)) else { return true };
        task.cell.set_memory(memory);
        task.cell.metrics.done(begun.taken, memory);
        Turn::new(&task.cell, begun.reply, &mut task.unheard).end(handled);
        task.count_for_probation();
        if let Some(because) = task.recycling.as_mut().and_then(|recycling| recycling.handled(memory)) {
            self.because = Some(because);
            self.is_over = true;
        }
        !self.is_over
    }
}
