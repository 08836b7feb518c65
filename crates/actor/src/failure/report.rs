//! How an actor's incarnation ended: a crash with whose it was, or a start that failed.

use std::{fmt, sync::Arc};

use airssys_wasm_isolation::{Crash, CrashKind, InstantiateError};
use airssys_wasm_registry::{ActorAddress, ComponentId};
use serde::{Deserialize, Serialize};

/// A crash, and whose it was.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct CrashReport {
    /// The actor.
    pub actor: ActorAddress,
    /// Which of its incarnations, counted from 1. Each start, restart and upgrade is one.
    pub incarnation: u64,
    /// What it was doing.
    pub during: During,
    /// What went wrong.
    pub crash: Crash,
}

impl fmt::Display for CrashReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (incarnation {}) in {}: {}", self.actor, self.incarnation, self.during, self.crash)
    }
}

// It shows the crash itself, and so has no source.
impl std::error::Error for CrashReport {}

/// What an actor was doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum During {
    /// Being instantiated: start code.
    Start,
    /// `init`.
    Init,
    /// A message.
    Message,
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
            Self::Health => "`health`",
            Self::Snapshot => "`snapshot`",
            Self::Restore => "`restore`",
            Self::Shutdown => "`shutdown`",
        })
    }
}

/// An error of the embedder's code.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// An incarnation did not come to life.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// No sandbox could be made, through no fault of the component's code.
    #[error(transparent)]
    Instantiate(InstantiateError),
    /// The component crashed.
    #[error(transparent)]
    Crash(Arc<CrashReport>),
    /// An export has another type than the contract.
    #[error(transparent)]
    Contract(#[from] airssys_wasm_engine::ExportError),
    /// The factory of the embedder's state came back with an error.
    #[error("the embedder's state was not made")]
    State(#[source] BoxError),
    /// What the incarnation was to be given is larger than a message may be.
    #[error("the actor's {what} has {size} bytes, and a message to it may have {allowed}; raise `message_size`")]
    TooLarge {
        /// `config` or `state`.
        what: &'static str,
        /// Its bytes.
        size: u64,
        /// Bytes it may have, the `message_size` of the component.
        allowed: u64,
    },
    /// The component's `init` came back with an error.
    #[error("`init` refused: {}", message.escape_debug())]
    Refused {
        /// What the guest says.
        message: String,
    },
    /// The component's `restore` came back with an error.
    #[error("`restore` refused: {}", message.escape_debug())]
    RestoreRefused {
        /// What the guest says.
        message: String,
    },
}

/// Bytes of a guest's text that go into the log.
pub(crate) const LONGEST_TEXT: usize = 4 << 10;

/// A guest's text for the log: cut, and with control characters escaped.
pub(crate) fn shown(text: &str) -> impl fmt::Display + '_ {
    text[..text.floor_char_boundary(LONGEST_TEXT)].escape_debug()
}

/// What a guest had a say in, already escaped, for the log: cut.
pub(crate) struct Short<T>(pub(crate) T);

impl<T: fmt::Display> fmt::Display for Short<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.to_string();
        let kept = text.floor_char_boundary(LONGEST_TEXT);
        f.write_str(&text[..kept])?;
        if kept < text.len() { f.write_str("…") } else { Ok(()) }
    }
}

/// Whether the `nth` of things that a guest can do without end is news: the first, and then ever fewer.
pub(crate) fn is_news(nth: u64) -> bool {
    nth.is_power_of_two()
}

impl Failure {
    /// What kind of crash it is, if it is one.
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

    /// Whether it was interrupted from outside: by a kill, or with a sibling.
    pub(crate) fn is_cancelled(&self) -> bool {
        matches!(self.kind(), Some(CrashKind::Cancelled))
    }

    /// Whether the host had run short of something, which is nobody's failure.
    pub(crate) fn is_shortage(&self) -> bool {
        matches!(self.kind(), Some(CrashKind::Budget { .. }))
            || matches!(self, Self::Start(error)
                if matches!(**error, StartError::Instantiate(InstantiateError::PoolExhausted { .. })))
    }
}

/// Why an incarnation is over.
#[derive(Debug, Clone)]
pub(crate) enum Failure {
    Crash(Arc<CrashReport>),
    Start(Arc<StartError>),
    /// A supervisor whose children failed too often, and the failure that was one too many.
    GaveUp(Option<Arc<(ComponentId, Self)>>),
}
