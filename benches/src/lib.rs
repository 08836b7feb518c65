//! What the benchmarks have in common: the harness that measures a benchmark and its twins interleaved, and the guests.
//!
//! A benchmark is a closure that runs so many iterations and says how long they took. `cargo bench` gives it to
//! Criterion; `cargo xtask bench` has [`main`] run it with its twins in turns and write JSON, and `cargo xtask compare`
//! has it run a plan.

pub mod actors;
mod allocations;
pub mod guests;
mod harness;

pub use harness::{Group, Measure, Reading, Sample, Suite, main, runtime, timed, timed_async};

#[global_allocator]
static ALLOCATOR: allocations::Counting = allocations::Counting;
