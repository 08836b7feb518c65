//! What an instruction costs beside one unit for itself and for each value that it takes or leaves.

use wasmparser::{CompositeInnerType, Operator, SubType};

/// What an instruction costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Weight {
    /// Units of work.
    pub(super) work: u64,
    /// Blocks of code that it becomes, beside the one it is in.
    pub(super) blocks: u64,
}

pub(super) fn of(_operator: &Operator<'_>) -> Weight {
    Weight::default()
}

/// What lets a function of a guest be called as one of its component's.
pub(super) const LIFTED_FUNCTION: u64 = 100;
/// What lets a guest call a function of its component's: also the glue, if that is another guest's.
pub(super) const LOWERED_FUNCTION: u64 = 1_000;
/// What a guest calls to handle resources and the like.
pub(super) const INTRINSIC: u64 = 100;

/// What is made for a type of functions, and for each function that the host can call: it moves all parameters and results.
pub(super) fn of_type(ty: &SubType) -> u64 {
    let CompositeInnerType::Func(function) = &ty.composite_type.inner else { return 0 };
    let values = (function.params().len() + function.results().len()) as u64;
    60 + 16 * values + values * values / 16
}
