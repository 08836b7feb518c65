//! One page about all that was measured: goals, ratios, distributions, memory, comparisons and history. It needs no network.

#[cfg(test)]
mod browser;
mod sections;

use std::{fs, path::PathBuf};

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use crate::{
    compare::{history, outcome::Outcome, outcome_path, self_check::Record},
    files::{optional, write_whole},
    results::{Results, results_path},
    table::{Table, escaped},
    workspace::{shown, target_folder},
};

/// Write a page about the last run of the benchmarks, the last comparison, and all saved results.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// What to make: a page, or the same tables as text for a terminal or as Markdown for a pull request
    #[arg(long, value_enum, default_value_t = Format::Html)]
    format: Format,
    /// Where to write it; the page goes to target/bench/report.html and the rest to the terminal if this is not given
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Report these results, saved by `cargo xtask bench --save NAME`, instead of those of the last run
    #[arg(long, value_name = "NAME", value_parser = crate::results::file_name)]
    saved: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Html,
    Text,
    Markdown,
}

/// Everything that is reported.
struct Source {
    results: Results,
    outcome: Option<Outcome>,
    /// Comparisons of commits, the oldest candidate first.
    compared: Vec<Outcome>,
    self_check: Option<Record>,
    /// Saved results by their names, the oldest first.
    saved: Vec<(String, Results)>,
}

/// A part of the report.
struct Section {
    id: &'static str,
    title: &'static str,
    /// What it shows and how to read it.
    about: String,
    /// Charts by their ids, with captions.
    charts: Vec<(&'static str, &'static str, Value)>,
    tables: Vec<Table>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let source = Source::read(args.saved.as_deref())?;
    let sections = sections::all(&source);
    let text = match args.format {
        Format::Html => html(&source, &sections),
        Format::Text | Format::Markdown => markdown(&source, &sections),
    };
    let default = (args.format == Format::Html).then(|| target_folder().join("bench/report.html"));
    match args.output.clone().or(default) {
        Some(path) => {
            write_whole(&path, text.as_bytes())?;
            println!("written to {}", shown(&path));
        }
        None => println!("{text}"),
    }
    Ok(())
}

impl Source {
    fn read(name: Option<&str>) -> Result<Self> {
        let path = name.map_or_else(results_path, crate::results::saved_path);
        let results = Results::read(&path)
            .with_context(|| format!("there is nothing to report: `cargo xtask bench` writes {}", shown(&path)))?;
        let mut saved = Vec::new();
        for entry in fs::read_dir(target_folder().join("bench/saved")).into_iter().flatten() {
            let path = entry?.path();
            let name = path.file_stem().map(|name| name.to_string_lossy().into_owned());
            // One of another version is no part of the history.
            if let (Some(name), Ok(results)) = (name, Results::read(&path)) {
                saved.push((name, results));
            }
        }
        saved.sort_by(|a, b| (&a.1.date, &a.0).cmp(&(&b.1.date, &b.0)));
        let outcome = optional(&outcome_path(), Outcome::read)?;
        Ok(Self { results, outcome, compared: history::all(), self_check: Record::last()?, saved })
    }
}

fn markdown(source: &Source, sections: &[Section]) -> String {
    let mut text =
        format!("# {TITLE}\n\n{}\n", facts(source).map(|(name, value)| format!("{name}: {value}")).join("  \n"));
    for Section { title, about, tables, .. } in sections {
        text.push_str(&format!("\n## {title}\n\n{about}\n"));
        for table in tables {
            text.push_str(&format!("\n{}\n", table.text()));
        }
    }
    text
}

const TITLE: &str = "AirsSys-WASM: what was measured";

fn facts(source: &Source) -> [(&'static str, String); 4] {
    let Results { date, machine, profile, .. } = &source.results;
    [
        ("Revision", source.results.revision()),
        ("Date", date.clone()),
        ("Machine", machine.to_string()),
        ("Profile", format!("{profile:?}").to_lowercase()),
    ]
}

fn html(source: &Source, sections: &[Section]) -> String {
    let facts = facts(source).map(|(name, value)| format!("<dt>{name}</dt><dd>{}</dd>", escaped(&value))).concat();
    let header = format!("<h1>{TITLE}</h1><dl>{facts}</dl>{}", sections::tiles(&source.results));
    let links = sections.iter().map(|Section { id, title, .. }| format!("<li><a href=\"#{id}\">{title}</a></li>"));
    let charts: Map<_, _> = sections
        .iter()
        .flat_map(|section| &section.charts)
        .map(|(id, _, chart)| ((*id).into(), chart.clone()))
        .collect();
    // Or a benchmark's name could end the element that the data are in.
    let data = json!({ "charts": charts }).to_string().replace('<', "\\u003c");
    fill(
        include_str!("page.html"),
        &[
            ("title", TITLE),
            ("css", include_str!("page.css")),
            ("d3", include_str!("../../assets/d3.min.js")),
            ("plot", include_str!("../../assets/plot.umd.min.js")),
            ("js", include_str!("page.js")),
            ("header", &header),
            ("nav", &format!("<ul>{}</ul>", links.collect::<String>())),
            ("sections", &sections.iter().map(Section::html).collect::<String>()),
            ("data", &data),
        ],
    )
}

/// Puts each part in its place, once: what is put in is not looked at again.
fn fill(template: &str, parts: &[(&str, &str)]) -> String {
    let mut filled = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("{{") {
        let (name, after) = after.split_once("}}").expect("a whole placeholder");
        filled.push_str(before);
        filled.push_str(parts.iter().find(|(known, _)| *known == name).expect("a known placeholder").1);
        rest = after;
    }
    filled + rest
}

impl Section {
    fn html(&self) -> String {
        let Self { id, title, about, charts, tables } = self;
        let mut html = format!(
            "<section id=\"{id}\" aria-labelledby=\"{id}-title\"><h2 id=\"{id}-title\">{title}</h2><p>{}</p>",
            escaped(about)
        );
        for (id, caption, _) in charts {
            html.push_str(&format!(
                "<figure class=\"chart\" data-chart=\"{id}\"><figcaption>{}</figcaption></figure>",
                escaped(caption)
            ));
        }
        for table in tables.iter().filter(|table| table.len() > 0) {
            html.push_str(&format!(
                "<details class=\"data\"><summary>{}: {}</summary><div class=\"scroll\">{}</div></details>",
                escaped(&table.title),
                if table.len() == 1 { "1 row".into() } else { format!("{} rows", table.len()) },
                table.html()
            ));
        }
        html + "</section>"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_in_is_not_looked_at_again() {
        assert_eq!(fill("a {{x}} b {{y}} c", &[("x", "{{y}}"), ("y", "2")]), "a {{y}} b 2 c");
    }

    #[test]
    fn nothing_that_was_measured_can_end_the_script_or_become_markup() {
        let mut source = sections::sample();
        source.results.figures.results[0].id = "</script><script>alert(1)</script>".into();
        source.results.machine.cpu = "<img src=x>".into();
        let page = html(&source, &sections::all(&source));
        assert!(!page.contains("<script>alert") && !page.contains("<img src=x"));
    }

    #[test]
    fn text_has_every_section_and_its_tables() {
        let source = sections::sample();
        let sections = sections::all(&source);
        let text = markdown(&source, &sections);
        for section in &sections {
            assert!(text.contains(section.title), "{}", section.title);
        }
        assert!(text.contains("execute_function"));
    }
}
