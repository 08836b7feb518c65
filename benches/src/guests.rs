//! Guests ready to run: in a sandbox, and on bare wasmtime for the twins.

use std::{
    borrow::Cow,
    sync::{LazyLock, atomic::Ordering},
};

use airssys_wasm_engine::{ComponentTemplate, EngineConfig, PoolConfig, Profile, WasmEngine};
use airssys_wasm_isolation::{HostState, Sandbox, SandboxSpec};
use airssys_wasm_limits::{ByteSize, ResourceLimits};
use wasmtime::{
    Config, Engine, Store,
    component::{Component, ComponentNamedList, InstancePre, Lift, Linker, Lower, TypedFunc},
};

use crate::harness::{FEW, runtime};

/// The engine that the benchmarks share, with everything as it is by default.
pub fn engine() -> &'static WasmEngine {
    static ENGINE: LazyLock<WasmEngine> = LazyLock::new(|| {
        let mut config = EngineConfig::default().compile_in_process();
        if FEW.load(Ordering::Relaxed) {
            // Twelve memories of 4 GiB.
            let (core_instances, tables_per_component) = (12, 8);
            config.pool = Some(PoolConfig { core_instances, tables_per_component, ..PoolConfig::for_components(8) });
        }
        WasmEngine::new(config).expect("an engine")
    });
    &ENGINE
}

/// wasmtime as it is by default, with its `component-model-async` feature on.
pub fn default_engine() -> &'static Engine {
    static ENGINE: LazyLock<Engine> = LazyLock::new(Engine::default);
    &ENGINE
}

/// The configuration of the bare engine in [`engine`], to be varied.
pub fn config() -> Config {
    engine().wasmtime(Profile::Plain).expect("made with the engine").config().clone()
}

/// A guest's binary form.
pub fn binary(component: impl AsRef<[u8]>) -> Vec<u8> {
    match wat::parse_bytes(component.as_ref()).expect("a valid fixture") {
        Cow::Borrowed(bytes) => bytes.to_vec(),
        Cow::Owned(bytes) => bytes,
    }
}

/// The limits that sandboxes of the benchmarks run under: all of them on.
pub fn limits() -> ResourceLimits {
    ResourceLimits::with_memory(ByteSize::mib(64))
}

/// A guest without imports, linked.
pub fn template(engine: &WasmEngine, component: &str, profile: Profile) -> ComponentTemplate<HostState<()>> {
    let component = engine.load_blocking(&binary(component), profile).expect("a valid fixture");
    component.link(&component.linker()).expect("no imports")
}

/// A guest without imports, to make sandboxes from.
pub fn spec(component: &str) -> SandboxSpec<()> {
    SandboxSpec::new(template(engine(), component, Profile::Plain), limits()).expect("limits that fit")
}

/// A guest without imports on a bare engine.
pub fn pre(engine: &Engine, component: &str) -> InstancePre<()> {
    let component = Component::new(engine, binary(component)).expect("a valid fixture");
    Linker::new(engine).instantiate_pre(&component).expect("no imports")
}

/// The bare engine of [`engine`], and a guest on it.
pub fn raw(component: &str) -> InstancePre<()> {
    pre(engine().wasmtime(Profile::Plain).expect("made with the engine"), component)
}

/// A store for a bare engine with a deadline far away, where epochs are on.
pub fn store(engine: &Engine) -> Store<()> {
    let mut store = Store::new(engine, ());
    store.set_epoch_deadline(1 << 40);
    store
}

/// Waits for what does not wait.
pub fn now<R>(future: impl Future<Output = R>) -> R {
    runtime().block_on(future)
}

/// A live sandbox and a handle on one of its functions.
pub fn sandbox<P, R>(component: &str, export: &str) -> (Sandbox<()>, airssys_wasm_isolation::TypedExport<P, R>)
where
    P: ComponentNamedList + Lower,
    R: ComponentNamedList + Lift,
{
    let spec = spec(component);
    let mut sandbox = now(spec.instantiate(())).expect("a sandbox");
    let export = sandbox.typed(&spec.export(export).expect("the export")).expect("its type");
    (sandbox, export)
}

/// A live instance on a bare engine and one of its functions.
pub fn instance<P, R>(pre: &InstancePre<()>, export: &str) -> (Store<()>, TypedFunc<P, R>)
where
    P: ComponentNamedList + Lower,
    R: ComponentNamedList + Lift,
{
    let mut store = store(pre.engine());
    let instance = now(pre.instantiate_async(&mut store)).expect("an instance");
    let func = instance.get_typed_func(&mut store, export).expect("the export");
    (store, func)
}
