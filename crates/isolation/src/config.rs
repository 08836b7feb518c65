//! The configuration of a component, for `wasi:config`.

use std::{collections::BTreeMap, sync::Arc};

/// Entries sorted by key. Cheap to clone; all clones are one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Config(Arc<[(Arc<str>, Arc<str>)]>);

impl Config {
    /// These entries, and those that were there under other keys.
    pub(crate) fn with<K: Into<String>, V: Into<String>>(&self, entries: impl IntoIterator<Item = (K, V)>) -> Self {
        let mut all: BTreeMap<Arc<str>, Arc<str>> = self.0.iter().cloned().collect();
        all.extend(entries.into_iter().map(|(key, value)| (key.into().into(), value.into().into())));
        Self(all.into_iter().collect())
    }

    pub(crate) fn get(&self, key: &str) -> Option<Arc<str>> {
        let found = self.0.binary_search_by(|(known, _)| (**known).cmp(key)).ok()?;
        Some(Arc::clone(&self.0[found].1))
    }

    pub(crate) fn entries(&self) -> &Arc<[(Arc<str>, Arc<str>)]> {
        &self.0
    }

    /// Bytes of all keys and values.
    pub(crate) fn bytes(&self) -> u64 {
        self.0.iter().map(|(key, value)| (key.len() + value.len()) as u64).sum()
    }
}
