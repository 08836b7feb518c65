//! What can be chosen of any actor, guest or native.

use std::num::NonZeroU32;

use airssys_wasm_limits::ByteSize;
use airssys_wasm_registry::{ComponentId, TopicPattern};

use crate::{Recycle, RestartPolicy, runtime::mailbox::MailboxSize};

#[derive(Debug, Clone)]
pub(crate) struct ActorOptions {
    pub(crate) id: ComponentId,
    pub(crate) mailbox: MailboxSize,
    pub(crate) subscriptions: Vec<TopicPattern>,
    pub(crate) restart: RestartPolicy,
    pub(crate) redelivery: Option<u32>,
    pub(crate) depends_on: Vec<ComponentId>,
    /// Of guests alone.
    pub(crate) recycle: Recycle,
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
        }
    }
}

/// The builder methods of a specification with a field `options`.
macro_rules! option_methods {
    () => {
        /// Its name.
        pub fn id(&self) -> &airssys_wasm_registry::ComponentId {
            &self.options.id
        }

        /// Under another name.
        #[must_use]
        pub fn with_id(mut self, id: airssys_wasm_registry::ComponentId) -> Self {
            self.options.id = id;
            self
        }

        /// Messages that its mailbox holds, at least one. Default: 1,024.
        #[must_use]
        pub fn with_mailbox(mut self, messages: usize) -> Self {
            self.options.mailbox.messages = messages;
            self
        }

        /// Bytes that messages of more than 4 KiB may take up in its mailbox; one that is larger than all of it waits
        /// until there is no other. Default: 16 MiB.
        #[must_use]
        pub fn with_mailbox_bytes(mut self, bytes: airssys_wasm_limits::ByteSize) -> Self {
            self.options.mailbox.bytes = bytes.as_u64();
            self
        }

        /// In how many shares the mailbox is divided, in messages and in bytes. A sender may hold one share, one message
        /// at least, and no more than what is left to all others. With one share a sender may fill the mailbox. Messages
        /// of the host are in no share. Default: two.
        #[must_use]
        pub fn with_mailbox_shares(mut self, shares: std::num::NonZeroU32) -> Self {
            self.options.mailbox.shares = shares;
            self
        }

        /// Subscribed to these patterns too, from the start, whatever it may subscribe to by itself.
        #[must_use]
        pub fn with_subscriptions(
            mut self,
            patterns: impl IntoIterator<Item = airssys_wasm_registry::TopicPattern>,
        ) -> Self {
            self.options.subscriptions.extend(patterns);
            self
        }

        /// How its failures are answered.
        #[must_use]
        pub fn with_restart(mut self, policy: impl Into<$crate::RestartPolicy>) -> Self {
            self.options.restart = policy.into();
            self
        }

        /// How many times a message may crash the actor before it goes to the dead letters. `None`, the default, is the
        /// first time. A message that somebody waits for is never delivered again: its asker has been told.
        #[must_use]
        pub fn with_redelivery(mut self, attempts: impl Into<Option<u32>>) -> Self {
            self.options.redelivery = attempts.into();
            self
        }

        /// Actors that must be there before it, and are stopped after it.
        #[must_use]
        pub fn with_dependencies(mut self, ids: impl IntoIterator<Item = airssys_wasm_registry::ComponentId>) -> Self {
            self.options.depends_on.extend(ids);
            self
        }
    };
}

pub(crate) use option_methods;
