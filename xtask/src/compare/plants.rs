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
pub(super) const PLANTS: &[&[Plant]] = &[SET_1, SET_2, SET_3];

const SET_1: &[Plant] = &[
    Plant {
        name: "a digest taken twice",
        sort: Sort::Fifth,
        edits: &[Edit {
            file: "crates/engine/src/engine/load.rs",
            from: "        let key = CacheKey { digest: digest(form, bytes), profile };\n        match self.load_cached(key) {\n",
            to: "        std::hint::black_box(digest(form, bytes));\n        let key = CacheKey { digest: digest(form, bytes), profile };\n        match self.load_cached(key) {\n",
        }],
        shows_in: &["load_component/same_bytes"],
    },
    Plant {
        name: "a text about its limits formatted for each call",
        sort: Sort::Fifth,
        edits: &[Edit {
            file: "crates/limits/src/meter.rs",
            from: "    meter.start_call(phase);\n",
            to: "    meter.start_call(phase);\n    std::hint::black_box(format!(\"{phase:?} of {} ticks within {:?}\", meter.quota.cpu_ticks(), meter.quota.limits().deadline));\n",
        }],
        shows_in: &["execution/minimal_overhead/wasm_add", "execution/compute_heavy/"],
    },
    Plant {
        name: "two timers more each time a call waits",
        sort: Sort::Fifth,
        edits: &[Edit {
            file: "crates/limits/src/guard.rs",
            from: "        let interrupted = if let Some(cancelled) = &mut waiting.cancelled\n",
            to: "        for share in [1, 2] {\n            let early = tokio::time::sleep(this.slice.deadline() / share);\n            std::hint::black_box(Box::pin(unconstrained(early)).as_mut().poll(cx).is_ready());\n        }\n        let interrupted = if let Some(cancelled) = &mut waiting.cancelled\n",
        }],
        shows_in: &["limits/gives_way/100_times"],
    },
    Plant {
        name: "one downcast more of each error",
        sort: Sort::Fifth,
        edits: &[Edit {
            file: "crates/isolation/src/crash.rs",
            from: "        if let Some(trap) = error.downcast_ref::<Trap>() {\n",
            to: "        std::hint::black_box(error.is::<LimitExceeded>());\n        if let Some(trap) = error.downcast_ref::<Trap>() {\n",
        }],
        shows_in: &["crash_handling/trap_detection/classify"],
    },
    Plant {
        name: "a buffer zeroed for each sandbox that is dropped",
        sort: Sort::Fifth,
        edits: &[Edit {
            file: "crates/isolation/src/sandbox.rs",
            from: "/// An exported function of one sandbox whose type was checked.\n",
            to: "impl<U: 'static> Drop for Live<U> {\n    fn drop(&mut self) {\n        drop(std::hint::black_box(vec![0_u8; 12 << 10]));\n    }\n}\n\n/// An exported function of one sandbox whose type was checked.\n",
        }],
        shows_in: &["crash_handling/resource_cleanup/cleanup_without_memory"],
    },
    Plant {
        name: "a lock taken to count who asks",
        sort: Sort::Fifth,
        edits: &[Edit {
            file: "crates/registry/src/registry.rs",
            from: "        name.entry(&self.0.entries).is_some()\n",
            to: "        static ASKED: parking_lot::Mutex<u64> = parking_lot::Mutex::new(0);\n        *ASKED.lock() += 1;\n        name.entry(&self.0.entries).is_some()\n",
        }],
        shows_in: &["component_exists/"],
    },
    Plant {
        name: "a name checked anew for each message",
        sort: Sort::Fifth,
        edits: &[Edit {
            file: "crates/registry/src/router.rs",
            from: "        let receivers = match self.registry.route(to) {\n",
            to: "        drop(std::hint::black_box(ComponentId::new(to.as_str())));\n        let receivers = match self.registry.route(to) {\n",
        }],
        shows_in: &["routing/send_message", "routing/broadcast/"],
    },
    Plant {
        name: "a topic checked anew for each publication",
        sort: Sort::Fifth,
        edits: &[Edit {
            file: "crates/registry/src/broker.rs",
            from: "        let message = message.with_topic(topic.clone());\n",
            to: "        drop(std::hint::black_box(Topic::new(topic.as_str())));\n        let message = message.with_topic(topic.clone());\n",
        }],
        shows_in: &["routing/publish/1_"],
    },
    Plant {
        name: "one await more for each ask",
        sort: Sort::Fifth,
        edits: &[Edit {
            file: "crates/actor/src/runtime/actor_ref.rs",
            from: "    pub async fn ask(&self, message: impl Into<MessageEnvelope>) -> Result<Bytes, AskError> {\n        let message = message.into();\n",
            to: "    pub async fn ask(&self, message: impl Into<MessageEnvelope>) -> Result<Bytes, AskError> {\n        let message = message.into();\n        tokio::task::yield_now().await;\n",
        }],
        shows_in: &["actor/ask/native/one_worker"],
    },
    Plant {
        name: "two awaits more for each actor that is spawned",
        sort: Sort::Fifth,
        edits: &[Edit {
            file: "crates/actor/src/system/spawn.rs",
            from: "        let history = History::new(intensity, backoff, core.services.random());\n        let mut actor = self.prepare(core, Owner::Itself(history), None)?;\n",
            to: "        let history = History::new(intensity, backoff, core.services.random());\n        tokio::task::yield_now().await;\n        let mut actor = self.prepare(core, Owner::Itself(history), None)?;\n        tokio::task::yield_now().await;\n",
        }],
        shows_in: &["actor/spawn/native/one_worker"],
    },
    Plant {
        name: "a name copied for each permission",
        sort: Sort::Fifth,
        edits: &[Edit {
            file: "crates/actor/src/guest/capabilities.rs",
            from: "        self.send.has(to, NamePattern::matches)\n",
            to: "        std::hint::black_box(to.as_str().to_owned());\n        self.send.has(to, NamePattern::matches)\n",
        }],
        shows_in: &["actor/capabilities/send/"],
    },
    Plant {
        name: "a spin of 82 ns for each message that is told",
        sort: Sort::Fifth,
        edits: &[Edit {
            file: "crates/actor/src/runtime/actor_ref.rs",
            from: "    pub async fn tell(&self, message: impl Into<MessageEnvelope>) -> Result<(), Undelivered> {\n",
            to: "    pub async fn tell(&self, message: impl Into<MessageEnvelope>) -> Result<(), Undelivered> {\n        for n in 0..std::hint::black_box(145_u32) {\n            std::hint::black_box(n);\n        }\n",
        }],
        shows_in: &["actor/tell/native/one_worker"],
    },
];

const SET_2: &[Plant] = &[
    Plant {
        name: "an entry of the code cache read as a whole",
        sort: Sort::Fifth,
        edits: &[Edit {
            file: "crates/engine/src/cache.rs",
            from: "        let meta = file.metadata().ok()?;\n        check_private(&path, &meta).ok()?;\n",
            to: "        std::hint::black_box(fs::read(&path).ok()?);\n        let meta = file.metadata().ok()?;\n        check_private(&path, &meta).ok()?;\n",
        }],
        shows_in: &["code_cache/c_68kb", "code_cache/generated_1mb"],
    },
    Plant {
        name: "a component's contract looked for anew for each actor",
        sort: Sort::Fifth,
        edits: &[Edit {
            file: "crates/actor/src/guest/incarnation.rs",
            from: "        let contract = contract_of(&spec.sandbox, spec.contract)?;\n",
            to: "        let contract = {\n            let loaded = spec.sandbox.template().loaded();\n            std::hint::black_box((Contract::of(loaded).is_ok(), loaded.exports()));\n            contract_of(&spec.sandbox, spec.contract)?\n        };\n",
        }],
        shows_in: &["actor/spawn/guest/one_worker", "actor/restart/spawn/one_worker"],
    },
    Plant {
        name: "a payload formatted for the log of debug",
        sort: Sort::Fifth,
        edits: &[Edit {
            file: "crates/actor/src/runtime/task.rs",
            from: "            Box::pin(live.handle(message, trace, &mut turn, &self.interrupt).instrument(span)).await\n",
            to: "            std::hint::black_box(format!(\"{:?}\", message.payload()));\n            Box::pin(live.handle(message, trace, &mut turn, &self.interrupt).instrument(span)).await\n",
        }],
        shows_in: &["actor/observability/tracing_debug"],
    },
    Plant {
        name: "a spin of 18 us for each precompiled file",
        sort: Sort::Five,
        edits: &[Edit {
            file: "crates/engine/src/engine/load.rs",
            from: "        if let Err(source) = fs::metadata(path) {\n",
            to: "        for n in 0..std::hint::black_box(59_850_u32) {\n            std::hint::black_box(n);\n        }\n        if let Err(source) = fs::metadata(path) {\n",
        }],
        shows_in: &["precompiled_by_path/c_68kb"],
    },
    Plant {
        name: "a spin of 0.7 us for each trap",
        sort: Sort::Five,
        edits: &[Edit {
            file: "crates/isolation/src/crash.rs",
            from: "        let mut crash = Self::new(kind, export, usage);\n",
            to: "        if let CrashKind::Trap { .. } = kind {\n            for n in 0..std::hint::black_box(2_390_u32) {\n                std::hint::black_box(n);\n            }\n        }\n        let mut crash = Self::new(kind, export, usage);\n",
        }],
        shows_in: &[
            "crash_handling/trap_detection/trap_categorization",
            "crash_handling/resource_cleanup/trap_and_cleanup",
        ],
    },
    Plant {
        name: "a spin of 340 ns for each stretch of subscribers",
        sort: Sort::Five,
        edits: &[Edit {
            file: "crates/registry/src/broker.rs",
            from: "            if at > 0 && at % STRETCH == 0 {\n",
            to: "            if at > 0 && at % STRETCH == 0 {\n                for n in 0..std::hint::black_box(1_140_u32) {\n                    std::hint::black_box(n);\n                }\n",
        }],
        shows_in: &["routing/publish/1000_subscribers"],
    },
    Plant {
        name: "a spin of 16 us for each precompiled code",
        sort: Sort::Three,
        edits: &[Edit {
            file: "crates/engine/src/engine/load.rs",
            from: "        let key = CacheKey { digest: digest(Form::Binary, code), profile };\n",
            to: "        for n in 0..std::hint::black_box(53_010_u32) {\n            std::hint::black_box(n);\n        }\n        let key = CacheKey { digest: digest(Form::Binary, code), profile };\n",
        }],
        shows_in: &["precompiled_by_bytes/c_68kb"],
    },
    Plant {
        name: "a spin of 10 ns after each call",
        sort: Sort::Three,
        edits: &[Edit {
            file: "crates/isolation/src/sandbox.rs",
            from: "        self.0.elapsed_ns = started.map(|started| started.elapsed().as_nanos() as u64);\n",
            to: "        for n in 0..std::hint::black_box(30_u32) {\n            std::hint::black_box(n);\n        }\n        self.0.elapsed_ns = started.map(|started| started.elapsed().as_nanos() as u64);\n",
        }],
        shows_in: &["execution/minimal_overhead/wasm_add", "execution/compute_heavy/"],
    },
    Plant {
        name: "a spin of 53 ns for each sandbox that is dropped",
        sort: Sort::Three,
        edits: &[Edit {
            file: "crates/isolation/src/sandbox.rs",
            from: "/// An exported function of one sandbox whose type was checked.\n",
            to: "impl<U: 'static> Drop for Live<U> {\n    fn drop(&mut self) {\n        for n in 0..std::hint::black_box(170_u32) {\n            std::hint::black_box(n);\n        }\n    }\n}\n\n/// An exported function of one sandbox whose type was checked.\n",
        }],
        shows_in: &["crash_handling/resource_cleanup/cleanup_after_success"],
    },
    Plant {
        name: "a spin of 11 ns for each publication",
        sort: Sort::Three,
        edits: &[Edit {
            file: "crates/registry/src/broker.rs",
            from: "        let message = message.with_topic(topic.clone());\n",
            to: "        for n in 0..std::hint::black_box(33_u32) {\n            std::hint::black_box(n);\n        }\n        let message = message.with_topic(topic.clone());\n",
        }],
        shows_in: &["routing/publish/10_subscribers"],
    },
    Plant {
        name: "a spin of 15 ns each time CPU time is charged",
        sort: Sort::Three,
        edits: &[Edit {
            file: "crates/limits/src/meter.rs",
            from: "        let (tick, now) = (self.clock.ticks(), self.clock.now_ns());\n",
            to: "        for n in 0..std::hint::black_box(41_u32) {\n            std::hint::black_box(n);\n        }\n        let (tick, now) = (self.clock.ticks(), self.clock.now_ns());\n",
        }],
        shows_in: &["limits/gives_way/100_times"],
    },
    Plant {
        name: "a spin of 0.9 us for each upgrade",
        sort: Sort::Three,
        edits: &[Edit {
            file: "crates/actor/src/runtime/upgrade.rs",
            from: "        let (gives, takes) = (self.blueprint.keeps_state().0, next.keeps_state().1);\n",
            to: "        for n in 0..std::hint::black_box(2_860_u32) {\n            std::hint::black_box(n);\n        }\n        let (gives, takes) = (self.blueprint.keeps_state().0, next.keeps_state().1);\n",
        }],
        shows_in: &["actor/upgrade/guest/one_worker"],
    },
    Plant {
        name: "one allocation more a load of what is loaded",
        sort: Sort::Allocation,
        edits: &[Edit {
            file: "crates/engine/src/engine/load.rs",
            from: "        let key = CacheKey { digest: digest(form, bytes), profile };\n        match self.load_cached(key) {\n",
            to: "        drop(std::hint::black_box(Box::new(0_u64)));\n        let key = CacheKey { digest: digest(form, bytes), profile };\n        match self.load_cached(key) {\n",
        }],
        shows_in: &["load_component/same_bytes"],
    },
    Plant {
        name: "one allocation more a message to an address",
        sort: Sort::Allocation,
        edits: &[Edit {
            file: "crates/registry/src/router.rs",
            from: "        match self.registry.resolve(to) {\n",
            to: "        drop(std::hint::black_box(Box::new(0_u64)));\n        match self.registry.resolve(to) {\n",
        }],
        shows_in: &["routing/send_resolved"],
    },
];

const SET_3: &[Plant] = &[
    Plant {
        name: "a spin of 87 ns for each growth of memory",
        sort: Sort::Five,
        edits: &[Edit {
            file: "crates/limits/src/meter.rs",
            from: "        let more = (desired - current) as u64;\n",
            to: "        let more = (desired - current) as u64;\n        if current > 0 {\n            for n in 0..std::hint::black_box(280_u32) {\n                std::hint::black_box(n);\n            }\n        }\n",
        }],
        shows_in: &["memory/limit_enforcement/memory_grow_within_limit"],
    },
    Plant {
        name: "a spin for each 16 bytes of a memory of several pages",
        sort: Sort::Five,
        edits: &[Edit {
            file: "crates/limits/src/meter.rs",
            from: "        self.memory = asked;\n",
            to: "        if more > 64 << 10 {\n            for n in 0..std::hint::black_box(more / 16) {\n                std::hint::black_box(n);\n            }\n        }\n        self.memory = asked;\n",
        }],
        shows_in: &["memory/footprint/512kb", "memory/footprint/1mb", "memory/footprint/2mb"],
    },
    Plant {
        name: "a spin of 53 ns for each message to a guest",
        sort: Sort::Five,
        edits: &[Edit {
            file: "crates/actor/src/guest/incarnation.rs",
            from: "        sandbox.ext_mut().turn = TurnState { trace, deadline: message.deadline() };\n",
            to: "        for n in 0..std::hint::black_box(170_u32) {\n            std::hint::black_box(n);\n        }\n        sandbox.ext_mut().turn = TurnState { trace, deadline: message.deadline() };\n",
        }],
        shows_in: &[
            "actor/ask/guest/64b/one_worker",
            "actor/ask/guest/1kb/one_worker",
            "actor/observability/silent",
            "actor/observability/metrics",
            "actor/observability/tracing_info",
        ],
    },
    Plant {
        name: "a spin of 75 ns for each instance",
        sort: Sort::Three,
        edits: &[Edit {
            file: "crates/isolation/src/spec.rs",
            from: "        install(&mut store);\n",
            to: "        for n in 0..std::hint::black_box(250_u32) {\n            std::hint::black_box(n);\n        }\n        install(&mut store);\n",
        }],
        shows_in: &["instantiation/prelinked/"],
    },
    Plant {
        name: "one allocation more a message that is told",
        sort: Sort::Allocation,
        edits: &[Edit {
            file: "crates/actor/src/runtime/actor_ref.rs",
            from: "    pub async fn tell(&self, message: impl Into<MessageEnvelope>) -> Result<(), Undelivered> {\n",
            to: "    pub async fn tell(&self, message: impl Into<MessageEnvelope>) -> Result<(), Undelivered> {\n        drop(std::hint::black_box(Box::new(0_u64)));\n",
        }],
        shows_in: &["actor/tell/native/one_worker"],
    },
    Plant {
        name: "one look-up more a registration",
        sort: Sort::LookUp,
        edits: &[Edit {
            file: "crates/registry/src/registry.rs",
            from: "        match self.0.entries.entry(id.clone()) {\n",
            to: "        std::hint::black_box(self.0.entries.contains_key(id));\n        match self.0.entries.entry(id.clone()) {\n",
        }],
        shows_in: &["registry_registration"],
    },
];

/// Code that never runs, in every layer: all that comes after it lies elsewhere.
pub(super) const NOTHING: &[Edit] = &[
    Edit {
        file: "benches/harness/src/run.rs",
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
        file: "crates/isolation/src/spec.rs",
        from: "        let meter = Meter::new(quota.clone(), budget.as_ref())",
        to: "        if std::hint::black_box(false) {\n            \
             std::env::args().for_each(|argument| println!(\"{}\", argument.to_lowercase()));\n        }\n        \
             let meter = Meter::new(quota.clone(), budget.as_ref())",
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
