//! `cargo xtask http`: builds the program that lets hostile clients loose on a server of HTTP, and runs it.

use anyhow::{Result, ensure};

use crate::{interrupt, programs::Rounds};

/// Let hostile clients loose on a server of HTTP, and fail if a healthy one gets a wrong answer, something is left behind or
/// the process grows
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    rounds: Rounds,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    interrupt::listen()?;
    // Cargo makes way for the program, which is then told to end by the signal, and prints what it has.
    let status = interrupt::status(&mut args.rounds.of("http", args.rounds.minutes))?;
    ensure!(status.success(), "the clients of HTTP found something, or did not run ({status})");
    Ok(())
}
