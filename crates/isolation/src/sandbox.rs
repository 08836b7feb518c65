//! One instance in one store, and the only way to call it.

use std::{
    fmt,
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Instant,
};

use airssys_wasm_engine::{
    Export, ExportError, Place,
    wasmtime::{
        self, AsContextMut, Store, StoreContextMut,
        component::{
            Accessor, ComponentNamedList, Func, Instance, Lift, Lower, ResourceTable, TypedFunc, Val, types::Type,
        },
    },
};
use airssys_wasm_limits::{
    CallPhase, CancellationToken, Guarded, Interrupted, Metered, Usage, begin_call, guard, guard_inline,
    may_call_inline,
};

use crate::{
    ArgumentError, Crash, CrashKind, HostState,
    arguments::check_arguments,
    crash::Phase,
    free::free,
    probe::{Probe, Probes},
    wasi::Tail,
};

/// One component instance in a store of its own.
///
/// Dropping it frees everything the guest had, on the spot; [`free`](Self::free) does so elsewhere if it is much.
pub struct Sandbox<U: 'static>(pub(crate) Box<Live<U>>);

/// In a box, because a call moves the sandbox several times.
pub(crate) struct Live<U: 'static> {
    pub(crate) store: Store<HostState<U>>,
    pub(crate) instance: Instance,
    pub(crate) guarded: Guarded,
    pub(crate) measure_time: bool,
    pub(crate) elapsed_ns: Option<u64>,
    /// Whether the guest may have several tasks.
    pub(crate) is_concurrent: bool,
    pub(crate) probes: Probes<HostState<U>>,
    /// Since the first [`Sandbox::call_with`].
    pub(crate) probe: Option<Box<Probe>>,
    /// See [`Sandbox::tell_crash`].
    pub(crate) tells_crash: Option<Arc<AtomicBool>>,
    /// Given back after the store is.
    pub(crate) _place: Option<Place>,
}

/// An exported function of one sandbox whose type was checked.
pub struct TypedExport<P, R> {
    name: Arc<str>,
    func: TypedFunc<P, R>,
}

/// An exported function of one sandbox, called with [`Val`]s.
#[derive(Debug, Clone)]
pub struct DynamicExport {
    name: Arc<str>,
    func: Func,
    params: Vec<Type>,
    results: usize,
}

impl<P, R> TypedExport<P, R> {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

impl<P: 'static, R: 'static> TypedExport<P, R> {
    pub(crate) fn func(&self) -> TypedFunc<P, R> {
        self.func
    }
}

impl<P, R> fmt::Debug for TypedExport<P, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TypedExport").field(&self.name).finish()
    }
}

impl<U> fmt::Debug for Sandbox<U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sandbox").field("usage", &self.0.store.data().usage()).finish_non_exhaustive()
    }
}

/// A dynamic call failed.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum DynamicCallError<U: 'static> {
    /// The guest was not called, and the sandbox is unchanged.
    #[error("{error}")]
    Arguments {
        /// What is wrong with the arguments.
        error: ArgumentError,
        /// The sandbox, to be used again.
        sandbox: Sandbox<U>,
    },
    /// The guest crashed.
    #[error(transparent)]
    Crash(Crash),
}

// By hand, because a derived one would ask for `U: Debug`.
impl<U> fmt::Debug for DynamicCallError<U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Arguments { error, .. } => f.debug_struct("Arguments").field("error", error).finish_non_exhaustive(),
            Self::Crash(crash) => f.debug_tuple("Crash").field(crash).finish(),
        }
    }
}

impl<U: Send + 'static> Sandbox<U> {
    /// A typed handle on an export of this sandbox, to be made once.
    ///
    /// # Errors
    ///
    /// [`ExportError::Mistyped`] when the export has another type; the sandbox is as it was.
    pub fn typed<P, R>(&mut self, export: &Export) -> Result<TypedExport<P, R>, ExportError>
    where
        P: ComponentNamedList + Lower,
        R: ComponentNamedList + Lift,
    {
        let func = self.func(export)?;
        match func.typed(&self.0.store) {
            Ok(func) => Ok(TypedExport { name: Arc::clone(export.name()), func }),
            Err(error) => Err(ExportError::Mistyped { actual: export.ty().to_owned(), mismatch: format!("{error:#}") }),
        }
    }

    /// A handle for calls with [`Val`]s, for tools that learn types at run time.
    ///
    /// # Errors
    ///
    /// [`ExportError::Missing`] when the export belongs to another component.
    pub fn dynamic(&mut self, export: &Export) -> Result<DynamicExport, ExportError> {
        let func = self.func(export)?;
        let ty = func.ty(&self.0.store);
        Ok(DynamicExport {
            name: Arc::clone(export.name()),
            func,
            params: ty.params().map(|(_, ty)| ty).collect(),
            results: ty.results().len(),
        })
    }

    fn func(&mut self, export: &Export) -> Result<Func, ExportError> {
        self.0
            .instance
            .get_func(&mut self.0.store, export.index())
            .ok_or_else(|| ExportError::Missing { name: export.name().to_string(), available: Vec::new() })
    }

    /// Calls the guest, under its limits. The sandbox comes back only if it may be used again.
    ///
    /// Dropping the future drops the guest, and yields nothing.
    ///
    /// # Errors
    ///
    /// [`Crash`]. A handle of another sandbox ends as [`CrashKind::HostPanic`](crate::CrashKind::HostPanic).
    ///
    /// # Panics
    ///
    /// When the call waits or is interrupted outside a tokio runtime with timers.
    pub fn call<P, R>(
        self,
        export: &TypedExport<P, R>,
        params: P,
    ) -> impl Future<Output = Result<(R, Self), Crash>> + Send
    where
        P: ComponentNamedList + Lower + Send + Sync + 'static,
        R: ComponentNamedList + Lift + Send + Sync + 'static,
    {
        // Not an `async fn`: one future around another would move the sandbox twice.
        self.call_inner(InPlace, CallPhase::Message, export, params, None, |result| result)
    }

    /// [`call`](Self::call), ended when the token is cancelled: with
    /// [`CrashKind::Cancelled`](crate::CrashKind::Cancelled) where it waits at once, where it computes at the next tick.
    ///
    /// # Errors
    ///
    /// [`Crash`].
    pub fn call_until<P, R>(
        self,
        export: &TypedExport<P, R>,
        params: P,
        cancel: &CancellationToken,
    ) -> impl Future<Output = Result<(R, Self), Crash>> + Send
    where
        P: ComponentNamedList + Lower + Send + Sync + 'static,
        R: ComponentNamedList + Lift + Send + Sync + 'static,
    {
        self.call_inner(InPlace, CallPhase::Message, export, params, Some(cancel), |result| result)
    }

    /// [`call_until`](Self::call_until), which tells the result as soon as the guest returns it. A guest with
    /// [async functions](airssys_wasm_engine::Features::component_async) may go on after that: the call ends when all its
    /// tasks have ended.
    ///
    /// Its future is small, for tasks of which there are many: on a fiber the call is in a box, which the others' is not.
    ///
    /// # Errors
    ///
    /// [`Crash`], also after the result was told.
    pub fn call_telling<P, R, T>(
        self,
        export: &TypedExport<P, R>,
        params: P,
        cancel: &CancellationToken,
        tell: impl FnOnce(R) -> T + Send,
    ) -> impl Future<Output = Result<(T, Self), Crash>> + Send
    where
        P: ComponentNamedList + Lower + Send + Sync + 'static,
        R: ComponentNamedList + Lift + Send + Sync + 'static,
        T: Send,
    {
        self.call_inner(Boxed, CallPhase::Message, export, params, Some(cancel), tell)
    }

    /// [`call_telling`](Self::call_telling) with parameters and results that belong to the store, such as streams. One closure
    /// makes the parameters when the call begins, the other takes the result. An error of theirs ends the sandbox.
    ///
    /// # Errors
    ///
    /// [`Crash`], also after the result was told.
    pub async fn call_making<P, R, T>(
        mut self,
        export: &TypedExport<P, R>,
        make: impl FnOnce(StoreContextMut<'_, HostState<U>>) -> wasmtime::Result<P> + Send,
        cancel: &CancellationToken,
        tell: impl FnOnce(StoreContextMut<'_, HostState<U>>, R) -> wasmtime::Result<T> + Send,
    ) -> Result<(T, Self), Crash>
    where
        P: ComponentNamedList + Lower + Send + Sync + 'static,
        R: ComponentNamedList + Lift + Send + Sync + 'static,
        T: Send,
    {
        let started = self.begin_with_store();
        let Live { store, guarded, .. } = &mut *self.0;
        let call = async {
            let params = make(store.as_context_mut())?;
            let result = export.func.call_async(&mut *store, params).await?;
            let told = tell(store.as_context_mut(), result)?;
            settle(store).await?;
            Ok(told)
        };
        let outcome = guard(call, Some(cancel), guarded).await;
        self.end(started, &export.name, Phase::Calling, outcome).await
    }

    /// [`call_until`](Self::call_until) under the limits of that phase.
    ///
    /// # Errors
    ///
    /// [`Crash`].
    pub fn call_in<P, R>(
        self,
        phase: CallPhase,
        export: &TypedExport<P, R>,
        params: P,
        cancel: &CancellationToken,
    ) -> impl Future<Output = Result<(R, Self), Crash>> + Send
    where
        P: ComponentNamedList + Lower + Send + Sync + 'static,
        R: ComponentNamedList + Lift + Send + Sync + 'static,
    {
        self.call_inner(InPlace, phase, export, params, Some(cancel), |result| result)
    }

    async fn call_inner<P, R, T>(
        mut self,
        how: impl Hold,
        phase: CallPhase,
        export: &TypedExport<P, R>,
        params: P,
        cancel: Option<&CancellationToken>,
        tell: impl FnOnce(R) -> T + Send,
    ) -> Result<(T, Self), Crash>
    where
        P: ComponentNamedList + Lower + Send + Sync + 'static,
        R: ComponentNamedList + Lift + Send + Sync + 'static,
        T: Send,
    {
        let started = self.begin(phase);
        let Live { store, guarded, is_concurrent, .. } = &mut *self.0;
        let outcome = if may_call_inline(store) {
            guard_inline(store, cancel, |store| export.func.call(store, params)).map(|result| result.map(tell))
        } else if *is_concurrent {
            let call = async {
                let told = tell(export.func.call_async(&mut *store, params).await?);
                settle(store).await?;
                Ok(told)
            };
            // Boxed, so that its future does not lie in that of guests with one task.
            guard(Box::pin(call), cancel, guarded).await
        } else {
            guard(how.hold(export.func.call_async(store, params)), cancel, guarded).await.map(|result| result.map(tell))
        };
        self.end(started, &export.name, Phase::Calling, outcome).await
    }

    /// Calls the guest with values whose types are known at run time only.
    ///
    /// What it returns counts against `message_size` by the size of a [`Val`] for each element, some 40 bytes even for
    /// a `u8`. A typed call can return much longer lists.
    ///
    /// # Errors
    ///
    /// [`DynamicCallError::Arguments`], which gives the sandbox back, or [`DynamicCallError::Crash`].
    pub async fn call_dynamic(
        self,
        export: &DynamicExport,
        params: &[Val],
    ) -> Result<(Vec<Val>, Self), DynamicCallError<U>> {
        self.call_dynamic_inner(export, params, None).await
    }

    /// [`call_dynamic`](Self::call_dynamic), ended when the token is cancelled, as [`call_until`](Self::call_until).
    ///
    /// # Errors
    ///
    /// [`DynamicCallError`].
    pub async fn call_dynamic_until(
        self,
        export: &DynamicExport,
        params: &[Val],
        cancel: &CancellationToken,
    ) -> Result<(Vec<Val>, Self), DynamicCallError<U>> {
        self.call_dynamic_inner(export, params, Some(cancel)).await
    }

    /// [`call_dynamic_until`](Self::call_dynamic_until) for arguments whose types are known to be those of the export:
    /// they are not looked at first, and others end the sandbox.
    ///
    /// # Errors
    ///
    /// [`Crash`].
    pub async fn call_dynamic_checked(
        self,
        export: &DynamicExport,
        params: &[Val],
        cancel: &CancellationToken,
    ) -> Result<(Vec<Val>, Self), Crash> {
        self.call_dynamic_unchecked(export, params, Some(cancel)).await
    }

    async fn call_dynamic_inner(
        self,
        export: &DynamicExport,
        params: &[Val],
        cancel: Option<&CancellationToken>,
    ) -> Result<(Vec<Val>, Self), DynamicCallError<U>> {
        if let Err(error) = check_arguments(&export.params, params) {
            return Err(DynamicCallError::Arguments { error, sandbox: self });
        }
        self.call_dynamic_unchecked(export, params, cancel).await.map_err(DynamicCallError::Crash)
    }

    async fn call_dynamic_unchecked(
        mut self,
        export: &DynamicExport,
        params: &[Val],
        cancel: Option<&CancellationToken>,
    ) -> Result<(Vec<Val>, Self), Crash> {
        let started = self.begin(CallPhase::Message);
        let mut results = vec![Val::Bool(false); export.results];
        let Live { store, guarded, .. } = &mut *self.0;
        let outcome = if may_call_inline(store) {
            guard_inline(store, cancel, |store| export.func.call(store, params, &mut results))
        } else {
            let call = async {
                export.func.call_async(&mut *store, params, &mut results).await?;
                settle(store).await
            };
            guard(call, cancel, guarded).await
        };
        let outcome = outcome.map(|result| result.map(|()| results));
        self.end(started, &export.name, Phase::Calling, outcome).await
    }

    /// One call in which a closure does with the instance what it likes, under the limits of one call: what
    /// [`bindgen!`](wasmtime::component::bindgen) generates works in it, for exports and for resources. Fastest is
    /// [`call`](Self::call).
    ///
    /// An `Err` of the closure is the end of the sandbox; what is to be answered without that belongs into the `Ok`. A
    /// guest that has trapped never comes back, even where the closure passes the error over. Whatever the closure takes
    /// from the store, and resources of the guest for one, belongs to this sandbox; another one refuses it.
    ///
    /// The first such call makes a second component instance in the store, by which wasmtime is asked whether the guest
    /// has trapped. It is compiled once for a specification, on a blocking thread, and is not charged to the guest.
    ///
    /// ```
    /// # use airssys_wasm_engine::{EngineConfig, Profile, WasmEngine};
    /// # use airssys_wasm_isolation::SandboxSpec;
    /// # use airssys_wasm_limits::{ByteSize, ResourceLimits};
    /// mod greeter {
    ///     airssys_wasm_engine::wasmtime::component::bindgen!({
    ///         inline: "package acme:greeter; world greeter { export greet: func(times: u32) -> u32; }",
    ///         wasmtime_crate: airssys_wasm_engine::wasmtime,
    ///         exports: { default: async },
    ///     });
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let engine = WasmEngine::new(EngineConfig::small().compile_in_process())?;
    /// # let component = engine.load_wat_blocking(
    /// #     r#"(component
    /// #         (core module $m (func (export "greet") (param i32) (result i32)
    /// #             (i32.add (local.get 0) (i32.const 1))))
    /// #         (core instance $i (instantiate $m))
    /// #         (func (export "greet") (param "times" u32) (result u32) (canon lift (core func $i "greet"))))"#,
    /// #     Profile::Plain,
    /// # )?;
    /// # let limits = ResourceLimits::with_memory(ByteSize::mib(1));
    /// # let spec = SandboxSpec::<()>::new(component.link(&component.linker())?, limits)?;
    /// let sandbox = spec.instantiate(()).await?;
    /// let greeted = sandbox.call_with(async |mut store, instance| {
    ///     let guest = greeter::Greeter::new(&mut store, &instance)?;
    ///     let once = guest.call_greet(&mut store, 1).await?;
    ///     guest.call_greet(&mut store, once).await
    /// });
    /// let (times, sandbox) = greeted.await?;
    /// assert_eq!(times, 3);
    /// # drop(sandbox);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Crash`]; [`CrashKind::Swallowed`] for a guest that has trapped though the closure says `Ok`, and
    /// [`CrashKind::HostCall`] for an error that is not the guest's, to be found by [`Crash::host_error`].
    ///
    /// # Panics
    ///
    /// When the call waits or is interrupted outside a tokio runtime with timers.
    pub async fn call_with<R>(
        self,
        call: impl AsyncFnOnce(StoreContextMut<'_, HostState<U>>, Instance) -> wasmtime::Result<R>,
    ) -> Result<(R, Self), Crash> {
        self.call_with_inner(call, None).await
    }

    /// [`call_with`](Self::call_with), ended when the token is cancelled, as [`call_until`](Self::call_until).
    ///
    /// # Errors
    ///
    /// [`Crash`].
    pub async fn call_with_until<R>(
        self,
        call: impl AsyncFnOnce(StoreContextMut<'_, HostState<U>>, Instance) -> wasmtime::Result<R>,
        cancel: &CancellationToken,
    ) -> Result<(R, Self), Crash> {
        self.call_with_inner(call, Some(cancel)).await
    }

    /// [`call_with_until`](Self::call_with_until) with a closure that gives a boxed future: for who has to know that the
    /// future of the call can be sent, whatever the closure is.
    ///
    /// # Errors
    ///
    /// [`Crash`].
    pub async fn call_boxed_until<R, F>(mut self, call: F, cancel: &CancellationToken) -> Result<(R, Self), Crash>
    where
        F: for<'a> FnOnce(
            StoreContextMut<'a, HostState<U>>,
            Instance,
        ) -> Pin<Box<dyn Future<Output = wasmtime::Result<R>> + Send + 'a>>,
    {
        let started = self.begin_with_store();
        let Live { store, instance, guarded, probes, probe, .. } = &mut *self.0;
        let handles = store.data().quota().limits().handles;
        let call = async {
            probes.place(probe, store, handles).await?;
            let result = call(store.as_context_mut(), *instance).await?;
            settle(store).await?;
            Ok(result)
        };
        let outcome = guard(call, Some(cancel), guarded).await;
        self.end_with(started, outcome).await
    }

    async fn call_with_inner<R>(
        mut self,
        call: impl AsyncFnOnce(StoreContextMut<'_, HostState<U>>, Instance) -> wasmtime::Result<R>,
        cancel: Option<&CancellationToken>,
    ) -> Result<(R, Self), Crash> {
        let started = self.begin_with_store();
        let Live { store, instance, guarded, probes, probe, .. } = &mut *self.0;
        let handles = store.data().quota().limits().handles;
        let call = async {
            probes.place(probe, store, handles).await?;
            let result = call(store.as_context_mut(), *instance).await?;
            settle(store).await?;
            Ok(result)
        };
        let outcome = guard(call, cancel, guarded).await;
        self.end_with(started, outcome).await
    }

    async fn end_with<R>(
        self,
        started: Option<Instant>,
        outcome: Result<wasmtime::Result<R>, Interrupted>,
    ) -> Result<(R, Self), Crash> {
        let (value, mut sandbox) = self.end(started, CALL_WITH, Phase::CallingWith, outcome).await?;
        let Live { store, probe, .. } = &mut *sandbox.0;
        match probe {
            Some(probe) if !probe.has_trapped(store).await => Ok((value, sandbox)),
            _ => {
                let crash = Crash::new(CrashKind::Swallowed, Some(CALL_WITH), sandbox.usage());
                Err(sandbox.crashed(crash).await)
            }
        }
    }

    /// [`begin`](Self::begin) for a closure that has the store, and may make it an async one.
    fn begin_with_store(&mut self) -> Option<Instant> {
        self.0.store.data_mut().meter().forbid_inline();
        self.begin(CallPhase::Message)
    }

    pub(crate) fn begin(&mut self, phase: CallPhase) -> Option<Instant> {
        begin_call(&mut self.0.store, phase);
        if let Some(stderr) = self.0.store.data().stderr() {
            stderr.begin();
        }
        self.0.measure_time.then(Instant::now)
    }

    async fn end<R>(
        mut self,
        started: Option<Instant>,
        export: &str,
        phase: Phase,
        outcome: Result<wasmtime::Result<R>, Interrupted>,
    ) -> Result<(R, Self), Crash> {
        self.0.elapsed_ns = started.map(|started| started.elapsed().as_nanos() as u64);
        let crash = match outcome {
            Ok(Ok(value)) => return Ok((value, self)),
            Ok(Err(error)) => {
                Crash::from_error(error, phase, Some(export), self.0.store.data().metered(), self.usage())
            }
            Err(interrupted) => Crash::from_interruption(interrupted, Some(export), self.usage()),
        };
        Err(self.crashed(crash).await)
    }

    /// Boxed: it is rare, and its future would lie in that of every call.
    pub(crate) fn crashed(self, crash: Crash) -> Pin<Box<dyn Future<Output = Crash> + Send>> {
        if let Some(told) = &self.0.tells_crash {
            told.store(true, Ordering::Release);
        }
        Box::pin(async move {
            let crash = crash.with_stderr(stderr_of(&self.0.store));
            self.free().await;
            crash
        })
    }

    /// Sets this as soon as a call has crashed, before what the guest had is freed, for which the call's future may wait. Of
    /// what then ends because the guest is gone, one knows by it why.
    pub fn tell_crash(&mut self, told: Arc<AtomicBool>) {
        self.0.tells_crash = Some(told);
    }

    /// Frees everything that the guest had, as dropping the sandbox does, and comes back when it is free. What has 4 MiB of
    /// memory or more is freed by a [thread of the engine's](airssys_wasm_engine::Reclaimer), the embedder's own state included,
    /// so that the worker's other tasks do not wait for the system. From when the future was first polled, it need not be
    /// polled for that. A call that crashes frees its sandbox so.
    ///
    /// Outside a tokio runtime it is freed on the spot.
    ///
    /// # Panics
    ///
    /// When dropping the embedder's own state does.
    pub async fn free(self) {
        let (memory, reclaimer) = (self.memory(), self.0.store.data().reclaimer().clone());
        free(self, memory, &reclaimer).await;
    }

    /// What the guest has now, and what its last call used.
    pub fn usage(&self) -> Usage {
        usage_of(&self.0.store, self.0.elapsed_ns)
    }

    /// Bytes of linear memory and of the collected heap that the guest has now.
    pub fn memory(&self) -> u64 {
        self.0.store.data().memory()
    }

    /// The embedder's own state.
    pub fn ext(&self) -> &U {
        &self.0.store.data().ext
    }

    /// The embedder's own state.
    pub fn ext_mut(&mut self) -> &mut U {
        &mut self.0.store.data_mut().ext
    }

    /// The table of resources that the guest holds handles to, and the embedder's own state: to make a resource that the
    /// next call passes to the guest. It counts as one of the guest's `handles`.
    pub fn table_and_ext(&mut self) -> (&mut ResourceTable, &mut U) {
        self.0.store.data_mut().table_and_ext()
    }
}

/// Where a call on a fiber lies: wasmtime's future has more than a KiB.
trait Hold: Send {
    type Held<F: Future + Send>: Future<Output = F::Output> + Send;

    fn hold<F: Future + Send>(self, call: F) -> Self::Held<F>;
}

/// In the future of who calls: nothing is allocated.
struct InPlace;

/// In a box, for as long as it takes.
struct Boxed;

impl Hold for InPlace {
    type Held<F: Future + Send> = F;

    fn hold<F: Future + Send>(self, call: F) -> F {
        call
    }
}

impl Hold for Boxed {
    type Held<F: Future + Send> = Pin<Box<F>>;

    fn hold<F: Future + Send>(self, call: F) -> Pin<Box<F>> {
        Box::pin(call)
    }
}

/// Waits until all tasks of a guest have ended, and the calls of the host that they have begun, so that none of them goes on in the
/// next call. A guest without async functions has none.
async fn settle<U: Send + 'static>(store: &mut Store<HostState<U>>) -> wasmtime::Result<()> {
    // Each task has an entry. To run the loop only to hear that there is none takes as long as a call does.
    let has_no_tasks = store.concurrent_resource_table().is_none_or(|tasks| tasks.is_empty());
    if has_no_tasks && !store.data().has_host_calls() {
        return Ok(());
    }
    store.run_concurrent(async |tasks| poll_fn(|cx| poll_settled(tasks, cx)).await).await
}

/// Ready when there is nothing of a guest's that goes on. wasmtime polls this after each call of the host that has ended.
pub(crate) fn poll_settled<U: Send + 'static>(tasks: &Accessor<HostState<U>>, cx: &mut Context<'_>) -> Poll<()> {
    ready!(tasks.poll_no_interesting_tasks(cx));
    if tasks.with(|mut store| store.data_mut().has_host_calls()) { Poll::Pending } else { Poll::Ready(()) }
}

/// The export that crashes of closures name.
const CALL_WITH: &str = "call_with";

pub(crate) fn stderr_of<U>(store: &Store<HostState<U>>) -> String {
    store.data().stderr().map(Tail::text).unwrap_or_default()
}

pub(crate) fn usage_of<U>(store: &Store<HostState<U>>, elapsed_ns: Option<u64>) -> Usage {
    let state = store.data();
    let mut usage = state.usage();
    usage.elapsed_ns = elapsed_ns;
    usage.fuel = state.quota().fuel_per_call().map(|given| given - store.get_fuel().unwrap_or(given).min(given));
    usage
}
