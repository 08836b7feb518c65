//! The JSON that a benchmark process writes, and that `cargo xtask bench` puts together.

use serde::{Deserialize, Serialize};

use crate::stats::Estimate;

/// What one process measured.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Each benchmark's figure.
    pub results: Vec<Figure>,
    /// Benchmarks against their twins, measured in turns.
    pub ratios: Vec<Ratio>,
    /// Figures against absolute limits.
    pub targets: Vec<Target>,
    /// What was not measured, and why.
    pub skipped: Vec<String>,
}

/// One figure.
#[derive(Debug, Serialize, Deserialize)]
pub struct Figure {
    /// The benchmark.
    pub id: String,
    /// `ns` for each iteration, or `bytes`.
    pub unit: String,
    /// The median.
    pub estimate: f64,
    /// Lower end of the 95 % interval.
    pub lower: f64,
    /// Upper end of the 95 % interval.
    pub upper: f64,
    /// How many batches were measured.
    pub samples: usize,
}

/// One figure over another, of the same rounds.
#[derive(Debug, Serialize, Deserialize)]
pub struct Ratio {
    /// The benchmark.
    pub id: String,
    /// What it is held against.
    pub against: String,
    /// The median of the rounds' ratios.
    pub ratio: f64,
    /// Lower end of the 95 % interval.
    pub lower: f64,
    /// Upper end of the 95 % interval.
    pub upper: f64,
    /// The most it should be.
    pub goal: Option<f64>,
    /// Whether it is no more.
    pub pass: Option<bool>,
}

/// One figure and the limit it should keep.
#[derive(Debug, Serialize, Deserialize)]
pub struct Target {
    /// The benchmark.
    pub id: String,
    /// Who set the limit.
    pub source: String,
    /// The limit.
    pub limit: f64,
    /// The unit of both.
    pub unit: String,
    /// What was measured.
    pub actual: f64,
    /// Whether it is no more than the limit.
    pub pass: bool,
}

impl Report {
    pub(super) fn figure(&mut self, id: &str, unit: &str, estimate: Estimate, samples: usize) {
        let Estimate { median, lower, upper } = estimate;
        self.results.push(Figure { id: id.into(), unit: unit.into(), estimate: median, lower, upper, samples });
    }

    pub(super) fn ratio(&mut self, id: &str, against: &str, estimate: Estimate, goal: Option<f64>) {
        let Estimate { median: ratio, lower, upper } = estimate;
        let pass = goal.map(|goal| ratio <= goal);
        self.ratios.push(Ratio { id: id.into(), against: against.into(), ratio, lower, upper, goal, pass });
    }

    pub(super) fn target(&mut self, id: &str, source: &str, limit: f64, unit: &str, actual: f64) {
        let pass = actual <= limit;
        self.targets.push(Target { id: id.into(), source: source.into(), limit, unit: unit.into(), actual, pass });
    }
}
