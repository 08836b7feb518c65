//! What sandboxes are made from, and how one is made.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use airssys_wasm_engine::{
    ComponentTemplate, Export, ExportError, Features,
    wasmtime::{self, Func, PoolConcurrencyLimitError, Store},
};
use airssys_wasm_limits::{
    CallPhase, CancellationToken, Guarded, InlineCalls, LogAllowance, MemoryBudget, Meter, Metered, Quota, QuotaError,
    ResourceLimits, begin_call, guard, guard_inline, install, may_call_inline, unwatch, watch,
};
use tokio::runtime::{Handle, RuntimeFlavor};

use crate::{
    Account, Crash, FileJobs, HostState, KeyValueGrants, KeyValueStore, Sandbox, WasiError, WasiGrants,
    crash::Phase,
    free::free,
    host::Shared,
    keyvalue::KeyValueAccess,
    probe::Probes,
    sandbox::{Live, stderr_of, usage_of},
    wasi::LookUps,
};

/// A linked component with its limits and grants, from which sandboxes are made. Cheap to clone.
pub struct SandboxSpec<U: 'static>(Arc<Spec<U>>);

struct Spec<U: 'static> {
    template: ComponentTemplate<HostState<U>>,
    quota: Quota,
    /// Whether the component imports WASI: only then there are a name and grants.
    takes_wasi: bool,
    name: Option<Arc<str>>,
    grants: Option<Arc<WasiGrants>>,
    jobs: FileJobs,
    shared: Arc<Shared>,
    budget: Option<MemoryBudget>,
    measure_time: bool,
    probes: Probes<HostState<U>>,
    inline: Inline,
}

/// Calls without a fiber.
#[derive(Clone, Default)]
struct Inline {
    calls: InlineCalls,
    /// Whether nothing that is linked is async: known from the first sandbox on.
    fits: Arc<OnceLock<bool>>,
}

impl<U> Clone for SandboxSpec<U> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<U> Clone for Spec<U> {
    fn clone(&self) -> Self {
        Self {
            template: self.template.clone(),
            quota: self.quota.clone(),
            takes_wasi: self.takes_wasi,
            name: self.name.clone(),
            grants: self.grants.clone(),
            jobs: self.jobs.clone(),
            shared: self.shared.clone(),
            budget: self.budget.clone(),
            measure_time: self.measure_time,
            probes: self.probes.clone(),
            inline: self.inline.clone(),
        }
    }
}

impl<U> fmt::Debug for SandboxSpec<U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SandboxSpec").field("template", &self.0.template).finish_non_exhaustive()
    }
}

/// No sandbox could be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InstantiateError {
    /// The pool is full. Live instances are unaffected; try again when one is gone, or raise `PoolConfig::components`.
    #[error("the pool is full; drop a sandbox, or raise `PoolConfig::components`")]
    PoolExhausted {
        /// Which part of the pool, and its size.
        #[source]
        source: wasmtime::Error,
    },
    /// A grant cannot be given.
    #[error(transparent)]
    Wasi(#[from] WasiError),
    /// The component crashed in its start code, or could not be instantiated within its limits.
    #[error(transparent)]
    Crash(#[from] Crash),
}

const CONFIG: &str = "wasi:config/";
const KEYVALUE: &str = "wasi:keyvalue/";

impl<U: Send + 'static> SandboxSpec<U> {
    /// A component with these limits and no grants.
    ///
    /// # Errors
    ///
    /// When the limits do not go together with the component or its engine.
    pub fn new(template: ComponentTemplate<HostState<U>>, limits: ResourceLimits) -> Result<Self, QuotaError> {
        let quota = Quota::new(limits, template.loaded())?;
        let takes_wasi = template.loaded().imports().iter().any(|name| {
            // Those two need no context.
            name.starts_with("wasi:") && ![CONFIG, KEYVALUE].iter().any(|package| name.starts_with(package))
        });
        let shared = Shared {
            reclaimer: template.loaded().engine().reclaimer().clone(),
            log: LogAllowance::new(&quota),
            look_ups: LookUps::default(),
            config: None,
            keyvalue: None,
        };
        Ok(Self(Arc::new(Spec {
            template,
            quota,
            takes_wasi,
            name: None,
            grants: None,
            jobs: FileJobs::default(),
            shared: Arc::new(shared),
            budget: None,
            measure_time: false,
            probes: Probes::default(),
            inline: Inline::default(),
        })))
    }

    /// With these grants. They do nothing for a component that does not import WASI.
    #[must_use]
    pub fn with_wasi(mut self, grants: WasiGrants) -> Self {
        if self.0.takes_wasi {
            Arc::make_mut(&mut self.0).grants = Some(Arc::new(grants));
        }
        self
    }

    /// With these entries for `wasi:config`, besides those that it has. They do nothing for a component that does not import
    /// that. All sandboxes share them. See [`add_config`](crate::add_config).
    #[must_use]
    pub fn with_config<K: Into<String>, V: Into<String>>(mut self, entries: impl IntoIterator<Item = (K, V)>) -> Self {
        if self.imports(CONFIG) {
            let config = &mut self.shared().config;
            *config = Some(config.take().unwrap_or_default().with(entries));
        }
        self
    }

    /// With these buckets of a store for `wasi:keyvalue`. They do nothing for a component that does not import that. All
    /// sandboxes share the quota, with a count that begins at zero. See [`add_keyvalue`](crate::add_keyvalue).
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use airssys_wasm_engine::{EngineConfig, Profile, WasmEngine};
    /// # use airssys_wasm_isolation::{KeyValueStore, MemoryStore, SandboxManifest, SandboxSpec, add_keyvalue};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let manifest = SandboxManifest::from_toml(
    ///     r#"
    ///     [resources]
    ///     memory = "8MiB"
    ///
    ///     [keyvalue]
    ///     buckets = { "" = "carts" }
    ///     bytes = "1MiB"
    ///     "#,
    /// )?;
    /// let store: Arc<dyn KeyValueStore> = Arc::new(MemoryStore::new());
    /// # let engine = WasmEngine::new(EngineConfig::small().compile_in_process())?;
    /// # let component = engine.load_wat_blocking("(component)", Profile::Plain)?;
    /// let mut linker = component.linker();
    /// add_keyvalue(&mut linker)?;
    /// let spec = SandboxSpec::<()>::new(component.link(&linker)?, manifest.limits)?
    ///     .with_keyvalue(Arc::clone(&store), manifest.keyvalue);
    /// # drop(spec);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn with_keyvalue(mut self, store: Arc<dyn KeyValueStore>, grants: KeyValueGrants) -> Self {
        if self.imports(KEYVALUE) {
            self.shared().keyvalue = Some(Arc::new(KeyValueAccess::new(store, grants)));
        }
        self
    }

    /// With the count of an earlier version's account, under the quota that was given to
    /// [`with_keyvalue`](Self::with_keyvalue).
    #[must_use]
    pub fn with_keyvalue_account(mut self, account: &Account) -> Self {
        if let Some(access) = &self.0.shared.keyvalue {
            let access = Arc::new(access.counting_with(account));
            self.shared().keyvalue = Some(access);
        }
        self
    }

    /// What its sandboxes have stored by `wasi:keyvalue`, if they may.
    pub fn keyvalue_account(&self) -> Option<&Account> {
        self.0.shared.keyvalue.as_ref().map(|access| access.account())
    }

    fn shared(&mut self) -> &mut Shared {
        Arc::make_mut(&mut Arc::make_mut(&mut self.0).shared)
    }

    fn imports(&self, package: &str) -> bool {
        self.0.template.loaded().imports().iter().any(|name| name.starts_with(package))
    }

    /// With this name in the `tracing` events of its guests' output.
    #[must_use]
    pub fn with_name(mut self, name: &str) -> Self {
        if self.0.takes_wasi {
            Arc::make_mut(&mut self.0).name = Some(name.into());
        }
        self
    }

    /// With these jobs for opening granted folders, and for reading, writing and closing files. Without this, the spec has
    /// [eight](FileJobs::default) of its own, for all its sandboxes together.
    #[must_use]
    pub fn with_file_jobs(mut self, jobs: FileJobs) -> Self {
        Arc::make_mut(&mut self.0).jobs = jobs;
        self
    }

    /// With memory taken from this budget.
    #[must_use]
    pub fn with_budget(mut self, budget: MemoryBudget) -> Self {
        Arc::make_mut(&mut self.0).budget = Some(budget);
        self
    }

    /// With the time of each call in its usage. Costs two readings of the clock a call.
    #[must_use]
    pub fn with_measured_time(mut self) -> Self {
        Arc::make_mut(&mut self.0).measure_time = true;
        self
    }

    /// What was linked.
    pub fn template(&self) -> &ComponentTemplate<HostState<U>> {
        &self.0.template
    }

    /// What its calls are held against.
    pub fn quota(&self) -> &Quota {
        &self.0.quota
    }

    /// Finds an exported function once: its name, or `interface#function`.
    ///
    /// # Errors
    ///
    /// [`ExportError::Missing`], which lists what there is.
    pub fn export(&self, name: &str) -> Result<Export, ExportError> {
        self.0.template.loaded().export(name)
    }

    /// Makes a sandbox. Granted folders are opened and the guest's start code runs under the limits of [`CallPhase::Init`].
    ///
    /// # Errors
    ///
    /// [`InstantiateError`].
    ///
    /// # Panics
    ///
    /// When the start code waits or is interrupted outside a tokio runtime with timers.
    pub fn instantiate(&self, ext: U) -> impl Future<Output = Result<Sandbox<U>, InstantiateError>> + Send {
        self.instantiate_inner(ext, None, false)
    }

    /// [`instantiate`](Self::instantiate), ended when the token is cancelled.
    ///
    /// # Errors
    ///
    /// [`InstantiateError`].
    pub async fn instantiate_until(&self, ext: U, cancel: &CancellationToken) -> Result<Sandbox<U>, InstantiateError> {
        self.instantiate_inner(ext, Some(cancel), false).await
    }

    /// [`instantiate_until`](Self::instantiate_until) for a tokio runtime with several threads, in which all calls of the sandbox are
    /// polled too. They are made on the stack of the thread that polls them where that is possible, which saves a stack for each
    /// sandbox and the way to it and back:
    ///
    /// - The component needs no [feature](Features), and nothing that it imports is async, the destructor of a resource included.
    ///   Imports that it does not have do not count. The first sandbox finds that out.
    /// - The worker has left what a fiber would have: [`max_wasm_stack`](airssys_wasm_engine::EngineConfig::max_wasm_stack) and
    ///   512 KiB.
    /// - No call of the specification has computed for longer than two ticks. One that does cannot be put aside, so it gives its
    ///   worker up to another thread and then waits for a worker before each tick; later calls have fibers.
    /// - No closure has had the store: [`call_with`](Sandbox::call_with) and [`call_making`](Sandbox::call_making).
    ///
    /// In a runtime with one thread, it is the same as the other. In a `LocalSet` of one with several, whose thread cannot be given
    /// up, the first call that computes keeps it until it ends, and a panic of tokio's is caught.
    ///
    /// # Errors
    ///
    /// [`InstantiateError`].
    pub async fn instantiate_on_worker(
        &self,
        ext: U,
        cancel: &CancellationToken,
    ) -> Result<Sandbox<U>, InstantiateError> {
        self.instantiate_inner(ext, Some(cancel), has_workers()).await
    }

    /// Whether nothing that the component imports is async, so that its calls [need no fiber](Self::instantiate_on_worker).
    /// `None` before the first sandbox.
    pub fn is_synchronous(&self) -> Option<bool> {
        self.0.inline.fits.get().copied()
    }

    async fn instantiate_inner(
        &self,
        ext: U,
        cancel: Option<&CancellationToken>,
        on_worker: bool,
    ) -> Result<Sandbox<U>, InstantiateError> {
        let Spec { template, quota, name, grants, jobs, shared, budget, measure_time, probes, inline, .. } = &*self.0;
        let meter = Meter::new(quota.clone(), budget.as_ref()).with_log(&shared.log);
        let guarded = Guarded::by(&meter);
        let place =
            template.loaded().place().map_err(|full| InstantiateError::PoolExhausted { source: full.into() })?;
        let mut store = Store::new(template.loaded().wasmtime(), HostState::new(meter, Arc::clone(shared), ext));
        install(&mut store);
        let fits = self.is_synchronous();
        if on_worker && fits == Some(true) {
            self.allow_inline(&mut store);
        }
        begin_call(&mut store, CallPhase::Init);
        let started = if grants.is_none() && may_call_inline(&mut store) {
            guard_inline(&mut store, cancel, |store| template.pre().instantiate(store)).map(Ok)
        } else {
            let starting = async {
                if let Some(grants) = grants {
                    store.data_mut().grant(grants, name.as_ref(), jobs).await?;
                }
                Ok::<_, WasiError>(template.pre().instantiate_async(&mut store).await)
            };
            guard(starting, cancel, &guarded).await
        };
        let crash = match started {
            Ok(Ok(Ok(instance))) => {
                if on_worker && fits.is_none() && *inline.fits.get_or_init(|| is_synchronous(template, &mut store)) {
                    self.allow_inline(&mut store);
                }
                return Ok(Sandbox(Box::new(Live {
                    store,
                    instance,
                    guarded,
                    measure_time: *measure_time,
                    elapsed_ns: None,
                    is_concurrent: template.loaded().features().component_async,
                    probes: probes.clone(),
                    probe: None,
                    tells_crash: None,
                    _place: place,
                })));
            }
            Ok(Err(error)) => return Err(error.into()),
            Ok(Ok(Err(error))) if error.is::<PoolConcurrencyLimitError>() => {
                return Err(InstantiateError::PoolExhausted { source: error });
            }
            Ok(Ok(Err(error))) => {
                let (meter, usage) = (store.data().metered(), usage_of(&store, None));
                Crash::from_error(error, Phase::Instantiating, None, meter, usage)
            }
            Err(interrupted) => Crash::from_interruption(interrupted, None, usage_of(&store, None)),
        };
        let (crash, memory) = (crash.with_stderr(stderr_of(&store)), store.data().memory());
        Box::pin(free((store, place), memory, &shared.reclaimer)).await;
        Err(crash.into())
    }

    fn allow_inline(&self, store: &mut Store<HostState<U>>) {
        let stack = self.0.template.loaded().engine().config().stack_size();
        store.data_mut().meter().allow_inline(&self.0.inline.calls, stack);
    }
}

/// Whether this thread belongs to a runtime that can go on without it.
fn has_workers() -> bool {
    Handle::try_current().is_ok_and(|runtime| runtime.runtime_flavor() == RuntimeFlavor::MultiThread)
}

/// Whether an instance can be called without a fiber, which wasmtime says only by an error when it is tried.
fn is_synchronous<U: Send + 'static>(
    template: &ComponentTemplate<HostState<U>>,
    store: &mut Store<HostState<U>>,
) -> bool {
    if template.loaded().features() != Features::NONE {
        return false;
    }
    unwatch(store);
    let called = Func::wrap(&mut *store, || {}).call(&mut *store, &[], &mut []);
    watch(store);
    called.is_ok()
}
