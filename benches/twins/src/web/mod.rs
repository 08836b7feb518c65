//! Answering HTTP: a guest on bare wasmtime behind hyper, code of the host behind hyper, and the clients of both and of ours.

mod client;
mod guest;
mod listen;

use std::{
    net::SocketAddr,
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use airssys_wasm_engine::{LoadedComponent, Profile};
use airssys_wasm_fixtures as fixtures;
use airssys_wasm_harness::Measure;
use tokio::{
    runtime::{Builder, Runtime},
    sync::Barrier,
};

pub use self::{
    client::{Connection, Question},
    guest::Sandboxes,
};
use crate::{bare::engine, work::as_task};

/// [`fixtures::WEB`].
pub static WEB: LazyLock<LoadedComponent> =
    LazyLock::new(|| engine().load_blocking(fixtures::WEB, Profile::Plain).expect("a valid fixture"));

/// Bytes of memory that a guest may have, here as in the suite's limits.
pub const MEMORY: u64 = 64 << 20;

/// Time for the head of a request, and for which a connection may be idle: here as there, and longer than any benchmark.
pub const HEAD: Duration = Duration::from_secs(600);

/// Two workers with timers and sockets: servers and clients are tasks among each other.
pub fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// One thread with timers and sockets, for clients that are not to be among the server's tasks.
pub fn client_runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// A guest on bare wasmtime behind hyper.
pub async fn guest(sandboxes: Sandboxes) -> SocketAddr {
    guest::serve(sandboxes).await
}

/// Code of the host behind hyper, which answers what `/hello` does.
pub async fn native() -> SocketAddr {
    listen::native().await
}

/// Requests of each client before the first that is timed, at the most: both workers are awake by then, which takes as long as
/// many requests.
const WARM: u64 = 32;

/// Times a request: so many connections are kept open, and each asks as soon as it has its answer.
pub fn requests(server: impl Future<Output = SocketAddr>, question: Question, connections: usize) -> Measure {
    let runtime = runtime();
    let mut idle = runtime.block_on(async {
        let (server, mut open) = (server.await, Vec::with_capacity(connections));
        for _ in 0..connections {
            open.push(Connection::open(server).await);
        }
        open
    });
    Box::new(move |iterations| {
        let (connections, question) = (std::mem::take(&mut idle), question.clone());
        let each = iterations / connections.len() as u64;
        let more = (iterations % connections.len() as u64) as usize;
        let work = async move {
            let are_warm = Arc::new(Barrier::new(connections.len() + 1));
            let clients = connections.into_iter().enumerate().map(|(at, mut connection)| {
                let (requests, question) = (each + u64::from(at < more), question.clone());
                let are_warm = Arc::clone(&are_warm);
                tokio::spawn(async move {
                    for _ in 0..requests.min(WARM) {
                        connection.ask(&question).await.unwrap();
                    }
                    are_warm.wait().await;
                    for _ in 0..requests {
                        connection.ask(&question).await.unwrap();
                    }
                    connection
                })
            });
            // All of them are begun before one is waited for.
            let clients: Vec<_> = clients.collect();
            are_warm.wait().await;
            let started = Instant::now();
            let mut idle = Vec::with_capacity(clients.len());
            for client in clients {
                idle.push(client.await.unwrap());
            }
            (started.elapsed(), idle)
        };
        let (taken, back) = as_task(&runtime, work);
        idle = back;
        taken
    })
}
