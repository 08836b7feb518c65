//! What of WebAssembly is not for everybody: what an embedder switches on, and what no engine here has.

use std::{fmt, ops::BitOrAssign};

use serde::{Deserialize, Serialize};

/// Features that cost also those guests which do not use them. A component that needs some is compiled and run by a
/// wasmtime engine of its own, made when the first such component comes; all others go on as if there were none.
///
/// Instances that need some come [on demand](crate::Allocation::OnDemand), never from the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Features {
    /// Async functions, streams and futures of the component model, of which WASI 0.3 is made.
    pub component_async: bool,
    /// Exceptions, as C++ and Rust can be built with. An exception that is thrown is an object of the collected heap, see
    /// [`garbage_collection`](Self::garbage_collection), and takes at least 64 KiB of the component's memory.
    pub exceptions: bool,
    /// Garbage collection, which Kotlin, Dart, Java and Scala need together with exceptions. The heap is charged to the
    /// component's memory as a linear memory is; half of it is free when it is collected. A collection gives way to other
    /// tasks, but blocks its worker for up to a millisecond for each MiB of heap at a time, and a kill waits for its end.
    pub garbage_collection: bool,
}

impl Features {
    /// None of them.
    pub const NONE: Self = Self { component_async: false, exceptions: false, garbage_collection: false };

    /// All of them.
    pub const ALL: Self = Self { component_async: true, exceptions: true, garbage_collection: true };

    /// How many combinations there are.
    pub(crate) const COMBINATIONS: usize = 8;

    /// All combinations of these, none of them first.
    pub(crate) fn combinations(self) -> impl Iterator<Item = Self> {
        (0..Self::COMBINATIONS).map(Self::of_index).filter(move |some| self.offers(*some))
    }

    /// Which of the combinations it is.
    pub(crate) fn index(self) -> usize {
        let bit = |is_on, at: usize| usize::from(is_on) << at;
        bit(self.component_async, 0) | bit(self.exceptions, 1) | bit(self.garbage_collection, 2)
    }

    fn of_index(index: usize) -> Self {
        let bit = |at: usize| index >> at & 1 == 1;
        Self { component_async: bit(0), exceptions: bit(1), garbage_collection: bit(2) }
    }

    /// Whether all of those are among these.
    pub(crate) fn offers(self, needed: Self) -> bool {
        self.lacking(needed).is_none()
    }

    /// The first of those that is not among these.
    pub(crate) fn lacking(self, needed: Self) -> Option<Feature> {
        let features = [
            (Feature::GarbageCollection, needed.garbage_collection, self.garbage_collection),
            (Feature::Exceptions, needed.exceptions, self.exceptions),
            (Feature::ComponentAsync, needed.component_async, self.component_async),
        ];
        features.into_iter().find(|(_, needed, has)| *needed && !has).map(|(feature, ..)| feature)
    }

    /// Whether its instances may have a heap that is collected.
    pub fn has_collected_heap(self) -> bool {
        self.exceptions || self.garbage_collection
    }
}

impl BitOrAssign for Features {
    fn bitor_assign(&mut self, others: Self) {
        self.component_async |= others.component_async;
        self.exceptions |= others.exceptions;
        self.garbage_collection |= others.garbage_collection;
    }
}

/// A feature that a component needs and this engine lacks, see [`LoadError::Unsupported`](crate::LoadError::Unsupported).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Feature {
    /// [`Features::component_async`].
    ComponentAsync,
    /// Async builtins that are not in WASI 0.3.
    MoreAsyncBuiltins,
    /// Async functions without a callback.
    StackfulAsync,
    /// Threads that a component starts in its own instance.
    ComponentThreads,
    /// `error-context`.
    ErrorContext,
    /// [`Features::exceptions`].
    Exceptions,
    /// Exceptions as they were before they were standardised.
    LegacyExceptions,
    /// [`Features::garbage_collection`].
    GarbageCollection,
    /// Values of garbage collection in the component model's calls.
    ComponentGarbageCollection,
    /// Shared memories and atomic instructions.
    Threads,
    /// Shared tables, globals and functions.
    SharedEverythingThreads,
    /// Memories of 64 bits.
    Memory64,
    /// Memories of 64 bits in the component model's calls.
    ComponentMemory64,
    /// Stack switching.
    StackSwitching,
    /// Memories with pages of other sizes than 64 KiB.
    CustomPageSizes,
    /// Instructions that discard memory.
    MemoryControl,
    /// Arithmetic with 128 bits.
    WideArithmetic,
    /// Custom descriptors of types.
    CustomDescriptors,
    /// Values as imports and exports of components.
    ComponentValues,
    /// Nested names of components' imports and exports.
    NestedNames,
    /// Canonical names of interfaces.
    CanonicalNames,
    /// Lists of a fixed length.
    FixedLengthLists,
    /// Maps.
    Maps,
    /// `implements` of imports and exports.
    Implements,
}

impl Feature {
    /// What it is called, and what usually makes a component need it.
    fn description(self) -> (&'static str, &'static str) {
        const UNUSUAL: &str = "no toolchain uses it unless told to";
        match self {
            Self::ComponentAsync => (
                "the component model's async",
                "it comes with WASI 0.3 and with async functions in WIT; switch it on by `EngineConfig::features`, or build for \
                 WASI 0.2",
            ),
            Self::MoreAsyncBuiltins | Self::StackfulAsync => {
                ("async beyond WASI 0.3", "build it with callbacks, as `wit-bindgen` does")
            }
            Self::ComponentThreads => ("threads in a component", "build it without threads"),
            Self::ErrorContext => ("`error-context`", "it was left out of WASI 0.3; use a newer toolchain"),
            Self::Exceptions => (
                "exceptions",
                "they come with Kotlin, Dart, Java and Scala, with C++ built by `-fwasm-exceptions` and Rust by `-Cpanic=unwind`; \
                 switch them on by `EngineConfig::features`, or build C++ with `-fno-exceptions` and Rust with `-Cpanic=abort`",
            ),
            Self::LegacyExceptions => (
                "exceptions of the old kind",
                "tell the compiler to use those of the standard: C++ by `-mllvm -wasm-use-legacy-eh=false`, Rust by \
                 `-Cllvm-args=-wasm-use-legacy-eh=false`",
            ),
            Self::GarbageCollection => (
                "garbage collection",
                "it comes with Kotlin, Dart, Java and Scala, and with MoonBit built for `wasm-gc`; switch it on by \
                 `EngineConfig::features`",
            ),
            Self::ComponentGarbageCollection => ("collected values in the component model's calls", UNUSUAL),
            Self::Threads | Self::SharedEverythingThreads => {
                ("threads", "build it without shared memories: without `-pthread` and the target feature `atomics`")
            }
            Self::Memory64 | Self::ComponentMemory64 => ("64-bit memories", "build it for wasm32"),
            Self::StackSwitching => ("stack switching", UNUSUAL),
            Self::CustomPageSizes => ("pages of a custom size", UNUSUAL),
            Self::MemoryControl => ("memory control", UNUSUAL),
            Self::WideArithmetic => ("wide arithmetic", "build it without the target feature `wide-arithmetic`"),
            Self::CustomDescriptors => ("custom descriptors", UNUSUAL),
            Self::ComponentValues => ("values as imports or exports", UNUSUAL),
            Self::NestedNames => ("nested names", UNUSUAL),
            Self::CanonicalNames => ("canonical names of interfaces", UNUSUAL),
            Self::FixedLengthLists => ("lists of a fixed length", "write `list<T>` in its WIT"),
            Self::Maps => ("maps", "write `list<tuple<K, V>>` in its WIT"),
            Self::Implements => ("`implements`", UNUSUAL),
        }
    }

    /// What to do about it.
    pub fn advice(self) -> &'static str {
        self.description().1
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.description().0)
    }
}
