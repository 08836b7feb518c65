//! Hosts over a real server, which the tests start and stop.

mod hosts;
mod store;
mod support;
