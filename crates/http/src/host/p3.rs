//! `wasi:http` of 0.3 for sandboxes: wasmtime-wasi-http's functions, and in place of some, ones that bound the heads and watch
//! the bodies of requests.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    task::{Context, Poll},
};

use airssys_wasm_engine::{
    Linker,
    wasmtime::{
        self, AsContextMut, StoreContextMut,
        component::{Access, Accessor, FutureConsumer, FutureReader, Resource, Source, StreamReader},
        format_err,
    },
};
use airssys_wasm_isolation::HostState;
use tokio::sync::oneshot;
use wasmtime_wasi_http::{
    FieldMap, RequestOptions, WasiHttp,
    p3::{
        MaybeMutable, Request, Response,
        bindings::http::{
            client::{self, HostWithStore as _},
            types::{self, ErrorCode, HostRequestWithStore, HostResponseWithStore},
        },
    },
};

use super::{
    bodies::{End, Made},
    heads::{bound_heads, one_more_head},
    state::{HttpHost, view},
};

/// What a guest says at the end of a body.
type Ended = Result<Option<Resource<FieldMap>>, ErrorCode>;

/// What a guest says of a body that it has consumed.
type Consumed = Result<(), ErrorCode>;

/// Adds the types and the client.
pub(super) fn add<U: HttpHost>(linker: &mut Linker<HostState<U>>) -> wasmtime::Result<()> {
    types::add_to_linker::<_, WasiHttp>(linker, view::<U>)?;
    client::add_to_linker::<_, WasiHttp>(linker, view::<U>)
}

/// Replaces what bounds heads and watches bodies.
pub(super) fn watch<U: HttpHost>(linker: &mut Linker<HostState<U>>) -> wasmtime::Result<()> {
    let mut interface = linker.instance("wasi:http/types@0.3.0")?;
    bound_heads!(interface, types, "request", HostRequest of Request);
    type New = (
        Resource<FieldMap>,
        Option<StreamReader<u8>>,
        FutureReader<Ended>,
        Option<Resource<MaybeMutable<RequestOptions>>>,
    );
    interface.func_wrap(
        "[static]request.new",
        |mut store: StoreContextMut<'_, HostState<U>>, (headers, contents, trailers, options): New| {
            let (trailers, ended) = watched(&mut store, trailers)?;
            let access = Access::<_, WasiHttp>::new(store.as_context_mut(), view::<U>);
            let (request, sent) =
                <WasiHttp as HostRequestWithStore<_>>::new(access, headers, contents, trailers, options)?;
            store.data_mut().ext.http().unsent.add(request.rep(), Made::Request(ended));
            Ok(((request, sent),))
        },
    )?;
    type NewResponse = (Resource<FieldMap>, Option<StreamReader<u8>>, FutureReader<Ended>);
    interface.func_wrap(
        "[static]response.new",
        |mut store: StoreContextMut<'_, HostState<U>>, (headers, contents, trailers): NewResponse| {
            let access = Access::<_, WasiHttp>::new(store.as_context_mut(), view::<U>);
            let (response, sent) = <WasiHttp as HostResponseWithStore<_>>::new(access, headers, contents, trailers)?;
            store.data_mut().ext.http().unsent.add(response.rep(), Made::Response);
            Ok(((response, sent),))
        },
    )?;
    interface.func_wrap(
        "[static]request.consume-body",
        |mut store: StoreContextMut<'_, HostState<U>>, (this, result): (Resource<Request>, FutureReader<Consumed>)| {
            let result = without_text(&mut store, this.rep(), result)?;
            let access = Access::<_, WasiHttp>::new(store.as_context_mut(), view::<U>);
            Ok((<WasiHttp as HostRequestWithStore<_>>::consume_body(access, this, result)?,))
        },
    )?;
    interface.func_wrap(
        "[static]response.consume-body",
        |mut store: StoreContextMut<'_, HostState<U>>, (this, result): (Resource<Response>, FutureReader<Consumed>)| {
            let result = without_text(&mut store, this.rep(), result)?;
            let access = Access::<_, WasiHttp>::new(store.as_context_mut(), view::<U>);
            Ok((<WasiHttp as HostResponseWithStore<_>>::consume_body(access, this, result)?,))
        },
    )?;
    let mut interface = linker.instance("wasi:http/client@0.3.0")?;
    interface.func_wrap_concurrent("send", |store: &Accessor<HostState<U>>, (request,): (Resource<Request>,)| {
        Box::pin(async move { Ok((send(store, request).await?,)) })
    })
}

/// Sends a request whose body is complete only if the guest has said so.
async fn send<U: HttpHost>(
    store: &Accessor<HostState<U>>,
    request: Resource<Request>,
) -> wasmtime::Result<Result<Resource<Response>, ErrorCode>> {
    store.with(|mut store| {
        let state = store.data_mut();
        one_more_head(view(state).table)?;
        let http = state.ext.http();
        http.hooks.end = match http.unsent.take(request.rep()) {
            Some(Made::Request(ended)) => Some(End::Awaited(ended)),
            _ => None,
        };
        wasmtime::error::Ok(())
    })?;
    let by_view = store.with_getter::<WasiHttp>(view::<U>);
    let mut sending = pin!(WasiHttp::send(&by_view, request));
    // The hook has been called by then, if it is called.
    let first = poll_fn(|cx| Poll::Ready(sending.as_mut().poll(cx))).await;
    store.with(|mut store| store.data_mut().ext.http().hooks.end = None);
    let sent = match first {
        Poll::Ready(sent) => sent,
        Poll::Pending => sending.await,
    };
    match sent {
        Ok(response) => Ok(Ok(response)),
        Err(error) => Ok(Err(error.downcast()?)),
    }
}

/// The same trailers, and whether they came without an error.
fn watched<U: HttpHost>(
    store: &mut StoreContextMut<'_, HostState<U>>,
    trailers: FutureReader<Ended>,
) -> wasmtime::Result<(FutureReader<Ended>, oneshot::Receiver<bool>)> {
    let (on, from) = oneshot::channel();
    let (whether, ended) = oneshot::channel();
    trailers.pipe(store.as_context_mut(), Watching(Some((on, whether))))?;
    let from = async { Ok::<_, wasmtime::Error>(from.await.unwrap_or(Err(ErrorCode::HttpProtocolError))) };
    Ok((FutureReader::new(store.as_context_mut(), from)?, ended))
}

struct Watching(Option<(oneshot::Sender<Ended>, oneshot::Sender<bool>)>);

impl<U: HttpHost> FutureConsumer<HostState<U>> for Watching {
    type Item = Ended;

    fn poll_consume(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        mut store: StoreContextMut<'_, HostState<U>>,
        mut source: Source<'_, Ended>,
        _: bool,
    ) -> Poll<wasmtime::Result<()>> {
        let mut read = None;
        source.read(&mut store, &mut read)?;
        let (Some(ended), Some((on, whether))) = (read, self.0.take()) else {
            return Poll::Ready(Err(format_err!("trailers came without a value, or twice")));
        };
        // The text of an error would lie outside the guest's memory until somebody reads it.
        let ended = ended.map_err(|_| ErrorCode::InternalError(None));
        // Before the body hears of its end by the other channel.
        _ = whether.send(ended.is_ok());
        // Nobody takes them any more.
        if let Err(Ok(Some(trailers))) = on.send(ended) {
            view(store.data_mut()).table.delete(trailers)?;
        }
        Poll::Ready(Ok(()))
    }
}

/// The same result for the body of a message. If the guest itself has made it, an error is kept for it until it asks, and loses
/// its text, which would lie outside its memory.
fn without_text<U: HttpHost>(
    store: &mut StoreContextMut<'_, HostState<U>>,
    message: u32,
    result: FutureReader<Consumed>,
) -> wasmtime::Result<FutureReader<Consumed>> {
    if store.data_mut().ext.http().unsent.take(message).is_none() {
        return Ok(result);
    }
    let (on, from) = oneshot::channel();
    result.pipe(store.as_context_mut(), Shortening(Some(on)))?;
    let from = async { Ok::<_, wasmtime::Error>(from.await.unwrap_or(Ok(()))) };
    FutureReader::new(store.as_context_mut(), from)
}

struct Shortening(Option<oneshot::Sender<Consumed>>);

impl<U: HttpHost> FutureConsumer<HostState<U>> for Shortening {
    type Item = Consumed;

    fn poll_consume(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        mut store: StoreContextMut<'_, HostState<U>>,
        mut source: Source<'_, Consumed>,
        _: bool,
    ) -> Poll<wasmtime::Result<()>> {
        let mut read = None;
        source.read(&mut store, &mut read)?;
        if let (Some(result), Some(on)) = (read, self.0.take()) {
            _ = on.send(result.map_err(|_| ErrorCode::InternalError(None)));
        }
        Poll::Ready(Ok(()))
    }
}
