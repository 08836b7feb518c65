//! Figures in the documentation: each stands between marks that name its benchmark, so that none is typed in by hand.
//!
//! `<!--fig:ID-->` is a median, `<!--ratio:ID,AGAINST-->` a ratio with its interval. `<!--held:ID-->` and
//! `<!--held:ID,AGAINST-->` are the same with whether the goal is met. `<!--table:PREFIX-->` is the table of a category,
//! `<!--run-->` when and where it was measured. `<!--/-->` ends each.

use std::fs;

use airssys_wasm_measurements::{Figure, Held, Ratio, Target, is_twin};
use anyhow::{Context, Result, bail, ensure};

use crate::{
    bench::tables,
    files::write_whole,
    results::{Results, results_path},
    table::{amount, times},
    workspace::root,
};

/// Check that the figures and promises in the documentation have benchmarks, and bring them up to date.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Write the figures of the last run of the benchmarks into the documentation
    #[arg(long)]
    update: bool,
}

/// Where figures stand.
const DOCUMENTS: &[&str] = &["docs/benchmarking.md", "docs/operating.md", PROMISES];
/// Where promises stand, each a row of a table that begins with its number, like `| P1 |`.
const PROMISES: &str = "docs/performance.md";

pub(crate) fn run(args: &Args) -> Result<()> {
    let results = Results::read(&results_path()).context("figures come from a run of `cargo xtask bench`")?;
    let mut wrong = Vec::new();
    for document in DOCUMENTS {
        let path = root().join(document);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {document}"))?;
        let filled = fill(&text, &results);
        wrong.extend(filled.unknown.iter().map(|mark| format!("{document}: nothing was measured for {mark}")));
        if *document == PROMISES {
            let promises = promises(&text)?;
            wrong.extend(
                promises
                    .iter()
                    .filter(|promise| promise.marks == 0)
                    .map(|promise| format!("{document}: promise {} has no benchmark", promise.name)),
            );
            println!("{} promises, each with a benchmark", promises.len());
        }
        if args.update && filled.unknown.is_empty() && filled.text != text {
            write_whole(&path, filled.text.as_bytes())?;
            println!("{document} is up to date");
        }
    }
    if !wrong.is_empty() {
        bail!("{}", wrong.join("\n"));
    }
    Ok(())
}

struct Filled {
    text: String,
    /// Marks for which there is no figure.
    unknown: Vec<String>,
}

const END: &str = "<!--/-->";
const KINDS: [&str; 5] = ["fig:", "ratio:", "held:", "table:", "run"];

/// Puts a figure between each pair of marks.
fn fill(text: &str, results: &Results) -> Filled {
    let mut filled = Filled { text: String::new(), unknown: Vec::new() };
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("<!--") {
        filled.text.push_str(before);
        filled.text.push_str("<!--");
        rest = after;
        let Some((mark, after)) = after.split_once("-->") else { continue };
        let (true, Some((old, after))) = (KINDS.iter().any(|kind| mark.starts_with(kind)), after.split_once(END))
        else {
            continue;
        };
        let new = value(mark, results).unwrap_or_else(|| {
            if !results
                .figures
                .skipped
                .iter()
                .any(|skipped| mark.contains(skipped.split(':').next().unwrap_or(skipped)))
            {
                filled.unknown.push(mark.to_owned());
            }
            old.to_owned()
        });
        filled.text.push_str(&format!("{mark}-->{new}{END}"));
        rest = after;
    }
    filled.text.push_str(rest);
    filled
}

/// What stands between such a mark and its end.
fn value(mark: &str, results: &Results) -> Option<String> {
    let ratio = |both: &str| -> Option<&Ratio> {
        let (id, against) = both.split_once(',')?;
        results.figures.ratios.iter().find(|ratio| ratio.id == id && ratio.against == against)
    };
    let held = |figure: String, held: Held| {
        let word = held.word();
        Some(if held == Held::Missed { format!("{figure}, **{word}**") } else { format!("{figure}, {word}") })
    };
    if let Some(id) = mark.strip_prefix("fig:") {
        let Figure { estimate, unit, .. } = results.figure(id)?;
        Some(amount(*estimate, unit))
    } else if let Some(both) = mark.strip_prefix("ratio:") {
        Some(times(ratio(both)?).into_text())
    } else if let Some(both) = mark.strip_prefix("held:").filter(|mark| mark.contains(',')) {
        held(times(ratio(both)?).into_text(), ratio(both)?.held?)
    } else if let Some(id) = mark.strip_prefix("held:") {
        let ours = |target: &&Target| target.id == id && target.source.starts_with("goal");
        let of_anybody = || results.figures.targets.iter().find(|target| target.id == id);
        let Target { actual, unit, held: stands, .. } =
            results.figures.targets.iter().find(ours).or_else(of_anybody)?;
        held(amount(*actual, unit), *stands)
    } else if let Some(prefix) = mark.strip_prefix("table:") {
        let of_category = |id: &str| !is_twin(id) && prefix.split(',').any(|prefix| id.starts_with(prefix));
        let table = tables::figures_of(results, of_category);
        (table.len() > 0).then(|| format!("\n\n{}\n\n", table.text()))
    } else {
        let Results { date, machine, profile, .. } = results;
        let profile = format!("{profile:?}").to_lowercase();
        Some(format!("{date}, {}, {profile} profile; {machine}", results.revision()))
    }
}

/// A row of the table of promises.
#[derive(Debug, PartialEq, Eq)]
struct Promise {
    name: String,
    /// How many figures back it.
    marks: usize,
}

/// All promises, which are numbered from one.
fn promises(text: &str) -> Result<Vec<Promise>> {
    let mut promises = Vec::new();
    for row in text.lines().filter(|line| line.starts_with("| P")) {
        let name = row.split('|').nth(1).unwrap_or_default().trim().to_owned();
        let marks = ["<!--fig:", "<!--ratio:", "<!--held:"].iter().map(|mark| row.matches(mark).count()).sum();
        ensure!(
            name == format!("P{}", promises.len() + 1),
            "{PROMISES}: promises are numbered without gaps, and {name} comes after {} others",
            promises.len()
        );
        promises.push(Promise { name, marks });
    }
    ensure!(!promises.is_empty(), "{PROMISES} promises nothing");
    Ok(promises)
}

#[cfg(test)]
mod tests {
    use airssys_wasm_measurements::{Group, Limit, Measured, RatioOf, Samples, evaluate};

    use super::*;

    fn results() -> Results {
        let samples = |id: &str, ns| Samples { id: id.into(), ns: vec![ns; 3] };
        let group = Group {
            samples: vec![samples("a/b", 1_500.0), samples("raw/a/b", 1_000.0)],
            ratios: vec![RatioOf { id: "a/b".into(), against: "raw/a/b".into(), goal: Some(1.4) }],
            limits: vec![Limit { id: "a/b".into(), source: "goal".into(), limit: 2_000.0 }],
            ..Group::default()
        };
        let skipped = vec!["a/skipped: build it first".into()];
        Results::new(evaluate(vec![Measured { groups: vec![group], skipped, readings: Vec::new() }]), true)
    }

    #[test]
    fn figures_are_put_between_their_marks_and_nothing_else_is_touched() {
        let text = "<!-- kept --> x <!--fig:a/b-->?<!--/--> y <!--ratio:a/b,raw/a/b--><!--/--> <!--fig:a/skipped-->-<!--/--> z";
        let filled = fill(text, &results());
        assert_eq!(
            filled.text,
            "<!-- kept --> x <!--fig:a/b-->1.50 µs<!--/--> y <!--ratio:a/b,raw/a/b-->1.50 × (1.50 … 1.50)<!--/--> \
             <!--fig:a/skipped-->-<!--/--> z"
        );
        assert!(filled.unknown.is_empty(), "{:?}", filled.unknown);
        assert_eq!(fill(&filled.text, &results()).text, filled.text, "once more changes nothing");
        assert!(fill("<!--table:a/-->\n<!--/-->", &results()).text.contains("| a/b "));
        assert!(fill("<!--held:a/b--><!--/-->", &results()).text.contains("1.50 µs, met"));
        assert!(fill("<!--held:a/b,raw/a/b--><!--/-->", &results()).text.contains(", **missed**"));
    }

    #[test]
    fn a_figure_that_nobody_measured_is_found_out() {
        let filled = fill("<!--fig:a/c-->1 ns<!--/--> <!--ratio:a/b,default/a/b-->1 ×<!--/-->", &results());
        assert_eq!(filled.unknown, ["fig:a/c", "ratio:a/b,default/a/b"]);
        assert!(filled.text.contains("1 ns"), "what stood there is kept");
    }

    #[test]
    fn promises_are_numbered_and_say_what_backs_them() {
        let table = "| no | promise |\n|---|---|\n| P1 | fast, <!--fig:a/b-->1<!--/--> |\n| P2 | faster |\n";
        let promises = promises(table).unwrap();
        assert_eq!(promises.iter().map(|promise| promise.marks).collect::<Vec<_>>(), [1, 0]);
        assert!(super::promises("| P2 | x |").is_err());
        assert!(super::promises("nothing").is_err());
    }

    #[test]
    fn every_promise_of_ours_has_a_benchmark() {
        let text = fs::read_to_string(root().join(PROMISES)).unwrap();
        for Promise { name, marks } in promises(&text).unwrap() {
            assert!(marks > 0, "{name}");
        }
    }
}
