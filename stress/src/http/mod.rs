//! HTTP under attack: healthy and hostile clients over loopback at one server, round after round. [`run`] is the program
//! `http`, which `cargo xtask http` builds and runs.
//!
//! What is checked:
//!
//! - Each request of a healthy client gets the right answer, or is refused as it is to be for want of room or time.
//! - No hostile client is served that is not to be, and none hangs on for longer than the server lets it.
//! - Nothing of a round is left: no task, no place at a component, no descriptor; and over the rounds the process does not
//!   grow.
//! - Nothing panics.

mod book;
mod healthy;
mod hostile;
mod site;

use std::{
    net::{IpAddr, Ipv4Addr},
    panic,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use airssys_wasm_measurements::process;
use anyhow::Result;
use parking_lot::Mutex;
use tokio::{
    runtime::Runtime,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use self::{
    book::Book,
    healthy::Client,
    hostile::Foe,
    site::{Guests, Site},
};
use crate::{growth::Growth, soak::minutes, threads};

/// What can be chosen about it.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// How long, in minutes; one round at least
    #[arg(long, default_value_t = 10.0, value_parser = minutes)]
    pub minutes: f64,
    /// What is done is drawn from this; who is faster is up to the scheduler
    #[arg(long, default_value_t = fastrand::u64(..), hide_default_value = true)]
    pub seed: u64,
}

/// How it ended, by the code that its program exits with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Everything was as it must be.
    Clean = 0,
    /// Something was wrong.
    Failed = 1,
    /// Somebody ended it early, and until then everything was as it must be.
    Interrupted = 130,
}

const ROUND: Duration = Duration::from_secs(20);
/// One that would be shorter is left out.
const SHORTEST_ROUND: Duration = Duration::from_secs(2);
/// How long anything may take to come to its end.
const LONGEST: Duration = Duration::from_secs(120);

/// Clients of each sort. Each has an address of its own, as far as the system has them.
const HEALTHY: u8 = 6;
const FOES: u8 = 12;
/// Guests that there may be at a time.
const GUESTS: usize = 128;
/// Findings that are printed.
const FINDINGS: usize = 40;

static PANICS: AtomicU64 = AtomicU64::new(0);

/// Lets the clients loose, says what it finds, and how it ended.
///
/// # Errors
///
/// When it cannot begin.
pub fn run(options: &Options, interrupted: &AtomicBool) -> Result<Ending> {
    println!("seed {}, {HEALTHY} healthy clients, {FOES} hostile ones", options.seed);
    let guests = site::load()?;
    // Of the server, and of its clients.
    let runtimes = [threads::two_workers()?, threads::two_workers()?];
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |panicked| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        before(panicked);
    }));

    let (mut random, started) = (fastrand::Rng::with_seed(options.seed), Instant::now());
    let time = Duration::from_secs_f64(options.minutes * 60.0);
    let (mut book, mut growth) = (Book::default(), Growth::new(GUESTS));
    let findings = loop {
        let left = time.saturating_sub(started.elapsed());
        if growth.rounds() > 0 && left < SHORTEST_ROUND {
            break growth.found().map(|name| format!("it leaks: {name} grew")).collect();
        }
        let began = Instant::now();
        // The first opens what the process keeps.
        let descriptors = (growth.rounds() > 0).then(descriptors).flatten();
        let round = round(&runtimes, &guests, left.min(ROUND), random.fork(), (interrupted, descriptors))?;
        let (told, findings) = (round.told(began.elapsed()), round.findings());
        if findings.is_empty() {
            let [servers, clients] = &runtimes;
            servers.block_on(threads::begin(&guests.engine, threads::BLOCKING));
            clients.block_on(threads::begin(&guests.engine, threads::BLOCKING));
        }
        growth.end_round(process::read());
        println!("{:>6.0} s  round {}: {told}", started.elapsed().as_secs_f64(), growth.rounds());
        book.add(round);
        if !findings.is_empty() || interrupted.load(Ordering::Relaxed) {
            break findings;
        }
    };
    // What still hangs must not keep the result from being told.
    runtimes.into_iter().for_each(Runtime::shutdown_background);
    println!("\n{book}{growth}");
    for finding in findings.iter().take(FINDINGS) {
        println!("FOUND: {finding}");
    }
    if !findings.is_empty() {
        println!("{} findings; once more with: --seed {}", findings.len(), options.seed);
        return Ok(Ending::Failed);
    }
    Ok(if interrupted.load(Ordering::Relaxed) { Ending::Interrupted } else { Ending::Clean })
}

fn descriptors() -> Option<u64> {
    process::read().map(|reading| reading.descriptors)
}

/// A round: a server from its beginning to its end.
fn round(
    [servers, clients]: &[Runtime; 2],
    guests: &Guests,
    time: Duration,
    mut random: fastrand::Rng,
    (interrupted, before): (&AtomicBool, Option<u64>),
) -> Result<Book> {
    PANICS.store(0, Ordering::Relaxed);
    let book = Arc::<Mutex<Book>>::default();
    let site = servers.block_on(Site::open(guests))?;
    let (server, started) = (site.address, Instant::now());
    let over = CancellationToken::new();
    let clients_end = clients.block_on(async {
        let mut tasks = JoinSet::new();
        for number in 0..HEALTHY {
            let (from, book) = (address(2 + number), Arc::clone(&book));
            tasks.spawn(Client { server, from, random: random.fork(), book }.run(over.clone()));
        }
        for number in 0..FOES {
            let (from, book) = (address(100 + number), Arc::clone(&book));
            tasks.spawn(Foe { server, from, random: random.fork(), book }.run(over.clone()));
        }
        while started.elapsed() < time && !interrupted.load(Ordering::Relaxed) && book.lock().is_well() {
            sleep(Duration::from_millis(50)).await;
        }
        over.cancel();
        let ended = timeout(LONGEST, async { while tasks.join_next().await.is_some() {} }).await;
        ended.map_err(|_| format!("not all clients had ended after {LONGEST:?}"))
    });
    let closed = servers.block_on(async { timeout(LONGEST, site.close()).await });
    let closed = closed.unwrap_or_else(|_| Err(format!("the server had not ended after {LONGEST:?}")));
    let at_rest = servers.block_on(async {
        let at_rest = async {
            while [servers, clients].iter().any(|runtime| runtime.metrics().num_alive_tasks() > 0)
                || before.is_some_and(|before| descriptors() > Some(before))
            {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(LONGEST, at_rest).await
    });
    let mut book = std::mem::take(&mut *book.lock());
    clients_end.err().into_iter().chain(closed.err()).for_each(|finding| book.find(finding));
    if at_rest.is_err() {
        let left = [servers, clients].map(|runtime| runtime.metrics().num_alive_tasks());
        let now = descriptors();
        book.find(format!("{left:?} tasks of the server and of clients are left, {now:?} descriptors of {before:?}"));
    }
    let panics = PANICS.load(Ordering::Relaxed);
    if panics > 0 {
        book.find(format!("{panics} panics"));
    }
    Ok(book)
}

fn address(number: u8) -> IpAddr {
    Ipv4Addr::new(127, 0, 0, number).into()
}
