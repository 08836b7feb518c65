//! The project's own commands: `cargo xtask --help`.

mod bench;
mod calibrate;
mod check;
#[cfg(test)]
mod circles;
mod compare;
mod conformance;
#[cfg(test)]
mod edges;
mod figures;
mod files;
mod fixtures;
mod fuzz;
mod hostile;
mod http;
mod interrupt;
mod keyed;
mod lattice;
mod leak_check;
mod links;
mod machine;
mod programs;
mod report;
mod results;
mod sanitize;
mod soak;
mod table;
mod workspace;

use std::process::ExitCode;

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
    Conformance(conformance::Args),
    #[command(hide = true)]
    Disturb(compare::disturbance::Args),
    Report(report::Args),
    Figures(figures::Args),
    Check(check::Args),
    LeakCheck(leak_check::Args),
    Hostile(hostile::Args),
    Http(http::Args),
    Calibrate(calibrate::Args),
    Keyed(keyed::Args),
    Lattice(lattice::Args),
    Soak(soak::Args),
    Fuzz(fuzz::Args),
    Sanitize(sanitize::Args),
}

fn main() -> ExitCode {
    if let Some(linked) = links::link() {
        return linked;
    }
    let done = |()| ExitCode::SUCCESS;
    let result = match Cli::parse().command {
        Command::Fixtures(args) => fixtures::run(&args).map(done),
        Command::Bench(args) => bench::run(&args).map(done),
        // What could not be made is not what found something.
        Command::Compare(args) => return compare::run(&args),
        Command::Conformance(args) => conformance::run(&args).map(done),
        Command::Disturb(args) => compare::disturbance::run(&args).map(done),
        Command::Report(args) => report::run(&args).map(done),
        Command::Figures(args) => figures::run(&args).map(done),
        Command::Check(args) => check::run(&args).map(done),
        Command::LeakCheck(args) => leak_check::run(&args).map(done),
        Command::Hostile(args) => hostile::run(&args).map(done),
        Command::Http(args) => http::run(&args).map(done),
        Command::Calibrate(args) => calibrate::run(&args).map(done),
        Command::Keyed(args) => keyed::run(&args).map(done),
        Command::Lattice(args) => lattice::run(&args).map(done),
        Command::Soak(args) => soak::run(&args).map(done),
        Command::Sanitize(args) => sanitize::run(&args).map(done),
        Command::Fuzz(args) => fuzz::run(&args).map(done),
    };
    result.unwrap_or_else(|error| {
        // Where it comes from, without where in this program: that is nobody's concern.
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
