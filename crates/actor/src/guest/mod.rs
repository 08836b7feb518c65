//! Actors that are components: their specifications, imports and incarnations.

pub(crate) mod bodies;
pub(crate) mod calls;
pub(crate) mod capabilities;
pub(crate) mod far;
pub(crate) mod front;
pub(crate) mod imports;
pub(crate) mod incarnation;
pub(crate) mod links;
pub(crate) mod manifest;
pub(crate) mod signatures;
pub(crate) mod spec;
pub(crate) mod timers;
pub(crate) mod wasmcloud;
pub(crate) mod wire;
