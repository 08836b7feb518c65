//! `cargo xtask soak`: builds the soak and runs it, and sees that it would find a loss.

use anyhow::{Result, bail, ensure};

use crate::{interrupt, programs::program};

/// Put hundreds of actors under mixed load, crashes, kills and upgrades, and fail if a message is lost, an ask never ends
/// or the process grows
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How long, in minutes
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// What is done is drawn from this number; by default at random. It is printed, so that a run can be repeated
    #[arg(long)]
    seed: Option<u64>,
    /// How many actors
    #[arg(long, default_value_t = 300)]
    actors: u16,
    /// See that it is found when one message in a million is lost, by a build that does so
    #[arg(long, conflicts_with = "minutes")]
    self_check: bool,
}

/// Minutes in which a loss must be found.
const SELF_CHECK: f64 = 0.5;
/// What the program ends with when messages were lost, and nothing else was wrong.
const LOST: i32 = 3;

pub(crate) fn run(args: &Args) -> Result<()> {
    interrupt::listen()?;
    // Cargo makes way for the program, which is then told to end by the signal, and prints what it has.
    let mut command = program("soak", if args.self_check { &["lossy"] } else { &[] });
    if args.self_check {
        command.env("AIRSSYS_WASM_LOSE_ONE_IN", "1000000");
    }
    let minutes = if args.self_check { SELF_CHECK } else { args.minutes };
    command.args(["--minutes", &minutes.to_string(), "--actors", &args.actors.to_string()]);
    if let Some(seed) = args.seed {
        command.args(["--seed", &seed.to_string()]);
    }
    let status = interrupt::status(&mut command)?;
    if !args.self_check {
        ensure!(status.success(), "the soak found something, or did not run ({status})");
    } else if status.code() != Some(LOST) {
        bail!("one message in a million was lost, and the soak did not say that alone ({status})");
    } else {
        println!("the losses above were made on purpose, and found");
    }
    Ok(())
}
