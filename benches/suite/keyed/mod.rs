//! Keyed actors, by the store on disk: what the way out of memory and back adds to a row, an instance and a call, what keeping
//! each message adds to a batch and a sync, and what a million names take.
//!
//! Stores are in the folder for temporary files (`TMPDIR`), which is to be on a disk: a sync of what is in memory is none.

mod activation;
mod many;
mod messages;
mod neighbour;
mod ours;

use airssys_wasm_harness::Suite;

pub(crate) use many::probe;

pub(crate) fn describe(suite: &mut Suite) {
    activation::describe(suite);
    messages::describe(suite);
    many::describe(suite);
    neighbour::describe(suite);
}
