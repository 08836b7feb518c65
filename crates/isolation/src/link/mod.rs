//! WASI for sandboxes: wasmtime-wasi's functions, with bounded ones for those that a guest could make expensive.
//!
//! The bounded ones add only their bound to wasmtime-wasi's. Their resources are in `wasi`.

mod config;
mod keyvalue;
mod p2;
mod p3;

use airssys_wasm_engine::{
    Linker, add_bare_wasi, takes_wasi_p3,
    wasmtime::{self, StoreContextMut, component::Resource},
    wasmtime_wasi::{Rng as _, filesystem::Descriptor, thread_rng},
};
use airssys_wasm_limits::give_way;

pub use self::{config::add_config, keyvalue::add_keyvalue};
use crate::{HostState, wasi::OpenFile};

/// Adds WASI (`wasi:cli`, `wasi:filesystem`, `wasi:sockets`, …) to the linker of a component that runs in sandboxes: 0.2,
/// and 0.3 for components with
/// [async](airssys_wasm_engine::Features::component_async).
///
/// It differs from wasmtime-wasi in what a call may cost the host:
///
/// - random bytes are made in slices, and other tasks get their turn in between;
/// - a host name of more than 253 bytes is `invalid-argument`, and nobody parses it; names are looked up eight at a time for
///   all sandboxes of a [`SandboxSpec`](crate::SandboxSpec), those included that are gone;
/// - streams of files and listings of folders are as many as [`file_streams`](crate::WasiGrants::file_streams) says, none
///   takes more than it permits, and their work is among the [`FileJobs`](crate::FileJobs);
/// - a folder is listed by portions, each when the guest has read the one before; what is wrong with the folder is told for
///   the first entry;
/// - a file is closed by a thread that may wait.
///
/// Of WASI 0.3 a guest may have many calls in flight, so more is bounded there:
///
/// - all functions of files are [`FileJobs`](crate::FileJobs), eight at a time for each sandbox besides its streams, and a
///   path of more than 4 KiB is `name-too-long`;
/// - of datagrams, sixteen are sent and sixteen awaited at a time, and sixteen more wait to be sent; one more `send` or
///   `receive` is `out-of-memory`.
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
    let mut bounded = p2::bound(linker);
    if bounded.is_ok() && takes_wasi_p3(linker) {
        bounded = p3::bound(linker);
    }
    linker.allow_shadowing(false);
    bounded
}

/// Random bytes made between two yields: some 30 µs of work.
const RANDOM_SLICE: usize = 64 << 10;

async fn random_bytes<U: Send + 'static>(
    mut store: StoreContextMut<'_, HostState<U>>,
    len: u64,
) -> wasmtime::Result<(Vec<u8>,)> {
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

async fn close<U: Send + 'static>(mut store: StoreContextMut<'_, HostState<U>>, rep: u32) -> wasmtime::Result<()> {
    if let Descriptor::File(file) = store.data_mut().table().delete(Resource::new_own(rep))? {
        OpenFile::new(file.file, store.data_mut().file_streams().jobs()).close().await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use airssys_wasm_engine::{EngineConfig, Profile, WasmEngine};

    use super::{p2::versioned, *};

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
            ("wasi:sockets/ip-name-lookup", "[method]resolve-address-stream.resolve-next-address"),
            ("wasi:sockets/ip-name-lookup", "[method]resolve-address-stream.subscribe"),
            ("wasi:sockets/ip-name-lookup", "resolve-address-stream"),
            ("wasi:filesystem/types", "[method]descriptor.read-via-stream"),
            ("wasi:filesystem/types", "[method]descriptor.write-via-stream"),
            ("wasi:filesystem/types", "[method]descriptor.append-via-stream"),
            ("wasi:filesystem/types", "[method]descriptor.read-directory"),
            ("wasi:filesystem/types", "[method]directory-entry-stream.read-directory-entry"),
            ("wasi:filesystem/types", "directory-entry-stream"),
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
