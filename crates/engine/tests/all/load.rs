//! From bytes, text, files and precompiled code to a component, and what is refused.

use std::time::Duration;

use airssys_wasm_engine::{
    Allocation, EngineConfig, EngineError, Feature, LoadError, Origin, PoolConfig, Profile, Ticking, WasmEngine,
};
use airssys_wasm_fixtures::{ADD, MINIMAL, with_instances};

use crate::{binary, engine};

#[test]
fn the_same_bytes_are_compiled_once() {
    let engine = engine();
    let first = engine.load_blocking(&binary(ADD), Profile::Plain).unwrap();
    let second = engine.clone().load_blocking(&binary(ADD), Profile::Plain).unwrap();
    assert!(first.same(&second));
    let other = engine.load_blocking(&binary(MINIMAL), Profile::Plain).unwrap();
    assert!(!first.same(&other));
}

#[test]
fn threads_that_load_the_same_bytes_share_one_compilation() {
    let engine = engine();
    let bytes = binary(ADD);
    let barrier = std::sync::Barrier::new(4);
    let loaded: Vec<_> = std::thread::scope(|scope| {
        let load = || {
            barrier.wait();
            engine.load_blocking(&bytes, Profile::Plain).unwrap()
        };
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(load)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(loaded.iter().all(|one| one.same(&loaded[0])));
}

#[tokio::test]
async fn loading_is_async_for_small_and_large_components() {
    let engine = engine();
    let small = engine.load(binary(ADD), Profile::Plain).await.unwrap();
    assert!(small.same(&engine.load(binary(ADD), Profile::Plain).await.unwrap()));
    let large = binary(&airssys_wasm_fixtures::with_code(100_000));
    assert!(large.len() > 64 << 10);
    let first = engine.load(large.clone(), Profile::Plain).await.unwrap();
    assert!(first.same(&engine.load(large, Profile::Plain).await.unwrap()));
}

#[tokio::test]
async fn files_hold_binary_or_text() {
    let folder = tempfile::tempdir().unwrap();
    let engine = engine();
    let (text, bytes) = (folder.path().join("add.wat"), folder.path().join("add.wasm"));
    std::fs::write(&text, ADD).unwrap();
    std::fs::write(&bytes, binary(ADD)).unwrap();
    let from_text = engine.load_file(text, Profile::Plain).await.unwrap();
    let from_bytes = engine.load_file_blocking(bytes, Profile::Plain).unwrap();
    assert_eq!(from_text.exports(), from_bytes.exports());

    let missing = engine.load_file_blocking(folder.path().join("none.wasm"), Profile::Plain).unwrap_err();
    assert!(matches!(missing, LoadError::File { .. }), "{missing:?}");
    let damaged = folder.path().join("damaged.wat");
    std::fs::write(&damaged, "(component").unwrap();
    let damaged = engine.load_file(damaged, Profile::Plain).await.unwrap_err();
    assert!(matches!(damaged, LoadError::Text { .. }), "{damaged:?}");
}

#[test]
fn metered_code_is_made_only_for_those_who_ask() {
    let engine = engine();
    let plain = engine.load_wat_blocking(ADD, Profile::Plain).unwrap();
    let metered = engine.load_wat_blocking(ADD, Profile::Metered).unwrap();
    assert_eq!((plain.profile(), metered.profile()), (Profile::Plain, Profile::Metered));
    assert!(!plain.wasmtime().get_consume_fuel());
    assert!(metered.wasmtime().get_consume_fuel());
}

#[test]
fn a_component_that_does_not_fit_the_pool_gets_its_instances_on_demand() {
    let engine = engine();
    let fits = engine.load_wat_blocking(&with_instances(8), Profile::Plain).unwrap();
    assert_eq!(fits.allocation(), Allocation::Pooled);
    let too_many = engine.load_wat_blocking(&with_instances(9), Profile::Plain).unwrap();
    assert_eq!(too_many.allocation(), Allocation::OnDemand);
    let linked = too_many.link(&too_many.linker::<()>()).unwrap();
    let mut store = airssys_wasm_engine::wasmtime::Store::new(too_many.wasmtime(), ());
    store.set_epoch_deadline(1);
    linked.pre().instantiate(&mut store).unwrap();
}

#[test]
fn without_a_pool_everything_is_on_demand() {
    let engine = WasmEngine::new(EngineConfig::on_demand().compile_in_process()).unwrap();
    let component = engine.load_wat_blocking(ADD, Profile::Plain).unwrap();
    assert_eq!(component.allocation(), Allocation::OnDemand);
}

#[test]
fn a_pool_that_the_system_cannot_give_is_refused() {
    let mut config = EngineConfig::small().compile_in_process();
    // 256 TiB of address space.
    let mut pool = PoolConfig::for_components(16);
    pool.core_instances = 60_000;
    config.pool = Some(pool);
    let error = WasmEngine::new(config).unwrap_err();
    assert!(matches!(error, EngineError::Wasmtime { .. }), "{error:?}");
    assert!(error.to_string().contains("smaller pool"));
}

#[test]
fn what_is_not_a_component_is_refused_with_its_reason() {
    let engine = engine();
    let load = |bytes: &[u8]| engine.load_blocking(bytes, Profile::Plain).unwrap_err();
    let component = binary(ADD);

    for bytes in [b"".as_slice(), b"\0as", b"#!/bin/sh", ADD.as_bytes()] {
        let error = load(bytes);
        assert!(matches!(&error, LoadError::NotWasm { start } if bytes.starts_with(start)), "{error:?}");
    }
    let core = load(&wat::parse_str("(module)").unwrap());
    assert!(matches!(core, LoadError::CoreModule), "{core:?}");
    assert!(core.to_string().contains("wasm-tools component new"));
    for len in [4, 6, 8 + 1, component.len() / 2, component.len() - 1] {
        let error = load(&component[..len]);
        assert!(matches!(error, LoadError::Invalid { .. }), "{len} bytes: {error:?}");
    }
    let wide = load(&wat::parse_str("(component (core module (memory i64 1)))").unwrap());
    assert!(matches!(wide, LoadError::Unsupported { feature: Feature::Memory64 }), "{wide:?}");
    // Damage that keeps the header: each either fails as invalid or leaves a valid component.
    for at in 8..component.len() {
        let mut damaged = component.clone();
        damaged[at] ^= 0x55;
        if let Err(error) = engine.load_blocking(&damaged, Profile::Plain) {
            assert!(matches!(error, LoadError::Invalid { .. } | LoadError::Unsupported { .. }), "byte {at}: {error:?}");
        }
    }
}

#[test]
#[expect(unsafe_code, reason = "precompiled code is trusted; these bytes were compiled here")]
fn precompiled_code_is_loaded_from_bytes_and_by_path() {
    let engine = engine();
    let code = engine.precompile_blocking(&binary(ADD), Profile::Plain).unwrap();
    // SAFETY: compiled above.
    let from_bytes = unsafe { engine.load_precompiled(&code, Profile::Plain) }.unwrap();
    assert_eq!(from_bytes.origin(), Origin::Precompiled);
    // SAFETY: compiled above.
    assert!(from_bytes.same(&unsafe { engine.load_precompiled(&code, Profile::Plain) }.unwrap()));

    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &code).unwrap();
    // SAFETY: compiled above, and nobody else knows the file.
    let by_path = unsafe { engine.load_precompiled_file(file.path(), Profile::Plain) }.unwrap();
    assert_eq!(by_path.exports(), from_bytes.exports());

    // The same code serves an engine without a pool.
    let on_demand = WasmEngine::new(EngineConfig::on_demand().compile_in_process()).unwrap();
    // SAFETY: compiled above.
    unsafe { on_demand.load_precompiled(&code, Profile::Plain) }.unwrap();
}

#[test]
#[expect(unsafe_code, reason = "what is refused here is never run")]
fn code_of_another_engine_is_refused() {
    let engine = engine();
    let code = engine.precompile_blocking(&binary(ADD), Profile::Plain).unwrap();
    // SAFETY: refused by the checks on the header, of which this is the test.
    let load = |code: &[u8], profile| unsafe { engine.load_precompiled(code, profile) }.unwrap_err();
    assert!(matches!(load(&code, Profile::Metered), LoadError::Incompatible { profile: Profile::Metered, .. }));
    assert!(matches!(load(b"nonsense", Profile::Plain), LoadError::Incompatible { .. }));
    assert!(matches!(load(&binary(ADD), Profile::Plain), LoadError::Incompatible { .. }));
    // SAFETY: there is no such file.
    let missing = unsafe { engine.load_precompiled_file("/nonexistent.cwasm", Profile::Plain) }.unwrap_err();
    assert!(matches!(missing, LoadError::File { .. }));
    assert!(matches!(engine.precompile_blocking(b"nonsense", Profile::Plain), Err(LoadError::NotWasm { .. })));
}

#[test]
fn what_is_found_out_about_a_component_is_found_out_once() {
    let engine = engine();
    let component = engine.load_wat_blocking(ADD, Profile::Plain).unwrap();
    let exports = component.memo(|component| component.exports());
    assert_eq!(exports.len(), 1);
    let again: std::sync::Arc<Vec<String>> = engine
        .load_wat_blocking(ADD, Profile::Plain)
        .unwrap()
        .memo(|_| panic!("it is known, and the same bytes are the same component"));
    assert!(std::sync::Arc::ptr_eq(&exports, &again));
    // There is room for one: another is right, and not kept.
    for n in [1_u8, 2] {
        assert_eq!(*component.memo(|_| n), n);
    }
    let another = engine.load_wat_blocking(MINIMAL, Profile::Plain).unwrap();
    assert_eq!(another.memo(|component| component.imports()).len(), 0);
}

#[test]
fn a_period_that_keeps_a_core_busy_is_refused() {
    for (period, refused) in [(0, true), (9, true), (10, false)] {
        let ticking = Ticking::Every(Duration::from_micros(period));
        let engine = WasmEngine::new(EngineConfig { ticking, ..EngineConfig::on_demand().compile_in_process() });
        assert_eq!(matches!(engine, Err(EngineError::Ticking { .. })), refused, "{period}");
    }
}
