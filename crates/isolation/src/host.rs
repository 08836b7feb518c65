//! What a store holds beside the guest.

use std::{
    mem,
    panic::resume_unwind,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use airssys_wasm_engine::{
    Reclaimer,
    wasmtime_wasi::{ResourceTable, WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView},
};
use airssys_wasm_limits::{LogAllowance, Meter, Metered, Quota, Usage};
use tokio::{runtime::Handle, task::spawn_blocking};

use crate::{
    FileJobs, WasiError, WasiGrants,
    config::Config,
    keyvalue::KeyValueAccess,
    wasi::{FileStreams, LookUps, Tail, drop_resources, p3::InFlight},
};

/// The data of a sandbox's store: the meter, the WASI context, and whatever the embedder's host functions need.
pub struct HostState<U> {
    meter: Meter,
    wasi: Option<Box<Wasi>>,
    shared: Arc<Shared>,
    /// Made with the first of them.
    host_calls: Option<Arc<AtomicUsize>>,
    /// The embedder's own.
    pub ext: U,
}

/// A call of the host's that a task of the guest has begun, until it is dropped: see [`HostState::host_call`].
#[derive(Debug)]
pub struct HostCall(Arc<AtomicUsize>);

impl Drop for HostCall {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Release);
    }
}

/// What all sandboxes of a specification share.
#[derive(Clone)]
pub(crate) struct Shared {
    /// Of the engine.
    pub(crate) reclaimer: Reclaimer,
    pub(crate) log: LogAllowance,
    pub(crate) look_ups: LookUps,
    /// These two for components that import them.
    pub(crate) config: Option<Config>,
    pub(crate) keyvalue: Option<Arc<KeyValueAccess>>,
}

struct Wasi {
    /// The end of what the guest wrote to its standard error.
    stderr: Tail,
    ctx: WasiCtx,
    table: ResourceTable,
    streams: FileStreams,
    may_look_up: bool,
    /// Since the first async call of WASI 0.3.
    in_flight: Option<InFlight>,
}

impl Drop for Wasi {
    fn drop(&mut self) {
        drop_resources(mem::take(&mut self.table), self.streams.jobs());
    }
}

impl<U> HostState<U> {
    /// The first host function that asks for the table of resources makes a context that grants nothing, unless grants were
    /// [given](Self::grant).
    pub(crate) fn new(meter: Meter, shared: Arc<Shared>, ext: U) -> Self {
        Self { meter, wasi: None, shared, host_calls: None, ext }
    }

    /// Makes a context with these grants, before anything asks for the table of resources. Opens their folders.
    pub(crate) async fn grant(
        &mut self,
        grants: &Arc<WasiGrants>,
        name: Option<&Arc<str>>,
        jobs: &FileJobs,
    ) -> Result<(), WasiError> {
        let stderr = Tail::default();
        let builder = opened(grants, name, self.meter.log(), &stderr, jobs).await?;
        let streams = FileStreams::new(grants.file_streams, jobs.clone());
        let mut wasi = self.wasi_from(builder, stderr, streams);
        wasi.may_look_up = grants.name_lookup;
        self.wasi = Some(wasi);
        Ok(())
    }

    fn wasi_from(&self, mut builder: WasiCtxBuilder, stderr: Tail, streams: FileStreams) -> Box<Wasi> {
        let limits = self.quota().limits();
        // For who links wasmtime-wasi's own function; ours compares by itself.
        builder.max_random_size(limits.host_call_bytes.as_u64());
        let mut table = ResourceTable::new();
        table.set_max_capacity(limits.handles as usize);
        Box::new(Wasi { stderr, ctx: builder.build(), table, streams, may_look_up: false, in_flight: None })
    }

    pub(crate) fn metered(&self) -> &Meter {
        &self.meter
    }

    pub(crate) fn quota(&self) -> &Quota {
        self.meter.quota()
    }

    pub(crate) fn memory(&self) -> u64 {
        self.meter.memory()
    }

    /// Has the guest's present call last until this call of the host's has ended, or been given up. For asynchronous host functions
    /// that wait for others and hold something of theirs: wasmtime lets a task end without waiting for what it has
    /// begun, and that would not be polled before the next call of the guest.
    pub fn host_call(&mut self) -> HostCall {
        let calls = self.host_calls.get_or_insert_default();
        calls.fetch_add(1, Ordering::Relaxed);
        HostCall(Arc::clone(calls))
    }

    /// Whether the guest has [calls of the host's](Self::host_call) under way.
    pub(crate) fn has_host_calls(&self) -> bool {
        self.host_calls.as_ref().is_some_and(|calls| calls.load(Ordering::Acquire) > 0)
    }

    pub(crate) fn reclaimer(&self) -> &Reclaimer {
        &self.shared.reclaimer
    }

    pub(crate) fn config(&self) -> Option<&Config> {
        self.shared.config.as_ref()
    }

    pub(crate) fn keyvalue(&self) -> Option<&Arc<KeyValueAccess>> {
        self.shared.keyvalue.as_ref()
    }

    /// What the guest has written to its standard error in the present call.
    pub(crate) fn stderr(&self) -> Option<&Tail> {
        self.wasi.as_ref().map(|wasi| &wasi.stderr)
    }

    /// What the guest has used so far.
    pub fn usage(&self) -> Usage {
        self.meter.usage()
    }

    /// The host's table of resources that the guest holds handles to, limited to `handles`. Host functions that hand
    /// out resources of their own keep them here.
    pub fn table(&mut self) -> &mut ResourceTable {
        &mut self.wasi_parts().table
    }

    /// The table of [`table`](Self::table) and the embedder's own state, for host functions that need both.
    pub fn table_and_ext(&mut self) -> (&mut ResourceTable, &mut U) {
        self.wasi_parts();
        let Self { wasi, ext, .. } = self;
        (&mut wasi.as_mut().expect("made above").table, ext)
    }

    pub(crate) fn file_streams(&mut self) -> &FileStreams {
        &self.wasi_parts().streams
    }

    /// None where names are not granted to be looked up.
    pub(crate) fn look_ups(&self) -> Option<&LookUps> {
        self.wasi.as_ref().filter(|wasi| wasi.may_look_up).map(|_| &self.shared.look_ups)
    }

    pub(crate) fn in_flight(&mut self) -> InFlight {
        self.wasi_parts().in_flight.get_or_insert_default().clone()
    }

    fn wasi_parts(&mut self) -> &mut Wasi {
        if self.wasi.is_none() {
            // Without a folder there is no file to be streamed.
            self.wasi =
                Some(self.wasi_from(WasiCtx::builder(), Tail::default(), FileStreams::new(0, FileJobs::default())));
        }
        self.wasi.as_mut().expect("made above")
    }
}

/// Opens the folders of grants as one of the jobs: a disk may be slow, or hang.
async fn opened(
    grants: &Arc<WasiGrants>,
    name: Option<&Arc<str>>,
    log: &LogAllowance,
    stderr: &Tail,
    jobs: &FileJobs,
) -> Result<WasiCtxBuilder, WasiError> {
    // Outside a runtime there is no worker to block.
    if grants.folders.is_empty() || Handle::try_current().is_err() {
        return grants.builder(name, log, stderr.clone());
    }
    let (grants, name, log, stderr) = (Arc::clone(grants), name.cloned(), log.clone(), stderr.clone());
    let open = move || grants.builder(name.as_ref(), &log, stderr);
    match jobs.spawn(async { spawn_blocking(open).await }).await {
        Ok(builder) => builder,
        Err(error) if error.is_panic() => resume_unwind(error.into_panic()),
        Err(_) => Err(WasiError::ShuttingDown),
    }
}

impl<U: Send + 'static> Metered for HostState<U> {
    fn meter(&mut self) -> &mut Meter {
        &mut self.meter
    }
}

impl<U: Send + 'static> WasiView for HostState<U> {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        let Wasi { ctx, table, .. } = self.wasi_parts();
        WasiCtxView { ctx, table }
    }
}
