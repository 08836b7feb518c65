//! What a component may cost to compile.

use serde::{Deserialize, Serialize};

/// How large and how complex a component may be. Part of the [`EngineConfig`](crate::EngineConfig).
///
/// The defaults are some four times what a JavaScript or Python component needs, which contains an interpreter.
/// `SECURITY.md` has the cost of the worst component within them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CompileLimits {
    /// Bytes of its binary form. Default: 64 MiB.
    pub bytes: u64,
    /// Bytes of its text form. Reading it can take time quadratic in its length. Default: 1 MiB.
    pub text_bytes: u64,
    /// Nesting of modules, components, and types of instances and components. Default: 10. Types are read recursively:
    /// some 1,000 levels overflow a thread's stack.
    pub nesting: u32,
    /// Functions of all its modules. Default: 150,000.
    pub functions: u64,
    /// Element segments of all its modules, which the compiler handles one by one. Default: 10,000.
    pub element_segments: u64,
    /// Imports of the component, and declarations in types of instances and components. If one is missing, linking goes
    /// through them many times. Default: 3,000.
    pub imports: u64,
    /// Everything that has an index: types, imports, exports, functions, globals, tables, segments with their elements,
    /// aliases, instances. Counted as written, and as often as it exists when everything is instantiated. Default:
    /// 500,000.
    pub items: u64,
    /// Core modules and components written in it, each of which costs more the more there are. Default: 1,000.
    pub modules: u64,
    /// Core instances, as often as they exist when everything is instantiated. Default: 1,000.
    pub instances: u64,
    /// Bytes of the images of memories as they are when an instance begins, which are part of the code: from the first byte
    /// that a segment sets to the last, in whole pages of 4 KiB, where the compiler makes an image. Default: 32 MiB.
    pub image_bytes: u64,
    /// Work in the function that has most of it, on which the compiler's memory depends too. Default: 2 million.
    ///
    /// A unit is at most three microseconds of an optimised compiler, and mostly less than one. A function has:
    ///
    /// - 60 for itself, and one for each instruction, each value that one takes or leaves, and each target of a branch;
    ///   more for instructions that are slow to compile;
    /// - a 16th of the square of the values that may be alive at a time (its locals and operands), and a fourth of these
    ///   values times its blocks, with garbage collection all of that;
    /// - a 64th of the depth of each block, and for each loop its depth times the locals that are set in it;
    /// - a 64th of the square of the instructions that may call the host;
    /// - 4 for each field of an object that it makes, and 20 for each element of an array that it makes from operands;
    /// - a 1,500th of the square of the values that go from calls to exception handlers: for each call and each handler that
    ///   it is in the scope of, one, the locals that are set in that scope, and the values that are caught.
    ///
    /// These count as functions as well:
    ///
    /// - a module's initialisation: 16 for each element of its segments, 32 for each instruction of an initial value that
    ///   is more than a constant, and for data segments that make no image 20 each and a 64th of their square;
    /// - the code for each type of functions and for each function that the host can call: 60, 16 for each parameter and
    ///   result, and a 16th of their square.
    pub function_work: u64,
    /// Exception handlers that a call may be in the scope of. Each is looked at when an exception passes, in every frame, and
    /// nothing interrupts that. Default: 64.
    pub handlers: u64,
    /// Work in all functions together, one for each item, 20 for each module, and 1,000 for each function that a guest calls
    /// of its component's. Default: 60 million.
    pub work: u64,
    /// What a core module or component counts as that a component imports, or finds in an instance, and instantiates: the most
    /// that any of those has which you define in a linker. `None` refuses such a component, because what it costs is unknown.
    /// Default: `None`.
    pub imported: Option<Imported>,
    /// Bytes of native code with all that belongs to it, as it is mapped and as the code cache stores it. Known only after
    /// compiling. Default: 256 MiB.
    pub code_bytes: u64,
}

/// What a core module or component counts as that comes from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Imported {
    /// As [`CompileLimits::items`] counts them, with all that it instantiates.
    pub items: u64,
    /// As [`CompileLimits::instances`] counts them, beside itself if it is a module.
    pub instances: u64,
}

impl Default for CompileLimits {
    fn default() -> Self {
        Self {
            bytes: 64 << 20,
            text_bytes: 1 << 20,
            nesting: 10,
            functions: 150_000,
            element_segments: 10_000,
            imports: 3_000,
            items: 500_000,
            modules: 1_000,
            instances: 1_000,
            image_bytes: 32 << 20,
            function_work: 2_000_000,
            handlers: 64,
            work: 60_000_000,
            imported: None,
            code_bytes: 256 << 20,
        }
    }
}

impl CompileLimits {
    /// No limits, for components that are trusted.
    pub const NONE: Self = Self {
        bytes: u64::MAX,
        text_bytes: u64::MAX,
        nesting: u32::MAX,
        functions: u64::MAX,
        element_segments: u64::MAX,
        imports: u64::MAX,
        items: u64::MAX,
        modules: u64::MAX,
        instances: u64::MAX,
        image_bytes: u64::MAX,
        function_work: u64::MAX,
        handlers: u64::MAX,
        work: u64::MAX,
        imported: None,
        code_bytes: u64::MAX,
    };

    /// The names of the fields, as [`LoadError::TooComplex`] has them.
    pub(crate) const FIELDS: [&str; 14] = [
        "bytes",
        "text_bytes",
        "nesting",
        "functions",
        "element_segments",
        "imports",
        "items",
        "modules",
        "instances",
        "image_bytes",
        "function_work",
        "handlers",
        "work",
        "code_bytes",
    ];
}
