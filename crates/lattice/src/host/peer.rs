//! Another host: the lane to it, and who carries its packets.

use std::sync::Arc;

use airssys_wasm_actor::{
    AskError, Bytes, CallError, CrashReport, FarCall, StartError,
    engine::{ExportError, shown},
    limits::CancellationToken,
    registry::{ComponentId, MessageEnvelope, Refusal, Undelivered},
};
use async_nats::Subject;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use crate::{
    config::HostName,
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
    /// Cancelled when the lane is closed.
    pub(crate) over: CancellationToken,
    /// The packet that is being sent, so that it is not lost with who sends it. Held by one at a time, so that packets stay in
    /// their order.
    sending: tokio::sync::Mutex<Option<Bytes>>,
    to: Subject,
    /// Where the server says that nobody is there.
    nobody: Subject,
}

/// A message on its way, and who is told what came of it. If nobody is, what was not taken is a dead letter.
pub(crate) struct Tag {
    pub(crate) to: ComponentId,
    pub(crate) message: MessageEnvelope,
    pub(crate) waiter: Option<Waiter>,
}

pub(crate) type Waiter = oneshot::Sender<Came>;

/// What came of a message.
pub(crate) enum Came {
    Accepted,
    Answered(Answer),
    /// It was not handled, and will not be.
    NotSent(Undelivered),
    /// Its fate is unknown.
    Lost {
        accepted: bool,
        message: MessageEnvelope,
    },
}

impl Came {
    pub(crate) fn of(outcome: Outcome, message: MessageEnvelope) -> Self {
        match outcome {
            Outcome::Accepted => Self::Accepted,
            Outcome::Answered(answer) => Self::Answered(answer),
            Outcome::Refused(reason, _) => Self::NotSent(Undelivered::new(reason, message)),
            Outcome::Lost { accepted, .. } => Self::Lost { accepted, message },
        }
    }
}

impl Peer {
    pub(crate) fn new(name: HostName, lane: Lane<Tag>, to: Subject, nobody: Subject) -> Self {
        Self {
            name,
            lane: Mutex::new(lane),
            wake: Notify::new(),
            room: Arc::default(),
            over: CancellationToken::new(),
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
                    *sending = self
                        .lane
                        .lock()
                        .packet(frame::PACKET, |version, head, frames| frame::encode(version, head, frames));
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

/// Why an exchange gave nothing.
enum Failed {
    Crashed(Arc<CrashReport>),
    NotSent(Undelivered),
    Other(Other),
}

/// What an exchange gave.
fn heard(came: Came) -> Result<Bytes, Failed> {
    Err(match came {
        Came::Answered(Answer::Given(bytes)) => return Ok(bytes),
        Came::Answered(Answer::Crashed(report)) => match serde_json::from_slice(&report) {
            Ok(report) => Failed::Crashed(Arc::new(report)),
            // Of a version that this one does not read: it crashed, and may have been handled.
            Err(_) => Failed::Other(Other::Lost { accepted: true }),
        },
        Came::Answered(Answer::Other(other)) => Failed::Other(other),
        Came::NotSent(undelivered) => Failed::NotSent(undelivered),
        Came::Lost { accepted, .. } => Failed::Other(Other::Lost { accepted }),
        // Only a tell ends so.
        Came::Accepted => Failed::Other(Other::NoReply),
    })
}

/// What an asker is told.
pub(crate) fn asked(came: Came) -> Result<Bytes, AskError> {
    heard(came).map_err(|failed| match failed {
        Failed::Crashed(report) => AskError::Crashed(report),
        Failed::NotSent(undelivered) => AskError::NotSent(undelivered),
        Failed::Other(other) => match other {
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
            // Only of calls.
            Other::Contract(_) | Other::NoComponent | Other::Malformed { .. } => AskError::Lost { accepted: true },
        },
    })
}

/// What a caller is told.
pub(crate) fn called(came: Came, call: &FarCall) -> Result<Bytes, CallError> {
    heard(came).map_err(|failed| match failed {
        Failed::Crashed(report) => CallError::Crashed(report),
        Failed::NotSent(undelivered) => CallError::NotSent(undelivered.reason),
        Failed::Other(other) => match other {
            Other::Stopped => CallError::Stopped,
            Other::NotSaved => CallError::NotSaved,
            Other::NotActivated(because) => CallError::NotActivated(Arc::new(StartError::Elsewhere { because })),
            Other::Deadline => CallError::Deadline,
            Other::TooLarge { size, allowed } => CallError::ResultTooLarge { size, allowed },
            Other::Lost { accepted } => CallError::Lost { accepted },
            Other::Contract(Some(actual)) => {
                let mismatch = format!("it is imported as `{}`", shown(&call.ty));
                CallError::Contract(Arc::new(ExportError::Mistyped { actual, mismatch }))
            }
            // What there is instead, it does not say.
            Other::Contract(None) => {
                let name = call.export.to_string();
                CallError::Contract(Arc::new(ExportError::Missing { name, available: Vec::new() }))
            }
            Other::NoComponent => CallError::OtherSystem,
            Other::Malformed { made } => CallError::Malformed { made },
            // Only of asks.
            Other::Failed(_) | Other::Retry | Other::Rejected(_) | Other::NoReply => CallError::Lost { accepted: true },
        },
    })
}

/// A text that goes with an answer of so many bytes at the most.
fn text(text: String, most: usize) -> String {
    if text.len() > most { text.chars().take(most / 4).collect() } else { text }
}

fn crashed(report: &CrashReport, most: usize) -> Answer {
    match serde_json::to_vec(report) {
        Ok(report) if report.len() <= most => Answer::Crashed(report.into()),
        _ => Answer::Other(Other::Lost { accepted: true }),
    }
}

fn given(answer: Bytes, most: usize) -> Answer {
    if answer.len() > most {
        return Answer::Other(Other::TooLarge { size: answer.len() as u64, allowed: most as u64 });
    }
    Answer::Given(answer)
}

/// What an actor's answer is on the wire.
pub(crate) fn answer(asked: Result<Bytes, AskError>, most: usize) -> Result<Answer, Refusal> {
    let error = match asked {
        Ok(answer) => return Ok(given(answer, most)),
        Err(AskError::NotSent(undelivered)) => return Err(undelivered.reason),
        Err(AskError::Crashed(report)) => return Ok(crashed(&report, most)),
        Err(error) => error,
    };
    Ok(Answer::Other(match error {
        AskError::Failed { message } => Other::Failed(text(message, most)),
        AskError::Retry => Other::Retry,
        AskError::Rejected { reason } => Other::Rejected(reason.map(|reason| text(reason, most))),
        AskError::NoReply => Other::NoReply,
        AskError::Stopped => Other::Stopped,
        AskError::NotSaved => Other::NotSaved,
        AskError::NotActivated(error) => Other::NotActivated(text(error.to_string(), most)),
        AskError::Deadline => Other::Deadline,
        AskError::AnswerTooLarge { size, allowed } => Other::TooLarge { size, allowed },
        AskError::Lost { accepted } => Other::Lost { accepted },
        // Errors that come later: nothing is known of them.
        _ => Other::Lost { accepted: true },
    }))
}

/// What the result of a call is on the wire.
pub(crate) fn result(called: Result<Bytes, CallError>, most: usize) -> Result<Answer, Refusal> {
    let error = match called {
        Ok(results) => return Ok(given(results, most)),
        Err(CallError::NotSent(reason)) => return Err(reason),
        Err(CallError::Crashed(report)) => return Ok(crashed(&report, most)),
        Err(error) => error,
    };
    Ok(Answer::Other(match error {
        CallError::Stopped => Other::Stopped,
        CallError::NotSaved => Other::NotSaved,
        CallError::NotActivated(error) => Other::NotActivated(text(error.to_string(), most)),
        CallError::Deadline => Other::Deadline,
        CallError::ResultTooLarge { size, allowed } => Other::TooLarge { size, allowed },
        CallError::Lost { accepted } => Other::Lost { accepted },
        CallError::Contract(error) => Other::Contract(match &*error {
            ExportError::Mistyped { actual, .. } => Some(text(actual.clone(), most)),
            _ => None,
        }),
        CallError::Arguments(_) => Other::Malformed { made: false },
        CallError::OtherSystem => Other::NoComponent,
        CallError::Malformed { made } => Other::Malformed { made },
        // As above.
        _ => Other::Lost { accepted: true },
    }))
}

#[cfg(test)]
mod tests {
    use airssys_wasm_actor::isolation::ArgumentError;

    use super::*;

    #[test]
    fn what_came_of_a_call_is_told_as_it_was() {
        const MOST: usize = 100;
        let call = FarCall {
            export: "a:b/c#d".into(),
            ty: "func(n: u32)".into(),
            message: MessageEnvelope::new(Bytes::new()),
        };
        let told = |result_there| {
            let came = match result(result_there, MOST) {
                Ok(answer) => Came::Answered(answer),
                Err(reason) => Came::NotSent(Undelivered::new(reason, MessageEnvelope::new(Bytes::new()))),
            };
            called(came, &call)
        };
        assert_eq!(told(Ok(vec![7; MOST].into())).unwrap(), vec![7; MOST]);
        let too_large = told(Ok(vec![7; MOST + 1].into()));
        assert!(matches!(too_large, Err(CallError::ResultTooLarge { size: 101, allowed: 100 })));
        let large = |size| CallError::NotSent(Refusal::TooLarge { size, allowed: 1 });
        let as_they_were = [
            CallError::NotSent(Refusal::Moved),
            CallError::NotSent(Refusal::NotOffered),
            large(2),
            CallError::Deadline,
            CallError::Stopped,
            CallError::ResultTooLarge { size: 2, allowed: 1 },
            CallError::NotSaved,
            CallError::OtherSystem,
            CallError::Lost { accepted: true },
            CallError::Lost { accepted: false },
            CallError::Malformed { made: true },
            CallError::Malformed { made: false },
        ];
        for error in as_they_were {
            assert_eq!(format!("{:?}", told(Err(error.clone())).unwrap_err()), format!("{error:?}"));
        }
        let contract = |error| match told(Err(CallError::Contract(Arc::new(error)))) {
            Err(CallError::Contract(error)) => error.to_string(),
            other => panic!("{other:?}"),
        };
        // The caller has its own type, and hears nothing of other exports.
        let actual = "d: func(n: u64)".to_owned();
        let mistyped = contract(ExportError::Mistyped { actual, mismatch: "there".to_owned() });
        assert!(mistyped.contains("u64") && mistyped.contains("u32") && !mistyped.contains("there"), "{mistyped}");
        let missing = contract(ExportError::Missing { name: "there".to_owned(), available: vec!["secret".to_owned()] });
        assert!(missing.contains("a:b/c#d") && !missing.contains("secret"), "{missing}");
        let arguments = told(Err(CallError::Arguments(ArgumentError::Type { index: 0 })));
        assert!(matches!(arguments, Err(CallError::Malformed { made: false })));
    }
}
