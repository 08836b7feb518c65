//! Features that are switched on, engines for those who need them, and what is said of others.

use std::path::Path;

use airssys_wasm_engine::{
    EngineConfig, Feature, Features, LinkError, LoadError, LoadedComponent, Origin, Profile, WasmEngine, wasmtime,
};
use airssys_wasm_fixtures::ADD;

use crate::binary;

const ASYNC_ADD: &str = r#"(component
    (core module $m
        (import "" "return" (func $return (param i32)))
        (func (export "add") (param i32 i32) (result i32)
            (call $return (i32.add (local.get 0) (local.get 1)))
            (i32.const 0))
        (func (export "callback") (param i32 i32 i32) (result i32) unreachable))
    (core func $return (canon task.return (result s32)))
    (core instance $i (instantiate $m (with "" (instance (export "return" (func $return))))))
    (func (export "add") async (param "a" s32) (param "b" s32) (result s32)
        (canon lift (core func $i "add") async (callback (core func $i "callback")))))"#;

const ASYNC: Features = Features { component_async: true, ..Features::NONE };

fn engine(config: EngineConfig) -> WasmEngine {
    WasmEngine::new(config.compile_in_process()).unwrap()
}

fn with_async() -> WasmEngine {
    engine(EngineConfig::small().with_component_async())
}

async fn adds(component: &LoadedComponent) {
    let template = component.link(&component.linker::<()>()).unwrap();
    let mut store = wasmtime::Store::new(component.wasmtime(), ());
    store.set_epoch_deadline(1_000);
    if component.profile() == Profile::Metered {
        store.set_fuel(1_000).unwrap();
    }
    let instance = template.pre().instantiate_async(&mut store).await.unwrap();
    let add = instance.get_typed_func::<(i32, i32), (i32,)>(&mut store, "add").unwrap();
    assert_eq!(add.call_async(&mut store, (2, 3)).await.unwrap(), (5,));
}

fn lacks(error: &LoadError) -> Feature {
    match error {
        LoadError::Unsupported { feature } => *feature,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_component_that_needs_async_has_an_engine_of_its_own() {
    let engine = with_async();
    for profile in [Profile::Plain, Profile::Metered] {
        let plain = engine.load_blocking(&binary(ADD), profile).unwrap();
        let concurrent = engine.load_wat_blocking(ASYNC_ADD, profile).unwrap();
        assert_eq!((plain.features(), concurrent.features()), (Features::NONE, ASYNC));
        assert!(!wasmtime::Engine::same(plain.wasmtime(), concurrent.wasmtime()));
        assert!(wasmtime::Engine::same(plain.wasmtime(), engine.wasmtime(profile).unwrap()));
        assert!(matches!(concurrent.link(&plain.linker::<()>()), Err(LinkError::OtherEngine)));
        adds(&plain).await;
        adds(&concurrent).await;
    }
}

#[test]
fn without_the_switch_it_is_refused_and_told_why() {
    let error = engine(EngineConfig::small()).load_wat_blocking(ASYNC_ADD, Profile::Plain).unwrap_err();
    assert_eq!(lacks(&error), Feature::ComponentAsync);
    let text = error.to_string();
    assert!(text.contains("`EngineConfig::features`") && text.contains("WASI 0.2"), "{text}");
}

/// The switch of a compiler, or what to write instead.
#[test]
fn what_is_said_of_a_feature_names_the_flag() {
    for (feature, flags) in [
        (Feature::ComponentAsync, &["`EngineConfig::features`", "WASI 0.2"][..]),
        (Feature::MoreAsyncBuiltins, &["callbacks"]),
        (Feature::StackfulAsync, &["callbacks"]),
        (Feature::ComponentThreads, &["without threads"]),
        (Feature::ErrorContext, &["newer toolchain"]),
        (
            Feature::Exceptions,
            &[
                "`EngineConfig::features`",
                "`-fwasm-exceptions`",
                "`-fno-exceptions`",
                "`-Cpanic=unwind`",
                "`-Cpanic=abort`",
            ],
        ),
        (Feature::LegacyExceptions, &["`-mllvm -wasm-use-legacy-eh=false`", "`-Cllvm-args=-wasm-use-legacy-eh=false`"]),
        (Feature::GarbageCollection, &["`EngineConfig::features`", "Kotlin", "MoonBit", "`wasm-gc`"]),
        (Feature::Threads, &["`-pthread`", "`atomics`"]),
        (Feature::SharedEverythingThreads, &["`-pthread`", "`atomics`"]),
        (Feature::Memory64, &["wasm32"]),
        (Feature::ComponentMemory64, &["wasm32"]),
        (Feature::WideArithmetic, &["`wide-arithmetic`"]),
        (Feature::FixedLengthLists, &["`list<T>`"]),
        (Feature::Maps, &["`list<tuple<K, V>>`"]),
    ] {
        let text = LoadError::Unsupported { feature }.to_string();
        assert!(flags.iter().all(|flag| text.contains(flag)), "{text}");
    }
}

#[test]
fn all_that_is_async_is_seen_wherever_it_is() {
    let engine = with_async();
    let async_ones = [
        "(type (stream u8))",
        "(type (future))",
        "(type (func async))",
        "(type (instance (type (stream u8))))",
        "(component (type (component (type (func async)))))",
        r#"(import "a" (func async))"#,
        "(core func (canon backpressure.inc))",
        "(core func (canon waitable-set.new))",
        "(core func (canon subtask.drop))",
        "(core func (canon task.cancel))",
        "(core func (canon context.get i32 0))",
        "(core func (canon thread.yield))",
        "(type $s (stream u8)) (core func (canon stream.new $s))",
        r#"(import "f" (func $f async)) (core func (canon lower (func $f) async))"#,
    ];
    for fields in async_ones {
        let component = engine.load_wat_blocking(&format!("(component {fields})"), Profile::Plain).unwrap();
        assert_eq!(component.features(), ASYNC, "{fields}");
    }
    for fields in [
        "",
        "(type (list u8))",
        "(type (func))",
        r#"(type $r (resource (rep i32))) (core func (canon resource.drop $r))"#,
    ] {
        let component = engine.load_wat_blocking(&format!("(component {fields})"), Profile::Plain).unwrap();
        assert_eq!(component.features(), Features::NONE, "{fields}");
    }
}

#[test]
fn what_no_engine_has_is_named_with_and_without_the_switch() {
    for engine in [engine(EngineConfig::small()), with_async()] {
        let lacking = |fields: &str| {
            lacks(&engine.load_wat_blocking(&format!("(component {fields})"), Profile::Plain).unwrap_err())
        };
        assert_eq!(lacking("(core module (memory i64 1))"), Feature::Memory64);
        assert_eq!(lacking("(core module (memory 1 1 shared))"), Feature::Threads);
        assert_eq!(lacking("(core module (tag))"), Feature::Exceptions);
        assert_eq!(lacking("(core module (type (array i8)))"), Feature::GarbageCollection);
        assert_eq!(lacking("(core func (canon error-context.drop))"), Feature::ErrorContext);
        assert_eq!(lacking("(type (list u8 4))"), Feature::FixedLengthLists);
    }
    // Two at once: the first is named.
    let both = "(component (core module (memory i64 1)) (type (stream u8)))";
    assert_eq!(lacks(&with_async().load_wat_blocking(both, Profile::Plain).unwrap_err()), Feature::Memory64);
    // What features cannot help.
    let broken =
        engine(EngineConfig::small()).load_wat_blocking("(component (core module (func i32.add)))", Profile::Plain);
    assert!(matches!(broken, Err(LoadError::Invalid { .. })), "{broken:?}");
}

#[tokio::test]
async fn what_it_needs_is_known_of_cached_and_precompiled_code() {
    let folder = tempfile::tempdir().unwrap();
    let cached =
        |config: EngineConfig| engine(EngineConfig { code_cache: Some(Path::to_owned(folder.path())), ..config });
    for origin in [Origin::Compiled, Origin::CodeCache] {
        let component =
            cached(EngineConfig::small().with_component_async()).load_wat_blocking(ASYNC_ADD, Profile::Plain);
        let component = component.unwrap();
        assert_eq!((component.origin(), component.features()), (origin, ASYNC));
        adds(&component).await;
    }
    // Its code is there, and not for who has not switched it on.
    let refused = cached(EngineConfig::small()).load_wat_blocking(ASYNC_ADD, Profile::Plain).unwrap_err();
    assert_eq!(lacks(&refused), Feature::ComponentAsync);

    let code = with_async().precompile_blocking(&binary(ASYNC_ADD), Profile::Plain).unwrap();
    let path = folder.path().join("code");
    std::fs::write(&path, &code).unwrap();
    #[expect(unsafe_code, reason = "made a moment ago")]
    // SAFETY: made a moment ago.
    let loaded = |engine: &WasmEngine| unsafe {
        [engine.load_precompiled(&code, Profile::Plain), engine.load_precompiled_file(path.clone(), Profile::Plain)]
    };
    let engines = (with_async(), engine(EngineConfig::small()));
    for component in loaded(&engines.0) {
        let component = component.unwrap();
        assert_eq!(component.features(), ASYNC);
        adds(&component).await;
    }
    for refused in loaded(&engines.1) {
        assert!(matches!(refused, Err(LoadError::Incompatible { .. })), "{refused:?}");
    }
}

#[test]
fn async_functions_that_are_missing_are_named_beside_others() {
    let component = r#"(component
        (import "a:a/a" (instance (export "wait" (func async (param "n" u32))) (export "now" (func))))
        (import "b" (func async)))"#;
    let component = with_async().load_wat_blocking(component, Profile::Plain).unwrap();
    let Err(LinkError::Unsatisfied { imports, .. }) = component.link(&component.linker::<()>()) else { panic!() };
    let names: Vec<_> = imports.iter().map(|import| (import.name.as_str(), import.functions.len())).collect();
    assert_eq!(names, [("a:a/a", 2), ("b", 1)]);
}

const THROWS: &str = r#"(component
    (core module $m
        (tag $e (param i32))
        (func $throw (param i32) (throw $e (local.get 0)))
        (func (export "add") (param i32 i32) (result i32)
            (block $caught (result i32)
                (try_table (catch $e $caught) (call $throw (i32.add (local.get 0) (local.get 1))))
                unreachable)))
    (core instance $i (instantiate $m))
    (func (export "add") (param "a" s32) (param "b" s32) (result s32) (canon lift (core func $i "add"))))"#;

const COLLECTS: &str = r#"(component
    (core module $m
        (type $pair (struct (field i32) (field i32)))
        (func (export "add") (param i32 i32) (result i32)
            (local $pair (ref null $pair))
            (local.set $pair (struct.new $pair (local.get 0) (local.get 1)))
            (i32.add (struct.get $pair 0 (local.get $pair)) (struct.get $pair 1 (local.get $pair)))))
    (core instance $i (instantiate $m))
    (func (export "add") (param "a" s32) (param "b" s32) (result s32) (canon lift (core func $i "add"))))"#;

const EXCEPTIONS: Features = Features { exceptions: true, ..Features::NONE };
const COLLECTION: Features = Features { garbage_collection: true, ..Features::NONE };

#[tokio::test]
async fn exceptions_and_garbage_collection_have_engines_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let config = EngineConfig { code_cache: Some(Path::to_owned(folder.path())), ..EngineConfig::small() };
    let both = || engine(config.clone().with_garbage_collection());
    for profile in [Profile::Plain, Profile::Metered] {
        for origin in [Origin::Compiled, Origin::CodeCache] {
            let engine = both();
            for (text, features) in [(ADD, Features::NONE), (THROWS, EXCEPTIONS), (COLLECTS, COLLECTION)] {
                let component = engine.load_wat_blocking(text, profile).unwrap();
                assert_eq!((component.features(), component.origin()), (features, origin));
                let is_plain = wasmtime::Engine::same(component.wasmtime(), engine.wasmtime(profile).unwrap());
                assert_eq!(is_plain, features == Features::NONE);
                adds(&component).await;
            }
        }
    }
    // Exceptions alone, and neither.
    let some = engine(config.clone().with_exceptions());
    adds(&some.load_wat_blocking(THROWS, Profile::Plain).unwrap()).await;
    let error = some.load_wat_blocking(COLLECTS, Profile::Plain).unwrap_err();
    assert_eq!(lacks(&error), Feature::GarbageCollection);
    assert!(error.to_string().contains("`EngineConfig::features`"), "{error}");
    let error = engine(config).load_wat_blocking(THROWS, Profile::Plain).unwrap_err();
    assert_eq!(lacks(&error), Feature::Exceptions);
}

/// What a component needs is found before it is compiled: all of it, or it is refused as invalid, and no more, or it is
/// slower than it could be.
#[test]
fn what_exceptions_and_garbage_collection_are_in_is_seen_wherever_it_is() {
    let engine = engine(EngineConfig::small().with_garbage_collection().with_component_async());
    let found = |fields: &str| {
        let component = engine.load_wat_blocking(&format!("(component {fields})"), Profile::Plain);
        component.unwrap_or_else(|error| panic!("{fields}: {error}")).features()
    };
    for module in [
        "(tag)",
        "(type (func (param exnref)))",
        "(func (local exnref))",
        "(table 1 exnref)",
        "(global exnref (ref.null exn))",
        "(global i32 (i32.const 0)) (func (drop (ref.null exn)))",
        "(func (try_table))",
        "(func (param exnref) (throw_ref (local.get 0)))",
        r#"(import "" "" (tag))"#,
        r#"(import "" "" (global exnref))"#,
        "(func (block (result exnref) unreachable) drop)",
        "(elem exnref)",
    ] {
        assert_eq!(found(&format!("(core module {module})")), EXCEPTIONS, "{module}");
    }
    for module in [
        "(type (struct))",
        "(type (array i8))",
        "(type (sub (func)))",
        "(rec (type (func)))",
        "(rec)",
        "(func (param externref))",
        "(func (local anyref))",
        "(func (drop (ref.null none)))",
        "(func (drop (ref.null nofunc)))",
        "(table 1 i31ref)",
        "(table 1 funcref (ref.null nofunc))",
        "(elem i31ref)",
        "(global eqref (ref.null eq))",
        "(func (param funcref) (drop (ref.test nullfuncref (local.get 0))))",
        "(func (result i32) (i31.get_s (ref.i31 (i32.const 0))))",
        "(func (block (result anyref) unreachable) drop)",
        "(func unreachable (select (result anyref)) drop)",
        r#"(import "" "" (global externref))"#,
        r#"(import "" "" (table 1 externref))"#,
    ] {
        assert_eq!(found(&format!("(core module {module})")), COLLECTION, "{module}");
    }
    for types in [
        "(core type (struct))",
        r#"(core type (module (import "" "" (table 1 anyref))))"#,
        "(core type (module (type (array i8))))",
        "(type (component (core type (module (type (struct))))))",
    ] {
        assert_eq!(found(types), COLLECTION, "{types}");
    }
    let both = "(core module (tag) (type (struct))) (type (stream u8))";
    assert_eq!(found(both), Features::ALL);
    for plain in [
        "(core module (func (param funcref) (drop (ref.is_null (local.get 0)))))",
        "(core module (type $f (func)) (func (param (ref $f)) (call_ref $f (local.get 0))))",
        "(core module (table 1 funcref (ref.null func)))",
        r#"(core type (module (import "" "" (func))))"#,
    ] {
        assert_eq!(found(plain), Features::NONE, "{plain}");
    }
}
