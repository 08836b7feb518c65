//! Our server, as everything here uses it.

use std::{future::pending, net::SocketAddr, time::Duration};

use airssys_wasm_actor::{Backoff, Intensity, RestartPolicy};
use airssys_wasm_engine::{Linker, LoadedComponent};
use airssys_wasm_http::{
    HttpComponent, HttpComponentSpec, HttpServer, HttpService, HttpState, Reuse, Route, RouteLimits, ServerLimits,
    add_http,
};
use airssys_wasm_isolation::{HostState, SandboxSpec, add_wasi};
use airssys_wasm_limits::{ByteSize, ResourceLimits};
use airssys_wasm_twins::web::{HEAD, MEMORY};
use tokio::net::TcpListener;

/// The limits of a guest: those that its twin has.
pub(super) fn limits() -> ResourceLimits {
    ResourceLimits::with_memory(ByteSize::b(MEMORY))
}

/// A guest that answers requests, and is not closed however often it crashes.
pub(super) fn component(
    name: &str,
    loaded: &LoadedComponent,
    limits: ResourceLimits,
    reuse: Option<Reuse>,
) -> HttpComponent {
    let mut linker: Linker<HostState<HttpState>> = loaded.linker();
    add_wasi(&mut linker).unwrap();
    add_http(&mut linker).unwrap();
    let sandbox = SandboxSpec::new(loaded.link(&linker).unwrap(), limits).unwrap();
    // A short period, because all crashes within it are remembered.
    let intensity = Intensity { restarts: u32::MAX, within: Duration::from_millis(1) };
    let always = RestartPolicy { backoff: Backoff::NONE, intensity, ..RestartPolicy::default() };
    HttpComponentSpec::new(name, sandbox)
        .with_limits(RouteLimits { reuse, ..RouteLimits::default() })
        .with_restart(always)
        .build()
        .unwrap()
}

/// Serves components, each to requests of its own host, until the runtime ends.
pub(super) async fn serve(components: impl IntoIterator<Item = (&'static str, HttpComponent)>) -> SocketAddr {
    let mut service = HttpService::builder();
    for (host, component) in components {
        service = service.route(Route { host: host.parse().unwrap(), ..Route::default() }, component);
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    // All clients are at one address.
    let limits = ServerLimits {
        connections: 100_000,
        connections_per_address: 100_000,
        head: HEAD,
        age: 10 * HEAD,
        ..ServerLimits::default()
    };
    tokio::spawn(HttpServer::new(service.build().unwrap()).with_limits(limits).serve(listener, pending()));
    address
}
