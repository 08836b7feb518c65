//! A benchmark program as xtask runs it: in turns with the twins, or by a plan beside another build.

use std::{
    fs,
    hint::black_box,
    path::{Path, PathBuf},
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use airssys_wasm_measurements::{
    Batch, Group as Rounds, Limit, Measured, PROTOCOL, Plan, Planned, Reading as Read, Samples, Turn, Turns,
    process::{processor_time, waits},
    stats::SplitMix,
};
use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

use super::{FEW, Group, Measure, Suite, Variant};
use crate::allocations;

/// What xtask asks for. Anything else is Criterion's command line.
enum Task {
    /// Everything in turns with its twins.
    InTurns { out: PathBuf, quick: bool, only: Option<String>, readings: bool },
    /// The ids of what can be timed.
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

/// The entry point of a benchmark file: Criterion's command line, or xtask's.
///
/// # Errors
///
/// When a file cannot be read or written, and when a figure cannot be read.
pub fn main(describe: fn(&mut Suite)) -> Result<()> {
    airssys_wasm_engine::compiler_hook();
    let mut suite = Suite::default();
    describe(&mut suite);
    match Task::of(std::env::args().skip(1))? {
        None => suite.by_criterion(),
        Some(Task::InTurns { out, quick, only, readings }) => {
            write(&out, &suite.in_turns(quick, only.as_deref(), readings)?)?;
        }
        Some(Task::List { out }) => {
            let variants = suite.groups.iter().flat_map(|group| &group.variants);
            write(&out, &variants.map(|variant| &variant.id).collect::<Vec<_>>())?;
        }
        Some(Task::Plan { plan, out }) => {
            let plan = read(&plan)?;
            let turns = suite.by_plan(&plan);
            let process_ns = processor_time().map(|[_, process]| process.as_nanos() as f64);
            write(&out, &Turns { protocol: PROTOCOL, turns, process_ns })?;
        }
        Some(Task::Count { plan }) => {
            let plan = read(&plan)?;
            FEW.store(true, Ordering::Relaxed);
            suite.each_planned(&plan, |planned, mut measure| {
                let iterations = planned.iterations.unwrap_or(1);
                measure(iterations);
                counted(&mut measure, iterations);
                counted(&mut measure, iterations * 2);
            });
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
    fn in_turns(self, quick: bool, only: Option<&str>, readings: bool) -> Result<Measured> {
        let mut measured = Measured { skipped: self.skipped, ..Measured::default() };
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

    fn each_planned(self, plan: &Plan, mut each: impl FnMut(&Planned, Measure)) {
        let mut variants: Vec<_> = self.groups.into_iter().flat_map(|group| group.variants).collect();
        for planned in &plan.turns {
            if let Some(at) = variants.iter().position(|variant| variant.id == planned.id) {
                println!("{}", planned.id);
                each(planned, (variants.swap_remove(at).make)());
            }
        }
    }

    fn by_plan(self, plan: &Plan) -> Vec<Turn> {
        let mut turns = Vec::new();
        let mut started = Instant::now();
        self.each_planned(plan, |planned, mut measure| {
            let iterations = match planned.iterations {
                Some(iterations) => {
                    // What the first batch meets is cold.
                    measure(iterations);
                    iterations
                }
                None => iterations_for(Duration::from_nanos(plan.batch_ns), &mut measure),
            };
            let set_up_ns = started.elapsed().as_nanos() as u64;
            let (waits_before, time_before) = (waits(), processor_time());
            let batches = batches(&mut measure, iterations, planned, plan.yardstick_ns);
            let (time_after, waits_after) = (processor_time(), waits());
            let allocations = plan.allocations.then(|| {
                let (count, bytes) = allocations::during(|| _ = measure(iterations));
                (count as f64 / iterations as f64, bytes as f64 / iterations as f64)
            });
            let process_ns = time_before.zip(time_after).map(|(before, after)| nanoseconds(after[1] - before[1]));
            let waits = waits_before.zip(waits_after).map(|(before, after)| after - before);
            turns.push(Turn { id: planned.id.clone(), iterations, set_up_ns, batches, process_ns, waits, allocations });
            drop(measure);
            started = Instant::now();
        });
        turns
    }
}

/// As many undisturbed batches as are wanted, and those that were disturbed on the way.
fn batches(measure: &mut Measure, iterations: u64, planned: &Planned, yardstick_ns: Option<f64>) -> Vec<Batch> {
    let mut batches: Vec<Batch> = Vec::new();
    let (mut clean, mut before) = (0, yardstick());
    while clean < planned.batches && batches.len() < planned.tries {
        let (time_before, started) = (processor_time(), Instant::now());
        let taken = measure(iterations);
        let (wall, time_after) = (started.elapsed(), processor_time());
        let after = yardstick();
        let batch = Batch {
            ns: nanoseconds(taken) / iterations as f64,
            wall_ns: nanoseconds(wall),
            thread_ns: time_before.zip(time_after).map(|(before, after)| nanoseconds(after[0] - before[0])),
            yardstick_ns: nanoseconds(before.max(after)),
        };
        before = after;
        clean += usize::from(batch.is_clean(yardstick_ns));
        batches.push(batch);
    }
    batches
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
    fn in_turns(self, quick: bool, random: &mut SplitMix) -> Rounds {
        let (length, rounds) = if quick { (Duration::from_millis(2), 5) } else { (Duration::from_millis(10), 12) };
        let mut running: Vec<_> = self
            .variants
            .into_iter()
            .map(|Variant { id, make }| {
                let mut measure = make();
                let iterations = iterations_for(length, &mut measure);
                (measure, iterations, Samples { id, ns: Vec::with_capacity(rounds) })
            })
            .collect();
        let mut order: Vec<_> = (0..running.len()).collect();
        for _ in 0..rounds {
            random.shuffle(&mut order);
            for &i in &order {
                let (measure, iterations, samples) = &mut running[i];
                samples.ns.push(measure(*iterations).as_nanos() as f64 / *iterations as f64);
            }
        }
        let samples = running.into_iter().map(|(.., samples)| samples).collect();
        Rounds { samples, ratios: self.ratios, limits: self.limits, differences: self.differences }
    }
}

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
