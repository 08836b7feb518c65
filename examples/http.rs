//! Components answer HTTP, in a fresh sandbox for each request, and ask actors, because their `Component.toml` grants it: one
//! with WASI 0.2, and one with 0.3. A third is in JavaScript; it takes part if `cargo xtask fixtures --ecosystem` has built it.
//!
//! `cargo run --example http`, then
//!
//! ```sh
//! curl --data 'add 5' http://127.0.0.1:3000/ask/counter    # 5; the actor keeps the count
//! curl --data 'crash' http://127.0.0.1:3000/ask/counter    # 502: the component is told; the actor is there again
//! curl --data 'add 5' http://127.0.0.1:3000/ask/nobody     # 502: it is not granted
//! curl --request PUT --data 'blue' http://127.0.0.1:3000/value/sky
//! curl http://127.0.0.1:3000/value/sky                     # blue, by an import that leads to an actor
//! curl --header 'host: new.shop.test' --data 'add 5' http://127.0.0.1:3000/ask/counter
//! curl --header 'host: javascript.shop.test' http://127.0.0.1:3000/hello
//! ```

use std::{path::Path, time::Duration};

use airssys_wasm_actor::{ShutdownReport, SystemConfig};
use airssys_wasm_engine::{EngineConfig, WasmEngine};
use airssys_wasm_http::{HttpServer, HttpService, HttpServiceBuilder, load, system};
use anyhow::Result;
use tokio::net::TcpListener;

fn main() -> Result<()> {
    // Components are compiled in a process of their own, which is this program, started once more.
    airssys_wasm_engine::compiler_hook();
    run()
}

#[tokio::main]
async fn run() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:3000").await?;
    println!("at http://{} until Ctrl-C", listener.local_addr()?);
    let end = async { _ = tokio::signal::ctrl_c().await };
    let report = serve(EngineConfig::default(), &["front", "front3", "javascript"], listener, end).await?;
    println!("{report:?}");
    Ok(())
}

/// Serves until it is told to end: no new requests then, those in hand are answered, and the actors stop last.
pub(crate) async fn serve(
    config: EngineConfig,
    fronts: &[&str],
    listener: TcpListener,
    end: impl Future<Output = ()> + Send + 'static,
) -> Result<ShutdownReport> {
    let system = system(WasmEngine::new(config.with_component_async())?, SystemConfig::default());
    let manifests = Path::new(env!("CARGO_MANIFEST_DIR")).join("http");
    for actor in ["counter", "kv"] {
        load(&system, manifests.join(actor).join("Component.toml")).await?;
    }
    // Their routes, limits and grants are in their manifests.
    let mut components = Vec::new();
    for front in fronts {
        match load(&system, manifests.join(front).join("Component.toml")).await {
            Ok(component) => components.push(component),
            Err(error) => println!("{front} is left out: {error}"),
        }
    }

    let service = components.iter().fold(HttpService::builder(), HttpServiceBuilder::loaded).build()?;
    HttpServer::new(service).serve(listener, end).await;
    Ok(system.shutdown(Duration::from_secs(10)).await)
}
