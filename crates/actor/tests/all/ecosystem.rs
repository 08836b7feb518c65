//! Components of 12 and 18 MB as the ecosystem's tools build them from JavaScript and Python. They are built by
//! `cargo xtask fixtures --ecosystem`, and left out with a word where that was not run.

use std::{env, fs, path::PathBuf, time::Duration};

use airssys_wasm_actor::{ActorSpec, ActorSystem, AskError, Backoff, SystemConfig};
use airssys_wasm_engine::{EngineConfig, PoolConfig, Profile, WasmEngine};
use airssys_wasm_isolation::{CrashClass, SandboxSpec};
use airssys_wasm_limits::{ByteSize, ResourceLimits};

use crate::support::{ask, id};

async fn starts_answers_crashes_and_restarts(name: &str) {
    let target = env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../target")), PathBuf::from);
    let path = target.join("guests").join(format!("{name}.wasm"));
    let Ok(bytes) = fs::read(&path) else {
        eprintln!("left out: {name} was not built; `cargo xtask fixtures --ecosystem` does that");
        return;
    };
    // Compiled once: the code cache is what makes such components usable.
    let config = EngineConfig {
        pool: Some(PoolConfig::for_components(8)),
        parallel_compilation: true,
        code_cache: Some(target.join("guests").join("code-cache")),
        ..EngineConfig::default().compile_in_process()
    };
    let system = ActorSystem::new(WasmEngine::new(config).unwrap(), SystemConfig::default());
    let component = system.engine().load(bytes, Profile::Plain).await.unwrap();
    let limits = ResourceLimits {
        cpu_time: Duration::from_secs(10),
        deadline: Duration::from_secs(60),
        ..ResourceLimits::with_memory(ByteSize::mib(128))
    };
    let mut spec = ActorSpec::new(id(name), SandboxSpec::new(system.link(&component).unwrap(), limits).unwrap());
    spec = spec.with_restart(Backoff::NONE);
    let actor = system.spawn(spec).await.unwrap();
    assert_eq!(ask(&actor, "echo hello").await.unwrap(), "hello");
    let AskError::Crashed(report) = ask(&actor, "crash").await.unwrap_err() else { panic!("it crashed") };
    assert_eq!(report.crash.kind().class(), CrashClass::Trap, "{report}");
    assert_eq!(ask(&actor, "echo again").await.unwrap(), "again");
    assert_eq!(actor.info().incarnation, 2);
}

#[tokio::test]
async fn javascript() {
    starts_answers_crashes_and_restarts("javascript-messaging").await;
}

#[tokio::test]
async fn python() {
    starts_answers_crashes_and_restarts("python-messaging").await;
}
