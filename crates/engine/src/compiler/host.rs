//! The parent's side: idle compiler processes, and how one ends.

use std::{
    fs::File,
    io::{self, PipeReader, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::{
            net::UnixStream,
            process::{CommandExt, ExitStatusExt},
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Once,
        mpsc::{Receiver, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create},
    net::{RecvFlags, SendFlags, recv, send},
    process::{Pid, PidfdFlags, pidfd_open},
};

use super::{
    child,
    protocol::{self, Job, Reply, Settings},
};
use crate::{
    CompilerEnd, CompilerProcess, CompilerProgram, EngineConfig, EngineError, Features, LoadError, Profile,
    complexity::Form, digest::Digest,
};

/// Compiler processes, some of them idle.
pub(crate) struct Compilers {
    waiting: Mutex<Receiver<io::Result<Process>>>,
    /// How many there are that were started before a load wants one.
    started_ahead: usize,
    deadline: Duration,
    memory: u64,
    code_bytes: u64,
}

impl Compilers {
    /// Starts the thread that spawns processes. Dropping this ends the thread and the processes.
    pub(crate) fn start(config: &EngineConfig, process: &CompilerProcess) -> Result<Self, EngineError> {
        let program = match &process.program {
            CompilerProgram::ThisExecutable if child::is_hooked() => PathBuf::from("/proc/self/exe"),
            CompilerProgram::ThisExecutable => return Err(EngineError::NoCompilerHook),
            CompilerProgram::Path(path) => path.clone(),
        };
        let settings = serde_json::to_string(&Settings::new(config, process)).expect("numbers and flags");
        // The thread holds one more than there is room for.
        let (started, waiting) = sync_channel(process.waiting.get() - 1);
        let start = move || while started.send(Process::start(&program, &settings)).is_ok() {};
        // A process dies with the thread that started it, so this thread does nothing else.
        thread::Builder::new().name("wasm-compilers".into()).spawn(start).map_err(EngineError::Compilers)?;
        Ok(Self {
            waiting: Mutex::new(waiting),
            started_ahead: process.waiting.get(),
            deadline: process.deadline,
            memory: process.memory,
            code_bytes: config.compile_limits.code_bytes,
        })
    }

    /// Compiles in a process, on the calling thread. It ends early when the other end of `cancel` is dropped.
    pub(crate) fn compile(
        &self,
        bytes: &[u8],
        form: Form,
        profile: Profile,
        code_digest: Digest,
        cancel: Option<&PipeReader>,
    ) -> Result<Code, LoadError> {
        let process = self.take(cancel)?;
        let job = Job { profile, form, bytes: bytes.len() as u64, code_digest };
        let mut talk = Talk { socket: &process.socket, cancel, until: Instant::now().checked_add(self.deadline) };
        let reply = protocol::write_frame(&mut talk, &job)
            .and_then(|()| talk.write_all(bytes))
            .and_then(|()| protocol::read_frame(&mut talk));
        match reply {
            Ok(Reply::Code { bytes, features }) if bytes <= self.code_bytes => process.code(bytes, features),
            Ok(Reply::Code { .. }) => None,
            Ok(Reply::OtherCode) => return Err(LoadError::OtherCompiler),
            Ok(Reply::Refused(refusal)) => return Err(refusal.error().unwrap_or(end(CompilerEnd::Nonsense))),
            Err(error) => return Err(self.ended(process, error.kind())),
        }
        .ok_or(end(CompilerEnd::Nonsense))
    }

    /// An idle process. What failed before this load says nothing about the component, so the next is tried until it is one
    /// that was started for it.
    fn take(&self, cancel: Option<&PipeReader>) -> Result<Process, LoadError> {
        let mut failed_before = 0;
        loop {
            let next = self.waiting.lock().recv().expect("the thread goes on as long as there is a receiver");
            let error = match next.map_err(|source| LoadError::CompilerStart { source }) {
                Ok(process) => match self.ready(&process, cancel) {
                    Ok(()) => return Ok(process),
                    Err(error) => self.ended(process, error.kind()),
                },
                Err(error) => error,
            };
            if failed_before == self.started_ahead || matches!(error, LoadError::Shutdown) {
                return Err(error);
            }
            failed_before += 1;
        }
    }

    fn ready(&self, process: &Process, cancel: Option<&PipeReader>) -> io::Result<()> {
        let mut talk = Talk { socket: &process.socket, cancel, until: Instant::now().checked_add(self.deadline) };
        let mut ready = [0];
        talk.read_exact(&mut ready)?;
        if ready[0] == protocol::READY_UNFILTERED {
            warn_unfiltered();
        }
        Ok(())
    }

    fn ended(&self, mut process: Process, error: io::ErrorKind) -> LoadError {
        let deadline = CompilerEnd::Deadline(self.deadline);
        end(match error {
            io::ErrorKind::TimedOut => deadline,
            CANCELLED => return LoadError::Shutdown,
            io::ErrorKind::InvalidData => CompilerEnd::Nonsense,
            _ => match process.ended() {
                Some(status) => match (status.signal(), status.code()) {
                    (Some(libc::SIGABRT), _) => CompilerEnd::Aborted { memory: self.memory },
                    (Some(libc::SIGXCPU), _) => deadline,
                    (Some(signal), _) => CompilerEnd::Signal(signal),
                    (None, code) => CompilerEnd::Exit(code.unwrap_or_default()),
                },
                None => CompilerEnd::Nonsense,
            },
        })
    }
}

fn end(end: CompilerEnd) -> LoadError {
    LoadError::Compiler { end }
}

fn warn_unfiltered() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        tracing::warn!("this system cannot filter system calls: compilers are limited in time, memory and output only");
    });
}

/// A process that compiles. Dropping it ends it.
struct Process {
    child: Child,
    socket: UnixStream,
    code: OwnedFd,
}

impl Process {
    fn start(program: &Path, settings: &str) -> io::Result<Self> {
        let (socket, theirs) = UnixStream::pair()?;
        let code = memfd_create("airssys-wasm-code", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        let child = Command::new(program)
            // What lists of processes show.
            .arg0("airssys-wasm-compiler")
            .args([protocol::MARK, settings])
            .env_clear()
            .current_dir("/")
            .stdin(OwnedFd::from(theirs))
            .stdout(code.try_clone()?)
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self { child, socket, code })
    }

    /// How it ended, or `None` if it closed its socket and still runs.
    fn ended(&mut self) -> Option<ExitStatus> {
        let pid = Pid::from_child(&self.child);
        let process = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        let grace = Timespec { tv_sec: 5, tv_nsec: 0 };
        match poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&grace)) {
            Ok(1..) => self.child.wait().ok(),
            _ => None,
        }
    }

    /// The code that it has written, sealed against changes.
    fn code(self, bytes: u64, features: Features) -> Option<Code> {
        let code = File::from(self.code.try_clone().ok()?);
        // It may hold mappings of the file, and those are gone with it.
        drop(self);
        fcntl_add_seals(&code, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL).ok()?;
        (code.metadata().ok()?.len() == bytes).then_some(Code { file: code, features })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails if it has exited.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// Native code in a sealed file in memory.
pub(crate) struct Code {
    file: File,
    /// What it needs.
    pub(crate) features: Features,
}

impl Code {
    /// A path to open it by, valid while this lives.
    pub(crate) fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.file.as_raw_fd()).into()
    }

    pub(crate) fn file(&mut self) -> io::Result<&mut File> {
        io::Seek::rewind(&mut self.file)?;
        Ok(&mut self.file)
    }
}

const CANCELLED: io::ErrorKind = io::ErrorKind::ConnectionAborted;

/// The socket to a process, with a deadline and cancellation.
struct Talk<'a> {
    socket: &'a UnixStream,
    cancel: Option<&'a PipeReader>,
    until: Option<Instant>,
}

impl Talk<'_> {
    /// Runs an operation once the socket is ready.
    fn when<R>(&self, flag: PollFlags, mut act: impl FnMut() -> rustix::io::Result<R>) -> io::Result<R> {
        loop {
            match act() {
                Err(rustix::io::Errno::AGAIN) => {}
                result => return Ok(result?),
            }
            let left = self.until.map(|until| until.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let left = left.and_then(|left| Timespec::try_from(left).ok());
            let mut fds = [PollFd::new(self.socket, flag), PollFd::new(self.socket, flag)];
            let fds = match self.cancel {
                Some(cancel) => {
                    fds[1] = PollFd::from_borrowed_fd(cancel.as_fd(), PollFlags::empty());
                    &mut fds[..]
                }
                None => &mut fds[..1],
            };
            match poll(fds, left.as_ref()) {
                Err(rustix::io::Errno::INTR) => {}
                result => _ = result?,
            }
            if self.cancel.is_some() && !fds[1].revents().is_empty() {
                return Err(CANCELLED.into());
            }
        }
    }
}

impl Read for Talk<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.when(PollFlags::IN, || recv(self.socket, &mut *buffer, RecvFlags::DONTWAIT).map(|(bytes, _)| bytes))
    }
}

impl Write for Talk<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.when(PollFlags::OUT, || send(self.socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_not_be_started_before_a_load_does_not_fail_it() {
        let (started, waiting) = sync_channel(3);
        for kind in [io::ErrorKind::OutOfMemory, io::ErrorKind::WouldBlock, io::ErrorKind::NotFound] {
            started.send(Err(kind.into())).unwrap();
        }
        let compilers = Compilers {
            waiting: Mutex::new(waiting),
            started_ahead: 2,
            deadline: Duration::ZERO,
            memory: 0,
            code_bytes: 0,
        };
        // The third may have been started for it.
        let error = compilers.take(None).err();
        assert!(
            matches!(&error, Some(LoadError::CompilerStart { source }) if source.kind() == io::ErrorKind::NotFound),
            "{error:?}"
        );
    }
}
