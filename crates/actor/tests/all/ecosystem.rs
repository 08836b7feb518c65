//! Components of 12 and 18 MB as the ecosystem's tools build them from JavaScript and Python. They are built by
//! `cargo xtask fixtures --ecosystem`, and left out with a word where that was not run.

use std::time::Duration;

use airssys_wasm_actor::{ActorSpec, ActorSystem, AskError, Backoff, ContractKind, Links, SystemConfig};
use airssys_wasm_engine::{EngineConfig, LoadedComponent, PoolConfig, Profile, WasmEngine};
use airssys_wasm_fixtures::{KV, ecosystem};
use airssys_wasm_isolation::{CrashClass, SandboxSpec};
use airssys_wasm_limits::{ByteSize, ResourceLimits};

use crate::support::{ask, id};

/// A guest, if it was built, in a system of its own.
async fn built(name: &str) -> Option<(ActorSystem, LoadedComponent)> {
    let bytes = ecosystem::built(name)?;
    // Compiled once: the code cache is what makes such components usable.
    let config = EngineConfig {
        pool: Some(PoolConfig::for_components(8)),
        parallel_compilation: true,
        code_cache: Some(ecosystem::target().join("guests/code-cache")),
        ..EngineConfig::default().compile_in_process()
    };
    let system = ActorSystem::new(WasmEngine::new(config).unwrap(), SystemConfig::default());
    let component = system.engine().load(bytes, Profile::Plain).await.unwrap();
    Some((system, component))
}

/// For a language engine.
fn limits() -> ResourceLimits {
    ResourceLimits {
        cpu_time: Duration::from_secs(10),
        deadline: Duration::from_secs(60),
        ..ResourceLimits::with_memory(ByteSize::mib(128))
    }
}

async fn starts_answers_crashes_and_restarts(name: &str) {
    let Some((system, component)) = built(name).await else { return };
    let mut spec = ActorSpec::new(id(name), SandboxSpec::new(system.link(&component).unwrap(), limits()).unwrap());
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

/// The Rust store behind an import of another language.
async fn uses_a_store_that_crashes_in_mid_call(name: &str) {
    let Some((system, component)) = built(name).await else { return };
    let store = system.engine().load(KV, Profile::Plain).await.unwrap();
    let sandbox = SandboxSpec::new(system.link(&store).unwrap(), limits()).unwrap();
    let spec = ActorSpec::new(id("kv"), sandbox).with_contract(ContractKind::Exports).with_restart(Backoff::NONE);
    let kv = system.spawn(spec).await.unwrap();

    let links = Links::default().with("acme:kv/store@1.0.0", id("kv"));
    let sandbox = SandboxSpec::new(system.link_with(&component, &links).unwrap(), limits()).unwrap();
    let spec = ActorSpec::new(id("clerk"), sandbox).with_contract(ContractKind::Exports).with_links(links);
    let clerk = system.spawn(spec).await.unwrap();
    let remember = system.export::<(String, String), (Result<(), String>,)>(&clerk, "remember").unwrap();
    let recall = system.export::<(String,), (Result<String, String>,)>(&clerk, "recall").unwrap();
    remember.call(("a".into(), "one".into())).await.unwrap().0.unwrap();
    assert_eq!(recall.call(("a".into(),)).await.unwrap().0.unwrap(), "one");
    let said = remember.call(("crash".into(), "x".into())).await.unwrap().0.unwrap_err();
    assert!(said.contains("the actor crashed"), "{said}");
    assert_eq!(recall.call(("a".into(),)).await.unwrap().0.unwrap_err(), "nothing is known of `a`");
    remember.call(("a".into(), "two".into())).await.unwrap().0.unwrap();
    assert_eq!(recall.call(("a".into(),)).await.unwrap().0.unwrap(), "two");
    assert_eq!((kv.info().incarnation, clerk.info().incarnation), (2, 1));
}

#[tokio::test]
async fn javascript_imports_an_interface_that_leads_to_an_actor() {
    uses_a_store_that_crashes_in_mid_call("javascript-clerk").await;
}

#[tokio::test]
async fn python_imports_an_interface_that_leads_to_an_actor() {
    uses_a_store_that_crashes_in_mid_call("python-clerk").await;
}
