//! What a component is granted of a store: nothing, unless it is named here.

use std::{collections::BTreeMap, sync::Arc};

use airssys_wasm_limits::ByteSize;
use serde::{Deserialize, Serialize, Serializer};

use super::{Account, Bucket, KeyValueError, KeyValueStore};

/// Grants for `wasi:keyvalue`: the `[keyvalue]` table of a `Component.toml`. The default grants nothing.
///
/// ```toml
/// [keyvalue]
/// buckets = { "" = "carts", sessions = "shop-sessions" }
/// bytes = "1MiB"
/// keys = 1000
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct KeyValueGrants {
    /// The buckets that it may open: the identifier by which the guest opens one, and the name of the store's bucket. Many
    /// guests open `""`. Any other identifier is `no-such-store`.
    pub buckets: BTreeMap<String, String>,
    /// Bytes that its entries may take in all buckets together: their keys, their values, and
    /// [`ENTRY_COST`](crate::ENTRY_COST) for each. With zero it can read and delete. Default: 4 MiB.
    #[serde(serialize_with = "exact")]
    pub bytes: ByteSize,
    /// The number of its entries in all buckets together. Default: 10,000.
    pub keys: u64,
}

impl Default for KeyValueGrants {
    fn default() -> Self {
        Self { buckets: BTreeMap::new(), bytes: ByteSize::mib(4), keys: 10_000 }
    }
}

impl KeyValueGrants {
    pub(crate) const KEYS: &[&str] = &["buckets", "bytes", "keys"];
}

/// To the byte: what people read of a size is rounded.
fn exact<S: Serializer>(size: &ByteSize, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{} B", size.as_u64()))
}

/// A store with what a component is granted of it.
#[derive(Debug, Clone)]
pub(crate) struct KeyValueAccess {
    store: Arc<dyn KeyValueStore>,
    buckets: BTreeMap<String, String>,
    account: Account,
}

impl KeyValueAccess {
    pub(crate) fn new(store: Arc<dyn KeyValueStore>, grants: KeyValueGrants) -> Self {
        let KeyValueGrants { buckets, bytes, keys } = grants;
        Self { store, buckets, account: Account::new(bytes, keys) }
    }

    pub(crate) fn counting_with(&self, account: &Account) -> Self {
        let mut access = self.clone();
        access.account = access.account.counting_with(account);
        access
    }

    pub(crate) fn account(&self) -> &Account {
        &self.account
    }

    pub(crate) async fn open(&self, identifier: &str) -> Result<Arc<dyn Bucket>, KeyValueError> {
        let name = self.buckets.get(identifier).ok_or(KeyValueError::NoSuchStore)?;
        self.store.open(name).await
    }
}
