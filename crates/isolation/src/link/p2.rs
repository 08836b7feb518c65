//! The bounded functions of WASI 0.2.

use std::{
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use airssys_wasm_engine::{
    Linker, WASI_VERSION,
    wasmtime::{
        self, StoreContextMut,
        component::{Resource, ResourceType},
    },
    wasmtime_wasi::{
        filesystem::{Descriptor, WasiFilesystemCtxView, WasiFilesystemView},
        p2::{
            FsResult, Network,
            bindings::{
                filesystem::types::{DirectoryEntry, ErrorCode, HostDescriptor},
                sockets::network,
            },
            subscribe,
        },
    },
};
use airssys_wasm_limits::LimitExceeded;

use super::{close, random_bytes};
use crate::{
    HostState,
    wasi::{FileIn, FileOut, FolderIn, LookUp, OpenFile, Refused, Slot},
};

/// A definition under another version would leave wasmtime-wasi's in place.
pub(super) fn versioned(interface: &str) -> String {
    format!("{interface}@{WASI_VERSION}")
}

pub(super) fn bound<U: Send + 'static>(linker: &mut Linker<HostState<U>>) -> wasmtime::Result<()> {
    linker
        .instance(&versioned("wasi:random/random"))?
        .func_wrap_async("get-random-bytes", |store, (len,)| Box::new(exactly(store, len)))?;
    linker
        .instance(&versioned("wasi:random/insecure"))?
        .func_wrap_async("get-insecure-random-bytes", |store, (len,)| Box::new(exactly(store, len)))?;
    let mut names = linker.instance(&versioned("wasi:sockets/ip-name-lookup"))?;
    names.func_wrap("resolve-addresses", |store, (network, name)| resolve_addresses(store, network, name))?;
    names.func_wrap("[method]resolve-address-stream.resolve-next-address", |store, (look_up,)| {
        resolve_next_address(store, look_up)
    })?;
    names.func_wrap(
        "[method]resolve-address-stream.subscribe",
        |mut store: StoreContextMut<'_, HostState<U>>, (look_up,): (Resource<LookUp>,)| {
            Ok((subscribe(store.data_mut().table(), look_up)?,))
        },
    )?;
    names.resource("resolve-address-stream", ResourceType::host::<LookUp>(), |mut store, rep| {
        store.data_mut().table().delete(Resource::<LookUp>::new_own(rep))?;
        Ok(())
    })?;
    let mut files = linker.instance(&versioned("wasi:filesystem/types"))?;
    files.func_wrap("[method]descriptor.read-via-stream", |store, (file, at)| {
        stream(
            store,
            file,
            |files, file| files.read_via_stream(file, at),
            |s, f, slot| Box::new(FileIn::new(s, f, slot)),
        )
    })?;
    files.func_wrap("[method]descriptor.write-via-stream", |store, (file, at)| {
        stream(
            store,
            file,
            |files, file| files.write_via_stream(file, at),
            |s, f, slot| Box::new(FileOut::new(s, f, slot)),
        )
    })?;
    files.func_wrap("[method]descriptor.append-via-stream", |store, (file,)| {
        stream(
            store,
            file,
            |files, file| files.append_via_stream(file),
            |s, f, slot| Box::new(FileOut::new(s, f, slot)),
        )
    })?;
    files.func_wrap("[method]descriptor.read-directory", |store, (folder,)| list(store, folder))?;
    files.func_wrap_async("[method]directory-entry-stream.read-directory-entry", |store, (entries,)| {
        Box::new(next_entry(store, entries))
    })?;
    files.resource("directory-entry-stream", ResourceType::host::<FolderIn>(), |mut store, rep| {
        store.data_mut().table().delete(Resource::<FolderIn>::new_own(rep))?;
        Ok(())
    })?;
    files.resource_async("descriptor", ResourceType::host::<Descriptor>(), |store, rep| Box::new(close(store, rep)))
}

/// For both interfaces: what is called insecure may be as good.
async fn exactly<U: Send + 'static>(
    store: StoreContextMut<'_, HostState<U>>,
    len: u64,
) -> wasmtime::Result<(Vec<u8>,)> {
    let allowed = store.data().quota().limits().host_call_bytes.as_u64();
    if len > allowed {
        return Err(LimitExceeded::HostCallBytes { asked: len, allowed }.into());
    }
    random_bytes(store, len).await
}

type Resolving = Result<Resource<LookUp>, network::ErrorCode>;

fn resolve_addresses<U: Send + 'static>(
    mut store: StoreContextMut<'_, HostState<U>>,
    network: Resource<Network>,
    name: String,
) -> wasmtime::Result<(Resolving,)> {
    // To name a host takes a network.
    store.data_mut().table().get(&network)?;
    Ok((match LookUp::new(store.data().look_ups(), &name) {
        Ok(look_up) => Ok(store.data_mut().table().push(look_up)?),
        Err(Refused::NotGranted) => Err(network::ErrorCode::PermanentResolverFailure),
        Err(Refused::NotAName) => Err(network::ErrorCode::InvalidArgument),
    },))
}

type NextAddress = Result<Option<network::IpAddress>, network::ErrorCode>;

fn resolve_next_address<U: Send + 'static>(
    mut store: StoreContextMut<'_, HostState<U>>,
    look_up: Resource<LookUp>,
) -> wasmtime::Result<(NextAddress,)> {
    let look_up = store.data_mut().table().get_mut(&look_up)?;
    Ok((match look_up.poll_addresses(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Ok(addresses)) => Ok(addresses.next().map(Into::into)),
        Poll::Ready(Err(_)) => Err(network::ErrorCode::NameUnresolvable),
        Poll::Pending => Err(network::ErrorCode::WouldBlock),
    },))
}

/// Opens a stream of wasmtime-wasi's, and wraps it.
fn stream<U: Send + 'static, S: Send + 'static>(
    mut store: StoreContextMut<'_, HostState<U>>,
    file: Resource<Descriptor>,
    open: impl FnOnce(&mut WasiFilesystemCtxView<'_>, Resource<Descriptor>) -> FsResult<Resource<S>>,
    bound: impl FnOnce(S, OpenFile, Slot) -> S,
) -> wasmtime::Result<(Result<Resource<S>, ErrorCode>,)> {
    let slot = store.data_mut().file_streams().slot();
    let mut files = store.data_mut().filesystem();
    let opened = match files.table.get(&file)? {
        Descriptor::File(file) => Some(Arc::clone(&file.file)),
        Descriptor::Dir(_) => None,
    };
    let stream = match open(&mut files, file) {
        Ok(stream) => files.table.delete(stream)?,
        Err(error) => return Ok((Err(error.downcast()?),)),
    };
    match (opened, slot) {
        (Some(opened), Some(slot)) => Ok((Ok(files.table.push(bound(stream, slot.file(opened), slot))?),)),
        _ => Ok((Err(ErrorCode::InsufficientMemory),)),
    }
}

/// Nothing is read yet: what goes wrong is told for the first entry.
fn list<U: Send + 'static>(
    mut store: StoreContextMut<'_, HostState<U>>,
    folder: Resource<Descriptor>,
) -> wasmtime::Result<(Result<Resource<FolderIn>, ErrorCode>,)> {
    let slot = store.data_mut().file_streams().slot();
    let table = store.data_mut().table();
    Ok((match (table.get(&folder)?, slot) {
        (Descriptor::Dir(folder), Some(slot)) => {
            let listing = FolderIn::new(Arc::clone(&folder.dir), slot);
            Ok(table.push(listing)?)
        }
        (Descriptor::Dir(_), None) => Err(ErrorCode::InsufficientMemory),
        (Descriptor::File(_), _) => Err(ErrorCode::NotDirectory),
    },))
}

type NextEntry = Result<Option<DirectoryEntry>, ErrorCode>;

async fn next_entry<U: Send + 'static>(
    mut store: StoreContextMut<'_, HostState<U>>,
    entries: Resource<FolderIn>,
) -> wasmtime::Result<(NextEntry,)> {
    let folder = store.data_mut().table().get_mut(&entries)?;
    let entry = poll_fn(|cx| folder.poll_entries(cx).map(Iterator::next)).await;
    Ok((entry.transpose(),))
}
