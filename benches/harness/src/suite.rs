//! How benchmarks and their twins are described.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use airssys_wasm_measurements::{Difference, Kind, Limit, RatioOf};
use anyhow::Result;
use tokio::runtime::Runtime;

pub(crate) static FEW: AtomicBool = AtomicBool::new(false);

/// Whether there is to be room for few components only: a tool that counts instructions has not the address space for
/// many.
pub fn few() -> bool {
    FEW.load(Ordering::Relaxed)
}

/// Runs this many iterations and says how long they took, set-up left out.
pub type Measure = Box<dyn FnMut(u64) -> Duration>;

/// Reads a figure.
pub type Sample = Box<dyn FnMut() -> Result<f64>>;

pub(crate) type MakeSample = Box<dyn FnOnce() -> Sample>;

/// Reads figures, told whether to be quick.
pub(crate) type Read = Box<dyn FnOnce(bool) -> Result<Vec<Reading>>>;

/// The benchmarks of one category.
#[derive(Default)]
pub struct Suite {
    pub(crate) groups: Vec<Group>,
    pub(crate) readings: Vec<(String, Read)>,
    pub(crate) samples: Vec<(String, Kind, MakeSample)>,
    pub(crate) skipped: Vec<String>,
    pub(crate) only_in_full: Vec<String>,
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
#[derive(Default)]
pub struct Group {
    pub(crate) variants: Vec<Variant>,
    pub(crate) ratios: Vec<RatioOf>,
    pub(crate) limits: Vec<Limit>,
    pub(crate) differences: Vec<Difference>,
}

pub(crate) struct Variant {
    pub(crate) id: String,
    pub(crate) make: Box<dyn FnOnce() -> Measure>,
}

impl Suite {
    /// A group around the benchmark with this id. The set-up runs only if the group is measured.
    pub fn bench(&mut self, id: &str, make: impl FnOnce() -> Measure + 'static) -> &mut Group {
        self.groups.push(Group::default());
        let group = self.groups.last_mut().expect("pushed above");
        group.and(id, make)
    }

    /// Figures that are read rather than timed, by a closure that is told whether to be quick. Criterion leaves them out.
    pub fn reading(&mut self, name: &str, read: impl FnOnce(bool) -> Result<Vec<Reading>> + 'static) {
        self.readings.push((name.to_owned(), Box::new(read)));
    }

    /// A figure that comparisons read in turns with the other side: one value each time that the closure is called.
    pub fn sample(&mut self, id: &str, kind: Kind, make: impl FnOnce() -> Sample + 'static) {
        self.samples.push((id.to_owned(), kind, Box::new(make)));
    }

    /// Says that something is not measured here, and why.
    pub fn skip(&mut self, why: String) {
        self.skipped.push(why);
    }

    /// Says that readings whose ids begin so are there only where there is no hurry.
    pub fn only_in_full(&mut self, id: &str) {
        self.only_in_full.push(id.to_owned());
    }
}

impl Group {
    pub(crate) fn subject(&self) -> &str {
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
        self.ratios.push(RatioOf { id: id.into(), against: against.into(), goal: goal.into() });
        self
    }

    /// An absolute limit for the first of the group.
    pub fn target(&mut self, source: &'static str, limit: Duration) -> &mut Self {
        let id = self.subject().to_owned();
        self.target_of(&id, source, limit)
    }

    /// An absolute limit for one of the group.
    pub fn target_of(&mut self, id: &str, source: &'static str, limit: Duration) -> &mut Self {
        self.limit(id, source, limit.as_nanos() as f64)
    }

    /// What one of the group takes beyond another, with a limit in nanoseconds.
    pub fn difference(
        &mut self,
        id: &str,
        of: &str,
        less: &str,
        target: impl Into<Option<(&'static str, f64)>>,
    ) -> &mut Self {
        self.differences.push(Difference { id: id.into(), of: of.into(), less: less.into() });
        match target.into() {
            Some((source, ns)) => self.limit(id, source, ns),
            None => self,
        }
    }

    fn limit(&mut self, id: &str, source: &str, limit: f64) -> &mut Self {
        self.limits.push(Limit { id: id.into(), source: source.into(), limit });
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

/// Waits for what does not wait.
pub fn now<R>(future: impl Future<Output = R>) -> R {
    runtime().block_on(future)
}

/// The runtime that benchmarks run on: one worker, with timers.
///
/// # Panics
///
/// When the system has none to give.
pub fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime")
}
