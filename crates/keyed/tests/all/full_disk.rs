//! A store on a disk that is full: a small file system in memory, in a mount namespace of a process of its own.

use std::{
    env, fs,
    io::Write,
    path::Path,
    process::{Command, ExitStatus},
    sync::Arc,
    time::Duration,
};

use airssys_wasm_keyed::{
    Durability, FjallStore, Keyed, KeyedEvent, KeyedOptions, KeyedSpec, SaveWhen, StateStore, StoreConfig, StoreError,
    Version,
};
use bytes::Bytes;
use tempfile::TempDir;
use tokio::time::timeout;

use crate::support::{COUNTER, ask, system, template};

/// Longer than anything takes on a busy machine.
const LONG: Duration = Duration::from_secs(120);

/// What mounts it.
const MOUNT: &str = "mount -t tmpfs -o size=$FULL_DISK_SIZE none \"$0\" && exec \"$@\"";

fn with_small_disk(folder: &Path, size: &str, room: u64, command: &[&str]) -> ExitStatus {
    // Without rights, in a user namespace as well, which not every system allows.
    let flags = if fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0) {
        "-m"
    } else {
        "-Urm"
    };
    let mut unshare = Command::new("unshare");
    unshare.args([flags, "sh", "-c", MOUNT]).arg(folder).args(command).env("FULL_DISK_FOLDER", folder);
    unshare.env("FULL_DISK_SIZE", size).env("FULL_DISK_ROOM", room.to_string());
    unshare.status().unwrap()
}

/// With so many bytes of room in each round.
fn fills_up(child: &str, size: &str, room: u64) {
    let folder = TempDir::new().unwrap();
    assert!(
        with_small_disk(folder.path(), size, room, &["true"]).success(),
        "no file system can be mounted: run this as root, or allow unprivileged user namespaces (in a container: --privileged)"
    );
    let own = env::current_exe().unwrap();
    let child = ["--exact", child, "--ignored", "--nocapture"];
    let command: Vec<_> = std::iter::once(own.to_str().unwrap()).chain(child).collect();
    assert!(with_small_disk(folder.path(), size, room, &command).success());
}

#[test]
fn a_disk_that_is_full_when_the_journal_is_written_loses_nothing() {
    fills_up("full_disk::child", "24m", 0);
}

#[test]
fn a_disk_that_is_full_when_tables_are_written_loses_nothing() {
    // For journals and tables. Without the ballast there is room for all that the store writes again.
    fills_up("full_disk::child", "800m", 100 << 20);
}

#[test]
fn what_a_full_disk_does_not_take_stays_with_its_actors() {
    fills_up("full_disk::actors", "24m", 0);
}

/// A file that fills the disk, but for the room that the store has already.
fn filled(ballast: &Path) -> fs::File {
    let mut file = fs::File::create(ballast).unwrap();
    while file.write_all(&[1; 4096]).is_ok() {}
    file
}

/// The process that has a small disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a process with a disk of its own, started by another test"]
async fn child() {
    let Some(folder) = env::var_os("FULL_DISK_FOLDER") else { return };
    let (path, ballast) = (Path::new(&folder).join("store"), Path::new(&folder).join("ballast"));
    let room = env::var("FULL_DISK_ROOM").unwrap().parse::<u64>().unwrap();
    let store = FjallStore::open(StoreConfig::new(&path)).await.unwrap();
    let state = |n: usize| Bytes::from(vec![n as u8; 40_000]);
    let mut saved: Vec<Version> = Vec::new();
    for round in 0..3 {
        let file = filled(&ballast);
        file.set_len(file.metadata().unwrap().len().saturating_sub(room)).unwrap();
        let failed = loop {
            let n = saved.len();
            assert!(n < 10_000, "a disk with room for 300 MiB at the most holds 400 MB");
            let durability = [Durability::Process, Durability::Power][n % 2];
            match store.save("cart", &n.to_string(), Version::NONE, state(n), durability).await {
                Ok(version) => saved.push(version),
                Err(error) => break error,
            }
        };
        assert!(matches!(failed, StoreError::Full), "in round {round}: {failed:?}");
        // As long as it is full, it says so, and what there is can be read.
        for (n, version) in saved.iter().enumerate() {
            let row = store.load("cart", &n.to_string()).await.unwrap().unwrap();
            assert!(row.version == *version && row.state == state(n), "{n} is another, with a full disk");
        }
        let n = saved.len();
        for _ in 0..100 {
            if room > 0 {
                // Threads of the store may have made room meanwhile.
                break;
            }
            let again = store.save("cart", &n.to_string(), Version::NONE, state(n), Durability::Process).await;
            assert!(matches!(again, Err(StoreError::Full)), "{again:?}");
            tokio::task::yield_now().await;
        }
        drop(file);
        fs::remove_file(&ballast).unwrap();
        // What was not saved is with its writer, which tries again.
        let saving = async {
            loop {
                match store.save("cart", &n.to_string(), Version::NONE, state(n), Durability::Power).await {
                    Ok(version) => break version,
                    Err(StoreError::Full) => tokio::task::yield_now().await,
                    Err(error) => panic!("in round {round}: {error:?}"),
                }
            }
        };
        let version = timeout(LONG, saving).await.expect("there is room, and nothing is saved");
        assert!(!saved.contains(&version));
        saved.push(version);
        assert_eq!(store.count("cart").await.unwrap(), saved.len() as u64);
    }
    store.close().await;
    let store = FjallStore::open(StoreConfig::new(&path)).await.unwrap();
    for (n, version) in saved.iter().enumerate() {
        let row = store.load("cart", &n.to_string()).await.unwrap().unwrap();
        assert!(row.version == *version && row.state == state(n), "{n} is another");
    }
    assert_eq!(store.count("cart").await.unwrap(), saved.len() as u64);
}

/// The same with actors.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a process with a disk of its own, started by another test"]
async fn actors() {
    let Some(folder) = env::var_os("FULL_DISK_FOLDER") else { return };
    let (path, ballast) = (Path::new(&folder).join("store"), Path::new(&folder).join("ballast"));
    let store = Arc::new(FjallStore::open(StoreConfig::new(&path)).await.unwrap());
    let system = system();
    let options = KeyedOptions { save: SaveWhen::Within(Duration::from_millis(50)), ..KeyedOptions::default() };
    let spec = KeyedSpec::new(template(&system, "cart", &COUNTER)).with_options(options);
    let carts = Keyed::install(&system, spec, Arc::clone(&store) as _).await.unwrap();
    let mut events = carts.events();
    let mut counts = [0; 10];
    for round in 0..2 {
        drop(filled(&ballast));
        // Each of them is refused again and again, with another state each time.
        let refused = carts.stats().not_saved + 4 * counts.len() as u64;
        let adding = async {
            while carts.stats().not_saved < refused {
                for (key, count) in counts.iter_mut().enumerate() {
                    *count += 1;
                    let answer = ask(&carts, &key.to_string(), "add 1").await.unwrap();
                    assert_eq!(answer, count.to_string(), "in round {round}, of {key}");
                }
            }
        };
        timeout(LONG, adding).await.expect("the disk is full, and all is saved");
        fs::remove_file(&ballast).unwrap();
        assert!(matches!(events.recv().await.unwrap(), KeyedEvent::StoreFailed { .. }), "in round {round}");
        // Of several that see at the same time that it recovers, one may see once more that it had failed.
        let recovering = async { while !matches!(events.recv().await.unwrap(), KeyedEvent::StoreRecovered) {} };
        timeout(LONG, recovering).await.expect("there is room, and nothing is saved");
    }
    let report = system.shutdown(LONG).await;
    assert_eq!((report.stopped, report.killed.len()), (counts.len(), 0));
    store.close().await;
    let store = FjallStore::open(StoreConfig::new(&path)).await.unwrap();
    for (key, count) in counts.iter().enumerate() {
        let row = store.load("cart", &key.to_string()).await.unwrap().unwrap();
        assert_eq!(u64::from_le_bytes(row.state[..].try_into().unwrap()), *count, "of {key}");
    }
}
