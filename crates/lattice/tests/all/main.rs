//! Hosts over a real server, which the tests start and stop.

mod hosts;
mod kinds;
mod store;
mod support;
