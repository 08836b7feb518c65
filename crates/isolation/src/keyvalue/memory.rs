//! A store in memory.

use std::{
    collections::{BTreeMap, HashMap},
    fmt, mem,
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

    /// Deletes a bucket and all that it has. Handles to it find it empty, and can store nothing more: `no-such-store`.
    /// Whoever opens it again gets another.
    pub fn remove(&self, name: &str) {
        let Some(bucket) = self.0.lock().remove(name) else { return };
        let removed = mem::replace(&mut *bucket.0.lock(), Entries { is_removed: true, ..Entries::default() });
        // Here, and not where the last handle is dropped, and without the locks: it may be large.
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
    is_removed: bool,
}

struct Entry {
    number: u64,
    value: Bytes,
    charge: Charge,
}

impl Entries {
    fn set(&mut self, key: &str, value: Bytes, account: &Account) -> Result<(), KeyValueError> {
        if self.is_removed {
            return Err(KeyValueError::NoSuchStore);
        }
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

#[cfg(test)]
mod tests {
    use airssys_wasm_limits::ByteSize;

    use super::*;
    use crate::ENTRY_COST;

    /// Numbers that are the same in each run.
    struct Numbers(u64);

    impl Numbers {
        fn below(&mut self, end: u64) -> u64 {
            // Xorshift.
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0 % end
        }
    }

    /// What is expected of a bucket: the entries, with who pays for each.
    type Model = BTreeMap<String, (Vec<u8>, usize)>;

    const KEYS: [u64; 2] = [12, 8];
    const BYTES: [u64; 2] = [12 * (ENTRY_COST + 40), 8 * (ENTRY_COST + 8)];

    fn used(model: &Model, of: usize) -> (u64, u64) {
        let entries = model.iter().filter(|(_, (_, payer))| *payer == of);
        entries.fold((0, 0), |(bytes, keys), (key, (value, _))| {
            (bytes + ENTRY_COST + (key.len() + value.len()) as u64, keys + 1)
        })
    }

    /// The entry, unless it is beyond the quota.
    fn set(model: &mut Model, key: &str, value: Vec<u8>, of: usize) -> bool {
        let mut after = model.clone();
        after.insert(key.to_owned(), (value, of));
        let (bytes, keys) = used(&after, of);
        let fits = bytes <= BYTES[of] && keys <= KEYS[of];
        if fits {
            *model = after;
        }
        fits
    }

    async fn all_keys(bucket: &dyn Bucket, numbers: &mut Numbers) -> Vec<String> {
        let (mut all, mut cursor) = (Vec::new(), None);
        loop {
            let most = 1 + numbers.below(5) as usize;
            let mut page = bucket.list(cursor, most, 20).await.unwrap();
            assert!(page.keys.len() <= most);
            all.append(&mut page.keys);
            cursor = page.cursor;
            if cursor.is_none() {
                all.sort();
                return all;
            }
        }
    }

    #[tokio::test]
    async fn random_operations_do_what_a_map_with_a_quota_does() {
        let mut refused = 0;
        for seed in 1..=40 {
            let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed));
            let store = MemoryStore::new();
            let bucket = store.open("b").await.unwrap();
            let accounts = [0, 1].map(|of| Account::new(ByteSize(BYTES[of]), KEYS[of]));
            let mut model = Model::new();
            for _ in 0..400 {
                let key = format!("k{}", "x".repeat(numbers.below(20) as usize));
                let of = numbers.below(2) as usize;
                match numbers.below(10) {
                    0..4 => {
                        let value = vec![b'9'; numbers.below(60) as usize];
                        let done = bucket.set(&key, value.clone().into(), &accounts[of]).await;
                        assert_eq!(done.is_ok(), set(&mut model, &key, value, of));
                        refused += u32::from(done.is_err());
                    }
                    4..6 => {
                        bucket.delete(&key).await.unwrap();
                        model.remove(&key);
                    }
                    6..8 => {
                        let old = model
                            .get(&key)
                            .map_or(Ok(0), |(value, _)| str::from_utf8(value).unwrap().parse::<u64>().map_err(|_| ()));
                        let sum = old.ok().and_then(|old| old.checked_add(3));
                        let done = bucket.increment(&key, 3, &accounts[of]).await.ok();
                        let sum = sum.filter(|sum| set(&mut model, &key, sum.to_string().into(), of));
                        assert_eq!(done, sum);
                    }
                    8 => assert_eq!(all_keys(&*bucket, &mut numbers).await, model.keys().cloned().collect::<Vec<_>>()),
                    _ => {
                        let value = model.get(&key).map(|(value, _)| Bytes::from(value.clone()));
                        assert_eq!(bucket.exists(&key).await.unwrap(), value.is_some());
                        assert_eq!(bucket.get(&key).await.unwrap(), value);
                    }
                }
                for (of, account) in accounts.iter().enumerate() {
                    assert_eq!((account.bytes_used(), account.keys_used()), used(&model, of));
                }
            }
            drop(bucket);
            store.remove("b");
            assert!(accounts.iter().all(|account| account.bytes_used() == 0 && account.keys_used() == 0));
        }
        assert!(refused > 100, "{refused} times only was a quota reached");
    }

    #[tokio::test]
    async fn a_page_has_one_key_at_least() {
        let store = MemoryStore::new();
        let bucket = store.open("b").await.unwrap();
        for key in ["long", "longer"] {
            bucket.set(key, Bytes::new(), &Account::unlimited()).await.unwrap();
        }
        let first = bucket.list(None, 0, 0).await.unwrap();
        assert_eq!(first.keys, ["long"]);
        let second = bucket.list(first.cursor, 0, 0).await.unwrap();
        assert_eq!(second, KeyPage { keys: vec!["longer".to_owned()], cursor: None });
    }

    #[tokio::test]
    async fn increments_from_several_threads_are_not_lost() {
        let store = MemoryStore::new();
        let (bucket, account) = (store.open("b").await.unwrap(), Account::unlimited());
        let runtime = || tokio::runtime::Builder::new_current_thread().build().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    runtime().block_on(async {
                        for _ in 0..500 {
                            bucket.increment("n", 1, &account).await.unwrap();
                        }
                    });
                });
            }
        });
        assert_eq!(bucket.get("n").await.unwrap().unwrap(), "2000");
    }

    #[tokio::test]
    async fn a_removed_bucket_is_empty_when_it_is_opened_again() {
        let (store, account) = (MemoryStore::new(), Account::new(ByteSize::mib(1), 1));
        let old = store.open("b").await.unwrap();
        old.set("k", "v".into(), &account).await.unwrap();
        store.remove("b");
        let new = store.open("b").await.unwrap();
        assert!(!new.exists("k").await.unwrap());
        assert_eq!(account.keys_used(), 0);
        // A handle to the old one has no part in it, and holds nothing that would be freed with it.
        assert!(!old.exists("k").await.unwrap());
        assert!(matches!(old.set("k", "v".into(), &account).await, Err(KeyValueError::NoSuchStore)));
        assert!(matches!(old.increment("k", 1, &account).await, Err(KeyValueError::NoSuchStore)));
        new.set("k", "v".into(), &account).await.unwrap();
        assert_eq!(new.get("k").await.unwrap().unwrap(), "v");
    }
}
