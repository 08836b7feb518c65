//! The project's own commands: `cargo xtask --help`.

mod bench;
mod calibrate;
mod check;
mod compare;
mod ecosystem;
#[cfg(test)]
mod edges;
mod figures;
mod fixtures;
mod fuzz;
mod hostile;
mod interrupt;
mod machine;
mod programs;
mod report;
mod sanitize;
mod soak;
mod table;

use std::{
    env,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::LazyLock,
};

use clap::{Parser, Subcommand};

/// Builds the guests, measures, and checks. See CONTRIBUTING.md.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build the guests that need a compiler, and commit-ready copies of them
    Fixtures(fixtures::Args),
    /// Run the benchmarks beside bare wasmtime and print every figure with its target
    Bench(bench::Args),
    Compare(compare::Args),
    Report(report::Args),
    Figures(figures::Args),
    Check(check::Args),
    /// Crash 100,000 components of mixed kinds in one process, and fail if memory, mappings or descriptors grow
    LeakCheck(bench::LeakArgs),
    Hostile(hostile::Args),
    Calibrate(calibrate::Args),
    Soak(soak::Args),
    Fuzz(fuzz::Args),
    Sanitize(sanitize::Args),
}

fn main() -> ExitCode {
    let done = |()| ExitCode::SUCCESS;
    // What failed; and a comparison that could not be made is not one that found something.
    let (result, failure) = match Cli::parse().command {
        Command::Fixtures(args) => (fixtures::run(&args).map(done), 1),
        Command::Bench(args) => (bench::run(&args).map(done), 1),
        Command::Compare(args) => (compare::run(&args), 2),
        Command::Report(args) => (report::run(&args).map(done), 1),
        Command::Figures(args) => (figures::run(&args).map(done), 1),
        Command::Check(args) => (check::run(&args).map(done), 1),
        Command::LeakCheck(args) => (bench::leak_check(&args).map(done), 1),
        Command::Hostile(args) => (hostile::run(&args).map(done), 1),
        Command::Calibrate(args) => (calibrate::run(&args).map(done), 1),
        Command::Soak(args) => (soak::run(&args).map(done), 1),
        Command::Sanitize(args) => (sanitize::run(&args).map(done), 1),
        Command::Fuzz(args) => (fuzz::run(&args).map(done), 1),
    };
    result.unwrap_or_else(|error| {
        // Where it comes from, without where in this program: that is nobody's concern.
        eprintln!("error: {error:#}");
        ExitCode::from(failure)
    })
}

/// Where `fixtures --ecosystem` leaves the guest of some benchmarks, below the target folder.
const JAVASCRIPT_GUEST: &str = "guests/javascript.wasm";

fn target_folder() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// The workspace's folder. Cargo says where this package is, when it runs it and when it builds it.
fn root() -> &'static Path {
    static ROOT: LazyLock<PathBuf> = LazyLock::new(|| {
        let here = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        Path::new(&here).parent().expect("xtask is in the workspace").to_owned()
    });
    &ROOT
}

/// A path as people want to read it: relative to the workspace where it lies there.
fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}
