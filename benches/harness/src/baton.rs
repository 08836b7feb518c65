//! Taking turns with another process, so that only one of the two ever computes.

use std::io::{self, Read, Write};

use airssys_wasm_measurements::Role;
use anyhow::{Context, Result, ensure};

/// What lets this process go on, while the other one waits for it. It goes to and fro by standard input and output: on one
/// core a microsecond or two each way.
///
/// A process that measures alone always has it.
pub(super) struct Baton {
    role: Option<Role>,
    is_here: bool,
    /// How often it was passed on, by both.
    passed: u64,
}

impl Baton {
    pub(super) fn new(role: Option<Role>) -> Self {
        Self { role, is_here: role != Some(Role::Second), passed: 0 }
    }

    pub(super) fn role(&self) -> Option<Role> {
        self.role
    }

    /// Waits for it, unless it is here.
    pub(super) fn take(&mut self) -> Result<()> {
        if !self.is_here {
            let mut number = [0; 8];
            io::stdin().read_exact(&mut number).context("the other process has ended")?;
            let number = u64::from_le_bytes(number);
            ensure!(number == self.passed, "out of step: turn {number} came instead of turn {}", self.passed);
            (self.is_here, self.passed) = (true, self.passed + 1);
        }
        Ok(())
    }

    /// Lets the other one go on.
    pub(super) fn pass(&mut self) -> Result<()> {
        if self.role.is_some() {
            let mut out = io::stdout().lock();
            let passed = out.write_all(&self.passed.to_le_bytes()).and_then(|()| out.flush());
            passed.context("the other process has ended")?;
            (self.is_here, self.passed) = (false, self.passed + 1);
        }
        Ok(())
    }
}
