//! Streams of files and folders: as many as [`file_streams`](crate::WasiGrants::file_streams) says.

use std::{iter, sync::Arc};

use airssys_wasm_engine::{
    wasmtime::{
        self, StoreContextMut,
        component::{FutureReader, LinkerInstance, Resource, StreamReader},
    },
    wasmtime_wasi::{
        filesystem::{Descriptor, WasiFilesystemCtxView, WasiFilesystemView as _},
        p2::{DynOutputStream, FsResult, bindings::filesystem::types::HostDescriptor},
        p3::bindings::filesystem::types::{DirectoryEntry, ErrorCode},
    },
};

use crate::{
    HostState,
    wasi::{
        FileIn, FileOut, FolderIn, OpenFile, Slot,
        p3::{self, End, Listing, Reading, Writing},
    },
};

type Ended = FutureReader<Result<(), ErrorCode>>;

pub(super) fn bound<U: Send + 'static>(files: &mut LinkerInstance<'_, HostState<U>>) -> wasmtime::Result<()> {
    files.func_wrap("[method]descriptor.read-via-stream", |store, (file, at)| Ok((read(store, file, at)?,)))?;
    files.func_wrap("[method]descriptor.write-via-stream", |store, (file, data, at)| {
        Ok((write(store, file, data, |files, file| files.write_via_stream(file, at))?,))
    })?;
    files.func_wrap("[method]descriptor.append-via-stream", |store, (file, data)| {
        Ok((write(store, file, data, |files, file| files.append_via_stream(file))?,))
    })?;
    files.func_wrap("[method]descriptor.read-directory", |store, (folder,)| Ok((list(store, folder)?,)))
}

/// Opens a stream of 0.2, with its file and a slot. An error is for the guest.
fn open<U: Send + 'static, S: Send + 'static>(
    store: &mut StoreContextMut<'_, HostState<U>>,
    file: Resource<Descriptor>,
    open: impl FnOnce(&mut WasiFilesystemCtxView<'_>, Resource<Descriptor>) -> FsResult<Resource<S>>,
) -> wasmtime::Result<Result<(S, OpenFile, Slot), ErrorCode>> {
    let slot = store.data_mut().file_streams().slot();
    let mut files = store.data_mut().filesystem();
    let opened = match files.table.get(&file)? {
        Descriptor::File(file) => Some(Arc::clone(&file.file)),
        Descriptor::Dir(_) => None,
    };
    let stream = match open(&mut files, file) {
        Ok(stream) => files.table.delete(stream)?,
        Err(error) => return Ok(Err(p3::error(error.downcast()?))),
    };
    Ok(match (opened, slot) {
        (Some(opened), Some(slot)) => Ok((stream, slot.file(opened), slot)),
        _ => Err(ErrorCode::InsufficientMemory),
    })
}

fn read<U: Send + 'static>(
    mut store: StoreContextMut<'_, HostState<U>>,
    file: Resource<Descriptor>,
    at: u64,
) -> wasmtime::Result<(StreamReader<u8>, Ended)> {
    let (stream, file, slot) = match open(&mut store, file, |files, file| files.read_via_stream(file, at))? {
        Ok(opened) => opened,
        Err(error) => return Ok((StreamReader::new(&mut store, iter::empty())?, failed(&mut store, error)?)),
    };
    let (end, ended) = End::new();
    let bytes = StreamReader::new(&mut store, Reading::new(FileIn::new(stream, file, slot), end))?;
    Ok((bytes, FutureReader::new(&mut store, ended)?))
}

fn write<U: Send + 'static>(
    mut store: StoreContextMut<'_, HostState<U>>,
    file: Resource<Descriptor>,
    mut data: StreamReader<u8>,
    opened: impl FnOnce(&mut WasiFilesystemCtxView<'_>, Resource<Descriptor>) -> FsResult<Resource<DynOutputStream>>,
) -> wasmtime::Result<Ended> {
    match open(&mut store, file, opened)? {
        Ok((stream, file, slot)) => {
            let (end, ended) = End::new();
            data.pipe(&mut store, Writing::new(FileOut::new(stream, file, slot), end))?;
            FutureReader::new(&mut store, ended)
        }
        Err(error) => {
            data.close(&mut store)?;
            failed(&mut store, error)
        }
    }
}

fn list<U: Send + 'static>(
    mut store: StoreContextMut<'_, HostState<U>>,
    folder: Resource<Descriptor>,
) -> wasmtime::Result<(StreamReader<DirectoryEntry>, Ended)> {
    let slot = store.data_mut().file_streams().slot();
    let error = match (store.data_mut().table().get(&folder)?, slot) {
        (Descriptor::Dir(folder), Some(slot)) => {
            let (end, ended) = End::new();
            let listing = Listing::new(FolderIn::new(Arc::clone(&folder.dir), slot), end);
            return Ok((StreamReader::new(&mut store, listing)?, FutureReader::new(&mut store, ended)?));
        }
        (Descriptor::Dir(_), None) => ErrorCode::InsufficientMemory,
        (Descriptor::File(_), _) => ErrorCode::NotDirectory,
    };
    Ok((StreamReader::new(&mut store, iter::empty())?, failed(&mut store, error)?))
}

fn failed<U: Send + 'static>(
    store: &mut StoreContextMut<'_, HostState<U>>,
    error: ErrorCode,
) -> wasmtime::Result<Ended> {
    FutureReader::new(store, async move { Ok::<_, wasmtime::Error>(Err(error)) })
}
