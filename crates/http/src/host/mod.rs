//! `wasi:http` in a sandbox: its state, its functions, the bodies that guests write.

mod bodies;
mod heads;
mod link;
mod p3;
mod state;

pub(crate) use bodies::{End, Whether, Written, length_of};
pub use link::{WASI_HTTP_VERSION, add_http};
pub(crate) use state::{Followed, trace_of, view, view_of};
pub use state::{HttpHost, HttpState};
