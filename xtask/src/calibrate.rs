//! `cargo xtask calibrate`: builds the program that holds the model of the compiler's work against the compiler, and runs it.

use std::{fs, io::Read, process::Stdio};

use anyhow::{Context, Result, ensure};

use crate::{
    interrupt::{self, Running},
    machine::{Machine, today},
    programs::stress,
    workspace::root,
};

/// Time the compiler over each instruction and over shapes that it is slow at, beside the work that `CompileLimits` counts
/// for them; fail where that is less than a third of what was taken
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only shapes, and no instructions
    #[arg(long)]
    shapes: bool,
    /// Keep the table, with the date and the machine, as `stress/calibration.tsv`
    #[arg(long, conflicts_with = "shapes")]
    record: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    interrupt::listen()?;
    let mut command = stress("calibrate");
    command.args(args.shapes.then_some("--shapes"));
    if args.record {
        command.stdout(Stdio::piped());
    }
    let mut running = Running::start(&mut command)?;
    let mut table = String::new();
    if let Some(mut out) = running.0.stdout.take() {
        out.read_to_string(&mut table)?;
    }
    let status = running.wait()?;
    if args.record {
        let path = root().join("stress/calibration.tsv");
        let head = format!("# {}, {}; by `cargo xtask calibrate --record`\n", today(), Machine::here());
        fs::write(&path, head + &table).with_context(|| format!("cannot write {}", path.display()))?;
    }
    ensure!(status.success(), "the model says too little; see `crates/engine/src/complexity` ({status})");
    Ok(())
}
