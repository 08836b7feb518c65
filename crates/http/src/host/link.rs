//! `wasi:http` for sandboxes: wasmtime-wasi-http's functions, and in place of some, ones that watch the bodies.

use airssys_wasm_engine::{
    Linker, takes_wasi_p3,
    wasmtime::{self, StoreContextMut, component::Resource},
};
use airssys_wasm_isolation::HostState;
use wasmtime_wasi_http::{
    FieldMap, WasiHttp,
    p2::{
        bindings::{
            LinkOptions,
            http::{
                outgoing_handler,
                types::{self, ErrorCode},
            },
        },
        body::HostOutgoingBody,
        types::{HostOutgoingRequest, HostOutgoingResponse},
    },
};

use super::{
    bodies::length_of,
    heads::bound_heads,
    p3,
    state::{HttpHost, view},
};

/// The version of `wasi:http` 0.2 that [`add_http`] defines. A component that asks for another minor version of 0.2 is
/// given this one.
pub const WASI_HTTP_VERSION: &str = "0.2.12";

/// Adds `wasi:http/types` and `wasi:http/outgoing-handler` of 0.2 to the linker of a component that runs in sandboxes, and
/// `wasi:http/types` and `wasi:http/client` of 0.3 for components with
/// [async](airssys_wasm_engine::Features::component_async). What else the worlds `proxy` and `service` have comes from
/// [`add_wasi`](airssys_wasm_isolation::add_wasi).
///
/// It differs from wasmtime-wasi-http in this:
///
/// - a body that the guest does not finish, because it crashes for one, is broken off and never complete;
/// - a guest may have 64 bodies at a time that are not read to the end: `body` of one more is an error;
/// - a guest may have 128 sets of fields and heads of messages at a time: to make one more traps;
/// - a method of a request may have 32 bytes, and an authority 1 KiB: to set a longer one is an error;
/// - outgoing requests are those that [`Outgoing`](crate::Outgoing) grants, by a client that checks addresses.
///
/// # Errors
///
/// When one of the interfaces is defined already.
pub fn add_http<U: HttpHost>(linker: &mut Linker<HostState<U>>) -> wasmtime::Result<()> {
    let options = LinkOptions::default();
    outgoing_handler::add_to_linker::<_, WasiHttp>(linker, view::<U>)?;
    types::add_to_linker::<_, WasiHttp>(linker, &(&options).into(), view::<U>)?;
    let has_p3 = takes_wasi_p3(linker);
    if has_p3 {
        p3::add(linker)?;
    }
    linker.allow_shadowing(true);
    let mut watched = watch(linker);
    if has_p3 {
        watched = watched.and_then(|()| p3::watch(linker));
    }
    linker.allow_shadowing(false);
    watched
}

fn watch<U: HttpHost>(linker: &mut Linker<HostState<U>>) -> wasmtime::Result<()> {
    let mut interface = linker.instance(&format!("wasi:http/types@{WASI_HTTP_VERSION}"))?;
    bound_heads!(interface, types, "outgoing-request", HostOutgoingRequest of HostOutgoingRequest);
    interface.func_wrap(
        "[method]outgoing-response.body",
        |mut store: StoreContextMut<'_, HostState<U>>, (this,): (Resource<HostOutgoingResponse>,)| {
            let state = store.data_mut();
            if state.ext.http().bodies.is_full() {
                return Ok((Err(()),));
            }
            let rep = this.rep();
            let made = types::HostOutgoingResponse::body(&mut view(state), this)?;
            if let Ok(body) = &made {
                let (table, ext) = state.table_and_ext();
                let response = table.get_mut(&Resource::<HostOutgoingResponse>::new_borrow(rep))?;
                let length = length_of(&response.headers);
                let inner = response.body.take();
                response.body = inner.map(|inner| ext.http().bodies.add(body.rep(), length, inner));
            }
            Ok((made,))
        },
    )?;
    interface.func_wrap(
        "[method]outgoing-request.body",
        |mut store: StoreContextMut<'_, HostState<U>>, (this,): (Resource<HostOutgoingRequest>,)| {
            let state = store.data_mut();
            if state.ext.http().bodies.is_full() {
                return Ok((Err(()),));
            }
            let rep = this.rep();
            let made = types::HostOutgoingRequest::body(&mut view(state), this)?;
            if let Ok(body) = &made {
                let (table, ext) = state.table_and_ext();
                let request = table.get_mut(&Resource::<HostOutgoingRequest>::new_borrow(rep))?;
                let length = length_of(&request.headers);
                let inner = request.body.take();
                request.body = inner.map(|inner| ext.http().bodies.add(body.rep(), length, inner));
            }
            Ok((made,))
        },
    )?;
    interface.func_wrap(
        "[static]outgoing-body.finish",
        |mut store: StoreContextMut<'_, HostState<U>>,
         (this, trailers): (Resource<HostOutgoingBody>, Option<Resource<FieldMap>>)| {
            let state = store.data_mut();
            let (table, ext) = state.table_and_ext();
            let rep = this.rep();
            // Each of these traps if the guest has parts of it still in use. Then the body is not finished.
            let body = table.delete(this)?;
            let trailers = trailers.map(|trailers| table.delete(trailers)).transpose()?;
            ext.http().bodies.finish(rep);
            let finished: Result<(), ErrorCode> = body.finish(trailers);
            Ok((finished,))
        },
    )
}
