//! The sweep of a kind: one task, which has old state saved and idle actors leave. No timer an actor.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use airssys_wasm_actor::KeptActor;
use tokio::{
    task::yield_now,
    time::{Instant, sleep, sleep_until},
};

use super::{
    Kind,
    core::{Core, RETRY},
    live::{Sweep, millis},
};
use crate::SaveWhen;

/// Between two ticks, at the least and at the most.
const SHORTEST: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_secs(1);

/// Ticks in the time that state may be unsaved or an actor idle.
const TICKS: u32 = 8;

fn tick(core: &Core) -> Duration {
    let shortest = match core.options.save {
        SaveWhen::Within(longest) => longest.min(core.options.idle),
        SaveWhen::OnIdle | SaveWhen::EachMessage => core.options.idle,
    };
    (shortest / TICKS).clamp(SHORTEST, LONGEST)
}

/// How many are to leave: from 90 % of what there may be on, down to 80 %.
fn too_many(live: usize, most: usize) -> usize {
    if !is_crowd(live, most) {
        return 0;
    }
    live.saturating_sub(usize::try_from(8 * most as u128 / 10).unwrap_or(most))
}

fn is_crowd(live: usize, most: usize) -> bool {
    10 * live as u128 >= 9 * most as u128
}

/// Whether some are to leave.
pub(super) fn is_crowded(core: &Core, live: usize) -> bool {
    is_crowd(live, core.options.live)
}

/// How many are to leave because memory is short, on the whole as above.
fn too_large(core: &Core, live: usize) -> usize {
    let Some(budget) = &core.options.memory else { return 0 };
    let (used, total) = (budget.used(), budget.total());
    if used / 9 < total / 10 {
        return 0;
    }
    let above = used.saturating_sub(total / 10 * 8);
    usize::try_from(u128::from(above) * live as u128 / u128::from(used.max(1))).unwrap_or(live)
}

/// How many are to leave because one did not find an instance, or memory: at most once in the least residency, so that one
/// that never finds enough does not drive out all others.
fn too_short(core: &Core, live: usize) -> usize {
    let (now, last) = (core.now(), core.made_room_at.load(Ordering::Relaxed));
    let is_too_soon = last != 0 && now.saturating_sub(last) < millis(core.options.residency);
    if is_too_soon || !core.is_short.swap(false, Ordering::Relaxed) {
        return 0;
    }
    core.made_room_at.store(now, Ordering::Relaxed);
    core.made_room.fetch_add(1, Ordering::Relaxed);
    live.div_ceil(5)
}

/// Runs as long as the kind.
pub(crate) async fn sweep<U: Send + 'static>(kind: Arc<Kind<U>>) {
    let core = Arc::clone(&kind.core);
    let kind_ = Arc::downgrade(&kind);
    drop(kind);
    let every = tick(&core);
    let mut next = Instant::now();
    let mut pruned = next;
    loop {
        let is_empty = core.live.len() == 0;
        if is_empty {
            // It is not looked at again before there is somebody.
            core.metrics.oldest_unsaved.set(0.0);
        }
        tokio::select! {
            () = core.closed.cancelled() => return,
            () = core.wake.notified() => {}
            () = sleep(every), if !is_empty => {}
        }
        if let Some(kind) = kind_.upgrade() {
            kind.undo_failed_version();
        }
        // However often it is woken.
        tokio::select! {
            () = core.closed.cancelled() => return,
            () = sleep_until(next) => {}
        }
        let now = Instant::now();
        next = now + SHORTEST;
        core.counts.sweeps.fetch_add(1, Ordering::Relaxed);
        once(&core, every).await;
        if pruned + LONGEST <= now {
            pruned = now;
            core.admission.prune(now);
            core.quarantine.lock().prune(now);
        }
    }
}

/// Orders that are given before others run: who is asked for meanwhile does not wait for all that leave.
const AT_ONCE: usize = 128;

async fn once(core: &Core, every: Duration) {
    let now = Instant::now();
    let live = core.live.len();
    let options = &core.options;
    let unsaved = match options.save {
        // Seen at the last tick before it is due.
        SaveWhen::Within(longest) => Some(millis(longest.saturating_sub(every))),
        // What could not be saved at once.
        SaveWhen::EachMessage => Some(RETRY),
        SaveWhen::OnIdle => None,
    };
    let clock = core.tick(now);
    let found = core.live.sweep(&Sweep {
        now: clock,
        idle: millis(options.idle),
        residency: millis(options.residency),
        unsaved,
        too_many: too_many(live, options.live).max(too_large(core, live)).max(too_short(core, live)),
    });
    let age = found.oldest_unsaved.map_or(0, |since| core.now().saturating_sub(since));
    core.metrics.oldest_unsaved.set(age as f64 / 1e3);
    give(&found.save, KeptActor::save).await;
    give(&found.leave, KeptActor::passivate).await;
    give(&found.evict, KeptActor::evict).await;
}

async fn give(to: &[KeptActor], order: fn(&KeptActor)) {
    for actors in to.chunks(AT_ONCE) {
        actors.iter().for_each(order);
        yield_now().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn from_nine_tenths_on_they_leave_down_to_eight() {
        for (live, most, leave) in [
            (0, 10, 0),
            (8, 10, 0),
            (9, 10, 1),
            (10, 10, 2),
            (899, 1_000, 0),
            (900, 1_000, 100),
            (1, 1, 1),
            (2, 2, 1),
            (3, 3, 1),
            (1_000_000, usize::MAX, 0),
            (usize::MAX, usize::MAX, usize::MAX / 5),
        ] {
            assert_eq!(too_many(live, most), leave, "{live} of {most}");
        }
    }
}
