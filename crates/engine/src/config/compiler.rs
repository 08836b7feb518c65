//! Who compiles.

use std::{num::NonZeroUsize, path::PathBuf, time::Duration};

/// Who compiles what is loaded. Part of the [`EngineConfig`](crate::EngineConfig).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compiler {
    /// A process of its own for each load. Time, memory and code are bounded whatever is in the component, and a crash of
    /// the compiler is an error. The right one for components of strangers, and the default.
    Process(CompilerProcess),
    /// This process. [`CompileLimits`](crate::CompileLimits) refuse what their model knows to be slow or large; nothing else bounds the compiler,
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
    /// The program that is running, started again as `/proc/self/exe`. Its `main` must call [`compiler_hook`](crate::compiler_hook) first;
    /// where it has not, making the engine fails with [`EngineError::NoCompilerHook`](crate::EngineError::NoCompilerHook).
    #[default]
    ThisExecutable,
    /// The program `airssys-wasm-compiler` of this crate, of the same version: for whoever has no `main`, as a library in
    /// another language's program.
    Path(PathBuf),
}
