//! What has gone wrong in wasmtime before when a component was loaded, seen to go well here, and what is left out of it
//! seen to be left out.

use std::{
    fmt::Write,
    thread::{self, JoinHandle},
};

use airssys_wasm_engine::{EngineConfig, LoadError, PoolConfig, Profile, WasmEngine};

use crate::{binary, engine};

/// A component that uses a feature, and the same without it.
struct Feature {
    name: &'static str,
    with: &'static str,
    without: &'static str,
}

const LIFTED: &str = r#"(component
  (core module $m
    (func (export "f"))
    (func (export "g") (result i32) (i32.const 0))
    (func (export "h") (param i32 i32 i32) (result i32) (i32.const 0)))
  (core instance $i (instantiate $m))
  (func (export "f") OF))"#;

/// What of WebAssembly an engine does not take. Each has had advisories of its own.
const OFF: &[Feature] = &[
    Feature { name: "async types", with: "(component (type (func async)))", without: "(component (type (func)))" },
    Feature { name: "streams", with: "(component (type (stream u8)))", without: "(component (type (list u8)))" },
    Feature { name: "futures", with: "(component (type (future u8)))", without: "(component (type (option u8)))" },
    Feature {
        name: "error contexts",
        with: "(component (core func (canon error-context.drop)))",
        without: "(component (type $r (resource (rep i32))) (core func (canon resource.drop $r)))",
    },
    Feature {
        name: "backpressure",
        with: "(component (core func (canon backpressure.inc)))",
        without: "(component (type $r (resource (rep i32))) (core func (canon resource.new $r)))",
    },
    Feature {
        name: "shared memory",
        with: "(component (core module (memory 1 1 shared)))",
        without: "(component (core module (memory 1 1)))",
    },
    Feature {
        name: "atomics",
        with: "(component (core module (memory 1) (func (drop (i32.atomic.load (i32.const 0))))))",
        without: "(component (core module (memory 1) (func (drop (i32.load (i32.const 0))))))",
    },
    Feature {
        name: "64-bit memory",
        with: "(component (core module (memory i64 1)))",
        without: "(component (core module (memory i32 1)))",
    },
    Feature {
        name: "64-bit tables",
        with: "(component (core module (table i64 1 funcref)))",
        without: "(component (core module (table i32 1 funcref)))",
    },
    Feature {
        name: "pages of other sizes",
        with: "(component (core module (memory 1 (pagesize 1))))",
        without: "(component (core module (memory 1)))",
    },
    Feature {
        name: "structs",
        with: "(component (core module (type (struct (field i32)))))",
        without: "(component (core module (type (func (param i32)))))",
    },
    Feature {
        name: "arrays",
        with: "(component (core module (type (array i32))))",
        without: "(component (core module (type (func (result i32)))))",
    },
    Feature {
        name: "references to the host",
        with: "(component (core module (func (param externref))))",
        without: "(component (core module (func (param funcref))))",
    },
    Feature {
        name: "references to anything",
        with: "(component (core module (func (param anyref))))",
        without: "(component (core module (type $f (func)) (func (param (ref null $f)))))",
    },
    Feature {
        // A call by reference of such a type ends the process: wasmtime compares it by a function that is not built in.
        name: "types that others extend",
        with: "(component (core module
            (type $a (sub (func))) (type $b (sub (func (param i32)))) (table 1 1 funcref) (elem (i32.const 0) func $f)
            (func $f (type $b)) (func (export \"run\") (call_indirect (type $a) (i32.const 0)))))",
        without: "(component (core module
            (type $a (func)) (type $b (func (param i32))) (table 1 1 funcref) (elem (i32.const 0) func $f)
            (func $f (type $b)) (func (export \"run\") (call_indirect (type $a) (i32.const 0)))))",
    },
    Feature {
        name: "groups of types with one that is final",
        with: "(component (core module (rec (type (sub (func))) (type (sub final 0 (func))))))",
        without: "(component (core module (type (func)) (type (sub final (func)))))",
    },
    Feature {
        name: "casts",
        with: "(component (core module (type $f (func))
            (func (param funcref) (result i32) (ref.test (ref $f) (local.get 0)))))",
        without: "(component (core module (func (param funcref) (result i32) (ref.is_null (local.get 0)))))",
    },
    Feature {
        name: "tags",
        with: "(component (core module (tag)))",
        without: "(component (core module (global i32 (i32.const 0))))",
    },
    Feature {
        name: "continuations",
        with: "(component (core module (type $f (func)) (type (cont $f))))",
        without: "(component (core module (type $f (func)) (type (func (param (ref $f))))))",
    },
    Feature {
        name: "wide arithmetic",
        with: "(component (core module (func (result i64 i64)
            (i64.add128 (i64.const 0) (i64.const 0) (i64.const 0) (i64.const 0)))))",
        without: "(component (core module (func (result i64) (i64.add (i64.const 0) (i64.const 0)))))",
    },
];

#[test]
fn what_is_off_stays_off() {
    let engine = engine();
    let load = |text: &str, profile| engine.load_blocking(&binary(text), profile);
    let lifted = |options: &str| LIFTED.replace("OF", options);
    let of = |Feature { name, with, without }: &Feature| (*name, (*with).to_owned(), (*without).to_owned());
    let async_lift = (
        "async lifts",
        lifted(r#"async (canon lift (core func $i "g") async (callback (core func $i "h")))"#),
        lifted(r#"(canon lift (core func $i "f"))"#),
    );
    for (name, with, without) in OFF.iter().map(of).chain([async_lift]) {
        for profile in [Profile::Plain, Profile::Metered] {
            let error = load(&with, profile).expect_err(name);
            assert!(matches!(error, LoadError::Unsupported { .. }), "{name}: {error:?}");
            load(&without, profile).unwrap_or_else(|error| panic!("without {name}: {error}"));
        }
    }
}

/// Runs on a thread with the stack that Rust gives each.
fn on_a_small_stack<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    thread::Builder::new().stack_size(2 << 20).spawn(run).unwrap()
}

/// A component whose core module has this many types, each of which names the one before.
fn chain_of_types(length: u32) -> Vec<u8> {
    let mut text = "(component (core module (type (func))".to_owned();
    for before in 0..length - 1 {
        write!(text, "(type (func (param (ref null {before}))))").unwrap();
    }
    binary(&(text + "))"))
}

/// GHSA-wjc8: types that name each other were gone through by recursion, until the stack of the host was used up.
#[test]
fn a_long_chain_of_types_is_no_deep_recursion() {
    for length in [10, 100_000] {
        let bytes = chain_of_types(length);
        let loaded = on_a_small_stack(move || {
            let engine = engine();
            let loaded = engine.load_blocking(&bytes, Profile::Plain).map(drop);
            drop(engine);
            loaded
        })
        .join()
        .unwrap();
        if let Err(error) = loaded {
            assert!(length > 10 && matches!(error, LoadError::TooComplex { .. }), "{length}: {error:?}");
        }
    }
}

/// A component whose core module has this many data segments, which are in place at the start or not.
fn data_segments(count: u32, active: bool) -> Vec<u8> {
    let mut text = "(component (core module $m (memory 16)".to_owned();
    for i in 0..count {
        if active {
            write!(text, r#"(data (i32.const {}) "x")"#, i * 8).unwrap();
        } else {
            text.push_str(r#"(data "x")"#);
        }
    }
    binary(&(text + ") (core instance (instantiate $m)))"))
}

/// Each segment that is in place at the start is an image's where there are images, and otherwise code.
#[test]
fn many_data_segments_do_not_panic_the_compiler() {
    for (copy_on_write, active, count) in
        [(true, true, 40_000), (true, false, 40_000), (false, false, 40_000), (false, true, 4_000)]
    {
        let pool = Some(PoolConfig { copy_on_write, ..PoolConfig::for_components(16) });
        let config = EngineConfig { pool, ..EngineConfig::small() };
        let engine = WasmEngine::new(config.compile_in_process().with_manual_ticks()).unwrap();
        engine.load_blocking(&data_segments(40, active), Profile::Plain).unwrap();
        if let Err(error) = engine.load_blocking(&data_segments(count, active), Profile::Plain) {
            assert!(matches!(error, LoadError::TooComplex { .. }), "{copy_on_write}, {active}: {error:?}");
        }
    }
}
