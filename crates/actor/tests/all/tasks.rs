//! Actors with async functions: one message at a time, and several requests.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use airssys_wasm_actor::{
    ActorSpec, ActorSystem, AskError, CallError, Capabilities, ContractKind, Elsewhere, Links, NativeActor,
    NativeContext, NativeSpec, Stop, SystemEvent, UpgradeError, UpgradeOptions,
};
use airssys_wasm_engine::{EngineConfig, Feature, LoadError, Profile, WasmEngine, wasmtime::component::Val};
use airssys_wasm_isolation::{CrashKind, SandboxSpec};
use airssys_wasm_limits::{ByteSize, ResourceLimits};
use airssys_wasm_registry::{ComponentId, MessageEnvelope};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::Semaphore;

use crate::support::{ASYNC_ACTOR, Probe, ask, at_once, busy, id, limited, limits, settle, spawn, spec, system};

#[tokio::test]
async fn it_answers_fails_and_crashes_like_any_other() {
    let system = system();
    let actor = spawn(&system, "a", &ASYNC_ACTOR).await;
    for n in 0..20 {
        assert_eq!(ask(&actor, &format!("hello {n}")).await.unwrap(), format!("hello {n}"));
    }
    assert!(matches!(ask(&actor, "fail").await, Err(AskError::Failed { message }) if message == "as it was told"));
    assert!(matches!(ask(&actor, "panic").await, Err(AskError::Crashed(_))));
    assert_eq!(ask(&actor, "again").await.unwrap(), "again");
    assert_eq!(actor.info().incarnation, 2);
}

#[test]
fn without_the_switch_it_is_not_loaded() {
    let engine = WasmEngine::new(EngineConfig::small().compile_in_process()).unwrap();
    let error = engine.load_blocking(airssys_wasm_fixtures::ASYNC_ACTOR, Profile::Plain).unwrap_err();
    assert!(matches!(error, LoadError::Unsupported { feature: Feature::ComponentAsync }), "{error:?}");
}

#[tokio::test]
async fn it_asks_several_at_the_same_time() {
    let system = system();
    let actor = spawn(&system, "a", &ASYNC_ACTOR).await;
    let (one, other) = (busy(&system, "one").await, busy(&system, "other").await);
    Probe::spawn(&system, "third").await;
    let asked = tokio::spawn({
        let actor = actor.clone();
        async move { ask(&actor, "ask one third other nobody").await.unwrap() }
    });
    // Each is let go alone: whoever waited for one after the other would ask none of the rest.
    settle().await;
    other.gate.notify_one();
    settle().await;
    assert_eq!(other.handled(), "wait,get");
    assert_eq!(one.handled(), "wait");
    one.gate.notify_one();
    assert_eq!(asked.await.unwrap(), "get get get RequestError::NotSent(SendError::Unknown)");
}

#[tokio::test]
async fn the_answer_is_given_at_once_and_the_next_message_comes_when_all_tasks_have_ended() {
    let system = system();
    let actor = spawn(&system, "a", &ASYNC_ACTOR).await;
    for n in 0..5 {
        let (answer, next) = tokio::join!(ask(&actor, "later 20"), ask(&actor, "ended"));
        assert_eq!((answer.unwrap(), next.unwrap()), (n.to_string(), (n + 1).to_string()));
    }
}

#[tokio::test]
async fn a_crash_after_the_answer_is_told_to_nobody_who_was_answered() {
    let system = system();
    let mut events = system.events();
    let mut spec = spec(&system, "a", &ASYNC_ACTOR);
    spec = spec.with_redelivery(Some(3)).with_restart(at_once(100));
    let actor = system.spawn(spec).await.unwrap();
    assert_eq!(ask(&actor, "later-panic").await.unwrap(), "answered");
    assert_eq!(ask(&actor, "hello").await.unwrap(), "hello");
    assert_eq!(actor.info().incarnation, 2);
    // Nobody waits for this one: it was handled, and so does not come again.
    actor.tell("later-panic").await.unwrap();
    assert_eq!(ask(&actor, "hello").await.unwrap(), "hello");
    assert_eq!(actor.info().incarnation, 3);
    assert_eq!(system.dead_letters().len(), 0);
    let mut crashes = 0;
    while let Ok(event) = events.try_recv() {
        crashes += u32::from(matches!(event, SystemEvent::Crashed { .. }));
    }
    assert_eq!(crashes, 2);
}

#[tokio::test]
async fn a_task_without_end_ends_the_incarnation() {
    let system = system();
    let few = ResourceLimits { cpu_time: Duration::from_millis(20), ..limits() };
    let actor = system.spawn(limited(spec(&system, "a", &ASYNC_ACTOR), few)).await.unwrap();
    assert_eq!(ask(&actor, "later-forever").await.unwrap(), "answered");
    assert_eq!(ask(&actor, "hello").await.unwrap(), "hello");
    assert_eq!(actor.info().incarnation, 2);
}

#[tokio::test]
async fn what_is_on_its_way_is_bounded() {
    let system = system();
    let narrow = ResourceLimits { host_call_bytes: ByteSize::kib(10), ..limits() };
    let actor = system.spawn(limited(spec(&system, "a", &ASYNC_ACTOR), narrow)).await.unwrap();
    let busy = busy(&system, "busy").await;
    let asked = tokio::spawn({
        let actor = actor.clone();
        async move { ask(&actor, "burden busy 20 1024").await.unwrap() }
    });
    settle().await;
    busy.gate.notify_one();
    assert_eq!(asked.await.unwrap(), "10");
    // All were given back.
    assert_eq!(ask(&actor, "burden busy 10 1024").await.unwrap(), "0");
}

/// Answers each message with so many bytes, as soon as there is a permit for it.
struct Large(usize, Arc<Semaphore>);

impl NativeActor for Large {
    async fn handle(&mut self, _: &MessageEnvelope, _: &NativeContext) -> Result<Option<Bytes>, String> {
        self.1.acquire().await.unwrap().forget();
        Ok(Some(vec![0; self.0].into()))
    }
}

#[tokio::test]
async fn answers_that_come_while_the_asker_takes_none_are_bounded_together() {
    for (allowed, answer, refused) in
        [(40, 4_096, [0, 0]), (10, 4_096, [8, 0]), (10, 20_000, [9, 1]), (10, 1_024, [0, 0])]
    {
        let system = system();
        let spec = spec(&system, "a", &ASYNC_ACTOR).with_mailbox_bytes(ByteSize::kib(allowed));
        let actor = system.spawn(spec).await.unwrap();
        let permits = Arc::new(Semaphore::new(0));
        let make = {
            let permits = Arc::clone(&permits);
            move || Large(answer, Arc::clone(&permits))
        };
        let large = system.spawn_native(NativeSpec::new(id("large"), make)).await.unwrap();
        for (times, refused) in [10, 2].into_iter().zip(refused) {
            // They are answered before the asker has its turn, and all was given back by the next time.
            let asked = tokio::spawn({
                let actor = actor.clone();
                async move { ask(&actor, &format!("burden large {times} 1")).await.unwrap() }
            });
            // The first is in its hands.
            while large.info().mailbox.queued + 1 < times {
                tokio::task::yield_now().await;
            }
            permits.add_permits(times);
            assert_eq!(asked.await.unwrap(), refused.to_string(), "{allowed} KiB, {answer} bytes each, {times} times");
        }
        // Whoever answered is none the worse for it.
        assert_eq!((large.info().incarnation, system.dead_letters().len()), (1, 0));
    }
}

/// Another host: answers each ask with so many bytes, as soon as there is a permit for it.
struct Far(usize, AtomicUsize, Arc<Semaphore>);

impl Elsewhere for Far {
    fn ask(&self, _: &ComponentId, _: &MessageEnvelope) -> Option<BoxFuture<'static, Result<Bytes, AskError>>> {
        self.1.fetch_add(1, Ordering::SeqCst);
        let (size, permits) = (self.0, Arc::clone(&self.2));
        Some(Box::pin(async move {
            permits.acquire().await.unwrap().forget();
            Ok(vec![0; size].into())
        }))
    }
}

#[tokio::test]
async fn answers_of_other_hosts_are_bounded_as_those_of_this_one() {
    for (allowed, answer, refused) in
        [(40, 4_096, [0, 0]), (10, 4_096, [8, 0]), (10, 20_000, [9, 1]), (10, 1_024, [0, 0])]
    {
        let system = system();
        let far = Arc::new(Far(answer, AtomicUsize::new(0), Arc::new(Semaphore::new(0))));
        system.add_elsewhere(Arc::clone(&far) as _);
        let spec = spec(&system, "a", &ASYNC_ACTOR).with_mailbox_bytes(ByteSize::kib(allowed));
        let actor = system.spawn(spec).await.unwrap();
        for (times, refused) in [10, 2].into_iter().zip(refused) {
            let asked = tokio::spawn({
                let actor = actor.clone();
                async move { ask(&actor, &format!("burden far {times} 1")).await.unwrap() }
            });
            while far.1.load(Ordering::SeqCst) < times {
                tokio::task::yield_now().await;
            }
            // All are answered before the asker has its turn.
            settle().await;
            far.2.add_permits(times);
            assert_eq!(asked.await.unwrap(), refused.to_string(), "{allowed} KiB, {answer} bytes each, {times} times");
            far.1.store(0, Ordering::SeqCst);
        }
    }
}

/// Gives as many bytes as it is told.
const GIVES: &str = r#"(component
    (core module $memory (memory (export "memory") 1))
    (core instance $memory (instantiate $memory))
    (alias core export $memory "memory" (core memory $mem))
    (core func $return (canon task.return (result (list u8)) (memory $mem)))
    (core module $m
        (import "" "return" (func $return (param i32 i32)))
        (func (export "give") (param i32) (result i32) (call $return (i32.const 0) (local.get 0)) (i32.const 0))
        (func (export "callback") (param i32 i32 i32) (result i32) unreachable))
    (core instance $i (instantiate $m (with "" (instance (export "return" (func $return))))))
    (func $give async (param "n" u32) (result (list u8))
        (canon lift (core func $i "give") async (callback (core func $i "callback")) (memory $mem)))
    (instance (export "acme:numbers/bytes") (export "give" (func $give))))"#;

/// `begin` begins ten calls of it.
pub(crate) const BEGINS_TEN: &str = r#"(component
    (import "acme:numbers/bytes" (instance $bytes
        (export "give" (func async (param "n" u32) (result (list u8))))))
    (core module $memory (memory (export "memory") 1)
        (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024)))
    (core instance $memory (instantiate $memory))
    (alias core export $memory "memory" (core memory $mem))
    (alias core export $memory "realloc" (core func $realloc))
    (core func $give (canon lower (func $bytes "give") async (memory $mem) (realloc $realloc)))
    (core func $return (canon task.return (result u32)))
    (core module $m
        (import "" "return" (func $return (param i32)))
        (import "" "give" (func $give (param i32 i32) (result i32)))
        (func (export "begin") (param $bytes i32) (result i32)
            (local $times i32)
            (local.set $times (i32.const 10))
            (loop $again
                (drop (call $give (local.get $bytes) (i32.const 0)))
                (local.set $times (i32.sub (local.get $times) (i32.const 1)))
                (br_if $again (local.get $times)))
            (call $return (local.get $bytes))
            (i32.const 0))
        (func (export "callback") (param i32 i32 i32) (result i32) unreachable))
    (core instance $i (instantiate $m
        (with "" (instance (export "return" (func $return)) (export "give" (func $give))))))
    (func (export "begin") async (param "n" u32) (result u32)
        (canon lift (core func $i "begin") async (callback (core func $i "callback")))))"#;

#[tokio::test]
async fn results_of_linked_calls_are_bounded_together_as_answers_are() {
    // Ten times a thousand values of 40 bytes. Two wait at the same time, unless a tick ends between any two.
    for (allowed, fits) in [(ByteSize::kib(500), true), (ByteSize::kib(60), false)] {
        let system = system();
        let mut events = system.events();
        let links = Links::default().with("acme:numbers/bytes", id("gives"));
        let gives = system.spawn(linked(&system, "gives", GIVES, Links::default())).await.unwrap();
        let asks = linked(&system, "asks", BEGINS_TEN, links).with_mailbox_bytes(allowed);
        let asks = system.spawn(asks).await.unwrap();
        let begin = system.export::<(u32,), (u32,)>(&asks, "begin").unwrap();
        assert_eq!(begin.call((1_000,)).await.unwrap(), (1_000,));
        // The next begins when all have come back.
        assert_eq!(begin.call((1,)).await.unwrap(), (1,));
        let crashes: Vec<_> = std::iter::from_fn(|| events.try_recv().ok())
            .filter_map(|event| match event {
                SystemEvent::Crashed(report) => Some(report),
                _ => None,
            })
            .collect();
        // `give` has no word for a failure.
        match &crashes[..] {
            [] => assert!(fits),
            [report] => {
                let cause = matches!(report.crash.kind(), CrashKind::Link { cause, .. } if cause.contains("not taken"));
                assert!(cause && !fits && report.actor == *asks.address(), "{report}");
            }
            several => panic!("{several:?}"),
        }
        assert_eq!(gives.info().incarnation, 1);
    }
}

#[tokio::test]
async fn a_circle_of_requests_is_found_among_several() {
    let system = system();
    let a = spawn(&system, "a", &ASYNC_ACTOR).await;
    Probe::spawn(&system, "probe").await;
    assert_eq!(ask(&a, "ask probe a probe").await.unwrap(), "get RequestError::Cycle get");
}

#[tokio::test(start_paused = true)]
async fn it_is_stopped_while_it_waits() {
    let system = system();
    let actor = spawn(&system, "a", &ASYNC_ACTOR).await;
    let shared = busy(&system, "busy").await;
    let asked = tokio::spawn({
        let actor = actor.clone();
        async move { ask(&actor, "ask busy busy").await }
    });
    settle().await;
    actor.stop(Stop::Now);
    actor.ended().await;
    assert!(matches!(asked.await.unwrap(), Err(AskError::Stopped | AskError::Crashed(_))));
    shared.gate.notify_one();
}

#[tokio::test]
async fn its_exports_are_called_like_others() {
    let system = system();
    let called = spec(&system, "called", &ASYNC_ACTOR).with_contract(ContractKind::Exports);
    let actor = system.spawn(called).await.unwrap();
    let message = |text: &str| {
        let bytes = text.bytes().map(Val::U8).collect();
        let none = |name: &str| (name.to_owned(), Val::Option(None));
        Val::Record(vec![
            ("payload".to_owned(), Val::List(bytes)),
            none("sender"),
            none("topic"),
            none("content-type"),
            ("wants-answer".to_owned(), Val::Bool(false)),
        ])
    };
    let handle = "airssys:actor/handler@0.2.0#handle";
    for before in [0, 1] {
        let [Val::Result(Ok(Some(answer)))] = &actor.call(handle, [message("later 5")]).await.unwrap()[..] else {
            panic!()
        };
        let Val::Option(Some(answer)) = &**answer else { panic!() };
        assert_eq!(**answer, Val::List(vec![Val::U8(b'0' + before)]));
    }
    assert!(matches!(actor.call("nothing", []).await, Err(CallError::Contract(_))));
}

/// Exports an async function in an interface: one more than it got.
pub(crate) const NEXT: &str = r#"(component
    (core module $m
        (import "" "return" (func $return (param i32)))
        (func (export "next") (param i32) (result i32)
            (if (i32.eq (local.get 0) (i32.const 13)) (then unreachable))
            (call $return (i32.add (local.get 0) (i32.const 1)))
            (i32.const 0))
        (func (export "callback") (param i32 i32 i32) (result i32) unreachable))
    (core func $return (canon task.return (result u32)))
    (core instance $i (instantiate $m (with "" (instance (export "return" (func $return))))))
    (func $next async (param "n" u32) (result u32)
        (canon lift (core func $i "next") async (callback (core func $i "callback"))))
    (instance (export "acme:numbers/numbers@1.0.0") (export "next" (func $next))))"#;

/// Imports it, and exports `twice`: two more than it got.
pub(crate) const TWICE: &str = r#"(component
    (import "acme:numbers/numbers@1.0.0" (instance $numbers
        (export "next" (func async (param "n" u32) (result u32)))))
    (core func $next (canon lower (func $numbers "next")))
    (core func $return (canon task.return (result u32)))
    (core module $m
        (import "" "return" (func $return (param i32)))
        (import "" "next" (func $next (param i32) (result i32)))
        (func (export "twice") (param i32) (result i32)
            (call $return (call $next (call $next (local.get 0))))
            (i32.const 0))
        (func (export "callback") (param i32 i32 i32) (result i32) unreachable))
    (core instance $i (instantiate $m
        (with "" (instance (export "return" (func $return)) (export "next" (func $next))))))
    (func (export "twice") async (param "n" u32) (result u32)
        (canon lift (core func $i "twice") async (callback (core func $i "callback")))))"#;

/// Never returns: it waits for nothing.
const WAITS: &str = r#"(component
    (core func $set (canon waitable-set.new))
    (core module $m
        (import "" "set" (func $set (result i32)))
        (func (export "next") (param i32) (result i32)
            (i32.or (i32.const 2) (i32.shl (call $set) (i32.const 4))))
        (func (export "callback") (param i32 i32 i32) (result i32) unreachable))
    (core instance $i (instantiate $m (with "" (instance (export "set" (func $set))))))
    (func $next async (param "n" u32) (result u32)
        (canon lift (core func $i "next") async (callback (core func $i "callback"))))
    (instance (export "acme:numbers/numbers@1.0.0") (export "next" (func $next))))"#;

/// Imports `next`, and exports `begin`: begins a call of it, returns what it got, and ends without waiting for it.
const BEGINS: &str = r#"(component
    (import "acme:numbers/numbers@1.0.0" (instance $numbers
        (export "next" (func async (param "n" u32) (result u32)))))
    (core module $memory (memory (export "memory") 1))
    (core instance $memory (instantiate $memory))
    (core func $next (canon lower (func $numbers "next") async (memory (core memory $memory "memory"))))
    (core func $return (canon task.return (result u32)))
    (core module $m
        (import "" "return" (func $return (param i32)))
        (import "" "next" (func $next (param i32 i32) (result i32)))
        (func (export "begin") (param i32) (result i32)
            (drop (call $next (local.get 0) (i32.const 0)))
            (call $return (local.get 0))
            (i32.const 0))
        (func (export "callback") (param i32 i32 i32) (result i32) unreachable))
    (core instance $i (instantiate $m
        (with "" (instance (export "return" (func $return)) (export "next" (func $next))))))
    (func (export "begin") async (param "n" u32) (result u32)
        (canon lift (core func $i "begin") async (callback (core func $i "callback")))))"#;

/// An actor whose exports are called, and whose imports lead to others.
pub(crate) fn linked(system: &ActorSystem, name: &str, text: &str, links: Links) -> ActorSpec<()> {
    let component = system.engine().load_wat_blocking(text, Profile::Plain).unwrap();
    let sandbox = SandboxSpec::new(system.link_with(&component, &links).unwrap(), limits()).unwrap();
    let spec = ActorSpec::new(id(name), sandbox).with_contract(ContractKind::Exports).with_links(links);
    spec.with_restart(at_once(100)).with_capabilities(Capabilities::all())
}

#[tokio::test(start_paused = true)]
async fn a_call_that_a_guest_leaves_behind_is_of_its_message() {
    for (numbers, ends) in [(NEXT, false), (WAITS, true)] {
        let system = system();
        let spec_of = |name, text, deadline, links| {
            limited(linked(&system, name, text, links), ResourceLimits { deadline, ..limits() })
        };
        let links = Links::default().with("acme:numbers/numbers@1.0.0", id("numbers"));
        let hour = Duration::from_secs(3600);
        system.spawn(spec_of("numbers", numbers, hour, Links::default())).await.unwrap();
        let caller = system.spawn(spec_of("caller", BEGINS, Duration::from_secs(1), links)).await.unwrap();
        let begin = system.export::<(u32,), (u32,)>(&caller, "begin").unwrap();
        assert_eq!(begin.call((5,)).await.unwrap(), (5,));
        // The next begins when that is over, or has had all its time, which is a crash.
        assert_eq!(begin.call((6,)).await.unwrap(), (6,));
        assert_eq!(caller.info().incarnation > 1, ends);
    }
}

#[tokio::test]
async fn an_async_import_leads_to_an_actor() {
    let system = system();
    let links = Links::default().with("acme:numbers/numbers@1.0.0", id("numbers"));
    let numbers = system.spawn(linked(&system, "numbers", NEXT, Links::default())).await.unwrap();
    let caller = system.spawn(linked(&system, "caller", TWICE, links)).await.unwrap();
    let twice = system.export::<(u32,), (u32,)>(&caller, "twice").unwrap();
    assert_eq!(twice.call((5,)).await.unwrap(), (7,));
    // It has no word for a failure, so it crashes, and both are there again.
    let Err(CallError::Crashed(report)) = twice.call((12,)).await else { panic!() };
    assert!(matches!(report.crash.kind(), CrashKind::Link { to, .. } if to == "numbers"), "{report}");
    assert_eq!(twice.call((20,)).await.unwrap(), (22,));
    assert_eq!((numbers.info().incarnation, caller.info().incarnation), (2, 2));
    // A function that is not async is another one.
    let sync = NEXT.replace("$next async", "$next").replace(r#"async (callback (core func $i "callback"))"#, "");
    let sync =
        sync.replace("(call $return (i32.add (local.get 0) (i32.const 1)))\n            (i32.const 0)", "i32.const 0");
    let sync = system.engine().load_wat_blocking(&sync, Profile::Plain).unwrap();
    let version = SandboxSpec::new(system.link(&sync).unwrap(), limits()).unwrap();
    let refused = system.upgrade(numbers.address(), version, UpgradeOptions::default()).await.unwrap_err();
    assert!(matches!(&refused, UpgradeError::Callers { .. }), "{refused}");
}
