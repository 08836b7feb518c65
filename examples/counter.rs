//! A counter that survives its crash: another incarnation takes over, behind the same address.
//!
//! `cargo run --example counter`

use std::time::Duration;

use airssys_wasm_actor::{ActorInfo, ActorSpec, ActorSystem, SystemConfig};
use airssys_wasm_engine::{EngineConfig, Profile, WasmEngine};
use airssys_wasm_fixtures::COUNTER;
use airssys_wasm_isolation::SandboxSpec;
use airssys_wasm_limits::{ByteSize, ResourceLimits};
use anyhow::Result;

#[tokio::main]
async fn main() -> Result<()> {
    run().await?;
    Ok(())
}

/// Gives what could be seen of the counter before and after.
pub(crate) async fn run() -> Result<[ActorInfo; 2]> {
    let system =
        ActorSystem::new(WasmEngine::new(EngineConfig::small().compile_in_process())?, SystemConfig::default());

    // Compiled and linked once, for as many actors as one likes.
    let component = system.engine().load(COUNTER, Profile::Plain).await?;
    let limits = ResourceLimits::with_memory(ByteSize::mib(8));
    let sandbox = SandboxSpec::new(system.link(&component)?, limits)?;
    let counter = system.spawn(ActorSpec::new("counter".parse()?, sandbox)).await?;

    println!("add 5: {}", counter.ask("add 5").await?.escape_ascii());
    println!("add 2: {}", counter.ask("add 2").await?.escape_ascii());
    let before = counter.info();

    // Whoever asked for it is told what went wrong, and where in the guest.
    let crash = counter.ask("crash").await.expect_err("it panics");
    println!("crash: {crash}");

    // The next message waits in the mailbox until the next incarnation takes it. The count went with the memory.
    println!("add 1: {}", counter.ask("add 1").await?.escape_ascii());
    let after = counter.info();
    println!("{}: incarnation {}, then {}", after.address, before.incarnation, after.incarnation);

    system.shutdown(Duration::from_secs(5)).await;
    Ok([before, after])
}
