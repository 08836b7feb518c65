//! WASI for sandboxes: wasmtime-wasi's functions, with bounded ones for those that a guest could make expensive.
//!
//! The bounded ones add only their bound to wasmtime-wasi's. Their resources are in `wasi`.

use std::sync::Arc;

use airssys_wasm_engine::{
    Linker, WASI_VERSION, add_bare_wasi,
    wasmtime::{
        self, StoreContextMut,
        component::{Resource, ResourceType},
    },
    wasmtime_wasi::{
        Rng as _,
        filesystem::{Descriptor, WasiFilesystemCtxView, WasiFilesystemView},
        p2::{
            FsResult, Network,
            bindings::{
                filesystem::types::{ErrorCode, HostDescriptor},
                sockets::{
                    ip_name_lookup::{self, ResolveAddressStream},
                    network,
                },
            },
        },
        sockets::WasiSocketsView,
        thread_rng,
    },
};
use airssys_wasm_limits::{LimitExceeded, give_way};

use crate::{
    HostState,
    wasi::{FileIn, FileOut, OpenFile, Slot},
};

/// Adds WASI 0.2 (`wasi:cli`, `wasi:filesystem`, `wasi:sockets`, …) to the linker of a component that runs in sandboxes.
///
/// It differs from wasmtime-wasi in what a call may cost the host:
///
/// - random bytes are made in slices, and other tasks get their turn in between;
/// - a host name of more than 253 bytes is `invalid-argument`, and nobody parses it;
/// - streams of files are as many as [`file_streams`](crate::WasiGrants::file_streams) says, none takes more than it
///   permits, and their work is among the [`FileJobs`](crate::FileJobs);
/// - a file is closed by a thread that may wait.
///
/// [`WasiGrants`](crate::WasiGrants) decides what a guest is granted, not the linker. The linker does not allow
/// shadowing afterwards.
///
/// # Errors
///
/// When one of the interfaces is defined already.
pub fn add_wasi<U: Send + 'static>(linker: &mut Linker<HostState<U>>) -> wasmtime::Result<()> {
    add_bare_wasi(linker)?;
    linker.allow_shadowing(true);
    let bounded = bound(linker);
    linker.allow_shadowing(false);
    bounded
}

/// A definition under another version would leave wasmtime-wasi's in place.
fn versioned(interface: &str) -> String {
    format!("{interface}@{WASI_VERSION}")
}

fn bound<U: Send + 'static>(linker: &mut Linker<HostState<U>>) -> wasmtime::Result<()> {
    linker
        .instance(&versioned("wasi:random/random"))?
        .func_wrap_async("get-random-bytes", |store, (len,)| Box::new(random_bytes(store, len)))?;
    linker
        .instance(&versioned("wasi:random/insecure"))?
        .func_wrap_async("get-insecure-random-bytes", |store, (len,)| Box::new(random_bytes(store, len)))?;
    linker
        .instance(&versioned("wasi:sockets/ip-name-lookup"))?
        .func_wrap("resolve-addresses", |store, (network, name)| resolve_addresses(store, network, name))?;
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
    files.resource_async("descriptor", ResourceType::host::<Descriptor>(), |store, rep| Box::new(close(store, rep)))
}

/// Random bytes made between two yields: some 30 µs of work.
const RANDOM_SLICE: usize = 64 << 10;

/// For both interfaces: what is called insecure may be as good.
async fn random_bytes<U: Send + 'static>(
    mut store: StoreContextMut<'_, HostState<U>>,
    len: u64,
) -> wasmtime::Result<(Vec<u8>,)> {
    let allowed = store.data().quota().limits().host_call_bytes.as_u64();
    if len > allowed {
        return Err(LimitExceeded::HostCallBytes { asked: len, allowed }.into());
    }
    let mut random = thread_rng();
    let mut bytes = vec![0; usize::try_from(len)?];
    for (i, slice) in bytes.chunks_mut(RANDOM_SLICE).enumerate() {
        if i > 0 {
            give_way(&mut store).await?;
        }
        random.fill_bytes(slice);
    }
    Ok((bytes,))
}

/// The longest name in the DNS, in bytes.
const LONGEST_HOST_NAME: usize = 253;

type Resolving = Result<Resource<ResolveAddressStream>, network::ErrorCode>;

fn resolve_addresses<U: Send + 'static>(
    mut store: StoreContextMut<'_, HostState<U>>,
    network: Resource<Network>,
    name: String,
) -> wasmtime::Result<(Resolving,)> {
    let mut sockets = store.data_mut().sockets();
    if name.len() > LONGEST_HOST_NAME {
        // The handle is looked at all the same: to name a host takes a network.
        sockets.table.get(&network)?;
        return Ok((Err(network::ErrorCode::InvalidArgument),));
    }
    match ip_name_lookup::Host::resolve_addresses(&mut sockets, network, name) {
        Ok(addresses) => Ok((Ok(addresses),)),
        Err(error) => Ok((Err(error.downcast()?),)),
    }
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
        (Some(opened), Some(slot)) => Ok((Ok(files.table.push(bound(stream, OpenFile::new(opened), slot))?),)),
        _ => Ok((Err(ErrorCode::InsufficientMemory),)),
    }
}

async fn close<U: Send + 'static>(mut store: StoreContextMut<'_, HostState<U>>, rep: u32) -> wasmtime::Result<()> {
    if let Descriptor::File(file) = store.data_mut().table().delete(Resource::new_own(rep))? {
        let jobs = store.data_mut().file_streams().jobs().clone();
        OpenFile::new(file.file).close(&jobs).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use airssys_wasm_engine::{EngineConfig, Profile, WasmEngine};

    use super::*;

    #[test]
    fn what_is_bounded_takes_the_place_of_what_wasmtime_wasi_defines() {
        let engine = WasmEngine::new(EngineConfig::small().compile_in_process().with_manual_ticks()).unwrap();
        let component = engine.load_wat_blocking("(component)", Profile::Plain).unwrap();
        let mut linker = component.linker::<HostState<()>>();
        add_bare_wasi(&mut linker).unwrap();
        for (interface, function) in [
            ("wasi:random/random", "get-random-bytes"),
            ("wasi:random/insecure", "get-insecure-random-bytes"),
            ("wasi:sockets/ip-name-lookup", "resolve-addresses"),
            ("wasi:filesystem/types", "[method]descriptor.read-via-stream"),
            ("wasi:filesystem/types", "[method]descriptor.write-via-stream"),
            ("wasi:filesystem/types", "[method]descriptor.append-via-stream"),
            ("wasi:filesystem/types", "descriptor"),
        ] {
            let mut instance = linker.instance(&versioned(interface)).unwrap();
            let again = instance.func_wrap(function, |_, (): ()| Ok(()));
            assert!(again.is_err(), "wasmtime-wasi has no {function} in {}", versioned(interface));
            // The control: what nobody has defined can be defined.
            instance.func_wrap(&format!("not-{function}"), |_, (): ()| Ok(())).unwrap();
        }
    }

    #[test]
    fn nothing_can_be_defined_over_wasi_afterwards() {
        let engine = WasmEngine::new(EngineConfig::small().compile_in_process().with_manual_ticks()).unwrap();
        let component = engine.load_wat_blocking("(component)", Profile::Plain).unwrap();
        let mut linker = component.linker::<HostState<()>>();
        add_wasi(&mut linker).unwrap();
        let mut random = linker.instance(&versioned("wasi:random/random")).unwrap();
        assert!(random.func_wrap("get-random-bytes", |_, (): ()| Ok(())).is_err());
        assert!(add_wasi(&mut linker).is_err());
    }
}
