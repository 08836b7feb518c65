//! Components behind HTTP that speak with actors.

use std::{fs, path::Path, sync::Arc};

use airssys_wasm_actor::{
    ActorRef, ActorSystem, Bytes, DeniedAction, Lifecycle, NativeActor, NativeContext, NativeSpec, SystemConfig,
    SystemEvent,
    registry::{MessageEnvelope, TraceContext, WhenFull},
};
use airssys_wasm_engine::{EngineConfig, WasmEngine};
use airssys_wasm_http::{HttpService, HttpState, LoadHttpError, Loaded, ServerLimits, load};
use airssys_wasm_limits::ManifestError;
use http::{Method, Request};
use http_body_util::Full;
use tempfile::TempDir;
use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    sync::{Semaphore, mpsc},
    time::{Instant, timeout},
};

use crate::support::{PATIENCE, Server, until_room};

pub(crate) const COUNTER: &str = "
    [component]
    name = 'counter'
    [resources]
    memory = '8MiB'
    [http]
    routes = [{ path = '/counter' }]
    ask = true
";

pub(crate) const STORE: &str = "
    [component]
    name = 'kv'
    contract = 'exports'
    [resources]
    memory = '8MiB'
";

const FRONT: &str = "
    [component]
    name = 'front'
    [resources]
    memory = '32MiB'
    deadline = '30s'
    [messaging]
    send = ['worker']
    request = ['counter', 'worker', 'front']
    publish = ['news.>']
    [link]
    'acme:kv/store@1.0.0' = 'kv'
    [http]
    routes = [{ path = '/' }]
";

/// A folder with components and their manifests, in a system.
pub(crate) struct Site {
    pub(crate) system: ActorSystem<HttpState>,
    folder: TempDir,
}

impl Site {
    pub(crate) fn new() -> Self {
        Self::with(WasmEngine::new(EngineConfig::small().compile_in_process()).unwrap())
    }

    pub(crate) fn with(engine: WasmEngine) -> Self {
        let system = airssys_wasm_http::system(engine, SystemConfig::default());
        Self { system, folder: tempfile::tempdir().unwrap() }
    }

    pub(crate) async fn try_load(&self, wasm: &[u8], manifest: &str) -> Result<Loaded, LoadHttpError> {
        let folder = tempfile::tempdir_in(self.folder.path()).unwrap();
        let at = |name: &str| Path::join(folder.path(), name);
        fs::write(at("it.wasm"), wasm).unwrap();
        fs::write(at("Component.toml"), manifest).unwrap();
        load(&self.system, at("Component.toml")).await
    }

    pub(crate) async fn load(&self, wasm: &[u8], manifest: &str) -> Loaded {
        self.try_load(wasm, manifest).await.unwrap()
    }

    async fn front(&self) -> (Loaded, Server) {
        let front = self.load(airssys_wasm_fixtures::FRONT, FRONT).await;
        let server = serve(&[&front]).await;
        (front, server)
    }

    /// A native actor that handles what it is let.
    async fn worker(&self) -> Worker {
        self.worker_with(|spec| spec).await
    }

    pub(crate) async fn worker_with(&self, spec: impl FnOnce(NativeSpec<Native>) -> NativeSpec<Native>) -> Worker {
        let (heard, messages) = mpsc::unbounded_channel();
        let free = Arc::new(Semaphore::new(0));
        let make = {
            let free = Arc::clone(&free);
            move || Native { heard: heard.clone(), free: Arc::clone(&free) }
        };
        let actor = spec(NativeSpec::new("worker".parse().unwrap(), make));
        let actor = self.system.spawn_native(actor).await.unwrap();
        Worker { actor, messages, free }
    }
}

pub(crate) async fn serve(loaded: &[&Loaded]) -> Server {
    let service = loaded.iter().fold(HttpService::builder(), |service, loaded| service.loaded(loaded));
    Server::with(service.build().unwrap(), ServerLimits::default()).await
}

pub(crate) struct Worker {
    pub(crate) actor: ActorRef,
    pub(crate) messages: mpsc::UnboundedReceiver<MessageEnvelope>,
    /// A permit for each message that it may handle.
    pub(crate) free: Arc<Semaphore>,
}

pub(crate) struct Native {
    heard: mpsc::UnboundedSender<MessageEnvelope>,
    free: Arc<Semaphore>,
}

impl NativeActor for Native {
    async fn handle(&mut self, message: &MessageEnvelope, _: &NativeContext) -> Result<Option<Bytes>, String> {
        self.heard.send(message.clone()).unwrap();
        self.free.acquire().await.unwrap().forget();
        match &message.payload()[..] {
            b"fail" => Err("it failed".into()),
            b"say nothing" => Ok(None),
            payload => Ok(Some([b"heard ", payload].concat().into())),
        }
    }
}

#[tokio::test]
async fn a_component_asks_actors_as_it_is_granted() {
    let site = Site::new();
    let counter = site.load(airssys_wasm_fixtures::COUNTER, COUNTER).await;
    let front = site.load(airssys_wasm_fixtures::FRONT, FRONT).await;
    let server = serve(&[&counter, &front]).await;
    server.post("/ask/counter", "add 40").await.is(200, "40");
    // The same actor, without a component in front.
    server.post("/counter", "add 2").await.is(200, "42");
    server.get("/id").await.is(200, "front");
    server.post("/log", "a line").await.is(200, "");

    let mut events = site.system.events();
    server.post("/ask/stranger", "x").await.is(502, "RequestError::NotSent(SendError::Denied)");
    let SystemEvent::Denied { actor, action, target, denials } = events.recv().await.unwrap() else { panic!() };
    assert_eq!((actor.id().as_str(), action, &*target, denials), ("front", DeniedAction::Request, "stranger", 1));
    server.post("/send/counter", "x").await.is(502, "SendError::Denied");
    server.post("/publish/weather", "x").await.is(502, "SendError::Denied");
    server.post("/subscribe/news.eu", "").await.is(502, "SubscribeError::Denied");
    // It takes no messages itself, so it can wait for nobody who waits for it.
    server.post("/ask/front", "x").await.is(502, "RequestError::NotSent(SendError::Unknown)");
}

#[tokio::test]
async fn denials_without_end_do_not_drown_the_others_events() {
    let site = Site::new();
    let (_front, server) = site.front().await;
    let mut events = site.system.events();
    // Each in a sandbox of its own.
    for _ in 0..20 {
        server.post("/send/counter", "x").await.is(502, "SendError::Denied");
    }
    let denials: Vec<_> = std::iter::from_fn(|| events.try_recv().ok())
        .map(|event| match event {
            SystemEvent::Denied { denials, .. } => denials,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(denials, [1, 2, 4, 8, 16]);
}

#[tokio::test]
async fn what_an_actor_fails_with_is_the_components_to_answer() {
    let site = Site::new();
    let counter = site.load(airssys_wasm_fixtures::COUNTER, COUNTER).await;
    let worker = site.worker().await;
    worker.free.add_permits(2);
    let (front, server) = site.front().await;
    server.post("/ask/counter", "crash").await.is(502, "RequestError::Crashed");
    // The next one is served by its next incarnation.
    server.post("/ask/counter", "get").await.is(200, "0");
    server.post("/ask/worker", "fail").await.is(502, "RequestError::Failed(\"it failed\")");
    server.post("/ask/worker", "say nothing").await.is(502, "RequestError::NoAnswer");
    counter.actor.kill();
    counter.actor.ended().await;
    server.post("/ask/counter", "get").await.is(502, "RequestError::NotSent(SendError::Unknown)");
    // None of it was the component's crash.
    assert_eq!(front.component.unwrap().closed_for(), None);
}

#[tokio::test]
async fn messages_are_the_components_and_in_the_requests_trace() {
    let site = Site::new();
    let mut worker = site.worker().await;
    worker.free.add_permits(2);
    let mut news = site.system.subscribe(&"news.>".parse().unwrap(), 1, WhenFull::Error);
    let (front, server) = site.front().await;
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let request = Request::post("/send/worker").header("traceparent", trace);
    server.request(request.body(Full::from("hello")).unwrap()).await.is(200, "");
    let heard = worker.messages.recv().await.unwrap();
    assert_eq!(heard.payload(), "hello");
    assert_eq!(heard.sender(), Some(front.actor.address()));
    assert_eq!(
        heard.trace().map(|trace| (trace.trace_id, trace.sampled)),
        Some((0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c, true))
    );
    // Of the next request there is none.
    server.post("/send/worker", "hello").await.is(200, "");
    assert_eq!(worker.messages.recv().await.unwrap().trace(), None::<&TraceContext>);
    server.post("/publish/news.eu", "all is well").await.is(200, "1");
    let heard = news.recv().await.unwrap();
    assert_eq!((heard.payload(), heard.sender()), (&Bytes::from("all is well"), Some(front.actor.address())));
}

#[tokio::test]
async fn a_question_waits_as_long_as_it_says() {
    let site = Site::new();
    // Which never answers, and may get it too late.
    let _worker = site.worker().await;
    let (_front, server) = site.front().await;
    server.post("/ask/worker/1", "x").await.is(502, "RequestError::Timeout");
}

#[tokio::test]
async fn a_question_does_not_outlast_the_request() {
    let site = Site::new();
    let mut worker = site.worker().await;
    let manifest = FRONT.replace("'30s'", "'1s'");
    let front = site.load(airssys_wasm_fixtures::FRONT, &manifest).await;
    let server = serve(&[&front]).await;
    let before = Instant::now();
    let asked = server.post("/ask/worker/600000", "x").await;
    // Whichever comes first at the same moment, the guest's error or the end of its call.
    assert!([502, 504].contains(&asked.status.as_u16()), "{asked:?}");
    let ends = worker.messages.recv().await.unwrap().deadline().unwrap();
    assert!(ends >= before && ends <= Instant::now(), "the actor is told until when");
}

#[tokio::test]
async fn a_client_that_goes_away_cancels_the_component_that_waits() {
    let site = Site::new();
    let mut worker = site.worker().await;
    let (front, server) = site.front().await;
    let component = front.component.as_ref().unwrap();
    let room = component.room();
    let mut client = TcpStream::connect(server.address).await.unwrap();
    client.write_all(b"POST /ask/worker HTTP/1.1\r\nhost: a.test\r\ncontent-length: 1\r\n\r\nx").await.unwrap();
    worker.messages.recv().await.unwrap();
    assert_eq!(component.room(), room - 1);
    drop(client);
    until_room(component, room).await;
    // The actor goes on, and its answer is nobody's. The next is answered.
    worker.free.add_permits(2);
    server.post("/ask/worker", "y").await.is(200, "heard y");
    assert_eq!(component.closed_for(), None);
}

#[tokio::test]
async fn imports_lead_to_actors() {
    let site = Site::new();
    let store = site.load(airssys_wasm_fixtures::KV, STORE).await;
    assert!(store.target.is_none());
    let (front, server) = site.front().await;
    server.send(Method::PUT, "/value/sky", "blue".into()).await.is(200, "");
    server.get("/value/sky").await.is(200, "blue");
    store.actor.kill();
    store.actor.ended().await;
    // The interface has a word for that.
    let gone = server.get("/value/sky").await;
    assert_eq!(gone.status, 502, "{gone:?}");
    assert_eq!(front.component.unwrap().closed_for(), None);
}

#[tokio::test]
async fn a_front_has_its_name_as_long_as_its_component_is_there() {
    let site = Site::new();
    let (front, server) = site.front().await;
    let taken = site.try_load(airssys_wasm_fixtures::FRONT, FRONT).await.unwrap_err();
    assert!(matches!(taken, LoadHttpError::Spawn(_)), "{taken}");
    let names: Vec<_> = site.system.actors().iter().map(|actor| actor.address.id().to_string()).collect();
    assert_eq!(names, ["front"]);
    front.actor.tell("x").await.unwrap_err();

    // Who ends the actor closes the component.
    front.actor.kill();
    front.actor.ended().await;
    let closed = server.get("/id").await;
    closed.is(503, "");
    assert_eq!(closed.retry_after(), Some(1));

    let again = site.load(airssys_wasm_fixtures::FRONT, FRONT).await;
    assert_ne!(again.actor.address(), front.actor.address());
    let actor = again.actor.clone();
    drop(again);
    timeout(PATIENCE, actor.ended()).await.unwrap();
    assert_eq!(actor.state(), Lifecycle::Stopped);
}

#[tokio::test]
async fn a_manifest_that_means_nothing_is_refused() {
    let site = Site::new();
    let refused = async |wasm, from: &str, to: &str| {
        site.try_load(wasm, &FRONT.replace(from, to)).await.expect_err("it is refused")
    };
    let front = airssys_wasm_fixtures::FRONT;
    let mailbox = refused(front, "name = 'front'", "name = 'front'\nmailbox = 5").await;
    assert!(matches!(
        mailbox,
        LoadHttpError::Manifest { source: ManifestError::UnknownKey { ref key, .. }, .. } if key == "mailbox"
    ));
    let subscribes = refused(front, "publish =", "subscribe =").await;
    assert!(matches!(subscribes, LoadHttpError::Manifest { source: ManifestError::Toml(_), .. }), "{subscribes}");
    let no_handler = refused(airssys_wasm_fixtures::COUNTER, "'acme:kv/store@1.0.0' = 'kv'", "").await;
    assert!(matches!(no_handler, LoadHttpError::NoHandler(_)), "{no_handler}");
    // It imports the store, and nobody says where that leads.
    let unlinked = refused(front, "'acme:kv/store@1.0.0' = 'kv'", "").await;
    assert!(matches!(unlinked, LoadHttpError::Actor(_)), "{unlinked}");
    assert_eq!(site.system.actors().len(), 0);
}
