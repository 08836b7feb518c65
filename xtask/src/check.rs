//! What must hold for every commit, in one command.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{programs::cargo, workspace::root};

/// Run what must hold for every commit, as CI does: formatting, lints, tests, documentation, guests, benchmarks.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run only steps whose name contains this; `--list` shows the names
    only: Option<String>,
    /// Show the steps, and run none
    #[arg(long)]
    list: bool,
}

struct Step {
    name: &'static str,
    /// Run one after the other.
    commands: &'static [&'static [&'static str]],
    /// What to do when one fails.
    otherwise: Otherwise,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Otherwise {
    Fail,
    /// Some of it cannot be had everywhere: the first command says so.
    LeaveOut,
    /// It may end with 2 as well: the machine may be too busy to tell.
    MayBeUnclear,
}

/// All of them are cargo's.
const STEPS: &[Step] = &[
    step("formatting", &[&["fmt", "--all", "--check"], &["fmt", "--all", "--check", "--manifest-path", GUESTS]]),
    step("clippy", &[&["clippy", "--workspace", "--all-targets", "--locked", "--", "--deny", "warnings"]]),
    Step {
        name: "licences, sources and duplicates",
        commands: &[&["deny", "--version"], &["deny", "check", "licenses", "sources", "bans"]],
        otherwise: Otherwise::LeaveOut,
    },
    step("tests and doc tests", &[&["test", "--workspace", "--locked"]]),
    step("rustdoc", &[&["doc", "--workspace", "--no-deps", "--locked"]]),
    step("guests", &[&["xtask", "fixtures", "--check"]]),
    Step {
        name: "components as the ecosystem builds them",
        commands: &[
            &["xtask", "fixtures", "--ecosystem"],
            &["test", "--workspace", "--locked", "--test", "all", "--", "ecosystem", "--nocapture"],
        ],
        otherwise: Otherwise::LeaveOut,
    },
    step(
        "packages",
        &[&[
            "package",
            "--locked",
            "--allow-dirty",
            "--no-verify",
            "--quiet",
            "--workspace",
            "--exclude=xtask",
            "--exclude=airssys-wasm-benches",
            "--exclude=airssys-wasm-examples",
            "--exclude=airssys-wasm-fixtures",
            "--exclude=airssys-wasm-fuzz",
            "--exclude=airssys-wasm-measurements",
            "--exclude=airssys-wasm-stress",
        ]],
    ),
    step("benchmarks, as a smoke test", &[&["xtask", "bench", "--quick"]]),
    step("figures and promises", &[&["xtask", "figures"]]),
    Step {
        name: "comparison with itself, as a smoke test",
        commands: &[&["xtask", "compare", "HEAD", "--filter", "execution/limits/", "--budget", "1"]],
        otherwise: Otherwise::MayBeUnclear,
    },
    step("report", &[&["xtask", "report"]]),
    step("leaks, as a smoke test", &[&["xtask", "leak-check", "--crashes", "10000"]]),
    step("soak, a minute", &[&["xtask", "soak", "--minutes", "1"]]),
    step("soak that loses messages on purpose", &[&["xtask", "soak", "--self-check"]]),
];

const GUESTS: &str = "fixtures/guests/rust/Cargo.toml";

const fn step(name: &'static str, commands: &'static [&'static [&'static str]]) -> Step {
    Step { name, commands, otherwise: Otherwise::Fail }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let wanted = |step: &&Step| args.only.as_ref().is_none_or(|only| step.name.contains(only.as_str()));
    let steps: Vec<_> = STEPS.iter().filter(wanted).collect();
    if steps.is_empty() {
        bail!(
            "no step has {:?} in its name; `cargo xtask check --list` shows them",
            args.only.as_deref().unwrap_or_default()
        );
    }
    let mut taken: Vec<(&str, Duration)> = Vec::new();
    for step in steps {
        if args.list {
            println!("{}", step.name);
            continue;
        }
        println!("\n== {}", step.name);
        let started = Instant::now();
        step.run()?;
        taken.push((step.name, started.elapsed()));
    }
    if !args.list {
        println!("\n== all is well");
        for (name, taken) in taken {
            println!("{:>6.0} s  {name}", taken.as_secs_f64());
        }
    }
    Ok(())
}

impl Step {
    fn run(&self) -> Result<()> {
        for (n, arguments) in self.commands.iter().enumerate() {
            let mut command = self.command(arguments);
            println!("$ cargo {}", arguments.join(" "));
            let status = command.status().context("cannot run cargo")?;
            match (status.success(), self.otherwise) {
                (true, _) => {}
                (false, Otherwise::LeaveOut) if n == 0 => {
                    println!("not to be had here: left out");
                    break;
                }
                (false, Otherwise::MayBeUnclear) if status.code() == Some(2) && has_outcome() => {
                    println!("the machine is too busy to tell: left open");
                }
                (false, _) => bail!("{} failed; `cargo xtask check {:?}` runs it alone", self.name, self.name),
            }
        }
        Ok(())
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut cargo = cargo(root());
        cargo.args(arguments);
        if self.name == "rustdoc" {
            cargo.env("RUSTDOCFLAGS", "--deny warnings");
        }
        cargo
    }
}

/// Whether a comparison came to its end, and could not be made out for noise.
fn has_outcome() -> bool {
    let read = || -> Result<()> {
        let outcome = crate::compare::outcome::Outcome::read(&crate::compare::outcome_path())?;
        ensure!(!outcome.rows.is_empty());
        Ok(())
    };
    read().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_readme_says_is_run_and_no_name_stands_for_two_steps() {
        let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
        let is_run = |command: &[&str]| {
            STEPS.iter().flat_map(|step| step.commands).any(|arguments| arguments.starts_with(command))
        };
        for command in [&["test", "--workspace"][..], &["xtask", "bench"], &["xtask", "compare"], &["xtask", "report"]]
        {
            assert!(readme.contains(&format!("cargo {}", command.join(" "))), "{command:?}");
            assert!(is_run(command), "{command:?}");
        }
        let mut names: Vec<_> = STEPS.iter().map(|step| step.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), STEPS.len());
    }
}
