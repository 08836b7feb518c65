//! `cargo xtask conformance`: builds the program that runs component-model tests, and runs it.

use std::path::PathBuf;

use anyhow::{Result, ensure};

use crate::{interrupt, programs::stress};

/// Run a folder of component-model tests, such as wasmtime's `tests/misc_testsuite/component-model`, and tell how many
/// components load and how many assertions hold, and of all others where they are and why
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The folder with scripts, whose names end in `.wast`; folders in it are read too
    folder: PathBuf,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    interrupt::listen()?;
    ensure!(args.folder.is_dir(), "{} is no folder", args.folder.display());
    let status = interrupt::status(stress("conformance").arg(&args.folder))?;
    ensure!(status.success(), "not all is as it should be ({status})");
    Ok(())
}
