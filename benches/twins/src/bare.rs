//! Guests on bare wasmtime.

use std::{borrow::Cow, path::Path, sync::LazyLock};

use airssys_wasm_engine::{EngineConfig, PoolConfig, Profile, WasmEngine, add_bare_wasi, wasmtime_wasi};
use airssys_wasm_harness::{few, now};
use wasmtime::{
    Config, Engine, Store,
    component::{Component, ComponentNamedList, InstancePre, Lift, Linker, Lower, TypedFunc},
};

/// The engine that the benchmarks share, with everything as it is by default, and all features. The twins run on its wasmtime.
pub fn engine() -> &'static WasmEngine {
    static ENGINE: LazyLock<WasmEngine> = LazyLock::new(|| {
        // Of which those who need it have an engine of their own.
        let mut config = EngineConfig::default().with_component_async().with_garbage_collection().compile_in_process();
        if few() {
            // Twelve memories of 4 GiB.
            let (core_instances, tables_per_component) = (12, 8);
            config.pool = Some(PoolConfig { core_instances, tables_per_component, ..PoolConfig::for_components(8) });
        }
        WasmEngine::new(config).expect("an engine")
    });
    &ENGINE
}

fn bare_engine() -> &'static Engine {
    engine().wasmtime(Profile::Plain).expect("made with the engine")
}

/// wasmtime as it is by default, with its `component-model-async` feature on.
pub fn default_engine() -> &'static Engine {
    static ENGINE: LazyLock<Engine> = LazyLock::new(Engine::default);
    &ENGINE
}

/// The configuration of the bare engine in [`engine`], to be varied.
pub fn config() -> Config {
    bare_engine().config().clone()
}

/// A guest's binary form.
pub fn binary(component: impl AsRef<[u8]>) -> Vec<u8> {
    match wat::parse_bytes(component.as_ref()).expect("a valid fixture") {
        Cow::Borrowed(bytes) => bytes.to_vec(),
        Cow::Owned(bytes) => bytes,
    }
}

/// A guest without imports on a bare engine.
pub fn pre(engine: &Engine, component: &str) -> InstancePre<()> {
    let component = Component::new(engine, binary(component)).expect("a valid fixture");
    Linker::new(engine).instantiate_pre(&component).expect("no imports")
}

/// The bare engine of [`engine`], and a guest on it.
pub fn raw(component: &str) -> InstancePre<()> {
    pre(bare_engine(), component)
}

/// A store for a bare engine with a deadline far away, where epochs are on.
pub fn store<T: 'static>(engine: &Engine, data: T) -> Store<T> {
    let mut store = Store::new(engine, data);
    store.set_epoch_deadline(1 << 40);
    store
}

/// A live instance on a bare engine and one of its functions.
pub fn instance<P, R>(pre: &InstancePre<()>, export: &str) -> (Store<()>, TypedFunc<P, R>)
where
    P: ComponentNamedList + Lower,
    R: ComponentNamedList + Lift,
{
    let mut store = store(pre.engine(), ());
    let instance = now(pre.instantiate_async(&mut store)).expect("an instance");
    let func = instance.get_typed_func(&mut store, export).expect("the export");
    (store, func)
}

/// An instance that imports WASI, in its store.
pub struct WithWasi(#[expect(dead_code, reason = "it is made and dropped, and nobody calls it")] Store<View>);

/// The store data of a guest that uses WASI.
#[derive(Default)]
struct View {
    ctx: wasmtime_wasi::WasiCtx,
    table: wasmtime_wasi::ResourceTable,
}

impl wasmtime_wasi::WasiView for View {
    fn ctx(&mut self) -> wasmtime_wasi::WasiCtxView<'_> {
        wasmtime_wasi::WasiCtxView { ctx: &mut self.ctx, table: &mut self.table }
    }
}

/// From precompiled code in a file to an instance.
#[expect(unsafe_code, reason = "precompiled code is trusted; the benchmark compiled it")]
pub fn from_file(engine: &Engine, path: &Path) -> WithWasi {
    // SAFETY: compiled by this process into a temporary file of its own.
    let component = unsafe { Component::deserialize_file(engine, path) }.expect("code of this engine");
    let mut linker = Linker::<View>::new(engine);
    add_bare_wasi(&mut linker).expect("nothing is defined yet");
    let pre = linker.instantiate_pre(&component).expect("WASI is all that it imports");
    let mut store = store(engine, View::default());
    now(pre.instantiate_async(&mut store)).expect("an instance");
    WithWasi(store)
}
