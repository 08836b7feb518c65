//! Lets the hostile guests loose, one after the other, and says whether the host came through. Run by
//! `cargo xtask hostile`.

use std::{process::ExitCode, time::Duration};

use airssys_wasm_stress::hostile::{
    arena,
    corpus::{Corpus, Limits},
    search::{Found, search},
    suite,
};
use anyhow::{Result, bail};

/// Let hostile guests loose, each in a process of its own beside a healthy neighbour, and judge what comes of it.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only guests whose name contains this; `--list` shows the names
    filter: Option<String>,
    /// Show the guests and what must come of them, and run none
    #[arg(long)]
    list: bool,
    /// Also those that take the compiler as long as its limits let them
    #[arg(long)]
    slow: bool,
    /// Instead look for files that cost too much, for so many minutes: the guests at random sizes, and changed at random
    #[arg(long, value_name = "MINUTES")]
    search: Option<u64>,
    /// Where the search begins, by default at random; what it finds, it finds again
    #[arg(long, default_value_t = fastrand::u64(..), hide_default_value = true)]
    seed: u64,
    /// Only guests that are aimed at this limit, and with it switched off: each must be found out
    #[arg(long, hide = true)]
    without: Option<String>,
    /// Run this guest here, and print what happened as JSON
    #[arg(long, hide = true)]
    arena: Option<String>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let corpus = Corpus::read()?;
    if let Some(name) = &args.arena {
        let guest = corpus.guest(name)?;
        let mut limits = Limits::of(guest)?;
        if let Some(limit) = &args.without {
            limits.without(limit)?;
        }
        let report = arena::run(guest, &limits, args.without.is_some() || guest.slow)?;
        println!("{}", serde_json::to_string(&report)?);
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(minutes) = args.search {
        let folder = std::env::temp_dir().join("airssys-wasm-hostile");
        let tell = |found: &Found| {
            let files: u64 = found.outcomes.values().sum();
            eprintln!("{files} files, at the most {:?} and {} MiB", found.slowest, found.most >> 20);
        };
        println!("seed {}", args.seed);
        let found = search(Duration::from_secs(60 * minutes), args.seed, folder, tell)?;
        tell(&found);
        for (outcome, files) in &found.outcomes {
            println!("{files:>8}  {outcome}");
        }
        return Ok(ExitCode::SUCCESS);
    }
    let wanted: Vec<_> = corpus
        .guests
        .iter()
        .filter(|guest| args.filter.as_ref().is_none_or(|filter| guest.name.contains(filter)))
        .filter(|guest| args.slow || !guest.slow)
        .filter(|guest| args.without.as_ref().is_none_or(|limit| guest.aims_at.contains(limit)))
        .collect();
    if wanted.is_empty() {
        bail!("no guest is called so; `--list` shows them");
    }
    if args.list {
        for guest in wanted {
            println!("{:60} {}", guest.name, guest.outcome);
        }
        return Ok(ExitCode::SUCCESS);
    }
    println!("{:60} {:32} {:>8} {:>8}   {:>8} {:>8} {:>8}", "", "", "", "peak", "p99, µs:", "", "answers");
    println!(
        "{:60} {:32} {:>8} {:>8}   {:>8} {:>8} {:>8}",
        "guest", "ended as", "ms", "MiB", "idle", "during", "during"
    );
    let program = std::env::current_exe()?;
    let mut wrong = 0;
    for guest in wanted {
        let verdict = suite::try_guest(&program, guest, args.without.as_deref())?;
        if let Some(report) = &verdict.report {
            let outcome = report.outcomes.last().map_or("", |(what, _)| what.as_str());
            println!(
                "{:60} {:32} {:>8.1} {:>8.1}   {:>8} {:>8} {:>8}",
                guest.name,
                outcome,
                report.took,
                report.peak as f64 / f64::from(1 << 20),
                report.idle.p99,
                report.during.p99,
                report.during.answers,
            );
        } else {
            println!("{:60}", guest.name);
        }
        for complaint in &verdict.complaints {
            println!("    {complaint}");
        }
        wrong += usize::from(!verdict.complaints.is_empty());
    }
    Ok(if wrong == 0 {
        println!("all as they should be");
        ExitCode::SUCCESS
    } else {
        println!("not as they should be: {wrong}");
        ExitCode::FAILURE
    })
}
