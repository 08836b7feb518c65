//! What a compiler process may use: limits on memory, CPU time and output, and a filter of system calls that leaves it
//! its own memory and the streams it was started with.

use std::{collections::BTreeMap, env::consts::ARCH, io};

use rustix::process::{Resource, Rlimit, Signal, nice, set_parent_process_death_signal, setrlimit};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen::Dword, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter_all_threads,
};

use super::protocol::Settings;

/// How much the process gives way to its parent, whose guests are not to wait for it.
const NICE: i32 = 5;

/// Sandboxes this process. `false` where the system cannot filter system calls; the limits hold nevertheless.
pub(super) fn enter(settings: &Settings) -> io::Result<bool> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    _ = nice(NICE);
    let limit = |resource, most: u64| {
        let most = (most != u64::MAX).then_some(most);
        setrlimit(resource, Rlimit { current: most, maximum: most })
    };
    limit(Resource::Core, 0)?;
    // At the first a signal tells why; a second later it is killed.
    let seconds = settings.cpu_seconds;
    setrlimit(Resource::Cpu, Rlimit { current: Some(seconds), maximum: Some(seconds.saturating_add(1)) })?;
    limit(Resource::Fsize, settings.limits.code_bytes)?;
    limit(Resource::Data, settings.memory)?;
    let Ok(arch) = TargetArch::try_from(ARCH) else { return Ok(false) };
    match apply_filter_all_threads(&filter(arch).map_err(io::Error::other)?) {
        Ok(()) => Ok(true),
        // Not built into this kernel, or taken away by what this runs in.
        Err(seccompiler::Error::Prctl(_) | seccompiler::Error::Seccomp(_)) => Ok(false),
        Err(error) => Err(io::Error::other(error)),
    }
}

/// Refuses all system calls but those for its own memory, its threads, its end, and reading and writing the streams it
/// was started with. Code cannot be made executable, and memory cannot be shared.
fn filter(arch: TargetArch) -> Result<BpfProgram, seccompiler::BackendError> {
    let all = [
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_madvise,
        libc::SYS_brk,
        libc::SYS_futex,
        libc::SYS_exit,
        libc::SYS_exit_group,
        libc::SYS_rt_sigreturn,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigaction,
        libc::SYS_sigaltstack,
        libc::SYS_getrandom,
        libc::SYS_sched_yield,
        libc::SYS_clock_gettime,
        libc::SYS_getpid,
        libc::SYS_gettid,
    ];
    let mut rules: BTreeMap<_, _> = all.into_iter().map(|call| (call, Vec::new())).collect();
    let one_of = |argument, values: &[u64]| {
        values
            .iter()
            .map(|value| SeccompRule::new(vec![SeccompCondition::new(argument, Dword, SeccompCmpOp::Eq, *value)?]))
            .collect::<Result<Vec<_>, _>>()
    };
    let without = |bits: &[(u8, i32)]| {
        let conditions = bits
            .iter()
            .map(|&(argument, bit)| SeccompCondition::new(argument, Dword, SeccompCmpOp::MaskedEq(bit as u64), 0));
        Ok::<_, seccompiler::BackendError>(vec![SeccompRule::new(conditions.collect::<Result<_, _>>()?)?])
    };
    rules.insert(libc::SYS_read, one_of(0, &[0])?);
    rules.insert(libc::SYS_write, one_of(0, &[0, 1, 2])?);
    // What `abort` ends a process with.
    rules.insert(libc::SYS_tgkill, one_of(0, &[std::process::id().into()])?);
    rules.insert(libc::SYS_mmap, without(&[(2, libc::PROT_EXEC), (3, libc::MAP_SHARED)])?);
    rules.insert(libc::SYS_mprotect, without(&[(2, libc::PROT_EXEC)])?);
    SeccompFilter::new(rules, SeccompAction::Errno(libc::EPERM as u32), SeccompAction::Allow, arch)?.try_into()
}

#[cfg(test)]
mod tests {
    use std::{fs, net, os::unix::process::ExitStatusExt, process::Command, thread};

    use super::*;
    use crate::{CompileLimits, CompilerProcess, EngineConfig};

    /// Runs a test of this module in a sandboxed process of its own, and returns how that ended.
    fn shut_in(test: &str) -> std::process::ExitStatus {
        let name = format!("compiler::sandbox::tests::{test}");
        Command::new("/proc/self/exe").args(["--exact", &name, "--ignored"]).status().unwrap()
    }

    fn enter_for_test() {
        let compile_limits = CompileLimits { code_bytes: 1 << 20, ..CompileLimits::default() };
        let process = CompilerProcess { memory: 64 << 20, ..CompilerProcess::default() };
        let config = EngineConfig { compile_limits, ..EngineConfig::default() };
        assert!(enter(&Settings::new(&config, &process)).unwrap(), "this system cannot filter system calls");
    }

    #[test]
    fn what_is_shut_in_reaches_nothing() {
        assert_eq!(shut_in("reaches_nothing").code(), Some(77));
    }

    #[test]
    #[ignore = "runs in a process of its own"]
    fn reaches_nothing() {
        let socket = net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        // What must fail later on works now.
        net::TcpStream::connect(address).unwrap();
        let memfd = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        fs::File::open("/proc/self/exe").unwrap();
        thread::spawn(|| ()).join().unwrap();
        let parent = rustix::process::getppid().unwrap();
        enter_for_test();
        let refused = |result: io::Result<()>| {
            assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EPERM));
        };
        refused(fs::File::open("/proc/self/exe").map(drop));
        refused(net::TcpStream::connect(address).map(drop));
        refused(socket.accept().map(drop));
        refused(rustix::io::write(&memfd, b"x").map(drop).map_err(io::Error::from));
        refused(rustix::fs::ftruncate(&memfd, 1).map_err(io::Error::from));
        refused(rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).map(drop).map_err(io::Error::from));
        refused(thread::Builder::new().spawn(|| ()).map(drop));
        refused(Command::new("/bin/true").spawn().map(drop));
        refused(rustix::process::kill_process(parent, Signal::CONT).map_err(io::Error::from));
        refused(setrlimit(Resource::Core, Rlimit { current: None, maximum: None }).map_err(io::Error::from));
        // What the compiler needs.
        drop(vec![1_u8; 32 << 20]);
        std::process::exit(77);
    }

    #[test]
    fn what_is_shut_in_has_so_much_memory_and_no_more() {
        assert_eq!(shut_in("allocates").signal(), Some(libc::SIGABRT));
    }

    #[test]
    #[ignore = "runs in a process of its own"]
    fn allocates() {
        drop(vec![1_u8; 128 << 20]);
        enter_for_test();
        drop(vec![1_u8; 32 << 20]);
        drop(vec![1_u8; 128 << 20]);
    }

    #[test]
    fn what_is_shut_in_writes_so_much_and_no_more() {
        let name = "compiler::sandbox::tests::writes";
        let file = tempfile::NamedTempFile::new().unwrap();
        let status = Command::new("/proc/self/exe")
            .args(["--exact", name, "--ignored", "--nocapture", "--quiet"])
            .stdout(file.reopen().unwrap())
            .status()
            .unwrap();
        assert_eq!(status.signal(), Some(libc::SIGXFSZ));
        assert_eq!(file.as_file().metadata().unwrap().len(), 1 << 20);
    }

    #[test]
    #[ignore = "runs in a process of its own"]
    fn writes() {
        enter_for_test();
        let bytes = [b'x'; 64 << 10];
        while rustix::io::write(rustix::stdio::stdout(), &bytes).is_ok() {}
    }

    #[test]
    fn what_is_shut_in_computes_so_long_and_no_longer() {
        assert_eq!(shut_in("computes").signal(), Some(libc::SIGXCPU));
    }

    #[test]
    #[ignore = "runs in a process of its own, for a second"]
    fn computes() {
        let mut settings = Settings::new(&EngineConfig::default(), &CompilerProcess::default());
        settings.cpu_seconds = 1;
        assert!(enter(&settings).unwrap());
        loop {
            std::hint::black_box(0);
        }
    }
}
