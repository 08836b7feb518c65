//! Components as bytes and as text, from loading to the first call.

use std::{sync::LazyLock, time::Duration};

use airssys_wasm_actor::{ActorSpec, ActorSystem};
use airssys_wasm_engine::{
    CompileLimits, EngineConfig, LoadError, LoadedComponent, Profile, WasmEngine,
    wasmtime::component::{
        Val,
        types::{ComponentItem, Type},
    },
};
use airssys_wasm_isolation::{DynamicCallError, InstantiateError, Sandbox, SandboxSpec, add_wasi};
use airssys_wasm_limits::{ByteSize, ResourceLimits};

use crate::host::{self, check_crash, check_usage, clean, close, ends, id, run, told};

/// Calls made to what a component exports, and values in the arguments of one.
const MOST_CALLS: usize = 8;
const MOST_VALUES: u32 = 1_000;

/// An engine that refuses what takes long to compile, so that a case is short.
static ENGINE: LazyLock<WasmEngine> = LazyLock::new(|| {
    let compile_limits =
        CompileLimits { function_work: 5_000, work: 20_000, items: 2_000, instances: 100, ..CompileLimits::default() };
    WasmEngine::new(EngineConfig { compile_limits, ..host::config_of_engine() }).expect("an engine")
});

/// A component, as bytes; and as text, where it is text.
///
/// - It is loaded or refused by an error, and so it is the second time. What is loaded tells what it imports and exports.
/// - It is linked or not, instantiated under small limits or not, and each of its exports is called, with arguments of
///   its types and with others: all of that within the limits, and all that fails by a typed error.
/// - As an actor it is spawned or refused, and gone at the end.
/// - Neither what a component tells of itself, nor any error, nor the log shows a control character.
pub fn load(data: &[u8]) {
    run(async {
        if let Ok(text) = std::str::from_utf8(data) {
            component(|| ENGINE.load_wat_blocking(text, Profile::Plain)).await;
        }
        component(|| ENGINE.load_blocking(data, Profile::Plain)).await;
    });
}

async fn component(load: impl Fn() -> Result<LoadedComponent, LoadError>) {
    let component = match load() {
        Ok(component) => component,
        Err(error) => {
            told(&error);
            let again = load().expect_err("it was refused before");
            assert_eq!(again.to_string(), error.to_string());
            return;
        }
    };
    assert!(load().expect("it was loaded before").same(&component));
    component.imports();
    for export in component.exports() {
        clean(&export);
    }
    alone(&component).await;
    as_actor(&component).await;
}

fn limits() -> ResourceLimits {
    ResourceLimits {
        memories: 2,
        table_elements: 1_000,
        tables: 4,
        instances: 16,
        cpu_time: Duration::from_millis(2),
        deadline: Duration::from_millis(100),
        host_calls: 1_000,
        host_call_bytes: ByteSize::kib(4),
        handles: 8,
        message_size: ByteSize::kib(4),
        ..ResourceLimits::with_memory(ByteSize::mib(1))
    }
}

/// In a sandbox of its own, with WASI and nothing else.
async fn alone(component: &LoadedComponent) {
    let mut linker = component.linker();
    add_wasi(&mut linker).expect("nothing is defined yet");
    let template = match component.link(&linker) {
        Ok(template) => template,
        Err(error) => return told(&error),
    };
    let spec = match SandboxSpec::<()>::new(template, limits()) {
        Ok(spec) => spec,
        Err(error) => return told(&error),
    };
    let mut sandbox = None;
    for export in component.exports().iter().take(MOST_CALLS) {
        let (name, _) = export.split_once(": func(").expect("a function");
        let back = match sandbox.take() {
            Some(sandbox) => sandbox,
            None => match ends(spec.instantiate(())).await {
                Ok(sandbox) => sandbox,
                Err(error) => {
                    told(&error);
                    match error {
                        InstantiateError::Crash(crash) => return check_crash(&crash, &limits()),
                        other => panic!("there is room, and no grant: {other}"),
                    }
                }
            },
        };
        sandbox = call(&spec, back, name).await;
        if let Some(sandbox) = &sandbox {
            check_usage(&sandbox.usage(), &limits());
        }
    }
}

/// Calls an export without and with arguments that it takes. The sandbox comes back where it can.
async fn call(spec: &SandboxSpec<()>, mut sandbox: Sandbox<()>, name: &str) -> Option<Sandbox<()>> {
    let export = spec.export(name).expect("it is exported");
    let handle = sandbox.dynamic(&export).expect("it is of this component");
    _ = sandbox.typed::<(String,), (Vec<u64>,)>(&export).map_err(|error| told(&error));
    let mut left = MOST_VALUES;
    let arguments: Vec<_> = parameters(spec, name).iter().map(|ty| value(ty, &mut left)).collect();
    for arguments in [arguments, vec![Val::Bool(true)]] {
        match ends(sandbox.call_dynamic(&handle, &arguments)).await {
            Ok((_, back)) => sandbox = back,
            Err(DynamicCallError::Arguments { error, sandbox: back }) => {
                told(&error);
                sandbox = back;
            }
            Err(DynamicCallError::Crash(crash)) => {
                check_crash(&crash, &limits());
                return None;
            }
            Err(other) => panic!("an error that nobody knows here: {other}"),
        }
    }
    Some(sandbox)
}

fn parameters(spec: &SandboxSpec<()>, name: &str) -> Vec<Type> {
    let component = spec.template().loaded().component();
    let found = match name.split_once('#') {
        Some((interface, function)) => component
            .get_export(None, interface)
            .and_then(|(_, interface)| component.get_export(Some(&interface), function)),
        None => component.get_export(None, name),
    };
    match found {
        Some((ComponentItem::ComponentFunc(func), _)) => func.params().map(|(_, ty)| ty).collect(),
        _ => Vec::new(),
    }
}

/// Something of this type, where that can be made of nothing and is not too much.
fn value(ty: &Type, left: &mut u32) -> Val {
    // Of a type that is seldom right.
    const OTHER: Val = Val::Char('x');
    let Some(fewer) = left.checked_sub(1) else { return OTHER };
    *left = fewer;
    match ty {
        Type::Bool => Val::Bool(true),
        Type::S8 => Val::S8(-1),
        Type::U8 => Val::U8(1),
        Type::S16 => Val::S16(-1),
        Type::U16 => Val::U16(1),
        Type::S32 => Val::S32(-1),
        Type::U32 => Val::U32(1),
        Type::S64 => Val::S64(-1),
        Type::U64 => Val::U64(1),
        Type::Float32 => Val::Float32(0.5),
        Type::Float64 => Val::Float64(0.5),
        Type::Char => Val::Char('é'),
        Type::String => Val::String("é".into()),
        Type::List(list) => Val::List([(); 2].map(|()| value(&list.ty(), left)).into()),
        Type::Record(ty) => Val::Record(ty.fields().map(|f| (f.name.to_owned(), value(&f.ty, left))).collect()),
        Type::Tuple(tuple) => Val::Tuple(tuple.types().map(|ty| value(&ty, left)).collect()),
        Type::Variant(variant) => match variant.cases().last() {
            Some(case) => Val::Variant(case.name.to_owned(), case.ty.map(|ty| value(&ty, left).into())),
            None => OTHER,
        },
        Type::Enum(cases) => Val::Enum(cases.names().last().unwrap_or_default().to_owned()),
        Type::Option(option) => Val::Option(Some(value(&option.ty(), left).into())),
        Type::Result(result) => Val::Result(Ok(result.ok().map(|ty| value(&ty, left).into()))),
        Type::Flags(flags) => Val::Flags(flags.names().map(str::to_owned).collect()),
        _ => OTHER,
    }
}

/// As an actor, with all that a system links.
async fn as_actor(component: &LoadedComponent) {
    let system = ActorSystem::new(ENGINE.clone(), host::config());
    let mut events = system.events();
    let template = match system.link(component) {
        Ok(template) => template,
        Err(error) => return told(&error),
    };
    let spec = match SandboxSpec::new(template, limits()) {
        Ok(spec) => spec,
        Err(error) => return told(&error),
    };
    match ends(system.spawn(ActorSpec::new(id("a"), spec))).await {
        Ok(actor) => {
            _ = ends(actor.ask("x")).await.map_err(|error| told(&error));
            assert!(actor.info().memory <= limits().memory.as_u64(), "{:?}", actor.info());
        }
        Err(error) => told(&error),
    }
    close(system, &mut events, |_| limits()).await;
}
