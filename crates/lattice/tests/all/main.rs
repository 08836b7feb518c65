//! Hosts over a real server, which the tests start and stop.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod alone;
mod calls;
mod deploy;
mod failures;
mod hosts;
mod kinds;
mod link;
mod manifest;
mod processes;
mod security;
mod slow;
mod store;
mod support;
mod versions;
