//! Compile, cache, link and instantiate WebAssembly components.
//!
//! A [`WasmEngine`] is shared by everything in a process. It turns bytes into a [`LoadedComponent`], which knows
//! nothing of host state; [`LoadedComponent::link`] resolves its imports once against a [`Linker`] and gives a
//! [`ComponentTemplate`], from which an instance costs microseconds and no look-ups.
//!
//! ```
//! use airssys_wasm_engine::{EngineConfig, Profile, WasmEngine, wasmtime::Store};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let engine = WasmEngine::new(EngineConfig::small().compile_in_process())?;
//! let wat = r#"(component
//!     (core module $m (func (export "add") (param i32 i32) (result i32)
//!         (i32.add (local.get 0) (local.get 1))))
//!     (core instance $i (instantiate $m))
//!     (func (export "add") (param "a" s32) (param "b" s32) (result s32)
//!         (canon lift (core func $i "add"))))"#;
//! let component = engine.load_wat_blocking(wat, Profile::Plain)?;
//! let template = component.link(&component.linker::<()>())?;
//!
//! let mut store = Store::new(component.wasmtime(), ());
//! store.set_epoch_deadline(1_000);
//! let instance = template.pre().instantiate(&mut store)?;
//! let add = instance.get_typed_func::<(i32, i32), (i32,)>(&mut store, "add")?;
//! assert_eq!(add.call(&mut store, (40, 2))?, (42,));
//! # Ok(())
//! # }
//! ```
//!
//! # What it leaves to others
//!
//! What a component may use is in `airssys-wasm-limits`; the one safe way to call a guest is in
//! `airssys-wasm-isolation`. A bare [`wasmtime::Store`] as in the example above has no memory limit and must be given
//! an epoch deadline, or the guest is interrupted at the first tick.
//!
//! # wasmtime
//!
//! wasmtime and wasmtime-wasi are public dependencies, re-exported here and only here. Only this crate builds a
//! [`wasmtime::Config`]; see [`EngineConfig`] for what it sets and why.

mod cache;
mod compiler;
mod complexity;
mod config;
mod describe;
mod digest;
mod engine;
mod error;
mod reclaim;
mod ticker;
mod wasi;

pub use cache::CodeCache;
pub use compiler::compiler_hook;
pub use complexity::Complexity;
pub use config::{
    CompileLimits, Compiler, CompilerProcess, CompilerProgram, EngineConfig, Feature, Features, Imported, MAX_MEMORY,
    PoolConfig, Profile, Ticking,
};
pub use describe::{describe_func, describe_type};
pub use engine::WasmEngine;
pub use engine::component::{Allocation, ComponentTemplate, Export, LoadedComponent, Origin, Place, PoolFull};
pub use error::{
    CacheError, CompilerEnd, EngineError, ExportError, LinkError, LoadError, MissingImport, panic_message, shown,
};
pub use reclaim::Reclaimer;
pub use ticker::EpochClock;
pub use wasi::{WASI_P3_VERSION, WASI_VERSION, add_bare_wasi, takes_wasi_p3};
pub use wasmtime;
pub use wasmtime::component::Linker;
pub use wasmtime_wasi;
