//! Components and actors behind HTTP, by real clients.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod answers;
mod asks;
mod bodies;
mod crashes;
mod ecosystem;
mod fronts;
mod hostile;
mod manifest;
mod observability;
mod outgoing;
mod p3;
mod reuse;
mod routes;
mod server;
mod support;
#[cfg(feature = "tls")]
mod tls;
