//! `cargo xtask sanitize`: the tests of what has `unsafe` in it, under the address sanitizer.

use anyhow::{Result, ensure};

use crate::{fuzz::nightly, interrupt, workspace::target_folder};

/// Run the tests of what has `unsafe` in it under the address sanitizer, on a nightly compiler
#[derive(clap::Args)]
pub(crate) struct Args {}

/// The crates with `unsafe` in their sources: native code that is loaded, and an allocator that counts.
const PACKAGES: [&str; 2] = ["airssys-wasm-engine", "airssys-wasm-harness"];
/// Named, so that what builds the others is built without the sanitizer.
const TARGET: &str = "x86_64-unknown-linux-gnu";

pub(crate) fn run(_: &Args) -> Result<()> {
    interrupt::listen()?;
    eprintln!("building with the sanitizer: the first time takes some ten minutes");
    let mut command = nightly();
    command.args(["test", "--locked", "--lib", "--test", "all", "--target", TARGET]);
    for package in PACKAGES {
        command.args(["--package", package]);
    }
    command
        .env("RUSTFLAGS", "-Zsanitizer=address")
        // Of its own, because everything in it is built with the sanitizer.
        .env("CARGO_TARGET_DIR", target_folder().join("sanitize"));
    ensure!(
        interrupt::status(&mut command)?.success(),
        "the tests fail under the sanitizer, or it is not to be had here"
    );
    Ok(())
}
