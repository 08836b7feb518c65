//! Whether a comparison can be trusted, found out by planting what it should find and what it should not.
//!
//! Plants are edits of the sources, built as any change would be.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::{
    Comparison,
    outcome::{Outcome, Row},
    sides::{Tree, Worktree, snapshot, working_tree},
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

/// An edit of one file: what stands there once, and what takes its place.
struct Edit {
    file: &'static str,
    from: &'static str,
    to: &'static str,
}

/// Something that is to be found.
struct Plant {
    name: &'static str,
    edit: Edit,
    /// The ids of the benchmarks that show it begin so.
    shows_in: &'static [&'static str],
    is_found: fn(&Row) -> bool,
    /// The share of times that it should be found.
    goal: f64,
}

fn is_slower(row: &Row) -> bool {
    row.verdict == Verdict::Slower
}

const PLANTS: &[Plant] = &[
    Plant {
        name: "5 % more work",
        edit: Edit {
            file: "benches/suite/execution.rs",
            from: "const STEPS: u32 = 10_000;",
            to: "const STEPS: u32 = 10_500;",
        },
        shows_in: &["execution/limits/tight/", "execution/limits/calls/", "execution/limits/scatter/"],
        is_found: is_slower,
        goal: 0.9,
    },
    Plant {
        name: "20 % more work",
        edit: Edit {
            file: "benches/suite/execution.rs",
            from: "const VALUES: u32 = 10_000;",
            to: "const VALUES: u32 = 12_000;",
        },
        shows_in: &["execution/memory_intensive/fill_memory"],
        is_found: is_slower,
        goal: 1.0,
    },
    Plant {
        name: "20 % more to compile",
        edit: Edit { file: "benches/suite/instantiation.rs", from: "(\"10kb\", 10_000)", to: "(\"10kb\", 12_000)" },
        shows_in: &["instantiation/size_scaling/10kb"],
        is_found: is_slower,
        goal: 1.0,
    },
    Plant {
        name: "one allocation more an instance",
        edit: Edit {
            file: "crates/isolation/src/sandbox.rs",
            from: "        let mut store = Store::new(template.loaded().wasmtime(), state);",
            to: "        drop(std::hint::black_box(Box::new(0_u64)));\n        \
                 let mut store = Store::new(template.loaded().wasmtime(), state);",
        },
        shows_in: &["instantiation/prelinked/", "execute_function", "crash_handling/normal_execution/"],
        is_found: |row| row.allocations.is_some_and(|counted| counted.more),
        goal: 1.0,
    },
    Plant {
        name: "one look-up more a message",
        edit: Edit {
            file: "crates/registry/src/router.rs",
            from: "            return Err(SendError::Late { to: to.clone(), message });\n        }\n        \
                   let receivers = match self.registry.route(to) {",
            to: "            return Err(SendError::Late { to: to.clone(), message });\n        }\n        \
                 std::hint::black_box(self.registry.lookup(to));\n        \
                 let receivers = match self.registry.route(to) {",
        },
        shows_in: &["routing/send_message"],
        is_found: is_slower,
        goal: 1.0,
    },
];

/// Code that never runs, in every layer: all that comes after it lies elsewhere.
const NOTHING: &[Edit] = &[
    Edit {
        file: "benches/src/harness/run.rs",
        from: "    let mut suite = Suite::default();",
        to: "    if std::hint::black_box(false) {\n        \
             std::env::args().for_each(|argument| println!(\"{argument:?} {}\", argument.to_lowercase()));\n    }\n    \
             let mut suite = Suite::default();",
    },
    Edit {
        file: "crates/engine/src/engine/mod.rs",
        from: "        let (clock, _) = EpochClock::start(config.ticking)",
        to: "        if std::hint::black_box(false) {\n            \
             std::env::vars().for_each(|(name, value)| println!(\"{name:?} {}\", value.to_uppercase()));\n        }\n        \
             let (clock, _) = EpochClock::start(config.ticking)",
    },
    Edit {
        file: "crates/isolation/src/sandbox.rs",
        from: "        let meter = Meter::new(quota.clone(), budget.as_ref());",
        to: "        if std::hint::black_box(false) {\n            \
             std::env::args().for_each(|argument| println!(\"{}\", argument.to_lowercase()));\n        }\n        \
             let meter = Meter::new(quota.clone(), budget.as_ref());",
    },
];

impl Edit {
    fn apply(&self, text: &str) -> Result<String> {
        let found = text.matches(self.from).count();
        ensure!(found == 1, "what is to be replaced in {} stands there {found} times, not once", self.file);
        Ok(text.replace(self.from, self.to))
    }
}

/// A tree with edits.
fn planted<'e>(
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

const SCHEMA: u32 = 1;

/// What came of a self-check.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    schema: u32,
    date: String,
    revision: String,
    machine: Machine,
    seed: u64,
    threshold: f64,
    /// By what was planted.
    planted: BTreeMap<String, Tally>,
    /// By which change of nothing.
    null: BTreeMap<String, Tally>,
    seconds: f64,
    /// Whether it was ended before its time.
    interrupted: bool,
}

/// How often something that was to be found, or was not, was.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Tally {
    /// Minutes of measuring a round.
    minutes: f64,
    rounds: usize,
    /// Rounds in which anything was said to be slower or to allocate more that was not planted.
    alarms: usize,
    /// What was said to be so.
    wrong: Vec<String>,
    /// Benchmarks over all rounds, those that were to be found where anything was planted.
    benchmarks: usize,
    found: usize,
    /// Benchmarks of which it was said that they could not be measured well enough.
    unclear: usize,
    goal: Option<f64>,
}

impl Tally {
    fn passes(&self) -> bool {
        match self.goal {
            Some(goal) => self.benchmarks > 0 && self.found as f64 >= goal * self.benchmarks as f64,
            None => self.alarms == 0,
        }
    }
}

/// Where the last record is.
fn record_path() -> PathBuf {
    target_folder().join("bench/self-check.json")
}

pub(super) fn run(asked: &Asked) -> Result<ExitCode> {
    let base = working_tree(root())?;
    let _turn = programs::take_turns()?;
    let worktree = Worktree::new()?;
    let with_plants = planted(&worktree, &base, "plants", PLANTS.iter().map(|plant| &plant.edit))?;
    let with_nothing = planted(&worktree, &base, "code that never runs", NOTHING)?;
    let slower = worktree.build(&with_plants)?;
    let moved = worktree.build(&with_nothing)?;
    let reference = worktree.build(&base)?;
    let again = worktree.build_again(&base)?;
    drop(worktree);
    let mut record = Record {
        schema: SCHEMA,
        date: today(),
        revision: base.label.clone(),
        machine: Machine::here(),
        seed: asked.planted.seed,
        threshold: asked.planted.threshold,
        planted: BTreeMap::new(),
        null: BTreeMap::new(),
        seconds: 0.0,
        interrupted: false,
    };
    let started = Instant::now();
    let mut seed = asked.planted.seed;
    let mut round = |comparison: &Comparison, sides: [&Built; 2], candidate: &Tree| {
        seed += 1;
        let comparison = Comparison { seed, ..comparison.clone() };
        let outcome = comparison.run(sides, &base, candidate)?;
        if outcome.interrupted { Err(anyhow::Error::from(Interrupted)) } else { Ok(outcome) }
    };
    let null = Comparison { budget: NULL_BUDGET, ..asked.planted.clone() };
    let built_again = Tree { label: "a second build".into(), ..base.clone() };
    let result = (|| -> Result<()> {
        for n in 0..asked.planted_rounds {
            eprintln!("round {} of {} with plants", n + 1, asked.planted_rounds);
            let outcome = round(&asked.planted, [&reference, &slower], &with_plants)?;
            record.add_planted(&outcome, &asked.planted);
        }
        for n in 0..asked.null_rounds {
            let (programs, tree) = if n % 2 == 0 { (&again, &built_again) } else { (&moved, &with_nothing) };
            eprintln!("round {} of {} without a change: {}", n + 1, asked.null_rounds, tree.label);
            record.add_null(&round(&null, [&reference, programs], tree)?, &tree.label);
        }
        Ok(())
    })();
    record.seconds = started.elapsed().as_secs_f64();
    match result {
        Err(error) if error.is::<Interrupted>() => record.interrupted = true,
        other => other?,
    }
    println!("{}", record.text());
    write_whole(&record_path(), &serde_json::to_vec_pretty(&record)?)?;
    eprintln!("written to {}", shown(&record_path()));
    let passes = record.planted.values().chain(record.null.values()).all(Tally::passes);
    Ok(ExitCode::from(match (record.interrupted, passes) {
        (true, _) => 2,
        (false, true) => 0,
        (false, false) => 1,
    }))
}

impl Record {
    fn add_planted(&mut self, outcome: &Outcome, comparison: &Comparison) {
        for Plant { name, shows_in, is_found, goal, .. } in PLANTS {
            let tally = self.planted.entry((*name).into()).or_default();
            tally.goal = Some(*goal);
            tally.minutes = comparison.budget.as_secs_f64() / 60.0;
            tally.rounds += 1;
            for row in outcome.rows.iter().filter(|row| shows_in.iter().any(|prefix| row.id.starts_with(prefix))) {
                tally.benchmarks += 1;
                tally.found += usize::from(is_found(row));
                tally.unclear += usize::from(row.verdict == Verdict::Unclear);
                if !is_found(row) {
                    tally.wrong.push(told(row));
                }
            }
        }
    }

    fn add_null(&mut self, outcome: &Outcome, label: &str) {
        let tally = self.null.entry(label.into()).or_default();
        tally.minutes = NULL_BUDGET.as_secs_f64() / 60.0;
        tally.rounds += 1;
        let wrong: Vec<_> = outcome.rows.iter().filter(|row| row.is_regression()).map(told).collect();
        tally.alarms += usize::from(!wrong.is_empty());
        tally.wrong.extend(wrong);
        tally.benchmarks += outcome.rows.len();
        tally.unclear += outcome.rows.iter().filter(|row| row.verdict == Verdict::Unclear).count();
    }

    /// The last one, if there is one.
    pub(crate) fn last() -> Result<Option<Self>> {
        optional(&record_path(), |path| read_whole(path, SCHEMA, "check anew"))
    }

    /// What was planted and what was found, and what was said where nothing had changed.
    pub(crate) fn tables(&self) -> [Table; 2] {
        let mut planted = Table::new(
            "What was planted",
            ["plant", "minutes a round", "rounds", "benchmarks that show it", "found", "goal", ""],
        );
        for (name, tally) in &self.planted {
            let goal = tally.goal.unwrap_or(1.0);
            planted.row([
                name.as_str().into(),
                format!("{:.1}", tally.minutes).into(),
                tally.rounds.to_string().into(),
                tally.benchmarks.to_string().into(),
                format!("{} of {}", tally.found, tally.benchmarks).into(),
                format!("{:.0} %", goal * 100.0).into(),
                Cell::verdict(if tally.passes() { "met" } else { "missed" }),
            ]);
        }
        let mut null = Table::new(
            "Without a change",
            [
                "what was compared",
                "minutes a round",
                "rounds",
                "rounds with a false alarm",
                "comparisons",
                "unclear",
                "",
            ],
        );
        for (name, tally) in &self.null {
            null.row([
                name.as_str().into(),
                format!("{:.1}", tally.minutes).into(),
                tally.rounds.to_string().into(),
                tally.alarms.to_string().into(),
                tally.benchmarks.to_string().into(),
                tally.unclear.to_string().into(),
                Cell::verdict(if tally.passes() { "met" } else { "missed" }),
            ]);
        }
        [planted, null]
    }

    /// When and where, with what is needed to do the same again.
    pub(crate) fn circumstances(&self) -> String {
        let Self { date, revision, machine, seed, threshold, seconds, .. } = self;
        let (minutes, threshold) = (seconds / 60.0, threshold * 100.0);
        format!("{date}, {revision}, threshold {threshold} %, seed {seed}, {minutes:.0} minutes; {machine}")
    }

    fn text(&self) -> String {
        let mut text = self.tables().map(|table| table.section()).join("\n");
        for (name, tally) in self.planted.iter().chain(&self.null) {
            for wrong in &tally.wrong {
                text.push_str(&format!("- {name}: wrong about {wrong}\n"));
            }
        }
        if self.interrupted {
            text.push_str("- interrupted before all rounds were over\n");
        }
        format!("{text}\n{}", self.circumstances())
    }
}

fn told(row: &Row) -> String {
    let [ratio, lower, upper] = row.ratio.unwrap_or([f64::NAN; 3]);
    format!("{} ({ratio:.3} ×, {lower:.3} … {upper:.3}, {} pairs)", row.id, row.pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_edit_finds_its_place_in_the_sources() {
        for edit in PLANTS.iter().map(|plant| &plant.edit).chain(NOTHING) {
            let text = fs::read_to_string(crate::workspace::root().join(edit.file)).unwrap();
            let edited = edit.apply(&text).unwrap();
            assert_ne!(edited, text, "{}", edit.file);
        }
        assert!(PLANTS[0].edit.apply("nothing of the kind").is_err());
    }

    #[test]
    fn one_false_alarm_is_too_many_and_one_find_in_ten_may_be_missing() {
        let tally = |goal, benchmarks, found, alarms| Tally { goal, benchmarks, found, alarms, ..Tally::default() };
        assert!(tally(Some(0.9), 20, 18, 0).passes());
        assert!(!tally(Some(0.9), 20, 17, 0).passes());
        assert!(!tally(Some(0.9), 0, 0, 0).passes(), "nothing was looked for");
        assert!(tally(None, 100, 0, 0).passes());
        assert!(!tally(None, 100, 0, 1).passes());
    }
}
