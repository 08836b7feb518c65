//! How incarnations fail, and which failures restart an actor.

pub(crate) mod call;
pub(crate) mod declined;
pub(crate) mod kept;
pub(crate) mod policy;
pub(crate) mod report;
