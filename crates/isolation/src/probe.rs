//! Whether a guest has trapped, for calls whose errors the embedder sees and may keep to itself.
//!
//! wasmtime knows: after a trap nobody enters a component of that store any more. It has no public word for it, so the
//! store is asked by trying: another component in it has a function that does nothing and is refused like any other.

use std::{
    panic::resume_unwind,
    sync::{Arc, OnceLock},
};

use airssys_wasm_engine::wasmtime::{
    self, Engine, Store, Trap,
    component::{Component, InstancePre, Linker, TypedFunc},
};
use airssys_wasm_limits::{Metered, unwatch, watch};
use tokio::{runtime::Handle, task::spawn_blocking};

/// Without code of its own: these are functions that wasmtime has for each type of resources. So it takes up no core
/// instance, no memory and no fuel. To wasmtime they are host calls, which are not the guest's: the store is not watched
/// meanwhile.
const PROBE: &[u8] = b"\x00asm\r\x00\x01\x00\x07\x04\x01?\x7f\x00\x08\x05\x02\x02\x00\x04\x00\x07\n\x01@\x01\x03repy\x00y\x08\x06\
    \x01\x00\x00\x00\x00\x01\x07\r\x01@\x01\x06handley\x00y\x08\x06\x01\x00\x00\x01\x00\x02\x0b\x11\x02\x00\x03new\x01\x00\x00\x00\x03rep\
    \x01\x01\x00";

/// Where the probes of a specification come from. Compiled when the first is wanted.
pub(crate) struct Probes<T: 'static>(Arc<OnceLock<InstancePre<T>>>);

impl<T> Default for Probes<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T> Clone for Probes<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: Metered> Probes<T> {
    async fn get(&self, engine: &Engine) -> wasmtime::Result<&InstancePre<T>> {
        if let Some(pre) = self.0.get() {
            return Ok(pre);
        }
        let pre = Linker::new(engine).instantiate_pre(&compiled(engine).await?)?;
        Ok(self.0.get_or_init(|| pre))
    }

    /// Makes a probe unless there is one, in a store whose components can be entered and whose guest may have so many
    /// handles.
    pub(crate) async fn place(
        &self,
        probe: &mut Option<Box<Probe>>,
        store: &mut Store<T>,
        handles: u32,
    ) -> wasmtime::Result<()> {
        if probe.is_none() {
            // Boxed: it is rare, and its future would lie in that of every call.
            *probe = Some(Box::pin(self.probe(store, handles)).await?);
        }
        Ok(())
    }

    async fn probe(&self, store: &mut Store<T>, handles: u32) -> wasmtime::Result<Box<Probe>> {
        let engine = store.engine().clone();
        let pre = self.get(&engine).await?;
        unwatch(store);
        store.set_max_component_handles(handles as usize + 1);
        let instance = pre.instantiate_async(&mut *store).await?;
        let new = instance.get_typed_func::<(u32,), (u32,)>(&mut *store, "new")?;
        let (handle,) = new.call_async(&mut *store, (0,)).await?;
        let rep = instance.get_typed_func(&mut *store, "rep")?;
        watch(store);
        Ok(Box::new(Probe { rep, handle }))
    }
}

/// The probe's code, compiled on a blocking thread where there is one.
async fn compiled(engine: &Engine) -> wasmtime::Result<Component> {
    let engine = engine.clone();
    let compile = move || Component::new(&engine, PROBE);
    if Handle::try_current().is_err() {
        return compile();
    }
    spawn_blocking(compile).await.unwrap_or_else(|error| match error.try_into_panic() {
        Ok(panic) => resume_unwind(panic),
        Err(cancelled) => Err(cancelled.into()),
    })
}

/// A probe in one store.
pub(crate) struct Probe {
    rep: TypedFunc<(u32,), (u32,)>,
    handle: u32,
}

impl Probe {
    /// Whether a component of the store has trapped.
    pub(crate) async fn has_trapped<T: Metered>(&self, store: &mut Store<T>) -> bool {
        unwatch(store);
        let has_trapped = match self.rep.call(&mut *store, (self.handle,)) {
            Ok(_) => false,
            Err(error) if error.is::<Trap>() => true,
            // A store with asynchronous host functions, which wants a fiber for each call.
            Err(_) => self.rep.call_async(&mut *store, (self.handle,)).await.is_err(),
        };
        watch(store);
        has_trapped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probe_is_what_it_says() {
        let source = r#"(component
            (type (resource (rep i32)))
            (core func (canon resource.new 0))
            (core func (canon resource.rep 0))
            (func (export "new") (param "rep" u32) (result u32) (canon lift (core func 0)))
            (func (export "rep") (param "handle" u32) (result u32) (canon lift (core func 1))))"#;
        let binary = wat::parse_str(source).unwrap();
        assert_eq!(PROBE, binary, "{}", binary.escape_ascii());
    }
}
