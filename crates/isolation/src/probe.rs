//! Whether a guest has trapped, for calls whose errors the embedder sees and may keep to itself.
//!
//! wasmtime knows: after a trap nobody enters a component of that store any more. It has no public word for it, so the
//! store is asked by trying: another component in it has a function that does nothing and is refused like any other.

use std::sync::{Arc, OnceLock};

use airssys_wasm_engine::wasmtime::{
    self, Engine, Store, Trap,
    component::{Component, InstancePre, Linker, TypedFunc},
};

/// Without code of its own: these are functions that wasmtime has for each type of resources. So it takes up no core
/// instance, no memory and no fuel, and no host call.
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

impl<T: Send + 'static> Probes<T> {
    fn get(&self, engine: &Engine) -> wasmtime::Result<&InstancePre<T>> {
        if let Some(pre) = self.0.get() {
            return Ok(pre);
        }
        let pre = Linker::new(engine).instantiate_pre(&Component::new(engine, PROBE)?)?;
        Ok(self.0.get_or_init(|| pre))
    }

    /// A probe in a store whose components can be entered, and whose guest may have so many handles.
    pub(crate) async fn probe(&self, store: &mut Store<T>, handles: u32) -> wasmtime::Result<Probe> {
        store.set_max_component_handles(handles as usize + 1);
        let instance = self.get(store.engine())?.instantiate_async(&mut *store).await?;
        let new = instance.get_typed_func::<(u32,), (u32,)>(&mut *store, "new")?;
        let (handle,) = new.call_async(&mut *store, (0,)).await?;
        Ok(Probe { rep: instance.get_typed_func(&mut *store, "rep")?, handle })
    }
}

/// A probe in one store.
pub(crate) struct Probe {
    rep: TypedFunc<(u32,), (u32,)>,
    handle: u32,
}

impl Probe {
    /// Whether a component of the store has trapped.
    pub(crate) async fn has_trapped<T: Send>(&self, store: &mut Store<T>) -> bool {
        let refused = |error: &wasmtime::Error| error.is::<Trap>();
        match self.rep.call(&mut *store, (self.handle,)) {
            Ok(_) => false,
            Err(error) if refused(&error) => true,
            // A store with asynchronous host functions, which wants a fiber for each call.
            Err(_) => self.rep.call_async(store, (self.handle,)).await.is_err(),
        }
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
