//! A round, in a process of its own: kinds on a rough store, whose actors are pushed out of memory all the time, crash, go over
//! to another version and back, and are asked by many. It says on standard output what was answered.

use std::{io::Write, path::PathBuf, sync::Arc, time::Duration};

use airssys_wasm_actor::{
    ActorSandbox, ActorSpec, ActorSystem, AskError, Backoff, Capabilities, Intensity, RestartPolicy, SystemConfig,
    UpgradeError, UpgradeOptions,
};
use airssys_wasm_engine::{EngineConfig, PoolConfig, Profile, WasmEngine};
use airssys_wasm_fixtures as fixtures;
use airssys_wasm_isolation::SandboxSpec;
use airssys_wasm_keyed::{Durability, FjallStore, Keyed, KeyedOptions, KeyedSpec, SaveWhen, StateStore, StoreConfig};
use airssys_wasm_limits::{ByteSize, ResourceLimits};
use anyhow::{Context, Result};
use tokio::{task::JoinSet, time::Instant};

use super::{KEYS, KINDS, rough::Rough};

/// What can be chosen about a round.
#[derive(Debug, Clone, clap::Args)]
pub struct Round {
    /// Where the store is
    #[arg(long)]
    pub folder: PathBuf,
    /// What is done is drawn from this
    #[arg(long)]
    pub seed: u64,
    /// How long it goes on, if it is not killed
    #[arg(long)]
    pub millis: u64,
}

/// Actors in memory at a time, of [`KEYS`] of each kind.
const LIVE: usize = 48;

/// Who ask at the same time, each for keys of its own.
const ASKERS: u32 = 24;

/// One message in so many crashes its receiver.
const CRASH_ONE_IN: u32 = 300;

/// Runs a round.
///
/// # Errors
///
/// When it could not be set up.
pub fn run(round: &Round) -> Result<()> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(play(round))
}

async fn play(round: &Round) -> Result<()> {
    let pool = Some(PoolConfig::for_components(512));
    let engine = WasmEngine::new(EngineConfig { pool, ..EngineConfig::default() }.compile_in_process())?;
    let counter = engine.load(fixtures::COUNTER, Profile::Plain).await?;
    let other = engine.load(fixtures::COUNTER_V2, Profile::Plain).await?;
    let system = ActorSystem::new(engine, SystemConfig { seed: Some(round.seed), ..SystemConfig::default() });
    let disk = Arc::new(FjallStore::open(StoreConfig::new(&round.folder)).await?);
    let rough = Arc::new(Rough::new(Arc::clone(&disk) as _));
    let store: Arc<dyn StateStore> = Arc::clone(&rough) as _;
    let until = Instant::now() + Duration::from_millis(round.millis);
    let (mut asking, mut upgrading) = (JoinSet::new(), JoinSet::new());
    let mut random = fastrand::Rng::with_seed(round.seed);
    for (name, each) in KINDS {
        let limits =
            ResourceLimits { cpu_time: Duration::from_secs(1), ..ResourceLimits::with_memory(ByteSize::mib(8)) };
        let restart = RestartPolicy {
            intensity: Intensity { restarts: 1_000, ..Intensity::default() },
            backoff: Backoff::NONE,
            ..RestartPolicy::default()
        };
        let sandbox = |guest| anyhow::Ok(SandboxSpec::new(system.link(guest)?, limits.clone())?);
        let versions = [sandbox(&counter)?, sandbox(&other)?];
        let template = ActorSpec::new(name.parse()?, versions[0].clone())
            .with_capabilities(Capabilities::default())
            .with_restart(restart);
        let options = KeyedOptions {
            save: if each { SaveWhen::EachMessage } else { SaveWhen::Within(Duration::from_millis(50)) },
            durability: Durability::Process,
            residency: Duration::from_millis(1),
            idle: Duration::from_millis(200),
            live: LIVE,
            ..KeyedOptions::default()
        };
        let kind = Keyed::install(&system, KeyedSpec::new(template).with_options(options), Arc::clone(&store)).await?;
        for asker in 0..ASKERS {
            let random = random.fork();
            asking.spawn(ask(kind.clone(), each, asker, random, until));
        }
        upgrading.spawn(upgrade(kind, versions, random.fork(), until));
    }
    while let Some(asked) = asking.join_next().await {
        asked?;
    }
    while let Some(upgraded) = upgrading.join_next().await {
        upgraded??;
    }
    // What is in memory is saved.
    rough.heal();
    let report = system.shutdown(Duration::from_secs(60)).await;
    anyhow::ensure!(report.killed.is_empty() && report.stuck.is_empty(), "not all have ended: {report:?}");
    disk.close().await;
    say("done")
}

async fn ask(kind: Keyed, each: bool, asker: u32, mut random: fastrand::Rng, until: Instant) {
    while Instant::now() < until {
        // Few are asked often, and most seldom.
        let key = random.u32(0..KEYS / ASKERS).min(random.u32(0..KEYS / ASKERS)) * ASKERS + asker;
        let Ok(actor) = kind.actor(&key.to_string()) else { continue };
        if each && random.u32(0..CRASH_ONE_IN) == 0 {
            // What comes of it is in the books of the next addition.
            _ = actor.ask("crash").await;
            continue;
        }
        let line = match actor.ask_within(Duration::from_secs(30), "add 1").await {
            Ok(answer) => {
                let answer = String::from_utf8_lossy(&answer);
                // As the version says it that has answered.
                let count = answer.strip_prefix("count: ").unwrap_or(&answer);
                format!("answered {} {key} {count}", kind.kind())
            }
            Err(AskError::NotSent(_) | AskError::NotActivated(_)) => {
                tokio::time::sleep(Duration::from_millis(1)).await;
                continue;
            }
            Err(_) => format!("unknown {} {key}", kind.kind()),
        };
        say(&line).expect("the other end listens until this one is killed");
    }
}

/// Has the kind go over to the other version again and again, on probation or not. Those that crash meanwhile have all go back.
async fn upgrade(
    kind: Keyed,
    versions: [ActorSandbox<()>; 2],
    mut random: fastrand::Rng,
    until: Instant,
) -> Result<()> {
    for version in versions.iter().rev().cycle() {
        tokio::time::sleep(Duration::from_millis(random.u64(200..700))).await;
        if Instant::now() >= until {
            break;
        }
        let options =
            UpgradeOptions { probation: random.choice([0, 3]).unwrap_or_default(), ..UpgradeOptions::default() };
        let report = kind.upgrade(version.clone(), options).await?;
        // They stay with the version that they have while the store is full.
        let other = report.failed.iter().find(|error| !matches!(error, UpgradeError::NotSaved));
        anyhow::ensure!(other.is_none(), "an actor has not gone over: {other:?}");
    }
    Ok(())
}

fn say(line: &str) -> Result<()> {
    // One write, so that a line is whole or not there.
    std::io::stdout().lock().write_all(format!("{line}\n").as_bytes()).context("nobody listens")
}
