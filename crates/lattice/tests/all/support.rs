//! What the tests share: a server, hosts in one process, and actors that do what they are told.

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use airssys_wasm_actor::{
    ActorRef, ActorSystem, Bytes, DeadLetterLimits, NativeActor, NativeContext, NativeSpec, SystemConfig,
    engine::{EngineConfig, PoolConfig, WasmEngine},
    registry::{ComponentId, MessageEnvelope},
};
use airssys_wasm_fixtures::nats::NatsServer;
use airssys_wasm_lattice::{Lattice, LatticeConfig};
use async_nats::Client;
use futures_util::StreamExt;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

pub(crate) static ENGINE: LazyLock<WasmEngine> = LazyLock::new(|| {
    let pool = Some(PoolConfig::for_components(128));
    WasmEngine::new(EngineConfig { pool, ..EngineConfig::small() }.compile_in_process()).unwrap()
});

/// Longer than anything takes on a busy machine.
pub(crate) const LONG: Duration = Duration::from_secs(60);

pub(crate) fn id(name: &str) -> ComponentId {
    name.parse().unwrap()
}

pub(crate) fn system() -> ActorSystem {
    // The books need all dead letters.
    let dead_letters =
        DeadLetterLimits { letters: 1 << 17, letters_per_actor: 1 << 17, bytes: 1 << 30, bytes_per_actor: 1 << 30 };
    ActorSystem::new(ENGINE.clone(), SystemConfig { dead_letters, ..SystemConfig::default() })
}

pub(crate) fn server() -> NatsServer {
    NatsServer::start().unwrap()
}

pub(crate) fn config(server: &NatsServer, host: &str) -> LatticeConfig {
    LatticeConfig::new("test".parse().unwrap(), host.parse().unwrap()).with_servers([server.url()])
}

/// A host with a system of its own.
pub(crate) struct TestHost {
    pub(crate) system: ActorSystem,
    pub(crate) lattice: Lattice,
}

pub(crate) async fn join(config: LatticeConfig) -> TestHost {
    let system = system();
    let lattice = within(Lattice::join(&system, config)).await.unwrap();
    TestHost { system, lattice }
}

pub(crate) async fn host(server: &NatsServer, name: &str) -> TestHost {
    join(config(server, name)).await
}

/// Fails instead of waiting for ever.
pub(crate) async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(LONG, future).await.expect("it takes too long")
}

/// Comes back when the server has seen all that the client has sent it. The client's own `flush` ends when it is written, and what
/// others send then may come before.
pub(crate) async fn seen_by_server(client: &Client) {
    let inbox = client.new_inbox();
    let mut back = client.subscribe(inbox.clone()).await.unwrap();
    client.publish(inbox, Bytes::new()).await.unwrap();
    within(back.next()).await.unwrap();
}

/// Waits until something is so. What real servers do is not told by anything but looking.
pub(crate) async fn until(mut is_so: impl FnMut() -> bool) {
    until_told(async || is_so()).await;
}

/// The same where one has to ask.
pub(crate) async fn until_told(mut is_so: impl AsyncFnMut() -> bool) {
    within(async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// `crash` panics, `fail` is an error, `none` is no answer, `wait` waits for the gate, `sender` answers the sender's name, `handled` what came
/// before; all else is answered as it is.
pub(crate) struct Probe(Shared);

#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) log: Arc<Mutex<Vec<String>>>,
    pub(crate) gate: Arc<Semaphore>,
}

impl Default for Shared {
    fn default() -> Self {
        Self { log: Arc::default(), gate: Arc::new(Semaphore::new(0)) }
    }
}

impl Shared {
    pub(crate) fn handled(&self) -> String {
        self.log.lock().join(",")
    }
}

impl Probe {
    pub(crate) fn spec(name: &str) -> (NativeSpec<Self>, Shared) {
        let shared = Shared::default();
        let made = shared.clone();
        (NativeSpec::new(id(name), move || Self(made.clone())), shared)
    }
}

impl TestHost {
    /// An actor that is exported.
    pub(crate) async fn export(&self, name: &str) -> (ActorRef, Shared) {
        let (spec, shared) = Probe::spec(name);
        let actor = self.system.spawn_native(spec).await.unwrap();
        within(self.lattice.export(&actor)).await.unwrap();
        (actor, shared)
    }

    /// Waits until this host knows where a name is.
    pub(crate) async fn knows(&self, name: &str) {
        let recipient = self.lattice.recipient(id(name));
        until(|| recipient.is_known()).await;
    }

    pub(crate) async fn ask(&self, name: &str, text: &str) -> Result<String, airssys_wasm_actor::AskError> {
        let answer = self.lattice.recipient(id(name)).ask_within(LONG, text.to_owned()).await?;
        Ok(String::from_utf8(answer.to_vec()).unwrap())
    }
}

impl NativeActor for Probe {
    async fn handle(&mut self, message: &MessageEnvelope, _: &NativeContext) -> Result<Option<Bytes>, String> {
        let text = String::from_utf8_lossy(message.payload()).into_owned();
        let before = self.0.handled();
        self.0.log.lock().push(text.clone());
        match text.as_str() {
            "crash" => panic!("told to crash"),
            "fail" => Err("told to fail".to_owned()),
            "none" => Ok(None),
            "wait" => {
                self.0.gate.acquire().await.unwrap().forget();
                Ok(Some("waited".into()))
            }
            "sender" => Ok(Some(message.sender().map_or("-".to_owned(), |sender| sender.id().to_string()).into())),
            "handled" => Ok(Some(before.into())),
            _ => Ok(Some(message.payload().clone())),
        }
    }
}
