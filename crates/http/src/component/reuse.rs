//! Sandboxes between two requests.

use airssys_wasm_limits::later;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use crate::limits::Reuse;

/// What is used for one request after another, and how long it has been.
pub(super) struct Kept<T> {
    pub(super) value: T,
    pub(super) requests: u32,
    pub(super) born: Instant,
}

/// Those that wait for a request. The one that was used last is used first, so that the others grow old.
pub(super) struct Idle<T> {
    reuse: Reuse,
    state: Mutex<State<T>>,
}

struct State<T> {
    kept: Vec<Kept<T>>,
    /// When a task sees to the oldest.
    due: Option<Instant>,
    /// Tells that task that it is due earlier.
    earlier: Arc<Notify>,
}

impl<T: Send + 'static> Idle<T> {
    pub(super) fn new(reuse: Reuse) -> Arc<Self> {
        Arc::new(Self { reuse, state: Mutex::new(State { kept: Vec::new(), due: None, earlier: Arc::default() }) })
    }

    pub(super) fn take(&self, now: Instant) -> Option<Kept<T>> {
        let mut state = self.state.lock();
        while let Some(kept) = state.kept.pop() {
            if now.saturating_duration_since(kept.born) < self.reuse.age {
                return Some(kept);
            }
            // Outside of the lock it would be nicer, but there is one at most, or a sweep is due.
            drop(kept);
        }
        None
    }

    /// Keeps it for the next request, if it may be used for one more.
    pub(super) fn give(self: &Arc<Self>, mut kept: Kept<T>, now: Instant) {
        kept.requests += 1;
        if kept.requests >= self.reuse.requests || now.saturating_duration_since(kept.born) >= self.reuse.age {
            return;
        }
        let due = later(kept.born, self.reuse.age);
        let mut state = self.state.lock();
        state.kept.push(kept);
        match state.due {
            Some(others) if others <= due => {}
            Some(_) => {
                state.due = Some(due);
                state.earlier.notify_one();
            }
            None => {
                state.due = Some(due);
                tokio::spawn(sweep(Arc::downgrade(self), due, Arc::clone(&state.earlier)));
            }
        }
    }

    /// Drops what is too old, and says when the next is.
    fn expire(&self, now: Instant) -> Option<Instant> {
        let mut state = self.state.lock();
        let (old, kept) = std::mem::take(&mut state.kept)
            .into_iter()
            .partition(|kept| now.saturating_duration_since(kept.born) >= self.reuse.age);
        state.kept = kept;
        state.due = state.kept.iter().map(|kept| later(kept.born, self.reuse.age)).min();
        let next = state.due;
        drop(state);
        // Sandboxes take a while to drop.
        let _: Vec<Kept<T>> = old;
        next
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.state.lock().kept.len()
    }
}

async fn sweep<T: Send + 'static>(idle: Weak<Idle<T>>, mut due: Instant, earlier: Arc<Notify>) {
    loop {
        tokio::select! {
            () = sleep_until(due) => {}
            () = earlier.notified() => {}
        }
        match idle.upgrade().and_then(|idle| idle.expire(Instant::now())) {
            Some(next) => due = next,
            None => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn kept(requests: u32) -> Kept<()> {
        Kept { value: (), requests, born: Instant::now() }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_too_old_is_dropped_though_nobody_asks_for_it() {
        let idle = Idle::new(Reuse { age: Duration::from_secs(10), ..Reuse::requests(10) });
        idle.give(kept(0), Instant::now());
        tokio::time::sleep(Duration::from_secs(5)).await;
        idle.give(kept(0), Instant::now());
        tokio::time::sleep(Duration::from_millis(5_001)).await;
        assert_eq!(idle.len(), 1);
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(idle.len(), 0);
        // And again, by another sweep.
        idle.give(kept(0), Instant::now());
        assert_eq!(idle.len(), 1);
        tokio::time::sleep(Duration::from_millis(10_001)).await;
        assert_eq!(idle.len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_older_and_comes_later_is_dropped_first() {
        let idle = Idle::new(Reuse { age: Duration::from_secs(10), ..Reuse::requests(10) });
        let older = kept(0);
        tokio::time::sleep(Duration::from_secs(5)).await;
        idle.give(kept(0), Instant::now());
        tokio::time::sleep(Duration::from_millis(1)).await;
        idle.give(older, Instant::now());
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(idle.len(), 1);
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(idle.len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn an_age_may_be_longer_than_any() {
        let idle = Idle::new(Reuse { age: Duration::MAX, ..Reuse::requests(10) });
        idle.give(kept(0), Instant::now());
        assert!(idle.take(Instant::now()).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_used_often_enough_is_not_kept() {
        let idle = Idle::new(Reuse::requests(3));
        idle.give(kept(0), Instant::now());
        idle.give(kept(1), Instant::now());
        idle.give(kept(2), Instant::now());
        assert_eq!(idle.len(), 2);
        assert_eq!(idle.take(Instant::now()).unwrap().requests, 2);
    }
}
