//! What a self-check plants: slowdowns as a maintainer could write them, and changes of nothing.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use super::{outcome::Row, verdict::Verdict};

/// An edit of one file: what stands there once, and what takes its place.
pub(super) struct Edit {
    pub(super) file: &'static str,
    from: &'static str,
    to: &'static str,
}

/// Something that is to be found.
pub(super) struct Plant {
    pub(super) name: &'static str,
    pub(super) sort: Sort,
    pub(super) edits: &'static [Edit],
    /// The ids of the benchmarks that show it begin so.
    shows_in: &'static [&'static str],
}

/// How much a plant is, and so how surely it has to be found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Sort {
    /// At least a fifth more time.
    Fifth,
    /// Some 5 % more.
    Five,
    /// Some 3 % more, which is as much as the threshold.
    Three,
    /// One allocation more.
    Allocation,
    /// One look-up more.
    LookUp,
}

impl Sort {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Fifth => "20 % more work, or more than that",
            Self::Five => "5 % more work",
            Self::Three => "3 % more work",
            Self::Allocation => "one allocation more",
            Self::LookUp => "one look-up more",
        }
    }

    /// The share of times that it should be found; none where that is only reported.
    pub(super) fn goal(self) -> Option<f64> {
        match self {
            Self::Fifth | Self::Allocation | Self::LookUp => Some(1.0),
            Self::Five => Some(0.9),
            Self::Three => None,
        }
    }

    pub(super) fn passes(self, found: usize, of: usize) -> bool {
        self.goal().is_none_or(|goal| of > 0 && found as f64 >= goal * of as f64)
    }

    pub(super) fn is_found(self, row: &Row) -> bool {
        match self {
            Self::Allocation => row.allocations.is_some_and(|counted| counted.more),
            _ => matches!(row.verdict, Verdict::Slower | Verdict::MoreWork),
        }
    }
}

impl Plant {
    pub(super) fn shows_in(&self, id: &str) -> bool {
        self.shows_in.iter().any(|prefix| id.starts_with(prefix))
    }
}

impl Edit {
    /// A file's text with it.
    pub(super) fn apply(&self, text: &str) -> Result<String> {
        let found = text.matches(self.from).count();
        ensure!(found == 1, "what is to be replaced in {} stands there {found} times, not once", self.file);
        Ok(text.replace(self.from, self.to))
    }
}

/// By build: what shows in a benchmark is planted by itself.
pub(super) const PLANTS: &[&[Plant]] = &[&[
    Plant {
        name: "5 % more steps of guests that compute",
        sort: Sort::Five,
        edits: &[Edit {
            file: "benches/suite/execution.rs",
            from: "const STEPS: u32 = 10_000;",
            to: "const STEPS: u32 = 10_500;",
        }],
        shows_in: &["execution/limits/tight/", "execution/limits/calls/", "execution/limits/scatter/"],
    },
    Plant {
        name: "one allocation more an instance",
        sort: Sort::Allocation,
        edits: &[Edit {
            file: "crates/isolation/src/sandbox.rs",
            from: "        let mut store = Store::new(template.loaded().wasmtime(), state);",
            to: "        drop(std::hint::black_box(Box::new(0_u64)));\n        \
                 let mut store = Store::new(template.loaded().wasmtime(), state);",
        }],
        shows_in: &["instantiation/prelinked/", "execute_function", "crash_handling/normal_execution/"],
    },
    Plant {
        name: "one look-up more a message",
        sort: Sort::LookUp,
        edits: &[Edit {
            file: "crates/registry/src/router.rs",
            from: "            return Err(SendError::Late { to: to.clone(), message });\n        }\n        \
                   let receivers = match self.registry.route(to) {",
            to: "            return Err(SendError::Late { to: to.clone(), message });\n        }\n        \
                 std::hint::black_box(self.registry.lookup(to));\n        \
                 let receivers = match self.registry.route(to) {",
        }],
        shows_in: &["routing/send_message"],
    },
]];

/// Code that never runs, in every layer: all that comes after it lies elsewhere.
pub(super) const NOTHING: &[Edit] = &[
    Edit {
        file: "benches/src/harness/run.rs",
        from: "    let mut suite = Suite::default();",
        to: "    if std::hint::black_box(false) {\n        \
             std::env::args().for_each(|argument| println!(\"{argument:?} {}\", argument.to_lowercase()));\n    }\n    \
             let mut suite = Suite::default();",
    },
    Edit {
        file: "crates/engine/src/engine/mod.rs",
        from: "        let (clock, _) = EpochClock::start(config.ticking)",
        to: "        if std::hint::black_box(false) {\n            \
             std::env::vars().for_each(|(name, value)| println!(\"{name:?} {}\", value.to_uppercase()));\n        }\n        \
             let (clock, _) = EpochClock::start(config.ticking)",
    },
    Edit {
        file: "crates/isolation/src/sandbox.rs",
        from: "        let meter = Meter::new(quota.clone(), budget.as_ref());",
        to: "        if std::hint::black_box(false) {\n            \
             std::env::args().for_each(|argument| println!(\"{}\", argument.to_lowercase()));\n        }\n        \
             let meter = Meter::new(quota.clone(), budget.as_ref());",
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_edit_finds_its_place_in_the_sources() {
        let planted = PLANTS.iter().copied().flatten().flat_map(|plant| plant.edits);
        for edit in planted.chain(NOTHING) {
            let text = std::fs::read_to_string(crate::workspace::root().join(edit.file)).unwrap();
            let edited = edit.apply(&text).unwrap_or_else(|error| panic!("{error}"));
            assert_ne!(edited, text, "{}", edit.file);
        }
        assert!(NOTHING[0].apply("nothing of the kind").is_err());
    }
}
