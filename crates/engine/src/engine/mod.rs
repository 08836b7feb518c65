//! The engine and its handle. `load` turns bytes into components; `component` has their imports and exports.

pub(crate) mod component;
mod link;
pub(crate) mod load;

use std::{
    fmt,
    sync::{Arc, OnceLock},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use wasmtime::{Engine, component::Component};

#[cfg(target_os = "linux")]
use crate::compiler::Compilers;
use crate::{
    Allocation, CodeCache, Compiler, EngineConfig, EngineError, EpochClock, Profile, Reclaimer, Ticking,
    config::{Kind, SHORTEST_TICK},
    engine::load::Loads,
    error::Escaped,
};

/// The engine: compiles, caches and links components. Cheap to clone and safe to share; one is enough for a process.
///
/// It owns wasmtime engines, each made when first needed but for the plain pooled one: for [plain and metered](Profile) code,
/// [pooled and on demand](Allocation), and, on demand only, for each combination of [features](crate::Features) that
/// components need. One thread advances the epoch of them all.
#[derive(Clone)]
pub struct WasmEngine {
    pub(crate) inner: Arc<Inner>,
    /// A tenant's permit, needed for each compilation beside one of all `compile_jobs`.
    pub(crate) lane: Option<Arc<Semaphore>>,
}

pub(crate) struct Inner {
    config: EngineConfig,
    clock: EpochClock,
    reclaimer: Reclaimer,
    /// By [`Kind::index`].
    backends: [Backend; Kind::COUNT],
    pub(crate) code_cache: Option<CodeCache>,
    pub(crate) loads: Loads,
    pub(crate) compile_jobs: Arc<Semaphore>,
    #[cfg(target_os = "linux")]
    pub(crate) compilers: Option<Compilers>,
}

/// The wasmtime engines for one kind of code.
#[derive(Default)]
struct Backend {
    pooled: OnceLock<Engine>,
    on_demand: OnceLock<Engine>,
    /// Held while one is made: a second would reserve a pool's address space for nothing.
    making: Mutex<()>,
    /// One for each component that the pool has room for.
    places: OnceLock<Arc<Semaphore>>,
}

impl fmt::Debug for WasmEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WasmEngine").field("config", &self.inner.config).finish_non_exhaustive()
    }
}

impl WasmEngine {
    /// Makes an engine, its pool and its epoch thread.
    ///
    /// The time goes into the pool's stacks: some 3 ms for the default of 1,000 components, 30 ms for 10,000.
    ///
    /// # Errors
    ///
    /// When wasmtime refuses the configuration or the system the address space, when the code cache's folder is not
    /// private, or when it is to compile in processes and this program cannot be started as one.
    pub fn new(config: EngineConfig) -> Result<Self, EngineError> {
        #[cfg(not(target_os = "linux"))]
        if config.compiler != Compiler::InProcess {
            return Err(EngineError::NoCompilerProcess);
        }
        if let Ticking::Every(period) = config.ticking
            && period < SHORTEST_TICK
        {
            return Err(EngineError::Ticking { period });
        }
        let (clock, _) = EpochClock::start(config.ticking).map_err(EngineError::Ticker)?;
        let engine = Self {
            inner: Arc::new(Inner {
                clock,
                reclaimer: Reclaimer::default(),
                backends: Default::default(),
                code_cache: config.code_cache.as_ref().map(CodeCache::open).transpose()?,
                loads: Loads::default(),
                compile_jobs: Arc::new(Semaphore::new(config.compile_jobs.get())),
                #[cfg(target_os = "linux")]
                compilers: match &config.compiler {
                    Compiler::Process(process) => Some(Compilers::start(&config, process)?),
                    Compiler::InProcess => None,
                },
                config,
            }),
            lane: None,
        };
        engine.main(Profile::Plain.into())?;
        Ok(engine)
    }

    /// A handle on the same engine for one tenant. Loads through it and its clones compile one at a time, so that they
    /// do not take all permits of [`EngineConfig::compile_jobs`].
    #[must_use]
    pub fn for_tenant(&self) -> Self {
        Self { inner: Arc::clone(&self.inner), lane: Some(Arc::new(Semaphore::new(1))) }
    }

    /// The settings it was made with.
    pub fn config(&self) -> &EngineConfig {
        &self.inner.config
    }

    /// What keeps the epoch advancing.
    pub fn clock(&self) -> &EpochClock {
        &self.inner.clock
    }

    /// Where what takes long to free is freed.
    pub fn reclaimer(&self) -> &Reclaimer {
        &self.inner.reclaimer
    }

    /// Advances the epoch by one, as the thread does. For tests with [`Ticking::Manual`](crate::Ticking::Manual).
    pub fn tick(&self) {
        self.inner.clock.tick();
    }

    /// Advances the clock of CPU time by this much, with the epochs in it. For tests with
    /// [`Ticking::Manual`](crate::Ticking::Manual); otherwise it does nothing.
    pub fn pass_time(&self, time: Duration) {
        self.inner.clock.pass_time(time);
    }

    /// The bare wasmtime engine for a profile without features: the pooled one, or the on-demand one where there is no pool.
    ///
    /// # Errors
    ///
    /// When it had to be made and could not.
    pub fn wasmtime(&self, profile: Profile) -> Result<&Engine, EngineError> {
        self.main(profile.into())
    }

    fn backend(&self, kind: Kind) -> &Backend {
        &self.inner.backends[kind.index()]
    }

    pub(crate) fn places(&self, kind: Kind) -> &Arc<Semaphore> {
        let components = self.inner.config.pool.as_ref().map_or(0, |pool| pool.components as usize);
        self.backend(kind).places.get_or_init(|| Arc::new(Semaphore::new(components.min(Semaphore::MAX_PERMITS))))
    }

    pub(crate) fn main(&self, kind: Kind) -> Result<&Engine, EngineError> {
        match self.inner.config.pool {
            Some(_) if kind.is_pooled() => self.engine(kind, Allocation::Pooled),
            _ => self.engine(kind, Allocation::OnDemand),
        }
    }

    fn engine(&self, kind: Kind, allocation: Allocation) -> Result<&Engine, EngineError> {
        let backend = self.backend(kind);
        let (slot, pool) = match allocation {
            Allocation::Pooled => (&backend.pooled, self.inner.config.pool.as_ref()),
            Allocation::OnDemand => (&backend.on_demand, None),
        };
        if let Some(engine) = slot.get() {
            return Ok(engine);
        }
        let _making = backend.making.lock();
        if let Some(engine) = slot.get() {
            return Ok(engine);
        }
        let engine =
            Engine::new(&self.inner.config.wasmtime(kind, pool)).map_err(|source| EngineError::Wasmtime { source })?;
        self.inner.clock.add(&engine);
        Ok(slot.get_or_init(|| engine))
    }

    /// Gives code to the pool, or to the on-demand engine if it does not fit there.
    pub(crate) fn adopt(
        &self,
        kind: Kind,
        make: impl Fn(&Engine) -> wasmtime::Result<Component>,
    ) -> wasmtime::Result<(Component, Allocation)> {
        if self.inner.config.pool.is_some() && kind.is_pooled() {
            match make(self.engine(kind, Allocation::Pooled)?) {
                Ok(component) => return Ok((component, Allocation::Pooled)),
                // wasmtime has no type for "does not fit"; what fails for another reason fails again below.
                Err(error) => tracing::debug!(error = %Escaped(&error), "not for the pool"),
            }
        }
        Ok((make(self.engine(kind, Allocation::OnDemand)?)?, Allocation::OnDemand))
    }
}
