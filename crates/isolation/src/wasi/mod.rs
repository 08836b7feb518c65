//! What a component is granted of the world, and the resources of WASI that are made here.
//!
//! Linking them is left to `link.rs`, which knows the store's data.

mod files;
mod grants;
mod jobs;
mod output;

pub(crate) use files::{FileIn, FileOut, FileStreams, OpenFile, Slot, drop_resources};
pub use grants::{Folder, Permissions, WasiError, WasiGrants};
pub use jobs::FileJobs;
pub use output::Stdio;
pub(crate) use output::Tail;
