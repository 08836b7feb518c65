//! One process's part in a comparison of two builds.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How long a batch takes: so short that what disturbs it disturbs its neighbours alike.
pub const BATCH: Duration = Duration::from_micros(150);
/// How many times as long it takes at the most where the benchmark waits: who wakes whom evens out only then.
pub const WAITING: u64 = 10;

/// Raised whenever what follows changes its meaning, so that builds which do not understand each other say so.
pub const PROTOCOL: u32 = 2;

/// What a benchmark program can measure.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Listed {
    /// The benchmark.
    pub id: String,
    /// What its figures are.
    pub kind: Kind,
    /// The first of those that may share what they are set up with: the next one then seems to need little.
    pub group: String,
}

/// What the figures of a benchmark are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Nanoseconds for an iteration.
    Time,
    /// Nanoseconds that the slowest of some take: a percentile of many within a batch.
    Tail,
    /// Bytes, which are read once.
    Bytes,
}

impl Kind {
    /// The unit of its figures.
    pub fn unit(self) -> &'static str {
        match self {
            Self::Time | Self::Tail => "ns",
            Self::Bytes => "bytes",
        }
    }
}

/// What a process is to measure.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    /// [`PROTOCOL`].
    pub protocol: u32,
    /// How long a batch should take, in nanoseconds, where the number of iterations is to be found out.
    pub batch_ns: u64,
    /// Whether another process takes turns with this one, by their standard streams, and which of them begins.
    pub role: Option<Role>,
    /// The core to stay on. All, where there is none.
    pub core: Option<usize>,
    /// The benchmarks, in this order.
    pub benchmarks: Vec<Planned>,
}

/// Which of two processes this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// It has the first batch of four and the last.
    First,
    /// It has the two in the middle.
    Second,
}

/// A benchmark to measure.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Planned {
    /// Its id.
    pub id: String,
    /// Iterations a batch: the same on both sides. Found out where there is none.
    pub iterations: Option<u64>,
    /// Batches: a pair of them each turn, and one alone where there is only one.
    pub batches: usize,
    /// Batches in which allocations are counted, after the others.
    pub counted: u64,
}

/// What a process measured.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Turns {
    /// [`PROTOCOL`].
    pub protocol: u32,
    /// One for each of the plan's that the program knows.
    pub turns: Vec<Turn>,
}

/// What a process measured of one benchmark.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Turn {
    /// Its id.
    pub id: String,
    /// Iterations a batch.
    pub iterations: u64,
    /// Nanoseconds until it was ready to be measured, warming up included.
    pub set_up_ns: f64,
    /// The batches.
    pub batches: Vec<Batch>,
    /// Nanoseconds that all threads together were on a processor meanwhile, where the system tells.
    pub process_ns: Option<f64>,
    /// How often the measuring thread gave its processor away meanwhile to wait for something.
    pub waits: Option<u64>,
    /// Allocations for each iteration, of all threads, where they were counted.
    pub allocations: Option<f64>,
}

/// What was measured of one batch.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Batch {
    /// Nanoseconds for each iteration, by the wall clock, what the benchmark leaves out left out; or what was read.
    pub value: f64,
    /// Nanoseconds that the whole batch took by the wall clock.
    pub wall_ns: f64,
    /// Nanoseconds that the measuring thread was on a processor, where the system tells.
    pub thread_ns: Option<f64>,
    /// Nanoseconds that the yardstick took, before or after, whichever was longer.
    pub yardstick_ns: f64,
}

/// How much longer than undisturbed the yardstick takes where a batch is said to be disturbed.
const DISTURBED: f64 = 1.03;

impl Batch {
    /// Whether somebody else had a hand in the processor before or after, where the yardstick takes so long without.
    pub fn is_disturbed(&self, yardstick_ns: f64) -> bool {
        self.yardstick_ns > yardstick_ns * DISTURBED
    }
}
