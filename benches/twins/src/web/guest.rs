//! [`WEB`] on bare wasmtime behind hyper, as somebody would write it by hand who wants it fast and bounded: the guest is
//! polled by the task of its connection until its answer begins, and what it may take is limited.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use airssys_wasm_engine::{add_bare_wasi, wasmtime_wasi};
use http_body_util::{BodyExt, Limited};
use hyper::{Request, Response, body::Incoming};
use tokio::{
    sync::{Semaphore, oneshot},
    time::timeout,
};
use wasmtime::{
    Result, Store, StoreLimits, StoreLimitsBuilder, UpdateDeadline, bail,
    component::{Linker, ResourceTable},
    format_err,
};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::{
    Error, RequestOptions, WasiBody, WasiHttpCtx, WasiHttpCtxView, WasiHttpHooks, WasiHttpView,
    p2::{
        add_only_http_to_linker_async,
        bindings::{Proxy, ProxyPre, http::types::Scheme},
    },
};

use super::{MEMORY, WEB, listen::listen};

/// How long an instance is used.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Sandboxes {
    /// For one request.
    Fresh,
    /// For one request after another.
    Reused,
}

// What follows are the defaults of our layers.

/// Requests at a time.
const AT_A_TIME: usize = 64;
/// Time for a request.
const DEADLINE: Duration = Duration::from_secs(10);
/// Epochs that a guest may compute for.
const EPOCHS: u32 = 1_000;
/// Bytes of a request's body.
const REQUEST_BODY: usize = 16 << 20;
/// Handles that a guest may have.
const HANDLES: usize = 1_000;
/// Elements of a table.
const TABLE_ELEMENTS: usize = 100_000;
/// Bytes of the fields of a head.
const FIELDS: usize = 32 << 10;
/// Bytes that a guest may write at once.
const CHUNK: usize = 64 << 10;

pub(super) async fn serve(sandboxes: Sandboxes) -> SocketAddr {
    let host = Arc::new(Host::new(sandboxes));
    listen(move |request| {
        let host = Arc::clone(&host);
        async move { host.answer(request).await.expect("it answers") }
    })
    .await
}

struct Host {
    pre: ProxyPre<State>,
    room: Arc<Semaphore>,
    /// Where instances are used again.
    idle: Option<Mutex<Vec<Live>>>,
}

struct Live {
    store: Store<State>,
    proxy: Proxy,
}

impl Host {
    fn new(sandboxes: Sandboxes) -> Self {
        let mut linker = Linker::new(WEB.wasmtime());
        add_bare_wasi(&mut linker).unwrap();
        add_only_http_to_linker_async(&mut linker).unwrap();
        Self {
            pre: ProxyPre::new(linker.instantiate_pre(WEB.component()).unwrap()).unwrap(),
            room: Arc::new(Semaphore::new(AT_A_TIME)),
            idle: (sandboxes == Sandboxes::Reused).then(Mutex::default),
        }
    }

    async fn start(&self) -> Result<Live> {
        let mut store = Store::new(self.pre.engine(), State::default());
        store.limiter(|state| &mut state.limits);
        store.epoch_deadline_callback(|mut store| {
            let epochs = &mut store.data_mut().epochs;
            *epochs += 1;
            if *epochs > EPOCHS {
                bail!("it computes for too long");
            }
            Ok(UpdateDeadline::YieldCustom(1, Box::pin(tokio::task::yield_now())))
        });
        store.set_max_component_handles(HANDLES);
        store.set_epoch_deadline(1);
        let proxy = self.pre.instantiate_async(&mut store).await?;
        Ok(Live { store, proxy })
    }

    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Result<Response<WasiBody>> {
        let permit = Arc::clone(&self.room).try_acquire_owned()?;
        let kept = self.idle.as_ref().and_then(|idle| idle.lock().unwrap().pop());
        let mut live = match kept {
            Some(live) => live,
            None => self.start().await?,
        };
        let (head, mut answered) = oneshot::channel();
        live.store.set_epoch_deadline(1);
        let state = live.store.data_mut();
        state.epochs = 0;
        let request = request.map(|body| {
            let too_large = |_| Error::HttpRequestBodySize(None);
            Limited::new(body, REQUEST_BODY).map_err(too_large).boxed_unsync()
        });
        let request = state.http().new_incoming_request(Scheme::Http, request)?;
        let out = state.http().new_response_outparam(head)?;
        let mut running: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(async move {
            let Live { store, proxy } = &mut live;
            let called = proxy.wasi_http_incoming_handler().call_handle(store, request, out);
            if let (Ok(Ok(())), Some(idle)) = (timeout(DEADLINE, called).await, &self.idle) {
                idle.lock().unwrap().push(live);
            }
            drop(permit);
        });
        let head = tokio::select! {
            biased;
            () = &mut running => answered.try_recv()?,
            head = &mut answered => {
                tokio::spawn(running);
                head?
            }
        };
        head.map_err(|error| format_err!("{error:?}"))
    }
}

struct State {
    ctx: WasiCtx,
    table: ResourceTable,
    http: WasiHttpCtx,
    hooks: Hooks,
    limits: StoreLimits,
    epochs: u32,
}

impl Default for State {
    fn default() -> Self {
        let (mut table, mut http) = (ResourceTable::new(), WasiHttpCtx::new());
        table.set_max_capacity(HANDLES);
        http.set_field_size_limit(FIELDS);
        let limits = StoreLimitsBuilder::new().memory_size(MEMORY as usize).table_elements(TABLE_ELEMENTS).build();
        Self { ctx: WasiCtx::builder().build(), table, http, hooks: Hooks, limits, epochs: 0 }
    }
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.ctx, table: &mut self.table }
    }
}

impl WasiHttpView for State {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { hooks: &mut self.hooks, table: &mut self.table, ctx: &mut self.http }
    }
}

struct Hooks;

type Sent = Result<(Response<WasiBody>, Box<dyn Future<Output = Result<(), Error>> + Send>), Error>;

impl WasiHttpHooks for Hooks {
    fn send_request(
        &mut self,
        _: Request<WasiBody>,
        _: Option<RequestOptions>,
        _: Box<dyn Future<Output = Result<(), Error>> + Send>,
    ) -> Box<dyn Future<Output = Sent> + Send> {
        Box::new(async { Err(Error::HttpRequestDenied) })
    }

    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        CHUNK
    }
}
