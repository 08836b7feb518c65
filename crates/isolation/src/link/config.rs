//! `wasi:config` for sandboxes.

use std::sync::Arc;

use airssys_wasm_engine::{
    Linker,
    wasmtime::{
        self, StoreContextMut,
        component::{ComponentType, Lower},
    },
};

use crate::HostState;

const STORE: &str = "wasi:config/store@0.2.0-rc.1";

/// `wasi:config/store.error`.
#[derive(Debug, Clone, ComponentType, Lower)]
#[component(variant)]
enum Error {
    #[component(name = "upstream")]
    Upstream(String),
    #[expect(dead_code, reason = "the type has it")]
    #[component(name = "io")]
    Io(String),
}

/// Adds `wasi:config/store@0.2.0-rc.1` to the linker of a component that runs in sandboxes. It gives the entries of
/// [`SandboxSpec::with_config`](crate::SandboxSpec::with_config), by default none.
///
/// What has more than `host_call_bytes` is not given: `get` and `get-all` answer `upstream`, which says so.
///
/// # Errors
///
/// When it is defined already.
pub fn add_config<U: Send + 'static>(linker: &mut Linker<HostState<U>>) -> wasmtime::Result<()> {
    let mut config = linker.instance(STORE)?;
    config.func_wrap("get", |store: StoreContextMut<'_, HostState<U>>, (key,): (String,)| {
        let value = store.data().config().and_then(|config| config.get(&key));
        let bytes = value.as_ref().map_or(0, |value| value.len() as u64);
        Ok((within(store.data(), bytes).map(|()| value),))
    })?;
    config.func_wrap("get-all", |store: StoreContextMut<'_, HostState<U>>, (): ()| {
        let Some(config) = store.data().config() else { return Ok((Ok(Arc::default()),)) };
        Ok((within(store.data(), config.bytes()).map(|()| Arc::clone(config.entries())),))
    })
}

fn within<U>(state: &HostState<U>, bytes: u64) -> Result<(), Error> {
    let allowed = state.quota().limits().host_call_bytes.as_u64();
    if bytes <= allowed {
        return Ok(());
    }
    Err(Error::Upstream(format!(
        "the configuration has {bytes} bytes, and one call may carry {allowed}; raise `host_call_bytes`"
    )))
}
