//! Where a guest's output goes, and how much of it at once.

use std::{
    fmt,
    io::{self, Write},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker, ready},
};

use airssys_wasm_engine::wasmtime_wasi::{
    cli::{IsTerminal, StdoutStream},
    p2::{OutputStream, Pollable, StreamError, StreamResult},
};
use airssys_wasm_limits::{LogAllowance, LogLine};
use bytes::{Buf, Bytes};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWrite;

/// Where a guest's output goes.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Stdio {
    /// Nowhere.
    #[default]
    Discard,
    /// Into `tracing` at level INFO, a line an event, under the target `guest`, with the sandbox's
    /// [name](crate::SandboxSpec::with_name) as `actor`. Control characters are escaped, lines cut
    /// at 4 KiB, empty ones left out, and no more is kept than
    /// [`log_bytes`](airssys_wasm_limits::ResourceLimits::log_bytes), with a word on the rest: a guest can neither forge
    /// events, nor steer a terminal, nor flood the log. It may write 4 KiB at once; after each 32 lines other tasks have
    /// their turn. Of what a guest has neither flushed nor closed when it ends, 32 lines are kept.
    Tracing,
    /// To a writer, as it is, which cannot be serialised. Writes happen on the async worker: the writer must not block.
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

/// The end of what a guest wrote to its standard error in the present call.
#[derive(Clone, Default)]
pub(crate) struct Tail(Arc<Written>);

#[derive(Default)]
struct Written {
    any: AtomicBool,
    bytes: Mutex<Vec<u8>>,
}

/// Bytes and lines of it that are kept.
const TAIL: usize = 1 << 10;
const TAIL_LINES: usize = 10;

impl Tail {
    /// Forgets the call before.
    pub(crate) fn begin(&self) {
        // Most have written nothing, and to look is cheaper than to swap.
        if self.0.any.load(Ordering::Relaxed) {
            self.0.any.store(false, Ordering::Relaxed);
            self.0.bytes.lock().clear();
        }
    }

    fn write(&self, bytes: &[u8]) {
        self.0.any.store(true, Ordering::Relaxed);
        let mut kept = self.0.bytes.lock();
        kept.extend_from_slice(&bytes[bytes.len().saturating_sub(2 * TAIL)..]);
        if kept.len() > 2 * TAIL {
            let beyond = kept.len() - TAIL - 1;
            kept.drain(..beyond);
        }
    }

    /// Its last lines. A first line that was cut is left out, unless it is the only one.
    pub(crate) fn text(&self) -> String {
        let bytes = self.0.bytes.lock();
        let text = bytes.trim_ascii_end();
        let mut start = text.len().saturating_sub(TAIL);
        if start > 0
            && text[start - 1] != b'\n'
            && let Some(end) = text[start..].iter().position(|&byte| byte == b'\n')
        {
            start += end + 1;
        }
        let text = String::from_utf8_lossy(&text[start..]);
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }
}

/// One stream to an output of a guest. All of them share the output, and with it the line that is not ended yet.
pub(super) struct GuestOutput {
    sink: Arc<Mutex<Sink>>,
    /// Of its standard error.
    tail: Option<Tail>,
    /// What was written and is not handed over yet.
    rest: Bytes,
    /// In 0.3: the other tasks' turn, while this waits for it.
    turn: Option<Pin<Box<dyn Future<Output = ()> + Send + Sync>>>,
}

enum Sink {
    Discard,
    Tracing {
        stream: &'static str,
        actor: Option<Arc<str>>,
        log: LogAllowance,
        line: Vec<u8>,
        /// Lines since other tasks had their turn, as far as 0.3 is used.
        lines: usize,
    },
    Writer(Arc<Mutex<dyn Write + Send>>),
}

/// Bytes after which a line is cut.
const LONGEST_LINE: usize = 4 << 10;

/// Bytes that a guest may write at once, to `tracing` and to a writer.
const LARGEST_WRITE_TO_TRACING: usize = 4 << 10;
const LARGEST_WRITE: usize = 64 << 10;

/// Lines between two yields. An event takes some microseconds.
const LINES: usize = 32;

impl GuestOutput {
    pub(super) fn new(
        stdio: &Stdio,
        stream: &'static str,
        actor: Option<&Arc<str>>,
        log: &LogAllowance,
        tail: Option<Tail>,
    ) -> Self {
        let sink = match stdio {
            Stdio::Discard => Sink::Discard,
            Stdio::Tracing => {
                Sink::Tracing { stream, actor: actor.cloned(), log: log.clone(), line: Vec::new(), lines: 0 }
            }
            Stdio::Writer(writer) => Sink::Writer(Arc::clone(writer)),
        };
        Self { sink: Arc::new(Mutex::new(sink)), tail, rest: Bytes::new(), turn: None }
    }

    fn another(&self) -> Self {
        Self { sink: Arc::clone(&self.sink), tail: self.tail.clone(), rest: Bytes::new(), turn: None }
    }

    /// Hands over what waits, or a part of it.
    fn advance(&mut self) -> io::Result<()> {
        let taken = self.sink.lock().accept(&self.rest)?;
        self.rest.advance(taken);
        Ok(())
    }

    fn note(&self, bytes: &[u8]) {
        if let Some(tail) = &self.tail {
            tail.write(bytes);
        }
    }

    fn permit(&self) -> usize {
        if self.rest.is_empty() { self.sink.lock().permit() } else { 0 }
    }

    /// Ready when other tasks had their turn, if many lines were logged since they had.
    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.turn.is_none() && !self.sink.lock().is_due() {
            return Poll::Ready(());
        }
        // wasmtime polls first with a waker that wakes nobody, and then at once with the task's: only that one waits.
        if cx.waker().will_wake(Waker::noop()) {
            return Poll::Pending;
        }
        let turn = self.turn.get_or_insert_with(|| Box::pin(tokio::task::yield_now()));
        ready!(turn.as_mut().poll(cx));
        self.turn = None;
        self.sink.lock().had_turn();
        Poll::Ready(())
    }
}

impl Sink {
    fn permit(&self) -> usize {
        match self {
            Self::Tracing { .. } => LARGEST_WRITE_TO_TRACING,
            Self::Writer(_) | Self::Discard => LARGEST_WRITE,
        }
    }

    /// Whether other tasks are to have their turn.
    fn is_due(&self) -> bool {
        matches!(self, Self::Tracing { lines: LINES.., .. })
    }

    fn had_turn(&mut self) {
        if let Self::Tracing { lines, .. } = self {
            *lines = 0;
        }
    }

    /// Takes as much as is good at once, and says how many bytes these were.
    fn accept(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Discard => {}
            Self::Writer(writer) => writer.lock().write_all(bytes)?,
            Self::Tracing { stream, actor, log, line, lines: logged } => {
                let mut lines = 0;
                for (i, &byte) in bytes.iter().enumerate() {
                    if byte == b'\n' || line.len() == LONGEST_LINE {
                        if lines == LINES {
                            return Ok(i);
                        }
                        lines += 1;
                        *logged += 1;
                        emit(stream, actor.as_deref(), log, line);
                    }
                    if byte != b'\n' {
                        line.push(byte);
                    }
                }
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Writer(writer) => writer.lock().flush(),
            Self::Tracing { .. } | Self::Discard => Ok(()),
        }
    }
}

impl Drop for GuestOutput {
    fn drop(&mut self) {
        if !self.rest.is_empty() {
            // Nobody waits any more, and what a writer refuses is lost.
            let _ = self.advance();
        }
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        if let Self::Tracing { stream, actor, log, line, .. } = self {
            emit(stream, actor.as_deref(), log, line);
        }
    }
}

/// Logs a line, unless it is empty or over the allowance.
fn emit(stream: &str, actor: Option<&str>, log: &LogAllowance, line: &mut Vec<u8>) {
    if line.is_empty() {
        return;
    }
    match log.line(line.len()) {
        LogLine::Kept { left_out } => {
            if left_out > 0 {
                tracing::warn!(target: "guest", actor, stream, left_out, "lines were left out");
            }
            tracing::info!(target: "guest", actor, stream, "{}", String::from_utf8_lossy(line).escape_debug());
        }
        LogLine::LeftOut { first: true } => {
            tracing::warn!(target: "guest", actor, stream, "writes more than its `log_bytes`: lines are left out");
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
        Box::new(self.another())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.another())
    }
}

#[airssys_wasm_engine::wasmtime_wasi::async_trait]
impl OutputStream for GuestOutput {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        if bytes.len() > self.permit() {
            return Err(StreamError::trap("more bytes written than `check-write` permitted"));
        }
        if bytes.is_empty() {
            return Ok(());
        }
        self.note(&bytes);
        self.rest = bytes;
        self.advance().map_err(|error| {
            self.rest.clear();
            failed(error)
        })
    }

    fn flush(&mut self) -> StreamResult<()> {
        self.sink.lock().flush().map_err(failed)
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(self.permit())
    }

    async fn cancel(&mut self) {
        self.ready().await;
    }
}

fn failed(error: io::Error) -> StreamError {
    StreamError::LastOperationFailed(error.into())
}

#[airssys_wasm_engine::wasmtime_wasi::async_trait]
impl Pollable for GuestOutput {
    async fn ready(&mut self) {
        // Only `tracing` leaves a rest, and it refuses nothing.
        while !self.rest.is_empty() && self.advance().is_ok() {
            tokio::task::yield_now().await;
        }
    }
}

/// For 0.3, which hands over all that a guest writes at once.
impl AsyncWrite for GuestOutput {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_turn(cx));
        let bytes = &bytes[..bytes.len().min(self.permit())];
        let taken = self.sink.lock().accept(bytes)?;
        self.note(&bytes[..taken]);
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.sink.lock().flush())
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use airssys_wasm_engine::{EngineConfig, Profile, WasmEngine};
    use airssys_wasm_limits::{ByteSize, Meter, Quota, ResourceLimits};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Lines {
        /// What is logged from now on, by this thread.
        fn logged() -> (Self, tracing::subscriber::DefaultGuard) {
            let lines = Self::default();
            let writer = lines.clone();
            let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).with_ansi(false).finish();
            (lines, tracing::subscriber::set_default(subscriber))
        }

        fn count(&self) -> usize {
            self.0.lock().iter().filter(|&&byte| byte == b'\n').count()
        }
    }

    fn output(stdio: &Stdio) -> GuestOutput {
        let engine = WasmEngine::new(EngineConfig::small().compile_in_process().with_manual_ticks()).unwrap();
        let component = engine.load_wat_blocking("(component)", Profile::Plain).unwrap();
        let limits = ResourceLimits { log_bytes: ByteSize::mib(1), ..ResourceLimits::with_memory(ByteSize(0)) };
        let meter = Meter::new(Quota::new(limits, &component).unwrap(), None);
        GuestOutput::new(stdio, "stdout", None, meter.log(), None)
    }

    #[tokio::test]
    async fn many_lines_are_logged_in_turns_and_none_is_lost() {
        let (lines, _guard) = Lines::logged();
        let mut stream = output(&Stdio::Tracing);
        assert_eq!(stream.check_write().unwrap(), LARGEST_WRITE_TO_TRACING);
        stream.write(Bytes::from("x\n".repeat(100))).unwrap();
        assert_eq!((lines.count(), stream.check_write().unwrap()), (LINES, 0));
        assert!(matches!(stream.write(Bytes::from("x")), Err(StreamError::Trap(_))));
        stream.write(Bytes::new()).unwrap();
        stream.ready().await;
        assert_eq!((lines.count(), stream.check_write().unwrap()), (100, LARGEST_WRITE_TO_TRACING));
    }

    #[tokio::test]
    async fn a_stream_that_is_closed_has_logged_all_and_one_that_is_dropped_some() {
        let (lines, _guard) = Lines::logged();
        let output = output(&Stdio::Tracing);
        let mut closed = output.p2_stream();
        closed.write(Bytes::from("x\n".repeat(1_000))).unwrap();
        closed.cancel().await;
        drop(closed);
        assert_eq!(lines.count(), 1_000);
        let mut dropped = output.p2_stream();
        dropped.write(Bytes::from("x\n".repeat(1_000))).unwrap();
        drop(dropped);
        assert_eq!(lines.count(), 1_000 + 2 * LINES);
    }

    #[tokio::test]
    async fn no_more_is_written_at_once_than_permitted() {
        let writer = Stdio::writer(io::sink());
        for (stdio, largest) in [(Stdio::Tracing, LARGEST_WRITE_TO_TRACING), (writer, LARGEST_WRITE)] {
            let mut stream = output(&stdio);
            stream.write(Bytes::from(vec![b'x'; largest])).unwrap();
            assert!(matches!(stream.write(Bytes::from(vec![b'x'; largest + 1])), Err(StreamError::Trap(_))));
        }
    }

    /// Writes once, as wasmtime polls: first with a waker that wakes nobody.
    async fn write(output: &mut Pin<Box<dyn AsyncWrite + Send + Sync>>, bytes: &[u8]) -> (usize, bool) {
        let first = output.as_mut().poll_write(&mut Context::from_waker(Waker::noop()), bytes);
        match first {
            Poll::Ready(taken) => (taken.unwrap(), false),
            Poll::Pending => (poll_fn(|cx| output.as_mut().poll_write(cx, bytes)).await.unwrap(), true),
        }
    }

    #[tokio::test]
    async fn a_large_write_is_cut_and_what_is_taken_is_noted() {
        for (stdio, largest) in [(Stdio::Tracing, LARGEST_WRITE_TO_TRACING), (Stdio::writer(io::sink()), LARGEST_WRITE)]
        {
            let tail = Tail::default();
            let mut written = output(&stdio);
            written.tail = Some(tail.clone());
            let mut stream = Box::into_pin(written.async_stream());
            let mut bytes = vec![b'x'; largest];
            bytes.extend_from_slice(b"\nbeyond");
            assert_eq!(write(&mut stream, &bytes).await, (largest, false));
            assert_eq!(tail.text(), "x".repeat(TAIL));
            // The control: what is not too large is taken whole.
            assert_eq!(write(&mut stream, &bytes[largest..]).await.0, 7);
            assert_eq!(tail.text(), "beyond");
        }
    }

    #[tokio::test]
    async fn other_tasks_have_their_turn_after_many_lines() {
        let (lines, _guard) = Lines::logged();
        let output = output(&Stdio::Tracing);
        let mut stream = Box::into_pin(output.async_stream());
        assert_eq!(write(&mut stream, "x\n".repeat(LINES - 1).as_bytes()).await, (2 * (LINES - 1), false));
        assert_eq!(write(&mut stream, b"x\n").await, (2, false), "the last before a turn");
        // Another stream of the same output is no way around it.
        let mut another = Box::into_pin(output.async_stream());
        let turns = Arc::new(AtomicBool::new(false));
        tokio::spawn({
            let turns = Arc::clone(&turns);
            async move { turns.store(true, Ordering::Relaxed) }
        });
        assert_eq!(write(&mut another, b"x\n").await, (2, true));
        assert!(turns.load(Ordering::Relaxed), "the other task");
        assert_eq!(write(&mut stream, b"x\n").await, (2, false));
        assert_eq!(lines.count(), LINES + 2);
    }

    #[test]
    fn the_last_whole_lines_of_a_call_are_kept() {
        let tail = Tail::default();
        assert_eq!(tail.text(), "");
        tail.write(b"one\ntwo\n");
        assert_eq!(tail.text(), "one\ntwo");
        for n in 0..1_000 {
            tail.write(format!("line {n}\n").as_bytes());
        }
        let lines: Vec<_> = (990..1_000).map(|n| format!("line {n}")).collect();
        assert_eq!(tail.text(), lines.join("\n"));
        tail.begin();
        assert_eq!(tail.text(), "");
        for chunk in [1, 100, 5_000] {
            tail.begin();
            tail.write(b"lost\n");
            for _ in 0..10_000_usize.div_ceil(chunk) {
                tail.write(&vec![b'x'; chunk]);
                assert!(tail.0.bytes.lock().len() <= 2 * TAIL);
            }
            assert_eq!(tail.text(), "x".repeat(TAIL));
        }
    }
}
