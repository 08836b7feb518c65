//! Where components are compiled.

use std::{num::NonZeroUsize, path::PathBuf, time::Duration};

/// Where components are compiled. Part of the [`EngineConfig`](crate::EngineConfig).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compiler {
    /// In a process for each load. Time, memory and code are bounded whatever the component contains, and a crash of
    /// the compiler is an error. For untrusted components, and the default.
    Process(CompilerProcess),
    /// In this process. [`CompileLimits`](crate::CompileLimits) refuse what their model predicts to be slow or large;
    /// nothing else bounds the compiler, and it cannot be stopped. For components of your own.
    InProcess,
}

impl Default for Compiler {
    fn default() -> Self {
        Self::Process(CompilerProcess::default())
    }
}

/// How compiler processes are started, and what they may use. Linux only.
///
/// One process serves one load. It has no network, no environment, no files but a socket to its parent and a file in
/// memory for the code, and a lower priority than its parent. It is killed at its deadline, when the load is dropped,
/// and when its parent dies. `SECURITY.md` describes its sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompilerProcess {
    /// The program. Default: [`CompilerProgram::ThisExecutable`].
    pub program: CompilerProgram,
    /// Time from when the process has the component until its code is there. Default: 30 seconds. Its CPU time has the
    /// same limit.
    pub deadline: Duration,
    /// Bytes of private memory, including what it has before the job. Default: 208 MiB. A load needs at least the
    /// component's size and a few times that of its code.
    pub memory: u64,
    /// Processes started ahead, so that a load need not wait for one. Each has some 10 MiB resident while idle, most of
    /// it shared. Default: 1.
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
    /// With 640 MiB of memory, for components that contain a language engine: compiling StarlingMonkey (JavaScript)
    /// takes some 480 MiB, CPython 300.
    pub fn for_language_engines() -> Self {
        Self { memory: 640 << 20, ..Self::default() }
    }
}

/// The program that compiles.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum CompilerProgram {
    /// This executable, started again as `/proc/self/exe`. Its `main` must call [`compiler_hook`](crate::compiler_hook)
    /// first; otherwise making the engine fails with
    /// [`EngineError::NoCompilerHook`](crate::EngineError::NoCompilerHook).
    #[default]
    ThisExecutable,
    /// The program `airssys-wasm-compiler` of this crate, of the same version: for embedders without a `main`, such as
    /// a library in another language's program.
    Path(PathBuf),
}
