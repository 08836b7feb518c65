//! Hosts over a real server, which the tests start and stop.

mod failures;
mod hosts;
mod kinds;
mod processes;
mod security;
mod store;
mod support;
