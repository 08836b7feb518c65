//! Descriptors for a job that may outlive the call, and the sandbox, that it is of.

use std::sync::Arc;

use airssys_wasm_engine::wasmtime::component::Resource;
use airssys_wasm_engine::wasmtime_wasi::{
    ResourceTable, ResourceTableError,
    filesystem::{Descriptor, WasiFilesystemCtx, WasiFilesystemCtxView},
};

use crate::{FileJobs, wasi::OpenFile};

/// Some descriptors in a table of their own. Files are closed elsewhere if the sandbox has closed its own meanwhile.
pub(crate) struct Descriptors {
    // The table goes first, so that its handles are not the last.
    table: ResourceTable,
    ctx: WasiFilesystemCtx,
    _files: Vec<OpenFile>,
    jobs: FileJobs,
}

impl Descriptors {
    /// # Errors
    ///
    /// When a descriptor is not in the sandbox's table.
    pub(crate) fn of<const N: usize>(
        sandbox: &ResourceTable,
        descriptors: [Resource<Descriptor>; N],
        jobs: &FileJobs,
    ) -> Result<(Self, [Resource<Descriptor>; N]), ResourceTableError> {
        let mut own = Self {
            table: ResourceTable::new(),
            ctx: WasiFilesystemCtx::default(),
            _files: Vec::with_capacity(N),
            jobs: jobs.clone(),
        };
        let mut moved = descriptors;
        for descriptor in &mut moved {
            let clone = sandbox.get(descriptor)?.clone();
            own._files.extend(open_file(&clone, jobs));
            *descriptor = own.table.push(clone)?;
        }
        Ok((own, moved))
    }

    /// For the functions of WASI 0.2, whose futures can be `'static` with it.
    pub(crate) fn view(&mut self) -> WasiFilesystemCtxView<'_> {
        WasiFilesystemCtxView { ctx: &mut self.ctx, table: &mut self.table }
    }

    /// Takes what a function has opened.
    pub(crate) fn take(&mut self, opened: Resource<Descriptor>) -> Result<Opened, ResourceTableError> {
        let descriptor = self.table.delete(opened)?;
        let file = open_file(&descriptor, &self.jobs);
        Ok(Opened { descriptor, file })
    }
}

/// A descriptor that nobody has yet. Its file is closed elsewhere.
pub(crate) struct Opened {
    descriptor: Descriptor,
    // Behind the descriptor, so that its handle is not the last.
    file: Option<OpenFile>,
}

impl Opened {
    pub(crate) fn push_to(self, sandbox: &mut ResourceTable) -> Result<Resource<Descriptor>, ResourceTableError> {
        let pushed = sandbox.push(self.descriptor);
        drop(self.file);
        pushed
    }
}

fn open_file(descriptor: &Descriptor, jobs: &FileJobs) -> Option<OpenFile> {
    match descriptor {
        Descriptor::File(file) => Some(OpenFile::new(Arc::clone(&file.file), jobs)),
        Descriptor::Dir(_) => None,
    }
}
