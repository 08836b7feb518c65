//! Actors: what supervision, names and limits add to a task that owns a channel and a guest, beside that task, and beside
//! the actors of kameo and ractor.
//!
//! On one worker all runs on one thread; on two, the client is a task among the others.

pub(crate) mod calls;
mod density;
mod latency;
mod lifecycle;
mod messages;
pub(crate) mod ours;

use airssys_wasm_harness::Suite;
use airssys_wasm_twins::work::Workers;

pub(crate) use density::probe;
pub(crate) use latency::paced;

pub(crate) fn describe(suite: &mut Suite) {
    for workers in [Workers::One, Workers::Two] {
        messages::ask(suite, workers);
        messages::tell(suite, workers);
        lifecycle::spawn(suite, workers);
        lifecycle::restart(suite, workers);
        lifecycle::upgrade(suite, workers);
    }
    messages::ask_async(suite);
    calls::calls(suite);
    messages::throughput(suite);
    messages::capabilities(suite);
    messages::observability(suite);
    latency::describe(suite);
    density::describe(suite);
}
