//! One WebAssembly component in one store: nothing shared, nothing granted that was not named, every failure typed.
//!
//! A [`SandboxSpec`] is a linked component with its limits and grants. Each [`Sandbox`] made from it is one instance
//! in a store of its own. A call consumes the sandbox and gives it back only if it may be used again; everything else
//! is a [`Crash`], and the sandbox is gone with it.
//!
//! ```
//! use airssys_wasm_engine::{EngineConfig, Profile, WasmEngine};
//! use airssys_wasm_isolation::{CrashKind, SandboxSpec};
//! use airssys_wasm_limits::{ByteSize, ResourceLimits};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let engine = WasmEngine::new(EngineConfig::small().compile_in_process())?;
//! let component = engine.load_wat_blocking(
//!     r#"(component
//!         (core module $m (func (export "div") (param i32 i32) (result i32)
//!             (i32.div_s (local.get 0) (local.get 1))))
//!         (core instance $i (instantiate $m))
//!         (func (export "div") (param "a" s32) (param "b" s32) (result s32)
//!             (canon lift (core func $i "div"))))"#,
//!     Profile::Plain,
//! )?;
//! let template = component.link(&component.linker())?;
//! let spec = SandboxSpec::new(template, ResourceLimits::with_memory(ByteSize::mib(1)))?;
//!
//! let mut sandbox = spec.instantiate(()).await?;
//! let div = sandbox.typed::<(i32, i32), (i32,)>(&spec.export("div")?)?;
//! let (answer, sandbox) = sandbox.call(&div, (84, 2)).await?;
//! assert_eq!(answer, (42,));
//!
//! let crash = sandbox.call(&div, (1, 0)).await.unwrap_err();
//! assert!(matches!(crash.kind(), CrashKind::Trap { .. }));
//! # Ok(())
//! # }
//! ```
//!
//! # What it leaves to others
//!
//! Who the component is, what happens after a crash, and how messages reach it belong to the layer above. A crash names
//! no component. A `result::err` that a guest returns is an answer, not a crash.

mod arguments;
mod config;
mod crash;
mod demangle;
mod free;
mod host;
mod keyvalue;
mod link;
mod manifest;
mod probe;
mod sandbox;
mod several;
mod spec;
mod wasi;

pub use arguments::ArgumentError;
pub use crash::{Crash, CrashClass, CrashKind, Frame, LinkFailed, TrapCode};
pub use host::{HostCall, HostState};
pub use keyvalue::{
    Account, Bucket, Charge, ENTRY_COST, KeyPage, KeyValueError, KeyValueGrants, KeyValueStore, MemoryStore,
    QuotaExceeded, StoreFuture,
};
pub use link::{add_config, add_keyvalue, add_wasi};
pub use manifest::{ComponentFileError, SandboxManifest, component_file};
pub use sandbox::{DynamicCallError, DynamicExport, Sandbox, TypedExport};
pub use several::{Calls, SeveralCrashed};
pub use spec::{InstantiateError, SandboxSpec};
pub use wasi::{FileJobs, Folder, Permissions, Stdio, WasiError, WasiGrants};
