//! Instructions for each iteration, counted by callgrind: a second signal, which nothing else on the machine touches.
//!
//! Not by `gungraun`: it wants benchmarks of its own form and a runner that is installed, and these are those that are timed.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use airssys_wasm_measurements::Planned;
use anyhow::{Context, Result};

use super::measure::plan;
use crate::{interrupt, programs::Program};

/// The function of a benchmark program within which is counted, whatever crate has the harness. It runs each benchmark twice, the second time twice as
/// often, so that the difference is without what is done once.
const COUNTED: &str = "*harness::run::counted";

/// An iteration takes some fifty times as long as without it.
const FEWER: u64 = 20;

/// Whether there is a valgrind to count by.
pub(super) fn can_be_counted() -> bool {
    let found = Command::new("valgrind").arg("--version").stdout(Stdio::null()).status();
    found.is_ok_and(|status| status.success())
}

/// Counts one benchmark. Some cannot be run so, those that make engines with large pools for one: they have no count.
pub(super) fn count(program: &Program, planned: &Planned, scratch: &Path) -> Result<Option<f64>> {
    let iterations = planned.iterations.map_or(1, |n| (n / FEWER).max(1));
    let planned = Planned { iterations: Some(iterations), ..planned.clone() };
    let folder = tempfile::tempdir_in(scratch)?;
    let (plan_path, out) = (folder.path().join("plan.json"), folder.path().join("out"));
    fs::write(&plan_path, serde_json::to_vec(&plan(vec![planned]))?)?;
    let mut command = Command::new("valgrind");
    command
        .args(["--tool=callgrind", "--quiet"])
        .arg(format!("--toggle-collect={COUNTED}"))
        .arg(format!("--dump-after={COUNTED}"))
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(&program.0)
        .arg("--count")
        .arg(&plan_path)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    if !interrupt::status(&mut command)?.success() {
        return Ok(None);
    }
    // Some are over before both are written: those that start processes of their own.
    let totals = ["1", "2"].map(|time| out.with_added_extension(time));
    if totals.iter().any(|dump| !dump.exists()) {
        return Ok(None);
    }
    let [once, twice] = totals.map(|dump| total(&dump));
    Ok(Some((twice? - once?) / iterations as f64))
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
