//! Benchmarks with their twins, run by Criterion or in turns.

pub mod report;

use std::{
    env, fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use criterion::Criterion;
use tokio::runtime::Runtime;

use crate::stats::{SplitMix, estimate};
use report::Report;

/// Runs this many iterations and says how long they took, set-up left out.
pub type Measure = Box<dyn FnMut(u64) -> Duration>;

/// Reads figures, told whether to be quick.
type Read = Box<dyn FnOnce(bool) -> Result<Vec<Reading>>>;

/// The benchmarks of one category.
#[derive(Default)]
pub struct Suite {
    groups: Vec<Group>,
    readings: Vec<(String, Read)>,
    skipped: Vec<String>,
}

/// A figure that is read once rather than timed.
pub struct Reading {
    /// Its id.
    pub id: String,
    /// Its unit.
    pub unit: &'static str,
    /// The values, one or several.
    pub values: Vec<f64>,
    /// A limit to keep, and who set it.
    pub target: Option<(&'static str, f64)>,
}

/// Benchmarks that are measured in turns, so that drift of the machine hits all of them.
pub struct Group {
    variants: Vec<Variant>,
    ratios: Vec<(String, String, Option<f64>)>,
    targets: Vec<Limit>,
    differences: Vec<Difference>,
}

struct Variant {
    id: String,
    make: Box<dyn FnOnce() -> Measure>,
}

struct Limit {
    id: String,
    source: &'static str,
    ns: f64,
}

/// What one benchmark takes beyond another, reported under an id of its own.
struct Difference {
    id: String,
    of: String,
    less: String,
    target: Option<(&'static str, f64)>,
}

impl Suite {
    /// A group around the benchmark with this id. The set-up runs only if the group is measured.
    pub fn bench(&mut self, id: &str, make: impl FnOnce() -> Measure + 'static) -> &mut Group {
        self.groups.push(Group {
            variants: Vec::new(),
            ratios: Vec::new(),
            targets: Vec::new(),
            differences: Vec::new(),
        });
        let group = self.groups.last_mut().expect("pushed above");
        group.and(id, make)
    }

    /// Figures that are read rather than timed, by a closure that is told whether to be quick. Criterion leaves them out.
    pub fn reading(&mut self, name: &str, read: impl FnOnce(bool) -> Result<Vec<Reading>> + 'static) {
        self.readings.push((name.to_owned(), Box::new(read)));
    }

    /// Says that something is not measured here, and why.
    pub fn skip(&mut self, why: String) {
        self.skipped.push(why);
    }
}

impl Group {
    fn subject(&self) -> &str {
        &self.variants[0].id
    }

    /// Another benchmark of the group, under an id of its own.
    pub fn and(&mut self, id: &str, make: impl FnOnce() -> Measure + 'static) -> &mut Self {
        self.variants.push(Variant { id: id.to_owned(), make: Box::new(make) });
        self
    }

    /// The same on something else, as `prefix/<id>`, with the ratio of the two, which should be no more than the goal.
    pub fn twin(
        &mut self,
        prefix: &str,
        goal: impl Into<Option<f64>>,
        make: impl FnOnce() -> Measure + 'static,
    ) -> &mut Self {
        let id = self.subject().to_owned();
        let twin = format!("{prefix}/{id}");
        self.and(&twin, make).ratio(&id, &twin, goal)
    }

    /// The ratio of two of the group, differences included.
    pub fn ratio(&mut self, id: &str, against: &str, goal: impl Into<Option<f64>>) -> &mut Self {
        self.ratios.push((id.to_owned(), against.to_owned(), goal.into()));
        self
    }

    /// An absolute limit for the first of the group.
    pub fn target(&mut self, source: &'static str, limit: Duration) -> &mut Self {
        let id = self.subject().to_owned();
        self.target_of(&id, source, limit)
    }

    /// An absolute limit for one of the group.
    pub fn target_of(&mut self, id: &str, source: &'static str, limit: Duration) -> &mut Self {
        self.targets.push(Limit { id: id.to_owned(), source, ns: limit.as_nanos() as f64 });
        self
    }

    /// What one of the group takes beyond another, with a limit in nanoseconds.
    pub fn difference(
        &mut self,
        id: &str,
        of: &str,
        less: &str,
        target: impl Into<Option<(&'static str, f64)>>,
    ) -> &mut Self {
        let (id, of, less, target) = (id.to_owned(), of.to_owned(), less.to_owned(), target.into());
        self.differences.push(Difference { id, of, less, target });
        self
    }
}

/// Times so many runs of a closure.
pub fn timed<R>(mut run: impl FnMut() -> R + 'static) -> Measure {
    Box::new(move |iterations| {
        let started = Instant::now();
        for _ in 0..iterations {
            std::hint::black_box(run());
        }
        started.elapsed()
    })
}

/// Times so many runs of an async closure, one after the other in one `block_on` of a single-threaded runtime.
pub fn timed_async<S: 'static, R>(mut state: S, mut run: impl AsyncFnMut(&mut S) -> R + 'static) -> Measure {
    let runtime = runtime();
    Box::new(move |iterations| {
        runtime.block_on(async {
            let started = Instant::now();
            for _ in 0..iterations {
                std::hint::black_box(run(&mut state).await);
            }
            started.elapsed()
        })
    })
}

/// The runtime that benchmarks run on: one worker, with timers.
///
/// # Panics
///
/// When the system has none to give.
pub fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime")
}

/// The entry point of a benchmark file: Criterion's command line, or ours with `--in-turns FILE`.
///
/// # Errors
///
/// When the JSON cannot be written.
pub fn main(describe: fn(&mut Suite)) -> Result<()> {
    let mut suite = Suite::default();
    describe(&mut suite);
    let mut arguments = env::args().skip(1);
    let mut in_turns = None;
    let (mut quick, mut filter) = (false, None);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--in-turns" => in_turns = arguments.next().map(PathBuf::from),
            "--quick-turns" => quick = true,
            "--only" => filter = arguments.next(),
            _ => {}
        }
    }
    match in_turns {
        Some(path) => {
            let report = suite.in_turns(quick, filter.as_deref())?;
            fs::write(&path, serde_json::to_vec(&report)?).with_context(|| format!("cannot write {}", path.display()))
        }
        None => {
            suite.by_criterion();
            Ok(())
        }
    }
}

impl Suite {
    fn by_criterion(self) {
        // As few and short as the guide has it, unless the command line says otherwise.
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

    fn in_turns(self, quick: bool, filter: Option<&str>) -> Result<Report> {
        let mut report = Report { skipped: self.skipped, ..Report::default() };
        let wanted = |id: &str| filter.is_none_or(|filter| id.contains(filter));
        let mut random = SplitMix(0x5eed);
        for group in self.groups {
            if group.variants.iter().any(|variant| wanted(&variant.id)) {
                println!("{}", group.subject());
                group.in_turns(&mut report, quick, &mut random);
            }
        }
        for (name, read) in self.readings {
            if !wanted(&name) {
                continue;
            }
            println!("{name}");
            for reading in read(quick)? {
                let measured = estimate(&reading.values);
                report.figure(&reading.id, reading.unit, measured, reading.values.len());
                if let Some((source, limit)) = reading.target {
                    report.target(&reading.id, source, limit, reading.unit, measured.median);
                }
            }
        }
        Ok(report)
    }
}

impl Group {
    fn in_turns(self, report: &mut Report, quick: bool, random: &mut SplitMix) {
        let (batch, rounds) = if quick { (Duration::from_millis(2), 15) } else { (Duration::from_millis(10), 60) };
        let mut running: Vec<_> = self
            .variants
            .into_iter()
            .map(|Variant { id, make }| {
                let mut measure = make();
                let iterations = iterations_for(batch, &mut measure);
                (id, measure, iterations, Vec::with_capacity(rounds))
            })
            .collect();
        let mut order: Vec<_> = (0..running.len()).collect();
        for _ in 0..rounds {
            random.shuffle(&mut order);
            for &i in &order {
                let (_, measure, iterations, samples) = &mut running[i];
                samples.push(measure(*iterations).as_nanos() as f64 / *iterations as f64);
            }
        }
        let mut measured: Vec<_> = running.into_iter().map(|(id, .., samples)| (id, samples)).collect();
        for (id, samples) in &measured {
            report.figure(id, "ns", estimate(samples), samples.len());
        }
        let of = |measured: &[(String, Vec<f64>)], id: &str| -> Vec<f64> {
            let found = measured.iter().find(|(known, _)| known == id);
            found.expect("a benchmark of the group").1.clone()
        };
        for Difference { id, of: more, less, target } in self.differences {
            let (more, less) = (of(&measured, &more), of(&measured, &less));
            let differences: Vec<_> = more.iter().zip(&less).map(|(more, less)| more - less).collect();
            let middle = estimate(&differences);
            report.figure(&id, "ns", middle, differences.len());
            if let Some((source, limit)) = target {
                report.target(&id, source, limit, "ns", middle.median);
            }
            measured.push((id, differences));
        }
        for (id, against, goal) in &self.ratios {
            let (this, other) = (of(&measured, id), of(&measured, against));
            let ratios: Vec<_> = this.iter().zip(&other).map(|(this, other)| this / other).collect();
            report.ratio(id, against, estimate(&ratios), *goal);
        }
        for Limit { id, source, ns } in &self.targets {
            report.target(id, source, *ns, "ns", estimate(&of(&measured, id)).median);
        }
    }
}

/// How many iterations fill a batch; finding out warms up as well.
fn iterations_for(batch: Duration, measure: &mut Measure) -> u64 {
    let mut iterations = 1;
    loop {
        let taken = measure(iterations);
        if taken >= batch / 2 || iterations >= 1 << 40 {
            let wanted = iterations as f64 * batch.as_secs_f64() / taken.as_secs_f64();
            return (wanted.round() as u64).max(1);
        }
        iterations *= if taken < batch / 32 { 8 } else { 2 };
    }
}
