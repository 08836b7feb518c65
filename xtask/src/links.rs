//! Several links of one program, with the same functions in another order each: where code lies decides which of it is in
//! each other's way, and any change moves all that comes after it.
//!
//! This program stands in for the linker, which it runs once for each link, because what is linked is there only while the
//! compiler waits. LLD can shuffle; it is what rustc links by where it can. Elsewhere there is one link.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context, Result};

/// Tells the linker how many links there are to be besides the usual one.
const ASKED: &str = "AIRSSYS_WASM_LINKS";
/// Links besides the usual one.
const LINKS: usize = 7;

/// Has cargo link by this program, the crate that is asked for alone.
pub(crate) fn ask_for(cargo: &mut Command) -> Result<()> {
    let mut linker = OsString::from("linker=");
    linker.push(env::current_exe().context("cannot tell where this program is")?);
    cargo.arg("-C").arg(linker).env(ASKED, LINKS.to_string());
    Ok(())
}

/// The links of a program that there are besides the usual one.
pub(crate) fn of(program: &Path) -> Vec<PathBuf> {
    (1..=LINKS).map(|n| nth(program, n)).filter(|link| link.exists()).collect()
}

fn nth(program: &Path, n: usize) -> PathBuf {
    program.with_added_extension(format!("link{n}"))
}

/// Links, if that is what this program was started for.
pub(crate) fn link() -> Option<ExitCode> {
    let links: usize = env::var(ASKED).ok()?.parse().ok()?;
    let arguments: Vec<_> = env::args_os().skip(1).collect();
    let at = arguments.iter().position(|argument| argument == "-o")? + 1;
    let program = PathBuf::from(arguments.get(at)?);
    let run = |arguments: &[OsString]| Command::new("cc").args(arguments).status();
    let status = match run(&arguments) {
        Ok(status) => status,
        Err(error) => {
            eprintln!("error: cannot run cc, the linker: {error}");
            return Some(ExitCode::FAILURE);
        }
    };
    let can_shuffle = arguments.iter().any(|argument| argument == OsStr::new("-fuse-ld=lld"));
    for n in 1..=links {
        let link = nth(&program, n);
        // One of an earlier build is none of this one.
        _ = fs::remove_file(&link);
        if status.success() && can_shuffle {
            let mut arguments = arguments.clone();
            arguments[at] = link.into();
            arguments.push(format!("-Wl,--shuffle-sections=.text*={n}").into());
            // Without it there is one link less.
            _ = run(&arguments);
        }
    }
    Some(ExitCode::from(status.code().map_or(1, |code| code as u8)))
}
