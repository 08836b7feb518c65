//! Streams of files: what is read and written, and how much a guest may have under way.

use std::{
    fs,
    pin::pin,
    sync::mpsc,
    task::{Context, Waker},
    time::Duration,
};

use airssys_wasm_engine::wasmtime::component::{ComponentNamedList, Lift, Lower};
use airssys_wasm_fixtures::FILES;
use airssys_wasm_isolation::{
    Crash, CrashKind, FileJobs, Folder, InstantiateError, Permissions, Sandbox, SandboxManifest, SandboxSpec,
    WasiGrants,
};
use airssys_wasm_limits::CancellationToken;

use crate::{Host, limits, spec};

const INSUFFICIENT_MEMORY: u32 = 22;
const NOT_DIRECTORY: u32 = 24;

/// A component with a folder to read and write, and the folder.
fn files(file_streams: u32) -> (SandboxSpec<Host>, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let granted = Folder { host: folder.path().to_owned(), guest: "/data".into(), permissions: Permissions::ReadWrite };
    let grants = WasiGrants { folders: vec![granted], file_streams, ..WasiGrants::default() };
    (spec(FILES, limits()).with_wasi(grants), folder)
}

/// A guest that has opened the file.
async fn opened(spec: &SandboxSpec<Host>) -> Guest {
    let sandbox = spec.instantiate(Host::default()).await.unwrap();
    let mut guest = Guest { spec: spec.clone(), sandbox: Some(sandbox) };
    guest.call::<(), ()>("open", ()).await.unwrap();
    guest
}

struct Guest {
    spec: SandboxSpec<Host>,
    sandbox: Option<Sandbox<Host>>,
}

impl Guest {
    async fn call<P, R>(&mut self, name: &str, params: P) -> Result<R, Crash>
    where
        P: ComponentNamedList + Lower + Send + Sync + 'static,
        R: ComponentNamedList + Lift + Send + Sync + 'static,
    {
        let mut sandbox = self.sandbox.take().unwrap();
        let export = sandbox.typed(&self.spec.export(name).unwrap()).unwrap();
        let (answer, sandbox) = sandbox.call(&export, params).await?;
        self.sandbox = Some(sandbox);
        Ok(answer)
    }

    async fn write(&mut self, letter: u8, bytes: u32) -> Result<(), Crash> {
        self.call("write", (u32::from(letter), bytes)).await
    }

    async fn read(&mut self, at: u64, bytes: u64) -> Vec<u8> {
        self.call::<_, (Vec<u8>,)>("read", (at, bytes)).await.unwrap().0
    }

    async fn permit(&mut self) -> u64 {
        self.call::<_, (u64,)>("permit", ()).await.unwrap().0
    }

    /// How many streams it could open of so many, and the error where it was fewer.
    async fn streams(&mut self, n: u32) -> (u32, Option<u32>) {
        let (answer,) = self.call::<_, (u32,)>("streams", (n,)).await.unwrap();
        (answer >> 8, Some(answer & 0xff).filter(|&error| error != 0xff))
    }
}

/// A disk that hangs: all these jobs are busy until the sender is dropped.
async fn occupy(jobs: &FileJobs, n: usize) -> Vec<mpsc::Sender<()>> {
    let mut disk = Vec::new();
    for _ in 0..n {
        let (hangs, until) = mpsc::channel();
        drop(jobs.start(move || until.recv()).await);
        disk.push(hangs);
    }
    disk
}

#[tokio::test]
async fn what_is_written_where_is_there_and_can_be_read() {
    let (spec, folder) = files(32);
    let mut guest = opened(&spec).await;
    guest.call::<_, ()>("open-writer", (0_u64,)).await.unwrap();
    assert_eq!(guest.permit().await, 64 << 10);
    guest.write(b'a', 64 << 10).await.unwrap();
    guest.call::<_, ()>("flush", ()).await.unwrap();
    // The next write goes on where the last one ended.
    guest.write(b'b', 3).await.unwrap();
    guest.call::<_, ()>("drop-stream", ()).await.unwrap();
    guest.call::<_, ()>("open-writer", (2_u64,)).await.unwrap();
    guest.write(b'c', 1).await.unwrap();
    guest.call::<_, ()>("drop-stream", ()).await.unwrap();
    for letter in [b'd', b'e'] {
        guest.call::<_, ()>("open-appender", ()).await.unwrap();
        guest.write(letter, 2).await.unwrap();
        guest.call::<_, ()>("drop-stream", ()).await.unwrap();
    }
    let written = fs::read(folder.path().join("f")).unwrap();
    assert_eq!(written.len(), (64 << 10) + 7);
    assert_eq!(written[..4], *b"aaca");
    assert_eq!(written[(64 << 10) - 1..], *b"abbbddee");
    assert_eq!(guest.read(1, 3).await, b"aca");
    assert_eq!(guest.read(64 << 10, 1_000).await, b"bbbddee");
    assert_eq!(guest.read(0, u64::MAX).await.len(), 64 << 10, "so much at once");
}

#[tokio::test]
async fn no_more_is_written_at_once_than_permitted() {
    for (bytes, fits) in [(64 << 10, true), ((64 << 10) + 1, false)] {
        let (spec, _folder) = files(32);
        let mut guest = opened(&spec).await;
        guest.call::<_, ()>("open-writer", (0_u64,)).await.unwrap();
        match guest.write(b'x', bytes).await {
            Ok(()) => assert!(fits),
            Err(crash) => assert!(!fits && matches!(crash.kind(), CrashKind::HostCall { .. }), "{crash}"),
        }
    }
}

#[tokio::test]
async fn a_stream_holds_one_write_however_slow_the_disk_is() {
    let (spec, folder) = files(32);
    let jobs = FileJobs::new(2);
    let spec = spec.with_file_jobs(jobs.clone());
    let mut guest = opened(&spec).await;
    let mut impatient = opened(&spec).await;
    let disk = occupy(&jobs, 2).await;
    for guest in [&mut guest, &mut impatient] {
        guest.call::<_, ()>("open-writer", (0_u64,)).await.unwrap();
        guest.write(b'x', 10).await.unwrap();
        assert_eq!(guest.permit().await, 0);
    }
    let crash = impatient.write(b'y', 1).await.unwrap_err();
    assert!(matches!(crash.kind(), CrashKind::HostCall { .. }), "{crash}");
    assert_eq!(fs::read(folder.path().join("f")).unwrap(), b"");
    drop(disk);
    guest.call::<_, ()>("flush", ()).await.unwrap();
    assert_eq!(guest.permit().await, 64 << 10);
    assert_eq!(fs::read(folder.path().join("f")).unwrap(), b"xxxxxxxxxx");
}

#[tokio::test(start_paused = true)]
async fn a_start_waits_for_its_folders_no_longer_than_it_may_and_ends_when_it_is_cancelled() {
    let (spec, _folder) = files(32);
    let jobs = FileJobs::new(1);
    let spec = spec.with_file_jobs(jobs.clone());
    let disk = occupy(&jobs, 1).await;
    let token = CancellationToken::new();
    let crashed = |started: Result<Sandbox<Host>, InstantiateError>| match started {
        Err(InstantiateError::Crash(crash)) => crash.kind().clone(),
        other => panic!("{other:?}"),
    };
    {
        let mut starts = pin!(spec.instantiate_until(Host::default(), &token));
        assert!(starts.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        token.cancel();
        assert_eq!(crashed(starts.await), CrashKind::Cancelled);
    }
    // No time passes by itself while there is a blocking job.
    let allowed = limits().deadline;
    let mut starts = pin!(spec.instantiate(Host::default()));
    assert!(starts.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    tokio::time::advance(allowed).await;
    assert_eq!(crashed(starts.await), CrashKind::Deadline { allowed });
    drop(disk);
    spec.instantiate(Host::default()).await.unwrap();
}

#[tokio::test]
async fn streams_are_limited() {
    let (spec, _folder) = files(3);
    let mut guest = opened(&spec).await;
    assert_eq!(guest.streams(3).await, (3, None));
    assert_eq!(guest.streams(1).await, (0, Some(INSUFFICIENT_MEMORY)));
    guest.call::<_, ()>("drop-stream", ()).await.unwrap();
    assert_eq!(guest.streams(2).await, (1, Some(INSUFFICIENT_MEMORY)));
    // Another sandbox has its own.
    assert_eq!(opened(&spec).await.streams(3).await, (3, None));
}

#[tokio::test]
async fn a_folder_is_listed_and_a_file_is_not() {
    let (spec, folder) = files(1);
    let mut guest = opened(&spec).await;
    for n in 0..1_999 {
        fs::write(folder.path().join(n.to_string()), "").unwrap();
    }
    assert_eq!(guest.call::<_, (u32,)>("list", ()).await.unwrap(), (2_000,));
    assert_eq!(guest.call::<_, (u32,)>("list-file", ()).await.unwrap(), (NOT_DIRECTORY,));
}

#[tokio::test]
async fn listings_are_limited_together_with_streams() {
    let (spec, _folder) = files(3);
    let mut guest = opened(&spec).await;
    assert_eq!(guest.streams(1).await, (1, None));
    let (listed,) = guest.call::<_, (u32,)>("lists", (3_u32,)).await.unwrap();
    assert_eq!((listed >> 8, listed & 0xff), (2, INSUFFICIENT_MEMORY));
    assert_eq!(guest.streams(1).await, (0, Some(INSUFFICIENT_MEMORY)));
}

#[tokio::test]
async fn listing_a_folder_waits_for_its_turn_and_then_leaves_it_to_others() {
    let (spec, folder) = files(32);
    let jobs = FileJobs::new(1);
    let spec = spec.with_file_jobs(jobs.clone());
    let mut guest = opened(&spec).await;
    for n in 0..1_000 {
        fs::write(folder.path().join(n.to_string()), "").unwrap();
    }
    let disk = occupy(&jobs, 1).await;
    let listing = tokio::spawn(async move {
        let listed = guest.call::<_, (u32,)>("lists", (10_u32,)).await.unwrap();
        (listed, guest)
    });
    tokio::task::yield_now().await;
    assert!(!listing.is_finished());
    drop(disk);
    let ((listed,), _guest) = listing.await.unwrap();
    assert_eq!(listed >> 8, 10);
    assert_eq!(jobs.start(|| 42).await.await.unwrap(), 42, "none is read on");
}

#[test]
fn how_many_streams_is_in_the_manifest() {
    let streams = |wasi: &str| {
        SandboxManifest::from_toml(&format!("[resources]\nmemory = \"1MiB\"\n[wasi]\n{wasi}"))
            .unwrap()
            .wasi
            .file_streams
    };
    assert_eq!(streams("file_streams = 3"), 3);
    assert_eq!(streams(""), 32);
}

#[tokio::test]
async fn who_has_a_slow_disk_leaves_threads_to_others() {
    let (slow, _slow_folder) = files(32);
    let jobs = FileJobs::new(2);
    let slow = slow.with_file_jobs(jobs.clone());
    let (other, _other_folder) = files(32);
    let (mut waits, mut goes_on) = (opened(&slow).await, opened(&other).await);
    let disk = occupy(&jobs, 2).await;
    let reading = tokio::spawn(async move { waits.read(0, 10).await });
    goes_on.call::<_, ()>("open-writer", (0_u64,)).await.unwrap();
    goes_on.write(b'x', 10).await.unwrap();
    goes_on.call::<_, ()>("flush", ()).await.unwrap();
    assert_eq!(goes_on.read(0, 10).await, b"xxxxxxxxxx");
    assert!(!reading.is_finished());
    reading.abort();
    drop(disk);
}

#[tokio::test]
async fn to_close_a_file_waits_for_its_turn() {
    let (spec, _folder) = files(32);
    let jobs = FileJobs::new(1);
    let spec = spec.with_file_jobs(jobs.clone());
    let (mut first, mut second) = (opened(&spec).await, opened(&spec).await);
    first.call::<_, ()>("close", ()).await.unwrap();
    let disk = occupy(&jobs, 1).await;
    let closing = tokio::spawn(async move { second.call::<_, ()>("close", ()).await });
    tokio::task::yield_now().await;
    assert!(!closing.is_finished());
    drop(disk);
    closing.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_guest_that_waits_for_a_slow_disk_ends_at_its_deadline() {
    let (spec, folder) = files(32);
    let jobs = FileJobs::new(1);
    let spec = spec.with_file_jobs(jobs.clone());
    let mut guest = opened(&spec).await;
    let disk = occupy(&jobs, 1).await;
    guest.call::<_, ()>("open-writer", (0_u64,)).await.unwrap();
    guest.write(b'x', 10).await.unwrap();
    tokio::time::pause();
    let flushing = tokio::spawn(async move { guest.call::<_, ()>("flush", ()).await });
    tokio::task::yield_now().await;
    let allowed = limits().deadline;
    // A timer may be a millisecond late, and paused time goes on by itself only where no thread is busy.
    tokio::time::advance(allowed + Duration::from_millis(2)).await;
    assert_eq!(*flushing.await.unwrap().unwrap_err().kind(), CrashKind::Deadline { allowed });
    drop(disk);
    // What waited for its turn is gone with the guest.
    assert_eq!(jobs.start(|| 42).await.await.unwrap(), 42);
    assert_eq!(fs::read(folder.path().join("f")).unwrap(), b"");
}
