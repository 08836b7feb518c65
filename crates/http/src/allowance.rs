//! How many lines of one sort go into the log, and how much of what others choose.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// So many lines a second; those beyond are counted.
#[derive(Debug)]
pub(crate) struct Allowance {
    per_second: u32,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    since: Instant,
    written: u32,
    left_out: u64,
}

impl Allowance {
    pub(crate) fn new(per_second: u32) -> Self {
        Self { per_second, state: Mutex::new(State { since: Instant::now(), written: 0, left_out: 0 }) }
    }

    /// Lines left out before this one, or `None` if it is left out as well.
    pub(crate) fn take(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock();
        if now.saturating_duration_since(state.since) >= Duration::from_secs(1) {
            (state.since, state.written) = (now, 0);
        }
        if state.written < self.per_second {
            state.written += 1;
            Some(std::mem::take(&mut state.left_out))
        } else {
            state.left_out += 1;
            None
        }
    }
}

/// Bytes of a method, host or path that a line has.
const LONGEST: usize = 256;

/// What a client or a guest has chosen, as a line shows it.
pub(crate) fn shown(bytes: &[u8]) -> String {
    bytes[..bytes.len().min(LONGEST)].escape_ascii().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_log_has_so_many_lines_in_a_second_and_says_how_many_it_left_out() {
        let (allowance, now) = (Allowance::new(10), Instant::now());
        assert_eq!((0..15).filter_map(|_| allowance.take(now)).collect::<Vec<_>>(), [0; 10]);
        let later = now + Duration::from_secs(1);
        assert_eq!(allowance.take(later), Some(5));
        assert_eq!(allowance.take(later), Some(0));
    }
}
