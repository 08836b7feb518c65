//! Actors on real guests, and on handlers of the host where only the actor matters.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod actors;
mod async_wasmcloud;
mod calls;
mod children;
mod collected;
mod concurrency;
mod dead_letters;
mod ecosystem;
mod elsewhere;
mod far;
mod keyvalue;
mod links;
mod manifest;
mod messaging;
mod model;
mod native;
mod observability;
mod recycle;
mod shares;
mod shutdown;
mod supervision;
mod support;
mod tasks;
mod timers;
mod upgrade;
mod wasmcloud;
