//! Lets one guest loose in this process, beside a healthy neighbour on the same worker, and reports what happened.

use std::{
    fmt::{self, Write as _},
    fs,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use airssys_wasm_actor::{
    ActorRef, ActorSpec, ActorState, ActorSystem, AskError, Backoff, Capabilities, During, Intensity, NativeActor,
    NativeContext, NativeSpec, RestartPolicy, Stop, SystemConfig, SystemEvent,
};
use airssys_wasm_engine::{LoadedComponent, Profile, WasmEngine};
use airssys_wasm_fixtures::{ACTOR, ECHO_ACTOR};
use airssys_wasm_isolation::SandboxSpec;
use airssys_wasm_limits::{ByteSize, MemoryBudget, ResourceLimits};
use airssys_wasm_measurements::process;
use airssys_wasm_registry::{ComponentId, MessageEnvelope};
use anyhow::{Context, Result};
use bytes::Bytes;
use futures::future::{join, join_all};
use hdrhistogram::Histogram;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::task::yield_now;

use super::{
    corpus::{Does, Guest, Limits},
    outcome::Outcome,
};
use crate::threads;

/// What happened.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// What came of the guest each time, and what people are told.
    pub outcomes: Vec<(String, String)>,
    /// Milliseconds that the longest run took.
    pub took: f64,
    /// Bytes that the process had at the most, beyond what it had before.
    pub peak: u64,
    /// Bytes that this process and its compilers had before.
    pub all: u64,
    /// What the process had after the first run, and after the last one.
    pub settled: Held,
    #[expect(missing_docs, reason = "see above")]
    pub after: Held,
    /// The neighbour's answers while the guest was not there, and while it was.
    pub idle: Latency,
    #[expect(missing_docs, reason = "see above")]
    pub during: Latency,
    /// Panics, of which there must be none.
    pub panics: u64,
    /// Bytes that came into the log.
    pub logged: u64,
    /// Text for people in which there is what would steer a terminal or forge a line.
    pub unescaped: Vec<String>,
}

/// What a process holds.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[expect(missing_docs, reason = "bytes, and numbers of what they are called by")]
pub struct Held {
    pub resident: u64,
    pub mappings: u64,
    pub descriptors: u64,
    pub threads: u64,
    pub tasks: u64,
    pub budget: u64,
}

/// How long the neighbour took to answer, in microseconds.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the usual")]
pub struct Latency {
    pub answers: u64,
    pub p50: u64,
    pub p99: u64,
    pub longest: u64,
}

/// Runs of a guest: the first one is for what is made once.
const RUNS: usize = 3;

/// Lets a guest loose under these limits. Once only, if what comes of it is to be wrong.
///
/// # Errors
///
/// When it cannot be made, or the neighbour does not answer when the guest is gone.
pub fn run(guest: &Guest, limits: &Limits, once: bool) -> Result<Report> {
    static PANICS: AtomicU64 = AtomicU64::new(0);
    std::panic::set_hook(Box::new(|_| {
        PANICS.fetch_add(1, Relaxed);
    }));
    let log = Log::default();
    tracing::subscriber::set_global_default(log.clone())?;
    let binary = guest.binary()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        // So that threads that are not needed are gone when they are counted.
        .thread_keep_alive(Duration::from_millis(1))
        .build()?;
    let report = runtime.block_on(async {
        let arena = Arena::new(limits).await?;
        arena.watch(50).await?;
        let idle = arena.latencies.take();
        let all = process::held_by_all(std::process::id()).unwrap_or(0);
        let (mut outcomes, mut took, mut peak) = (Vec::new(), Duration::ZERO, 0);
        let mut settled = None;
        let mut during = arena.latencies.take();
        for run in 0..if once { 1 } else { RUNS } {
            arena.watch(5).await?;
            _ = arena.latencies.take();
            let before = forget_peak()?;
            let started = Instant::now();
            let outcome = arena.let_loose(guest, limits, &binary).await?;
            took = took.max(started.elapsed());
            peak = peak.max(reading()?.peak.saturating_sub(before));
            during.add(arena.latencies.take())?;
            log.look_at(&outcome.says);
            outcomes.push((outcome.what, outcome.says));
            arena.watch(20).await?;
            if run == 0 {
                // They are not what a guest leaves behind.
                threads::begin(arena.system.engine(), 0).await;
                settled = Some(arena.held()?);
            }
        }
        let settled = settled.context("nothing was run")?;
        let mut after = arena.held()?;
        // A thread that loaded something may be about to go.
        for _ in 0..100 {
            if after.threads <= settled.threads {
                break;
            }
            arena.watch(1).await?;
            after = arena.held()?;
        }
        anyhow::Ok(Report {
            outcomes,
            took: took.as_secs_f64() * 1e3,
            peak,
            all,
            settled,
            after,
            idle: (&idle).into(),
            during: (&during).into(),
            panics: 0,
            logged: 0,
            unescaped: Vec::new(),
        })
    })?;
    let mut written = log.0.lock();
    Ok(Report {
        panics: PANICS.load(Relaxed),
        logged: written.bytes,
        unescaped: std::mem::take(&mut written.unescaped),
        ..report
    })
}

pub(super) struct Arena {
    pub(super) system: ActorSystem,
    pub(super) budget: MemoryBudget,
    pub(super) good: LoadedComponent,
    neighbour: ActorRef,
    latencies: Latencies,
}

/// Holds the messages that it gets, and answers none.
struct Silent;

impl NativeActor for Silent {
    async fn handle(&mut self, _: &MessageEnvelope, _: &NativeContext) -> Result<Option<Bytes>, String> {
        std::future::pending().await
    }
}

impl Arena {
    async fn new(limits: &Limits) -> Result<Self> {
        let engine = WasmEngine::new(limits.engine.clone())?;
        let config = SystemConfig { dead_letters: limits.dead_letters, seed: Some(1), ..SystemConfig::default() };
        let system = ActorSystem::new(engine.clone(), config);
        let good = engine.load(ACTOR, Profile::Plain).await?;
        let echo = engine.load(ECHO_ACTOR, Profile::Plain).await?;
        let sandbox = SandboxSpec::new(system.link(&echo)?, ResourceLimits::with_memory(ByteSize::mib(8)))?;
        let neighbour = system.spawn(ActorSpec::new(id("neighbour"), sandbox)).await?;
        let latencies = Latencies::default();
        tokio::spawn(ask_without_end(neighbour.clone(), latencies.clone()));
        Ok(Self { system, budget: MemoryBudget::new(ByteSize(limits.budget)), good, neighbour, latencies })
    }

    /// Until the neighbour has answered so often.
    async fn watch(&self, answers: u64) -> Result<()> {
        let until = self.latencies.0.lock().len() + answers;
        while self.latencies.0.lock().len() < until {
            let answer = self.neighbour.ask_within(Duration::from_secs(5), "still there?").await;
            answer.context("the neighbour does not answer")?;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }

    fn held(&self) -> Result<Held> {
        let held = reading()?;
        Ok(Held {
            resident: held.resident,
            mappings: held.mappings,
            descriptors: held.descriptors,
            threads: held.threads,
            tasks: tokio::runtime::Handle::current().metrics().num_alive_tasks() as u64,
            budget: self.budget.used(),
        })
    }

    /// From the bytes to the end.
    async fn let_loose(&self, guest: &Guest, limits: &Limits, binary: &[u8]) -> Result<Outcome> {
        let profile = if limits.resources.fuel.is_some() { Profile::Metered } else { Profile::Plain };
        let component = match self.system.engine().load(binary.to_vec(), profile).await {
            Ok(_) if guest.does == Does::Load => return Ok(Outcome::new("loaded")),
            Ok(component) => component,
            Err(error) => return Ok((&error).into()),
        };
        let template = match self.system.link(&component) {
            Ok(template) => template,
            Err(error) => return Ok((&error).into()),
        };
        let sandbox = match SandboxSpec::new(template, limits.resources.clone()) {
            Ok(sandbox) => sandbox.with_budget(self.budget.clone()),
            Err(error) => return Ok((&error).into()),
        };
        let others = self.others(limits).await?;
        let outcome = match guest.does {
            Does::Sleeps | Does::ForeignRow | Does::Circle => self.keyed(guest, limits, &component).await?,
            _ => self.act(guest, limits, sandbox).await?,
        };
        for actor in others.iter().chain(&self.system.find(&id("hostile"))) {
            actor.kill();
            actor.ended().await;
        }
        _ = self.system.dead_letters().drain();
        Ok(outcome)
    }

    /// Those that a guest may send to. Each has a message in its hand, and what comes waits in its mailbox.
    async fn others(&self, limits: &Limits) -> Result<Vec<ActorRef>> {
        let mut others = Vec::new();
        for name in ["bystander", "silent"] {
            let spec = NativeSpec::new(id(name), || Silent)
                .with_mailbox(limits.mailbox)
                .with_mailbox_bytes(ByteSize(limits.mailbox_bytes))
                .with_mailbox_shares(limits.mailbox_shares);
            let actor = self.system.spawn_native(spec).await?;
            actor.tell("hold this").await?;
            while actor.info().mailbox.queued > 0 {
                yield_now().await;
            }
            others.push(actor);
        }
        Ok(others)
    }

    pub(super) fn spec(
        &self,
        name: &str,
        guest: &Guest,
        limits: &Limits,
        sandbox: SandboxSpec<ActorState<()>>,
    ) -> ActorSpec<()> {
        let named = |names: &[&str]| names.iter().filter_map(|name| name.parse().ok()).collect();
        let capabilities = Capabilities {
            send: named(&["hostile", "hostile/*", "bystander", "nobody"]),
            request: named(&["hostile", "other", "silent"]),
            subscriptions: limits.subscriptions,
            ..Capabilities::all()
        };
        let intensity = Intensity { restarts: limits.restarts, within: Duration::from_secs(60) };
        ActorSpec::new(id(name), sandbox)
            .with_capabilities(capabilities)
            .with_concurrency(guest.concurrency)
            .with_config(guest.config.clone())
            .with_mailbox(limits.mailbox)
            .with_mailbox_bytes(ByteSize(limits.mailbox_bytes))
            .with_mailbox_shares(limits.mailbox_shares)
            .with_restart(RestartPolicy { intensity, backoff: Backoff::NONE, ..RestartPolicy::default() })
    }

    async fn act(&self, guest: &Guest, limits: &Limits, sandbox: SandboxSpec<ActorState<()>>) -> Result<Outcome> {
        let spec = |name| self.spec(name, guest, limits, sandbox.clone());
        if guest.does == Does::Restore {
            let good = SandboxSpec::new(self.system.link(&self.good)?, ResourceLimits::with_memory(ByteSize::mib(8)))?;
            let actor = self.system.spawn(ActorSpec::new(id("hostile"), good)).await?;
            return Ok(self.system.upgrade(actor.address(), sandbox, Default::default()).await.into());
        }
        let mut events = self.system.events();
        let actor = match self.system.spawn(spec("hostile")).await {
            Ok(actor) => actor,
            Err(error) => return Ok((&error).into()),
        };
        let payload = guest.payload.clone();
        Ok(match guest.does {
            Does::Load | Does::Restore | Does::Sleeps | Does::ForeignRow | Does::Circle => {
                unreachable!("done above")
            }
            Does::Spawn => Outcome::new("spawned"),
            Does::Message => actor.ask(payload).await.into(),
            Does::Health => actor.health().await.into(),
            Does::Cycle => {
                let other = self.system.spawn(spec("other")).await?;
                let outcome = actor.ask(payload).await.into();
                other.kill();
                other.ended().await;
                outcome
            }
            Does::Several => {
                let others = (1..guest.concurrency.get()).map(|_| actor.ask(""));
                let (others, outcome) = join(join_all(others), actor.ask(payload)).await;
                let is_beside = |answer: &Result<_, AskError>| matches!(answer, Err(AskError::Crashed(report)) if report.during == During::OtherMessage);
                match others.iter().all(is_beside) {
                    true => outcome.into(),
                    false => Outcome::new("another was taken for the cause"),
                }
            }
            Does::Snapshot => {
                let limits = ResourceLimits::with_memory(ByteSize::mib(8));
                let good = SandboxSpec::new(self.system.link(&self.good)?, limits)?;
                self.system.upgrade(actor.address(), good, Default::default()).await.into()
            }
            Does::Shutdown => {
                actor.stop(Stop::Drain);
                actor.ended().await;
                loop {
                    match events.try_recv() {
                        Ok(SystemEvent::Crashed(report)) if report.actor == *actor.address() => {
                            break (&*report).into();
                        }
                        Ok(_) => {}
                        Err(_) => break Outcome::new("stopped"),
                    }
                }
            }
            Does::Restarts => {
                for _ in 0..20 {
                    if actor.ask(payload.clone()).await.is_err_and(|error| error.refusal().is_some()) {
                        break;
                    }
                }
                yield_now().await;
                let given_up = std::iter::from_fn(|| events.try_recv().ok())
                    .any(|event| matches!(event, SystemEvent::GivenUp { .. }));
                Outcome::new(if given_up { "given up" } else { "still running" })
            }
            Does::Poison => {
                let large = Bytes::from(vec![0; 1 << 16]);
                for _ in 0..10 {
                    let actor = match self.system.find(&id("hostile")) {
                        Some(actor) => actor,
                        None => self.system.spawn(spec("hostile")).await?,
                    };
                    while actor.try_tell(large.clone()).is_ok() {}
                    actor.kill();
                    actor.ended().await;
                }
                let letters = self.system.dead_letters();
                let bytes: usize = letters.list().iter().map(|letter| letter.message.payload().len()).sum();
                let within = letters.len() <= 16 && bytes <= 1 << 20;
                Outcome::new(if within { "dead letters within their limits" } else { "dead letters beyond them" })
            }
        })
    }
}

pub(super) fn id(name: &str) -> ComponentId {
    name.parse().expect("a name")
}

/// Microseconds of each answer.
#[derive(Clone)]
struct Latencies(Arc<Mutex<Histogram<u64>>>);

impl Default for Latencies {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(histogram())))
    }
}

fn histogram() -> Histogram<u64> {
    Histogram::new(3).expect("three digits")
}

impl Latencies {
    fn take(&self) -> Histogram<u64> {
        std::mem::replace(&mut self.0.lock(), histogram())
    }
}

impl From<&Histogram<u64>> for Latency {
    fn from(histogram: &Histogram<u64>) -> Self {
        let at = |quantile| histogram.value_at_quantile(quantile);
        Self { answers: histogram.len(), p50: at(0.5), p99: at(0.99), longest: histogram.max() }
    }
}

async fn ask_without_end(neighbour: ActorRef, latencies: Latencies) {
    loop {
        let asked = Instant::now();
        if neighbour.ask("well?").await.is_ok() {
            latencies.0.lock().saturating_record(asked.elapsed().as_micros() as u64);
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Bytes that are resident now; from now on the peak is looked for.
fn forget_peak() -> Result<u64> {
    fs::write("/proc/self/clear_refs", "5").context("cannot reset the peak of the memory")?;
    Ok(reading()?.resident)
}

fn reading() -> Result<process::Reading> {
    process::read().context("this system does not tell what a process holds")
}

/// All that the host says, as it says it: a subscriber that escapes would hide what the host does not.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Written>>);

#[derive(Default)]
struct Written {
    bytes: u64,
    unescaped: Vec<String>,
}

impl Log {
    fn look_at(&self, text: &str) {
        let steers = text.chars().any(|c| c.is_control() && c != '\n');
        let forges = text.lines().any(|line| line.starts_with("FORGED"));
        if steers || forges {
            self.0.lock().unescaped.push(text.escape_debug().to_string());
        }
    }
}

impl tracing::Subscriber for Log {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::INFO
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let mut text = String::new();
        event.record(&mut |field: &tracing::field::Field, value: &dyn fmt::Debug| {
            _ = write!(text, "{field}={value:?} ");
        });
        self.0.lock().bytes += text.len() as u64;
        self.look_at(&text);
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}
