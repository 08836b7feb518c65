//! The thread that syncs: writes that wait for it at the same time share one sync of the journal.
//!
//! The journal is synced through a file of our own. fjall's own `persist` syncs under the lock that writes take, so that
//! a sync for one kind would stop the writes of all. What is relied on, and tested:
//!
//! - journals are the files `N.jnl` in the store's folder, and the one with the largest number is written to;
//! - a journal is synced by fjall before the next one is made.

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
        let synced = journal.sync(|_path| {
            #[cfg(test)]
            if let Some(watch) = &*shared.watch.lock() {
                return watch(_path);
            }
            Ok(())
        });
        if let Err(error) = &synced {
            shared.breaks(Cause::of_io(error));
        }
        for Unsynced { name, attempt, done } in unsynced {
            // Nobody may wait any more.
            _ = done.send(match &synced {
                Ok(()) => Ok(attempt.made),
                Err(error) => {
                    shared.doubt(name, attempt);
                    Err(Cause::of_io(error).error())
                }
            });
        }
    }
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
            let newest = self.newest()?;
            let path = self.folder.join(format!("{newest}.jnl"));
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

    fn newest(&self) -> io::Result<u64> {
        let mut newest = None;
        for file in fs::read_dir(&self.folder)? {
            let name = file?.file_name();
            let number = name.to_str().and_then(|name| name.strip_suffix(".jnl")?.parse().ok());
            newest = newest.max(number);
        }
        newest.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the store has no journal"))
    }
}
