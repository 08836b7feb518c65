//! `results.json`: schema 1.

use serde::{Deserialize, Serialize};

use super::machine::{Machine, printed};

/// Everything one run measured.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) schema: u32,
    /// The commit, or empty outside a repository.
    pub(crate) revision: String,
    /// Whether the working tree differs from the commit.
    pub(crate) dirty: bool,
    pub(crate) machine: Machine,
    pub(crate) profile: Profile,
    #[serde(flatten)]
    pub(crate) part: Part,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Profile {
    Quick,
    Full,
}

/// What one benchmark program measured. The benchmarks' own crate writes it and says what each field means.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Part {
    pub(crate) results: Vec<Figure>,
    pub(crate) ratios: Vec<Ratio>,
    pub(crate) targets: Vec<Target>,
    pub(crate) skipped: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Figure {
    pub(crate) id: String,
    pub(crate) unit: String,
    pub(crate) estimate: f64,
    pub(crate) lower: f64,
    pub(crate) upper: f64,
    pub(crate) samples: usize,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Ratio {
    pub(crate) id: String,
    pub(crate) against: String,
    pub(crate) ratio: f64,
    pub(crate) lower: f64,
    pub(crate) upper: f64,
    pub(crate) goal: Option<f64>,
    pub(crate) pass: Option<bool>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Target {
    pub(crate) id: String,
    pub(crate) source: String,
    pub(crate) limit: f64,
    pub(crate) unit: String,
    pub(crate) actual: f64,
    pub(crate) pass: bool,
}

impl Report {
    pub(crate) fn new(part: Part, quick: bool, machine: Machine) -> Self {
        Self {
            schema: 1,
            revision: printed("git", &["rev-parse", "HEAD"]).unwrap_or_default(),
            dirty: printed("git", &["status", "--porcelain"]).is_none_or(|changes| !changes.is_empty()),
            machine,
            profile: if quick { Profile::Quick } else { Profile::Full },
            part,
        }
    }

    /// Ratios and targets that are set and not kept. What the guide asks for in vain is listed, and is no goal of ours.
    pub(crate) fn missed_goals(&self) -> usize {
        let ratios = self.part.ratios.iter().filter(|ratio| ratio.pass == Some(false) && !ratio.is_the_guides());
        let targets = self.part.targets.iter().filter(|target| !target.pass && target.source.starts_with("goal"));
        ratios.count() + targets.count()
    }
}

impl Ratio {
    /// The guide wants a call into WebAssembly to cost no more than 5 % over a native addition.
    pub(crate) fn is_the_guides(&self) -> bool {
        self.against.contains("native_")
    }
}

impl Part {
    pub(crate) fn append(&mut self, mut other: Self) {
        self.results.append(&mut other.results);
        self.ratios.append(&mut other.ratios);
        self.targets.append(&mut other.targets);
        self.skipped.append(&mut other.skipped);
    }
}
