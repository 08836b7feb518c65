//! x
#![allow(missing_docs, reason = "being written")]
mod answer;
mod ask;
mod bounded;
mod breaker;
mod component;
mod events;
mod host;
mod limits;
mod outgoing;
mod pattern;
mod request;
mod server;
mod service;
pub use answer::{BodyBroken, HttpBody, ReportId};
pub use ask::AskActor;
pub use component::{HttpComponent, HttpComponentSpec};
pub use events::HttpEvent;
pub use host::{HttpHost, HttpState, WASI_HTTP_VERSION, add_http};
pub use limits::{Reuse, RouteLimits};
pub use outgoing::{Allow, AllowedMethod, Outgoing, OutgoingLimits, OutgoingScheme, Resolve, SystemResolver};
pub use pattern::{HostPattern, InvalidHostPattern};
pub use request::HeadLimits;
pub use server::{HttpServer, ServerLimits, ServerReport};
pub use service::{HttpService, HttpServiceBuilder, HttpTarget, InvalidPathPrefix, PathPrefix, Route, SameRoute};
