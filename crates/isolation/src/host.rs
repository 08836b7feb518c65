//! What a store holds beside the guest.

use std::sync::Arc;

use airssys_wasm_engine::wasmtime_wasi::{ResourceTable, WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};
use airssys_wasm_limits::{Meter, Metered, Quota, Usage};

use crate::{WasiError, WasiGrants};

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
}

impl<U> HostState<U> {
    /// `grants` is given for a component that imports WASI. Its folders are opened here; without one the context that
    /// grants nothing is made when the first host function asks for it, and otherwise never.
    pub(crate) fn new(meter: Meter, grants: Option<&Arc<WasiGrants>>, ext: U) -> Result<Self, WasiError> {
        let mut state = Self { meter, wasi: None, ext };
        if let Some(grants) = grants {
            state.wasi = Some(state.wasi_from(grants.builder(state.meter.log())?));
        }
        Ok(state)
    }

    fn wasi_from(&self, mut builder: WasiCtxBuilder) -> Box<Wasi> {
        let limits = self.quota().limits();
        // The one host function of WASI that makes as many bytes as it is asked for.
        builder.max_random_size(limits.host_call_bytes.as_u64());
        let mut table = ResourceTable::new();
        table.set_max_capacity(limits.handles as usize);
        Box::new(Wasi { ctx: builder.build(), table })
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

    fn wasi_parts(&mut self) -> &mut Wasi {
        if self.wasi.is_none() {
            self.wasi = Some(self.wasi_from(WasiCtx::builder()));
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
        let Wasi { ctx, table } = self.wasi_parts();
        WasiCtxView { ctx, table }
    }
}
