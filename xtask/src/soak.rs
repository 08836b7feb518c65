//! `cargo xtask soak`: builds the soak and runs it, and sees that it would find a loss.

use anyhow::{Result, bail, ensure};

use crate::{interrupt, programs::Rounds};

/// Put hundreds of actors under mixed load, crashes, kills and upgrades, and fail if a message is lost, an ask never ends
/// or the process grows
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    rounds: Rounds,
    /// How many actors
    #[arg(long, default_value_t = 300)]
    actors: u16,
    /// See that it is found when one message in a million is lost on purpose
    #[arg(long, conflicts_with = "minutes")]
    self_check: bool,
}

/// Minutes in which a loss must be found.
const SELF_CHECK: f64 = 0.5;
/// One message in so many is lost there.
const LOSE_ONE_IN: u64 = 1_000_000;
/// What the program ends with when it found the messages that were lost on purpose, and nothing else.
const LOST: i32 = 3;

pub(crate) fn run(args: &Args) -> Result<()> {
    interrupt::listen()?;
    // Cargo makes way for the program, which is then told to end by the signal, and prints what it has.
    let minutes = if args.self_check { SELF_CHECK } else { args.rounds.minutes };
    let mut command = args.rounds.of("soak", minutes);
    command.args(["--actors", &args.actors.to_string()]);
    if args.self_check {
        command.args(["--lose-one-in", &LOSE_ONE_IN.to_string()]);
    }
    let status = interrupt::status(&mut command)?;
    if !args.self_check {
        ensure!(status.success(), "the soak found something, or did not run ({status})");
    } else if status.code() != Some(LOST) {
        bail!("one message in {LOSE_ONE_IN} was lost, and the soak did not say that alone ({status})");
    } else {
        println!("the losses above were made on purpose, and found");
    }
    Ok(())
}
