//! A counter goes over to its next version and back, between two messages: the count, the address and what waits in the
//! mailbox are kept.
//!
//! `cargo run --example upgrade`

use std::time::Duration;

use airssys_wasm_actor::{ActorSpec, ActorState, ActorSystem, SystemConfig, UpgradeOptions};
use airssys_wasm_engine::{EngineConfig, Profile, WasmEngine};
use airssys_wasm_fixtures::{COUNTER, COUNTER_V2};
use airssys_wasm_isolation::SandboxSpec;
use airssys_wasm_limits::{ByteSize, ResourceLimits};
use anyhow::Result;

#[tokio::main]
async fn main() -> Result<()> {
    run().await?;
    Ok(())
}

/// Gives the answers of the first version, of the second, and of the first again.
pub(crate) async fn run() -> Result<[String; 3]> {
    let system =
        ActorSystem::new(WasmEngine::new(EngineConfig::small().compile_in_process())?, SystemConfig::default());
    let v1 = sandbox(&system, COUNTER).await?;
    let v2 = sandbox(&system, COUNTER_V2).await?;
    let counter = system.spawn(ActorSpec::new("counter".parse()?, v1)).await?;

    let first = String::from_utf8(counter.ask("add 5").await?.into())?;
    println!("{}: {first}", counter.address());

    // These may still wait when the order to upgrade comes, which is heard first. Then the new version counts them.
    counter.tell("add 1").await?;
    counter.tell("add 1").await?;

    // Were the new version to fail before it has handled ten messages, the one before would take over by itself.
    let options = UpgradeOptions { probation: 10, ..UpgradeOptions::default() };
    let incarnation = system.upgrade(counter.address(), v2, options).await?;
    let second = String::from_utf8(counter.ask("get").await?.into())?;
    println!("{}, upgraded to incarnation {incarnation}: {second}", counter.address());

    // One need not wait for a failure to go back.
    let incarnation = system.rollback(counter.address(), UpgradeOptions::default()).await?;
    let third = String::from_utf8(counter.ask("get").await?.into())?;
    println!("{}, rolled back by incarnation {incarnation}: {third}", counter.address());

    system.shutdown(Duration::from_secs(5)).await;
    Ok([first, second, third])
}

async fn sandbox(system: &ActorSystem, guest: &'static [u8]) -> Result<SandboxSpec<ActorState<()>>> {
    let component = system.engine().load(guest, Profile::Plain).await?;
    Ok(SandboxSpec::new(system.link(&component)?, ResourceLimits::with_memory(ByteSize::mib(8)))?)
}
