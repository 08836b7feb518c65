//! The engine on real components.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod advisories;
mod bounds;
mod cache;
#[cfg(target_os = "linux")]
mod compiler;
mod features;
mod link;
mod load;

use airssys_wasm_engine::{EngineConfig, WasmEngine};

fn engine() -> WasmEngine {
    WasmEngine::new(EngineConfig::small().compile_in_process().with_manual_ticks()).unwrap()
}

fn binary(text: &str) -> Vec<u8> {
    wat::parse_str(text).unwrap()
}
