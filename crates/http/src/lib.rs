//! WebAssembly components that answer HTTP: bounded, supervised, safe to put on a port.
//!
//! An [`HttpComponent`] answers each request by a call of its `wasi:http/incoming-handler@0.2` or `wasi:http/handler@0.3`, in a
//! sandbox that is made for that request, or that is [used again](Reuse). An [`HttpService`] leads requests to components by host and path, and
//! to actors, which are asked ([`AskActor`]). It is a tower service for an embedder's own program, and [`HttpServer`] serves
//! it on a port, by HTTP/1.1 and 2.
//!
//! ```
//! use airssys_wasm_engine::{EngineConfig, Profile, WasmEngine};
//! use airssys_wasm_http::{HttpComponentSpec, HttpServer, HttpService, Route, add_http};
//! use airssys_wasm_isolation::{SandboxSpec, add_wasi};
//! use airssys_wasm_limits::{ByteSize, ResourceLimits};
//! # const COMPONENT: &[u8] = airssys_wasm_fixtures::WEB;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let engine = WasmEngine::new(EngineConfig::small().compile_in_process())?;
//! let component = engine.load(COMPONENT, Profile::Plain).await?;
//! let mut linker = component.linker();
//! add_wasi(&mut linker)?;
//! add_http(&mut linker)?;
//! let sandbox = SandboxSpec::new(component.link(&linker)?, ResourceLimits::with_memory(ByteSize::mib(32)))?;
//! let web = HttpComponentSpec::new("web", sandbox).build()?;
//!
//! let service = HttpService::builder().route(Route::path("/")?, web).build()?;
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
//! let stop = async { /* a signal */ };
//! let report = HttpServer::new(service).serve(listener, stop).await;
//! println!("{report:?}");
//! # Ok(())
//! # }
//! ```
//!
//! [`HttpManifest`] reads all of it from a `Component.toml`, and [`load()`] where the component speaks with actors. `docs/http.md` says what each bound is.
//!
//! # What the client sees
//!
//! | what happened | status |
//! |---|---|
//! | no route | 404 |
//! | no room: requests at a time, the pool, the memory budget; or too many crashes | 503 with `Retry-After` |
//! | the guest's deadline | 504 |
//! | a crash, or no answer | 500 with the id of a report that is in the log, and nothing of the guest's |
//! | a head or body that is too large | 414, 431, 413 |
//! | a body that is too slow | 408 |
//! | a request that could mean two things | 400 |
//! | HTTP/1.0, where it is not [`HttpServer`] that serves it | 505 |
//!
//! After the head has gone out, all of these break the stream off: it never ends as if it were complete.
//!
//! # Outgoing requests
//!
//! None is granted by default. [`Outgoing`] grants them by host, scheme, port and method; an address that is not of the
//! public internet is refused unless it is granted as well, and what was checked is what is connected to. [`add_http`] links
//! actors in the same way: their embedder's state is an [`HttpHost`].
//!
//! # What it leaves to others
//!
//! What a guest may use is in `airssys-wasm-limits`, its sandbox in `airssys-wasm-isolation`, actors in
//! `airssys-wasm-actor`. It offers neither upgrades nor WebSockets.
//!
//! # Features
//!
//! `tls` (default: off): TLS by rustls, for [`HttpServer`] and for outgoing requests by `https`. Without it these are
//! `TLS-protocol-error`.

mod allowance;
mod answer;
mod ask;
mod bounded;
mod breaker;
mod component;
mod events;
mod host;
mod limits;
mod load;
mod manifest;
mod outgoing;
mod pattern;
mod request;
mod server;
mod service;

/// Compiles the examples of the page about HTTP as doc tests.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/http.md")]
struct Page;

pub use answer::{BodyBroken, HttpBody, ReportId};
pub use ask::AskActor;
pub use component::{HttpComponent, HttpComponentSpec};
pub use events::HttpEvent;
pub use host::{HttpHost, HttpState, WASI_HTTP_VERSION, add_http};
pub use limits::{Reuse, RouteLimits};
pub use load::{Loaded, load, system};
pub use manifest::{HttpManifest, HttpTable, LoadHttpError};
pub use outgoing::{Allow, AllowedMethod, Outgoing, OutgoingLimits, OutgoingScheme, Resolve, SystemResolver};
pub use pattern::{HostPattern, InvalidHostPattern};
pub use request::HeadLimits;
pub use server::{HttpServer, ServerLimits, ServerReport};
pub use service::{HttpService, HttpServiceBuilder, HttpTarget, InvalidPathPrefix, PathPrefix, Route, SameRoute};
#[cfg(feature = "tls")]
pub use tokio_rustls::rustls;
