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

/// By build: in each of them, a benchmark shows one plant at the most of those that name it.
pub(super) const PLANTS: &[&[Plant]] = &[FIFTHS, FIVES, THREES];

const FIFTHS: &[Plant] = &[
    Plant {
        name: "a digest taken twice",
        sort: Sort::Fifth,
        edits: &[Edit {
            file: "crates/engine/src/engine/load.rs",
            from: "        let key = CacheKey { digest: digest(form, bytes), profile };\n        match self.load_cached(key) {\n            Some(known) => Ok(known),\n            None => self.compile(bytes, form, key, None),",
            to: "        std::hint::black_box(digest(form, bytes));\n        let key = CacheKey { digest: digest(form, bytes), profile };\n        match self.load_cached(key) {\n            Some(known) => Ok(known),\n            None => self.compile(bytes, form, key, None),",
        }],
        shows_in: &["load_component/same_bytes"],
    },
    Plant {
        name: "one await more where a guest gives way",
        sort: Sort::Fifth,
        edits: &[Edit {
            file: "crates/limits/src/meter.rs",
            from: "    store.data_mut().meter().charge_cpu_time()?;\n    tokio::task::yield_now().await;",
            to: "    store.data_mut().meter().charge_cpu_time()?;\n    tokio::task::yield_now().await;\n    tokio::task::yield_now().await;",
        }],
        shows_in: &["limits/gives_way/100_times"],
    },
    Plant {
        name: "a text formatted for each call",
        sort: Sort::Fifth,
        edits: &[Edit {
            file: "crates/isolation/src/sandbox.rs",
            from: "        let started = self.begin(phase);\n        let outcome = guard(export.func.call_async",
            to: "        std::hint::black_box(format!(\"{phase:?} of {:?}\", export.name));\n        let started = self.begin(phase);\n        let outcome = guard(export.func.call_async",
        }],
        shows_in: &["execution/minimal_overhead/wasm_add", "execution/compute_heavy/fib_10"],
    },
    Plant {
        name: "a spin for each instance",
        sort: Sort::Fifth,
        edits: &[Edit {
            file: "crates/isolation/src/sandbox.rs",
            from: "        let mut store = Store::new(template.loaded().wasmtime(), state);",
            to: "        for n in 0..2000_u32 { std::hint::black_box(n); }\n        let mut store = Store::new(template.loaded().wasmtime(), state);",
        }],
        shows_in: &["instantiation/prelinked/"],
    },
    Plant {
        name: "an error's text made for each crash",
        sort: Sort::Fifth,
        edits: &[Edit {
            file: "crates/isolation/src/crash.rs",
            from: "        if let Some(kind) = Self::of_type(error, quota) {\n            return (kind, 0);",
            to: "        std::hint::black_box(error.to_string());\n        if let Some(kind) = Self::of_type(error, quota) {\n            return (kind, 0);",
        }],
        shows_in: &["crash_handling/trap_detection/classify"],
    },
    Plant {
        name: "a name cloned into a text for each registration",
        sort: Sort::Fifth,
        edits: &[Edit {
            file: "crates/registry/src/registry.rs",
            from: "        match self.0.entries.entry(id.clone()) {\n            Entry::Occupied(taken) => {\n                let holder",
            to: "        std::hint::black_box(format!(\"{id} and {id}\"));\n        match self.0.entries.entry(id.clone()) {\n            Entry::Occupied(taken) => {\n                let holder",
        }],
        shows_in: &["registry_registration"],
    },
    Plant {
        name: "subscribers matched twice",
        sort: Sort::Fifth,
        edits: &[Edit {
            file: "crates/registry/src/broker.rs",
            from: "        for (at, subscriber) in self.matching(topic).into_iter().enumerate() {",
            to: "        std::hint::black_box(self.matching(topic));\n        for (at, subscriber) in self.matching(topic).into_iter().enumerate() {",
        }],
        shows_in: &["routing/publish/1_subscribers", "routing/publish/10_subscribers"],
    },
    Plant {
        name: "one await more for each message",
        sort: Sort::Fifth,
        edits: &[Edit {
            file: "crates/actor/src/runtime/task.rs",
            from: "                Received::Message => {}",
            to: "                Received::Message => tokio::task::yield_now().await,",
        }],
        shows_in: &["actor/ask/native/one_worker", "actor/tell/native/one_worker"],
    },
    Plant {
        name: "a permission looked at twice",
        sort: Sort::Fifth,
        edits: &[Edit {
            file: "crates/actor/src/guest/capabilities.rs",
            from: "        self.send.iter().any(|pattern| pattern.matches(to))",
            to: "        std::hint::black_box(self.send.iter().any(|pattern| pattern.matches(std::hint::black_box(to))));\n        self.send.iter().any(|pattern| pattern.matches(to))",
        }],
        shows_in: &["actor/capabilities/send/"],
    },
    Plant {
        name: "a lock and a buffer for each actor",
        sort: Sort::Fifth,
        edits: &[Edit {
            file: "crates/actor/src/system/spawn.rs",
            from: "        let RestartPolicy { intensity, backoff, .. } = self.options.restart;\n        let history = History::new(intensity, backoff, core.services.random());\n        let mut actor",
            to: "        static LAST: std::sync::Mutex<Vec<u8>> = std::sync::Mutex::new(Vec::new());\n        if let Ok(mut last) = LAST.lock() {\n            *last = std::hint::black_box(vec![1; 32 << 10]);\n        }\n        let RestartPolicy { intensity, backoff, .. } = self.options.restart;\n        let history = History::new(intensity, backoff, core.services.random());\n        let mut actor",
        }],
        shows_in: &["actor/spawn/native/one_worker"],
    },
];

const FIVES: &[Plant] = &[
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
        name: "a spin of 14 ns for each load of what is loaded",
        sort: Sort::Five,
        edits: &[Edit {
            file: "crates/engine/src/engine/load.rs",
            from: "        let key = CacheKey { digest: digest(form, bytes), profile };\n        match self.load_cached(key) {\n            Some(known) => Ok(known),\n            None => self.compile(bytes, form, key, None),",
            to: "        for n in 0..38_u32 { std::hint::black_box(n); }\n        let key = CacheKey { digest: digest(form, bytes), profile };\n        match self.load_cached(key) {\n            Some(known) => Ok(known),\n            None => self.compile(bytes, form, key, None),",
        }],
        shows_in: &["load_component/same_bytes"],
    },
    Plant {
        name: "a spin of 125 ns for each instance",
        sort: Sort::Five,
        edits: &[Edit {
            file: "crates/isolation/src/sandbox.rs",
            from: "        let mut store = Store::new(template.loaded().wasmtime(), state);",
            to: "        for n in 0..220_u32 { std::hint::black_box(n); }\n        let mut store = Store::new(template.loaded().wasmtime(), state);",
        }],
        shows_in: &["instantiation/prelinked/", "memory/footprint/64kb"],
    },
    Plant {
        name: "a spin of 12 ns for each message that is published",
        sort: Sort::Five,
        edits: &[Edit {
            file: "crates/registry/src/broker.rs",
            from: "        for (at, subscriber) in self.matching(topic).into_iter().enumerate() {",
            to: "        for n in 0..36_u32 { std::hint::black_box(n); }\n        for (at, subscriber) in self.matching(topic).into_iter().enumerate() {",
        }],
        shows_in: &["routing/publish/1_subscribers"],
    },
    Plant {
        name: "a spin of 55 ns for each ask",
        sort: Sort::Five,
        edits: &[Edit {
            file: "crates/actor/src/runtime/actor_ref.rs",
            from: "    pub async fn ask(&self, message: impl Into<MessageEnvelope>) -> Result<Bytes, AskError> {",
            to: "    pub async fn ask(&self, message: impl Into<MessageEnvelope>) -> Result<Bytes, AskError> {\n        for n in 0..95_u32 { std::hint::black_box(n); }",
        }],
        shows_in: &["actor/ask/guest/64b/one_worker", "actor/observability/silent"],
    },
    Plant {
        name: "one allocation more an answer of the registry",
        sort: Sort::Allocation,
        edits: &[Edit {
            file: "crates/registry/src/registry.rs",
            from: "        match self.0.entries.entry(id.clone()) {\n            Entry::Occupied(taken) => {\n                let holder",
            to: "        drop(std::hint::black_box(Box::new(0_u64)));\n        match self.0.entries.entry(id.clone()) {\n            Entry::Occupied(taken) => {\n                let holder",
        }],
        shows_in: &["registry_registration"],
    },
];

const THREES: &[Plant] = &[
    Plant {
        name: "3 % more steps of guests that compute",
        sort: Sort::Three,
        edits: &[Edit {
            file: "benches/suite/execution.rs",
            from: "const STEPS: u32 = 10_000;",
            to: "const STEPS: u32 = 10_300;",
        }],
        shows_in: &["execution/limits/tight/", "execution/limits/calls/", "execution/limits/scatter/"],
    },
    Plant {
        name: "one allocation more an instance",
        sort: Sort::Allocation,
        edits: &[Edit {
            file: "crates/isolation/src/sandbox.rs",
            from: "        let mut store = Store::new(template.loaded().wasmtime(), state);",
            to: "        drop(std::hint::black_box(Box::new(0_u64)));\n        let mut store = Store::new(template.loaded().wasmtime(), state);",
        }],
        shows_in: &["instantiation/prelinked/", "execute_function", "crash_handling/normal_execution/"],
    },
    Plant {
        name: "a spin of 32 ns for each ask",
        sort: Sort::Three,
        edits: &[Edit {
            file: "crates/actor/src/runtime/actor_ref.rs",
            from: "    pub async fn ask(&self, message: impl Into<MessageEnvelope>) -> Result<Bytes, AskError> {",
            to: "    pub async fn ask(&self, message: impl Into<MessageEnvelope>) -> Result<Bytes, AskError> {\n        for n in 0..57_u32 { std::hint::black_box(n); }",
        }],
        shows_in: &["actor/ask/guest/64b/one_worker", "actor/observability/silent"],
    },
    Plant {
        name: "one look-up more a message",
        sort: Sort::LookUp,
        edits: &[Edit {
            file: "crates/registry/src/router.rs",
            from: "            return Err(SendError::Late { to: to.clone(), message });\n        }\n        let receivers = match self.registry.route(to) {",
            to: "            return Err(SendError::Late { to: to.clone(), message });\n        }\n        std::hint::black_box(self.registry.lookup(to));\n        let receivers = match self.registry.route(to) {",
        }],
        shows_in: &["routing/send_message"],
    },
];

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
