//! Why an incarnation ended: a crash, or a failed start.

use std::{fmt, sync::Arc};

use airssys_wasm_isolation::{Crash, CrashKind, InstantiateError};
use airssys_wasm_registry::{ActorAddress, ComponentId};
use serde::{Deserialize, Serialize};

use crate::failure::{call::LinkFault, kept::KeepError};

/// A crash of an actor's incarnation.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct CrashReport {
    /// The actor.
    pub actor: ActorAddress,
    /// The incarnation, counted from 1. Each start, restart and upgrade makes one.
    pub incarnation: u64,
    /// What the actor was doing.
    pub during: During,
    /// What went wrong.
    pub crash: Crash,
}

impl fmt::Display for CrashReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (incarnation {}) in {}: {}", self.actor, self.incarnation, self.during, self.crash)
    }
}

// `Display` shows the crash, so there is no source.
impl std::error::Error for CrashReport {}

/// What an actor was doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum During {
    /// Instantiation, which runs the component's start code.
    Start,
    /// `init`.
    Init,
    /// Handling a message.
    Message,
    /// Handling a message, while another that was in flight at the same time caused it.
    OtherMessage,
    /// A call of an export.
    Call,
    /// `health`.
    Health,
    /// `snapshot`.
    Snapshot,
    /// `restore`.
    Restore,
    /// `shutdown`.
    Shutdown,
}

impl fmt::Display for During {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Start => "its start",
            Self::Init => "`init`",
            Self::Message => "a message",
            Self::OtherMessage => "another message",
            Self::Call => "a call",
            Self::Health => "`health`",
            Self::Snapshot => "`snapshot`",
            Self::Restore => "`restore`",
            Self::Shutdown => "`shutdown`",
        })
    }
}

/// An error of the embedder's code.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// An incarnation failed to start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The sandbox could not be instantiated, through no fault of the component's code.
    #[error(transparent)]
    Instantiate(InstantiateError),
    /// The component crashed.
    #[error(transparent)]
    Crash(Arc<CrashReport>),
    /// An export's type differs from the contract's.
    #[error(transparent)]
    Contract(#[from] airssys_wasm_engine::ExportError),
    /// An actor that is there does not fit the import that leads to it.
    #[error("`{interface}` leads to `{to}`, which does not fit: {fault}")]
    Link {
        /// The interface.
        interface: String,
        /// Where it leads.
        to: ComponentId,
        /// Why it does not fit.
        fault: LinkFault,
    },
    /// The factory of the embedder's state returned an error.
    #[error("the embedder's state was not made")]
    State(#[source] BoxError),
    /// The state that is kept of it could not be loaded.
    #[error("its state was not loaded: {0}")]
    NotLoaded(#[source] KeepError),
    /// The configuration or state is larger than a message to the actor may be.
    #[error("the actor's {what} has {size} bytes, and a message to it may have {allowed}; raise `message_size`")]
    TooLarge {
        /// `config` or `state`.
        what: &'static str,
        /// Its size in bytes.
        size: u64,
        /// The largest size in bytes: the component's `message_size`.
        allowed: u64,
    },
    /// The component's `init` returned an error.
    #[error("`init` refused: {}", message.escape_debug())]
    Refused {
        /// The guest's error message.
        message: String,
    },
    /// It failed on another host.
    #[error("on its host: {because}")]
    Elsewhere {
        /// Why, as text.
        because: String,
    },
    /// The component's `restore` returned an error.
    #[error("`restore` refused: {}", message.escape_debug())]
    RestoreRefused {
        /// The guest's error message.
        message: String,
    },
}

/// Bytes of a guest's text that are logged.
pub(crate) const LONGEST_TEXT: usize = 4 << 10;

/// A guest's text for the log: truncated, control characters escaped.
pub(crate) fn shown(text: &str) -> impl fmt::Display + '_ {
    text[..text.floor_char_boundary(LONGEST_TEXT)].escape_debug()
}

/// Truncates text for the log that is already escaped.
pub(crate) struct Short<T>(pub(crate) T);

impl<T: fmt::Display> fmt::Display for Short<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.to_string();
        let kept = text.floor_char_boundary(LONGEST_TEXT);
        f.write_str(&text[..kept])?;
        if kept < text.len() { f.write_str("…") } else { Ok(()) }
    }
}

/// A guest's reason at the end of a message, if there is one.
pub(crate) fn because(reason: Option<&str>) -> String {
    reason.map(|reason| format!(": {}", reason.escape_debug())).unwrap_or_default()
}

/// Whether to log the `nth` repetition: the first, second, fourth, and so on. Guests must not flood the log.
pub(crate) fn is_news(nth: u64) -> bool {
    nth.is_power_of_two()
}

impl Failure {
    /// The kind of crash, if the failure is one.
    pub(crate) fn kind(&self) -> Option<&CrashKind> {
        match self {
            Self::Crash(report) => Some(report.crash.kind()),
            Self::Start(error) => match &**error {
                StartError::Crash(report) => Some(report.crash.kind()),
                _ => None,
            },
            Self::GaveUp(_) => None,
        }
    }

    /// Whether the host interrupted the incarnation: by a kill, or for a sibling's restart.
    pub(crate) fn is_cancelled(&self) -> bool {
        matches!(self.kind(), Some(CrashKind::Cancelled))
    }

    /// Whether the guest ended by itself, as it should.
    pub(crate) fn is_exit(&self) -> bool {
        matches!(self.kind(), Some(CrashKind::Exit { code: 0 }))
    }

    /// Whether the state is another's by now, so that there is nothing to start with here.
    pub(crate) fn is_fenced(&self) -> bool {
        matches!(self, Self::Start(error) if matches!(**error, StartError::NotLoaded(KeepError::Fenced)))
    }

    /// Whether the host was short of instances or memory, through no fault of the actor.
    pub(crate) fn is_shortage(&self) -> bool {
        matches!(self.kind(), Some(CrashKind::Budget { .. }))
            || matches!(self, Self::Start(error) if matches!(
                **error,
                StartError::Instantiate(InstantiateError::PoolExhausted { .. }) | StartError::NotLoaded(_)
            ))
    }
}

/// Why an incarnation ended.
#[derive(Debug, Clone)]
pub(crate) enum Failure {
    Crash(Arc<CrashReport>),
    Start(Arc<StartError>),
    /// A supervisor's children exceeded its intensity, lastly by this failure.
    GaveUp(Option<Arc<(ComponentId, Self)>>),
}
