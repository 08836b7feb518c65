//! A store behind a WIT interface, and guests in Rust, JavaScript and Python that import it. Each is an actor of its own:
//! the store crashes in the middle of a call, and is there again at the next, and no guest crashes with it.
//!
//! `cargo run --example links`; the latter two take part if `cargo xtask fixtures --ecosystem` has built them.

use std::{path::Path, time::Duration};

use airssys_wasm_actor::{ActorExport, ActorSystem, Backoff, SystemConfig};
use airssys_wasm_engine::{EngineConfig, WasmEngine};
use anyhow::Result;

#[tokio::main]
async fn main() -> Result<()> {
    run(&["clerk", "javascript", "python"]).await?;
    Ok(())
}

/// What a guest got: an answer, what it heard when the store crashed, and an answer again.
pub(crate) type Heard = (String, String, String);

pub(crate) async fn run(guests: &[&str]) -> Result<Vec<Heard>> {
    let config = EngineConfig { parallel_compilation: true, ..EngineConfig::small().compile_in_process() };
    let system = ActorSystem::new(WasmEngine::new(config)?, SystemConfig::default());
    let manifests = Path::new(env!("CARGO_MANIFEST_DIR")).join("links");

    let store = system.load(manifests.join("kv/Component.toml")).await?;
    let store = system.spawn(store.with_restart(Backoff::NONE)).await?;

    let mut heard = Vec::new();
    for guest in guests {
        let spec = match system.load(manifests.join(guest).join("Component.toml")).await {
            Ok(spec) => spec,
            Err(error) => {
                println!("{guest} is left out: {error}");
                continue;
            }
        };
        let clerk = system.spawn(spec).await?;
        // Found and type-checked once. An upgrade of the clerk to a version without them would be refused.
        let remember: ActorExport<(String, String), (Result<(), String>,)> = system.export(&clerk, "remember")?;
        let recall: ActorExport<(String,), (Result<String, String>,)> = system.export(&clerk, "recall")?;

        remember.call(("colour".into(), format!("blue, says {guest}"))).await?.0.expect("the store is there");
        let (before,) = recall.call(("colour".into(),)).await?;

        // More than the store can bear. Its interface has a word for that, so that the guest hears of it.
        let (crashed,) = remember.call(("crash".into(), String::new())).await?;

        remember.call(("colour".into(), format!("red, says {guest}"))).await?.0.expect("it is there again");
        let (after,) = recall.call(("colour".into(),)).await?;
        let this = (before.unwrap_or_default(), crashed.expect_err("it crashed"), after.unwrap_or_default());
        println!("{}\n  {}\n  {}", this.0, this.1, this.2);
        heard.push(this);
    }
    println!("the store was restarted {} times", store.info().restarts);
    system.shutdown(Duration::from_secs(5)).await;
    Ok(heard)
}
