//! The contract's types, as lowered into and lifted from guests.

use std::{fmt, sync::Arc};

use airssys_wasm_engine::wasmtime::{
    self,
    component::{ComponentType, Lift, Lower, StreamReader},
};
use airssys_wasm_registry::MessageEnvelope;
use bytes::Bytes;

/// `airssys:actor/types.message`.
#[derive(Debug, Clone, ComponentType, Lower)]
#[component(record)]
pub(crate) struct Message {
    pub(crate) payload: Bytes,
    pub(crate) sender: Option<Arc<str>>,
    pub(crate) topic: Option<Arc<str>>,
    #[component(name = "content-type")]
    pub(crate) content_type: Option<Arc<str>>,
    #[component(name = "wants-answer")]
    pub(crate) wants_answer: bool,
}

impl Message {
    pub(crate) fn of(message: &MessageEnvelope, wants_answer: bool) -> Self {
        Self {
            payload: message.payload().clone(),
            sender: message.sender().map(|sender| sender.id().into()),
            topic: message.topic().map(Arc::from),
            content_type: message.content_type().map(|ty| Arc::clone(&ty.0)),
            wants_answer,
        }
    }
}

/// `airssys:actor/types.send-error`.
#[derive(Debug, Clone, PartialEq, Eq, ComponentType, Lower)]
#[component(variant)]
pub(crate) enum GuestSendError {
    #[component(name = "denied")]
    Denied,
    #[component(name = "invalid")]
    Invalid(String),
    #[component(name = "unknown")]
    Unknown,
    #[component(name = "full")]
    Full,
    #[component(name = "stopped")]
    Stopped,
    #[component(name = "restarting")]
    Restarting,
    #[component(name = "too-large")]
    TooLarge(u64),
}

/// `airssys:actor/types.reminder-error`.
#[derive(Debug, Clone, PartialEq, Eq, ComponentType, Lower)]
#[component(variant)]
pub(crate) enum GuestReminderError {
    #[component(name = "not-kept")]
    NotKept,
    #[component(name = "invalid")]
    Invalid(String),
    #[component(name = "too-many")]
    TooMany(u32),
    #[component(name = "too-large")]
    TooLarge(u64),
    #[component(name = "unavailable")]
    Unavailable,
}

/// `airssys:actor/types.request-error`.
#[derive(Debug, Clone, PartialEq, Eq, ComponentType, Lower)]
#[component(variant)]
pub(crate) enum GuestRequestError {
    #[component(name = "not-sent")]
    NotSent(GuestSendError),
    #[component(name = "cycle")]
    Cycle,
    #[component(name = "timeout")]
    Timeout,
    #[component(name = "crashed")]
    Crashed,
    #[component(name = "stopped")]
    Stopped,
    #[component(name = "no-answer")]
    NoAnswer,
    #[component(name = "failed")]
    Failed(String),
    #[component(name = "too-large")]
    TooLarge(u64),
}

/// `airssys:actor/types.subscribe-error`.
#[derive(Debug, Clone, PartialEq, Eq, ComponentType, Lower)]
#[component(variant)]
pub(crate) enum GuestSubscribeError {
    #[component(name = "denied")]
    Denied,
    #[component(name = "invalid")]
    Invalid(String),
    #[component(name = "too-many")]
    TooMany(u32),
}

/// `airssys:actor/logging.level`.
#[derive(Debug, Clone, Copy, ComponentType, Lift)]
#[component(enum)]
#[repr(u8)]
#[expect(dead_code, reason = "values come from guests")]
pub(crate) enum Level {
    #[component(name = "trace")]
    Trace,
    #[component(name = "debug")]
    Debug,
    #[component(name = "info")]
    Info,
    #[component(name = "warn")]
    Warn,
    #[component(name = "error")]
    Error,
}

/// `wasmcloud:messaging/types.broker-message`, in both directions.
#[derive(Debug, Clone, ComponentType, Lower, Lift)]
#[component(record)]
pub(crate) struct BrokerMessage {
    pub(crate) subject: Arc<str>,
    pub(crate) body: Bytes,
    #[component(name = "reply-to")]
    pub(crate) reply_to: Option<Arc<str>>,
}

/// `wasmcloud:messaging/types@0.3.0.broker-message`, in both directions.
#[derive(Debug, ComponentType, Lower, Lift)]
#[component(record)]
pub(crate) struct StreamedMessage {
    pub(crate) subject: Arc<str>,
    pub(crate) body: StreamReader<u8>,
    #[component(name = "reply-to")]
    pub(crate) reply_to: Option<Arc<str>>,
}

/// `wasmcloud:messaging/types@0.3.0.handle-message-error`.
#[derive(Debug, ComponentType, Lift)]
#[component(variant)]
pub(crate) enum HandleMessageError {
    #[component(name = "reject")]
    Reject,
    #[component(name = "retry")]
    Retry,
    #[component(name = "other")]
    Other(String),
}

/// `wasmcloud:messaging/types@0.3.0.error`.
#[derive(Debug, Clone, PartialEq, Eq, ComponentType, Lower)]
#[component(variant)]
pub(crate) enum BrokerError {
    #[component(name = "subject-invalid")]
    SubjectInvalid,
    #[component(name = "access-denied")]
    AccessDenied,
    #[component(name = "timeout")]
    Timeout,
    #[component(name = "broker-unavailable")]
    BrokerUnavailable,
    #[component(name = "message-too-large")]
    MessageTooLarge,
    #[component(name = "quota-exceeded")]
    QuotaExceeded,
    #[component(name = "other")]
    Other(String),
}

impl From<GuestSendError> for BrokerError {
    fn from(error: GuestSendError) -> Self {
        match error {
            GuestSendError::Denied => Self::AccessDenied,
            GuestSendError::Invalid(_) => Self::SubjectInvalid,
            GuestSendError::Full => Self::QuotaExceeded,
            GuestSendError::Restarting => Self::BrokerUnavailable,
            GuestSendError::TooLarge(_) => Self::MessageTooLarge,
            GuestSendError::Unknown | GuestSendError::Stopped => Self::Other(error.to_string()),
        }
    }
}

impl From<GuestRequestError> for BrokerError {
    fn from(error: GuestRequestError) -> Self {
        match error {
            GuestRequestError::NotSent(error) => error.into(),
            GuestRequestError::Timeout => Self::Timeout,
            other => Self::Other(other.to_string()),
        }
    }
}

impl fmt::Display for GuestSendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Denied => f.write_str("denied: `Component.toml` does not grant it"),
            Self::Invalid(why) => write!(f, "invalid: {why}"),
            Self::Unknown => f.write_str("unknown: nobody is there"),
            Self::Full => f.write_str("full: the receiver's mailbox is full, or the sender's share of it is"),
            Self::Stopped => f.write_str("stopped: the receiver has stopped"),
            Self::Restarting => f.write_str("restarting: the receiver is restarting and its mailbox is full"),
            Self::TooLarge(allowed) => write!(f, "too large: the receiver takes {allowed} bytes"),
        }
    }
}

impl fmt::Display for GuestRequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotSent(error) => error.fmt(f),
            Self::Cycle => f.write_str("cycle: the receiver waits for this component"),
            Self::Timeout => f.write_str("timeout: nobody answered in time"),
            Self::Crashed => f.write_str("crashed: the receiver crashed over the request"),
            Self::Stopped => f.write_str("stopped: the receiver stopped before it came to the request"),
            Self::NoAnswer => f.write_str("no answer: the receiver came back without one"),
            Self::Failed(message) => write!(f, "failed: {message}"),
            Self::TooLarge(allowed) => write!(f, "too large: the answer has more than {allowed} bytes"),
        }
    }
}
