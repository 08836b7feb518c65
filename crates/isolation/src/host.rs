//! What a store holds beside the guest.

use std::{mem, sync::Arc};

use airssys_wasm_engine::wasmtime_wasi::{ResourceTable, WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};
use airssys_wasm_limits::{Meter, Metered, Quota, Usage};

use crate::{
    FileJobs, WasiError, WasiGrants,
    wasi::{FileStreams, drop_resources},
};

/// The data of a sandbox's store: the meter, the WASI context, and whatever the embedder's host functions need.
pub struct HostState<U> {
    meter: Meter,
    wasi: Option<Box<Wasi>>,
    /// The embedder's own.
    pub ext: U,
}

struct Wasi {
    ctx: WasiCtx,
    table: ResourceTable,
    streams: FileStreams,
}

impl Drop for Wasi {
    fn drop(&mut self) {
        drop_resources(mem::take(&mut self.table));
    }
}

impl<U> HostState<U> {
    /// `grants` is given for a component that imports WASI. Its folders are opened here; without one the context that
    /// grants nothing is made when the first host function asks for it, and otherwise never.
    pub(crate) fn new(
        meter: Meter,
        grants: Option<&Arc<WasiGrants>>,
        jobs: &FileJobs,
        ext: U,
    ) -> Result<Self, WasiError> {
        let mut state = Self { meter, wasi: None, ext };
        if let Some(grants) = grants {
            let streams = FileStreams::new(grants.file_streams, jobs.clone());
            state.wasi = Some(state.wasi_from(grants.builder(state.meter.log())?, streams));
        }
        Ok(state)
    }

    fn wasi_from(&self, mut builder: WasiCtxBuilder, streams: FileStreams) -> Box<Wasi> {
        let limits = self.quota().limits();
        // For who links wasmtime-wasi's own function; ours compares by itself.
        builder.max_random_size(limits.host_call_bytes.as_u64());
        let mut table = ResourceTable::new();
        table.set_max_capacity(limits.handles as usize);
        Box::new(Wasi { ctx: builder.build(), table, streams })
    }

    pub(crate) fn quota(&self) -> &Quota {
        self.meter.quota()
    }

    pub(crate) fn memory(&self) -> u64 {
        self.meter.memory()
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

    pub(crate) fn file_streams(&mut self) -> &FileStreams {
        &self.wasi_parts().streams
    }

    fn wasi_parts(&mut self) -> &mut Wasi {
        if self.wasi.is_none() {
            // Without a folder there is no file to be streamed.
            self.wasi = Some(self.wasi_from(WasiCtx::builder(), FileStreams::new(0, FileJobs::default())));
        }
        self.wasi.as_mut().expect("made above")
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
