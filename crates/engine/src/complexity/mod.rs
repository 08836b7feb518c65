//! What compiling a component may cost, found out before the compiler sees it.
//!
//! The compiler's time is not a matter of size alone: 8 KiB of nested loops can keep it busy for minutes, and a few
//! nested components multiply to millions. Compilation runs on a thread that nobody can stop, so it is not begun.

use std::ops::Range;

use wasmparser::{
    BinaryReader, BinaryReaderError, BlockType, ComponentAlias, ComponentExternalKind, ComponentInstance,
    ComponentOuterAliasKind, ComponentType, ComponentTypeDeclaration, ConstExpr, ContType, DataKind, Element,
    ElementItems, ElementKind, Encoding, FrameKind, FuncType, FunctionBody, Instance, ModuleArity, Operator, Parser,
    Payload, RefType, SubType, TableInit, TypeRef,
};

use serde::{Deserialize, Serialize};

use crate::{LoadError, compiler::Form};

/// How large and how complex a component may be that is to be compiled. Part of the
/// [`EngineConfig`](crate::EngineConfig).
///
/// The defaults are some four times what a JavaScript or Python component needs, which carries a whole interpreter. What
/// the worst component within them costs is in `SECURITY.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CompileLimits {
    /// Bytes of its binary form. Default: 64 MiB.
    pub bytes: u64,
    /// Bytes of its text form, which is for people: reading it can take time by the square of its length. Default: 1 MiB.
    pub text_bytes: u64,
    /// How deep modules, components, and types of instances and components are nested in it. Default: 10. What reads types
    /// does so recursively: some 1,000 of them overflow a thread's stack.
    pub nesting: u32,
    /// Functions of all its modules. Default: 150,000.
    pub functions: u64,
    /// Element segments of all its modules, which the compiler handles one by one. Default: 10,000.
    pub element_segments: u64,
    /// Imports of the component, and declarations in types of instances and components. Who links it goes through them
    /// many times over if one is missing. Default: 3,000.
    pub imports: u64,
    /// Everything that has an index: types, imports, exports, functions, globals, tables, segments with their elements,
    /// aliases, instances. Counted as it is written, and as often as it is there when all that is instantiated in it is.
    /// Default: 500,000.
    pub items: u64,
    /// Core instances, each as often as it is there when all that is instantiated in it is. Default: 1,000.
    pub instances: u64,
    /// Work in the function that has most of it, which is also what the compiler's memory depends on. Default: 2 million.
    ///
    /// A unit is a microsecond or two of the compiler's time. A function has 60 for itself, one for each instruction, each
    /// value that one takes or leaves, and each target of a branch; and then what grows faster than its size: a 16th of
    /// the square of the values that may be alive at a time (its locals and operands), a fourth of these values times its
    /// blocks, a 64th of the depth of each block, and for each loop its depth times the locals that are set in it. What
    /// a module does before it starts is a function as well: 16 for each element of its segments, and 32 for each
    /// instruction of an initial value that is more than a constant.
    pub function_work: u64,
    /// Work in all functions together. Default: 60 million.
    pub work: u64,
    /// Bytes of native code with all that belongs to it, as it is mapped and as the code cache stores it. Known only after
    /// compiling. Default: 256 MiB.
    pub code_bytes: u64,
}

impl Default for CompileLimits {
    fn default() -> Self {
        Self {
            bytes: 64 << 20,
            text_bytes: 1 << 20,
            nesting: 10,
            functions: 150_000,
            element_segments: 10_000,
            imports: 3_000,
            items: 500_000,
            instances: 1_000,
            function_work: 2_000_000,
            work: 60_000_000,
            code_bytes: 256 << 20,
        }
    }
}

impl CompileLimits {
    /// No limits, for components that are trusted.
    pub const NONE: Self = Self {
        bytes: u64::MAX,
        text_bytes: u64::MAX,
        nesting: u32::MAX,
        functions: u64::MAX,
        element_segments: u64::MAX,
        imports: u64::MAX,
        items: u64::MAX,
        instances: u64::MAX,
        function_work: u64::MAX,
        work: u64::MAX,
        code_bytes: u64::MAX,
    };

    /// The names of the fields, as [`LoadError::TooComplex`] has them.
    pub(crate) const FIELDS: [&str; 12] = [
        "bytes",
        "text_bytes",
        "nesting",
        "functions",
        "element_segments",
        "imports",
        "items",
        "instances",
        "function_work",
        "work",
        "code_bytes",
        "image_bytes",
    ];

    /// Bytes that a component may have in this form.
    pub(crate) fn most(&self, form: Form) -> u64 {
        match form {
            Form::Binary => self.bytes,
            Form::Text => self.text_bytes,
        }
    }

    pub(crate) fn check_form(&self, form: Form, bytes: u64) -> Result<(), LoadError> {
        let what = match form {
            Form::Binary => "bytes",
            Form::Text => "text_bytes",
        };
        check(what, bytes, self.most(form))
    }

    pub(crate) fn check_code(&self, bytes: u64) -> Result<(), LoadError> {
        check("code_bytes", bytes, self.code_bytes)
    }

    fn check_size(&self, size: Size) -> Result<(), LoadError> {
        check("items", size.items, self.items)?;
        check("instances", size.instances, self.instances)
    }
}

/// How large and how complex a component is, in the terms of [`CompileLimits`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each is what `CompileLimits` has under that name")]
pub struct Complexity {
    pub bytes: u64,
    pub nesting: u32,
    pub functions: u64,
    pub element_segments: u64,
    pub imports: u64,
    pub items: u64,
    pub instances: u64,
    pub function_work: u64,
    pub work: u64,
}

impl Complexity {
    /// Looks through a component's binary form and gives up at the first limit it is beyond.
    ///
    /// Whether it is valid is left to the compiler, unless what is wrong hides all that comes after it.
    ///
    /// # Errors
    ///
    /// [`LoadError::TooComplex`], [`LoadError::UnknownInstance`] and [`LoadError::Invalid`].
    pub fn of(bytes: &[u8], limits: &CompileLimits) -> Result<Self, LoadError> {
        limits.check_form(Form::Binary, bytes.len() as u64)?;
        let found = Self { bytes: bytes.len() as u64, ..Self::default() };
        let mut survey = Survey { bytes, limits, found, written: 0, open: Vec::new() };
        for payload in Parser::new(0).parse_all(bytes) {
            survey.payload(payload?)?;
        }
        Ok(survey.found)
    }
}

impl Complexity {
    /// Adds to all of the work what has come to that of one function.
    fn add_work(&mut self, more: u64, function: u64, limits: &CompileLimits) -> Result<(), LoadError> {
        self.function_work = self.function_work.max(function);
        self.work = self.work.saturating_add(more);
        check("function_work", function, limits.function_work)?;
        check("work", self.work, limits.work)
    }

    fn add_imports(&mut self, more: u32, limits: &CompileLimits) -> Result<(), LoadError> {
        self.imports = self.imports.saturating_add(more.into());
        check("imports", self.imports, limits.imports)
    }
}

/// The elements of a segment, and the work of its initial values.
fn elements(segment: Element<'_>) -> Result<(u64, u64), LoadError> {
    let mut work = 0;
    let count = match segment.items {
        ElementItems::Functions(functions) => functions.count(),
        ElementItems::Expressions(_, expressions) => {
            let count = expressions.count();
            for expression in expressions {
                work += initial(&expression?)?;
            }
            count
        }
    };
    if let ElementKind::Active { offset_expr, .. } = segment.kind {
        work += initial(&offset_expr)?;
    }
    Ok((count.into(), work))
}

/// The work of an initial value.
fn initial(expression: &ConstExpr<'_>) -> Result<u64, LoadError> {
    let mut operators = 0;
    for operator in expression.get_operators_reader() {
        operator?;
        operators += 1;
    }
    // With the end.
    Ok(if operators <= 2 { 1 } else { 32 * operators })
}

fn check(what: &'static str, found: u64, allowed: u64) -> Result<(), LoadError> {
    if found > allowed { Err(LoadError::TooComplex { what, found, allowed }) } else { Ok(()) }
}

impl From<BinaryReaderError> for LoadError {
    fn from(error: BinaryReaderError) -> Self {
        Self::Invalid { error: error.into() }
    }
}

/// A walk through a binary.
struct Survey<'a> {
    bytes: &'a [u8],
    limits: &'a CompileLimits,
    found: Complexity,
    /// Items so far.
    written: u64,
    /// Modules and components that are not at their end, the outermost first.
    open: Vec<Open>,
}

/// A module or a component of which the end has not been seen.
#[derive(Default)]
struct Open {
    is_module: bool,
    size: Size,
    /// What can be instantiated in it, by index; none for what comes from outside.
    modules: Vec<Option<Size>>,
    components: Vec<Option<Size>>,
    functions: Functions,
    /// The work of what a module does before it starts.
    start: u64,
}

impl Open {
    fn add_start(&mut self, work: u64, found: &mut Complexity, limits: &CompileLimits) -> Result<(), LoadError> {
        self.start = self.start.saturating_add(work);
        found.add_work(work, self.start, limits)
    }
}

/// What there is when one instance of something is made.
#[derive(Clone, Copy, Default)]
struct Size {
    items: u64,
    instances: u64,
}

impl Size {
    fn add(&mut self, other: Self) {
        self.items = self.items.saturating_add(other.items);
        self.instances = self.instances.saturating_add(other.instances);
    }
}

impl Survey<'_> {
    fn payload(&mut self, payload: Payload<'_>) -> Result<(), LoadError> {
        match payload {
            Payload::Version { encoding, .. } => return self.begin(encoding == Encoding::Module),
            Payload::End(_) => {
                self.end();
                return Ok(());
            }
            _ => {}
        }
        let Some(here) = self.open.last_mut() else { return Ok(()) };
        // Counted before any of them is looked at.
        let items = u64::from(items_in(&payload));
        self.written = self.written.saturating_add(items);
        here.size.items = here.size.items.saturating_add(items);
        check("items", self.written, self.limits.items)?;
        match payload {
            Payload::TypeSection(section) => {
                for group in section {
                    here.functions.types.extend(group?.into_types());
                }
            }
            Payload::ImportSection(section) => {
                for import in section.into_imports() {
                    if let TypeRef::Func(ty) | TypeRef::FuncExact(ty) = import?.ty {
                        here.functions.declared.push(ty);
                    }
                }
            }
            Payload::FunctionSection(section) => {
                self.found.functions = self.found.functions.saturating_add(section.count().into());
                check("functions", self.found.functions, self.limits.functions)?;
                here.functions.next = here.functions.declared.len();
                for ty in section {
                    here.functions.declared.push(ty?);
                }
            }
            Payload::CodeSectionEntry(body) => {
                let work = here.functions.work(&body)?;
                self.found.add_work(work, work, self.limits)?;
            }
            Payload::ElementSection(section) => {
                self.found.element_segments = self.found.element_segments.saturating_add(section.count().into());
                check("element_segments", self.found.element_segments, self.limits.element_segments)?;
                for segment in section {
                    let (elements, work) = elements(segment?)?;
                    self.written = self.written.saturating_add(elements);
                    here.size.items = here.size.items.saturating_add(elements);
                    check("items", self.written, self.limits.items)?;
                    here.add_start(16 * elements + work, &mut self.found, self.limits)?;
                }
            }
            Payload::GlobalSection(section) => {
                for global in section {
                    here.add_start(initial(&global?.init_expr)?, &mut self.found, self.limits)?;
                }
            }
            Payload::TableSection(section) => {
                for table in section {
                    if let TableInit::Expr(expression) = table?.init {
                        here.add_start(initial(&expression)?, &mut self.found, self.limits)?;
                    }
                }
            }
            Payload::DataSection(section) => {
                for segment in section {
                    if let DataKind::Active { offset_expr, .. } = segment?.kind {
                        here.add_start(initial(&offset_expr)?, &mut self.found, self.limits)?;
                    }
                }
            }
            Payload::InstanceSection(section) => {
                for instance in section {
                    match instance? {
                        Instance::Instantiate { module_index, args } => {
                            let module = find(&here.modules, module_index, "core modules")?;
                            here.size.add(Size { items: module.items.saturating_add(args.len() as u64), instances: 1 });
                        }
                        Instance::FromExports(exports) => {
                            here.size.add(Size { items: exports.len() as u64, instances: 0 })
                        }
                    }
                    self.limits.check_size(here.size)?;
                }
            }
            Payload::ComponentInstanceSection(section) => {
                for instance in section {
                    match instance? {
                        ComponentInstance::Instantiate { component_index, args } => {
                            here.size.add(find(&here.components, component_index, "components")?);
                            here.size.add(Size { items: args.len() as u64, instances: 0 });
                        }
                        ComponentInstance::FromExports(exports) => {
                            here.size.add(Size { items: exports.len() as u64, instances: 0 });
                        }
                    }
                    self.limits.check_size(here.size)?;
                }
            }
            Payload::ComponentTypeSection(section) => self.types(section.range())?,
            Payload::ComponentAliasSection(section) => {
                for alias in section {
                    self.alias(&alias?);
                }
            }
            Payload::ComponentImportSection(section) => {
                self.found.add_imports(section.count(), self.limits)?;
                for import in section {
                    match import?.ty.kind() {
                        ComponentExternalKind::Module => here.modules.push(None),
                        ComponentExternalKind::Component => here.components.push(None),
                        _ => {}
                    }
                }
            }
            Payload::ComponentExportSection(section) => {
                for export in section {
                    // What is exported has a second index from then on.
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
        // The outermost is not nested.
        self.found.nesting = self.found.nesting.max(self.open.len() as u32);
        self.open.push(Open { is_module, ..Open::default() });
        check("nesting", self.found.nesting.into(), self.limits.nesting.into())
    }

    fn end(&mut self) {
        let Some(Open { is_module, size, .. }) = self.open.pop() else { return };
        match self.open.last_mut() {
            Some(outer) if is_module => outer.modules.push(Some(size)),
            Some(outer) => outer.components.push(Some(size)),
            None => {
                self.found.items = self.written.max(size.items);
                self.found.instances = size.instances;
            }
        }
    }

    /// Looks how deep types are nested, without the recursion with which they are read later on.
    fn types(&mut self, section: Range<usize>) -> Result<(), LoadError> {
        let mut reader = BinaryReader::new(self.bytes.get(section.clone()).unwrap_or_default(), section.start);
        // Of the section, and of each type that is open: how many more there are in it.
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
                        reader.read::<ComponentTypeDeclaration<'_>>()?;
                        continue;
                    }
                }
            }
            match reader.clone().read_u8()? {
                // A component or an instance.
                0x41 | 0x42 => {
                    reader.read_u8()?;
                    let declarations = reader.read_var_u32()?;
                    self.written = self.written.saturating_add(declarations.into());
                    check("items", self.written, self.limits.items)?;
                    self.found.add_imports(declarations, self.limits)?;
                    open.push(declarations);
                    let depth = (self.open.len() + open.len()) as u32 - 2;
                    self.found.nesting = self.found.nesting.max(depth);
                    check("nesting", depth.into(), self.limits.nesting.into())?;
                }
                _ => _ = reader.read::<ComponentType<'_>>()?,
            }
        }
        Ok(())
    }

    /// Another index for something that can be instantiated.
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

/// The items that a section says it has.
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

/// What is to be instantiated. Where that is given from outside, nobody could say what it costs; where there is no such
/// index, the compiler says so.
fn find(known: &[Option<Size>], index: u32, what: &'static str) -> Result<Size, LoadError> {
    known.get(index as usize).map_or(Ok(Size::default()), |size| size.ok_or(LoadError::UnknownInstance { what }))
}

/// The functions of a module, as far as their calls' arity goes.
#[derive(Default)]
struct Functions {
    types: Vec<SubType>,
    /// The type of each function, imported ones first.
    declared: Vec<u32>,
    /// The function whose body comes next.
    next: usize,
    /// Blocks that are open in the body that is being looked at, the function itself first. Kept for its memory.
    blocks: Vec<Block>,
}

#[derive(Clone, Copy)]
struct Block {
    ty: BlockType,
    kind: FrameKind,
    /// Operands below it.
    base: u64,
    /// Locals that were set before it began.
    sets: u64,
}

impl Functions {
    /// The work that the next body makes; see [`CompileLimits::function_work`].
    fn work(&mut self, body: &FunctionBody<'_>) -> Result<u64, LoadError> {
        let ty = self.declared.get(self.next).copied().unwrap_or(u32::MAX);
        self.next += 1;
        let params = self.sub_type_at(ty).and_then(|ty| self.sub_type_arity(ty)).map_or(0, |(params, _)| params);
        let mut locals = u64::from(params);
        for group in body.get_locals_reader()? {
            locals += u64::from(group?.0);
        }
        self.blocks.clear();
        self.blocks.push(Block { ty: BlockType::FuncType(ty), kind: FrameKind::Block, base: 0, sets: 0 });
        // Operands now and at the most, blocks, loops that are open, and locals set so far.
        let (mut operands, mut most, mut blocks, mut loops, mut sets) = (0_u64, 0, 1_u64, 0, 0);
        // What comes by the instruction, by the depth of blocks, and by loops with what is set in them.
        let (mut linear, mut depths, mut looped) = (60, 0, 0_u64);
        let mut reader = body.get_operators_reader()?;
        while !reader.eof() {
            let operator = reader.read()?;
            let (takes, leaves) = operator.operator_arity(&*self).unwrap_or((0, 1));
            let (takes, leaves) = (u64::from(takes), u64::from(leaves));
            linear += 1 + takes + leaves;
            match operator {
                Operator::Block { blockty: ty } | Operator::Loop { blockty: ty } | Operator::If { blockty: ty } => {
                    let kind = match operator {
                        Operator::Loop { .. } => FrameKind::Loop,
                        Operator::If { .. } => FrameKind::If,
                        _ => FrameKind::Block,
                    };
                    let base = operands.saturating_sub(takes);
                    self.blocks.push(Block { ty, kind, base, sets });
                    loops += u64::from(kind == FrameKind::Loop);
                    blocks += 1;
                    depths += self.blocks.len() as u64;
                    operands = base + leaves;
                }
                Operator::Else => {
                    if let Some(block) = self.blocks.last() {
                        operands = block.base + leaves;
                    }
                    blocks += 1;
                }
                Operator::End => {
                    let Some(block) = self.blocks.pop() else { break };
                    if block.kind == FrameKind::Loop {
                        looped = looped.saturating_add(loops * (sets - block.sets).min(locals));
                        loops -= 1;
                    }
                    operands = block.base + leaves;
                }
                Operator::LocalSet { .. } | Operator::LocalTee { .. } => {
                    sets += 1;
                    operands = operands.saturating_sub(takes) + leaves;
                }
                Operator::BrTable { ref targets } => {
                    linear += u64::from(targets.len()) * (4 + takes);
                    operands = operands.saturating_sub(takes);
                }
                _ => operands = operands.saturating_sub(takes) + leaves,
            }
            most = most.max(operands);
        }
        let alive = locals + most;
        let squared = alive.saturating_mul(alive) / 16;
        let spread = alive.saturating_mul(blocks) / 4;
        Ok([squared, spread, depths / 64, looped, linear].into_iter().fold(0, u64::saturating_add))
    }
}

impl ModuleArity for Functions {
    fn sub_type_at(&self, index: u32) -> Option<&SubType> {
        self.types.get(index as usize)
    }

    fn tag_type_arity(&self, _: u32) -> Option<(u32, u32)> {
        None
    }

    fn type_index_of_function(&self, index: u32) -> Option<u32> {
        self.declared.get(index as usize).copied()
    }

    fn func_type_of_cont_type(&self, _: &ContType) -> Option<&FuncType> {
        None
    }

    fn sub_type_of_ref_type(&self, _: &RefType) -> Option<&SubType> {
        None
    }

    fn control_stack_height(&self) -> u32 {
        self.blocks.len() as u32
    }

    fn label_block(&self, depth: u32) -> Option<(BlockType, FrameKind)> {
        let block = self.blocks.iter().rev().nth(depth as usize)?;
        Some((block.ty, block.kind))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complexity(text: &str) -> Complexity {
        Complexity::of(&wat::parse_str(text).unwrap(), &CompileLimits::NONE).unwrap()
    }

    fn work(function: &str) -> u64 {
        complexity(&format!(
            "(component (core module (memory 1) (func $g (param i32 i32) (result i32) local.get 0) {function}))"
        ))
        .function_work
    }

    #[test]
    fn everything_is_counted_as_often_as_it_is_instantiated() {
        let once = complexity(
            "(component (core module $m (func) (global i32 (i32.const 1))) (core instance (instantiate $m)))",
        );
        assert_eq!((once.nesting, once.functions, once.instances), (1, 1, 1));
        let inner =
            "(component $c (core module $m (func)) (core instance (instantiate $m)) (core instance (instantiate $m)))";
        let twice = complexity(&format!("(component {inner} (instance (instantiate $c)) (instance (instantiate $c)))"));
        assert_eq!((twice.nesting, twice.functions, twice.instances), (2, 1, 4));
        let never = complexity(&format!("(component {inner})"));
        assert_eq!((never.nesting, never.instances), (2, 0));
        assert!(never.items > 0 && never.items < twice.items);
    }

    #[test]
    fn nested_components_multiply_without_being_instantiated() {
        let mut text = "(core module $m) (core instance (instantiate $m))".to_owned();
        for _ in 0..90 {
            text = format!("(component $c {text}) (instance (instantiate $c)) (instance (instantiate $c))");
        }
        let found = complexity(&format!("(component {text})"));
        assert_eq!((found.nesting, found.instances), (91, u64::MAX));
    }

    #[test]
    fn types_are_nested_as_components_are() {
        let types = |depth: usize| "(type (instance ".repeat(depth) + &"))".repeat(depth);
        assert_eq!(complexity(&format!("(component {})", types(3))).nesting, 3);
        // In a component, and beside what is no type.
        let among = format!(
            r#"(component (component (type (component (import "a" (func)) (alias outer 0 0 (type)) {} (export "b" (func))))))"#,
            types(2)
        );
        assert_eq!(complexity(&among).nesting, 4);
        let many = wat::parse_str(format!("(component {})", types(40))).unwrap();
        let error = Complexity::of(&many, &CompileLimits::default()).unwrap_err();
        assert!(matches!(error, LoadError::TooComplex { what: "nesting", found: 11, .. }), "{error:?}");
    }

    #[test]
    fn outer_and_exported_components_are_known_and_imported_ones_are_not() {
        let outer = "(component $c (core module $m) (core instance (instantiate $m)))
            (component $d (alias outer 1 $c (component $e)) (instance (instantiate $e))) (instance (instantiate $d))";
        assert_eq!(complexity(&format!("(component {outer})")).instances, 1);
        let exported = r#"(component $c (core module $m) (core instance (instantiate $m)))
            (export $e "e" (component $c)) (instance (instantiate $e))"#;
        assert_eq!(complexity(&format!("(component {exported})")).instances, 1);
        let imported = r#"(component (component (import "c" (component $c)) (instance (instantiate $c))))"#;
        let error = Complexity::of(&wat::parse_str(imported).unwrap(), &CompileLimits::NONE).unwrap_err();
        assert!(matches!(error, LoadError::UnknownInstance { what: "components" }), "{error}");
    }

    #[test]
    fn work_is_what_makes_the_compiler_slow() {
        let deep = work(&format!("(func {} {})", "block ".repeat(10_000), "end ".repeat(10_000)));
        assert!((780_000..850_000).contains(&deep), "{deep}");
        let plain = work("(func)");
        assert!(plain < 100, "{plain}");
        let nested = |loops: usize| {
            work(&format!(
                "(func (local i32) {} (local.set 0 (i32.const 1)) {})",
                "loop ".repeat(loops),
                "end ".repeat(loops)
            ))
        };
        // Each loop with its depth: the sum of the first 1,000 numbers is half of a million.
        assert!((500_000..600_000).contains(&nested(1_000)), "{}", nested(1_000));
        let alive =
            |values: usize| work(&format!("(func {} {})", "i32.const 1 ".repeat(values), "drop ".repeat(values)));
        assert!((6_000_000..7_000_000).contains(&alive(10_000)), "{}", alive(10_000));
        let locals = work(&format!("(func (local {}) {})", "i32 ".repeat(1_000), "block end ".repeat(1_000)));
        assert!((300_000..400_000).contains(&locals), "{locals}");
        let arguments = work(&format!("(func {} drop)", "i32.const 1 i32.const 1 call $g ".repeat(10)));
        assert!(arguments > work("(func call 2)"), "{arguments}");
    }

    #[test]
    fn what_a_module_does_before_it_starts_is_work() {
        let module = |fields: &str| {
            complexity(&format!("(component (core module (func $f) (table 1000 funcref) (memory 1) {fields}))"))
        };
        let elements = module(&format!("(elem func {})", "$f ".repeat(1_000)));
        assert!((16_000..16_100).contains(&elements.function_work), "{elements:?}");
        assert!(elements.items > 1_000, "{elements:?}");
        let sum = format!("i32.const 0 {}", "i32.const 1 i32.add ".repeat(1_000));
        for fields in
            [format!("(global i32 {sum})"), format!("(data (offset {sum}) \"\")"), format!("(elem (offset {sum}) $f)")]
        {
            let found = module(&fields);
            assert!((64_000..65_000).contains(&found.function_work), "{fields:.20}: {found:?}");
        }
        // A constant is data.
        assert!(module(&"(global i32 (i32.const 0))".repeat(1_000)).function_work < 2_000);
    }

    #[test]
    fn what_is_left_open_is_invalid() {
        let whole = wat::parse_str("(component (core module (func)))").unwrap();
        let error = Complexity::of(&whole[..whole.len() - 1], &CompileLimits::NONE).unwrap_err();
        assert!(matches!(error, LoadError::Invalid { .. }), "{error}");
    }
}
