//! Links to actors of other hosts: two systems, of which one knows the other, and others that know an actor and fail.

use std::{
    future::{pending, ready},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use airssys_wasm_actor::{
    ActorRef, ActorSpec, ActorSystem, Bytes, CallError, Capabilities, ContractKind, Elsewhere, FarCall, LinkFault,
    Links, StartError, Stop, SystemEvent, UpgradeOptions,
};
use airssys_wasm_engine::{ExportError, wasmtime::component::Val};
use airssys_wasm_isolation::{CrashKind, SandboxSpec};
use airssys_wasm_limits::{ByteSize, ResourceLimits};
use airssys_wasm_registry::{ComponentId, MessageEnvelope, Refusal};
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::{
    sync::{Barrier, Notify, Semaphore, oneshot},
    time::Instant,
};

use crate::{
    links::{
        END, RELAY, STORE, call_f, keep_busy, link_failed, loaded, recall, relay_to, remember, spawn_clerk, spawn_kv,
        spec_of, to, uses,
    },
    support::{Probe, Switch, id, limits, settle, system},
    tasks::{BEGINS_TEN, NEXT, TWICE, linked},
};

type Called = BoxFuture<'static, Result<Bytes, CallError>>;

/// Another host: its system, and the calls that went there.
struct Other {
    system: ActorSystem,
    calls: Mutex<Vec<FarCall>>,
}

impl Elsewhere for Other {
    fn call(&self, to: &ComponentId, call: &FarCall) -> Option<Called> {
        self.calls.lock().push(call.clone());
        let actor = self.system.find(to)?;
        // Nobody else knows who sends.
        let call = FarCall { message: call.message.clone().with_sender(None), ..call.clone() };
        Some(
            self.system
                .call_encoded(&actor, call)
                .unwrap_or_else(|reason| Box::pin(ready(Err(CallError::NotSent(reason))))),
        )
    }
}

/// Two hosts, of which the first knows the second.
fn hosts() -> (ActorSystem, Arc<Other>) {
    let (here, other) = (system(), Arc::new(Other { system: system(), calls: Mutex::default() }));
    here.add_elsewhere(Arc::clone(&other) as _);
    (here, other)
}

/// Knows every name, and gives the same to all who call.
struct Gives<F>(F);

impl<F: Fn() -> Result<Bytes, CallError> + Send + Sync + 'static> Elsewhere for Gives<F> {
    fn call(&self, _: &ComponentId, _: &FarCall) -> Option<Called> {
        Some(Box::pin(ready((self.0)())))
    }
}

#[tokio::test]
async fn a_link_to_an_actor_of_another_host_goes_on_like_one_at_home() {
    let (here, there) = hosts();
    let kv = spawn_kv(&there.system, "kv").await;
    let clerk = spawn_clerk(&here, to("kv")).await;
    let (store, read) = uses(&here, &clerk);
    remember(&store, "a", "one").await.unwrap().unwrap();
    assert_eq!(recall(&read, "a").await.unwrap().unwrap(), "one");
    assert_eq!(recall(&read, "b").await.unwrap().unwrap_err(), "nothing is known of `b`");
    assert_eq!(remember(&store, "", "x").await.unwrap().unwrap_err(), "a key has a name");
    assert_eq!(remember(&store, "crash", "x").await.unwrap().unwrap_err(), "the actor crashed: trap");
    remember(&store, "a", "again").await.unwrap().unwrap();
    assert_eq!((kv.info().incarnation, clerk.info().incarnation), (2, 1), "each has its own fate");

    // What is told of the call, and what is not.
    let calls = there.calls.lock();
    let FarCall { export, ty, message } = &calls[0];
    assert_eq!(**export, *format!("{STORE}#set"));
    assert_eq!(**ty, *"func(key: string, value: list<u8>) -> result<_, string>");
    assert_eq!(message.payload(), &b"\x01a\x03one"[..]);
    assert_eq!(message.sender(), Some(clerk.address()));
    assert!(message.deadline().is_some_and(|deadline| deadline <= Instant::now() + limits().deadline));
}

/// Exports `test:link/all#echo`, which gives what it is given: a record with every type of plain values.
fn echoes() -> String {
    format!(
        r#"(component
            (component $inner
                {}
                {}
                (core module $m (func (export "echo") (param i32) (result i32) (local.get 0)))
                (core instance $i (instantiate $m))
                (func (export "echo") (param "x" $all) (result $all)
                    (canon lift (core func $i "echo") (memory $mem) (realloc $realloc))))
            (instance $inner (instantiate $inner))
            (export "test:link/all" (instance $inner)))"#,
        MEMORY,
        types(|name, ty| format!(r#"(type ${name}' {ty}) (export ${name} "{name}" (type ${name}'))"#)),
    )
}

/// Imports it, and exports `call`, which calls it.
fn calls_echo() -> String {
    let imported = types(|name, ty| format!(r#"(type ${name}' {ty}) (export "{name}" (type ${name} (eq ${name}')))"#));
    format!(
        r#"(component
            (import "test:link/all" (instance $host
                {imported}
                (export "echo" (func (param "x" $all) (result $all)))))
            (alias export $host "all" (type $all))
            {MEMORY}
            (core func $echo (canon lower (func $host "echo") (memory $mem) (realloc $realloc)))
            (core module $m
                (import "" "echo" (func $echo (param i32 i32)))
                (import "" "realloc" (func $realloc (param i32 i32 i32 i32) (result i32)))
                (func (export "call") (param i32) (result i32)
                    (local $result i32)
                    (local.set $result (call $realloc (i32.const 0) (i32.const 0) (i32.const 8) (i32.const 1024)))
                    (call $echo (local.get 0) (local.get $result))
                    (local.get $result)))
            (core instance $i (instantiate $m
                (with "" (instance (export "echo" (func $echo)) (export "realloc" (func $realloc))))))
            (func (export "call") (param "x" $all) (result $all)
                (canon lift (core func $i "call") (memory $mem) (realloc $realloc))))"#
    )
}

/// A memory that only grows.
const MEMORY: &str = r#"
    (core module $memory
        (memory (export "memory") 16)
        (global $end (mut i32) (i32.const 1024))
        (func (export "realloc") (param i32 i32 i32 i32) (result i32)
            (local $at i32)
            (local.set $at (i32.and (i32.add (global.get $end) (i32.const 7)) (i32.const -8)))
            (global.set $end (i32.add (local.get $at) (local.get 3)))
            (local.get $at)))
    (core instance $memory (instantiate $memory))
    (alias core export $memory "memory" (core memory $mem))
    (alias core export $memory "realloc" (core func $realloc))"#;

/// Types that have names, each of those before it.
fn types(each: impl Fn(&str, &str) -> String) -> String {
    let types = [
        ("point", r#"(record (field "x" s32) (field "name" string))"#),
        ("colour", r#"(enum "red" "green" "blue")"#),
        ("rights", r#"(flags "a" "b" "c" "d" "e" "f" "g" "h" "i" "j")"#),
        ("figure", r#"(variant (case "none") (case "circle" f64) (case "points" (list $point)))"#),
        (
            "all",
            r#"(record
                (field "bool" bool) (field "s8" s8) (field "u8" u8) (field "s16" s16) (field "u16" u16) (field "s32" s32)
                (field "u32" u32) (field "s64" s64) (field "u64" u64) (field "f32" f32) (field "f64" f64)
                (field "char" char) (field "string" string) (field "bytes" (list u8)) (field "texts" (list string))
                (field "point" $point) (field "colour" $colour) (field "rights" $rights)
                (field "figures" (list $figure)) (field "pair" (tuple u64 string))
                (field "maybe" (option (option u16))) (field "outcome" (result $point (error string)))
                (field "nothing" (result)))"#,
        ),
    ];
    types.map(|(name, ty)| each(name, ty)).join("\n")
}

/// A record with small values, or with large ones.
fn all(large: bool) -> Val {
    let text = |text: &str| Val::String(text.to_owned());
    let some = |value: Val| Some(Box::new(value));
    let point = |x, name| Val::Record(vec![("x".into(), Val::S32(x)), ("name".into(), text(name))]);
    let pick = |small: Val, value: Val| if large { value } else { small };
    let list = |values: Vec<Val>| pick(Val::List(vec![]), Val::List(values));
    let flags = |names: &[&str]| Val::Flags(names.iter().map(|name| (*name).to_owned()).collect());
    let fields = [
        ("bool", pick(Val::Bool(false), Val::Bool(true))),
        ("s8", pick(Val::S8(0), Val::S8(i8::MIN))),
        ("u8", pick(Val::U8(0), Val::U8(u8::MAX))),
        ("s16", pick(Val::S16(0), Val::S16(i16::MIN))),
        ("u16", pick(Val::U16(0), Val::U16(u16::MAX))),
        ("s32", pick(Val::S32(-1), Val::S32(i32::MIN))),
        ("u32", pick(Val::U32(0), Val::U32(u32::MAX))),
        ("s64", pick(Val::S64(-1), Val::S64(i64::MIN))),
        ("u64", pick(Val::U64(0), Val::U64(u64::MAX))),
        ("f32", pick(Val::Float32(0.0), Val::Float32(f32::MIN_POSITIVE))),
        ("f64", pick(Val::Float64(-0.0), Val::Float64(f64::NEG_INFINITY))),
        ("char", pick(Val::Char('\0'), Val::Char('\u{10ffff}'))),
        ("string", pick(text(""), text("füñf 🦀"))),
        ("bytes", list((0..=255).map(Val::U8).collect())),
        ("texts", list(vec![text(""), text("two")])),
        ("point", pick(point(0, ""), point(-7, "p"))),
        ("colour", pick(Val::Enum("red".into()), Val::Enum("blue".into()))),
        ("rights", pick(flags(&[]), flags(&["a", "h", "j"]))),
        (
            "figures",
            list(vec![
                Val::Variant("none".into(), None),
                Val::Variant("circle".into(), some(Val::Float64(1.5))),
                Val::Variant("points".into(), some(Val::List(vec![point(1, "a"), point(2, "b")]))),
            ]),
        ),
        ("pair", Val::Tuple(vec![Val::U64(300), text("x")])),
        ("maybe", pick(Val::Option(some(Val::Option(None))), Val::Option(some(Val::Option(some(Val::U16(7))))))),
        ("outcome", pick(Val::Result(Err(some(text("no")))), Val::Result(Ok(some(point(3, "ok")))))),
        ("nothing", pick(Val::Result(Ok(None)), Val::Result(Err(None)))),
    ];
    Val::Record(fields.map(|(name, value)| (name.to_owned(), value)).to_vec())
}

#[tokio::test]
async fn values_of_every_type_come_back_as_they_went() {
    let (here, there) = hosts();
    let links = Links::default().with("test:link/all", id("echo"));
    let caller = here.spawn(spec_of(&here, "caller", calls_echo(), links, limits())).await.unwrap();
    let echo = spec_of(&there.system, "echo", echoes(), Links::default(), limits());
    let echo = there.system.spawn(echo).await.unwrap();
    for large in [false, true] {
        assert_eq!(caller.call("call", [all(large)]).await.unwrap(), [all(large)]);
    }
    assert_eq!(there.calls.lock().len(), 2);
    assert_eq!((caller.info().incarnation, echo.info().incarnation), (1, 1));

    // What came over is held to the type bit by bit: nothing is left out, and nothing after it.
    let call = there.calls.lock()[1].clone();
    let encoded = call.message.payload().clone();
    let called = async |payload: Bytes| {
        let call = FarCall { message: MessageEnvelope::new(payload), ..call.clone() };
        there.system.call_encoded(&echo, call).unwrap().await
    };
    assert_eq!(called(encoded.clone()).await.unwrap(), encoded);
    for at in 0..encoded.len() {
        let cut = called(encoded.slice(..at)).await;
        assert!(matches!(cut, Err(CallError::Malformed { made: false })), "{at}: {cut:?}");
    }
    let longer = called([&encoded[..], b"\0"].concat().into()).await;
    assert!(matches!(longer, Err(CallError::Malformed { made: false })), "{longer:?}");
    assert_eq!(echo.info().incarnation, 1);
}

#[tokio::test]
async fn an_async_import_leads_to_another_host() {
    let (here, there) = hosts();
    let links = Links::default().with("acme:numbers/numbers@1.0.0", id("numbers"));
    let caller = here.spawn(linked(&here, "caller", TWICE, links)).await.unwrap();
    let twice = here.export::<(u32,), (u32,)>(&caller, "twice").unwrap();
    let numbers = there.system.spawn(linked(&there.system, "numbers", NEXT, Links::default())).await.unwrap();
    assert_eq!(twice.call((5,)).await.unwrap(), (7,));
    assert_eq!(*there.calls.lock()[0].ty, *"async func(n: u32) -> u32");
    // As at home it crashes where it has no word for a failure.
    let Err(CallError::Crashed(report)) = twice.call((12,)).await else { panic!() };
    assert!(matches!(report.crash.kind(), CrashKind::Link { to, .. } if to == "numbers"), "{report}");
    assert_eq!(twice.call((20,)).await.unwrap(), (22,));
    assert_eq!((numbers.info().incarnation, caller.info().incarnation), (2, 2));
    // One that is not async is another type.
    let call = there.calls.lock()[0].clone();
    let sync = FarCall { ty: "func(n: u32) -> u32".into(), ..call };
    let called = there.system.call_encoded(&numbers, sync).unwrap().await;
    assert!(matches!(called, Err(CallError::Contract(_))), "{called:?}");
}

/// Gives each caller a list as soon as there are ten of them.
struct Ten(Arc<Barrier>);

impl Elsewhere for Ten {
    fn call(&self, _: &ComponentId, _: &FarCall) -> Option<Called> {
        let ten = Arc::clone(&self.0);
        Some(Box::pin(async move {
            ten.wait().await;
            Ok(list(1_000, 1_000))
        }))
    }
}

#[tokio::test]
async fn several_calls_of_an_async_import_are_on_their_way_at_the_same_time() {
    let here = system();
    here.add_elsewhere(Arc::new(Ten(Arc::new(Barrier::new(10)))));
    let links = Links::default().with("acme:numbers/bytes", id("gives"));
    let asks = here.spawn(linked(&here, "asks", BEGINS_TEN, links)).await.unwrap();
    let begin = here.export::<(u32,), (u32,)>(&asks, "begin").unwrap();
    for _ in 0..3 {
        // The next begins when all have come back.
        assert_eq!(begin.call((1_000,)).await.unwrap(), (1_000,));
    }
    assert_eq!(asks.info().incarnation, 1);
}

/// Gives each caller a list as soon as there is a permit for it.
struct Lists(AtomicUsize, Arc<Semaphore>);

impl Elsewhere for Lists {
    fn call(&self, _: &ComponentId, _: &FarCall) -> Option<Called> {
        self.0.fetch_add(1, Ordering::SeqCst);
        let permits = Arc::clone(&self.1);
        Some(Box::pin(async move {
            permits.acquire().await.unwrap().forget();
            Ok(list(1_000, 1_000))
        }))
    }
}

#[tokio::test]
async fn what_other_hosts_give_takes_room_when_it_comes() {
    // Ten times a thousand values of 40 bytes, all at once.
    for (allowed, fits) in [(ByteSize::kib(500), true), (ByteSize::kib(60), false)] {
        let here = system();
        let lists = Arc::new(Lists(AtomicUsize::new(0), Arc::new(Semaphore::new(0))));
        here.add_elsewhere(Arc::clone(&lists) as _);
        let links = Links::default().with("acme:numbers/bytes", id("gives"));
        let asks = linked(&here, "asks", BEGINS_TEN, links).with_mailbox_bytes(allowed);
        let asks = here.spawn(asks).await.unwrap();
        let begin = here.export::<(u32,), (u32,)>(&asks, "begin").unwrap();
        let mut events = here.events();
        assert_eq!(begin.call((1_000,)).await.unwrap(), (1_000,));
        while lists.0.load(Ordering::SeqCst) < 10 {
            tokio::task::yield_now().await;
        }
        settle().await;
        lists.1.add_permits(20);
        // The next begins when all have come back, or that it was too much has crashed it: `give` has no word for a failure.
        assert_eq!(begin.call((1_000,)).await.unwrap(), (1_000,));
        let crashes = std::iter::from_fn(|| events.try_recv().ok()).filter_map(|event| match event {
            SystemEvent::Crashed(report) => Some(report),
            _ => None,
        });
        let causes: Vec<_> = crashes.map(|report| report.crash.kind().clone()).collect();
        match &causes[..] {
            [] => assert!(fits),
            [CrashKind::Link { cause, .. }, ..] => assert!(!fits && cause.contains("not taken"), "{cause}"),
            others => panic!("{others:?}"),
        }
    }
}

/// A list that says how many bytes it has, and has as many as are there.
fn list(says: usize, there: usize) -> Bytes {
    let (mut list, mut left) = (Vec::new(), says);
    while left > 0x7f {
        list.push(left as u8 | 0x80);
        left >>= 7;
    }
    list.push(left as u8);
    list.resize(list.len() + there, 1);
    list.into()
}

#[tokio::test]
async fn others_are_asked_when_nobody_is_here_and_the_caller_may_call() {
    let (here, there) = hosts();
    let clerk = spawn_clerk(&here, to("kv")).await;
    let (store, _) = uses(&here, &clerk);
    let calls = || there.calls.lock().len();
    // Nobody has it there either.
    assert_eq!(remember(&store, "a", "x").await.unwrap().unwrap_err(), "nobody is registered as `kv`");
    assert_eq!(calls(), 1);
    // One that is here is the one that is meant.
    let (near, far) = (spawn_kv(&here, "kv").await, spawn_kv(&there.system, "kv").await);
    remember(&store, "a", "near").await.unwrap().unwrap();
    assert_eq!(calls(), 1);
    near.stop(Stop::Now);
    near.ended().await;
    remember(&store, "a", "far").await.unwrap().unwrap();
    assert_eq!(calls(), 2);
    far.call(&format!("{STORE}#stat"), [Val::String("a".into())]).await.unwrap();

    // Who may not call it does not hear whether it is there.
    let sandbox =
        SandboxSpec::new(here.link_with(&loaded(&here, airssys_wasm_fixtures::CLERK), &to("kv")).unwrap(), limits());
    let spec = ActorSpec::new(id("denied"), sandbox.unwrap()).with_contract(ContractKind::Exports);
    let denied = here.spawn(spec.clone()).await.unwrap();
    let said = remember(&uses(&here, &denied).0, "a", "x").await.unwrap().unwrap_err();
    assert!(said.contains("may not call it"), "{said}");
    assert_eq!(calls(), 2);
    let granted: Capabilities = toml::from_str(r#"call = ["k*"]"#).unwrap();
    let granted = here.spawn(spec.with_id(id("granted")).with_capabilities(granted)).await.unwrap();
    remember(&uses(&here, &granted).0, "a", "x").await.unwrap().unwrap();
    assert_eq!(calls(), 3);

    // Nor does one whose own name may be another host's.
    let fence = Arc::new(Switch(AtomicBool::new(true)));
    let links = to("kv");
    let spec = spec_of(&here, "fenced", airssys_wasm_fixtures::CLERK, links, limits());
    let fenced = here.spawn(spec.with_fence(Arc::clone(&fence) as _)).await.unwrap();
    remember(&uses(&here, &fenced).0, "a", "x").await.unwrap().unwrap();
    fence.0.store(false, Ordering::Relaxed);
    assert!(remember(&uses(&here, &fenced).0, "a", "x").await.is_err());
    assert_eq!(calls(), 4);
}

#[tokio::test]
async fn a_group_without_members_here_is_called_elsewhere() {
    let (here, there) = hosts();
    let relay = here.spawn(spec_of(&here, "relay", RELAY, relay_to("ends"), limits())).await.unwrap();
    here.create_group(&id("ends")).unwrap();
    assert!(matches!(link_failed(call_f(&here, &relay).await).2, LinkFault::Unknown(_)));
    there.system.spawn(spec_of(&there.system, "ends", END, Links::default(), limits())).await.unwrap();
    settle().await;
    assert_eq!(call_f(&here, &relay).await.unwrap(), 41);
}

#[tokio::test]
async fn what_failed_on_another_host_is_told_the_guest_as_at_home() {
    let mistyped = || ExportError::Mistyped { actual: "set: func()".into(), mismatch: String::new() };
    let imported = format!(
        "`{STORE}#set: func(key: string, value: list<u8>) -> result<_, string>` is imported, and the actor has "
    );
    let table: [(CallError, &str); 15] = [
        (CallError::Lost { accepted: false }, "the actor's host was lost with the call on its way"),
        (CallError::Lost { accepted: true }, "the actor's host was lost with the call in the actor's mailbox"),
        (CallError::NotSaved, "the call was made, but the actor's state after it is not saved"),
        (CallError::Stopped, "the actor stopped before it came to this call"),
        (CallError::Deadline, "the call did not come back within its deadline"),
        (
            CallError::NotSent(Refusal::Unreachable),
            "the call was not taken: its host cannot be reached; send again later",
        ),
        (CallError::NotSent(Refusal::Full), "the call was not taken: its mailbox is full"),
        (
            CallError::NotSent(Refusal::TooLarge { size: 9, allowed: 8 }),
            "the call was not taken: it takes messages of 8 bytes at the most, and this one has 9",
        ),
        (
            CallError::ResultTooLarge { size: 9, allowed: 8 },
            "the result was not taken: it takes messages of 8 bytes at the most, and this one has 9",
        ),
        (
            CallError::Malformed { made: false },
            "the parameters of a call between two hosts are not of the function's type",
        ),
        (CallError::Malformed { made: true }, "the results of a call between two hosts are not of the function's type"),
        // What is another's is for its host alone.
        (
            CallError::NotActivated(Arc::new(StartError::Elsewhere { because: "a secret".into() })),
            "the actor did not start",
        ),
        (mistyped().into(), &format!("{imported}`set: func()`")),
        (ExportError::Missing { name: "set".into(), available: vec![] }.into(), &format!("{imported}no such export")),
        // A native actor.
        (CallError::OtherSystem, &format!("{imported}no such export")),
    ];
    for (error, said) in table {
        let here = system();
        here.add_elsewhere(Arc::new(Gives(move || Err(error.clone()))));
        let clerk = spawn_clerk(&here, to("kv")).await;
        let (store, _) = uses(&here, &clerk);
        assert_eq!(remember(&store, "a", "x").await.unwrap().unwrap_err(), said);
        assert_eq!(clerk.info().incarnation, 1);
    }

    // One that has no word for it crashes, and its host has the fault.
    let here = system();
    here.add_elsewhere(Arc::new(Gives(|| Err(CallError::Lost { accepted: true }))));
    let relay = here.spawn(spec_of(&here, "relay", RELAY, relay_to("end"), limits())).await.unwrap();
    let (_, _, fault) = link_failed(call_f(&here, &relay).await);
    assert!(matches!(fault, LinkFault::Call(CallError::Lost { accepted: true })), "{fault}");
}

#[tokio::test]
async fn results_of_another_host_are_held_to_the_type_and_to_the_size_of_a_message() {
    // By values, and with static types.
    let values = r#"(component
        (import "test:link/list" (instance $host (export "f" (func (result (list u16))))))
        MEMORY
        (core func $f (canon lower (func $host "f") (memory $mem) (realloc $realloc)))
        (core module $m
            (import "" "f" (func $f (param i32)))
            (import "" "memory" (memory 1))
            (func (export "g") (result i32) (call $f (i32.const 0)) (i32.load (i32.const 4))))
        (core instance $i (instantiate $m (with "" (instance (export "f" (func $f)) (export "memory" (memory $mem))))))
        (func (export "g") (result u32) (canon lift (core func $i "g"))))"#
        .replace("MEMORY", MEMORY);
    let types = values.replace("list u16", "list u8");
    let links = || Links::default().with("test:link/list", id("far"));
    let small = ResourceLimits { message_size: ByteSize::kib(4), ..limits() };
    // The list, and a value of 40 bytes for each of its elements; the bytes that came are fewer.
    for (component, fit, too_many) in [(&values, 101, 102), (&types, 4_096, 4_097)] {
        for (elements, fits) in [(fit, true), (too_many, false)] {
            let here = system();
            here.add_elsewhere(Arc::new(Gives(move || Ok(list(elements, elements)))));
            let caller = here.spawn(spec_of(&here, "caller", component, links(), small.clone())).await.unwrap();
            let g = here.export::<(), (u32,)>(&caller, "g").unwrap();
            let called = g.call(()).await.map(|(n,)| n);
            if fits {
                assert_eq!(called.unwrap(), elements as u32);
            } else {
                let (_, _, fault) = link_failed(called);
                let LinkFault::Result(Refusal::TooLarge { size, allowed }) = fault else { panic!("{fault}") };
                assert!(allowed == 4_096 && size > allowed, "{size}");
            }
        }
        let here = system();
        here.add_elsewhere(Arc::new(Gives(|| Ok(Bytes::from_static(&[3, 0, 0])))));
        let caller = here.spawn(spec_of(&here, "caller", component, links(), small.clone())).await.unwrap();
        let (_, _, fault) = link_failed(here.export::<(), (u32,)>(&caller, "g").unwrap().call(()).await.map(|(n,)| n));
        assert!(matches!(fault, LinkFault::Call(CallError::Malformed { made: true })), "{fault}");
    }
}

#[tokio::test]
async fn a_type_that_is_too_long_to_be_told_is_refused_by_the_caller() {
    let name = "a".repeat(450);
    for (parameters, is_too_long) in [(17, false), (20, true)] {
        let (asked, here) = (Arc::new(AtomicUsize::new(0)), system());
        let gives = {
            let asked = Arc::clone(&asked);
            move || {
                asked.fetch_add(1, Ordering::Relaxed);
                Ok(Bytes::from_static(&[5]))
            }
        };
        here.add_elsewhere(Arc::new(Gives(gives)));
        let list: String = (0..parameters).map(|n| format!(r#"(param "{name}{n}" (list (list u8)))"#)).collect();
        let component = format!(
            r#"(component
                (import "test:link/f" (instance $host (export "f" (func {list} (result u32)))))
                {MEMORY}
                (core func $f (canon lower (func $host "f") (memory $mem)))
                (core module $m
                    (import "" "f" (func $f (param i32) (result i32)))
                    (func (export "f") (result i32) (call $f (i32.const 0))))
                (core instance $i (instantiate $m (with "" (instance (export "f" (func $f))))))
                (func $g (result u32) (canon lift (core func $i "f")))
                (instance $exports (export "f" (func $g)))
                (export "test:link/f" (instance $exports)))"#
        );
        let relay = here.spawn(spec_of(&here, "relay", component, relay_to("far"), limits())).await.unwrap();
        let called = call_f(&here, &relay).await;
        if is_too_long {
            let (_, _, fault) = link_failed(called);
            assert!(matches!(fault, LinkFault::LongType { allowed: FarCall::LONGEST_TYPE }), "{fault}");
        } else {
            assert_eq!(called.unwrap(), 5);
            assert_eq!(call_f(&here, &relay).await.unwrap(), 5);
        }
        assert_eq!(asked.load(Ordering::Relaxed), if is_too_long { 0 } else { 2 });
    }
}

/// Tells when it is dropped.
struct Dropped(Option<oneshot::Sender<()>>);

impl Drop for Dropped {
    fn drop(&mut self) {
        _ = self.0.take().unwrap().send(());
    }
}

/// Never answers.
struct Silent(Mutex<Option<Dropped>>);

impl Elsewhere for Silent {
    fn call(&self, _: &ComponentId, _: &FarCall) -> Option<Called> {
        let dropped = self.0.lock().take();
        Some(Box::pin(async move {
            let _dropped = dropped;
            pending().await
        }))
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_does_not_come_back_is_given_up_at_its_deadline() {
    let (dropped, is_dropped) = oneshot::channel();
    let here = system();
    here.add_elsewhere(Arc::new(Silent(Mutex::new(Some(Dropped(Some(dropped)))))));
    let limits = ResourceLimits { deadline: Duration::from_secs(9), ..limits() };
    let relay = here.spawn(spec_of(&here, "relay", RELAY, relay_to("end"), limits)).await.unwrap();
    let begun = Instant::now();
    let (_, _, fault) = link_failed(call_f(&here, &relay).await);
    assert!(matches!(fault, LinkFault::Call(CallError::Deadline)), "{fault}");
    assert_eq!(begun.elapsed().as_secs(), 9);
    is_dropped.await.unwrap();
    // Nor longer than whoever waits for the caller.
    let f = here.export::<(), (u32,)>(&relay, "test:link/f#f").unwrap();
    let called = f.call_within(Duration::from_secs(1), ()).await;
    assert!(matches!(called, Err(CallError::Deadline)), "{called:?}");
    settle().await;
    assert_eq!(relay.info().incarnation, 3);
}

/// A call of `f`.
fn far(export: &str, ty: &str, params: &'static [u8]) -> FarCall {
    FarCall { export: export.into(), ty: ty.into(), message: MessageEnvelope::new(params) }
}

const F: &str = "test:link/f#f";

async fn end(system: &ActorSystem, component: &str) -> ActorRef {
    let spec = spec_of(system, "end", component, Links::default(), limits());
    system.spawn(spec.with_mailbox(1)).await.unwrap()
}

#[tokio::test]
async fn a_call_from_another_host_is_held_to_the_type_of_the_version_that_makes_it() {
    let system = system();
    let actor = end(&system, END).await;
    let called = async |export: &str, ty: &str, params| match system.call_encoded(&actor, far(export, ty, params)) {
        Ok(called) => called.await,
        Err(reason) => panic!("{reason}"),
    };
    let u32_of = |called: Result<Bytes, CallError>| called.map(|bytes| bytes[0]).unwrap();
    assert_eq!(u32_of(called(F, "func() -> u32", &[]).await), 40);
    let mistyped = |called: Result<Bytes, CallError>| {
        let Err(CallError::Contract(error)) = called else { panic!("{called:?}") };
        let ExportError::Mistyped { actual, mismatch } = &*error else { panic!("{error}") };
        (actual.clone(), mismatch.clone())
    };
    for other in
        ["func() -> u64", "async func() -> u32", "func()", "func(a: u32) -> u32", "func() -> u32 ", "", "\u{0}"]
    {
        let (actual, mismatch) = mistyped(called(F, other, &[]).await);
        assert_eq!(actual, "test:link/f#f: func() -> u32");
        assert!(mismatch.starts_with("it is imported as `") && !mismatch.contains('\0'), "{mismatch}");
    }
    for missing in ["test:link/f#g", "test:link/g#f", "f", "", "#", "test:link/f"] {
        let error = called(missing, "func() -> u32", &[]).await.unwrap_err();
        assert!(
            matches!(&error, CallError::Contract(error) if matches!(**error, ExportError::Missing { .. })),
            "{error}"
        );
    }
    // Another version is another type, also for a call that waits while it comes.
    let long = END
        .replace("(result i32) (i32.const 40)", "(result i64) (i64.const 400)")
        .replace("(result u32)", "(result u64)");
    let next = spec_of(&system, "end", &long, Links::default(), limits()).sandbox().clone();
    let gate = Arc::new(Notify::new());
    let busy = keep_busy(&system, &actor, &gate);
    settle().await;
    let waits = system.call_encoded(&actor, far(F, "func() -> u32", &[])).unwrap();
    let upgraded = tokio::spawn({
        let (system, actor) = (system.clone(), actor.clone());
        async move { system.upgrade(actor.address(), next, UpgradeOptions::default()).await }
    });
    settle().await;
    gate.notify_one();
    busy.await.unwrap().unwrap();
    upgraded.await.unwrap().unwrap();
    assert_eq!(mistyped(waits.await).0, "test:link/f#f: func() -> u64");
    assert_eq!(mistyped(called(F, "func() -> u32", &[]).await).0, "test:link/f#f: func() -> u64");
    assert_eq!(called(F, "func() -> u64", &[]).await.unwrap(), &[0x90, 0x03][..]);
    assert_eq!(actor.info().incarnation, 2);
}

#[tokio::test]
async fn what_cannot_be_called_from_another_host_says_so() {
    let here = system();
    let (native, _) = Probe::spawn(&here, "native").await;
    let of_other = end(&system(), END).await;
    for actor in [native, of_other] {
        let called = here.call_encoded(&actor, far(F, "func() -> u32", &[])).unwrap().await;
        assert!(matches!(called, Err(CallError::OtherSystem)), "{called:?}");
    }
    // A resource would be of one store.
    let resource = r#"(component
        (type $r' (resource (rep i32)))
        (export $r "r" (type $r'))
        (core func $new (canon resource.new $r'))
        (core module $m (import "" "new" (func $new (param i32) (result i32)))
            (func (export "f") (result i32) (call $new (i32.const 1))))
        (core instance $i (instantiate $m (with "" (instance (export "new" (func $new))))))
        (func (export "f") (result (own $r)) (canon lift (core func $i "f"))))"#;
    let actor = end(&here, resource).await;
    let called = here.call_encoded(&actor, far("f", "func() -> own<resource>", &[])).unwrap().await;
    assert!(matches!(called, Err(CallError::Contract(_))), "{called:?}");
}

#[tokio::test]
async fn parameters_that_weigh_more_than_a_message_are_refused() {
    let takes = r#"(component
        MEMORY
        (core module $m (func (export "f") (param i32 i32) (result i32) (local.get 1)))
        (core instance $i (instantiate $m))
        (func (export "f") (param "a" (list u16)) (result u32)
            (canon lift (core func $i "f") (memory $mem) (realloc $realloc)))
        (func (export "g") (param "a" (list u8))
            (canon lift (core func $i "g") (memory $mem) (realloc $realloc))))"#
        .replace("MEMORY", MEMORY)
        .replace("(local.get 1)))", r#"(local.get 1)) (func (export "g") (param i32 i32)))"#);
    let system = system();
    let small = ResourceLimits { message_size: ByteSize::kib(4), ..limits() };
    let actor = system.spawn(spec_of(&system, "a", takes, Links::default(), small)).await.unwrap();
    let called = |export: &str, ty: &str, elements: usize, there: usize| {
        let call = FarCall { message: MessageEnvelope::new(list(elements, there)), ..far(export, ty, &[]) };
        system.call_encoded(&actor, call)
    };
    // A value of 40 bytes for the list and for each element, and no byte more.
    let (f, g) = ("func(a: list<u16>) -> u32", "func(a: list<u8>)");
    assert_eq!(called("f", f, 101, 101).unwrap_or_else(|e| panic!("{e}")).await.unwrap(), &[101][..]);
    // Whether the elements are there, or are only said to be.
    for there in [0, 102, 200_000] {
        let Err(refused) = called("f", f, 102.max(there), there) else { panic!("{there}") };
        assert!(matches!(refused, Refusal::TooLarge { size, allowed: 4_096 } if size > 4_096), "{refused}");
    }
    // With static types the bytes alone.
    called("g", g, 4_096, 4_096).unwrap_or_else(|e| panic!("{e}")).await.unwrap();
    let Err(refused) = called("g", g, 4_097, 4_097) else { panic!() };
    assert_eq!(refused, Refusal::TooLarge { size: 4_097, allowed: 4_096 });
    let cut = called("g", g, 4_097, 4_096).unwrap_or_else(|e| panic!("{e}")).await;
    assert!(matches!(cut, Err(CallError::Malformed { made: false })), "{cut:?}");
    assert_eq!(actor.info().incarnation, 1);
}

#[tokio::test(start_paused = true)]
async fn a_call_from_another_host_waits_in_the_mailbox_and_for_it() {
    let there = system();
    let actor = end(&there, END).await;
    let call = || far(F, "func() -> u32", &[]);
    assert_eq!(there.call_encoded(&actor, call()).unwrap().await.unwrap(), &[40][..]);
    let gate = Arc::new(Notify::new());
    let busy = keep_busy(&there, &actor, &gate);
    settle().await;
    let waits = there.call_encoded(&actor, call()).unwrap();
    assert_eq!(there.call_encoded(&actor, call()).err(), Some(Refusal::Full));
    let waiting = tokio::spawn(there.call_encoded_waiting(&actor, call()));
    let until = Instant::now() + Duration::from_secs(1);
    let late = FarCall { message: MessageEnvelope::new("").with_deadline(until), ..call() };
    assert!(matches!(there.call_encoded_waiting(&actor, late).await, Err(CallError::Deadline)));
    settle().await;
    gate.notify_one();
    busy.await.unwrap().unwrap();
    assert_eq!(waits.await.unwrap(), &[40][..]);
    assert_eq!(waiting.await.unwrap().unwrap(), &[40][..]);

    // One that nobody waits for any more is not made.
    let busy = keep_busy(&there, &actor, &gate);
    settle().await;
    drop(there.call_encoded(&actor, call()).unwrap());
    gate.notify_one();
    busy.await.unwrap().unwrap();
    // One that is killed says so, and takes no more.
    let busy = keep_busy(&there, &actor, &gate);
    settle().await;
    let waits = there.call_encoded(&actor, call()).unwrap();
    actor.kill();
    assert!(matches!(waits.await, Err(CallError::Stopped)));
    assert!(busy.await.unwrap().is_err());
    actor.ended().await;
    assert_eq!(there.call_encoded(&actor, call()).err(), Some(Refusal::Stopped));
}

#[tokio::test]
async fn a_fenced_actor_makes_no_call_of_another_host() {
    let there = system();
    let fence = Arc::new(Switch(AtomicBool::new(true)));
    let spec = spec_of(&there, "end", END, Links::default(), limits()).with_fence(Arc::clone(&fence) as _);
    let actor = there.spawn(spec).await.unwrap();
    for (holds, is_made) in [(true, true), (false, false), (true, true)] {
        fence.0.store(holds, Ordering::Relaxed);
        match there.call_encoded(&actor, far(F, "func() -> u32", &[])).unwrap().await {
            Ok(_) => assert!(is_made),
            Err(CallError::NotSent(Refusal::Moved)) => assert!(!is_made),
            Err(other) => panic!("{other}"),
        }
    }
}
