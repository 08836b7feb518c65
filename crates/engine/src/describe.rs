//! Function types as WIT writes them, for error messages and tools.

use wasmtime::component::types::{ComponentFunc, Type};

/// `name: func(a: s32, b: list<u8>) -> result<string, u32>`.
///
/// Records, variants and resources have no name in a compiled component and are written by their shape.
pub fn describe_func(name: &str, func: &ComponentFunc) -> String {
    let params: Vec<_> = func.params().map(|(name, ty)| format!("{name}: {}", describe(&ty))).collect();
    let results: Vec<_> = func.results().map(|ty| describe(&ty)).collect();
    let arrow = if results.is_empty() { "" } else { " -> " };
    format!("{name}: func({}){arrow}{}", params.join(", "), results.join(", "))
}

fn describe(ty: &Type) -> String {
    let payload = |ty: Option<Type>| ty.map_or_else(|| "_".into(), |ty| describe(&ty));
    match ty {
        Type::Bool => "bool".into(),
        Type::S8 => "s8".into(),
        Type::U8 => "u8".into(),
        Type::S16 => "s16".into(),
        Type::U16 => "u16".into(),
        Type::S32 => "s32".into(),
        Type::U32 => "u32".into(),
        Type::S64 => "s64".into(),
        Type::U64 => "u64".into(),
        Type::Float32 => "f32".into(),
        Type::Float64 => "f64".into(),
        Type::Char => "char".into(),
        Type::String => "string".into(),
        Type::List(list) => format!("list<{}>", describe(&list.ty())),
        Type::Map(map) => format!("map<{}, {}>", describe(&map.key()), describe(&map.value())),
        Type::FixedLengthList(list) => format!("list<{}, {}>", describe(&list.ty()), list.len()),
        Type::Record(record) => {
            let fields: Vec<_> = record.fields().map(|f| format!("{}: {}", f.name, describe(&f.ty))).collect();
            format!("record {{ {} }}", fields.join(", "))
        }
        Type::Tuple(tuple) => {
            let types: Vec<_> = tuple.types().map(|ty| describe(&ty)).collect();
            format!("tuple<{}>", types.join(", "))
        }
        Type::Variant(variant) => {
            let cases: Vec<_> = variant
                .cases()
                .map(|case| match case.ty {
                    Some(ty) => format!("{}({})", case.name, describe(&ty)),
                    None => case.name.to_owned(),
                })
                .collect();
            format!("variant {{ {} }}", cases.join(", "))
        }
        Type::Enum(cases) => format!("enum {{ {} }}", cases.names().collect::<Vec<_>>().join(", ")),
        Type::Option(option) => format!("option<{}>", describe(&option.ty())),
        Type::Result(result) => format!("result<{}, {}>", payload(result.ok()), payload(result.err())),
        Type::Flags(flags) => format!("flags {{ {} }}", flags.names().collect::<Vec<_>>().join(", ")),
        Type::Own(_) => "own<resource>".into(),
        Type::Borrow(_) => "borrow<resource>".into(),
        Type::Future(future) => format!("future<{}>", payload(future.ty())),
        Type::Stream(stream) => format!("stream<{}>", payload(stream.ty())),
        Type::ErrorContext => "error-context".into(),
    }
}
