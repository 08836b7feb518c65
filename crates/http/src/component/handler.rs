//! The handler that a component exports, of WASI 0.2 or 0.3, and a call of it.

use airssys_wasm_engine::{
    Export, ExportError,
    wasmtime::{
        self, StoreContextMut,
        component::{Resource, ResourceTable},
    },
};
use airssys_wasm_isolation::{Crash, HostState, Sandbox, SandboxSpec, TypedExport};
use airssys_wasm_limits::CancellationToken;
use http::{
    Response,
    request::Parts,
    uri::{self, Authority},
};
use tokio::sync::oneshot;
use wasmtime_wasi_http::{
    FieldMap, WasiBody,
    p2::{
        bindings::http::types::{ErrorCode, Scheme},
        body::{HostFutureTrailers, HostIncomingBody, HostOutgoingBody},
        types::{HostFutureIncomingResponse, HostIncomingRequest, HostIncomingResponse, HostResponseOutparam},
    },
    p3::{self, bindings::http::types::ErrorCode as ErrorCode3},
};

use crate::host::{HttpHost, HttpState, view, view_of};

/// What a guest says first.
pub(super) type Head = Result<Response<WasiBody>, ErrorCode>;

/// Any minor version of 0.2 is found by it.
const P2: &str = "wasi:http/incoming-handler@0.2.0#handle";

const P3: &str = "wasi:http/handler@0.3.0#handle";

type Params2 = (Resource<HostIncomingRequest>, Resource<HostResponseOutparam>);
type Params3 = (Resource<p3::Request>,);
type Results3 = (Result<Resource<p3::Response>, ErrorCode3>,);

/// The handler of a component.
pub(crate) enum Interface {
    P2(Export),
    P3(Export),
}

/// That of a sandbox.
pub(super) enum Handler {
    P2(TypedExport<Params2, ()>),
    P3(TypedExport<Params3, Results3>),
}

/// A request to be passed to a guest.
pub(super) struct Request {
    pub(super) parts: Parts,
    pub(super) authority: Authority,
    pub(super) body: WasiBody,
    pub(super) https: bool,
}

/// A call to be made.
pub(super) enum Call {
    P2(Params2),
    P3(Params3, oneshot::Sender<Head>),
}

impl Interface {
    /// # Errors
    ///
    /// [`ExportError::Missing`] when a component has none. What it says is missing is that of 0.2.
    pub(crate) fn of<U: Send + 'static>(sandbox: &SandboxSpec<U>) -> Result<Self, ExportError> {
        sandbox.export(P2).map(Self::P2).or_else(|error| sandbox.export(P3).map(Self::P3).map_err(|_| error))
    }

    pub(super) fn is_p3(&self) -> bool {
        matches!(self, Self::P3(_))
    }

    pub(super) fn handler<U: Send + 'static>(&self, sandbox: &mut Sandbox<U>) -> Result<Handler, ExportError> {
        Ok(match self {
            Self::P2(export) => Handler::P2(sandbox.typed(export)?),
            Self::P3(export) => Handler::P3(sandbox.typed(export)?),
        })
    }
}

impl Handler {
    /// Gives the guest handles on the request and, of 0.2, on its answer.
    pub(super) fn pass(
        &self,
        table: &mut ResourceTable,
        state: &mut HttpState,
        request: Request,
        head: oneshot::Sender<Head>,
    ) -> wasmtime::Result<Call> {
        let Request { parts, authority, body, https } = request;
        let mut view = view_of(table, state);
        match self {
            Self::P2(_) => {
                let scheme = if https { Scheme::Https } else { Scheme::Http };
                let incoming = view.new_incoming_request(scheme, http::Request::from_parts(parts, body))?;
                Ok(Call::P2((incoming, view.new_response_outparam(head)?)))
            }
            Self::P3(_) => {
                let scheme = if https { uri::Scheme::HTTPS } else { uri::Scheme::HTTP };
                let path = parts.uri.into_parts().path_and_query;
                let headers = FieldMap::new_immutable(view.hooks, parts.headers);
                // Whether the guest has taken the body is seen by the body.
                let (request, _) =
                    p3::Request::new(parts.method, Some(scheme), Some(authority), path, headers, None, body);
                let request = view.table.push(request)?;
                state.received(&request);
                Ok(Call::P3((request,), head))
            }
        }
    }

    /// Calls the guest, which ends with all its tasks.
    pub(super) async fn call<U: HttpHost>(
        &self,
        sandbox: Sandbox<U>,
        call: Call,
        token: &CancellationToken,
    ) -> Result<Sandbox<U>, Crash> {
        match (self, call) {
            (Self::P2(export), Call::P2(params)) => {
                let ((), sandbox) = sandbox.call_until(export, params, token).await?;
                Ok(sandbox)
            }
            (Self::P3(export), Call::P3(params, head)) => {
                let tell =
                    |store: StoreContextMut<'_, HostState<U>>, (answer,): Results3| answered(store, answer, head);
                let ((), sandbox) = Box::pin(sandbox.call_making(export, |_| Ok(params), token, tell)).await?;
                Ok(sandbox)
            }
            _ => unreachable!("a call is made by its handler"),
        }
    }
}

/// Passes a guest's answer on, before its tasks have ended.
fn answered<U: HttpHost>(
    mut store: StoreContextMut<'_, HostState<U>>,
    answer: Result<Resource<p3::Response>, ErrorCode3>,
    head: oneshot::Sender<Head>,
) -> wasmtime::Result<()> {
    let answer = match answer {
        Ok(response) => {
            let (table, _) = store.data_mut().table_and_ext();
            let response = table.delete(response)?;
            // The guest may learn what became of the answer; that it was given is all there is to know here.
            Ok(response.into_http_with_getter(&mut store, async { Ok(()) }, view::<U>)?)
        }
        // It is not passed on to anybody.
        Err(_) => Err(ErrorCode::InternalError(None)),
    };
    _ = head.send(answer);
    Ok(())
}

/// Whether a guest holds on to a request, to one that it sent, or to a body of theirs.
pub(super) fn keeps_request(table: &mut ResourceTable) -> bool {
    table.iter_mut().any(|entry| {
        entry.is::<HostIncomingRequest>()
            || entry.is::<HostIncomingBody>()
            || entry.is::<HostOutgoingBody>()
            || entry.is::<HostResponseOutparam>()
            || entry.is::<HostFutureIncomingResponse>()
            || entry.is::<HostIncomingResponse>()
            || entry.is::<HostFutureTrailers>()
            || entry.is::<p3::Request>()
            || entry.is::<p3::Response>()
    })
}
