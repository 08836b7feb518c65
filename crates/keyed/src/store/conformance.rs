//! What each [`StateStore`] must do, as tests that another implementation can run.
//!
//! Each function panics where a store does otherwise. They need a tokio runtime, and use kinds whose names begin with
//! `conformance-`, which must be empty.
//!
//! ```
//! use std::sync::Arc;
//!
//! use airssys_wasm_keyed::{MemoryStore, conformance};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! conformance::all(Arc::new(MemoryStore::new())).await;
//! # }
//! ```
//!
//! A store whose rows outlive it is to be tested with [`Kept`] as well.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use futures_util::future::join_all;

use super::{Durability, Saved, StateStore, StoreError, Version};

const DURABILITIES: [Durability; 2] = [Durability::Process, Durability::Power];

/// All of them, one after the other.
///
/// # Panics
///
/// Where the store does otherwise.
pub async fn all(store: Arc<dyn StateStore>) {
    what_is_saved_is_loaded(&*store).await;
    a_write_must_follow_the_version_that_is_there(&*store).await;
    a_version_is_never_used_again(&*store).await;
    what_is_removed_is_gone(&*store).await;
    rows_do_not_mix(&*store).await;
    keys_and_states_may_be_extreme(&*store).await;
    keys_come_in_order_and_in_pages(&*store).await;
    pages_stand_still_while_rows_come_and_go(&*store).await;
    rows_are_counted(&*store).await;
    of_many_writers_one_succeeds(Arc::clone(&store)).await;
    concurrent_writers_lose_nothing(Arc::clone(&store)).await;
    dropped_operations_leave_whole_rows(&*store).await;
}

async fn save(store: &dyn StateStore, kind: &str, key: &str, follows: Version, state: impl Into<Bytes>) -> Version {
    let saved = store.save(kind, key, follows, state.into(), Durability::Process).await;
    saved.unwrap_or_else(|error| panic!("{kind}/{key} is not saved: {error:?}"))
}

async fn load(store: &dyn StateStore, kind: &str, key: &str) -> Option<Saved> {
    store.load(kind, key).await.unwrap_or_else(|error| panic!("{kind}/{key} is not loaded: {error:?}"))
}

async fn keys(store: &dyn StateStore, kind: &str, after: Option<&str>, limit: usize) -> Vec<String> {
    store.keys(kind, after, limit).await.unwrap_or_else(|error| panic!("no keys of {kind}: {error:?}"))
}

async fn count(store: &dyn StateStore, kind: &str) -> u64 {
    store.count(kind).await.unwrap_or_else(|error| panic!("{kind} is not counted: {error:?}"))
}

fn is_fenced<T>(written: &Result<T, StoreError>, by: Version) -> bool {
    matches!(written, Err(StoreError::Fenced { found }) if *found == by)
}

/// Saved is loaded, with the version that the save gave, for each durability.
///
/// # Panics
///
/// Where the store does otherwise.
pub async fn what_is_saved_is_loaded(store: &dyn StateStore) {
    let kind = "conformance-saved";
    assert_eq!(load(store, kind, "never").await, None, "there is a row that was never saved");
    let mut follows = Version::NONE;
    for (round, durability) in DURABILITIES.into_iter().cycle().take(20).enumerate() {
        let state = Bytes::from(format!("state {round}"));
        let version = store.save(kind, "a", follows, state.clone(), durability).await.expect("it follows the last one");
        assert_ne!(version, Version::NONE, "a row that is there has a version");
        assert_ne!(version, follows, "a new version is another");
        assert_eq!(load(store, kind, "a").await, Some(Saved { version, state }));
        follows = version;
    }
}

/// Compare-and-set, for saving and removing.
///
/// # Panics
///
/// Where the store does otherwise.
pub async fn a_write_must_follow_the_version_that_is_there(store: &dyn StateStore) {
    let kind = "conformance-fenced";
    let first = save(store, kind, "a", Version::NONE, "first").await;
    for durability in DURABILITIES {
        let stale = store.save(kind, "a", Version::NONE, "stale".into(), durability).await;
        assert!(is_fenced(&stale, first), "made although it was there: {stale:?}");
    }
    let second = save(store, kind, "a", first, "second").await;
    let stale = store.save(kind, "a", first, "stale".into(), Durability::Process).await;
    assert!(is_fenced(&stale, second), "the version before is followed: {stale:?}");
    for durability in DURABILITIES {
        let stale = store.remove(kind, "a", first, durability).await;
        assert!(is_fenced(&stale, second), "removed by the version before: {stale:?}");
        let stale = store.remove(kind, "a", Version::NONE, durability).await;
        assert!(is_fenced(&stale, second), "removed as if it were not there: {stale:?}");
    }
    assert_eq!(load(store, kind, "a").await, Some(Saved { version: second, state: "second".into() }));

    let missing = store.save(kind, "b", first, "stale".into(), Durability::Process).await;
    assert!(is_fenced(&missing, Version::NONE), "a row that is not there is followed: {missing:?}");
    assert_eq!(load(store, kind, "b").await, None, "a fenced write left a row");
}

/// Over a removal, too: a writer from before it is fenced.
///
/// # Panics
///
/// Where the store does otherwise.
pub async fn a_version_is_never_used_again(store: &dyn StateStore) {
    let kind = "conformance-versions";
    let mut versions = Vec::new();
    for _ in 0..5 {
        let first = save(store, kind, "a", Version::NONE, "x").await;
        let second = save(store, kind, "a", first, "x").await;
        for version in [first, second] {
            assert!(!versions.contains(&version), "{version:?} was given before");
            versions.push(version);
        }
        store.remove(kind, "a", second, Durability::Process).await.expect("it follows the last one");
        let late = store.save(kind, "a", second, "late".into(), Durability::Process).await;
        assert!(is_fenced(&late, Version::NONE), "a writer from before the removal: {late:?}");
    }
}

/// Removal with each durability, and that removing what is not there does nothing.
///
/// # Panics
///
/// Where the store does otherwise.
pub async fn what_is_removed_is_gone(store: &dyn StateStore) {
    let kind = "conformance-removed";
    for durability in DURABILITIES {
        store.remove(kind, "a", Version::NONE, durability).await.expect("nothing is removed");
        let version = save(store, kind, "a", Version::NONE, "x").await;
        store.remove(kind, "a", version, durability).await.expect("it follows the last one");
        assert_eq!(load(store, kind, "a").await, None);
        assert_eq!(keys(store, kind, None, 10).await, [""; 0]);
        assert_eq!(count(store, kind).await, 0);
        store.remove(kind, "a", Version::NONE, durability).await.expect("nothing is removed");
        let late = store.remove(kind, "a", version, durability).await;
        assert!(is_fenced(&late, Version::NONE), "removed a second time: {late:?}");
    }
}

/// Kinds and keys whose names run into each other are different rows.
///
/// # Panics
///
/// Where the store does otherwise.
pub async fn rows_do_not_mix(store: &dyn StateStore) {
    let rows = [
        ("conformance-a", "b"),
        ("conformance-a", "bb"),
        ("conformance-ab", "b"),
        ("conformance-ab", ""),
        ("conformance-", "ab"),
        ("conformance-", "a/b"),
        ("conformance-a/", "b"),
        ("conformance-a", "/b"),
        ("conformance-a\0", "b"),
        ("conformance-a", "\0b"),
        ("conformance-a", "B"),
        ("conformance-A", "b"),
    ];
    for (number, (kind, key)) in rows.iter().enumerate() {
        assert_eq!(load(store, kind, key).await, None, "{kind:?}/{key:?} is another row");
        save(store, kind, key, Version::NONE, number.to_string()).await;
    }
    for (number, (kind, key)) in rows.iter().enumerate() {
        let row = load(store, kind, key).await.unwrap_or_else(|| panic!("{kind:?}/{key:?} is gone"));
        assert_eq!(row.state, number.to_string(), "{kind:?}/{key:?} is mixed up");
        let mut of_kind: Vec<_> = rows.iter().filter(|row| row.0 == *kind).map(|row| row.1).collect();
        of_kind.sort_unstable();
        assert_eq!(keys(store, kind, None, 100).await, of_kind, "keys of {kind:?}");
        assert_eq!(count(store, kind).await, of_kind.len() as u64, "rows of {kind:?}");
    }
}

/// An empty state, a large one, bytes that are no text, long keys, keys of any characters.
///
/// # Panics
///
/// Where the store does otherwise.
pub async fn keys_and_states_may_be_extreme(store: &dyn StateStore) {
    let kind = "conformance-extremes";
    let long = "k".repeat(128);
    let large: Bytes = (0..3_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let all_bytes: Bytes = (0..=u8::MAX).collect();
    let states = [Bytes::new(), Bytes::from_static(&[0]), all_bytes, large];
    let mut expected = BTreeMap::new();
    for (number, key) in ["", "\0", " ", "a", "ä", "日本", "\u{10ffff}", &long, "a/b:c@d"].into_iter().enumerate() {
        let state = states[number % states.len()].clone();
        let version = save(store, kind, key, Version::NONE, state.clone()).await;
        expected.insert(key.to_owned(), Saved { version, state });
    }
    for (key, row) in &expected {
        assert!(load(store, kind, key).await.as_ref() == Some(row), "{key:?} is another than it was");
    }
    let in_order: Vec<_> = expected.keys().cloned().collect();
    assert_eq!(keys(store, kind, None, 100).await, in_order);
    for (key, row) in &expected {
        // From large to small, and the other way round.
        let other = if row.state.len() > 1_000 { Bytes::from_static(b"small") } else { states[3].clone() };
        let version = save(store, kind, key, row.version, other.clone()).await;
        assert!(
            load(store, kind, key).await == Some(Saved { version, state: other }),
            "{key:?} is another than it was"
        );
        store.remove(kind, key, version, Durability::Process).await.expect("it follows the last one");
    }
    assert_eq!(keys(store, kind, None, 100).await, [""; 0]);
}

/// Pages of any size give each key once, in the order of bytes.
///
/// # Panics
///
/// Where the store does otherwise.
pub async fn keys_come_in_order_and_in_pages(store: &dyn StateStore) {
    let kind = "conformance-pages";
    let mut all: Vec<String> = (0..100).map(|n| format!("{:x}", n * 7919 % 4096)).collect();
    for key in &all {
        save(store, kind, key, Version::NONE, "x").await;
    }
    save(store, "conformance-pages-", "0", Version::NONE, "of another kind").await;
    all.sort_unstable();
    for limit in [1, 2, 7, 99, 100, 101, 10_000] {
        let mut found = Vec::new();
        loop {
            let after = found.last().cloned();
            let page = keys(store, kind, after.as_deref(), limit).await;
            assert!(page.len() <= limit, "a page of {limit} has {}", page.len());
            let is_last = page.len() < limit;
            found.extend(page);
            if is_last {
                break;
            }
        }
        assert_eq!(found, all, "in pages of {limit}");
    }
    assert_eq!(keys(store, kind, None, 0).await, [""; 0], "a page of none");
    assert_eq!(keys(store, kind, Some(&format!("{}0", all[9])), 1).await, all[10..11], "after a key that is not there");
    assert_eq!(keys(store, kind, all.last().map(String::as_str), 5).await, [""; 0], "after the last");
    assert_eq!(keys(store, "conformance-no-such-kind", None, 5).await, [""; 0]);
}

/// A key that is there all the time is on exactly one page, whatever becomes of others.
///
/// # Panics
///
/// Where the store does otherwise.
pub async fn pages_stand_still_while_rows_come_and_go(store: &dyn StateStore) {
    let kind = "conformance-changes";
    let stays = |key: &str| key.starts_with("stays");
    let mut goes = Vec::new();
    for n in 0..50 {
        save(store, kind, &format!("stays-{n:02}"), Version::NONE, "x").await;
        goes.push((format!("goes-{n:02}"), save(store, kind, &format!("goes-{n:02}"), Version::NONE, "x").await));
    }
    let (mut found, mut after) = (Vec::new(), None::<String>);
    loop {
        let page = keys(store, kind, after.as_deref(), 3).await;
        if let Some((key, version)) = goes.pop() {
            store.remove(kind, &key, version, Durability::Process).await.expect("it follows the last one");
        }
        save(store, kind, &format!("comes-{:02}", goes.len()), Version::NONE, "x").await;
        let is_last = page.len() < 3;
        after = page.last().cloned().or(after);
        found.extend(page.into_iter().filter(|key| stays(key)));
        if is_last {
            break;
        }
    }
    let expected: Vec<_> = (0..50).map(|n| format!("stays-{n:02}")).collect();
    assert_eq!(found, expected);
}

/// New rows count, replaced ones once, removed ones not, refused writes not.
///
/// # Panics
///
/// Where the store does otherwise.
pub async fn rows_are_counted(store: &dyn StateStore) {
    let kind = "conformance-counted";
    assert_eq!(count(store, kind).await, 0);
    let mut versions = Vec::new();
    for n in 0..10_u64 {
        versions.push(save(store, kind, &n.to_string(), Version::NONE, "x").await);
        assert_eq!(count(store, kind).await, n + 1);
    }
    let again = save(store, kind, "0", versions[0], "y").await;
    assert_eq!(count(store, kind).await, 10, "a row that was replaced");
    store.save(kind, "1", Version::NONE, "z".into(), Durability::Process).await.expect_err("fenced");
    store.save(kind, "new", again, "z".into(), Durability::Process).await.expect_err("fenced");
    store.remove(kind, "2", versions[1], Durability::Process).await.expect_err("fenced");
    assert_eq!(count(store, kind).await, 10, "writes that were refused");
    for n in 1..10_u64 {
        let (key, follows) = (n.to_string(), versions[n as usize]);
        store.remove(kind, &key, follows, Durability::Process).await.expect("it follows the last one");
        assert_eq!(count(store, kind).await, 10 - n);
    }
    store.remove(kind, "1", Version::NONE, Durability::Process).await.expect("nothing is removed");
    assert_eq!(count(store, kind).await, 1, "a row that was not there");
}

/// Of writers that follow the same version at the same time, one succeeds.
///
/// # Panics
///
/// Where the store does otherwise.
pub async fn of_many_writers_one_succeeds(store: Arc<dyn StateStore>) {
    let kind = "conformance-race";
    let mut follows = Version::NONE;
    for round in 0..20 {
        let writers = (0..16).map(|writer| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                let durability = DURABILITIES[writer % 2];
                let state = Bytes::from(format!("{round}, {writer}"));
                let saved = store.save(kind, "a", follows, state.clone(), durability).await;
                match saved {
                    Ok(version) => Some(Saved { version, state }),
                    Err(StoreError::Fenced { .. }) => None,
                    Err(error) => panic!("neither saved nor fenced: {error:?}"),
                }
            })
        });
        let mut saved: Vec<_> =
            join_all(writers).await.into_iter().filter_map(|saved| saved.expect("no panic")).collect();
        let winner = saved.pop().expect("one of them follows the version that is there");
        assert!(saved.is_empty(), "two have followed the same version: {saved:?} and {winner:?}");
        assert_eq!(load(&*store, kind, "a").await.as_ref(), Some(&winner));
        follows = winner.version;
    }
}

/// Writers that load, add and save, again and again: the sum is right.
///
/// # Panics
///
/// Where the store does otherwise.
pub async fn concurrent_writers_lose_nothing(store: Arc<dyn StateStore>) {
    let kind = "conformance-sum";
    let writers = (0..8_u64).map(|writer| {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            for n in 0..25 {
                let key = ["a", "b", "c"][((writer + n) % 3) as usize];
                loop {
                    let row = load(&*store, kind, key).await;
                    let (follows, sum) = row.map_or((Version::NONE, 0), |row| (row.version, number(&row.state)));
                    let state = Bytes::from((sum + 1).to_string());
                    match store.save(kind, key, follows, state, DURABILITIES[(writer % 2) as usize]).await {
                        Ok(_) => break,
                        Err(StoreError::Fenced { .. }) => tokio::task::yield_now().await,
                        Err(error) => panic!("neither saved nor fenced: {error:?}"),
                    }
                }
            }
        })
    });
    for writer in join_all(writers).await {
        writer.expect("no panic");
    }
    let mut sum = 0;
    for key in ["a", "b", "c"] {
        sum += number(&load(&*store, kind, key).await.expect("it was saved").state);
    }
    assert_eq!(sum, 8 * 25);
    assert_eq!(count(&*store, kind).await, 3);
}

fn number(state: &[u8]) -> u64 {
    str::from_utf8(state).ok().and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("{state:?} was never saved"))
}

/// An operation whose future is dropped at any point leaves the row as it was, or as it was to be.
///
/// # Panics
///
/// Where the store does otherwise.
pub async fn dropped_operations_leave_whole_rows(store: &dyn StateStore) {
    let kind = "conformance-dropped";
    let before = Bytes::from(vec![1; 10_000]);
    let after = Bytes::from(vec![2; 20_000]);
    for polls in 0..6 {
        let key = polls.to_string();
        let version = save(store, kind, &key, Version::NONE, before.clone()).await;
        {
            let mut saving = store.save(kind, &key, version, after.clone(), DURABILITIES[polls % 2]);
            let mut polled = 0;
            std::future::poll_fn(|cx| {
                if polled == polls {
                    return std::task::Poll::Ready(());
                }
                polled += 1;
                saving.as_mut().poll(cx).map(|saved| assert!(saved.is_ok(), "{saved:?}"))
            })
            .await;
        }
        // Whether it is carried out is known once a later write succeeds.
        loop {
            let row = load(store, kind, &key).await.expect("it was saved");
            assert!(row.state == before || row.state == after, "a row is mixed");
            match store.save(kind, &key, row.version, "last".into(), Durability::Process).await {
                Ok(_) => break,
                Err(StoreError::Fenced { .. }) => tokio::task::yield_now().await,
                Err(error) => panic!("neither saved nor fenced: {error:?}"),
            }
        }
        assert_eq!(load(store, kind, &key).await.expect("it was saved").state, "last");
    }
}

/// What a store held before it was closed, or its process killed, or the power lost.
#[derive(Debug)]
pub struct Kept(Vec<(String, Option<Saved>)>);

impl Kept {
    const KIND: &'static str = "conformance-kept";

    /// Writes rows, replaces and removes some, with this durability. The last write is a removal.
    ///
    /// # Panics
    ///
    /// Where the store does otherwise.
    pub async fn write(store: &dyn StateStore, durability: Durability) -> Self {
        let mut kept = Vec::new();
        for n in 0..100_usize {
            let (key, state) = (format!("{n:03}"), Bytes::from(vec![n as u8; n * n]));
            let mut version = store.save(Self::KIND, &key, Version::NONE, state, durability).await.expect("a new row");
            let mut state = None;
            if n % 3 > 0 {
                let new = Bytes::from(format!("again {n}"));
                version = store.save(Self::KIND, &key, version, new.clone(), durability).await.expect("it follows");
                state = Some(Saved { version, state: new });
            } else {
                store.remove(Self::KIND, &key, version, durability).await.expect("it follows");
            }
            kept.push((key, state));
        }
        Self(kept)
    }

    /// Compares with what the store, opened again, holds; and removes it.
    ///
    /// # Panics
    ///
    /// Where it is another.
    pub async fn check(self, store: &dyn StateStore) {
        let present: Vec<_> = self.0.iter().filter(|row| row.1.is_some()).map(|row| row.0.clone()).collect();
        assert_eq!(keys(store, Self::KIND, None, 1_000).await, present);
        assert_eq!(count(store, Self::KIND).await, present.len() as u64);
        let versions: Vec<_> = self.0.iter().filter_map(|row| row.1.as_ref()).map(|row| row.version).collect();
        for (key, row) in &self.0 {
            assert_eq!(load(store, Self::KIND, key).await, *row, "{key}");
            let follows = row.as_ref().map_or(Version::NONE, |row| row.version);
            let version = save(store, Self::KIND, key, follows, "new").await;
            assert!(!versions.contains(&version), "{version:?} was given before");
            store.remove(Self::KIND, key, version, Durability::Process).await.expect("it follows");
        }
    }
}
