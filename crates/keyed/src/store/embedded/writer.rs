//! The thread that writes: compare-and-set, in batches, and opening the store again after a failure.

use std::{
    collections::HashMap,
    fs, io,
    io::Write as _,
    path::Path,
    sync::{Arc, mpsc::Sender},
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use fjall::Error;
use tokio::sync::{mpsc::Receiver, oneshot};

use super::{
    journal,
    rows::{Batch, Name, Rows, kind_of},
    shared::{Attempt, Cause, Shared, closed},
    sync::Unsynced,
};
use crate::store::{Durability, StoreError, Version};

/// What is asked of the writer.
pub(super) enum Command {
    Write(Write),
    /// Carry out what was asked for before, and end. Dropped when all is done.
    Close(oneshot::Sender<()>),
}

pub(super) struct Write {
    pub(super) name: Name,
    pub(super) follows: Version,
    pub(super) change: Change,
    pub(super) durability: Durability,
    pub(super) done: Done,
}

pub(super) enum Change {
    Save(Bytes),
    Remove,
}

type Done = oneshot::Sender<Result<Version, StoreError>>;

/// Writes that are carried out together, at the most, and bytes of theirs after which there are no more.
const BATCH: usize = 256;
const BATCH_BYTES: usize = 8 << 20;

/// The least time between two attempts to open a store again.
const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(50);

/// Bytes for which there must be room before it is opened again.
const ROOM: usize = 1 << 20;

pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) commands: Receiver<Command>,
    pub(super) unsynced: Sender<Vec<Unsynced>>,
    /// The last version that was given to a row, written or not.
    pub(super) last_version: u64,
    /// The versions of rows that the batch at hand makes.
    pub(super) made: HashMap<Name, Version>,
    /// By kind, as [`kind_of`] gives it.
    pub(super) counts: HashMap<Box<[u8]>, u64>,
    pub(super) attempted: Option<Instant>,
}

impl Writer {
    /// Runs until nobody is left who writes, or it is told to close. Gives who waits for that, and the queue: as long as that is
    /// there, a store that is closed a second time waits as well.
    pub(super) fn run(mut self) -> (Option<oneshot::Sender<()>>, Receiver<Command>) {
        let mut closed = None;
        while closed.is_none()
            && let Some(first) = self.commands.blocking_recv()
        {
            let (mut writes, mut bytes) = (Vec::new(), 0);
            let mut next = Some(first);
            while let Some(command) = next.take() {
                match command {
                    Command::Write(write) => {
                        bytes += write.size();
                        writes.push(write);
                    }
                    Command::Close(done) => {
                        closed = Some(done);
                        break;
                    }
                }
                if writes.len() < BATCH && bytes < BATCH_BYTES {
                    next = self.commands.try_recv().ok();
                }
            }
            if !writes.is_empty() {
                self.carry_out(writes, bytes);
            }
        }
        (closed, self.commands)
    }

    fn carry_out(&mut self, writes: Vec<Write>, bytes: usize) {
        let generation = match self.recover(bytes) {
            Ok(generation) => generation,
            Err(cause) => return writes.into_iter().for_each(|write| write.fails(&cause)),
        };
        let shared = Arc::clone(&self.shared);
        let rows = shared.rows.read();
        let Some(rows) = &*rows else {
            let cause = self.cause();
            return writes.into_iter().for_each(|write| write.fails(&cause));
        };
        if let Err(error) = until_not_behind(rows) {
            let cause = self.breaks(&error);
            return writes.into_iter().for_each(|write| write.fails(&cause));
        }
        let mut batch = rows.batch(writes.len() + 2);
        let mut accepted = Vec::with_capacity(writes.len());
        let mut refused = Vec::new();
        for write in writes {
            match self.add(rows, &mut batch, &write) {
                Ok(made) => accepted.push((write, made)),
                // Told only when what it is refused for is written.
                Err(error) => refused.push((write, error)),
            }
        }
        let committed = match accepted.as_slice() {
            [] => Ok(()),
            _ => self.commit(batch),
        };
        match committed {
            Ok(()) => {
                // Only now: who reads a row before has the version before, and does not know better afterwards.
                let mut versions = self.shared.versions.lock();
                self.made.drain().for_each(|(name, made)| versions.set(name, made));
                drop(versions);
                for (write, error) in refused {
                    _ = write.done.send(Err(error));
                }
                self.acknowledge(accepted, generation);
            }
            Err(error) => {
                let cause = self.breaks(&error);
                for (write, made) in accepted {
                    self.shared.doubt(write.name.clone(), Attempt { follows: write.follows, made });
                    write.fails(&cause);
                }
                refused.into_iter().for_each(|(write, _)| write.fails(&cause));
            }
        }
    }

    /// Compares, and adds to the batch. Gives the version that the row is to have.
    fn add(&mut self, rows: &Rows, batch: &mut Batch<'_>, write: &Write) -> Result<Version, StoreError> {
        let Write { name, follows, change, .. } = write;
        let known = self.made.get(name).copied().or_else(|| self.shared.versions.lock().get(name));
        let found = match known {
            Some(version) => version,
            None => rows.version(name).map_err(|error| Cause::of(&error).error())?,
        };
        let own = Attempt { follows: *follows, made: found };
        let is_own = || self.shared.doubtful.lock().get(name).is_some_and(|attempts| attempts.contains(&own));
        if found != *follows && !is_own() {
            return Err(StoreError::Fenced { found });
        }
        let made = match change {
            Change::Save(_) => Version::new(self.last_version + 1),
            Change::Remove => Version::NONE,
        };
        // First what may fail: nothing is in the batch then.
        if (found == Version::NONE) != (made == Version::NONE) {
            let kind = kind_of(name);
            let count = match self.counts.get(kind) {
                Some(count) => *count,
                None => rows.count(kind).map_err(|error| Cause::of(&error).error())?,
            };
            let count = if made == Version::NONE { count.saturating_sub(1) } else { count + 1 };
            batch.count(kind, count);
            self.counts.insert(kind.into(), count);
        }
        match change {
            Change::Save(state) => {
                self.last_version += 1;
                batch.save(name, made, state);
            }
            // A row that is not there costs nothing.
            Change::Remove if found == Version::NONE => {}
            Change::Remove => batch.remove(name),
        }
        self.made.insert(name.clone(), made);
        Ok(made)
    }

    fn commit(&mut self, batch: Batch<'_>) -> Result<(), Error> {
        #[cfg(test)]
        if let Some(error) = self.shared.faults.lock().pop_front() {
            return Err(error.into());
        }
        batch.commit(self.last_version)
    }

    fn acknowledge(&mut self, written: Vec<(Write, Version)>, generation: u64) {
        let mut unsynced = Vec::new();
        {
            let mut doubtful = self.shared.doubtful.lock();
            if !doubtful.is_empty() {
                for (write, _) in &written {
                    doubtful.remove(&write.name);
                }
            }
        }
        for (Write { name, follows, durability, done, .. }, made) in written {
            match durability {
                Durability::Power => {
                    unsynced.push(Unsynced { generation, name, attempt: Attempt { follows, made }, done });
                }
                // Nobody may wait any more.
                Durability::Process => _ = done.send(Ok(made)),
            }
        }
        if !unsynced.is_empty() {
            // The thread ends after this one.
            _ = self.unsynced.send(unsynced);
        }
    }

    /// Notes that the store takes no more writes, and what is to be told to those who write.
    fn breaks(&mut self, error: &Error) -> Cause {
        let mut cause = Cause::of(error);
        // Said of a failure in another thread, long ago: why, is found out here.
        if matches!(error, Error::Poisoned) {
            if let Err(error) = has_room(&self.shared.config.path, ROOM) {
                cause = Cause::of_io(&error);
            }
            // Perhaps a sync: fjall's threads sync the journal as well.
            self.shared.sync_failed(cause.clone());
        } else {
            self.shared.breaks(cause.clone());
        }
        self.forget();
        cause
    }

    fn cause(&self) -> Cause {
        self.shared.health.lock().broken().cloned().unwrap_or_else(closed)
    }

    /// What is known of rows may be wrong.
    fn forget(&mut self) {
        self.made.clear();
        self.shared.versions.lock().forget();
        self.counts.clear();
    }

    /// Opens the store again, if it takes no more writes. Until there is room, rows can still be read.
    ///
    /// It goes on with another journal, and only when what the others hold is in tables: after a failed sync there may be a
    /// hole in them, behind which nothing would be found after a loss of power.
    ///
    /// Gives the generation in which writes are made now: should a sync fail after this, they are of an earlier one.
    fn recover(&mut self, bytes: usize) -> Result<u64, Cause> {
        let cause = {
            let health = self.shared.health.lock();
            let Some(cause) = health.broken() else { return Ok(health.generation) };
            cause.clone()
        };
        let now = Instant::now();
        if self.attempted.is_some_and(|attempted| now - attempted < BETWEEN_ATTEMPTS) {
            return Err(cause);
        }
        self.attempted = Some(now);
        let config = &self.shared.config;
        has_room(&config.path, ROOM.max(2 * bytes)).map_err(|error| Cause::of_io(&error))?;
        let generation = self.shared.health.lock().opens();
        {
            let mut rows = self.shared.rows.write();
            // The new one finds the folder locked until the old one is gone.
            drop(rows.take());
            journal::begin(&config.path).map_err(|error| Cause::of_io(&error))?;
            let again = Rows::open(config).and_then(|rows| Ok((rows.last_version()?, rows)));
            let (last_version, again) = again.map_err(|error| Cause::of(&error))?;
            // Versions that were given and not written are not given again.
            self.last_version = self.last_version.max(last_version);
            let mut doubtful = self.shared.doubtful.lock();
            // No other becomes what is there: the old files are closed.
            doubtful.retain(|name, attempts| {
                if let Ok(found) = again.version(name) {
                    attempts.retain(|attempt| attempt.made == found);
                }
                !attempts.is_empty()
            });
            *rows = Some(again);
        }
        self.forget();
        self.shared.rows.read().as_ref().map_or(Ok(()), Rows::until_in_tables).map_err(|_| cause.clone())?;
        {
            let mut health = self.shared.health.lock();
            if !health.opened(generation) {
                return Err(cause);
            }
            journal::trust(&self.shared.config.path);
        }
        self.attempted = None;
        tracing::info!(path = %self.shared.config.path.display(), "the store was opened again");
        Ok(generation)
    }
}

impl Write {
    fn size(&self) -> usize {
        let state = match &self.change {
            Change::Save(state) => state.len(),
            Change::Remove => 0,
        };
        self.name.len() + state
    }

    fn fails(self, cause: &Cause) {
        // Nobody may wait any more.
        _ = self.done.send(Err(cause.error()));
    }
}

/// Waits while fjall has too many tables to write. It waits itself otherwise, for ever if the threads that write them
/// have failed.
fn until_not_behind(rows: &Rows) -> Result<(), Error> {
    while rows.is_behind() {
        rows.check()?;
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Whether so many bytes can be written.
fn has_room(folder: &Path, bytes: usize) -> io::Result<()> {
    let path = folder.join("room.tmp");
    let written = fs::File::create(&path).and_then(|mut file| {
        let zeros = [0; 64 << 10];
        for _ in 0..bytes.div_ceil(zeros.len()) {
            file.write_all(&zeros)?;
        }
        // Where room is found only then.
        file.sync_data()
    });
    let removed = fs::remove_file(&path);
    written.and(removed)
}
