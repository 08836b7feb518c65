//! A shop that runs the plugins of others behind HTTP. A plugin imports the shop's own function, and a request to it is a
//! message to an actor.
//!
//! `cargo run --example axum`, then
//!
//! ```sh
//! curl --data-binary $'apple\npear' http://127.0.0.1:3000/plugins/totals    # total 180, average 90
//! curl --request POST http://127.0.0.1:3000/plugins/totals                  # 500: it divides by zero; the next is served
//! ```

use std::{collections::HashMap, path::Path, sync::Arc, time::Duration};

use airssys_wasm_actor::{ActorSystem, AskError, ShutdownReport, SystemConfig};
use airssys_wasm_engine::{EngineConfig, WasmEngine};
use airssys_wasm_registry::Refusal;
use anyhow::Result;
use axum::{
    Router,
    body::Bytes,
    extract::{self, State},
    http::{StatusCode, header::RETRY_AFTER},
    response::{IntoResponse, Response},
    routing::post,
};
use tokio::net::TcpListener;

/// What each plugin's host functions have at hand.
struct Shop {
    prices: Arc<HashMap<&'static str, u32>>,
    /// Of this incarnation.
    lookups: u64,
}

/// How long a request may take.
const DEADLINE: Duration = Duration::from_secs(2);

fn main() -> Result<()> {
    // A plugin is compiled in a process of its own, which is this program, started once more.
    airssys_wasm_engine::compiler_hook();
    run()
}

#[tokio::main]
async fn run() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:3000").await?;
    println!("at http://{}/plugins/totals until Ctrl-C", listener.local_addr()?);
    let report = serve(EngineConfig::small(), listener, async { _ = tokio::signal::ctrl_c().await }).await?;
    println!("{report:?}");
    Ok(())
}

/// Serves until it is told to end: no new requests then, those in hand are answered, and the plugins stop last.
pub(crate) async fn serve(
    config: EngineConfig,
    listener: TcpListener,
    end: impl Future<Output = ()> + Send + 'static,
) -> Result<ShutdownReport> {
    let system = shop(config)?;
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("axum/totals/Component.toml");
    system.spawn(system.load(manifest).await?).await?;

    let service = Router::new().route("/plugins/{name}", post(ask)).with_state(system.clone());
    axum::serve(listener, service).with_graceful_shutdown(end).await?;
    Ok(system.shutdown(Duration::from_secs(10)).await)
}

/// A system in which plugins may import `example:shop/prices`.
fn shop(config: EngineConfig) -> Result<ActorSystem<Shop>> {
    let prices = Arc::new(HashMap::from([("apple", 60), ("pear", 120)]));
    let engine = WasmEngine::new(config)?;
    Ok(ActorSystem::with_host(
        engine,
        SystemConfig::default(),
        move |_name| Shop { prices: Arc::clone(&prices), lookups: 0 },
        |linker| {
            linker.instance("example:shop/prices")?.func_wrap("price", |mut store, (item,): (String,)| {
                let state = &mut store.data_mut().ext;
                state.user.lookups += 1;
                println!("{} looks up {item:?}, its look-up {}", state.id(), state.user.lookups);
                Ok((state.user.prices.get(&*item).copied(),))
            })
        },
    ))
}

async fn ask(
    State(system): State<ActorSystem<Shop>>,
    extract::Path(name): extract::Path<String>,
    body: Bytes,
) -> Result<Bytes, Response> {
    let plugin = system.find(name.as_str()).ok_or_else(|| StatusCode::NOT_FOUND.into_response())?;
    // `ask_within` would wait for room in the mailbox. A client had better come back.
    plugin.try_ask_within(DEADLINE, body).await.map_err(|error| {
        // With the guest's backtrace, and so not for the client.
        eprintln!("{name}: {error}");
        unanswered(status_of(&error))
    })
}

/// Why there is no answer, as HTTP has it.
fn status_of(error: &AskError) -> StatusCode {
    match error {
        AskError::NotSent(undelivered) => match undelivered.reason {
            Refusal::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        },
        AskError::Stopped => StatusCode::SERVICE_UNAVAILABLE,
        AskError::Deadline => StatusCode::GATEWAY_TIMEOUT,
        AskError::Failed { .. } => StatusCode::UNPROCESSABLE_ENTITY,
        AskError::NoReply => StatusCode::NO_CONTENT,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn unanswered(status: StatusCode) -> Response {
    let again = (status == StatusCode::SERVICE_UNAVAILABLE).then_some([(RETRY_AFTER, "1")]);
    (status, again, ()).into_response()
}
