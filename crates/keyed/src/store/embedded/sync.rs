//! The thread that syncs: writes that wait for it at the same time share one sync of the journal.
//!
//! The journal is synced through a file of our own. fjall's own `persist` syncs under the lock that writes take, so that
//! a sync for one kind would stop the writes of all. What is relied on, and tested:
//!
//! - journals are the files `N.jnl` in the store's folder, and the one with the largest number is written to;
//! - a journal is synced by fjall before the next one is made.
//!
//! A sync that failed is not made again: the system may take for written what the disk does not have, so that the next one
//! would succeed. What waits is refused, and the store goes on with another journal once its rows are in tables.

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
};

use tokio::sync::oneshot;

use super::{
    rows::Name,
    shared::{Attempt, Cause, Shared},
};
use crate::store::{StoreError, Version};

/// A write that the operating system has, and the disk may not have.
pub(super) struct Unsynced {
    /// In which it was written.
    pub(super) generation: u64,
    pub(super) name: Name,
    pub(super) attempt: Attempt,
    pub(super) done: oneshot::Sender<Result<Version, StoreError>>,
}

/// Runs until there is nobody left who writes.
pub(super) fn run(shared: &Arc<Shared>, written: &mpsc::Receiver<Vec<Unsynced>>) {
    let mut journal = Journal::new(&shared.config.path);
    while let Ok(mut unsynced) = written.recv() {
        while let Ok(more) = written.try_recv() {
            unsynced.extend(more);
        }
        let generation = shared.health.lock().generation;
        let (unsynced, late) = unsynced.into_iter().partition::<Vec<_>, _>(|write| write.generation == generation);
        refuse(shared, late);
        if unsynced.is_empty() {
            continue;
        }
        let synced = journal.sync(|_path| {
            #[cfg(test)]
            if let Some(watch) = &*shared.watch.lock() {
                return watch(_path);
            }
            Ok(())
        });
        if let Err(error) = &synced {
            shared.sync_failed(Cause::of_io(error));
        }
        // If the store was being opened again meanwhile, another journal than theirs may have been synced.
        if shared.health.lock().generation == generation {
            for Unsynced { attempt, done, .. } in unsynced {
                // Nobody may wait any more.
                _ = done.send(Ok(attempt.made));
            }
        } else {
            refuse(shared, unsynced);
        }
    }
}

/// They may have been written, and are not acknowledged.
fn refuse(shared: &Shared, unsynced: Vec<Unsynced>) {
    if unsynced.is_empty() {
        return;
    }
    let cause = shared.health.lock().last_cause();
    for Unsynced { name, attempt, done, .. } in unsynced {
        shared.doubt(name, attempt);
        // Nobody may wait any more.
        _ = done.send(Err(cause.error()));
    }
}

/// Makes an empty journal, with which fjall goes on when it is opened next: what the others hold becomes tables then.
pub(super) fn begin_journal(folder: &Path) -> io::Result<()> {
    let newest = newest(folder)?;
    // Left by an attempt that failed.
    if fs::metadata(path(folder, newest))?.len() == 0 {
        return Ok(());
    }
    File::create_new(path(folder, newest + 1))?;
    File::open(folder)?.sync_all()
}

fn path(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("{number}.jnl"))
}

/// The number of the journal that is written to.
fn newest(folder: &Path) -> io::Result<u64> {
    let mut newest = None;
    for file in fs::read_dir(folder)? {
        let name = file?.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(".jnl")?.parse().ok());
        newest = newest.max(number);
    }
    newest.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the store has no journal"))
}

/// The file that fjall writes first.
pub(super) struct Journal {
    folder: PathBuf,
    open: Option<(u64, File)>,
}

impl Journal {
    pub(super) fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), open: None }
    }

    /// Whatever was written before this is called is on the disk when it returns. `before` is told which file is
    /// about to be synced.
    pub(super) fn sync(&mut self, before: impl Fn(&Path) -> io::Result<()>) -> io::Result<()> {
        loop {
            let newest = newest(&self.folder)?;
            let path = path(&self.folder, newest);
            let file = match self.open.take() {
                Some((number, file)) if number == newest => file,
                _ => match OpenOptions::new().write(true).open(&path) {
                    // Replaced by another, and synced before that.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    file => file?,
                },
            };
            before(&path)?;
            file.sync_data()?;
            self.open = Some((newest, file));
            return Ok(());
        }
    }
}
