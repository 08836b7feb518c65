//! Builds the benchmark programs, runs each in a process of its own, and puts together what they measured.

mod machine;
mod report;
mod table;

use std::{
    env, fs,
    io::{BufRead, BufReader, IsTerminal},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};

use crate::{JAVASCRIPT_GUEST, root, target_folder};
use machine::Machine;
use report::{Part, Report};

const PACKAGE: &str = "airssys-wasm-benches";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Measure only benchmarks whose id contains this
    filter: Option<String>,
    /// Fewer and shorter rounds: under two minutes once built, with wider intervals
    #[arg(long)]
    quick: bool,
    /// Keep the results as target/bench/saved/NAME.json as well
    #[arg(long, value_name = "NAME", value_parser = file_name)]
    save: Option<String>,
    /// Exit with a failure if a goal is missed
    #[arg(long)]
    enforce: bool,
}

#[derive(clap::Args)]
pub(crate) struct LeakArgs {
    /// How many components to crash
    #[arg(long, default_value_t = 100_000)]
    crashes: u64,
}

/// A name that stays in its folder.
fn file_name(name: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.starts_with('.') || !name.chars().all(plain) {
        return Err("a name is made of letters, digits, '-', '_' and '.', and does not begin with a dot".into());
    }
    Ok(name.to_owned())
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let folder = target_folder().join("bench");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let programs = build()?;
    let started = Instant::now();
    let mut whole = Part::default();
    for program in &programs {
        whole.append(measure(program, args, &folder)?);
    }
    if whole.results.is_empty() {
        let what = args.filter.as_deref().unwrap_or("anything");
        bail!("no benchmark has {what:?} in its id; `cargo xtask bench` without a filter lists them all");
    }
    let report = Report::new(whole, args.quick, Machine::here());
    let json = serde_json::to_vec_pretty(&report)?;
    let results = folder.join("results.json");
    write_whole(&results, &json)?;
    println!("{}", table::render(&report));
    println!("{:.0} s, written to {}", started.elapsed().as_secs_f64(), shown(&results));
    if let Some(name) = &args.save {
        let saved = folder.join("saved").join(name).with_added_extension("json");
        write_whole(&saved, &json)?;
        println!("saved to {}", shown(&saved));
    }
    let missed = report.missed_goals();
    if args.enforce && missed > 0 {
        bail!("goals missed: {missed}");
    }
    Ok(())
}

pub(crate) fn leak_check(args: &LeakArgs) -> Result<()> {
    let status = cargo()
        .args(["run", "--release", "--package", PACKAGE, "--bin", "leak-check", "--"])
        .arg(args.crashes.to_string())
        .status()
        .context("cannot run cargo")?;
    ensure!(status.success(), "the leak check failed");
    Ok(())
}

fn cargo() -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root());
    cargo
}

/// A path as people want to read it: relative to the workspace where it lies there.
fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

/// Writes a file all at once, so that one who is interrupted leaves the old one.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let part = path.with_added_extension("part");
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(&part, bytes)
        .and_then(|()| fs::rename(&part, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

struct Program {
    name: String,
    path: PathBuf,
}

/// Builds the benchmark programs. Only their own package, so that no test's needs change what is measured.
fn build() -> Result<Vec<Program>> {
    eprintln!("building the benchmarks (the first time takes some minutes)");
    let output = cargo()
        .args(["bench", "--package", PACKAGE, "--no-run", "--message-format", "json-render-diagnostics"])
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    ensure!(output.status.success(), "the benchmarks do not build");
    let mut programs = Vec::new();
    for line in output.stdout.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
        let message: serde_json::Value =
            serde_json::from_slice(line).context("cargo's messages are not as expected")?;
        let target = &message["target"];
        let is_bench = target["kind"].as_array().is_some_and(|kinds| kinds.iter().any(|kind| kind == "bench"));
        if let (true, Some(path), Some(name)) = (is_bench, message["executable"].as_str(), target["name"].as_str()) {
            programs.push(Program { name: name.to_owned(), path: path.into() });
        }
    }
    ensure!(!programs.is_empty(), "cargo built no benchmarks");
    programs.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(programs)
}

/// Runs one program to its end, showing on a terminal what it is at.
fn measure(program: &Program, args: &Args, folder: &Path) -> Result<Part> {
    let part = folder.join(&program.name).with_added_extension("part.json");
    let mut command = Command::new(&program.path);
    command.arg("--in-turns").arg(&part).env("JAVASCRIPT_GUEST", target_folder().join(JAVASCRIPT_GUEST));
    if args.quick {
        command.arg("--quick-turns");
    }
    if let Some(filter) = &args.filter {
        command.args(["--only", filter]);
    }
    let progress = if std::io::stderr().is_terminal() { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
    progress.set_style(ProgressStyle::with_template("{spinner} {elapsed:>4}  {msg}").expect("a valid template"));
    progress.enable_steady_tick(Duration::from_millis(200));
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot run {}", program.name))?;
    let stdout = child.stdout.take().expect("piped");
    for line in BufReader::new(stdout).lines() {
        progress.set_message(line?);
    }
    let status = child.wait()?;
    progress.finish_and_clear();
    ensure!(status.success(), "{} failed ({status})", program.name);
    let json = fs::read(&part).with_context(|| format!("{} left no results", program.name))?;
    fs::remove_file(&part)?;
    serde_json::from_slice(&json).with_context(|| format!("the results of {} are not as expected", program.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_saved_name_cannot_leave_its_folder() {
        for good in ["main", "before-2", "v1.0_x"] {
            assert_eq!(file_name(good).as_deref(), Ok(good));
        }
        for bad in ["", ".", "..", ".hidden", "a/b", "../up", "a b", "a\\b", "é"] {
            assert!(file_name(bad).is_err(), "{bad}");
        }
    }
}
