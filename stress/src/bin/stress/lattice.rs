//! `stress lattice`: the soak of the lattice.

use std::process::{Command, ExitCode};

use airssys_wasm_stress::lattice::{self, Verdict};
use anyhow::Result;

/// Kill and stop hosts and their broker while all send to all, and fail if a message or a name is not where it was promised
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    options: lattice::Options,
}

/// One of its hosts
#[derive(clap::Args)]
pub(crate) struct HostArgs {
    #[command(flatten)]
    host: lattice::Host,
}

/// What was done on purpose was found.
const TAMPERED: u8 = 3;

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let folder = tempfile::tempdir()?;
    let own = std::env::current_exe()?;
    let program = || {
        let mut host = Command::new(&own);
        host.arg("lattice-host");
        host
    };
    let verdict = lattice::run(&args.options, folder.path(), program);
    match verdict {
        Ok(Verdict::Well) => Ok(ExitCode::SUCCESS),
        Ok(Verdict::FoundTampered) => Ok(ExitCode::from(TAMPERED)),
        Ok(Verdict::Found) | Err(_) => {
            eprintln!("the hosts' logs are in {}", folder.keep().display());
            verdict.map(|_| ExitCode::FAILURE)
        }
    }
}

pub(crate) fn run_host(args: &HostArgs) -> Result<ExitCode> {
    lattice::run_host(args.host.clone()).map(|()| ExitCode::SUCCESS)
}
