//! A fresh instance for a guest whose memory only grows, between two messages.

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

/// When an actor goes over to a fresh instance of its component, between two messages: at the first of these. The default
/// is never.
///
/// Its state goes with it where it exports `airssys:actor/state`, and is lost as by a restart where it does not. Its
/// mailbox, address and subscriptions stay. It is no failure: nothing counts against the intensity. Where the fresh
/// instance does not start, or `snapshot` refuses, the old one goes on, and it is tried again some messages later. A version
/// on probation is not recycled. An idle actor is looked at with its next message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Recycle {
    /// After so many messages.
    pub messages: Option<NonZeroU64>,
    /// When it has so much linear memory, and more than it began with.
    pub memory: Option<ByteSize>,
    /// When it is that old.
    #[serde(with = "humantime_serde")]
    pub age: Option<Duration>,
}

/// Why an actor was recycled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum RecycleReason {
    /// It had handled as many messages as it may.
    Messages,
    /// It had as much memory as it may have.
    Memory,
    /// It was as old as it may be.
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

/// The present incarnation, as its recycling is decided by.
pub(super) struct Recycling {
    when: Recycle,
    messages: u64,
    /// Messages before which it is not tried again.
    not_before: u64,
    since: Instant,
    /// Bytes of memory that it began with.
    memory: u64,
}

/// Messages after which a recycling that failed is tried again, at first. It doubles.
const RETRY: u64 = 100;

impl Recycling {
    pub(super) fn new(when: Recycle) -> Option<Box<Self>> {
        let since = Instant::now();
        (!when.is_never()).then(|| Box::new(Self { when, messages: 0, not_before: 0, since, memory: 0 }))
    }

    /// A fresh incarnation.
    pub(super) fn begin(&mut self, memory: u64) {
        *self = Self { when: self.when, messages: 0, not_before: 0, since: Instant::now(), memory };
    }

    /// A message was handled: why the incarnation is to be recycled, if it is.
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
    /// Goes over to a fresh incarnation of the same version. Says why the present one is over, if it is.
    pub(super) async fn recycle(&mut self, live: &mut B::Live, because: RecycleReason) -> Option<Exit> {
        let same = self.blueprint.clone();
        // Where it cannot take its state, there is none to be kept.
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
