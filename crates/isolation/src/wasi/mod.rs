//! What a component is granted of the world, and the resources of WASI that are made here.
//!
//! Linking them is left to `link`, which knows the store's data.

mod files;
mod grants;
mod jobs;
mod listing;
mod look_ups;
mod output;
pub(crate) mod p3;

pub(crate) use files::{FileIn, FileOut, FileStreams, OpenFile, Slot, UNDER_WAY, drop_resources, ended};
pub use grants::{Folder, Permissions, WasiError, WasiGrants};
pub use jobs::FileJobs;
pub(crate) use jobs::Job;
pub(crate) use listing::FolderIn;
pub(crate) use look_ups::{LookUp, LookUps, Refused};
pub use output::Stdio;
pub(crate) use output::Tail;
