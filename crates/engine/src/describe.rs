//! Function types as WIT writes them, for error messages and tools, and to compare types of two engines.

use wasmtime::component::types::{ComponentFunc, Type};

/// `name: func(a: s32, b: list<u8>) -> result<string, u32>`.
///
/// Records, variants and resources have no name in a compiled component and are written by their shape. A type can
/// expand far beyond the component's size, so a description is cut at 4 KiB, with `…`.
pub fn describe_func(name: &str, func: &ComponentFunc) -> String {
    let mut out = Text::new(LONGEST);
    out.put(name);
    out.put(": ");
    out.func(func);
    out.text
}

/// The type alone, in full: `async func(a: s32)`. Two types that have no resource, stream or future in them are the same if
/// their texts are. `None` if it has more than so many bytes.
pub fn describe_type(func: &ComponentFunc, longest: usize) -> Option<String> {
    let mut out = Text::new(longest);
    out.func(func);
    (!out.is_full()).then_some(out.text)
}

/// Bytes after which a description ends.
const LONGEST: usize = 4 << 10;

struct Text {
    text: String,
    longest: usize,
}

impl Text {
    fn new(longest: usize) -> Self {
        Self { text: String::new(), longest }
    }

    fn is_full(&self) -> bool {
        self.text.len() > self.longest
    }

    fn put(&mut self, text: &str) {
        if self.is_full() {
            return;
        }
        self.text.push_str(&text[..text.floor_char_boundary(self.longest)]);
        if self.is_full() {
            self.text.push('…');
        }
    }

    fn func(&mut self, func: &ComponentFunc) {
        self.put(if func.async_() { "async func(" } else { "func(" });
        self.all(func.params(), |out, (name, ty)| {
            out.put(name);
            out.put(": ");
            out.ty(&ty);
        });
        self.put(")");
        if func.results().len() > 0 {
            self.put(" -> ");
        }
        self.all(func.results(), |out, ty| out.ty(&ty));
    }

    /// Items with commas between, as long as there is room.
    fn all<I>(&mut self, items: impl Iterator<Item = I>, mut each: impl FnMut(&mut Self, I)) {
        for (at, item) in items.enumerate() {
            if self.is_full() {
                return;
            }
            if at > 0 {
                self.put(", ");
            }
            each(self, item);
        }
    }

    fn in_braces<I>(&mut self, what: &str, items: impl Iterator<Item = I>, each: impl FnMut(&mut Self, I)) {
        self.put(what);
        self.put(" { ");
        self.all(items, each);
        self.put(" }");
    }

    fn of(&mut self, what: &str, types: impl IntoIterator<Item = Option<Type>>) {
        self.put(what);
        self.put("<");
        self.all(types.into_iter(), |out, ty| match ty {
            Some(ty) => out.ty(&ty),
            None => out.put("_"),
        });
        self.put(">");
    }

    fn ty(&mut self, ty: &Type) {
        match ty {
            Type::Bool => self.put("bool"),
            Type::S8 => self.put("s8"),
            Type::U8 => self.put("u8"),
            Type::S16 => self.put("s16"),
            Type::U16 => self.put("u16"),
            Type::S32 => self.put("s32"),
            Type::U32 => self.put("u32"),
            Type::S64 => self.put("s64"),
            Type::U64 => self.put("u64"),
            Type::Float32 => self.put("f32"),
            Type::Float64 => self.put("f64"),
            Type::Char => self.put("char"),
            Type::String => self.put("string"),
            Type::List(list) => self.of("list", [Some(list.ty())]),
            Type::Map(map) => self.of("map", [Some(map.key()), Some(map.value())]),
            Type::FixedLengthList(list) => {
                self.put("list<");
                self.ty(&list.ty());
                self.put(&format!(", {}>", list.len()));
            }
            Type::Record(record) => self.in_braces("record", record.fields(), |out, field| {
                out.put(field.name);
                out.put(": ");
                out.ty(&field.ty);
            }),
            Type::Tuple(tuple) => self.of("tuple", tuple.types().map(Some)),
            Type::Variant(variant) => self.in_braces("variant", variant.cases(), |out, case| {
                out.put(case.name);
                if let Some(ty) = case.ty {
                    out.put("(");
                    out.ty(&ty);
                    out.put(")");
                }
            }),
            Type::Enum(cases) => self.in_braces("enum", cases.names(), |out, name| out.put(name)),
            Type::Option(option) => self.of("option", [Some(option.ty())]),
            Type::Result(result) => self.of("result", [result.ok(), result.err()]),
            Type::Flags(flags) => self.in_braces("flags", flags.names(), |out, name| out.put(name)),
            Type::Own(_) => self.put("own<resource>"),
            Type::Borrow(_) => self.put("borrow<resource>"),
            Type::Future(future) => self.of("future", [future.ty()]),
            Type::Stream(stream) => self.of("stream", [stream.ty()]),
            Type::ErrorContext => self.put("error-context"),
        }
    }
}
