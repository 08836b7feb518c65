//! Runs the benchmarks beside their twins, and says what they come to.

pub(crate) mod tables;

use std::{path::Path, time::Instant};

use airssys_wasm_measurements::{Figures, Measured, evaluate};
use anyhow::{Result, bail};

use crate::{
    compare::saved,
    files::write_whole,
    interrupt,
    programs::{self, Built},
    results::{Results, file_name, results_path, saved_path},
    workspace::{root, shown},
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Measure only benchmarks whose id contains this
    filter: Option<String>,
    /// Fewer and shorter rounds: a minute or two once built, with wider intervals
    #[arg(long)]
    quick: bool,
    /// From how many processes, each with another layout of memory: by default 5, or 3 of a quick run. Of one, the intervals
    /// are too narrow: they have only what differs between its rounds
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..))]
    processes: Option<u8>,
    /// Keep the results as target/bench/saved/NAME.json as well, with what `compare --saved NAME` needs
    #[arg(long, value_name = "NAME", value_parser = file_name)]
    save: Option<String>,
    /// Exit with a failure if a goal is missed
    #[arg(long)]
    enforce: bool,
    /// Build kameo's remote actors and ractor's cluster first, which the lattice is measured beside: some minutes once
    #[arg(long)]
    peers: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    interrupt::listen()?;
    // Building disturbs others who measure as much as measuring does.
    let _turn = programs::take_turns()?;
    eprintln!("building the benchmarks (the first time takes some minutes)");
    if args.peers {
        programs::build_peers()?;
    }
    let built = programs::build(root())?;
    let scratch = tempfile::tempdir()?;
    let started = Instant::now();
    let figures = measure(&built, args, scratch.path())?;
    if figures.results.is_empty() {
        let what = args.filter.as_deref().unwrap_or("anything");
        bail!("no benchmark has {what:?} in its id; `cargo xtask bench` without a filter lists them all");
    }
    let mut results = Results::new(figures, args.quick);
    println!("{}", tables::text(&results));
    write_whole(&results_path(), &serde_json::to_vec(&results)?)?;
    println!("{:.0} s, written to {}", started.elapsed().as_secs_f64(), shown(&results_path()));
    if let Some(name) = &args.save {
        eprintln!("building and measuring once more, as comparisons do");
        results.turns = saved::measure(args.filter.as_deref(), scratch.path())?;
        let path = saved_path(name);
        write_whole(&path, &serde_json::to_vec(&results)?)?;
        println!("saved to {}; compare with it by `cargo xtask compare --saved {name}`", shown(&path));
    }
    let missed = results.missed_goals();
    if args.enforce && missed > 0 {
        bail!("goals missed: {missed}");
    }
    Ok(())
}

/// Runs several processes, each of another link, because what one process measures has one layout of memory in common.
fn measure(built: &Built, args: &Args, scratch: &Path) -> Result<Figures> {
    let processes = args.processes.map_or(if args.quick { 3 } else { 5 }, usize::from);
    let progress = programs::spinner();
    let mut measured: Vec<Measured> = Vec::new();
    for process in 0..processes {
        measured.push(built.nth(process).written(
            scratch,
            |command, out| {
                command.arg("--in-turns").arg(out);
                if args.quick {
                    command.arg("--quick-turns");
                }
                if process == 0 {
                    command.arg("--readings");
                }
                if let Some(filter) = &args.filter {
                    command.args(["--only", filter]);
                }
                command
            },
            |id| progress.set_message(format!("{}/{processes}  {id}", process + 1)),
        )?);
    }
    progress.finish_and_clear();
    Ok(evaluate(measured))
}
