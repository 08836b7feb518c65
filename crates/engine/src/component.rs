//! A component on its way from compiled code to something that can be instantiated: what it imports and exports, and
//! what resolves its imports.

use std::{
    any::Any,
    fmt,
    sync::{Arc, OnceLock},
};

use wasmtime::component::{
    Component, ComponentExportIndex, InstancePre, Linker, LinkerInstance, ResourceType, types::ComponentItem,
};

use crate::{
    EpochClock, ExportError, LinkError, MissingImport, Profile, WASI_VERSION, WasmEngine, describe::describe_func,
    load::CacheKey,
};

/// Compiled and validated code, independent of host state. Cheap to clone.
#[derive(Clone)]
pub struct LoadedComponent(Arc<Loaded>);

pub(crate) struct Loaded {
    pub(crate) engine: WasmEngine,
    pub(crate) component: Component,
    pub(crate) profile: Profile,
    pub(crate) allocation: Allocation,
    pub(crate) origin: Origin,
    /// Under which the engine knows it, so that it is forgotten with the last clone.
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
    /// pool, or because the engine has no pool.
    OnDemand,
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
            .field("profile", &self.0.profile)
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
        self.0.profile
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

    /// Whether the component imports any function, so that the host can be made to work for it.
    pub fn imports_functions(&self) -> bool {
        let engine = self.wasmtime();
        self.0.component.component_type().imports(engine).any(|(_, item)| has_functions(engine, &item.ty))
    }

    /// The exported functions with their types, those of an interface as `interface#function`: the first hundred, of which
    /// each is described in a few KiB at the most. A component may have half a million.
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
                Some(Export(Arc::new(ExportInner { name: name.into(), ty: describe_func(name, &func), index })))
            }
            _ => None,
        }
    }

    /// What the layer above wants to know of this component, found out once and kept with it. There is room for one such
    /// thing: where that is of another type, this one is found out each time.
    ///
    /// It must not hold the component itself, or neither would ever be dropped.
    pub fn memo<T: Send + Sync + 'static>(&self, find: impl FnOnce(&Self) -> T) -> Arc<T> {
        if let Some(known) = self.0.memo.get()
            && let Ok(known) = Arc::clone(known).downcast()
        {
            return known;
        }
        let found = Arc::new(find(self));
        // Fails when there is something of another type, or of another thread, which is the same.
        _ = self.0.memo.set(Arc::clone(&found) as _);
        found
    }

    /// Resolves the imports once, so that instantiating needs no look-ups.
    ///
    /// # Errors
    ///
    /// [`LinkError::Unsatisfied`] with every import that is missing or has another type, and
    /// [`LinkError::OtherEngine`] for a linker that was not made by [`linker`](Self::linker) of a component with the
    /// same profile and allocation.
    pub fn link<T: 'static>(&self, linker: &Linker<T>) -> Result<ComponentTemplate<T>, LinkError> {
        if !wasmtime::Engine::same(linker.engine(), self.wasmtime()) {
            return Err(LinkError::OtherEngine);
        }
        match linker.instantiate_pre(&self.0.component) {
            Ok(pre) => Ok(ComponentTemplate { loaded: self.clone(), clock: self.0.engine.clock().clone(), pre }),
            Err(error) => Err(LinkError::Unsatisfied { imports: self.unsatisfied(linker), error }),
        }
    }

    /// Finds out which imports a linker lacks. wasmtime checks them in order and stops at the first that fails; so this
    /// finds the first by offering stand-ins for those after it, by halves, then the next with one for the first, and so
    /// on: no more of them than anybody reads, because a component can have thousands.
    fn unsatisfied<T: 'static>(&self, linker: &Linker<T>) -> Vec<MissingImport> {
        let engine = self.wasmtime();
        let ty = self.0.component.component_type();
        let mut seen = Vec::new();
        let imports: Vec<_> =
            ty.imports(engine).map(|(name, item)| Import::new(engine, name, item.ty, &mut seen)).collect();
        let mut missing = Vec::new();
        let mut stood_in = Vec::new();
        let mut start = 0;
        while start < imports.len() && missing.len() < MOST_MISSING {
            let passes = |last: &usize| {
                let mut trial = linker.clone();
                trial.allow_shadowing(true);
                for &at in stood_in.iter().chain(&Vec::from_iter(last + 1..imports.len())) {
                    // One that cannot be stood in for shows up as another suspect: too much said, not too little.
                    _ = imports[at].stand_in(engine, &mut trial.root());
                }
                trial.instantiate_pre(&self.0.component).is_ok()
            };
            let places = Vec::from_iter(start..imports.len());
            let first = start + places.partition_point(passes);
            let Some(import) = imports.get(first) else { break };
            missing.push(import.missing(engine, linker));
            stood_in.push(first);
            start = first + 1;
        }
        missing
    }
}

/// Imports that an error names, and functions of each.
const MOST_MISSING: usize = 20;

/// Resources of imports that are told apart.
const MOST_RESOURCES: usize = 1_000;

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

/// An import of a component.
struct Import<'a> {
    name: &'a str,
    item: ComponentItem,
    /// The resources that no import before this one has: one that others have is known by then, and must be the same.
    resources: Vec<ResourceType>,
}

impl<'a> Import<'a> {
    fn new(engine: &wasmtime::Engine, name: &'a str, item: ComponentItem, seen: &mut Vec<ResourceType>) -> Self {
        let known = seen.len();
        note_resources(engine, &item, seen);
        Self { name, item, resources: seen[known..].to_vec() }
    }

    fn stand_in<T: 'static>(
        &self,
        engine: &wasmtime::Engine,
        linker: &mut LinkerInstance<'_, T>,
    ) -> wasmtime::Result<()> {
        self.stand_in_for(engine, linker, self.name, &self.item)
    }

    fn stand_in_for<T: 'static>(
        &self,
        engine: &wasmtime::Engine,
        linker: &mut LinkerInstance<'_, T>,
        name: &str,
        item: &ComponentItem,
    ) -> wasmtime::Result<()> {
        match item {
            ComponentItem::ComponentFunc(_) => linker.func_new(name, |_, _, _, _| Ok(())),
            ComponentItem::Resource(resource) if self.resources.contains(resource) => {
                linker.resource(name, ResourceType::host::<()>(), |_, _| Ok(()))
            }
            ComponentItem::ComponentInstance(instance) => {
                let mut linker = linker.instance(name)?;
                instance
                    .exports(engine)
                    .try_for_each(|(name, item)| self.stand_in_for(engine, &mut linker, name, &item.ty))
            }
            _ => Ok(()),
        }
    }

    /// What is missing of it: of the version that the linker has, where that is another one of WASI.
    fn missing<T: 'static>(&self, engine: &wasmtime::Engine, linker: &Linker<T>) -> MissingImport {
        let interface = self.name.strip_prefix("wasi:").and_then(|name| name.split_once("@0.2."));
        let offered = interface.map(|(interface, _)| format!("wasi:{interface}@{WASI_VERSION}"));
        let offered = offered.filter(|offered| offered != self.name && is_defined(linker, offered));
        let functions = undefined_functions(engine, linker, offered.as_deref().unwrap_or(self.name), &self.item);
        MissingImport { name: self.name.to_owned(), offered, functions }
    }
}

fn note_resources(engine: &wasmtime::Engine, item: &ComponentItem, seen: &mut Vec<ResourceType>) {
    match item {
        // Beyond these, too much is said, and not too little.
        ComponentItem::Resource(resource) if seen.len() < MOST_RESOURCES && !seen.contains(resource) => {
            seen.push(*resource);
        }
        ComponentItem::ComponentInstance(instance) => {
            instance.exports(engine).for_each(|(_, item)| note_resources(engine, &item.ty, seen));
        }
        _ => {}
    }
}

/// Whether a linker has anything of this name. Defining it twice is refused, which tells.
fn is_defined<T: 'static>(linker: &Linker<T>, name: &str) -> bool {
    let mut trial = linker.clone();
    trial.allow_shadowing(false);
    trial.root().func_new(name, |_, _, _, _| Ok(())).is_err()
}

/// The functions of an import that a linker has not, see [`is_defined`].
fn undefined_functions<T: 'static>(
    engine: &wasmtime::Engine,
    linker: &Linker<T>,
    name: &str,
    item: &ComponentItem,
) -> Vec<String> {
    let mut trial = linker.clone();
    trial.allow_shadowing(false);
    match item {
        ComponentItem::ComponentFunc(func) => {
            let missing = trial.root().func_new(name, |_, _, _, _| Ok(())).is_ok();
            missing.then(|| describe_func(name, func)).into_iter().collect()
        }
        ComponentItem::ComponentInstance(instance) => {
            let Ok(mut trial) = trial.instance(name) else { return Vec::new() };
            instance
                .exports(engine)
                .filter_map(|(name, item)| match item.ty {
                    ComponentItem::ComponentFunc(func) => {
                        let missing = trial.func_new(name, |_, _, _, _| Ok(())).is_ok();
                        missing.then(|| describe_func(name, &func))
                    }
                    _ => None,
                })
                .take(MOST_MISSING)
                .collect()
        }
        _ => Vec::new(),
    }
}

/// An exported function of a component, found by name once.
#[derive(Clone)]
pub struct Export(Arc<ExportInner>);

struct ExportInner {
    name: Arc<str>,
    ty: String,
    index: ComponentExportIndex,
}

impl Export {
    /// The name it was found by.
    pub fn name(&self) -> &Arc<str> {
        &self.0.name
    }

    /// Its name and type, as WIT writes them.
    pub fn ty(&self) -> &str {
        &self.0.ty
    }

    /// What wasmtime finds it by in an instance.
    pub fn index(&self) -> &ComponentExportIndex {
        &self.0.index
    }
}

impl fmt::Debug for Export {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Export").field(&self.0.ty).finish()
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
