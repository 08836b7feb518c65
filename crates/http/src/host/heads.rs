//! How many heads of messages a guest may have at a time, and how long their lines may be.

use airssys_wasm_engine::wasmtime::{self, component::ResourceTable, format_err};
use wasmtime_wasi_http::{
    FieldMap,
    p2::types::{HostFutureIncomingResponse, HostIncomingResponse, HostOutgoingRequest, HostOutgoingResponse},
    p3,
};

use crate::request::LONGEST_METHOD;

/// Heads that a guest may have at a time: those that it makes, alone or in a message, and those of responses. They lie outside
/// its memory, with up to 100 KiB each: 32 KiB of fields, the authority, and the 64 KiB that a path may have.
const MOST_HEADS: usize = 128;

/// Traps if there is no room for one more head.
pub(super) fn one_more_head(table: &mut ResourceTable) -> wasmtime::Result<()> {
    let heads = table.iter_mut().filter(|entry| {
        entry.is::<FieldMap>()
            || entry.is::<HostOutgoingRequest>()
            || entry.is::<HostOutgoingResponse>()
            || entry.is::<HostFutureIncomingResponse>()
            || entry.is::<HostIncomingResponse>()
            || entry.is::<p3::Request>()
            || entry.is::<p3::Response>()
    });
    if heads.count() < MOST_HEADS {
        Ok(())
    } else {
        Err(format_err!("a guest may have {MOST_HEADS} sets of fields and heads of messages at a time"))
    }
}

/// Bytes of the authority of a request that a guest makes. A name of DNS has 253 at most.
const LONGEST_AUTHORITY: usize = 1 << 10;

/// Whether a guest may give a request this method, if it is none of those with a name of their own.
pub(super) fn takes_method(method: &str) -> bool {
    method.len() <= LONGEST_METHOD
}

/// Whether a guest may give a request this authority.
pub(super) fn takes_authority(authority: Option<&str>) -> bool {
    authority.is_none_or(|authority| authority.len() <= LONGEST_AUTHORITY)
}

/// Replaces the functions of an instance of `wasi:http/types` by which a guest makes fields, which the bindings of this module
/// are for: each traps if there is no room for one more. Replaces those, too, by which it gives a request a method and an
/// authority, which wasmtime-wasi-http takes at any length. The bindings of 0.2 and 0.3 have other types, and in part the same
/// names.
macro_rules! bound_heads {
    ($interface:ident, $types:ident, $request:literal, $Host:ident of $Request:ty) => {{
        use $types::HostFields as Fields;

        $interface.func_wrap(
            concat!("[method]", $request, ".set-method"),
            |mut store: StoreContextMut<'_, HostState<U>>, (this, method): (Resource<$Request>, $types::Method)| {
                if matches!(&method, $types::Method::Other(method) if !$crate::host::heads::takes_method(method)) {
                    return Ok((Err(()),));
                }
                Ok(($types::$Host::set_method(&mut view(store.data_mut()), this, method)?,))
            },
        )?;
        $interface.func_wrap(
            concat!("[method]", $request, ".set-authority"),
            |mut store: StoreContextMut<'_, HostState<U>>, (this, authority): (Resource<$Request>, Option<String>)| {
                if !$crate::host::heads::takes_authority(authority.as_deref()) {
                    return Ok((Err(()),));
                }
                Ok(($types::$Host::set_authority(&mut view(store.data_mut()), this, authority)?,))
            },
        )?;

        $interface.func_wrap("[constructor]fields", |mut store: StoreContextMut<'_, HostState<U>>, (): ()| {
            let mut view = view(store.data_mut());
            $crate::host::heads::one_more_head(view.table)?;
            Ok((Fields::new(&mut view)?,))
        })?;
        $interface.func_wrap(
            "[static]fields.from-list",
            |mut store: StoreContextMut<'_, HostState<U>>, (entries,): (Vec<(String, Vec<u8>)>,)| {
                let mut view = view(store.data_mut());
                $crate::host::heads::one_more_head(view.table)?;
                let made: Result<_, $types::HeaderError> = match Fields::from_list(&mut view, entries) {
                    Ok(made) => Ok(made),
                    Err(error) => Err(error.downcast()?),
                };
                Ok((made,))
            },
        )?;
        $interface.func_wrap(
            "[method]fields.clone",
            |mut store: StoreContextMut<'_, HostState<U>>, (this,): (Resource<FieldMap>,)| {
                let mut view = view(store.data_mut());
                $crate::host::heads::one_more_head(view.table)?;
                Ok((Fields::clone(&mut view, this)?,))
            },
        )?;
    }};
}
pub(super) use bound_heads;
