//! Comparing with results that were saved: nothing is interleaved with them, so the twins tell how the machine has drifted.

use std::{
    collections::BTreeMap,
    path::Path,
    time::{Duration, Instant},
};

use airssys_wasm_measurements::{Kind, Listed, Planned, Turn, Turns, is_twin, stats::median};
use anyhow::{Result, ensure};

use super::{
    measure::{FEWEST, plan, planned, undisturbed, unknown},
    outcome::{Counted, Outcome, Row},
    sides::{Worktree, working_tree},
    statistics::{Interval, difference, holm},
    verdict::{Clock, Verdict, clock, matters, of_process},
};
use crate::{
    interrupt::Interrupted,
    machine::Machine,
    programs::{self, Built},
    results::{Results, saved_path},
    workspace::{root, shown},
};

/// Processes that are saved.
const PROCESSES: usize = 8;
/// More than this tell nothing new.
const MOST: usize = 40;

/// What is measured: what is ours and is timed, and bare wasmtime's beside it.
fn is_wanted(listed: &Listed) -> bool {
    listed.kind == Kind::Time && (!is_twin(&listed.id) || listed.id.starts_with("raw/"))
}

/// Measures what a later build can be compared with: built as that will be.
pub(crate) fn measure(filter: Option<&str>, scratch: &Path) -> Result<Vec<Turns>> {
    let built = Worktree::new()?.build(&working_tree(root())?)?;
    let progress = programs::spinner();
    let mut listed = built.program().list(scratch)?;
    listed.retain(|listed| is_wanted(listed) && filter.is_none_or(|filter| listed.id.contains(filter)));
    let unknown = plan(listed.iter().map(unknown).collect());
    let found = built.program().turns(&unknown, scratch, |id| progress.set_message(id))?;
    let plan = plan(found.turns.iter().map(|turn| planned(Kind::Time, turn).0).collect());
    let mut processes = Vec::new();
    for n in 0..PROCESSES {
        let at = |id| progress.set_message(format!("{}/{PROCESSES}  {id}", n + 1));
        processes.push(built.nth(n).turns(&plan, scratch, at)?);
    }
    progress.finish_and_clear();
    Ok(processes)
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
    let built = Worktree::new()?.build(&candidate)?;
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
    let mut after = Vec::new();
    match measure_again(&saved, &built, asked, scratch.path(), &mut outcome, &mut after) {
        Err(error) if error.is::<Interrupted>() => outcome.interrupted = true,
        other => other?,
    }
    outcome.seconds = started.elapsed().as_secs_f64();
    judge(&Measured::new(&saved.turns, asked.filter), &Measured::new(&after, asked.filter), &mut outcome);
    Ok(outcome)
}

/// Runs what was saved as often as there is time for.
fn measure_again(
    saved: &Results,
    built: &Built,
    asked: &Asked,
    scratch: &Path,
    outcome: &mut Outcome,
    all: &mut Vec<Turns>,
) -> Result<()> {
    let mut listed = built.program().list(scratch)?;
    listed.retain(|listed| {
        is_wanted(listed) && asked.filter.is_none_or(|filter| listed.id.contains(filter.trim_start_matches("raw/")))
    });
    let then = &saved.turns[0].turns;
    let is_known = |id: &str| then.iter().any(|turn| turn.id == id);
    let new = listed.iter().filter(|listed| !is_known(&listed.id) && !is_twin(&listed.id));
    outcome.new.extend(new.map(|listed| listed.id.clone()));
    let again = then.iter().filter(|turn| listed.iter().any(|listed| listed.id == turn.id));
    // As often as then: nothing has to be found out.
    let again = again.map(|turn| Planned {
        iterations: Some(turn.iterations),
        batches: turn.batches.len(),
        ..planned(Kind::Time, turn).0
    });
    let plan = plan(again.collect());
    let progress = programs::spinner();
    let (started, mut slowest) = (Instant::now(), Duration::ZERO);
    for n in 0..MOST {
        let round = Instant::now();
        if plan.benchmarks.is_empty() || started.elapsed() + slowest > asked.budget {
            break;
        }
        let at = |id| progress.set_message(format!("process {}  {id}", n + 1));
        all.push(built.nth(n).turns(&plan, scratch, at)?);
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
    fn new(processes: &'t [Turns], filter: Option<&str>) -> Self {
        let all = processes.iter().flat_map(|turns| &turns.turns);
        let mut turns = BTreeMap::<_, Vec<_>>::new();
        for turn in all.clone().filter(|turn| filter.is_none_or(|filter| turn.id.contains(filter))) {
            turns.entry(&turn.id[..]).or_default().push(turn);
        }
        Self { turns, yardstick_ns: undisturbed(all) }
    }

    /// What each process has measured of a benchmark, by its undisturbed batches: there is no neighbour of the other side
    /// that would have been disturbed alike. By all, where there are none.
    fn nanoseconds(&self, id: &str, clock: Clock) -> Vec<f64> {
        let clean = |turn: &&Turn| {
            let mut clean = (*turn).clone();
            clean.batches.retain(|batch| !batch.is_disturbed(self.yardstick_ns));
            of_process(if clean.batches.is_empty() { turn } else { &clean }, clock)
        };
        self.turns[id].iter().map(clean).collect()
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
        let clock = clock([then, now].map(|side| &side.turns[id][..]));
        Self { id, clock, ns: [then, now].map(|side| side.nanoseconds(id, clock)) }
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
    let matters = matters(Kind::Time).ln();
    for ((Both { id, clock, ns: [then, now] }, change), p) in ours.into_iter().zip(changes).zip(probabilities) {
        let interval = change.map(|(interval, _)| interval);
        let verdict = match interval {
            Some(Interval { lower, .. }) if lower > floor && p < 0.05 => Verdict::Slower,
            Some(Interval { upper, .. }) if upper < -floor && p < 0.05 => Verdict::Faster,
            Some(Interval { upper, .. }) if upper < matters && floor < matters => Verdict::Same,
            _ => Verdict::Unclear,
        };
        let shown = |ns: Vec<f64>| if ns.is_empty() { 0.0 } else { median(ns) };
        let counted = |turns: &[&Turn]| turns.iter().filter_map(|turn| turn.allocations).collect::<Vec<_>>();
        outcome.rows.push(Row {
            id: id.to_owned(),
            kind: Kind::Time,
            clock,
            pairs: then.len().min(now.len()),
            reference: shown(then),
            candidate: shown(now),
            ratio: interval.map(|at| [at.middle, at.lower, at.upper].map(f64::exp)),
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
            let batch = Batch { value: ns, wall_ns: 1e6, thread_ns: Some(1e6), yardstick_ns: 1.0 };
            Turn {
                id: id.into(),
                iterations: 1,
                set_up_ns: 0.0,
                batches: vec![batch],
                process_ns: Some(1e6),
                waits: Some(0),
                allocations: Some(1.0),
            }
        };
        Turns { protocol: PROTOCOL, turns: figures.iter().map(turn).collect() }
    }

    fn verdicts(then: &[(&str, f64)], now: &[(&str, f64)]) -> Vec<Verdict> {
        let [then, now] = [then, now].map(|figures| (0..8).map(|n| process(n, figures)).collect::<Vec<_>>());
        let mut outcome = Outcome::of("then", "now", 0, 0.03);
        judge(&Measured::new(&then, None), &Measured::new(&now, None), &mut outcome);
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
