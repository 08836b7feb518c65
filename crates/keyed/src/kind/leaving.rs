//! Many actors of a kind that leave the memory together.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use tokio::time::sleep;

use super::Kind;

/// Actors that leave at a time.
const AT_A_TIME: usize = 64;
/// Until those are looked at again that were about to come, to end, or could not be saved.
const SOON: Duration = Duration::from_millis(1);
const LATER: Duration = Duration::from_millis(100);

impl<U: Send + 'static> Kind<U> {
    /// Waits until no actor, or none of a part, is in memory. None must be brought there meanwhile.
    pub(crate) async fn passivate(&self, part: Option<usize>) {
        loop {
            let live = self.core.live.of(part);
            if live.is_empty() {
                return;
            }
            let leaving = live.into_iter().flatten().map(|actor| async move { actor.passivated().await });
            let leaving = stream::iter(leaving).buffer_unordered(AT_A_TIME);
            let have_left = leaving.all(std::future::ready).await;
            sleep(if have_left { SOON } else { LATER }).await;
        }
    }

    /// Kills all actors, and waits until none is in memory.
    pub(crate) async fn kill(&self) {
        loop {
            let live = self.core.live.of(None);
            if live.is_empty() {
                return;
            }
            let live: Vec<_> = live.into_iter().flatten().collect();
            live.iter().for_each(|actor| actor.actor().kill());
            for actor in live {
                actor.actor().ended().await;
            }
            sleep(SOON).await;
        }
    }
}
