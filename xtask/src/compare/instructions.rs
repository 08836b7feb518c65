//! Instructions for each iteration, counted by callgrind: a second signal, which nothing else on the machine touches.
//!
//! Not by `gungraun`: it wants benchmarks of its own form and a runner that is installed, and these are those that are timed.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Command, Stdio},
};

use airssys_wasm_measurements::Planned;
use anyhow::{Context, Result, ensure};
use indicatif::ProgressBar;

use super::measure::plan;
use crate::{interrupt, programs::Program};

/// The function of a benchmark program within which is counted. It runs each benchmark twice, the second time twice as
/// often, so that the difference is without what is done once.
const COUNTED: &str = "airssys_wasm_benches::harness::run::counted";

/// An iteration takes some fifty times as long as without it.
const FEWER: u64 = 20;

/// Fails where there is no valgrind.
pub(super) fn find_valgrind() -> Result<()> {
    let found = Command::new("valgrind").arg("--version").stdout(Stdio::null()).status();
    ensure!(found.is_ok_and(|status| status.success()), "--instructions needs valgrind, which is not installed here");
    Ok(())
}

/// Counts what a program is to run. Some benchmarks cannot be run so, those that make engines with large pools for one:
/// they are left out.
pub(super) fn count(
    program: &Program,
    planned: &[Planned],
    scratch: &Path,
    progress: &ProgressBar,
) -> Result<BTreeMap<String, f64>> {
    let mut turns: Vec<_> = planned
        .iter()
        .map(|planned| Planned { iterations: planned.iterations.map(|n| (n / FEWER).max(1)), ..planned.clone() })
        .collect();
    while !turns.is_empty() {
        match run(program, &turns, scratch, progress)? {
            Ok(counts) => return Ok(counts),
            // It was the last that was begun. Where none was, none can be.
            Err(0) => break,
            Err(begun) => drop(turns.remove(begun - 1)),
        }
    }
    Ok(BTreeMap::new())
}

/// The counts, or how many benchmarks were begun when it failed.
fn run(
    program: &Program,
    turns: &[Planned],
    scratch: &Path,
    progress: &ProgressBar,
) -> Result<Result<BTreeMap<String, f64>, usize>> {
    let folder = tempfile::tempdir_in(scratch)?;
    let (plan_path, out) = (folder.path().join("plan.json"), folder.path().join("out"));
    fs::write(&plan_path, serde_json::to_vec(&plan(turns.to_vec(), None, false))?)?;
    let mut command = Command::new("valgrind");
    command
        .args(["--tool=callgrind", "--quiet"])
        .arg(format!("--toggle-collect={COUNTED}"))
        .arg(format!("--dump-after={COUNTED}"))
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(&program.path)
        .arg("--count")
        .arg(&plan_path)
        .stderr(Stdio::null());
    progress.set_message(format!("counting instructions of {}", program.name));
    let printed = folder.path().join("printed");
    let status = interrupt::status(command.stdout(fs::File::create(&printed)?))?;
    if !status.success() {
        return Ok(Err(fs::read_to_string(&printed)?.lines().count().min(turns.len())));
    }
    let mut counts = BTreeMap::new();
    for (n, Planned { id, iterations, .. }) in turns.iter().enumerate() {
        let [once, twice] = [1, 2].map(|time| total(&out.with_added_extension((2 * n + time).to_string())));
        let iterations = iterations.unwrap_or(1) as f64;
        counts.insert(id.clone(), (twice? - once?) / iterations);
    }
    Ok(Ok(counts))
}

/// What a file of callgrind adds up to.
fn total(path: &Path) -> Result<f64> {
    let text = fs::read_to_string(path).with_context(|| format!("callgrind did not write {}", path.display()))?;
    parse_total(&text).with_context(|| format!("there is no total in {}", path.display()))
}

fn parse_total(text: &str) -> Option<f64> {
    let line = |name: &str| text.lines().rev().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    line("totals:").or_else(|| line("summary:"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_of_a_dump_is_its_last_line() {
        assert_eq!(parse_total("version: 1\nsummary: 12\nfn=(1)\ntotals: 34\n"), Some(34.0));
        assert_eq!(parse_total("version: 1\nsummary: 12\n"), Some(12.0));
        assert_eq!(parse_total("version: 1\n"), None);
    }
}
