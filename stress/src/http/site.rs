//! The server of a round: components, actors, routes, and bounds that are soon reached.

use std::{net::SocketAddr, time::Duration};

use airssys_wasm_actor::{ActorManifest, ActorSystem, SystemConfig};
use airssys_wasm_engine::{EngineConfig, Linker, LoadedComponent, Profile, WasmEngine};
use airssys_wasm_fixtures::{COUNTER, WEB, WEB3};
use airssys_wasm_http::{
    Allow, AskActor, HttpComponent, HttpComponentSpec, HttpHost, HttpServer, HttpService, HttpState, HttpTarget,
    Outgoing, OutgoingLimits, OutgoingScheme, Reuse, Route, RouteLimits, ServerLimits, ServerReport, add_http, system,
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
/// With WASI 0.3, in front of [`COUNTS`].
pub(super) const THREE: &str = "three.test";
/// An actor that is asked.
pub(super) const ASKED: &str = "asked.test";
/// Those to whom guests are sent that crash.
pub(super) const HOSTILE: [&str; 3] = ["hostile.test", "hostile-reused.test", "hostile-three.test"];
/// The actor that crashes.
pub(super) const HOSTILE_ACTOR: &str = "hostile-asked.test";
/// The name of the actor that counts, for those in front of it.
pub(super) const COUNTS: &str = "counter";
/// Whom guests send requests to.
const ASKED_BY_GUESTS: &str = "127.0.0.1";

/// Of a component that answers after this time nobody can say that it works.
pub(super) const DEADLINE: Duration = Duration::from_secs(20);

/// The guests of all components and actors, which are compiled once.
pub(super) struct Guests {
    pub(super) engine: WasmEngine,
    web: LoadedComponent,
    /// They are loaded again in each round.
    _kept: [LoadedComponent; 2],
}

pub(super) fn load() -> Result<Guests> {
    let engine = WasmEngine::new(EngineConfig::default().with_component_async().compile_in_process())?;
    let load = |wasm| engine.load_blocking(wasm, Profile::Plain);
    let (web, _kept) = (load(WEB)?, [load(WEB3)?, load(COUNTER)?]);
    Ok(Guests { engine, web, _kept })
}

/// How much room there is.
type Room = Box<dyn Fn() -> usize + Send>;

pub(super) struct Site {
    pub(super) address: SocketAddr,
    system: ActorSystem<HttpState>,
    rooms: Vec<(&'static str, Room)>,
    stop: oneshot::Sender<()>,
    running: JoinHandle<ServerReport>,
}

impl Site {
    pub(super) async fn open(guests: &Guests) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let reuse = Some(Reuse { age: Duration::from_secs(3), ..Reuse::requests(50) });
        let hosts = [(FRESH, None), (REUSED, reuse), (HOSTILE[0], None), (HOSTILE[1], reuse), (ASKED_BY_GUESTS, None)];
        let (mut targets, mut rooms) = (Vec::<(&str, HttpTarget)>::new(), Vec::new());
        for (host, reuse) in hosts {
            let component = component(host, &guests.web, reuse, address)?;
            targets.push((host, component.clone().into()));
            rooms.push((host, room(component)));
        }
        let system = system(guests.engine.clone(), SystemConfig::default());
        for (host, name) in [(ASKED, COUNTS), (HOSTILE_ACTOR, "hostile-counter")] {
            let actor = system.spawn(system.load_bytes(manifest(name)?, COUNTER).await?).await?;
            targets.push((host, AskActor::new(actor, DEADLINE, limits_of_route(None)).into()));
        }
        for (host, name) in [(THREE, "three"), (HOSTILE[2], "hostile-three")] {
            let front = system.front(system.load_bytes(manifest(name)?, WEB3).await?).await?;
            let component = HttpComponentSpec::of_front(front, HttpState::default)
                .with_limits(limits_of_route(None))
                .with_outgoing(outgoing(address)?)
                .build()?;
            targets.push((host, component.clone().into()));
            rooms.push((host, room(component)));
        }
        let mut service = HttpService::builder();
        for (host, target) in targets {
            service = service.route(Route { host: host.parse()?, ..Route::default() }, target);
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
        Ok(Self { address, system, rooms, stop, running })
    }

    /// Stops it. Fails with what is then not as it was.
    pub(super) async fn close(self) -> Result<ServerReport, String> {
        drop(self.stop);
        let report = self.running.await.map_err(|error| format!("the server has panicked: {error}"))?;
        for (host, room) in self.rooms {
            // Guests end a moment after those that they answered.
            let ended = tokio::time::timeout(DEADLINE * 2, async {
                while room() < CONCURRENCY as usize {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            });
            let ended = ended.await.map_err(|_| room());
            ended.map_err(|room| format!("{host} has room for {room} requests, and no client is there"))?;
        }
        let actors = self.system.shutdown(DEADLINE).await;
        if actors.killed.is_empty() { Ok(report) } else { Err(format!("actors do not stop: {:?}", actors.killed)) }
    }
}

fn room<U: HttpHost>(component: HttpComponent<U>) -> Room {
    Box::new(move || component.room())
}

/// Of an actor, which may crash as often as it likes, or of a component in front of one.
fn manifest(name: &str) -> Result<ActorManifest> {
    let manifest = format!(
        "[component]\nname = '{name}'\n[messaging]\nrequest = ['{COUNTS}']\n\
         [resources]\nmemory = '16MiB'\nmessage_size = '64KiB'\ncpu_time = '1s'\ndeadline = '{}s'\n\
         [supervision]\nintensity = {{ restarts = 1_000_000, within = '1s' }}\n\
         backoff = {{ first = '1ms', longest = '1ms' }}",
        DEADLINE.as_secs()
    );
    Ok(ActorManifest::from_toml(&manifest)?)
}

fn limits_of_route(reuse: Option<Reuse>) -> RouteLimits {
    RouteLimits {
        concurrency: CONCURRENCY,
        request_body: ByteSize::mib(1),
        request_idle: Duration::from_secs(2),
        response_body: ByteSize::mib(8),
        reuse,
        ..RouteLimits::default()
    }
}

fn outgoing(asked: SocketAddr) -> Result<Outgoing> {
    let granted = Allow {
        scheme: OutgoingScheme::Http,
        port: Some(asked.port()),
        addresses: vec!["127.0.0.1/32".parse().context("a range")?],
        ..Allow::https(ASKED_BY_GUESTS.parse()?)
    };
    Ok(Outgoing::new(vec![granted], OutgoingLimits { connections: 1_000, ..OutgoingLimits::default() }))
}

fn component(host: &str, web: &LoadedComponent, reuse: Option<Reuse>, asked: SocketAddr) -> Result<HttpComponent> {
    let mut linker: Linker<HostState<HttpState>> = web.linker();
    add_wasi(&mut linker).and_then(|()| add_http(&mut linker)).expect("a new linker has none of them");
    let limits = ResourceLimits {
        deadline: DEADLINE,
        cpu_time: Duration::from_secs(1),
        ..ResourceLimits::with_memory(ByteSize::mib(16))
    };
    let sandbox = SandboxSpec::new(web.link(&linker)?, limits)?;
    let component = HttpComponentSpec::new(host, sandbox).with_limits(limits_of_route(reuse));
    Ok(component.with_outgoing(outgoing(asked)?).build()?)
}
