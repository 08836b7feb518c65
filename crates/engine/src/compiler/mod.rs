//! Who turns bytes into native code: this process, or a process of its own for each load, which the system can end.
//!
//! What is compiled, and what is refused before, is the same for both: [`compile`].

#[cfg(target_os = "linux")]
mod child;
#[cfg(target_os = "linux")]
mod host;
#[cfg(target_os = "linux")]
mod protocol;
#[cfg(target_os = "linux")]
mod sandbox;

use std::{borrow::Cow, num::NonZeroUsize, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};
use wasmtime::Engine;

#[cfg(target_os = "linux")]
pub(crate) use self::host::Compilers;
use crate::{CompileLimits, Complexity, LoadError, error::contained};

/// Who compiles what is loaded. Part of the [`EngineConfig`](crate::EngineConfig).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compiler {
    /// A process of its own for each load. Time, memory and code are bounded whatever is in the component, and a crash of
    /// the compiler is an error. The right one for components of strangers, and the default.
    Process(CompilerProcess),
    /// This process. [`CompileLimits`] refuse what their model knows to be slow or large; nothing else bounds the compiler,
    /// and nobody can stop it. For components of your own.
    InProcess,
}

impl Default for Compiler {
    fn default() -> Self {
        Self::Process(CompilerProcess::default())
    }
}

/// How a process that compiles is started, and what it may use. Linux only.
///
/// One process serves one load. It has no files but a socket to its parent and a file in memory for the code, no network,
/// no environment, and a lower priority than its parent. It is killed at its deadline, when the load is dropped, and when
/// its parent dies. What holds it is `SECURITY.md`'s matter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompilerProcess {
    /// What is started. Default: [`CompilerProgram::ThisExecutable`].
    pub program: CompilerProgram,
    /// From when the process has been given the component until its code is there. Default: 30 seconds. The process may use
    /// as much CPU time.
    pub deadline: Duration,
    /// Bytes of private memory that the process may have, what it has before it begins included. Default: 208 MiB. At least
    /// the component's size and a few times that of its code are needed.
    pub memory: u64,
    /// How many processes are started ahead, so that a load does not wait for the start of one. Each waits with some
    /// 10 MiB resident, most of it shared with its siblings. Default: 1.
    pub waiting: NonZeroUsize,
}

impl Default for CompilerProcess {
    fn default() -> Self {
        Self {
            program: CompilerProgram::default(),
            deadline: Duration::from_secs(30),
            memory: 208 << 20,
            waiting: NonZeroUsize::MIN,
        }
    }
}

impl CompilerProcess {
    /// With 640 MiB of memory, for components that carry a language engine: to compile StarlingMonkey, for JavaScript, takes
    /// some 480 MiB, and CPython 300.
    pub fn for_language_engines() -> Self {
        Self { memory: 640 << 20, ..Self::default() }
    }
}

/// The program that compiles.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum CompilerProgram {
    /// The program that is running, started again as `/proc/self/exe`. Its `main` must call [`compiler_hook`] first;
    /// where it has not, making the engine fails with [`EngineError::NoCompilerHook`](crate::EngineError::NoCompilerHook).
    #[default]
    ThisExecutable,
    /// The program `airssys-wasm-compiler` of this crate, of the same version: for whoever has no `main`, as a library in
    /// another language's program.
    Path(PathBuf),
}

/// Turns this process into a compiler if it was started as one, and returns at once if it was not.
///
/// Call it first in `main`, before threads and an async runtime are started: a [`Compiler::Process`] starts this
/// program once more for each load.
///
/// ```no_run
/// use airssys_wasm_engine::{EngineConfig, WasmEngine};
///
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     airssys_wasm_engine::compiler_hook();
///     let engine = WasmEngine::new(EngineConfig::default())?;
///     // …
///     # _ = engine;
///     Ok(())
/// }
/// ```
pub fn compiler_hook() {
    #[cfg(target_os = "linux")]
    child::hook();
}

/// Why a process that compiles ended without code and without a reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CompilerEnd {
    /// [`CompilerProcess::deadline`] was over, or the CPU time that goes with it.
    #[error("took longer than its deadline of {0:?}")]
    Deadline(Duration),
    /// It aborted, which is what a program does that is refused memory.
    #[error("aborted, most likely for want of memory, of which it may have {memory} bytes")]
    Aborted {
        /// [`CompilerProcess::memory`].
        memory: u64,
    },
    /// A signal ended it: 11 if its stack was exhausted, 9 if the system or somebody else ended it.
    #[error("was ended by signal {0}")]
    Signal(i32),
    /// It exited.
    #[error("exited with code {0}")]
    Exit(i32),
    /// It answered what no compiler of this version answers.
    #[error("answered nonsense")]
    Nonsense,
}

/// Whether a component is given as it is or as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Form {
    Binary,
    Text,
}

/// A component in its binary form that the compiler may see.
pub(crate) fn admit<'a>(bytes: &'a [u8], form: Form, limits: &CompileLimits) -> Result<Cow<'a, [u8]>, LoadError> {
    limits.check_form(form, bytes.len() as u64)?;
    contained(|| {
        let binary = match form {
            Form::Binary => Cow::Borrowed(bytes),
            Form::Text => wat::parse_bytes(bytes).map_err(|error| LoadError::Text { error: error.into() })?,
        };
        check_header(&binary)?;
        Complexity::of(&binary, limits)?;
        Ok(binary)
    })
}

/// Native code for what was admitted.
pub(crate) fn compile(engine: &Engine, binary: &[u8], limits: &CompileLimits) -> Result<Vec<u8>, LoadError> {
    let code = call(|| engine.precompile_component(binary))?;
    limits.check_code(code.len() as u64)?;
    Ok(code)
}

/// Calls the compiler. It reads what strangers write, and a bug in it is not to end the host. What it has begun when it
/// panics belongs to this component alone.
pub(crate) fn call<R>(compile: impl FnOnce() -> wasmtime::Result<R>) -> Result<R, LoadError> {
    contained(|| compile().map_err(|error| LoadError::Invalid { error }))
}

/// Tells a component from a core module and from anything else by its first eight bytes.
fn check_header(bytes: &[u8]) -> Result<(), LoadError> {
    const WASM: &[u8] = b"\0asm";
    match bytes {
        [b'\0', b'a', b's', b'm', _, _, 0, 0, ..] => Err(LoadError::CoreModule),
        _ if bytes.starts_with(WASM) => Ok(()),
        _ => Err(LoadError::NotWasm { start: bytes[..bytes.len().min(WASM.len())].to_vec() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_of_the_compiler_is_an_error() {
        let error = call(|| -> wasmtime::Result<()> { panic!("over\x1b[31m") }).unwrap_err();
        assert!(matches!(&error, LoadError::CompilerPanicked { message } if message == "over\x1b[31m"), "{error:?}");
        assert!(error.to_string().contains(r"over\u{1b}[31m"), "{error}");
    }
}
