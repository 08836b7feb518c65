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
    /// Whether it may throw, and so leads to each exception handler that it is in the scope of.
    pub(super) may_throw: bool,
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
        Operator::StructNew { .. }
        | Operator::StructNewDefault { .. }
        | Operator::ArrayNew { .. }
        | Operator::ArrayNewDefault { .. }
        | Operator::ArrayNewFixed { .. }
        | Operator::ArrayNewData { .. } => (80, 5, true),
        Operator::ArrayNewElem { .. } | Operator::ArrayCopy { .. } => (250, 5, true),
        Operator::ArrayFill { .. } | Operator::ArrayInitData { .. } | Operator::ArrayInitElem { .. } => (150, 5, true),
        Operator::StructGet { .. }
        | Operator::StructGetS { .. }
        | Operator::StructGetU { .. }
        | Operator::StructSet { .. }
        | Operator::ArrayGet { .. }
        | Operator::ArrayGetS { .. }
        | Operator::ArrayGetU { .. }
        | Operator::ArraySet { .. }
        | Operator::ArrayLen => (30, 3, true),
        Operator::RefTestNonNull { .. }
        | Operator::RefTestNullable { .. }
        | Operator::RefCastNonNull { .. }
        | Operator::RefCastNullable { .. }
        | Operator::BrOnCast { .. }
        | Operator::BrOnCastFail { .. } => (40, 5, true),
        Operator::I31GetS | Operator::I31GetU | Operator::RefI31 => (3, 1, false),
        Operator::Throw { .. } => (80, 5, true),
        Operator::ThrowRef => (20, 2, true),
        _ => (0, 0, false),
    };
    let may_throw = matches!(
        operator,
        Operator::Call { .. }
            | Operator::CallIndirect { .. }
            | Operator::CallRef { .. }
            | Operator::Throw { .. }
            | Operator::ThrowRef
    );
    Weight { work, blocks, calls_host, may_throw }
}

/// The cost of this many instructions that call the host, beyond their own work.
pub(super) fn of_host_calls(calls: u64) -> u64 {
    calls.saturating_mul(calls) / 64
}

/// The cost of this many values, each from a call to an exception handler.
pub(super) fn of_exception_edges(values: u64) -> u64 {
    values.saturating_mul(values) / 1_500
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

/// Items that a type counts as: more where it is an object's, for which the host keeps more.
pub(super) fn items_of_type(ty: &SubType) -> u64 {
    match &ty.composite_type.inner {
        CompositeInnerType::Struct(fields) => 8 + fields.fields.len() as u64,
        CompositeInnerType::Array(_) => 9,
        CompositeInnerType::Func(_) | CompositeInnerType::Cont(_) => 1,
    }
}

/// The function that copies this many data segments at instantiation, of which each copy may fail.
pub(super) fn of_copies(segments: u64) -> u64 {
    20 * segments + segments.saturating_mul(segments) / 64
}
