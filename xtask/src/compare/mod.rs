//! Whether a change made something slower: the working tree beside a commit, in pairs of processes that take turns.
//!
//! `docs/comparing.md` says how, and what may be concluded.

pub(crate) mod disturbance;
pub(crate) mod history;
mod instructions;
mod measure;
pub(crate) mod outcome;
mod plants;
pub(crate) mod saved;
pub(crate) mod self_check;
mod sides;
mod statistics;
pub(crate) mod verdict;

use std::{
    collections::BTreeMap,
    io::IsTerminal,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use airssys_wasm_measurements::{
    Kind, Turn,
    stats::{SplitMix, median},
};
use anyhow::{Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};

use crate::{
    files::write_whole,
    interrupt::{self, Interrupted},
    programs::{self, Built},
    workspace::{root, shown, target_folder},
};
use measure::{Benchmark, Benchmarks, FIRST, Pair, Runner, Side};
use outcome::{Counted, End, Outcome, Row};
use sides::{Tree, Worktree, differing_benchmarks, resolve, working_tree};
use verdict::{Clock, Evidence, Verdict, judge};

/// Compare the working tree with a commit, and say whether anything became slower.
///
/// Both are built first, in a worktree under the target folder. Then processes of the two take turns, batch by batch.
/// Exits with 0 if nothing became slower, 1 if something did, in time, in instructions or in allocations, and 2 if it could
/// not be measured well enough to say, or not at all.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The commit, branch or tag to compare the working tree with
    #[arg(default_value = "main", value_name = "REF")]
    reference: String,
    /// Compare only benchmarks whose id contains this
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Minutes of measuring; building comes on top
    #[arg(long, value_name = "MINUTES", default_value = "10", value_parser = minutes)]
    budget: Duration,
    /// The least change that counts, in per cent
    #[arg(long, value_name = "PER CENT", default_value = "3", value_parser = per_cent)]
    threshold: f64,
    /// Compare the reference with a second build of itself: what is found is this machine's noise
    #[arg(long, conflicts_with_all = ["saved", "self_check"])]
    null: bool,
    /// Count the instructions of all benchmarks, by valgrind, and not only of those that are unclear: slow, and the same
    /// each time
    #[arg(long, conflicts_with_all = ["saved", "self_check"])]
    instructions: bool,
    /// Compare with results saved by `cargo xtask bench --save NAME` instead of a commit
    #[arg(long, value_name = "NAME", value_parser = crate::results::file_name, conflicts_with = "reference")]
    saved: Option<String>,
    /// Compare with saved results of another machine all the same
    #[arg(long, requires = "saved")]
    force: bool,
    /// Print JSON instead of a table
    #[arg(long, conflicts_with = "markdown")]
    json: bool,
    /// Print Markdown for a pull request instead of a table
    #[arg(long)]
    markdown: bool,
    /// Exit with 125 instead of 2, so that `git bisect run` leaves out what could not be measured
    #[arg(long, conflicts_with = "self_check")]
    bisect: bool,
    /// What decides the order of processes, to do the same again
    #[arg(long, conflicts_with = "saved")]
    seed: Option<u64>,
    /// Plant known slowdowns and changes of nothing, and report which are found; REF is not used
    #[arg(long, conflicts_with_all = ["saved", "filter", "json", "markdown"])]
    self_check: bool,
    /// Rounds of a self-check in which nothing was changed, at a budget of three minutes
    #[arg(long, value_name = "N", default_value_t = 20, requires = "self_check")]
    null_rounds: usize,
    /// Rounds of a self-check with planted slowdowns, at the budget given
    #[arg(long, value_name = "N", default_value_t = 2, requires = "self_check")]
    planted_rounds: usize,
}

fn minutes(text: &str) -> Result<Duration, String> {
    let minutes: f64 = text.parse().map_err(|_| "a number of minutes, like 10 or 0.5")?;
    if !(0.05..=600.0).contains(&minutes) {
        return Err("between 0.05 and 600 minutes".into());
    }
    Ok(Duration::from_secs_f64(minutes * 60.0))
}

fn per_cent(text: &str) -> Result<f64, String> {
    let per_cent: f64 = text.parse().map_err(|_| "a number of per cent, like 3 or 1.5")?;
    if !(0.1..=100.0).contains(&per_cent) {
        return Err("between 0.1 and 100 per cent".into());
    }
    Ok(per_cent / 100.0)
}

/// Where the last comparison is kept, for the report.
pub(crate) fn outcome_path() -> PathBuf {
    target_folder().join("bench/compare.json")
}

/// What a comparison that could not be made ends with.
pub(crate) fn run(args: &Args) -> ExitCode {
    compared(args).unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::from(args.unclear())
    })
}

fn compared(args: &Args) -> Result<ExitCode> {
    interrupt::listen()?;
    if args.self_check {
        let asked = self_check::Asked {
            null_rounds: args.null_rounds,
            planted_rounds: args.planted_rounds,
            planted: args.plan(),
        };
        return self_check::run(&asked);
    }
    ensure!(
        !args.instructions || instructions::can_be_counted(),
        "--instructions needs valgrind, which is not installed here"
    );
    let outcome = match &args.saved {
        Some(name) => saved::compare(&saved::Asked {
            name,
            filter: args.filter.as_deref(),
            budget: args.budget,
            threshold: args.threshold,
            force: args.force,
        })?,
        None => args.compare()?,
    };
    let json = serde_json::to_vec_pretty(&outcome)?;
    if args.json {
        println!("{}", String::from_utf8_lossy(&json));
    } else {
        println!("{}", outcome.text(args.markdown));
    }
    if !outcome.interrupted {
        write_whole(&outcome_path(), &json)?;
        if let Some(path) = history::path(&outcome) {
            write_whole(&path, &json)?;
        }
        eprintln!("written to {}", shown(&outcome_path()));
    }
    Ok(ExitCode::from(match outcome.end() {
        End::NoRegression => 0,
        End::Regression => 1,
        End::Unclear => args.unclear(),
    }))
}

/// How two builds are to be compared.
#[derive(Debug, Clone)]
struct Comparison {
    filter: Option<String>,
    budget: Duration,
    threshold: f64,
    instructions: Instructions,
    seed: u64,
}

/// Of which benchmarks instructions are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Instructions {
    All,
    OfUnclear,
}

impl Args {
    /// The exit code where it could not be measured well enough to say, or not at all.
    fn unclear(&self) -> u8 {
        if self.bisect { 125 } else { 2 }
    }

    fn plan(&self) -> Comparison {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Comparison {
            filter: self.filter.clone(),
            budget: self.budget,
            threshold: self.threshold,
            instructions: if self.instructions { Instructions::All } else { Instructions::OfUnclear },
            seed: self.seed.unwrap_or(since.as_secs()),
        }
    }

    fn compare(&self) -> Result<Outcome> {
        let reference = resolve(root(), &self.reference)?;
        // As it is now, whatever becomes of it while others have their turn.
        let candidate = if self.null {
            Tree { label: format!("a second build of {}", reference.label), ..reference.clone() }
        } else {
            working_tree(root())?
        };
        let _turn = programs::take_turns()?;
        let worktree = Worktree::new()?;
        let build = if self.null { Worktree::build_again } else { Worktree::build };
        let [before, after] = [worktree.build(&reference)?, build(&worktree, &candidate)?];
        // Nothing of it is needed for measuring.
        drop(worktree);
        let mut outcome = self.plan().run([&before, &after], &reference, &candidate)?;
        let differing = differing_benchmarks(&reference, &candidate)?;
        if !differing.is_empty() {
            let names = differing.join(", ");
            outcome
                .remarks
                .push(format!("the benchmarks themselves or their guests differ between the sides: {names}"));
        }
        if reference.id == candidate.id && !self.null {
            outcome.remarks.push("the two sides are the same".into());
        }
        Ok(outcome)
    }
}

impl Comparison {
    /// Measures two builds, and judges.
    fn run(&self, sides: [&Built; 2], reference: &Tree, candidate: &Tree) -> Result<Outcome> {
        let scratch = tempfile::tempdir()?;
        let mut outcome = Outcome::of(&reference.label, &candidate.label, self.seed, self.threshold);
        outcome.commits = [reference, candidate].map(|tree| tree.commit.clone());
        let mut started = Instant::now();
        let progress = progress(self.budget);
        let wanted = |id: &str| self.filter.as_ref().is_none_or(|filter| id.contains(filter));
        let mut runner = Runner { sides, scratch: scratch.path(), progress: &progress, random: SplitMix(self.seed) };
        let (mut benchmarks, mut first, mut second) = (Benchmarks::default(), Vec::new(), Vec::new());
        let measured = runner.benchmarks(wanted, self.budget).and_then(|all| {
            benchmarks = all;
            // Finding out is no part of the budget: it is done once for a build.
            started = Instant::now();
            let minutes = self.budget.as_secs_f64() / 60.0;
            eprintln!("measuring {} benchmarks for {minutes:.1} minutes at the most", benchmarks.all.len());
            self.measure(&mut runner, &benchmarks, started, [&mut first, &mut second])
        });
        match measured {
            Err(error) if error.is::<Interrupted>() => outcome.interrupted = true,
            other => other?,
        }
        outcome.rows = rows(&benchmarks, &first, &second, (1.0 + self.threshold).ln());
        outcome.seconds = started.elapsed().as_secs_f64();
        if !outcome.interrupted {
            // What was measured by then is kept.
            if let Err(error) = self.count_instructions(&benchmarks, &mut outcome, sides, scratch.path(), &progress) {
                outcome.remarks.push(format!("instructions were not counted: {error:#}"));
            }
        }
        progress.finish_and_clear();
        let pairs = first.iter().chain(&second);
        let yardstick_ns = measure::undisturbed(pairs.clone().flat_map(BTreeMap::values).flatten());
        outcome.batches = disturbances(pairs.clone(), yardstick_ns);
        outcome.remarks.extend(agreement(&benchmarks, pairs, yardstick_ns));
        if sides.iter().any(|built| built.links.len() == 1) {
            let how = "the linker cannot shuffle functions, so that a difference may come from where code lies";
            outcome.remarks.push(how.into());
        }
        let is_empty = [benchmarks.all.is_empty(), benchmarks.new.is_empty(), benchmarks.gone.is_empty()] == [true; 3];
        if let (Some(filter), true, true, false) =
            (&self.filter, is_empty, benchmarks.left_out.is_empty(), outcome.interrupted)
        {
            outcome.remarks.push(format!("no benchmark has {filter:?} in its id"));
        }
        (outcome.new, outcome.gone, outcome.left_out) = (benchmarks.new, benchmarks.gone, benchmarks.left_out);
        Ok(outcome)
    }

    /// All benchmarks first. Then those that may have changed, in fresh processes.
    fn measure(
        &self,
        runner: &mut Runner,
        benchmarks: &Benchmarks,
        started: Instant,
        [first, second]: [&mut Vec<Pair>; 2],
    ) -> Result<()> {
        runner.rounds(&benchmarks.all, started + self.budget.mul_f64(FIRST), |pair| first.push(pair))?;
        let threshold = (1.0 + self.threshold).ln();
        let is_suspect = |benchmark: &&Benchmark| benchmark.evidence(first).is_suspect(threshold);
        let suspects: Vec<_> = benchmarks.all.iter().filter(is_suspect).cloned().collect();
        runner.rounds(&suspects, started + self.budget, |pair| second.push(pair))
    }

    /// Of what one thread does alone: elsewhere it depends on who comes first.
    fn count_instructions(
        &self,
        benchmarks: &Benchmarks,
        outcome: &mut Outcome,
        sides: [&Built; 2],
        scratch: &Path,
        progress: &ProgressBar,
    ) -> Result<()> {
        let is_wanted = |row: &&mut Row| {
            let is_open = row.verdict == Verdict::Unclear || self.instructions == Instructions::All;
            is_open && row.clock == Clock::Cpu && row.kind == Kind::Time
        };
        let mut rows: Vec<_> = outcome.rows.iter_mut().filter(is_wanted).collect();
        if rows.is_empty() || !instructions::can_be_counted() {
            return Ok(());
        }
        let all = rows.len();
        for (n, row) in rows.iter_mut().enumerate() {
            progress.set_message(format!("counting instructions of {} ({} of {all})", row.id, n + 1));
            let Some(benchmark) = benchmarks.all.iter().find(|benchmark| benchmark.planned.id == row.id) else {
                continue;
            };
            let counted = |built: &Built| instructions::count(&built.program(), &benchmark.planned, scratch);
            if let (Some(before), Some(after)) = (counted(sides[0])?, counted(sides[1])?) {
                row.count([before, after], self.threshold);
            }
        }
        Ok(())
    }
}

impl Benchmark {
    /// What pairs say about it.
    fn evidence(&self, pairs: &[Pair]) -> Evidence {
        Evidence::of(&self.planned.id, self.kind, self.clock, pairs)
    }
}

fn rows(benchmarks: &Benchmarks, first: &[Pair], second: &[Pair], threshold: f64) -> Vec<Row> {
    let measured =
        benchmarks.all.iter().map(|benchmark| (benchmark, benchmark.evidence(first), benchmark.evidence(second)));
    let measured: Vec<_> = measured.filter(|(_, first, _)| !first.changes.is_empty()).collect();
    let probabilities = corrected(&measured);
    measured
        .into_iter()
        .zip(probabilities)
        .map(|((benchmark, one, other), p)| {
            let judged = judge(&one, &other, p, threshold);
            let all = one.and(&other);
            Row {
                id: benchmark.planned.id.clone(),
                kind: benchmark.kind,
                clock: benchmark.clock,
                reference: all.shown(Side::Reference),
                candidate: all.shown(Side::Candidate),
                ratio: judged.interval.map(|at| [at.middle, at.lower, at.upper].map(f64::exp)),
                pairs: all.changes.len(),
                verdict: judged.verdict,
                allocations: allocations(&benchmark.planned.id, first.iter().chain(second)),
                instructions: None,
            }
        })
        .collect()
}

/// How likely what the second round saw is without a change, where so many questions are asked. Those that were not
/// suspects are questions too. Tails are questions of their own: a permutation of a few pairs never is very unlikely.
fn corrected(measured: &[(&Benchmark, Evidence, Evidence)]) -> Vec<f64> {
    let mut corrected = vec![1.0; measured.len()];
    for tails in [true, false] {
        let those = |&n: &usize| (measured[n].0.kind == Kind::Tail) == tails;
        let those: Vec<_> = (0..measured.len()).filter(those).collect();
        let probabilities: Vec<_> = those.iter().map(|&n| measured[n].2.p()).collect();
        those.iter().zip(statistics::holm(&probabilities)).for_each(|(&n, p)| corrected[n] = p);
    }
    corrected
}

fn allocations<'p>(id: &str, pairs: impl Iterator<Item = &'p Pair>) -> Option<Counted> {
    let counted = |[before, after]: &[Turn; 2]| Some((before.allocations?, after.allocations?));
    let (before, after): (Vec<_>, Vec<_>) = pairs.filter_map(|pair| counted(pair.get(id)?)).unzip();
    Counted::of(&before, &after)
}

/// All batches, and how many of them others had a hand in.
fn disturbances<'p>(pairs: impl Iterator<Item = &'p Pair> + Clone, yardstick_ns: f64) -> [usize; 2] {
    let batches = pairs.flat_map(BTreeMap::values).flatten().flat_map(|turn| &turn.batches);
    [batches.clone().count(), batches.filter(|batch| batch.is_disturbed(yardstick_ns)).count()]
}

/// Whether disturbed rounds say the same as the others of their pair.
fn agreement<'p>(benchmarks: &Benchmarks, pairs: impl Iterator<Item = &'p Pair>, yardstick_ns: f64) -> Option<String> {
    let clocks: BTreeMap<_, _> =
        benchmarks.all.iter().map(|benchmark| (&benchmark.planned.id, benchmark.clock)).collect();
    let by_disturbed = pairs
        .flatten()
        .filter_map(|(id, both)| verdict::by_disturbed(both, *clocks.get(id)?, yardstick_ns))
        .collect::<Vec<_>>();
    let (interval, _) = statistics::centre(&by_disturbed)?;
    let per_cent = |by: f64| (by.exp() - 1.0) * 100.0;
    let half = median(by_disturbed.iter().map(|by| by.abs()).collect());
    Some(format!(
        "where a pair has both, its disturbed rounds give {:+.2} % more than the others ({:+.2} … {:+.2}, {} times; half of \
         them by less than {:.2} % either way)",
        per_cent(interval.middle),
        per_cent(interval.lower),
        per_cent(interval.upper),
        by_disturbed.len(),
        per_cent(half)
    ))
}

fn progress(budget: Duration) -> ProgressBar {
    let progress = if std::io::stderr().is_terminal() { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
    let template = format!("{{spinner}} {{elapsed:>4}} of {:.0} min  {{msg}}", budget.as_secs_f64() / 60.0);
    progress.set_style(ProgressStyle::with_template(&template).expect("a valid template"));
    progress.enable_steady_tick(Duration::from_millis(500));
    progress
}
