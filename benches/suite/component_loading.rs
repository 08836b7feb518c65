//! Component loading: engines, compiling, the caches, and a function called from scratch.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use crate::guests;
use airssys_wasm_engine::{EngineConfig, Origin, Profile, WasmEngine};
use airssys_wasm_fixtures::{ADD, C, MINIMAL, with_code};
use airssys_wasm_harness::{Measure, Suite, now, timed, timed_async};
use airssys_wasm_isolation::{SandboxSpec, add_wasi};
use airssys_wasm_twins::bare::{self, binary, config, engine};
use wasmtime::{
    Cache, CacheConfig, Config, Engine, Store,
    component::{Component, Linker},
};

pub(crate) fn describe(suite: &mut Suite) {
    engines(suite);
    loading(suite);
    caches(suite);
    precompiled(suite);
    execute_function(suite);
}

/// Times making things; dropping them is left out.
fn made<R: 'static>(mut make: impl FnMut() -> R + 'static) -> Measure {
    Box::new(move |iterations| {
        let mut taken = Duration::ZERO;
        for _ in 0..iterations {
            let started = Instant::now();
            let thing = std::hint::black_box(make());
            taken += started.elapsed();
            drop(thing);
        }
        taken
    })
}

fn engines(suite: &mut Suite) {
    suite
        .bench("engine_creation", || made(|| WasmEngine::new(EngineConfig::default().compile_in_process()).unwrap()))
        .twin("raw", 1.1, || {
            let config = config();
            made(move || Engine::new(&config).unwrap())
        });
    suite.bench("engine_clone", || timed(|| engine().clone())).target("goal", Duration::from_nanos(20));
    suite
        .bench("engine_first_load", || {
            let bytes = binary(MINIMAL);
            made(move || {
                let engine = WasmEngine::new(EngineConfig::default().compile_in_process()).unwrap();
                engine.load_blocking(&bytes, Profile::Plain).unwrap()
            })
        })
        .twin("raw", None, || {
            let (bytes, config) = (binary(MINIMAL), config());
            made(move || Component::new(&Engine::new(&config).unwrap(), &bytes).unwrap())
        });
}

fn loading(suite: &mut Suite) {
    // A component is forgotten with its last handle, so each iteration compiles.
    let load = |bytes: Vec<u8>| {
        move || {
            let component = engine().load_blocking(&bytes, Profile::Plain).unwrap();
            assert_eq!(component.origin(), Origin::Compiled);
            component.link(&component.linker::<()>()).unwrap()
        }
    };
    suite
        .bench("load_component", move || made(load(binary(MINIMAL))))
        .twin("raw", 1.1, || {
            let bytes = binary(MINIMAL);
            let engine = engine().wasmtime(Profile::Plain).unwrap();
            made(move || {
                let component = Component::new(engine, &bytes).unwrap();
                Linker::<()>::new(engine).instantiate_pre(&component).unwrap()
            })
        })
        .and("load_component/async", || {
            timed_async(binary(MINIMAL), async |bytes| {
                let component = engine().load(bytes.clone(), Profile::Plain).await.unwrap();
                component.link(&component.linker::<()>()).unwrap()
            })
        })
        .and("load_component/in_a_process", || {
            let (bytes, engine) = (binary(MINIMAL), WasmEngine::new(EngineConfig::default()).unwrap());
            Box::new(move |iterations| {
                let mut taken = Duration::ZERO;
                for _ in 0..iterations {
                    // Until the next process waits: what a load takes is measured, and not how many there can be.
                    std::thread::sleep(Duration::from_millis(20));
                    let started = Instant::now();
                    let component = engine.load_blocking(&bytes, Profile::Plain).unwrap();
                    let linked = component.link(&component.linker::<()>()).unwrap();
                    taken += started.elapsed();
                    drop(linked);
                }
                taken
            })
        })
        .difference("load_component/process_overhead", "load_component/in_a_process", "load_component", ("goal", 3e6))
        .and("load_component/same_bytes", || {
            // Other bytes than those of the benchmark above, which must not find them loaded.
            let bytes = binary(ADD);
            let held = engine().load_blocking(&bytes, Profile::Plain).unwrap();
            timed(move || {
                let component = engine().load_blocking(&bytes, Profile::Plain).unwrap();
                assert!(component.same(&held));
                component
            })
        })
        // Fifty times faster.
        .ratio("load_component/same_bytes", "load_component", 0.02)
        .target("guide", Duration::from_millis(10));
}

/// The next process finds code on disk: ours maps it, wasmtime's own decompresses and copies.
fn caches(suite: &mut Suite) {
    type Bytes = fn() -> Vec<u8>;
    let large: Bytes = || binary(with_code(1 << 20));
    for (name, component) in [("c_68kb", (|| C.to_vec()) as Bytes), ("generated_1mb", large)] {
        suite
            .bench(&format!("code_cache/{name}"), move || {
                let folder = tempfile::tempdir().unwrap();
                let config = EngineConfig {
                    code_cache: Some(folder.path().to_owned()),
                    ..EngineConfig::on_demand().compile_in_process()
                };
                let engine = WasmEngine::new(config).unwrap();
                let component = component();
                engine.load_blocking(&component, Profile::Plain).unwrap();
                made(move || {
                    let _keep = &folder;
                    let loaded = engine.load_blocking(&component, Profile::Plain).unwrap();
                    assert_eq!(loaded.origin(), Origin::CodeCache);
                    loaded
                })
            })
            .twin("wasmtime_cache", None, move || {
                let folder = tempfile::tempdir().unwrap();
                let mut cache = CacheConfig::new();
                cache.with_directory(folder.path());
                let mut config = config();
                config.allocation_strategy(wasmtime::InstanceAllocationStrategy::OnDemand);
                config.cache(Some(Cache::new(cache).unwrap()));
                let engine = Engine::new(&config).unwrap();
                let component = component();
                Component::new(&engine, &component).unwrap();
                made(move || {
                    let _keep = &folder;
                    Component::new(&engine, &component).unwrap()
                })
            });
    }
}

/// Precompiled code by path, up to an instance that can be called.
fn precompiled(suite: &mut Suite) {
    type Bytes = Box<dyn Fn() -> Vec<u8> + Send>;
    let mut guests: Vec<(&str, Bytes)> = vec![("c_68kb", Box::new(|| C.to_vec()))];
    // `cargo xtask bench` says where the target folder is.
    let javascript = std::env::var_os("JAVASCRIPT_GUEST")
        .map_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/../target/guests/javascript.wasm").into(), PathBuf::from);
    if javascript.exists() {
        guests.push(("javascript_12mb", Box::new(move || std::fs::read(&javascript).unwrap())));
    } else {
        suite.skip(
            "precompiled_by_path/javascript_12mb: build the guest first, by `cargo xtask fixtures --ecosystem`".into(),
        );
    }
    for (name, bytes) in guests {
        // Compiled once, when first wanted: the large one takes seconds.
        let code = std::sync::Arc::new(std::sync::LazyLock::new(move || {
            let file = tempfile::NamedTempFile::new().unwrap();
            let code = engine().precompile_blocking(&binary(bytes()), Profile::Plain).unwrap();
            std::fs::write(file.path(), &code).unwrap();
            (file, code)
        }));
        let (for_path, for_raw, for_bytes) = (code.clone(), code.clone(), code);
        let ready = move |component: airssys_wasm_engine::LoadedComponent| {
            let mut linker = component.linker();
            add_wasi(&mut linker).unwrap();
            let spec = SandboxSpec::<()>::new(component.link(&linker).unwrap(), large()).unwrap();
            now(spec.instantiate(())).unwrap()
        };
        suite
            .bench(&format!("precompiled_by_path/{name}"), move || {
                let (file, _) = &**for_path;
                let path = file.path().to_owned();
                let _keep = for_path.clone();
                made(move || {
                    let _keep = &_keep;
                    ready(by_path(&path))
                })
            })
            .twin("raw", 1.2, move || {
                let (file, _) = &**for_raw;
                let path = file.path().to_owned();
                let _keep = for_raw.clone();
                let engine = engine().wasmtime(Profile::Plain).unwrap();
                made(move || {
                    let _keep = &_keep;
                    bare::from_file(engine, &path)
                })
            })
            .and(&format!("precompiled_by_bytes/{name}"), move || made(move || ready(by_bytes(&for_bytes.1))));
    }
}

/// A language runtime needs more memory than the usual limit of the benchmarks.
fn large() -> airssys_wasm_limits::ResourceLimits {
    airssys_wasm_limits::ResourceLimits::with_memory(airssys_wasm_limits::ByteSize::gib(1))
}

#[expect(unsafe_code, reason = "precompiled code is trusted; this was compiled here")]
fn by_path(path: &std::path::Path) -> airssys_wasm_engine::LoadedComponent {
    // SAFETY: compiled by this process into a temporary file of its own.
    unsafe { engine().load_precompiled_file(path, Profile::Plain) }.unwrap()
}

#[expect(unsafe_code, reason = "precompiled code is trusted; this was compiled here")]
fn by_bytes(code: &[u8]) -> airssys_wasm_engine::LoadedComponent {
    // SAFETY: compiled by this process.
    unsafe { engine().load_precompiled(code, Profile::Plain) }.unwrap()
}

fn execute_function(suite: &mut Suite) {
    suite
        .bench("execute_function", || {
            let spec = guests::spec(ADD);
            let export = spec.export("add").unwrap();
            timed_async((spec, export), async |(spec, export)| {
                let mut sandbox = spec.instantiate(()).await.unwrap();
                let add = sandbox.typed::<(i32, i32), (i32,)>(export).unwrap();
                let ((sum,), sandbox) = sandbox.call(&add, (42, 42)).await.unwrap();
                assert_eq!(sum, 84);
                drop(sandbox);
            })
        })
        .twin("raw", 1.3, || fresh_on(bare::raw(ADD)))
        .twin("default", None, || fresh_on(bare::pre(bare::default_engine(), ADD)))
        // Four times faster.
        .twin("seed_path", 0.25, seed_path);
}

/// A new store and instance from a linked component, one call, and all of it dropped.
fn fresh_on(pre: wasmtime::component::InstancePre<()>) -> Measure {
    let index = pre.component().get_export_index(None, "add").unwrap();
    timed_async((pre, index), async |(pre, index)| {
        let mut store = bare::store(pre.engine(), ());
        let instance = pre.instantiate_async(&mut store).await.unwrap();
        let add = instance.get_typed_func::<(i32, i32), (i32,)>(&mut store, &*index).unwrap();
        assert_eq!(add.call_async(&mut store, (42, 42)).await.unwrap(), (84,));
    })
}

/// What the guide's implementation does for each call.
fn seed_path() -> Measure {
    let mut config = Config::new();
    config.consume_fuel(true);
    let engine = Engine::new(&config).unwrap();
    let component = Component::new(&engine, binary(ADD)).unwrap();
    timed_async((engine, component), async |(engine, component)| {
        let mut store = Store::new(engine, ());
        store.set_fuel(1_000_000).unwrap();
        let linker = Linker::new(engine);
        let call = async {
            let instance = linker.instantiate_async(&mut store, component).await.unwrap();
            let add = instance.get_typed_func::<(i32, i32), (i32,)>(&mut store, "add").unwrap();
            add.call_async(&mut store, (42, 42)).await.unwrap()
        };
        let (sum,) = tokio::time::timeout(Duration::from_secs(5), call).await.unwrap();
        assert_eq!(sum, 84);
    })
}
