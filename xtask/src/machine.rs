//! What a figure was measured on.

use std::{fs, process::Command};

use serde::{Deserialize, Serialize};

/// The machine, as far as it tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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

    /// What differs between two machines so that figures of one say nothing about the other. The compiler is no part of
    /// the machine; a few per cent of memory are what the system keeps for itself.
    pub(crate) fn differences(&self, other: &Self) -> Vec<String> {
        let mut differences = Vec::new();
        let mut differ = |what: &str, this: &dyn std::fmt::Display, other: &dyn std::fmt::Display| {
            differences.push(format!("{what}: {this} there, {other} here"));
        };
        if self.cpu != other.cpu {
            differ("processor", &self.cpu, &other.cpu);
        }
        if self.cores != other.cores {
            differ("cores", &self.cores, &other.cores);
        }
        if let (Some(this), Some(that)) = (self.memory, other.memory)
            && this.abs_diff(that) > this / 20
        {
            differ("memory", &this, &that);
        }
        if self.system != other.system {
            differ("system", &self.system, &other.system);
        }
        differences
    }
}

impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { cpu, cores, memory, system, rustc } = self;
        write!(f, "{cpu}, {cores} cores, ")?;
        if let Some(memory) = memory {
            write!(f, "{} GiB, ", (memory + (1 << 29)) >> 30)?;
        }
        write!(f, "{system}, {rustc}")
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
    let output = Command::new(program).args(args).current_dir(crate::workspace::root()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The day, as `2026-01-31`.
pub(crate) fn today() -> String {
    humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string()[..10].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_processor_is_another_machine_and_another_compiler_is_not() {
        let here = Machine::here();
        assert!(here.differences(&here).is_empty());
        let compiler = Machine { rustc: "rustc 0.1".into(), ..here.clone() };
        assert!(here.differences(&compiler).is_empty());
        let processor = Machine { cpu: "another".into(), cores: here.cores + 1, ..here.clone() };
        assert_eq!(here.differences(&processor).len(), 2);
    }
}
