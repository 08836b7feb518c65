//! Another host: the lane to it, and who carries its packets.

use std::sync::Arc;

use airssys_wasm_actor::{
    AskError, Bytes, CrashReport, StartError,
    registry::{ComponentId, MessageEnvelope, Refusal, Undelivered},
};
use async_nats::Subject;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use crate::{
    config::HostName,
    error::TellError,
    frame::{self, Answer, Other},
    lane::{Event, Lane, Outcome},
};

pub(crate) struct Peer {
    pub(crate) name: HostName,
    pub(crate) lane: Mutex<Lane<Tag>>,
    /// Told when there is something to be sent that nobody sends by itself.
    pub(crate) wake: Notify,
    /// Told when there is room in the lane again.
    pub(crate) room: Arc<Notify>,
    /// The packet that is being sent, so that it is not lost with who sends it. Held by one at a time, so that packets stay in
    /// their order.
    sending: tokio::sync::Mutex<Option<Bytes>>,
    to: Subject,
    /// Where the server says that nobody is there.
    nobody: Subject,
}

/// A message on its way, and who is told what becomes of it.
pub(crate) struct Tag {
    pub(crate) to: ComponentId,
    pub(crate) message: MessageEnvelope,
    pub(crate) waiter: Waiter,
}

pub(crate) enum Waiter {
    /// Nobody: what was not taken is a dead letter.
    Nobody,
    Tell(oneshot::Sender<Result<(), TellError>>),
    Ask(oneshot::Sender<Result<Bytes, AskError>>),
}

impl Peer {
    pub(crate) fn new(name: HostName, lane: Lane<Tag>, to: Subject, nobody: Subject) -> Self {
        Self {
            name,
            lane: Mutex::new(lane),
            wake: Notify::new(),
            room: Arc::default(),
            sending: tokio::sync::Mutex::default(),
            to,
            nobody,
        }
    }

    /// Does something with the lane. What came of it is given back, for when the lock is gone.
    pub(crate) fn with_lane(&self, act: impl FnOnce(&mut Lane<Tag>, &mut dyn FnMut(Event<Tag>))) -> Vec<Event<Tag>> {
        let mut events = Vec::new();
        act(&mut self.lane.lock(), &mut |event| events.push(event));
        events
    }

    /// Sends what there is to be sent. If it is dropped before its end, the next one sends the rest.
    pub(crate) async fn flush(&self, client: &async_nats::Client) {
        loop {
            // Who has it looks again when it has let go.
            let Ok(mut sending) = self.sending.try_lock() else { return };
            loop {
                if sending.is_none() {
                    *sending = self.lane.lock().packet(frame::PACKET, |head, frames| frame::encode(head, frames));
                }
                let Some(packet) = sending.clone() else { break };
                // Fails only when the client is gone, and with it everything.
                _ = client.publish_with_reply(self.to.clone(), self.nobody.clone(), packet).await;
                *sending = None;
            }
            drop(sending);
            if !self.lane.lock().has_packet() {
                return;
            }
        }
    }
}

/// What an asker is told.
pub(crate) fn asked(outcome: Outcome, message: MessageEnvelope) -> Result<Bytes, AskError> {
    match outcome {
        Outcome::Answered(Answer::Given(answer)) => Ok(answer),
        Outcome::Answered(Answer::Crashed(report)) => Err(match serde_json::from_slice::<CrashReport>(&report) {
            Ok(report) => AskError::Crashed(Arc::new(report)),
            // Of a version that this one does not read: it crashed, and may have been handled.
            Err(_) => AskError::Lost { accepted: true },
        }),
        Outcome::Answered(Answer::Other(other)) => Err(match other {
            Other::Failed(message) => AskError::Failed { message },
            Other::Retry => AskError::Retry,
            Other::Rejected(reason) => AskError::Rejected { reason },
            Other::NoReply => AskError::NoReply,
            Other::Stopped => AskError::Stopped,
            Other::NotSaved => AskError::NotSaved,
            Other::NotActivated(because) => AskError::NotActivated(Arc::new(StartError::Elsewhere { because })),
            Other::Deadline => AskError::Deadline,
            Other::TooLarge { size, allowed } => AskError::AnswerTooLarge { size, allowed },
            Other::Lost { accepted } => AskError::Lost { accepted },
        }),
        Outcome::Refused(reason, _) => Err(AskError::NotSent(Undelivered::new(reason, message))),
        Outcome::Lost { accepted, .. } => Err(AskError::Lost { accepted }),
        // Only a tell ends so.
        Outcome::Accepted => Err(AskError::NoReply),
    }
}

/// What an actor's answer is on the wire.
pub(crate) fn answer(asked: Result<Bytes, AskError>, most: usize) -> Result<Answer, Refusal> {
    let text = |text: String| if text.len() > most { text.chars().take(most / 4).collect() } else { text };
    let other = match asked {
        Ok(answer) if answer.len() > most => Other::TooLarge { size: answer.len() as u64, allowed: most as u64 },
        Ok(answer) => return Ok(Answer::Given(answer)),
        Err(AskError::NotSent(undelivered)) => return Err(undelivered.reason),
        Err(AskError::Crashed(report)) => match serde_json::to_vec(&*report) {
            Ok(report) if report.len() <= most => return Ok(Answer::Crashed(report.into())),
            _ => Other::Lost { accepted: true },
        },
        Err(AskError::Failed { message }) => Other::Failed(text(message)),
        Err(AskError::Retry) => Other::Retry,
        Err(AskError::Rejected { reason }) => Other::Rejected(reason.map(text)),
        Err(AskError::NoReply) => Other::NoReply,
        Err(AskError::Stopped) => Other::Stopped,
        Err(AskError::NotSaved) => Other::NotSaved,
        Err(AskError::NotActivated(error)) => Other::NotActivated(text(error.to_string())),
        Err(AskError::Deadline) => Other::Deadline,
        Err(AskError::AnswerTooLarge { size, allowed }) => Other::TooLarge { size, allowed },
        Err(AskError::Lost { accepted }) => Other::Lost { accepted },
        // Errors that come later: nothing is known of them.
        Err(_) => Other::Lost { accepted: true },
    };
    Ok(Answer::Other(other))
}
