//! What the benchmark programs tell `cargo xtask`, and the statistics over it.
//!
//! A program measures and hands over samples; everything that is said about them is worked out here or by xtask. This
//! crate knows neither wasmtime nor how anything is measured, so that building xtask does not build wasmtime.
//!
//! - [`Measured`] is what a process measures in turns with its twins, for `cargo xtask bench`; [`evaluate`] makes figures,
//!   ratios and targets of several such processes.
//! - [`Plan`] and [`Turn`] are one process's part in a comparison of two builds, for `cargo xtask compare`.
//! - [`process`] is what the operating system says of a process, for the benchmarks and for `stress`.

mod figures;
pub mod process;
pub mod stats;
mod turn;

pub use figures::{
    Difference, Figure, Figures, Group, Held, Limit, Measured, Ratio, RatioOf, Reading, Samples, Target, evaluate,
};
pub use turn::{BATCH, Batch, Kind, Listed, PROTOCOL, Plan, Planned, Role, Turn, Turns, WAITING};

/// Whether a benchmark is there for another to be held against: bare wasmtime, a plain map, somebody else's actors.
///
/// What such a benchmark measures is not ours, so that a comparison of two builds of ours leaves it out.
pub fn is_twin(id: &str) -> bool {
    const WHOSE: [&str; 9] =
        ["raw", "raw_with_calls", "default", "native", "seed_path", "peer", "dashmap", "papaya", "wasmtime_cache"];
    id.split_once('/').is_some_and(|(whose, _)| WHOSE.contains(&whose))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_twin_is_told_by_whose_it_is() {
        for twin in ["raw/load_component", "peer/kameo/actor/ask/native/one_worker", "default/execute_function"] {
            assert!(is_twin(twin), "{twin}");
        }
        for ours in ["load_component", "execution/minimal_overhead/native_add", "routing/send_message"] {
            assert!(!is_twin(ours), "{ours}");
        }
    }
}
