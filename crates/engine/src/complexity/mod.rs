//! Estimates what compiling a component costs, before the compiler sees it.
//!
//! Compile time does not follow size: 8 KiB of nested loops can keep the compiler busy for minutes, and a few nested
//! components multiply to millions. A compilation in this process cannot be stopped, so an expensive one is not begun.

mod function;
mod module;
mod needs;
mod survey;
mod weights;

use serde::{Deserialize, Serialize};
use wasmparser::{BinaryReaderError, Parser};

use self::survey::Survey;
use crate::{CompileLimits, Features, LoadError};

/// Whether a component is given as it is or as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Form {
    Binary,
    Text,
}

impl CompileLimits {
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
    pub handlers: u64,
    pub work: u64,
    /// What it needs.
    pub features: Features,
}

impl Complexity {
    /// Walks a component's binary form and stops at the first limit that it exceeds.
    ///
    /// Validation is left to the compiler, unless an error hides everything after it.
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

/// The counts so far, and their limits.
struct Tally<'a> {
    limits: &'a CompileLimits,
    found: Complexity,
    /// Items, each as often as it is written.
    written: u64,
}

impl Tally<'_> {
    /// Counts items that are written, and that exist once for each instance of what contains them.
    fn items(&mut self, more: u64, size: &mut Size) -> Result<(), LoadError> {
        self.written = self.written.saturating_add(more);
        size.items = size.items.saturating_add(more);
        check("items", self.written, self.limits.items)?;
        self.work(more, 0)
    }

    /// Adds work. `function` is the total of the function that it belongs to.
    fn work(&mut self, more: u64, function: u64) -> Result<(), LoadError> {
        self.found.function_work = self.found.function_work.max(function);
        self.found.work = self.found.work.saturating_add(more);
        check("function_work", function, self.limits.function_work)?;
        check("work", self.found.work, self.limits.work)
    }

    fn handlers(&mut self, in_scope: u64) -> Result<(), LoadError> {
        self.found.handlers = self.found.handlers.max(in_scope);
        check("handlers", in_scope, self.limits.handlers)
    }

    fn imports(&mut self, more: u32) -> Result<(), LoadError> {
        self.found.imports = self.found.imports.saturating_add(more.into());
        check("imports", self.found.imports, self.limits.imports)
    }
}

/// The counts of one instance of something.
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
    use crate::Imported;

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
    fn what_comes_from_outside_counts_as_much_as_was_said() {
        let of = |text: &str, imported| {
            Complexity::of(&wat::parse_str(text).unwrap(), &CompileLimits { imported, ..CompileLimits::NONE })
        };
        let module = r#"(component (import "m" (core module $m))
            (core instance (instantiate $m)) (core instance (instantiate $m)))"#;
        let component = r#"(component (import "c" (component $c)) (instance (instantiate $c)))"#;
        for text in [module, component] {
            assert!(matches!(of(text, None), Err(LoadError::UnknownInstance { .. })));
        }
        let cheap = Imported { items: 10, instances: 3 };
        assert_eq!(of(module, Some(cheap)).unwrap().instances, 2 * (3 + 1));
        assert_eq!(of(component, Some(cheap)).unwrap().instances, 3);
        let dear = Imported { items: 1_000, ..cheap };
        let (cheap, dear) = (of(module, Some(cheap)).unwrap(), of(module, Some(dear)).unwrap());
        assert_eq!(dear.items - cheap.items, 2 * 990);
        let most = Imported { items: u64::MAX, instances: u64::MAX };
        let found = of(module, Some(most)).unwrap();
        assert_eq!((found.items, found.instances), (u64::MAX, u64::MAX));
        let few =
            CompileLimits { instances: 7, imported: Some(Imported { items: 1, instances: 3 }), ..CompileLimits::NONE };
        let error = Complexity::of(&wat::parse_str(module).unwrap(), &few).unwrap_err();
        assert!(matches!(error, LoadError::TooComplex { what: "instances", found: 8, allowed: 7 }), "{error}");
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
    fn what_exceptions_may_lead_to_is_work() {
        let of = |calls: usize, handlers: usize, locals: usize| {
            let call = |n: usize| format!("(call $g) (local.set {} (i32.const 1))", n % locals.max(1));
            let body = (0..calls).map(call).collect::<String>();
            let catches = "(catch $e 0)".repeat(handlers);
            let locals = "i32 ".repeat(locals.max(1));
            complexity(&format!(
                "(component (core module (tag $e) (func $g) (func (local {locals}) (try_table {catches} {body}))))"
            ))
        };
        let (none, one, many) = (of(1_000, 0, 1), of(1_000, 1, 1), of(1_000, 30, 1));
        assert_eq!((none.handlers, one.handlers, many.handlers), (0, 1, 30));
        // The square of calls times handlers times what is set, and of one more.
        let square = |edges: u64| edges * edges / 1_500;
        let edges = |found: Complexity| found.function_work - none.function_work;
        assert!((square(2_000)..square(2_000) + 100).contains(&edges(one)), "{}", edges(one));
        assert!((square(60_000)..square(60_000) + 1_000).contains(&edges(many)), "{}", edges(many));
        let locals = of(1_000, 1, 100).function_work - of(1_000, 0, 100).function_work;
        assert!((square(101_000)..square(101_000) + 1_000).contains(&locals), "{locals}");
        // Those around count too, and those that are over do not.
        let nested = |body: &str| {
            let found = complexity(&format!("(component (core module (tag $e) (func $g) (func {body})))"));
            found.handlers
        };
        assert_eq!(nested("(try_table (catch $e 0) (try_table (catch $e 0) (catch_all 0) (call $g)))"), 3);
        assert_eq!(nested("(try_table (catch $e 0)) (try_table (catch_all 0) (call $g))"), 1);
        assert_eq!(nested("(call $g)"), 0);
        let deep = format!("(func {} call $g {})", "try_table (catch_all 0) ".repeat(65), "end ".repeat(65));
        let deep = wat::parse_str(format!("(component (core module (func $g) {deep}))")).unwrap();
        let error = Complexity::of(&deep, &CompileLimits::default()).unwrap_err();
        assert!(matches!(error, LoadError::TooComplex { what: "handlers", found: 65, allowed: 64 }), "{error}");
    }

    #[test]
    fn objects_are_work_and_their_types_are_items() {
        let module = |fields: &str| complexity(&format!("(component (core module {fields}))"));
        let plain = module("(type (func))").items;
        assert_eq!(module(&format!("(type (struct {}))", "(field i32)".repeat(100))).items, plain + 107);
        assert_eq!(module("(rec (type (array i8)) (type (array i16)))").items, plain + 17);
        let made = |instructions: &str| {
            let types = format!("(type $s (struct {})) (type $a (array i32))", "(field i32)".repeat(1_000));
            module(&format!("{types} (func {instructions})")).function_work
        };
        let none = made("");
        assert!((4_000..4_500).contains(&(made("(drop (struct.new_default $s))") - none)));
        let operands = "(i32.const 1)".repeat(500);
        assert!(made(&format!("(drop (array.new_fixed $a 500 {operands}))")) - none > 500 * 20);
        // In initial values, too.
        let global =
            module("(type $a (array i32)) (global (ref $a) (array.new_fixed $a 2 (i32.const 1) (i32.const 2)))");
        assert!(global.function_work > 40 * 32, "{global:?}");
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
