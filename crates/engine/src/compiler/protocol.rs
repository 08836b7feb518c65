//! The protocol between a compiler process and its parent: setup on the command line; one job and one reply, as JSON in
//! frames; the component's bytes after the job; the code in the file that is standard output.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    CompileLimits, CompilerProcess, EngineConfig, Feature, Features, LoadError, PoolConfig, Profile, complexity::Form,
    digest::Digest,
};

/// The first argument of a compiler process, with the version of this protocol.
pub(super) const MARK: &str = "--airssys-wasm-compiler=2";

/// Written by the process once it is warmed up and sandboxed.
pub(super) const READY: u8 = b'r';
/// The same where the system cannot filter system calls.
pub(super) const READY_UNFILTERED: u8 = b'u';

/// The longest frame: an error with a name of 4 KiB in each of a few places, as JSON.
const LONGEST: u32 = 256 << 10;

/// How a compiler process is set up: its second argument.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Settings {
    signals_based_traps: bool,
    copy_on_write: bool,
    parallel_compilation: bool,
    pub(super) limits: CompileLimits,
    features: Features,
    /// Bytes of private memory.
    pub(super) memory: u64,
    pub(super) cpu_seconds: u64,
}

impl Settings {
    pub(super) fn new(config: &EngineConfig, process: &CompilerProcess) -> Self {
        Self {
            signals_based_traps: config.signals_based_traps,
            copy_on_write: config.copy_on_write(),
            parallel_compilation: config.parallel_compilation,
            limits: config.compile_limits,
            features: config.features,
            memory: process.memory,
            // What it had used before it was given a job counts as well.
            cpu_seconds: process.deadline.as_secs().saturating_add(2),
        }
    }

    /// An engine's configuration that makes the same code.
    pub(super) fn engine(&self) -> EngineConfig {
        EngineConfig {
            pool: Some(PoolConfig { copy_on_write: self.copy_on_write, ..PoolConfig::for_components(1) }),
            signals_based_traps: self.signals_based_traps,
            parallel_compilation: self.parallel_compilation,
            compile_limits: self.limits,
            features: self.features,
            ..EngineConfig::default()
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Job {
    pub(super) profile: Profile,
    pub(super) form: Form,
    /// How many bytes follow.
    pub(super) bytes: u64,
    /// What the code depends on, as the parent sees it; see [`EngineConfig::code_digest`].
    pub(super) code_digest: Digest,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Reply {
    /// The file has this many bytes of code, which needs these features.
    Code {
        bytes: u64,
        features: Features,
    },
    Refused(Refusal),
    /// The process would generate other code than its parent expects: it is another program or another build.
    OtherCode,
}

/// A [`LoadError`] of the compiler, as it is sent.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Refusal {
    NotWasm(Vec<u8>),
    CoreModule,
    Text(String),
    Invalid(String),
    TooComplex { what: String, found: u64, allowed: u64 },
    UnknownInstance { modules: bool },
    Unsupported(Feature),
    CompilerPanicked(String),
}

const MODULES: &str = "core modules";

/// Bytes of a text that are sent to the parent.
const LONGEST_TEXT: usize = 32 << 10;

impl From<LoadError> for Refusal {
    fn from(error: LoadError) -> Self {
        let cut = |text: String| text[..text.floor_char_boundary(LONGEST_TEXT)].to_owned();
        match error {
            LoadError::NotWasm { start } => Self::NotWasm(start),
            LoadError::CoreModule => Self::CoreModule,
            LoadError::Text { error } => Self::Text(cut(format!("{error:#}"))),
            LoadError::TooComplex { what, found, allowed } => {
                Self::TooComplex { what: what.to_owned(), found, allowed }
            }
            LoadError::UnknownInstance { what } => Self::UnknownInstance { modules: what == MODULES },
            LoadError::Unsupported { feature } => Self::Unsupported(feature),
            LoadError::CompilerPanicked { message } => Self::CompilerPanicked(cut(message)),
            LoadError::Invalid { error } => Self::Invalid(cut(format!("{error:#}"))),
            other => Self::Invalid(cut(other.to_string())),
        }
    }
}

impl Refusal {
    /// `None` for a reply that no compiler of this version sends.
    pub(super) fn error(self) -> Option<LoadError> {
        Some(match self {
            Self::NotWasm(start) => LoadError::NotWasm { start },
            Self::CoreModule => LoadError::CoreModule,
            Self::Text(text) => LoadError::Text { error: wasmtime::Error::msg(text) },
            Self::Invalid(text) => LoadError::Invalid { error: wasmtime::Error::msg(text) },
            Self::TooComplex { what, found, allowed } => {
                let what = CompileLimits::FIELDS.into_iter().find(|field| *field == what)?;
                LoadError::TooComplex { what, found, allowed }
            }
            Self::UnknownInstance { modules } => {
                LoadError::UnknownInstance { what: if modules { MODULES } else { "components" } }
            }
            Self::Unsupported(feature) => LoadError::Unsupported { feature },
            Self::CompilerPanicked(message) => LoadError::CompilerPanicked { message },
        })
    }
}

pub(super) fn write_frame(to: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    let body = serde_json::to_vec(message)?;
    let len = u32::try_from(body.len()).ok().filter(|len| *len <= LONGEST).ok_or(io::ErrorKind::InvalidInput)?;
    to.write_all(&[&len.to_le_bytes(), body.as_slice()].concat())
}

pub(super) fn read_frame<M: DeserializeOwned>(from: &mut impl Read) -> io::Result<M> {
    let mut len = [0; 4];
    from.read_exact(&mut len)?;
    let len = u32::from_le_bytes(len);
    if len > LONGEST {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut body = vec![0; len as usize];
    from.read_exact(&mut body)?;
    Ok(serde_json::from_slice(&body)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_the_same_on_the_other_side() {
        let errors = [
            LoadError::NotWasm { start: b"#!/b".to_vec() },
            LoadError::CoreModule,
            LoadError::Text { error: wasmtime::Error::msg("line 1") },
            LoadError::Invalid { error: wasmtime::Error::msg("at offset 9") },
            LoadError::TooComplex { what: "items", found: 3, allowed: 2 },
            LoadError::UnknownInstance { what: "core modules" },
            LoadError::UnknownInstance { what: "components" },
            LoadError::Unsupported { feature: Feature::Threads },
            LoadError::CompilerPanicked { message: "oh".to_owned() },
        ];
        for error in errors {
            let text = error.to_string();
            let mut wire = Vec::new();
            write_frame(&mut wire, &Refusal::from(error)).unwrap();
            let back: Refusal = read_frame(&mut wire.as_slice()).unwrap();
            assert_eq!(back.error().unwrap().to_string(), text);
        }
        let unknown = Refusal::TooComplex { what: "nothing".to_owned(), found: 1, allowed: 0 };
        assert!(unknown.error().is_none());
    }

    #[test]
    fn a_frame_is_bounded_on_both_sides() {
        write_frame(&mut Vec::new(), &"x".repeat(LONGEST as usize)).unwrap_err();
        let claims_more = (LONGEST + 1).to_le_bytes();
        read_frame::<String>(&mut claims_more.as_slice()).unwrap_err();
        // The longest text of an error fits, even where each of its bytes becomes six.
        let text = "\x1b".repeat(2 * LONGEST_TEXT);
        write_frame(&mut Vec::new(), &Refusal::from(LoadError::CompilerPanicked { message: text })).unwrap();
    }
}
