//! A program that compiles by starting itself again. It has a `main` of its own, in which the hook comes first.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

use airssys_wasm_engine::{EngineConfig, Profile, WasmEngine};

fn main() {
    airssys_wasm_engine::compiler_hook();
    // Whoever asks which tests there are is not to run this one.
    if std::env::args().any(|argument| argument == "--list") {
        return;
    }
    let engine = WasmEngine::new(EngineConfig::default()).unwrap();
    let text = r#"(component (core module $m (func (export "f"))) (core instance $i (instantiate $m))
        (func (export "f") (canon lift (core func $i "f"))))"#;
    assert_eq!(engine.load_wat_blocking(text, Profile::Plain).unwrap().exports(), ["f: func()"]);
    println!("test a_program_compiles_by_starting_itself_again ... ok");
}
