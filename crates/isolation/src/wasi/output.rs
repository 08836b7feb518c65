//! Where a guest's output goes, and how much of it at once.

use std::{
    fmt,
    io::{self, Write},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use airssys_wasm_engine::wasmtime_wasi::{
    cli::{IsTerminal, StdoutStream},
    p2::{OutputStream, Pollable, StreamError, StreamResult},
};
use airssys_wasm_limits::{LogAllowance, LogLine};
use bytes::Bytes;
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::io::AsyncWrite;

/// Where a guest's output goes.
#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Stdio {
    /// Nowhere.
    #[default]
    Discard,
    /// Into `tracing` at level INFO, a line an event, under the target `guest`. Control characters are escaped, lines cut
    /// at 4 KiB, empty ones left out, and no more is kept than
    /// [`log_bytes`](airssys_wasm_limits::ResourceLimits::log_bytes), with a word on the rest: a guest can neither forge
    /// events, nor steer a terminal, nor flood the log.
    Tracing,
    /// To a writer, as it is. Writes happen on the async worker: the writer must not block.
    #[serde(skip)]
    Writer(Arc<Mutex<dyn Write + Send>>),
}

impl Stdio {
    /// To this writer, which is shared by all sandboxes with these grants.
    pub fn writer(writer: impl Write + Send + 'static) -> Self {
        Self::Writer(Arc::new(Mutex::new(writer)))
    }
}

impl fmt::Debug for Stdio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Discard => "Discard",
            Self::Tracing => "Tracing",
            Self::Writer(_) => "Writer",
        })
    }
}

/// One output of a guest.
#[derive(Clone)]
pub(super) struct GuestOutput(Arc<Mutex<Sink>>);

enum Sink {
    Tracing { stream: &'static str, log: LogAllowance, line: Vec<u8> },
    Writer(Arc<Mutex<dyn Write + Send>>),
}

/// Bytes after which a line is cut.
const LONGEST_LINE: usize = 4 << 10;

/// Bytes that a guest may write at once.
const LARGEST_WRITE: usize = 64 << 10;

impl GuestOutput {
    pub(super) fn new(stdio: &Stdio, stream: &'static str, log: &LogAllowance) -> Option<Self> {
        let sink = match stdio {
            Stdio::Discard => return None,
            Stdio::Tracing => Sink::Tracing { stream, log: log.clone(), line: Vec::new() },
            Stdio::Writer(writer) => Sink::Writer(Arc::clone(writer)),
        };
        Some(Self(Arc::new(Mutex::new(sink))))
    }
}

impl Sink {
    fn accept(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Writer(writer) => writer.lock().write_all(bytes),
            Self::Tracing { stream, log, line } => {
                for &byte in bytes {
                    if byte == b'\n' || line.len() == LONGEST_LINE {
                        emit(stream, log, line);
                    }
                    if byte != b'\n' {
                        line.push(byte);
                    }
                }
                Ok(())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Writer(writer) => writer.lock().flush(),
            Self::Tracing { .. } => Ok(()),
        }
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        if let Self::Tracing { stream, log, line } = self {
            emit(stream, log, line);
        }
    }
}

/// Makes an event of a line, unless it is empty or one too many.
fn emit(stream: &str, log: &LogAllowance, line: &mut Vec<u8>) {
    if line.is_empty() {
        return;
    }
    match log.line(line.len()) {
        LogLine::Kept { left_out } => {
            if left_out > 0 {
                tracing::warn!(target: "guest", stream, left_out, "lines were left out");
            }
            tracing::info!(target: "guest", stream, "{}", String::from_utf8_lossy(line).escape_debug());
        }
        LogLine::LeftOut { first: true } => {
            tracing::warn!(target: "guest", stream, "writes more than its `log_bytes`: lines are left out");
        }
        LogLine::LeftOut { first: false } => {}
    }
    line.clear();
}

impl IsTerminal for GuestOutput {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for GuestOutput {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

impl OutputStream for GuestOutput {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        if bytes.len() > LARGEST_WRITE {
            return Err(StreamError::trap("more bytes written than `check-write` permitted"));
        }
        self.0.lock().accept(&bytes).map_err(failed)
    }

    fn flush(&mut self) -> StreamResult<()> {
        self.0.lock().flush().map_err(failed)
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(LARGEST_WRITE)
    }
}

fn failed(error: io::Error) -> StreamError {
    StreamError::LastOperationFailed(error.into())
}

#[airssys_wasm_engine::wasmtime_wasi::async_trait]
impl Pollable for GuestOutput {
    async fn ready(&mut self) {}
}

impl AsyncWrite for GuestOutput {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(self.0.lock().accept(bytes).map(|()| bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.0.lock().flush())
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }
}
