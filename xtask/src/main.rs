//! The project's own commands: `cargo xtask --help`.

mod bench;
mod ecosystem;
#[cfg(test)]
mod edges;
mod fixtures;

use std::{
    env,
    path::{Path, PathBuf},
    process::ExitCode,
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
    /// Crash 100,000 components of mixed kinds in one process, and fail if memory, mappings or descriptors grow
    LeakCheck(bench::LeakArgs),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Fixtures(args) => fixtures::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::LeakCheck(args) => bench::leak_check(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Where it comes from, without where in this program: that is nobody's concern.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Where `fixtures --ecosystem` leaves the guest of some benchmarks, below the target folder.
const JAVASCRIPT_GUEST: &str = "guests/javascript.wasm";

fn target_folder() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// The workspace's folder.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is in the workspace").to_owned()
}
