//! Whether a comparison can be trusted, found out by planting what it should find and what it should not.
//!
//! Plants are edits of the sources, built as any change would be. What comes of it is added to what was found before about
//! the same sources, so that it can be done in pieces.

use std::{collections::BTreeMap, fs, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::{
    Comparison,
    disturbance::Disturbance,
    outcome::{Outcome, Row},
    plants::{Edit, NOTHING, PLANTS, Plant, Sort},
    sides::{Tree, Worktree, built_and_judged, snapshot, working_tree},
    verdict::Verdict,
};
use crate::{
    files::{optional, read_whole, write_whole},
    interrupt::Interrupted,
    machine::{Machine, today},
    programs::{self, Built},
    table::{Cell, Table},
    workspace::{root, shown, target_folder},
};

/// How a self-check is asked for.
pub(super) struct Asked {
    pub(super) null_rounds: usize,
    pub(super) planted_rounds: usize,
    /// How planted slowdowns are looked for.
    pub(super) planted: Comparison,
}

/// What a round without a change may take.
const NULL_BUDGET: Duration = Duration::from_secs(180);

/// A tree with edits.
fn edited<'e>(
    worktree: &Worktree,
    base: &Tree,
    label: &str,
    edits: impl IntoIterator<Item = &'e Edit>,
) -> Result<Tree> {
    worktree.check_out(base)?;
    for edit in edits {
        let path = worktree.path().join(edit.file);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", edit.file))?;
        fs::write(&path, edit.apply(&text)?)?;
    }
    Ok(Tree { id: snapshot(worktree.path())?, label: label.into(), commit: None })
}

const SCHEMA: u32 = 2;

/// What came of a self-check, in one piece or in several.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    schema: u32,
    revision: String,
    /// What was compared, and by what.
    tree: String,
    machine: Machine,
    threshold: f64,
    rounds: Vec<Round>,
}

/// One comparison of a self-check.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Round {
    date: String,
    seed: u64,
    /// What was compared with the working tree.
    what: String,
    /// What it was built of.
    built: String,
    /// Whether others computed on all cores meanwhile, by [`Disturbance`].
    disturbed: bool,
    /// Minutes of measuring that it was given.
    minutes: f64,
    /// Batches, and how many of them others had a hand in.
    batches: [usize; 2],
    /// What a reader should know.
    remarks: Vec<String>,
    benchmarks: usize,
    /// Benchmarks of which it was said that they could not be measured well enough.
    unclear: usize,
    /// Benchmarks that were said to be worse though nothing had made them so.
    alarms: Vec<String>,
    /// What was planted and is to be found in this round, and whether it was.
    found: Vec<Found>,
}

/// A benchmark that a plant shows in.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Found {
    sort: Sort,
    plant: String,
    /// What was said about it.
    said: String,
    is_found: bool,
}

/// Where the record is.
fn record_path() -> PathBuf {
    target_folder().join("bench/self-check.json")
}

/// A build that is compared with the working tree's.
struct Subject {
    tree: Tree,
    built: Built,
    /// What is planted in it.
    plants: &'static [Plant],
}

pub(super) fn run(asked: &Asked) -> Result<ExitCode> {
    let base = working_tree(root())?;
    let _turn = programs::take_turns()?;
    let worktree = Worktree::new()?;
    let mut planted = Vec::new();
    for (n, plants) in PLANTS.iter().enumerate().filter(|_| asked.planted_rounds > 0) {
        let tree = edited(&worktree, &base, &format!("plants {}", n + 1), plants.iter().flat_map(|plant| plant.edits))?;
        planted.push(Subject { built: worktree.build(&tree)?, tree, plants });
    }
    let mut null = Vec::new();
    if asked.null_rounds > 0 {
        let tree = edited(&worktree, &base, "code that never runs", NOTHING)?;
        null.push(Subject { built: worktree.build(&tree)?, tree, plants: &[] });
        let tree = Tree { label: "a second build".into(), ..base.clone() };
        null.push(Subject { built: worktree.build_again(&base)?, tree, plants: &[] });
    }
    let reference = worktree.build(&base)?;
    drop(worktree);
    let mut record = Record::of(&base, asked.planted.threshold)?;
    let mut seed = asked.planted.seed;
    let mut round = |subject: &Subject, disturbed: bool, comparison: &Comparison, record: &mut Record| {
        seed += 1;
        let comparison = Comparison { seed, ..comparison.clone() };
        let beside = if disturbed { ", beside a disturbance" } else { "" };
        eprintln!("{}{beside}, seed {seed}", subject.tree.label);
        let _disturbance = disturbed.then(|| Disturbance::start(seed)).transpose()?;
        let outcome = comparison.run([&reference, &subject.built], &base, &subject.tree)?;
        if outcome.interrupted {
            return Err(anyhow::Error::from(Interrupted));
        }
        let round = Round::of(&outcome, subject, disturbed, comparison.budget)?;
        // What was planted before under this name was something else.
        record.rounds.retain(|before| before.what != round.what || before.built == round.built);
        record.rounds.push(round);
        // What is known by now is kept, whatever comes.
        write_whole(&record_path(), &serde_json::to_vec_pretty(&record)?)
    };
    let null_comparison = Comparison { budget: NULL_BUDGET, ..asked.planted.clone() };
    let result = (|| -> Result<()> {
        for n in 0..asked.planted_rounds {
            for subject in &planted {
                round(subject, n % 2 == 1, &asked.planted, &mut record)?;
            }
        }
        for n in 0..asked.null_rounds {
            round(&null[n % 2], n / 2 % 2 == 1, &null_comparison, &mut record)?;
        }
        Ok(())
    })();
    let interrupted = match result {
        Err(error) if error.is::<Interrupted>() => true,
        other => other.map(|()| false)?,
    };
    println!("{}", record.text());
    eprintln!("written to {}", shown(&record_path()));
    Ok(ExitCode::from(match (interrupted, record.passes()) {
        (true, _) => 2,
        (false, true) => 0,
        (false, false) => 1,
    }))
}

impl Round {
    fn of(outcome: &Outcome, subject: &Subject, disturbed: bool, budget: Duration) -> Result<Self> {
        let plant_of = |row: &Row| subject.plants.iter().find(|plant| plant.shows_in(&row.id));
        let found = outcome.rows.iter().filter_map(|row| {
            let plant = plant_of(row)?;
            let is_found = plant.sort.is_found(row);
            Some(Found { sort: plant.sort, plant: plant.name.into(), said: told(row), is_found })
        });
        // What else a plant may have slowed down, nobody has looked up.
        let alarms = outcome.rows.iter().filter(|row| subject.plants.is_empty() && row.is_regression());
        Ok(Self {
            date: today(),
            seed: outcome.seed,
            what: subject.tree.label.clone(),
            built: built_and_judged(&subject.tree)?,
            disturbed,
            minutes: budget.as_secs_f64() / 60.0,
            batches: outcome.batches,
            remarks: outcome.remarks.clone(),
            benchmarks: outcome.rows.len(),
            unclear: outcome.rows.iter().filter(|row| row.verdict == Verdict::Unclear).count(),
            alarms: alarms.map(told).collect(),
            found: found.collect(),
        })
    }
}

/// The share of benchmarks that may be unclear.
const UNCLEAR: f64 = 0.05;

impl Record {
    /// What is known of this tree on this machine by now.
    fn of(base: &Tree, threshold: f64) -> Result<Self> {
        let new = Self {
            schema: SCHEMA,
            revision: base.label.clone(),
            tree: built_and_judged(base)?,
            machine: Machine::here(),
            threshold,
            rounds: Vec::new(),
        };
        // One of another version is about another tree.
        let before = Self::last().ok().flatten().filter(|before| {
            before.tree == new.tree
                && before.threshold == threshold
                && before.machine.differences(&new.machine).is_empty()
        });
        Ok(before.unwrap_or(new))
    }

    /// The last one, if there is one.
    pub(crate) fn last() -> Result<Option<Self>> {
        optional(&record_path(), |path| read_whole(path, SCHEMA, "check anew"))
    }

    /// How many of each sort of plants were found, of how many.
    fn found(&self) -> BTreeMap<Sort, [usize; 2]> {
        let mut all = BTreeMap::<_, [usize; 2]>::new();
        for found in self.rounds.iter().flat_map(|round| &round.found) {
            let [is_found, of] = all.entry(found.sort).or_default();
            *is_found += usize::from(found.is_found);
            *of += 1;
        }
        all
    }

    fn passes(&self) -> bool {
        let is_found = self.found().iter().all(|(sort, &[found, of])| sort.passes(found, of));
        is_found && self.rounds.iter().all(|round| round.alarms.is_empty())
    }

    /// What was planted and what was found, and what was said where nothing had changed.
    pub(crate) fn tables(&self) -> [Table; 2] {
        let mut planted = Table::new("What was planted", ["plants", "benchmarks that show them", "found", "goal", ""]);
        for (sort, [found, of]) in self.found() {
            let verdict = if sort.passes(found, of) { "met" } else { "missed" };
            planted.row([
                sort.name().into(),
                of.to_string().into(),
                format!("{found} of {of}").into(),
                sort.goal().map_or_else(|| "none".into(), |goal| format!("{:.0} %", goal * 100.0).into()),
                sort.goal().map_or_else(|| "".into(), |_| Cell::verdict(verdict)),
            ]);
        }
        let columns = [
            "what was compared",
            "beside",
            "minutes a round",
            "rounds",
            "disturbed",
            "false alarms",
            "comparisons",
            "unclear",
            "",
        ];
        let mut rounds = Table::new("Rounds", columns);
        let mut by_what = BTreeMap::<_, Vec<&Round>>::new();
        for round in &self.rounds {
            by_what.entry((&round.what, round.disturbed, format!("{:.1}", round.minutes))).or_default().push(round);
        }
        for ((what, disturbed, minutes), of) in by_what {
            let sum = |count: fn(&Round) -> usize| of.iter().map(|round| count(round)).sum::<usize>();
            let [alarms, benchmarks] = [sum(|round| round.alarms.len()), sum(|round| round.benchmarks)];
            let unclear = sum(|round| round.unclear);
            let passes = alarms == 0 && unclear as f64 <= UNCLEAR * benchmarks as f64;
            rounds.row([
                what.as_str().into(),
                if disturbed { "a disturbance" } else { "nothing" }.into(),
                minutes.into(),
                of.len().to_string().into(),
                format!(
                    "{:.0} %",
                    100.0 * sum(|round| round.batches[1]) as f64 / sum(|round| round.batches[0]).max(1) as f64
                )
                .into(),
                alarms.to_string().into(),
                benchmarks.to_string().into(),
                unclear.to_string().into(),
                Cell::verdict(if passes { "met" } else { "missed" }),
            ]);
        }
        [planted, rounds]
    }

    /// When and where, with what is needed to do the same again.
    pub(crate) fn circumstances(&self) -> String {
        let Self { revision, machine, threshold, rounds, .. } = self;
        let mut dates: Vec<_> = rounds.iter().map(|round| &round.date[..]).collect();
        dates.dedup();
        let seeds = rounds.iter().map(|round| round.seed);
        let (first, last) = (seeds.clone().min().unwrap_or(0), seeds.max().unwrap_or(0));
        let minutes: f64 = rounds.iter().map(|round| round.minutes).sum();
        let (dates, threshold) = (dates.join(", "), threshold * 100.0);
        format!(
            "{dates}, {revision}, threshold {threshold} %, seeds {first} to {last}, {minutes:.0} minutes; {machine}"
        )
    }

    fn text(&self) -> String {
        let mut text = self.tables().map(|table| table.section()).join("\n");
        for round in &self.rounds {
            for remark in &round.remarks {
                text.push_str(&format!("- seed {}, {}: {remark}\n", round.seed, round.what));
            }
            for alarm in &round.alarms {
                text.push_str(&format!("- seed {}, {}: a false alarm: {alarm}\n", round.seed, round.what));
            }
            for Found { plant, said, .. } in round.found.iter().filter(|found| !found.is_found) {
                text.push_str(&format!("- seed {}, {plant}: not found: {said}\n", round.seed));
            }
        }
        format!("{text}\n{}", self.circumstances())
    }
}

fn told(row: &Row) -> String {
    let [ratio, lower, upper] = row.ratio.unwrap_or([f64::NAN; 3]);
    let allocations = row
        .allocations
        .map_or_else(String::new, |counted| format!(", {} → {} allocations", counted.reference, counted.candidate));
    format!("{} ({ratio:.3} ×, {lower:.3} … {upper:.3}, {} pairs{allocations})", row.id, row.pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_add_up_and_one_false_alarm_is_too_many() {
        let round = |alarms: &[&str], found: &[(Sort, bool)]| Round {
            date: "2026-01-01".into(),
            seed: 1,
            what: "x".into(),
            built: "b".into(),
            disturbed: false,
            minutes: 3.0,
            batches: [100, 50],
            remarks: Vec::new(),
            benchmarks: 100,
            unclear: 0,
            alarms: alarms.iter().map(|&alarm| alarm.into()).collect(),
            found: found
                .iter()
                .map(|&(sort, is_found)| Found { sort, plant: "p".into(), said: "s".into(), is_found })
                .collect(),
        };
        let record = |rounds: Vec<Round>| Record {
            schema: SCHEMA,
            revision: "r".into(),
            tree: "t".into(),
            machine: Machine::here(),
            threshold: 0.03,
            rounds,
        };
        assert!(record(vec![round(&[], &[])]).passes());
        assert!(!record(vec![round(&[], &[]), round(&["a"], &[])]).passes());
        let five = |found: usize| (0..10).map(|n| (Sort::Five, n < found)).collect::<Vec<_>>();
        assert!(record(vec![round(&[], &five(9))]).passes());
        assert!(!record(vec![round(&[], &five(8))]).passes());
        assert!(record(vec![round(&[], &five(8)), round(&[], &five(10))]).passes());
        assert!(!record(vec![round(&[], &[(Sort::Fifth, false)])]).passes());
        assert!(record(vec![round(&[], &[(Sort::Three, false)])]).passes(), "what is only reported has no goal");
        let text = record(vec![round(&["a"], &five(8))]).text();
        assert!(
            text.contains("8 of 10") && text.contains("a false alarm: a") && text.contains("p: not found: s"),
            "{text}"
        );
    }
}
