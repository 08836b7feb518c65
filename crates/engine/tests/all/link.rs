//! Imports and exports.

use airssys_wasm_engine::{
    EngineConfig, ExportError, LinkError, Profile, WasmEngine, add_bare_wasi, wasmtime::Store, wasmtime_wasi,
};
use airssys_wasm_fixtures::{ADD, C, HOST_CALLS, RUST};

use crate::engine;

#[test]
fn missing_imports_are_named_with_their_types() {
    let engine = engine();
    let component = engine.load_blocking(RUST, Profile::Plain).unwrap();
    let error = component.link(&component.linker::<()>()).unwrap_err();
    let LinkError::Unsatisfied { imports, .. } = &error else { panic!("{error:?}") };
    assert_eq!(imports.len(), 1);
    assert_eq!(imports[0].name, "fixture:guest/host@1.0.0");
    assert_eq!(imports[0].functions, ["wait: func()", "log: func(line: string)"]);
    assert!(error.to_string().contains("`fixture:guest/host@1.0.0` (wait: func(); log: func(line: string))"));
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
