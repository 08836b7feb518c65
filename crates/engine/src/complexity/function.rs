//! The work that a function makes: see [`CompileLimits::function_work`](super::CompileLimits::function_work).

use std::collections::HashSet;

use wasmparser::{BlockType, ContType, FrameKind, FuncType, FunctionBody, ModuleArity, Operator, RefType, SubType};

use super::weights;
use crate::LoadError;

/// The functions of a module, as far as their calls' arity goes.
#[derive(Default)]
pub(super) struct Functions {
    pub(super) types: Vec<SubType>,
    /// The type of each function, imported ones first.
    pub(super) declared: Vec<u32>,
    /// The function whose body comes next.
    pub(super) next: usize,
    /// Those that can be called from outside, by index.
    escaped: HashSet<u32>,
    /// Open blocks of the current body, the function itself first. Kept to reuse its memory.
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
    /// The work of what is made so that the host can call a function, if that is not made already.
    pub(super) fn escape(&mut self, function: u32) -> u64 {
        if !self.escaped.insert(function) {
            return 0;
        }
        let ty = self.declared.get(function as usize).and_then(|ty| self.types.get(*ty as usize));
        ty.map_or(0, weights::of_type)
    }

    /// The work that the next body makes; see [`CompileLimits::function_work`].
    pub(super) fn work(&mut self, body: &FunctionBody<'_>) -> Result<u64, LoadError> {
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
        let (mut linear, mut depths, mut looped, mut host_calls) = (60, 0, 0_u64, 0);
        let mut reader = body.get_operators_reader()?;
        while !reader.eof() {
            let operator = reader.read()?;
            let (takes, leaves) = operator.operator_arity(&*self).unwrap_or((0, 1));
            let (takes, leaves) = (u64::from(takes), u64::from(leaves));
            let weight = weights::of(&operator);
            linear += 1 + takes + leaves + weight.work;
            blocks += weight.blocks;
            host_calls += u64::from(weight.calls_host);
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
        let host_calls = weights::of_host_calls(host_calls);
        Ok([squared, spread, depths / 64, looped, linear, host_calls].into_iter().fold(0, u64::saturating_add))
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
