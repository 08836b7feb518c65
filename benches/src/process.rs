//! What the operating system says of this process.

/// Sizes and counts of this process, where the system tells them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// Bytes in physical memory.
    pub resident: u64,
    /// Bytes of address space.
    pub virtual_: u64,
    /// Memory mappings.
    pub mappings: u64,
    /// Open descriptors.
    pub descriptors: u64,
}

/// Reads them, from `/proc` on Linux; elsewhere there is nothing to read them from without `unsafe`.
#[cfg(target_os = "linux")]
pub fn read() -> Option<Reading> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kib = |name: &str| -> Option<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim_start_matches(':').split_whitespace().next()?.parse().ok()
    };
    Some(Reading {
        resident: kib("VmRSS")? << 10,
        virtual_: kib("VmSize")? << 10,
        mappings: std::fs::read_to_string("/proc/self/maps").ok()?.lines().count() as u64,
        descriptors: std::fs::read_dir("/proc/self/fd").ok()?.count() as u64,
    })
}

/// Reads them, from `/proc` on Linux; elsewhere there is nothing to read them from without `unsafe`.
#[cfg(not(target_os = "linux"))]
pub fn read() -> Option<Reading> {
    None
}
