//! `stress keyed`: the soak of keyed actors.

use std::process::{Command, ExitCode};

use airssys_wasm_stress::keyed;
use anyhow::Result;

/// Kill processes with keyed actors on a rough store, again and again, and fail if a count is not what was promised
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    options: keyed::Options,
}

/// One of its processes
#[derive(clap::Args)]
pub(crate) struct RoundArgs {
    #[command(flatten)]
    round: keyed::Round,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let folder = tempfile::tempdir()?;
    let own = std::env::current_exe()?;
    let program = || {
        let mut round = Command::new(&own);
        round.arg("keyed-round");
        round
    };
    match keyed::run(&args.options, &folder.path().join("store"), program) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(finding) => {
            eprintln!("{finding:#}");
            Ok(ExitCode::FAILURE)
        }
    }
}

pub(crate) fn run_round(args: &RoundArgs) -> Result<ExitCode> {
    keyed::run_round(&args.round).map(|()| ExitCode::SUCCESS)
}
