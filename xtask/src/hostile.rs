//! `cargo xtask hostile`: builds the program that lets the hostile guests loose, and runs it.

use anyhow::{Result, ensure};

use crate::{interrupt, programs::stress};

/// Let hostile guests loose, each in a process of its own beside a healthy neighbour, and judge what comes of it
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only guests whose name contains this; `--list` shows the names
    filter: Option<String>,
    /// Show the guests and what must come of them, and run none
    #[arg(long)]
    list: bool,
    /// Instead look for files that cost too much, for so many minutes: the guests at random sizes, and changed at random
    #[arg(long, value_name = "MINUTES")]
    search: Option<u64>,
    /// Where the search begins, by default at random; what it finds, it finds again
    #[arg(long)]
    seed: Option<u64>,
    /// Also those that take the compiler as long as its limits let them
    #[arg(long)]
    slow: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    interrupt::listen()?;
    let mut command = stress("hostile");
    command.args(&args.filter);
    for (flag, given) in [("--list", args.list), ("--slow", args.slow)] {
        command.args(given.then_some(flag));
    }
    if let Some(minutes) = args.search {
        command.args(["--search", &minutes.to_string()]);
    }
    if let Some(seed) = args.seed {
        command.args(["--seed", &seed.to_string()]);
    }
    let status = interrupt::status(&mut command)?;
    ensure!(status.success(), "not all guests are as they should be ({status})");
    Ok(())
}
