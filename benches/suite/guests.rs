//! Guests in sandboxes.

use airssys_wasm_engine::{ComponentTemplate, Profile, WasmEngine};
use airssys_wasm_harness::now;
use airssys_wasm_isolation::{HostState, Sandbox, SandboxSpec, TypedExport};
use airssys_wasm_limits::{ByteSize, ResourceLimits};
use airssys_wasm_twins::bare::{binary, engine};
use wasmtime::component::{ComponentNamedList, Lift, Lower};

/// The limits that sandboxes of the benchmarks run under: all of them on.
pub(crate) fn limits() -> ResourceLimits {
    ResourceLimits::with_memory(ByteSize::mib(64))
}

/// A guest without imports, linked.
pub(crate) fn template(engine: &WasmEngine, component: &str, profile: Profile) -> ComponentTemplate<HostState<()>> {
    let component = engine.load_blocking(&binary(component), profile).unwrap();
    component.link(&component.linker()).unwrap()
}

/// A guest without imports, to make sandboxes from.
pub(crate) fn spec(component: &str) -> SandboxSpec<()> {
    SandboxSpec::new(template(engine(), component, Profile::Plain), limits()).unwrap()
}

/// A live sandbox and a handle on one of its functions.
pub(crate) fn sandbox<P, R>(component: &str, export: &str) -> (Sandbox<()>, TypedExport<P, R>)
where
    P: ComponentNamedList + Lower,
    R: ComponentNamedList + Lift,
{
    let spec = spec(component);
    let mut sandbox = now(spec.instantiate(())).unwrap();
    let export = sandbox.typed(&spec.export(export).unwrap()).unwrap();
    (sandbox, export)
}
