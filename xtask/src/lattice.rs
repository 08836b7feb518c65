//! `cargo xtask lattice`: builds the soak of the lattice and runs it, and sees that it would find a message that is lost or handled
//! twice.

use anyhow::{Result, ensure};

use crate::{interrupt, programs::Rounds};

/// Kill and stop hosts of a lattice and their broker while all send to all, and fail if a message or a name is not where it
/// was promised
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    rounds: Rounds,
    /// See that it is found when a message is lost, and when one is handled twice
    #[arg(long, conflicts_with = "minutes")]
    self_check: bool,
}

/// What the program ends with if it has found what was done on purpose, and nothing else.
const TAMPERED: i32 = 3;

pub(crate) fn run(args: &Args) -> Result<()> {
    interrupt::listen()?;
    if args.self_check {
        for tamper in ["lose", "repeat"] {
            let mut command = args.rounds.of("lattice", 0.0);
            let status = interrupt::status(command.args(["--tamper", tamper]))?;
            ensure!(status.code() == Some(TAMPERED), "a message was tampered with, {tamper}, and not found ({status})");
        }
        println!("what is told above was done on purpose, and found");
        return Ok(());
    }
    let status = interrupt::status(&mut args.rounds.of("lattice", args.rounds.minutes))?;
    ensure!(status.success(), "the soak found something, or did not run ({status})");
    Ok(())
}
