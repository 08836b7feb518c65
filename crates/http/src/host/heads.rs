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
