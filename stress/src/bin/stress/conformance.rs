//! Runs a folder of component-model tests. Run by `cargo xtask conformance`.

use std::{path::PathBuf, process::ExitCode};

use airssys_wasm_stress::conformance::{self, Places};
use anyhow::Result;

#[derive(clap::Args)]
pub(crate) struct Args {
    folder: PathBuf,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let report = conformance::run(&args.folder)?;
    let all = |places: &Places| places.values().map(Vec::len).sum();
    println!("| what | how many |\n|---|---|");
    let rows: [(&str, usize); 8] = [
        ("scripts", report.scripts),
        ("components that load", report.loaded),
        ("components that are refused", all(&report.refused)),
        ("assertions that hold", report.held),
        ("assertions about what is refused, or has trapped", report.left_out),
        ("assertions whose guest was ended by a limit", all(&report.limited)),
        ("directives that are not about components", report.others),
        ("faults", report.faults.len()),
    ];
    for (what, count) in rows {
        println!("| {what} | {count} |");
    }
    for (what, of, table) in
        [("refused", "components", &report.refused), ("ended by a limit", "assertions", &report.limited)]
    {
        if !table.is_empty() {
            println!("\n| {what} | {of} | where |\n|---|---|---|");
        }
        for (reason, places) in table {
            println!("| {reason} | {} | {} |", places.len(), places.join(", "));
        }
    }
    for fault in &report.faults {
        println!("\n- {fault}");
    }
    Ok(if report.faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
