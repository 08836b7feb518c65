//! Hundreds of actors under mixed load and chaos, in which no message may be lost. Run by `cargo xtask soak`.

use std::{
    process::ExitCode,
    sync::{Arc, atomic::AtomicBool},
};

use airssys_wasm_stress::soak::Options;
use anyhow::{Context, Result};
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    flag,
};

/// Puts hundreds of actors under mixed load, crashes, kills, upgrades and shutdowns, in rounds of ten seconds. After each,
/// every message must be accounted for, and nothing may be left.
///
/// Exits with 0 when all is well, with 3 when messages were lost on purpose and exactly these were found, with 1 when
/// anything else is wrong, and with 130 when it was interrupted and all was well until then.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    options: Options,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let interrupted = Arc::new(AtomicBool::new(false));
    listen(&interrupted)?;
    Ok(ExitCode::from(airssys_wasm_stress::soak::run(&args.options, &interrupted)? as u8))
}

/// Sets it when the program is told to end.
pub(crate) fn listen(interrupted: &Arc<AtomicBool>) -> Result<()> {
    for signal in [SIGINT, SIGTERM] {
        // A second one ends it where it is.
        flag::register_conditional_shutdown(signal, 130, Arc::clone(interrupted))
            .and_then(|_| flag::register(signal, Arc::clone(interrupted)))
            .context("cannot listen for signals")?;
    }
    Ok(())
}
