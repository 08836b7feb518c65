//! What a run of the benchmarks measured, in `results.json` or under a name: schema 3.

use std::path::{Path, PathBuf};

use airssys_wasm_measurements::{Figure, Figures, Held, Ratio, Turns};
use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::{
    files::read_whole,
    machine::{Machine, printed, today},
    workspace::target_folder,
};

const SCHEMA: u32 = 3;

/// Everything one run measured.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Results {
    schema: u32,
    /// The commit, or empty outside a repository.
    pub(crate) revision: String,
    /// Whether the working tree differs from the commit.
    pub(crate) dirty: bool,
    pub(crate) date: String,
    pub(crate) machine: Machine,
    pub(crate) profile: Profile,
    #[serde(flatten)]
    pub(crate) figures: Figures,
    /// What a later build can be compared with, where the results were saved for that, by process.
    #[serde(default)]
    pub(crate) turns: Vec<Turns>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Profile {
    Quick,
    Full,
}

impl Results {
    pub(crate) fn new(figures: Figures, quick: bool) -> Self {
        Self {
            schema: SCHEMA,
            revision: printed("git", &["rev-parse", "HEAD"]).unwrap_or_default(),
            dirty: printed("git", &["status", "--porcelain"]).is_none_or(|changes| !changes.is_empty()),
            date: today(),
            machine: Machine::here(),
            profile: if quick { Profile::Quick } else { Profile::Full },
            figures,
            turns: Vec::new(),
        }
    }

    pub(crate) fn read(path: &Path) -> Result<Self> {
        read_whole(path, SCHEMA, "measure anew")
    }

    /// What a figure is held against, if it is.
    pub(crate) fn limit(&self, id: &str) -> Option<f64> {
        self.figures.targets.iter().find(|target| target.id == id).map(|target| target.limit)
    }

    /// The commit in short, and whether something was changed since.
    pub(crate) fn revision(&self) -> String {
        let short: String = self.revision.chars().take(10).collect();
        match (short.is_empty(), self.dirty) {
            (true, _) => "no commit".into(),
            (_, true) => format!("{short} and changes"),
            (_, false) => short,
        }
    }

    /// Ratios and targets that are set and not kept. What the guide asks for in vain is listed, and is no goal of ours.
    pub(crate) fn missed_goals(&self) -> usize {
        let ratios =
            self.figures.ratios.iter().filter(|ratio| ratio.held == Some(Held::Missed) && !is_the_guides(ratio));
        let targets = self
            .figures
            .targets
            .iter()
            .filter(|target| target.held == Held::Missed && target.source.starts_with("goal"));
        ratios.count() + targets.count()
    }

    pub(crate) fn figure(&self, id: &str) -> Option<&Figure> {
        self.figures.results.iter().find(|figure| figure.id == id)
    }
}

/// The guide wants a call into WebAssembly to cost no more than 5 % over a native addition.
pub(crate) fn is_the_guides(ratio: &Ratio) -> bool {
    ratio.against.contains("native_")
}

/// A name that stays in its folder.
pub(crate) fn file_name(name: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.starts_with('.') || !name.chars().all(plain) {
        return Err("a name is made of letters, digits, '-', '_' and '.', and does not begin with a dot".into());
    }
    Ok(name.to_owned())
}

/// Where results with a name are.
pub(crate) fn saved_path(name: &str) -> PathBuf {
    target_folder().join("bench/saved").join(name).with_added_extension("json")
}

/// Where the last results are.
pub(crate) fn results_path() -> PathBuf {
    target_folder().join("bench/results.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_saved_name_cannot_leave_its_folder() {
        for good in ["main", "before-2", "v1.0_x"] {
            assert_eq!(file_name(good).as_deref(), Ok(good));
        }
        for bad in ["", ".", "..", ".hidden", "a/b", "../up", "a b", "a\\b", "é"] {
            assert!(file_name(bad).is_err(), "{bad}");
        }
    }
}
