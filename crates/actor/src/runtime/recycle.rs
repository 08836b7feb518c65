//! Replaces a guest's instance by a fresh one between two messages, since linear memory never shrinks.

use std::{fmt, num::NonZeroU64, time::Duration};

use airssys_wasm_limits::ByteSize;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::{
    SystemEvent,
    failure::report::Short,
    runtime::{
        incarnation::{Blueprint, Live},
        task::{ActorTask, Exit},
        upgrade::NotReplaced,
    },
};

/// When an actor's instance is replaced by a fresh one, between two messages: at the first limit reached. Default:
/// never.
///
/// State is kept if the component exports `airssys:actor/state`, else lost as by a restart. Mailbox, address and
/// subscriptions stay. Recycling does not count against the intensity. If the fresh instance does not start, or
/// `snapshot` returns an error, the old one goes on, and recycling is tried again some messages later. A version on
/// probation is not recycled. Limits are checked after each message, so an idle actor is not recycled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Recycle {
    /// After this many messages.
    pub messages: Option<NonZeroU64>,
    /// When linear memory reaches this size and has grown since the start.
    pub memory: Option<ByteSize>,
    /// When the instance is this old.
    #[serde(with = "humantime_serde")]
    pub age: Option<Duration>,
}

/// Why an actor was recycled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum RecycleReason {
    /// [`Recycle::messages`] was reached.
    Messages,
    /// [`Recycle::memory`] was reached.
    Memory,
    /// [`Recycle::age`] was reached.
    Age,
}

impl fmt::Display for RecycleReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Messages => "messages",
            Self::Memory => "memory",
            Self::Age => "age",
        })
    }
}

impl Recycle {
    pub(crate) fn is_never(&self) -> bool {
        *self == Self::default()
    }
}

/// The present incarnation's figures for [`Recycle`].
pub(super) struct Recycling {
    when: Recycle,
    messages: u64,
    /// The number of messages before the next try.
    not_before: u64,
    since: Instant,
    /// Linear memory at the start, in bytes.
    memory: u64,
}

/// Messages before a failed recycling is tried again. Doubles with each failure.
const RETRY: u64 = 100;

impl Recycling {
    pub(super) fn new(when: Recycle) -> Option<Box<Self>> {
        let since = Instant::now();
        (!when.is_never()).then(|| Box::new(Self { when, messages: 0, not_before: 0, since, memory: 0 }))
    }

    /// Notes a fresh incarnation.
    pub(super) fn begin(&mut self, memory: u64) {
        *self = Self { when: self.when, messages: 0, not_before: 0, since: Instant::now(), memory };
    }

    /// Notes a handled message. Returns why to recycle, if a limit is reached.
    pub(super) fn handled(&mut self, memory: u64) -> Option<RecycleReason> {
        self.messages += 1;
        let Self { when, messages, not_before, since, memory: first } = self;
        if messages < not_before {
            return None;
        }
        if when.messages.is_some_and(|most| *messages >= most.get()) {
            return Some(RecycleReason::Messages);
        }
        if when.memory.is_some_and(|most| memory >= most.as_u64() && memory > *first) {
            return Some(RecycleReason::Memory);
        }
        when.age.is_some_and(|oldest| since.elapsed() >= oldest).then_some(RecycleReason::Age)
    }

    fn postpone(&mut self) {
        self.not_before = self.messages.saturating_mul(2).max(self.messages + RETRY);
    }
}

impl<B: Blueprint> ActorTask<B> {
    /// Replaces the incarnation by a fresh one of the same version. Returns how the present one ended, if it did.
    pub(super) async fn recycle(&mut self, live: &mut B::Live, because: RecycleReason) -> Option<Exit> {
        let same = self.blueprint.clone();
        // A component that cannot both snapshot and restore keeps no state.
        let (gives, takes) = same.keeps_state();
        match self.replace(live, &same, !(gives && takes)).await {
            Ok(_) => {
                if let Some(recycling) = &mut self.recycling {
                    recycling.begin(live.memory());
                }
                self.cell.count_recycled();
                self.event(|actor| SystemEvent::Recycled {
                    actor: actor.cell.address.clone(),
                    incarnation: actor.cell.incarnation(),
                    because,
                });
                None
            }
            Err(NotReplaced { error, exit }) => {
                tracing::warn!(actor = %self.cell.id(), %because, "not recycled, and tried again later: {}", Short(error));
                if let Some(recycling) = &mut self.recycling {
                    recycling.postpone();
                }
                exit
            }
        }
    }
}
