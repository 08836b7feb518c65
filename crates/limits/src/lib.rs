//! What a WebAssembly component may use, and the meters that enforce it.
//!
//! [`ResourceLimits`] is plain data, written by people in a `Component.toml`. [`Quota`] is the same checked against an
//! engine and a component. A [`Meter`] lives in the store and refuses what goes beyond; [`guard`] runs a call and ends
//! it at its deadline, when it is cancelled, and when a host function panics.
//!
//! ```
//! use airssys_wasm_limits::ResourceLimits;
//!
//! let limits = ResourceLimits::from_toml(
//!     r#"
//!     [resources]
//!     memory = "64MiB"
//!     cpu_time = "100ms"
//!     "#,
//! )?;
//! assert_eq!(limits.memory.as_u64(), 64 << 20);
//! assert_eq!(limits.cpu_time.as_millis(), 100);
//! assert_eq!(limits.fuel, None);
//! # Ok::<(), airssys_wasm_limits::ManifestError>(())
//! ```
//!
//! | what | counted in | enforced by |
//! |---|---|---|
//! | `memory`, `table_elements` | bytes and elements, over all memories and tables of a component | the store's limiter, before the growth |
//! | `memories`, `tables` | number | before anything is instantiated |
//! | `instances` | core instances | wasmtime, while instantiating |
//! | `cpu_time` | epoch ticks that the guest has its worker for | the epoch callback and the call hook, within two ticks |
//! | `deadline` | tokio time, from when the call is first pending | the guard, also while the guest waits in a host call |
//! | `fuel` | wasm instructions, roughly | the compiled code |
//! | `host_calls` | transitions from the guest to the host in a call | the call hook |
//! | `host_call_bytes` | bytes that one host call carries out of the guest | wasmtime, before it allocates |
//! | `handles` | live resource handles, in the guest and in the host's table | wasmtime |
//! | `message_size` | bytes that a call may return | wasmtime, before it allocates |
//! | `log_bytes` | bytes that go into the host's log, at once and in each second | whoever writes there, by [`LogAllowance`] |
//!
//! A start, a snapshot and a shutdown may have their own `cpu_time`, `deadline` and `fuel`: [`CallLimits`], taken by
//! [`begin_call`] for a [`CallPhase`].
//!
//! # What it leaves to others
//!
//! Classifying what happened as a crash belongs to `airssys-wasm-isolation`. The wasm stack's size belongs to the
//! engine. A host function that blocks its thread cannot be stopped by anybody: host functions that wait must be async.

mod budget;
mod guard;
mod inline;
mod limits;
mod log;
mod meter;
mod tasks;

pub use budget::{BudgetExhausted, MemoryBudget, MemoryGrant};
pub use bytesize::ByteSize;
pub use guard::{Due, GuardFuture, Guarded, Interrupted, guard, guard_inline, guard_several, later, may_call_inline};
pub use inline::InlineCalls;
pub use limits::{
    CallLimits, CallPhase, ManifestError, MessageTooLarge, OnGrowthRefused, Quota, QuotaError, ResourceLimits,
};
pub use log::{LogAllowance, LogLine};
pub use meter::{LimitExceeded, Meter, Metered, Usage, begin_call, begin_calls, give_way, install, unwatch, watch};
pub use tasks::RunningCall;
pub use tokio_util::sync::CancellationToken;
