//! A store on a disk that is full: a file system in memory, of a few MiB, in a mount namespace of a process of its own.

use std::{
    env, fs,
    io::Write,
    path::Path,
    process::{Command, ExitStatus},
};

use airssys_wasm_keyed::{Durability, FjallStore, StateStore, StoreConfig, StoreError, Version};
use bytes::Bytes;
use tempfile::TempDir;

/// What mounts it.
const MOUNT: &str = "mount -t tmpfs -o size=$FULL_DISK_SIZE none \"$0\" && exec \"$@\"";

fn with_small_disk(folder: &Path, size: &str, ballast: usize, command: &[&str]) -> ExitStatus {
    // Without rights, in a user namespace as well, which not every system allows.
    let flags = if fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0) {
        "-m"
    } else {
        "-Urm"
    };
    let mut unshare = Command::new("unshare");
    unshare.args([flags, "sh", "-c", MOUNT]).arg(folder).args(command).env("FULL_DISK_FOLDER", folder);
    unshare.env("FULL_DISK_SIZE", size).env("FULL_DISK_BALLAST", ballast.to_string());
    unshare.status().unwrap()
}

fn fills_up(size: &str, ballast: usize) {
    let folder = TempDir::new().unwrap();
    assert!(
        with_small_disk(folder.path(), size, ballast, &["true"]).success(),
        "no file system can be mounted: run this as root, or allow unprivileged user namespaces (in a container: --privileged)"
    );
    let own = env::current_exe().unwrap();
    let child = ["--exact", "full_disk::child", "--ignored", "--nocapture"];
    let command: Vec<_> = std::iter::once(own.to_str().unwrap()).chain(child).collect();
    assert!(with_small_disk(folder.path(), size, ballast, &command).success());
}

#[test]
fn a_disk_that_is_full_when_the_journal_is_written_loses_nothing() {
    fills_up("24m", usize::MAX);
}

#[test]
fn a_disk_that_is_full_when_tables_are_written_loses_nothing() {
    // Journals and tables have room for a while.
    fills_up("200m", 10_000);
}

/// The process that has a small disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a process with a disk of its own, started by another test"]
async fn child() {
    let Some(folder) = env::var_os("FULL_DISK_FOLDER") else { return };
    let (path, ballast) = (Path::new(&folder).join("store"), Path::new(&folder).join("ballast"));
    let ballast_pages = env::var("FULL_DISK_BALLAST").unwrap().parse::<usize>().unwrap();
    let store = FjallStore::open(StoreConfig::new(&path)).await.unwrap();
    let state = |n: usize| Bytes::from(vec![n as u8; 40_000]);
    let mut saved: Vec<Version> = Vec::new();
    for round in 0..3 {
        // Until it is full, but for the room that the store has already.
        let mut file = fs::File::create(&ballast).unwrap();
        _ = (0..ballast_pages).try_for_each(|_| file.write_all(&[1; 4096]));
        let failed = loop {
            let n = saved.len();
            assert!(n < 10_000, "a disk of at most 200 MiB holds 400 MB");
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
            if ballast_pages < usize::MAX {
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
        let version = loop {
            match store.save("cart", &n.to_string(), Version::NONE, state(n), Durability::Power).await {
                Ok(version) => break version,
                Err(StoreError::Full) => tokio::task::yield_now().await,
                Err(error) => panic!("in round {round}: {error:?}"),
            }
        };
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
