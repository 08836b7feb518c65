//! `wasi:keyvalue` for sandboxes.

use std::sync::Arc;

use airssys_wasm_engine::{
    Linker,
    wasmtime::{
        self, StoreContextMut,
        component::{ComponentType, Lower, Resource, ResourceType},
    },
};
use airssys_wasm_limits::give_way;
use bytes::Bytes;

use crate::{
    HostState,
    keyvalue::{Account, Bucket, KeyPage, KeyValueError},
};

const STORE: &str = "wasi:keyvalue/store@0.2.0-draft";
const ATOMICS: &str = "wasi:keyvalue/atomics@0.2.0-draft";
const BATCH: &str = "wasi:keyvalue/batch@0.2.0-draft";

/// Bytes of the longest key.
const LONGEST_KEY: usize = 1 << 10;
/// Keys and bytes of a page of keys.
const PAGE_KEYS: usize = 1_000;
const PAGE_BYTES: usize = 64 << 10;
/// Keys between two yields.
const BATCH_SLICE: usize = 64;

/// Adds `wasi:keyvalue@0.2.0-draft` (`store`, `atomics`, `batch`) to the linker of a component that runs in sandboxes.
///
/// Which buckets it may open, and of which store, is said by
/// [`SandboxSpec::with_keyvalue`](crate::SandboxSpec::with_keyvalue), by default none: `no-such-store`. What it stores is
/// held against the quota of its [`KeyValueGrants`](crate::KeyValueGrants), and stays when a sandbox crashes.
///
/// A guest gets an `error.other` for
///
/// - a key of more than 1 KiB;
/// - an entry beyond the quota;
/// - an answer of `get`, or of `get-many` as a whole, of more than `host_call_bytes`;
/// - an `increment` of what is no decimal number, or beyond 2⁶⁴ - 1.
///
/// A page of keys has 1,000 keys and 64 KiB at the most, whatever `host_call_bytes` is. After each 64 keys of a batch other
/// tasks get their turn. An open bucket is one of the sandbox's `handles`.
///
/// # Errors
///
/// When one of the interfaces is defined already.
pub fn add_keyvalue<U: Send + 'static>(linker: &mut Linker<HostState<U>>) -> wasmtime::Result<()> {
    let mut store = linker.instance(STORE)?;
    store.resource("bucket", ResourceType::host::<Handle>(), |mut store, rep| {
        store.data_mut().table().delete(Resource::<Handle>::new_own(rep))?;
        Ok(())
    })?;
    store.func_wrap_async("open", |store, (identifier,)| Box::new(open(store, identifier)))?;
    store.func_wrap_async("[method]bucket.get", |store, (bucket, key)| Box::new(get(store, bucket, key)))?;
    store.func_wrap_async("[method]bucket.set", |store, (bucket, key, value)| {
        Box::new(set(store, bucket, key, value))
    })?;
    store.func_wrap_async("[method]bucket.delete", |store, (bucket, key)| Box::new(delete(store, bucket, key)))?;
    store.func_wrap_async("[method]bucket.exists", |store, (bucket, key)| Box::new(exists(store, bucket, key)))?;
    store.func_wrap_async("[method]bucket.list-keys", |store, (bucket, cursor)| {
        Box::new(list_keys(store, bucket, cursor))
    })?;
    linker
        .instance(ATOMICS)?
        .func_wrap_async("increment", |store, (bucket, key, delta)| Box::new(increment(store, bucket, key, delta)))?;
    let mut batch = linker.instance(BATCH)?;
    batch.func_wrap_async("get-many", |store, (bucket, keys)| Box::new(get_many(store, bucket, keys)))?;
    batch.func_wrap_async("set-many", |store, (bucket, entries)| Box::new(set_many(store, bucket, entries)))?;
    batch.func_wrap_async("delete-many", |store, (bucket, keys)| Box::new(delete_many(store, bucket, keys)))
}

/// What a guest's handle stands for.
#[derive(Clone)]
struct Handle {
    bucket: Arc<dyn Bucket>,
    account: Account,
}

/// `wasi:keyvalue/store.error`.
#[derive(Debug, Clone, ComponentType, Lower)]
#[component(variant)]
enum Error {
    #[component(name = "no-such-store")]
    NoSuchStore,
    #[component(name = "access-denied")]
    AccessDenied,
    #[component(name = "other")]
    Other(String),
}

impl From<KeyValueError> for Error {
    fn from(error: KeyValueError) -> Self {
        match error {
            KeyValueError::NoSuchStore => Self::NoSuchStore,
            KeyValueError::AccessDenied => Self::AccessDenied,
            error => Self::Other(error.to_string()),
        }
    }
}

/// `wasi:keyvalue/store.key-response`.
#[derive(Debug, Clone, ComponentType, Lower)]
#[component(record)]
struct KeyResponse {
    keys: Vec<String>,
    cursor: Option<u64>,
}

type Store<'a, U> = StoreContextMut<'a, HostState<U>>;

/// The outer error ends the guest, the inner one is its answer.
type Answer<T> = wasmtime::Result<(Result<T, Error>,)>;

fn answer<T>(result: Result<T, KeyValueError>) -> Answer<T> {
    Ok((result.map_err(Error::from),))
}

/// A clone, so that the table is free while the store is waited for.
fn handle<U: Send + 'static>(store: &mut Store<'_, U>, bucket: &Resource<Handle>) -> wasmtime::Result<Handle> {
    Ok(store.data_mut().table().get(bucket)?.clone())
}

fn allowed<U: Send + 'static>(store: &Store<'_, U>) -> u64 {
    store.data().quota().limits().host_call_bytes.as_u64()
}

fn check_key(key: &str) -> Result<(), KeyValueError> {
    match key.len() {
        0..=LONGEST_KEY => Ok(()),
        bytes => Err(KeyValueError::KeyTooLong { bytes, allowed: LONGEST_KEY }),
    }
}

fn check_size(bytes: u64, allowed: u64) -> Result<(), KeyValueError> {
    if bytes > allowed { Err(KeyValueError::TooLarge { allowed }) } else { Ok(()) }
}

async fn open<U: Send + 'static>(mut store: Store<'_, U>, identifier: String) -> Answer<Resource<Handle>> {
    let Some(access) = store.data().keyvalue().cloned() else { return answer(Err(KeyValueError::NoSuchStore)) };
    match access.open(&identifier).await {
        Ok(bucket) => {
            let handle = Handle { bucket, account: access.account().clone() };
            answer(Ok(store.data_mut().table().push(handle)?))
        }
        Err(error) => answer(Err(error)),
    }
}

async fn get<U: Send + 'static>(
    mut store: Store<'_, U>,
    bucket: Resource<Handle>,
    key: String,
) -> Answer<Option<Bytes>> {
    let Handle { bucket, .. } = handle(&mut store, &bucket)?;
    let allowed = allowed(&store);
    let get = async {
        check_key(&key)?;
        let value = bucket.get(&key).await?;
        check_size(value.as_ref().map_or(0, Bytes::len) as u64, allowed)?;
        Ok(value)
    };
    answer(get.await)
}

async fn set<U: Send + 'static>(
    mut store: Store<'_, U>,
    bucket: Resource<Handle>,
    key: String,
    value: Bytes,
) -> Answer<()> {
    let Handle { bucket, account } = handle(&mut store, &bucket)?;
    let set = async {
        check_key(&key)?;
        bucket.set(&key, value, &account).await
    };
    answer(set.await)
}

async fn delete<U: Send + 'static>(mut store: Store<'_, U>, bucket: Resource<Handle>, key: String) -> Answer<()> {
    let Handle { bucket, .. } = handle(&mut store, &bucket)?;
    let delete = async {
        check_key(&key)?;
        bucket.delete(&key).await
    };
    answer(delete.await)
}

async fn exists<U: Send + 'static>(mut store: Store<'_, U>, bucket: Resource<Handle>, key: String) -> Answer<bool> {
    let Handle { bucket, .. } = handle(&mut store, &bucket)?;
    let exists = async {
        check_key(&key)?;
        bucket.exists(&key).await
    };
    answer(exists.await)
}

async fn list_keys<U: Send + 'static>(
    mut store: Store<'_, U>,
    bucket: Resource<Handle>,
    cursor: Option<u64>,
) -> Answer<KeyResponse> {
    let Handle { bucket, .. } = handle(&mut store, &bucket)?;
    let page = bucket.list(cursor, PAGE_KEYS, PAGE_BYTES).await;
    answer(page.map(|KeyPage { keys, cursor }| KeyResponse { keys, cursor }))
}

async fn increment<U: Send + 'static>(
    mut store: Store<'_, U>,
    bucket: Resource<Handle>,
    key: String,
    delta: u64,
) -> Answer<u64> {
    let Handle { bucket, account } = handle(&mut store, &bucket)?;
    let increment = async {
        check_key(&key)?;
        bucket.increment(&key, delta, &account).await
    };
    answer(increment.await)
}

type Found = Vec<Option<(String, Bytes)>>;

async fn get_many<U: Send + 'static>(
    mut store: Store<'_, U>,
    bucket: Resource<Handle>,
    keys: Vec<String>,
) -> Answer<Found> {
    let Handle { bucket, .. } = handle(&mut store, &bucket)?;
    let allowed = allowed(&store);
    let mut found = Found::new();
    let mut bytes = 0;
    for (i, slice) in slices(keys).enumerate() {
        if i > 0 {
            give_way(&mut store).await?;
        }
        if let Err(error) = get_slice(&*bucket, slice, &mut found, &mut bytes, allowed).await {
            return answer(Err(error));
        }
    }
    answer(Ok(found))
}

/// The same key may be among them many times: what comes back is not bounded by what was asked.
async fn get_slice(
    bucket: &dyn Bucket,
    keys: Vec<String>,
    found: &mut Found,
    bytes: &mut u64,
    allowed: u64,
) -> Result<(), KeyValueError> {
    keys.iter().try_for_each(|key| check_key(key))?;
    let values = bucket.get_many(&keys, allowed.saturating_sub(*bytes)).await.map_err(|error| match error {
        // Of all slices together.
        KeyValueError::TooLarge { .. } => KeyValueError::TooLarge { allowed },
        error => error,
    })?;
    for (key, value) in keys.into_iter().zip(values) {
        let pair = value.map(|value| (key, value));
        let size = pair.as_ref().map_or(0, |(key, value)| key.len() + value.len());
        *bytes = bytes.saturating_add((size_of_val(&pair) + size) as u64);
        check_size(*bytes, allowed)?;
        found.push(pair);
    }
    Ok(())
}

async fn set_many<U: Send + 'static>(
    mut store: Store<'_, U>,
    bucket: Resource<Handle>,
    entries: Vec<(String, Bytes)>,
) -> Answer<()> {
    let Handle { bucket, account } = handle(&mut store, &bucket)?;
    for (i, slice) in slices(entries).enumerate() {
        if i > 0 {
            give_way(&mut store).await?;
        }
        if let Err(error) = slice.iter().try_for_each(|(key, _)| check_key(key)) {
            return answer(Err(error));
        }
        if let Err(error) = bucket.set_many(slice, &account).await {
            return answer(Err(error));
        }
    }
    answer(Ok(()))
}

async fn delete_many<U: Send + 'static>(
    mut store: Store<'_, U>,
    bucket: Resource<Handle>,
    keys: Vec<String>,
) -> Answer<()> {
    let Handle { bucket, .. } = handle(&mut store, &bucket)?;
    for (i, slice) in slices(keys).enumerate() {
        if i > 0 {
            give_way(&mut store).await?;
        }
        if let Err(error) = slice.iter().try_for_each(|key| check_key(key)) {
            return answer(Err(error));
        }
        if let Err(error) = bucket.delete_many(&slice).await {
            return answer(Err(error));
        }
    }
    answer(Ok(()))
}

/// What a batch is worked off in.
fn slices<T>(items: Vec<T>) -> impl Iterator<Item = Vec<T>> {
    let mut items = items.into_iter();
    std::iter::from_fn(move || {
        let slice: Vec<T> = items.by_ref().take(BATCH_SLICE).collect();
        (!slice.is_empty()).then_some(slice)
    })
}
