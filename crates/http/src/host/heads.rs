//! How many heads of messages a guest may have at a time.

use airssys_wasm_engine::wasmtime::{self, component::ResourceTable, format_err};
use wasmtime_wasi_http::{
    FieldMap,
    p2::types::{HostFutureIncomingResponse, HostIncomingResponse, HostOutgoingRequest, HostOutgoingResponse},
    p3,
};

/// Heads that a guest may have at a time: those that it makes, alone or in a message, and those of responses. They lie outside
/// its memory, with up to 32 and 64 KiB each.
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

/// Replaces the functions of an instance of `wasi:http/types` by which a guest makes fields, which the bindings of this module
/// are for: each traps if there is no room for one more. The bindings of 0.2 and 0.3 have the same names and other types.
macro_rules! bound_heads {
    ($interface:ident, $types:ident) => {{
        use $types::HostFields as Fields;

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
