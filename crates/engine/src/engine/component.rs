//! A component from compiled code to a template: its imports and exports, and what resolves them.

use std::{
    any::Any,
    fmt,
    sync::{Arc, OnceLock},
};

use tokio::sync::OwnedSemaphorePermit;
use wasmtime::component::{
    Component, ComponentExportIndex, ComponentNamedList, InstancePre, Lift, Linker, Lower,
    types::{ComponentFunc, ComponentItem},
};

use crate::{
    EpochClock, ExportError, Features, LinkError, Profile, WasmEngine,
    config::Kind,
    describe::describe_func,
    engine::{link::unsatisfied, load::CacheKey},
};

/// Compiled and validated code, independent of host state. Cheap to clone.
#[derive(Clone)]
pub struct LoadedComponent(Arc<Loaded>);

pub(crate) struct Loaded {
    pub(crate) engine: WasmEngine,
    pub(crate) component: Component,
    pub(crate) kind: Kind,
    pub(crate) allocation: Allocation,
    pub(crate) origin: Origin,
    /// The engine's key for it, forgotten with the last clone.
    pub(crate) key: Option<CacheKey>,
    /// See [`LoadedComponent::memo`].
    pub(crate) memo: OnceLock<Arc<dyn Any + Send + Sync>>,
}

impl Drop for Loaded {
    fn drop(&mut self) {
        if let Some(key) = &self.key {
            self.engine.forget(key);
        }
    }
}

/// Where the instances of a component come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Allocation {
    /// The engine's pool.
    Pooled,
    /// The system, because the component has more memories, tables, instances or table elements than a slot of the
    /// pool, because it has async functions, so that an instance may need several stacks, or because the engine has no
    /// pool.
    OnDemand,
}

/// A component's place in the engine's pool, until it is dropped.
#[derive(Debug)]
pub struct Place(#[expect(dead_code, reason = "it is held, not looked at")] OwnedSemaphorePermit);

/// All components that the pool has room for live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("there is room for {components} components in the pool, and as many live")]
pub struct PoolFull {
    /// What it has room for.
    pub components: u32,
}

/// Where the code of a component came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Origin {
    /// It was compiled.
    Compiled,
    /// It was mapped from the on-disk code cache.
    CodeCache,
    /// It was given precompiled.
    Precompiled,
}

impl fmt::Debug for LoadedComponent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadedComponent")
            .field("profile", &self.0.kind.profile)
            .field("features", &self.0.kind.features)
            .field("allocation", &self.0.allocation)
            .field("origin", &self.0.origin)
            .finish_non_exhaustive()
    }
}

impl LoadedComponent {
    pub(crate) fn new(loaded: Arc<Loaded>) -> Self {
        Self(loaded)
    }

    pub(crate) fn downgrade(&self) -> std::sync::Weak<Loaded> {
        Arc::downgrade(&self.0)
    }

    /// Whether the code is metered.
    pub fn profile(&self) -> Profile {
        self.0.kind.profile
    }

    /// What it needs. Instances of components that need the same live in the same wasmtime engine.
    pub fn features(&self) -> Features {
        self.0.kind.features
    }

    /// Where its instances come from.
    pub fn allocation(&self) -> Allocation {
        self.0.allocation
    }

    /// Where its code came from when it was first loaded in this process.
    pub fn origin(&self) -> Origin {
        self.0.origin
    }

    /// Whether two handles share one piece of compiled code.
    pub fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The engine it was loaded into.
    pub fn engine(&self) -> &WasmEngine {
        &self.0.engine
    }

    /// A place in the pool for one more instance of it, or `None` if its instances are not pooled.
    ///
    /// The pool itself has room for two component instances for each place, so that whoever holds a place can put a
    /// second one into the same store.
    ///
    /// # Errors
    ///
    /// [`PoolFull`].
    pub fn place(&self) -> Result<Option<Place>, PoolFull> {
        if self.0.allocation == Allocation::OnDemand {
            return Ok(None);
        }
        let components = self.engine().config().pool.as_ref().map_or(0, |pool| pool.components);
        let place = Arc::clone(self.engine().places(self.0.kind)).try_acquire_owned();
        place.map(|place| Some(Place(place))).map_err(|_| PoolFull { components })
    }

    /// The wasmtime engine that its stores and linkers belong to.
    pub fn wasmtime(&self) -> &wasmtime::Engine {
        self.0.component.engine()
    }

    /// The compiled component, for what wasmtime offers beyond this crate.
    pub fn component(&self) -> &Component {
        &self.0.component
    }

    /// An empty linker of the engine that this component was compiled for.
    pub fn linker<T: 'static>(&self) -> Linker<T> {
        Linker::new(self.wasmtime())
    }

    /// The imports, by name: interfaces such as `wasi:cli/stdout@0.2.0`, and functions imported by themselves.
    pub fn imports(&self) -> Vec<String> {
        let ty = self.0.component.component_type();
        ty.imports(self.wasmtime()).map(|(name, _)| name.to_owned()).collect()
    }

    /// Whether the component imports any function, so that it can make the host work.
    pub fn imports_functions(&self) -> bool {
        let engine = self.wasmtime();
        self.0.component.component_type().imports(engine).any(|(_, item)| has_functions(engine, &item.ty))
    }

    /// The exported functions with their types, those of an interface as `interface#function`: the first hundred, each
    /// cut at a few KiB. A component may have half a million.
    pub fn exports(&self) -> Vec<String> {
        let engine = self.wasmtime();
        let ty = self.0.component.component_type();
        let functions = ty.exports(engine).flat_map(|(name, item)| {
            let (own, inner) = match item.ty {
                ComponentItem::ComponentFunc(func) => (Some(describe_func(name, &func)), None),
                ComponentItem::ComponentInstance(instance) => (None, Some(instance)),
                _ => (None, None),
            };
            let inner = inner.map(|instance| {
                let functions = instance.exports(engine).filter_map(|(inner, item)| match item.ty {
                    ComponentItem::ComponentFunc(func) => Some(describe_func(&format!("{name}#{inner}"), &func)),
                    _ => None,
                });
                functions.take(MOST_DESCRIBED).collect::<Vec<_>>()
            });
            own.into_iter().chain(inner.into_iter().flatten())
        });
        functions.take(MOST_DESCRIBED).collect()
    }

    /// Finds an exported function once, so that no call has to look it up by name.
    ///
    /// The name is that of a function, or `interface#function` for one in an exported interface.
    ///
    /// # Errors
    ///
    /// [`ExportError::Missing`], which lists what there is.
    pub fn export(&self, name: &str) -> Result<Export, ExportError> {
        self.find_export(name).ok_or_else(|| ExportError::Missing { name: name.to_owned(), available: self.exports() })
    }

    /// [`export`](Self::export) for one that may be missing.
    pub fn find_export(&self, name: &str) -> Option<Export> {
        let component = &self.0.component;
        let found = match name.split_once('#') {
            Some((interface, function)) => component
                .get_export(None, interface)
                .and_then(|(_, interface)| component.get_export(Some(&interface), function)),
            None => component.get_export(None, name),
        };
        match found {
            Some((ComponentItem::ComponentFunc(func), index)) => {
                Some(Export(Arc::new(ExportInner { name: name.into(), ty: OnceLock::new(), func, index })))
            }
            _ => None,
        }
    }

    /// A value that the layer above derives from this component, computed once and kept with it. There is room for one:
    /// if that has another type, this one is computed each time.
    ///
    /// It must not hold the component itself, or neither would ever be dropped.
    pub fn memo<T: Send + Sync + 'static>(&self, find: impl FnOnce(&Self) -> T) -> Arc<T> {
        if let Some(known) = self.0.memo.get()
            && let Ok(known) = Arc::clone(known).downcast()
        {
            return known;
        }
        let found = Arc::new(find(self));
        // Fails if there is a value: of another type, or an equal one of another thread.
        _ = self.0.memo.set(Arc::clone(&found) as _);
        found
    }

    /// Whether an export has this type, without an instance. What `Sandbox::typed` finds, this finds.
    ///
    /// # Errors
    ///
    /// [`ExportError::Missing`] and [`ExportError::Mistyped`].
    pub fn check<P, R>(&self, name: &str) -> Result<Export, ExportError>
    where
        P: ComponentNamedList + Lower,
        R: ComponentNamedList + Lift,
    {
        let export = self.export(name)?;
        // Hidden, but what `bindgen!` generates is made of them.
        match export.func().typecheck::<P, R>(&self.0.component.component_type().instance_type()) {
            Ok(()) => Ok(export),
            Err(error) => Err(ExportError::Mistyped { actual: export.ty().to_owned(), mismatch: format!("{error:#}") }),
        }
    }

    /// Whether a function of the component, imported or exported, has this type.
    pub fn has_type<P, R>(&self, func: &ComponentFunc) -> bool
    where
        P: ComponentNamedList + Lower,
        R: ComponentNamedList + Lift,
    {
        func.typecheck::<P, R>(&self.0.component.component_type().instance_type()).is_ok()
    }

    /// Resolves the imports once, so that instantiating needs no look-ups.
    ///
    /// # Errors
    ///
    /// [`LinkError::Unsatisfied`] with every import that is missing or has another type, and
    /// [`LinkError::OtherEngine`] for a linker that was not made by [`linker`](Self::linker) of a component with the
    /// same profile, features and allocation.
    pub fn link<T: 'static>(&self, linker: &Linker<T>) -> Result<ComponentTemplate<T>, LinkError> {
        if !wasmtime::Engine::same(linker.engine(), self.wasmtime()) {
            return Err(LinkError::OtherEngine);
        }
        match linker.instantiate_pre(&self.0.component) {
            Ok(pre) => Ok(ComponentTemplate { loaded: self.clone(), clock: self.0.engine.clock().clone(), pre }),
            Err(error) => Err(LinkError::Unsatisfied { imports: unsatisfied(&self.0.component, linker), error }),
        }
    }
}

/// Functions that are described.
const MOST_DESCRIBED: usize = 100;

/// Whether an item is a function, or an instance with functions at any depth. Resources have their drop.
fn has_functions(engine: &wasmtime::Engine, item: &ComponentItem) -> bool {
    match item {
        ComponentItem::ComponentInstance(instance) => {
            instance.exports(engine).any(|(_, item)| has_functions(engine, &item.ty))
        }
        ComponentItem::Type(_) => false,
        _ => true,
    }
}

/// An exported function of a component, found by name once.
#[derive(Clone)]
pub struct Export(Arc<ExportInner>);

struct ExportInner {
    name: Arc<str>,
    /// Needed for errors alone.
    ty: OnceLock<String>,
    func: ComponentFunc,
    index: ComponentExportIndex,
}

impl Export {
    /// The name it was found by.
    pub fn name(&self) -> &Arc<str> {
        &self.0.name
    }

    /// Its name and type, as WIT writes them.
    pub fn ty(&self) -> &str {
        let Self(export) = self;
        export.ty.get_or_init(|| describe_func(&export.name, &export.func))
    }

    /// Its type.
    pub fn func(&self) -> &ComponentFunc {
        &self.0.func
    }

    /// What wasmtime finds it by in an instance.
    pub fn index(&self) -> &ComponentExportIndex {
        &self.0.index
    }
}

impl fmt::Debug for Export {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Export").field(&self.ty()).finish()
    }
}

/// A loaded component with its imports resolved: instantiating it needs no look-ups. Cheap to clone.
pub struct ComponentTemplate<T: 'static> {
    loaded: LoadedComponent,
    clock: EpochClock,
    pre: InstancePre<T>,
}

impl<T> Clone for ComponentTemplate<T> {
    fn clone(&self) -> Self {
        Self { loaded: self.loaded.clone(), clock: self.clock.clone(), pre: self.pre.clone() }
    }
}

impl<T> fmt::Debug for ComponentTemplate<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ComponentTemplate").field(&self.loaded).finish()
    }
}

impl<T> ComponentTemplate<T> {
    /// What was linked.
    pub fn loaded(&self) -> &LoadedComponent {
        &self.loaded
    }

    /// The epoch that its instances are interrupted by.
    pub fn clock(&self) -> &EpochClock {
        &self.clock
    }

    /// The pre-linked instance: its `instantiate_async` gives an instance in a store.
    pub fn pre(&self) -> &InstancePre<T> {
        &self.pre
    }
}
