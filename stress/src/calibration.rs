//! What the compiler takes for each instruction and for shapes that grow faster than their size, beside what
//! `CompileLimits` counts for it.

use std::time::Instant;

use airssys_wasm_engine::{CompileLimits, Complexity, EngineConfig, Profile, WasmEngine};
use anyhow::{Context, Result, ensure};
use wasm_encoder::{
    CodeSection, ConstExpr, DataCountSection, DataSection, ElementSection, Elements, Function, FunctionSection,
    GlobalSection, GlobalType, Instruction as I, MemorySection, MemoryType, Module, RefType, TableSection, TableType,
    TypeSection, ValType,
    reencode::{Reencode, RoundtripReencoder},
};
use wasmparser::{Operator, Validator, WasmFeatures};

use crate::hostile::generate::{self, objects::EACH};

/// One reading.
#[derive(Debug, Clone)]
pub struct Reading {
    /// Of an instruction or a shape.
    pub name: String,
    /// How often, or how large.
    pub n: usize,
    /// What the model counts.
    pub units: u64,
    /// Microseconds that the compiler took.
    pub micros: f64,
}

impl Reading {
    /// Microseconds for each unit.
    pub fn ratio(&self) -> f64 {
        self.micros / self.units.max(1) as f64
    }
}

/// Times the compiler.
pub struct Calibration(WasmEngine);

impl Calibration {
    /// With an engine that refuses nothing.
    ///
    /// # Errors
    ///
    /// When it cannot be made.
    pub fn new() -> Result<Self> {
        let config =
            EngineConfig { compile_limits: CompileLimits::NONE, ..EngineConfig::on_demand().with_garbage_collection() };
        Ok(Self(WasmEngine::new(config.compile_in_process())?))
    }

    /// Compiles a component and says what that took: the least of a few times, if it does not take long.
    ///
    /// # Errors
    ///
    /// When it cannot be compiled.
    pub fn read(&self, name: &str, n: usize, component: &[u8]) -> Result<Reading> {
        let units = Complexity::of(component, &CompileLimits::NONE)?.work;
        let mut micros = f64::INFINITY;
        for _ in 0..3 {
            let started = Instant::now();
            self.0.precompile_blocking(component, Profile::Plain).with_context(|| format!("{name}, {n} of it"))?;
            micros = micros.min(started.elapsed().as_secs_f64() * 1e6);
            if micros > 200_000.0 {
                break;
            }
        }
        Ok(Reading { name: name.to_owned(), n, units, micros })
    }
}

/// A value for an immediate of an instruction; none where there is no simple one.
trait Immediate: Sized {
    fn simple() -> Option<Self>;
}

macro_rules! immediates {
    ($($ty:ty => $value:expr),* $(,)?) => {
        $(impl Immediate for $ty { fn simple() -> Option<Self> { $value } })*
    };
}

immediates! {
    u32 => Some(0),
    u8 => Some(0),
    i32 => Some(77),
    i64 => Some(77),
    [u8; 16] => Some([3; 16]),
    wasmparser::Ieee32 => Some(1.5_f32.into()),
    wasmparser::Ieee64 => Some(1.5_f64.into()),
    wasmparser::V128 => Some(wasmparser::V128::from(0x1234_5678_u128)),
    wasmparser::MemArg => Some(wasmparser::MemArg { align: 0, max_align: 0, offset: 0, memory: 0 }),
    wasmparser::BlockType => None,
    wasmparser::ValType => Some(wasmparser::ValType::I32),
    wasmparser::HeapType => Some(wasmparser::HeapType::FUNC),
    wasmparser::RefType => Some(wasmparser::RefType::FUNCREF),
    wasmparser::Ordering => Some(wasmparser::Ordering::SeqCst),
    wasmparser::TryTable => None,
    wasmparser::ResumeTable => None,
    Vec<wasmparser::ValType> => None,
}

impl Immediate for wasmparser::BrTable<'_> {
    fn simple() -> Option<Self> {
        None
    }
}

/// Each instruction that has simple immediates, by the name it has in wasmparser.
fn instructions<'a>() -> Vec<(&'static str, Operator<'a>)> {
    macro_rules! all {
        ($(@$proposal:ident $op:ident $({ $($arg:ident: $ty:ty),* })? => $visit:ident ($($ann:tt)*))*) => {
            [$({
                let simple = || Some(Operator::$op $({ $($arg: <$ty as Immediate>::simple()?),* })?);
                (stringify!($op), simple())
            }),*]
        };
    }
    let all = wasmparser::for_each_operator!(all);
    all.into_iter().filter_map(|(name, operator)| Some((name, operator?))).collect()
}

/// The parameters of the function that is compiled, one of each type.
const PARAMS: [ValType; 6] =
    [ValType::I32, ValType::I64, ValType::F32, ValType::F64, ValType::V128, ValType::Ref(RefType::FUNCREF)];

/// An instruction with what must be before and after it, so that it can be repeated and its result is used.
struct Repeatable {
    name: String,
    before: Vec<I<'static>>,
    after: Vec<I<'static>>,
    operator: Operator<'static>,
}

impl Repeatable {
    fn component(&self, n: usize) -> Result<Vec<u8>> {
        let mut types = TypeSection::new();
        types.ty().function([], []);
        types.ty().function(PARAMS, []);
        let mut functions = FunctionSection::new();
        functions.function(0).function(1);
        let mut tables = TableSection::new();
        let element_type = RefType::FUNCREF;
        tables.table(TableType { element_type, table64: false, minimum: 10, maximum: None, shared: false });
        let mut memories = MemorySection::new();
        memories.memory(MemoryType { minimum: 1, maximum: None, memory64: false, shared: false, page_size_log2: None });
        let mut globals = GlobalSection::new();
        let global = GlobalType { val_type: ValType::I32, mutable: true, shared: false };
        globals.global(global, &ConstExpr::i32_const(7));
        let mut elements = ElementSection::new();
        elements.passive(Elements::Functions(vec![0].into()));
        let mut data = DataSection::new();
        data.passive([1]);
        let mut code = CodeSection::new();
        let mut empty = Function::new([]);
        empty.instruction(&I::End);
        code.function(&empty);
        let mut function = Function::new([]);
        let operator = RoundtripReencoder.instruction(self.operator.clone())?;
        for _ in 0..n {
            self.before.iter().for_each(|each| _ = function.instruction(each));
            function.instruction(&operator);
            self.after.iter().for_each(|each| _ = function.instruction(each));
        }
        function.instruction(&I::End);
        code.function(&function);
        let mut module = Module::new();
        module.section(&types).section(&functions).section(&tables).section(&memories).section(&globals);
        module.section(&elements).section(&DataCountSection { count: 1 }).section(&code).section(&data);
        Ok(generate::in_component(&module))
    }

    fn is_valid(&self) -> bool {
        // What an engine here takes: no garbage collection, exceptions, threads or wide memories.
        let features = WasmFeatures::WASM3 - WasmFeatures::GC - WasmFeatures::GC_TYPES - WasmFeatures::EXCEPTIONS;
        let features = features - WasmFeatures::THREADS - WasmFeatures::MEMORY64;
        let features = features | WasmFeatures::COMPONENT_MODEL;
        self.component(1).is_ok_and(|component| Validator::new_with_features(features).validate_all(&component).is_ok())
    }
}

/// Finds out what an instruction takes and leaves.
fn repeatable(name: &str, operator: &Operator<'static>) -> Option<Repeatable> {
    let types = PARAMS.len();
    let operands = |count: u32| {
        (0..types.pow(count))
            .map(move |n| (0..count).map(|at| I::LocalGet((n / types.pow(at) % types) as u32)).collect::<Vec<_>>())
    };
    let results = || std::iter::once(Vec::new()).chain((0..types as u32).map(|local| vec![I::LocalSet(local)]));
    let of = |before, after| Repeatable { name: name.to_owned(), before, after, operator: operator.clone() };
    for before in (0..=3).flat_map(operands) {
        for after in results() {
            let found = of(before.clone(), after);
            if !found.is_valid() {
                continue;
            }
            let dead = of(before.clone(), [found.after.clone(), vec![I::Drop]].concat());
            if !dead.is_valid() {
                return Some(found);
            }
            // Nothing that comes after it is reached.
            let mut before = before;
            before.splice(..0, [I::LocalGet(0), I::If(wasm_encoder::BlockType::Empty)]);
            let found = of(before, vec![I::End]);
            return found.is_valid().then_some(found);
        }
    }
    None
}

/// Reads all instructions, at two sizes each.
///
/// # Errors
///
/// When one cannot be compiled.
pub fn of_instructions(calibration: &Calibration, mut at: impl FnMut(&Reading)) -> Result<()> {
    let mut found = 0;
    for (name, operator) in instructions() {
        let Some(instruction) = repeatable(name, &operator) else { continue };
        found += 1;
        for n in [500, 4_000] {
            at(&calibration.read(&instruction.name, n, &instruction.component(n)?)?);
        }
    }
    ensure!(found > 400, "only {found} instructions were found out; has wasmparser changed?");
    Ok(())
}

/// Shapes of which the compiler's work grows faster than their size, each at a few sizes.
const SHAPES: [(&str, [usize; 3]); 28] = [
    ("functions", [100, 1_000, 10_000]),
    ("exports", [100, 1_000, 10_000]),
    ("elements", [100, 1_000, 10_000]),
    ("long_initial_value", [100, 1_000, 10_000]),
    ("nested_loops", [20, 60, 120]),
    ("live_values", [300, 1_000, 3_000]),
    ("nested_blocks", [300, 1_000, 5_000]),
    ("locals_over_blocks", [100, 300, 1_000]),
    ("branches_over_locals", [100, 1_000, 3_000]),
    ("indirect_calls", [300, 1_000, 5_000]),
    ("calls_over_values", [100, 300, 1_000]),
    ("loads_over_values", [100, 300, 1_000]),
    ("branch_tables", [30, 100, 300]),
    ("wide_types", [30, 100, 300]),
    ("wide_results", [10, 30, 100]),
    ("escaping_functions", [100, 1_000, 5_000]),
    ("data_segments", [1_000, 3_000, 10_000]),
    ("modules", [30, 100, 300]),
    ("lowered_functions", [10, 100, 500]),
    ("adapters", [10, 30, 100]),
    ("exception_edges", [100, 1_000, 5_000]),
    ("exceptions_over_locals", [100, 300, 1000]),
    ("many_handlers", [100, 300, 800]),
    ("caught_values", [10, 30, 100]),
    ("fields", [100, 1_000, 5_000]),
    ("fixed_array", [100, 1_000, 4_000]),
    ("references_over_calls", [100, 300, 1_000]),
    ("object_types", [100, 1_000, 10_000]),
];

/// Reads all shapes.
///
/// # Errors
///
/// When one cannot be compiled.
pub fn of_shapes(calibration: &Calibration, mut at: impl FnMut(&Reading)) -> Result<()> {
    let objects = EACH.iter().map(|(name, _)| (*name, [100, 1_000, 3_000]));
    for (name, sizes) in SHAPES.into_iter().chain(objects) {
        for n in sizes {
            at(&calibration.read(name, n, &generate::binary(name, n)?)?);
        }
    }
    Ok(())
}
