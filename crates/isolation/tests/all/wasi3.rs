//! WASI 0.3: what a guest with async functions may do by the same grants, and what bounds it.

use std::{
    fs,
    future::poll_fn,
    io::Write,
    pin::Pin,
    sync::{Arc, Mutex, mpsc},
    task::Poll,
    time::Duration,
};

use airssys_wasm_engine::{
    EngineConfig, Profile, WasmEngine,
    wasmtime::component::{ComponentNamedList, Lower},
};
use airssys_wasm_fixtures::WASI3;
use airssys_wasm_isolation::{Crash, FileJobs, Folder, Permissions, Sandbox, SandboxSpec, Stdio, WasiGrants};
use airssys_wasm_limits::ResourceLimits;

use crate::{Host, limits, spec_in};

const INVALID_ARGUMENT: u32 = 1;
const PERMANENT_RESOLVER_FAILURE: u32 = 4;
const NAME_TOO_LONG: u32 = 17;
const INSUFFICIENT_MEMORY: u32 = 21;
const NOT_DIRECTORY: u32 = 23;
const NOT_PERMITTED: u32 = 30;
const WELL: u32 = 255;

fn spec(grants: WasiGrants, limits: ResourceLimits) -> SandboxSpec<Host> {
    let config = EngineConfig::small().with_component_async().compile_in_process().with_manual_ticks();
    let engine = WasmEngine::new(config).unwrap();
    spec_in(&engine, WASI3.as_bytes(), Profile::Plain, limits).with_wasi(grants)
}

struct Guest {
    spec: SandboxSpec<Host>,
    sandbox: Option<Sandbox<Host>>,
}

impl Guest {
    async fn of(spec: SandboxSpec<Host>) -> Self {
        let sandbox = spec.instantiate(Host::default()).await.unwrap();
        Self { spec, sandbox: Some(sandbox) }
    }

    async fn granted(grants: WasiGrants) -> Self {
        Self::of(spec(grants, limits())).await
    }

    async fn try_call<P>(&mut self, name: &str, params: P) -> Result<u32, Crash>
    where
        P: ComponentNamedList + Lower + Send + Sync + 'static,
    {
        let mut sandbox = self.sandbox.take().unwrap();
        let export = sandbox.typed::<P, (u32,)>(&self.spec.export(name).unwrap()).unwrap();
        let ((answer,), sandbox) = sandbox.call(&export, params).await?;
        self.sandbox = Some(sandbox);
        Ok(answer)
    }

    async fn call<P>(&mut self, name: &str, params: P) -> u32
    where
        P: ComponentNamedList + Lower + Send + Sync + 'static,
    {
        self.try_call(name, params).await.unwrap()
    }

    /// A count, and how a stream has ended.
    async fn counted<P>(&mut self, name: &str, params: P) -> (u32, u32)
    where
        P: ComponentNamedList + Lower + Send + Sync + 'static,
    {
        let answer = self.call(name, params).await;
        (answer >> 8, answer & 0xff)
    }
}

/// Grants for a folder, and the folder.
fn folder(permissions: Permissions, file_streams: u32) -> (WasiGrants, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let granted = Folder { host: folder.path().to_owned(), guest: "/data".into(), permissions };
    (WasiGrants { folders: vec![granted], file_streams, ..WasiGrants::default() }, folder)
}

/// A guest that has opened `f` in a folder.
async fn opened(file_streams: u32) -> (Guest, tempfile::TempDir) {
    let (grants, folder) = folder(Permissions::ReadWrite, file_streams);
    let mut guest = Guest::granted(grants).await;
    assert_eq!(guest.call("open", (1_u32,)).await, WELL);
    (guest, folder)
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn nothing_is_granted_by_default() {
    let mut guest = Guest::granted(WasiGrants::default()).await;
    assert_eq!(guest.call("granted", ()).await, 0);
    assert_eq!(guest.call("look-up", (9_u32,)).await, PERMANENT_RESOLVER_FAILURE);
    assert_eq!(guest.call("print", (100_u32,)).await, 100, "to nowhere");
    let (mut grants, _folder) = folder(Permissions::Read, 1);
    grants.args = vec!["one".into()];
    grants.env = [("A".into(), "b".into())].into();
    assert_eq!(Guest::granted(grants).await.call("granted", ()).await, 3);
}

#[tokio::test]
async fn what_is_printed_arrives_and_a_large_write_is_cut() {
    let lines = Lines::default();
    let grants = WasiGrants { stdout: Stdio::writer(lines.clone()), ..WasiGrants::default() };
    let mut guest = Guest::granted(grants).await;
    let mut all = 0;
    for (bytes, taken) in [(100_u32, 100), (64 << 10, 64 << 10), ((64 << 10) + 1, 64 << 10), (1 << 20, 64 << 10)] {
        assert_eq!(guest.call("print", (bytes,)).await, taken);
        all += taken;
        assert_eq!(lines.0.lock().unwrap().len(), all as usize);
    }
    assert!(lines.0.lock().unwrap().iter().all(|&byte| byte == b'x'));
}

#[tokio::test]
async fn many_lines_are_all_taken_in_several_writes() {
    let grants = WasiGrants { stdout: Stdio::Tracing, ..WasiGrants::default() };
    let mut guest = Guest::granted(grants).await;
    assert_eq!(guest.call("print-lines", (32_u32,)).await, 1);
    assert_eq!(guest.call("print-lines", (320_u32,)).await, 10, "32 lines each");
}

#[tokio::test]
async fn random_bytes_are_cut_to_what_a_host_call_carries() {
    let mut guest = Guest::granted(WasiGrants::default()).await;
    let allowed = limits().host_call_bytes.as_u64();
    for (asked, given) in [(0, 0), (1, 1), (allowed, allowed), (allowed + 1, allowed), (u64::MAX, allowed)] {
        assert_eq!(u64::from(guest.call("random", (asked,)).await), given);
    }
}

#[tokio::test]
async fn a_host_name_is_looked_up_if_that_is_granted() {
    let mut guest = Guest::granted(WasiGrants { name_lookup: true, ..WasiGrants::default() }).await;
    let (addresses, end) = guest.counted("look-up-localhost", ()).await;
    assert!(addresses > 0 && end == WELL);
    assert_eq!(
        Guest::granted(WasiGrants::default()).await.counted("look-up-localhost", ()).await.1,
        PERMANENT_RESOLVER_FAILURE
    );
}

#[tokio::test]
async fn a_host_name_is_only_parsed_if_it_can_be_one() {
    let mut guest = Guest::granted(WasiGrants::default()).await;
    for (letters, error) in [(253_u32, PERMANENT_RESOLVER_FAILURE), (254, INVALID_ARGUMENT), (60_000, INVALID_ARGUMENT)]
    {
        assert_eq!(guest.call("look-up", (letters,)).await, error, "{letters} letters");
    }
}

#[tokio::test]
async fn what_is_written_is_there_and_can_be_read() {
    let (mut guest, folder) = opened(32).await;
    assert_eq!(guest.counted("write", (200_000_u32, 0_u32)).await, (4, WELL), "64 KiB at once");
    assert_eq!(fs::read(folder.path().join("f")).unwrap(), [b'x'; 200_000]);
    assert_eq!(guest.counted("write", (5_u32, 1_u32)).await, (1, WELL));
    assert_eq!(guest.counted("read-all", ()).await, (200_005, WELL));
    assert_eq!(guest.call("read", (1_u32 << 20,)).await, 64 << 10, "at once");
    assert_eq!(guest.call("read", (10_u32,)).await, 10);
    assert_eq!(guest.call("sync", ()).await, WELL);
    assert_eq!(guest.call("drop", ()).await, 0);
}

#[tokio::test]
async fn a_folder_is_granted_to_read_and_no_further() {
    let (grants, folder) = folder(Permissions::Read, 32);
    fs::write(folder.path().join("f"), "from the host").unwrap();
    let mut guest = Guest::granted(grants).await;
    assert_eq!(guest.call("open", (1_u32,)).await, NOT_PERMITTED, "to write");
    assert_eq!(guest.call("open", (3_u32,)).await, NOT_PERMITTED);
    assert_eq!(fs::read_to_string(folder.path().join("f")).unwrap(), "from the host");
    assert!(!folder.path().join("fff").exists());
}

#[tokio::test]
async fn a_path_that_no_system_takes_is_not_looked_at() {
    let (mut guest, _folder) = opened(32).await;
    assert_eq!(guest.call("open", (200_u32,)).await, WELL);
    assert_eq!(guest.call("open", ((4 << 10) + 1_u32,)).await, NAME_TOO_LONG);
    assert_eq!(guest.call("open", (1_u32 << 20,)).await, NAME_TOO_LONG);
}

#[tokio::test]
async fn streams_are_limited() {
    let (mut guest, _folder) = opened(3).await;
    guest.call("write", (5_u32, 0_u32)).await;
    assert_eq!(guest.counted("streams", (2_u32,)).await, (2, WELL));
    assert_eq!(guest.counted("streams", (3_u32,)).await, (1, INSUFFICIENT_MEMORY));
    assert_eq!(guest.counted("write", (5_u32, 0_u32)).await.1, INSUFFICIENT_MEMORY);
    assert_eq!(guest.counted("list", (0_u32,)).await, (0, INSUFFICIENT_MEMORY));
}

#[tokio::test]
async fn a_folder_is_listed_and_a_file_is_not() {
    let (mut guest, folder) = opened(1).await;
    for n in 0..1_999 {
        fs::write(folder.path().join(n.to_string()), "").unwrap();
    }
    assert_eq!(guest.counted("list", (0_u32,)).await, (2_000, WELL));
    assert_eq!(guest.counted("list", (1_u32,)).await, (0, NOT_DIRECTORY));
}

#[test]
fn a_listing_that_nobody_reads_holds_no_thread() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().max_blocking_threads(1).build().unwrap();
    runtime.block_on(async {
        let (mut guest, folder) = opened(32).await;
        for n in 0..999 {
            fs::write(folder.path().join(n.to_string()), "").unwrap();
        }
        assert_eq!(guest.call("list-unread", (10_u32,)).await, 0);
        assert_eq!(guest.call("list-some", (20_u32,)).await, 0);
        tokio::task::spawn_blocking(|| ()).await.unwrap();
        assert_eq!(guest.counted("list", (0_u32,)).await, (1_000, WELL));
    });
}

#[tokio::test]
async fn a_call_of_a_file_waits_for_a_permit() {
    let (grants, _folder) = folder(Permissions::ReadWrite, 32);
    let jobs = FileJobs::new(1);
    let mut guest = Guest::of(spec(grants, limits()).with_file_jobs(jobs.clone())).await;
    assert_eq!(guest.call("open", (1_u32,)).await, WELL);
    let (hangs, until) = mpsc::channel::<()>();
    drop(jobs.start(move || until.recv()).await);
    let mut synced = Box::pin(guest.call("sync", ()));
    assert!(stays_pending(synced.as_mut()).await, "the disk hangs");
    drop(hangs);
    assert_eq!(synced.await, WELL);
}

/// A guest that has opened `f`, of five bytes, and the jobs of its files, of which there is one at a time.
async fn with_one_job() -> (Guest, FileJobs, tempfile::TempDir) {
    let (grants, folder) = folder(Permissions::ReadWrite, 32);
    fs::write(folder.path().join("f"), "bytes").unwrap();
    let jobs = FileJobs::new(1);
    let mut guest = Guest::of(spec(grants, limits()).with_file_jobs(jobs.clone())).await;
    assert_eq!(guest.call("open", (1_u32,)).await, WELL);
    (guest, jobs, folder)
}

/// Keeps the only job busy until it is dropped.
async fn busy(jobs: &FileJobs) -> mpsc::Sender<()> {
    let (hangs, until) = mpsc::channel::<()>();
    drop(jobs.start(move || until.recv()).await);
    hangs
}

/// What does not hang.
async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(30), future).await.expect("hangs")
}

/// Whether somebody else gets a job.
async fn others_get_a_job(jobs: &FileJobs) -> bool {
    soon(async { jobs.start(|| true).await.await.unwrap() }).await
}

#[tokio::test]
async fn a_guest_that_returns_while_it_reads_holds_no_permit() {
    let (mut guest, jobs, _folder) = with_one_job().await;
    let hangs = busy(&jobs).await;
    assert_eq!(guest.call("start-read", ()).await, u32::MAX, "it blocks");
    drop(hangs);
    assert!(others_get_a_job(&jobs).await);
}

#[tokio::test]
async fn a_read_that_is_cancelled_holds_no_permit() {
    for drop_them in [0_u32, 1] {
        let (mut guest, jobs, _folder) = with_one_job().await;
        let hangs = busy(&jobs).await;
        assert_eq!(guest.call("cancel-reads", (10_u32, drop_them)).await, 10);
        drop(hangs);
        assert!(others_get_a_job(&jobs).await);
        if drop_them == 0 {
            assert_eq!(guest.call("read-on", ()).await, 5, "what was read is not lost");
        }
        assert_eq!(guest.call("sync", ()).await, WELL);
    }
}

#[tokio::test]
async fn a_file_can_be_closed_behind_a_read_of_the_same_guest() {
    let (mut guest, jobs, _folder) = with_one_job().await;
    assert_eq!(guest.call("open", (2_u32,)).await, WELL);
    let hangs = busy(&jobs).await;
    let mut closed = Box::pin(guest.call("start-read-and-drop", ()));
    assert!(stays_pending(closed.as_mut()).await, "the disk hangs");
    drop(hangs);
    assert_eq!(soon(closed).await, 0);
}

/// Whether a future is pending, however often other tasks have had their turn.
async fn stays_pending<F: Future>(mut future: Pin<&mut F>) -> bool {
    for _ in 0..100 {
        if poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx).is_ready())).await {
            return false;
        }
        tokio::task::yield_now().await;
    }
    true
}

#[cfg(unix)]
#[tokio::test]
async fn a_job_holds_its_permit_when_its_sandbox_is_gone() {
    let (grants, folder) = folder(Permissions::Read, 32);
    let pipe = folder.path().join("f");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let jobs = FileJobs::new(1);
    let mut guest = Guest::of(spec(grants, limits()).with_file_jobs(jobs.clone())).await;
    {
        // Until somebody opens the pipe to write.
        let mut opened = Box::pin(guest.call("open-to-read", ()));
        assert!(stays_pending(opened.as_mut()).await);
    }
    drop(guest);
    let mut next = Box::pin(jobs.start(|| 42));
    assert!(stays_pending(next.as_mut()).await, "the only permit is held");
    let writer = std::thread::spawn(move || fs::OpenOptions::new().write(true).open(pipe));
    assert_eq!(next.await.await.unwrap(), 42);
    drop(writer.join().unwrap().unwrap());
}

#[tokio::test]
async fn calls_in_flight_wait_for_each_other_and_all_end() {
    let (mut guest, _folder) = opened(32).await;
    // The call itself ends when they have.
    assert_eq!(guest.call("start-syncs", (100_u32,)).await, 0, "each waits for a thread");
    assert_eq!(guest.call("sync", ()).await, WELL);
}
