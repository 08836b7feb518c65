//! One component publishes; another, which subscribed to a pattern of topics, and the host hear it.
//!
//! `cargo run --example pubsub`

use std::time::Duration;

use airssys_wasm_actor::{ActorSpec, ActorState, ActorSystem, Capabilities, SystemConfig};
use airssys_wasm_engine::{EngineConfig, Profile, WasmEngine};
use airssys_wasm_fixtures::{LISTENER, TELLER};
use airssys_wasm_isolation::SandboxSpec;
use airssys_wasm_limits::{ByteSize, ResourceLimits};
use airssys_wasm_registry::{MessageEnvelope, WhenFull};
use anyhow::Result;

#[tokio::main]
async fn main() -> Result<()> {
    run().await?;
    Ok(())
}

/// Gives what the listener and the host heard.
pub(crate) async fn run() -> Result<(String, MessageEnvelope)> {
    let system =
        ActorSystem::new(WasmEngine::new(EngineConfig::small().compile_in_process())?, SystemConfig::default());

    // The listener's `init` subscribes to the topic that it finds in its config.
    let listener = ActorSpec::new("listener".parse()?, sandbox(&system, LISTENER).await?)
        .with_config([("topic", "news.*")])
        .with_capabilities(Capabilities { subscribe: vec!["news.>".parse()?], ..Capabilities::default() });
    let listener = system.spawn(listener).await?;

    let teller = ActorSpec::new("teller".parse()?, sandbox(&system, TELLER).await?)
        .with_config([("topic", "news.today")])
        .with_capabilities(Capabilities { publish: vec!["news.today".parse()?], ..Capabilities::default() });
    let teller = system.spawn(teller).await?;

    // Room for 16 messages that the host has not taken yet. What is beyond is counted and let go.
    let mut host = system.subscribe(&"news.>".parse()?, 16, WhenFull::DropNew);

    let receivers = teller.ask("all is well").await?;
    println!("the teller published, and {} took it", receivers.escape_ascii());

    let heard = listener.ask("heard").await?;
    println!("the listener heard: {}", heard.escape_ascii());

    let message = host.recv().await.expect("the system is there");
    let (sender, topic) = (message.sender().expect("a component"), message.topic().expect("published"));
    println!("the host heard of {sender} under {topic}: {}", message.payload().escape_ascii());

    system.shutdown(Duration::from_secs(5)).await;
    Ok((String::from_utf8(heard.into())?, message))
}

async fn sandbox(system: &ActorSystem, guest: &'static [u8]) -> Result<SandboxSpec<ActorState<()>>> {
    let component = system.engine().load(guest, Profile::Plain).await?;
    Ok(SandboxSpec::new(system.link(&component)?, ResourceLimits::with_memory(ByteSize::mib(8)))?)
}
