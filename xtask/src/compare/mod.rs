//! Whether a change made something slower: the working tree beside a commit, in interleaved processes.
//!
//! `docs/comparing.md` says how, and what may be concluded.

mod instructions;
mod measure;
pub(crate) mod outcome;
pub(crate) mod saved;
pub(crate) mod self_check;
mod sides;
mod statistics;
pub(crate) mod verdict;

use std::{
    io::IsTerminal,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use airssys_wasm_measurements::stats::SplitMix;
use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};

use crate::{
    files::write_whole,
    interrupt::{self, Interrupted},
    programs::{self, Program},
    workspace::{root, shown, target_folder},
};
use measure::{Block, FIRST, Jobs, Runner, Side};
use outcome::{Counted, End, Outcome, Row};
use sides::{Tree, Worktree, differing_benchmarks, resolve, working_tree};
use verdict::{Evidence, clock, judge};

/// Compare the working tree with a commit, and say whether anything became slower.
///
/// Both are built first, in a worktree under the target folder. Then processes of the two are run in turns. Exits with 0
/// if nothing became slower, 1 if something did, in time or in allocations, and 2 if it could not be measured well enough
/// to say, or not at all.
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
    /// The least change that counts, in per cent; where the machine is noisier than that, it takes more
    #[arg(long, value_name = "PER CENT", default_value = "3", value_parser = per_cent)]
    threshold: f64,
    /// Compare the reference with a second build of itself: what is found is this machine's noise
    #[arg(long, conflicts_with_all = ["saved", "self_check"])]
    null: bool,
    /// Count instructions as well, by valgrind: slow, and the same each time
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

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    interrupt::listen()?;
    if args.self_check {
        let asked = self_check::Asked {
            null_rounds: args.null_rounds,
            planted_rounds: args.planted_rounds,
            planted: args.plan(),
        };
        return self_check::run(&asked);
    }
    if args.instructions {
        instructions::find_valgrind()?;
    }
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
        eprintln!("written to {}", shown(&outcome_path()));
    }
    Ok(ExitCode::from(match outcome.end() {
        End::NoRegression => 0,
        End::Regression => 1,
        End::Unclear => 2,
    }))
}

/// How two builds are to be compared.
#[derive(Debug, Clone)]
struct Comparison {
    filter: Option<String>,
    budget: Duration,
    threshold: f64,
    instructions: bool,
    seed: u64,
}

impl Args {
    fn plan(&self) -> Comparison {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Comparison {
            filter: self.filter.clone(),
            budget: self.budget,
            threshold: self.threshold,
            instructions: self.instructions,
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
        let programs = [worktree.build(&reference)?, build(&worktree, &candidate)?];
        // Nothing of it is needed for measuring.
        drop(worktree);
        let mut outcome = self.plan().run(&programs, &reference, &candidate)?;
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
    fn run(&self, programs: &[Vec<Program>; 2], reference: &Tree, candidate: &Tree) -> Result<Outcome> {
        let scratch = tempfile::tempdir()?;
        let mut outcome = Outcome::of(&reference.label, &candidate.label, self.seed, self.threshold);
        let started = Instant::now();
        let progress = progress(self.budget);
        let wanted = |id: &str| self.filter.as_ref().is_none_or(|filter| id.contains(filter));
        let mut runner = Runner {
            scratch: scratch.path(),
            progress: &progress,
            random: SplitMix(self.seed),
            yardstick_ns: f64::INFINITY,
        };
        let (mut jobs, mut first, mut second) = (Jobs::default(), Vec::new(), Vec::new());
        let measured = runner.jobs(programs, wanted, self.budget).and_then(|all| {
            jobs = all;
            let minutes = self.budget.as_secs_f64() / 60.0;
            eprintln!("measuring {} benchmarks for {minutes:.1} minutes at the most", jobs.ids().count());
            self.measure(&mut runner, &jobs, started, &mut first, &mut second)
        });
        match measured {
            Err(error) if error.is::<Interrupted>() => outcome.interrupted = true,
            other => other?,
        }
        let yardstick_ns = runner.yardstick_ns;
        outcome.rows = rows(&jobs, &first, &second, yardstick_ns, (1.0 + self.threshold).ln());
        outcome.seconds = started.elapsed().as_secs_f64();
        if self.instructions && !outcome.interrupted {
            // What was measured by then is kept.
            if let Err(error) = count_instructions(&jobs, &mut outcome, scratch.path(), &progress) {
                outcome.remarks.push(format!("instructions were not counted: {error:#}"));
            }
        }
        progress.finish_and_clear();
        outcome.remarks.extend(disturbances(&first, &second, yardstick_ns));
        if first.is_empty() && !jobs.jobs.is_empty() {
            outcome.remarks.push(
                "there was no time for a single round of processes: give more by --budget, or fewer benchmarks by --filter"
                    .into(),
            );
        }
        let is_empty = jobs.jobs.is_empty() && [&jobs.new, &jobs.gone].iter().all(|ids| ids.is_empty());
        if let (Some(filter), true, true, false) =
            (&self.filter, is_empty, jobs.left_out.is_empty(), outcome.interrupted)
        {
            outcome.remarks.push(format!("no benchmark has {filter:?} in its id"));
        }
        (outcome.new, outcome.gone, outcome.left_out) = (jobs.new, jobs.gone, jobs.left_out);
        Ok(outcome)
    }

    /// All benchmarks first. Then those that may have changed, in fresh processes.
    fn measure(
        &self,
        runner: &mut Runner,
        jobs: &Jobs,
        started: Instant,
        first: &mut Vec<Block>,
        second: &mut Vec<Block>,
    ) -> Result<()> {
        runner.rounds(&jobs.jobs, started + self.budget.mul_f64(FIRST), |block| first.push(block))?;
        let threshold = (1.0 + self.threshold).ln();
        let is_suspect = |id: &&str| evidence(id, first, runner.yardstick_ns).is_suspect(threshold);
        let suspects: Vec<_> = jobs.ids().filter(is_suspect).map(str::to_owned).collect();
        runner.rounds(&jobs.only(&suspects), started + self.budget, |block| second.push(block))
    }
}

fn clock_of(id: &str, blocks: &[Block]) -> verdict::Clock {
    let processes = blocks.iter().flat_map(|block| &block.processes);
    clock(processes.filter_map(|process| Some((process.side, process.turns.get(id)?))))
}

fn evidence(id: &str, blocks: &[Block], yardstick_ns: f64) -> Evidence {
    Evidence::of(id, blocks, clock_of(id, blocks), yardstick_ns)
}

fn rows(jobs: &Jobs, first: &[Block], second: &[Block], yardstick_ns: f64, threshold: f64) -> Vec<Row> {
    let measured: Vec<_> = jobs
        .ids()
        .map(|id| {
            let clock = clock_of(id, first);
            let of = |blocks| Evidence::of(id, blocks, clock, yardstick_ns);
            (id, clock, of(first), of(second))
        })
        .filter(|(_, _, first, _)| !first.ns[0].is_empty())
        .collect();
    // Those that were not suspects are questions too.
    let probabilities = statistics::holm(&measured.iter().map(|(.., second)| second.p()).collect::<Vec<_>>());
    measured
        .into_iter()
        .zip(probabilities)
        .map(|((id, clock, one, other), p)| {
            let judged = judge(&one, &other, p, threshold);
            let all = one.and(&other);
            Row {
                id: id.to_owned(),
                clock,
                reference_ns: all.shown(Side::Reference),
                candidate_ns: all.shown(Side::Candidate),
                ratio: judged.interval.map(|at| [at.middle, at.lower, at.upper].map(f64::exp)),
                floor: Some(judged.floor.exp()).filter(|floor| floor.is_finite()),
                processes: all.processes(),
                disturbed: all.disturbed,
                verdict: judged.verdict,
                allocations: allocations(id, first),
                instructions: None,
            }
        })
        .collect()
}

fn allocations(id: &str, blocks: &[Block]) -> Option<Counted> {
    let counted = |side| -> Vec<f64> {
        let processes = blocks.iter().flat_map(|block| &block.processes).filter(|process| process.side == side);
        processes.filter_map(|process| Some(process.turns.get(id)?.allocations?.0)).collect()
    };
    Counted::of(&counted(Side::Reference), &counted(Side::Candidate))
}

/// How much of what was measured does not count, because others had a hand in it.
fn disturbances(first: &[Block], second: &[Block], yardstick_ns: f64) -> Vec<String> {
    let processes: Vec<_> = first.iter().chain(second).flat_map(|block| &block.processes).collect();
    let batches: Vec<_> =
        processes.iter().flat_map(|process| process.turns.values()).flat_map(|turn| &turn.batches).collect();
    let disturbed = batches.iter().filter(|batch| !batch.is_clean(Some(yardstick_ns))).count();
    let beside_others = processes.iter().filter(|process| process.beside_others).count();
    let mut remarks = Vec::new();
    if disturbed > 0 {
        let share = 100.0 * disturbed as f64 / batches.len() as f64;
        remarks.push(format!(
            "{share:.0} % of {} batches do not count: the processor was shared meanwhile",
            batches.len()
        ));
    }
    if beside_others > 0 {
        remarks.push(format!(
            "during {beside_others} of {} processes the machine was busy with something else: they do not count for what \
             is judged by the wall clock",
            processes.len()
        ));
    }
    remarks
}

/// Of what one thread does alone: elsewhere it depends on who comes first.
fn count_instructions(jobs: &Jobs, outcome: &mut Outcome, scratch: &Path, progress: &ProgressBar) -> Result<()> {
    let alone = |id: &str| outcome.rows.iter().any(|row| row.id == id && row.clock == verdict::Clock::Cpu);
    let mut counts = Vec::new();
    for job in &jobs.jobs {
        let planned: Vec<_> = job.planned().iter().filter(|planned| alone(&planned.id)).cloned().collect();
        let [before, after] = [Side::Reference, Side::Candidate]
            .map(|side| instructions::count(job.program(side), &planned, scratch, progress));
        let (before, mut after) = (before?, after?);
        counts.extend(before.into_iter().filter_map(|(id, count)| Some(([count, after.remove(&id)?], id))));
    }
    for (counted, id) in counts {
        if let Some(row) = outcome.rows.iter_mut().find(|row| row.id == id) {
            row.instructions = Some(counted);
        }
    }
    Ok(())
}

fn progress(budget: Duration) -> ProgressBar {
    let progress = if std::io::stderr().is_terminal() { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
    let template = format!("{{spinner}} {{elapsed:>4}} of {:.0} min  {{msg}}", budget.as_secs_f64() / 60.0);
    progress.set_style(ProgressStyle::with_template(&template).expect("a valid template"));
    progress.enable_steady_tick(Duration::from_millis(500));
    progress
}
