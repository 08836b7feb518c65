//! Values of calls: what they weigh in memory, and their bytes between two hosts.
//!
//! The bytes say nothing that the type says: only who has the type can read them. Numbers of several bytes and lengths are
//! LEB128, signed ones in zigzag; floats are little-endian; cases of variants and enums are numbers, flags are bits. Each value
//! has one form, and no other is read.

use std::{collections::HashMap, sync::Arc};

use airssys_wasm_engine::{
    describe_type,
    wasmtime::component::{
        Val,
        types::{ComponentFunc, Type},
    },
};
use bytes::{Buf, Bytes};

use crate::FarCall;

/// Bytes that the host keeps for a value.
pub(crate) fn weight(value: &Val) -> usize {
    let text = |text: &String| size_of_val(text) + text.len();
    let boxed = |value: &Option<Box<Val>>| value.as_deref().map_or(0, weight);
    let pointed_to = match value {
        Val::String(text) | Val::Enum(text) => text.len(),
        Val::List(values) | Val::Tuple(values) | Val::FixedLengthList(values) => values.iter().map(weight).sum(),
        Val::Map(entries) => entries.iter().map(|(key, value)| weight(key) + weight(value)).sum(),
        Val::Record(fields) => fields.iter().map(|(name, value)| text(name) + weight(value)).sum(),
        Val::Variant(name, value) => name.len() + boxed(value),
        Val::Option(value) | Val::Result(Ok(value) | Err(value)) => boxed(value),
        Val::Flags(names) => names.iter().map(text).sum(),
        _ => 0,
    };
    size_of_val(value) + pointed_to
}

/// What in a type is bound to one store.
pub(crate) fn bound(ty: &Type) -> Option<&'static str> {
    match ty {
        Type::Own(_) | Type::Borrow(_) => Some("resource"),
        Type::Future(_) => Some("future"),
        Type::Stream(_) => Some("stream"),
        Type::ErrorContext => Some("error-context"),
        Type::List(list) => bound(&list.ty()),
        Type::FixedLengthList(list) => bound(&list.ty()),
        Type::Map(map) => bound(&map.key()).or_else(|| bound(&map.value())),
        Type::Record(record) => record.fields().find_map(|field| bound(&field.ty)),
        Type::Tuple(tuple) => tuple.types().find_map(|ty| bound(&ty)),
        Type::Variant(variant) => variant.cases().filter_map(|case| case.ty).find_map(|ty| bound(&ty)),
        Type::Option(option) => bound(&option.ty()),
        Type::Result(result) => [result.ok(), result.err()].into_iter().flatten().find_map(|ty| bound(&ty)),
        _ => None,
    }
}

/// A function's type, for calls between two hosts.
pub(crate) struct Signature {
    pub(crate) text: Arc<str>,
    params: Vec<Shape>,
    results: Vec<Shape>,
}

impl Signature {
    /// `None` if the type has something that is bound to one store, or a text longer than [`FarCall::LONGEST_TYPE`]. Its shapes
    /// are no larger than its text.
    pub(crate) fn of(func: &ComponentFunc) -> Option<Self> {
        let text = describe_type(func, FarCall::LONGEST_TYPE)?.into();
        let params = func.params().map(|(_, ty)| Shape::of(&ty)).collect::<Option<_>>()?;
        let results = func.results().map(|ty| Shape::of(&ty)).collect::<Option<_>>()?;
        Some(Self { text, params, results })
    }

    /// Whether it is small enough to be kept. A large one may be that of thousands of functions which share a type, and is made
    /// anew for each call.
    pub(crate) fn is_small(&self) -> bool {
        self.text.len() <= FarCall::LONGEST_TYPE / 4
    }

    /// Writes parameters down. `None` if they are none of this function's.
    pub(crate) fn encode_params(&self, values: &[Val]) -> Option<Bytes> {
        encode(&self.params, values)
    }

    /// Reads parameters that weigh so many bytes at most.
    pub(crate) fn decode_params(&self, bytes: Bytes, most: usize) -> Result<Vec<Val>, Unread> {
        decode(&self.params, bytes, most)
    }

    /// Writes results down.
    pub(crate) fn encode_results(&self, values: &[Val]) -> Option<Bytes> {
        encode(&self.results, values)
    }

    /// Reads results.
    pub(crate) fn decode_results(&self, bytes: Bytes, most: usize) -> Result<Vec<Val>, Unread> {
        decode(&self.results, bytes, most)
    }
}

/// Why bytes were not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unread {
    /// They are no values of these types.
    Malformed,
    /// The values weigh more than they may: so much at least.
    TooLarge(usize),
}

/// A type of plain values, in full.
#[derive(Debug, Clone, PartialEq)]
enum Shape {
    Bool,
    S8,
    U8,
    S16,
    U16,
    S32,
    U32,
    S64,
    U64,
    Float32,
    Float64,
    Char,
    String,
    List(Box<Self>),
    FixedLengthList(Box<Self>, usize),
    Map(Box<[Self; 2]>),
    Record(Vec<(String, Self)>),
    Tuple(Vec<Self>),
    Variant(Cases<Option<Self>>),
    Enum(Cases<()>),
    Option(Box<Self>),
    Result(Box<[Option<Self>; 2]>),
    Flags(Cases<()>),
}

/// What has a name and a number.
#[derive(Debug, Clone, PartialEq)]
struct Cases<T> {
    cases: Vec<(String, T)>,
    /// A variant may have thousands, and a list many of them.
    numbers: HashMap<String, usize>,
}

impl<T> Cases<T> {
    fn new(cases: Vec<(String, T)>) -> Self {
        let numbers = cases.iter().enumerate().map(|(number, (name, _))| (name.clone(), number)).collect();
        Self { cases, numbers }
    }

    fn of_name(&self, name: &str) -> Option<(usize, &T)> {
        let number = *self.numbers.get(name)?;
        Some((number, &self.cases[number].1))
    }

    fn of_number(&self, number: u64) -> Result<&(String, T), Unread> {
        usize::try_from(number).ok().and_then(|number| self.cases.get(number)).ok_or(Unread::Malformed)
    }
}

impl Shape {
    /// `None` if it is bound to one store.
    fn of(ty: &Type) -> Option<Self> {
        let boxed = |ty: &Type| Self::of(ty).map(Box::new);
        // What is there must have a shape.
        let maybe = |ty: Option<Type>| match ty {
            Some(ty) => Self::of(&ty).map(Some),
            None => Some(None),
        };
        let names =
            |names: &mut dyn Iterator<Item = &str>| Cases::new(names.map(|name| (name.to_owned(), ())).collect());
        Some(match ty {
            Type::Bool => Self::Bool,
            Type::S8 => Self::S8,
            Type::U8 => Self::U8,
            Type::S16 => Self::S16,
            Type::U16 => Self::U16,
            Type::S32 => Self::S32,
            Type::U32 => Self::U32,
            Type::S64 => Self::S64,
            Type::U64 => Self::U64,
            Type::Float32 => Self::Float32,
            Type::Float64 => Self::Float64,
            Type::Char => Self::Char,
            Type::String => Self::String,
            Type::List(list) => Self::List(boxed(&list.ty())?),
            Type::FixedLengthList(list) => Self::FixedLengthList(boxed(&list.ty())?, list.len() as usize),
            Type::Map(map) => Self::Map(Box::new([Self::of(&map.key())?, Self::of(&map.value())?])),
            Type::Record(record) => {
                let mut fields = record.fields().map(|field| Some((field.name.to_owned(), Self::of(&field.ty)?)));
                Self::Record(fields.by_ref().collect::<Option<_>>()?)
            }
            Type::Tuple(tuple) => Self::Tuple(tuple.types().map(|ty| Self::of(&ty)).collect::<Option<_>>()?),
            Type::Variant(variant) => {
                let cases = variant.cases().map(|case| Some((case.name.to_owned(), maybe(case.ty)?)));
                Self::Variant(Cases::new(cases.collect::<Option<_>>()?))
            }
            Type::Enum(cases) => Self::Enum(names(&mut cases.names())),
            Type::Option(option) => Self::Option(boxed(&option.ty())?),
            Type::Result(result) => Self::Result(Box::new([maybe(result.ok())?, maybe(result.err())?])),
            Type::Flags(flags) => Self::Flags(names(&mut flags.names())),
            Type::Own(_) | Type::Borrow(_) | Type::Future(_) | Type::Stream(_) | Type::ErrorContext => return None,
        })
    }

    /// Writes a value down, unless it is none of this shape.
    fn put(&self, value: &Val, to: &mut Vec<u8>) -> Option<()> {
        match (self, value) {
            (Self::Bool, Val::Bool(value)) => to.push((*value).into()),
            (Self::S8, Val::S8(value)) => to.push(value.cast_unsigned()),
            (Self::U8, Val::U8(value)) => to.push(*value),
            (Self::S16, Val::S16(value)) => put_signed((*value).into(), to),
            (Self::U16, Val::U16(value)) => put_number((*value).into(), to),
            (Self::S32, Val::S32(value)) => put_signed((*value).into(), to),
            (Self::U32, Val::U32(value)) => put_number((*value).into(), to),
            (Self::S64, Val::S64(value)) => put_signed(*value, to),
            (Self::U64, Val::U64(value)) => put_number(*value, to),
            (Self::Float32, Val::Float32(value)) => to.extend(value.to_bits().to_le_bytes()),
            (Self::Float64, Val::Float64(value)) => to.extend(value.to_bits().to_le_bytes()),
            (Self::Char, Val::Char(value)) => put_number(u32::from(*value).into(), to),
            (Self::String, Val::String(value)) => put_bytes(value.as_bytes(), to),
            (Self::List(shape), Val::List(values)) => {
                put_number(values.len() as u64, to);
                values.iter().try_for_each(|value| shape.put(value, to))?;
            }
            (Self::FixedLengthList(shape, len), Val::FixedLengthList(values)) if values.len() == *len => {
                values.iter().try_for_each(|value| shape.put(value, to))?;
            }
            (Self::Map(shapes), Val::Map(entries)) => {
                let [of_key, of_value] = &**shapes;
                put_number(entries.len() as u64, to);
                entries
                    .iter()
                    .try_for_each(|(key, value)| of_key.put(key, to).and_then(|()| of_value.put(value, to)))?;
            }
            (Self::Record(shapes), Val::Record(fields)) if shapes.len() == fields.len() => {
                let mut fields = shapes.iter().zip(fields);
                fields.try_for_each(|((known, shape), (name, value))| {
                    (known == name).then_some(())?;
                    shape.put(value, to)
                })?;
            }
            (Self::Tuple(shapes), Val::Tuple(values)) => put_all(shapes, values, to)?,
            (Self::Variant(cases), Val::Variant(name, value)) => {
                let (number, shape) = cases.of_name(name)?;
                put_number(number as u64, to);
                put_maybe(shape.as_ref(), value.as_deref(), to)?;
            }
            (Self::Enum(cases), Val::Enum(name)) => put_number(cases.of_name(name)?.0 as u64, to),
            (Self::Option(shape), Val::Option(value)) => {
                to.push(value.is_some().into());
                value.as_deref().map_or(Some(()), |value| shape.put(value, to))?;
            }
            (Self::Result(shapes), Val::Result(value)) => {
                to.push(value.is_err().into());
                let [ok, err] = &**shapes;
                match value {
                    Ok(value) => put_maybe(ok.as_ref(), value.as_deref(), to)?,
                    Err(value) => put_maybe(err.as_ref(), value.as_deref(), to)?,
                }
            }
            (Self::Flags(flags), Val::Flags(names)) => {
                let at = to.len();
                to.resize(at + flags.cases.len().div_ceil(8), 0);
                for name in names {
                    let (number, ()) = flags.of_name(name)?;
                    to[at + number / 8] |= 1 << (number % 8);
                }
            }
            _ => return None,
        }
        Some(())
    }

    /// Reads a value, whose place is paid for.
    fn take(&self, from: &mut Reader) -> Result<Val, Unread> {
        Ok(match self {
            Self::Bool => Val::Bool(from.flag()?),
            Self::S8 => Val::S8(from.byte()?.cast_signed()),
            Self::U8 => Val::U8(from.byte()?),
            Self::S16 => Val::S16(from.signed()?),
            Self::U16 => Val::U16(from.number()?),
            Self::S32 => Val::S32(from.signed()?),
            Self::U32 => Val::U32(from.number()?),
            Self::S64 => Val::S64(from.signed()?),
            Self::U64 => Val::U64(from.number()?),
            Self::Float32 => Val::Float32(f32::from_bits(u32::from_le_bytes(from.array()?))),
            Self::Float64 => Val::Float64(f64::from_bits(u64::from_le_bytes(from.array()?))),
            Self::Char => Val::Char(char::from_u32(from.number()?).ok_or(Unread::Malformed)?),
            Self::String => {
                let len = from.number()?;
                from.pay(len, 1)?;
                Val::String(from.text(len)?)
            }
            Self::List(shape) => {
                let len = from.number()?;
                Val::List(from.several(len, |_, from| shape.take(from))?)
            }
            Self::FixedLengthList(shape, len) => Val::FixedLengthList(from.several(*len, |_, from| shape.take(from))?),
            Self::Map(shapes) => {
                let [of_key, of_value] = &**shapes;
                let len = from.number()?;
                Val::Map(from.several(len, |_, from| Ok((of_key.take(from)?, of_value.take(from)?)))?)
            }
            Self::Record(fields) => Val::Record(from.several(fields.len(), |at, from| {
                let (name, shape) = &fields[at];
                Ok((from.name(name)?, shape.take(from)?))
            })?),
            Self::Tuple(shapes) => Val::Tuple(take_all(shapes, from)?),
            Self::Variant(cases) => {
                let (name, shape) = cases.of_number(from.number()?)?;
                Val::Variant(from.name(name)?, take_maybe(shape.as_ref(), from)?)
            }
            Self::Enum(cases) => {
                let (name, ()) = cases.of_number(from.number()?)?;
                Val::Enum(from.name(name)?)
            }
            Self::Option(shape) => {
                let is_some = from.flag()?;
                Val::Option(take_maybe(is_some.then_some(shape), from)?)
            }
            Self::Result(shapes) => {
                let [ok, err] = &**shapes;
                Val::Result(match from.flag()? {
                    false => Ok(take_maybe(ok.as_ref(), from)?),
                    true => Err(take_maybe(err.as_ref(), from)?),
                })
            }
            Self::Flags(flags) => {
                let bits = from.split(flags.cases.len().div_ceil(8))?;
                let is_set = |number: usize| bits[number / 8] & (1 << (number % 8)) != 0;
                if (flags.cases.len()..bits.len() * 8).any(is_set) {
                    return Err(Unread::Malformed);
                }
                let mut names = Vec::new();
                for (name, ()) in (0..).zip(&flags.cases).filter_map(|(number, case)| is_set(number).then_some(case)) {
                    from.pay(1, size_of::<String>())?;
                    names.push(from.name(name)?);
                }
                Val::Flags(names)
            }
        })
    }
}

fn encode(shapes: &[Shape], values: &[Val]) -> Option<Bytes> {
    let mut to = Vec::new();
    put_all(shapes, values, &mut to)?;
    Some(to.into())
}

fn decode(shapes: &[Shape], bytes: Bytes, most: usize) -> Result<Vec<Val>, Unread> {
    let mut from = Reader { bytes, left: most, most };
    let values = take_all(shapes, &mut from)?;
    from.end(values)
}

fn put_all(shapes: &[Shape], values: &[Val], to: &mut Vec<u8>) -> Option<()> {
    (shapes.len() == values.len()).then_some(())?;
    shapes.iter().zip(values).try_for_each(|(shape, value)| shape.put(value, to))
}

fn put_maybe(shape: Option<&Shape>, value: Option<&Val>, to: &mut Vec<u8>) -> Option<()> {
    match (shape, value) {
        (Some(shape), Some(value)) => shape.put(value, to),
        (None, None) => Some(()),
        _ => None,
    }
}

fn put_number(mut number: u64, to: &mut Vec<u8>) {
    while number > 0x7f {
        to.push(number as u8 | 0x80);
        number >>= 7;
    }
    to.push(number as u8);
}

fn put_signed(number: i64, to: &mut Vec<u8>) {
    put_number((number << 1 ^ number >> 63).cast_unsigned(), to);
}

fn put_bytes(bytes: &[u8], to: &mut Vec<u8>) {
    put_number(bytes.len() as u64, to);
    to.extend(bytes);
}

fn take_all(shapes: &[Shape], from: &mut Reader) -> Result<Vec<Val>, Unread> {
    from.several(shapes.len(), |at, from| shapes[at].take(from))
}

fn take_maybe(shape: Option<&Shape>, from: &mut Reader) -> Result<Option<Box<Val>>, Unread> {
    let Some(shape) = shape else { return Ok(None) };
    from.pay(1, size_of::<Val>())?;
    Ok(Some(Box::new(shape.take(from)?)))
}

/// What is left of some bytes, and of the memory that values of them may take up.
pub(crate) struct Reader {
    bytes: Bytes,
    left: usize,
    most: usize,
}

impl Reader {
    /// Pays for so many things, before there is memory for them.
    fn pay(&mut self, things: usize, size: usize) -> Result<(), Unread> {
        let bytes = things.saturating_mul(size);
        match self.left.checked_sub(bytes) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => Err(Unread::TooLarge((self.most - self.left).saturating_add(bytes))),
        }
    }

    /// So many of the same.
    fn several<T>(
        &mut self,
        len: usize,
        mut take: impl FnMut(usize, &mut Self) -> Result<T, Unread>,
    ) -> Result<Vec<T>, Unread> {
        self.pay(len, size_of::<T>())?;
        // Each has a byte or more, or the last of them is not there.
        let mut taken = Vec::with_capacity(len.min(self.bytes.len()));
        for at in 0..len {
            taken.push(take(at, self)?);
        }
        Ok(taken)
    }

    /// A name that the type has.
    fn name(&mut self, name: &str) -> Result<String, Unread> {
        self.pay(name.len(), 1)?;
        Ok(name.to_owned())
    }

    fn byte(&mut self) -> Result<u8, Unread> {
        self.bytes.try_get_u8().map_err(|_| Unread::Malformed)
    }

    fn flag(&mut self) -> Result<bool, Unread> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Unread::Malformed),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Unread> {
        let mut array = [0; N];
        self.bytes.try_copy_to_slice(&mut array).map_err(|_| Unread::Malformed)?;
        Ok(array)
    }

    fn split(&mut self, len: usize) -> Result<Bytes, Unread> {
        if len > self.bytes.len() { Err(Unread::Malformed) } else { Ok(self.bytes.split_to(len)) }
    }

    fn text(&mut self, len: usize) -> Result<String, Unread> {
        let text =
            self.bytes.get(..len).and_then(|text| str::from_utf8(text).ok()).ok_or(Unread::Malformed)?.to_owned();
        self.bytes.advance(len);
        Ok(text)
    }

    /// A number in its shortest form.
    fn wide(&mut self) -> Result<u64, Unread> {
        let mut number = 0;
        for shift in (0..u64::BITS).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits || byte == 0 && shift > 0 {
                return Err(Unread::Malformed);
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(Unread::Malformed)
    }

    fn number<N: TryFrom<u64>>(&mut self) -> Result<N, Unread> {
        self.wide()?.try_into().map_err(|_| Unread::Malformed)
    }

    fn signed<N: TryFrom<i64>>(&mut self) -> Result<N, Unread> {
        let number = self.wide()?;
        let number = (number >> 1).cast_signed() ^ -(number & 1).cast_signed();
        number.try_into().map_err(|_| Unread::Malformed)
    }

    /// There must be nothing after the last value.
    fn end<T>(self, values: T) -> Result<T, Unread> {
        if self.bytes.is_empty() { Ok(values) } else { Err(Unread::Malformed) }
    }
}

/// Rust's values of some types, in the bytes that values have which say their types themselves. They take up little more memory
/// than the bytes do, and less than wasmtime's values.
pub(crate) trait Wire: Sized {
    fn put(&self, to: &mut Vec<u8>);

    fn take(from: &mut Reader) -> Result<Self, Unread>;

    /// Writes it down, alone.
    fn encode(&self) -> Bytes {
        let mut to = Vec::new();
        self.put(&mut to);
        to.into()
    }

    /// Reads it, alone.
    fn decode(bytes: Bytes) -> Result<Self, Unread> {
        let mut from = Reader { bytes, left: 0, most: 0 };
        let value = Self::take(&mut from)?;
        from.end(value)
    }
}

impl Wire for () {
    fn put(&self, _: &mut Vec<u8>) {}

    fn take(_: &mut Reader) -> Result<Self, Unread> {
        Ok(())
    }
}

impl Wire for Bytes {
    fn put(&self, to: &mut Vec<u8>) {
        put_bytes(self, to);
    }

    /// Without a copy.
    fn take(from: &mut Reader) -> Result<Self, Unread> {
        let len = from.number()?;
        from.split(len)
    }
}

impl Wire for String {
    fn put(&self, to: &mut Vec<u8>) {
        put_bytes(self.as_bytes(), to);
    }

    fn take(from: &mut Reader) -> Result<Self, Unread> {
        let len = from.number()?;
        from.text(len)
    }
}

impl<T: Wire> Wire for Option<T> {
    fn put(&self, to: &mut Vec<u8>) {
        to.push(self.is_some().into());
        if let Some(value) = self {
            value.put(to);
        }
    }

    fn take(from: &mut Reader) -> Result<Self, Unread> {
        from.flag()?.then(|| T::take(from)).transpose()
    }
}

impl<T: Wire, E: Wire> Wire for Result<T, E> {
    fn put(&self, to: &mut Vec<u8>) {
        to.push(self.is_err().into());
        match self {
            Ok(value) => value.put(to),
            Err(error) => error.put(to),
        }
    }

    fn take(from: &mut Reader) -> Result<Self, Unread> {
        Ok(if from.flag()? { Err(E::take(from)?) } else { Ok(T::take(from)?) })
    }
}

impl<A: Wire> Wire for (A,) {
    fn put(&self, to: &mut Vec<u8>) {
        self.0.put(to);
    }

    fn take(from: &mut Reader) -> Result<Self, Unread> {
        Ok((A::take(from)?,))
    }
}

impl<A: Wire, B: Wire> Wire for (A, B) {
    fn put(&self, to: &mut Vec<u8>) {
        self.0.put(to);
        self.1.put(to);
    }

    fn take(from: &mut Reader) -> Result<Self, Unread> {
        Ok((A::take(from)?, B::take(from)?))
    }
}

#[cfg(test)]
mod tests {
    use proptest::{
        prelude::{BoxedStrategy, Just, Strategy, any, prop, prop_assert, prop_assert_eq, prop_oneof, proptest},
        sample::subsequence,
    };

    use super::*;

    fn names(most: usize) -> impl Strategy<Value = Vec<String>> {
        prop::collection::hash_set("[a-z]{1,6}", 1..most).prop_map(Vec::from_iter)
    }

    fn shapes() -> impl Strategy<Value = Shape> {
        let leaf = prop_oneof![
            prop::sample::select(vec![
                Shape::Bool,
                Shape::S8,
                Shape::U8,
                Shape::S16,
                Shape::U16,
                Shape::S32,
                Shape::U32,
                Shape::S64,
                Shape::U64,
                Shape::Float32,
                Shape::Float64,
                Shape::Char,
                Shape::String,
            ]),
            // With numbers of one byte and of two.
            (1..300_usize)
                .prop_map(|names| Shape::Enum(of_names((0..names).map(|number| format!("n{number}")).collect()))),
            names(20).prop_map(|names| Shape::Flags(of_names(names))),
        ];
        leaf.prop_recursive(4, 30, 4, |inner| {
            let boxed = || inner.clone().prop_map(Box::new);
            let maybe = || prop::option::of(inner.clone());
            prop_oneof![
                boxed().prop_map(Shape::List),
                (boxed(), 0..4_usize).prop_map(|(shape, len)| Shape::FixedLengthList(shape, len)),
                [inner.clone(), inner.clone()].prop_map(|shapes| Shape::Map(Box::new(shapes))),
                (names(4), prop::collection::vec(inner.clone(), 3))
                    .prop_map(|(names, shapes)| Shape::Record(names.into_iter().zip(shapes).collect())),
                prop::collection::vec(inner.clone(), 0..4).prop_map(Shape::Tuple),
                (names(4), prop::collection::vec(maybe(), 3))
                    .prop_map(|(names, shapes)| Shape::Variant(Cases::new(names.into_iter().zip(shapes).collect()))),
                boxed().prop_map(Shape::Option),
                [maybe(), maybe()].prop_map(|shapes| Shape::Result(Box::new(shapes))),
            ]
        })
    }

    fn of_names(names: Vec<String>) -> Cases<()> {
        Cases::new(names.into_iter().map(|name| (name, ())).collect())
    }

    fn values(shape: &Shape) -> BoxedStrategy<Val> {
        let boxed = |shape: &Shape| values(shape).prop_map(|value| Some(Box::new(value))).boxed();
        let maybe = |shape: &Option<Shape>| shape.as_ref().map_or(Just(None).boxed(), boxed);
        match shape {
            Shape::Bool => any::<bool>().prop_map(Val::Bool).boxed(),
            Shape::S8 => any::<i8>().prop_map(Val::S8).boxed(),
            Shape::U8 => any::<u8>().prop_map(Val::U8).boxed(),
            Shape::S16 => any::<i16>().prop_map(Val::S16).boxed(),
            Shape::U16 => any::<u16>().prop_map(Val::U16).boxed(),
            Shape::S32 => any::<i32>().prop_map(Val::S32).boxed(),
            Shape::U32 => any::<u32>().prop_map(Val::U32).boxed(),
            Shape::S64 => any::<i64>().prop_map(Val::S64).boxed(),
            Shape::U64 => any::<u64>().prop_map(Val::U64).boxed(),
            Shape::Float32 => any::<u32>().prop_map(|bits| Val::Float32(f32::from_bits(bits))).boxed(),
            Shape::Float64 => any::<u64>().prop_map(|bits| Val::Float64(f64::from_bits(bits))).boxed(),
            Shape::Char => any::<char>().prop_map(Val::Char).boxed(),
            Shape::String => "\\PC{0,20}".prop_map(Val::String).boxed(),
            Shape::List(shape) => prop::collection::vec(values(shape), 0..5).prop_map(Val::List).boxed(),
            Shape::FixedLengthList(shape, len) => {
                prop::collection::vec(values(shape), *len).prop_map(Val::FixedLengthList).boxed()
            }
            Shape::Map(shapes) => {
                let entry = (values(&shapes[0]), values(&shapes[1]));
                prop::collection::vec(entry, 0..4).prop_map(Val::Map).boxed()
            }
            Shape::Record(fields) => {
                let (names, shapes): (Vec<_>, Vec<_>) = fields.iter().cloned().unzip();
                let fields = shapes.iter().map(values).collect::<Vec<_>>();
                fields.prop_map(move |values| Val::Record(names.iter().cloned().zip(values).collect())).boxed()
            }
            Shape::Tuple(shapes) => shapes.iter().map(values).collect::<Vec<_>>().prop_map(Val::Tuple).boxed(),
            Shape::Variant(cases) => {
                let cases = cases.cases.iter().map(|(name, shape)| {
                    let name = name.clone();
                    maybe(shape).prop_map(move |value| Val::Variant(name.clone(), value)).boxed()
                });
                prop::strategy::Union::new(cases).boxed()
            }
            Shape::Enum(cases) => {
                let names: Vec<_> = cases.cases.iter().map(|(name, ())| name.clone()).collect();
                prop::sample::select(names).prop_map(Val::Enum).boxed()
            }
            Shape::Option(shape) => prop_oneof![Just(None), boxed(shape)].prop_map(Val::Option).boxed(),
            Shape::Result(shapes) => {
                let [ok, err] = &**shapes;
                prop_oneof![maybe(ok).prop_map(Ok), maybe(err).prop_map(Err)].prop_map(Val::Result).boxed()
            }
            Shape::Flags(flags) => {
                let names: Vec<_> = flags.cases.iter().map(|(name, ())| name.clone()).collect();
                let len = names.len();
                subsequence(names, 0..=len).prop_map(Val::Flags).boxed()
            }
        }
    }

    fn some() -> impl Strategy<Value = (Vec<Shape>, Vec<Val>)> {
        prop::collection::vec(shapes(), 0..4).prop_flat_map(|shapes| {
            let values = shapes.iter().map(values).collect::<Vec<_>>();
            (Just(shapes), values)
        })
    }

    fn weigh(values: &[Val]) -> usize {
        values.iter().map(weight).sum()
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_in_so_much_memory_and_not_in_less((shapes, values) in some()) {
            let bytes = encode(&shapes, &values).unwrap();
            let weight = weigh(&values);
            let read = decode(&shapes, bytes.clone(), weight).unwrap();
            // To the bit, floats that are no numbers included.
            prop_assert_eq!(format!("{read:?}"), format!("{values:?}"));
            prop_assert_eq!(encode(&shapes, &read).unwrap(), bytes.clone());
            if let Some(less) = weight.checked_sub(1) {
                let refused = decode(&shapes, bytes, less);
                prop_assert!(matches!(refused, Err(Unread::TooLarge(size)) if size > less && size <= weight), "{refused:?}");
            }
        }

        #[test]
        fn bytes_that_are_cut_off_or_go_on_are_not_read((shapes, values) in some(), at in any::<prop::sample::Index>()) {
            let bytes = encode(&shapes, &values).unwrap();
            let longer = Bytes::from([&bytes[..], &[0]].concat());
            prop_assert_eq!(decode(&shapes, longer, usize::MAX), Err(Unread::Malformed));
            if !bytes.is_empty() {
                let cut = bytes.slice(..at.index(bytes.len()));
                prop_assert_eq!(decode(&shapes, cut, usize::MAX), Err(Unread::Malformed));
            }
        }

        #[test]
        fn of_any_bytes_comes_what_is_written_as_them_or_nothing(
            (shapes, values) in some(),
            changes in prop::collection::vec(any::<(prop::sample::Index, u8)>(), 0..4),
            bytes in prop::collection::vec(any::<u8>(), 0..60),
            most in 0..2_000_usize,
        ) {
            // Values that are nearly right, and no values at all.
            let mut changed = encode(&shapes, &values).unwrap().to_vec();
            for (at, byte) in changes.into_iter().filter(|_| !values.is_empty()) {
                if let Some(at) = (!changed.is_empty()).then(|| at.index(changed.len())) {
                    changed[at] = byte;
                }
            }
            for bytes in [changed, bytes] {
                if let Ok(values) = decode(&shapes, bytes.clone().into(), most) {
                    prop_assert!(weigh(&values) <= most);
                    prop_assert_eq!(encode(&shapes, &values).unwrap(), bytes);
                }
            }
        }

        #[test]
        fn values_of_another_type_are_not_written((shapes, values) in some(), (others, _) in some()) {
            // What is written at all is read as the same.
            if let Some(bytes) = encode(&others, &values) {
                prop_assert!(decode(&others, bytes, usize::MAX).is_ok());
            }
            let more = [&values[..], &[Val::Bool(true)]].concat();
            prop_assert_eq!(encode(&shapes, &more), None);
        }

        #[test]
        fn static_types_have_the_bytes_of_values(text in "\\PC{0,300}", bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let list = || Box::new(Shape::List(Box::new(Shape::U8)));
            let of_bytes = Val::List(bytes.iter().copied().map(Val::U8).collect());
            let (of_text, some) = (Val::String(text.clone()), |value: &Val| Some(Box::new(value.clone())));
            let bytes = Bytes::from(bytes);
            prop_assert_eq!(
                (text.clone(), bytes.clone()).encode(),
                encode(&[Shape::String, *list()], &[of_text.clone(), of_bytes.clone()]).unwrap()
            );
            prop_assert_eq!(<(String, Bytes)>::decode((text.clone(), bytes.clone()).encode()), Ok((text.clone(), bytes.clone())));
            prop_assert_eq!(().encode(), encode(&[], &[]).unwrap());
            // The longest of the results, with all its cases.
            type Static = (Result<Option<Bytes>, String>,);
            let shapes = [Shape::Result(Box::new([Some(Shape::Option(list())), Some(Shape::String)]))];
            let cases: [(Static, _); 3] = [
                ((Ok(None),), Ok(some(&Val::Option(None)))),
                ((Ok(Some(bytes)),), Ok(some(&Val::Option(some(&of_bytes))))),
                ((Err(text),), Err(some(&of_text))),
            ];
            for (typed, value) in cases {
                let encoded = encode(&shapes, &[Val::Result(value)]).unwrap();
                prop_assert_eq!(typed.encode(), encoded.clone());
                prop_assert_eq!(Static::decode(encoded.slice(..encoded.len() - 1)), Err(Unread::Malformed));
                prop_assert_eq!(Static::decode(encoded), Ok(typed));
            }
            let nothing = [Shape::Result(Box::new([None, Some(Shape::String)]))];
            prop_assert_eq!(
                (Ok::<(), String>(()),).encode(),
                encode(&nothing, &[Val::Result(Ok(None))]).unwrap()
            );
        }
    }

    #[test]
    fn a_value_has_one_form() {
        let table: [(Shape, &[u8], Option<Val>); 15] = [
            (Shape::Bool, &[1], Some(Val::Bool(true))),
            (Shape::Bool, &[2], None),
            (Shape::U16, &[0xff, 0xff, 0x03], Some(Val::U16(u16::MAX))),
            (Shape::U16, &[0x80, 0x80, 0x04], None),
            (Shape::U16, &[0x81, 0x00], None),
            (Shape::S16, &[0xff, 0xff, 0x03], Some(Val::S16(i16::MIN))),
            (Shape::S16, &[0x80, 0x80, 0x04], None),
            (Shape::U64, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01], Some(Val::U64(u64::MAX))),
            (Shape::U64, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02], None),
            (Shape::U64, &[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01], None),
            (Shape::Char, &[0x80, 0xb0, 0x03], None),
            (Shape::String, &[1, 0xff], None),
            (Shape::Enum(of_names(vec!["a".into(), "b".into()])), &[2], None),
            (Shape::Flags(of_names(vec!["a".into(), "b".into()])), &[2], Some(Val::Flags(vec!["b".into()]))),
            (Shape::Flags(of_names(vec!["a".into(), "b".into()])), &[4], None),
        ];
        for (shape, bytes, value) in table {
            let read = decode(std::slice::from_ref(&shape), Bytes::from_static(bytes), usize::MAX);
            assert_eq!(read, value.map(|value| vec![value]).ok_or(Unread::Malformed), "{shape:?} {bytes:x?}");
        }
    }

    #[test]
    fn lengths_that_nothing_stands_behind_take_no_memory() {
        // A number of elements that could not be allocated, and a few bytes at most for them.
        let many = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
        let of_u8 = || Shape::List(Box::new(Shape::U8));
        let of_nothing = || Shape::List(Box::new(Shape::Tuple(vec![])));
        for shape in [of_u8(), of_nothing(), Shape::List(Box::new(of_u8())), Shape::String] {
            let read = decode(&[shape], Bytes::copy_from_slice(&many), 1 << 20);
            assert!(matches!(read, Err(Unread::TooLarge(size)) if size > 1 << 20), "{read:?}");
        }
        let fixed = Shape::FixedLengthList(Box::new(Shape::Bool), u32::MAX as usize);
        assert!(matches!(decode(&[fixed], Bytes::new(), 1 << 20), Err(Unread::TooLarge(_))));
        // Elements without bytes count as each other.
        let (most, of) = (1_001 * size_of::<Val>(), |len: u64| {
            let mut bytes = Vec::new();
            put_number(len, &mut bytes);
            bytes
        });
        assert_eq!(
            decode(&[of_nothing()], of(1_000).into(), most),
            Ok(vec![Val::List(vec![Val::Tuple(vec![]); 1_000])])
        );
        assert!(matches!(decode(&[of_nothing()], of(1_001).into(), most), Err(Unread::TooLarge(_))));
        // The outer of nested lists does not take what the inner one has to pay for.
        let nested = [Shape::List(Box::new(of_nothing()))];
        let bytes = [of(500), of(500)].concat();
        assert!(matches!(decode(&nested, bytes.into(), most), Err(Unread::Malformed)));
        let bytes = [of(500), of(501)].concat();
        assert!(matches!(decode(&nested, bytes.into(), most), Err(Unread::TooLarge(_))));
    }
}
