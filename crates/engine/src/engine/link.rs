//! What a linker lacks of a component's imports.

use wasmtime::component::{Component, Linker, LinkerInstance, ResourceType, types::ComponentItem};

use crate::{MissingImport, WASI_P3_VERSION, WASI_VERSION, describe::describe_func};

/// Finds which imports a linker lacks. wasmtime checks them in order and stops at the first failure. So this finds the
/// first by bisection, with stand-ins for those after it, then the next with a stand-in for the first, and so on, up to
/// as many as people read: a component can have thousands.
pub(super) fn unsatisfied<T: 'static>(component: &Component, linker: &Linker<T>) -> Vec<MissingImport> {
    let engine = component.engine();
    let ty = component.component_type();
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
                // One without a stand-in shows up as another suspect: the error says too much, not too little.
                _ = imports[at].stand_in(engine, &mut trial.root());
            }
            trial.instantiate_pre(component).is_ok()
        };
        // Where one is missing, the next is likely to be.
        let first = if passes(&start) {
            let rest = Vec::from_iter(start + 1..imports.len());
            start + 1 + rest.partition_point(passes)
        } else {
            start
        };
        let Some(import) = imports.get(first) else { break };
        missing.push(import.missing(engine, linker));
        stood_in.push(first);
        start = first + 1;
    }
    missing
}

/// Imports that an error lists, and functions of each.
const MOST_MISSING: usize = 20;

/// Resources of imports that are told apart.
const MOST_RESOURCES: usize = 1_000;

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
            ComponentItem::ComponentFunc(func) if func.async_() => {
                linker.func_new_concurrent(name, |_, _, _, _| Box::pin(async { Ok(()) }))
            }
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
        let offered = [("@0.2.", WASI_VERSION), ("@0.3.", WASI_P3_VERSION)].into_iter().find_map(|(asked, version)| {
            let (interface, _) = self.name.strip_prefix("wasi:")?.split_once(asked)?;
            let offered = format!("wasi:{interface}@{version}");
            (offered != self.name && is_defined(linker, &offered)).then_some(offered)
        });
        let name = offered.as_deref().unwrap_or(self.name);
        let is_defined = is_defined(linker, name);
        let functions = undefined_functions(engine, linker, name, &self.item);
        MissingImport { name: self.name.to_owned(), offered, is_defined, functions }
    }
}

fn note_resources(engine: &wasmtime::Engine, item: &ComponentItem, seen: &mut Vec<ResourceType>) {
    match item {
        // Beyond these the error says too much, not too little.
        ComponentItem::Resource(resource) if seen.len() < MOST_RESOURCES && !seen.contains(resource) => {
            seen.push(*resource);
        }
        ComponentItem::ComponentInstance(instance) => {
            instance.exports(engine).for_each(|(_, item)| note_resources(engine, &item.ty, seen));
        }
        _ => {}
    }
}

/// Whether a linker has anything of this name: defining it twice fails.
fn is_defined<T: 'static>(linker: &Linker<T>, name: &str) -> bool {
    let mut trial = linker.clone();
    trial.allow_shadowing(false);
    trial.root().func_new(name, |_, _, _, _| Ok(())).is_err()
}

/// The functions of an import that a linker lacks, see [`is_defined`].
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
