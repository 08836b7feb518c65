//! What can be chosen about a kind.

use std::{fmt, sync::Arc, time::Duration};

use airssys_wasm_limits::{ByteSize, MemoryBudget};
use serde::{Deserialize, Serialize};

use crate::Durability;

/// When the state of an actor is saved.
///
/// What is lost when the guest crashes, the process is killed or the power fails:
///
/// - [`OnIdle`](Self::OnIdle): all since the actor came into memory;
/// - [`Within`](Self::Within): what is no older than the duration, the message in hand and one save;
/// - [`EachMessage`](Self::EachMessage): the message in hand. Nothing that was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SaveWhen {
    /// When the actor leaves the memory, and when it stops.
    OnIdle,
    /// No later than this after a message, besides. Not below 10 ms.
    Within(#[serde(with = "humantime_serde")] Duration),
    /// After each message and before its answer, besides.
    EachMessage,
}

impl Default for SaveWhen {
    /// Within 5 s.
    fn default() -> Self {
        Self::Within(Duration::from_secs(5))
    }
}

/// Which keys a kind has.
#[derive(Clone, Default)]
pub enum Keys {
    /// All that can be the rest of a name.
    #[default]
    Any,
    /// Those for which this is true. Called on the sender's thread, for each message to one that is not in memory: it must
    /// not block.
    Known(Arc<dyn Fn(&str) -> bool + Send + Sync>),
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Any => "Any",
            Self::Known(_) => "Known",
        })
    }
}

/// How many activations there may be: so many a second in the long run, and so many at once.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// In a second.
    pub per_second: f64,
    /// At once, after a while without any.
    pub burst: u32,
}

/// What activations a kind admits. Beyond that senders are refused as if a mailbox were full, before anything is allocated.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Admission {
    /// Of the kind. Default: 20,000 a second, 20,000 at once.
    pub kind: Rate,
    /// For each actor that sends; actors of one kind count as one. The host is not held to it. Default: 1,000 a second, 2,000
    /// at once.
    pub caller: Rate,
}

impl Default for Admission {
    fn default() -> Self {
        Self { kind: Rate { per_second: 20_000.0, burst: 20_000 }, caller: Rate { per_second: 1_000.0, burst: 2_000 } }
    }
}

/// What can be chosen about a kind.
#[derive(Debug, Clone)]
pub struct KeyedOptions {
    /// When the state is saved. Default: within 5 s.
    pub save: SaveWhen,
    /// What a save survives. Default: the loss of power.
    pub durability: Durability,
    /// How long an actor stays in memory without a message. Default: 30 s.
    pub idle: Duration,
    /// How long an actor stays in memory at the least, however little room there is: so that they do not push each other
    /// out. Default: 1 s.
    pub residency: Duration,
    /// How many are in memory at a time. From 90 % on those with few messages and
    /// long without one leave, down to 80 %. Default: 8,000.
    pub live: usize,
    /// The memory that the actors of the kind take theirs from, if it is to be watched as `live` is. Default: none.
    pub memory: Option<MemoryBudget>,
    /// Which keys there are. Default: any.
    pub keys: Keys,
    /// How many keys may have state. One without state is not activated beyond that. Those that are in memory may get state all the
    /// same, so that there may be as many more. Default: no bound.
    pub most_keys: u64,
    /// Bytes that a snapshot may have. Default: 1 MiB.
    pub state: ByteSize,
    /// What activations are admitted.
    pub admission: Admission,
}

impl Default for KeyedOptions {
    fn default() -> Self {
        Self {
            save: SaveWhen::default(),
            durability: Durability::Power,
            idle: Duration::from_secs(30),
            residency: Duration::from_secs(1),
            live: 8_000,
            memory: None,
            keys: Keys::Any,
            most_keys: u64::MAX,
            state: ByteSize::mib(1),
            admission: Admission::default(),
        }
    }
}
