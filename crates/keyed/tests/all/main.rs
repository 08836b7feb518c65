//! Kinds of real guests: each policy seen to happen, with its control.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod activation;
mod failures;
mod lives;
mod manifest;
mod metrics;
mod model;
mod room;
mod saves;
mod support;
mod upgrade;
