//! The cost of each instruction beyond one unit for itself and for each value that it takes or leaves.

use wasmparser::{CompositeInnerType, Operator, SubType};

/// The cost of an instruction, measured: see `stress/calibration.tsv`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Weight {
    /// Units of work.
    pub(super) work: u64,
    /// Blocks of code that it becomes, beside the one it is in.
    pub(super) blocks: u64,
    /// Whether it calls the host, or may. The more of these a function has, the longer each takes.
    pub(super) calls_host: bool,
}

pub(super) fn of(operator: &Operator<'_>) -> Weight {
    let (work, blocks, calls_host) = match operator {
        Operator::TableInit { .. } | Operator::TableCopy { .. } => (400, 4, true),
        Operator::TableFill { .. } => (150, 4, true),
        Operator::TableGrow { .. } | Operator::MemoryGrow { .. } => (80, 2, true),
        Operator::MemoryInit { .. } | Operator::MemoryCopy { .. } | Operator::MemoryFill { .. } => (80, 2, false),
        Operator::CallIndirect { .. } | Operator::ReturnCallIndirect { .. } => (40, 3, true),
        Operator::CallRef { .. } | Operator::ReturnCallRef { .. } => (20, 2, true),
        Operator::TableGet { .. } | Operator::TableSet { .. } => (20, 3, true),
        Operator::ElemDrop { .. } | Operator::DataDrop { .. } | Operator::RefFunc { .. } => (8, 0, false),
        // The count has to be in one register.
        Operator::I32Rotl
        | Operator::I32Rotr
        | Operator::I64Rotl
        | Operator::I64Rotr
        | Operator::I32Shl
        | Operator::I32ShrS
        | Operator::I32ShrU
        | Operator::I64Shl
        | Operator::I64ShrS
        | Operator::I64ShrU => (30, 0, false),
        Operator::I32DivS
        | Operator::I32DivU
        | Operator::I32RemS
        | Operator::I32RemU
        | Operator::I64DivS
        | Operator::I64DivU
        | Operator::I64RemS
        | Operator::I64RemU => (5, 1, false),
        Operator::Call { .. } | Operator::ReturnCall { .. } => (3, 0, false),
        Operator::BrIf { .. } | Operator::BrOnNull { .. } | Operator::BrOnNonNull { .. } => (1, 1, false),
        _ => (0, 0, false),
    };
    Weight { work, blocks, calls_host }
}

/// The cost of this many instructions that call the host, beyond their own work.
pub(super) fn of_host_calls(calls: u64) -> u64 {
    calls.saturating_mul(calls) / 64
}

/// `canon lift`: makes a core function one of its component's.
pub(super) const LIFTED_FUNCTION: u64 = 100;
/// `canon lower`: lets a guest call a function of its component's. With the adapter, if that is another guest's.
pub(super) const LOWERED_FUNCTION: u64 = 1_000;
/// The other built-ins of `canon`, for resources and the like.
pub(super) const INTRINSIC: u64 = 100;
/// A module or component, with its share of the costs that grow with their number.
pub(super) const MODULE: u64 = 20;

/// What is made for a type of functions, and for each function that the host can call: it moves all parameters and results.
pub(super) fn of_type(ty: &SubType) -> u64 {
    let CompositeInnerType::Func(function) = &ty.composite_type.inner else { return 0 };
    let values = (function.params().len() + function.results().len()) as u64;
    60 + 16 * values + values * values / 16
}

/// The function that copies this many data segments at instantiation, of which each copy may fail.
pub(super) fn of_copies(segments: u64) -> u64 {
    20 * segments + segments.saturating_mul(segments) / 64
}
