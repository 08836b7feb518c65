//! A benchmark program as xtask runs it: in turns with the twins, or by a plan beside another build.

use std::{
    fs,
    hint::black_box,
    path::{Path, PathBuf},
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use airssys_wasm_measurements::{
    BATCH, Batch, Group as Rounds, Kind, Limit, Listed, Measured, PROTOCOL, Plan, Planned, Reading as Read, Role,
    Samples, Turn, Turns, WAITING,
    process::{self, processor_time, waits},
    stats::SplitMix,
};
use anyhow::{Context, Result, bail, ensure};
use criterion::Criterion;
use serde::Serialize;

use crate::{
    allocations,
    baton::Baton,
    suite::{FEW, Group, MakeSample, Measure, Sample, Suite, Variant},
};

/// What xtask asks for. Anything else is Criterion's command line.
enum Task {
    /// Everything in turns with its twins.
    InTurns { out: PathBuf, quick: bool, only: Option<String>, readings: bool },
    /// What can be compared.
    List { out: PathBuf },
    /// Some of it, as often as the plan says.
    Plan { plan: PathBuf, out: PathBuf },
    /// The iterations of the plan and nothing else of it, twice, the second time twice as many: for a tool that counts
    /// instructions.
    Count { plan: PathBuf },
}

impl Task {
    fn of(mut arguments: impl Iterator<Item = String>) -> Result<Option<Self>> {
        let Some(task) = arguments.next() else { return Ok(None) };
        let mut path = |what: &str| arguments.next().map(PathBuf::from).with_context(|| format!("{task} wants {what}"));
        Ok(Some(match task.as_str() {
            "--in-turns" => {
                let out = path("a file for the results")?;
                let (mut quick, mut only, mut readings) = (false, None, false);
                while let Some(argument) = arguments.next() {
                    match argument.as_str() {
                        "--quick-turns" => quick = true,
                        "--readings" => readings = true,
                        "--only" => only = arguments.next(),
                        other => bail!("nothing is known of {other}"),
                    }
                }
                Self::InTurns { out, quick, only, readings }
            }
            "--list-ids" => Self::List { out: path("a file for the list")? },
            "--plan" => Self::Plan { plan: path("a plan")?, out: path("a file for the results")? },
            "--count" => Self::Count { plan: path("a plan")? },
            _ => return Ok(None),
        }))
    }
}

/// The entry point of a benchmark program: Criterion's command line, or xtask's.
///
/// # Errors
///
/// When a file cannot be read or written, and when a figure cannot be read.
pub fn main(describe: fn(&mut Suite)) -> Result<()> {
    let mut suite = Suite::default();
    describe(&mut suite);
    match Task::of(std::env::args().skip(1))? {
        None => suite.by_criterion(),
        Some(Task::InTurns { out, quick, only, readings }) => {
            write(&out, &suite.in_turns(quick, only.as_deref(), readings)?)?;
        }
        Some(Task::List { out }) => {
            write(&out, &suite.listed())?;
        }
        Some(Task::Plan { plan, out }) => {
            let plan = read(&plan)?;
            let turns = suite.by_plan(&plan)?;
            write(&out, &Turns { protocol: PROTOCOL, turns })?;
        }
        Some(Task::Count { plan }) => {
            let plan = read(&plan)?;
            FEW.store(true, Ordering::Relaxed);
            suite.each_planned(&plan, |planned, make| {
                let Make::Timed(make) = make else { bail!("what is read has no instructions to count") };
                let (mut measure, iterations) = (make(), planned.iterations.unwrap_or(1));
                measure(iterations);
                counted(&mut measure, iterations);
                counted(&mut measure, iterations * 2);
                Ok(())
            })?;
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<Plan> {
    let json = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let plan: Plan = serde_json::from_slice(&json).context("the plan is not as expected")?;
    ensure!(plan.protocol == PROTOCOL, "the plan has protocol {}, this is {PROTOCOL}", plan.protocol);
    Ok(plan)
}

fn write(path: &Path, what: &impl Serialize) -> Result<()> {
    fs::write(path, serde_json::to_vec(what)?).with_context(|| format!("cannot write {}", path.display()))
}

/// What is found by its name in a tool that counts instructions.
#[inline(never)]
fn counted(measure: &mut Measure, iterations: u64) {
    black_box(measure(iterations));
}

impl Suite {
    fn by_criterion(self) {
        // As few as the guide has them, and shorter, unless the command line says otherwise.
        let mut criterion = Criterion::default()
            .sample_size(30)
            .measurement_time(Duration::from_secs(2))
            .warm_up_time(Duration::from_millis(500))
            .configure_from_args();
        for variant in self.groups.into_iter().flat_map(|group| group.variants) {
            let mut make = Some(variant.make);
            let mut measure = None;
            criterion.bench_function(&variant.id, |bencher| {
                let measure = measure.get_or_insert_with(|| make.take().expect("made once")());
                bencher.iter_custom(measure);
            });
        }
        criterion.final_summary();
    }
}

impl Suite {
    fn in_turns(self, quick: bool, only: Option<&str>, readings: bool) -> Result<Measured> {
        let mut measured = Measured { skipped: self.skipped, ..Measured::default() };
        if quick {
            measured.skipped.extend(self.only_in_full.iter().map(|id| format!("{id}: not by a quick run")));
        }
        let wanted = |id: &str| only.is_none_or(|only| id.contains(only));
        // What is wanted may be one of a family, whose members nobody knows before they are read.
        let may_have = |family: &str| {
            let parts = |only: &str| family.split(", ").any(|name| name.contains(only) || only.starts_with(name));
            only.is_none_or(parts)
        };
        // Another order in each process.
        let mut random = SplitMix(u64::from(std::process::id()));
        for group in self.groups {
            let differences = group.differences.iter().map(|difference| &difference.id);
            if group.variants.iter().map(|variant| &variant.id).chain(differences).any(|id| wanted(id)) {
                println!("{}", group.subject());
                measured.groups.push(group.in_turns(quick, &mut random));
            }
        }
        for (name, read) in self.readings {
            if !readings || !may_have(&name) {
                continue;
            }
            println!("{name}");
            for super::Reading { id, unit, values, target } in read(quick)? {
                if !wanted(&id) {
                    continue;
                }
                let limit = target.map(|(source, limit)| Limit { id: id.clone(), source: source.into(), limit });
                measured.readings.push(Read { id, unit: unit.into(), values, limit });
            }
        }
        Ok(measured)
    }

    fn listed(&self) -> Vec<Listed> {
        let listed = |id: &str, kind, group: &str| Listed { id: id.into(), kind, group: group.into() };
        let timed = self.groups.iter().flat_map(|group| {
            group.variants.iter().map(move |variant| listed(&variant.id, Kind::Time, group.subject()))
        });
        timed.chain(self.samples.iter().map(|(id, kind, _)| listed(id, *kind, id))).collect()
    }

    fn each_planned(self, plan: &Plan, mut each: impl FnMut(&Planned, Make) -> Result<()>) -> Result<()> {
        let timed = self.groups.into_iter().flat_map(|group| group.variants);
        let mut all: Vec<(String, Make)> = timed.map(|Variant { id, make }| (id, Make::Timed(make))).collect();
        all.extend(self.samples.into_iter().map(|(id, _, make)| (id, Make::Read(make))));
        for planned in &plan.benchmarks {
            if let Some(at) = all.iter().position(|(id, _)| *id == planned.id) {
                if plan.role.is_none() {
                    println!("{}", planned.id);
                }
                each(planned, all.swap_remove(at).1).with_context(|| planned.id.clone())?;
            }
        }
        Ok(())
    }

    fn by_plan(self, plan: &Plan) -> Result<Vec<Turn>> {
        if let Some(core) = plan.core {
            process::stay_on(core).with_context(|| format!("cannot stay on core {core}"))?;
        }
        let mut turns = Vec::new();
        let mut baton = Baton::new(plan.role);
        self.each_planned(plan, |planned, make| {
            turns.push(measured(plan, planned, make, &mut baton)?);
            Ok(())
        })?;
        if plan.role == Some(Role::First) {
            // So that the other one can still pass it.
            baton.take()?;
        }
        Ok(turns)
    }
}

/// A benchmark that can be set up, not of Criterion's.
enum Make {
    Timed(Box<dyn FnOnce() -> Measure>),
    Read(MakeSample),
}

/// One that is set up.
enum Sampler {
    Timed(Measure),
    Read(Sample),
}

impl Sampler {
    /// Nanoseconds for each iteration, or what is read.
    fn value(&mut self, iterations: u64) -> Result<f64> {
        match self {
            Self::Timed(measure) => Ok(nanoseconds(measure(iterations)) / iterations as f64),
            Self::Read(read) => read(),
        }
    }
}

/// Sets a benchmark up, measures its batches, and counts its allocations, in turns with the other process if there is one.
fn measured(plan: &Plan, planned: &Planned, make: Make, baton: &mut Baton) -> Result<Turn> {
    baton.take()?;
    let started = Instant::now();
    let (mut sampler, iterations) = match make {
        Make::Read(make) => (Sampler::Read(make()), 1),
        Make::Timed(make) => {
            let mut measure = make();
            let iterations = match planned.iterations {
                Some(iterations) => {
                    // What the first batch meets is cold.
                    measure(iterations);
                    iterations
                }
                None => iterations_for(Duration::from_nanos(plan.batch_ns), &mut measure),
            };
            (Sampler::Timed(measure), iterations)
        }
    };
    let set_up_ns = nanoseconds(started.elapsed());
    if baton.role() == Some(Role::First) {
        baton.pass()?;
    }
    let mut batches = Vec::with_capacity(planned.batches);
    let before = (waits(), processor_time());
    match baton.role() {
        // A pair of the other's batches between two of its own.
        Some(Role::First) => {
            for n in 0..planned.batches {
                baton.take()?;
                batches.push(batch(&mut sampler, iterations)?);
                if n % 2 == 0 {
                    baton.pass()?;
                }
            }
        }
        Some(Role::Second) => {
            // Both are set up by now.
            baton.pass()?;
            for n in 0..planned.batches {
                baton.take()?;
                batches.push(batch(&mut sampler, iterations)?);
                if n % 2 == 1 || n + 1 == planned.batches {
                    baton.pass()?;
                }
            }
        }
        None => {
            for _ in 0..planned.batches {
                batches.push(batch(&mut sampler, iterations)?);
            }
        }
    }
    let after = (waits(), processor_time());
    baton.take()?;
    let allocations = match &mut sampler {
        Sampler::Timed(measure) if planned.counted > 0 => {
            let (count, _) = allocations::during(|| (0..planned.counted).for_each(|_| _ = measure(iterations)));
            Some(count as f64 / (iterations * planned.counted) as f64)
        }
        _ => None,
    };
    drop(sampler);
    baton.pass()?;
    Ok(Turn {
        id: planned.id.clone(),
        iterations,
        set_up_ns,
        batches,
        process_ns: before.1.zip(after.1).map(|(before, after)| nanoseconds(after[1] - before[1])),
        waits: before.0.zip(after.0).map(|(before, after)| after - before),
        allocations,
    })
}

fn batch(sampler: &mut Sampler, iterations: u64) -> Result<Batch> {
    let yardstick_before = yardstick();
    let (time_before, started) = (processor_time(), Instant::now());
    let value = sampler.value(iterations)?;
    let (wall, time_after) = (started.elapsed(), processor_time());
    Ok(Batch {
        value,
        wall_ns: nanoseconds(wall),
        thread_ns: time_before.zip(time_after).map(|(before, after)| nanoseconds(after[0] - before[0])),
        yardstick_ns: nanoseconds(yardstick_before.max(yardstick())),
    })
}

fn nanoseconds(time: Duration) -> f64 {
    time.as_nanos() as f64
}

/// How long something takes that is always the same and keeps the whole of a core busy: every lane has something to do in
/// every cycle. Where a core is shared with somebody outside, as those of virtual machines are, this takes up to twice as
/// long, for milliseconds or seconds at a time. So does what is measured, and nothing else tells.
#[inline(never)]
fn yardstick() -> Duration {
    const ROUNDS: u64 = 5_000;
    let [mut a, mut b, mut c, mut d, mut e, mut f, mut g, mut h] = std::array::from_fn(|lane| lane as u64);
    let started = Instant::now();
    for round in 0..black_box(ROUNDS) {
        // Unknown to the compiler, which would have the sum of it all at once; and the lanes differ, or it would put them
        // into vectors.
        let n = black_box(round);
        a = a.wrapping_add(n).rotate_left(3);
        b = (b ^ n).wrapping_add(n);
        c = c.wrapping_sub(n) ^ n;
        d = d.rotate_left(5).wrapping_add(e);
        e = !e;
        f = f.wrapping_add(a);
        g |= b;
        h = h.wrapping_sub(c);
    }
    black_box([a, b, c, d, e, f, g, h]);
    started.elapsed()
}

impl Group {
    /// All of them in a random order and then in the opposite one, round after round: whatever drifts meanwhile hits all
    /// alike. A sample is what a round's two batches come to.
    fn in_turns(self, quick: bool, random: &mut SplitMix) -> Rounds {
        let (rounds, long) = if quick { (20, Duration::from_millis(20)) } else { (100, Duration::from_millis(200)) };
        let mut longest = Duration::ZERO;
        let mut running: Vec<_> = self
            .variants
            .into_iter()
            .map(|Variant { id, make }| {
                let mut measure = make();
                let mut iterations = iterations_for(BATCH, &mut measure);
                let (before, started) = (waits(), Instant::now());
                measure(iterations);
                let mut taken = started.elapsed();
                if waits() > before {
                    iterations *= WAITING;
                    taken *= WAITING as u32;
                }
                longest = longest.max(taken);
                (measure, iterations, Samples { id, ns: Vec::with_capacity(rounds) })
            })
            .collect();
        // As many of each, because ratios are taken round by round.
        let rounds = ((long.as_secs_f64() / longest.as_secs_f64() / 2.0) as usize).clamp(FEWEST_ROUNDS, rounds);
        let mut order: Vec<_> = (0..running.len()).collect();
        for _ in 0..rounds {
            random.shuffle(&mut order);
            let mut ns = vec![0.0; running.len()];
            for &n in order.iter().chain(order.iter().rev()) {
                let (measure, iterations, _) = &mut running[n];
                ns[n] += nanoseconds(measure(*iterations)) / *iterations as f64 / 2.0;
            }
            running.iter_mut().zip(ns).for_each(|((.., samples), ns)| samples.ns.push(ns));
        }
        let samples = running.into_iter().map(|(.., samples)| samples).collect();
        Rounds { samples, ratios: self.ratios, limits: self.limits, differences: self.differences }
    }
}

/// Rounds of what takes so long that there is no time for more.
const FEWEST_ROUNDS: usize = 3;

/// How many iterations fill a batch; finding out warms up as well.
fn iterations_for(batch: Duration, measure: &mut Measure) -> u64 {
    let mut iterations = 1;
    loop {
        let mut taken = measure(iterations);
        if taken >= batch / 2 {
            // Once may have been the first time, or a time slice that somebody else had.
            taken = taken.min(measure(iterations));
        }
        if taken >= batch / 2 || iterations >= 1 << 40 {
            let wanted = iterations as f64 * batch.as_secs_f64() / taken.as_secs_f64();
            return (wanted.round() as u64).max(1);
        }
        iterations *= if taken < batch / 32 { 8 } else { 2 };
    }
}
