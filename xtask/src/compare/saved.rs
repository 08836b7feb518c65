//! Comparing with results that were saved: nothing is interleaved with them, so the twins tell how the machine has drifted.

use std::{
    collections::BTreeMap,
    path::Path,
    time::{Duration, Instant},
};

use airssys_wasm_measurements::{Turn, Turns, is_twin, stats::median};
use anyhow::{Result, ensure};

use super::{
    measure::{COUNTED, FEWEST, Side, found_out, plan, planned, turns, undisturbed, unknown},
    outcome::{Counted, Outcome, Row},
    sides::{Worktree, working_tree},
    statistics::{Interval, difference, holm},
    verdict::{Clock, MATTERS, Verdict, clock, nanoseconds},
};
use crate::{
    interrupt::Interrupted,
    machine::Machine,
    programs::{self, Program},
    results::{Results, saved_path},
    workspace::{root, shown},
};

/// Processes in which allocations are counted as well.
const ALLOCATIONS: usize = 2 * COUNTED;
/// Processes that are saved.
const PROCESSES: usize = 8;
/// More than this tell nothing new.
const MOST: usize = 40;

/// What is measured: ours, and bare wasmtime's beside it.
fn is_wanted(id: &str) -> bool {
    !is_twin(id) || id.starts_with("raw/")
}

/// Measures what a later build can be compared with: built as that will be.
pub(crate) fn measure(filter: Option<&str>, scratch: &Path) -> Result<Vec<(String, Vec<Turns>)>> {
    let programs = &Worktree::new()?.build(&working_tree(root())?)?;
    let progress = programs::spinner();
    let mut all = Vec::new();
    for program in programs {
        let ids = program.ids(scratch)?.into_iter();
        let ids = ids.filter(|id| is_wanted(id) && filter.is_none_or(|filter| id.contains(filter)));
        let unknown: Vec<_> = ids.map(unknown).collect();
        if unknown.is_empty() {
            continue;
        }
        let found = turns(program, &plan(unknown, None, false), scratch, |id| progress.set_message(id))?;
        let planned: Vec<_> = found.turns.iter().map(|turn| found_out(turn).0).collect();
        let yardstick_ns = undisturbed([&found].into_iter());
        let mut processes = Vec::new();
        for n in 0..PROCESSES {
            let at = |id| progress.set_message(format!("{}/{PROCESSES}  {id}", n + 1));
            processes.push(turns(program, &plan(planned.clone(), Some(yardstick_ns), n < ALLOCATIONS), scratch, at)?);
        }
        all.push((program.name.clone(), processes));
    }
    progress.finish_and_clear();
    Ok(all)
}

/// How a comparison with saved results is asked for.
pub(super) struct Asked<'a> {
    pub(super) name: &'a str,
    pub(super) filter: Option<&'a str>,
    pub(super) budget: Duration,
    pub(super) threshold: f64,
    /// Whether results of another machine will do.
    pub(super) force: bool,
}

pub(super) fn compare(asked: &Asked) -> Result<Outcome> {
    let path = saved_path(asked.name);
    ensure!(
        path.exists(),
        "there are no results named {:?}: `cargo xtask bench --save {}` saves some",
        asked.name,
        asked.name
    );
    let saved = Results::read(&path)?;
    ensure!(!saved.turns.is_empty(), "{} has nothing to compare with: save results anew", shown(&path));
    let differences = saved.machine.differences(&Machine::here());
    ensure!(
        differences.is_empty() || asked.force,
        "{} is of another machine ({}): figures of one machine say nothing about another; --force compares all the same",
        shown(&path),
        differences.join("; ")
    );
    let candidate = working_tree(root())?;
    let _turn = programs::take_turns()?;
    let programs = Worktree::new()?.build(&candidate)?;
    let scratch = tempfile::tempdir()?;
    let reference = format!("{:?} of {}, {}", asked.name, saved.date, saved.revision());
    let mut outcome = Outcome::of(&reference, &candidate.label, 0, asked.threshold);
    outcome.remarks.extend(differences.iter().map(|difference| format!("another machine: {difference}")));
    if saved.machine.rustc != outcome.machine.rustc {
        outcome
            .remarks
            .push(format!("another compiler: {} there, {} here", saved.machine.rustc, outcome.machine.rustc));
    }
    let started = Instant::now();
    let before: Vec<_> = saved.turns.iter().flat_map(|(_, processes)| processes).collect();
    let mut after = Vec::new();
    match measure_again(&saved, &programs, asked, scratch.path(), &mut outcome, &mut after) {
        Err(error) if error.is::<Interrupted>() => outcome.interrupted = true,
        other => other?,
    }
    outcome.seconds = started.elapsed().as_secs_f64();
    judge(&Measured::new(before, asked.filter), &Measured::new(after.iter().collect(), asked.filter), &mut outcome);
    Ok(outcome)
}

/// Runs what was saved as often as there is time for, in processes of each program in turn.
fn measure_again(
    saved: &Results,
    programs: &[Program],
    asked: &Asked,
    scratch: &Path,
    outcome: &mut Outcome,
    all: &mut Vec<Turns>,
) -> Result<()> {
    let mut jobs = Vec::new();
    for program in programs {
        let mut ids = program.ids(scratch)?;
        ids.retain(|id| {
            is_wanted(id) && asked.filter.is_none_or(|filter| id.contains(filter.trim_start_matches("raw/")))
        });
        let then = saved.turns.iter().find(|(name, _)| *name == program.name).map(|(_, processes)| &processes[0]);
        let known: Vec<_> =
            then.into_iter().flat_map(|turns| &turns.turns).filter(|turn| ids.contains(&turn.id)).collect();
        let is_known = |id: &String| known.iter().any(|turn| turn.id == *id);
        outcome.new.extend(ids.iter().filter(|id| !is_known(id) && !is_twin(id)).cloned());
        let planned: Vec<_> = known.into_iter().map(|turn| planned(turn, 1).0).collect();
        if !planned.is_empty() {
            jobs.push((program, planned));
        }
    }
    let progress = programs::spinner();
    let (started, mut slowest) = (Instant::now(), Duration::ZERO);
    let yardstick_ns = undisturbed(saved.turns.iter().flat_map(|(_, processes)| processes));
    for n in 0..MOST {
        let round = Instant::now();
        if started.elapsed() + slowest > asked.budget {
            break;
        }
        for (program, planned) in &jobs {
            let at = |id| progress.set_message(format!("process {}  {id}", n + 1));
            all.push(turns(program, &plan(planned.clone(), Some(yardstick_ns), n < ALLOCATIONS), scratch, at)?);
        }
        slowest = slowest.max(round.elapsed());
    }
    progress.finish_and_clear();
    Ok(())
}

/// What one side has measured.
struct Measured<'t> {
    turns: BTreeMap<&'t str, Vec<&'t Turn>>,
    yardstick_ns: f64,
}

impl<'t> Measured<'t> {
    fn new(processes: Vec<&'t Turns>, filter: Option<&str>) -> Self {
        let mut turns = BTreeMap::<_, Vec<_>>::new();
        for turn in processes.iter().flat_map(|turns| &turns.turns) {
            if filter.is_none_or(|filter| turn.id.contains(filter)) {
                turns.entry(&turn.id[..]).or_default().push(turn);
            }
        }
        Self { turns, yardstick_ns: undisturbed(processes.into_iter()) }
    }
}

/// Fewer twins than this say little about the machine.
const FEW: usize = 5;
/// The least change that counts then.
const UNSURE: f64 = 0.1;

/// What both have measured of one benchmark.
struct Both<'t> {
    id: &'t str,
    clock: Clock,
    /// Nanoseconds of each process, then and now.
    ns: [Vec<f64>; 2],
}

impl<'t> Both<'t> {
    fn new(id: &'t str, then: &Measured, now: &Measured) -> Self {
        let sides = [(Side::Reference, then), (Side::Candidate, now)];
        let clock = clock(sides.iter().flat_map(|(side, all)| all.turns[id].iter().map(|turn| (*side, *turn))));
        let clean = |side: &Measured| {
            side.turns[id].iter().filter_map(|turn| nanoseconds(turn, clock, Some(side.yardstick_ns))).collect()
        };
        Self { id, clock, ns: [clean(then), clean(now)] }
    }

    /// The change beyond a drift, as a logarithm, and how likely it is without one.
    fn change(&self, drift: f64) -> Option<(Interval, f64)> {
        let [then, now] = [(&self.ns[0], 0.0), (&self.ns[1], drift)]
            .map(|(ns, drift)| ns.iter().map(|ns| ns.ln() - drift).collect::<Vec<_>>());
        difference(&then, &now).filter(|_| then.len().min(now.len()) >= FEWEST)
    }
}

fn judge(before: &Measured, after: &Measured, outcome: &mut Outcome) {
    let (mut ours, mut twins) = (Vec::new(), Vec::new());
    for id in before.turns.keys() {
        match (after.turns.contains_key(id), is_twin(id)) {
            (true, true) => twins.extend(Both::new(id, before, after).change(0.0)),
            (true, false) => ours.push(Both::new(id, before, after)),
            (false, true) => {}
            (false, false) => outcome.gone.push((*id).to_owned()),
        }
    }
    // The twins are somebody else's code, so what has become of them is the machine's doing.
    let twins: Vec<_> = twins.into_iter().map(|(interval, _)| interval.middle).collect();
    let drift = if twins.is_empty() { 0.0 } else { median(twins.clone()) };
    let spread = if twins.is_empty() { 0.0 } else { median(twins.iter().map(|twin| (twin - drift).abs()).collect()) };
    // A few tell neither how far the machine has drifted nor how sure that is.
    let least = if twins.len() < FEW { outcome.threshold.max(UNSURE) } else { outcome.threshold };
    let floor = (1.0 + least).ln().max(3.0 * spread);
    outcome.remarks.push(match twins.len() {
        0 => "no twin was measured beside, so that nothing tells how the machine has changed since".into(),
        n => format!(
            "since then {n} twins on bare wasmtime have changed by {:.1} % in the middle, which is taken off; half of \
             them by more than {:.1} % beyond",
            (drift.exp() - 1.0) * 100.0,
            (spread.exp() - 1.0) * 100.0
        ),
    });
    let changes: Vec<_> = ours.iter().map(|both| both.change(drift)).collect();
    let probabilities = holm(&changes.iter().map(|change| change.map_or(1.0, |(_, p)| p)).collect::<Vec<_>>());
    for ((Both { id, clock, ns: [then, now] }, change), p) in ours.into_iter().zip(changes).zip(probabilities) {
        let interval = change.map(|(interval, _)| interval);
        let verdict = match interval {
            Some(Interval { lower, .. }) if lower > floor && p < 0.05 => Verdict::Slower,
            Some(Interval { upper, .. }) if upper < -floor && p < 0.05 => Verdict::Faster,
            Some(Interval { upper, .. }) if upper < MATTERS.ln() && floor < MATTERS.ln() => Verdict::Same,
            _ => Verdict::Unclear,
        };
        let shown = |ns: Vec<f64>| if ns.is_empty() { 0.0 } else { median(ns) };
        let counted = |turns: &[&Turn]| turns.iter().filter_map(|turn| Some(turn.allocations?.0)).collect::<Vec<_>>();
        outcome.rows.push(Row {
            id: id.to_owned(),
            clock,
            processes: then.len().min(now.len()),
            reference_ns: shown(then),
            candidate_ns: shown(now),
            ratio: interval.map(|at| [at.middle, at.lower, at.upper].map(f64::exp)),
            floor: Some(floor.exp()),
            disturbed: 0,
            verdict,
            allocations: Counted::of(&counted(&before.turns[id]), &counted(&after.turns[id])),
            instructions: None,
        });
    }
}

#[cfg(test)]
mod tests {
    use airssys_wasm_measurements::{Batch, PROTOCOL};

    use super::*;

    fn process(n: usize, figures: &[(&str, f64)]) -> Turns {
        let turn = |&(id, ns): &(&str, f64)| {
            let ns = ns * (1.0 + n as f64 / 1_000.0);
            let batch = Batch { ns, wall_ns: 1e6, thread_ns: Some(1e6), yardstick_ns: 1.0 };
            Turn {
                id: id.into(),
                iterations: 1,
                set_up_ns: 0,
                batches: vec![batch],
                process_ns: Some(1e6),
                waits: Some(0),
                allocations: Some((1.0, 8.0)),
            }
        };
        Turns { protocol: PROTOCOL, turns: figures.iter().map(turn).collect(), process_ns: None }
    }

    fn verdicts(then: &[(&str, f64)], now: &[(&str, f64)]) -> Vec<Verdict> {
        let [then, now] = [then, now].map(|figures| (0..8).map(|n| process(n, figures)).collect::<Vec<_>>());
        let mut outcome = Outcome::of("then", "now", 0, 0.03);
        judge(&Measured::new(then.iter().collect(), None), &Measured::new(now.iter().collect(), None), &mut outcome);
        outcome.rows.iter().map(|row| row.verdict).collect()
    }

    #[test]
    fn what_the_machine_has_become_is_no_change_of_ours() {
        let then = [("a", 100.0), ("raw/a", 80.0)];
        assert_eq!(verdicts(&then, &[("a", 150.0), ("raw/a", 120.0)]), [Verdict::Same]);
        assert_eq!(verdicts(&then, &[("a", 150.0), ("raw/a", 80.0)]), [Verdict::Slower]);
        assert_eq!(verdicts(&then, &[("a", 100.0), ("raw/a", 120.0)]), [Verdict::Faster]);
    }

    #[test]
    fn twins_that_do_not_agree_leave_it_open() {
        let then = [("a", 100.0), ("raw/a", 80.0), ("raw/b", 80.0)];
        assert_eq!(verdicts(&then, &[("a", 110.0), ("raw/a", 80.0), ("raw/b", 120.0)]), [Verdict::Unclear]);
    }
}
