//! `cargo xtask http`: builds the program that lets hostile clients loose on a server of HTTP, and runs it.

use anyhow::{Result, ensure};

use crate::{interrupt, programs::stress};

/// Let hostile clients loose on a server of HTTP, and fail if a healthy one gets a wrong answer, something is left behind or
/// the process grows
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How long, in minutes
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// What is done is drawn from this number; by default at random. It is printed, so that a run can be repeated
    #[arg(long)]
    seed: Option<u64>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    interrupt::listen()?;
    // Cargo makes way for the program, which is then told to end by the signal, and prints what it has.
    let mut command = stress("http");
    command.args(["--minutes", &args.minutes.to_string()]);
    if let Some(seed) = args.seed {
        command.args(["--seed", &seed.to_string()]);
    }
    let status = interrupt::status(&mut command)?;
    ensure!(status.success(), "the clients of HTTP found something, or did not run ({status})");
    Ok(())
}
