//! WebAssembly components as supervised actors: mailboxes, restarts, hot upgrade.

mod actor;
mod actor_ref;
mod capabilities;
mod cell;
mod contract;
mod dead_letters;
mod guest;
mod imports;
mod manifest;
mod metrics;
mod native;
mod plan;
mod policy;
mod report;
mod supervisor;
mod system;
mod upgrade;

pub use actor_ref::{ActorInfo, ActorRef, AskError, HealthError, Stop};
pub use capabilities::{Capabilities, NamePattern};
pub use cell::Lifecycle;
pub use contract::{ContractKind, NoHandler, WIT};
pub use dead_letters::{DeadLetter, DeadLetterLimits, DeadLetters, DeadReason};
pub use guest::{ActorSpec, ActorState, DEFAULT_REDELIVERY};
pub use manifest::{ActorManifest, ComponentTable, LoadManifestError};
pub use native::{NativeActor, NativeSpec};
pub use policy::{Backoff, Intensity, Reaction, Restart, RestartPolicy};
pub use report::{CrashReport, During, StartError};
pub use supervisor::{Strategy, SupervisorPolicy, SupervisorRef};
pub use system::{
    ActorSystem, DeniedAction, HostSubscription, ResendError, ShutdownReport, SpawnError, SupervisorSpec, SystemConfig,
    SystemEvent,
};
pub use upgrade::{UpgradeError, UpgradeOptions};
