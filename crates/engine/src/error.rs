//! What can go wrong before a guest runs. What goes wrong while it runs is a crash, and belongs to
//! `airssys-wasm-isolation`.

use std::{
    any::Any,
    fmt, io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    time::Duration,
};

use crate::{
    config::{Feature, Profile, SHORTEST_TICK},
    wasi::{WASI_P3_VERSION, WASI_VERSION},
};

/// An engine could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// wasmtime refuses the configuration, or the system the address space for the pool.
    #[error("cannot make the wasm engine; try a smaller pool, or `EngineConfig::on_demand()`")]
    Wasmtime {
        /// What wasmtime says.
        #[source]
        source: wasmtime::Error,
    },
    /// A period of [`Ticking::Every`](crate::Ticking::Every) that would keep a core busy.
    #[error("a tick every {period:?} keeps a core busy; make it {SHORTEST_TICK:?} at least")]
    Ticking {
        /// The period.
        period: Duration,
    },
    /// The epoch thread cannot be started.
    #[error("cannot start the epoch thread")]
    Ticker(#[source] io::Error),
    /// The thread that starts compilers cannot be started.
    #[error("cannot start the thread that starts compilers")]
    Compilers(#[source] io::Error),
    /// Compiling in processes starts this program again, and its `main` is not prepared for that.
    #[error(
        "this program cannot be started again to compile: call `airssys_wasm_engine::compiler_hook` first in `main`; or \
         name the program `airssys-wasm-compiler` as `CompilerProgram::Path`; or, if all components are your own, compile in \
         this process by `EngineConfig::compile_in_process`"
    )]
    NoCompilerHook,
    /// Compiling in processes exists on Linux only.
    #[error(
        "compiling in a process of its own is there on Linux only; `EngineConfig::compile_in_process` compiles in this one, \
         where nothing bounds what a component may cost"
    )]
    NoCompilerProcess,
    /// The folder for the code cache cannot be used.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

/// How a compiler process ended without code and without an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CompilerEnd {
    /// [`CompilerProcess::deadline`](crate::CompilerProcess::deadline) was over, or the CPU time that goes with it.
    #[error("took longer than its deadline of {0:?}")]
    Deadline(Duration),
    /// It aborted, as programs do whose allocation fails.
    #[error("aborted, most likely for want of memory, of which it may have {memory} bytes")]
    Aborted {
        /// [`CompilerProcess::memory`](crate::CompilerProcess::memory).
        memory: u64,
    },
    /// A signal ended it: 11 if its stack was exhausted, 9 if the system or somebody else ended it.
    #[error("was ended by signal {0}")]
    Signal(i32),
    /// It exited.
    #[error("exited with code {0}")]
    Exit(i32),
    /// It sent a reply that no compiler of this version sends.
    #[error("answered nonsense")]
    Nonsense,
}

/// A component could not be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The bytes do not begin as WebAssembly does.
    #[error(
        "not WebAssembly: the first bytes are {start:02x?}, expected [00, 61, 73, 6d]; text goes to `load_wat_blocking` or into \
         a file that ends in `.wat`, precompiled code to `load_precompiled`"
    )]
    NotWasm {
        /// The first bytes, four at the most.
        start: Vec<u8>,
    },
    /// A core module, not a component.
    #[error(
        "this is a core WebAssembly module, not a component; wrap it with `wasm-tools component new`, or build it \
         with a toolchain that makes components"
    )]
    CoreModule,
    /// The text is not valid WAT.
    #[error("not valid WebAssembly text: {}", Escaped(error))]
    Text {
        /// What is wrong, and where. Its text quotes a line of the input.
        error: wasmtime::Error,
    },
    /// The bytes are truncated or damaged, or use a feature that nobody here knows.
    #[error("the component is damaged: {}", Escaped(error))]
    Invalid {
        /// What is wrong, with its offset. Its text may contain names of the component's, unescaped.
        error: wasmtime::Error,
    },
    /// Compiling it would take too much time or memory.
    #[error(
        "the component is too complex to be compiled here: its `{what}` is {found} or more, and {allowed} are allowed; \
         build it smaller, or raise `CompileLimits::{what}`"
    )]
    TooComplex {
        /// The field of [`CompileLimits`](crate::CompileLimits).
        what: &'static str,
        /// The count at which reading stopped.
        found: u64,
        /// The limit.
        allowed: u64,
    },
    /// It instantiates something that it is given at run time, whose cost is unknown beforehand. No toolchain makes
    /// such components.
    #[error(
        "the component instantiates {what} that it imports or finds in an instance; define them in it instead, or say by \
         `CompileLimits::imported` what they cost"
    )]
    UnknownInstance {
        /// `core modules` or `components`.
        what: &'static str,
    },
    /// It needs what this engine does not have.
    #[error("the component needs {feature}, which this engine does not have: {}", feature.advice())]
    Unsupported {
        /// What it needs.
        feature: Feature,
    },
    /// The compiler panicked. The host goes on.
    #[error("the compiler panicked over the component: {}; that is a bug of wasmtime's", message.escape_debug())]
    CompilerPanicked {
        /// The panic's message, if it is text.
        message: String,
    },
    /// The compiler process died, or was killed, while compiling the component.
    #[error("the compiler {end}; build the component smaller, or give `CompilerProcess` more")]
    Compiler {
        /// How.
        end: CompilerEnd,
    },
    /// A compiler process cannot be started, or its code cannot be read.
    #[error("cannot start a process that compiles, or read what it has made")]
    CompilerStart {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The program named as `CompilerProgram::Path` makes code that this one cannot run.
    #[error("the program that compiles is of another version, or built otherwise; install both from the same sources")]
    OtherCompiler,
    /// Precompiled code of another engine version, configuration or processor, or no such code at all.
    #[error(
        "not precompiled for this engine with {profile:?} code ({}); run `precompile_blocking` again",
        Escaped(error)
    )]
    Incompatible {
        /// The profile it was to be loaded for.
        profile: Profile,
        /// What does not match.
        error: wasmtime::Error,
    },
    /// A file cannot be read.
    #[error("cannot read the component {path}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The engine for this profile cannot be made.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The runtime was shut down while the component was compiling.
    #[error("the async runtime shut down before the component was compiled")]
    Shutdown,
}

impl LoadError {
    /// A copy for another waiter of the same load.
    pub(crate) fn told_again(&self) -> Self {
        let text = |error: &wasmtime::Error| wasmtime::Error::msg(format!("{error:#}"));
        match self {
            Self::NotWasm { start } => Self::NotWasm { start: start.clone() },
            Self::CoreModule => Self::CoreModule,
            Self::Text { error } => Self::Text { error: text(error) },
            Self::Invalid { error } => Self::Invalid { error: text(error) },
            &Self::TooComplex { what, found, allowed } => Self::TooComplex { what, found, allowed },
            &Self::UnknownInstance { what } => Self::UnknownInstance { what },
            &Self::Unsupported { feature } => Self::Unsupported { feature },
            Self::CompilerPanicked { message } => Self::CompilerPanicked { message: message.clone() },
            &Self::Compiler { end } => Self::Compiler { end },
            Self::CompilerStart { source } => Self::CompilerStart { source: again(source) },
            Self::OtherCompiler => Self::OtherCompiler,
            Self::Incompatible { profile, error } => Self::Incompatible { profile: *profile, error: text(error) },
            Self::File { path, source } => Self::File { path: path.clone(), source: again(source) },
            // The engine for a profile, of which wasmtime says why.
            Self::Engine(EngineError::Wasmtime { source }) => EngineError::Wasmtime { source: text(source) }.into(),
            Self::Engine(other) => Self::Invalid { error: wasmtime::Error::msg(other.to_string()) },
            Self::Shutdown => Self::Shutdown,
        }
    }
}

fn again(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}

/// The folder of a code cache cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CacheError {
    /// It cannot be made, or looked at.
    #[error("cannot use the code cache folder {path}", path = path.display())]
    Io {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is not a folder.
    #[error("the code cache {path} is not a folder", path = .0.display())]
    NotAFolder(PathBuf),
    /// It belongs to another user.
    #[error("the code cache folder {path} belongs to user {owner}, not to {user}; name a folder of your own", path = path.display())]
    ForeignOwner {
        /// The folder.
        path: PathBuf,
        /// The user it belongs to.
        owner: u32,
        /// The user this process runs as.
        user: u32,
    },
    /// Others can write to it, and so could run code in this process.
    #[error("others can write to the code cache folder {path} (mode {mode:o}); run `chmod go-w` on it", path = path.display())]
    WritableByOthers {
        /// The folder.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
}

/// A component could not be linked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// Imports that the linker does not provide, or provides with another type.
    #[error("the component imports what the linker does not offer{}", Lines(imports, error))]
    Unsatisfied {
        /// Each import that is not satisfied.
        imports: Vec<MissingImport>,
        /// What wasmtime says of the first of them, with names of the component's as they are.
        error: wasmtime::Error,
    },
    /// A host function could not be defined.
    #[error("a host function cannot be defined; is its name taken by another?")]
    HostFunctions {
        /// What wasmtime says.
        #[source]
        source: wasmtime::Error,
    },
    /// The linker was made for another engine, or for another profile or other features of this one.
    #[error("the linker belongs to another engine; make it with `LoadedComponent::linker`")]
    OtherEngine,
}

/// An import that the linker does not satisfy.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct MissingImport {
    /// The interface, or the function where it is imported by itself: `wasi:cli/environment@0.2.0`.
    pub name: String,
    /// The same interface of WASI in the version that the linker has.
    pub offered: Option<String>,
    /// Whether the linker has anything under exactly this name, or the one offered.
    pub is_defined: bool,
    /// The functions that the linker lacks under that name, each with its type: the first twenty. Empty if all exist and
    /// something has another type.
    pub functions: Vec<String>,
}

impl MissingImport {
    /// What to do about it.
    fn advice(&self) -> String {
        const MISTYPED: &str = "the linker has it with another type";
        let is_mistyped = self.is_defined && self.functions.is_empty();
        let Some((interface, version)) =
            self.name.strip_prefix("wasi:").and_then(|name| name.split_once('@').or(Some((name, ""))))
        else {
            return match is_mistyped {
                true => MISTYPED.to_owned(),
                false => "define it in the linker, or leave it out of the component".to_owned(),
            };
        };
        // Proposals that are no part of WASI 0.2 or 0.3.
        let by_name = match interface {
            "config/store" => Some(("wasi:config@0.2.0-rc.1", "add_config")),
            "keyvalue/store" | "keyvalue/atomics" | "keyvalue/batch" => {
                Some(("wasi:keyvalue@0.2.0-draft", "add_keyvalue"))
            }
            _ => None,
        };
        if let Some((package, function)) = by_name.filter(|_| !self.is_defined) {
            return format!(
                "an embedder adds `{package}`, and no other version, by `airssys_wasm_isolation::{function}`"
            );
        }
        let package = interface.split_once('/').map_or(interface, |(package, _)| package);
        if !["cli", "clocks", "filesystem", "http", "io", "random", "sockets"].contains(&package) {
            return match is_mistyped {
                true => MISTYPED.to_owned(),
                false => "the host does not offer it; an embedder can define it in the linker".to_owned(),
            };
        }
        let minor = |version: &str, line| version.strip_prefix(line).and_then(|minor| minor.parse::<u32>().ok());
        if minor(version, "0.2.").or(minor(version, "0.3.")).is_none() {
            return match version.starts_with("0.3.") {
                true => format!("built for a draft of WASI 0.3; build it for {WASI_P3_VERSION}"),
                false => format!("the host offers WASI 0.2, up to {WASI_VERSION}"),
            };
        }
        // An older minor, if HTTP is there, is `offered`.
        if ["http/types", "http/outgoing-handler", "http/client"].contains(&interface) && !self.is_defined {
            return "an embedder adds it by `airssys_wasm_http::add_http`, for actors by `airssys_wasm_http::system`; else \
                    build without it (componentize-js: `--disable http --disable fetch-event`)"
                .to_owned();
        }
        for (line, offered) in [("0.2.", WASI_VERSION), ("0.3.", WASI_P3_VERSION)] {
            if minor(version, line) > minor(offered, line) {
                return format!("newer than WASI {offered}, the newest that the host has");
            }
        }
        match is_mistyped {
            true => MISTYPED.to_owned(),
            false => "the host does not offer it; define it in the linker, or leave it out of the component".to_owned(),
        }
    }
}

impl fmt::Display for MissingImport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", shown(&self.name))?;
        // What WASI's functions are is known.
        if self.is_defined || !self.name.starts_with("wasi:") {
            match self.functions.as_slice() {
                [] => {}
                functions => write!(f, " ({})", List(functions, "; "))?,
            }
        }
        write!(f, ": {}", self.advice())
    }
}

/// The imports, a line each; what wasmtime says where none is known.
struct Lines<'a>(&'a [MissingImport], &'a wasmtime::Error);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return write!(f, ": {}", Escaped(self.1));
        }
        self.0.iter().try_for_each(|import| write!(f, "\n  {import}"))
    }
}

/// An export is not there, or is something else.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// No function of this name.
    #[error("no exported function `{}`; there are: {}", shown(name), List(available, ", "))]
    Missing {
        /// The name asked for.
        name: String,
        /// The exported functions with their types, as [`LoadedComponent::exports`](crate::LoadedComponent::exports) has them.
        available: Vec<String>,
    },
    /// The function has another type.
    #[error("the export is `{}`, not a function of the type asked for: {}", shown(actual), shown(mismatch))]
    Mistyped {
        /// The name and type it has.
        actual: String,
        /// Where the two differ.
        mismatch: String,
    },
}

/// Items, and what stands between them.
struct List<'a, T>(&'a [T], &'static str);

impl<T: fmt::Display> fmt::Display for List<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        for (i, item) in self.0.iter().take(MOST_LISTED).enumerate() {
            if i > 0 {
                f.write_str(self.1)?;
            }
            write!(f, "{}", shown(&item.to_string()))?;
        }
        match self.0.len().saturating_sub(MOST_LISTED) {
            0 => Ok(()),
            more => write!(f, ", and {more} more"),
        }
    }
}

/// Names from a component that a message lists, cut in number and length.
const MOST_LISTED: usize = 20;
const LONGEST_SHOWN: usize = 512;

/// Text from a component for people: cut, with control characters escaped. Quotes stay.
pub fn shown(text: &str) -> impl fmt::Display + '_ {
    struct Shown<'a>(&'a str);
    impl fmt::Display for Shown<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.0.chars().try_for_each(|c| match c {
                '"' | '\'' => write!(f, "{c}"),
                c => write!(f, "{}", c.escape_debug()),
            })
        }
    }
    Shown(&text[..text.floor_char_boundary(LONGEST_SHOWN)])
}

/// Another library's text about a component, escaped because it may contain names of the component's. Such an error is
/// no `source`: code that prints a chain of sources escapes nothing.
pub(crate) struct Escaped<'a, E>(pub(crate) &'a E);

impl<E: fmt::Display> fmt::Display for Escaped<'_, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, line) in format!("{:#}", self.0).lines().enumerate() {
            let line = shown(line);
            if i == 0 { write!(f, "{line}")? } else { write!(f, "\n{line}")? }
        }
        Ok(())
    }
}

/// A panic's message, if it is text.
pub fn panic_message(payload: Box<dyn Any + Send>) -> String {
    match payload.downcast::<String>() {
        Ok(text) => *text,
        Err(payload) => payload.downcast_ref::<&str>().copied().unwrap_or("not with text").to_owned(),
    }
}

/// Runs code that reads untrusted input: its panic becomes an error.
pub(crate) fn contained<R>(read: impl FnOnce() -> Result<R, LoadError>) -> Result<R, LoadError> {
    catch_unwind(AssertUnwindSafe(read))
        .unwrap_or_else(|payload| Err(LoadError::CompilerPanicked { message: panic_message(payload) }))
}
