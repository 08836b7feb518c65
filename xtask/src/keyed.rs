//! `cargo xtask keyed`: builds the soak of keyed actors and runs it, and sees that it would find a loss.

use anyhow::{Result, ensure};

use crate::{interrupt, programs::Rounds};

/// Kill processes with keyed actors on a store that is slow and full now and then, and fail if a count is not what was
/// promised
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    rounds: Rounds,
    /// See that it is found when one is taken from the count of a key
    #[arg(long, conflicts_with = "minutes")]
    self_check: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    interrupt::listen()?;
    let mut command = args.rounds.of("keyed", if args.self_check { 0.0 } else { args.rounds.minutes });
    if args.self_check {
        command.arg("--tamper");
    }
    let status = interrupt::status(&mut command)?;
    if args.self_check {
        ensure!(status.code() == Some(1), "one was taken from a count, and it was not found ({status})");
        println!("the loss above was made on purpose, and found");
    } else {
        ensure!(status.success(), "the soak found something, or did not run ({status})");
    }
    Ok(())
}
