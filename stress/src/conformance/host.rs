//! What scripts import: what wasmtime's own runner defines, and what of components before them it hands on.

use std::{
    future::pending,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};

use airssys_wasm_engine::{
    Features, Linker,
    wasmtime::{
        self, Engine, Module, Store,
        component::{Component, Resource, ResourceType, types::ComponentItem},
        ensure,
    },
};
use tokio::task::yield_now;

/// What the components of one script share.
#[derive(Default)]
pub(super) struct Host {
    drops: Arc<Drops>,
    /// Components with a name, in the order of the script.
    named: Vec<(String, Rc<[u8]>)>,
}

/// Of `resource1`.
#[derive(Default)]
struct Drops {
    number: AtomicU32,
    last: AtomicU32,
}

struct Resource1;
struct Resource2;

/// What of a component's exports others can import.
enum Exported {
    Module(Module),
    Resource(ResourceType),
}

impl Host {
    /// From now on others may import from this component, by its name.
    pub(super) fn name(&mut self, name: &str, binary: Rc<[u8]>) {
        self.named.retain(|(other, _)| other != name);
        self.named.push((name.to_owned(), binary));
    }

    /// Defines all that a component for this engine may import.
    pub(super) async fn define<T: Send + 'static>(
        &self,
        linker: &mut Linker<T>,
        engine: &Engine,
        features: Features,
    ) -> wasmtime::Result<()> {
        self.define_after(linker, engine, features, &self.named).await
    }

    async fn define_after<T: Send + 'static>(
        &self,
        linker: &mut Linker<T>,
        engine: &Engine,
        features: Features,
        named: &[(String, Rc<[u8]>)],
    ) -> wasmtime::Result<()> {
        for (at, (name, binary)) in named.iter().enumerate() {
            // What an engine without some feature refuses is not there.
            let exports = Box::pin(self.exports(engine, features, binary, &named[..at])).await.unwrap_or_default();
            let mut instance = linker.instance(name)?;
            for (name, exported) in exports {
                match exported {
                    Exported::Module(module) => instance.module(&name, &module)?,
                    Exported::Resource(resource) => instance.resource(&name, resource, |_, _| Ok(()))?,
                }
            }
        }
        self.define_host(linker, engine, features)
    }

    /// A sandbox hands none out, and a module is of one engine: so they are taken from another instance.
    async fn exports(
        &self,
        engine: &Engine,
        features: Features,
        binary: &[u8],
        named: &[(String, Rc<[u8]>)],
    ) -> wasmtime::Result<Vec<(String, Exported)>> {
        let component = Component::new(engine, binary)?;
        let ty = component.component_type();
        let is_handed_on = |item: &ComponentItem| matches!(item, ComponentItem::Module(_) | ComponentItem::Resource(_));
        let exports: Vec<_> = ty.exports(engine).filter(|(_, item)| is_handed_on(&item.ty)).collect();
        if exports.is_empty() {
            return Ok(Vec::new());
        }
        let mut linker = Linker::<()>::new(engine);
        self.define_after(&mut linker, engine, features, named).await?;
        let mut store = Store::new(engine, ());
        store.set_epoch_deadline(1_000);
        let instance = linker.instantiate_async(&mut store, &component).await?;
        let mut exported = |(name, _)| {
            let module = instance.get_module(&mut store, name).map(Exported::Module);
            let exported = module.or_else(|| instance.get_resource(&mut store, name).map(Exported::Resource))?;
            Some((String::from(name), exported))
        };
        Ok(exports.into_iter().filter_map(&mut exported).collect())
    }

    /// What wasmtime's own runner defines.
    fn define_host<T: Send + 'static>(
        &self,
        linker: &mut Linker<T>,
        engine: &Engine,
        features: Features,
    ) -> wasmtime::Result<()> {
        linker.root().func_wrap("host-return-two", |_, (): ()| Ok((2_u32,)))?;
        let mut wasmtime = linker.instance("wasmtime")?;
        wasmtime.func_wrap("set-max-table-capacity", |mut store, (capacity,): (u32,)| {
            ensure!(store.concurrent_resource_table().is_some(), "a guest without async");
            if let Some(table) = store.concurrent_resource_table() {
                table.set_max_capacity(capacity as usize);
            }
            Ok(())
        })?;
        wasmtime.func_wrap("gc", |mut store, (): ()| store.gc(None))?;
        let mut host = linker.instance("host")?;
        host.func_wrap("return-three", |_, (): ()| Ok((3_u32,)))?;
        host.func_wrap("return-hi", |_, (): ()| Ok(("hi".to_owned(),)))?;
        let module =
            r#"(module (global (export "g") i32 i32.const 100) (func (export "f") (result i32) i32.const 101))"#;
        host.module("simple-module", &Module::new(engine, wat::parse_str(module)?)?)?;
        host.instance("nested")?.func_wrap("return-four", |_, (): ()| Ok((4_u32,)))?;

        let drops = Arc::clone(&self.drops);
        host.resource("resource1", ResourceType::host::<Resource1>(), move |_, rep| {
            drops.number.fetch_add(1, Relaxed);
            drops.last.store(rep, Relaxed);
            Ok(())
        })?;
        host.resource("resource2", ResourceType::host::<Resource2>(), |_, _| Ok(()))?;
        host.resource("resource1-again", ResourceType::host::<Resource1>(), |_, _| {
            Err(wasmtime::Error::msg("the other name's destructor should be called"))
        })?;
        host.func_wrap("[constructor]resource1", |_, (rep,): (u32,)| Ok((Resource::<Resource1>::new_own(rep),)))?;
        host.func_wrap("[static]resource1.assert", |_, (this, rep): (Resource<Resource1>, u32)| {
            ensure!(this.rep() == rep, "it is {}, and should be {rep}", this.rep());
            Ok(())
        })?;
        let drops = Arc::clone(&self.drops);
        host.func_wrap("[static]resource1.last-drop", move |_, (): ()| Ok((drops.last.load(Relaxed),)))?;
        let drops = Arc::clone(&self.drops);
        host.func_wrap("[static]resource1.drops", move |_, (): ()| Ok((drops.number.load(Relaxed),)))?;
        host.func_wrap("[method]resource1.simple", |_, (this, rep): (Resource<Resource1>, u32)| {
            ensure!(!this.owned() && this.rep() == rep, "it is {}, and should be {rep} and lent", this.rep());
            Ok(())
        })?;
        host.func_wrap(
            "[method]resource1.take-borrow",
            |_, (this, other): (Resource<Resource1>, Resource<Resource1>)| {
                ensure!(!this.owned() && !other.owned(), "both should be lent");
                Ok(())
            },
        )?;
        host.func_wrap(
            "[method]resource1.take-own",
            |_, (this, other): (Resource<Resource1>, Resource<Resource1>)| {
                ensure!(!this.owned() && other.owned(), "the second alone should be given away");
                Ok(())
            },
        )?;
        if features.component_async {
            host.func_wrap_concurrent("never-return", |_, (): ()| Box::pin(pending::<wasmtime::Result<()>>()))?;
            host.func_wrap_concurrent("[method]resource1.never-return", |_, (_,): (Resource<Resource1>,)| {
                Box::pin(pending::<wasmtime::Result<()>>())
            })?;
            host.func_wrap_concurrent("return-two-slowly", |_, (): ()| {
                Box::pin(async {
                    yield_now().await;
                    Ok((2_i32,))
                })
            })?;
            host.func_wrap_concurrent("echo-slowly", |_, (of,): (u32,)| {
                Box::pin(async move {
                    yield_now().await;
                    Ok((of,))
                })
            })?;
            linker
                .root()
                .func_wrap_concurrent("host-echo-u32", |_, (of,): (u32,)| Box::pin(async move { Ok((of,)) }))?;
        }
        Ok(())
    }
}
