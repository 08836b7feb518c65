//! `cargo xtask leak-check`: builds the program that crashes components and looks whether its process grows, and runs it.

use anyhow::{Result, ensure};

use crate::{interrupt, programs::stress};

/// Crash 100,000 components of mixed kinds in one process, and fail if memory, mappings or descriptors grow
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How many components to crash
    #[arg(long, default_value_t = 100_000)]
    crashes: u64,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    interrupt::listen()?;
    let status = interrupt::status(stress("leak-check").arg(args.crashes.to_string()))?;
    ensure!(status.success(), "the leak check failed ({status})");
    Ok(())
}
