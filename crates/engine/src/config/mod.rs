//! The settings of an engine, and the `wasmtime::Config` made from them. Limits of a single component are in
//! `airssys-wasm-limits`.

mod compiler;
mod features;
mod limits;

use std::{num::NonZeroUsize, path::PathBuf, time::Duration};

use wasmtime::{Collector, Config, Enabled, InstanceAllocationStrategy, PoolingAllocationConfig};

use serde::{Deserialize, Serialize};

pub use self::{
    compiler::{Compiler, CompilerProcess, CompilerProgram},
    features::{Feature, Features},
    limits::{CompileLimits, Imported},
};

/// Bytes that a linear memory can have: what 32 bits can address, and what each slot of the pool reserves.
pub const MAX_MEMORY: u64 = 4 << 30;

/// Bytes of a memory's initial contents, from the first to the last that is set, up to which they become one image even
/// if most of it is zero. Beyond this, each new instance fills a memory that is less than half data segment by segment.
/// It is wasmtime's default, and StarlingMonkey needs it: 2.6 MB of data in 10,000 segments over 12 MB. Two bytes can
/// become an image of this size, which [`CompileLimits::image_bytes`] counts.
///
/// wasmtime's compatibility hash does not include it, so [`code_digest`](crate::digest::code_digest) does.
pub(crate) const DENSE_IMAGE: u64 = 16 << 20;

/// The fixed settings of a [`WasmEngine`](crate::WasmEngine).
///
/// Besides what can be chosen here, every engine has epoch interruption on, debug information and 64-bit memories off, and
/// shared memories and threads left out at compile time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineConfig {
    /// The pool that instances come from. `None` allocates every instance on demand: nothing is reserved, and each
    /// instance costs some 2 to 15 µs more. Default: [`PoolConfig::default`].
    pub pool: Option<PoolConfig>,
    /// Bytes of stack a guest may use before it ends as a stack overflow. Default: 512 KiB.
    pub max_wasm_stack: usize,
    /// What advances the epoch, by which CPU time is counted and shared. Default: a tick each millisecond.
    pub ticking: Ticking,
    /// Whether hardware faults may signal traps. Default: `true`.
    ///
    /// `false` makes traps many times cheaper on virtual machines, and forces the Spectre mitigations of heap and
    /// table accesses off: a security decision, recorded in `docs/decisions/002-signals-based-traps.md`.
    pub signals_based_traps: bool,
    /// Whether one component is compiled on several threads. Default: `false`.
    ///
    /// Off, a small component compiles in two thirds of the time and a large one leaves the other cores to the
    /// components that are running.
    pub parallel_compilation: bool,
    /// Components compiled at once by the async forms of loading. Default: 2, so that a slow one does not block the
    /// others.
    pub compile_jobs: NonZeroUsize,
    /// Where components are compiled. Default: [`Compiler::Process`], for which `main` calls
    /// [`compiler_hook`](crate::compiler_hook) first.
    pub compiler: Compiler,
    /// What is refused before the compiler sees it. Default: [`CompileLimits::default`].
    pub compile_limits: CompileLimits,
    /// What components may need that costs also those who do not use it. Default: [`Features::NONE`]. A component that
    /// needs none of it calls three to four times faster than it would with the component model's async.
    pub features: Features,
    /// Wasm frames that a crash keeps. Default: 16. At least 1: a frame tells a failure below a guest from one outside.
    pub backtrace_frames: NonZeroUsize,
    /// The folder of the on-disk code cache, see [`CodeCache`](crate::CodeCache). Default: none.
    pub code_cache: Option<PathBuf>,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            pool: Some(PoolConfig::default()),
            max_wasm_stack: 512 << 10,
            ticking: Ticking::Every(Duration::from_millis(1)),
            signals_based_traps: true,
            parallel_compilation: false,
            compile_jobs: const { NonZeroUsize::new(2).expect("not zero") },
            compiler: Compiler::default(),
            compile_limits: CompileLimits::default(),
            features: Features::NONE,
            backtrace_frames: const { NonZeroUsize::new(16).expect("not zero") },
            code_cache: None,
        }
    }
}

impl EngineConfig {
    /// A pool of 16 components, for tests, examples and tools: made in well under a millisecond.
    pub fn small() -> Self {
        Self { pool: Some(PoolConfig::for_components(16)), ..Self::default() }
    }

    /// A pool of 10,000 components, see [`PoolConfig::large`].
    pub fn large() -> Self {
        Self { pool: Some(PoolConfig::large()), ..Self::default() }
    }

    /// No pool: every instance on demand.
    pub fn on_demand() -> Self {
        Self { pool: None, ..Self::default() }
    }

    /// An engine whose epoch advances only by [`WasmEngine::tick`](crate::WasmEngine::tick), and counts a
    /// millisecond a tick.
    #[must_use]
    pub fn with_manual_ticks(self) -> Self {
        Self { ticking: Ticking::Manual(Duration::from_millis(1)), ..self }
    }

    /// An engine that compiles in this process, for trusted components only; see [`Compiler::InProcess`].
    #[must_use]
    pub fn compile_in_process(self) -> Self {
        Self { compiler: Compiler::InProcess, ..self }
    }

    /// An engine that also takes components with async functions, streams and futures; see
    /// [`Features::component_async`].
    #[must_use]
    pub fn with_component_async(self) -> Self {
        Self { features: Features { component_async: true, ..self.features }, ..self }
    }

    /// An engine that also takes components with exceptions; see [`Features::exceptions`].
    #[must_use]
    pub fn with_exceptions(self) -> Self {
        Self { features: Features { exceptions: true, ..self.features }, ..self }
    }

    /// An engine that also takes components with garbage collection and exceptions, as languages that have the one have the
    /// other; see [`Features::garbage_collection`].
    #[must_use]
    pub fn with_garbage_collection(self) -> Self {
        Self { features: Features { garbage_collection: true, exceptions: true, ..self.features }, ..self }
    }

    /// Bytes of stack that an async call has: what the guest may use, and 512 KiB for the host's functions.
    pub fn stack_size(&self) -> usize {
        self.max_wasm_stack + (512 << 10)
    }

    pub(crate) fn copy_on_write(&self) -> bool {
        self.pool.as_ref().is_none_or(|pool| pool.copy_on_write)
    }

    /// The wasmtime configuration for one kind of code, with or without the pool.
    ///
    /// Everything that is compiled into the code depends on the kind alone, so that the same artefact loads into a
    /// pooling and into an on-demand engine.
    pub(crate) fn wasmtime(&self, kind: Kind, pool: Option<&PoolConfig>) -> Config {
        let Features { component_async, exceptions, garbage_collection } = kind.features;
        let mut config = Config::new();
        config
            .concurrency_support(component_async)
            .epoch_interruption(true)
            .consume_fuel(kind.profile == Profile::Metered)
            .parallel_compilation(self.parallel_compilation)
            .signals_based_traps(self.signals_based_traps)
            .max_wasm_stack(self.max_wasm_stack)
            .async_stack_size(self.stack_size())
            .wasm_backtrace_max_frames(Some(self.backtrace_frames))
            // The limits count in 32 bits' worth of memory, and so do the toolchains.
            .wasm_memory64(false)
            // Each is on by default, and one that stays on alone lets guests in that end the process, as of 48.0.8.
            .gc_support(kind.features.has_collected_heap())
            .wasm_gc(garbage_collection)
            .wasm_exceptions(exceptions)
            // Collected in steps, charged to the guest. The others leak or count references.
            .collector(Collector::Copying)
            .memory_init_cow(self.copy_on_write())
            .memory_guaranteed_dense_image_size(DENSE_IMAGE)
            // Off, each instance fills its tables anew. What a table becomes in the code is counted as items.
            .table_lazy_init(true)
            .memory_reservation(MAX_MEMORY);
        if let Some(pool) = pool {
            config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool.wasmtime()));
        }
        config
    }
}

/// How many instances a pool holds, and how large each may be.
///
/// A slot costs address space, not memory, until it is used. The number of *called* components is bounded by
/// [`components`](Self::components), because a store that was called asynchronously keeps its stack until it is
/// dropped. Each stack costs some 2.5 µs when the engine is made and two of the process's memory mappings, of which
/// Linux allows 65,530 by default (`vm.max_map_count`); each used memory costs two more, or three when its data
/// segments are mapped copy-on-write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolConfig {
    /// Live, called components. Default: 1,000, for which creating an engine takes about three milliseconds.
    pub components: u32,
    /// Live core instances, and as many memories and tables. Default: twice the components, and no fewer
    /// than 64. A component made by a
    /// language toolchain needs four or more core instances, a hand-written one needs one.
    pub core_instances: u32,
    /// Core instances that one component may have. Default: 64.
    pub core_instances_per_component: u32,
    /// Memories that one component may have. Default: 8.
    pub memories_per_component: u32,
    /// Tables that one component may have. Default: 32.
    pub tables_per_component: u32,
    /// Elements a table may have. Default: 32,768; a Python component needs more than 20,000.
    pub table_elements: usize,
    /// Bytes of each linear memory that are zeroed when it is freed, and stay resident, instead of being returned to the
    /// system. Default: 64 KiB. It is what makes a fresh instance of a small component cheap.
    pub keep_resident: usize,
    /// Whether data segments are mapped copy-on-write. Default: `true`. Off saves one mapping an instance.
    pub copy_on_write: bool,
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self::for_components(1_000)
    }
}

impl PoolConfig {
    /// A pool for this many live, called components.
    pub fn for_components(components: u32) -> Self {
        Self {
            components,
            core_instances: components.saturating_mul(2).max(64),
            core_instances_per_component: 64,
            memories_per_component: 8,
            tables_per_component: 32,
            table_elements: 32 << 10,
            keep_resident: 64 << 10,
            copy_on_write: true,
        }
    }

    /// A pool for 10,000 live, called components of one core instance each, within Linux's default 65,530 mappings.
    ///
    /// Data segments are copied rather than mapped, and creating the engine takes some 30 ms.
    pub fn large() -> Self {
        Self {
            core_instances: 10_500,
            copy_on_write: false,
            // Each of 10,000 free slots may keep this resident.
            keep_resident: 16 << 10,
            ..Self::for_components(10_000)
        }
    }

    fn wasmtime(&self) -> PoolingAllocationConfig {
        let mut pool = PoolingAllocationConfig::new();
        // Two for each place, see `LoadedComponent::place`.
        pool.total_component_instances(self.components.saturating_mul(2))
            .total_stacks(self.components)
            .total_core_instances(self.core_instances)
            .total_memories(self.core_instances)
            .total_tables(self.core_instances)
            .max_core_instances_per_component(self.core_instances_per_component)
            .max_memories_per_component(self.memories_per_component)
            .max_tables_per_component(self.tables_per_component)
            .max_tables_per_module(self.tables_per_component)
            .max_memories_per_module(self.memories_per_component)
            .max_component_instance_size(4 << 20)
            .max_core_instance_size(4 << 20)
            .table_elements(self.table_elements)
            .max_memory_size(MAX_MEMORY as usize)
            .linear_memory_keep_resident(self.keep_resident)
            .table_keep_resident(4 << 10)
            .max_unused_warm_slots(self.components.min(100))
            // Finding dirty pages by `PAGEMAP_SCAN` has an open isolation bug upstream where swap is on.
            .pagemap_scan(Enabled::No);
        pool
    }
}

/// Which code is generated for a component.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub enum Profile {
    /// Interrupted by epochs. The right one unless a deterministic budget is asked for.
    #[default]
    Plain,
    /// Interrupted by epochs and metered by fuel, an exact and repeatable count of instructions. Code with loops runs
    /// two to three times slower.
    Metered,
}

/// Code of one kind runs in one kind of wasmtime engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Kind {
    pub(crate) profile: Profile,
    pub(crate) features: Features,
}

impl Kind {
    pub(crate) const COUNT: usize = 2 * Features::COMBINATIONS;

    /// Which of the kinds it is.
    pub(crate) fn index(self) -> usize {
        2 * self.features.index() + usize::from(self.profile == Profile::Metered)
    }

    /// Whether instances can come from a pool. Not if they may have several stacks each, of which the pool has one for each
    /// component, nor if they have collected heaps, which the pool takes for memories: one instance could take those of
    /// others.
    pub(crate) fn is_pooled(self) -> bool {
        self.features == Features::NONE
    }
}

impl From<Profile> for Kind {
    /// Without features.
    fn from(profile: Profile) -> Self {
        Self { profile, features: Features::NONE }
    }
}

/// What advances the epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ticking {
    /// A thread that ticks with this period, 10 µs at least.
    Every(Duration),
    /// Nothing but [`WasmEngine::tick`](crate::WasmEngine::tick) and
    /// [`WasmEngine::pass_time`](crate::WasmEngine::pass_time). The duration is what one tick counts for.
    Manual(Duration),
}

/// A thread that ticks more often does little else.
pub(crate) const SHORTEST_TICK: Duration = Duration::from_micros(10);

impl Ticking {
    /// The time that one tick stands for.
    pub fn period(self) -> Duration {
        let (Self::Every(period) | Self::Manual(period)) = self;
        period
    }
}
