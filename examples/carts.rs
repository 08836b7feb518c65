//! A shop's carts behind HTTP: one actor a customer, in memory only while it is needed, its state kept.
//!
//! `cargo run --example carts [FOLDER]`, then
//!
//! ```sh
//! curl --data "add 2" http://127.0.0.1:3000/carts/4711    # 2
//! curl --data "add 3" http://127.0.0.1:3000/carts/4711    # 5
//! curl --data "get" http://127.0.0.1:3000/carts/4712      # 0, and no row is written for that
//! curl --request DELETE http://127.0.0.1:3000/carts/4711  # it begins anew
//! ```
//!
//! Kill it (`kill -9`) and start it again: what was answered is there. The carts are in the folder, `target/carts` if none is
//! named.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use airssys_wasm_actor::{ActorSystem, AskError, ShutdownReport, SystemConfig};
use airssys_wasm_engine::{EngineConfig, WasmEngine};
use airssys_wasm_keyed::{FjallStore, Keyed, StateStore, StoreConfig};
use airssys_wasm_registry::Refusal;
use anyhow::Result;
use axum::{
    Router,
    body::Bytes,
    extract::{self, State},
    http::StatusCode,
    routing::post,
};
use tokio::net::TcpListener;

/// How long a request may take.
const DEADLINE: Duration = Duration::from_secs(2);

fn main() -> Result<()> {
    airssys_wasm_engine::compiler_hook();
    run()
}

#[tokio::main]
async fn run() -> Result<()> {
    let folder = match std::env::args_os().nth(1) {
        Some(folder) => PathBuf::from(folder),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/carts"),
    };
    let store = Arc::new(FjallStore::open(StoreConfig::new(folder)).await?);
    let listener = TcpListener::bind("127.0.0.1:3000").await?;
    println!("at http://{}/carts/4711 until Ctrl-C", listener.local_addr()?);
    let end = async { _ = tokio::signal::ctrl_c().await };
    let report = serve(EngineConfig::default(), Arc::clone(&store) as _, listener, end).await?;
    store.close().await;
    println!("{report:?}");
    Ok(())
}

/// Serves until it is told to end. The carts are in the store then.
pub(crate) async fn serve(
    config: EngineConfig,
    store: Arc<dyn StateStore>,
    listener: TcpListener,
    end: impl Future<Output = ()> + Send + 'static,
) -> Result<ShutdownReport> {
    let system = ActorSystem::new(WasmEngine::new(config)?, SystemConfig::default());
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("carts/Component.toml");
    let carts = airssys_wasm_keyed::load(&system, manifest, store).await?;
    let service = Router::new().route("/carts/{customer}", post(ask).delete(forget)).with_state(carts);
    axum::serve(listener, service).with_graceful_shutdown(end).await?;
    Ok(system.shutdown(Duration::from_secs(10)).await)
}

async fn ask(
    State(carts): State<Keyed>,
    extract::Path(customer): extract::Path<String>,
    body: Bytes,
) -> Result<Bytes, StatusCode> {
    let cart = carts.actor(&customer).map_err(|_| StatusCode::NOT_FOUND)?;
    cart.ask_within(DEADLINE, body).await.map_err(|error| {
        eprintln!("{}: {error}", cart.id());
        match error {
            AskError::NotSent(undelivered) if matches!(undelivered.reason, Refusal::TooLarge { .. }) => {
                StatusCode::PAYLOAD_TOO_LARGE
            }
            // It is full, or it does not start.
            AskError::NotSent(_) | AskError::NotActivated(_) | AskError::Stopped => StatusCode::SERVICE_UNAVAILABLE,
            AskError::Deadline => StatusCode::GATEWAY_TIMEOUT,
            AskError::Failed { .. } => StatusCode::UNPROCESSABLE_ENTITY,
            // Crashed, or not saved: the client does not know whether it counts.
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        }
    })
}

async fn forget(State(carts): State<Keyed>, extract::Path(customer): extract::Path<String>) -> StatusCode {
    match carts.forget(&customer).await {
        Ok(()) => StatusCode::NO_CONTENT,
        Err(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}
