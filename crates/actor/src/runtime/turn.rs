//! The turn of one message: who waits for its answer, and what becomes of that.

use crate::{
    failure::{
        declined::Declined,
        report::{is_news, shown},
    },
    runtime::{
        cell::Cell,
        incarnation::Handled,
        mailbox::{Answer, ReplyTo, Unanswered},
    },
};

pub(crate) struct Turn<'a> {
    cell: &'a Cell,
    /// Who waits, until somebody else is to answer.
    pub(crate) reply: Option<ReplyTo>,
    asked: bool,
    is_over: bool,
    /// What the handler said that nobody was told.
    declined: Option<Box<Declined>>,
    /// Handler errors of the actor's without an asker.
    unheard: &'a mut u64,
}

impl<'a> Turn<'a> {
    pub(crate) fn new(cell: &'a Cell, reply: Option<ReplyTo>, unheard: &'a mut u64) -> Self {
        Self { cell, asked: reply.is_some(), reply, is_over: false, declined: None, unheard }
    }

    /// Whether somebody asked.
    pub(crate) fn is_asked(&self) -> bool {
        self.asked
    }

    /// Whether the message was handled, whatever its handler does after that.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over
    }

    /// Tells the asker what came of it, unless that was told already.
    pub(crate) fn end(&mut self, handled: Handled) {
        if self.is_over {
            return;
        }
        self.is_over = true;
        if let Err(message) = &handled {
            self.cell.metrics.failures.increment(1);
            // Log errors that reach no asker.
            if self.reply.is_none() {
                *self.unheard += 1;
                if is_news(*self.unheard) {
                    let (actor, nth) = (self.cell.id(), *self.unheard);
                    tracing::warn!(%actor, nth, "the handler failed: {}", shown(message));
                }
            }
        }
        let Some(reply) = self.reply.take() else { return };
        let answer = match handled {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err(Unanswered::NoReply),
            Err(message) => Err(Unanswered::Failed(message)),
        };
        self.tell(reply, answer);
    }

    /// Ends the turn of a message that the handler did not handle. Without an asker it is for the actor's task to say what
    /// becomes of it: [`take_declined`](Self::take_declined).
    pub(crate) fn decline(&mut self, declined: Declined) {
        let declined = Box::new(declined);
        self.is_over = true;
        self.cell.metrics.failures.increment(1);
        match self.reply.take() {
            Some(reply) => self.tell(reply, Err(Unanswered::Declined(declined))),
            None => self.declined = Some(declined),
        }
    }

    /// What the handler said that nobody was told.
    pub(crate) fn take_declined(&mut self) -> Option<Box<Declined>> {
        self.declined.take()
    }

    fn tell(&self, reply: ReplyTo, answer: Answer) {
        if !reply.send(answer) {
            self.cell.metrics.unclaimed.increment(1);
            tracing::debug!(actor = %self.cell.id(), "nobody waits for the answer any more");
        }
    }
}
