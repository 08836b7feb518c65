//! Ctrl-C: whatever program is running is ended first, and then this one, in good order.

use std::{
    process::{Child, Command, ExitStatus},
    sync::atomic::{AtomicBool, AtomicI32, Ordering::SeqCst},
};

use anyhow::{Context, Result};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);
/// The process that is running, or zero. It leads a group of its own, so that what it has started ends with it.
static RUNNING: AtomicI32 = AtomicI32::new(0);

/// Somebody wants this to end. An error like any other, on whose way everything is put away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// Takes care of Ctrl-C, and of being told to end, from now on. A second one ends this program where it is.
pub(crate) fn listen() -> Result<()> {
    ctrlc::set_handler(|| {
        if INTERRUPTED.swap(true, SeqCst) {
            std::process::exit(130);
        }
        end_running();
    })
    .context("cannot listen for Ctrl-C")
}

/// Fails once somebody has interrupted.
pub(crate) fn check() -> Result<()> {
    if INTERRUPTED.load(SeqCst) { Err(Interrupted.into()) } else { Ok(()) }
}

fn end_running() {
    #[cfg(unix)]
    if let Some(group) = rustix::process::Pid::from_raw(RUNNING.load(SeqCst)) {
        // It may have ended by itself.
        _ = rustix::process::kill_process_group(group, rustix::process::Signal::TERM);
    }
}

/// A program that ends with us.
pub(crate) struct Running(pub(crate) Child);

impl Running {
    /// Starts it.
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        check()?;
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(command, 0);
        let name = command.get_program().to_string_lossy().into_owned();
        let child = command.spawn().with_context(|| format!("cannot run {name}"))?;
        RUNNING.store(child.id() as i32, SeqCst);
        if check().is_err() {
            // It came between.
            end_running();
        }
        Ok(Self(child))
    }

    /// Starts another one that ends with this one and with us.
    pub(crate) fn start_beside(&self, command: &mut Command) -> Result<Child> {
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(command, self.0.id() as i32);
        let name = command.get_program().to_string_lossy().into_owned();
        command.spawn().with_context(|| format!("cannot run {name}"))
    }

    /// Waits until it has ended, and fails if somebody ended it.
    pub(crate) fn wait(mut self) -> Result<ExitStatus> {
        let status = self.0.wait();
        RUNNING.store(0, SeqCst);
        check()?;
        Ok(status?)
    }
}

/// Runs a program to its end.
pub(crate) fn status(command: &mut Command) -> Result<ExitStatus> {
    Running::start(command)?.wait()
}
