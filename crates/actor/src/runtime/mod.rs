//! One actor at run time: its mailbox, its orders, its task, and what all actors of a system share.

pub(crate) mod actor_ref;
pub(crate) mod cell;
pub(crate) mod dead_letters;
pub(crate) mod metrics;
pub(crate) mod shares;
pub(crate) mod task;
pub(crate) mod upgrade;
