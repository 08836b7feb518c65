//! A million names, each with a row: what they take, how soon one of them answers, and what goes through all of them.

use std::{
    cell::OnceCell,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use airssys_wasm_actor::AskError;
use airssys_wasm_engine::{EngineConfig, WasmEngine};
use airssys_wasm_fixtures::SMALLEST_KEEPING_ACTOR;
use airssys_wasm_harness::{Reading, Suite};
use airssys_wasm_keyed::{Keyed, KeyedOptions};
use airssys_wasm_measurements::{process, stats::SplitMix};
use airssys_wasm_registry::Refusal;
use airssys_wasm_twins::{
    actors::Guest,
    work::{Workers, payload},
};
use anyhow::{Context, ensure};
use bytes::Bytes;
use hdrhistogram::Histogram;
use tempfile::TempDir;

use super::ours::{install, open, options, populate};
use crate::actor::ours::system;

const KIND: &str = "cart";

/// Rows, unless there is a hurry.
const MANY: u64 = 1_000_000;

/// What each row has.
const STATE: Bytes = Bytes::from_static(&[0; 64]);

pub(super) fn describe(suite: &mut Suite) {
    let rows = Rc::new(Rows::default());
    for (name, read) in [
        // In this order: what is saved by the later ones makes the journals longer.
        ("keyed/open", Rows::open as fn(&Rows, bool) -> anyhow::Result<Vec<Reading>>),
        ("keyed/resident", Rows::resident),
        ("keyed/throughput/zipf", Rows::zipf),
        ("keyed/throughput/uniform", Rows::uniform),
    ] {
        let rows = Rc::clone(&rows);
        // `keyed/open/1000000`, and `keyed/throughput/zipf_1000000`.
        let separator = if name.contains("throughput") { '_' } else { '/' };
        suite.only_in_full(&format!("{name}{separator}{MANY}"));
        suite.reading(name, move |quick| read(&rows, quick));
    }
}

/// A store that all of them use, one after the other.
#[derive(Default)]
struct Rows(OnceCell<(TempDir, u64)>);

impl Rows {
    /// The folder, and how many there are.
    fn get(&self, quick: bool) -> (&Path, u64) {
        let (folder, keys) = self.0.get_or_init(|| {
            let (folder, keys) = (tempfile::tempdir().unwrap(), if quick { 100_000 } else { MANY });
            Workers::Two.runtime().block_on(async {
                let store = open(folder.path()).await;
                populate(&store, KIND, keys, STATE).await;
                store.close().await;
            });
            (folder, keys)
        });
        (folder.path(), *keys)
    }

    /// What a process of its own prints that does this with them, and how long it took from its start to its first line.
    fn process(&self, what: &str, quick: bool, seconds: u64) -> anyhow::Result<(Vec<f64>, Duration)> {
        let (folder, keys) = self.get(quick);
        let started = Instant::now();
        let mut process = Command::new(std::env::current_exe()?)
            .args([PROBE, what, &keys.to_string(), &seconds.to_string()])
            .arg(folder)
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(process.stdout.take().context("piped")?).read_line(&mut line)?;
        let taken = started.elapsed();
        ensure!(process.wait()?.success(), "{what} has failed");
        let figures = line.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        Ok((figures, taken))
    }

    /// From the start of a process to the first answer.
    fn open(&self, quick: bool) -> anyhow::Result<Vec<Reading>> {
        let mut values = Vec::new();
        for _ in 0..if quick { 1 } else { 5 } {
            values.push(self.process(OPEN, quick, 0)?.1.as_nanos() as f64);
        }
        let id = format!("keyed/open/{}", self.get(quick).1);
        Ok(vec![Reading { id, unit: "ns", values, target: Some(("goal", 2e9)) }])
    }

    /// The most that a process had in memory while keys all over the store were asked.
    fn resident(&self, quick: bool) -> anyhow::Result<Vec<Reading>> {
        let (values, _) = self.process(RESIDENT, quick, 0)?;
        let id = format!("keyed/resident/{}", self.get(quick).1);
        Ok(vec![Reading { id, unit: "bytes", values, target: Some(("goal", f64::from(1_u32 << 31))) }])
    }

    fn zipf(&self, quick: bool) -> anyhow::Result<Vec<Reading>> {
        self.throughput(quick, ZIPF, if quick { 5 } else { 60 }, 10_000.0, Some(("goal", 5e6)))
    }

    /// For as long as it is to be steady.
    fn uniform(&self, quick: bool) -> anyhow::Result<Vec<Reading>> {
        self.throughput(quick, UNIFORM, if quick { 5 } else { 600 }, 100_000.0, None)
    }

    fn throughput(
        &self,
        quick: bool,
        which: &str,
        seconds: u64,
        message: f64,
        tail: Option<(&'static str, f64)>,
    ) -> anyhow::Result<Vec<Reading>> {
        /// What two full tables of rows take, which come and go.
        const GROWTH: f64 = (64 << 20) as f64;
        /// The same, when they have come and gone for half of the time: what goes on growing is a leak.
        const OF_SECOND_HALF: f64 = (8 << 20) as f64;
        let (figures, _) = self.process(which, quick, seconds)?;
        let [mean, slowest, p99, growth, later] = figures[..] else { anyhow::bail!("not five figures: {figures:?}") };
        let id = format!("keyed/throughput/{which}_{}", self.get(quick).1);
        let reading =
            |name: &str, unit, value, target| Reading { id: format!("{id}{name}"), unit, values: vec![value], target };
        Ok(vec![
            reading("", "ns", mean, Some(("goal", message))),
            reading("/slowest", "ns", slowest, Some(("goal", message)).filter(|_| which == UNIFORM)),
            reading("/p99", "ns", p99, tail),
            reading("/growth", "bytes", growth, Some(("goal", GROWTH)).filter(|_| which == UNIFORM)),
            reading(
                "/growth_of_second_half",
                "bytes",
                later,
                Some(("goal", OF_SECOND_HALF)).filter(|_| which == UNIFORM),
            ),
        ])
    }
}

/// What such a process is told.
const PROBE: &str = "--keyed";
const OPEN: &str = "open";
const RESIDENT: &str = "resident";
const ZIPF: &str = "zipf";
const UNIFORM: &str = "uniform";

/// What a process of its own is started for, if these are the arguments of one.
pub(crate) fn probe(arguments: &[String]) -> Option<anyhow::Result<()>> {
    let [flag, what, keys, seconds, folder] = arguments else { return None };
    (flag == PROBE).then(|| {
        let (keys, seconds) = (keys.parse()?, Duration::from_secs(seconds.parse()?));
        Workers::Two.runtime().block_on(run(what, keys, seconds, Path::new(folder)))
    })
}

async fn run(what: &str, keys: u64, length: Duration, folder: &Path) -> anyhow::Result<()> {
    let engine = WasmEngine::new(EngineConfig::large().compile_in_process())?;
    let guest = Guest::new(&engine, &wat::parse_str(SMALLEST_KEEPING_ACTOR)?);
    let system = system(&engine);
    // Or no more could come in a second than there are in memory.
    let options = KeyedOptions { residency: Duration::ZERO, ..options() };
    let most = options.live;
    let store = open(folder).await;
    let kind = install(&system, KIND, &guest, options, &store).await;
    ensure!(kind.stats().rows == keys, "{} rows", kind.stats().rows);
    match what {
        OPEN => {
            ask(&kind, keys / 2).await;
            println!();
        }
        RESIDENT => {
            let clients = Arc::new(Clients::new(kind.clone(), Keys::Uniform(keys)));
            clients.run(Until::Asked(10 * most as u64)).await;
            let live = kind.stats().live;
            ensure!(live <= most, "{live} are in memory");
            println!("{}", process::read().context(UNREADABLE)?.peak);
        }
        _ => {
            let draw = if what == ZIPF { Keys::Zipf(Zipf::new(keys)) } else { Keys::Uniform(keys) };
            let clients = Arc::new(Clients::new(kind.clone(), draw));
            throughput(&clients, length).await?;
            eprintln!("{:?}", kind.stats());
        }
    }
    Ok(())
}

const UNREADABLE: &str = "this system does not tell how much memory a process has";

/// Asks until it is admitted.
async fn ask(kind: &Keyed, key: u64) {
    let actor = kind.actor(&key.to_string()).unwrap();
    loop {
        match actor.ask(payload(64)).await {
            Ok(answer) => return assert_eq!(answer.len(), 64),
            // No room, until some have left.
            Err(AskError::NotSent(undelivered)) if undelivered.reason == Refusal::Full => {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// The time a message, after a while: in all, and in the slowest of ten parts; the 99th percentile of answers; and what more
/// is in memory at the end than before, and than after half of the time.
async fn throughput(clients: &Arc<Clients>, length: Duration) -> anyhow::Result<()> {
    const PARTS: u32 = 10;
    let part = length / PARTS;
    for _ in 0..PARTS {
        clients.run(Until::Over(part)).await;
        // From then on as many leave as come.
        if 10 * clients.kind.stats().live >= 8 * options().live {
            break;
        }
    }
    let resident = || anyhow::Ok(process::read().context(UNREADABLE)?.resident as f64);
    let before = resident()?;
    let mut half = before;
    let (mut slowest, mut latencies, mut taken) = (0.0_f64, Histogram::<u64>::new(3)?, Duration::ZERO);
    for part_of in 0..PARTS {
        if part_of == PARTS / 2 {
            half = resident()?;
        }
        let (of_part, took) = clients.run(Until::Over(part)).await;
        slowest = slowest.max(took.as_nanos() as f64 / of_part.len() as f64);
        latencies.add(of_part)?;
        taken += took;
    }
    let after = resident()?;
    let mean = taken.as_nanos() as f64 / latencies.len() as f64;
    let p99 = latencies.value_at_quantile(0.99);
    println!("{mean} {slowest} {p99} {} {}", after - before, after - half);
    Ok(())
}

/// Those who ask, each as soon as it has been answered.
struct Clients {
    kind: Keyed,
    keys: Keys,
    /// What each of them draws from goes on from here.
    seed: AtomicU64,
}

/// When they have done enough.
#[derive(Clone, Copy)]
enum Until {
    Asked(u64),
    Over(Duration),
}

impl Clients {
    const MANY: u64 = 128;

    fn new(kind: Keyed, keys: Keys) -> Self {
        Self { kind, keys, seed: AtomicU64::new(1) }
    }

    /// How long each answer took, and all of it.
    async fn run(self: &Arc<Self>, until: Until) -> (Histogram<u64>, Duration) {
        let started = Instant::now();
        let clients: Vec<_> = (0..Self::MANY)
            .map(|_| {
                let clients = Arc::clone(self);
                tokio::spawn(async move {
                    let mut random = SplitMix(clients.seed.fetch_add(1, Ordering::Relaxed) << 32);
                    let mut latencies = Histogram::<u64>::new(3).unwrap();
                    let mut asked = Instant::now();
                    while match until {
                        Until::Asked(messages) => latencies.len() < messages / Self::MANY,
                        Until::Over(length) => asked - started < length,
                    } {
                        ask(&clients.kind, clients.keys.draw(&mut random)).await;
                        let answered = Instant::now();
                        latencies.record((answered - asked).as_nanos() as u64).unwrap();
                        asked = answered;
                    }
                    latencies
                })
            })
            .collect();
        let mut latencies = Histogram::new(3).unwrap();
        for client in clients {
            latencies.add(client.await.unwrap()).unwrap();
        }
        (latencies, started.elapsed())
    }
}

/// Which keys are asked.
enum Keys {
    Uniform(u64),
    Zipf(Zipf),
}

impl Keys {
    fn draw(&self, random: &mut SplitMix) -> u64 {
        match self {
            Self::Uniform(keys) => random.below(*keys as usize) as u64,
            Self::Zipf(zipf) => zipf.draw(random),
        }
    }
}

/// Zipf's distribution with the exponent of YCSB, drawn as there: Gray et al., Quickly generating billion-record synthetic
/// databases, SIGMOD 1994.
struct Zipf {
    keys: f64,
    zeta: f64,
    eta: f64,
}

impl Zipf {
    const EXPONENT: f64 = 0.99;

    fn new(keys: u64) -> Self {
        let weight = |rank: u64| (rank as f64).powf(-Self::EXPONENT);
        let zeta: f64 = (1..=keys).map(weight).sum();
        let two = 1.0 + weight(2);
        let eta = (1.0 - (2.0 / keys as f64).powf(1.0 - Self::EXPONENT)) / (1.0 - two / zeta);
        Self { keys: keys as f64, zeta, eta }
    }

    /// Ranks are all over the keys, so that those asked most are no neighbours in the store.
    fn draw(&self, random: &mut SplitMix) -> u64 {
        /// Without a factor in common with the number of keys, which has twos and fives only.
        const SPREAD: u64 = 611_953;
        let drawn = (random.draw() >> 11) as f64 / (1_u64 << 53) as f64;
        let share = drawn * self.zeta;
        let rank = if share < 1.0 {
            0
        } else if share < 1.0 + 0.5_f64.powf(Self::EXPONENT) {
            1
        } else {
            let rank = self.keys * (self.eta * drawn - self.eta + 1.0).powf(1.0 / (1.0 - Self::EXPONENT));
            (rank as u64).min(self.keys as u64 - 1)
        };
        rank * SPREAD % self.keys as u64
    }
}
