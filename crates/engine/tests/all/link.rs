//! Imports and exports.

use airssys_wasm_engine::{
    CompileLimits, EngineConfig, ExportError, Imported, LinkError, LoadError, Profile, WASI_P3_VERSION, WASI_VERSION,
    WasmEngine, add_bare_wasi,
    wasmtime::{self, Store},
    wasmtime_wasi,
};
use airssys_wasm_fixtures::{ADD, C, HOST_CALLS, RUST};

use crate::{binary, engine};

#[test]
fn missing_imports_are_named_with_their_types() {
    let engine = engine();
    let component = engine.load_blocking(RUST, Profile::Plain).unwrap();
    let error = component.link(&component.linker::<()>()).unwrap_err();
    let LinkError::Unsatisfied { imports, .. } = &error else { panic!("{error:?}") };
    assert_eq!(imports.len(), 1);
    assert_eq!(imports[0].name, "fixture:guest/host@1.0.0");
    assert_eq!(imports[0].functions, ["wait: func()", "log: func(line: string)"]);
    assert_eq!(
        error.to_string(),
        "the component imports what the linker does not offer\n  `fixture:guest/host@1.0.0` (wait: func(); log: \
         func(line: string)): define it in the linker, or leave it out of the component"
    );
}

#[test]
fn only_what_is_missing_is_named() {
    let engine = engine();
    let component = engine.load_wat_blocking(HOST_CALLS, Profile::Plain).unwrap();
    let mut linker = component.linker::<()>();
    for name in ["wait", "fail", "panic"] {
        linker.root().func_wrap(name, |_, (): ()| Ok(())).unwrap();
    }
    // Of the wrong type: the component wants a `u32` back.
    linker.root().func_wrap("step", |_, (): ()| Ok(())).unwrap();
    let error = component.link(&linker).unwrap_err();
    let LinkError::Unsatisfied { imports, .. } = &error else { panic!("{error:?}") };
    let named: Vec<_> = imports.iter().map(|import| (import.name.as_str(), import.functions.len())).collect();
    assert_eq!(named, [("step", 0), ("take", 1)]);
    assert_eq!(imports[1].functions, ["take: func(bytes: list<u8>)"]);
}

/// Imports what a first build of JavaScript does: WASI's streams and errors, and HTTP that takes resources of both.
const HTTP: &str = r#"(component
  (import "wasi:io/error@0.2.10" (instance $error
    (export "error" (type (sub resource)))
    (export "[method]error.to-debug-string" (func (param "self" (borrow 0)) (result string)))))
  (alias export $error "error" (type $e))
  (import "wasi:io/poll@0.2.10" (instance $poll (export "pollable" (type (sub resource)))))
  (alias export $poll "pollable" (type $p))
  (import "wasi:io/streams@0.2.10" (instance $streams
    (export "output-stream" (type (sub resource)))
    (alias outer 1 $p (type $p))
    (export "pollable" (type $pollable (eq $p)))
    (export "[method]output-stream.subscribe"
      (func (param "self" (borrow 0)) (result (own $pollable))))))
  (alias export $streams "output-stream" (type $o))
  (import "wasi:http/types@0.2.10" (instance
    (alias outer 1 $e (type $e))
    (export "io-error" (type $error (eq $e)))
    (alias outer 1 $o (type $o))
    (export "output-stream" (type $out (eq $o)))
    (export "http-error-code" (func (param "err" (borrow $error)) (result bool)))
    (export "write" (func (result (own $out))))))
  (import "wasi:http/outgoing-handler@0.2.10" (instance (export "handle" (func)))))"#;

struct View;

impl wasmtime_wasi::WasiView for View {
    fn ctx(&mut self) -> wasmtime_wasi::WasiCtxView<'_> {
        unreachable!("nothing is called")
    }
}

/// What a component is told that is linked with WASI alone.
fn told(text: &str) -> (Vec<(String, Option<String>)>, String) {
    told_by(&engine(), text)
}

fn told_by(engine: &WasmEngine, text: &str) -> (Vec<(String, Option<String>)>, String) {
    let component = engine.load_wat_blocking(text, Profile::Plain).unwrap();
    let mut linker = component.linker::<View>();
    add_bare_wasi(&mut linker).unwrap();
    let error = component.link(&linker).unwrap_err();
    let LinkError::Unsatisfied { imports, .. } = &error else { panic!("{error:?}") };
    (imports.iter().map(|import| (import.name.clone(), import.offered.clone())).collect(), error.to_string())
}

#[test]
fn what_is_there_is_not_named_where_http_alone_is_missing() {
    let (imports, text) = told(HTTP);
    let names: Vec<_> = imports.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["wasi:http/types@0.2.10", "wasi:http/outgoing-handler@0.2.10"], "{text}");
    assert_eq!(text.lines().count(), 3, "{text}");
    for line in text.lines().skip(1) {
        assert!(line.contains("by `airssys_wasm_http::add_http`") && line.contains("--disable http"), "{text}");
    }
}

/// What a component is told whose import has no such function, or one of another type, though an embedder has added it.
#[test]
fn what_an_embedder_has_added_is_not_to_be_added() {
    let engine = engine();
    for (name, newer) in [
        ("wasi:http/types@0.2.12", false),
        ("wasi:http/types@0.2.5", false),
        ("wasi:http/types@0.2.99", true),
        ("wasi:keyvalue/store@0.2.0-draft", false),
        ("wasi:config/store@0.2.0-rc.1", false),
    ] {
        let told = |function: &str| {
            let text = format!("(component (import \"{name}\" (instance (export \"{function}\" (func)))))");
            let component = engine.load_wat_blocking(&text, Profile::Plain).unwrap();
            let mut linker = component.linker::<()>();
            let defined = if name.contains("http") { "wasi:http/types@0.2.12" } else { name };
            linker.instance(defined).unwrap().func_wrap("there", |_, (_,): (u32,)| Ok(())).unwrap();
            component.link(&linker).unwrap_err().to_string()
        };
        let (missing, mistyped) = (told("nowhere"), told("there"));
        assert!(missing.contains("(nowhere: func())") && !missing.contains("embedder adds"), "{missing}");
        assert_eq!(missing.contains("newer than WASI 0.2.12"), newer, "{missing}");
        assert_eq!(missing.contains("the host does not offer it"), !newer, "{missing}");
        assert_eq!(mistyped.contains("newer than WASI 0.2.12"), newer, "{mistyped}");
        assert_eq!(mistyped.contains("the linker has it with another type"), !newer, "{mistyped}");
    }
}

#[test]
fn an_interface_of_types_alone_is_not_taken_for_one_of_another_type() {
    for name in ["a:b/c@1.0.0", "wasi:io/poll@0.2.0", "wasi:http/types@0.2.0", "wasi:other/thing@0.2.0"] {
        let component = engine()
            .load_wat_blocking(
                &format!(r#"(component (import "{name}" (instance (export "r" (type (sub resource))))))"#),
                Profile::Plain,
            )
            .unwrap();
        let error = component.link(&component.linker::<()>()).unwrap_err();
        let LinkError::Unsatisfied { imports, .. } = &error else { panic!("{error:?}") };
        assert!(!imports[0].is_defined && !error.to_string().contains("another type"), "{error}");
    }
}

#[test]
fn versions_of_wasi_are_told_apart() {
    for (import, offered, said) in [
        (
            r#""wasi:cli/environment@0.2.99" (instance (export "fancy" (func)))"#,
            Some(format!("wasi:cli/environment@{WASI_VERSION}")),
            "(fancy: func()): newer than WASI 0.2.12",
        ),
        (r#""wasi:cli/environment@0.1.0" (instance (export "now" (func)))"#, None, "the host offers WASI 0.2, up to"),
        (
            r#""wasi:clocks/system-clock@0.3.0-rc-2026-03-15" (instance (export "now" (func)))"#,
            None,
            "built for a draft of WASI 0.3; build it for 0.3.0",
        ),
        (
            r#""wasi:keyvalue/store@0.2.0-draft2" (instance (export "open" (func)))"#,
            None,
            "an embedder adds `wasi:keyvalue@0.2.0-draft`, and no other version, by `airssys_wasm_isolation::add_keyvalue`",
        ),
        (
            r#""wasi:config/store@0.2.0-rc.1" (instance (export "get" (func)))"#,
            None,
            "an embedder adds `wasi:config@0.2.0-rc.1`, and no other version, by `airssys_wasm_isolation::add_config`",
        ),
        (r#""wasi:other/thing@0.2.0" (instance (export "open" (func)))"#, None, "the host does not offer it"),
        (
            r#""wasi:keyvalue/watcher@0.2.0-draft" (instance (export "on-set" (func)))"#,
            None,
            "the host does not offer it; an embedder can define it",
        ),
        (r#""wasi:cli/new@0.2.99" (instance (export "now" (func)))"#, None, "newer than WASI 0.2.12"),
        (r#""wasi:cli/new@0.2.12" (instance (export "now" (func)))"#, None, "the host does not offer it"),
        (
            r#""wasi:http/incoming-handler@0.2.0" (instance (export "handle" (func)))"#,
            None,
            "the host does not offer it",
        ),
        (r#""wasi:http/types@0.2.99" (instance (export "f" (func)))"#, None, "`airssys_wasm_http::add_http`"),
        (
            r#""wasi:cli/environment@0.2.0" (instance (export "get-arguments" (func)))"#,
            Some(format!("wasi:cli/environment@{WASI_VERSION}")),
            "the linker has it with another type",
        ),
    ] {
        let (imports, text) = told(&format!("(component (import {import}))"));
        assert_eq!((imports.len(), imports[0].1.as_ref()), (1, offered.as_ref()), "{text}");
        assert!(text.contains(said), "{text}");
    }
}

#[test]
fn versions_of_wasi_0_3_are_told_apart() {
    let config = EngineConfig::small().with_component_async().compile_in_process();
    let engine = WasmEngine::new(config).unwrap();
    let clock = format!("wasi:clocks/system-clock@{WASI_P3_VERSION}");
    for (import, offered, said) in [
        (
            r#""wasi:clocks/system-clock@0.3.9" (instance (export "fancy" (func)))"#,
            Some(&clock),
            "(fancy: func()): newer than WASI 0.3.0",
        ),
        (
            r#""wasi:clocks/system-clock@0.3.0" (instance (export "now" (func)))"#,
            None,
            "the linker has it with another type",
        ),
        (r#""wasi:clocks/timezone@0.3.0" (instance (export "id" (func)))"#, None, "the host does not offer it"),
        (
            r#""wasi:http/client@0.3.0" (instance (export "send" (func)))"#,
            None,
            "an embedder adds it by `airssys_wasm_http::add_http`",
        ),
        (r#""wasi:clocks/new@0.3.9" (instance (export "now" (func)))"#, None, "newer than WASI 0.3.0"),
    ] {
        let (imports, text) = told_by(&engine, &format!("(component (import {import}))"));
        assert_eq!((imports.len(), imports[0].1.as_ref()), (1, offered), "{text}");
        assert!(text.contains(said), "{text}");
    }
    // Nothing in it is async, and WASI 0.3 is there for components with async only.
    let seed = r#"(component (import "wasi:random/random@0.3.0" (instance
        (export "get-random-u64" (func (result u64))))))"#;
    let component = engine.load_wat_blocking(seed, Profile::Plain).unwrap();
    assert!(component.features().component_async);
    let mut linker = component.linker::<View>();
    add_bare_wasi(&mut linker).unwrap();
    component.link(&linker).unwrap();
    let error = self::engine().load_wat_blocking(seed, Profile::Plain).unwrap_err();
    assert!(matches!(error, LoadError::Unsupported { .. }), "{error}");
}

#[test]
fn a_compatible_version_satisfies_an_import() {
    let engine = engine();
    let component = engine.load_blocking(RUST, Profile::Plain).unwrap();
    let mut linker = component.linker::<()>();
    let mut host = linker.instance("fixture:guest/host@1.2.0").unwrap();
    host.func_wrap("wait", |_, (): ()| Ok(())).unwrap();
    host.func_wrap("log", |_, (_,): (String,)| Ok(())).unwrap();
    component.link(&linker).unwrap();
}

#[test]
fn a_linker_of_another_engine_is_refused() {
    let (engine, other) = (engine(), engine());
    let component = engine.load_wat_blocking(ADD, Profile::Plain).unwrap();
    let foreign = other.load_wat_blocking(ADD, Profile::Plain).unwrap().linker::<()>();
    assert!(matches!(component.link(&foreign), Err(LinkError::OtherEngine)));
    let metered = engine.load_wat_blocking(ADD, Profile::Metered).unwrap().linker::<()>();
    assert!(matches!(component.link(&metered), Err(LinkError::OtherEngine)));
}

#[test]
fn a_missing_export_lists_what_there_is() {
    let component = engine().load_blocking(RUST, Profile::Plain).unwrap();
    let error = component.export("fixture:guest/api@1.0.0#no-such").unwrap_err();
    let ExportError::Missing { name, available } = &error else { panic!("{error:?}") };
    assert_eq!(name, "fixture:guest/api@1.0.0#no-such");
    let wanted = [
        "fixture:guest/api@1.0.0#echo: func(bytes: list<u8>) -> list<u8>",
        "fixture:guest/api@1.0.0#parse: func(text: string) -> result<u32, string>",
    ];
    assert!(wanted.iter().all(|wanted| available.iter().any(|one| one == wanted)), "{available:#?}");
    assert!(component.export("fixture:guest/api@1.0.0").is_err(), "an interface is not a function");
    let found = component.export("fixture:guest/api@1.0.0#echo").unwrap();
    assert_eq!(found.ty(), wanted[0]);
}

#[test]
fn types_are_written_as_wit_does() {
    let component = engine().load_blocking(RUST, Profile::Plain).unwrap();
    let shift = component.export("fixture:guest/api@1.0.0#shift").unwrap();
    let point = "record { x: s32, y: s32, label: option<string> }";
    let shape = format!("variant {{ dot({point}), line(tuple<{point}, {point}>), nothing }}");
    assert_eq!(shift.ty(), format!("fixture:guest/api@1.0.0#shift: func(shape: {shape}) -> {shape}"));
}

#[test]
fn imports_of_functions_are_told_from_none() {
    let engine = engine();
    assert!(!engine.load_wat_blocking(ADD, Profile::Plain).unwrap().imports_functions());
    assert!(engine.load_wat_blocking(HOST_CALLS, Profile::Plain).unwrap().imports_functions());
    assert!(engine.load_blocking(C, Profile::Plain).unwrap().imports_functions());
    let nested = r#"(component (import "outer" (instance (export "inner" (instance (export "f" (func)))))))"#;
    assert!(engine.load_wat_blocking(nested, Profile::Plain).unwrap().imports_functions());
    let types_only =
        r#"(component (type $u u32) (import "types" (instance (type $t u32) (export "t" (type (eq $t))))))"#;
    assert!(!engine.load_wat_blocking(types_only, Profile::Plain).unwrap().imports_functions());
}

#[tokio::test]
async fn wasi_goes_with_any_view() {
    struct View(wasmtime_wasi::WasiCtx, wasmtime_wasi::ResourceTable);
    impl wasmtime_wasi::WasiView for View {
        fn ctx(&mut self) -> wasmtime_wasi::WasiCtxView<'_> {
            wasmtime_wasi::WasiCtxView { ctx: &mut self.0, table: &mut self.1 }
        }
    }
    let engine = WasmEngine::new(EngineConfig::small().compile_in_process()).unwrap();
    let component = engine.load_blocking(C, Profile::Plain).unwrap();
    let mut linker = component.linker();
    add_bare_wasi(&mut linker).unwrap();
    let template = component.link(&linker).unwrap();
    let view = View(wasmtime_wasi::WasiCtx::builder().build(), wasmtime_wasi::ResourceTable::new());
    let mut store = Store::new(component.wasmtime(), view);
    store.set_epoch_deadline(1_000);
    let instance = template.pre().instantiate_async(&mut store).await.unwrap();
    let run = template.loaded().export("wasi:cli/run@0.2.6#run").or_else(|_| {
        let name = template.loaded().exports().into_iter().find(|name| name.starts_with("wasi:cli/run")).unwrap();
        template.loaded().export(name.split(": func").next().unwrap())
    });
    let run = instance.get_typed_func::<(), (Result<(), ()>,)>(&mut store, run.unwrap().index()).unwrap();
    assert_eq!(run.call_async(&mut store, ()).await.unwrap(), (Ok(()),));
}

#[test]
fn a_module_that_is_imported_is_instantiated_where_its_cost_was_said() {
    let component = binary(
        r#"(component
            (import "m" (core module $m (export "seven" (func (result i32)))))
            (core instance $i (instantiate $m))
            (func (export "seven") (result u32) (canon lift (core func $i "seven"))))"#,
    );
    let load = |imported| {
        let compile_limits = CompileLimits { imported, ..CompileLimits::default() };
        let config = EngineConfig { compile_limits, ..EngineConfig::small().compile_in_process() };
        WasmEngine::new(config).unwrap().load_blocking(&component, Profile::Plain)
    };
    assert!(matches!(load(None), Err(LoadError::UnknownInstance { what: "core modules" })));
    let component = load(Some(Imported { items: 100, instances: 0 })).unwrap();
    let module = r#"(module (func (export "seven") (result i32) (i32.const 7)))"#;
    let module = wasmtime::Module::new(component.wasmtime(), wat::parse_str(module).unwrap()).unwrap();
    let mut linker = component.linker::<()>();
    linker.root().module("m", &module).unwrap();
    let template = component.link(&linker).unwrap();
    let mut store = Store::new(component.wasmtime(), ());
    store.set_epoch_deadline(1_000);
    let instance = template.pre().instantiate(&mut store).unwrap();
    let seven = instance.get_typed_func::<(), (u32,)>(&mut store, "seven").unwrap();
    assert_eq!(seven.call(&mut store, ()).unwrap(), (7,));
}
