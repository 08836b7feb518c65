//! The thread that syncs: writes that wait for it at the same time share one sync of the journal.
//!
//! A sync that failed is not made again: the system may take for written what the disk does not have, so that the next one
//! would succeed. What waits is refused, and the store goes on with another journal once its rows are in tables.

use std::sync::{Arc, mpsc};

use tokio::sync::oneshot;

use super::{
    journal::Journal,
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
