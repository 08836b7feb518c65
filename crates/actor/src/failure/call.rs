//! Why a call of an actor's export failed, or a link to one.

use std::{fmt, sync::Arc};

use airssys_wasm_engine::{ExportError, LinkError};
use airssys_wasm_isolation::ArgumentError;
use airssys_wasm_registry::{ComponentId, Refusal};

use crate::failure::report::{CrashReport, StartError, shown};

/// A call of an actor's export failed. The call was made at most once.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// The actor refused the call, which was not made.
    #[error("the call was not taken: {0}")]
    NotSent(Refusal),
    /// The deadline passed before the end of the call. A call that had begun goes on.
    #[error("the call did not come back within its deadline")]
    Deadline,
    /// The actor crashed over this call.
    #[error("the actor crashed: {0}")]
    Crashed(Arc<CrashReport>),
    /// The component has no such export, or one of another type. The call was not made.
    #[error(transparent)]
    Contract(Arc<ExportError>),
    /// The export takes other arguments. The call was not made.
    #[error(transparent)]
    Arguments(#[from] ArgumentError),
    /// The actor stopped, or was given up, before the call's turn.
    #[error("the actor stopped before it came to this call")]
    Stopped,
    /// The call was made, and its result is larger than what is left of the room for results that wait for the caller: of a
    /// guest that made several calls at the same time, or that called an actor of another host.
    #[error("the result has {size} bytes, and there is room for {allowed}")]
    ResultTooLarge {
        /// Bytes of the result.
        size: u64,
        /// Bytes that are left.
        allowed: u64,
    },
    /// The actor was to be brought into memory for this call, and did not start.
    #[error("the actor did not start for this call: {0}")]
    NotActivated(Arc<StartError>),
    /// The call was made, and the state after it is not saved, though each message was to be: it could not be, which is tried
    /// again and lost by a crash until then; or the actor crashed before.
    #[error("the call was made, but the actor's state after it is not saved")]
    NotSaved,
    /// The actor is native, or its system has state of another type.
    #[error("the actor is not a component of this system")]
    OtherSystem,
    /// The actor is on another host, which is gone or cannot be reached: whether the call was made is not known.
    #[error("the actor's host was lost{}", if *accepted { " with the call in the actor's mailbox" } else { " with the call on its way" })]
    Lost {
        /// Whether the actor's mailbox is known to have taken it.
        accepted: bool,
    },
    /// The actor is on another host, and what came from there or went there is not of the function's type.
    #[error("the {} of a call between two hosts are not of the function's type", if *made { "results" } else { "parameters" })]
    Malformed {
        /// Whether the call was made.
        made: bool,
    },
}

/// A call by a link failed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum LinkFault {
    /// Nobody has the name that the link leads to.
    #[error("nobody is registered as `{0}`")]
    Unknown(ComponentId),
    /// The actor exports something else than the interface, or is native.
    #[error("`{imported}` is imported, and the actor has {}", Found(exported.as_deref()))]
    Mismatch {
        /// The function and its type, as it is imported.
        imported: String,
        /// The same as the actor exports it, if it does.
        exported: Option<String>,
    },
    /// The caller has no grant for it.
    #[error("the caller may not call it; grant it by `call`")]
    Denied,
    /// The actor waits for the caller, or is the caller.
    #[error("the actor waits for its caller, directly or through others")]
    Cycle,
    /// The call was not taken, or did not come back.
    #[error(transparent)]
    Call(CallError),
    /// The result is larger than a message to the caller may be.
    #[error("the result was not taken: {0}")]
    Result(Refusal),
    /// The actor may be on another host, and the function's type is too long to be told there.
    #[error(
        "the function's type has more than {allowed} bytes as text, which is too long for an actor of another host"
    )]
    LongType {
        /// Bytes that it may have.
        allowed: usize,
    },
}

impl LinkFault {
    /// What the guest that called is told. Of a crash the kind alone, and of a start that failed nothing: the rest is
    /// another's, and for the host.
    pub(crate) fn said(&self) -> String {
        match self {
            Self::Call(CallError::NotActivated(_)) => "the actor did not start".to_owned(),
            Self::Call(CallError::Crashed(report)) => format!("the actor crashed: {}", report.crash.kind().class()),
            other => other.to_string(),
        }
    }
}

struct Found<'a>(Option<&'a str>);

impl fmt::Display for Found<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            // It may come from another host.
            Some(exported) => write!(f, "`{}`", shown(exported)),
            None => f.write_str("no such export"),
        }
    }
}

impl From<ExportError> for CallError {
    fn from(error: ExportError) -> Self {
        Self::Contract(Arc::new(error))
    }
}

/// A component cannot be linked to actors.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinksError {
    /// It does not import the interface.
    #[error("the component does not import `{interface}`; it imports {}", imports.join(", "))]
    NoImport {
        /// The interface.
        interface: String,
        /// What it imports.
        imports: Vec<String>,
    },
    /// A function takes or gives something that is bound to one store.
    #[error("`{function}` has a {what} in its type, which cannot go to another actor; plain values can")]
    NotPlain {
        /// `interface#function`.
        function: String,
        /// `resource`, `stream`, `future`, …
        what: &'static str,
    },
    /// The import is no interface of functions.
    #[error("`{interface}` is not an interface that is imported with functions")]
    NoFunctions {
        /// The import.
        interface: String,
    },
    /// The rest cannot be linked.
    #[error(transparent)]
    Link(#[from] LinkError),
}
