//! Measuring two sides: pairs of processes that take turns, batch by batch, until the time is up.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use airssys_wasm_measurements::{
    BATCH, Kind, Listed, PROTOCOL, Plan, Planned, Role, Turn, Turns, WAITING, is_twin, process, stats::SplitMix,
};
use anyhow::{Context, Result};
use indicatif::ProgressBar;

use super::verdict::{self, Clock};
use crate::{
    files::write_whole,
    programs::{self, Built},
};

/// Batches of one benchmark in one process: as many rounds of A B B A as half of them.
const BATCHES: usize = 40;
/// How long the batches of a benchmark may take all together, where that is not too little for one round.
const LONG: Duration = Duration::from_millis(20);
/// Batches in which allocations are counted: what happens every hundredth time is no change.
const COUNTED: u64 = 4;
/// How long the processes of a pair should take, and the benchmarks that they have at the most.
const PAIR: Duration = Duration::from_millis(1_500);
const PAIR_BENCHMARKS: usize = 12;
/// What it takes to start the two of them.
const START: Duration = Duration::from_millis(100);
/// More pairs of a benchmark than this tell nothing new.
const MOST: usize = 100;
/// Fewer pairs than this say nothing.
pub(super) const FEWEST: usize = 6;
/// Pairs of a benchmark for which there should be time in the first round.
const ENOUGH: f64 = 8.0;
/// The share of the time that the first round may take.
pub(super) const FIRST: f64 = 0.55;

/// Which side a process is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Reference,
    Candidate,
}

/// A benchmark that both sides have.
#[derive(Debug, Clone)]
pub(super) struct Benchmark {
    pub(super) planned: Planned,
    pub(super) kind: Kind,
    pub(super) clock: Clock,
    /// Nanoseconds that a pair takes for it.
    cost: f64,
}

/// What can be compared, and what cannot.
#[derive(Default)]
pub(super) struct Benchmarks {
    pub(super) all: Vec<Benchmark>,
    pub(super) new: Vec<String>,
    pub(super) gone: Vec<String>,
    /// With the reason.
    pub(super) left_out: Vec<(String, String)>,
}

/// What runs the processes of a comparison.
pub(super) struct Runner<'a> {
    /// The reference and the candidate.
    pub(super) sides: [&'a Built; 2],
    pub(super) scratch: &'a Path,
    pub(super) progress: &'a ProgressBar,
    pub(super) random: SplitMix,
}

/// What a pair of processes measured, by benchmark: the reference and the candidate.
pub(super) type Pair = BTreeMap<String, [Turn; 2]>;

impl Runner<'_> {
    /// Asks both sides what they have, and finds out how often each benchmark is to be run and by which clock.
    pub(super) fn benchmarks(&self, wanted: impl Fn(&str) -> bool, budget: Duration) -> Result<Benchmarks> {
        let list = |built: &Built| -> Result<Vec<Listed>> {
            let too_old = "it does not know what `cargo xtask compare` asks for: choose a later commit";
            let mut listed = built.program().list(self.scratch).context(too_old)?;
            listed.retain(|listed| !is_twin(&listed.id) && wanted(&listed.id));
            Ok(listed)
        };
        let [before, after] = [list(self.sides[0])?, list(self.sides[1])?];
        let missing = |of: &[Listed], among: &[Listed]| -> Vec<String> {
            let is_there = |id: &str| among.iter().any(|other| other.id == id);
            of.iter().map(|listed| &listed.id).filter(|id| !is_there(id)).cloned().collect()
        };
        let (new, gone) = (missing(&after, &before), missing(&before, &after));
        let both: Vec<_> = before.into_iter().filter(|listed| !gone.contains(&listed.id)).collect();
        if both.is_empty() {
            return Ok(Benchmarks { new, gone, ..Benchmarks::default() });
        }
        let [before, after] = self.sides.map(|built| self.found(built, &both));
        let (before, after) = (before?, after?);
        let set_up = |of: &Listed, found: &BTreeMap<String, Turn>| {
            let group = both.iter().filter(|listed| listed.group == of.group);
            group.map(|listed| found[&listed.id].set_up_ns).fold(0.0, f64::max)
        };
        let all = both.iter().map(|listed| {
            let set_up = set_up(listed, &before) + set_up(listed, &after);
            Benchmark::new(listed.kind, [&before[&listed.id], &after[&listed.id]], set_up)
        });
        let mut all = Benchmarks { all: all.collect(), new, gone, ..Benchmarks::default() };
        all.leave_out(budget);
        Ok(all)
    }

    /// How long benchmarks take, by what was found out before about this build and by what is found out now.
    fn found(&self, built: &Built, listed: &[Listed]) -> Result<BTreeMap<String, Turn>> {
        let path = built.links[0].with_file_name("found.json");
        let before = fs::read(&path).ok().and_then(|json| serde_json::from_slice::<Turns>(&json).ok());
        let mut found = before.filter(|turns| turns.protocol == PROTOCOL).map_or_else(BTreeMap::new, by_id);
        let unknown: Vec<_> = listed.iter().filter(|listed| !found.contains_key(&listed.id)).map(unknown).collect();
        if !unknown.is_empty() {
            let turns = built.program().turns(&plan(unknown), self.scratch, |id| {
                self.progress.set_message(format!("finding out how long {id} takes"));
            })?;
            found.extend(by_id(turns));
            let turns = Turns { protocol: PROTOCOL, turns: found.values().cloned().collect() };
            write_whole(&path, &serde_json::to_vec(&turns)?)?;
        }
        Ok(found)
    }

    /// Measures pairs of processes, round by round, until the time is up, and hands over each as soon as it is there.
    pub(super) fn rounds(
        &mut self,
        benchmarks: &[Benchmark],
        until: Instant,
        mut done: impl FnMut(Pair),
    ) -> Result<()> {
        // Seconds that pairs have taken, and were thought to take.
        let (mut taken, mut thought) = (0.0, 0.0);
        for round in 0..MOST {
            for chunk in chunks(benchmarks, &mut self.random) {
                let started = Instant::now();
                let cost = chunk.iter().map(|benchmark| benchmark.cost).sum::<f64>() / 1e9 + START.as_secs_f64();
                // What would not be over in time is not begun.
                let slower = if thought > 0.0 { taken / thought } else { 1.0 };
                if started + Duration::from_secs_f64(cost * slower) > until {
                    return Ok(());
                }
                self.progress.set_message(format!("pair {} of {} and others", round + 1, chunk[0].planned.id));
                done(self.pair(&chunk)?);
                taken += started.elapsed().as_secs_f64();
                thought += cost;
            }
        }
        Ok(())
    }

    /// Both sides at the same time, in a random one of their links, on the same core where each is alone with itself.
    fn pair(&mut self, benchmarks: &[&Benchmark]) -> Result<Pair> {
        let cores = process::cores();
        let core = (benchmarks[0].is_pinned() && !cores.is_empty()).then(|| cores[self.random.below(cores.len())]);
        let planned = benchmarks.iter().map(|benchmark| benchmark.planned.clone()).collect();
        let plan = |role| Plan { role: Some(role), core, ..plan(planned) };
        let plan = plan(Role::First);
        let plans = [&plan, &Plan { role: Some(Role::Second), ..plan.clone() }];
        let [reference, candidate] = self.sides.map(|built| built.any(&mut self.random));
        let [before, after] = if self.random.below(2) == 0 {
            programs::pair([&reference, &candidate], plans, self.scratch)?
        } else {
            let [after, before] = programs::pair([&candidate, &reference], plans, self.scratch)?;
            [before, after]
        };
        let mut after = by_id(after);
        let both = before.turns.into_iter().filter_map(|turn| {
            let other = after.remove(&turn.id)?;
            Some((turn.id.clone(), [turn, other]))
        });
        Ok(both.collect())
    }
}

/// Benchmarks for the processes of a pair each, in a random order: what was measured before leaves its traces. Those that
/// stay on a core are apart from those that use all.
fn chunks<'b>(benchmarks: &'b [Benchmark], random: &mut SplitMix) -> Vec<Vec<&'b Benchmark>> {
    let mut chunks = Vec::new();
    for pinned in [true, false] {
        let mut those: Vec<_> = benchmarks.iter().filter(|benchmark| benchmark.is_pinned() == pinned).collect();
        random.shuffle(&mut those);
        let (mut chunk, mut cost) = (Vec::new(), 0.0);
        for benchmark in those {
            if chunk.len() == PAIR_BENCHMARKS || (cost > 0.0 && cost + benchmark.cost > PAIR.as_nanos() as f64) {
                chunks.push(std::mem::take(&mut chunk));
                cost = 0.0;
            }
            cost += benchmark.cost;
            chunk.push(benchmark);
        }
        if !chunk.is_empty() {
            chunks.push(chunk);
        }
    }
    random.shuffle(&mut chunks);
    chunks
}

fn by_id(turns: Turns) -> BTreeMap<String, Turn> {
    turns.turns.into_iter().map(|turn| (turn.id.clone(), turn)).collect()
}

impl Benchmark {
    /// By what finding out has brought about both sides, and so many nanoseconds that it takes to set both up.
    fn new(kind: Kind, found: [&Turn; 2], set_up: f64) -> Self {
        let [reference, candidate] = found;
        let clock = if kind == Kind::Time { verdict::clock([&[reference], &[candidate]]) } else { Clock::Wall };
        let (planned, batch) = planned(kind, reference);
        let cost = set_up + 2.0 * (planned.batches as u64 + 1 + planned.counted) as f64 * batch;
        Self { planned, kind, clock, cost }
    }

    fn is_pinned(&self) -> bool {
        self.clock == Clock::Cpu
    }
}

impl Benchmarks {
    /// Leaves out what would take so much of the time that little would be left for the rest.
    fn leave_out(&mut self, budget: Duration) {
        let enough = budget.as_nanos() as f64 * FIRST / ENOUGH;
        let mut all: f64 = self.all.iter().map(|benchmark| benchmark.cost).sum();
        let mut costs: Vec<_> =
            self.all.iter().map(|benchmark| (benchmark.cost, benchmark.planned.id.clone())).collect();
        costs.sort_by(|a, b| b.0.total_cmp(&a.0));
        for (cost, id) in costs {
            if all <= enough || cost < all / 25.0 {
                break;
            }
            all -= cost;
            let seconds = Duration::from_nanos(cost as u64).as_secs_f64();
            self.all.retain(|benchmark| benchmark.planned.id != id);
            self.left_out.push((id, format!("a pair takes {seconds:.1} s: give more time, or it alone as a filter")));
        }
    }
}

/// What finding out what there is asks for.
pub(super) fn unknown(listed: &Listed) -> Planned {
    let batches = if listed.kind == Kind::Time { 3 } else { 1 };
    Planned { id: listed.id.clone(), iterations: None, batches, counted: 0 }
}

/// How a benchmark is measured once it is known how long it takes, and how many nanoseconds a batch then takes.
pub(super) fn planned(kind: Kind, found: &Turn) -> (Planned, f64) {
    let batch = found.batches.iter().map(|batch| batch.wall_ns).fold(f64::INFINITY, f64::min);
    let enough = (BATCH.as_nanos() as u64 * WAITING) as f64 / batch;
    let longer = if kind == Kind::Time && verdict::waits(found) { (enough as u64).clamp(1, WAITING) } else { 1 };
    let batch = batch * longer as f64;
    let (batches, counted) = match kind {
        // A pair of each side at the least.
        Kind::Time => {
            let fit = (LONG.as_nanos() as f64 / batch) as usize;
            (fit.clamp(2, BATCHES) / 2 * 2, if fit < 2 { 1 } else { COUNTED })
        }
        Kind::Tail => (2, 0),
        Kind::Bytes => (1, 0),
    };
    let planned = Planned { id: found.id.clone(), iterations: Some(found.iterations * longer), batches, counted };
    (planned, batch)
}

/// A plan of this protocol, for a process that measures alone.
pub(super) fn plan(benchmarks: Vec<Planned>) -> Plan {
    Plan { protocol: PROTOCOL, batch_ns: BATCH.as_nanos() as u64, role: None, core: None, benchmarks }
}

/// What the yardstick took undisturbed, which is the least that it took: nothing makes it any faster.
pub(super) fn undisturbed<'t>(turns: impl Iterator<Item = &'t Turn>) -> f64 {
    turns.flat_map(|turn| &turn.batches).map(|batch| batch.yardstick_ns).fold(f64::INFINITY, f64::min)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn benchmarks(costs: &[f64], clock: Clock) -> Vec<Benchmark> {
        let planned = |n: usize| Planned { id: n.to_string(), iterations: Some(1), batches: 1, counted: 0 };
        let one = |(n, &cost)| Benchmark { planned: planned(n), kind: Kind::Time, clock, cost };
        costs.iter().enumerate().map(one).collect()
    }

    #[test]
    fn what_takes_most_of_the_time_is_left_out_and_said() {
        let of = || Benchmarks { all: benchmarks(&[0.04e9, 8e9, 0.04e9], Clock::Cpu), ..Benchmarks::default() };
        let mut all = of();
        all.leave_out(Duration::from_secs(60));
        let ids: Vec<_> = all.all.iter().map(|benchmark| &benchmark.planned.id[..]).collect();
        assert_eq!(ids, ["0", "2"]);
        assert_eq!(all.left_out[0].0, "1");
        // With time enough it stays.
        let mut all = of();
        all.leave_out(Duration::from_secs(600));
        assert_eq!((all.all.len(), all.left_out.len()), (3, 0));
    }

    #[test]
    fn each_benchmark_is_in_one_pair_of_a_round_and_those_on_one_core_are_apart() {
        let mut all = benchmarks(&[0.3e9; 30], Clock::Cpu);
        all.extend(benchmarks(&[2e9, 1e6], Clock::Wall));
        let chunks = chunks(&all, &mut SplitMix(1));
        assert_eq!(chunks.iter().map(Vec::len).sum::<usize>(), 32);
        for chunk in chunks {
            assert!(chunk.iter().all(|benchmark| benchmark.clock == chunk[0].clock));
            assert!(chunk.len() == 1 || chunk.iter().map(|benchmark| benchmark.cost).sum::<f64>() <= 1.5e9);
        }
    }
}
