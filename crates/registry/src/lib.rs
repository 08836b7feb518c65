//! Who is there and how to reach them: names, addresses, routes and topics.
//!
//! A [`ComponentRegistry`] maps a [`ComponentId`] to whatever takes messages for it, a [`Sink`]. A [`MessageRouter`]
//! delivers to one, to many, or to a group under one name; a [`MessageBroker`] to whoever subscribed to a topic. What
//! could not be delivered comes back with its reason.
//!
//! ```
//! use std::sync::Arc;
//!
//! use airssys_wasm_registry::{
//!     ComponentId, ComponentRegistry, Load, MessageEnvelope, MessageRouter, Refusal, Sink, Undelivered,
//! };
//! use tokio::sync::mpsc;
//!
//! /// A channel as a sink.
//! struct Channel(mpsc::Sender<MessageEnvelope>);
//!
//! impl Sink for Channel {
//!     fn try_deliver(&self, message: MessageEnvelope) -> Result<(), Undelivered> {
//!         self.0.try_send(message).map_err(|error| match error {
//!             mpsc::error::TrySendError::Full(message) => Undelivered::new(Refusal::Full, message),
//!             mpsc::error::TrySendError::Closed(message) => Undelivered::new(Refusal::Stopped, message),
//!         })
//!     }
//!
//!     async fn deliver(&self, message: MessageEnvelope) -> Result<(), Undelivered> {
//!         self.0.send(message).await.map_err(|error| Undelivered::new(Refusal::Stopped, error.0))
//!     }
//!
//!     fn load(&self) -> Load {
//!         Load { queued: self.0.max_capacity() - self.0.capacity(), capacity: self.0.max_capacity() }
//!     }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let registry = ComponentRegistry::new();
//! let greeter = ComponentId::new("greeter")?;
//! let (sender, mut mailbox) = mpsc::channel(8);
//! registry.register(&greeter, Arc::new(Channel(sender)))?;
//!
//! let router = MessageRouter::new(registry);
//! router.send(&greeter, MessageEnvelope::new("hello"))?;
//! assert_eq!(mailbox.try_recv()?.payload(), "hello");
//! # Ok(())
//! # }
//! ```
//!
//! # What it leaves to others
//!
//! It knows nothing of wasm, starts no task, and has no mailboxes of its own: a sink decides what full means, and what
//! happens to a message once it was taken.

mod broker;
mod id;
mod message;
mod registry;
mod router;
mod topic;

pub use broker::{MessageBroker, PublishReport, Subscription, WhenFull};
pub use bytes::Bytes;
pub use id::{ComponentId, InvalidId, Name};
pub use message::{ContentType, CorrelationId, Load, MessageEnvelope, Refusal, Sink, TraceContext, Undelivered};
pub use registry::{ActorAddress, Change, ComponentRegistry, GroupError, NameTaken, ResolveError};
pub use router::{MessageRouter, SendError};
pub use tokio::{sync::broadcast, time::Instant};
pub use topic::{InvalidTopic, Topic, TopicPattern};
