//! What a comparison found, as it is written down and shown. Schema 1.

use std::{fmt::Write as _, path::Path};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::verdict::{Clock, MATTERS, Verdict};
use crate::{
    files::read_whole,
    machine::Machine,
    table::{Cell, Table},
};

pub(crate) const SCHEMA: u32 = 1;

/// All that a comparison found.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) schema: u32,
    pub(crate) date: String,
    pub(crate) reference: String,
    pub(crate) candidate: String,
    pub(crate) machine: Machine,
    /// Of the order of processes.
    pub(crate) seed: u64,
    /// Seconds of measuring.
    pub(crate) seconds: f64,
    /// What a change has to be beyond, as a share.
    pub(crate) threshold: f64,
    pub(crate) rows: Vec<Row>,
    /// Benchmarks that only the candidate has.
    pub(crate) new: Vec<String>,
    /// Benchmarks that only the reference has.
    pub(crate) gone: Vec<String>,
    /// Benchmarks that were not measured, and why.
    pub(crate) left_out: Vec<(String, String)>,
    /// What a reader should know.
    pub(crate) remarks: Vec<String>,
    /// Whether it was ended before its time.
    pub(crate) interrupted: bool,
}

/// What was found about one benchmark.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) id: String,
    pub(crate) clock: Clock,
    /// Nanoseconds for each iteration, the median of the processes.
    pub(crate) reference_ns: f64,
    pub(crate) candidate_ns: f64,
    /// The candidate over the reference, with its 95 % interval. None where there were too few processes.
    pub(crate) ratio: Option<[f64; 3]>,
    /// The ratio that a change has to lie beyond. None where too little was measured to know the noise.
    pub(crate) floor: Option<f64>,
    /// Undisturbed processes, of the side that has fewer.
    pub(crate) processes: usize,
    /// Processes of both sides that were disturbed throughout.
    pub(crate) disturbed: usize,
    pub(crate) verdict: Verdict,
    /// Allocations for each iteration, on either side.
    pub(crate) allocations: Option<Counted>,
    /// Instructions for each iteration, on either side, where they were counted.
    pub(crate) instructions: Option<[f64; 2]>,
}

/// Something that was counted on both sides.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Counted {
    pub(crate) reference: f64,
    pub(crate) candidate: f64,
    pub(crate) more: bool,
    pub(crate) fewer: bool,
}

/// How a comparison ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    NoRegression,
    Regression,
    /// It could not be measured well enough to say.
    Unclear,
}

impl Counted {
    /// From what was counted in several processes of each side. What varies by itself has to change by more than that.
    pub(super) fn of(reference: &[f64], candidate: &[f64]) -> Option<Self> {
        let range = |counts: &[f64]| {
            counts.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), &n| (least.min(n), most.max(n)))
        };
        if reference.is_empty() || candidate.is_empty() {
            return None;
        }
        let (before, after) = (range(reference), range(candidate));
        let enough = (2.0 * (before.1 - before.0).max(after.1 - after.0)).max(0.5);
        Some(Self {
            reference: before.0,
            candidate: after.0,
            more: after.0 - before.1 >= enough,
            fewer: before.0 - after.1 >= enough,
        })
    }
}

impl Row {
    /// Whether the candidate is worse, in time or in allocations.
    pub(crate) fn is_regression(&self) -> bool {
        self.verdict == Verdict::Slower || self.allocations.is_some_and(|counted| counted.more)
    }
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Self::Slower => "slower",
            Self::Faster => "faster",
            Self::Same => "same",
            Self::Unclear => "unclear",
        }
    }
}

impl Outcome {
    /// Nothing yet, of two sides by the names that people know them by.
    pub(crate) fn of(reference: &str, candidate: &str, seed: u64, threshold: f64) -> Self {
        Self {
            schema: SCHEMA,
            date: crate::machine::today(),
            reference: reference.into(),
            candidate: candidate.into(),
            machine: Machine::here(),
            seed,
            seconds: 0.0,
            threshold,
            rows: Vec::new(),
            new: Vec::new(),
            gone: Vec::new(),
            left_out: Vec::new(),
            remarks: Vec::new(),
            interrupted: false,
        }
    }

    pub(crate) fn read(path: &Path) -> Result<Self> {
        read_whole(path, SCHEMA, "compare anew")
    }

    pub(crate) fn end(&self) -> End {
        if self.interrupted {
            End::Unclear
        } else if self.rows.iter().any(Row::is_regression) {
            End::Regression
        } else if self.rows.iter().any(|row| row.verdict == Verdict::Unclear) || self.rows.is_empty() {
            End::Unclear
        } else {
            End::NoRegression
        }
    }

    /// The worst first: what changed, what is unclear, and then by name of category as measured.
    pub(crate) fn table(&self) -> Table {
        let mut columns = vec!["benchmark", "reference", "candidate", "ratio", "95 % interval", "beyond", "processes"];
        let instructions = self.rows.iter().any(|row| row.instructions.is_some());
        columns.push("allocations");
        if instructions {
            columns.push("instructions");
        }
        columns.push("verdict");
        let mut table = Table::new("Comparison", columns);
        let mut rows: Vec<_> = self.rows.iter().collect();
        rows.sort_by_key(|row| match row.verdict {
            Verdict::Slower => 0,
            _ if row.is_regression() => 1,
            Verdict::Faster => 2,
            Verdict::Unclear => 3,
            Verdict::Same => 4,
        });
        for row in rows {
            let mut cells = vec![
                row.id.as_str().into(),
                Cell::amount(row.reference_ns, "ns"),
                Cell::amount(row.candidate_ns, "ns"),
            ];
            match row.ratio {
                Some([ratio, lower, upper]) => cells.extend([
                    Cell::number(format!("{ratio:.3} ×"), ratio),
                    Cell::number(format!("{lower:.3} … {upper:.3}"), upper - lower),
                ]),
                None => cells.extend(["".into(), "".into()]),
            }
            cells.extend([
                row.floor
                    .map_or_else(|| "".into(), |floor| Cell::number(format!("{:.1} %", (floor - 1.0) * 100.0), floor)),
                Cell::number(format!("2 × {}", row.processes), row.processes as f64),
                row.allocations.map_or_else(|| "".into(), allocations),
            ]);
            if instructions {
                cells.push(row.instructions.map_or_else(|| "".into(), self::instructions));
            }
            cells.push(Cell::verdict(row.verdict.word()));
            table.row(cells);
        }
        table
    }

    /// What came of it, in a sentence or two, and what to do.
    pub(crate) fn summary(&self) -> String {
        let ids = |wanted: fn(&Row) -> bool| -> Vec<&str> {
            self.rows.iter().filter(|row| wanted(row)).map(|row| &row.id[..]).collect()
        };
        let mut text = match self.end() {
            _ if self.interrupted => "Interrupted: what follows was measured so far, and is no verdict.".to_owned(),
            End::Regression => format!("Regression: {}.", ids(Row::is_regression).join(", ")),
            End::Unclear if self.rows.is_empty() => "Nothing was compared.".to_owned(),
            End::Unclear => format!(
                "Could not measure well enough: a slowdown of {:.0} % cannot be ruled out for {}. Give more time by \
                 --budget, fewer benchmarks by a filter, or a quieter machine.",
                (MATTERS - 1.0) * 100.0,
                ids(|row| row.verdict == Verdict::Unclear).join(", ")
            ),
            End::NoRegression => format!("No regression in {} benchmarks.", self.rows.len()),
        };
        let faster = ids(|row| row.verdict == Verdict::Faster);
        if !faster.is_empty() {
            write!(text, " Faster: {}.", faster.join(", ")).expect("into a string");
        }
        text
    }

    /// Everything, for a terminal or a pull request.
    pub(crate) fn text(&self, title: bool) -> String {
        let mut text = String::new();
        let Self { reference, candidate, date, machine, seed, seconds, .. } = self;
        if title {
            writeln!(text, "## Is it slower than {reference}?\n").expect("into a string");
        }
        writeln!(text, "{}\n", self.summary()).expect("into a string");
        let table = self.table();
        match (title, table.text()) {
            (_, rows) if rows.is_empty() => {}
            (true, rows) => {
                writeln!(text, "<details><summary>{} benchmarks</summary>\n\n{rows}\n\n</details>\n", table.len())
                    .expect("into a string");
            }
            (false, rows) => writeln!(text, "{rows}\n").expect("into a string"),
        }
        let mut note = |what: &str, lines: Vec<String>| {
            lines.into_iter().for_each(|line| writeln!(text, "- {what}: {line}").expect("into a string"));
        };
        note("new", self.new.clone());
        note("gone", self.gone.clone());
        note("not measured", self.left_out.iter().map(|(id, why)| format!("{id}: {why}")).collect());
        note("note", self.remarks.clone());
        write!(
            text,
            "\n{candidate}, beside {reference}; {date}, {:.1} minutes of measuring, seed {seed}; {machine}",
            seconds / 60.0
        )
        .expect("into a string");
        text
    }
}

fn allocations(counted: Counted) -> Cell {
    let Counted { reference, candidate, more, fewer } = counted;
    let rounded = |n: f64| if n < 100.0 { format!("{n:.2}") } else { format!("{n:.0}") };
    let text = match (more, fewer) {
        (false, false) => rounded(reference),
        (true, _) => format!("{} → {}: more", rounded(reference), rounded(candidate)),
        (_, true) => format!("{} → {}: fewer", rounded(reference), rounded(candidate)),
    };
    Cell::number(text, candidate - reference)
}

fn instructions([reference, candidate]: [f64; 2]) -> Cell {
    let ratio = candidate / reference.max(1.0);
    Cell::number(format!("{reference:.0} → {candidate:.0} ({ratio:.3} ×)"), ratio)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_allocation_more_is_one_and_what_varies_by_itself_is_none() {
        let counted = |a: &[f64], b: &[f64]| {
            let Counted { more, fewer, .. } = Counted::of(a, b).unwrap();
            (more, fewer)
        };
        assert_eq!(counted(&[3.0, 3.0], &[4.0, 4.0]), (true, false));
        assert_eq!(counted(&[4.0, 4.0], &[3.0, 3.0]), (false, true));
        assert_eq!(counted(&[3.0, 3.001], &[3.002, 3.001]), (false, false));
        assert_eq!(counted(&[1_000.0, 1_009.0], &[1_010.0, 1_012.0]), (false, false));
        assert_eq!(counted(&[1_000.0, 1_002.0], &[1_010.0, 1_012.0]), (true, false));
        assert_eq!(Counted::of(&[], &[1.0]), None);
    }

    fn row(verdict: Verdict, more: bool) -> Row {
        Row {
            id: "a/b".into(),
            clock: Clock::Cpu,
            reference_ns: 100.0,
            candidate_ns: 110.0,
            ratio: Some([1.1, 1.09, 1.11]),
            floor: Some(1.03),
            processes: 8,
            disturbed: 0,
            verdict,
            allocations: Some(Counted { reference: 1.0, candidate: 2.0, more, fewer: false }),
            instructions: None,
        }
    }

    #[test]
    fn how_it_ends_is_decided_by_the_worst() {
        let end = |rows: &[Row]| {
            let mut outcome = Outcome::of("x", "y", 1, 0.03);
            outcome.rows = rows.to_vec();
            outcome.end()
        };
        assert_eq!(end(&[row(Verdict::Same, false), row(Verdict::Faster, false)]), End::NoRegression);
        assert_eq!(end(&[row(Verdict::Same, true)]), End::Regression);
        assert_eq!(end(&[row(Verdict::Unclear, false), row(Verdict::Slower, false)]), End::Regression);
        assert_eq!(end(&[row(Verdict::Same, false), row(Verdict::Unclear, false)]), End::Unclear);
        assert_eq!(end(&[]), End::Unclear);
    }
}
