//! Streams of files, bounded in number, in bytes in flight, and in the threads that serve them.
//!
//! Reading and writing itself is left to wasmtime-wasi's streams.

use std::{fs::File, mem, panic::resume_unwind, sync::Arc};

use airssys_wasm_engine::{
    wasmtime::component::ResourceTable,
    wasmtime_wasi::{
        async_trait,
        filesystem::Descriptor,
        p2::{DynInputStream, DynOutputStream, InputStream, OutputStream, Pollable, StreamError, StreamResult},
    },
};
use bytes::Bytes;
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore},
    task::{JoinError, JoinHandle},
};

use super::{FileJobs, Job};

/// Bytes that a stream reads or writes at once, and so the most that it holds.
pub(crate) const UNDER_WAY: usize = 64 << 10;

/// Bytes that are read for who waits and has not said how much.
const READ_AHEAD: usize = 4 << 10;

/// What a sandbox may have of streams.
pub(crate) struct FileStreams {
    slots: Arc<Semaphore>,
    jobs: FileJobs,
}

/// A permit for a stream, held until the stream is gone.
pub(crate) struct Slot {
    jobs: FileJobs,
    _place: OwnedSemaphorePermit,
}

impl FileStreams {
    pub(crate) fn new(at_a_time: u32, jobs: FileJobs) -> Self {
        let slots = Semaphore::new((at_a_time as usize).min(Semaphore::MAX_PERMITS));
        Self { slots: Arc::new(slots), jobs }
    }

    pub(crate) fn slot(&self) -> Option<Slot> {
        let place = Arc::clone(&self.slots).try_acquire_owned().ok()?;
        Some(Slot { jobs: self.jobs.clone(), _place: place })
    }

    pub(crate) fn jobs(&self) -> &FileJobs {
        &self.jobs
    }
}

impl Slot {
    pub(crate) fn file(&self, file: Arc<File>) -> OpenFile {
        OpenFile::new(file, &self.jobs)
    }

    pub(crate) fn jobs(&self) -> &FileJobs {
        &self.jobs
    }
}

/// A file that is closed by a job of its own, whoever drops it: closing the last handle on an unlinked file frees its
/// blocks, some 4 ms for 64 MiB.
pub(crate) struct OpenFile {
    file: Option<Arc<File>>,
    jobs: FileJobs,
}

impl OpenFile {
    pub(crate) fn new(file: Arc<File>, jobs: &FileJobs) -> Self {
        Self { file: Some(file), jobs: jobs.clone() }
    }

    /// Drops the handle. If that closes the file, waits for the end.
    pub(crate) async fn close(mut self) {
        if let Some(closing) = self.closing() {
            // To wait is all there is to do.
            _ = closing.await;
        }
    }

    fn closing(&mut self) -> Option<JoinHandle<()>> {
        close_elsewhere(self.file.take().and_then(Arc::into_inner)?, &self.jobs)
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        drop(self.closing());
    }
}

/// Drops files by a job. If it must wait for a permit, it does so in a task of its own.
fn close_elsewhere(files: impl Send + 'static, jobs: &FileJobs) -> Option<JoinHandle<()>> {
    // Outside a runtime there is no worker to block.
    let runtime = Handle::try_current().ok()?;
    if let Some(permit) = jobs.try_permit() {
        return Some(runtime.spawn_blocking(move || {
            drop(files);
            drop(permit);
        }));
    }
    let jobs = jobs.clone();
    Some(runtime.spawn(async move { _ = jobs.start(move || drop(files)).await.await }))
}

/// Drops the resources of a sandbox, and closes its files elsewhere.
pub(crate) fn drop_resources(mut table: ResourceTable, jobs: &FileJobs) {
    let files: Vec<_> = table
        .iter_mut()
        .filter_map(|resource| match resource.downcast_ref()? {
            Descriptor::File(file) => Some(Arc::clone(&file.file)),
            Descriptor::Dir(_) => None,
        })
        .collect();
    drop(table);
    if !files.is_empty() {
        drop(close_elsewhere(files, jobs));
    }
}

/// The result of a job, or its panic.
pub(crate) fn ended<R>(job: Result<R, JoinError>) -> R {
    job.unwrap_or_else(|error| resume_unwind(error.into_panic()))
}

/// A stream of wasmtime-wasi's, with its file: in this order, so that the stream's handle is not the last.
struct Inner<S> {
    stream: S,
    file: OpenFile,
}

/// Work on a stream, and its result.
type Work<S, R> = Job<(Inner<S>, StreamResult<R>)>;

/// What a guest reads from a file.
pub(crate) struct FileIn {
    state: In,
    slot: Slot,
}

enum In {
    Idle(Inner<DynInputStream>),
    Busy(Work<DynInputStream, Bytes>),
    Have(Inner<DynInputStream>, Bytes),
    Failed(StreamError),
    Closed,
}

impl FileIn {
    pub(crate) fn new(stream: DynInputStream, file: OpenFile, slot: Slot) -> Self {
        Self { state: In::Idle(Inner { stream, file }), slot }
    }

    fn start(&mut self, bytes: usize) {
        self.state = match mem::replace(&mut self.state, In::Closed) {
            In::Idle(mut inner) => In::Busy(self.slot.jobs.spawn(async move {
                let read = inner.stream.blocking_read(bytes.min(UNDER_WAY)).await;
                (inner, read)
            })),
            other => other,
        };
    }

    /// Waits for bytes, the end, or an error. Cancel-safe.
    async fn wait(&mut self, bytes: usize) {
        self.start(bytes);
        if let In::Busy(job) = &mut self.state {
            self.state = match job.await {
                (inner, Ok(bytes)) if bytes.is_empty() => In::Idle(inner),
                (inner, Ok(bytes)) => In::Have(inner, bytes),
                (_, Err(StreamError::Closed)) => In::Closed,
                (_, Err(error)) => In::Failed(error),
            };
        }
    }
}

#[async_trait]
impl InputStream for FileIn {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        match mem::replace(&mut self.state, In::Closed) {
            In::Have(inner, mut bytes) => {
                let read = bytes.split_to(size.min(bytes.len()));
                self.state = if bytes.is_empty() { In::Idle(inner) } else { In::Have(inner, bytes) };
                Ok(read)
            }
            In::Failed(error) => Err(error),
            In::Closed => Err(StreamError::Closed),
            unready => {
                self.state = unready;
                if size > 0 {
                    self.start(size);
                }
                Ok(Bytes::new())
            }
        }
    }

    async fn blocking_read(&mut self, size: usize) -> StreamResult<Bytes> {
        if size > 0 {
            self.wait(size).await;
        }
        self.read(size)
    }

    async fn cancel(&mut self) {
        // Of no use to anybody, but a guest that starts reads and drops them is to wait for each.
        if let In::Busy(_) = self.state {
            self.wait(0).await;
        }
        if let In::Idle(inner) | In::Have(inner, _) = mem::replace(&mut self.state, In::Closed) {
            drop(inner.stream);
            inner.file.close().await;
        }
    }
}

#[async_trait]
impl Pollable for FileIn {
    async fn ready(&mut self) {
        self.wait(READ_AHEAD).await;
    }
}

/// What a guest writes to a file.
pub(crate) struct FileOut {
    state: Out,
    slot: Slot,
}

enum Out {
    Ready(Inner<DynOutputStream>),
    Busy(Work<DynOutputStream, ()>),
    Failed(StreamError),
    Closed,
}

impl FileOut {
    pub(crate) fn new(stream: DynOutputStream, file: OpenFile, slot: Slot) -> Self {
        Self { state: Out::Ready(Inner { stream, file }), slot }
    }

    /// What went wrong, once.
    fn failure(&mut self) -> StreamResult<()> {
        match mem::replace(&mut self.state, Out::Closed) {
            Out::Failed(error) => Err(error),
            Out::Closed => Err(StreamError::Closed),
            sound => {
                self.state = sound;
                Ok(())
            }
        }
    }
}

#[async_trait]
impl OutputStream for FileOut {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.failure()?;
        if bytes.is_empty() {
            return Ok(());
        }
        match mem::replace(&mut self.state, Out::Closed) {
            Out::Ready(mut inner) if bytes.len() <= UNDER_WAY => {
                self.state = Out::Busy(self.slot.jobs.spawn(async move {
                    let written = inner.stream.blocking_write_and_flush(bytes).await;
                    (inner, written)
                }));
                Ok(())
            }
            _ => Err(StreamError::trap("more bytes written than `check-write` permitted")),
        }
    }

    fn flush(&mut self) -> StreamResult<()> {
        // Nothing is held back that could be written.
        self.failure()
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        self.failure()?;
        Ok(if let Out::Ready(_) = self.state { UNDER_WAY } else { 0 })
    }

    async fn cancel(&mut self) {
        // What was permitted is written.
        self.ready().await;
        if let Out::Ready(inner) = mem::replace(&mut self.state, Out::Closed) {
            drop(inner.stream);
            inner.file.close().await;
        }
    }
}

#[async_trait]
impl Pollable for FileOut {
    async fn ready(&mut self) {
        if let Out::Busy(job) = &mut self.state {
            self.state = match job.await {
                (inner, Ok(())) => Out::Ready(inner),
                (_, Err(error)) => Out::Failed(error),
            };
        }
    }
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use std::{
        io::{ErrorKind, Read},
        os::{fd::OwnedFd, unix::net::UnixStream},
        sync::mpsc,
    };

    use airssys_wasm_engine::wasmtime_wasi::{FsPerms, OpenMode, filesystem};
    use tokio::runtime::{Builder, Runtime};

    use super::*;

    /// A file, and whether it is closed.
    fn file() -> (File, impl Fn() -> bool) {
        let (file, other) = UnixStream::pair().unwrap();
        other.set_nonblocking(true).unwrap();
        let closed = move || match (&other).read(&mut [0]) {
            Ok(0) => true,
            Err(error) if error.kind() == ErrorKind::WouldBlock => false,
            unexpected => panic!("{unexpected:?}"),
        };
        (File::from(OwnedFd::from(file)), closed)
    }

    /// A runtime whose only blocking thread is busy until the sender is dropped.
    fn runtime() -> (Runtime, mpsc::Sender<()>) {
        let runtime = Builder::new_current_thread().max_blocking_threads(1).build().unwrap();
        let (busy, until) = mpsc::channel();
        drop(runtime.spawn_blocking(move || until.recv()));
        (runtime, busy)
    }

    /// Waits until the blocking thread has done what it was given.
    fn wait(runtime: &Runtime) {
        runtime.block_on(runtime.spawn_blocking(|| ())).unwrap();
    }

    #[test]
    fn a_file_that_is_dropped_is_closed_by_a_thread_that_may_wait() {
        let (runtime, busy) = runtime();
        let (file, closed) = file();
        let last = OpenFile::new(Arc::new(file), &FileJobs::default());
        let _inside = runtime.enter();
        drop(last);
        assert!(!closed(), "the thread is busy");
        drop(busy);
        wait(&runtime);
        assert!(closed());
    }

    #[tokio::test]
    async fn closing_a_file_is_a_job() {
        let (file, closed) = file();
        let jobs = FileJobs::new(1);
        let permit = jobs.permit().await;
        let closing = tokio::spawn({
            let jobs = jobs.clone();
            async move { OpenFile::new(Arc::new(file), &jobs).close().await }
        });
        tokio::task::yield_now().await;
        assert!(!closed());
        drop(permit);
        closing.await.unwrap();
        assert!(closed());
    }

    #[tokio::test]
    async fn closing_a_file_that_nobody_waits_for_is_a_job() {
        let (file, closed) = file();
        let jobs = FileJobs::new(1);
        let permit = jobs.permit().await;
        // As when the call is cancelled that has opened it.
        drop(OpenFile::new(Arc::new(file), &jobs));
        tokio::task::spawn_blocking(|| ()).await.unwrap();
        assert!(!closed());
        drop(permit);
        jobs.start(|| ()).await.await.unwrap();
        assert!(closed());
    }

    #[test]
    fn the_files_of_a_sandbox_that_ends_are_closed_by_a_thread_that_may_wait() {
        let (runtime, busy) = runtime();
        let (file, closed) = file();
        let file = filesystem::File::new(file, FsPerms::ReadOnly, OpenMode::READ, false);
        let mut table = ResourceTable::new();
        table.push(Descriptor::File(file)).unwrap();
        let _inside = runtime.enter();
        drop_resources(table, &FileJobs::default());
        assert!(!closed());
        drop(busy);
        wait(&runtime);
        assert!(closed());
    }
}
