//! What must hold for every commit, in one command; and what takes too long for that, in another.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    programs::{PEERS, cargo},
    workspace::root,
};

/// Run what must hold for every commit, as CI does: formatting, lints, tests, documentation, guests, benchmarks. Or what
/// takes too long for that, as CI does each night.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run only steps whose name contains this; `--list` shows the names
    only: Option<String>,
    /// Instead run what takes too long for every commit
    #[arg(long)]
    nightly: bool,
    /// Show all steps, and run none
    #[arg(long)]
    list: bool,
}

struct Step {
    name: &'static str,
    /// Run one after the other.
    commands: &'static [&'static [&'static str]],
    when: When,
    /// What to do when one fails.
    otherwise: Otherwise,
}

/// Nightly is what is slow and seldom finds anything, or needs what a commit's checks do without.
#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    Always,
    Nightly,
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
    always(
        "formatting",
        &[
            &["fmt", "--all", "--check"],
            &["fmt", "--all", "--check", "--manifest-path", GUESTS],
            &["fmt", "--all", "--check", "--manifest-path", PEERS],
        ],
    ),
    always("clippy", &[&["clippy", "--workspace", "--all-targets", "--locked", "--", "--deny", "warnings"]]),
    always("tests and doc tests", &[&["test", "--workspace", "--locked"]]),
    always(
        "TLS, which nobody switches on above",
        &[
            &[
                "clippy",
                "--workspace",
                "--features",
                "airssys-wasm-http/tls",
                "--all-targets",
                "--locked",
                "--",
                "--deny",
                "warnings",
            ],
            // Of the whole workspace, whose features wasmtime is built with: it takes ten minutes to build with others.
            &["test", "--workspace", "--features", "airssys-wasm-http/tls", "--locked", "--test", "all", "--", "tls"],
        ],
    ),
    always("rustdoc", &[&["doc", "--workspace", "--no-deps", "--locked"]]),
    always("guests", &[&["xtask", "fixtures", "--check"]]),
    always(
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
            "--exclude=airssys-wasm-harness",
            "--exclude=airssys-wasm-measurements",
            "--exclude=airssys-wasm-stress",
            "--exclude=airssys-wasm-twins",
        ]],
    ),
    always("benchmarks, as a smoke test", &[&["xtask", "bench", "--quick", "--processes", "1"]]),
    always("figures and promises", &[&["xtask", "figures"]]),
    always("report", &[&["xtask", "report"]]),
    always("leaks, as a smoke test", &[&["xtask", "leak-check", "--crashes", "10000"]]),
    always("soak, half a minute", &[&["xtask", "soak", "--minutes", "0.5"]]),
    always("clients of HTTP, half a minute", &[&["xtask", "http", "--minutes", "0.5"]]),
    always("soak that loses messages on purpose", &[&["xtask", "soak", "--self-check"]]),
    always("keyed actors, killed for half a minute", &[&["xtask", "keyed", "--minutes", "0.5"]]),
    always("keyed actors, a loss on purpose", &[&["xtask", "keyed", "--self-check"]]),
    always("a lattice, hurt for half a minute", &[&["xtask", "lattice", "--minutes", "0.5"]]),
    always("a lattice, messages lost and repeated on purpose", &[&["xtask", "lattice", "--self-check"]]),
    Step {
        otherwise: Otherwise::LeaveOut,
        ..nightly(
            ECOSYSTEM,
            &[
                &["xtask", "fixtures", "--ecosystem"],
                &["test", "--workspace", "--locked", "--test", "all", "--", "ecosystem", "--nocapture"],
            ],
        )
    },
    Step {
        otherwise: Otherwise::MayBeUnclear,
        ..nightly(
            "comparison with itself",
            &[&["xtask", "compare", "HEAD", "--filter", "execution/limits/", "--budget", "1"]],
        )
    },
    nightly("comparison with planted slowdowns", &[&["xtask", "compare", "--self-check"]]),
    Step {
        otherwise: Otherwise::LeaveOut,
        ..nightly(
            "licences, sources and duplicates",
            &[&["deny", "--version"], &["deny", "check", "licenses", "sources", "bans"]],
        )
    },
    nightly("peers of the lattice", &[&["xtask", "bench", "--peers", "--quick", "--processes", "1", "lattice/ask"]]),
    nightly("leaks", &[&["xtask", "leak-check"]]),
    nightly("soak, half an hour", &[&["xtask", "soak", "--minutes", "30"]]),
    nightly("clients of HTTP, ten minutes", &[&["xtask", "http", "--minutes", "10"]]),
    nightly("keyed actors, killed for half an hour", &[&["xtask", "keyed", "--minutes", "30"]]),
    nightly("a lattice, hurt for ten minutes", &[&["xtask", "lattice", "--minutes", "10"]]),
    nightly("hostile guests, the slow ones too", &[&["xtask", "hostile", "--slow"]]),
    nightly("search for costly files", &[&["xtask", "hostile", "--search", "60"]]),
    nightly("calibration of the compiler's model", &[&["xtask", "calibrate"]]),
    nightly("fuzzing", &[&["xtask", "fuzz", "--seconds", "600"]]),
    nightly("kills of a process that saves", &[&KILLS]),
    nightly("a broker that stops for half a minute", &[&LONG_STOP]),
    nightly("another host takes over by the default lease", &[&FAILOVER]),
    nightly("a shop with 100,000 carts that is killed", &[&MANY_CARTS]),
    nightly("address sanitizer", &[&["xtask", "sanitize"]]),
];

const ECOSYSTEM: &str = "ecosystem's components";
const KILLS: [&str; 9] = ignored("all", "kills::two_thousand_kills");
const FAILOVER: [&str; 9] = ignored("all", "failures::another_host_serves_a_name_within_twelve_seconds");
const LONG_STOP: [&str; 9] = ignored("all", "failures::a_server_that_stops_for_half_a_minute_loses_no_more");
const MANY_CARTS: [&str; 9] =
    ignored("examples", "a_hundred_thousand_carts_are_as_they_were_said_to_be_after_the_shop_was_killed");

/// One test that is not run among the others.
const fn ignored(target: &'static str, test: &'static str) -> [&'static str; 9] {
    ["test", "--workspace", "--locked", "--test", target, "--", "--ignored", "--exact", test]
}

const GUESTS: &str = "fixtures/guests/rust/Cargo.toml";

const fn always(name: &'static str, commands: &'static [&'static [&'static str]]) -> Step {
    Step { name, commands, when: When::Always, otherwise: Otherwise::Fail }
}

const fn nightly(name: &'static str, commands: &'static [&'static [&'static str]]) -> Step {
    Step { when: When::Nightly, ..always(name, commands) }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if args.list {
        for Step { name, when, .. } in STEPS {
            println!("{}  {name}", if *when == When::Always { "always " } else { "nightly" });
        }
        return Ok(());
    }
    let when = if args.nightly { When::Nightly } else { When::Always };
    let wanted = |step: &&Step| args.only.as_ref().is_none_or(|only| step.name.contains(only.as_str()));
    let steps: Vec<_> = STEPS.iter().filter(|step| step.when == when).filter(wanted).collect();
    if steps.is_empty() {
        bail!(
            "no such step has {:?} in its name; `cargo xtask check --list` shows them, and which need `--nightly`",
            args.only.as_deref().unwrap_or_default()
        );
    }
    let mut taken: Vec<(&str, Duration)> = Vec::new();
    for step in steps {
        println!("\n== {}", step.name);
        let started = Instant::now();
        step.run()?;
        taken.push((step.name, started.elapsed()));
    }
    println!("\n== all is well");
    for (name, taken) in taken {
        println!("{:>6.0} s  {name}", taken.as_secs_f64());
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
                (false, _) => {
                    let nightly = if self.when == When::Nightly { "--nightly " } else { "" };
                    bail!("{} failed; `cargo xtask check {nightly}{:?}` runs it alone", self.name, self.name)
                }
            }
        }
        Ok(())
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut cargo = cargo(root());
        cargo.args(arguments);
        match self.name {
            "rustdoc" => _ = cargo.env("RUSTDOCFLAGS", "--deny warnings"),
            // Else a guest that was not built is left out, and its tests pass.
            ECOSYSTEM => _ = cargo.env("TESTS_NEED_ECOSYSTEM", "1"),
            _ => {}
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

    #[test]
    fn the_nightly_workflow_has_a_job_for_each_nightly_step() {
        let workflow = std::fs::read_to_string(root().join(".github/workflows/nightly.yml")).unwrap();
        let jobs = workflow.lines().filter_map(|line| line.trim().strip_prefix("- step: "));
        let steps = STEPS.iter().filter(|step| step.when == When::Nightly).map(|step| step.name);
        assert_eq!(jobs.collect::<Vec<_>>(), steps.collect::<Vec<_>>());
    }

    #[test]
    fn tests_of_the_ecosystems_components_need_them() {
        let step = STEPS.iter().find(|step| step.name == ECOSYSTEM).unwrap();
        let command = step.command(step.commands[1]);
        assert!(command.get_envs().any(|(name, value)| name == "TESTS_NEED_ECOSYSTEM" && value.is_some()));
    }

    #[test]
    fn files_that_the_documents_name_are_there() {
        let folders = ["crates/", "stress/", "benches/", "xtask/", "fixtures/", "examples/", "fuzz/"];
        let mut documents: Vec<_> =
            ["ARCHITECTURE.md", "CONTRIBUTING.md", "README.md", "SECURITY.md"].map(|name| root().join(name)).into();
        documents.extend(std::fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path()));
        for document in documents.iter().filter(|path| path.is_file()) {
            let text = std::fs::read_to_string(document).unwrap();
            let names = text.split('`').skip(1).step_by(2).filter(|name| folders.iter().any(|of| name.starts_with(of)));
            for name in names.filter(|name| !name.contains([' ', '{', '*', '<'])) {
                assert!(root().join(name).exists(), "{}: there is no {name}", document.display());
            }
        }
    }
}
