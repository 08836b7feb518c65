//! The server of a round: components, routes, and bounds that are soon reached.

use std::{net::SocketAddr, time::Duration};

use airssys_wasm_engine::{EngineConfig, Linker, LoadedComponent, Profile, WasmEngine};
use airssys_wasm_fixtures::WEB;
use airssys_wasm_http::{
    Allow, HttpComponent, HttpComponentSpec, HttpServer, HttpService, HttpState, Outgoing, OutgoingLimits,
    OutgoingScheme, Reuse, Route, RouteLimits, ServerLimits, ServerReport, add_http,
};
use airssys_wasm_isolation::{HostState, SandboxSpec, add_wasi};
use airssys_wasm_limits::{ByteSize, ResourceLimits};
use anyhow::{Context, Result};
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};

/// Requests at a time to each component.
const CONCURRENCY: u32 = 64;
/// Requests at a time from each address: two such clients leave room in each route.
const REQUESTS_PER_ADDRESS: u32 = CONCURRENCY / 3;
/// Time for a head, and for which a connection may be idle.
pub(super) const HEAD: Duration = Duration::from_secs(2);

/// Whose requests go to whom.
pub(super) const FRESH: &str = "fresh.test";
pub(super) const REUSED: &str = "reused.test";
/// Those to whom guests are sent that crash.
pub(super) const HOSTILE: [&str; 2] = ["hostile.test", "hostile-reused.test"];
/// Whom guests send requests to.
const ASKED_BY_GUESTS: &str = "127.0.0.1";

/// Of a component that answers after this time nobody can say that it works.
pub(super) const DEADLINE: Duration = Duration::from_secs(20);

/// The guest of all components, which is compiled once.
pub(super) fn load() -> Result<LoadedComponent> {
    let engine = WasmEngine::new(EngineConfig::default().compile_in_process())?;
    Ok(engine.load_blocking(WEB, Profile::Plain)?)
}

pub(super) struct Site {
    pub(super) address: SocketAddr,
    components: Vec<(&'static str, HttpComponent)>,
    stop: oneshot::Sender<()>,
    running: JoinHandle<ServerReport>,
}

impl Site {
    pub(super) async fn open(web: &LoadedComponent) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let reuse = Some(Reuse { age: Duration::from_secs(3), ..Reuse::requests(50) });
        let hosts = [(FRESH, None), (REUSED, reuse), (HOSTILE[0], None), (HOSTILE[1], reuse), (ASKED_BY_GUESTS, None)];
        let (mut service, mut components) = (HttpService::builder(), Vec::new());
        for (host, reuse) in hosts {
            let component = component(host, web, reuse, address)?;
            service = service.route(Route { host: host.parse()?, ..Route::default() }, component.clone());
            components.push((host, component));
        }
        let limits = ServerLimits {
            head: HEAD,
            write_idle: Duration::from_secs(1),
            drain: Duration::from_secs(5),
            requests_per_address: REQUESTS_PER_ADDRESS,
            resets: 20,
            ..ServerLimits::default()
        };
        let (stop, stopped) = oneshot::channel();
        let server = HttpServer::new(service.build()?).with_limits(limits);
        let running = tokio::spawn(server.serve(listener, async { _ = stopped.await }));
        Ok(Self { address, components, stop, running })
    }

    /// Stops it. Fails with what is then not as it was.
    pub(super) async fn close(self) -> Result<ServerReport, String> {
        drop(self.stop);
        let report = self.running.await.map_err(|error| format!("the server has panicked: {error}"))?;
        for (host, component) in self.components {
            // Guests end a moment after those that they answered.
            let ended = tokio::time::timeout(DEADLINE * 2, async {
                while component.room() < CONCURRENCY as usize {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            });
            let room = ended.await.map_err(|_| component.room());
            room.map_err(|room| format!("{host} has room for {room} requests, and no client is there"))?;
        }
        Ok(report)
    }
}

fn component(host: &str, web: &LoadedComponent, reuse: Option<Reuse>, asked: SocketAddr) -> Result<HttpComponent> {
    let mut linker: Linker<HostState<HttpState>> = web.linker();
    add_wasi(&mut linker).and_then(|()| add_http(&mut linker)).expect("a new linker has none of them");
    let limits = ResourceLimits {
        deadline: DEADLINE,
        cpu_time: Duration::from_secs(1),
        ..ResourceLimits::with_memory(ByteSize::mib(16))
    };
    let granted = Allow {
        scheme: OutgoingScheme::Http,
        port: Some(asked.port()),
        addresses: vec!["127.0.0.1/32".parse().context("a range")?],
        ..Allow::https(ASKED_BY_GUESTS.parse()?)
    };
    let limits_of_route = RouteLimits {
        concurrency: CONCURRENCY,
        request_body: ByteSize::mib(1),
        request_idle: Duration::from_secs(2),
        response_body: ByteSize::mib(8),
        reuse,
        ..RouteLimits::default()
    };
    let outgoing = OutgoingLimits { connections: 1_000, ..OutgoingLimits::default() };
    let sandbox = SandboxSpec::new(web.link(&linker)?, limits)?;
    let component = HttpComponentSpec::new(host, sandbox)
        .with_limits(limits_of_route)
        .with_outgoing(Outgoing::new(vec![granted], outgoing));
    Ok(component.build()?)
}
