//! Supervisors: what they do next, and the task that does it.

mod plan;
pub(crate) mod supervisor;
