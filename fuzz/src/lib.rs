//! What must hold for any input: one function for each fuzz target.
//!
//! A target panics if what its documentation says does not hold. `cargo xtask fuzz` looks for such an input by
//! libFuzzer; `cargo test` replays what is in `corpus`. See `docs/fuzzing.md`.

mod envelope;
mod guest;
mod host;
mod load;
mod manifest;
mod names;
mod values;

pub use envelope::envelope;
pub use guest::guest;
pub use load::load;
pub use manifest::manifest;
pub use names::names;
pub use values::values;

/// A target, by its name: that of its folder in `corpus`, and of its file in `libfuzzer/fuzz_targets`.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: &[Target] = &[
    ("envelope", envelope),
    ("guest", guest),
    ("load", load),
    ("manifest", manifest),
    ("names", names),
    ("values", values),
];
