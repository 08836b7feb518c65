//! An actor at run time: mailbox, orders and task; and the services that all actors of a system share.

pub(crate) mod actor_ref;
pub(crate) mod call;
pub(crate) mod cell;
pub(crate) mod dead_letters;
pub(crate) mod endpoint;
pub(crate) mod events;
pub(crate) mod in_flight;
pub(crate) mod incarnation;
pub(crate) mod keeper;
mod keeping;
pub(crate) mod lifecycle;
pub(crate) mod mailbox;
pub(crate) mod metrics;
pub(crate) mod options;
pub(crate) mod orders;
pub(crate) mod owner;
mod queue;
pub(crate) mod recycle;
pub(crate) mod reminders;
mod restart;
#[cfg(test)]
mod schedules;
pub(crate) mod services;
pub(crate) mod several;
pub(crate) mod shares;
pub(crate) mod sync;
pub(crate) mod task;
pub(crate) mod timers;
pub(crate) mod turn;
pub(crate) mod upgrade;
pub(crate) mod values;
pub(crate) mod waits;
