//! What the operating system says of a process.

use std::time::Duration;

/// Sizes and counts of this process, where the system tells them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// Bytes in physical memory.
    pub resident: u64,
    /// The most of them that there were.
    pub peak: u64,
    /// Bytes of address space.
    pub virtual_: u64,
    /// Memory mappings.
    pub mappings: u64,
    /// Open descriptors.
    pub descriptors: u64,
    /// Threads.
    pub threads: u64,
}

/// Reads them, from `/proc` on Linux; elsewhere there is nothing to read them from without `unsafe`.
#[cfg(target_os = "linux")]
pub fn read() -> Option<Reading> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let number = |name: &str| -> Option<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim_start_matches(':').split_whitespace().next()?.parse().ok()
    };
    Some(Reading {
        resident: number("VmRSS")? << 10,
        peak: number("VmHWM")? << 10,
        virtual_: number("VmSize")? << 10,
        mappings: std::fs::read_to_string("/proc/self/maps").ok()?.lines().count() as u64,
        descriptors: std::fs::read_dir("/proc/self/fd").ok()?.count() as u64,
        threads: number("Threads")?,
    })
}

/// Reads them, from `/proc` on Linux; elsewhere there is nothing to read them from without `unsafe`.
#[cfg(not(target_os = "linux"))]
pub fn read() -> Option<Reading> {
    None
}

/// Bytes that a process and those it has started have in physical memory, but for what belongs to files on a disk. Nothing
/// where there is no such process, or where the system does not tell.
pub fn held_by_all(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let of = |name: &str| -> Option<u64> {
        status.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
    };
    // One that has ended and was not waited for has none.
    let own = (of("RssAnon:").unwrap_or(0) + of("RssShmem:").unwrap_or(0)) << 10;
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).ok()?;
    let children = threads
        .filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("children")).ok())
        .flat_map(|list| list.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
    Some(own + children.filter_map(|child| held_by_all(child.parse().ok()?)).sum::<u64>())
}

/// Keeps this thread, and those that it starts from now on, on one core. Elsewhere than on Linux nothing happens.
///
/// # Errors
///
/// When there is no such core for it.
pub fn stay_on(core: usize) -> std::io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        let mut cores = rustix::thread::CpuSet::new();
        cores.set(core);
        rustix::thread::sched_setaffinity(None, &cores)?;
    }
    #[cfg(not(target_os = "linux"))]
    let _ = core;
    Ok(())
}

/// The cores that this thread may use, where the system tells.
pub fn cores() -> Vec<usize> {
    #[cfg(target_os = "linux")]
    {
        use rustix::thread::{CpuSet, sched_getaffinity};
        let allowed = sched_getaffinity(None).ok();
        allowed.map_or_else(Vec::new, |set| (0..CpuSet::MAX_CPU).filter(|&core| set.is_set(core)).collect())
    }
    #[cfg(not(target_os = "linux"))]
    Vec::new()
}

/// How many files this process may have open at a time, sockets included, after asking for as many as the system permits.
/// `None` where the system does not tell.
pub fn may_open() -> Option<u64> {
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
        // No more than permitted, so that it is not refused.
        _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
        Some(getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX))
    }
    #[cfg(not(target_os = "linux"))]
    None
}

/// How long this thread and all threads together were on a processor, where the system tells.
pub fn processor_time() -> Option<[Duration; 2]> {
    #[cfg(target_os = "linux")]
    {
        use rustix::time::{ClockId, clock_gettime};
        let clock = |id| Duration::try_from(clock_gettime(id)).ok();
        Some([clock(ClockId::ThreadCPUTime)?, clock(ClockId::ProcessCPUTime)?])
    }
    #[cfg(not(target_os = "linux"))]
    None
}

/// How long this thread was on a processor, where the system tells.
pub fn thread_time() -> Option<Duration> {
    #[cfg(target_os = "linux")]
    {
        use rustix::time::{ClockId, clock_gettime};
        Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).ok()
    }
    #[cfg(not(target_os = "linux"))]
    None
}

/// How often this thread gave its processor away to wait, where the system tells.
pub fn waits() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/thread-self/status").ok()?;
    status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")?.trim().parse().ok())
}
