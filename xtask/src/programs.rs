//! The benchmark programs: built, asked what they have, and run, each in a process of its own.

use std::{
    env, fs,
    io::{BufRead, BufReader, IsTerminal},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use airssys_wasm_measurements::{Plan, Turns};
use anyhow::{Context, Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use serde::de::DeserializeOwned;

use crate::{
    interrupt::{self, Running},
    workspace::{JAVASCRIPT_GUEST, root, target_folder},
};

const PACKAGE: &str = "airssys-wasm-benches";
const STRESS: &str = "airssys-wasm-stress";

/// A benchmark program.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
}

pub(crate) fn cargo(workspace: &Path) -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace);
    cargo
}

/// Builds a program that looks for faults, and runs it with the arguments that are to come.
pub(crate) fn program(name: &str) -> Command {
    let mut cargo = cargo(root());
    cargo.args(["run", "--release", "--package", STRESS, "--bin", name, "--"]);
    cargo
}

/// Builds the benchmark programs of a workspace. Only their own package, so that no test's needs change what is measured.
pub(crate) fn build(workspace: &Path, target: Option<&Path>) -> Result<Vec<Program>> {
    let mut cargo = cargo(workspace);
    cargo.args(["bench", "--package", PACKAGE, "--no-run", "--message-format", "json-render-diagnostics"]);
    if let Some(target) = target {
        cargo.env("CARGO_TARGET_DIR", target);
    }
    let mut running = Running::start(cargo.stdout(Stdio::piped()))?;
    let stdout = running.0.stdout.take().expect("piped");
    let mut programs = Vec::new();
    for line in BufReader::new(stdout).lines() {
        let message: serde_json::Value =
            serde_json::from_str(&line?).context("cargo's messages are not as expected")?;
        let target = &message["target"];
        let is_bench = target["kind"].as_array().is_some_and(|kinds| kinds.iter().any(|kind| kind == "bench"));
        if let (true, Some(path), Some(name)) = (is_bench, message["executable"].as_str(), target["name"].as_str()) {
            programs.push(Program { name: name.to_owned(), path: path.into() });
        }
    }
    ensure!(running.wait()?.success(), "the benchmarks do not build");
    ensure!(!programs.is_empty(), "there are no benchmarks");
    programs.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(programs)
}

impl Program {
    /// The program as a command, with what all of them are told.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        command.env("JAVASCRIPT_GUEST", target_folder().join(JAVASCRIPT_GUEST));
        command
    }

    /// The ids of what it can time.
    pub(crate) fn ids(&self, scratch: &Path) -> Result<Vec<String>> {
        self.written(scratch, |command, out| command.arg("--list-ids").arg(out), |_| {})
    }

    /// Measures what a plan says, telling what it is at.
    ///
    /// In a copy of its own. Where in physical memory the pages of a file lie decides which of them are in each other's way
    /// in the caches, and stays the same for as long as the file is in use: processes of one file agree with each other,
    /// and differ by several per cent from those of another file with the same content.
    pub(crate) fn turns(&self, plan: &Plan, scratch: &Path, at: impl FnMut(String)) -> Result<Turns> {
        let path = scratch.join("plan.json");
        fs::write(&path, serde_json::to_vec(plan)?)?;
        let copy = Self { name: self.name.clone(), path: scratch.join("program") };
        _ = fs::remove_file(&copy.path);
        fs::copy(&self.path, &copy.path).with_context(|| format!("cannot copy {}", self.name))?;
        copy.written(scratch, |command, out| command.arg("--plan").arg(&path).arg(out), at)
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
        ensure!(status.success(), "{} failed ({status})", self.name);
        let json = fs::read(&out).with_context(|| format!("{} left no results", self.name))?;
        serde_json::from_slice(&json).with_context(|| format!("the results of {} are not as expected", self.name))
    }
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
