//! What compiling a component may cost, found out before the compiler sees it.
//!
//! The compiler's time is not a matter of size alone: 8 KiB of nested loops can keep it busy for minutes, and a few
//! nested components multiply to millions. Compilation runs on a thread that nobody can stop, so it is not begun.

mod function;
mod module;
mod survey;
mod weights;

use serde::{Deserialize, Serialize};
use wasmparser::{BinaryReaderError, Parser};

use self::survey::Survey;
use crate::{LoadError, compiler::Form};

/// How large and how complex a component may be that is to be compiled. Part of the
/// [`EngineConfig`](crate::EngineConfig).
///
/// The defaults are some four times what a JavaScript or Python component needs, which carries a whole interpreter. What
/// the worst component within them costs is in `SECURITY.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CompileLimits {
    /// Bytes of its binary form. Default: 64 MiB.
    pub bytes: u64,
    /// Bytes of its text form, which is for people: reading it can take time by the square of its length. Default: 1 MiB.
    pub text_bytes: u64,
    /// How deep modules, components, and types of instances and components are nested in it. Default: 10. What reads types
    /// does so recursively: some 1,000 of them overflow a thread's stack.
    pub nesting: u32,
    /// Functions of all its modules. Default: 150,000.
    pub functions: u64,
    /// Element segments of all its modules, which the compiler handles one by one. Default: 10,000.
    pub element_segments: u64,
    /// Imports of the component, and declarations in types of instances and components. Who links it goes through them
    /// many times over if one is missing. Default: 3,000.
    pub imports: u64,
    /// Everything that has an index: types, imports, exports, functions, globals, tables, segments with their elements,
    /// aliases, instances. Counted as it is written, and as often as it is there when all that is instantiated in it is.
    /// Default: 500,000.
    pub items: u64,
    /// Core modules and components that are written in it, each of which costs more the more there are. Default: 1,000.
    pub modules: u64,
    /// Core instances, each as often as it is there when all that is instantiated in it is. Default: 1,000.
    pub instances: u64,
    /// Bytes of the images of memories as they are when an instance begins, which are part of the code: from the first byte
    /// that a segment sets to the last, in whole pages of 4 KiB, where the compiler makes an image. Default: 32 MiB.
    pub image_bytes: u64,
    /// Work in the function that has most of it, which is also what the compiler's memory depends on. Default: 2 million.
    ///
    /// A unit is at most three microseconds of an optimised compiler, and mostly less than one. A function has 60 for itself,
    /// one for each instruction, each value that one takes or leaves, and each target of a branch, and more for instructions
    /// that are slow to compile; and then what grows faster than its size: a 16th of the square of the values that may be
    /// alive at a time (its locals and operands), a fourth of these values times its blocks, a 64th of the depth of each
    /// block, for each loop its depth times the locals that are set in it, and a 64th of the square of the instructions that
    /// may call the host. What a module does before it starts is a function as well: 16 for each element of its segments, 32
    /// for each instruction of an initial value that is more than a constant, and for segments of data that make no image 20
    /// each and a 64th of their square. So is what is made for each type of functions and for each function that the host can
    /// call: 60, 16 for each parameter and result, and a 16th of their square.
    pub function_work: u64,
    /// Work in all functions together, one for each item, 20 for each module, and 1,000 for each function that a guest calls
    /// of its component's. Default: 60 million.
    pub work: u64,
    /// Bytes of native code with all that belongs to it, as it is mapped and as the code cache stores it. Known only after
    /// compiling. Default: 256 MiB.
    pub code_bytes: u64,
}

impl Default for CompileLimits {
    fn default() -> Self {
        Self {
            bytes: 64 << 20,
            text_bytes: 1 << 20,
            nesting: 10,
            functions: 150_000,
            element_segments: 10_000,
            imports: 3_000,
            items: 500_000,
            modules: 1_000,
            instances: 1_000,
            image_bytes: 32 << 20,
            function_work: 2_000_000,
            work: 60_000_000,
            code_bytes: 256 << 20,
        }
    }
}

impl CompileLimits {
    /// No limits, for components that are trusted.
    pub const NONE: Self = Self {
        bytes: u64::MAX,
        text_bytes: u64::MAX,
        nesting: u32::MAX,
        functions: u64::MAX,
        element_segments: u64::MAX,
        imports: u64::MAX,
        items: u64::MAX,
        modules: u64::MAX,
        instances: u64::MAX,
        image_bytes: u64::MAX,
        function_work: u64::MAX,
        work: u64::MAX,
        code_bytes: u64::MAX,
    };

    /// The names of the fields, as [`LoadError::TooComplex`] has them.
    pub(crate) const FIELDS: [&str; 13] = [
        "bytes",
        "text_bytes",
        "nesting",
        "functions",
        "element_segments",
        "imports",
        "items",
        "modules",
        "instances",
        "image_bytes",
        "function_work",
        "work",
        "code_bytes",
    ];

    /// Bytes that a component may have in this form.
    pub(crate) fn most(&self, form: Form) -> u64 {
        match form {
            Form::Binary => self.bytes,
            Form::Text => self.text_bytes,
        }
    }

    pub(crate) fn check_form(&self, form: Form, bytes: u64) -> Result<(), LoadError> {
        let what = match form {
            Form::Binary => "bytes",
            Form::Text => "text_bytes",
        };
        check(what, bytes, self.most(form))
    }

    pub(crate) fn check_code(&self, bytes: u64) -> Result<(), LoadError> {
        check("code_bytes", bytes, self.code_bytes)
    }

    fn check_size(&self, size: Size) -> Result<(), LoadError> {
        check("items", size.items, self.items)?;
        check("instances", size.instances, self.instances)?;
        check("work", size.work, self.work)
    }
}

/// How large and how complex a component is, in the terms of [`CompileLimits`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each is what `CompileLimits` has under that name")]
pub struct Complexity {
    pub bytes: u64,
    pub nesting: u32,
    pub functions: u64,
    pub element_segments: u64,
    pub imports: u64,
    pub items: u64,
    pub modules: u64,
    pub instances: u64,
    pub image_bytes: u64,
    pub function_work: u64,
    pub work: u64,
}

impl Complexity {
    /// Looks through a component's binary form and gives up at the first limit it is beyond.
    ///
    /// Whether it is valid is left to the compiler, unless what is wrong hides all that comes after it.
    ///
    /// # Errors
    ///
    /// [`LoadError::TooComplex`], [`LoadError::UnknownInstance`] and [`LoadError::Invalid`].
    pub fn of(bytes: &[u8], limits: &CompileLimits) -> Result<Self, LoadError> {
        limits.check_form(Form::Binary, bytes.len() as u64)?;
        let found = Self { bytes: bytes.len() as u64, ..Self::default() };
        let mut survey = Survey::new(bytes, Tally { limits, found, written: 0 });
        for payload in Parser::new(0).parse_all(bytes) {
            survey.payload(payload?)?;
        }
        Ok(survey.end())
    }
}

/// What has been found so far, and what may be found.
struct Tally<'a> {
    limits: &'a CompileLimits,
    found: Complexity,
    /// Items, each as often as it is written.
    written: u64,
}

impl Tally<'_> {
    /// Counts items that are written, and that are there with each instance of what they are in.
    fn items(&mut self, more: u64, size: &mut Size) -> Result<(), LoadError> {
        self.written = self.written.saturating_add(more);
        size.items = size.items.saturating_add(more);
        check("items", self.written, self.limits.items)?;
        self.work(more, 0)
    }

    /// Counts work, by which that of one function has come to this much.
    fn work(&mut self, more: u64, function: u64) -> Result<(), LoadError> {
        self.found.function_work = self.found.function_work.max(function);
        self.found.work = self.found.work.saturating_add(more);
        check("function_work", function, self.limits.function_work)?;
        check("work", self.found.work, self.limits.work)
    }

    fn imports(&mut self, more: u32) -> Result<(), LoadError> {
        self.found.imports = self.found.imports.saturating_add(more.into());
        check("imports", self.found.imports, self.limits.imports)
    }
}

/// What there is when one instance of something is made.
#[derive(Debug, Clone, Copy, Default)]
struct Size {
    items: u64,
    instances: u64,
    /// Of the glue between its instances and what they are given.
    work: u64,
}

impl Size {
    fn add(&mut self, other: Self) {
        self.items = self.items.saturating_add(other.items);
        self.instances = self.instances.saturating_add(other.instances);
        self.work = self.work.saturating_add(other.work);
    }
}

fn check(what: &'static str, found: u64, allowed: u64) -> Result<(), LoadError> {
    if found > allowed { Err(LoadError::TooComplex { what, found, allowed }) } else { Ok(()) }
}

impl From<BinaryReaderError> for LoadError {
    fn from(error: BinaryReaderError) -> Self {
        Self::Invalid { error: error.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complexity(text: &str) -> Complexity {
        Complexity::of(&wat::parse_str(text).unwrap(), &CompileLimits::NONE).unwrap()
    }

    fn work(function: &str) -> u64 {
        complexity(&format!(
            "(component (core module (memory 1) (func $g (param i32 i32) (result i32) local.get 0) {function}))"
        ))
        .function_work
    }

    #[test]
    fn everything_is_counted_as_often_as_it_is_instantiated() {
        let once = complexity(
            "(component (core module $m (func) (global i32 (i32.const 1))) (core instance (instantiate $m)))",
        );
        assert_eq!((once.nesting, once.functions, once.instances), (1, 1, 1));
        let inner =
            "(component $c (core module $m (func)) (core instance (instantiate $m)) (core instance (instantiate $m)))";
        let twice = complexity(&format!("(component {inner} (instance (instantiate $c)) (instance (instantiate $c)))"));
        assert_eq!((twice.nesting, twice.functions, twice.instances), (2, 1, 4));
        let never = complexity(&format!("(component {inner})"));
        assert_eq!((never.nesting, never.instances), (2, 0));
        assert!(never.items > 0 && never.items < twice.items);
    }

    #[test]
    fn nested_components_multiply_without_being_instantiated() {
        let mut text = "(core module $m) (core instance (instantiate $m))".to_owned();
        for _ in 0..90 {
            text = format!("(component $c {text}) (instance (instantiate $c)) (instance (instantiate $c))");
        }
        let found = complexity(&format!("(component {text})"));
        assert_eq!((found.nesting, found.instances), (91, u64::MAX));
    }

    #[test]
    fn types_are_nested_as_components_are() {
        let types = |depth: usize| "(type (instance ".repeat(depth) + &"))".repeat(depth);
        assert_eq!(complexity(&format!("(component {})", types(3))).nesting, 3);
        // In a component, and beside what is no type.
        let among = format!(
            r#"(component (component (type (component (import "a" (func)) (alias outer 0 0 (type)) {} (export "b" (func))))))"#,
            types(2)
        );
        assert_eq!(complexity(&among).nesting, 4);
        let many = wat::parse_str(format!("(component {})", types(40))).unwrap();
        let error = Complexity::of(&many, &CompileLimits::default()).unwrap_err();
        assert!(matches!(error, LoadError::TooComplex { what: "nesting", found: 11, .. }), "{error:?}");
    }

    #[test]
    fn outer_and_exported_components_are_known_and_imported_ones_are_not() {
        let outer = "(component $c (core module $m) (core instance (instantiate $m)))
            (component $d (alias outer 1 $c (component $e)) (instance (instantiate $e))) (instance (instantiate $d))";
        assert_eq!(complexity(&format!("(component {outer})")).instances, 1);
        let exported = r#"(component $c (core module $m) (core instance (instantiate $m)))
            (export $e "e" (component $c)) (instance (instantiate $e))"#;
        assert_eq!(complexity(&format!("(component {exported})")).instances, 1);
        let imported = r#"(component (component (import "c" (component $c)) (instance (instantiate $c))))"#;
        let error = Complexity::of(&wat::parse_str(imported).unwrap(), &CompileLimits::NONE).unwrap_err();
        assert!(matches!(error, LoadError::UnknownInstance { what: "components" }), "{error}");
    }

    #[test]
    fn work_is_what_makes_the_compiler_slow() {
        let deep = work(&format!("(func {} {})", "block ".repeat(10_000), "end ".repeat(10_000)));
        assert!((780_000..850_000).contains(&deep), "{deep}");
        let plain = work("(func)");
        assert!(plain < 200, "{plain}");
        let nested = |loops: usize| {
            work(&format!(
                "(func (local i32) {} (local.set 0 (i32.const 1)) {})",
                "loop ".repeat(loops),
                "end ".repeat(loops)
            ))
        };
        // Each loop with its depth: the sum of the first 1,000 numbers is half of a million.
        assert!((500_000..600_000).contains(&nested(1_000)), "{}", nested(1_000));
        let alive =
            |values: usize| work(&format!("(func {} {})", "i32.const 1 ".repeat(values), "drop ".repeat(values)));
        assert!((6_000_000..7_000_000).contains(&alive(10_000)), "{}", alive(10_000));
        let locals = work(&format!("(func (local {}) {})", "i32 ".repeat(1_000), "block end ".repeat(1_000)));
        assert!((300_000..400_000).contains(&locals), "{locals}");
        let arguments = work(&format!("(func {} drop)", "i32.const 1 i32.const 1 call $g ".repeat(10)));
        assert!(arguments > work("(func call 2)"), "{arguments}");
    }

    #[test]
    fn what_a_module_does_before_it_starts_is_work() {
        let module = |fields: &str| {
            complexity(&format!("(component (core module (func $f) (table 1000 funcref) (memory 1) {fields}))"))
        };
        let elements = module(&format!("(elem func {})", "$f ".repeat(1_000)));
        assert!((16_000..16_100).contains(&elements.function_work), "{elements:?}");
        assert!(elements.items > 1_000, "{elements:?}");
        let sum = format!("i32.const 0 {}", "i32.const 1 i32.add ".repeat(1_000));
        for fields in
            [format!("(global i32 {sum})"), format!("(data (offset {sum}) \"\")"), format!("(elem (offset {sum}) $f)")]
        {
            let found = module(&fields);
            assert!((64_000..65_000).contains(&found.function_work), "{fields:.20}: {found:?}");
        }
        // A constant is data.
        assert!(module(&"(global i32 (i32.const 0))".repeat(1_000)).function_work < 2_000);
    }

    #[test]
    fn what_is_left_open_is_invalid() {
        let whole = wat::parse_str("(component (core module (func)))").unwrap();
        let error = Complexity::of(&whole[..whole.len() - 1], &CompileLimits::NONE).unwrap_err();
        assert!(matches!(error, LoadError::Invalid { .. }), "{error}");
    }
}
