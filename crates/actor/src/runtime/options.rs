//! Options of actors, guest and native.

use std::{num::NonZeroU32, sync::Arc};

use airssys_wasm_limits::ByteSize;
use airssys_wasm_registry::{ComponentId, TopicPattern};

use crate::{
    Recycle, RestartPolicy,
    runtime::{keeper::Fence, mailbox::MailboxSize},
};

#[derive(Debug, Clone)]
pub(crate) struct ActorOptions {
    pub(crate) id: ComponentId,
    pub(crate) mailbox: MailboxSize,
    pub(crate) subscriptions: Vec<TopicPattern>,
    pub(crate) restart: RestartPolicy,
    pub(crate) redelivery: Option<u32>,
    pub(crate) depends_on: Vec<ComponentId>,
    /// Guests only.
    pub(crate) recycle: Recycle,
    pub(crate) fence: Option<Arc<dyn Fence>>,
}

pub(crate) const DEFAULT_MAILBOX: u32 = 1_024;
pub(crate) const DEFAULT_MAILBOX_BYTES: ByteSize = ByteSize::mib(16);
pub(crate) const DEFAULT_MAILBOX_SHARES: NonZeroU32 = NonZeroU32::new(2).unwrap();

impl ActorOptions {
    pub(crate) fn new(id: ComponentId) -> Self {
        Self {
            id,
            mailbox: MailboxSize {
                messages: DEFAULT_MAILBOX as usize,
                bytes: DEFAULT_MAILBOX_BYTES.as_u64(),
                shares: DEFAULT_MAILBOX_SHARES,
            },
            subscriptions: Vec::new(),
            restart: RestartPolicy::default(),
            redelivery: None,
            depends_on: Vec::new(),
            recycle: Recycle::default(),
            fence: None,
        }
    }
}

/// Builder methods for a specification with a field `options`.
macro_rules! option_methods {
    () => {
        /// The actor's name.
        pub fn id(&self) -> &airssys_wasm_registry::ComponentId {
            &self.options.id
        }

        /// Sets the name.
        #[must_use]
        pub fn with_id(mut self, id: airssys_wasm_registry::ComponentId) -> Self {
            self.options.id = id;
            self
        }

        /// Messages the mailbox holds, at least one. Default: 1,024.
        #[must_use]
        pub fn with_mailbox(mut self, messages: usize) -> Self {
            self.options.mailbox.messages = messages;
            self
        }

        /// Bytes in the mailbox for messages of more than 4 KiB. A message larger than that waits until it is the only
        /// one. Default: 16 MiB.
        #[must_use]
        pub fn with_mailbox_bytes(mut self, bytes: airssys_wasm_limits::ByteSize) -> Self {
            self.options.mailbox.bytes = bytes.as_u64();
            self
        }

        /// Shares of the mailbox, in messages and in bytes. A sender may hold one share, at least one message, and no
        /// more than is left for all others. With one share a sender may fill the mailbox. The host's messages count
        /// against no share. Default: two.
        #[must_use]
        pub fn with_mailbox_shares(mut self, shares: std::num::NonZeroU32) -> Self {
            self.options.mailbox.shares = shares;
            self
        }

        /// Adds subscriptions from the start. They need no grant.
        #[must_use]
        pub fn with_subscriptions(
            mut self,
            patterns: impl IntoIterator<Item = airssys_wasm_registry::TopicPattern>,
        ) -> Self {
            self.options.subscriptions.extend(patterns);
            self
        }

        /// Sets when and how often the actor is restarted.
        #[must_use]
        pub fn with_restart(mut self, policy: impl Into<$crate::RestartPolicy>) -> Self {
            self.options.restart = policy.into();
            self
        }

        /// Attempts per message: after this many crashes it goes to the dead letters. Default: `None`, one attempt. An
        /// ask is never redelivered, since it fails with the first crash.
        #[must_use]
        pub fn with_redelivery(mut self, attempts: impl Into<Option<u32>>) -> Self {
            self.options.redelivery = attempts.into();
            self
        }

        /// Lets the actor act only while a fence holds. A message that comes after is refused as
        /// [`Moved`](airssys_wasm_registry::Refusal::Moved), or is a dead letter.
        #[must_use]
        pub fn with_fence(mut self, fence: std::sync::Arc<dyn $crate::Fence>) -> Self {
            self.options.fence = Some(fence);
            self
        }

        /// Adds actors that must exist before this one, and are stopped after it.
        #[must_use]
        pub fn with_dependencies(mut self, ids: impl IntoIterator<Item = airssys_wasm_registry::ComponentId>) -> Self {
            self.options.depends_on.extend(ids);
            self
        }
    };
}

pub(crate) use option_methods;
