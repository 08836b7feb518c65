//! Actors that are components: what they are spawned from, what they may import, and their incarnations.

pub(crate) mod capabilities;
pub(crate) mod imports;
pub(crate) mod incarnation;
pub(crate) mod manifest;
pub(crate) mod spec;
pub(crate) mod wire;
