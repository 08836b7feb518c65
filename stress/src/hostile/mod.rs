//! Guests that do their worst, and whether the host and a neighbour come through it.
//!
//! [`corpus`] reads what guests there are and what must come of them, [`generate`] makes those that are too large to be
//! written down. [`arena`] lets one of them loose in this process and reports what happened, in the words of
//! [`outcome`]; those that are actors by key are in `kind.rs`. [`suite`] gives each guest a process of its own and judges the reports. [`search`] looks for files that
//! cost more than they may.

pub mod arena;
pub mod corpus;
pub mod generate;
mod kind;
pub mod outcome;
pub mod search;
pub mod suite;
