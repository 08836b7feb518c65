//! Values as scripts have them.

use airssys_wasm_engine::wasmtime::component::Val;
use wast::component::WastVal;

/// The value that a script writes.
pub(super) fn value(of: &WastVal<'_>) -> Val {
    let boxed = |of: &Option<Box<WastVal<'_>>>| of.as_deref().map(|of| Box::new(value(of)));
    match of {
        WastVal::Bool(of) => Val::Bool(*of),
        WastVal::U8(of) => Val::U8(*of),
        WastVal::S8(of) => Val::S8(*of),
        WastVal::U16(of) => Val::U16(*of),
        WastVal::S16(of) => Val::S16(*of),
        WastVal::U32(of) => Val::U32(*of),
        WastVal::S32(of) => Val::S32(*of),
        WastVal::U64(of) => Val::U64(*of),
        WastVal::S64(of) => Val::S64(*of),
        WastVal::F32(of) => Val::Float32(f32::from_bits(of.bits)),
        WastVal::F64(of) => Val::Float64(f64::from_bits(of.bits)),
        WastVal::Char(of) => Val::Char(*of),
        WastVal::String(of) => Val::String((*of).to_owned()),
        WastVal::List(of) => Val::List(of.iter().map(value).collect()),
        WastVal::Record(of) => Val::Record(of.iter().map(|(name, of)| ((*name).to_owned(), value(of))).collect()),
        WastVal::Tuple(of) => Val::Tuple(of.iter().map(value).collect()),
        WastVal::Variant(name, of) => Val::Variant((*name).to_owned(), boxed(of)),
        WastVal::Enum(of) => Val::Enum((*of).to_owned()),
        WastVal::Option(of) => Val::Option(boxed(of)),
        WastVal::Result(Ok(of)) => Val::Result(Ok(boxed(of))),
        WastVal::Result(Err(of)) => Val::Result(Err(boxed(of))),
        WastVal::Flags(of) => Val::Flags(of.iter().map(|name| (*name).to_owned()).collect()),
    }
}

/// Whether two values are the same, numbers to the bit. Flags have no order.
pub(super) fn same(one: &Val, other: &Val) -> bool {
    let boxed = |one: &Option<Box<Val>>, other: &Option<Box<Val>>| match (one, other) {
        (Some(one), Some(other)) => same(one, other),
        (None, None) => true,
        _ => false,
    };
    let all = |one: &[Val], other: &[Val]| {
        one.len() == other.len() && one.iter().zip(other).all(|(one, other)| same(one, other))
    };
    match (one, other) {
        (Val::Float32(one), Val::Float32(other)) => one.to_bits() == other.to_bits() || one.is_nan() && other.is_nan(),
        (Val::Float64(one), Val::Float64(other)) => one.to_bits() == other.to_bits() || one.is_nan() && other.is_nan(),
        (Val::List(one), Val::List(other))
        | (Val::Tuple(one), Val::Tuple(other))
        | (Val::FixedLengthList(one) | Val::List(one), Val::FixedLengthList(other) | Val::List(other)) => {
            all(one, other)
        }
        (Val::Record(one), Val::Record(other)) => {
            one.len() == other.len()
                && one
                    .iter()
                    .zip(other)
                    .all(|((name, one), (other_name, other))| name == other_name && same(one, other))
        }
        (Val::Variant(name, one), Val::Variant(other_name, other)) => name == other_name && boxed(one, other),
        (Val::Option(one), Val::Option(other)) => boxed(one, other),
        (Val::Result(Ok(one)), Val::Result(Ok(other))) | (Val::Result(Err(one)), Val::Result(Err(other))) => {
            boxed(one, other)
        }
        (Val::Flags(one), Val::Flags(other)) => {
            let sorted = |names: &[String]| {
                let mut names = names.to_vec();
                names.sort();
                names
            };
            sorted(one) == sorted(other)
        }
        (one, other) => one == other,
    }
}
