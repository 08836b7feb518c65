//! Guests that are actors by key: they leave the memory and come back, beside a healthy kind in the same system and the same store.

use std::{sync::Arc, time::Duration};

use airssys_wasm_actor::{ActorSpec, ActorSystem, SystemConfig};
use airssys_wasm_engine::LoadedComponent;
use airssys_wasm_isolation::SandboxSpec;
use airssys_wasm_keyed::{Durability, Keyed, KeyedOptions, KeyedSpec, MemoryStore, SaveWhen, StateStore, Version};
use airssys_wasm_limits::{ByteSize, ResourceLimits};
use anyhow::{Context, Result};
use tokio::task::yield_now;

use super::{
    arena::{Arena, id},
    corpus::{Does, Guest, Limits},
    outcome::Outcome,
};

/// How often an actor gets a message and leaves the memory.
const SLEEPS: u64 = 8;

/// How often the actors of a circle come into memory.
const WAKES: u64 = 100;

/// What another guest has saved.
const FOREIGN: &[u8] = b"5\nhello";

impl Arena {
    /// From the installation of the kind to the end of its system.
    pub(super) async fn keyed(&self, guest: &Guest, limits: &Limits, component: &LoadedComponent) -> Result<Outcome> {
        let config = SystemConfig { dead_letters: limits.dead_letters, seed: Some(1), ..SystemConfig::default() };
        let system = ActorSystem::new(self.system.engine().clone(), config);
        let store = Arc::new(MemoryStore::new());
        let sandbox = SandboxSpec::new(system.link(component)?, limits.resources.clone())?;
        let spec = self.spec("hostile", guest, limits, sandbox.with_budget(self.budget.clone()));
        let install = async |spec: ActorSpec<()>| {
            let options = KeyedOptions { save: SaveWhen::OnIdle, state: limits.state, ..KeyedOptions::default() };
            Keyed::install(&system, KeyedSpec::new(spec).with_options(options), Arc::clone(&store) as _).await
        };
        let hostile = match install(spec).await {
            Ok(kind) => kind,
            Err(error) => return Ok(Outcome::new(format!("not installed: {error}"))),
        };
        let good = SandboxSpec::new(system.link(&self.good)?, ResourceLimits::with_memory(ByteSize::mib(8)))?;
        let good = Neighbour { kind: install(ActorSpec::new(id("good"), good)).await?, asked: 0.into() };
        good.sleeps().await?;
        let outcome = match guest.does {
            Does::ForeignRow => foreign_row(guest, &hostile, &store).await?,
            Does::Circle => circle(guest, &hostile, &good).await?,
            _ => sleeps(guest, &hostile, &good).await?,
        };
        good.sleeps().await?;
        system.shutdown(Duration::from_secs(5)).await;
        Ok(outcome)
    }
}

/// Counts what it was asked, whatever becomes of others.
struct Neighbour {
    kind: Keyed,
    asked: std::cell::Cell<u64>,
}

impl Neighbour {
    /// Is asked, and leaves the memory with its state.
    async fn sleeps(&self) -> Result<()> {
        let longest = Duration::from_secs(5);
        let count = self.kind.actor("1")?.ask_within(longest, "count").await.context("a neighbour does not answer")?;
        let expected = self.asked.replace(self.asked.get() + 1);
        anyhow::ensure!(count == expected.to_string(), "a neighbour has {count:?} in place of {expected}");
        anyhow::ensure!(self.kind.passivate("1").await?, "the state of a neighbour is not saved");
        Ok(())
    }
}

/// What comes of its last message.
async fn sleeps(guest: &Guest, hostile: &Keyed, good: &Neighbour) -> Result<Outcome> {
    let actor = hostile.actor("1")?;
    for _ in 1..SLEEPS {
        // What came of this is seen by what comes of the last.
        _ = actor.ask(guest.payload.clone()).await;
        hostile.passivate("1").await?;
        good.sleeps().await?;
    }
    Ok(actor.ask(guest.payload.clone()).await.into())
}

/// What comes of a message when the row is another guest's, which stays.
async fn foreign_row(guest: &Guest, hostile: &Keyed, store: &MemoryStore) -> Result<Outcome> {
    store.save("hostile", "1", Version::NONE, FOREIGN.into(), Durability::Process).await?;
    let outcome = hostile.actor("1")?.ask(guest.payload.clone()).await.into();
    let row = store.load("hostile", "1").await?;
    if row.is_none_or(|row| row.state != FOREIGN) {
        return Ok(Outcome::new("the row is another"));
    }
    // One without a row is not harmed.
    match hostile.actor("2")?.ask(guest.payload.clone()).await {
        Err(error) if error.refusal().is_some() => Ok(Outcome::new("the kind is harmed")),
        _ => Ok(outcome),
    }
}

/// Whether three that send to each other go on although each leaves the memory after each message.
async fn circle(guest: &Guest, hostile: &Keyed, good: &Neighbour) -> Result<Outcome> {
    hostile.actor("1")?.tell(guest.payload.clone()).await?;
    let mut idle = 0;
    while hostile.stats().activations < WAKES && idle < 1_000 {
        let before = hostile.stats().activations;
        for key in ["1", "2", "3"] {
            hostile.passivate(key).await?;
        }
        good.sleeps().await?;
        yield_now().await;
        idle = if hostile.stats().activations == before { idle + 1 } else { 0 };
    }
    hostile.kill_all().await;
    Ok(Outcome::new(if idle == 0 { "goes round" } else { "has come to rest" }))
}
