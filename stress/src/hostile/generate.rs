//! Guests that are too large to be written down, by their number.

pub(crate) mod objects;

use anyhow::{Result, bail};
use wasm_encoder::{
    BlockType, CodeSection, Component, CompositeInnerType, CompositeType, ConstExpr, DataSection, ElementSection,
    Elements, ExportKind, ExportSection, FuncType, Function, FunctionSection, GlobalSection, GlobalType,
    Instruction as I, MemArg, MemorySection, MemoryType, Module, ModuleSection, RefType, Section, SubType,
    TableSection, TableType, TypeSection, ValType,
};

/// What the generator of this name makes of a number.
///
/// # Errors
///
/// When there is no such generator.
pub fn binary(generator: &str, n: usize) -> Result<Vec<u8>> {
    Ok(match generator {
        "functions" => functions(n, &|_| {}),
        "exports" => exports(n),
        "globals" => globals(n),
        "element_segments" => elements(n, 1),
        "nested_loops" => functions(1, &|function| nested_loops(function, n)),
        "many_loops" => functions(n, &|function| nested_loops(function, 100)),
        "many_values" => functions(n, &|function| live_values(function, 5_000)),
        "many_locals_over_blocks" => functions(n, &|function| locals_over_blocks(function, 2_200)),
        "many_nested_blocks" => functions(n, &|function| nested_blocks(function, 10_000)),
        "many_plain" => functions(n, &|function| plain(function, 190_000)),
        "live_values" => functions(1, &|function| live_values(function, n)),
        "nested_blocks" => functions(1, &|function| nested_blocks(function, n)),
        "locals_over_blocks" => functions(1, &|function| locals_over_blocks(function, n)),
        "elements" => elements(1, n),
        "long_initial_value" => wat::parse_str(format!(
            "(component (core module (global (import \"\" \"\") i32) (global i32 global.get 0 {})))",
            "i32.const 1 i32.add ".repeat(n)
        ))?,
        "imports" => {
            let imports: String = (0..n).map(|i| format!("(import \"i{i}\" (func))")).collect();
            wat::parse_str(format!("(component {imports})"))?
        }
        "imported_interface" => {
            let exports: String = (0..n).map(|i| format!("(export \"f{i}\" (func))")).collect();
            wat::parse_str(format!("(component (import \"i\" (instance {exports})))"))?
        }
        "long_type" => wat::parse_str(long_type(n))?,
        "zeros" => {
            let mut bytes = b"\0asm\x0d\0\x01\0".to_vec();
            bytes.resize(n, 0);
            bytes
        }
        "rubbish" => (0..n).map(|i| (i * 7 + 3) as u8).collect(),
        "actor_with_instances" => wat::parse_str(airssys_wasm_fixtures::SMALLEST_ACTOR.replacen(
            "(core module $m",
            &format!("(core module $empty) {} (core module $m", "(core instance (instantiate $empty))".repeat(n)),
            1,
        ))?,
        "doubling_calls" => wat::parse_str(doubling_calls(n))?,
        "instances" => wat::parse_str(airssys_wasm_fixtures::with_instances(n as u32))?,
        "nested_doubling" => wat::parse_str(nested(n, "(instance (instantiate $c)) (instance (instantiate $c))"))?,
        "wide_doubling" => wat::parse_str(nested(n, &"(instance (instantiate $c))".repeat(10)))?,
        "nested_components" => wat::parse_str(nested(n, ""))?,
        "nested_types" => nested_types(n),
        "doubling_types" => wat::parse_str(doubling_types(n))?,
        "given_component" => {
            wat::parse_str(r#"(component (component (import "c" (component $c)) (instance (instantiate $c))))"#)?
        }
        "bad_export_name" => bad_export_name()?,
        "data_segments" => data_segments(n),
        "dense_memory" => dense_memory(n),
        "memories" => memories(n),
        "sparse_tables" => sparse_tables(n),
        "branches_over_locals" => functions(1, &|function| branches_over_locals(function, n)),
        "indirect_calls" => with_table(&|function| indirect_calls(function, n)),
        "calls_over_values" => with_table(&|function| over_values(function, n, &I::Call(0), false)),
        "loads_over_values" => with_table(&|function| {
            let memarg = MemArg { offset: 0, align: 0, memory_index: 0 };
            over_values(function, n, &I::I32Load(memarg), true);
        }),
        "table_copies" => with_table(&|function| table_copies(function, n)),
        "branch_tables" => functions(1, &|function| branch_tables(function, n)),
        "wide_types" => wide_types(n, 900),
        "wide_results" => wide_results(n)?,
        "types_in_a_group" => types_in_a_group(n),
        "escaping_functions" => escaping_functions(n),
        "modules" => modules(n),
        "nested_modules" => {
            let components = "(component (core module))".repeat(n);
            wat::parse_str(format!("(component {components})"))?
        }
        "empty_components" => wat::parse_str(format!("(component {})", "(component)".repeat(n)))?,
        "lowered_functions" => lowered_functions(n)?,
        "adapters" => adapters(n)?,
        "long_names_exported" => long_names_exported(n)?,
        "exception_edges" => objects::exception_edges(n, 1, 0)?,
        "exceptions_over_locals" => objects::exception_edges(1000, 1, n / 10)?,
        "many_handlers" => objects::exception_edges(n, 60, 0)?,
        "nested_handlers" => objects::nested_handlers(n)?,
        "caught_values" => objects::caught_values(n)?,
        "fields" => objects::fields(n)?,
        "fixed_array" => objects::fixed_array(n)?,
        "references_over_calls" => objects::references_over_calls(n)?,
        "object_types" => objects::object_types(n)?,
        each => match objects::EACH.iter().find(|(name, _)| *name == each) {
            Some((_, instruction)) => objects::each(instruction, n)?,
            None => bail!("there is no generator {generator:?}"),
        },
    })
}

/// A component of this module alone.
pub(crate) fn in_component(module: &Module) -> Vec<u8> {
    let mut component = Component::new();
    component.section(&ModuleSection(module));
    component.finish()
}

/// Locals of each function, beside its one parameter.
const LOCALS: u32 = 200;

fn functions(n: usize, body: &dyn Fn(&mut Function)) -> Vec<u8> {
    let mut types = TypeSection::new();
    types.ty().function([ValType::I32], []);
    let mut functions = FunctionSection::new();
    let mut code = CodeSection::new();
    let mut probe = Function::new([]);
    body(&mut probe);
    let locals = if probe.byte_len() > 1 { LOCALS } else { 0 };
    for _ in 0..n {
        functions.function(0);
        let mut function = Function::new([(locals, ValType::I32)]);
        body(&mut function);
        function.instruction(&I::End);
        code.function(&function);
    }
    let mut module = Module::new();
    module.section(&types).section(&functions).section(&code);
    in_component(&module)
}

/// Loops within loops, and all locals set in the innermost from one another.
fn nested_loops(function: &mut Function, depth: usize) {
    for _ in 0..depth {
        function.instruction(&I::Loop(BlockType::Empty));
    }
    for local in 1..=LOCALS {
        function.instruction(&I::LocalGet(local));
        function.instruction(&I::LocalGet(local % LOCALS + 1));
        function.instruction(&I::I32Add);
        function.instruction(&I::LocalSet(local));
    }
    for _ in 0..depth {
        function.instruction(&I::LocalGet(0));
        function.instruction(&I::BrIf(0));
        function.instruction(&I::End);
    }
}

fn live_values(function: &mut Function, n: usize) {
    for i in 0..n {
        function.instruction(&I::LocalGet(0));
        function.instruction(&I::I32Const(i as i32));
        function.instruction(&I::I32Mul);
    }
    for _ in 1..n {
        function.instruction(&I::I32Xor);
    }
    used(function);
}

/// Branches out of a block, one after the other, over all locals, which are used after it.
fn branches_over_locals(function: &mut Function, n: usize) {
    for local in 1..=LOCALS {
        function.instruction(&I::LocalGet(0));
        function.instruction(&I::I32Const(local as i32));
        function.instruction(&I::I32Mul);
        function.instruction(&I::LocalSet(local));
    }
    function.instruction(&I::Block(BlockType::Empty));
    for _ in 0..n {
        function.instruction(&I::LocalGet(0));
        function.instruction(&I::BrIf(0));
    }
    function.instruction(&I::End);
    function.instruction(&I::LocalGet(0));
    for local in 1..=LOCALS {
        function.instruction(&I::LocalGet(local));
        function.instruction(&I::I32Xor);
    }
    used(function);
}

/// A module with a memory, two tables, a function that does nothing, and one with this body that takes a number.
fn with_table(body: &dyn Fn(&mut Function)) -> Vec<u8> {
    let mut types = TypeSection::new();
    types.ty().function([], []);
    types.ty().function([ValType::I32], []);
    let mut functions = FunctionSection::new();
    functions.function(0).function(1);
    let element_type = RefType::FUNCREF;
    let table = TableType { element_type, table64: false, minimum: 10, maximum: None, shared: false };
    let mut tables = TableSection::new();
    tables.table(table).table(table);
    let mut memories = MemorySection::new();
    memories.memory(MemoryType { minimum: 1, maximum: None, memory64: false, shared: false, page_size_log2: None });
    let mut code = CodeSection::new();
    let mut empty = Function::new([]);
    empty.instruction(&I::End);
    code.function(&empty);
    let mut function = Function::new([]);
    body(&mut function);
    function.instruction(&I::End);
    code.function(&function);
    let mut module = Module::new();
    module.section(&types).section(&functions).section(&tables).section(&memories).section(&code);
    in_component(&module)
}

fn indirect_calls(function: &mut Function, n: usize) {
    for _ in 0..n {
        function.instruction(&I::LocalGet(0));
        function.instruction(&I::CallIndirect { type_index: 0, table_index: 0 });
    }
}

fn table_copies(function: &mut Function, n: usize) {
    for _ in 0..n {
        for _ in 0..3 {
            function.instruction(&I::LocalGet(0));
        }
        function.instruction(&I::TableCopy { src_table: 0, dst_table: 1 });
    }
}

/// As many instructions as there are values that stay alive over all of them.
fn over_values(function: &mut Function, n: usize, instruction: &I<'_>, takes_and_leaves: bool) {
    for i in 0..n {
        function.instruction(&I::LocalGet(0));
        function.instruction(&I::I32Const(i as i32));
        function.instruction(&I::I32Mul);
    }
    for _ in 0..n {
        if takes_and_leaves {
            function.instruction(&I::LocalGet(0));
        }
        function.instruction(instruction);
        if takes_and_leaves {
            function.instruction(&I::LocalSet(0));
        }
    }
    for _ in 1..n {
        function.instruction(&I::I32Xor);
    }
    used(function);
}

/// As many tables of branches, each with as many targets.
fn branch_tables(function: &mut Function, n: usize) {
    let targets = vec![0; n];
    for _ in 0..n {
        function.instruction(&I::Block(BlockType::Empty));
        function.instruction(&I::LocalGet(0));
        function.instruction(&I::BrTable(targets.as_slice().into(), 0));
        function.instruction(&I::End);
    }
}

/// Segments so far from one another that they make no image.
fn data_segments(n: usize) -> Vec<u8> {
    let mut memories = MemorySection::new();
    memories.memory(MemoryType { minimum: 1_000, maximum: None, memory64: false, shared: false, page_size_log2: None });
    let mut data = DataSection::new();
    for i in 0..n as i32 {
        data.active(0, &ConstExpr::i32_const(i % 1_000 * 65_536 + i / 1_000), [1]);
    }
    let mut module = Module::new();
    module.section(&memories).section(&data);
    in_component(&module)
}

/// A memory of which the first bytes are all set.
fn dense_memory(bytes: usize) -> Vec<u8> {
    let mut memories = MemorySection::new();
    let minimum = (bytes as u64).div_ceil(64 << 10);
    memories.memory(MemoryType { minimum, maximum: None, memory64: false, shared: false, page_size_log2: None });
    let mut data = DataSection::new();
    data.active(0, &ConstExpr::i32_const(0), std::iter::repeat_n(1, bytes));
    let mut module = Module::new();
    module.section(&memories).section(&data);
    in_component(&module)
}

/// Memories of 16 MiB with a byte at each end, but for one: a little larger and there would be no image.
fn memories(n: usize) -> Vec<u8> {
    let mut memories = MemorySection::new();
    let mut data = DataSection::new();
    for memory in 0..n as u32 {
        memories.memory(MemoryType {
            minimum: 256,
            maximum: None,
            memory64: false,
            shared: false,
            page_size_log2: None,
        });
        data.active(memory, &ConstExpr::i32_const(0), [1]);
        data.active(memory, &ConstExpr::i32_const((16 << 20) - 2), [1]);
    }
    let mut module = Module::new();
    module.section(&memories).section(&data);
    in_component(&module)
}

/// Tables of a million elements of which the last one is set.
fn sparse_tables(n: usize) -> Vec<u8> {
    let mut types = TypeSection::new();
    types.ty().function([], []);
    let mut functions = FunctionSection::new();
    functions.function(0);
    let mut tables = TableSection::new();
    let mut elements = ElementSection::new();
    let minimum = 1 << 20;
    for table in 0..n as u32 {
        let element_type = RefType::FUNCREF;
        tables.table(TableType { element_type, table64: false, minimum, maximum: None, shared: false });
        let last = ConstExpr::i32_const(minimum as i32 - 1);
        elements.active(Some(table), &last, Elements::Functions(vec![0].into()));
    }
    let mut code = CodeSection::new();
    let mut empty = Function::new([]);
    empty.instruction(&I::End);
    code.function(&empty);
    let mut module = Module::new();
    module.section(&types).section(&functions).section(&tables).section(&elements).section(&code);
    in_component(&module)
}

/// Types of functions that nobody has, each with so many parameters and different from the others.
fn wide_types(n: usize, params: usize) -> Vec<u8> {
    let mut types = TypeSection::new();
    for i in 0..n {
        let param = |at: usize| if i >> (at % 16) & 1 == 0 { ValType::I32 } else { ValType::I64 };
        types.ty().function((0..params).map(param), []);
    }
    let mut module = Module::new();
    module.section(&types);
    in_component(&module)
}

/// Exported functions with hundreds of parameters and results.
fn wide_results(n: usize) -> Result<Vec<u8>> {
    let functions: String = (0..n)
        .map(|i| {
            let params = "i32 ".repeat(400 + i % 100);
            format!("(func (export \"f{i}\") (param {params}) (result {params}) (unreachable))")
        })
        .collect();
    Ok(wat::parse_str(format!("(component (core module {functions}))"))?)
}

fn types_in_a_group(n: usize) -> Vec<u8> {
    let mut types = TypeSection::new();
    let ty = SubType {
        is_final: true,
        supertype_idx: None,
        composite_type: CompositeType {
            inner: CompositeInnerType::Func(FuncType::new([], [])),
            shared: false,
            descriptor: None,
            describes: None,
        },
    };
    types.ty().rec(vec![ty; n]);
    let mut module = Module::new();
    module.section(&types);
    in_component(&module)
}

/// Functions that the host can call, because a segment has them.
fn escaping_functions(n: usize) -> Vec<u8> {
    let mut types = TypeSection::new();
    types.ty().function([ValType::I32; 8], [ValType::I64]);
    let mut functions = FunctionSection::new();
    let mut code = CodeSection::new();
    for _ in 0..n {
        functions.function(0);
        let mut function = Function::new([]);
        function.instruction(&I::Unreachable);
        function.instruction(&I::End);
        code.function(&function);
    }
    let mut elements = ElementSection::new();
    elements.passive(Elements::Functions((0..n as u32).collect::<Vec<_>>().into()));
    let mut module = Module::new();
    module.section(&types).section(&functions).section(&elements).section(&code);
    in_component(&module)
}

fn modules(n: usize) -> Vec<u8> {
    let mut component = Component::new();
    for _ in 0..n {
        component.section(&ModuleSection(&Module::new()));
    }
    component.finish()
}

/// Imported functions that the guest calls.
fn lowered_functions(n: usize) -> Result<Vec<u8>> {
    let functions: String = (0..n)
        .map(|i| {
            format!(
                "(import \"f{i}\" (func $f{i} (param \"a\" string) (result (list u8)))) \
                 (core func $l{i} (canon lower (func $f{i}) (memory (core memory $m \"m\")) \
                 (realloc (core func $m \"r\"))))"
            )
        })
        .collect();
    Ok(wat::parse_str(format!(
        "(component (core module $m (memory (export \"m\") 1) \
         (func (export \"r\") (param i32 i32 i32 i32) (result i32) i32.const 0)) (core instance $m (instantiate $m)) {functions})"
    ))?)
}

/// Functions of one component that another one calls.
fn adapters(n: usize) -> Result<Vec<u8>> {
    let ty = "(param \"a\" (tuple string (list u32) (option (tuple s64 f32)))) (result (result string (error u8)))";
    let memory = "(memory (export \"m\") 1) (func (export \"r\") (param i32 i32 i32 i32) (result i32) i32.const 0)";
    let options = "(memory (core memory $i \"m\")) (realloc (core func $i \"r\"))";
    let core = "(export \"f\") (param i32 i32 i32 i32 i32 i64 f32) (result i32) unreachable";
    let exports: String =
        (0..n).map(|i| format!("(func (export \"f{i}\") {ty} (canon lift (core func $i \"f\") {options}))")).collect();
    let imports: String = (0..n).map(|i| format!("(export \"f{i}\" (func {ty}))")).collect();
    let lowered: String = (0..n).map(|i| format!("(core func (canon lower (func $e \"f{i}\") {options}))")).collect();
    Ok(wat::parse_str(format!(
        "(component \
         (component $a (core module $m {memory} (func {core})) (core instance $i (instantiate $m)) {exports}) \
         (component $b (import \"e\" (instance $e {imports})) (core module $m {memory}) (core instance $i (instantiate $m)) \
         {lowered}) \
         (instance $x (instantiate $a)) (instance (instantiate $b (with \"e\" (instance $x)))))"
    ))?)
}

/// A function whose parameter has a long name, exported over and over.
fn long_names_exported(n: usize) -> Result<Vec<u8>> {
    let name = format!("p{}", "-long-name".repeat(400));
    let exports: String = (0..n).map(|i| format!("(export \"e{i}\" (func $f))")).collect();
    Ok(wat::parse_str(format!(
        "(component (core module $m (func (export \"f\") (param i32))) (core instance $i (instantiate $m)) \
         (func $f (param \"{name}\" u32) (canon lift (core func $i \"f\"))) {exports})"
    ))?)
}

/// Takes a value so that nobody may leave it out.
fn used(function: &mut Function) {
    function.instruction(&I::If(BlockType::Empty));
    function.instruction(&I::Unreachable);
    function.instruction(&I::End);
}

fn plain(function: &mut Function, n: usize) {
    for i in 0..n {
        function.instruction(&I::LocalGet(0));
        function.instruction(&I::I32Const(i as i32));
        function.instruction(&I::I32Mul);
        function.instruction(&I::LocalSet(0));
    }
    function.instruction(&I::LocalGet(0));
    used(function);
}

fn nested_blocks(function: &mut Function, n: usize) {
    for _ in 0..n {
        function.instruction(&I::Block(BlockType::Empty));
    }
    for _ in 0..n {
        function.instruction(&I::LocalGet(0));
        function.instruction(&I::BrIf(0));
        function.instruction(&I::End);
    }
}

fn locals_over_blocks(function: &mut Function, n: usize) {
    // As many more locals as there are blocks, which are made by operands that stay.
    for _ in 0..n {
        function.instruction(&I::LocalGet(0));
    }
    for block in 0..n {
        function.instruction(&I::LocalGet(0));
        function.instruction(&I::If(BlockType::Empty));
        function.instruction(&I::I32Const(block as i32));
        function.instruction(&I::LocalSet(1 + block as u32 % LOCALS));
        function.instruction(&I::End);
    }
    for local in 1..=LOCALS {
        function.instruction(&I::LocalGet(local));
        function.instruction(&I::I32Add);
    }
    for _ in 1..n {
        function.instruction(&I::I32Add);
    }
    used(function);
}

/// A module with one function that does nothing, and this section.
fn with_function(section: &impl Section) -> Vec<u8> {
    let mut types = TypeSection::new();
    types.ty().function([], []);
    let mut functions = FunctionSection::new();
    functions.function(0);
    let mut code = CodeSection::new();
    let mut function = Function::new([]);
    function.instruction(&I::End);
    code.function(&function);
    let mut module = Module::new();
    module.section(&types).section(&functions).section(section).section(&code);
    in_component(&module)
}

fn exports(n: usize) -> Vec<u8> {
    let mut exports = ExportSection::new();
    for i in 0..n {
        exports.export(&format!("export-{i}"), ExportKind::Func, 0);
    }
    with_function(&exports)
}

/// So many segments of so many elements each.
fn elements(segments: usize, each: usize) -> Vec<u8> {
    let mut elements = ElementSection::new();
    for _ in 0..segments {
        elements.passive(Elements::Functions(vec![0; each].into()));
    }
    with_function(&elements)
}

fn globals(n: usize) -> Vec<u8> {
    let mut globals = GlobalSection::new();
    for _ in 0..n {
        globals.global(GlobalType { val_type: ValType::I32, mutable: true, shared: false }, &ConstExpr::i32_const(0));
    }
    let mut module = Module::new();
    module.section(&globals);
    in_component(&module)
}

/// A function that takes a tuple of the same long enumeration over and over.
fn long_type(n: usize) -> String {
    let names: String = (0..n).map(|i| format!("\"a-rather-long-name-{i}\" ")).collect();
    format!(
        "(component (type $names (enum {names})) (export $e \"names\" (type $names)) (type $t (tuple {})) \
         (core module $m (func (export \"f\") (param i32))) (core instance $i (instantiate $m)) \
         (core module $n (memory (export \"m\") 1) (func (export \"r\") (param i32 i32 i32 i32) (result i32) i32.const 0)) \
         (core instance $n (instantiate $n)) \
         (func (export \"f\") (param \"x\" $t) (canon lift (core func $i \"f\") (memory (core memory $n \"m\")) \
         (realloc (core func $n \"r\")))))",
        "$e ".repeat(n)
    )
}

/// An actor whose handler calls a function that calls another twice, and so on.
fn doubling_calls(depth: usize) -> String {
    let calls: String =
        (0..depth).map(|i| format!("(func $f{i} (call $f{next}) (call $f{next}))", next = i + 1)).collect();
    let handler = airssys_wasm_fixtures::SMALLEST_ACTOR
        .replace("(global.set $next (i32.const 1024))", "(global.set $next (i32.const 1024)) (call $f0)");
    handler.replacen(
        "(memory (export \"memory\") 1)",
        &format!("(memory (export \"memory\") 1) {calls} (func $f{depth})"),
        1,
    )
}

/// Components within components, and in each of them something about the next, `$c`.
fn nested(depth: usize, about: &str) -> String {
    let mut text = "(core module $m) (core instance (instantiate $m))".to_owned();
    for _ in 0..depth {
        text = format!("(component $c {text}) {about}");
    }
    format!("(component {text})")
}

/// Instance types within instance types, which the text form does not allow to be nested like that.
fn nested_types(depth: usize) -> Vec<u8> {
    let mut inner = vec![0x42, 0x00];
    for _ in 1..depth {
        // An instance type of one declaration, which is a type.
        inner = [&[0x42, 0x01, 0x01], inner.as_slice()].concat();
    }
    let mut bytes = b"\0asm\x0d\0\x01\0".to_vec();
    let section = [&[0x01], inner.as_slice()].concat();
    bytes.push(7);
    leb128(&mut bytes, section.len());
    bytes.extend(section);
    bytes
}

fn doubling_types(n: usize) -> String {
    let types: String = (0..n).map(|i| format!("(type $t{} (tuple $t{i} $t{i}))", i + 1)).collect();
    format!("(component (type $t0 string) {types})")
}

/// A component that exports under a name that is none.
fn bad_export_name() -> Result<Vec<u8>> {
    let name = "nnnnnnnn";
    let mut bytes = wat::parse_str(format!("(component (instance) (export \"{name}\" (instance 0)))"))?;
    let at = bytes.windows(name.len()).position(|part| part == name.as_bytes()).unwrap_or_default();
    bytes[at..at + name.len()].copy_from_slice(b"\x1b[31m\nab");
    Ok(bytes)
}

fn leb128(bytes: &mut Vec<u8>, mut n: usize) {
    while n >= 0x80 {
        bytes.push(n as u8 | 0x80);
        n >>= 7;
    }
    bytes.push(n as u8);
}
