//! The soak of the lattice: three hosts, each a process, and a broker, which are killed, stopped and started again while all send to
//! all. Each host writes down what it sent, what it was told of that, and what it handled; after each round the books of all must
//! balance, and must show one handling of a message at the most, one host at a time that serves a name alone, and of each key of a kind
//! each count once. The states of the keys are in the broker's store: when that is wiped, all of them are lost, and the keys count from
//! one again.
//!
//! A round ends when all is healed: then everything is answered, and nothing is left of what was sent before.

mod books;
mod chaos;
mod child;
mod host;
mod record;

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use airssys_wasm_fixtures::nats::NatsServer;
use anyhow::{Context, Result, bail, ensure};

pub use self::host::{Host, Tamper, run as run_host};
use self::{
    books::{Counts, Hurt, Keys, Round, Tenures, Who},
    chaos::{Deed, SURVIVOR},
    child::Process,
    record::{How, now},
};

const HOSTS: usize = 3;

/// The name that one host serves at a time.
const ALONE: &str = "alone";
const TOPIC: &str = "topic";

/// The kind that all hosts have, and how many of its keys are sent to.
const KIND: &str = "cart";
const KEYS: usize = 64;

/// Short, so that a minute has many failures.
const LEASE: Duration = Duration::from_secs(3);
const HEARTBEAT: Duration = Duration::from_millis(500);
const GRACE: Duration = Duration::from_secs(2);

/// A round has load for so long at least.
const ROUND: Duration = Duration::from_secs(4);

/// What can be chosen about a soak of the lattice.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// How long, in minutes; one round at least
    #[arg(long, default_value_t = 10.0)]
    pub minutes: f64,
    /// What is done is drawn from this; who is faster is up to the scheduler
    #[arg(long, default_value_t = fastrand::u64(..), hide_default_value = true)]
    pub seed: u64,
    /// Lose a message on purpose, or handle one twice, to see that the books notice
    #[arg(long)]
    pub tamper: Option<Tamper>,
}

/// What a soak has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// All is as it was promised.
    Well,
    /// Something was found.
    Found,
    /// What was done on purpose was found, and nothing else.
    FoundTampered,
}

/// Runs it, with logs in `folder`. `program` starts a host: it is given the options of a [`Host`].
///
/// # Errors
///
/// What was in the way.
pub fn run(options: &Options, folder: &Path, program: impl Fn() -> Command) -> Result<Verdict> {
    println!("seed {}", options.seed);
    let until = Instant::now() + Duration::from_secs_f64(options.minutes * 60.0);
    let mut soak = Soak::start(options, folder, &program)?;
    loop {
        let findings = soak.round()?;
        let tampered: Vec<_> = soak.processes()?.filter_map(|process| process.tampered).collect();
        if findings.total > 0 {
            for told in &findings.told {
                println!("{told}");
            }
            println!("{} findings", findings.total);
            let is_tampered = findings.messages.len() == 1 && tampered.iter().eq(&findings.messages);
            return Ok(if is_tampered { Verdict::FoundTampered } else { Verdict::Found });
        }
        ensure!(tampered.is_empty(), "message {:?} was lost or repeated, and it was not found", tampered[0]);
        if Instant::now() >= until && options.tamper.is_none() {
            break;
        }
    }
    Ok(if soak.table() { Verdict::Well } else { Verdict::Found })
}

struct Soak<'a> {
    options: &'a Options,
    folder: &'a Path,
    program: &'a dyn Fn() -> Command,
    random: fastrand::Rng,
    server: NatsServer,
    hosts: [Option<Process>; HOSTS],
    round: u32,
    lives: u32,
    /// The last count of each host's guest, with the process.
    counts: [Option<(u32, u64)>; HOSTS],
    tenures: Tenures,
    keys: Keys,
    totals: BTreeMap<How, Counts>,
    deeds: BTreeMap<&'static str, u64>,
    /// The longest that it took until all was well again.
    recovery: Duration,
    grown: Vec<String>,
}

impl<'a> Soak<'a> {
    fn start(options: &'a Options, folder: &'a Path, program: &'a dyn Fn() -> Command) -> Result<Self> {
        let mut soak = Self {
            options,
            folder,
            program,
            random: fastrand::Rng::with_seed(options.seed),
            server: NatsServer::start().context("the soak needs a broker")?,
            hosts: Default::default(),
            round: 0,
            lives: 0,
            counts: Default::default(),
            tenures: Tenures::default(),
            keys: Keys::default(),
            totals: BTreeMap::new(),
            deeds: BTreeMap::new(),
            recovery: Duration::ZERO,
            grown: Vec::new(),
        };
        for host in 0..HOSTS {
            soak.start_host(host)?;
        }
        Ok(soak)
    }

    fn start_host(&mut self, host: usize) -> Result<()> {
        self.lives += 1;
        let options = Host {
            host,
            life: self.lives,
            round: self.round,
            seed: self.random.u64(..),
            server: self.server.url(),
            folder: self.folder.to_owned(),
            tamper: self.options.tamper.filter(|_| host == SURVIVOR),
        };
        self.hosts[host] = Some(Process::start((self.program)(), &options)?);
        Ok(())
    }

    fn host(&mut self, host: usize) -> Result<&mut Process> {
        self.hosts[host].as_mut().context("a host is not there")
    }

    fn processes(&mut self) -> Result<impl Iterator<Item = &mut Process>> {
        let processes: Option<Vec<_>> = self.hosts.iter_mut().map(Option::as_mut).collect();
        Ok(processes.context("a host is not there")?.into_iter())
    }

    /// Tells all hosts something, and waits until all have done it.
    fn all(&mut self, command: &str, done: &str) -> Result<()> {
        for process in self.processes()? {
            process.tell(command)?;
        }
        self.processes()?.try_for_each(|process| process.hear(done).map(|_| ()))
    }

    fn round(&mut self) -> Result<books::Findings> {
        if self.round == 0 {
            // They have just been started.
            self.processes()?.try_for_each(|process| process.hear("joined").map(|_| ()))?;
        } else {
            self.all(&format!("round {}", self.round), "ready")?;
            // Not before, for the others handle it.
            self.all("load", "loaded")?;
        }
        let lives: Vec<_> = self.processes()?.map(|process| process.life).collect();
        let hurts = self.hurt()?;
        let healed = Instant::now();
        self.all("drain", "drained")?;
        self.all("recover", "well")?;
        self.recovery = self.recovery.max(healed.elapsed());
        self.all("calm", "over")?;
        self.processes()?.try_for_each(Process::read)?;
        let findings = self.audit(&lives, &hurts);
        self.round += 1;
        findings
    }

    /// Does what the plan of the round says, and gives back who could not work when.
    fn hurt(&mut self) -> Result<Vec<Hurt>> {
        let plan = chaos::plan(&mut self.random);
        let begun = Instant::now();
        let mut hurts = Vec::new();
        let mut hurting: Vec<Hurt> = Vec::new();
        for (at, deed) in plan {
            std::thread::sleep(at.saturating_sub(begun.elapsed()));
            let mut hurt = |who| hurting.push(Hurt { who, from: now(), to: Duration::MAX, killed: None });
            match deed {
                Deed::Kill(host) => {
                    hurt(Who::Host(host));
                    self.did("hosts killed");
                    self.kill(host)?;
                    if let Some(hurt) = hurting.last_mut() {
                        hurt.killed = Some(now());
                    }
                }
                Deed::Start(host) => self.start_host(host)?,
                Deed::Stop(host) => {
                    hurt(Who::Host(host));
                    self.did("hosts stopped");
                    self.host(host)?.stop()?;
                }
                Deed::Continue(host) => self.host(host)?.go_on()?,
                Deed::StopBroker => {
                    hurt(Who::Broker);
                    self.did("broker stopped");
                    self.server.stop();
                }
                Deed::ContinueBroker => self.server.cont(),
                Deed::KillBroker { wipe } => {
                    hurt(Who::Broker);
                    self.did(if wipe { "broker killed and wiped" } else { "broker killed" });
                    self.server.kill();
                    if wipe {
                        self.server.wipe();
                        if let Some(hurt) = hurting.last_mut() {
                            hurt.killed = Some(now());
                        }
                    }
                }
                Deed::StartBroker => self.server.restart()?,
            }
            let healed = match deed {
                Deed::Continue(host) => Who::Host(host),
                Deed::ContinueBroker | Deed::StartBroker => Who::Broker,
                _ => continue,
            };
            if let Some(at) = hurting.iter().position(|hurt| hurt.who == healed) {
                hurts.push(Hurt { to: now(), ..hurting.swap_remove(at) });
            }
        }
        std::thread::sleep(ROUND.saturating_sub(begun.elapsed()));
        // Those that were killed: until they have joined.
        for hurt in hurting {
            if let Who::Host(host) = hurt.who {
                self.host(host)?.hear("joined")?;
            }
            hurts.push(Hurt { to: now(), ..hurt });
        }
        Ok(hurts)
    }

    fn did(&mut self, deed: &'static str) {
        *self.deeds.entry(deed).or_default() += 1;
    }

    fn kill(&mut self, host: usize) -> Result<()> {
        self.note_growth(host);
        self.host(host)?.kill()?;
        self.hosts[host] = None;
        Ok(())
    }

    /// What has grown in the process that a host has now.
    fn note_growth(&mut self, host: usize) {
        if let Some(process) = &self.hosts[host] {
            let grown =
                process.growth.found().map(|what| format!("host {host} has grown in {what}\n{}", process.growth));
            self.grown.extend(grown);
        }
    }

    /// Reads the logs of a round, and compares them. `before` are the processes that hosts had when it began.
    fn audit(&mut self, before: &[u32], hurts: &[Hurt]) -> Result<books::Findings> {
        let mut books = Round::default();
        for entry in fs::read_dir(self.folder)? {
            let path = entry?.path();
            let name = path.file_stem().context("it has a name")?.to_string_lossy().into_owned();
            let numbers: Vec<u32> = name.split('.').map(str::parse).collect::<Result<_, _>>()?;
            let [host, life, _] = numbers[..] else { bail!("{name} is no log") };
            for record in record::read(&fs::read_to_string(&path)?) {
                let (at, id, record) = record?;
                books.enter(host as usize, life, at, id, record);
            }
        }
        let counted: Vec<_> = (0..HOSTS).map(|host| books.counted(host)).collect();
        let (mut findings, counts) = books.check(self.round, hurts, HOSTS - 1, &mut self.tenures, &mut self.keys);
        for (host, (answers, unknown)) in counted.into_iter().enumerate() {
            let life = self.host(host)?.life;
            let found = counted_right(before[host], life, self.counts[host], &answers, unknown);
            if let Err(text) = found {
                findings.add(None, format!("counter-{host}: {text}"));
            }
            // Else the answers are those of several processes.
            let last = answers.last().filter(|_| before[host] == life);
            self.counts[host] = last.map(|last| (life, *last));
        }
        for (how, count) in counts {
            self.totals.entry(how).or_default().add(count);
        }
        if findings.total == 0 {
            for entry in fs::read_dir(self.folder)? {
                // Of the round that begins nothing is written yet.
                fs::remove_file(entry?.path())?;
            }
        }
        let sent: u64 = self.totals.values().map(|count| count.sent).sum();
        println!("{} rounds, {} failures, {sent} messages", self.round + 1, self.deeds.values().sum::<u64>());
        Ok(findings)
    }

    /// Prints what there was. Whether no process has grown.
    fn table(&mut self) -> bool {
        (0..HOSTS).for_each(|host| self.note_growth(host));
        println!(
            "\n{:<10} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}",
            "messages", "sent", "handled", "refused", "unknown", "of these", "late", "gone with", "sender", "longest"
        );
        println!("{:<10} {:>49} {:>9} {:>9} {:>9} {:>9}", "", "handled", "", "receiver", "killed", "ms");
        for (how, count) in &self.totals {
            let Counts { sent, handled, refused, unknown, unknown_handled, late, gone, untold, longest } = count;
            println!(
                "{:<10} {sent:>9} {handled:>9} {refused:>9} {unknown:>9} {unknown_handled:>9} {late:>9} {gone:>9} \
                 {untold:>9} {:>9}",
                how.word(),
                longest.as_millis()
            );
        }
        println!();
        for (deed, times) in &self.deeds {
            println!("{times:>6} {deed}");
        }
        println!("{:>6} tenures of `{ALONE}`, one at a time", self.tenures.count());
        println!("{:>6} times a key of `{KIND}` came into memory, one at a time", self.keys.activations());
        println!("{:>6} ms at the most until all was well again", self.recovery.as_millis());
        if let Some(process) = &self.hosts[SURVIVOR] {
            print!("{}", process.growth);
        }
        for grown in &self.grown {
            println!("{grown}");
        }
        self.grown.is_empty()
    }
}

/// Whether the answers of a guest that counts are possible, in order: each count once, and of a process that has lived since before no
/// more than was asked for. `last` is the last count, with the process.
fn counted_right(
    before: u32,
    life: u32,
    last: Option<(u32, u64)>,
    answers: &[u64],
    unknown: u64,
) -> Result<(), String> {
    let twice = answers.windows(2).filter(|two| two[0] == two[1]).map(|two| two[0]).next();
    if let Some(count) = twice.filter(|_| before == life) {
        return Err(format!("it has counted to {count} twice"));
    }
    if let (Some((_, last)), Some(highest)) = (last.filter(|(of, _)| *of == life), answers.last()) {
        let most = last + answers.len() as u64 + unknown;
        if !(last + answers.len() as u64..=most).contains(highest) {
            let len = answers.len();
            return Err(format!("it counts {highest} after {last}, {len} answers and {unknown} of unknown fate"));
        }
    }
    Ok(())
}

impl Counts {
    fn add(&mut self, other: Self) {
        self.sent += other.sent;
        self.handled += other.handled;
        self.refused += other.refused;
        self.unknown += other.unknown;
        self.unknown_handled += other.unknown_handled;
        self.late += other.late;
        self.gone += other.gone;
        self.untold += other.untold;
        self.longest = self.longest.max(other.longest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_those_of_what_was_asked() {
        assert_eq!(counted_right(1, 1, Some((1, 5)), &[6, 7], 0), Ok(()));
        assert_eq!(counted_right(1, 1, Some((1, 5)), &[6, 8], 1), Ok(()));
        counted_right(1, 1, Some((1, 5)), &[6, 8], 0).unwrap_err();
        counted_right(1, 1, Some((1, 5)), &[6, 6, 7], 0).unwrap_err();
        // Of two processes, each counts from one.
        assert_eq!(counted_right(1, 2, Some((1, 5)), &[1, 2, 6, 6], 0), Ok(()));
    }
}
