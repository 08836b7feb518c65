//! Hostile and healthy clients at one server of HTTP. Run by `cargo xtask http`.

use std::{
    process::ExitCode,
    sync::{Arc, atomic::AtomicBool},
};

use airssys_wasm_stress::http::Options;
use anyhow::Result;

/// Lets hostile clients loose on a server of HTTP, in rounds of twenty seconds. Each request of healthy ones must get a right
/// answer or be refused as it is to be, and after each round nothing may be left.
///
/// Exits with 0 when all is well, with 1 when something is wrong, and with 130 when it was interrupted and all was well until
/// then.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    options: Options,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let interrupted = Arc::new(AtomicBool::new(false));
    crate::soak::listen(&interrupted)?;
    Ok(ExitCode::from(airssys_wasm_stress::http::run(&args.options, &interrupted)? as u8))
}
