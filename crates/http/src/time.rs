//! Points in time that are not too far away to be one.

use std::time::Duration;

use tokio::time::Instant;

/// Later than anything here goes on.
const FAR: Duration = Duration::from_secs(30 * 365 * 86_400);

/// So much later. What people write may be longer than a clock can hold.
pub(crate) fn after(start: Instant, wait: Duration) -> Instant {
    start + wait.min(FAR)
}
