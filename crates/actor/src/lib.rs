//! WebAssembly components as supervised actors: mailboxes, restarts, hot upgrade.
//!
//! An [`ActorSystem`] spawns a component as an actor: a task that owns one sandbox and a bounded mailbox. An
//! [`ActorRef`] sends to it. When the guest crashes, its sandbox is dropped, the ask in flight fails at once, and a
//! [`RestartPolicy`] or a supervisor ([`SupervisorSpec`]) decides about a restart. Incarnations share one address and
//! one mailbox.
//!
//! ```
//! use airssys_wasm_actor::{ActorSpec, ActorSystem, AskError, SystemConfig};
//! use airssys_wasm_engine::{EngineConfig, Profile, WasmEngine};
//! use airssys_wasm_isolation::SandboxSpec;
//! use airssys_wasm_limits::{ByteSize, ResourceLimits};
//! # const COUNTER: &[u8] = airssys_wasm_fixtures::COUNTER;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let system = ActorSystem::new(WasmEngine::new(EngineConfig::small().compile_in_process())?, SystemConfig::default());
//! let component = system.engine().load(COUNTER, Profile::Plain).await?;
//! let sandbox = SandboxSpec::new(system.link(&component)?, ResourceLimits::with_memory(ByteSize::mib(8)))?;
//! let counter = system.spawn(ActorSpec::new("counter".parse()?, sandbox)).await?;
//!
//! counter.tell("add 2").await?;
//! assert_eq!(counter.ask("add 40").await?, "42");
//!
//! let AskError::Crashed(report) = counter.ask("crash").await.unwrap_err() else { panic!("it crashed") };
//! println!("{report}");
//! // Restarted, under the same address, counting from zero.
//! assert_eq!(counter.ask("get").await?, "0");
//! # Ok(())
//! # }
//! ```
//!
//! [`ActorSystem::load`] takes a `Component.toml` instead, with limits, grants, capabilities and policies in it.
//!
//! # The guests' side
//!
//! A component is an actor if it exports `airssys:actor/handler@0.1.0`, or `0.2.0` with async functions. The interface is
//! in this package, `wit/actor.wit` and `wit/async/actor.wit`, and in [`WIT`] and [`WIT_ASYNC`]. Components that export
//! `wasmcloud:messaging/handler@0.2.0` or `@0.3.0` run unchanged. [`Capabilities`] grant a guest the use of messages; the
//! default grants nothing.
//!
//! # What it leaves to others
//!
//! Resource limits are in `airssys-wasm-limits`, crashes in `airssys-wasm-isolation`, names, addresses and topics in
//! `airssys-wasm-registry`. Mailboxes live in the memory of one process: no persistence, no network.

mod contract;
mod failure;
mod guest;
mod native;
mod runtime;
mod supervision;
mod system;

pub use airssys_wasm_engine as engine;
pub use airssys_wasm_isolation as isolation;
pub use airssys_wasm_limits as limits;
pub use airssys_wasm_registry as registry;
pub use bytes::Bytes;

pub use contract::{ConcurrencyError, ContractKind, NoHandler, NoHandlerKind, WIT, WIT_ASYNC};
pub use failure::call::{CallError, LinkFault, LinksError};
pub use failure::kept::{KeepError, NotSavedError};
pub use failure::policy::{Backoff, Directive, Intensity, Restart, RestartPolicy};
pub use failure::report::{BoxError, CrashReport, During, StartError};
pub use guest::calls::{ActorExport, Argument};
pub use guest::capabilities::{Capabilities, Grants, NamePattern};
pub use guest::front::Front;
pub use guest::links::Links;
pub use guest::manifest::{ActorManifest, ComponentTable, LoadManifestError};
pub use guest::spec::{ActorSandbox, ActorSpec, ActorState, ActorTemplate, DEFAULT_REDELIVERY};
pub use native::{NativeActor, NativeContext, NativeSpec};
pub use runtime::actor_ref::{ActorInfo, ActorRef, AskError, HealthError, Stop, WeakActorRef};
pub use runtime::dead_letters::{DeadLetter, DeadLetterLimits, DeadLetters, DeadReason};
pub use runtime::events::{DeniedAction, SystemEvent};
pub use runtime::keeper::{Elsewhere, FarCall, Fence, Keeper, KeptActor};
pub use runtime::lifecycle::Lifecycle;
pub use runtime::recycle::{Recycle, RecycleReason};
pub use runtime::reminders::{ReminderError, Reminders};
pub use runtime::upgrade::{ProbationEnd, ProbationWatch, UpgradeError, UpgradeOptions};
pub use supervision::supervisor::{ChildError, Strategy, SupervisorPolicy, SupervisorRef};
pub use system::{
    ActorSystem, HostSubscription, ResendError, ShutdownReport, SpawnError, StateFactory, SupervisorSpec, SystemConfig,
    WeakActorSystem,
};

/// Compiles the README's examples as doc tests.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;

/// Compiles the examples about keys and values as doc tests.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/keyvalue.md")]
struct KeyValue;
