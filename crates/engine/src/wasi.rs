//! WASI as wasmtime-wasi has it.

use wasmtime::component::Linker;

/// The version of the interfaces that [`add_bare_wasi`] defines. A component that asks for another minor version of 0.2
/// is given this one.
pub const WASI_VERSION: &str = "0.2.12";

/// Adds WASI 0.2 to a linker as wasmtime-wasi has it.
///
/// Not for untrusted guests: some functions work for as long as the guest's arguments say, and never yield.
/// `airssys_wasm_isolation::add_wasi` replaces these by bounded ones.
///
/// # Errors
///
/// When one of the interfaces is defined already.
pub fn add_bare_wasi<T: wasmtime_wasi::WasiView>(linker: &mut Linker<T>) -> wasmtime::Result<()> {
    wasmtime_wasi::p2::add_to_linker_async(linker)
}
