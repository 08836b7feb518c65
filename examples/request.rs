//! One component asks another, because its `Component.toml` grants it. Without the grant it is denied, and the host sees
//! that.
//!
//! `cargo run --example request`

use std::{path::Path, time::Duration};

use airssys_wasm_actor::{ActorSystem, AskError, Capabilities, SystemConfig, SystemEvent};
use airssys_wasm_engine::{EngineConfig, WasmEngine};
use anyhow::Result;

#[tokio::main]
async fn main() -> Result<()> {
    run().await?;
    Ok(())
}

/// Gives the answer that one got, what the other got instead, and what the host saw.
pub(crate) async fn run() -> Result<(String, AskError, SystemEvent)> {
    let system =
        ActorSystem::new(WasmEngine::new(EngineConfig::small().compile_in_process())?, SystemConfig::default());
    let manifests = Path::new(env!("CARGO_MANIFEST_DIR")).join("request");

    system.spawn(system.load(manifests.join("counter/Component.toml")).await?).await?;
    let asker = system.load(manifests.join("asker/Component.toml")).await?;
    // The same component under another name, and without its grants.
    let stranger = asker.clone().with_id("stranger".parse()?).with_capabilities(Capabilities::default());
    let asker = system.spawn(asker).await?;
    let stranger = system.spawn(stranger).await?;

    // The asker passes the question on, and waits. Nobody else waits meanwhile.
    let answer = asker.ask("add 5").await?;
    println!("asker: {}", answer.escape_ascii());

    // A guest gets an error that it can handle. This one makes it its own.
    let mut events = system.events();
    let denied = stranger.ask("add 5").await.expect_err("it is granted nothing");
    println!("stranger: {denied}");
    let event = events.recv().await?;
    if let SystemEvent::Denied { actor, action, target, .. } = &event {
        println!("the host: {actor} may not {action} `{target}`");
    }

    system.shutdown(Duration::from_secs(5)).await;
    Ok((String::from_utf8(answer.into())?, denied, event))
}
