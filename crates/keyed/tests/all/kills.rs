//! A process that saves under load is killed at random moments, again and again: what was acknowledged is found, or what
//! came after it; nothing earlier, nothing mixed.
//!
//! `KILLS` in the environment is how often, `KILLS_SEED` what the moments come from.

use std::{
    collections::HashMap,
    env,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
};

use airssys_wasm_keyed::{Durability, FjallStore, StateStore, StoreConfig, Version};
use bytes::Bytes;
use tempfile::TempDir;

/// Keys that are written at the same time. Every third is also removed.
const KEYS: u64 = 12;

fn is_removed(key: u64, n: u64) -> bool {
    key.is_multiple_of(3) && n.is_multiple_of(4)
}

fn durability(key: u64) -> Durability {
    if key.is_multiple_of(2) { Durability::Process } else { Durability::Power }
}

/// The n-th state of a key: of another length than those beside it, each number of it the same.
fn state(key: u64, n: u64) -> Bytes {
    let numbers = 2 + (n * 37 + key) % 150;
    [key].into_iter().chain((1..numbers).map(|_| n)).flat_map(u64::to_be_bytes).collect::<Vec<_>>().into()
}

/// Which it is.
fn read(key: u64, state: &Bytes) -> u64 {
    let (_, last) = state.split_last_chunk().unwrap();
    let n = u64::from_be_bytes(*last);
    assert!(*state == self::state(key, n), "a state of {key} is mixed: {n} is its end");
    n
}

async fn open(folder: &Path) -> FjallStore {
    FjallStore::open(StoreConfig::new(folder)).await.unwrap()
}

/// The process that is killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a process that is killed by another test"]
async fn child() {
    let Some(folder) = env::var_os("KILLS_FOLDER") else { return };
    let store = Arc::new(open(Path::new(&folder)).await);
    let writers: Vec<_> = (0..KEYS)
        .map(|key| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                let name = key.to_string();
                let row = store.load("cart", &name).await.unwrap();
                let (mut version, mut n) = row.map_or((Version::NONE, 0), |row| (row.version, read(key, &row.state)));
                loop {
                    n += 1;
                    if is_removed(key, n) {
                        store.remove("cart", &name, version, durability(key)).await.unwrap();
                        version = Version::NONE;
                    } else {
                        version = store.save("cart", &name, version, state(key, n), durability(key)).await.unwrap();
                    }
                    // One write, so that a line is whole or not there.
                    std::io::stdout().lock().write_all(format!("\nacknowledged {key} {n}\n").as_bytes()).unwrap();
                }
            })
        })
        .collect();
    // None of them ends by itself.
    let (ended, ..) = futures_util::future::select_all(writers).await;
    ended.unwrap();
}

/// Starts the process, kills it after so many acknowledgements, and gives the last ones of each key.
fn killed_after(folder: &Path, acknowledgements: usize) -> HashMap<u64, u64> {
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "kills::child", "--ignored", "--nocapture", "--test-threads=1"])
        .env("KILLS_FOLDER", folder)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut last = HashMap::new();
    let mut heard = 0;
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        let Some(numbers) = line.strip_prefix("acknowledged ") else { continue };
        // The last line may be cut off: by then it is not said that it is acknowledged.
        let Some((key, n)) = numbers.split_once(' ') else { continue };
        last.insert(key.parse().unwrap(), n.parse().unwrap());
        heard += 1;
        if heard == acknowledgements {
            // SIGKILL. What it has said until then is heard as well.
            child.kill().unwrap();
        }
    }
    assert!(!child.wait().unwrap().success());
    assert!(heard >= acknowledgements, "it ended by itself, after {heard}");
    last
}

#[tokio::test]
async fn what_was_acknowledged_before_a_kill_is_found_after_it() {
    let number = |name: &str, default| env::var(name).map_or(default, |value| value.parse().unwrap());
    survives(number("KILLS", 100), number("KILLS_SEED", 1)).await;
}

#[tokio::test]
#[ignore = "takes minutes, each night"]
async fn two_thousand_kills() {
    survives(2_000, fastrand::u64(..)).await;
}

async fn survives(kills: u64, seed: u64) {
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("store");
    // By key the last that was found or acknowledged, and the version of what was found.
    let mut known: HashMap<u64, u64> = HashMap::new();
    for kill in 0..kills {
        let acknowledgements = random.usize(1..120);
        let acknowledged = {
            let path = path.clone();
            tokio::task::spawn_blocking(move || killed_after(&path, acknowledgements)).await.unwrap()
        };
        let store = open(&path).await;
        let mut rows = 0;
        for key in 0..KEYS {
            let at_least = acknowledged.get(&key).or(known.get(&key)).copied().unwrap_or(0);
            let begun_from = known.get(&key).copied().unwrap_or(0);
            let row = store.load("cart", &key.to_string()).await.unwrap();
            rows += u64::from(row.is_some());
            let found = match &row {
                Some(row) => read(key, &row.state),
                // The process began anew from 0 with a row that was removed, as it does not know how far it had come.
                None if at_least == 0 || is_removed(key, at_least) => at_least,
                None if is_removed(key, at_least + 1) => at_least + 1,
                None => panic!("{key} is gone after kill {kill}, seed {seed}: {at_least} was acknowledged"),
            };
            assert!(
                found == at_least || found == at_least + 1,
                "of {key}, {found} is found after kill {kill}, seed {seed}: {at_least} was acknowledged, {begun_from} before"
            );
            known.insert(key, if row.is_some() { found } else { 0 });
        }
        assert_eq!(store.count("cart").await.unwrap(), rows, "after kill {kill}, seed {seed}");
        store.close().await;
    }
}
