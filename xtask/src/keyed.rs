//! `cargo xtask keyed`: builds the soak of keyed actors and runs it, and sees that it would find a loss.

use anyhow::{Result, ensure};

use crate::{interrupt, programs::stress};

/// Kill processes with keyed actors on a store that is slow and full now and then, and fail if a count is not what was
/// promised
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How long, in minutes
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// What is done is drawn from this number; by default at random. It is printed, so that a run can be repeated
    #[arg(long)]
    seed: Option<u64>,
    /// See that it is found when one is taken from the count of a key
    #[arg(long, conflicts_with = "minutes")]
    self_check: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    interrupt::listen()?;
    let mut command = stress("keyed");
    if args.self_check {
        command.args(["--minutes", "0", "--tamper"]);
    } else {
        command.args(["--minutes", &args.minutes.to_string()]);
    }
    if let Some(seed) = args.seed {
        command.args(["--seed", &seed.to_string()]);
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
