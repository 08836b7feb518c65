//! What the benchmarks are measured beside: bare wasmtime doing the same, and the actors of others.

#![expect(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "a benchmark that cannot be set up has nothing to measure"
)]

pub mod actors;
pub mod bare;
pub mod receivers;
pub mod web;
pub mod work;
