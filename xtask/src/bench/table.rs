//! The results as people read them.

use std::fmt::Write as _;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

use super::report::{Figure, Ratio, Report};

/// All figures, then what was held against goals and targets.
pub(crate) fn render(report: &Report) -> String {
    let part = &report.part;
    let mut text = String::new();
    let mut figures = table(["benchmark", "median", "95 % interval", "beside bare wasmtime"]);
    let is_twin = |figure: &&Figure| part.ratios.iter().any(|ratio| ratio.against == figure.id);
    for figure in part.results.iter().filter(|figure| !is_twin(figure)) {
        let raw = part.ratios.iter().find(|ratio| ratio.id == figure.id && ratio.against.starts_with("raw/"));
        figures.add_row([
            figure.id.clone(),
            amount(figure.estimate, &figure.unit),
            format!("{} … {}", amount(figure.lower, &figure.unit), amount(figure.upper, &figure.unit)),
            raw.map(times).unwrap_or_default(),
        ]);
    }
    section(&mut text, "", &figures);

    let mut others = table(["benchmark", "beside", "ratio", "goal", ""]);
    for ratio in part.ratios.iter().filter(|ratio| ratio.goal.is_some() || !ratio.against.starts_with("raw/")) {
        others.add_row([
            ratio.id.clone(),
            ratio.against.clone(),
            times(ratio),
            ratio.goal.map(|goal| format!("≤ {goal} ×")).unwrap_or_default(),
            ratio.pass.map(verdict).unwrap_or_default().to_owned(),
        ]);
    }
    section(&mut text, "Ratios", &others);

    let mut targets = table(["benchmark", "measured", "limit", "set by", ""]);
    for target in &part.targets {
        targets.add_row([
            target.id.clone(),
            amount(target.actual, &target.unit),
            format!("≤ {}", amount(target.limit, &target.unit)),
            target.source.clone(),
            verdict(target.pass).to_owned(),
        ]);
    }
    section(&mut text, "Limits", &targets);

    for skipped in &part.skipped {
        writeln!(text, "not measured: {skipped}").expect("into a string");
    }
    let machine = &report.machine;
    write!(text, "{}, {} cores, {}, {}", machine.cpu, machine.cores, machine.system, machine.rustc)
        .expect("into a string");
    text
}

fn verdict(pass: bool) -> &'static str {
    if pass { "met" } else { "MISSED" }
}

fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn section(text: &mut String, title: &str, table: &Table) {
    if table.is_empty() {
        return;
    }
    if !title.is_empty() {
        writeln!(text, "\n{title}").expect("into a string");
    }
    writeln!(text, "{table}").expect("into a string");
}

fn times(ratio: &Ratio) -> String {
    let digits = if ratio.ratio < 0.1 { 4 } else { 2 };
    format!("{:.digits$} × ({:.digits$} … {:.digits$})", ratio.ratio, ratio.lower, ratio.upper)
}

/// A figure with three significant digits in a unit that suits it.
fn amount(value: f64, unit: &str) -> String {
    let steps: &[(f64, &str)] = match unit {
        "ns" => &[(1e9, "s"), (1e6, "ms"), (1e3, "µs"), (1.0, "ns")],
        "bytes" => &[(1_073_741_824.0, "GiB"), (1_048_576.0, "MiB"), (1_024.0, "KiB"), (1.0, "B")],
        other => return format!("{value:.3} {other}"),
    };
    let magnitude = value.abs();
    let (size, name) = steps.iter().find(|(size, _)| magnitude >= *size).unwrap_or(&steps[steps.len() - 1]);
    let scaled = value / size;
    let digits = match scaled.abs() {
        scaled if scaled >= 100.0 => 0,
        scaled if scaled >= 10.0 => 1,
        _ => 2,
    };
    format!("{scaled:.digits$} {name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_have_three_digits_and_a_fitting_unit() {
        assert_eq!(amount(0.25, "ns"), "0.25 ns");
        assert_eq!(amount(123.4, "ns"), "123 ns");
        assert_eq!(amount(12_345.0, "ns"), "12.3 µs");
        assert_eq!(amount(-1_500_000.0, "ns"), "-1.50 ms");
        assert_eq!(amount(2e9, "ns"), "2.00 s");
        assert_eq!(amount(16_384.0, "bytes"), "16.0 KiB");
        assert_eq!(amount(3.0, "bytes"), "3.00 B");
    }
}
