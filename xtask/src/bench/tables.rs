//! The tables of a run of the benchmarks.

use std::fmt::Write as _;

use airssys_wasm_measurements::{Figure, Ratio, is_twin};

use crate::{
    results::Results,
    table::{Cell, Table, amount, times},
};

/// All figures, then what was held against goals and limits, then what was not measured, and the machine.
pub(crate) fn text(results: &Results) -> String {
    let mut text = String::new();
    for table in [figures(results), ratios(results), limits(results)] {
        writeln!(text, "{}", table.section()).expect("into a string");
    }
    for skipped in &results.figures.skipped {
        writeln!(text, "not measured: {skipped}").expect("into a string");
    }
    write!(text, "{}, {}, {}", results.revision(), results.date, results.machine).expect("into a string");
    text
}

/// Each figure of ours, beside its twin of what is bare: wasmtime, or a server or client.
pub(crate) fn figures(results: &Results) -> Table {
    figures_of(results, |id| !is_twin(id))
}

/// Some figures, beside those.
pub(crate) fn figures_of(results: &Results, wanted: impl Fn(&str) -> bool) -> Table {
    let mut table = Table::new("Figures", ["benchmark", "median", "95 % interval", "beside bare"]);
    for figure in results.figures.results.iter().filter(|figure| wanted(&figure.id)) {
        let Figure { id, unit, estimate, lower, upper, .. } = figure;
        let raw = results.figures.ratios.iter().find(|ratio| ratio.id == *id && ratio.against.starts_with("raw/"));
        table.row([
            id.as_str().into(),
            Cell::amount(*estimate, unit),
            Cell::number(format!("{} … {}", amount(*lower, unit), amount(*upper, unit)), upper - lower),
            raw.map_or_else(|| "".into(), times),
        ]);
    }
    table
}

/// What was held against something else than bare wasmtime, or against a goal.
pub(crate) fn ratios(results: &Results) -> Table {
    ratios_of(results, "Ratios", |ratio| ratio.goal.is_some() || !ratio.against.starts_with("raw/"))
}

/// Some ratios, with their goals.
pub(crate) fn ratios_of(results: &Results, title: &str, wanted: impl Fn(&Ratio) -> bool) -> Table {
    let mut table = Table::new(title, ["benchmark", "beside", "ratio", "goal", ""]);
    for ratio in results.figures.ratios.iter().filter(|ratio| wanted(ratio)) {
        table.row([
            ratio.id.as_str().into(),
            ratio.against.as_str().into(),
            times(ratio),
            ratio.goal.map_or_else(|| "".into(), |goal| Cell::number(format!("≤ {goal} ×"), goal)),
            Cell::met(ratio.held),
        ]);
    }
    table
}

/// What was held against absolute limits.
pub(crate) fn limits(results: &Results) -> Table {
    let mut table = Table::new("Limits", ["benchmark", "measured", "limit", "set by", ""]);
    for target in &results.figures.targets {
        table.row([
            target.id.as_str().into(),
            Cell::amount(target.actual, &target.unit),
            Cell::number(format!("≤ {}", amount(target.limit, &target.unit)), target.limit),
            target.source.as_str().into(),
            Cell::met(Some(target.held)),
        ]);
    }
    table
}
