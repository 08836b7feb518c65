//! Walks a binary and counts what is in it, as often as it exists when everything is instantiated.

use std::ops::Range;

use wasmparser::{
    BinaryReader, CanonicalFunction, CanonicalOption, ComponentAlias, ComponentDefinedType, ComponentExternalKind,
    ComponentInstance, ComponentOuterAliasKind, ComponentType, ComponentTypeDeclaration, CoreType, Encoding, Instance,
    ModuleTypeDeclaration, Payload, RecGroup,
};

use super::{Complexity, Size, Tally, check, module::Module, weights};
use crate::{Imported, LoadError, wasi::is_wasi_p3};

/// The state of a walk.
pub(super) struct Survey<'a> {
    bytes: &'a [u8],
    tally: Tally<'a>,
    /// Open modules and components, outermost first.
    open: Vec<Open>,
}

/// A module or component whose end was not reached yet.
#[derive(Default)]
struct Open {
    /// Nothing for a component.
    module: Option<Module>,
    size: Size,
    /// What can be instantiated in it, by index; none for what comes from outside.
    modules: Vec<Option<Size>>,
    components: Vec<Option<Size>>,
}

impl<'a> Survey<'a> {
    pub(super) fn new(bytes: &'a [u8], tally: Tally<'a>) -> Self {
        Self { bytes, tally, open: Vec::new() }
    }

    pub(super) fn end(self) -> Complexity {
        self.tally.found
    }

    pub(super) fn payload(&mut self, payload: Payload<'_>) -> Result<(), LoadError> {
        match payload {
            Payload::Version { encoding, .. } => return self.begin(encoding == Encoding::Module),
            Payload::End(_) => return self.finish(),
            _ => {}
        }
        let is_outermost = self.open.len() == 1;
        let Some(here) = self.open.last_mut() else { return Ok(()) };
        let tally = &mut self.tally;
        // Counted before any of them is looked at.
        tally.items(items_in(&payload).into(), &mut here.size)?;
        if let Some(module) = &mut here.module {
            return module.payload(payload, &mut here.size, tally);
        }
        match payload {
            Payload::InstanceSection(section) => {
                for instance in section {
                    match instance? {
                        Instance::Instantiate { module_index, args } => {
                            here.size.add(find(&here.modules, module_index, "core modules", tally)?);
                            here.size.add(Size { items: args.len() as u64, instances: 1, work: 0 });
                        }
                        Instance::FromExports(exports) => {
                            here.size.add(Size { items: exports.len() as u64, ..Size::default() })
                        }
                    }
                    tally.limits.check_size(here.size)?;
                }
            }
            Payload::ComponentInstanceSection(section) => {
                for instance in section {
                    match instance? {
                        ComponentInstance::Instantiate { component_index, args } => {
                            here.size.add(find(&here.components, component_index, "components", tally)?);
                            here.size.add(Size { items: args.len() as u64, ..Size::default() });
                        }
                        ComponentInstance::FromExports(exports) => {
                            here.size.add(Size { items: exports.len() as u64, ..Size::default() });
                        }
                    }
                    tally.limits.check_size(here.size)?;
                }
            }
            Payload::CoreTypeSection(section) => {
                for ty in section {
                    let ty = ty?;
                    tally.found.features.need_core_type(&ty);
                    tally.items(parts_of_core_type(&ty), &mut here.size)?;
                }
            }
            Payload::ComponentTypeSection(section) => self.types(section.range())?,
            Payload::ComponentCanonicalSection(section) => {
                for function in section {
                    let function = function?;
                    tally.found.features.component_async |= function_is_async(&function);
                    let work = match function {
                        CanonicalFunction::Lift { .. } => weights::LIFTED_FUNCTION,
                        CanonicalFunction::Lower { .. } => weights::LOWERED_FUNCTION,
                        _ => weights::INTRINSIC,
                    };
                    here.size.add(Size { work, ..Size::default() });
                    tally.limits.check_size(here.size)?;
                }
            }
            Payload::ComponentAliasSection(section) => {
                for alias in section {
                    self.alias(&alias?);
                }
            }
            Payload::ComponentImportSection(section) => {
                tally.imports(section.count())?;
                for import in section {
                    let import = import?;
                    tally.found.features.component_async |= is_outermost && is_wasi_p3(import.name.name);
                    match import.ty.kind() {
                        ComponentExternalKind::Module => here.modules.push(None),
                        ComponentExternalKind::Component => here.components.push(None),
                        _ => {}
                    }
                }
            }
            Payload::ComponentExportSection(section) => {
                for export in section {
                    // An export gives its item a second index.
                    let export = export?;
                    let again =
                        |known: &mut Vec<Option<Size>>| known.push(known.get(export.index as usize).copied().flatten());
                    match export.kind {
                        ComponentExternalKind::Module => again(&mut here.modules),
                        ComponentExternalKind::Component => again(&mut here.components),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn begin(&mut self, is_module: bool) -> Result<(), LoadError> {
        let Tally { found, limits, .. } = &mut self.tally;
        // The outermost is not nested.
        found.nesting = found.nesting.max(self.open.len() as u32);
        found.modules = found.modules.saturating_add(1);
        self.open.push(Open { module: is_module.then(Module::default), ..Open::default() });
        check("nesting", found.nesting.into(), limits.nesting.into())?;
        check("modules", found.modules, limits.modules)?;
        self.tally.work(weights::MODULE, 0)
    }

    fn finish(&mut self) -> Result<(), LoadError> {
        let Some(Open { module, mut size, .. }) = self.open.pop() else { return Ok(()) };
        let is_module = module.is_some();
        if let Some(mut module) = module {
            module.end(&mut size, &mut self.tally)?;
        }
        match self.open.last_mut() {
            Some(outer) if is_module => outer.modules.push(Some(size)),
            Some(outer) => outer.components.push(Some(size)),
            None => {
                let Tally { found, written, .. } = &mut self.tally;
                found.items = size.items.max(*written);
                found.instances = size.instances;
                return self.tally.work(size.work, 0);
            }
        }
        Ok(())
    }

    /// Checks the nesting of types without recursion, because they are later read recursively.
    fn types(&mut self, section: Range<usize>) -> Result<(), LoadError> {
        let mut reader = BinaryReader::new(self.bytes.get(section.clone()).unwrap_or_default(), section.start);
        // Items left: of the section, and of each open type.
        let mut open = vec![reader.read_var_u32()?];
        while let Some(left) = open.last_mut() {
            let Some(less) = left.checked_sub(1) else {
                open.pop();
                continue;
            };
            *left = less;
            // In a section there is nothing but types; in a type, declarations of which some are types.
            if open.len() > 1 {
                match reader.clone().read_u8()? {
                    0x01 => _ = reader.read_u8()?,
                    _ => {
                        if let ComponentTypeDeclaration::CoreType(ty) = reader.read()? {
                            self.tally.found.features.need_core_type(&ty);
                            self.tally.items(parts_of_core_type(&ty), &mut Size::default())?;
                        }
                        continue;
                    }
                }
            }
            match reader.clone().read_u8()? {
                // A component or an instance.
                0x41 | 0x42 => {
                    reader.read_u8()?;
                    let declarations = reader.read_var_u32()?;
                    self.tally.items(declarations.into(), &mut Size::default())?;
                    self.tally.imports(declarations)?;
                    open.push(declarations);
                    let depth = (self.open.len() + open.len()) as u32 - 2;
                    self.tally.found.nesting = self.tally.found.nesting.max(depth);
                    check("nesting", depth.into(), self.tally.limits.nesting.into())?;
                }
                _ => {
                    let ty = reader.read()?;
                    self.tally.found.features.component_async |= type_is_async(&ty);
                    self.tally.items(parts(&ty), &mut Size::default())?;
                }
            }
        }
        Ok(())
    }

    /// Adds an index for something that can be instantiated.
    fn alias(&mut self, alias: &ComponentAlias<'_>) {
        let (kind, size) = match *alias {
            ComponentAlias::Outer { kind: ComponentOuterAliasKind::CoreModule, count, index } => {
                (ComponentExternalKind::Module, self.outer(count, |open| &open.modules, index))
            }
            ComponentAlias::Outer { kind: ComponentOuterAliasKind::Component, count, index } => {
                (ComponentExternalKind::Component, self.outer(count, |open| &open.components, index))
            }
            ComponentAlias::InstanceExport { kind, .. } => (kind, None),
            _ => return,
        };
        let Some(here) = self.open.last_mut() else { return };
        match kind {
            ComponentExternalKind::Module => here.modules.push(size),
            ComponentExternalKind::Component => here.components.push(size),
            _ => {}
        }
    }

    fn outer(&self, count: u32, of: impl Fn(&Open) -> &Vec<Option<Size>>, index: u32) -> Option<Size> {
        let open = self.open.iter().rev().nth(count as usize)?;
        of(open).get(index as usize).copied().flatten()
    }
}

/// The number of items that a section declares.
fn items_in(payload: &Payload<'_>) -> u32 {
    match payload {
        Payload::TypeSection(section) => section.count(),
        Payload::ImportSection(section) => section.count(),
        Payload::FunctionSection(section) => section.count(),
        Payload::TableSection(section) => section.count(),
        Payload::MemorySection(section) => section.count(),
        Payload::TagSection(section) => section.count(),
        Payload::GlobalSection(section) => section.count(),
        Payload::ExportSection(section) => section.count(),
        Payload::ElementSection(section) => section.count(),
        Payload::DataSection(section) => section.count(),
        Payload::InstanceSection(section) => section.count(),
        Payload::CoreTypeSection(section) => section.count(),
        Payload::ComponentInstanceSection(section) => section.count(),
        Payload::ComponentAliasSection(section) => section.count(),
        Payload::ComponentTypeSection(section) => section.count(),
        Payload::ComponentCanonicalSection(section) => section.count(),
        Payload::ComponentImportSection(section) => section.count(),
        Payload::ComponentExportSection(section) => section.count(),
        _ => 0,
    }
}

/// What is to be instantiated. An import is an error unless its cost was said, because it is unknown; a wrong index is left
/// to the compiler.
fn find(known: &[Option<Size>], index: u32, what: &'static str, tally: &Tally<'_>) -> Result<Size, LoadError> {
    let Some(size) = known.get(index as usize) else { return Ok(Size::default()) };
    let said = tally.limits.imported.map(|Imported { items, instances }| Size { items, instances, work: items });
    size.or(said).ok_or(LoadError::UnknownInstance { what })
}

/// Whether a type is one of the component model's async.
fn type_is_async(ty: &ComponentType<'_>) -> bool {
    match ty {
        ComponentType::Func(function) => function.async_,
        ComponentType::Defined(ComponentDefinedType::Future(_) | ComponentDefinedType::Stream(_)) => true,
        _ => false,
    }
}

/// Whether a canonical function is one of the component model's async. The others are few.
fn function_is_async(function: &CanonicalFunction) -> bool {
    match function {
        CanonicalFunction::Lift { options, .. } | CanonicalFunction::Lower { options, .. } => {
            options.iter().any(|option| matches!(option, CanonicalOption::Async | CanonicalOption::Callback(_)))
        }
        CanonicalFunction::ResourceNew { .. }
        | CanonicalFunction::ResourceDrop { .. }
        | CanonicalFunction::ResourceRep { .. }
        // These are features of their own.
        | CanonicalFunction::ErrorContextNew { .. }
        | CanonicalFunction::ErrorContextDebugMessage { .. }
        | CanonicalFunction::ErrorContextDrop
        | CanonicalFunction::ThreadSpawnRef { .. }
        | CanonicalFunction::ThreadSpawnIndirect { .. }
        | CanonicalFunction::ThreadAvailableParallelism => false,
        _ => true,
    }
}

/// The parts of a type, each of which the host stores.
fn parts(ty: &ComponentType<'_>) -> u64 {
    let parts = match ty {
        ComponentType::Func(function) => function.params.len(),
        ComponentType::Defined(ComponentDefinedType::Record(fields)) => fields.len(),
        ComponentType::Defined(ComponentDefinedType::Variant(cases)) => cases.len(),
        ComponentType::Defined(ComponentDefinedType::Tuple(types)) => types.len(),
        ComponentType::Defined(ComponentDefinedType::Flags(names) | ComponentDefinedType::Enum(names)) => names.len(),
        _ => 0,
    };
    parts as u64
}

fn parts_of_core_type(ty: &CoreType<'_>) -> u64 {
    let in_group = |group: &RecGroup| group.types().map(weights::items_of_type).sum();
    match ty {
        CoreType::Rec(group) => in_group(group),
        CoreType::Module(declarations) => declarations
            .iter()
            .map(|declaration| match declaration {
                ModuleTypeDeclaration::Type(group) => in_group(group),
                _ => 1,
            })
            .sum(),
    }
}
