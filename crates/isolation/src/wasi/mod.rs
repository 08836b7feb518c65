//! What a component is granted of the world, and the resources of WASI that are made here.
//!
//! Linking them is left to `link.rs`, which knows the store's data.

mod grants;
mod output;

pub use grants::{Folder, Permissions, WasiError, WasiGrants};
pub use output::Stdio;
