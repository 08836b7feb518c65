//! Three processes: a broker, a shop, and who asks it. The shop is killed while it is asked.
//!
//! `cargo run --example lattice`, or by hand
//!
//! ```sh
//! cargo run --example lattice -- serve &          # a broker, and a host with a shop
//! cargo run --example lattice -- ask "add 2"      # another host, which asks it
//! ```
//!
//! The broker is a `nats-server`: one that is installed, or one that is downloaded into the target folder.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use airssys_wasm_actor::{
    ActorSpec, ActorSystem, AskError, Bytes, NativeActor, NativeContext, NativeSpec, SystemConfig,
};
use airssys_wasm_engine::{EngineConfig, Profile, WasmEngine};
use airssys_wasm_fixtures::{
    COUNTER,
    nats::{NatsConfig, NatsServer},
};
use airssys_wasm_isolation::SandboxSpec;
use airssys_wasm_lattice::{Lattice, LatticeConfig, Recipient};
use airssys_wasm_limits::{ByteSize, ResourceLimits};
use airssys_wasm_registry::MessageEnvelope;
use anyhow::{Context, Result, bail, ensure};
use tokio::task::spawn_blocking;

/// How long `ask` waits for a broker and a shop: a broker may have to be downloaded.
const PATIENCE: Duration = Duration::from_secs(120);

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        [] => {
            let mut shop = Command::new(std::env::current_exe()?);
            shop.arg("shop");
            run(shop).await.map(drop)
        }
        ["serve"] => serve(4222).await,
        ["shop"] => shop(&std::env::var("BROKER").context("`BROKER` has the broker's address")?).await,
        ["ask", text] => {
            println!("{}", ask("nats://127.0.0.1:4222", text).await?);
            Ok(())
        }
        _ => bail!("`serve`, `ask TEXT`, or nothing"),
    }
}

/// Starts a broker at a port, and a shop.
pub(crate) async fn serve(port: u16) -> Result<()> {
    let config = NatsConfig { port: Some(port), ..NatsConfig::jetstream() };
    let broker = spawn_blocking(move || config.start()).await??;
    shop(&broker.url()).await
}

/// Asks the shop, as soon as there are a broker and a shop.
pub(crate) async fn ask(broker: &str, text: &str) -> Result<String> {
    let until = Instant::now() + PATIENCE;
    let (_system, lattice, shop) = loop {
        match customer(broker).await {
            Err(error) if Instant::now() > until => return Err(error),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            Ok(joined) => break joined,
        }
    };
    while !shop.is_known() && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let answer = shop.ask_within(Duration::from_secs(5), text.to_owned()).await;
    lattice.leave(Duration::from_secs(1)).await;
    Ok(answer?.escape_ascii().to_string())
}

/// What the asker saw: the answer before, what came of the ask during which the shop was killed, and of the next, and the answer of the
/// shop that was started again.
pub(crate) type Seen = (String, AskError, AskError, String);

/// Starts a broker and a shop, asks, and kills the shop.
pub(crate) async fn run(mut command: Command) -> Result<Seen> {
    let broker = spawn_blocking(NatsServer::start).await??;
    command.env("BROKER", broker.url()).stdout(Stdio::piped());
    let (mut process, mut command) = started(command).await?;

    let (_system, lattice, shop) = customer(&broker.url()).await?;
    let ask = async |text: &str| shop.ask_within(Duration::from_secs(30), text.to_owned()).await;
    let before = String::from_utf8(ask("add 2").await?.to_vec())?;
    println!("add 2: {before}");

    // The clerk says when it has the question, and does not answer it.
    let clerk = lattice.recipient("shop/clerk".parse()?);
    let asked = tokio::spawn(async move { clerk.ask("what is the meaning of this?").await });
    spawn_blocking(move || {
        says(&mut process, "asked")?;
        process.kill()?;
        anyhow::Ok(process.wait()?)
    })
    .await??;
    let killed = asked.await?.err().context("it was killed")?;
    println!("asked while it was killed: {killed}");
    let next = ask("get").await.err().context("nobody is there")?;
    println!("asked after that: {next}");

    // The name is its host's still. What it had counted went with its memory.
    command.stdout(Stdio::piped());
    let (mut process, _) = started(command).await?;
    while !shop.is_known() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let again = String::from_utf8(ask("get").await?.to_vec())?;
    println!("asked when it is back: {again}");
    lattice.leave(Duration::from_secs(1)).await;
    process.kill()?;
    process.wait()?;
    Ok((before, killed, next, again))
}

/// Starts a shop, and waits until it is open.
async fn started(mut command: Command) -> Result<(Child, Command)> {
    spawn_blocking(move || {
        let mut process = command.spawn()?;
        says(&mut process, "open")?;
        Ok((process, command))
    })
    .await?
}

/// Waits until a process says something.
fn says(process: &mut Child, what: &str) -> Result<()> {
    let mut said = process.stdout.take().context("piped")?;
    let heard = BufReader::with_capacity(1, &mut said).lines().any(|line| line.is_ok_and(|line| line == what));
    process.stdout = Some(said);
    ensure!(heard, "the shop does not say that it is {what}");
    Ok(())
}

fn config(broker: &str, host: &str) -> Result<LatticeConfig> {
    // Short, so that who was killed is soon back: its name is free of the session before after a lease and a second.
    Ok(LatticeConfig::new("example".parse()?, host.parse()?).with_servers([broker]).with_lease(Duration::from_secs(2)))
}

/// A host with an actor that others reach, until it is killed.
pub(crate) async fn shop(broker: &str) -> Result<()> {
    let system =
        ActorSystem::new(WasmEngine::new(EngineConfig::small().compile_in_process())?, SystemConfig::default());
    let component = system.engine().load(COUNTER, Profile::Plain).await?;
    let sandbox = SandboxSpec::new(system.link(&component)?, ResourceLimits::with_memory(ByteSize::mib(8)))?;
    let counter = system.spawn(ActorSpec::new("shop/counter".parse()?, sandbox)).await?;
    let clerk = system.spawn_native(NativeSpec::new("shop/clerk".parse()?, || Clerk)).await?;

    let lattice = Lattice::join(&system, config(broker, "shop")?).await?;
    lattice.export(&counter).await?;
    lattice.export(&clerk).await?;
    // On a line of its own.
    println!("\nopen");
    tokio::signal::ctrl_c().await?;
    lattice.leave(Duration::from_secs(1)).await;
    system.shutdown(Duration::from_secs(5)).await;
    Ok(())
}

/// Never answers.
struct Clerk;

impl NativeActor for Clerk {
    async fn handle(&mut self, _: &MessageEnvelope, _: &NativeContext) -> std::result::Result<Option<Bytes>, String> {
        println!("asked");
        std::future::pending().await
    }
}

/// A host that asks.
async fn customer(broker: &str) -> Result<(ActorSystem, Lattice, Recipient)> {
    let system =
        ActorSystem::new(WasmEngine::new(EngineConfig::small().compile_in_process())?, SystemConfig::default());
    let lattice = Lattice::join(&system, config(broker, "customer")?).await?;
    let shop = lattice.recipient("shop/counter".parse()?);
    Ok((system, lattice, shop))
}
