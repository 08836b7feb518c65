//! The bounded functions of WASI 0.3, of which a guest may have many in flight.

mod files;
mod sockets;
mod streams;

use airssys_wasm_engine::{
    Linker, WASI_P3_VERSION,
    wasmtime::{self, StoreContextMut},
};

use super::random_bytes;
use crate::HostState;

/// A definition under another version would leave wasmtime-wasi's in place.
fn versioned(interface: &str) -> String {
    format!("{interface}@{WASI_P3_VERSION}")
}

pub(super) fn bound<U: Send + 'static>(linker: &mut Linker<HostState<U>>) -> wasmtime::Result<()> {
    linker
        .instance(&versioned("wasi:random/random"))?
        .func_wrap_async("get-random-bytes", |store, (len,)| Box::new(at_most(store, len)))?;
    linker
        .instance(&versioned("wasi:random/insecure"))?
        .func_wrap_async("get-insecure-random-bytes", |store, (len,)| Box::new(at_most(store, len)))?;
    sockets::bound(linker)?;
    let mut filesystem = linker.instance(&versioned("wasi:filesystem/types"))?;
    streams::bound(&mut filesystem)?;
    files::bound(&mut filesystem)
}

/// As many random bytes as the host gives at once: 0.3 allows fewer than asked for.
async fn at_most<U: Send + 'static>(
    store: StoreContextMut<'_, HostState<U>>,
    len: u64,
) -> wasmtime::Result<(Vec<u8>,)> {
    let allowed = store.data().quota().limits().host_call_bytes.as_u64().max(1);
    random_bytes(store, len.min(allowed)).await
}

#[cfg(test)]
mod tests {
    use airssys_wasm_engine::{EngineConfig, LoadedComponent, Profile, WasmEngine, add_bare_wasi, takes_wasi_p3};

    use super::{
        super::{add_wasi, p2},
        *,
    };

    const BOUNDED: &[(&str, &[&str])] = &[
        ("wasi:random/random", &["get-random-bytes"]),
        ("wasi:random/insecure", &["get-insecure-random-bytes"]),
        ("wasi:sockets/ip-name-lookup", &["resolve-addresses"]),
        ("wasi:sockets/types", &["[method]udp-socket.send", "[method]udp-socket.receive"]),
        (
            "wasi:filesystem/types",
            &[
                "descriptor",
                "[method]descriptor.read-via-stream",
                "[method]descriptor.write-via-stream",
                "[method]descriptor.append-via-stream",
                "[method]descriptor.read-directory",
                "[method]descriptor.advise",
                "[method]descriptor.sync-data",
                "[method]descriptor.get-flags",
                "[method]descriptor.get-type",
                "[method]descriptor.set-size",
                "[method]descriptor.set-times",
                "[method]descriptor.sync",
                "[method]descriptor.create-directory-at",
                "[method]descriptor.stat",
                "[method]descriptor.stat-at",
                "[method]descriptor.set-times-at",
                "[method]descriptor.link-at",
                "[method]descriptor.open-at",
                "[method]descriptor.readlink-at",
                "[method]descriptor.remove-directory-at",
                "[method]descriptor.rename-at",
                "[method]descriptor.symlink-at",
                "[method]descriptor.unlink-file-at",
                "[method]descriptor.is-same-object",
                "[method]descriptor.metadata-hash",
                "[method]descriptor.metadata-hash-at",
            ],
        ),
    ];

    fn component() -> LoadedComponent {
        let config = EngineConfig::small().with_component_async().compile_in_process().with_manual_ticks();
        let engine = WasmEngine::new(config).unwrap();
        let text = r#"(component (import "wasi:random/random@0.3.0" (instance)))"#;
        engine.load_wat_blocking(text, Profile::Plain).unwrap()
    }

    #[test]
    fn what_is_bounded_takes_the_place_of_what_wasmtime_wasi_defines() {
        let mut linker = component().linker::<HostState<()>>();
        add_bare_wasi(&mut linker).unwrap();
        for (interface, functions) in BOUNDED {
            let mut instance = linker.instance(&versioned(interface)).unwrap();
            for function in *functions {
                let again = instance.func_wrap(function, |_, (): ()| Ok(()));
                assert!(again.is_err(), "wasmtime-wasi has no {function} in {}", versioned(interface));
                // The control: what nobody has defined can be defined.
                instance.func_wrap(&format!("not-{function}"), |_, (): ()| Ok(())).unwrap();
            }
        }
    }

    #[test]
    fn all_of_it_is_defined_by_what_bounds_it() {
        let mut linker = component().linker::<HostState<()>>();
        bound(&mut linker).unwrap();
        for (interface, functions) in BOUNDED {
            let mut instance = linker.instance(&versioned(interface)).unwrap();
            for function in *functions {
                assert!(instance.func_wrap(function, |_, (): ()| Ok(())).is_err(), "{function}");
                instance.func_wrap(&format!("not-{function}"), |_, (): ()| Ok(())).unwrap();
            }
        }
    }

    #[test]
    fn components_without_async_get_0_2_and_those_with_async_both() {
        for (component, both) in [(component(), true), (without_async(), false)] {
            let mut linker = component.linker::<HostState<()>>();
            add_wasi(&mut linker).unwrap();
            assert_eq!(takes_wasi_p3(&linker), both);
            let taken = |linker: &mut Linker<_>, name: &str| {
                linker.instance(name).unwrap().func_wrap("get-random-u64", |_, (): ()| Ok(())).is_err()
            };
            assert!(taken(&mut linker, &p2::versioned("wasi:random/random")));
            assert_eq!(taken(&mut linker, &versioned("wasi:random/random")), both);
        }
    }

    fn without_async() -> LoadedComponent {
        let engine = WasmEngine::new(EngineConfig::small().compile_in_process().with_manual_ticks()).unwrap();
        engine.load_wat_blocking("(component)", Profile::Plain).unwrap()
    }
}
