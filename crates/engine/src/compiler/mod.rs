//! Turns bytes into native code: in this process, or in one for each load, which can be killed.
//!
//! [`compile`] is the same for both.

#[cfg(target_os = "linux")]
mod child;
#[cfg(target_os = "linux")]
mod host;
#[cfg(target_os = "linux")]
mod protocol;
#[cfg(target_os = "linux")]
mod sandbox;
mod unsupported;

use std::borrow::Cow;

use wasmtime::Engine;

#[cfg(target_os = "linux")]
pub(crate) use self::host::Compilers;
use self::unsupported::missing_feature;
use crate::{CompileLimits, Complexity, Features, LoadError, complexity::Form, error::contained};

/// Turns this process into a compiler if it was started as one, and returns at once if it was not.
///
/// Call it first in `main`, before threads and an async runtime are started: a [`Compiler::Process`](crate::Compiler::Process) starts this
/// program once more for each load.
///
/// ```no_run
/// use airssys_wasm_engine::{EngineConfig, WasmEngine};
///
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     airssys_wasm_engine::compiler_hook();
///     let engine = WasmEngine::new(EngineConfig::default())?;
///     // …
///     # _ = engine;
///     Ok(())
/// }
/// ```
pub fn compiler_hook() {
    #[cfg(target_os = "linux")]
    child::hook();
}

/// A component that the compiler may see.
pub(crate) struct Admitted<'a> {
    pub(crate) binary: Cow<'a, [u8]>,
    /// What it needs.
    pub(crate) features: Features,
    limits: CompileLimits,
}

/// Holds a component against limits, and what it needs against what is offered.
pub(crate) fn admit<'a>(
    bytes: &'a [u8],
    form: Form,
    limits: &CompileLimits,
    offered: Features,
) -> Result<Admitted<'a>, LoadError> {
    limits.check_form(form, bytes.len() as u64)?;
    contained(|| {
        let binary = match form {
            Form::Binary => Cow::Borrowed(bytes),
            Form::Text => wat::parse_bytes(bytes).map_err(|error| LoadError::Text { error: error.into() })?,
        };
        check_header(&binary)?;
        let features = Complexity::of(&binary, limits)?.features;
        match offered.lacking(features) {
            Some(feature) => Err(LoadError::Unsupported { feature }),
            None => Ok(Admitted { binary, features, limits: *limits }),
        }
    })
}

impl Admitted<'_> {
    /// Native code for it.
    pub(crate) fn compile(&self, engine: &Engine) -> Result<Vec<u8>, LoadError> {
        let code = self.call(|binary| engine.precompile_component(binary))?;
        self.limits.check_code(code.len() as u64)?;
        Ok(code)
    }

    /// Calls the compiler and catches its panics: it reads untrusted input, and a bug in it must not end the host. What
    /// it leaves half done belongs to this component alone.
    pub(crate) fn call<R>(&self, compile: impl FnOnce(&[u8]) -> wasmtime::Result<R>) -> Result<R, LoadError> {
        contained(|| {
            compile(&self.binary).map_err(|error| match missing_feature(&self.binary, self.features) {
                Some(feature) => LoadError::Unsupported { feature },
                None => LoadError::Invalid { error },
            })
        })
    }
}

/// Tells a component from a core module and from anything else by its first eight bytes.
fn check_header(bytes: &[u8]) -> Result<(), LoadError> {
    const WASM: &[u8] = b"\0asm";
    match bytes {
        [b'\0', b'a', b's', b'm', _, _, 0, 0, ..] => Err(LoadError::CoreModule),
        _ if bytes.starts_with(WASM) => Ok(()),
        _ => Err(LoadError::NotWasm { start: bytes[..bytes.len().min(WASM.len())].to_vec() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_of_the_compiler_is_an_error() {
        let admitted = admit(b"(component)", Form::Text, &CompileLimits::NONE, Features::NONE).unwrap();
        let error = admitted.call(|_| -> wasmtime::Result<()> { panic!("over\x1b[31m") }).unwrap_err();
        assert!(matches!(&error, LoadError::CompilerPanicked { message } if message == "over\x1b[31m"), "{error:?}");
        assert!(error.to_string().contains(r"over\u{1b}[31m"), "{error}");
    }
}
