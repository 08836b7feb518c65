//! Guests that nobody would write: modules out of nothing, and a component that lies about everything it hands over.

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use airssys_wasm_actor::{
    ActorRef, ActorSpec, ActorState, AskError, Backoff, Bytes, Capabilities, HealthError, Intensity, RestartPolicy,
    SpawnError, StartError, Stop, UpgradeError, UpgradeOptions,
};
use airssys_wasm_engine::{
    ComponentTemplate,
    LoadedComponent,
    Profile,
    // The derive macros want it under this name.
    wasmtime::{
        self,
        component::{ComponentType, Lift, ResourceAny, Val},
    },
};
use airssys_wasm_isolation::{Crash, DynamicCallError, HostState, InstantiateError, Sandbox, SandboxSpec, add_wasi};
use airssys_wasm_limits::{ByteSize, OnGrowthRefused, ResourceLimits};
use airssys_wasm_registry::MessageEnvelope;
use arbitrary::Unstructured;
use wasm_smith::{Config, Module};

use crate::host::{
    ENGINE, Head, Neighbour, Script, System, Template, check_answer, check_crash, check_report, check_usage, close,
    component, ends, gives_script, id, run, system, template, told,
};

/// A guest and what is done with it. The first byte says what it is:
///
/// - a core module as wasm-smith makes it out of the rest, in a component that exports what an actor may, some of them with
///   exceptions and garbage collection;
/// - or a component whose script is the rest: it follows it whenever it is called, calls what it imports with any
///   arguments, gives any pointers to the host, and answers with whatever lies there. It is an actor, a component for
///   `wasmcloud:messaging`, or a library that returns values of each type.
///
/// The bytes behind it are its limits, all of them small, and what is done: messages, health, upgrades, a stop.
///
/// - Whatever the guest does, each call ends, within its limits, with an answer or a typed error. Nothing panics.
/// - What the guest has of memory, tables and host calls is never more than it may have.
/// - A neighbour answers all the time, and at the end everybody can be shut down.
/// - Neither an error nor a crash, dead letter or line of the log shows a control character.
pub fn guest(data: &[u8]) {
    let mut head = Head(data);
    let kind = head.byte();
    let limits = limits(&mut head);
    let profile = limits.profile();
    run(async {
        match kind % 4 {
            0 => {
                let deeds = Deeds::read(&mut head);
                if let Some(guest) = smith(head.0, profile, kind & 4 != 0) {
                    actor(&guest, &deeds, limits, Script::default()).await;
                }
            }
            1 => {
                let deeds = Deeds::read(&mut head);
                actor(&LIARS[profile as usize].actor, &deeds, limits, head.0.into()).await;
            }
            2 => {
                let deeds = Deeds::read(&mut head);
                actor(&LIARS[profile as usize].wasmcloud, &deeds, limits, head.0.into()).await;
            }
            _ => {
                let calls: Vec<_> = (0..head.byte() % 5).map(|_| head.byte()).collect();
                call_library(&LIARS[profile as usize].library, &calls, limits, head.0.into()).await;
            }
        }
    });
}

fn limits(head: &mut Head<'_>) -> ResourceLimits {
    ResourceLimits {
        // The least that the liars start with is a page.
        memory: head.pick(&[ByteSize::mib(1), ByteSize::kib(64), ByteSize::kib(256)]),
        on_growth_refused: head.pick(&[OnGrowthRefused::TellGuest, OnGrowthRefused::Crash]),
        memories: 2,
        table_elements: 100,
        tables: 4,
        instances: 8,
        cpu_time: Duration::from_millis(2),
        deadline: Duration::from_millis(100),
        // Most are metered: they end sooner, and in the same way each time.
        fuel: head.pick(&[Some(20_000), Some(1_000), None]),
        host_calls: head.pick(&[1_000, 10]),
        host_call_bytes: head.pick(&[ByteSize::kib(4), ByteSize(64)]),
        handles: 4,
        message_size: head.pick(&[ByteSize::kib(4), ByteSize(64)]),
        log_bytes: ByteSize(256),
        ..ResourceLimits::with_memory(ByteSize(0))
    }
}

/// What is done with an actor.
struct Deeds {
    granted: bool,
    restarts: u32,
    redelivery: Option<u32>,
    steps: Vec<u8>,
}

impl Deeds {
    fn read(head: &mut Head<'_>) -> Self {
        let how = head.byte();
        Self {
            granted: how & 1 == 0,
            restarts: u32::from(how >> 1 & 7),
            redelivery: (how & 16 != 0).then_some(2),
            steps: (0..head.byte() % 9).map(|_| head.byte()).collect(),
        }
    }
}

/// The components that follow a script.
struct Liars {
    actor: Template,
    wasmcloud: Template,
    library: ComponentTemplate<HostState<Script>>,
}

/// By their profiles.
static LIARS: LazyLock<[Liars; 2]> = LazyLock::new(|| {
    [Profile::Plain, Profile::Metered].map(|profile| {
        let liar = |host: &str, exports: &str| {
            let (script, liar) = (include_str!("../wat/script.wat"), include_str!("../wat/liar.wat"));
            component(&format!("(component\n{script}{host}{liar}{exports})"), profile)
        };
        let messaging = include_str!("../wat/messaging.wat");
        Liars {
            actor: template(&liar(
                messaging,
                concat!(include_str!("../wat/actor.wat"), include_str!("../wat/init.wat")),
            )),
            wasmcloud: template(&liar(messaging, include_str!("../wat/wasmcloud.wat"))),
            library: library(&liar(include_str!("../wat/alone.wat"), &exports())),
        }
    })
});

/// A component around a core module that wasm-smith makes, with or without exceptions and garbage collection; none where there
/// are too few bytes for one.
fn smith(data: &[u8], profile: Profile, collected: bool) -> Option<Template> {
    let config = Config {
        exports: Some(MODULE.clone()),
        // wasm-smith makes references to functions by their types only together with garbage collection.
        exceptions_enabled: collected,
        gc_enabled: collected,
        memory64_enabled: false,
        reference_types_enabled: collected,
        relaxed_simd_enabled: false,
        threads_enabled: false,
        max_imports: 0,
        max_funcs: 12,
        max_instructions: 40,
        max_globals: 4,
        max_memories: 2,
        max_memory32_bytes: 2 << 20,
        max_tables: 2,
        max_table_elements: 200,
        max_types: 20,
        max_data_segments: 4,
        max_element_segments: 4,
        max_elements: 8,
        ..Config::default()
    };
    let module = Module::new(config, &mut Unstructured::new(data)).ok()?.to_bytes();
    let mut bytes = FRAME.0.clone();
    bytes.push(CORE_MODULE);
    leb128(module.len(), &mut bytes);
    bytes.extend(module);
    bytes.extend(&FRAME.1);
    let component = ENGINE.load_blocking(&bytes, profile).unwrap_or_else(|error| panic!("it is valid: {error}"));
    Some(component.link(&component.linker()).expect("it imports no function"))
}

/// What the module of a component in `actor.wat` exports.
static MODULE: LazyLock<Vec<u8>> = LazyLock::new(|| wat::parse_str(format!("(module {EXPORTS})")).expect("a module"));

const EXPORTS: &str = r#"
  (memory (export "memory") 1 20)
  (func (export "realloc") (param i32 i32 i32 i32) (result i32) unreachable)
  (func (export "0") (result i32) unreachable)
  (func (export "2") (param i32 i32) (result i32) unreachable)
  (func (export "12") (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32) unreachable)
  (func (export "nothing") unreachable)
  (func (export "post") (param i32) unreachable)
"#;

/// The id of a core module among the sections of a component.
const CORE_MODULE: u8 = 1;

/// A component up to its core module, and from there on.
static FRAME: LazyLock<(Vec<u8>, Vec<u8>)> = LazyLock::new(|| {
    let component = wat::parse_str(format!(
        r#"(component
          (import "airssys:actor/types@0.1.0" (instance $types
            (type $record (record (field "payload" (list u8)) (field "sender" (option string))
              (field "topic" (option string)) (field "content-type" (option string)) (field "wants-answer" bool)))
            (export "message" (type (eq $record)))))
          (alias export $types "message" (type $message))
          (core module $m {EXPORTS})
          (core instance $liar (instantiate $m))
          (alias core export $liar "memory" (core memory $memory))
          (alias core export $liar "realloc" (core func $realloc))
          {})"#,
        include_str!("../wat/actor.wat")
    ))
    .expect("a component");
    let mut at = b"\0asm....".len();
    loop {
        let (len, begin) = leb128_at(&component, at + 1);
        if component[at] == CORE_MODULE {
            return (component[..at].to_vec(), component[begin + len..].to_vec());
        }
        at = begin + len;
    }
});

fn leb128(mut number: usize, to: &mut Vec<u8>) {
    while number > 0x7f {
        to.push(number as u8 | 0x80);
        number >>= 7;
    }
    to.push(number as u8);
}

/// The number, and where it ends.
fn leb128_at(bytes: &[u8], mut at: usize) -> (usize, usize) {
    let (mut number, mut shift) = (0, 0);
    loop {
        number |= usize::from(bytes[at] & 0x7f) << shift;
        at += 1;
        if bytes[at - 1] & 0x80 == 0 {
            return (number, at);
        }
        shift += 7;
    }
}

/// The life of an actor, beside a neighbour.
async fn actor(guest: &Template, deeds: &Deeds, limits: ResourceLimits, script: Script) {
    let system = system(script);
    let mut events = system.events();
    let neighbour = Neighbour::spawn(&system).await;
    let sandbox = match SandboxSpec::new(guest.clone(), limits.clone()) {
        Ok(sandbox) => sandbox,
        // A module may start with more than it is given.
        Err(error) => return told(&error),
    };
    let mut spec = ActorSpec::new(id("g"), sandbox.clone());
    spec = spec.with_capabilities(if deeds.granted { Capabilities::all() } else { Capabilities::default() });
    spec = spec.with_config([("a", "b"), ("é", "")]);
    spec = spec.with_subscriptions(vec!["t.>".parse().expect("a pattern")]);
    let intensity = Intensity { restarts: deeds.restarts, ..Intensity::default() };
    spec = spec.with_restart(RestartPolicy { backoff: Backoff::NONE, intensity, ..RestartPolicy::default() });
    spec = spec.with_redelivery(deeds.redelivery);
    match ends(system.spawn(spec)).await {
        Ok(actor) => {
            for &step in &deeds.steps {
                deed(&system, &actor, &sandbox, step, &limits).await;
                let memory = actor.info().memory;
                assert!(memory <= limits.memory.as_u64(), "{memory} bytes of {}", limits.memory);
                neighbour.answers(b"x").await;
            }
        }
        Err(error) => check_spawn(&error, &limits),
    }
    neighbour.answers(b"x").await;
    close(system, &mut events, |_| limits.clone()).await;
}

/// Does one thing with an actor.
async fn deed(
    system: &System,
    actor: &ActorRef,
    sandbox: &SandboxSpec<ActorState<Script>>,
    step: u8,
    limits: &ResourceLimits,
) {
    let options = UpgradeOptions { discard_state: step & 16 != 0, probation: u32::from(step >> 5 & 1) };
    let mut message = MessageEnvelope::new(vec![step; usize::from(step >> 4)]);
    message = message.with_topic((step & 128 != 0).then(|| "t.a".parse().expect("a topic")));
    match step & 15 {
        0 => _ = actor.try_tell(message).map_err(|error| told(&error)),
        1 => _ = ends(system.publish(&"t.b".parse().expect("a topic"), message)).await,
        2 => match ends(actor.health()).await {
            Ok(()) => {}
            Err(error) => {
                told(&error);
                if let HealthError::Crashed(report) = error {
                    check_report(&report, limits);
                }
            }
        },
        3 | 4 => check_upgrade(ends(system.upgrade(actor.address(), sandbox.clone(), options)).await, limits),
        5 => check_upgrade(ends(system.rollback(actor.address(), options)).await, limits),
        6 => actor.stop(Stop::Drain),
        7 => actor.stop(Stop::Now),
        8 => {
            actor.kill();
            ends(actor.ended()).await;
        }
        9 => _ = system.send(&id("g"), message).map_err(|error| told(&error)),
        _ => match ends(actor.ask(message)).await {
            Ok(answer) => check_answer(&answer, limits),
            Err(error) => {
                told(&error);
                if let AskError::Crashed(report) = error {
                    check_report(&report, limits);
                }
            }
        },
    }
}

fn check_upgrade(upgraded: Result<u64, UpgradeError>, limits: &ResourceLimits) {
    match upgraded {
        Ok(incarnation) => assert!(incarnation > 1, "it was there before"),
        Err(error) => {
            told(&error);
            match error {
                UpgradeError::SnapshotCrashed(report) => check_report(&report, limits),
                UpgradeError::NotStarted(error) => check_start(&error, limits),
                _ => {}
            }
        }
    }
}

fn check_spawn(error: &SpawnError, limits: &ResourceLimits) {
    told(error);
    match error {
        SpawnError::Start { error, .. } => check_start(error, limits),
        other => panic!("nothing but its start can fail: {other}"),
    }
}

fn check_start(error: &StartError, limits: &ResourceLimits) {
    told(error);
    match error {
        StartError::Crash(report) => check_report(report, limits),
        StartError::Refused { .. } | StartError::RestoreRefused { .. } | StartError::TooLarge { .. } => {}
        other => panic!("there is room, and the contract is kept: {other}"),
    }
}

#[derive(Debug, ComponentType, Lift)]
#[expect(dead_code, reason = "values come from guests")]
#[component(record)]
struct Record {
    small: u8,
    text: String,
    maybe: Option<Vec<u32>>,
}

#[derive(Debug, ComponentType, Lift)]
#[expect(dead_code, reason = "values come from guests")]
#[component(variant)]
enum Variant {
    #[component(name = "none")]
    None,
    #[component(name = "text")]
    Text(String),
    #[component(name = "pair")]
    Pair((u32, String)),
    #[component(name = "wide")]
    Wide(f64),
}

#[derive(Debug, Clone, Copy, ComponentType, Lift)]
#[expect(dead_code, reason = "values come from guests")]
#[component(enum)]
#[repr(u8)]
enum Enum {
    #[component(name = "a")]
    A,
    #[component(name = "b")]
    B,
    #[component(name = "c")]
    C,
}

/// Functions that give something, by the text of their types, with what is asked for by a typed call.
macro_rules! given {
    ($($name:literal $wat:literal $($encoding:literal)? => $rust:ty,)*) => {
        const GIVEN: &[(&str, &str, &str)] = &[$(($name, $wat, concat!($($encoding)?))),*];

        /// Calls one of them for a value of its type.
        async fn typed(
            spec: &SandboxSpec<Script>,
            mut sandbox: Sandbox<Script>,
            name: &str,
        ) -> Result<Sandbox<Script>, Crash> {
            let export = spec.export(name).expect("it is exported");
            match name {
                $($name => {
                    let handle = sandbox.typed::<(), ($rust,)>(&export).expect("it has this type");
                    ends(sandbox.call(&handle, ())).await.map(|(_, sandbox)| sandbox)
                })*
                other => panic!("{other} is not among them"),
            }
        }
    };
}

given! {
    "text" "string" => String,
    "text-utf16" "string" "string-encoding=utf16" => String,
    "text-latin1" "string" "string-encoding=latin1+utf16" => Box<str>,
    "bytes" "(list u8)" => Bytes,
    "words" "(list u64)" => Vec<u64>,
    "truths" "(list bool)" => Vec<bool>,
    "chars" "(list char)" => Vec<char>,
    "texts" "(list string)" => Vec<String>,
    "pairs" "(list (tuple string string))" => Vec<(String, String)>,
    "give-record" "$record" => Record,
    "records" "(list $record)" => Vec<Record>,
    "give-variant" "$variant" => Variant,
    "variants" "(list $variant)" => Vec<Variant>,
    "maybe" "(option string)" => Option<String>,
    "outcome" "(result string (error (list u8)))" => Result<String, Vec<u8>>,
    "nested" "(list (list (option (result string (error $enum)))))" => Vec<Vec<Option<Result<String, Enum>>>>,
    "enums" "(list $enum)" => Vec<Enum>,
    "mixed" "(tuple u8 u64 char f32)" => (u8, u64, char, f32),
    "resources" "(list (own $resource))" => Vec<ResourceAny>,
    "truth" "bool" => bool,
    "char" "char" => char,
    "byte" "u8" => u8,
    "signed" "s16" => i16,
    "give-enum" "$enum" => Enum,
    "give-resource" "(own $resource)" => ResourceAny,
}

/// What is called with values alone: those of types that have none in the host, and those that take something.
const OTHERS: &[&str] = &[
    "give-flags",
    "flag-sets",
    "float",
    "take-text",
    "take-text-utf16",
    "take-text-latin1",
    "take-texts",
    "take-many",
];

/// What a library exports: [`GIVEN`] and [`OTHERS`].
fn exports() -> String {
    let flags = [("give-flags", "$flags", ""), ("flag-sets", "(list $flags)", "")];
    let give = |(name, ty, encoding): &(&str, &str, &str)| {
        format!(
            r#"
            (func $give-{name} (result {ty}) (canon lift (core func $liar "0")
              (memory $memory) (post-return (core func $liar "post")) {encoding}))
            (export "{name}" (func $give-{name}))"#
        )
    };
    include_str!("../wat/values.wat").to_owned() + &GIVEN.iter().chain(&flags).map(give).collect::<String>()
}

/// Links a library with its script and WASI.
fn library(guest: &LoadedComponent) -> ComponentTemplate<HostState<Script>> {
    let mut linker = guest.linker();
    add_wasi(&mut linker).expect("nothing is defined yet");
    gives_script(&mut linker, |script: &Script| script).expect("it is not defined yet");
    guest.link(&linker).expect("known imports")
}

/// Calls exports of a library, in one sandbox for as long as it lasts.
async fn call_library(
    guest: &ComponentTemplate<HostState<Script>>,
    calls: &[u8],
    limits: ResourceLimits,
    script: Script,
) {
    let spec = SandboxSpec::new(guest.clone(), limits.clone()).expect("sensible limits");
    let mut kept = None;
    for &call in calls {
        let sandbox = match kept.take() {
            Some(sandbox) => sandbox,
            None => match ends(spec.instantiate(Arc::clone(&script))).await {
                Ok(sandbox) => sandbox,
                Err(InstantiateError::Crash(crash)) => return check_crash(&crash, &limits),
                Err(error) => panic!("there is room, and no grant: {error}"),
            },
        };
        let at = usize::from(call >> 1);
        let called = match GIVEN.get(at) {
            Some((name, ..)) if call & 1 == 0 => typed(&spec, sandbox, name).await,
            Some((name, ..)) => dynamic(&spec, sandbox, name).await,
            None => dynamic(&spec, sandbox, OTHERS[at % OTHERS.len()]).await,
        };
        match called {
            Ok(sandbox) => {
                check_usage(&sandbox.usage(), &limits);
                kept = Some(sandbox);
            }
            Err(crash) => check_crash(&crash, &limits),
        }
    }
}

/// Calls an export with values, those that it takes.
async fn dynamic(
    spec: &SandboxSpec<Script>,
    mut sandbox: Sandbox<Script>,
    name: &str,
) -> Result<Sandbox<Script>, Crash> {
    let text = || Val::String("aé€😀".into());
    let arguments = match name {
        "take-texts" => vec![Val::List(vec![Val::List(vec![text(), text()]), Val::List(Vec::new())])],
        "take-many" => vec![text(); 9],
        name if name.starts_with("take-text") => vec![text()],
        _ => Vec::new(),
    };
    let export = spec.export(name).expect("it is exported");
    let handle = sandbox.dynamic(&export).expect("it is of this component");
    match ends(sandbox.call_dynamic(&handle, &arguments)).await {
        Ok((_, sandbox)) => Ok(sandbox),
        Err(DynamicCallError::Crash(crash)) => Err(crash),
        Err(error) => panic!("it takes these: {error}"),
    }
}
