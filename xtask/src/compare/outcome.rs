//! What a comparison found, as it is written down and shown. Schema 2.

use std::{fmt::Write as _, path::Path};

use airssys_wasm_measurements::Kind;
use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::{
    measure::FEWEST,
    verdict::{Clock, Verdict, matters},
};
use crate::{
    files::read_whole,
    machine::Machine,
    table::{Cell, Table},
};

pub(crate) const SCHEMA: u32 = 2;

/// All that a comparison found.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) schema: u32,
    pub(crate) date: String,
    pub(crate) reference: String,
    pub(crate) candidate: String,
    pub(crate) machine: Machine,
    /// The commits that the two sides are, if they are, and when those were made, in seconds since 1970.
    pub(crate) commits: [Option<(String, i64)>; 2],
    /// Of the order of processes.
    pub(crate) seed: u64,
    /// Seconds of measuring.
    pub(crate) seconds: f64,
    /// What a change has to be beyond, as a share.
    pub(crate) threshold: f64,
    /// Batches, and how many of them others had a hand in, by the yardstick.
    pub(crate) batches: [usize; 2],
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
    pub(crate) kind: Kind,
    pub(crate) clock: Clock,
    /// What the sides measured, in the unit of its kind: the median of the processes.
    pub(crate) reference: f64,
    pub(crate) candidate: f64,
    /// The candidate over the reference, with its 95 % interval. None where there were too few pairs.
    pub(crate) ratio: Option<[f64; 3]>,
    /// Pairs of processes.
    pub(crate) pairs: usize,
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
        if reference.len().min(candidate.len()) < 2 {
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
    /// Whether the candidate is worse, in what was measured or in what was counted.
    pub(crate) fn is_regression(&self) -> bool {
        matches!(self.verdict, Verdict::Slower | Verdict::MoreWork)
            || self.allocations.is_some_and(|counted| counted.more)
    }

    /// What says so.
    fn witnesses(&self) -> String {
        let measured = match (self.verdict, self.kind, self.clock) {
            (Verdict::Same | Verdict::Unclear, ..) => "",
            (Verdict::MoreWork, ..) => "instructions",
            (.., Kind::Bytes, _) => "memory",
            (.., Kind::Tail, _) => "99th percentile",
            (.., Kind::Time, Clock::Cpu) => "CPU time",
            (.., Kind::Time, Clock::Wall) => "time",
        };
        let counted = self.allocations.filter(|counted| counted.more || counted.fewer).map_or("", |_| "allocations");
        [measured, counted].into_iter().filter(|witness| !witness.is_empty()).collect::<Vec<_>>().join(", ")
    }

    /// Takes what was counted into account: it decides where time leaves it open, and where time does not contradict.
    pub(super) fn count(&mut self, counted: [f64; 2], threshold: f64) {
        self.instructions = Some(counted);
        let [reference, candidate] = counted;
        let is_open = match self.verdict {
            Verdict::Unclear => true,
            Verdict::Same => self.ratio.is_none_or(|[_, _, upper]| upper > 1.0),
            _ => false,
        };
        if is_open && candidate > reference * (1.0 + threshold) {
            self.verdict = Verdict::MoreWork;
        }
    }

    /// How many times as many pairs would have sufficed, by how much they varied, where they did not.
    fn times_enough(&self) -> Option<f64> {
        let [middle, _, upper] = self.ratio.filter(|_| self.verdict == Verdict::Unclear)?.map(f64::ln);
        let room = matters(self.kind).ln() - middle;
        // What is slower by as much as matters is found out for sure by four times the pairs, or never.
        Some(if room > 0.0 { ((upper - middle) / room).powi(2) } else { 4.0 })
    }
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Self::Slower => "slower",
            Self::MoreWork => "more work",
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
            commits: [None, None],
            seed,
            seconds: 0.0,
            threshold,
            batches: [0, 0],
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
        let mut columns = vec!["benchmark", "reference", "candidate", "ratio", "95 % interval", "pairs"];
        let instructions = self.rows.iter().any(|row| row.instructions.is_some());
        columns.push("allocations");
        if instructions {
            columns.push("instructions");
        }
        columns.extend(["witness", "verdict"]);
        let mut table = Table::new("Comparison", columns);
        let mut rows: Vec<_> = self.rows.iter().collect();
        rows.sort_by_key(|row| match row.verdict {
            Verdict::Slower | Verdict::MoreWork => 0,
            _ if row.is_regression() => 1,
            Verdict::Faster => 2,
            Verdict::Unclear => 3,
            Verdict::Same => 4,
        });
        for row in rows {
            let mut cells = vec![
                row.id.as_str().into(),
                Cell::amount(row.reference, row.kind.unit()),
                Cell::amount(row.candidate, row.kind.unit()),
            ];
            match row.ratio {
                Some([ratio, lower, upper]) => cells.extend([
                    Cell::number(format!("{ratio:.3} ×"), ratio),
                    Cell::number(format!("{lower:.3} … {upper:.3}"), upper - lower),
                ]),
                None => cells.extend(["".into(), "".into()]),
            }
            cells.extend([
                Cell::number(row.pairs.to_string(), row.pairs as f64),
                row.allocations.map_or_else(|| "".into(), allocations),
            ]);
            if instructions {
                cells.push(row.instructions.map_or_else(|| "".into(), self::instructions));
            }
            cells.push(row.witnesses().into());
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
                "Could not measure well enough: a slowdown that would matter cannot be ruled out for {}. {}",
                ids(|row| row.verdict == Verdict::Unclear).join(", "),
                self.what_would_do()
            ),
            End::NoRegression => format!("No regression in {} benchmarks.", self.rows.len()),
        };
        let faster = ids(|row| row.verdict == Verdict::Faster);
        if !faster.is_empty() {
            write!(text, " Faster: {}.", faster.join(", ")).expect("into a string");
        }
        text
    }

    /// What to do where it is unclear, by what was seen.
    fn what_would_do(&self) -> String {
        let unclear: Vec<_> = self.rows.iter().filter(|row| row.verdict == Verdict::Unclear).collect();
        let times = unclear.iter().filter_map(|row| row.times_enough()).fold(1.0, f64::max);
        // The time goes to all of them alike, and the half of it that is left to those that need it.
        let all = self.seconds / 60.0 * times * 1.2;
        let ids: Vec<_> = unclear.iter().map(|row| &row.id[..]).collect();
        let filter = common(&ids);
        let share = self.rows.iter().filter(|row| row.id.contains(&filter)).count() as f64 / self.rows.len() as f64;
        let minutes = |minutes: f64| format!("--budget {:.0}", minutes.max(1.0).ceil());
        if unclear.iter().all(|row| row.ratio.is_none()) {
            format!(
                "Not even {} pairs of processes were over in time: give more, by --budget, or use --filter.",
                FEWEST
            )
        } else if filter.is_empty() || share > 0.9 {
            format!("By how much pairs differed, {} would do.", minutes(all))
        } else {
            format!(
                "By how much pairs differed, {} would do, or {} with --filter {filter}.",
                minutes(all),
                minutes(all * share)
            )
        }
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
        let [all, disturbed] = self.batches;
        if all > 0 {
            let share = 100.0 * disturbed as f64 / all as f64;
            note("note", vec![format!("others had a hand in {share:.0} % of {all} batches")]);
        }
        write!(
            text,
            "\n{candidate}, beside {reference}; {date}, {:.1} minutes of measuring, seed {seed}; {machine}",
            seconds / 60.0
        )
        .expect("into a string");
        text
    }
}

/// What all of them begin with, up to a part of the name.
fn common(ids: &[&str]) -> String {
    let [first, rest @ ..] = ids else { return String::new() };
    if rest.is_empty() {
        return (*first).to_owned();
    }
    let is_common = |&at: &usize| rest.iter().all(|id| id.starts_with(&first[..at]));
    let mut ends = first.match_indices('/').map(|(at, _)| at + 1);
    first[..ends.rfind(is_common).unwrap_or(0)].to_owned()
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
        assert_eq!(Counted::of(&[1.0], &[2.0, 2.0]), None, "one process says little");
    }

    fn row(verdict: Verdict, more: bool) -> Row {
        Row {
            id: "a/b".into(),
            kind: Kind::Time,
            clock: Clock::Cpu,
            reference: 100.0,
            candidate: 110.0,
            ratio: Some([1.1, 1.09, 1.11]),
            pairs: 8,
            verdict,
            allocations: Some(Counted { reference: 1.0, candidate: 2.0, more, fewer: false }),
            instructions: None,
        }
    }

    #[test]
    fn more_instructions_decide_where_time_is_open_and_not_against_it() {
        let counted = |verdict, ratio, instructions| {
            let mut row = Row { ratio, ..row(verdict, false) };
            row.count(instructions, 0.03);
            row.verdict
        };
        let unclear = Some([1.1, 0.9, 1.3]);
        assert_eq!(counted(Verdict::Unclear, unclear, [100.0, 104.0]), Verdict::MoreWork);
        assert_eq!(counted(Verdict::Unclear, unclear, [100.0, 102.0]), Verdict::Unclear);
        assert_eq!(counted(Verdict::Unclear, None, [100.0, 104.0]), Verdict::MoreWork);
        assert_eq!(counted(Verdict::Same, Some([1.01, 0.99, 1.03]), [100.0, 104.0]), Verdict::MoreWork);
        assert_eq!(counted(Verdict::Same, Some([0.98, 0.97, 0.99]), [100.0, 104.0]), Verdict::Same);
        assert_eq!(counted(Verdict::Faster, Some([0.9, 0.89, 0.91]), [100.0, 104.0]), Verdict::Faster);
    }

    #[test]
    fn who_cannot_tell_says_what_would_do() {
        let mut outcome = Outcome::of("x", "y", 1, 0.03);
        outcome.seconds = 600.0;
        let open = |id: &str| Row { id: id.into(), ratio: Some([1.0, 0.7, 1.44]), ..row(Verdict::Unclear, false) };
        outcome.rows = (0..8).map(|_| row(Verdict::Same, false)).collect();
        outcome.rows.extend([open("actor/tell/x"), open("actor/ask/x")]);
        // The interval has to be half as wide, so that it takes four times as long.
        let summary = outcome.summary();
        assert!(summary.contains("--budget 49 would do, or --budget 10 with --filter actor/."), "{summary}");
        outcome.rows = vec![Row { ratio: None, ..open("a") }];
        assert!(outcome.summary().contains("Not even 6 pairs"), "{}", outcome.summary());
        assert_eq!(common(&["a/b/c", "a/b/d"]), "a/b/");
        assert_eq!(common(&["a/b", "c/b"]), "");
        assert_eq!(common(&["a/b"]), "a/b");
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
        assert_eq!(end(&[row(Verdict::MoreWork, false)]), End::Regression);
        assert_eq!(end(&[row(Verdict::Unclear, false), row(Verdict::Slower, false)]), End::Regression);
        assert_eq!(end(&[row(Verdict::Same, false), row(Verdict::Unclear, false)]), End::Unclear);
        assert_eq!(end(&[]), End::Unclear);
    }
}
