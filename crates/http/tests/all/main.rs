//! Components and actors behind HTTP, by real clients.

mod answers;
mod asks;
mod bodies;
mod crashes;
mod hostile;
mod manifest;
mod outgoing;
mod reuse;
mod routes;
mod server;
mod support;
