//! A host's process, as its parent has it.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    time::Duration,
};

use airssys_wasm_measurements::process::Reading;
use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::{host::Host, record::Id};
use crate::growth::Growth;

/// A host does what it is told within this.
const LONG: Duration = Duration::from_secs(90);

/// Guests that it has at the most.
const GUESTS: usize = 2 + super::KEYS;

/// Ends when it is dropped.
pub(super) struct Process {
    child: Child,
    input: ChildStdin,
    said: Receiver<String>,
    host: usize,
    pub(super) life: u32,
    pub(super) growth: Growth,
    /// The message that it has lost or repeated on purpose.
    pub(super) tampered: Option<Id>,
}

impl Process {
    pub(super) fn start(mut program: Command, options: &Host) -> Result<Self> {
        let Host { host, life, round, seed, server, folder, tamper } = options;
        program.args(["--host", &host.to_string(), "--life", &life.to_string(), "--round", &round.to_string()]);
        program.args(["--seed", &seed.to_string(), "--server", server]).arg("--folder").arg(folder);
        if let Some(tamper) = tamper {
            program.args(["--tamper", tamper.word()]);
        }
        let started = program.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = started.context("a host cannot be started")?;
        let input = child.stdin.take().context("a host has no input")?;
        let output = child.stdout.take().context("a host has no output")?;
        let (says, said) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines() {
                let Ok(line) = line else { return };
                if says.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, input, said, host: *host, life: *life, growth: Growth::new(GUESTS), tampered: None })
    }

    pub(super) fn tell(&mut self, command: &str) -> Result<()> {
        writeln!(self.input, "{command}").with_context(|| format!("host {} has ended by itself", self.host))
    }

    /// Waits until it says something that begins with this word. Gives the rest.
    pub(super) fn hear(&mut self, word: &str) -> Result<Vec<u64>> {
        loop {
            let line = match self.said.recv_timeout(LONG) {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) => {
                    bail!("host {} is not {word} within {} s", self.host, LONG.as_secs())
                }
                Err(RecvTimeoutError::Disconnected) => bail!("host {} has ended by itself", self.host),
            };
            match line.split_once(' ') {
                Some(("tampered", id)) => self.tampered = Some(id.parse()?),
                None if line == word => return Ok(Vec::new()),
                Some((said, rest)) if said == word => {
                    return rest.split(' ').map(|number| Ok(number.parse()?)).collect();
                }
                _ => bail!("host {} says {line:?}", self.host),
            }
        }
    }

    /// Notes how large it is.
    pub(super) fn read(&mut self) -> Result<()> {
        self.tell("read")?;
        let reading = match self.hear("reading")?[..] {
            [resident, peak, virtual_, mappings, descriptors, threads] => {
                Some(Reading { resident, peak, virtual_, mappings, descriptors, threads })
            }
            _ => None,
        };
        self.growth.end_round(reading);
        Ok(())
    }

    pub(super) fn stop(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    pub(super) fn go_on(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    pub(super) fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(Pid::from_child(&self.child), signal).context("a host cannot be signalled")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // An error says that it has ended.
        _ = self.kill();
    }
}
