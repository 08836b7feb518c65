//! What a figure was measured on.

use std::{fs, process::Command};

use serde::{Deserialize, Serialize};

/// The machine, as far as it tells.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    /// Bytes of memory, where known.
    pub(crate) memory: Option<u64>,
    pub(crate) system: String,
    pub(crate) rustc: String,
}

impl Machine {
    pub(crate) fn here() -> Self {
        Self {
            cpu: cpu().unwrap_or_else(|| std::env::consts::ARCH.into()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory: memory(),
            system: printed("uname", &["-sr"]).unwrap_or_else(|| std::env::consts::OS.into()),
            rustc: printed("rustc", &["--version"]).unwrap_or_default(),
        }
    }
}

fn cpu() -> Option<String> {
    let info = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = info.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn memory() -> Option<u64> {
    let info = fs::read_to_string("/proc/meminfo").ok()?;
    let kib: u64 = info.lines().next()?.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib << 10)
}

/// What a program prints on one line, if it is there.
pub(crate) fn printed(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).current_dir(crate::root()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
