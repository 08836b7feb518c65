//! Measuring two sides: blocks of four processes, A B B A or B A A B, until the time is up.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use airssys_wasm_measurements::{PROTOCOL, Plan, Planned, Turn, Turns, is_twin, stats::SplitMix};
use anyhow::{Context, Result, bail, ensure};
use indicatif::ProgressBar;

use crate::programs::Program;

/// How long a batch takes. Short, so that it fits between two disturbances.
const BATCH: Duration = Duration::from_micros(150);
/// Undisturbed batches of one benchmark in one process, the one that warms up left out.
const BATCHES: usize = 5;
/// How many are measured at the most for each of those that are wanted.
const TRIES: usize = 12;
/// How long the batches of a benchmark that takes longer than `BATCH` may take all together.
const LONG: Duration = Duration::from_millis(20);
/// Rounds in which allocations are counted as well.
pub(super) const COUNTED: usize = 2;
/// More rounds than this tell nothing new.
const MOST: usize = 100;
/// Fewer undisturbed processes of a side than this say nothing.
pub(super) const FEWEST: usize = 6;

/// Which side a process is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Reference,
    Candidate,
}

/// A program as both sides have it, and what is measured of it.
pub(super) struct Job {
    reference: Program,
    candidate: Program,
    planned: Vec<Planned>,
}

/// What can be compared, and what cannot.
#[derive(Default)]
pub(super) struct Jobs {
    pub(super) jobs: Vec<Job>,
    pub(super) new: Vec<String>,
    pub(super) gone: Vec<String>,
    /// With the reason.
    pub(super) left_out: Vec<(String, String)>,
}

/// What runs the processes of a comparison.
pub(super) struct Runner<'a> {
    pub(super) scratch: &'a Path,
    pub(super) progress: &'a ProgressBar,
    pub(super) random: SplitMix,
    /// What the yardstick takes undisturbed, as far as is known by now.
    pub(super) yardstick_ns: f64,
}

/// One process of a block.
pub(super) struct Process {
    pub(super) side: Side,
    /// The machine had much else to do meanwhile.
    pub(super) beside_others: bool,
    pub(super) turns: BTreeMap<String, Turn>,
}

/// Four processes, one right after the other.
pub(super) struct Block {
    pub(super) processes: Vec<Process>,
}

impl Runner<'_> {
    /// Asks both sides what they have, and finds out on the reference how often each benchmark is to be run.
    pub(super) fn jobs(
        &mut self,
        [reference, candidate]: &[Vec<Program>; 2],
        wanted: impl Fn(&str) -> bool,
        budget: Duration,
    ) -> Result<Jobs> {
        let mut all = Jobs::default();
        let mut costs = Vec::new();
        let named = |programs: &[Program], name: &str| programs.iter().find(|program| program.name == name).cloned();
        let mut names: Vec<_> = reference.iter().chain(candidate).map(|program| &program.name).collect();
        names.sort();
        names.dedup();
        for name in names {
            let sides = [named(reference, name), named(candidate, name)];
            let mut ids = [Vec::new(), Vec::new()];
            for (side, ids) in sides.iter().zip(&mut ids) {
                if let Some(program) = side {
                    *ids = program
                        .ids(self.scratch)
                        .context("it does not know what `cargo xtask compare` asks for: choose a later commit")?;
                    ids.retain(|id| !is_twin(id) && wanted(id));
                }
            }
            let [before, after] = ids;
            all.new.extend(after.iter().filter(|id| !before.contains(id)).cloned());
            all.gone.extend(before.iter().filter(|id| !after.contains(id)).cloned());
            let both: Vec<_> = before.into_iter().filter(|id| after.contains(id)).collect();
            let ([Some(reference), Some(candidate)], false) = (sides, both.is_empty()) else { continue };
            let all_unknown = both.into_iter().map(unknown).collect();
            let found = turns(&reference, &plan(all_unknown, None, false), self.scratch, |id| {
                self.progress.set_message(format!("finding out how long {id} takes"));
            })?;
            self.yardstick_ns = self.yardstick_ns.min(undisturbed([&found].into_iter()));
            let mut planned = Vec::new();
            for turn in &found.turns {
                let (found, cost) = found_out(turn);
                costs.push((cost, turn.id.clone()));
                planned.push(found);
            }
            all.jobs.push(Job { reference, candidate, planned });
        }
        all.leave_out(costs, budget);
        Ok(all)
    }

    /// Measures blocks of all jobs, round by round, until the time is up, and hands over each as soon as it is there.
    pub(super) fn rounds(&mut self, jobs: &[Job], until: Instant, mut done: impl FnMut(Block)) -> Result<()> {
        let mut order: Vec<_> = (0..jobs.len()).collect();
        let mut slowest = Duration::ZERO;
        for round in 0..MOST {
            let started = Instant::now();
            // A round that would not be over in time is not begun.
            if jobs.is_empty() || started + slowest > until {
                break;
            }
            self.random.shuffle(&mut order);
            for &n in &order {
                let mut order = [Side::Reference, Side::Candidate];
                self.random.shuffle(&mut order);
                let [one, other] = order;
                let mut processes = Vec::new();
                for side in [one, other, other, one] {
                    processes.push(self.process(&jobs[n], side, round < COUNTED)?);
                }
                done(Block { processes });
            }
            slowest = slowest.max(started.elapsed());
        }
        Ok(())
    }

    fn process(&mut self, job: &Job, side: Side, allocations: bool) -> Result<Process> {
        let plan = plan(job.planned.clone(), Some(self.yardstick_ns), allocations);
        let watch = Watch::start();
        let turns = turns(job.program(side), &plan, self.scratch, |id| self.progress.set_message(id))?;
        let beside_others = watch.disturbed(turns.process_ns);
        // The machine may never have been undisturbed before.
        self.yardstick_ns = self.yardstick_ns.min(undisturbed([&turns].into_iter()));
        let turns = turns.turns.into_iter().map(|turn| (turn.id.clone(), turn)).collect();
        Ok(Process { side, beside_others, turns })
    }
}

impl Jobs {
    /// Leaves out what would take so much of the time that little would be left for the rest.
    fn leave_out(&mut self, mut costs: Vec<(f64, String)>, budget: Duration) {
        costs.sort_by(|a, b| b.0.total_cmp(&a.0));
        // What one process of each program may take, if there are to be eight blocks in the first round.
        let enough = budget.as_nanos() as f64 * FIRST / 4.0 / 8.0;
        let mut all: f64 = costs.iter().map(|(cost, _)| cost).sum();
        for (cost, id) in costs {
            if all <= enough || cost < all / 25.0 {
                break;
            }
            all -= cost;
            let why = format!(
                "each of its processes takes {:.1} s: give more time, or it alone as a filter",
                Duration::from_nanos(cost as u64).as_secs_f64()
            );
            self.jobs.iter_mut().for_each(|job| job.planned.retain(|planned| planned.id != id));
            self.left_out.push((id, why));
        }
        self.jobs.retain(|job| !job.planned.is_empty());
    }

    /// The same with those benchmarks only.
    pub(super) fn only(&self, ids: &[String]) -> Vec<Job> {
        let mut jobs = Vec::new();
        for Job { reference, candidate, planned } in &self.jobs {
            let planned: Vec<_> = planned.iter().filter(|planned| ids.contains(&planned.id)).cloned().collect();
            if !planned.is_empty() {
                jobs.push(Job { reference: reference.clone(), candidate: candidate.clone(), planned });
            }
        }
        jobs
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = &str> {
        self.jobs.iter().flat_map(|job| &job.planned).map(|planned| &planned.id[..])
    }
}

/// The share of the time that the first round may take.
pub(super) const FIRST: f64 = 0.55;

impl Job {
    pub(super) fn program(&self, side: Side) -> &Program {
        match side {
            Side::Reference => &self.reference,
            Side::Candidate => &self.candidate,
        }
    }

    pub(super) fn planned(&self) -> &[Planned] {
        &self.planned
    }
}

/// What finding out what there is asks for.
pub(super) fn unknown(id: String) -> Planned {
    Planned { id, iterations: None, batches: 3, tries: 3 }
}

/// How a benchmark is measured once it is known how long it takes, and how many nanoseconds a process will take for it.
pub(super) fn found_out(turn: &Turn) -> (Planned, f64) {
    // One that waits depends on who wakes whom: that evens out in longer batches only.
    planned(turn, if turn.waits.unwrap_or(0) > 0 { 10 } else { 1 })
}

/// So many times the iterations of a turn, and how many nanoseconds a process will take for it.
pub(super) fn planned(turn: &Turn, longer: u64) -> (Planned, f64) {
    let batch = turn.batches.iter().map(|batch| batch.wall_ns).fold(f64::INFINITY, f64::min) * longer as f64;
    let fit = |batches: usize| ((LONG.as_nanos() as f64 / batch) as usize).clamp(1, batches);
    let (batches, tries) = (fit(BATCHES), fit(BATCHES * TRIES));
    let planned = Planned { id: turn.id.clone(), iterations: Some(turn.iterations * longer), batches, tries };
    (planned, turn.set_up_ns as f64 + (batches + 1) as f64 * batch)
}

/// What the yardstick took undisturbed, which is the least that it took: nothing makes it any faster.
pub(super) fn undisturbed<'t>(turns: impl Iterator<Item = &'t Turns>) -> f64 {
    let batches = turns.flat_map(|turns| &turns.turns).flat_map(|turn| &turn.batches);
    batches.map(|batch| batch.yardstick_ns).fold(f64::INFINITY, f64::min)
}

/// A plan of this protocol.
pub(super) fn plan(turns: Vec<Planned>, yardstick_ns: Option<f64>, allocations: bool) -> Plan {
    Plan { protocol: PROTOCOL, batch_ns: BATCH.as_nanos() as u64, yardstick_ns, allocations, turns }
}

/// Runs a plan, and makes sure that what comes of it is understood.
pub(super) fn turns(program: &Program, plan: &Plan, scratch: &Path, at: impl FnMut(String)) -> Result<Turns> {
    let turns = program.turns(plan, scratch, at)?;
    ensure!(turns.protocol == PROTOCOL, "{} answers by protocol {}, not {PROTOCOL}", program.name, turns.protocol);
    if let Some(missing) = plan.turns.iter().find(|planned| turns.turns.iter().all(|turn| turn.id != planned.id)) {
        bail!("{} did not measure {}", program.name, missing.id);
    }
    Ok(turns)
}

/// What the machine does while a process measures.
struct Watch {
    started: Instant,
    before: Option<[f64; 2]>,
}

/// Cores that others may use meanwhile, and the share of time that the machine's owner may take away.
const OTHERS: f64 = 0.2;
const STOLEN: f64 = 0.03;

impl Watch {
    fn start() -> Self {
        Self { started: Instant::now(), before: busy_and_stolen() }
    }

    /// Whether others than the process, which was on a processor for so many nanoseconds, had much to do.
    fn disturbed(self, process_ns: Option<f64>) -> bool {
        let wall = self.started.elapsed().as_secs_f64();
        let (Some(before), Some(after), Some(own)) = (self.before, busy_and_stolen(), process_ns) else { return false };
        // Two ticks more or less are how the system counts.
        let others = after[0] - before[0] - own / 1e9 - 0.02;
        let stolen = after[1] - before[1] - 0.01;
        others > wall * OTHERS || stolen > wall * STOLEN
    }
}

/// Seconds that the processors were busy, and seconds that they were not there, since the system started.
fn busy_and_stolen() -> Option<[f64; 2]> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let mut ticks = stat.lines().next()?.split_whitespace().skip(1).map(|ticks| ticks.parse::<f64>().unwrap_or(0.0));
    let ticks: [f64; 8] = std::array::from_fn(|_| ticks.next().unwrap_or(0.0));
    let [user, nice, system, _idle, _waiting, interrupts, soft_interrupts, stolen] = ticks;
    // The unit that the kernel promises to user space.
    Some([(user + nice + system + interrupts + soft_interrupts) / 100.0, stolen / 100.0])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jobs(costs: &[f64]) -> (Jobs, Vec<(f64, String)>) {
        let program = Program { name: "a".into(), path: "a".into() };
        let ids: Vec<_> = (0..costs.len()).map(|n| n.to_string()).collect();
        let planned =
            ids.iter().map(|id| Planned { id: id.clone(), iterations: Some(1), batches: 1, tries: 1 }).collect();
        let jobs = vec![Job { reference: program.clone(), candidate: program, planned }];
        let costs = costs.iter().copied().zip(ids).collect();
        (Jobs { jobs, ..Jobs::default() }, costs)
    }

    #[test]
    fn what_takes_most_of_the_time_is_left_out_and_said() {
        let second = 1e9;
        let (mut all, costs) = jobs(&[0.02 * second, 4.0 * second, 0.02 * second]);
        all.leave_out(costs, Duration::from_secs(60));
        assert_eq!(all.ids().collect::<Vec<_>>(), ["0", "2"]);
        assert_eq!(all.left_out[0].0, "1");
        // With time enough it stays.
        let (mut all, costs) = jobs(&[0.02 * second, 4.0 * second, 0.02 * second]);
        all.leave_out(costs, Duration::from_secs(600));
        assert_eq!((all.ids().count(), all.left_out.len()), (3, 0));
    }

    #[test]
    fn a_machine_that_is_busy_with_something_else_is_noticed() {
        let watch = |seconds: u64, busy: f64, stolen: f64| {
            let now = busy_and_stolen().unwrap_or_default();
            Watch {
                started: Instant::now() - Duration::from_secs(seconds),
                before: Some([now[0] - busy, now[1] - stolen]),
            }
        };
        if busy_and_stolen().is_none() {
            // Nothing to read it from.
            return;
        }
        assert!(!watch(1_000, 1_000.0, 0.0).disturbed(Some(1_000e9)));
        assert!(watch(1_000, 1_500.0, 0.0).disturbed(Some(1_000e9)));
        assert!(watch(1_000, 1_000.0, 50.0).disturbed(Some(1_000e9)));
    }
}
