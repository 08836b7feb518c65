//! All benchmarks, a module for each category, in one program: each would carry wasmtime's generics once more.

#![expect(clippy::unwrap_used, reason = "a benchmark that cannot be set up has nothing to measure")]

mod actor;
mod component_loading;
mod crash_handling;
mod execution;
mod guests;
mod http;
mod instantiation;
mod keyed;
mod lattice;
mod limits;
mod memory;
mod routing;

fn main() -> anyhow::Result<()> {
    airssys_wasm_engine::compiler_hook();
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let probes = [memory::probe, actor::probe, http::probe, keyed::probe, lattice::probe];
    if let Some(done) = probes.iter().find_map(|probe| probe(&arguments)) {
        return done;
    }
    airssys_wasm_harness::main(|suite| {
        component_loading::describe(suite);
        instantiation::describe(suite);
        execution::describe(suite);
        limits::describe(suite);
        memory::describe(suite);
        crash_handling::describe(suite);
        routing::describe(suite);
        actor::describe(suite);
        http::describe(suite);
        keyed::describe(suite);
        lattice::describe(suite);
    })
}
