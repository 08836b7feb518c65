//! Where things are: the workspace, its target folder, and what lies there.

use std::{
    env,
    path::{Path, PathBuf},
    sync::LazyLock,
};

/// Where `fixtures --ecosystem` leaves the guest of some benchmarks, below the target folder.
pub(crate) const JAVASCRIPT_GUEST: &str = "guests/javascript.wasm";

/// Where `bench --peers` leaves what the lattice is measured beside, below the target folder.
pub(crate) const PEERS_PROGRAM: &str = "peers/release/airssys-wasm-peers";

pub(crate) fn target_folder() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// The workspace's folder. Cargo says where this package is, when it runs it and when it builds it.
pub(crate) fn root() -> &'static Path {
    static ROOT: LazyLock<PathBuf> = LazyLock::new(|| {
        let here = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        Path::new(&here).parent().expect("xtask is in the workspace").to_owned()
    });
    &ROOT
}

/// A path as people want to read it: relative to the workspace where it lies there.
pub(crate) fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}
