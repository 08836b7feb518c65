//! How a guest failed. Kinds come from types alone: no message is parsed.

use std::{any::Any, fmt, sync::Arc, time::Duration};

use airssys_wasm_engine::{
    panic_message,
    wasmtime::{
        self, GcHeapOutOfMemory, ThrownException, Trap, WasmBacktrace, WasmtimeBug, component::ResourceTableError,
    },
    wasmtime_wasi::I32Exit,
};
use airssys_wasm_limits::{Interrupted, LimitExceeded, Meter, Quota, Usage};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::demangle::Demangled;

/// The end of a sandbox: what went wrong, where, and what it had used.
///
/// Serialised without its [`host_error`](Self::host_error).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Crash(Box<Inner>);

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Inner {
    #[serde(flatten)]
    kind: CrashKind,
    export: Option<String>,
    #[serde(default)]
    stderr: String,
    backtrace: Vec<Frame>,
    usage: Usage,
    #[serde(skip)]
    error: Option<Arc<wasmtime::Error>>,
    /// Bytes of the error's text, as far as it was read.
    #[serde(skip)]
    error_bytes: usize,
}

/// What went wrong.
///
/// Strings in here are for people. Those that come from the guest are as the guest wrote them; [`Crash`]'s `Display`
/// escapes them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error, strum::EnumDiscriminants)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[strum_discriminants(
    name(CrashClass),
    doc = "A [`CrashKind`] without its figures: what policies and metrics tell apart. Serialised as `cpu-time`.",
    derive(Hash, PartialOrd, Ord, Serialize, Deserialize, strum::Display, strum::IntoStaticStr, strum::VariantArray),
    strum(serialize_all = "kebab-case"),
    serde(rename_all = "kebab-case")
)]
#[non_exhaustive]
pub enum CrashKind {
    /// The guest did what WebAssembly forbids.
    #[error("{trap}")]
    Trap {
        /// Which of wasmtime's traps.
        trap: TrapCode,
    },
    /// The guest's calls nest too deeply for the engine's wasm stack.
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
    /// Growth beyond the memory limit: of a linear memory, or of the collected heap when no collection could make room.
    #[error("the component asked for {asked} bytes of memory in all and may have {allowed}; raise `memory`")]
    Memory {
        /// Bytes it would have had in all.
        asked: u64,
        /// Bytes it may have.
        allowed: u64,
    },
    /// The collected heap has no room for an object, and no limit is the reason: it is as large as one can be.
    #[error("the collected heap is full, and cannot be larger")]
    HeapFull,
    /// The guest threw an exception that it did not catch.
    #[error("the guest threw an exception that it did not catch")]
    Exception,
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
    /// The guest called `exit`, with any code.
    #[error("the guest exited with code {code}")]
    Exit {
        /// Its exit code; 0 is success.
        code: i32,
    },
    /// A host call failed.
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
        /// The panic's message, if it is text.
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
    /// An import of the guest's that leads to another component failed, and its interface has no word for that. The cause is
    /// in [`Crash::host_error`], as [`LinkFailed`].
    #[error("`{function}`, which leads to `{to}`, failed: {}", cause.escape_debug())]
    Link {
        /// `interface#function`.
        function: String,
        /// Where it leads.
        to: String,
        /// What the cause says.
        cause: String,
    },
    /// The guest trapped in a [`call_with`](crate::Sandbox::call_with) whose closure did not pass the error on.
    #[error("the guest crashed, and the closure that called it did not pass the error on")]
    Swallowed,
    /// wasmtime takes what the guest does for a bug of its own. Guests with async functions can make it.
    #[error("wasmtime takes it for a bug of its own: {}", message.escape_debug())]
    WasmtimeBug {
        /// What it says.
        message: String,
    },
    /// The caller cancelled the call.
    #[error("the call was cancelled")]
    Cancelled,
}

/// What a host function fails with that leads to another component: the crash is a [`CrashKind::Link`].
#[derive(Debug, Clone, thiserror::Error)]
#[error("`{function}`, which leads to `{to}`, failed")]
pub struct LinkFailed {
    /// `interface#function`.
    pub function: String,
    /// Where it leads.
    pub to: String,
    /// Why it failed.
    #[source]
    pub cause: Arc<dyn std::error::Error + Send + Sync>,
}

impl CrashClass {
    /// All of them.
    pub const ALL: &'static [Self] = <Self as strum::VariantArray>::VARIANTS;

    /// Its name, as it is serialised.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

impl CrashKind {
    /// Which kind it is, without the figures.
    pub fn class(&self) -> CrashClass {
        self.into()
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
    /// The first 512 bytes of the function's name, if the module has a name section. It may be mangled.
    pub name: Option<String>,
    /// The first 512 bytes of the module's name, if it has one.
    pub module: Option<String>,
    /// The offset of the instruction in the module.
    pub offset: Option<usize>,
}

/// What a call was doing when it failed, which tells wasmtime's untyped errors apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Instantiating,
    Calling,
    /// By a closure of the embedder's, which may fail for reasons of its own.
    CallingWith,
}

impl Crash {
    pub(crate) fn from_error(
        error: wasmtime::Error,
        phase: Phase,
        export: Option<&str>,
        meter: &Meter,
        usage: Usage,
    ) -> Self {
        let (kind, error_bytes) = CrashKind::classify(&error, phase, meter.quota(), meter.refused());
        let mut crash = Self::new(kind, export, usage);
        crash.0.backtrace = error.downcast_ref::<WasmBacktrace>().map_or_else(Vec::new, frames);
        if let CrashKind::HostCall { .. } | CrashKind::Link { .. } = crash.kind() {
            (crash.0.error, crash.0.error_bytes) = (Some(Arc::new(error)), error_bytes);
        }
        crash
    }

    pub(crate) fn new(kind: CrashKind, export: Option<&str>, usage: Usage) -> Self {
        Self(Box::new(Inner {
            kind,
            export: export.map(str::to_owned),
            stderr: String::new(),
            backtrace: Vec::new(),
            usage,
            error: None,
            error_bytes: 0,
        }))
    }

    pub(crate) fn from_interruption(interrupted: Interrupted, export: Option<&str>, usage: Usage) -> Self {
        let kind = match interrupted {
            Interrupted::Deadline(allowed) => CrashKind::Deadline { allowed },
            Interrupted::CpuTime(allowed) => CrashKind::CpuTime { allowed },
            Interrupted::Panicked(payload) => CrashKind::panicked(payload),
            _ => CrashKind::Cancelled,
        };
        Self::new(kind, export, usage)
    }

    /// A crash of host code that runs outside a sandbox, in the same terms.
    pub fn of_host(kind: CrashKind, function: &str) -> Self {
        Self::new(kind, Some(function), Usage::default())
    }

    /// With the end of what the guest wrote to its standard error.
    pub(crate) fn with_stderr(mut self, stderr: String) -> Self {
        self.0.stderr = stderr;
        self
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

    /// The last lines that the guest wrote to its standard error in the call that crashed, unescaped: at most ten lines
    /// and 1 KiB. A panic's message is among them.
    pub fn stderr(&self) -> &str {
        &self.0.stderr
    }

    /// Approximate bytes of its texts, its frames, and the text of the error behind it.
    pub fn size(&self) -> usize {
        let frame = |frame: &Frame| {
            size_of::<Frame>() + [&frame.name, &frame.module].into_iter().flatten().map(String::len).sum::<usize>()
        };
        let Inner { kind, export, stderr, backtrace, error_bytes, .. } = &*self.0;
        let texts = kind.text().len() + export.as_ref().map_or(0, String::len) + stderr.len();
        size_of::<Inner>() + texts + backtrace.iter().map(frame).sum::<usize>() + error_bytes
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
        for line in self.0.stderr.lines() {
            write!(f, "\n    stderr: {}", line.escape_debug())?;
        }
        for frame in &self.0.backtrace {
            write!(f, "\n    at ")?;
            match &frame.name {
                Some(name) => write!(f, "{}", Demangled(name))?,
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
        Self::HostPanic { message: text_of(&panic_message(payload)).0 }
    }

    /// The message in it, if there is one.
    fn text(&self) -> &str {
        match self {
            Self::HostCall { message }
            | Self::HostPanic { message }
            | Self::BadValue { message }
            | Self::Refused { message }
            | Self::WasmtimeBug { message }
            | Self::Link { cause: message, .. } => message,
            _ => "",
        }
    }

    /// Classifies a wasmtime error without its backtrace. This is the whole cost of classifying a trap.
    #[doc(hidden)]
    pub fn of_call(error: &wasmtime::Error, quota: &Quota) -> Self {
        Self::classify(error, Phase::Calling, quota, None).0
    }

    /// The kind, and the bytes of the error's whole text where that was needed.
    fn classify(
        error: &wasmtime::Error,
        phase: Phase,
        quota: &Quota,
        refused: Option<&LimitExceeded>,
    ) -> (Self, usize) {
        if let Some(kind) = Self::of_type(error, quota) {
            return (kind, 0);
        }
        if error.is::<GcHeapOutOfMemory<()>>() {
            return (refused.map_or(Self::HeapFull, Self::of_limit), 0);
        }
        let (message, bytes) = text_of(&WithoutBacktrace(error));
        // wasmtime attaches a backtrace to what happens below wasm frames: only the host can fail there without a trap.
        let kind = match phase {
            _ if error.is::<WasmBacktrace>() => Self::HostCall { message },
            Phase::CallingWith => Self::HostCall { message },
            Phase::Calling => Self::BadValue { message },
            Phase::Instantiating => Self::Refused { message },
        };
        (kind, bytes)
    }

    fn of_type(error: &wasmtime::Error, quota: &Quota) -> Option<Self> {
        if let Some(trap) = error.downcast_ref::<Trap>() {
            return Some(match trap {
                Trap::StackOverflow => Self::StackOverflow,
                Trap::OutOfFuel => Self::OutOfFuel { allowed: quota.limits().fuel.unwrap_or(u64::MAX) },
                trap => Self::Trap { trap: TrapCode(*trap) },
            });
        }
        if let Some(exceeded) = error.downcast_ref::<LimitExceeded>() {
            return Some(Self::of_limit(exceeded));
        }
        if let Some(I32Exit(code)) = error.downcast_ref() {
            return Some(Self::Exit { code: *code });
        }
        if let Some(LinkFailed { function, to, cause }) = error.downcast_ref() {
            return Some(Self::Link { function: function.clone(), to: to.clone(), cause: text_of(cause).0 });
        }
        if error.is::<ThrownException>() {
            return Some(Self::Exception);
        }
        if let Some(bug) = error.downcast_ref::<WasmtimeBug>() {
            return Some(Self::WasmtimeBug { message: text_of(bug).0 });
        }
        if let Some(ResourceTableError::Full) = error.downcast_ref() {
            return Some(Self::Handles { allowed: quota.limits().handles });
        }
        None
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
            ref other => Self::HostCall { message: text_of(other).0 },
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

/// Bytes of a message that a crash keeps. A host function's error may repeat what the guest gave it.
const LONGEST_MESSAGE: usize = 4 << 10;

/// The beginning of a text, and the bytes of all of it.
fn text_of(error: &dyn fmt::Display) -> (String, usize) {
    struct Cut(String, usize);

    impl fmt::Write for Cut {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            self.1 += text.len();
            self.0.push_str(&text[..text.floor_char_boundary(LONGEST_MESSAGE.saturating_sub(self.0.len()))]);
            Ok(())
        }
    }

    let mut cut = Cut(String::new(), 0);
    // An error's own `Display` may fail: then this is what it said.
    _ = fmt::Write::write_fmt(&mut cut, format_args!("{error:#}"));
    if cut.1 > cut.0.len() {
        cut.0.push('…');
    }
    (cut.0, cut.1)
}

/// Bytes of a name that a frame keeps. The guest chooses the name.
const LONGEST_NAME: usize = 512;

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
