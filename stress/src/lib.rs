//! Programs that look for faults in a whole system, which measure little and check everything.
//!
//! [`soak`] keeps the books of a system under load and chaos, [`keyed`] those of processes with keyed actors that are
//! killed, and [`lattice`] those of hosts that lose each other; [`hostile`] lets guests loose that do their worst, and [`http`] clients; [`calibration`] holds the model of the
//! compiler's work against the compiler. Their program, which has the leak check as well, is started by `cargo xtask`.

pub mod calibration;
pub mod conformance;
mod growth;
pub mod hostile;
pub mod http;
pub mod keyed;
pub mod lattice;
pub mod soak;
mod threads;
