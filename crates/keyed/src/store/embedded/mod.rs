//! A store on disk, in the process: fjall, with a group commit, bounded threads, and a way back from a full disk.

mod config;
mod journal;
mod readers;
mod rows;
mod shared;
mod sync;
#[cfg(test)]
mod tests;
mod versions;
mod writer;

use std::{
    collections::HashMap,
    fmt, io,
    sync::{Arc, mpsc as std_mpsc},
    thread,
    time::Instant,
};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{mpsc, oneshot};

pub use self::config::{OpenError, StoreConfig};
use self::{
    readers::{Pace, Readers},
    rows::{Rows, kind_of, name},
    shared::Shared,
    writer::{Change, Command, Write, Writer},
};
use super::{Durability, Saved, StateStore, StoreError, StoreFuture, Version};

/// Writes that wait for the writer. Who writes more waits for room.
const QUEUE: usize = 1024;

/// A store in a folder: nothing to install, no server. Its rows survive the process; with [`Durability::Power`] the loss of
/// power.
///
/// ```
/// use airssys_wasm_keyed::{Durability, FjallStore, StateStore, StoreConfig, Version};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("state");
/// let store = FjallStore::open(StoreConfig::new(path)).await?;
/// let version = store.save("cart", "4711", Version::NONE, "a book".into(), Durability::Power).await?;
/// assert_eq!(store.load("cart", "4711").await?.unwrap().version, version);
/// store.close().await;
/// # Ok(())
/// # }
/// ```
///
/// # Threads
///
/// One writes: what waits for it becomes one batch. One syncs: writes with [`Durability::Power`] that wait at the same time
/// share one sync, during which others are written and acknowledged. Some read ([`StoreConfig::readers`]), unless rows come
/// from memory: reads are then made where they are asked for, until one takes longer than 500 µs; after it, reads are left
/// to the threads for a second, and for up to 64 s if it is found again and again. fjall has two threads of its own.
///
/// # A full disk, and other failures
///
/// Writes fail with [`StoreError::Full`] or [`StoreError::Io`]; rows are still read. With each later write, at most every
/// 50 ms, the store sees whether there is room, and opens its files again if there is. A write that failed can be made
/// again with the same version: it may have been written, and is not fenced by that.
pub struct FjallStore {
    commands: mpsc::Sender<Command>,
    readers: Readers,
    pace: Pace,
    shared: Arc<Shared>,
}

impl fmt::Debug for FjallStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FjallStore").field("path", &self.shared.config.path).finish_non_exhaustive()
    }
}

impl FjallStore {
    /// Opens a store, or makes it. One that was not closed is recovered, which takes about a second for each 256 MiB of
    /// journals.
    ///
    /// # Errors
    ///
    /// [`OpenError`].
    pub async fn open(config: StoreConfig) -> Result<Self, OpenError> {
        let (to, opened) = oneshot::channel();
        let open = move || {
            // Nobody may wait any more.
            match Self::start(config) {
                Ok((store, write)) => {
                    _ = to.send(Ok(store));
                    write();
                }
                Err(error) => _ = to.send(Err(error)),
            }
        };
        thread::Builder::new().name("keyed-write".to_owned()).spawn(open).map_err(io)?;
        opened.await.unwrap_or_else(|_| Err(io(io::Error::other("its thread has panicked"))))
    }

    /// The store, and what its writer is to run.
    fn start(config: StoreConfig) -> Result<(Self, impl FnOnce()), OpenError> {
        let opened = open(&config).and_then(|rows| Ok((rows.last_version()?, rows)));
        let (last_version, rows) = opened.map_err(|error| match error {
            fjall::Error::Locked => OpenError::Locked,
            error => OpenError::Io { source: error.into() },
        })?;
        let readers = Readers::start(config.readers).map_err(io)?;
        let shared = Arc::new(Shared {
            config,
            rows: RwLock::new(Some(rows)),
            health: Mutex::default(),
            doubtful: Mutex::default(),
            versions: Mutex::default(),
            #[cfg(test)]
            faults: Mutex::default(),
            #[cfg(test)]
            watch: Mutex::default(),
        });
        let (commands, queue) = mpsc::channel(QUEUE);
        let (unsynced, written) = std_mpsc::channel();
        let syncing = thread::Builder::new().name("keyed-sync".to_owned()).spawn({
            let shared = Arc::clone(&shared);
            move || sync::run(&shared, &written)
        });
        let syncing = syncing.map_err(io)?;
        let writer = Writer {
            shared: Arc::clone(&shared),
            commands: queue,
            unsynced,
            last_version,
            made: HashMap::new(),
            counts: HashMap::new(),
            attempted: None,
        };
        let run = {
            let shared = Arc::clone(&shared);
            move || {
                let (closed, queue) = writer.run();
                // It ends with the writer's sender. Without it, what waits for a sync is told that the store is closed.
                _ = syncing.join();
                drop(shared.rows.write().take());
                drop((closed, queue));
            }
        };
        Ok((Self { commands, readers, pace: Pace::new(), shared }, run))
    }

    /// Carries out what was asked for, syncs, and closes the files. Later operations are [`StoreError::Closed`]. A store that
    /// is dropped does the same, some time.
    pub async fn close(&self) {
        let (done, closed) = oneshot::channel();
        if self.commands.send(Command::Close(done)).await.is_ok() {
            // Dropped, when it is done.
            _ = closed.await;
        } else {
            self.commands.closed().await;
        }
    }

    async fn write(
        &self,
        kind: &str,
        key: &str,
        follows: Version,
        change: Change,
        durability: Durability,
    ) -> Result<Version, StoreError> {
        let name = name(kind, key)?;
        let (done, written) = oneshot::channel();
        let write = Write { name, follows, change, durability, done };
        self.commands.send(Command::Write(write)).await.map_err(|_| StoreError::Closed)?;
        written.await.unwrap_or(Err(StoreError::Closed))
    }

    /// Reads one row, where it is asked for if rows come from memory.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Rows) -> Result<T, fjall::Error> + Send + 'static,
    ) -> Result<T, StoreError> {
        let begun = Instant::now();
        if self.pace.is_quick(begun)
            && let Some(rows) = self.shared.rows.try_read()
        {
            let Some(rows) = &*rows else { return Err(self.shared.unreadable()) };
            let got = read(rows).map_err(StoreError::io);
            self.pace.note(begun, Instant::now());
            return got;
        }
        self.read_later(|rows| read(rows).map_err(StoreError::io)).await
    }

    async fn read_later<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Rows) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (done, got) = oneshot::channel();
        let shared = Arc::clone(&self.shared);
        self.readers.read(move || {
            if done.is_closed() {
                return;
            }
            let rows = shared.rows.read();
            let got = rows.as_ref().map_or_else(|| Err(shared.unreadable()), read);
            // Nobody may wait any more.
            _ = done.send(got);
        });
        got.await.unwrap_or(Err(StoreError::Closed))
    }
}

/// Opens the files, with another journal if a sync has failed in the process before.
fn open(config: &StoreConfig) -> Result<Rows, fjall::Error> {
    let rows = Rows::open(config)?;
    if !journal::is_distrusted(&config.path) {
        return Ok(rows);
    }
    // Only now is it known that no other process has them.
    drop(rows);
    journal::begin(&config.path)?;
    let rows = Rows::open(config)?;
    rows.until_in_tables()?;
    journal::trust(&config.path);
    Ok(rows)
}

fn io(source: io::Error) -> OpenError {
    OpenError::Io { source: source.into() }
}

impl StateStore for FjallStore {
    fn load<'a>(&'a self, kind: &'a str, key: &'a str) -> StoreFuture<'a, Option<Saved>> {
        Box::pin(async move {
            let name = name(kind, key)?;
            let shared = Arc::clone(&self.shared);
            self.read(move |rows| {
                let before = shared.versions.lock().age();
                let row = rows.row(&name)?;
                let version = row.as_ref().map_or(Version::NONE, |row| row.version);
                shared.versions.lock().read(name, version, before);
                Ok(row)
            })
            .await
        })
    }

    fn save<'a>(
        &'a self,
        kind: &'a str,
        key: &'a str,
        follows: Version,
        state: Bytes,
        durability: Durability,
    ) -> StoreFuture<'a, Version> {
        Box::pin(async move {
            let (size, allowed) = (state.len() as u64, self.shared.config.max_state.as_u64());
            if size > allowed {
                return Err(StoreError::TooLarge { size, allowed });
            }
            self.write(kind, key, follows, Change::Save(state), durability).await
        })
    }

    fn remove<'a>(
        &'a self,
        kind: &'a str,
        key: &'a str,
        follows: Version,
        durability: Durability,
    ) -> StoreFuture<'a, ()> {
        Box::pin(async move { self.write(kind, key, follows, Change::Remove, durability).await.map(|_| ()) })
    }

    fn count<'a>(&'a self, kind: &'a str) -> StoreFuture<'a, u64> {
        Box::pin(async move {
            let name = name(kind, "")?;
            self.read(move |rows| rows.count(kind_of(&name))).await
        })
    }

    fn keys<'a>(&'a self, kind: &'a str, after: Option<&'a str>, limit: usize) -> StoreFuture<'a, Vec<String>> {
        Box::pin(async move {
            let name = name(kind, after.unwrap_or_default())?;
            let inclusive = after.is_none();
            self.read_later(move |rows| rows.keys(&name, inclusive, limit)).await
        })
    }
}
