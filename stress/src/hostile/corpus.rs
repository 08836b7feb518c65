//! The guests of `fixtures/hostile/corpus.toml`, and the limits that they are held to.

use std::{collections::BTreeMap, num::NonZeroU32, time::Duration};

use airssys_wasm_actor::{Capabilities, DeadLetterLimits};
use airssys_wasm_engine::{Compiler, EngineConfig, PoolConfig};
use airssys_wasm_fixtures::{HOSTILE, HOSTILE_ACTOR, HOSTILE_ASYNC_ACTOR, HOSTILE_COMPONENTS};
use airssys_wasm_limits::{ByteSize, ResourceLimits};
use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::generate;

/// The whole of it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Corpus {
    within: u64,
    peak: u64,
    limits: toml::Table,
    /// All of them, with the defaults filled in.
    #[serde(rename = "guest")]
    pub guests: Vec<Guest>,
}

/// One guest, what is done with it, and what must come of that.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the head of the corpus says what they are")]
pub struct Guest {
    pub name: String,
    #[serde(default)]
    memory: String,
    #[serde(default)]
    code: String,
    #[serde(default)]
    async_code: String,
    component: Option<String>,
    generated: Option<String>,
    #[serde(default)]
    n: usize,
    pub does: Does,
    #[serde(default)]
    pub payload: String,
    #[serde(default)]
    pub config: BTreeMap<String, String>,
    /// Limits that differ from those of all.
    #[serde(default)]
    limits: toml::Table,
    /// Messages that it may have in flight.
    #[serde(default = "one")]
    pub concurrency: NonZeroU32,
    /// MiB of memory that all components together may have.
    #[serde(default = "plenty")]
    pub budget: u64,
    pub outcome: String,
    #[serde(default)]
    pub says: String,
    /// Milliseconds.
    #[serde(default)]
    pub within: u64,
    /// MiB.
    #[serde(default)]
    pub peak: u64,
    #[serde(default)]
    pub aims_at: Vec<String>,
    /// Whether it takes so long that it is let loose only where that is asked for, and once.
    #[serde(default)]
    pub slow: bool,
}

fn plenty() -> u64 {
    1 << 10
}

fn one() -> NonZeroU32 {
    NonZeroU32::MIN
}

/// What is done with a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "the head of the corpus says what they are")]
pub enum Does {
    Load,
    Spawn,
    Message,
    Health,
    Shutdown,
    Snapshot,
    Restore,
    Restarts,
    Poison,
    Cycle,
    Several,
    Sleeps,
    ForeignRow,
    Circle,
}

impl Corpus {
    /// Reads it.
    ///
    /// # Errors
    ///
    /// When it is not as it should be.
    pub fn read() -> Result<Self> {
        let mut corpus: Self = toml::from_str(HOSTILE).context("fixtures/hostile/corpus.toml")?;
        for guest in &mut corpus.guests {
            guest.within = if guest.within == 0 { corpus.within } else { guest.within };
            guest.peak = if guest.peak == 0 { corpus.peak } else { guest.peak };
            let own = std::mem::replace(&mut guest.limits, corpus.limits.clone());
            guest.limits.extend(own);
        }
        Ok(corpus)
    }

    /// The guest of this name.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn guest(&self, name: &str) -> Result<&Guest> {
        self.guests.iter().find(|guest| guest.name == name).with_context(|| format!("there is no guest {name:?}"))
    }
}

impl Guest {
    /// The same of another size, for one that is generated.
    pub(super) fn sized(&self, size: impl FnOnce(usize) -> usize) -> Self {
        Self { n: size(self.n), ..self.clone() }
    }

    /// Its binary form.
    ///
    /// # Errors
    ///
    /// When it cannot be made.
    pub fn binary(&self) -> Result<Vec<u8>> {
        if let Some(generator) = &self.generated {
            return generate::binary(generator, self.n);
        }
        let text = match &self.component {
            Some(name) => {
                let known = HOSTILE_COMPONENTS.iter().find(|(known, _)| known == name);
                known.with_context(|| format!("there is no component {name}"))?.1.to_owned()
            }
            None if self.async_code.is_empty() => actor(HOSTILE_ACTOR, &self.memory, &self.code),
            None => actor(HOSTILE_ASYNC_ACTOR, &self.memory, &self.async_code),
        };
        Ok(wat::parse_str(text)?)
    }
}

/// What a template is with a guest's memory and code in it.
fn actor(template: &str, memory: &str, code: &str) -> String {
    let exported = |line: &str| {
        let name =
            line.trim().strip_prefix("(memory (export \"").or_else(|| line.trim().strip_prefix("(func (export \""));
        name.and_then(|rest| rest.split('"').next()).map(|name| format!("(export \"{name}\")"))
    };
    let mut text = String::new();
    for line in template.lines() {
        match (line.trim(), exported(line)) {
            (";; MEMORY", _) => text.push_str(memory),
            (";; CODE", _) => text.push_str(code),
            (_, Some(export)) if memory.contains(&export) || code.contains(&export) => {}
            _ => text.push_str(line),
        }
        text.push('\n');
    }
    text
}

/// All that a guest is held to, and by which each of the limits can be switched off.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "each is what it is called where it is set")]
pub struct Limits {
    pub resources: ResourceLimits,
    pub engine: EngineConfig,
    pub budget: u64,
    pub mailbox: usize,
    pub mailbox_bytes: u64,
    pub mailbox_shares: NonZeroU32,
    pub subscriptions: u32,
    pub dead_letters: DeadLetterLimits,
    pub restarts: u32,
    pub state: ByteSize,
}

impl Limits {
    /// What a guest is held to.
    ///
    /// # Errors
    ///
    /// When its table is not as it should be.
    pub fn of(guest: &Guest) -> Result<Self> {
        let mut manifest = toml::Table::new();
        manifest.insert("resources".to_owned(), guest.limits.clone().into());
        Ok(Self {
            resources: ResourceLimits::take_from(&mut manifest)?,
            engine: EngineConfig { pool: Some(PoolConfig::for_components(64)), ..EngineConfig::default() }
                .with_component_async()
                .with_garbage_collection(),
            budget: guest.budget << 20,
            mailbox: 64,
            mailbox_bytes: 1 << 20,
            mailbox_shares: NonZeroU32::MIN.saturating_add(1),
            subscriptions: Capabilities::default().subscriptions,
            dead_letters: DeadLetterLimits { letters_per_actor: 16, bytes: 1 << 20, ..DeadLetterLimits::default() },
            restarts: 3,
            state: ByteSize::kib(16),
        })
    }

    /// Switches one of them off. By these names a guest says what it aims at.
    ///
    /// # Errors
    ///
    /// When there is no such limit.
    pub fn without(&mut self, limit: &str) -> Result<()> {
        let forever = Duration::from_secs(1 << 20);
        let (resources, compile) = (&mut self.resources, &mut self.engine.compile_limits);
        match limit {
            "memory" => resources.memory = ByteSize::gib(4),
            "memories" => resources.memories = u32::MAX,
            "table_elements" => resources.table_elements = u64::MAX,
            "tables" => resources.tables = u32::MAX,
            "instances" => resources.instances = u32::MAX,
            "cpu_time" => resources.cpu_time = forever,
            "deadline" => resources.deadline = forever,
            "fuel" => resources.fuel = None,
            "host_calls" => resources.host_calls = u64::MAX,
            "host_call_bytes" => resources.host_call_bytes = ByteSize::gib(4),
            "handles" => resources.handles = u32::MAX,
            "message_size" => resources.message_size = ByteSize::gib(4),
            "log_bytes" => resources.log_bytes = ByteSize::gib(4),
            "budget" => self.budget = u64::MAX,
            "mailbox" => self.mailbox = 1 << 20,
            "mailbox_bytes" => self.mailbox_bytes = u64::MAX,
            "mailbox_shares" => self.mailbox_shares = NonZeroU32::MIN,
            "subscriptions" => self.subscriptions = u32::MAX,
            "dead_letters" => {
                let all = usize::MAX;
                self.dead_letters =
                    DeadLetterLimits { letters: all, letters_per_actor: all, bytes: all, bytes_per_actor: all };
            }
            "restarts" => self.restarts = u32::MAX,
            "state" => self.state = ByteSize::gib(4),
            // Not more, because the pool reserves a stack of that size for each component.
            "max_wasm_stack" => self.engine.max_wasm_stack = 64 << 20,
            "bytes" => compile.bytes = u64::MAX,
            "nesting" => compile.nesting = u32::MAX,
            "functions" => compile.functions = u64::MAX,
            "imports" => compile.imports = u64::MAX,
            "element_segments" => compile.element_segments = u64::MAX,
            "items" => compile.items = u64::MAX,
            "compile_instances" => compile.instances = u64::MAX,
            "function_work" => compile.function_work = u64::MAX,
            "handlers" => compile.handlers = u64::MAX,
            "work" => compile.work = u64::MAX,
            "modules" => compile.modules = u64::MAX,
            "image_bytes" => compile.image_bytes = u64::MAX,
            "code_bytes" => compile.code_bytes = u64::MAX,
            "compiler" => self.engine.compiler = Compiler::InProcess,
            _ => bail!("there is no limit {limit:?}"),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_has_a_guest_that_is_aimed_at_it() {
        let corpus = Corpus::read().unwrap();
        let aimed: Vec<_> = corpus.guests.iter().flat_map(|guest| &guest.aims_at).collect();
        for name in &aimed {
            Limits::of(&corpus.guests[0]).unwrap().without(name).unwrap();
        }
        let table = toml::Table::try_from(ResourceLimits::with_memory(ByteSize(0))).unwrap();
        let resources = table.keys().map(String::as_str).filter(|key| *key != "on_growth_refused");
        let others = [
            "fuel",
            "budget",
            "mailbox",
            "mailbox_bytes",
            "mailbox_shares",
            "subscriptions",
            "dead_letters",
            "restarts",
            "state",
            "max_wasm_stack",
            "bytes",
            "nesting",
            "functions",
            "imports",
            "element_segments",
            "items",
            "modules",
            "image_bytes",
            "compile_instances",
            "function_work",
            "work",
        ];
        for limit in resources.chain(others) {
            assert!(aimed.iter().any(|name| *name == limit), "no guest is aimed at {limit}");
        }
    }

    #[test]
    fn no_two_guests_have_one_name_and_all_can_be_made() {
        let corpus = Corpus::read().unwrap();
        let mut names: Vec<_> = corpus.guests.iter().map(|guest| &guest.name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), corpus.guests.len());
        for guest in corpus.guests.iter().filter(|guest| guest.generated.is_none()) {
            guest.binary().unwrap_or_else(|error| panic!("{}: {error:#}", guest.name));
        }
    }
}
