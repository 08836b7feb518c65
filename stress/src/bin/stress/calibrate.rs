//! Holds what `CompileLimits` counts against what the compiler takes. Run by `cargo xtask calibrate`.

use std::process::ExitCode;

use airssys_wasm_stress::calibration::{Calibration, of_instructions, of_shapes};
use anyhow::Result;

/// Time the compiler over each instruction and over shapes that it is slow at, beside the work that the model counts for
/// them. Prints a table, and fails where the model counts less than a third of what was taken.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only shapes, and no instructions
    #[arg(long)]
    shapes: bool,
    /// Microseconds that a unit of work stands for
    #[arg(long, default_value_t = 1.0)]
    unit: f64,
}

/// How much more than the model says a thing may take.
const FACTOR: f64 = 3.0;

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let calibration = Calibration::new()?;
    let mut wrong = Vec::new();
    println!("name\tn\tunits\tmicroseconds\tmicroseconds_per_unit");
    let mut tell = |reading: &airssys_wasm_stress::calibration::Reading| {
        println!("{}\t{}\t{}\t{:.0}\t{:.2}", reading.name, reading.n, reading.units, reading.micros, reading.ratio());
        if reading.ratio() > FACTOR * args.unit {
            wrong.push(format!("{} ({})", reading.name, reading.n));
        }
    };
    of_shapes(&calibration, &mut tell)?;
    if !args.shapes {
        of_instructions(&calibration, &mut tell)?;
    }
    if wrong.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("the model says less than a third of what these took: {}", wrong.join(", "));
    Ok(ExitCode::FAILURE)
}
