//! What the crate promises, from outside: kinds of real guests, each policy seen to happen, with its control; and stores.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod activation;
mod calls;
mod failures;
mod forget;
mod full_disk;
mod killed_kinds;
mod kills;
mod lives;
mod manifest;
mod metrics;
mod model;
mod owners;
mod power;
mod reminders;
mod room;
mod saves;
mod stores;
mod support;
mod upgrade;
mod wasmcloud;
