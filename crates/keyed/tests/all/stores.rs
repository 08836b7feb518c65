//! The stores of the crate, by the suite that others can run.

use std::sync::Arc;

use airssys_wasm_keyed::{
    Durability, FjallStore, MemoryStore, OpenError, StateStore, StoreConfig, StoreError, Version,
    conformance::{self, Kept},
};
use tempfile::TempDir;

async fn open(folder: &TempDir) -> FjallStore {
    FjallStore::open(StoreConfig::new(folder.path().join("store"))).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_in_memory_conforms() {
    conformance::all(Arc::new(MemoryStore::new())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_on_disk_conforms() {
    let folder = TempDir::new().unwrap();
    conformance::all(Arc::new(open(&folder).await)).await;
}

#[tokio::test]
async fn rows_are_there_when_the_store_is_opened_again() {
    let folder = TempDir::new().unwrap();
    for durability in [Durability::Process, Durability::Power] {
        let store = open(&folder).await;
        let kept = Kept::write(&store, durability).await;
        store.close().await;
        let store = open(&folder).await;
        kept.check(&store).await;
        store.close().await;
    }
}

#[tokio::test]
async fn a_folder_is_open_once() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder).await;
    let again = FjallStore::open(StoreConfig::new(folder.path().join("store"))).await;
    assert!(matches!(again, Err(OpenError::Locked)), "{again:?}");
    store.close().await;
    open(&folder).await.close().await;
}

#[tokio::test]
async fn a_store_that_is_dropped_is_closed_some_time() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder).await;
    let saved = store.save("cart", "a", Version::NONE, "x".into(), Durability::Process).await.unwrap();
    drop(store);
    let store = loop {
        match FjallStore::open(StoreConfig::new(folder.path().join("store"))).await {
            Ok(store) => break store,
            Err(OpenError::Locked) => {}
            Err(error) => panic!("{error:?}"),
        }
    };
    assert_eq!(store.load("cart", "a").await.unwrap().unwrap().version, saved);
}

#[tokio::test]
async fn a_file_in_the_way_is_told() {
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("store"), "in the way").unwrap();
    let opened = FjallStore::open(StoreConfig::new(folder.path().join("store"))).await;
    assert!(matches!(opened, Err(OpenError::Io { .. })), "{opened:?}");
}

#[tokio::test]
async fn a_closed_store_says_so() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder).await;
    let version = store.save("cart", "a", Version::NONE, "x".into(), Durability::Process).await.unwrap();
    store.close().await;
    store.close().await;
    assert!(matches!(store.load("cart", "a").await, Err(StoreError::Closed)));
    assert!(matches!(store.keys("cart", None, 1).await, Err(StoreError::Closed)));
    assert!(matches!(store.remove("cart", "a", version, Durability::Power).await, Err(StoreError::Closed)));
    let saved = store.save("cart", "a", version, "x".into(), Durability::Power).await;
    assert!(matches!(saved, Err(StoreError::Closed)), "{saved:?}");
}

#[tokio::test]
async fn states_and_names_have_a_largest_size() {
    let folder = TempDir::new().unwrap();
    let mut config = StoreConfig::new(folder.path().join("store"));
    config.max_state = "1KiB".parse().unwrap();
    let store = FjallStore::open(config).await.unwrap();
    let save = |key: String, size| {
        let store = &store;
        async move { store.save("cart", &key, Version::NONE, vec![0; size].into(), Durability::Process).await }
    };
    save("fits".to_owned(), 1024).await.unwrap();
    match save("too large".to_owned(), 1025).await {
        Err(StoreError::TooLarge { size: 1025, allowed: 1024 }) => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(store.load("cart", "too large").await.unwrap(), None);
    save("k".repeat(u16::MAX as usize - 6), 0).await.unwrap();
    assert!(matches!(save("k".repeat(u16::MAX as usize - 5), 0).await, Err(StoreError::Io { .. })));
    assert_eq!(store.count("cart").await.unwrap(), 2);
}
