//! The work that a function makes: see [`CompileLimits::function_work`](super::CompileLimits::function_work).

use std::collections::HashSet;

use wasmparser::{
    BlockType, Catch, CompositeInnerType, ContType, FrameKind, FuncType, FunctionBody, ModuleArity, Operator, RefType,
    SubType, TryTable,
};

use super::weights;
use crate::{Features, LoadError};

/// The functions of a module, as far as their calls' arity goes.
#[derive(Default)]
pub(super) struct Functions {
    pub(super) types: Vec<SubType>,
    /// The type of each function, imported ones first.
    pub(super) declared: Vec<u32>,
    /// The type of each tag, imported ones first.
    pub(super) tags: Vec<u32>,
    /// The function whose body comes next.
    pub(super) next: usize,
    /// Those that can be called from outside, by index.
    escaped: HashSet<u32>,
    /// Open blocks of the current body, the function itself first. Kept to reuse its memory.
    blocks: Vec<Block>,
}

/// What the body of a function is found to be.
#[derive(Default)]
pub(super) struct Body {
    pub(super) work: u64,
    /// The most exception handlers that one of its calls is in the scope of.
    pub(super) handlers: u64,
    pub(super) features: Features,
}

#[derive(Clone, Copy)]
struct Block {
    ty: BlockType,
    kind: FrameKind,
    /// Operands below it.
    base: u64,
    /// Locals that were set before it began.
    sets: u64,
    /// Calls before it began.
    calls: u64,
    /// Its exception handlers, and the parameters of their tags.
    handlers: u64,
    caught: u64,
}

impl Functions {
    /// The work of what is made so that the host can call a function, if that is not made already.
    pub(super) fn escape(&mut self, function: u32) -> u64 {
        if !self.escaped.insert(function) {
            return 0;
        }
        let ty = self.declared.get(function as usize).and_then(|ty| self.types.get(*ty as usize));
        ty.map_or(0, weights::of_type)
    }

    /// What the next body makes; see [`CompileLimits::function_work`].
    pub(super) fn body(&mut self, body: &FunctionBody<'_>) -> Result<Body, LoadError> {
        let mut found = Body::default();
        let ty = self.declared.get(self.next).copied().unwrap_or(u32::MAX);
        self.next += 1;
        let params = self.sub_type_at(ty).and_then(|ty| self.sub_type_arity(ty)).map_or(0, |(params, _)| params);
        let mut locals = u64::from(params);
        for group in body.get_locals_reader()? {
            let (count, ty) = group?;
            locals += u64::from(count);
            found.features.need_value(ty);
        }
        self.blocks.clear();
        let whole = Block {
            ty: BlockType::FuncType(ty),
            kind: FrameKind::Block,
            base: 0,
            sets: 0,
            calls: 0,
            handlers: 0,
            caught: 0,
        };
        self.blocks.push(whole);
        // Operands now and at the most, blocks, loops that are open, and locals set so far.
        let (mut operands, mut most, mut blocks, mut loops, mut sets) = (0_u64, 0, 1_u64, 0, 0);
        // Calls so far, handlers in scope, and the values that go from calls to handlers.
        let (mut calls, mut handlers, mut edges) = (0_u64, 0_u64, 0_u64);
        // What comes by the instruction, by the depth of blocks, and by loops with what is set in them.
        let (mut linear, mut depths, mut looped, mut host_calls) = (60, 0, 0_u64, 0);
        let mut reader = body.get_operators_reader()?;
        while !reader.eof() {
            let operator = reader.read()?;
            found.features.need_operator(&operator);
            let (takes, leaves) = operator.operator_arity(&*self).unwrap_or((0, 1));
            let (takes, leaves) = (u64::from(takes), u64::from(leaves));
            let weight = weights::of(&operator);
            linear += 1 + takes + leaves + weight.work + self.work_of_fields(&operator);
            blocks += weight.blocks;
            host_calls += u64::from(weight.calls_host);
            if weight.may_throw {
                calls += 1;
                found.handlers = found.handlers.max(handlers);
            }
            match operator {
                Operator::Block { blockty: ty }
                | Operator::Loop { blockty: ty }
                | Operator::If { blockty: ty }
                | Operator::TryTable { try_table: TryTable { ty, .. } } => {
                    let kind = match operator {
                        Operator::Loop { .. } => FrameKind::Loop,
                        Operator::If { .. } => FrameKind::If,
                        _ => FrameKind::Block,
                    };
                    let base = operands.saturating_sub(takes);
                    let (handlers_of_it, caught) = self.handlers(&operator);
                    linear += 4 * caught;
                    handlers += handlers_of_it;
                    blocks += handlers_of_it;
                    self.blocks.push(Block { ty, kind, base, sets, calls, handlers: handlers_of_it, caught });
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
                    let set = (sets - block.sets).min(locals);
                    if block.kind == FrameKind::Loop {
                        looped = looped.saturating_add(loops * set);
                        loops -= 1;
                    }
                    handlers -= block.handlers;
                    let values = block.handlers.saturating_mul(1 + set).saturating_add(block.caught);
                    edges = edges.saturating_add(values.saturating_mul(calls - block.calls));
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
        // References that are collected are noted down wherever a collection may happen.
        let places = if found.features.garbage_collection { 1 } else { 4 };
        let spread = alive.saturating_mul(blocks) / places;
        let host_calls = weights::of_host_calls(host_calls);
        let edges = weights::of_exception_edges(edges);
        found.work =
            [squared, spread, depths / 64, looped, linear, host_calls, edges].into_iter().fold(0, u64::saturating_add);
        Ok(found)
    }

    /// The handlers of a block, and the parameters of the tags that they catch.
    fn handlers(&self, operator: &Operator<'_>) -> (u64, u64) {
        let Operator::TryTable { try_table } = operator else { return (0, 0) };
        let params = |catch: &Catch| match catch {
            Catch::One { tag, .. } | Catch::OneRef { tag, .. } => {
                self.tag_type_arity(*tag).map_or(0, |(params, _)| params)
            }
            Catch::All { .. } | Catch::AllRef { .. } => 0,
        };
        (try_table.catches.len() as u64, try_table.catches.iter().map(|catch| u64::from(params(catch))).sum())
    }

    /// The work that comes with the fields of the object which an instruction makes or looks into.
    pub(super) fn work_of_fields(&self, operator: &Operator<'_>) -> u64 {
        let fields = |ty: u32| match self.sub_type_at(ty).map(|ty| &ty.composite_type.inner) {
            Some(CompositeInnerType::Struct(fields)) => fields.fields.len() as u64,
            _ => 0,
        };
        match *operator {
            Operator::StructNew { struct_type_index: ty } | Operator::StructNewDefault { struct_type_index: ty } => {
                4 * fields(ty)
            }
            Operator::Throw { tag_index } => {
                4 * self.tag_type_arity(tag_index).map_or(0, |(params, _)| u64::from(params))
            }
            // Each function finds out anew where they are.
            Operator::StructGet { struct_type_index: ty, .. }
            | Operator::StructGetS { struct_type_index: ty, .. }
            | Operator::StructGetU { struct_type_index: ty, .. }
            | Operator::StructSet { struct_type_index: ty, .. } => fields(ty) / 16,
            Operator::ArrayNewFixed { array_size, .. } => 20 * u64::from(array_size),
            _ => 0,
        }
    }
}

impl ModuleArity for Functions {
    fn sub_type_at(&self, index: u32) -> Option<&SubType> {
        self.types.get(index as usize)
    }

    fn tag_type_arity(&self, tag: u32) -> Option<(u32, u32)> {
        self.sub_type_arity(self.sub_type_at(*self.tags.get(tag as usize)?)?)
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
