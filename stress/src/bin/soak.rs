//! Hundreds of actors under mixed load and chaos, in which no message may be lost. Run by `cargo xtask soak`.

use std::{
    process::ExitCode,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use airssys_wasm_stress::soak::{Ending, Options, run};
use anyhow::{Context, Result};
use clap::Parser;
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    flag,
};

/// Puts hundreds of actors under mixed load, crashes, kills, upgrades and shutdowns, in rounds of ten seconds. After each,
/// every message must be accounted for, and nothing may be left.
///
/// Exits with 0 when all is well, with 3 when messages were lost and nothing else is wrong, with 1 when anything else is,
/// and with 130 when it was interrupted and all was well until then.
#[derive(Parser)]
#[command(name = "soak")]
struct Cli {
    /// How long, in minutes; one round at least
    #[arg(long, default_value_t = 10.0, value_parser = minutes)]
    minutes: f64,
    /// What is done, and with whom, is drawn from this; who is faster is up to the scheduler [default: at random]
    #[arg(long)]
    seed: Option<u64>,
    /// How many actors, rounded up to a multiple of 25
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    actors: u16,
}

/// Up to a year.
fn minutes(text: &str) -> Result<f64, String> {
    let minutes: f64 = text.parse().map_err(|error| format!("{error}"))?;
    if (0.0..=525_600.0).contains(&minutes) { Ok(minutes) } else { Err("from 0 to 525600".into()) }
}

fn main() -> Result<ExitCode> {
    let cli = Cli::parse();
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // A second one ends it where it is.
        flag::register_conditional_shutdown(signal, 130, Arc::clone(&interrupted))
            .and_then(|_| flag::register(signal, Arc::clone(&interrupted)))
            .context("cannot listen for signals")?;
    }
    let options = Options {
        time: Duration::from_secs_f64(cli.minutes * 60.0),
        seed: cli.seed.unwrap_or_else(|| fastrand::u64(..)),
        actors: cli.actors.into(),
    };
    Ok(ExitCode::from(match run(&options, &interrupted)? {
        Ending::Clean => 0,
        Ending::Failed => 1,
        Ending::Lost => 3,
        Ending::Interrupted => 130,
    }))
}
