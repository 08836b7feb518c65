//! Kinds of real guests: each policy seen to happen, with its control.

mod activation;
mod failures;
mod lives;
mod manifest;
mod model;
mod room;
mod saves;
mod support;
mod upgrade;
