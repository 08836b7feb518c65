//! WASI as wasmtime-wasi has it.

use wasmtime::component::Linker;

/// The version of WASI 0.2 that [`add_bare_wasi`] defines. A component that asks for another minor version of 0.2 is
/// given this one.
pub const WASI_VERSION: &str = "0.2.12";

/// The version of WASI 0.3 that [`add_bare_wasi`] defines. A component built for a draft (`0.3.0-rc-…`) does not link.
pub const WASI_P3_VERSION: &str = "0.3.0";

/// Adds WASI to a linker as wasmtime-wasi has it: 0.2, and 0.3 if the linker [takes it](takes_wasi_p3).
///
/// Not for untrusted guests: some functions work for as long as the guest's arguments say, and never yield.
/// `airssys_wasm_isolation::add_wasi` replaces these by bounded ones.
///
/// # Errors
///
/// When one of the interfaces is defined already.
pub fn add_bare_wasi<T: wasmtime_wasi::WasiView>(linker: &mut Linker<T>) -> wasmtime::Result<()> {
    wasmtime_wasi::p2::add_to_linker_async(linker)?;
    if takes_wasi_p3(linker) {
        wasmtime_wasi::p3::add_to_linker(linker)?;
    }
    Ok(())
}

/// Whether WASI 0.3 can be added to a linker: whether its components have
/// [`Features::component_async`](crate::Features::component_async).
pub fn takes_wasi_p3<T>(linker: &Linker<T>) -> bool {
    // wasmtime refuses async functions for other engines, and does not tell otherwise.
    let mut trial = Linker::<()>::new(linker.engine());
    trial.root().func_wrap_concurrent("trial", |_, (): ()| Box::pin(async { Ok(()) })).is_ok()
}

/// Whether an import is of a released WASI 0.3, which a component needs the component model's async for, even if it
/// imports nothing that is async.
pub(crate) fn is_wasi_p3(import: &str) -> bool {
    let version = import.strip_prefix("wasi:").and_then(|name| name.split_once("@0.3."));
    version.is_some_and(|(_, patch)| patch.parse::<u32>().is_ok())
}
