//! Tables as people read them: on a terminal, in Markdown, and in HTML.

use std::fmt::Write as _;

use airssys_wasm_measurements::{Held, Ratio};
use comfy_table::{CellAlignment, ContentArrangement, presets};

/// A table and what it is about.
pub(crate) struct Table {
    pub(crate) title: String,
    columns: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

/// What stands in one place of a table.
pub(crate) struct Cell {
    text: String,
    /// What it is sorted by, where not by its text.
    value: Option<f64>,
    /// Whether it says how something ended.
    verdict: bool,
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self { text, value: None, verdict: false }
    }
}

impl Cell {
    /// Text that stands for a number.
    pub(crate) fn number(text: String, value: f64) -> Self {
        Self { text, value: Some(value), verdict: false }
    }

    /// What it says.
    pub(crate) fn into_text(self) -> String {
        self.text
    }

    pub(crate) fn amount(value: f64, unit: &str) -> Self {
        Self::number(amount(value, unit), value)
    }

    /// A word that tells at a glance.
    pub(crate) fn verdict(word: &str) -> Self {
        Self { text: word.to_owned(), value: None, verdict: true }
    }

    pub(crate) fn met(held: Option<Held>) -> Self {
        held.map_or_else(|| "".into(), |held| Self::verdict(held.word()))
    }
}

impl Table {
    /// The first column says what a row is about, the others hold what is aligned to the right.
    pub(crate) fn new(title: &str, columns: impl IntoIterator<Item = &'static str>) -> Self {
        Self { title: title.to_owned(), columns: columns.into_iter().collect(), rows: Vec::new() }
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().collect());
    }

    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    /// For a terminal, which is Markdown as well; nothing where there are no rows.
    pub(crate) fn text(&self) -> String {
        if self.rows.is_empty() {
            return String::new();
        }
        let mut table = comfy_table::Table::new();
        table.load_style(presets::ASCII_MARKDOWN).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(self.columns.iter().copied());
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        for row in &self.rows {
            table.add_row(row.iter().map(|cell| cell.text.replace('|', "\\|")));
        }
        table.to_string()
    }

    /// The title as a heading, and the table.
    pub(crate) fn section(&self) -> String {
        match self.text() {
            text if text.is_empty() || self.title.is_empty() => text,
            text => format!("### {}\n\n{text}\n", self.title),
        }
    }

    pub(crate) fn html(&self) -> String {
        let mut html = format!("<table class=\"data\"><caption>{}</caption><thead><tr>", escaped(&self.title));
        for (n, column) in self.columns.iter().enumerate() {
            let class = if n > 0 { " class=\"number\"" } else { "" };
            write!(html, "<th scope=\"col\"{class}>{}</th>", escaped(column)).expect("into a string");
        }
        html.push_str("</tr></thead><tbody>");
        for row in &self.rows {
            html.push_str("<tr>");
            for (n, Cell { text, value, verdict }) in row.iter().enumerate() {
                let text = escaped(text);
                let value = value.map(|value| format!(" data-value=\"{value}\"")).unwrap_or_default();
                match (n, verdict) {
                    (0, _) => write!(html, "<th scope=\"row\">{text}</th>"),
                    (_, true) => {
                        let class = text.replace(' ', "-");
                        write!(html, "<td class=\"number\"><span class=\"verdict {class}\">{text}</span></td>")
                    }
                    _ => write!(html, "<td class=\"number\"{value}>{text}</td>"),
                }
                .expect("into a string");
            }
            html.push_str("</tr>");
        }
        html.push_str("</tbody></table>");
        html
    }
}

/// Text that cannot be taken for markup.
pub(crate) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#39;")
}

/// A ratio and its interval.
pub(crate) fn times(ratio: &Ratio) -> Cell {
    let digits = if ratio.ratio < 0.1 { 4 } else { 2 };
    let text = format!("{:.digits$} × ({:.digits$} … {:.digits$})", ratio.ratio, ratio.lower, ratio.upper);
    Cell::number(text, ratio.ratio)
}

/// A figure with three significant digits in a unit that suits it.
pub(crate) fn amount(value: f64, unit: &str) -> String {
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

    #[test]
    fn what_stands_in_a_table_cannot_break_it() {
        let mut table = Table::new("a < b", ["what", "figure"]);
        table.row(["<script>|".into(), Cell::amount(1.0, "ns")]);
        let html = table.html();
        assert!(html.contains("&lt;script&gt;|") && !html.contains("<script>"), "{html}");
        assert!(html.contains("data-value=\"1\""), "{html}");
        assert!(table.text().contains("<script>\\|"), "{}", table.text());
        assert_eq!(Table::new("empty", ["what"]).section(), "");
    }
}
