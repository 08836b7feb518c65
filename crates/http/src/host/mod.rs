//! `wasi:http` in a sandbox: its state, its functions, the bodies that guests write.

mod bodies;
mod link;
mod state;

pub(crate) use bodies::{End, Whether, Written};
pub use link::{WASI_HTTP_VERSION, add_http};
pub(crate) use link::{view, view_of};
pub use state::{HttpHost, HttpState};
