//! Actors whose objects are collected.

use std::time::Duration;

use airssys_wasm_actor::{ActorSpec, ActorSystem, AskError, SystemConfig};
use airssys_wasm_engine::{EngineConfig, Profile, WasmEngine};
use airssys_wasm_fixtures::COLLECTING_ACTOR;
use airssys_wasm_isolation::{CrashKind, SandboxSpec};
use airssys_wasm_limits::{ByteSize, MemoryBudget, ResourceLimits};
use tokio::{task::yield_now, time::timeout};

use crate::support::id;

/// In the middle of a message, of which most is collections; all that it had is given back.
#[tokio::test]
async fn one_that_is_killed_while_it_collects_leaves_nothing() {
    let config = EngineConfig::small().with_garbage_collection().compile_in_process();
    let system = ActorSystem::new(WasmEngine::new(config).unwrap(), SystemConfig::default());
    // Its garbage has no end.
    let (before, after) = COLLECTING_ACTOR.split_once("(func $waste").unwrap();
    let wasted = after.replacen("(br_if $more (i32.lt_u (local.tee $n", "(br $more) (drop (i32.lt_u (local.tee $n", 1);
    assert_ne!(wasted, after);
    let component =
        system.engine().load_wat_blocking(&format!("{before}(func $waste{wasted}"), Profile::Plain).unwrap();
    for mib in [16, 64] {
        let budget = MemoryBudget::new(ByteSize::gib(1));
        let long = Duration::from_secs(600);
        let limits =
            ResourceLimits { cpu_time: long, deadline: long, ..ResourceLimits::with_memory(ByteSize::mib(mib)) };
        let sandbox = SandboxSpec::new(system.link(&component).unwrap(), limits).unwrap().with_budget(budget.clone());
        let actor = system.spawn(ActorSpec::new(id("collecting"), sandbox)).await.unwrap();
        let asked = tokio::spawn({
            let actor = actor.clone();
            async move { actor.ask("x").await }
        });
        // What it keeps alone is 5 MB, twice.
        let has_objects = async {
            while budget.used() < 8 << 20 {
                yield_now().await;
            }
        };
        timeout(Duration::from_secs(60), has_objects).await.expect("a heap");
        assert!(!asked.is_finished());
        actor.kill();
        actor.ended().await;
        let Err(AskError::Crashed(report)) = asked.await.unwrap() else { panic!("it was killed") };
        assert_eq!(*report.crash.kind(), CrashKind::Cancelled, "{report}");
        assert_eq!(budget.used(), 0, "{mib}");
    }
}
