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
use anyhow::{Result, ensure};
use cast::{BLOCK, Code};
use ledger::{Finding, Kind, audit};
use load::{CHAOS, Sender, TASKS};
use meter::Meter;
use tally::Tally;
use tokio::{
    sync::broadcast::{self, error::TryRecvError},
    task::JoinSet,
    time::{sleep, timeout},
};
use worker::OnPurpose;
use world::World;

use airssys_wasm_measurements::process;

/// What can be chosen about a soak.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long, in all.
    pub time: Duration,
    /// What is done, and with whom, is drawn from this.
    pub seed: u64,
    /// How many actors, at least; there are as many as full blocks have.
    pub actors: usize,
}

/// How a soak ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Everything was as it must be.
    Clean,
    /// Somebody ended it early, and until then everything was.
    Interrupted,
    /// Messages were lost, and nothing else was wrong.
    Lost,
    /// Something was wrong.
    Failed,
}

const ROUND: Duration = Duration::from_secs(10);
/// One that would be shorter is left out.
const SHORTEST_ROUND: Duration = Duration::from_secs(1);
/// How often the dead letters are taken out.
const GLANCE: Duration = Duration::from_millis(20);
/// How long anything may take to come to its end.
const LONGEST: Duration = Duration::from_secs(30);

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
    println!("seed {}, {} actors", options.seed, options.actors.div_ceil(BLOCK) * BLOCK);
    let soak = Soak {
        code: Code::load()?,
        blocks: options.actors.div_ceil(BLOCK),
        meter: Meter::install(options.actors.div_ceil(BLOCK) * BLOCK)?,
        interrupted,
    };
    ensure!(soak.blocks > 0, "there must be actors");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build()?;
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |panicked| {
        if !panicked.payload().is::<OnPurpose>() {
            PANICS.fetch_add(1, Ordering::Relaxed);
            before(panicked);
        }
    }));

    let (mut random, started) = (fastrand::Rng::with_seed(options.seed), Instant::now());
    let mut tally = Tally::new(soak.blocks * cast::GUESTS);
    let findings = loop {
        let left = options.time.saturating_sub(started.elapsed());
        if tally.rounds() > 0 && left < SHORTEST_ROUND {
            break tally.growth();
        }
        let findings = runtime.block_on(soak.round(left.min(ROUND), random.fork(), &mut tally))?;
        tally.end_round(process::read());
        println!("{:>6.0} s  {}", started.elapsed().as_secs_f64(), tally.progress());
        if !findings.is_empty() {
            break findings;
        }
        if interrupted.load(Ordering::Relaxed) {
            break Vec::new();
        }
    };
    // What still hangs must not keep the result from being told.
    runtime.shutdown_background();
    println!("\n{tally}");
    for finding in findings.iter().take(FINDINGS) {
        println!("FOUND: {finding}");
    }
    if findings.len() > FINDINGS {
        println!("and {} more", findings.len() - FINDINGS);
    }
    if !findings.is_empty() {
        println!("once more with: --seed {} --actors {}", options.seed, options.actors);
    }
    Ok(if findings.is_empty() {
        if interrupted.load(Ordering::Relaxed) { Ending::Interrupted } else { Ending::Clean }
    } else if findings.iter().any(Finding::is_loss) && findings.iter().all(Finding::is_of_loss) {
        Ending::Lost
    } else {
        Ending::Failed
    })
}

/// What all rounds have in common.
struct Soak<'a> {
    code: Code,
    blocks: usize,
    meter: Meter,
    interrupted: &'a AtomicBool,
}

impl Soak<'_> {
    /// A round: a system from its beginning to its end. Gives what was wrong.
    async fn round(&self, time: Duration, mut random: fastrand::Rng, tally: &mut Tally) -> Result<Vec<Finding>> {
        self.meter.reset();
        PANICS.store(0, Ordering::Relaxed);
        let started = Instant::now();
        let world = World::new(&self.code, self.blocks, random.fork()).await?;
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
        let mut findings = self.put_down(&world, tasks, tally.rounds() % 3 == 2).await;
        // While something still runs, nothing needs to balance.
        let is_at_rest = findings.is_empty();
        note_events(&world, &mut events);
        world.bury();
        drop(events);
        findings.extend(world.findings());
        let panics = PANICS.load(Ordering::Relaxed);
        if panics > 0 {
            findings.push(Finding::Other(format!("{panics} panics that nobody ordered")));
        }
        let letters = world.system.dead_letters();
        if letters.evicted() > 0 || letters.total() != self.meter.counter("airssys_actor_dead_letters_total") {
            findings.push(Finding::Other(format!("dead letters are missing: {letters:?}")));
        }
        let (receivers, outboxes, desks) = self.books(&world);
        let (unbalanced, lines) = audit(&receivers, &outboxes, &desks);
        if is_at_rest {
            findings.extend(unbalanced);
        }
        tally.add(started.elapsed(), &lines, &outboxes, &world.deeds(), &self.meter);
        if is_at_rest && let Err(world) = Arc::try_unwrap(world) {
            let holders = Arc::strong_count(&world) - 1;
            findings.push(Finding::Other(format!("{holders} still hold on to what has ended")));
        }
        Ok(findings)
    }

    /// Ends the load and the system, in this order or at the same time, until nothing runs any more.
    async fn put_down(&self, world: &Arc<World>, mut tasks: JoinSet<()>, at_once: bool) -> Vec<Finding> {
        let mut findings = Vec::new();
        let mut late = |what: &str| {
            findings.push(Finding::Other(format!("{what} within {LONGEST:?}:\n{}", world.pending())));
        };
        if at_once {
            world.did("shut down under load");
        } else {
            world.end();
            // One that has no memory to start with waits until others let go of theirs, and so does who asks it.
            world.all(Kind::Miser).for_each(|miser| miser.actor.stop(Stop::Drain));
            if timeout(LONGEST, async { while tasks.join_next().await.is_some() {} }).await.is_err() {
                late("the senders did not end");
                return findings;
            }
            if timeout(LONGEST, world.count()).await.is_err() {
                late("counters did not answer");
                return findings;
            }
        }
        let report = world.system.shutdown(LONGEST).await;
        if !(report.killed.is_empty() && report.stuck.is_empty()) {
            late(&format!("not all actors ended by themselves, {report:?}"));
        }
        world.end();
        let at_rest = async {
            while tasks.join_next().await.is_some() {}
            while tokio::runtime::Handle::current().metrics().num_alive_tasks() > 0 {
                sleep(Duration::from_millis(1)).await;
            }
        };
        if timeout(LONGEST, at_rest).await.is_err() {
            late("not all tasks ended");
        }
        if self.meter.actors() != 0 || !world.system.actors().is_empty() {
            late("there are still actors, which should be gone");
        }
        findings
    }

    /// What the ledger compares.
    fn books(&self, world: &World) -> (Vec<(Kind, u64)>, Vec<ledger::Outbox>, Vec<ledger::Desk>) {
        let metered = (0..world.ids.len()).map(|receiver| (cast::kind_of(receiver), self.meter.handled(receiver)));
        (
            metered.chain([(Kind::Subscription, 0)]).collect(),
            world.outboxes.iter().map(|outbox| outbox.lock().clone()).collect(),
            world.desks.iter().map(|desk| desk.lock().clone()).collect(),
        )
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

type Deeds = BTreeMap<&'static str, u64>;
