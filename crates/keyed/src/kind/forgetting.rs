//! Keys that are forgotten while their actors are not in memory: one that is brought there waits until that is over.

use std::collections::HashSet;

use parking_lot::Mutex;
use tokio::sync::Notify;

#[derive(Default)]
pub(crate) struct Forgetting {
    keys: Mutex<HashSet<Box<str>>>,
    /// One of them is forgotten, or not.
    over: Notify,
}

impl Forgetting {
    /// Begins to forget a key, once nobody else does.
    pub(crate) async fn begin(&self, key: &str) -> Turn<'_> {
        loop {
            let over = self.over.notified();
            if self.keys.lock().insert(key.into()) {
                return Turn { of: self, key: key.into() };
            }
            over.await;
        }
    }

    /// Waits until nobody forgets it.
    pub(crate) async fn over(&self, key: &str) {
        loop {
            // Before the look, so that no end is missed.
            let over = self.over.notified();
            if !self.keys.lock().contains(key) {
                return;
            }
            over.await;
        }
    }
}

/// A key is being forgotten.
pub(crate) struct Turn<'a> {
    of: &'a Forgetting,
    key: Box<str>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.of.keys.lock().remove(&self.key);
        self.of.over.notify_waiters();
    }
}
