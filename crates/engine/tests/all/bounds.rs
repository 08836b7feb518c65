//! What is too large or too complex is refused before the compiler sees it, and what is just within is not.

use airssys_wasm_engine::{CompileLimits, Complexity, EngineConfig, LoadError, Profile, WasmEngine};
use airssys_wasm_fixtures::{C, RUST};

/// Modules in modules, functions, segments, instances, handlers and some work, a little of each.
const SOME_OF_ALL: &str = r#"(component
    (import "i" (instance (export "f" (func))))
    (component $c
        (core module $m (table 1 funcref) (memory 1) (data (i32.const 8) "data") (func $f (local i32) (loop (local.set 0 (i32.const 1)))) (func (try_table (catch_all 0) (call $f))) (elem (i32.const 0) $f))
        (core instance (instantiate $m)))
    (instance (instantiate $c))
    (instance (instantiate $c)))"#;

fn config() -> EngineConfig {
    EngineConfig::on_demand().with_exceptions().compile_in_process()
}

fn load(limits: CompileLimits, bytes: &[u8]) -> Result<(), LoadError> {
    let config = EngineConfig { compile_limits: limits, ..config() };
    WasmEngine::new(config).unwrap().load_blocking(bytes, Profile::Plain).map(|_| ())
}

#[test]
fn each_limit_refuses_what_is_one_more() {
    let bytes = wat::parse_str(SOME_OF_ALL).unwrap();
    let found = Complexity::of(&bytes, &CompileLimits::NONE).unwrap();
    let none = CompileLimits::NONE;
    type Limit = fn(u64) -> CompileLimits;
    let limits: [(&str, u64, Limit); 12] = [
        ("bytes", found.bytes, |bytes| CompileLimits { bytes, ..CompileLimits::NONE }),
        ("nesting", found.nesting.into(), |n| CompileLimits { nesting: n as u32, ..CompileLimits::NONE }),
        ("functions", found.functions, |functions| CompileLimits { functions, ..CompileLimits::NONE }),
        ("element_segments", found.element_segments, |n| CompileLimits { element_segments: n, ..CompileLimits::NONE }),
        ("imports", found.imports, |imports| CompileLimits { imports, ..CompileLimits::NONE }),
        ("items", found.items, |items| CompileLimits { items, ..CompileLimits::NONE }),
        ("modules", found.modules, |modules| CompileLimits { modules, ..CompileLimits::NONE }),
        ("image_bytes", found.image_bytes, |n| CompileLimits { image_bytes: n, ..CompileLimits::NONE }),
        ("instances", found.instances, |instances| CompileLimits { instances, ..CompileLimits::NONE }),
        ("function_work", found.function_work, |n| CompileLimits { function_work: n, ..CompileLimits::NONE }),
        ("handlers", found.handlers, |handlers| CompileLimits { handlers, ..CompileLimits::NONE }),
        ("work", found.work, |work| CompileLimits { work, ..CompileLimits::NONE }),
    ];
    load(none, &bytes).unwrap();
    for (name, needed, limit) in limits {
        assert!(needed > 0, "{name}");
        load(limit(needed), &bytes).unwrap();
        let error = load(limit(needed - 1), &bytes).unwrap_err();
        assert!(
            matches!(error, LoadError::TooComplex { what, found, allowed }
                if what == name && found == needed && allowed == needed - 1),
            "{name}: {error:?}"
        );
        assert!(error.to_string().contains(&format!("raise `CompileLimits::{name}`")), "{error}");
    }
}

#[test]
fn text_has_a_limit_of_its_own() {
    let text = "(component)";
    let load = |text_bytes| {
        let compile_limits = CompileLimits { text_bytes, ..CompileLimits::NONE };
        let engine =
            WasmEngine::new(EngineConfig { compile_limits, ..EngineConfig::on_demand().compile_in_process() }).unwrap();
        engine.load_wat_blocking(text, Profile::Plain).map(|_| ())
    };
    load(text.len() as u64).unwrap();
    let error = load(text.len() as u64 - 1).unwrap_err();
    assert!(matches!(error, LoadError::TooComplex { what: "text_bytes", .. }), "{error:?}");
}

#[test]
fn a_file_that_is_too_large_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    for (name, limit) in [("large.wasm", "bytes"), ("large.wat", "text_bytes")] {
        let path = folder.path().join(name);
        // As long as a file can be, and nowhere on the disk.
        std::fs::File::create(&path).unwrap().set_len(1 << 42).unwrap();
        let engine = WasmEngine::new(EngineConfig::on_demand().compile_in_process()).unwrap();
        let error = engine.load_file_blocking(&path, Profile::Plain).unwrap_err();
        assert!(matches!(error, LoadError::TooComplex { what, .. } if what == limit), "{error:?}");
    }
}

#[test]
fn what_toolchains_make_is_far_within_the_default_limits() {
    let limits = CompileLimits::default();
    for guest in [RUST, C] {
        let found = Complexity::of(guest, &limits).unwrap();
        assert!(found.work < limits.work / 50 && found.function_work < limits.function_work / 50, "{found:?}");
    }
}

#[test]
fn code_in_the_cache_was_within_the_limits_of_whoever_finds_it() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = wat::parse_str(SOME_OF_ALL).unwrap();
    let load = |compile_limits| {
        let code_cache = Some(folder.path().to_owned());
        let engine = WasmEngine::new(EngineConfig { code_cache, compile_limits, ..config() }).unwrap();
        engine.load_blocking(&bytes, Profile::Plain).map(|component| component.origin())
    };
    load(CompileLimits::NONE).unwrap();
    assert_eq!(load(CompileLimits::NONE).unwrap(), airssys_wasm_engine::Origin::CodeCache);
    let error = load(CompileLimits { instances: 1, ..CompileLimits::NONE }).unwrap_err();
    assert!(matches!(error, LoadError::TooComplex { what: "instances", .. }), "{error:?}");
}

#[test]
fn what_wasmtime_says_of_a_components_names_is_escaped() {
    // In the text form, and in a name that is no name.
    let engine = WasmEngine::new(EngineConfig::on_demand().compile_in_process()).unwrap();
    let text = engine.load_wat_blocking("(component \"\x1b[31m\")", Profile::Plain).unwrap_err();
    let bad_name = wat::parse_str("(component (import \"aaaaaa\" (func)))").unwrap();
    let at = bad_name.windows(6).position(|bytes| bytes == b"aaaaaa").unwrap();
    let mut bad_name = bad_name;
    bad_name[at..at + 6].copy_from_slice(b"a\x1b[31m");
    let name = engine.load_blocking(&bad_name, Profile::Plain).unwrap_err();
    for error in [text, name] {
        let shown = error.to_string();
        assert!(shown.contains(r"\u{1b}[31m") && !shown.contains('\x1b'), "{shown:?}");
        assert!(std::error::Error::source(&error).is_none(), "whose text nobody would escape");
    }
}

#[test]
fn what_becomes_large_is_counted_as_what_it_becomes() {
    let of = |module: &str| {
        let bytes = wat::parse_str(format!("(component (core module {module}))")).unwrap();
        Complexity::of(&bytes, &CompileLimits::NONE).unwrap()
    };
    // An image reaches from the first byte to the last, as long as that is not too far.
    let near = of(r#"(memory 16) (data (i32.const 0) "a") (data (i32.const 1000000) "b")"#);
    assert!((1_000_000..1_010_000).contains(&near.image_bytes), "{near:?}");
    let far = of(r#"(memory 1000) (data (i32.const 0) "a") (data (i32.const 20000000) "b")"#);
    assert_eq!(far.image_bytes, 2);
    let two = of(r#"(memory 1) (memory 1) (data (memory 0) (i32.const 9) "a") (data (memory 1) (i32.const 9) "b")"#);
    assert_eq!(two.image_bytes, 16 << 10);
    // So does a table, however it is filled.
    for table in ["(table 100000 funcref) (elem (i32.const 99999) $f)", "(table 100000 funcref (ref.func $f))"] {
        let found = of(&format!("{table} (func $f)"));
        assert!((100_000..100_010).contains(&found.items), "{table}: {found:?}");
    }
    assert!(of("(table 100000 funcref) (elem (i32.const 0) $f) (func $f)").items < 10);
    // Types in a group, and what is made for each; only once for a function that can be called from outside.
    assert!(of(&format!("(rec {})", "(type (func))".repeat(1_000))).items >= 1_000);
    let wide = of(&format!("(type (func (param {})))", "i32 ".repeat(900)));
    assert!(wide.function_work > 50_000, "{wide:?}");
    let exported = of("(func $f (export \"a\"))");
    assert_eq!(of("(func $f (export \"a\") (export \"b\"))").work, exported.work + 1);
    assert!(of("(func $f)").work < exported.work);
    // Modules and components, wherever they are.
    let nested = wat::parse_str(format!("(component {})", "(component (core module))".repeat(100))).unwrap();
    assert_eq!(Complexity::of(&nested, &CompileLimits::NONE).unwrap().modules, 201);
    // Parts of types.
    let names: String = (0..1_000).map(|i| format!("\"n{i}\" ")).collect();
    let many = wat::parse_str(format!("(component (type (enum {names})))")).unwrap();
    assert!(Complexity::of(&many, &CompileLimits::NONE).unwrap().items > 1_000);
}

#[test]
fn of_what_it_exports_the_first_are_described() {
    let name = format!("p{}", "-long-name".repeat(400));
    let exports: String = (0..5_000).map(|i| format!("(export \"e{i}\" (func $f))")).collect();
    let text = format!(
        "(component (core module $m (func (export \"f\") (param i32))) (core instance $i (instantiate $m)) \
         (func $f (param \"{name}\" u32) (canon lift (core func $i \"f\"))) {exports})"
    );
    let engine = WasmEngine::new(EngineConfig::on_demand().compile_in_process()).unwrap();
    let component = engine.load_wat_blocking(&text, Profile::Plain).unwrap();
    assert_eq!(component.exports().len(), 100);
    component.export("e4999").unwrap();
    let error = component.export("none").unwrap_err();
    assert!(error.to_string().len() < 20 << 10, "{}", error.to_string().len());
}
