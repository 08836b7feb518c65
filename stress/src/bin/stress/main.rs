//! All that looks for faults, in one program: each would carry wasmtime's generics once more. Run by `cargo xtask`.

mod calibrate;
mod conformance;
mod hostile;
mod http;
mod keyed;
mod lattice;
mod leak_check;
mod soak;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Looks for faults in a whole system.
#[derive(Parser)]
#[command(name = "stress")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Calibrate(calibrate::Args),
    Conformance(conformance::Args),
    Hostile(hostile::Args),
    Http(http::Args),
    Keyed(keyed::Args),
    #[command(hide = true)]
    KeyedRound(keyed::RoundArgs),
    Lattice(lattice::Args),
    #[command(hide = true)]
    LatticeHost(lattice::HostArgs),
    LeakCheck(leak_check::Args),
    Soak(soak::Args),
}

fn main() -> Result<ExitCode> {
    airssys_wasm_engine::compiler_hook();
    match Cli::parse().command {
        Command::Calibrate(args) => calibrate::run(&args),
        Command::Conformance(args) => conformance::run(&args),
        Command::Hostile(args) => hostile::run(&args),
        Command::Http(args) => http::run(&args),
        Command::Keyed(args) => keyed::run(&args),
        Command::KeyedRound(args) => keyed::run_round(&args),
        Command::Lattice(args) => lattice::run(&args),
        Command::LatticeHost(args) => lattice::run_host(&args),
        Command::LeakCheck(args) => leak_check::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Soak(args) => soak::run(&args),
    }
}
