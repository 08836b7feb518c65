//! What a process measures in turns with its twins, and what several of them come to.

use serde::{Deserialize, Serialize};

use crate::stats::{Estimate, estimate};

/// What one process of a benchmark program measured.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Measured {
    /// Benchmarks that were measured in turns.
    pub groups: Vec<Group>,
    /// Figures that are read rather than timed.
    pub readings: Vec<Reading>,
    /// What was not measured, and why.
    pub skipped: Vec<String>,
}

/// Benchmarks that were measured in turns, and what is to be said about them.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Group {
    /// The benchmarks: as many samples of each, of the same rounds.
    pub samples: Vec<Samples>,
    /// What is held against what, differences included.
    pub ratios: Vec<RatioOf>,
    /// Absolute limits.
    pub limits: Vec<Limit>,
    /// What one benchmark takes beyond another.
    pub differences: Vec<Difference>,
}

/// The rounds of one benchmark.
#[derive(Debug, Serialize, Deserialize)]
pub struct Samples {
    /// The benchmark.
    pub id: String,
    /// Nanoseconds for each iteration, a round each.
    pub ns: Vec<f64>,
}

/// One benchmark over another.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RatioOf {
    /// The benchmark.
    pub id: String,
    /// What it is held against.
    pub against: String,
    /// The most that the ratio should be.
    pub goal: Option<f64>,
}

/// An absolute limit.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Limit {
    /// The benchmark.
    pub id: String,
    /// Who set it.
    pub source: String,
    /// The limit, in the benchmark's unit.
    pub limit: f64,
}

/// What one benchmark takes beyond another, reported under an id of its own.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Difference {
    /// The id.
    pub id: String,
    /// The benchmark that takes more.
    pub of: String,
    /// The one that takes less.
    pub less: String,
}

/// A figure that was read rather than timed.
#[derive(Debug, Serialize, Deserialize)]
pub struct Reading {
    /// Its id.
    pub id: String,
    /// Its unit.
    pub unit: String,
    /// The values, one or several.
    pub values: Vec<f64>,
    /// A limit to keep.
    pub limit: Option<Limit>,
}

/// What it all comes to.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Figures {
    /// Each benchmark's figure.
    pub results: Vec<Figure>,
    /// Benchmarks against others of the same rounds.
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
    /// What it is the median of: the rounds of all processes.
    pub samples: Vec<f64>,
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
    pub held: Option<Held>,
}

/// How a figure stands to the most that it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Held {
    /// All of its interval is no more.
    Met,
    /// The most lies within its interval: the next run may end on the other side.
    Near,
    /// All of its interval is more.
    Missed,
}

impl Held {
    fn of(lower: f64, upper: f64, most: f64) -> Self {
        match (lower <= most, upper <= most) {
            (_, true) => Self::Met,
            (true, false) => Self::Near,
            (false, false) => Self::Missed,
        }
    }

    /// As people read it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::Near => "near",
            Self::Missed => "missed",
        }
    }
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
    /// Lower end of its 95 % interval.
    pub lower: f64,
    /// Upper end of its 95 % interval.
    pub upper: f64,
    /// Whether it is no more than the limit.
    pub held: Held,
}

/// What processes of the same program come to together. Each benchmark has as many groups and samples in each of them.
///
/// # Panics
///
/// When they are not of the same program and plan.
pub fn evaluate(processes: Vec<Measured>) -> Figures {
    let mut figures = Figures::default();
    let Some(first) = processes.first() else { return figures };
    for n in 0..first.groups.len() {
        let groups: Vec<_> = processes.iter().map(|process| &process.groups[n]).collect();
        figures.group(&groups);
    }
    for process in processes {
        // Those that are read are read by one of the processes only.
        process.readings.into_iter().for_each(|reading| figures.reading(reading));
        for skipped in process.skipped {
            if !figures.skipped.contains(&skipped) {
                figures.skipped.push(skipped);
            }
        }
    }
    figures
}

impl Figures {
    /// Takes in those of another program.
    pub fn append(&mut self, mut other: Self) {
        self.results.append(&mut other.results);
        self.ratios.append(&mut other.ratios);
        self.targets.append(&mut other.targets);
        self.skipped.append(&mut other.skipped);
    }

    fn group(&mut self, processes: &[&Group]) {
        let plan = processes[0];
        // By process, of each benchmark and each difference.
        let mut samples: Vec<(&str, Vec<Vec<f64>>)> = Vec::new();
        for Samples { id, .. } in &plan.samples {
            samples.push((id, processes.iter().map(|process| process.of(id).to_vec()).collect()));
        }
        for Difference { id, of, less } in &plan.differences {
            let rounds = paired(find(&samples, of), find(&samples, less), |of, less| of - less);
            samples.push((id, rounds));
        }
        for (id, processes) in &samples {
            self.figure(id, "ns", processes);
        }
        for RatioOf { id, against, goal } in &plan.ratios {
            let rounds = paired(find(&samples, id), find(&samples, against), |this, other| this / other);
            let Estimate { median: ratio, lower, upper } = estimate(&rounds);
            let held = goal.map(|goal| Held::of(lower, upper, goal));
            let (id, against, goal) = (id.clone(), against.clone(), *goal);
            self.ratios.push(Ratio { id, against, ratio, lower, upper, goal, held });
        }
        for limit in &plan.limits {
            self.target(limit, "ns", estimate(find(&samples, &limit.id)));
        }
    }

    fn reading(&mut self, Reading { id, unit, values, limit }: Reading) {
        let processes = [values];
        self.figure(&id, &unit, &processes);
        if let Some(limit) = limit {
            self.target(&limit, &unit, estimate(&processes));
        }
    }

    fn figure(&mut self, id: &str, unit: &str, processes: &[Vec<f64>]) {
        let Estimate { median: estimate, lower, upper } = estimate(processes);
        let samples = processes.concat();
        self.results.push(Figure { id: id.into(), unit: unit.into(), estimate, lower, upper, samples });
    }

    fn target(&mut self, Limit { id, source, limit }: &Limit, unit: &str, measured: Estimate) {
        let Estimate { median: actual, lower, upper } = measured;
        let (id, source, limit, unit) = (id.clone(), source.clone(), *limit, unit.to_owned());
        let held = Held::of(lower, upper, limit);
        self.targets.push(Target { id, source, limit, unit, actual, lower, upper, held });
    }
}

impl Group {
    fn of(&self, id: &str) -> &[f64] {
        &self.samples.iter().find(|samples| samples.id == id).expect("the same benchmarks in each process").ns
    }
}

fn find<'s>(samples: &'s [(&str, Vec<Vec<f64>>)], id: &str) -> &'s [Vec<f64>] {
    let found = samples.iter().find(|(known, _)| *known == id);
    &found.unwrap_or_else(|| panic!("{id} is not of this group")).1
}

/// Round by round, in each process.
fn paired(one: &[Vec<f64>], other: &[Vec<f64>], both: impl Fn(f64, f64) -> f64) -> Vec<Vec<f64>> {
    let rounds = |(one, other): (&Vec<f64>, &Vec<f64>)| one.iter().zip(other).map(|(&a, &b)| both(a, b)).collect();
    one.iter().zip(other).map(rounds).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(factor: f64) -> Measured {
        let samples =
            |id: &str, ns: f64| Samples { id: id.into(), ns: (1..=9).map(|n| ns * factor * f64::from(n)).collect() };
        let group = Group {
            samples: vec![samples("ours", 30.0), samples("raw/ours", 20.0)],
            ratios: vec![RatioOf { id: "ours".into(), against: "raw/ours".into(), goal: Some(1.4) }],
            limits: vec![Limit { id: "beyond".into(), source: "goal".into(), limit: 100.0 }],
            differences: vec![Difference { id: "beyond".into(), of: "ours".into(), less: "raw/ours".into() }],
        };
        Measured { groups: vec![group], readings: Vec::new(), skipped: vec!["why".into()] }
    }

    #[test]
    fn ratios_and_differences_are_of_the_same_round_of_the_same_process() {
        // The second process is a hundred times slower: no matter to the ratio.
        let figures = evaluate(vec![process(1.0), process(100.0)]);
        let [ratio] = &figures.ratios[..] else { panic!("{figures:?}") };
        assert_eq!((ratio.ratio, ratio.lower, ratio.upper, ratio.held), (1.5, 1.5, 1.5, Some(Held::Missed)));
        assert_eq!(
            figures.results.iter().map(|figure| &figure.id[..]).collect::<Vec<_>>(),
            ["ours", "raw/ours", "beyond"]
        );
        assert_eq!(figures.results[0].samples.len(), 18);
        assert_eq!(figures.skipped, ["why"]);
    }

    #[test]
    fn a_limit_is_held_against_the_interval() {
        let figures = evaluate(vec![process(1.0)]);
        let [target] = &figures.targets[..] else { panic!("{figures:?}") };
        assert_eq!(target.actual, 50.0);
        assert!(target.lower < 50.0 && 50.0 < target.upper, "{target:?}");
        let held = |factor| evaluate(vec![process(factor)]).targets[0].held;
        assert_eq!([0.5, 2.0, 30.0].map(held), [Held::Met, Held::Near, Held::Missed]);
    }
}
