//! How much of a component's output goes into the host's log.
//!
//! Not `governor`: it has a clock of its own, where this uses the engine's, which tests advance by hand; and it does
//! not count what it refused.

use std::sync::{Arc, Mutex, PoisonError};

use airssys_wasm_engine::EpochClock;

use crate::Quota;

/// A component's allowance for the log: [`log_bytes`](crate::ResourceLimits::log_bytes) at once, and as many in each
/// second. All that writes for the component shares it, in however many instances. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct LogAllowance(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    clock: EpochClock,
    allowed: u64,
    /// Ticks in which the whole allowance is refilled.
    refill: u64,
    bucket: Mutex<Bucket>,
}

#[derive(Debug)]
struct Bucket {
    left: u64,
    /// What has come back of the next byte, in parts of which there are as many as ticks in a refill.
    part: u128,
    /// When it was last looked at, in ticks of the clock.
    at: u64,
    /// Lines dropped that no [`LogLine::Kept`] has told of.
    left_out: u64,
    /// When a warning of each kind may be given again, in ticks. Warnings are not counted, so in a flood there must not be
    /// one for each line.
    first_from: u64,
    told_from: u64,
}

/// What happens to a line for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogLine {
    /// It is written.
    Kept {
        /// Lines dropped before it, told once a second at the most. Zero if there is nothing to tell.
        left_out: u64,
    },
    /// It is dropped.
    LeftOut {
        /// Whether it is the first one dropped, which is worth a warning: once a second at the most.
        first: bool,
    },
}

/// What a line costs beside its bytes, so that empty ones are not free.
const LINE: u64 = 64;

impl LogAllowance {
    /// The whole allowance of a component with this quota.
    pub fn new(quota: &Quota) -> Self {
        let clock = quota.clock().clone();
        let allowed = quota.limits().log_bytes.as_u64();
        Self(Arc::new(Shared {
            refill: clock.ticks_in(std::time::Duration::from_secs(1)).max(1),
            bucket: Mutex::new(Bucket {
                left: allowed,
                part: 0,
                at: clock.ticks(),
                left_out: 0,
                first_from: 0,
                told_from: 0,
            }),
            clock,
            allowed,
        }))
    }

    /// Takes allowance for a line of this many bytes.
    pub fn line(&self, bytes: usize) -> LogLine {
        let Shared { clock, allowed, refill, bucket } = &*self.0;
        let bucket = &mut *bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let now = clock.ticks();
        let back = bucket.part + u128::from(*allowed) * u128::from(now - bucket.at);
        let (whole, part) = (back / u128::from(*refill), back % u128::from(*refill));
        bucket.left = u64::try_from(whole).unwrap_or(u64::MAX).saturating_add(bucket.left).min(*allowed);
        (bucket.part, bucket.at) = (part, now);
        match bucket.left.checked_sub((bytes as u64).saturating_add(LINE)) {
            Some(left) => {
                bucket.left = left;
                let tells = bucket.left_out > 0 && take_turn(&mut bucket.told_from, now, *refill);
                LogLine::Kept { left_out: if tells { std::mem::take(&mut bucket.left_out) } else { 0 } }
            }
            None => {
                bucket.left_out += 1;
                LogLine::LeftOut { first: bucket.left_out == 1 && take_turn(&mut bucket.first_from, now, *refill) }
            }
        }
    }
}

/// Whether the time has come. Then the next is a period later.
fn take_turn(from: &mut u64, now: u64, period: u64) -> bool {
    let has_come = now >= *from;
    if has_come {
        *from = now.saturating_add(period);
    }
    has_come
}

#[cfg(test)]
mod tests {
    use airssys_wasm_engine::{EngineConfig, Profile, WasmEngine};

    use super::*;
    use crate::{ByteSize, ResourceLimits};

    fn allowance(log_bytes: u64) -> (WasmEngine, LogAllowance) {
        let engine = WasmEngine::new(EngineConfig::on_demand().compile_in_process().with_manual_ticks()).unwrap();
        let component = engine.load_wat_blocking("(component)", Profile::Plain).unwrap();
        let limits = ResourceLimits { log_bytes: ByteSize(log_bytes), ..ResourceLimits::with_memory(ByteSize(0)) };
        let allowance = LogAllowance::new(&Quota::new(limits, &component).unwrap());
        (engine, allowance)
    }

    #[test]
    fn so_much_at_once_and_as_much_in_each_second() {
        let (engine, log) = allowance(2 * (100 + LINE));
        let kept = LogLine::Kept { left_out: 0 };
        assert_eq!([log.line(100), log.clone().line(100)], [kept, kept]);
        assert_eq!(log.line(0), LogLine::LeftOut { first: true });
        (0..499).for_each(|_| engine.tick());
        assert_eq!(log.line(100), LogLine::LeftOut { first: false });
        (0..5).for_each(|_| engine.tick());
        assert_eq!(log.line(100), LogLine::Kept { left_out: 2 });
        // The refill is capped.
        (0..10_000).for_each(|_| engine.tick());
        assert_eq!([log.line(100), log.line(100)], [kept, kept]);
        assert_eq!(log.line(100), LogLine::LeftOut { first: true });
    }

    /// Whatever part of a byte comes back in a tick.
    #[test]
    fn who_writes_all_the_time_has_as_much_as_who_waits() {
        for allowed in [LINE, 1_500, 1_999, 31_999] {
            let (engine, log) = allowance(allowed);
            let mut kept = 0;
            for _ in 0..10_000 {
                kept += u64::from(matches!(log.line(0), LogLine::Kept { .. }));
                engine.tick();
            }
            // At once, and in ten seconds.
            let most = 11 * allowed / LINE;
            assert!((most - 1..=most).contains(&kept), "{allowed}: {kept} of {most}");
        }
    }

    #[test]
    fn a_flood_has_few_warnings_and_they_tell_of_all_lines() {
        let (engine, log) = allowance(10 * LINE);
        let (mut kept, mut left_out, mut warnings, mut told) = (0, 0, 0, 0);
        let mut write = || match log.line(0) {
            LogLine::Kept { left_out: before } => {
                (kept, told, warnings) = (kept + 1, told + before, warnings + u64::from(before > 0));
            }
            LogLine::LeftOut { first } => (left_out, warnings) = (left_out + 1, warnings + u64::from(first)),
        };
        // Ten seconds of it, and a line when it is over.
        for _ in 0..10_000 {
            write();
            engine.tick();
        }
        (0..1_000).for_each(|_| engine.tick());
        write();
        assert!(kept > 50 && warnings <= 2 * 11, "{kept}, {warnings}");
        assert_eq!((told, kept + left_out), (left_out, 10_001));
    }

    #[test]
    fn none_is_none_and_no_line_is_free() {
        let (_, log) = allowance(0);
        assert_eq!(log.line(0), LogLine::LeftOut { first: true });
        let (_, log) = allowance(10 * LINE);
        assert_eq!((0..100).filter(|_| log.line(0) == LogLine::Kept { left_out: 0 }).count(), 10);
    }
}
