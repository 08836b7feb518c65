//! Values for functions whose types are known at run time only: whether they are what a function takes.

use airssys_wasm_engine::wasmtime::component::{Val, types::Type};

/// Arguments that a function does not take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ArgumentError {
    /// Too few or too many.
    #[error("the function takes {expected} arguments, and {given} were given")]
    Count {
        /// How many it takes.
        expected: usize,
        /// How many there were.
        given: usize,
    },
    /// One of another type.
    #[error("argument {index} (from 0) has another type than the function's parameter")]
    Type {
        /// Which one.
        index: usize,
    },
}

/// Whether values are what a function takes.
pub(crate) fn check_arguments(expected: &[Type], given: &[Val]) -> Result<(), ArgumentError> {
    if expected.len() != given.len() {
        return Err(ArgumentError::Count { expected: expected.len(), given: given.len() });
    }
    match expected.iter().zip(given).position(|(ty, value)| !fits(ty, value)) {
        Some(index) => Err(ArgumentError::Type { index }),
        None => Ok(()),
    }
}

fn fits(ty: &Type, value: &Val) -> bool {
    let payload = |ty: Option<Type>, value: Option<&Val>| match (ty, value) {
        (Some(ty), Some(value)) => fits(&ty, value),
        (None, None) => true,
        _ => false,
    };
    match (ty, value) {
        (Type::Bool, Val::Bool(_))
        | (Type::S8, Val::S8(_))
        | (Type::U8, Val::U8(_))
        | (Type::S16, Val::S16(_))
        | (Type::U16, Val::U16(_))
        | (Type::S32, Val::S32(_))
        | (Type::U32, Val::U32(_))
        | (Type::S64, Val::S64(_))
        | (Type::U64, Val::U64(_))
        | (Type::Float32, Val::Float32(_))
        | (Type::Float64, Val::Float64(_))
        | (Type::Char, Val::Char(_))
        | (Type::String, Val::String(_)) => true,
        (Type::List(ty), Val::List(values)) => {
            let ty = ty.ty();
            values.iter().all(|value| fits(&ty, value))
        }
        (Type::Record(ty), Val::Record(values)) => {
            ty.fields().len() == values.len()
                && ty.fields().zip(values).all(|(field, (name, value))| field.name == name && fits(&field.ty, value))
        }
        (Type::Tuple(ty), Val::Tuple(values)) => {
            ty.types().len() == values.len() && ty.types().zip(values).all(|(ty, value)| fits(&ty, value))
        }
        (Type::Variant(ty), Val::Variant(name, value)) => {
            ty.cases().any(|case| case.name == name && payload(case.ty, value.as_deref()))
        }
        (Type::Enum(ty), Val::Enum(name)) => ty.names().any(|known| known == name),
        (Type::Option(ty), Val::Option(value)) => value.as_deref().is_none_or(|value| fits(&ty.ty(), value)),
        (Type::Result(ty), Val::Result(Ok(value))) => payload(ty.ok(), value.as_deref()),
        (Type::Result(ty), Val::Result(Err(value))) => payload(ty.err(), value.as_deref()),
        (Type::Flags(ty), Val::Flags(names)) => names.iter().all(|name| ty.names().any(|known| known == name)),
        (Type::Own(ty) | Type::Borrow(ty), Val::Resource(value)) => *ty == value.ty(),
        // Left to wasmtime: rare, and without a public way to look inside.
        (Type::Map(_) | Type::FixedLengthList(_), Val::Map(_) | Val::FixedLengthList(_)) => true,
        _ => false,
    }
}
