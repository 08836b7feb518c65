//! What came of a guest, in the words of the corpus. Made from types; the text for people is only kept beside it.

use airssys_wasm_actor::{AskError, CrashReport, During, HealthError, SpawnError, StartError, UpgradeError};
use airssys_wasm_engine::{CompilerEnd, LinkError, LoadError};
use airssys_wasm_limits::QuotaError;
use airssys_wasm_registry::Refusal;
use bytes::Bytes;

/// What came of a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// In the words of the corpus.
    pub what: String,
    /// What people are told.
    pub says: String,
}

impl Outcome {
    /// One of which people are told nothing.
    pub fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), says: String::new() }
    }

    fn told(what: impl Into<String>, says: impl ToString) -> Self {
        Self { what: what.into(), says: says.to_string() }
    }
}

impl From<&LoadError> for Outcome {
    fn from(error: &LoadError) -> Self {
        let what = match error {
            LoadError::NotWasm { .. } => "not wasm".to_owned(),
            LoadError::CoreModule => "core module".to_owned(),
            LoadError::Invalid { .. } => "invalid".to_owned(),
            LoadError::TooComplex { what, .. } => format!("too complex: {what}"),
            LoadError::UnknownInstance { .. } => "unknown instance".to_owned(),
            LoadError::Unsupported { .. } => "unsupported".to_owned(),
            LoadError::CompilerPanicked { .. } => "the compiler panicked".to_owned(),
            LoadError::Compiler { end: CompilerEnd::Deadline(_) } => "the compiler took too long".to_owned(),
            LoadError::Compiler { end: CompilerEnd::Aborted { .. } } => "the compiler wanted too much".to_owned(),
            LoadError::Compiler { .. } => "the compiler ended".to_owned(),
            _ => "not loaded".to_owned(),
        };
        Self::told(what, error)
    }
}

impl From<&LinkError> for Outcome {
    fn from(error: &LinkError) -> Self {
        Self::told("not linked", error)
    }
}

impl From<&QuotaError> for Outcome {
    fn from(error: &QuotaError) -> Self {
        let what = match error {
            QuotaError::InitialMemory { .. } => "memory",
            QuotaError::TooMany { what, .. } => what,
            _ => "beyond the engine",
        };
        Self::told(format!("quota {what}"), error)
    }
}

impl From<&CrashReport> for Outcome {
    fn from(report: &CrashReport) -> Self {
        let during = match report.during {
            During::Start => "start",
            During::Init => "init",
            During::Message => "message",
            During::Health => "health",
            During::Snapshot => "snapshot",
            During::Restore => "restore",
            During::Shutdown => "shutdown",
            _ => "something else",
        };
        Self::told(format!("{} in {during}", report.crash.kind().class()), report)
    }
}

impl From<&StartError> for Outcome {
    fn from(error: &StartError) -> Self {
        match error {
            StartError::Crash(report) => (&**report).into(),
            StartError::Refused { .. } => Self::told("refused to start", error),
            StartError::RestoreRefused { .. } => Self::told("the other version refused to restore", error),
            StartError::Contract(_) => Self::told("another contract", error),
            _ => Self::told("not instantiated", error),
        }
    }
}

impl From<&SpawnError> for Outcome {
    fn from(error: &SpawnError) -> Self {
        match error {
            SpawnError::Start { error, .. } => (&**error).into(),
            SpawnError::NoHandler(_) => Self::told("no handler", error),
            _ => Self::told("not spawned", error),
        }
    }
}

impl From<Result<Bytes, AskError>> for Outcome {
    fn from(answer: Result<Bytes, AskError>) -> Self {
        match answer {
            Ok(answer) if answer.len() > 100 => Self::new(format!("answer of {} bytes", answer.len())),
            Ok(answer) => Self::new(format!("answer {}", answer.escape_ascii())),
            Err(AskError::Crashed(report)) => (&*report).into(),
            Err(AskError::NotActivated(error)) => (&*error).into(),
            Err(error) => {
                let what = match error {
                    AskError::NoReply => "no answer",
                    AskError::Failed { .. } => "failed",
                    AskError::Stopped => "stopped",
                    AskError::Deadline => "no answer in time",
                    AskError::NotSent(ref back) if back.reason == Refusal::Quarantined => "quarantined",
                    _ => "not sent",
                };
                Self::told(what, error)
            }
        }
    }
}

impl From<Result<(), HealthError>> for Outcome {
    fn from(health: Result<(), HealthError>) -> Self {
        match health {
            Ok(()) => Self::new("well"),
            Err(HealthError::Crashed(report)) => (&*report).into(),
            Err(error) => Self::told("unwell", error),
        }
    }
}

impl From<Result<u64, UpgradeError>> for Outcome {
    fn from(upgraded: Result<u64, UpgradeError>) -> Self {
        match upgraded {
            Ok(_) => Self::new("upgraded"),
            Err(UpgradeError::SnapshotCrashed(report)) => (&*report).into(),
            Err(UpgradeError::NotStarted(error)) => (&error).into(),
            Err(error @ UpgradeError::SnapshotRefused { .. }) => Self::told("snapshot refused", error),
            Err(error) => Self::told("not upgraded", error),
        }
    }
}
