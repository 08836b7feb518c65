//! Runs the benchmarks beside their twins, and says what they come to.

pub(crate) mod results;
pub(crate) mod tables;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use airssys_wasm_measurements::{Figures, Measured, evaluate};
use anyhow::{Context, Result, bail, ensure};
use results::Results;
use serde::de::DeserializeOwned;

use crate::{
    compare::saved,
    interrupt,
    programs::{self, Program},
    root, shown, target_folder,
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Measure only benchmarks whose id contains this
    filter: Option<String>,
    /// Fewer and shorter rounds: some two minutes once built, with wider intervals
    #[arg(long)]
    quick: bool,
    /// Keep the results as target/bench/saved/NAME.json as well, with what `compare --saved NAME` needs
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
pub(crate) fn file_name(name: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.starts_with('.') || !name.chars().all(plain) {
        return Err("a name is made of letters, digits, '-', '_' and '.', and does not begin with a dot".into());
    }
    Ok(name.to_owned())
}

/// Where results with a name are.
pub(crate) fn saved_path(name: &str) -> PathBuf {
    target_folder().join("bench/saved").join(name).with_added_extension("json")
}

/// Where the last results are.
pub(crate) fn results_path() -> PathBuf {
    target_folder().join("bench/results.json")
}

pub(crate) fn run(args: &Args) -> Result<()> {
    interrupt::listen()?;
    // Building disturbs others who measure as much as measuring does.
    let _turn = programs::take_turns()?;
    eprintln!("building the benchmarks (the first time takes some minutes)");
    let programs = programs::build(root(), None)?;
    let scratch = tempfile::tempdir()?;
    let started = Instant::now();
    let mut figures = Figures::default();
    for program in &programs {
        figures.append(measure(program, args, scratch.path())?);
    }
    if figures.results.is_empty() {
        let what = args.filter.as_deref().unwrap_or("anything");
        bail!("no benchmark has {what:?} in its id; `cargo xtask bench` without a filter lists them all");
    }
    let mut results = Results::new(figures, args.quick);
    println!("{}", tables::text(&results));
    write_whole(&results_path(), &serde_json::to_vec(&results)?)?;
    println!("{:.0} s, written to {}", started.elapsed().as_secs_f64(), shown(&results_path()));
    if let Some(name) = &args.save {
        eprintln!("building and measuring once more, as comparisons do");
        results.turns = saved::measure(args.filter.as_deref(), scratch.path())?;
        let path = saved_path(name);
        write_whole(&path, &serde_json::to_vec(&results)?)?;
        println!("saved to {}; compare with it by `cargo xtask compare --saved {name}`", shown(&path));
    }
    let missed = results.missed_goals();
    if args.enforce && missed > 0 {
        bail!("goals missed: {missed}");
    }
    Ok(())
}

/// Runs a program in several processes, because what one process measures has one layout of memory in common.
fn measure(program: &Program, args: &Args, scratch: &Path) -> Result<Figures> {
    let processes = if args.quick { 3 } else { 5 };
    let progress = programs::spinner();
    let mut measured: Vec<Measured> = Vec::new();
    for process in 0..processes {
        measured.push(program.written(
            scratch,
            |command, out| {
                command.arg("--in-turns").arg(out);
                if args.quick {
                    command.arg("--quick-turns");
                }
                if process == 0 {
                    command.arg("--readings");
                }
                if let Some(filter) = &args.filter {
                    command.args(["--only", filter]);
                }
                command
            },
            |id| progress.set_message(format!("{}/{processes}  {id}", process + 1)),
        )?);
    }
    progress.finish_and_clear();
    Ok(evaluate(measured))
}

pub(crate) fn leak_check(args: &LeakArgs) -> Result<()> {
    let status = programs::program("leak-check").arg(args.crashes.to_string()).status().context("cannot run cargo")?;
    ensure!(status.success(), "the leak check failed");
    Ok(())
}

/// Writes a file all at once, so that one who is interrupted leaves the old one.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let part = path.with_added_extension("part");
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(&part, bytes)
        .and_then(|()| fs::rename(&part, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Reads a file that was written so, if it has this schema; else it says what to do instead.
pub(crate) fn read_whole<T: DeserializeOwned>(path: &Path, schema: u32, instead: &str) -> Result<T> {
    let json = fs::read(path).with_context(|| format!("cannot read {}", shown(path)))?;
    let unexpected = || format!("{} is not of this version: {instead}", shown(path));
    let value: serde_json::Value = serde_json::from_slice(&json).with_context(unexpected)?;
    ensure!(value["schema"] == schema, unexpected());
    serde_json::from_value(value).with_context(unexpected)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_version_wrote_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("some/file.json");
        write_whole(&path, br#"{"schema": 2, "n": 1.5}"#).unwrap();
        let read = |schema| read_whole::<std::collections::BTreeMap<String, f64>>(&path, schema, "do it anew");
        assert_eq!(read(2).unwrap()["n"], 1.5);
        assert!(read(3).unwrap_err().to_string().ends_with("is not of this version: do it anew"));
        write_whole(&path, b"{").unwrap();
        assert!(read(2).is_err());
    }

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
