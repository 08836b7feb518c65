//! What sandboxes are made from, and how one is made.

use std::{fmt, sync::Arc};

use airssys_wasm_engine::{
    ComponentTemplate, Export, ExportError,
    wasmtime::{self, PoolConcurrencyLimitError, Store},
};
use airssys_wasm_limits::{
    CallPhase, CancellationToken, Guarded, LogAllowance, MemoryBudget, Meter, Quota, QuotaError, ResourceLimits,
    begin_call, guard, install,
};

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
        self.instantiate_inner(ext, None)
    }

    /// [`instantiate`](Self::instantiate), ended when the token is cancelled.
    ///
    /// # Errors
    ///
    /// [`InstantiateError`].
    pub async fn instantiate_until(&self, ext: U, cancel: &CancellationToken) -> Result<Sandbox<U>, InstantiateError> {
        self.instantiate_inner(ext, Some(cancel)).await
    }

    async fn instantiate_inner(
        &self,
        ext: U,
        cancel: Option<&CancellationToken>,
    ) -> Result<Sandbox<U>, InstantiateError> {
        let Spec { template, quota, name, grants, jobs, shared, budget, measure_time, probes, .. } = &*self.0;
        let meter = Meter::new(quota.clone(), budget.as_ref()).with_log(&shared.log);
        let guarded = Guarded::by(&meter);
        let place =
            template.loaded().place().map_err(|full| InstantiateError::PoolExhausted { source: full.into() })?;
        let mut store = Store::new(template.loaded().wasmtime(), HostState::new(meter, Arc::clone(shared), ext));
        install(&mut store);
        begin_call(&mut store, CallPhase::Init);
        let starting = async {
            if let Some(grants) = grants {
                store.data_mut().grant(grants, name.as_ref(), jobs).await?;
            }
            Ok::<_, WasiError>(template.pre().instantiate_async(&mut store).await)
        };
        let crash = match guard(starting, cancel, &guarded).await {
            Ok(Ok(Ok(instance))) => {
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
}
