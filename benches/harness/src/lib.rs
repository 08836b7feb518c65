//! Benchmarks with their twins: how they are described, and how they are measured.
//!
//! A benchmark is a closure that runs so many iterations and says how long they took. `cargo bench` gives it to
//! Criterion; `cargo xtask bench` has [`main`] run it with its twins in turns and write JSON, and `cargo xtask compare`
//! has it run a plan.

mod allocations;
mod baton;
mod run;
mod suite;

pub use run::main;
pub use suite::{Group, Measure, Reading, Sample, Suite, few, now, runtime, timed, timed_async};

#[global_allocator]
static ALLOCATOR: allocations::Counting = allocations::Counting;
