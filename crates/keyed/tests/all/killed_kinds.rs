//! A process with kinds of each way to save is killed at random moments, again and again: of each count what was promised
//! is found, or more; nothing earlier, nothing that never was.
//!
//! `KILLS` in the environment is how often, `KILLS_SEED` what the moments come from.

use std::{
    collections::HashMap,
    env,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use airssys_wasm_keyed::{Durability, FjallStore, Keyed, KeyedOptions, KeyedSpec, SaveWhen, StateStore, StoreConfig};
use tempfile::TempDir;

use crate::support::{COUNTER, ask, system, template};

/// The kinds, and whether what they answer is saved.
fn kinds() -> [(&'static str, SaveWhen, Durability, bool); 4] {
    [
        ("each-power", SaveWhen::EachMessage, Durability::Power, true),
        ("each-process", SaveWhen::EachMessage, Durability::Process, true),
        (WITHIN, SaveWhen::Within(Duration::from_millis(10)), Durability::Process, false),
        ("idle", SaveWhen::OnIdle, Durability::Process, false),
    ]
}

const KEYS: [&str; 3] = ["a", "b", "c"];

/// The kind that is saved within 10 ms, and how long that and one save may take on a machine that is busy with other things.
const WITHIN: &str = "within";
const LATEST: Duration = Duration::from_secs(20);

fn say(line: &str) {
    // One write, so that a line is whole or not there.
    std::io::stdout().lock().write_all(format!("\n{line}\n").as_bytes()).unwrap();
}

/// The process that is killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a process that is killed by another test"]
async fn child() {
    let Some(folder) = env::var_os("KILLED_KINDS_FOLDER") else { return };
    let system = system();
    let store: Arc<dyn StateStore> = Arc::new(FjallStore::open(StoreConfig::new(folder)).await.unwrap());
    let mut loads = Vec::new();
    for (name, save, durability, _) in kinds() {
        let options = KeyedOptions { save, durability, ..KeyedOptions::default() };
        let spec = KeyedSpec::new(template(&system, name, &COUNTER)).with_options(options);
        let kind = Keyed::install(&system, spec, Arc::clone(&store)).await.unwrap();
        for key in KEYS {
            loads.push(tokio::spawn(load(kind.clone(), key, Arc::clone(&store))));
        }
    }
    // None of them ends by itself.
    let (ended, ..) = futures_util::future::select_all(loads).await;
    ended.unwrap();
}

async fn load(kind: Keyed, key: &'static str, store: Arc<dyn StateStore>) {
    let name = kind.kind().clone();
    for turn in 0_u64.. {
        let count = ask(&kind, key, "add 1").await.unwrap();
        say(&format!("answered {name} {key} {count}"));
        let is_saved = match turn % 8 {
            7 if name.as_str() == WITHIN => {
                // By nothing but time.
                let saved = saved_in_time(&*store, key, count.parse().unwrap());
                tokio::time::timeout(LATEST, saved).await.expect("it is saved in time");
                true
            }
            7 => kind.passivate(key).await.unwrap(),
            _ => false,
        };
        if is_saved {
            say(&format!("saved {name} {key} {count}"));
        }
    }
}

/// Waits until the count is saved.
async fn saved_in_time(store: &dyn StateStore, key: &str, count: u64) {
    while store.load(WITHIN, key).await.unwrap().is_none_or(|row| counted(&row.state) < count) {
        tokio::task::yield_now().await;
    }
}

fn counted(state: &[u8]) -> u64 {
    u64::from_le_bytes(state.try_into().unwrap())
}

type Counts = HashMap<(String, String), u64>;

/// Starts the process, kills it after so many answers, and gives the last ones of each key, and what is known to be saved.
fn killed_after(folder: &Path, answers: usize, known: &Counts) -> (Counts, Counts) {
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "killed_kinds::child", "--ignored", "--nocapture", "--test-threads=1"])
        .env("KILLED_KINDS_FOLDER", folder)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut answered, mut saved) = (Counts::new(), known.clone());
    let mut heard = 0;
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        let words: Vec<_> = line.split(' ').collect();
        let [said @ ("answered" | "saved"), kind, key, count] = words[..] else { continue };
        let (name, count) = ((kind.to_owned(), key.to_owned()), count.parse().unwrap());
        if said == "saved" {
            saved.insert(name, count);
            continue;
        }
        let before = answered.get(&name).or(known.get(&name)).copied().unwrap_or(0);
        assert_eq!(count, before + 1, "{name:?} goes on from where it was");
        answered.insert(name, count);
        heard += 1;
        if heard == answers {
            // SIGKILL. What it has said until then is heard as well.
            child.kill().unwrap();
        }
    }
    assert!(!child.wait().unwrap().success());
    assert!(heard >= answers, "it ended by itself, after {heard}");
    (answered, saved)
}

#[tokio::test]
async fn a_kill_loses_what_each_way_to_save_says_and_no_more() {
    let number = |name: &str, default| env::var(name).map_or(default, |value| value.parse().unwrap());
    let (kills, seed) = (number("KILLS", 100), number("KILLS_SEED", 1));
    let mut random = fastrand::Rng::with_seed(seed);
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("store");
    let (mut known, mut saved_by_time) = (Counts::new(), 0);
    for kill in 0..kills {
        let answers = random.usize(1..150);
        let (path, before) = (path.clone(), known.clone());
        let task = tokio::task::spawn_blocking({
            let path = path.clone();
            move || killed_after(&path, answers, &before)
        });
        let (answered, saved) = task.await.unwrap();
        let by_time = |key: &&str| {
            let name = (WITHIN.to_owned(), (*key).to_owned());
            saved.get(&name) > known.get(&name)
        };
        saved_by_time += KEYS.iter().filter(|key| by_time(key)).count();
        let store = FjallStore::open(StoreConfig::new(&path)).await.unwrap();
        for (kind, _, _, saves_each) in kinds() {
            for key in KEYS {
                let name = (kind.to_owned(), key.to_owned());
                let row = store.load(kind, key).await.unwrap();
                let found = row.map_or(0, |row| counted(&row.state));
                let before = known.get(&name).copied().unwrap_or(0);
                let last = answered.get(&name).copied().unwrap_or(before);
                let at_least = if saves_each { last } else { saved.get(&name).copied().unwrap_or(0) };
                assert!(
                    (at_least..=last + 1).contains(&found),
                    "of {name:?}, {found} is found after kill {kill}, seed {seed}: {at_least} is promised, {last} was answered"
                );
                known.insert(name, found);
            }
        }
        store.close().await;
    }
    assert!(saved_by_time > 0, "in none of the {kills} processes anything was saved within a time");
}
