//! How a guest ended that did not end well. Built from types alone: no message is ever read.

use std::{any::Any, fmt, sync::Arc, time::Duration};

use airssys_wasm_engine::{
    panic_message,
    wasmtime::{self, Trap, WasmBacktrace, component::ResourceTableError},
    wasmtime_wasi::I32Exit,
};
use airssys_wasm_limits::{Interrupted, LimitExceeded, Quota, Usage};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The end of a sandbox: what went wrong, where, and what had been used by then.
///
/// It can be serialised; only [`host_error`](Self::host_error) stays behind.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Crash(Box<Inner>);

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Inner {
    #[serde(flatten)]
    kind: CrashKind,
    export: Option<String>,
    backtrace: Vec<Frame>,
    usage: Usage,
    #[serde(skip)]
    error: Option<Arc<wasmtime::Error>>,
}

/// What went wrong.
///
/// Strings in here are for people. Those that come from the guest are as the guest wrote them; [`Crash`]'s `Display`
/// escapes them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum CrashKind {
    /// The guest did what WebAssembly forbids.
    #[error("{trap}")]
    Trap {
        /// Which of wasmtime's traps.
        trap: TrapCode,
    },
    /// The guest's calls are nested too deeply for the engine's wasm stack.
    #[error("the wasm stack is exhausted; its size is `EngineConfig::max_wasm_stack`")]
    StackOverflow,
    /// The fuel of the call was used up.
    #[error("the call used its fuel of {allowed}; raise `fuel` if it needs more")]
    OutOfFuel {
        /// Fuel it may use.
        allowed: u64,
    },
    /// The CPU time of the call was used up.
    #[error("the call used its CPU time of {allowed} ticks; raise `cpu_time` if it needs more")]
    CpuTime {
        /// Epoch ticks it may use.
        allowed: u64,
    },
    /// The call took too long, waiting included.
    #[error("the call did not end within {allowed:?}; raise `deadline` if it needs more")]
    Deadline {
        /// How long it may take.
        allowed: Duration,
    },
    /// Growth beyond the memory limit.
    #[error("the component asked for {asked} bytes of memory in all and may have {allowed}; raise `memory`")]
    Memory {
        /// Bytes it would have had in all.
        asked: u64,
        /// Bytes it may have.
        allowed: u64,
    },
    /// Growth beyond the table limit.
    #[error("the component asked for {asked} table elements in all and may have {allowed}; raise `table_elements`")]
    TableElements {
        /// Elements it would have had in all.
        asked: u64,
        /// Elements it may have.
        allowed: u64,
    },
    /// The host-wide memory budget is used up. Not the component's fault.
    #[error("the host's memory budget of {total} bytes has {left} left, and {asked} were asked for")]
    Budget {
        /// Bytes asked for.
        asked: u64,
        /// Bytes left at that moment.
        left: u64,
        /// Bytes in all.
        total: u64,
    },
    /// Too many host calls in one call.
    #[error("the call turned to the host more than {allowed} times; raise `host_calls` if it must")]
    HostCalls {
        /// Host calls it may make.
        allowed: u64,
    },
    /// The host's table of resources is full: the guest holds too many handles.
    #[error("the component holds more than {allowed} handles of the host; raise `handles` if it must")]
    Handles {
        /// Handles that may live at the same time.
        allowed: u32,
    },
    /// The guest called `exit`, with whatever code.
    #[error("the guest exited with code {code}")]
    Exit {
        /// Its exit code; 0 is success.
        code: i32,
    },
    /// A host call ended in an error.
    ///
    /// The error is that of the host function, in [`Crash::host_error`]; or one that wasmtime raises on the way there
    /// through a type that it keeps private: an argument beyond `host_call_bytes`, one that is malformed, or a handle
    /// beyond `handles` in the guest's own table.
    #[error("a host call failed: {}", message.escape_debug())]
    HostCall {
        /// What it says.
        message: String,
    },
    /// A host function panicked. The host goes on.
    #[error("a host function panicked: {}", message.escape_debug())]
    HostPanic {
        /// What it panicked with, where that is text.
        message: String,
    },
    /// What the guest returned is malformed (a pointer out of bounds, text that is not UTF-8, …) or larger than
    /// `message_size`, or it has nowhere to put its arguments. wasmtime has no public types to tell these apart.
    #[error("values could not be passed to or from the guest: {}", message.escape_debug())]
    BadValue {
        /// What wasmtime says.
        message: String,
    },
    /// The component could not be instantiated, for a reason that wasmtime has no public type for: more core instances
    /// than `instances` allows, or a first size of a memory or table that was refused while the guest is to be told.
    #[error("the component could not be instantiated: {}", message.escape_debug())]
    Refused {
        /// What wasmtime says.
        message: String,
    },
    /// The caller cancelled the call.
    #[error("the call was cancelled")]
    Cancelled,
}

/// A [`CrashKind`] without its figures: what policies and metrics tell apart. Serialised as `cpu-time`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
#[expect(missing_docs, reason = "each stands for the kind of the same name")]
pub enum CrashClass {
    Trap,
    StackOverflow,
    OutOfFuel,
    CpuTime,
    Deadline,
    Memory,
    TableElements,
    Budget,
    HostCalls,
    Handles,
    Exit,
    HostCall,
    HostPanic,
    BadValue,
    Refused,
    Cancelled,
}

impl CrashClass {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::Trap,
        Self::StackOverflow,
        Self::OutOfFuel,
        Self::CpuTime,
        Self::Deadline,
        Self::Memory,
        Self::TableElements,
        Self::Budget,
        Self::HostCalls,
        Self::Handles,
        Self::Exit,
        Self::HostCall,
        Self::HostPanic,
        Self::BadValue,
        Self::Refused,
        Self::Cancelled,
    ];

    /// Its name, as it is serialised.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Trap => "trap",
            Self::StackOverflow => "stack-overflow",
            Self::OutOfFuel => "out-of-fuel",
            Self::CpuTime => "cpu-time",
            Self::Deadline => "deadline",
            Self::Memory => "memory",
            Self::TableElements => "table-elements",
            Self::Budget => "budget",
            Self::HostCalls => "host-calls",
            Self::Handles => "handles",
            Self::Exit => "exit",
            Self::HostCall => "host-call",
            Self::HostPanic => "host-panic",
            Self::BadValue => "bad-value",
            Self::Refused => "refused",
            Self::Cancelled => "cancelled",
        }
    }
}

impl fmt::Display for CrashClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl CrashKind {
    /// Which kind it is, without the figures.
    pub fn class(&self) -> CrashClass {
        match self {
            Self::Trap { .. } => CrashClass::Trap,
            Self::StackOverflow => CrashClass::StackOverflow,
            Self::OutOfFuel { .. } => CrashClass::OutOfFuel,
            Self::CpuTime { .. } => CrashClass::CpuTime,
            Self::Deadline { .. } => CrashClass::Deadline,
            Self::Memory { .. } => CrashClass::Memory,
            Self::TableElements { .. } => CrashClass::TableElements,
            Self::Budget { .. } => CrashClass::Budget,
            Self::HostCalls { .. } => CrashClass::HostCalls,
            Self::Handles { .. } => CrashClass::Handles,
            Self::Exit { .. } => CrashClass::Exit,
            Self::HostCall { .. } => CrashClass::HostCall,
            Self::HostPanic { .. } => CrashClass::HostPanic,
            Self::BadValue { .. } => CrashClass::BadValue,
            Self::Refused { .. } => CrashClass::Refused,
            Self::Cancelled => CrashClass::Cancelled,
        }
    }
}

/// One of wasmtime's traps, by its variant. Serialised by name, `IntegerDivisionByZero`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TrapCode(pub Trap);

impl fmt::Display for TrapCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for TrapCode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:?}", self.0))
    }
}

impl<'de> Deserialize<'de> for TrapCode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        (0..=u8::MAX)
            .filter_map(Trap::from_u8)
            .find(|trap| format!("{trap:?}") == name)
            .map(Self)
            .ok_or_else(|| de::Error::custom(format_args!("no trap is called {name:?}")))
    }
}

/// A frame of the wasm stack at the moment of a crash, innermost first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Frame {
    /// The function's index in its module.
    pub function: u32,
    /// The first 256 bytes of the function's name, if the module has a name section.
    pub name: Option<String>,
    /// The first 256 bytes of the module's name, if it has one.
    pub module: Option<String>,
    /// The offset of the instruction in the module.
    pub offset: Option<usize>,
}

/// What a call was doing when it failed, which tells wasmtime's untyped errors apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Instantiating,
    Calling,
}

impl Crash {
    pub(crate) fn from_error(
        error: wasmtime::Error,
        phase: Phase,
        export: Option<&str>,
        quota: &Quota,
        usage: Usage,
    ) -> Self {
        let kind = CrashKind::classify(&error, phase, quota);
        let backtrace = error.downcast_ref::<WasmBacktrace>().map_or_else(Vec::new, frames);
        let error = matches!(kind, CrashKind::HostCall { .. }).then(|| Arc::new(error));
        Self(Box::new(Inner { kind, export: export.map(str::to_owned), backtrace, usage, error }))
    }

    pub(crate) fn from_interruption(interrupted: Interrupted, export: Option<&str>, usage: Usage) -> Self {
        let kind = match interrupted {
            Interrupted::Deadline(allowed) => CrashKind::Deadline { allowed },
            Interrupted::Panicked(payload) => CrashKind::panicked(payload),
            _ => CrashKind::Cancelled,
        };
        Self(Box::new(Inner { kind, export: export.map(str::to_owned), backtrace: Vec::new(), usage, error: None }))
    }

    /// The end of something that runs in the host and not in a sandbox, in the same terms.
    pub fn of_host(kind: CrashKind, function: &str) -> Self {
        let export = Some(function.to_owned());
        Self(Box::new(Inner { kind, export, backtrace: Vec::new(), usage: Usage::default(), error: None }))
    }

    /// What went wrong.
    pub fn kind(&self) -> &CrashKind {
        &self.0.kind
    }

    /// The export that was called; none for a crash while instantiating.
    pub fn export(&self) -> Option<&str> {
        self.0.export.as_deref()
    }

    /// The wasm stack, innermost frame first, as many frames as the engine keeps. Empty for a call that was ended from
    /// outside.
    pub fn backtrace(&self) -> &[Frame] {
        &self.0.backtrace
    }

    /// What the sandbox had used.
    pub fn usage(&self) -> &Usage {
        &self.0.usage
    }

    /// The error behind a [`CrashKind::HostCall`], to be downcast to what the host function returned.
    pub fn host_error(&self) -> Option<&wasmtime::Error> {
        self.0.error.as_deref()
    }
}

impl fmt::Display for Crash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.export {
            Some(export) => write!(f, "`{}` crashed: ", export.escape_debug())?,
            None => f.write_str("crashed while instantiating: ")?,
        }
        self.0.kind.fmt(f)?;
        for frame in &self.0.backtrace {
            write!(f, "\n    at ")?;
            match &frame.name {
                Some(name) => write!(f, "{}", name.escape_debug())?,
                None => write!(f, "function {}", frame.function)?,
            }
            if let Some(module) = &frame.module {
                write!(f, " in {}", module.escape_debug())?;
            }
            if let Some(offset) = frame.offset {
                write!(f, " ({offset:#x})")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for Crash {}

impl CrashKind {
    /// A panic of the host, with what it panicked with.
    pub fn panicked(payload: Box<dyn Any + Send>) -> Self {
        Self::HostPanic { message: panic_message(payload) }
    }

    /// What a wasmtime error is, without its backtrace. This is the whole cost of classifying a trap.
    #[doc(hidden)]
    pub fn of_call(error: &wasmtime::Error, quota: &Quota) -> Self {
        Self::classify(error, Phase::Calling, quota)
    }

    fn classify(error: &wasmtime::Error, phase: Phase, quota: &Quota) -> Self {
        if let Some(trap) = error.downcast_ref::<Trap>() {
            return match trap {
                Trap::StackOverflow => Self::StackOverflow,
                Trap::OutOfFuel => Self::OutOfFuel { allowed: quota.limits().fuel.unwrap_or(u64::MAX) },
                trap => Self::Trap { trap: TrapCode(*trap) },
            };
        }
        if let Some(exceeded) = error.downcast_ref::<LimitExceeded>() {
            return Self::of_limit(exceeded);
        }
        if let Some(I32Exit(code)) = error.downcast_ref() {
            return Self::Exit { code: *code };
        }
        if let Some(ResourceTableError::Full) = error.downcast_ref() {
            return Self::Handles { allowed: quota.limits().handles };
        }
        let message = format!("{:#}", WithoutBacktrace(error));
        // wasmtime attaches a backtrace to what happens below wasm frames: only the host can fail there without a trap.
        if error.is::<WasmBacktrace>() {
            return Self::HostCall { message };
        }
        match phase {
            Phase::Calling => Self::BadValue { message },
            Phase::Instantiating => Self::Refused { message },
        }
    }

    fn of_limit(exceeded: &LimitExceeded) -> Self {
        match *exceeded {
            LimitExceeded::Memory { asked, allowed } => Self::Memory { asked, allowed },
            LimitExceeded::TableElements { asked, allowed } => Self::TableElements { asked, allowed },
            LimitExceeded::Budget(exhausted) => {
                Self::Budget { asked: exhausted.asked, left: exhausted.left, total: exhausted.total }
            }
            LimitExceeded::CpuTime { allowed } => Self::CpuTime { allowed },
            LimitExceeded::HostCalls { allowed } => Self::HostCalls { allowed },
            ref other => Self::HostCall { message: other.to_string() },
        }
    }
}

/// An error's chain without the backtrace that wasmtime puts in front of it, which a crash keeps as frames.
struct WithoutBacktrace<'a>(&'a wasmtime::Error);

impl fmt::Display for WithoutBacktrace<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let backtrace = self.0.is::<WasmBacktrace>();
        for (i, error) in self.0.chain().skip(usize::from(backtrace)).enumerate() {
            if i > 0 {
                f.write_str(": ")?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}

/// Bytes that a name in a backtrace keeps. They come from the guest, and may be many.
const LONGEST_NAME: usize = 256;

fn cut(name: &str) -> String {
    name[..name.floor_char_boundary(LONGEST_NAME)].to_owned()
}

fn frames(backtrace: &WasmBacktrace) -> Vec<Frame> {
    backtrace
        .frames()
        .iter()
        .map(|frame| Frame {
            function: frame.func_index(),
            name: frame.func_name().map(cut),
            module: frame.module().name().map(cut),
            offset: frame.module_offset(),
        })
        .collect()
}
