//! What a component must export to be an actor, and the types that go over the border. The contract itself is
//! `wit/actor.wit`; components written for `wasmcloud:messaging` are taken as they are.

use std::{fmt, sync::Arc};

use airssys_wasm_engine::{
    Export, LoadedComponent,
    wasmtime::{
        self,
        component::{ComponentType, Lift, Lower},
    },
};
use bytes::Bytes;

/// The guests' interface in WIT: the text of `airssys:actor@0.1.0`.
pub const WIT: &str = include_str!("../wit/actor.wit");

/// By which interface a component takes messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ContractKind {
    /// `airssys:actor/handler@0.1.0`.
    Actor,
    /// `wasmcloud:messaging/handler@0.2.0`.
    WasmCloud,
}

impl fmt::Display for ContractKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Actor => "airssys:actor@0.1.0",
            Self::WasmCloud => "wasmcloud:messaging@0.2.0",
        })
    }
}

/// A component that is no actor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the component takes no messages: it exports neither `{ACTOR_HANDLE}` nor `{WASMCLOUD_HANDLE}`, but {}",
    listed(exports)
)]
#[non_exhaustive]
pub struct NoHandler {
    /// What it exports.
    pub exports: Vec<String>,
}

/// Exports that a message lists: a component can have any number of them.
const MOST_LISTED: usize = 20;

fn listed(exports: &[String]) -> String {
    if exports.is_empty() {
        return "nothing".to_owned();
    }
    let shown = exports.iter().take(MOST_LISTED).map(|export| airssys_wasm_engine::shown(export).to_string());
    let mut listed = shown.collect::<Vec<_>>().join("; ");
    if exports.len() > MOST_LISTED {
        listed.push_str("; and more");
    }
    listed
}

pub(crate) const ACTOR_HANDLE: &str = "airssys:actor/handler@0.1.0#handle";
pub(crate) const WASMCLOUD_HANDLE: &str = "wasmcloud:messaging/handler@0.2.0#handle-message";

/// The exports of a component that the host calls.
#[derive(Debug)]
pub(crate) struct Contract {
    pub(crate) kind: ContractKind,
    pub(crate) handle: Export,
    pub(crate) init: Option<Export>,
    pub(crate) health: Option<Export>,
    pub(crate) shutdown: Option<Export>,
    pub(crate) snapshot: Option<Export>,
    pub(crate) restore: Option<Export>,
}

impl Contract {
    pub(crate) fn of(component: &LoadedComponent) -> Result<Self, NoHandler> {
        let find = |name| component.find_export(name);
        let (kind, handle) = match (find(ACTOR_HANDLE), find(WASMCLOUD_HANDLE)) {
            (Some(handle), _) => (ContractKind::Actor, handle),
            (None, Some(handle)) => (ContractKind::WasmCloud, handle),
            (None, None) => return Err(NoHandler { exports: component.exports() }),
        };
        Ok(Self {
            kind,
            handle,
            init: find("airssys:actor/init@0.1.0#init"),
            health: find("airssys:actor/health@0.1.0#check"),
            shutdown: find("airssys:actor/shutdown@0.1.0#shutdown"),
            snapshot: find("airssys:actor/state@0.1.0#snapshot"),
            restore: find("airssys:actor/state@0.1.0#restore"),
        })
    }
}

/// `airssys:actor/types.message`, on its way to the guest.
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
        }
    }
}
