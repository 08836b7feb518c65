//! Rows in fjall: their names, their versions, how many a kind has.

use std::{thread, time::Duration};

use airssys_wasm_limits::ByteSize;
use bytes::Bytes;
use fjall::{Database, Error, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch, PersistMode};

use super::config::StoreConfig;
use crate::store::{Saved, StoreError, Version};

/// Bytes that a name may have, which fjall numbers with 16 bits.
const LONGEST_NAME: usize = u16::MAX as usize;

/// The name of a row: the length of its kind, so that no two pairs of kind and key have the same, its kind and its key.
pub(super) type Name = Box<[u8]>;

/// A row cannot have this name.
#[derive(Debug, thiserror::Error)]
#[error("the kind and the key of a row have {0} bytes, and may have {max}", max = LONGEST_NAME - 2)]
struct NameTooLong(usize);

pub(super) fn name(kind: &str, key: &str) -> Result<Name, StoreError> {
    let bytes = kind.len() + key.len();
    if bytes + 2 > LONGEST_NAME {
        return Err(StoreError::io(NameTooLong(bytes)));
    }
    let mut name = Vec::with_capacity(bytes + 2);
    name.extend_from_slice(&(kind.len() as u16).to_be_bytes());
    name.extend_from_slice(kind.as_bytes());
    name.extend_from_slice(key.as_bytes());
    Ok(name.into())
}

/// The kind's part of a name, with its length.
pub(super) fn kind_of(name: &[u8]) -> &[u8] {
    match name {
        [high, low, ..] => &name[..2 + usize::from(u16::from_be_bytes([*high, *low]))],
        _ => name,
    }
}

/// The last version that any row has got, among the counts: no kind is as long.
const LAST_VERSION: &[u8] = &[0xff, 0xff];

/// An open database.
pub(super) struct Rows {
    db: Database,
    states: Keyspace,
    /// By kind how many rows there are, and [`LAST_VERSION`].
    counts: Keyspace,
}

impl Rows {
    pub(super) fn open(config: &StoreConfig) -> Result<Self, Error> {
        let db = Database::builder(&config.path)
            .cache_size(config.cache.as_u64())
            .max_journaling_size(config.journals.max(ByteSize::mib(64)).as_u64())
            // One that rotates what is full must not wait for one that writes it to disk.
            .worker_threads(2)
            .open()?;
        let states = db.keyspace("states", || KeyspaceCreateOptions::default().max_memtable_size(32 << 20))?;
        let counts = db.keyspace("counts", || KeyspaceCreateOptions::default().max_memtable_size(1 << 20))?;
        Ok(Self { db, states, counts })
    }

    pub(super) fn row(&self, name: &[u8]) -> Result<Option<Saved>, Error> {
        let Some(row) = self.states.get(name)? else { return Ok(None) };
        let (version, state) = split(&row)?;
        // Copied, since it is a part of a block of rows, all of which it would keep in memory.
        Ok(Some(Saved { version, state: Bytes::copy_from_slice(state) }))
    }

    pub(super) fn version(&self, name: &[u8]) -> Result<Version, Error> {
        let row = self.states.get(name)?;
        row.map_or(Ok(Version::NONE), |row| split(&row).map(|(version, _)| version))
    }

    pub(super) fn last_version(&self) -> Result<u64, Error> {
        number(&self.counts, LAST_VERSION)
    }

    /// `kind` is as in [`kind_of`].
    pub(super) fn count(&self, kind: &[u8]) -> Result<u64, Error> {
        number(&self.counts, kind)
    }

    /// Keys after `after`, which is a name, of the same kind.
    pub(super) fn keys(&self, after: &[u8], inclusive: bool, limit: usize) -> Result<Vec<String>, StoreError> {
        let kind = kind_of(after);
        let mut keys = Vec::new();
        for row in self.states.range(after..) {
            if keys.len() >= limit {
                break;
            }
            let name = row.key().map_err(StoreError::io)?;
            if !inclusive && *name == *after {
                continue;
            }
            let Some(key) = name.strip_prefix(kind) else { break };
            keys.push(str::from_utf8(key).map_err(StoreError::io)?.to_owned());
        }
        Ok(keys)
    }

    pub(super) fn batch(&self, room: usize) -> Batch<'_> {
        let batch = OwnedWriteBatch::with_capacity(self.db.clone(), room).durability(Some(PersistMode::Buffer));
        Batch { rows: self, batch, is_empty: true }
    }

    /// Whether so many full tables wait to be written to disk that more should not be written.
    pub(super) fn is_behind(&self) -> bool {
        self.db.outstanding_flushes() > 2
    }

    /// Waits until what was read from journals that are not written to any more is in tables, and those on the disk.
    pub(super) fn until_in_tables(&self) -> Result<(), Error> {
        while self.states.sealed_memtable_count() + self.counts.sealed_memtable_count() > 0 {
            self.check()?;
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Fails if it takes no more writes.
    pub(super) fn check(&self) -> Result<(), Error> {
        self.db.persist(PersistMode::Buffer)
    }
}

/// Writes that are carried out together or not at all.
pub(super) struct Batch<'a> {
    rows: &'a Rows,
    batch: OwnedWriteBatch,
    is_empty: bool,
}

impl Batch<'_> {
    pub(super) fn save(&mut self, name: &[u8], version: Version, state: &[u8]) {
        let mut row = Vec::with_capacity(8 + state.len());
        row.extend_from_slice(&version.number().to_be_bytes());
        row.extend_from_slice(state);
        self.batch.insert(&self.rows.states, name, row);
        self.is_empty = false;
    }

    pub(super) fn remove(&mut self, name: &[u8]) {
        self.batch.remove(&self.rows.states, name);
        self.is_empty = false;
    }

    pub(super) fn count(&mut self, kind: &[u8], rows: u64) {
        self.batch.insert(&self.rows.counts, kind, rows.to_be_bytes());
    }

    /// The operating system has them when this returns.
    pub(super) fn commit(mut self, last_version: u64) -> Result<(), Error> {
        if self.is_empty {
            return Ok(());
        }
        self.batch.insert(&self.rows.counts, LAST_VERSION, last_version.to_be_bytes());
        self.batch.commit()
    }
}

/// A row was not written by this store.
#[derive(Debug, thiserror::Error)]
#[error("a row is too short to be a state")]
struct Malformed;

fn malformed() -> Error {
    Error::Io(std::io::Error::new(std::io::ErrorKind::InvalidData, Malformed))
}

fn split(row: &[u8]) -> Result<(Version, &[u8]), Error> {
    let (version, state) = row.split_first_chunk().ok_or_else(malformed)?;
    Ok((Version::new(u64::from_be_bytes(*version)), state))
}

fn number(counts: &Keyspace, name: &[u8]) -> Result<u64, Error> {
    match counts.get(name)? {
        Some(number) => (&*number).try_into().map(u64::from_be_bytes).map_err(|_| malformed()),
        None => Ok(0),
    }
}
