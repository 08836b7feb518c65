//! One process's part in a comparison of two builds.

use serde::{Deserialize, Serialize};

/// Raised whenever what follows changes its meaning, so that builds which do not understand each other say so.
pub const PROTOCOL: u32 = 1;

/// What a process is to measure.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    /// [`PROTOCOL`].
    pub protocol: u32,
    /// How long a batch should take, in nanoseconds, where the number of iterations is to be found out.
    pub batch_ns: u64,
    /// What the yardstick takes where nothing disturbs it, in nanoseconds, where that is known.
    pub yardstick_ns: Option<f64>,
    /// Whether allocations are counted, after the measuring.
    pub allocations: bool,
    /// The benchmarks, in this order.
    pub turns: Vec<Planned>,
}

/// A benchmark to measure.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Planned {
    /// Its id.
    pub id: String,
    /// Iterations a batch: the same on both sides. Found out where there is none.
    pub iterations: Option<u64>,
    /// How many undisturbed batches are wanted.
    pub batches: usize,
    /// How many are measured at the most.
    pub tries: usize,
}

/// What a process measured.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Turns {
    /// [`PROTOCOL`].
    pub protocol: u32,
    /// One for each of the plan's that the program knows.
    pub turns: Vec<Turn>,
    /// Nanoseconds that the process was on a processor, all in all, where the system tells.
    pub process_ns: Option<f64>,
}

/// What a process measured of one benchmark.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Turn {
    /// Its id.
    pub id: String,
    /// Iterations a batch.
    pub iterations: u64,
    /// Nanoseconds until it was ready to be measured, warming up included.
    pub set_up_ns: u64,
    /// The batches, disturbed ones included.
    pub batches: Vec<Batch>,
    /// Nanoseconds that all threads together were on a processor meanwhile, where the system tells.
    pub process_ns: Option<f64>,
    /// How often the measuring thread gave its processor away meanwhile to wait for something.
    pub waits: Option<u64>,
    /// Allocations and bytes for each iteration, of all threads, where they were counted.
    pub allocations: Option<(f64, f64)>,
}

/// What was measured of one batch.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Batch {
    /// Nanoseconds for each iteration, by the wall clock, what the benchmark leaves out left out.
    pub ns: f64,
    /// Nanoseconds that the whole batch took by the wall clock.
    pub wall_ns: f64,
    /// Nanoseconds that the measuring thread was on a processor, where the system tells.
    pub thread_ns: Option<f64>,
    /// Nanoseconds that the yardstick took, before or after, whichever was longer.
    pub yardstick_ns: f64,
}

/// How much longer than undisturbed the yardstick may take for a batch to count.
pub const DISTURBED: f64 = 1.03;

impl Batch {
    /// Whether the processor was all ours before and after, where it is known what the yardstick then takes.
    pub fn is_clean(&self, yardstick_ns: Option<f64>) -> bool {
        yardstick_ns.is_none_or(|undisturbed| self.yardstick_ns <= undisturbed * DISTURBED)
    }
}
