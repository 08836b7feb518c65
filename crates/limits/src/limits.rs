//! Limits as people write them, and as they are held against an engine and a component.

use std::{sync::Arc, time::Duration};

use airssys_wasm_engine::{EpochClock, LoadedComponent, MAX_MEMORY, Profile, shown};
use bytesize::ByteSize;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// What one component may use: the `[resources]` table of its `Component.toml`.
///
/// Memory has no default. Everything else has one that fits a component made by a language toolchain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ResourceLimits {
    /// Linear memory, the sum over all memories of the component. Mandatory.
    #[serde(serialize_with = "exact")]
    pub memory: ByteSize,
    /// What a growth beyond `memory` or `table_elements` does. Default: `"crash"`.
    pub on_growth_refused: OnGrowthRefused,
    /// Number of linear memories. Default: 8.
    pub memories: u32,
    /// Elements of all tables together, of eight bytes each. Default: 100,000.
    pub table_elements: u64,
    /// Number of tables. Default: 64.
    pub tables: u32,
    /// Number of core instances. Default: 100.
    pub instances: u32,
    /// CPU time of a call, counted in the engine's epoch ticks. Default: one second.
    #[serde(with = "humantime_serde")]
    pub cpu_time: Duration,
    /// Time that a call may take in all, waiting included. Default: ten seconds.
    #[serde(with = "humantime_serde")]
    pub deadline: Duration,
    /// Fuel of a call. Needs a component that was loaded as [`Profile::Metered`]. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fuel: Option<u64>,
    /// Transitions from the guest to the host in a call: imports, growth, resource handles made or dropped, and ends of
    /// epochs; with async functions, also what has to do with tasks, streams and futures, a return included. Not counted
    /// for a component without async functions that imports none. Default: 1,000,000.
    pub host_calls: u64,
    /// Bytes that one host call may carry out of the guest, with async functions no more than `message_size`. Default: 1
    /// MiB.
    #[serde(serialize_with = "exact")]
    pub host_call_bytes: ByteSize,
    /// Resource handles that live at the same time. Default: 1,000.
    pub handles: u32,
    /// Bytes of a message, and of what a call returns. Default: 1 MiB.
    #[serde(serialize_with = "exact")]
    pub message_size: ByteSize,
    /// Bytes that all its instances together may write to the host's log at once, and in each second: by
    /// `airssys:actor/logging`, and by output to `tracing`. Each line costs 64 more than its length. The excess is dropped,
    /// and the log says how much. Default: 64 KiB.
    #[serde(serialize_with = "exact")]
    pub log_bytes: ByteSize,
    /// Other limits for each call by which the component starts: instantiating, `init`, `restore`. Default: those above.
    #[serde(skip_serializing_if = "CallLimits::is_empty")]
    pub init: CallLimits,
    /// Other limits for `snapshot`. Default: those above.
    #[serde(skip_serializing_if = "CallLimits::is_empty")]
    pub snapshot: CallLimits,
    /// Other limits for `shutdown`. Default: those above.
    #[serde(skip_serializing_if = "CallLimits::is_empty")]
    pub shutdown: CallLimits,
}

/// Limits of a call that is no message: the tables `[resources.init]`, `[resources.snapshot]` and
/// `[resources.shutdown]`. A missing field is as for a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CallLimits {
    /// CPU time of the call.
    #[serde(with = "humantime_serde", skip_serializing_if = "Option::is_none")]
    pub cpu_time: Option<Duration>,
    /// Time that the call may take in all.
    #[serde(with = "humantime_serde", skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Duration>,
    /// Fuel of the call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fuel: Option<u64>,
}

impl CallLimits {
    const KEYS: &[&str] = &["cpu_time", "deadline", "fuel"];

    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What a call is for, which decides its limits of time and fuel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum CallPhase {
    /// A message, and all other calls.
    #[default]
    Message,
    /// A part of its start: instantiating, `init`, `restore`.
    Init,
    /// `snapshot`.
    Snapshot,
    /// `shutdown`.
    Shutdown,
}

/// To the byte: what people read of a size is rounded.
fn exact<S: Serializer>(size: &ByteSize, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{} B", size.as_u64()))
}

/// What happens to a component that wants to grow beyond its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnGrowthRefused {
    /// It crashes; the crash has what was asked for and the limit.
    #[default]
    Crash,
    /// The guest is told (`memory.grow` gives -1). Most guests then die as `unreachable`, which hides the cause.
    TellGuest,
}

/// All fields optional, to tell a missing one from an invalid one.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    memory: Option<ByteSize>,
    on_growth_refused: Option<OnGrowthRefused>,
    memories: Option<u32>,
    table_elements: Option<u64>,
    tables: Option<u32>,
    instances: Option<u32>,
    #[serde(default, with = "humantime_serde")]
    cpu_time: Option<Duration>,
    #[serde(default, with = "humantime_serde")]
    deadline: Option<Duration>,
    fuel: Option<u64>,
    host_calls: Option<u64>,
    host_call_bytes: Option<ByteSize>,
    handles: Option<u32>,
    message_size: Option<ByteSize>,
    log_bytes: Option<ByteSize>,
    #[serde(default)]
    init: CallLimits,
    #[serde(default)]
    snapshot: CallLimits,
    #[serde(default)]
    shutdown: CallLimits,
}

const TABLE: &str = "resources";
const KEYS: &[&str] = &[
    "memory",
    "on_growth_refused",
    "memories",
    "table_elements",
    "tables",
    "instances",
    "cpu_time",
    "deadline",
    "fuel",
    "host_calls",
    "host_call_bytes",
    "handles",
    "message_size",
    "log_bytes",
    "init",
    "snapshot",
    "shutdown",
];

/// A `Component.toml` cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// Not TOML, or a value of the wrong type.
    #[error("Component.toml: {}", escaped(.0))]
    Toml(toml::de::Error),
    /// The memory limit is not there.
    #[error("Component.toml sets no memory limit, and there is no default; add\n\n[resources]\nmemory = \"64MiB\"\n")]
    NoMemoryLimit,
    /// An unknown key.
    #[error("Component.toml: unknown key `{}`{}; known are: {}", shown(key), in_table(table), known.join(", "))]
    UnknownKey {
        /// The table it is in, empty for the top.
        table: String,
        /// The key.
        key: String,
        /// Those that exist.
        known: Vec<&'static str>,
    },
    /// A table that another function reads.
    #[error("Component.toml: [{table}] is not read here; load it by `{by}`")]
    ReadElsewhere {
        /// The table.
        table: &'static str,
        /// The function.
        by: &'static str,
    },
}

// By hand: a derived one would make it a source, whose text is not escaped.
impl From<toml::de::Error> for ManifestError {
    fn from(error: toml::de::Error) -> Self {
        Self::Toml(error)
    }
}

fn in_table(table: &str) -> String {
    if table.is_empty() { String::new() } else { format!(" in [{}]", shown(table)) }
}

/// A parser's error shows the line that it is about.
fn escaped(error: &toml::de::Error) -> String {
    error.to_string().lines().map(|line| shown(line).to_string()).collect::<Vec<_>>().join("\n")
}

impl ManifestError {
    /// The first key of a table that is not among the known ones, as an error.
    ///
    /// # Errors
    ///
    /// [`ManifestError::UnknownKey`].
    pub fn check_keys(table: &str, found: &toml::Table, known: &[&'static str]) -> Result<(), Self> {
        match found.keys().find(|key| !known.contains(&key.as_str())) {
            Some(key) => Err(Self::UnknownKey { table: table.to_owned(), key: key.clone(), known: known.to_vec() }),
            None => Ok(()),
        }
    }
}

impl ResourceLimits {
    /// This much memory, and the defaults for everything else.
    pub fn with_memory(memory: ByteSize) -> Self {
        Self {
            memory,
            on_growth_refused: OnGrowthRefused::default(),
            memories: 8,
            table_elements: 100_000,
            tables: 64,
            instances: 100,
            cpu_time: Duration::from_secs(1),
            deadline: Duration::from_secs(10),
            fuel: None,
            host_calls: 1_000_000,
            host_call_bytes: ByteSize::mib(1),
            handles: 1_000,
            message_size: ByteSize::mib(1),
            log_bytes: ByteSize::kib(64),
            init: CallLimits::default(),
            snapshot: CallLimits::default(),
            shutdown: CallLimits::default(),
        }
    }

    /// The profile that they need: metered if any call has fuel.
    pub fn profile(&self) -> Profile {
        let fuel = [self.fuel, self.init.fuel, self.snapshot.fuel, self.shutdown.fuel];
        if fuel.iter().any(Option::is_some) { Profile::Metered } else { Profile::Plain }
    }

    /// These limits with a call's own in place.
    fn with_call(&self, call: CallLimits) -> Self {
        Self {
            cpu_time: call.cpu_time.unwrap_or(self.cpu_time),
            deadline: call.deadline.unwrap_or(self.deadline),
            fuel: call.fuel.or(self.fuel),
            ..self.clone()
        }
    }

    /// Reads the `[resources]` table of a `Component.toml` and ignores its other tables.
    ///
    /// # Errors
    ///
    /// [`ManifestError`].
    pub fn from_toml(text: &str) -> Result<Self, ManifestError> {
        Self::take_from(&mut text.parse()?)
    }

    /// Takes the `[resources]` table out of a parsed `Component.toml`. The rest is for the layers above.
    ///
    /// # Errors
    ///
    /// [`ManifestError`].
    pub fn take_from(manifest: &mut toml::Table) -> Result<Self, ManifestError> {
        let table: toml::Table = manifest.remove(TABLE).ok_or(ManifestError::NoMemoryLimit)?.try_into()?;
        ManifestError::check_keys(TABLE, &table, KEYS)?;
        for phase in ["init", "snapshot", "shutdown"] {
            if let Some(call) = table.get(phase).and_then(toml::Value::as_table) {
                ManifestError::check_keys(&format!("{TABLE}.{phase}"), call, CallLimits::KEYS)?;
            }
        }
        let raw: Raw = table.try_into()?;
        Self::of(raw).ok_or(ManifestError::NoMemoryLimit)
    }

    /// `None` without a memory limit.
    fn of(raw: Raw) -> Option<Self> {
        let default = Self::with_memory(raw.memory?);
        Some(Self {
            memory: default.memory,
            on_growth_refused: raw.on_growth_refused.unwrap_or_default(),
            memories: raw.memories.unwrap_or(default.memories),
            table_elements: raw.table_elements.unwrap_or(default.table_elements),
            tables: raw.tables.unwrap_or(default.tables),
            instances: raw.instances.unwrap_or(default.instances),
            cpu_time: raw.cpu_time.unwrap_or(default.cpu_time),
            deadline: raw.deadline.unwrap_or(default.deadline),
            fuel: raw.fuel,
            host_calls: raw.host_calls.unwrap_or(default.host_calls),
            host_call_bytes: raw.host_call_bytes.unwrap_or(default.host_call_bytes),
            handles: raw.handles.unwrap_or(default.handles),
            message_size: raw.message_size.unwrap_or(default.message_size),
            log_bytes: raw.log_bytes.unwrap_or(default.log_bytes),
            init: raw.init,
            snapshot: raw.snapshot,
            shutdown: raw.shutdown,
        })
    }
}

impl<'de> Deserialize<'de> for ResourceLimits {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::of(Raw::deserialize(deserializer)?).ok_or_else(|| de::Error::missing_field("memory"))
    }
}

/// Limits checked against a component and its engine, as the meters use them.
#[derive(Debug, Clone)]
pub struct Quota(Arc<Checked>);

#[derive(Debug)]
struct Checked {
    limits: ResourceLimits,
    clock: EpochClock,
    cpu_ticks: u64,
    profile: Profile,
    watches_host: bool,
    host_call_bytes: ByteSize,
    host_calls: u64,
    /// Those of the other phases, where they have limits of their own.
    init: Option<Quota>,
    snapshot: Option<Quota>,
    shutdown: Option<Quota>,
}

/// Limits that do not fit an engine or a component.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum QuotaError {
    /// More memory than an instance can have.
    #[error("a memory limit of {asked} is more than the {max} that the engine can give a component")]
    MemoryBeyondEngine {
        /// What the limit says.
        asked: ByteSize,
        /// What is possible.
        max: ByteSize,
    },
    /// A component that needs more memory to start than it may have.
    #[error("the component starts with a memory of {needed}, and its limit is {allowed}; raise `memory`")]
    InitialMemory {
        /// Its largest initial memory.
        needed: ByteSize,
        /// The limit.
        allowed: ByteSize,
    },
    /// A component that has more memories or tables than it may have.
    #[error("the component has {needed} {what}, and its limit is {allowed}; raise `{what}`")]
    TooMany {
        /// `memories` or `tables`.
        what: &'static str,
        /// How many it has.
        needed: u32,
        /// The limit.
        allowed: u32,
    },
    /// A limit of zero that leaves nothing to run with.
    #[error("`{0}` is zero: nothing could run")]
    Zero(&'static str),
    /// Fuel for code that is not metered.
    #[error("the limits ask for fuel, and the component was loaded as `Profile::Plain`; load it as `Profile::Metered`")]
    FuelNeedsMeteredCode,
}

/// A message is larger than its receiver takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a message of {size} bytes is larger than the {allowed} that the component takes; raise `message_size`")]
#[non_exhaustive]
pub struct MessageTooLarge {
    /// Its bytes.
    pub size: u64,
    /// Bytes it may have.
    pub allowed: u64,
}

const WASM_PAGE: u64 = 64 << 10;

impl Quota {
    /// Checks limits against a component and its engine.
    ///
    /// # Errors
    ///
    /// [`QuotaError`].
    pub fn new(limits: ResourceLimits, component: &LoadedComponent) -> Result<Self, QuotaError> {
        if limits.memory.as_u64() > MAX_MEMORY {
            return Err(QuotaError::MemoryBeyondEngine { asked: limits.memory, max: ByteSize(MAX_MEMORY) });
        }
        let zero = [
            ("cpu_time", limits.cpu_time.is_zero()),
            ("deadline", limits.deadline.is_zero()),
            ("instances", limits.instances == 0),
            ("fuel", limits.fuel == Some(0)),
            ("init.cpu_time", limits.init.cpu_time == Some(Duration::ZERO)),
            ("init.deadline", limits.init.deadline == Some(Duration::ZERO)),
            ("init.fuel", limits.init.fuel == Some(0)),
            ("snapshot.cpu_time", limits.snapshot.cpu_time == Some(Duration::ZERO)),
            ("snapshot.deadline", limits.snapshot.deadline == Some(Duration::ZERO)),
            ("snapshot.fuel", limits.snapshot.fuel == Some(0)),
            ("shutdown.cpu_time", limits.shutdown.cpu_time == Some(Duration::ZERO)),
            ("shutdown.deadline", limits.shutdown.deadline == Some(Duration::ZERO)),
            ("shutdown.fuel", limits.shutdown.fuel == Some(0)),
        ];
        if let Some((name, _)) = zero.into_iter().find(|(_, is_zero)| *is_zero) {
            return Err(QuotaError::Zero(name));
        }
        if limits.profile() == Profile::Metered && component.profile() == Profile::Plain {
            return Err(QuotaError::FuelNeedsMeteredCode);
        }
        if let Some(needs) = component.component().resources_required() {
            // wasmtime counts it in pages.
            let initial = ByteSize(needs.max_initial_memory_size.unwrap_or(0).saturating_mul(WASM_PAGE));
            if initial > limits.memory {
                return Err(QuotaError::InitialMemory { needed: initial, allowed: limits.memory });
            }
            let counts =
                [("memories", needs.num_memories, limits.memories), ("tables", needs.num_tables, limits.tables)];
            for (what, needed, allowed) in counts {
                if needed > allowed {
                    return Err(QuotaError::TooMany { what, needed, allowed });
                }
            }
        }
        let clock = component.engine().clock();
        let is_async = component.features().component_async;
        let checked = |limits: ResourceLimits| Checked {
            cpu_ticks: clock.ticks_in(limits.cpu_time),
            clock: clock.clone(),
            profile: component.profile(),
            // Tasks turn to the host without importing anything.
            watches_host: component.imports_functions() || is_async,
            // An async function returns its result by a host call.
            host_call_bytes: match is_async {
                true => limits.host_call_bytes.min(limits.message_size),
                false => limits.host_call_bytes,
            },
            // What the collector does for a guest cannot be told from what the guest asks of the host.
            host_calls: match component.features().garbage_collection {
                true => u64::MAX,
                false => limits.host_calls,
            },
            init: None,
            snapshot: None,
            shutdown: None,
            limits,
        };
        let of = |call: CallLimits| (!call.is_empty()).then(|| Self(Arc::new(checked(limits.with_call(call)))));
        let (init, snapshot, shutdown) = (of(limits.init), of(limits.snapshot), of(limits.shutdown));
        Ok(Self(Arc::new(Checked { init, snapshot, shutdown, ..checked(limits) })))
    }

    /// What a call of this phase is held against.
    pub fn in_phase(&self, phase: CallPhase) -> &Self {
        let own = match phase {
            CallPhase::Message => &None,
            CallPhase::Init => &self.0.init,
            CallPhase::Snapshot => &self.0.snapshot,
            CallPhase::Shutdown => &self.0.shutdown,
        };
        own.as_ref().unwrap_or(self)
    }

    /// The limits.
    pub fn limits(&self) -> &ResourceLimits {
        &self.0.limits
    }

    /// Checks the size of a message before it is handed to the component.
    ///
    /// # Errors
    ///
    /// When it is larger than `message_size`.
    pub fn check_message(&self, size: usize) -> Result<(), MessageTooLarge> {
        let allowed = self.0.limits.message_size.as_u64();
        if size as u64 > allowed { Err(MessageTooLarge { size: size as u64, allowed }) } else { Ok(()) }
    }

    /// What CPU time is counted by.
    pub fn clock(&self) -> &EpochClock {
        &self.0.clock
    }

    /// Epoch ticks that a call may be charged before it is stopped.
    pub fn cpu_ticks(&self) -> u64 {
        self.0.cpu_ticks
    }

    /// Fuel that each call of metered code starts with.
    pub fn fuel_per_call(&self) -> Option<u64> {
        (self.0.profile == Profile::Metered).then(|| self.0.limits.fuel.unwrap_or(u64::MAX))
    }

    /// Whether the component can turn to the host, so that host calls are counted.
    pub(crate) fn watches_host(&self) -> bool {
        self.0.watches_host
    }

    pub(crate) fn host_calls(&self) -> u64 {
        self.0.host_calls
    }

    pub(crate) fn host_call_bytes(&self) -> u64 {
        self.0.host_call_bytes.as_u64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_toml_form_takes_human_sizes_and_durations() {
        let limits = ResourceLimits::from_toml(
            r#"
            [component]
            name = "somebody else's"

            [resources]
            memory = "1.5MiB"
            on_growth_refused = "tell-guest"
            memories = 1
            table_elements = 10
            tables = 2
            instances = 3
            cpu_time = "50ms"
            deadline = "1m 30s"
            fuel = 1000
            host_calls = 4
            host_call_bytes = "2 kB"
            handles = 5
            message_size = 4096
            log_bytes = "1KiB"
            snapshot = { fuel = 9 }

            [resources.init]
            cpu_time = "5s"
            deadline = "1m"
            "#,
        )
        .unwrap();
        let expected = ResourceLimits {
            memory: ByteSize::kib(1_536),
            on_growth_refused: OnGrowthRefused::TellGuest,
            memories: 1,
            table_elements: 10,
            tables: 2,
            instances: 3,
            cpu_time: Duration::from_millis(50),
            deadline: Duration::from_secs(90),
            fuel: Some(1_000),
            host_calls: 4,
            host_call_bytes: ByteSize::kb(2),
            handles: 5,
            message_size: ByteSize::kib(4),
            log_bytes: ByteSize::kib(1),
            init: CallLimits {
                cpu_time: Some(Duration::from_secs(5)),
                deadline: Some(Duration::from_secs(60)),
                fuel: None,
            },
            snapshot: CallLimits { fuel: Some(9), ..CallLimits::default() },
            shutdown: CallLimits::default(),
        };
        assert_eq!(limits, expected);
    }

    #[test]
    fn what_is_written_is_read_back() {
        let call = CallLimits { deadline: Some(Duration::from_millis(1_001)), ..CallLimits::default() };
        let limits = ResourceLimits {
            fuel: Some(7),
            init: call,
            snapshot: call,
            shutdown: call,
            ..ResourceLimits::with_memory(ByteSize((3 << 20) + 1))
        };
        let text = toml::to_string(&limits).unwrap();
        assert_eq!(toml::from_str::<ResourceLimits>(&text).unwrap(), limits);
        for nonsense in ["", "memory = 1\nmemroy = 2"] {
            toml::from_str::<ResourceLimits>(nonsense).unwrap_err();
        }
        let mut manifest = toml::Table::new();
        let table = toml::Table::try_from(&limits).unwrap();
        assert!(table.keys().all(|key| KEYS.contains(&key.as_str())) && table.len() == KEYS.len());
        manifest.insert(TABLE.into(), table.into());
        assert_eq!(ResourceLimits::from_toml(&manifest.to_string()), Ok(limits));
    }

    #[test]
    fn a_missing_memory_limit_names_the_line_to_add() {
        for text in ["", "[resources]", "[resources]\nfuel = 1", "[other]\nmemory = \"1MiB\""] {
            let error = ResourceLimits::from_toml(text).unwrap_err();
            assert_eq!(error, ManifestError::NoMemoryLimit, "{text}");
            assert!(error.to_string().contains("memory = \"64MiB\""));
        }
    }

    #[test]
    fn unknown_keys_and_wrong_values_are_refused() {
        let unknown = ResourceLimits::from_toml("[resources]\nmemory = \"1MiB\"\nmemroy = 1").unwrap_err();
        assert!(matches!(unknown, ManifestError::UnknownKey { ref key, .. } if key == "memroy"), "{unknown}");
        let unknown = ResourceLimits::from_toml("[resources]\nmemory = \"1MiB\"\ninit = { memory = 1 }").unwrap_err();
        let ManifestError::UnknownKey { table, key, known } = unknown else { panic!("{unknown}") };
        assert_eq!((table.as_str(), key.as_str(), known.len()), ("resources.init", "memory", 3));
        for text in [
            "[resources",
            "resources = 3",
            "[resources]\nmemory = \"lots\"",
            "[resources]\nmemory = -1",
            "[resources]\nmemory = \"1MiB\"\ncpu_time = \"soon\"",
            "[resources]\nmemory = \"1MiB\"\nhandles = -1",
            "[resources]\nmemory = \"1MiB\"\ninit = 3",
            "[resources]\nmemory = \"1MiB\"\ninit = { cpu_time = \"soon\" }",
        ] {
            let error = ResourceLimits::from_toml(text).unwrap_err();
            assert!(matches!(error, ManifestError::Toml(_)), "{text}: {error:?}");
        }
    }

    #[test]
    fn the_rest_of_the_manifest_is_left_for_the_layers_above() {
        let mut manifest: toml::Table = "[resources]\nmemory = \"1MiB\"\n[wasi]\nargs = []".parse().unwrap();
        ResourceLimits::take_from(&mut manifest).unwrap();
        assert_eq!(manifest.keys().collect::<Vec<_>>(), ["wasi"]);
    }
}
