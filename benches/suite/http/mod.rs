//! HTTP: what bounds, supervision and a sandbox for each request add to hyper and wasmtime-wasi-http, set up by hand.

mod idle;
mod neighbour;
mod ours;
mod requests;

use airssys_wasm_harness::Suite;

pub(crate) use idle::probe;

pub(crate) fn describe(suite: &mut Suite) {
    requests::describe(suite);
    neighbour::describe(suite);
    idle::describe(suite);
}
