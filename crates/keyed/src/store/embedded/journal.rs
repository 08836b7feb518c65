//! The files that fjall writes first, synced through one of our own. fjall's own `persist` syncs under the lock that writes
//! take, so that a sync for one kind would stop the writes of all. What is relied on, and tested:
//!
//! - journals are the files `N.jnl` in the store's folder, and the one with the largest number is written to;
//! - a journal is synced by fjall before the next one is made;
//! - one that is not the newest when a store is opened is written to no more, and what it holds becomes tables.

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
};

/// There is this file after a failed sync, until the store was opened again with another journal: a process that was
/// killed in between has left the same journal to the next. It need not survive the loss of power, after which it is known
/// what the disk has.
const DISTRUSTED: &str = "sync-failed";

/// Notes, as well as can be, that journals may have a hole.
pub(super) fn distrust(folder: &Path) {
    if let Err(error) = File::create(folder.join(DISTRUSTED)) {
        tracing::warn!("it is not noted that a sync failed: {error}");
    }
}

pub(super) fn is_distrusted(folder: &Path) -> bool {
    folder.join(DISTRUSTED).exists()
}

/// What they hold is in tables.
pub(super) fn trust(folder: &Path) {
    // If it stays, they are made tables of once more.
    _ = fs::remove_file(folder.join(DISTRUSTED));
}

/// Makes an empty journal, with which fjall goes on when it is opened next: what the others hold becomes tables then.
pub(super) fn begin(folder: &Path) -> io::Result<()> {
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
