//! The soak: a system of hundreds of actors under mixed load and chaos, round after round, whose books must balance after
//! each. [`run`] is the program `soak`, which `cargo xtask soak` builds and runs.
//!
//! What is checked:
//!
//! - Each message is accounted for: it was handled, given back, is a dead letter, or its asker was told. `ledger.rs` says
//!   what is exact, and what is known within bounds only.
//! - Each pair of sender and receiver keeps its order. Natives and the host's subscriptions are looked at message by
//!   message; listeners by what they say they have heard; of other guests it is not known.
//! - An answer is that to its own question, where natives are asked; and each ask ends.
//! - Counters that are upgraded and rolled back all the time count each message once.
//! - Nothing panics but on purpose.
//! - Nothing of a round is left: no task, no actor, nobody who holds on to its world; and over the rounds the process does
//!   not grow.

mod cast;
mod chaos;
mod ledger;
mod load;
mod meter;
mod tally;
mod worker;
mod world;

use std::{
    collections::BTreeMap,
    panic,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use airssys_wasm_actor::{Stop, SystemEvent};
use airssys_wasm_measurements::process;
use anyhow::Result;
use cast::{BLOCK, Code};
use ledger::{Finding, Kind, Line, audit};
use load::{CHAOS, Sender, TASKS};
use meter::{ACTORS, Meter};
use tally::Tally;
use tokio::{
    runtime::Handle,
    sync::broadcast::{self, error::TryRecvError},
    task::JoinSet,
    time::{sleep, timeout},
};
use worker::OnPurpose;
use world::World;

use crate::threads;

/// What can be chosen about a soak.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// How long, in minutes; one round at least
    #[arg(long, default_value_t = 10.0, value_parser = minutes)]
    pub minutes: f64,
    /// What is done, and with whom, is drawn from this; who is faster is up to the scheduler
    #[arg(long, default_value_t = fastrand::u64(..), hide_default_value = true)]
    pub seed: u64,
    /// How many actors, rounded up to a multiple of 25
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    pub actors: u16,
    /// Lose each N-th message to natives on its way, to see that the books notice
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub lose_one_in: Option<u64>,
}

/// Up to a year.
pub(crate) fn minutes(text: &str) -> Result<f64, String> {
    let minutes: f64 = text.parse().map_err(|error| format!("{error}"))?;
    if (0.0..=525_600.0).contains(&minutes) { Ok(minutes) } else { Err("from 0 to 525600".into()) }
}

/// How a soak ended, by the code that its program exits with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Everything was as it must be.
    Clean = 0,
    /// Something was wrong.
    Failed = 1,
    /// The messages that were lost on purpose were found, each of them, and nothing else was wrong.
    Lost = 3,
    /// Somebody ended it early, and until then everything was as it must be.
    Interrupted = 130,
}

const ROUND: Duration = Duration::from_secs(10);
/// One that would be shorter is left out.
const SHORTEST_ROUND: Duration = Duration::from_secs(1);
/// How often the dead letters are taken out.
const GLANCE: Duration = Duration::from_millis(20);
/// How long anything may take to come to its end.
const LONGEST: Duration = Duration::from_secs(30);

/// The deed that is a message lost on purpose.
const LOST: &str = "lost on purpose";

/// Findings that are printed.
const FINDINGS: usize = 40;

/// Panics that nobody ordered.
static PANICS: AtomicU64 = AtomicU64::new(0);

/// Runs a soak, says what it finds, and how it ended. Once in a process, for it takes the metrics and the panics.
///
/// # Errors
///
/// When it cannot begin.
pub fn run(options: &Options, interrupted: &AtomicBool) -> Result<Ending> {
    let blocks = usize::from(options.actors).div_ceil(BLOCK);
    println!("seed {}, {} actors", options.seed, blocks * BLOCK);
    let soak = Soak { code: Code::load()?, blocks, meter: Meter::install()?, options, interrupted };
    let runtime = threads::two_workers()?;
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |panicked| {
        if !panicked.payload().is::<OnPurpose>() {
            PANICS.fetch_add(1, Ordering::Relaxed);
            before(panicked);
        }
    }));

    let (mut random, started) = (fastrand::Rng::with_seed(options.seed), Instant::now());
    let time = Duration::from_secs_f64(options.minutes * 60.0);
    let mut tally = Tally::new(blocks * cast::GUESTS);
    let findings = loop {
        let left = time.saturating_sub(started.elapsed());
        if tally.rounds() > 0 && left < SHORTEST_ROUND {
            break tally.growth();
        }
        let (findings, told) = runtime.block_on(soak.round(left.min(ROUND), random.fork(), &mut tally))?;
        if findings.is_empty() {
            runtime.block_on(threads::begin(&soak.code.engine, threads::BLOCKING));
        }
        tally.end_round(process::read());
        println!("{:>6.0} s  round {}: {told}", started.elapsed().as_secs_f64(), tally.rounds());
        if !findings.is_empty() || interrupted.load(Ordering::Relaxed) {
            break findings;
        }
    };
    // What still hangs must not keep the result from being told.
    runtime.shutdown_background();
    println!("\n{tally}");
    for finding in findings.iter().take(FINDINGS) {
        println!("FOUND: {finding}");
    }
    if !findings.is_empty() {
        println!("{} findings; once more with: --seed {} --actors {}", findings.len(), options.seed, options.actors);
    }
    let lost = findings.iter().map(|finding| match finding {
        Finding::Lost(messages, _) => Some(*messages),
        Finding::Other(_) => None,
    });
    Ok(match lost.sum::<Option<u64>>() {
        Some(0) if interrupted.load(Ordering::Relaxed) => Ending::Interrupted,
        Some(0) => Ending::Clean,
        Some(lost) if lost == tally.count(LOST) => Ending::Lost,
        _ => Ending::Failed,
    })
}

/// What all rounds have in common.
struct Soak<'a> {
    code: Code,
    blocks: usize,
    meter: Meter,
    options: &'a Options,
    interrupted: &'a AtomicBool,
}

impl Soak<'_> {
    /// A round: a system from its beginning to its end. Gives what was wrong, and what it came to.
    async fn round(
        &self,
        time: Duration,
        mut random: fastrand::Rng,
        tally: &mut Tally,
    ) -> Result<(Vec<Finding>, String)> {
        self.meter.reset();
        PANICS.store(0, Ordering::Relaxed);
        let started = Instant::now();
        let world = World::new(&self.code, self.blocks, random.fork(), self.options.lose_one_in).await?;
        let mut events = world.system.events();
        let mut tasks = JoinSet::new();
        for number in 0..TASKS {
            tasks.spawn(Sender::new(&world, number).run(random.fork()));
        }
        for number in TASKS..TASKS + CHAOS {
            tasks.spawn(chaos::run(Sender::new(&world, number), random.fork()));
        }
        let is_over = || started.elapsed() >= time || self.interrupted.load(Ordering::Relaxed);
        while !is_over() && world.findings().is_empty() {
            sleep(GLANCE).await;
            world.bury();
            note_events(&world, &mut events);
        }
        let hangs = self.put_down(&world, tasks, tally.rounds() % 3 == 2).await.err();
        note_events(&world, &mut events);
        world.bury();
        drop(events);
        let panics = PANICS.load(Ordering::Relaxed);
        if panics > 0 {
            world.report(Finding::Other(format!("{panics} panics that nobody ordered")));
        }
        let letters = world.system.dead_letters();
        if letters.evicted() > 0 || letters.total() != self.meter.read("airssys_actor_dead_letters_total") {
            world.report(Finding::Other(format!("dead letters are missing: {letters:?}")));
        }
        let mut findings = world.findings();
        let (unbalanced, lines) = self.audit(&world);
        let told = tally.add(started.elapsed(), lines, world.counts().chain(self.meter.counters()));
        if let Some(hangs) = hangs {
            // While something still runs, nothing needs to balance.
            findings.push(Finding::Other(format!("{hangs} within {LONGEST:?}:\n{}", world.pending())));
            return Ok((findings, told));
        }
        findings.extend(unbalanced);
        if let Err(world) = Arc::try_unwrap(world) {
            let holders = Arc::strong_count(&world) - 1;
            findings.push(Finding::Other(format!("{holders} still hold on to what has ended")));
        }
        Ok((findings, told))
    }

    /// Ends the load and the system, in this order or at the same time, until nothing runs any more. Fails with what did
    /// not happen in time.
    async fn put_down(&self, world: &Arc<World>, mut tasks: JoinSet<()>, at_once: bool) -> Result<(), String> {
        if at_once {
            world.did("shut down under load");
        } else {
            world.end();
            // One that has no memory to start with waits until others let go of theirs, and so does who asks it.
            world.all(Kind::Miser).for_each(|miser| miser.actor.stop(Stop::Drain));
            let ended = timeout(LONGEST, async { while tasks.join_next().await.is_some() {} }).await;
            ended.map_err(|_| "the senders did not end")?;
            timeout(LONGEST, world.count()).await.map_err(|_| "counters did not answer")?;
        }
        let report = world.system.shutdown(LONGEST).await;
        if !(report.killed.is_empty() && report.stuck.is_empty()) {
            return Err(format!("not all actors ended by themselves, {report:?}"));
        }
        world.end();
        let at_rest = async {
            while tasks.join_next().await.is_some() {}
            while Handle::current().metrics().num_alive_tasks() > 0 {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(LONGEST, at_rest).await.map_err(|_| "not all tasks ended")?;
        if self.meter.read(ACTORS) != 0 || !world.system.actors().is_empty() {
            return Err("there are still actors, which should be gone".into());
        }
        Ok(())
    }

    fn audit(&self, world: &World) -> (Vec<Finding>, BTreeMap<Kind, Line>) {
        let metered = world.ids.iter().enumerate().map(|(at, id)| (cast::kind_of(at), self.meter.read(id.as_str())));
        let outboxes: Vec<_> = world.outboxes.iter().map(|outbox| outbox.lock().clone()).collect();
        let desks: Vec<_> = world.desks.iter().map(|desk| desk.lock().clone()).collect();
        audit(&metered.chain([(Kind::Subscription, 0)]).collect::<Vec<_>>(), &outboxes, &desks)
    }
}

/// Counts what only events tell. One who lags behind misses some, and says how many.
fn note_events(world: &World, events: &mut broadcast::Receiver<SystemEvent>) {
    loop {
        match events.try_recv() {
            Ok(SystemEvent::RolledBack { .. }) => world.did("rolled back by itself"),
            Ok(SystemEvent::GivenUp { .. }) => world.did("given up"),
            Ok(_) => {}
            Err(TryRecvError::Lagged(missed)) => world.did_often("events missed", missed),
            Err(TryRecvError::Empty | TryRecvError::Closed) => return,
        }
    }
}

/// Which receiver a name is that of.
fn receiver_of(name: &str) -> Option<usize> {
    name.strip_prefix('r')?.parse().ok()
}
