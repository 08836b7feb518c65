//! What is counted of a core module.

use wasmparser::{
    ConstExpr, Data, DataKind, Element, ElementItems, ElementKind, ExternalKind, Operator, Payload, Table, TableInit,
    TypeRef,
};

use super::{Size, Tally, check, function::Functions, weights};
use crate::{LoadError, config::DENSE_IMAGE};

/// A module whose end was not reached yet.
#[derive(Default)]
pub(super) struct Module {
    functions: Functions,
    /// Work of its initialisation.
    start: u64,
    imported_memories: usize,
    imported_tables: usize,
    memories: Vec<Extent>,
    tables: Vec<Filled>,
    /// Data segments that each instance copies.
    copied: u64,
}

/// What data segments set in a memory.
#[derive(Clone, Copy)]
struct Extent {
    first: u64,
    end: u64,
    data: u64,
    segments: u64,
}

/// A table, and the index up to which segments fill it.
#[derive(Clone, Copy)]
struct Filled {
    elements: u64,
    to: u64,
}

/// Elements up to which wasmtime keeps a table's initial contents.
const LARGEST_TABLE: u64 = 1 << 20;

/// Alignment of an image, on disk and in memory.
const PAGE: u64 = 4 << 10;

impl Module {
    pub(super) fn payload(
        &mut self,
        payload: Payload<'_>,
        size: &mut Size,
        tally: &mut Tally<'_>,
    ) -> Result<(), LoadError> {
        match payload {
            Payload::TypeSection(section) => {
                for group in section {
                    let group = group?;
                    tally.found.features.need_group(&group);
                    // The group was counted as one.
                    let items: u64 = group.types().map(weights::items_of_type).sum();
                    tally.items(items.saturating_sub(1), size)?;
                    for ty in group.into_types() {
                        let work = weights::of_type(&ty);
                        tally.work(work, work)?;
                        self.functions.types.push(ty);
                    }
                }
            }
            Payload::ImportSection(section) => {
                let counted = section.count();
                for (at, import) in section.into_imports().enumerate() {
                    if at as u64 >= counted.into() {
                        // Several can be written as one.
                        tally.items(1, size)?;
                    }
                    let ty = import?.ty;
                    tally.found.features.need_item(&ty);
                    match ty {
                        TypeRef::Func(ty) | TypeRef::FuncExact(ty) => self.functions.declared.push(ty),
                        TypeRef::Memory(_) => self.imported_memories += 1,
                        TypeRef::Table(_) => self.imported_tables += 1,
                        TypeRef::Tag(tag) => self.functions.tags.push(tag.func_type_idx),
                        TypeRef::Global(_) => {}
                    }
                }
            }
            Payload::FunctionSection(section) => {
                tally.found.functions = tally.found.functions.saturating_add(section.count().into());
                check("functions", tally.found.functions, tally.limits.functions)?;
                self.functions.next = self.functions.declared.len();
                for ty in section {
                    self.functions.declared.push(ty?);
                }
            }
            Payload::TableSection(section) => {
                for table in section {
                    self.table(table?, tally)?;
                }
            }
            Payload::MemorySection(section) => {
                let none = Extent { first: u64::MAX, end: 0, data: 0, segments: 0 };
                self.memories.resize(section.count() as usize, none);
            }
            Payload::TagSection(section) => {
                tally.found.features.exceptions = true;
                for tag in section {
                    self.functions.tags.push(tag?.func_type_idx);
                }
            }
            Payload::GlobalSection(section) => {
                for global in section {
                    let global = global?;
                    tally.found.features.need_value(global.ty.content_type);
                    self.initial(&global.init_expr, tally)?;
                }
            }
            Payload::ExportSection(section) => {
                for export in section {
                    let export = export?;
                    if export.kind == ExternalKind::Func {
                        let work = self.functions.escape(export.index);
                        tally.work(work, work)?;
                    }
                }
            }
            Payload::ElementSection(section) => {
                tally.found.element_segments = tally.found.element_segments.saturating_add(section.count().into());
                check("element_segments", tally.found.element_segments, tally.limits.element_segments)?;
                for segment in section {
                    self.elements(segment?, size, tally)?;
                }
            }
            Payload::CodeSectionEntry(body) => {
                let found = self.functions.body(&body)?;
                tally.found.features |= found.features;
                tally.handlers(found.handlers)?;
                tally.work(found.work, found.work)?;
            }
            Payload::DataSection(section) => {
                for segment in section {
                    self.data(&segment?, tally)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Counts what depends on all of its segments.
    pub(super) fn end(&mut self, size: &mut Size, tally: &mut Tally<'_>) -> Result<(), LoadError> {
        let apart: u64 = self.memories.iter().filter(|memory| !memory.is_image()).map(|memory| memory.segments).sum();
        let copied = self.copied + apart;
        self.add_start(weights::of_copies(copied), tally)?;
        let images = self.memories.iter().map(Extent::image).fold(0, u64::saturating_add);
        tally.found.image_bytes = tally.found.image_bytes.saturating_add(images);
        check("image_bytes", tally.found.image_bytes, tally.limits.image_bytes)?;
        let tables = self.tables.iter().map(|table| table.to).fold(0, u64::saturating_add);
        tally.items(tables, size)
    }

    fn add_start(&mut self, work: u64, tally: &mut Tally<'_>) -> Result<(), LoadError> {
        self.start = self.start.saturating_add(work);
        tally.work(work, self.start)
    }

    fn table(&mut self, table: Table<'_>, tally: &mut Tally<'_>) -> Result<(), LoadError> {
        let elements = table.ty.initial;
        tally.found.features.need_reference(table.ty.element_type);
        let mut to = 0;
        if let TableInit::Expr(expression) = table.init {
            self.initial(&expression, tally)?;
            to = if elements <= LARGEST_TABLE { elements } else { 0 };
        }
        self.tables.push(Filled { elements, to });
        Ok(())
    }

    fn elements(&mut self, segment: Element<'_>, size: &mut Size, tally: &mut Tally<'_>) -> Result<(), LoadError> {
        let count = match segment.items {
            ElementItems::Functions(functions) => {
                tally.items(functions.count().into(), size)?;
                let count = functions.count();
                for function in functions {
                    let work = self.functions.escape(function?);
                    tally.work(work, work)?;
                }
                count
            }
            ElementItems::Expressions(ty, expressions) => {
                tally.found.features.need_reference(ty);
                tally.items(expressions.count().into(), size)?;
                let count = expressions.count();
                for expression in expressions {
                    self.initial(&expression?, tally)?;
                }
                count
            }
        };
        self.add_start(16 * u64::from(count), tally)?;
        if let ElementKind::Active { table_index, offset_expr } = segment.kind {
            self.initial(&offset_expr, tally)?;
            let table = (table_index.unwrap_or(0) as usize).checked_sub(self.imported_tables);
            let table = table.and_then(|table| self.tables.get_mut(table));
            if let (Some(table), Some(offset)) = (table, constant(&offset_expr)) {
                let to = offset.saturating_add(count.into());
                if to <= table.elements && to <= LARGEST_TABLE {
                    table.to = table.to.max(to);
                }
            }
        }
        Ok(())
    }

    fn data(&mut self, segment: &Data<'_>, tally: &mut Tally<'_>) -> Result<(), LoadError> {
        let DataKind::Active { memory_index, offset_expr } = &segment.kind else { return Ok(()) };
        self.initial(offset_expr, tally)?;
        let memory = (*memory_index as usize).checked_sub(self.imported_memories);
        let memory = memory.and_then(|memory| self.memories.get_mut(memory));
        if let (Some(memory), Some(offset), false) = (memory, constant(offset_expr), segment.data.is_empty()) {
            let bytes = segment.data.len() as u64;
            memory.first = memory.first.min(offset);
            memory.end = memory.end.max(offset.saturating_add(bytes));
            memory.data = memory.data.saturating_add(bytes);
            memory.segments += 1;
        } else {
            self.copied += 1;
        }
        Ok(())
    }

    /// Counts the work of an initial value.
    fn initial(&mut self, expression: &ConstExpr<'_>, tally: &mut Tally<'_>) -> Result<(), LoadError> {
        let mut operators = 0;
        for operator in expression.get_operators_reader() {
            let operator = operator?;
            tally.found.features.need_operator(&operator);
            if let Operator::RefFunc { function_index } = operator {
                let work = self.functions.escape(function_index);
                tally.work(work, work)?;
            }
            operators += 1 + self.functions.work_of_fields(&operator);
        }
        // With the end.
        self.add_start(if operators <= 2 { 1 } else { 32 * operators }, tally)
    }
}

impl Extent {
    fn extent(&self) -> u64 {
        self.end.saturating_sub(self.first)
    }

    /// Whether the compiler makes an image: not if it would be large and mostly empty.
    fn is_image(&self) -> bool {
        let extent = self.extent();
        extent < self.data.saturating_mul(2) || extent < DENSE_IMAGE
    }

    /// Bytes of the image, or of the segments.
    fn image(&self) -> u64 {
        match self.extent() {
            0 => 0,
            // It begins and ends with a page.
            extent if self.is_image() => extent.saturating_add(2 * PAGE) / PAGE * PAGE,
            _ => self.data,
        }
    }
}

/// An offset that is known before there is an instance.
fn constant(expression: &ConstExpr<'_>) -> Option<u64> {
    let mut operators = expression.get_operators_reader();
    let first = operators.read().ok()?;
    let is_all = matches!(operators.read(), Ok(Operator::End));
    match first {
        Operator::I32Const { value } if is_all => Some(value.cast_unsigned().into()),
        Operator::I64Const { value } if is_all => Some(value.cast_unsigned()),
        _ => None,
    }
}
