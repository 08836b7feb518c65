//! A store in memory.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::Arc,
};

use bytes::Bytes;
use parking_lot::Mutex;

use super::{Account, Bucket, Charge, KeyPage, KeyValueError, KeyValueStore, StoreFuture};

/// A store in the memory of the host. A bucket is made when it is first opened, and stays as long as the store.
#[derive(Default)]
pub struct MemoryStore(Mutex<HashMap<String, Arc<MemoryBucket>>>);

impl MemoryStore {
    /// A store without buckets.
    pub fn new() -> Self {
        Self::default()
    }

    /// Deletes a bucket. Handles to it go on with what they have; whoever opens it again finds it empty.
    pub fn remove(&self, name: &str) {
        // Dropped without the lock: it may be large.
        let removed = self.0.lock().remove(name);
        drop(removed);
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").field("buckets", &self.0.lock().len()).finish_non_exhaustive()
    }
}

impl KeyValueStore for MemoryStore {
    fn open<'a>(&'a self, name: &'a str) -> StoreFuture<'a, Arc<dyn Bucket>> {
        Box::pin(async move {
            let mut buckets = self.0.lock();
            if let Some(bucket) = buckets.get(name) {
                return Ok(Arc::clone(bucket) as _);
            }
            Ok(Arc::clone(buckets.entry(name.to_owned()).or_default()) as _)
        })
    }
}

#[derive(Default)]
struct MemoryBucket(Mutex<Entries>);

#[derive(Default)]
struct Entries {
    entries: HashMap<Arc<str>, Entry>,
    /// The keys in the order they were made, for [`Bucket::list`]: a cursor is a number in here.
    order: BTreeMap<u64, Arc<str>>,
    next: u64,
}

struct Entry {
    number: u64,
    value: Bytes,
    charge: Charge,
}

impl Entries {
    fn set(&mut self, key: &str, value: Bytes, account: &Account) -> Result<(), KeyValueError> {
        match self.entries.get_mut(key) {
            Some(entry) => {
                entry.charge = account.charge(key, value.len(), Some(&mut entry.charge))?;
                entry.value = value;
            }
            None => {
                let charge = account.charge(key, value.len(), None)?;
                let (key, number) = (Arc::<str>::from(key), self.next);
                self.next += 1;
                self.order.insert(number, Arc::clone(&key));
                self.entries.insert(key, Entry { number, value, charge });
            }
        }
        Ok(())
    }

    fn increment(&mut self, key: &str, delta: u64, account: &Account) -> Result<u64, KeyValueError> {
        let number = match self.entries.get(key) {
            None => 0,
            Some(entry) => str::from_utf8(&entry.value)
                .ok()
                .and_then(|text| text.parse::<u64>().ok())
                .ok_or(KeyValueError::NotANumber)?,
        };
        let sum = number.checked_add(delta).ok_or(KeyValueError::Overflow)?;
        self.set(key, sum.to_string().into(), account)?;
        Ok(sum)
    }

    fn list(&self, cursor: u64, keys: usize, bytes: usize) -> KeyPage {
        let mut page = KeyPage::default();
        let mut left = bytes;
        for (number, key) in self.order.range(cursor..) {
            if !page.keys.is_empty() && (page.keys.len() >= keys || key.len() > left) {
                page.cursor = Some(*number);
                break;
            }
            left = left.saturating_sub(key.len());
            page.keys.push(key.to_string());
        }
        page
    }
}

impl Bucket for MemoryBucket {
    fn get<'a>(&'a self, key: &'a str) -> StoreFuture<'a, Option<Bytes>> {
        Box::pin(async move { Ok(self.0.lock().entries.get(key).map(|entry| entry.value.clone())) })
    }

    fn set<'a>(&'a self, key: &'a str, value: Bytes, account: &'a Account) -> StoreFuture<'a, ()> {
        Box::pin(async move { self.0.lock().set(key, value, account) })
    }

    fn delete<'a>(&'a self, key: &'a str) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            let mut bucket = self.0.lock();
            if let Some(entry) = bucket.entries.remove(key) {
                bucket.order.remove(&entry.number);
            }
            Ok(())
        })
    }

    fn exists<'a>(&'a self, key: &'a str) -> StoreFuture<'a, bool> {
        Box::pin(async move { Ok(self.0.lock().entries.contains_key(key)) })
    }

    fn list(&self, cursor: Option<u64>, keys: usize, bytes: usize) -> StoreFuture<'_, KeyPage> {
        Box::pin(async move { Ok(self.0.lock().list(cursor.unwrap_or(0), keys, bytes)) })
    }

    fn increment<'a>(&'a self, key: &'a str, delta: u64, account: &'a Account) -> StoreFuture<'a, u64> {
        Box::pin(async move { self.0.lock().increment(key, delta, account) })
    }
}
