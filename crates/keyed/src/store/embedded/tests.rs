//! What cannot be seen from outside: how often is synced, what is on the disk then, and failures on demand.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::Duration,
};

use tempfile::TempDir;

use super::*;

async fn open(folder: &TempDir) -> FjallStore {
    FjallStore::open(StoreConfig::new(folder.path().join("store"))).await.unwrap()
}

impl FjallStore {
    fn watch(&self, watch: impl Fn(&Path) -> io::Result<()> + Send + 'static) {
        *self.shared.watch.lock() = Some(Box::new(watch));
    }

    fn fail_once(&self, kind: io::ErrorKind) {
        self.shared.faults.lock().push_back(kind.into());
    }

    /// Saves until it succeeds: it is opened again at most once in a while.
    async fn insist(&self, key: &str, follows: Version, state: &'static str) -> Version {
        loop {
            match self.save("cart", key, follows, state.into(), Durability::Process).await {
                Ok(version) => return version,
                Err(StoreError::Full | StoreError::Io { .. }) => tokio::task::yield_now().await,
                Err(error) => panic!("{error:?}"),
            }
        }
    }
}

/// Copies a folder: again, where files come or go meanwhile, of which others would speak that are copied.
fn copy(from: &Path, to: &Path) {
    loop {
        let before = below(from);
        let is_whole = before.iter().all(|path| {
            let to = to.join(path.strip_prefix(from).unwrap());
            if path.is_dir() { fs::create_dir_all(to).is_ok() } else { fs::copy(path, to).is_ok() }
        });
        if is_whole && below(from) == before {
            return;
        }
        fs::remove_dir_all(to).unwrap();
    }
}

/// A folder and all that is in it, folders before what they have.
fn below(folder: &Path) -> BTreeSet<PathBuf> {
    let mut paths = BTreeSet::from([folder.to_owned()]);
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            paths.append(&mut below(&path));
        } else {
            paths.insert(path);
        }
    }
    paths
}

/// Says when a sync begins, and holds each until it is told to go on.
fn hold_syncs(store: &FjallStore) -> (mpsc::Receiver<()>, mpsc::Sender<()>) {
    let (begins, begun) = mpsc::channel();
    let (go, gone) = mpsc::channel::<()>();
    store.watch(move |_| {
        begins.send(()).unwrap();
        gone.recv().unwrap();
        Ok(())
    });
    (begun, go)
}

#[tokio::test]
async fn what_waits_at_the_same_time_shares_a_sync_and_others_do_not_wait() {
    let folder = TempDir::new().unwrap();
    let store = Arc::new(open(&folder).await);
    let (begun, go) = hold_syncs(&store);
    let power = |key: String| {
        let store = Arc::clone(&store);
        tokio::spawn(async move { store.save("cart", &key, Version::NONE, "x".into(), Durability::Power).await })
    };
    let first = power("first".to_owned());
    // The first sync is under way, and stays so.
    let begun = tokio::task::spawn_blocking(move || begun.recv().map(|()| begun)).await.unwrap().unwrap();
    let others: Vec<_> = (0..64).map(|n| power(n.to_string())).collect();
    // Of another kind, without a sync: written and acknowledged while the disk is busy.
    store.save("room", "1", Version::NONE, "x".into(), Durability::Process).await.unwrap();
    while store.count("cart").await.unwrap() < 65 {
        tokio::task::yield_now().await;
    }
    // Now the last of them is with the thread that syncs.
    store.save("room", "2", Version::NONE, "x".into(), Durability::Process).await.unwrap();
    assert!(!first.is_finished() && others.iter().all(|other| !other.is_finished()), "none of them is on the disk");
    go.send(()).unwrap();
    go.send(()).unwrap();
    for saved in std::iter::once(first).chain(others) {
        saved.await.unwrap().unwrap();
    }
    store.close().await;
    assert_eq!(begun.try_iter().count(), 1, "all but the first share one");
}

#[tokio::test]
async fn the_loss_of_power_loses_what_was_not_synced_and_nothing_else() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder).await;
    let (path, disk) = (folder.path().join("store"), folder.path().join("disk"));
    // What the disk has at least, when the sync that begins here is done.
    let last = Arc::new(AtomicUsize::new(0));
    store.watch({
        let (last, disk) = (Arc::clone(&last), disk.clone());
        move |_| {
            copy(&path, &disk.join((last.load(Ordering::SeqCst) + 1).to_string()));
            last.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }
    });
    let (mut safe, mut unsafe_keys) = (Vec::new(), Vec::new());
    for n in 0..5 {
        let key = n.to_string();
        store.save("process", &key, Version::NONE, "x".into(), Durability::Process).await.unwrap();
        let version = store.save("power", &key, Version::NONE, "x".into(), Durability::Power).await.unwrap();
        safe.push((key, version, last.load(Ordering::SeqCst)));
    }
    for n in 5..10 {
        let key = n.to_string();
        store.save("process", &key, Version::NONE, "x".into(), Durability::Process).await.unwrap();
        unsafe_keys.push(key);
    }
    let disks = last.load(Ordering::SeqCst);
    for number in 1..=disks {
        let found = FjallStore::open(StoreConfig::new(disk.join(number.to_string()))).await.unwrap();
        for (key, version, synced) in &safe {
            let row = found.load("power", key).await.unwrap();
            assert!(
                *synced > number || row.is_some_and(|row| row.version == *version),
                "{key} is lost with disk {number}"
            );
        }
        for key in &unsafe_keys {
            assert_eq!(found.load("process", key).await.unwrap(), None, "control: nothing has synced it");
        }
        // What was written before what was synced is there as well, and counted.
        assert_eq!(found.count("process").await.unwrap(), found.count("power").await.unwrap());
        found.close().await;
    }
    store.close().await;
}

#[tokio::test]
async fn a_removal_is_on_the_disk_before_it_is_acknowledged() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder).await;
    let version = store.save("cart", "a", Version::NONE, "x".into(), Durability::Power).await.unwrap();
    let (path, disk) = (folder.path().join("store"), folder.path().join("disk"));
    let syncs = Arc::new(AtomicUsize::new(0));
    store.watch({
        let (syncs, disk) = (Arc::clone(&syncs), disk.clone());
        move |_| {
            let number = syncs.fetch_add(1, Ordering::SeqCst);
            copy(&path, &disk.join(number.to_string()));
            Ok(())
        }
    });
    store.remove("cart", "a", version, Durability::Power).await.unwrap();
    assert_eq!(syncs.load(Ordering::SeqCst), 1);
    let found = FjallStore::open(StoreConfig::new(disk.join("0"))).await.unwrap();
    assert_eq!((found.load("cart", "a").await.unwrap(), found.count("cart").await.unwrap()), (None, 0));
    // Control: one that need not survive the loss of power is not synced.
    let version = store.save("cart", "a", Version::NONE, "x".into(), Durability::Process).await.unwrap();
    store.remove("cart", "a", version, Durability::Process).await.unwrap();
    assert_eq!(syncs.load(Ordering::SeqCst), 1);
    // That it is not there was never synced either.
    store.remove("cart", "a", Version::NONE, Durability::Power).await.unwrap();
    assert_eq!(syncs.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_removal_whose_sync_failed_can_be_made_again() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder).await;
    let first = store.save("cart", "a", Version::NONE, "first".into(), Durability::Process).await.unwrap();
    store.watch(|_| Err(io::ErrorKind::StorageFull.into()));
    let full = store.remove("cart", "a", first, Durability::Power).await;
    assert!(matches!(full, Err(StoreError::Full)), "{full:?}");
    store.watch(|_| Ok(()));
    loop {
        match store.remove("cart", "a", first, Durability::Power).await {
            Ok(()) => break,
            Err(StoreError::Full) => tokio::task::yield_now().await,
            Err(error) => panic!("{error:?}"),
        }
    }
    assert_eq!((store.load("cart", "a").await.unwrap(), store.count("cart").await.unwrap()), (None, 0));
}

#[tokio::test]
async fn the_journal_that_is_synced_is_the_one_that_is_written() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder).await;
    let (to, synced) = mpsc::channel::<(PathBuf, Vec<u8>)>();
    store.watch(move |path| {
        to.send((path.to_owned(), fs::read(path)?)).unwrap();
        Ok(())
    });
    let large = Bytes::from(vec![7; 4 << 20]);
    let mut journals = Vec::new();
    let mut version = Version::NONE;
    for round in 0..100 {
        let marker = format!("marker of round {round}");
        store.save("cart", &marker, Version::NONE, marker.clone().into(), Durability::Power).await.unwrap();
        let (path, content) = synced.recv().unwrap();
        assert!(memchr::memmem::find(&content, marker.as_bytes()).is_some(), "{} is another", path.display());
        if !journals.contains(&path) {
            journals.push(path);
        }
        if journals.len() == 2 {
            return store.close().await;
        }
        for _ in 0..8 {
            version = store.save("cart", "large", version, large.clone(), Durability::Process).await.unwrap();
        }
    }
    panic!("there never was another journal: {journals:?}");
}

#[tokio::test]
async fn a_full_disk_is_told_and_nothing_is_lost_when_there_is_room_again() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder).await;
    let first = store.save("cart", "a", Version::NONE, "first".into(), Durability::Process).await.unwrap();
    store.fail_once(io::ErrorKind::StorageFull);
    let full = store.save("cart", "a", first, "second".into(), Durability::Process).await;
    assert!(matches!(full, Err(StoreError::Full)), "{full:?}");
    assert_eq!(store.load("cart", "a").await.unwrap().unwrap().state, "first");
    let second = store.insist("a", first, "second").await;
    assert_eq!(store.load("cart", "a").await.unwrap(), Some(Saved { version: second, state: "second".into() }));
    // The version that the failed attempt was to make is not given again.
    assert!(second.number() > first.number() + 1, "{first:?}, {second:?}");
    store.close().await;
    assert_eq!(open(&folder).await.load("cart", "a").await.unwrap().unwrap().state, "second");
}

#[tokio::test]
async fn another_failure_is_told_with_its_cause() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder).await;
    store.fail_once(io::ErrorKind::PermissionDenied);
    match store.save("cart", "a", Version::NONE, "x".into(), Durability::Process).await {
        Err(StoreError::Io { source }) => {
            assert_eq!(source.downcast_ref::<io::Error>().unwrap().kind(), io::ErrorKind::PermissionDenied);
        }
        other => panic!("{other:?}"),
    }
    store.insist("a", Version::NONE, "x").await;
}

/// Saves a row, and writes another state of it whose sync fails. Gives the version of the first.
async fn with_a_failed_sync(store: &FjallStore) -> Version {
    let first = store.save("cart", "a", Version::NONE, "first".into(), Durability::Process).await.unwrap();
    store.watch(|_| Err(io::ErrorKind::StorageFull.into()));
    let full = store.save("cart", "a", first, "second".into(), Durability::Power).await;
    assert!(matches!(full, Err(StoreError::Full)), "{full:?}");
    store.watch(|_| Ok(()));
    first
}

#[tokio::test]
async fn a_write_whose_sync_failed_can_be_made_again_by_who_made_it() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder).await;
    let first = with_a_failed_sync(&store).await;
    // It was written, and may be found.
    let found = store.load("cart", "a").await.unwrap().unwrap();
    assert_eq!(found.state, "second");
    // Control: who has not tried is fenced.
    let stale = loop {
        match store.save("cart", "a", Version::NONE, "stale".into(), Durability::Process).await {
            Err(StoreError::Full) => tokio::task::yield_now().await,
            other => break other,
        }
    };
    assert!(matches!(stale, Err(StoreError::Fenced { found: by }) if by == found.version), "{stale:?}");
    let third = store.insist("a", first, "third").await;
    // Once only: it is settled now.
    let stale = store.save("cart", "a", first, "stale".into(), Durability::Process).await;
    assert!(matches!(stale, Err(StoreError::Fenced { found }) if found == third), "{stale:?}");
    assert_eq!(store.count("cart").await.unwrap(), 1);
}

#[tokio::test]
async fn a_write_that_fails_again_and_again_is_fenced_by_none_of_its_attempts() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder).await;
    let first = with_a_failed_sync(&store).await;
    // Of this one nothing is written: the row stays that of the attempt before.
    store.fail_once(io::ErrorKind::StorageFull);
    let last = store.insist("a", first, "third").await;
    assert!(store.shared.faults.lock().is_empty() && store.shared.doubtful.lock().is_empty());
    let found = store.load("cart", "a").await.unwrap().unwrap();
    assert_eq!((found.version, &*found.state), (last, &b"third"[..]));
}

#[tokio::test]
async fn after_a_failed_sync_nothing_is_acknowledged_that_needs_the_journal() {
    let folder = TempDir::new().unwrap();
    let store = Arc::new(open(&folder).await);
    store.save("cart", "before", Version::NONE, "x".into(), Durability::Power).await.unwrap();
    let (begins, begun) = mpsc::channel();
    let (go, gone) = mpsc::channel::<()>();
    store.watch(move |_| {
        begins.send(()).unwrap();
        // Only the first fails.
        gone.recv().map_or(Ok(()), |()| Err(io::ErrorKind::InvalidData.into()))
    });
    let power = |key: &'static str| {
        let store = Arc::clone(&store);
        tokio::spawn(async move { store.save("cart", key, Version::NONE, key.into(), Durability::Power).await })
    };
    let first = power("first");
    let begun = tokio::task::spawn_blocking(move || begun.recv().map(|()| begun)).await.unwrap().unwrap();
    // Written before anybody knows that the sync fails, to the same journal.
    let second = power("second");
    while store.count("cart").await.unwrap() < 3 {
        tokio::task::yield_now().await;
    }
    store.save("room", "1", Version::NONE, "x".into(), Durability::Process).await.unwrap();
    go.send(()).unwrap();
    drop(go);
    for saved in [first.await.unwrap(), second.await.unwrap()] {
        assert!(matches!(saved, Err(StoreError::Io { .. })), "{saved:?}");
    }
    assert_eq!(begun.try_iter().count(), 0, "a second sync would have succeeded");

    // What the disk has when the next sync begins.
    let (path, disk) = (folder.path().join("store"), folder.path().join("disk"));
    store.watch({
        let disk = disk.clone();
        move |_| {
            copy(&path, &disk);
            Ok(())
        }
    });
    for key in ["first", "second"] {
        // Each writer repeats its own; what they wrote is not in their way.
        while let Err(error) = store.save("cart", key, Version::NONE, "again".into(), Durability::Power).await {
            assert!(matches!(error, StoreError::Io { .. }), "{error:?}");
            tokio::task::yield_now().await;
        }
        // Of the first journal the disk has nothing.
        fs::write(disk.join("0.jnl"), "").unwrap();
        let found = FjallStore::open(StoreConfig::new(&disk)).await.unwrap();
        assert_eq!(found.load("cart", key).await.unwrap().unwrap().state, "again");
        for key in ["before", "first", "second"] {
            assert!(found.load("cart", key).await.unwrap().is_some(), "{key} was read from the journal that is lost");
        }
        assert_eq!(found.count("cart").await.unwrap(), 3);
        found.close().await;
        fs::remove_dir_all(&disk).unwrap();
    }
}

#[tokio::test]
async fn a_failed_sync_is_known_to_the_process_after() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder).await;
    store.watch(|_| Err(io::ErrorKind::InvalidData.into()));
    store.save("cart", "a", Version::NONE, "x".into(), Durability::Power).await.unwrap_err();
    store.close().await;
    let (path, disk) = (folder.path().join("store"), folder.path().join("disk"));
    let store = open(&folder).await;
    store.watch({
        let (path, disk) = (path.clone(), disk.clone());
        move |_| {
            copy(&path, &disk);
            Ok(())
        }
    });
    store.save("cart", "c", Version::NONE, "x".into(), Durability::Power).await.unwrap();
    store.close().await;
    fs::write(disk.join("0.jnl"), "").unwrap();
    let found = FjallStore::open(StoreConfig::new(&disk)).await.unwrap();
    assert_eq!(found.keys("cart", None, 10).await.unwrap(), ["a", "c"], "without the first journal");
    // Control: once is enough.
    found.close().await;
    let journals = || fs::read_dir(&path).unwrap().filter(|file| is_journal(&file.as_ref().unwrap().path())).count();
    let before = journals();
    open(&folder).await.close().await;
    assert_eq!(journals(), before);
}

fn is_journal(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending == "jnl")
}

#[tokio::test]
async fn reads_go_to_the_threads_after_a_slow_one() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder).await;
    store.save("cart", "a", Version::NONE, "x".into(), Durability::Process).await.unwrap();
    let here = thread::current().id();
    let read_by = async |store: &FjallStore| store.read(|_| Ok(thread::current().id())).await.unwrap();
    assert_eq!(read_by(&store).await, here);
    let now = Instant::now();
    store.pace.note(now, now + std::time::Duration::from_millis(1));
    assert_ne!(read_by(&store).await, here);
    assert_eq!(store.load("cart", "a").await.unwrap().unwrap().state, "x");
}

#[tokio::test]
async fn removing_what_is_not_there_costs_nothing_on_disk() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder).await;
    let journal = || fs::read(folder.path().join("store/0.jnl")).unwrap();
    let before = journal();
    store.remove("cart", "a", Version::NONE, Durability::Process).await.unwrap();
    assert!(journal() == before);
    // Control: one that is there.
    let version = store.save("cart", "a", Version::NONE, "x".into(), Durability::Process).await.unwrap();
    let before = journal();
    store.remove("cart", "a", version, Durability::Process).await.unwrap();
    assert!(journal() != before);
}

#[tokio::test]
async fn whoever_closes_it_waits_until_it_is_closed() {
    let folder = TempDir::new().unwrap();
    let store = Arc::new(open(&folder).await);
    let (begun, go) = hold_syncs(&store);
    let saving = tokio::spawn({
        let store = Arc::clone(&store);
        async move { store.save("cart", "1", Version::NONE, "x".into(), Durability::Power).await }
    });
    tokio::task::spawn_blocking(move || begun.recv().unwrap()).await.unwrap();
    let close = || {
        let store = Arc::clone(&store);
        tokio::spawn(async move { store.close().await })
    };
    let (first, mut second) = (close(), close());
    // The time that it has for being wrong: the thread that writes has nothing to do.
    let closed = tokio::time::timeout(Duration::from_millis(200), &mut second).await;
    assert!(closed.is_err(), "a sync is under way");
    go.send(()).unwrap();
    second.await.unwrap();
    open(&folder).await;
    first.await.unwrap();
    saving.await.unwrap().unwrap();
}
