//! Compiles for `airssys-wasm-engine`, which starts it. For embedders who have no `main` of their own to prepare; see
//! `CompilerProgram::Path`.

fn main() {
    airssys_wasm_engine::compiler_hook();
    eprintln!(
        "airssys-wasm-compiler {}: compiles WebAssembly components for airssys-wasm-engine, which starts it by itself.\n\
         Name its path as `CompilerProgram::Path` in the `EngineConfig` of a program of the same version.",
        env!("CARGO_PKG_VERSION")
    );
    std::process::exit(2);
}
