//! Runs the fuzz targets by cargo-fuzz, each for a while, and says what came of it.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    interrupt::{self, Running},
    programs::spinner,
    table::Table,
    workspace::{root, shown, target_folder},
};

/// Look for inputs that break what must hold for any input, by libFuzzer on a nightly compiler. See docs/fuzzing.md
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run this target only; `--list` shows the names
    target: Option<String>,
    /// How long each target runs, in seconds; building comes on top
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Show the targets, and run none
    #[arg(long)]
    list: bool,
}

struct Target {
    name: &'static str,
    /// Bytes of an input. What is longer finds nothing more, and takes longer.
    longest: u32,
}

/// Those of `fuzz/src/lib.rs`.
const TARGETS: &[Target] = &[
    Target { name: "envelope", longest: 4_096 },
    Target { name: "guest", longest: 2_048 },
    Target { name: "load", longest: 4_096 },
    Target { name: "manifest", longest: 2_048 },
    Target { name: "names", longest: 1_024 },
    Target { name: "values", longest: 1_024 },
];

/// The project of cargo-fuzz, below the workspace's folder.
const PROJECT: &str = "fuzz/libfuzzer";
/// Seconds for one input, of which most take some milliseconds, on a machine that may be busy.
const TIMEOUT: u32 = 30;
/// MiB of the process. The sanitizer takes twice what the same program takes without it.
const MEMORY: u32 = 4_096;

pub(crate) fn run(args: &Args) -> Result<()> {
    let wanted = |target: &&Target| args.target.as_ref().is_none_or(|name| target.name == name);
    let targets: Vec<_> = TARGETS.iter().filter(wanted).collect();
    if targets.is_empty() {
        bail!(
            "there is no target {:?}; `cargo xtask fuzz --list` shows them",
            args.target.as_deref().unwrap_or_default()
        );
    }
    if args.list {
        targets.iter().for_each(|target| println!("{}", target.name));
        return Ok(());
    }
    interrupt::listen()?;
    look_for_tools()?;
    eprintln!("building the targets: the first time takes some ten minutes");
    let mut build = cargo_fuzz("build");
    if let [target] = targets.as_slice() {
        build.arg(target.name);
    }
    ensure!(interrupt::status(&mut build)?.success(), "the targets do not build");

    let mut table = Table::new("", ["target", "executions", "a second", "new inputs", "crashes"]);
    let mut crashes = Vec::new();
    let mut outcome = Ok(());
    for target in targets {
        match target.run(args.seconds) {
            Ok(run) => {
                table.row([
                    target.name.into(),
                    run.executions.to_string().into(),
                    (run.executions / u64::from(args.seconds)).to_string().into(),
                    run.inputs.to_string().into(),
                    run.crashes.len().to_string().into(),
                ]);
                crashes.extend(run.crashes.into_iter().map(|crash| (target.name, crash)));
            }
            Err(error) => {
                outcome = Err(error);
                break;
            }
        }
    }
    println!("{}", table.text());
    for (target, crash) in &crashes {
        println!("\n{}", what_to_do(target, crash));
    }
    outcome?;
    ensure!(crashes.is_empty(), "what must hold does not");
    Ok(())
}

/// What became of one target.
struct Outcome {
    executions: u64,
    /// New ones in the scratch corpus.
    inputs: usize,
    crashes: Vec<PathBuf>,
}

impl Target {
    fn run(&self, seconds: u32) -> Result<Outcome> {
        let folder = |kind: &str| {
            let folder = target_folder().join("fuzz").join(kind).join(self.name);
            fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display())).map(|()| folder)
        };
        // What is found goes into the first of the corpora, and nothing into the tree.
        let (scratch, artifacts) = (folder("corpus")?, folder("crashes")?);
        let (inputs, crashes) = (files(&scratch)?, files(&artifacts)?);
        let mut command = cargo_fuzz("run");
        command
            .arg(self.name)
            .arg(&scratch)
            .arg(root().join("fuzz/corpus").join(self.name))
            .arg("--")
            .args([
                format!("-max_total_time={seconds}"),
                format!("-max_len={}", self.longest),
                format!("-timeout={TIMEOUT}"),
                format!("-rss_limit_mb={MEMORY}"),
                format!("-artifact_prefix={}/", artifacts.display()),
                "-print_final_stats=1".to_owned(),
            ])
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let words = root().join(PROJECT).join("dictionaries").join(self.name);
        if words.exists() {
            command.arg(format!("-dict={}", words.display()));
        }

        let path = target_folder().join("fuzz").join(format!("{}.log", self.name));
        let mut log = fs::File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        let progress = spinner();
        let mut executions = None;
        let mut running = Running::start(&mut command)?;
        let lines = BufReader::new(running.0.stderr.take().expect("piped")).split(b'\n');
        for line in lines {
            // A panic may show anything.
            let line = String::from_utf8_lossy(&line?).into_owned();
            writeln!(log, "{line}")?;
            executions = executed(&line).or(executions);
            progress.set_message(format!("{}: {line}", self.name));
        }
        progress.finish_and_clear();
        let status = running.wait()?;
        let crashes: Vec<_> = new_files(&artifacts, &crashes)?.filter(|path| is_crash(path)).collect();
        ensure!(status.success() || !crashes.is_empty(), "{} did not run ({status}); see {}", self.name, shown(&path));
        let executions = executions.with_context(|| format!("there are no figures in {}", shown(&path)))?;
        Ok(Outcome { executions, inputs: new_files(&scratch, &inputs)?.count(), crashes })
    }
}

/// The nightly compiler's, whichever runs this.
fn cargo_fuzz(command: &str) -> Command {
    let mut cargo = nightly();
    cargo.args(["fuzz", command, "--fuzz-dir", PROJECT]).env("CARGO_TARGET_DIR", build_folder());
    cargo
}

pub(crate) fn nightly() -> Command {
    let mut cargo = Command::new("cargo");
    cargo.arg("+nightly").current_dir(root());
    cargo
}

/// Of its own, because everything in it is built with a sanitizer.
fn build_folder() -> PathBuf {
    target_folder().join("fuzz/build")
}

fn look_for_tools() -> Result<()> {
    for (arguments, install) in [
        (&["--version"][..], "rustup toolchain install nightly --profile minimal"),
        (&["fuzz", "--version"], "cargo install cargo-fuzz --locked"),
    ] {
        let found = nightly().args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status();
        ensure!(
            found.is_ok_and(|status| status.success()),
            "`cargo +nightly {}` does not work here; install it by `{install}`",
            arguments.join(" ")
        );
    }
    Ok(())
}

fn files(folder: &Path) -> Result<BTreeSet<OsString>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    entries.map(|entry| Ok(entry?.file_name())).collect()
}

/// What is in a folder that was not there before.
fn new_files(folder: &Path, before: &BTreeSet<OsString>) -> Result<impl Iterator<Item = PathBuf>> {
    Ok(files(folder)?.into_iter().filter(|name| !before.contains(name)).map(|name| folder.join(name)))
}

/// Not what was merely slow.
fn is_crash(artifact: &Path) -> bool {
    !artifact.file_name().is_some_and(|name| name.to_string_lossy().starts_with("slow-unit-"))
}

/// The number of inputs, where this is the line of libFuzzer's that has it.
fn executed(line: &str) -> Option<u64> {
    line.strip_prefix("stat::number_of_executed_units:")?.trim().parse().ok()
}

/// How a crash is seen again, and how it is kept.
fn what_to_do(target: &str, crash: &Path) -> String {
    let (crash, build) = (shown(crash), shown(&build_folder()));
    let fuzz =
        |command| format!("cargo +nightly fuzz {command} --fuzz-dir {PROJECT} --target-dir {build} {target} {crash}");
    format!(
        "{target}: {crash}\n\
         what it says is at the end of {log}; to see it again, and to make it smaller:\n    \
         {run}\n    \
         {tmin}\n\
         to keep it as a test, which then fails until it is mended:\n    \
         cp {crash} fuzz/corpus/{target}/crash-WHAT-IT-IS\n    \
         cargo test --workspace --test replay",
        log = shown(&target_folder().join("fuzz").join(format!("{target}.log"))),
        run = fuzz("run"),
        tmin = fuzz("tmin"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_targets_are_those_that_have_a_corpus() {
        let targets: BTreeSet<_> = TARGETS.iter().map(|target| target.name.into()).collect();
        assert_eq!(files(&root().join("fuzz/corpus")).unwrap(), targets);
        for words in files(&root().join(PROJECT).join("dictionaries")).unwrap() {
            assert!(targets.contains(&words), "{words:?}");
        }
    }

    #[test]
    fn the_executions_are_read_from_the_figures_at_the_end() {
        assert_eq!(executed("stat::number_of_executed_units: 12345"), Some(12_345));
        assert_eq!(executed("stat::average_exec_per_sec:     99"), None);
        assert_eq!(executed("#12345\tpulse  cov: 1 ft: 1 corp: 1/1b"), None);
    }

    #[test]
    fn an_input_that_was_merely_slow_is_no_crash() {
        assert!(is_crash(Path::new("a/crash-1")) && is_crash(Path::new("a/timeout-1")) && is_crash(Path::new("oom-1")));
        assert!(!is_crash(Path::new("a/slow-unit-1")));
    }
}
