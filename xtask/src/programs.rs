//! The benchmark program: built, asked what it has, and run, in processes of its own or in pairs of them.

use std::{
    env, fs,
    io::{BufRead, BufReader, IsTerminal},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use airssys_wasm_measurements::{Listed, PROTOCOL, Plan, Turns, stats::SplitMix};
use anyhow::{Context, Result, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use serde::de::DeserializeOwned;

use crate::{
    interrupt::{self, Running},
    links,
    workspace::{JAVASCRIPT_GUEST, PEERS_PROGRAM, root, shown, target_folder},
};

const PACKAGE: &str = "airssys-wasm-benches";
const STRESS: &str = "airssys-wasm-stress";
/// Of a workspace of its own.
pub(crate) const PEERS: &str = "benches/peers/Cargo.toml";

/// A benchmark program.
#[derive(Debug, Clone)]
pub(crate) struct Program(pub(crate) PathBuf);

/// The benchmark program of a build: linked once, or several times with its functions in another order each.
#[derive(Debug, Clone)]
pub(crate) struct Built {
    /// At least one.
    pub(crate) links: Vec<PathBuf>,
}

pub(crate) fn cargo(workspace: &Path) -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace);
    cargo
}

/// Builds the program that looks for faults, and has it do one of its tasks, with the arguments that are to come.
pub(crate) fn stress(task: &str) -> Command {
    let mut cargo = cargo(root());
    cargo.args(["run", "--release", "--package", STRESS, "--", task]);
    // glibc's arenas, one for each thread, fill as tasks happen to move between threads: on a busy machine that looks like a
    // leak of some MB. With one arena a leak is what grows.
    cargo.env("MALLOC_ARENA_MAX", "1");
    cargo
}

/// How long a program that looks for faults goes on, and what it draws from.
#[derive(clap::Args)]
pub(crate) struct Rounds {
    /// How long, in minutes
    #[arg(long, default_value_t = 10.0)]
    pub(crate) minutes: f64,
    /// What is done is drawn from this number; by default at random. It is printed, so that a run can be repeated
    #[arg(long)]
    pub(crate) seed: Option<u64>,
}

impl Rounds {
    /// What [`stress`] gives, told to go on for so many minutes.
    pub(crate) fn of(&self, task: &str, minutes: f64) -> Command {
        let mut command = stress(task);
        command.args(["--minutes", &minutes.to_string()]);
        if let Some(seed) = self.seed {
            command.args(["--seed", &seed.to_string()]);
        }
        command
    }
}

/// Builds the benchmark program of a workspace. Only its own package, so that no test's needs change what is measured.
pub(crate) fn build(workspace: &Path) -> Result<Built> {
    let mut cargo = cargo(workspace);
    cargo.args(["rustc", "--package", PACKAGE, "--bench", "suite", "--profile", "bench"]);
    cargo.args(["--message-format", "json-render-diagnostics", "--"]);
    links::ask_for(&mut cargo)?;
    // One target folder for all: what two workspaces have in common is built once.
    cargo.env("CARGO_TARGET_DIR", target_folder());
    let mut running = Running::start(cargo.stdout(Stdio::piped()))?;
    let stdout = running.0.stdout.take().expect("piped");
    let mut built = None;
    for line in BufReader::new(stdout).lines() {
        let message: serde_json::Value =
            serde_json::from_str(&line?).context("cargo's messages are not as expected")?;
        let target = &message["target"];
        let is_bench = target["kind"].as_array().is_some_and(|kinds| kinds.iter().any(|kind| kind == "bench"));
        if let (true, Some(path)) = (is_bench, message["executable"].as_str()) {
            built = Some(PathBuf::from(path));
        }
    }
    ensure!(running.wait()?.success(), "the benchmarks do not build");
    let program = built.context("there are no benchmarks")?;
    let links = links::of(&program);
    Ok(Built { links: [vec![program], links].concat() })
}

/// Builds the actors of others that the lattice is measured beside, as [`PEERS_PROGRAM`].
pub(crate) fn build_peers() -> Result<()> {
    let mut cargo = cargo(root());
    cargo.args(["build", "--release", "--locked", "--manifest-path", PEERS]);
    cargo.env("CARGO_TARGET_DIR", target_folder().join("peers"));
    ensure!(interrupt::status(&mut cargo)?.success(), "the peers do not build");
    Ok(())
}

impl Built {
    /// As cargo has linked it.
    pub(crate) fn program(&self) -> Program {
        Program(self.links[0].clone())
    }

    /// One of its links.
    pub(crate) fn nth(&self, n: usize) -> Program {
        Program(self.links[n % self.links.len()].clone())
    }

    /// Any of them.
    pub(crate) fn any(&self, random: &mut SplitMix) -> Program {
        self.nth(random.below(self.links.len()))
    }
}

impl Program {
    /// The program as a command, with what all of them are told.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.0);
        command.env("JAVASCRIPT_GUEST", target_folder().join(JAVASCRIPT_GUEST));
        command.env("LATTICE_PEERS", target_folder().join(PEERS_PROGRAM));
        command
    }

    /// What it can compare.
    pub(crate) fn list(&self, scratch: &Path) -> Result<Vec<Listed>> {
        self.written(scratch, |command, out| command.arg("--list-ids").arg(out), |_| {})
    }

    /// A copy of its own for each process. Where in physical memory the pages of a file lie decides which of them are in
    /// each other's way in the caches, and stays the same for as long as the file is in use: processes of one file agree
    /// with each other, and differ by several per cent from those of another file with the same content.
    fn copy(&self, folder: &Path) -> Result<Self> {
        let copy = folder.join("program");
        _ = fs::remove_file(&copy);
        fs::copy(&self.0, &copy).with_context(|| format!("cannot copy {}", self.0.display()))?;
        Ok(Self(copy))
    }

    /// Measures what a plan says, telling what it is at.
    pub(crate) fn turns(&self, plan: &Plan, scratch: &Path, at: impl FnMut(String)) -> Result<Turns> {
        let path = written_plan(plan, scratch)?;
        let turns =
            self.copy(scratch)?.written(scratch, |command, out| command.arg("--plan").arg(&path).arg(out), at)?;
        understood(turns, plan)
    }

    /// Runs it to its end, and gives what it wrote into the file that it was told.
    pub(crate) fn written<T: DeserializeOwned>(
        &self,
        scratch: &Path,
        arguments: impl for<'c> FnOnce(&'c mut Command, &Path) -> &'c mut Command,
        mut at: impl FnMut(String),
    ) -> Result<T> {
        let out = scratch.join("out.json");
        _ = fs::remove_file(&out);
        let mut command = self.command();
        let mut running = Running::start(arguments(&mut command, &out).stdout(Stdio::piped()))?;
        for line in BufReader::new(running.0.stdout.take().expect("piped")).lines() {
            at(line?);
        }
        let status = running.wait()?;
        ensure!(status.success(), "{} failed ({status})", shown(&self.0));
        read_results(&out)
    }
}

/// Measures two plans by processes that take turns: the one waits while the other computes. The first is that of
/// `Role::First`.
pub(crate) fn pair(programs: [&Program; 2], plans: [&Plan; 2], scratch: &Path) -> Result<[Turns; 2]> {
    // What each writes, the other reads.
    let [(from_first, to_second), (from_second, to_first)] =
        [std::io::pipe()?, std::io::pipe()?].map(|(reader, writer)| (Stdio::from(writer), Stdio::from(reader)));
    let prepare = |n: usize| -> Result<(Command, PathBuf)> {
        let folder = scratch.join(n.to_string());
        fs::create_dir_all(&folder)?;
        let (path, out) = (written_plan(plans[n], &folder)?, folder.join("out.json"));
        _ = fs::remove_file(&out);
        let mut command = programs[n].copy(&folder)?.command();
        command.arg("--plan").arg(path).arg(&out);
        Ok((command, out))
    };
    let ((mut first, first_out), (mut second, second_out)) = (prepare(0)?, prepare(1)?);
    let running = Running::start(first.stdin(to_first).stdout(from_first))?;
    let beside = running.start_beside(second.stdin(to_second).stdout(from_second));
    // The pipes' ends are those of the two alone, so that each notices when the other ends.
    drop((first, second));
    let other = beside.and_then(|mut other| Ok(other.wait()?));
    let statuses = [running.wait()?, other?];
    ensure!(
        statuses.iter().all(|status| status.success()),
        "a process of a pair failed ({}, {})",
        statuses[0],
        statuses[1]
    );
    let [one, other] = [read_results(&first_out)?, read_results(&second_out)?];
    Ok([understood(one, plans[0])?, understood(other, plans[1])?])
}

fn written_plan(plan: &Plan, folder: &Path) -> Result<PathBuf> {
    let path = folder.join("plan.json");
    fs::write(&path, serde_json::to_vec(plan)?)?;
    Ok(path)
}

fn read_results<T: DeserializeOwned>(out: &Path) -> Result<T> {
    let json = fs::read(out).context("the benchmarks left no results")?;
    serde_json::from_slice(&json).context("the results of the benchmarks are not as expected")
}

/// Makes sure that all of a plan was measured, by the same protocol.
fn understood(turns: Turns, plan: &Plan) -> Result<Turns> {
    ensure!(turns.protocol == PROTOCOL, "the benchmarks answer by protocol {}, not {PROTOCOL}", turns.protocol);
    if let Some(missing) = plan.benchmarks.iter().find(|planned| turns.turns.iter().all(|turn| turn.id != planned.id)) {
        bail!("{} was not measured", missing.id);
    }
    Ok(turns)
}

/// Only one at a time measures on this machine, as far as this folder is concerned: two would measure each other.
pub(crate) fn take_turns() -> Result<fs::File> {
    let folder = target_folder().join("bench");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let lock = fs::File::create(folder.join("lock")).context("cannot make target/bench/lock")?;
    let mut told = false;
    while lock.try_lock().is_err() {
        if !told {
            eprintln!("waiting for another run of xtask to end, which measures here");
            told = true;
        }
        interrupt::check()?;
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(lock)
}

/// Shows on a terminal what is going on.
pub(crate) fn spinner() -> ProgressBar {
    let progress = if std::io::stderr().is_terminal() { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
    progress.set_style(ProgressStyle::with_template("{spinner} {elapsed:>4}  {msg}").expect("a valid template"));
    progress.enable_steady_tick(Duration::from_millis(200));
    progress
}
