//! Imports that lead to other actors.

use std::{sync::Arc, time::Duration};

use airssys_wasm_actor::{
    ActorExport, ActorManifest, ActorRef, ActorSpec, ActorSystem, CallError, Capabilities, ContractKind, LinkFault,
    Links, LinksError, Recycle, SpawnError, StartError, Stop, UpgradeError, UpgradeOptions,
};
use airssys_wasm_engine::{LoadedComponent, Profile, wasmtime::component::Val};
use airssys_wasm_fixtures::{CLERK, KV};
use airssys_wasm_isolation::{CrashClass, CrashKind, LinkFailed, SandboxSpec};
use airssys_wasm_limits::{ByteSize, ResourceLimits};
use airssys_wasm_registry::ComponentId;
use tokio::{
    sync::{Notify, Semaphore, SemaphorePermit},
    task::JoinHandle,
};

use crate::support::{Probe, at_once, id, limits, settle, system};

pub(crate) const STORE: &str = "acme:kv/store@1.0.0";

pub(crate) type Remember = ActorExport<(String, String), (Result<(), String>,)>;
pub(crate) type Recall = ActorExport<(String,), (Result<String, String>,)>;

pub(crate) fn loaded(system: &ActorSystem, component: impl AsRef<[u8]>) -> LoadedComponent {
    system.engine().load_blocking(&wat::parse_bytes(component.as_ref()).unwrap(), Profile::Plain).unwrap()
}

/// An actor that is called, with these links.
pub(crate) fn spec_of(
    system: &ActorSystem,
    name: &str,
    component: impl AsRef<[u8]>,
    links: Links,
    limits: ResourceLimits,
) -> ActorSpec {
    let component = loaded(system, component);
    let sandbox = SandboxSpec::new(system.link_with(&component, &links).unwrap(), limits).unwrap();
    ActorSpec::new(id(name), sandbox).with_contract(ContractKind::Exports).with_links(links).with_restart(at_once(100))
}

pub(crate) fn to(name: &str) -> Links {
    Links::default().with(STORE, id(name))
}

pub(crate) async fn spawn_kv(system: &ActorSystem, name: &str) -> ActorRef {
    system.spawn(spec_of(system, name, KV, Links::default(), limits())).await.unwrap()
}

pub(crate) async fn spawn_clerk(system: &ActorSystem, links: Links) -> ActorRef {
    system.spawn(spec_of(system, "clerk", CLERK, links, limits())).await.unwrap()
}

pub(crate) fn uses(system: &ActorSystem, clerk: &ActorRef) -> (Remember, Recall) {
    (system.export(clerk, "remember").unwrap(), system.export(clerk, "recall").unwrap())
}

pub(crate) async fn remember(clerk: &Remember, key: &str, value: &str) -> Result<Result<(), String>, CallError> {
    clerk.call((key.into(), value.into())).await.map(|(result,)| result)
}

pub(crate) async fn recall(clerk: &Recall, key: &str) -> Result<Result<String, String>, CallError> {
    clerk.call((key.into(),)).await.map(|(result,)| result)
}

#[tokio::test]
async fn an_import_is_a_call_of_the_actor_it_leads_to() {
    let system = system();
    let kv = spawn_kv(&system, "kv").await;
    let clerk = spawn_clerk(&system, to("kv")).await;
    let (store, read) = uses(&system, &clerk);
    remember(&store, "a", "one").await.unwrap().unwrap();
    assert_eq!(recall(&read, "a").await.unwrap().unwrap(), "one");
    assert_eq!(recall(&read, "b").await.unwrap().unwrap_err(), "nothing is known of `b`");
    // What the store itself refuses is its answer.
    assert_eq!(remember(&store, "", "x").await.unwrap().unwrap_err(), "a key has a name");
    // It is the same store as for everybody else.
    let stat = kv.call("acme:kv/store@1.0.0#stat", [Val::String("a".into())]).await.unwrap();
    let [Val::Result(Ok(Some(stat)))] = &stat[..] else { panic!("{stat:?}") };
    assert_eq!(**stat, Val::Record(vec![("bytes".into(), Val::U64(3)), ("writes".into(), Val::U32(1))]));
}

#[tokio::test]
async fn the_actor_crashes_in_mid_call_and_is_there_again_at_the_next() {
    let system = system();
    let kv = spawn_kv(&system, "kv").await;
    let clerk = spawn_clerk(&system, to("kv")).await;
    let (store, read) = uses(&system, &clerk);
    let said = remember(&store, "crash", "x").await.unwrap().unwrap_err();
    // The kind, and nothing else of what is another's.
    assert_eq!(said, "the actor crashed: trap");
    remember(&store, "a", "again").await.unwrap().unwrap();
    assert_eq!(recall(&read, "a").await.unwrap().unwrap(), "again");
    assert_eq!((kv.info().incarnation, clerk.info().incarnation), (2, 1), "each has its own fate");
}

#[tokio::test]
async fn a_link_to_a_name_that_is_not_there_yet_says_so_until_it_is() {
    let system = system();
    let clerk = spawn_clerk(&system, to("kv")).await;
    let (store, _) = uses(&system, &clerk);
    assert_eq!(remember(&store, "a", "x").await.unwrap().unwrap_err(), "nobody is registered as `kv`");
    let kv = spawn_kv(&system, "kv").await;
    remember(&store, "a", "x").await.unwrap().unwrap();
    kv.stop(Stop::Now);
    kv.ended().await;
    assert_eq!(remember(&store, "a", "x").await.unwrap().unwrap_err(), "nobody is registered as `kv`");
    // Another of that name does as well.
    spawn_kv(&system, "kv").await;
    remember(&store, "a", "x").await.unwrap().unwrap();
}

#[tokio::test]
async fn a_link_may_lead_to_a_group() {
    let system = system();
    let clerk = spawn_clerk(&system, to("stores")).await;
    let (store, _) = uses(&system, &clerk);
    system.create_group(&id("stores")).unwrap();
    assert!(remember(&store, "a", "x").await.unwrap().is_err());
    let stores = [spawn_kv(&system, "one").await, spawn_kv(&system, "two").await];
    for name in ["one", "two"] {
        system.join(&id("stores"), &id(name)).unwrap();
    }
    for n in 0..4 {
        remember(&store, &n.to_string(), "x").await.unwrap().unwrap();
    }
    // In turn.
    for kv in stores {
        let mut known = 0;
        for n in 0..4 {
            let value = kv.call(&format!("{STORE}#get"), [Val::String(n.to_string())]).await.unwrap();
            known += usize::from(value != [Val::Result(Ok(Some(Box::new(Val::Option(None)))))]);
        }
        assert_eq!(known, 2);
    }
}

#[tokio::test]
async fn an_actor_that_exports_something_else_is_refused_at_the_start_or_at_the_call() {
    let system = system();
    let other = r#"(component
        (core module $m (func (export "f")))
        (core instance $i (instantiate $m))
        (func (export "f") (canon lift (core func $i "f"))))"#;
    let kv = system.spawn(spec_of(&system, "kv", other, Links::default(), limits())).await.unwrap();
    let spec = spec_of(&system, "clerk", CLERK, to("kv"), limits());
    let error = system.spawn(spec.clone()).await.unwrap_err();
    let SpawnError::Start { error: start, .. } = &error else { panic!("{error}") };
    assert!(matches!(&**start, StartError::Link { fault: LinkFault::Mismatch { exported: None, .. }, .. }), "{start}");
    assert!(error.to_string().contains("`acme:kv/store@1.0.0` leads to `kv`"), "{error}");
    // Where it was not there yet, the call finds out.
    kv.stop(Stop::Now);
    kv.ended().await;
    let clerk = system.spawn(spec).await.unwrap();
    system.spawn(spec_of(&system, "kv", other, Links::default(), limits())).await.unwrap();
    let (store, _) = uses(&system, &clerk);
    let said = remember(&store, "a", "x").await.unwrap().unwrap_err();
    assert!(said.contains("#get: func(key: string") && said.contains("no such export"), "{said}");
    // A native actor has no exports.
    let links = Links::default().with(STORE, id("native"));
    Probe::spawn(&system, "native").await;
    let error = system.spawn(spec_of(&system, "third", CLERK, links, limits())).await.unwrap_err();
    assert!(matches!(error, SpawnError::Start { .. }));
}

/// Imports and exports the same function; `f` calls the import.
pub(crate) const RELAY: &str = r#"(component
    (import "test:link/f" (instance $host (export "f" (func (result u32)))))
    (core func $f (canon lower (func $host "f")))
    (core module $m
        (import "" "f" (func $f (result i32)))
        (func (export "f") (result i32) (i32.add (call $f) (i32.const 1))))
    (core instance $i (instantiate $m (with "" (instance (export "f" (func $f))))))
    (func $g (result u32) (canon lift (core func $i "f")))
    (instance $exports (export "f" (func $g)))
    (export "test:link/f" (instance $exports)))"#;

/// Exports it, and answers 40.
pub(crate) const END: &str = r#"(component
    (core module $m (func (export "f") (result i32) (i32.const 40)))
    (core instance $i (instantiate $m))
    (func $f (result u32) (canon lift (core func $i "f")))
    (instance $exports (export "f" (func $f)))
    (export "test:link/f" (instance $exports)))"#;

pub(crate) fn relay_to(name: &str) -> Links {
    Links::default().with("test:link/f", id(name))
}

pub(crate) async fn call_f(system: &ActorSystem, actor: &ActorRef) -> Result<u32, CallError> {
    let f = system.export::<(), (u32,)>(actor, "test:link/f#f").unwrap();
    f.call(()).await.map(|(n,)| n)
}

/// The crash of a caller whose import failed.
pub(crate) fn link_failed(called: Result<u32, CallError>) -> (String, String, LinkFault) {
    let Err(CallError::Crashed(report)) = called else { panic!("{called:?}") };
    let CrashKind::Link { function, to, cause } = report.crash.kind() else { panic!("{report}") };
    let failed: &LinkFailed = report.crash.host_error().unwrap().downcast_ref().unwrap();
    let fault: &LinkFault = failed.cause.downcast_ref().unwrap();
    assert_eq!(fault.to_string(), *cause);
    (function.clone(), to.clone(), fault.clone())
}

#[tokio::test]
async fn what_an_interface_cannot_say_ends_the_caller_with_a_kind_of_its_own() {
    let system = system();
    let relay = system.spawn(spec_of(&system, "relay", RELAY, relay_to("end"), limits())).await.unwrap();
    let (function, to, fault) = link_failed(call_f(&system, &relay).await);
    assert_eq!((function.as_str(), to.as_str()), ("test:link/f#f", "end"));
    assert!(matches!(fault, LinkFault::Unknown(name) if name == id("end")));
    system.spawn(spec_of(&system, "end", END, Links::default(), limits())).await.unwrap();
    assert_eq!(call_f(&system, &relay).await.unwrap(), 41);
    assert_eq!(relay.info().incarnation, 2);
}

#[tokio::test]
async fn links_go_on_over_several_actors_and_not_in_circles() {
    let system = system();
    for (name, leads_to) in [("one", "two"), ("two", "three"), ("three", "one")] {
        system.spawn(spec_of(&system, name, RELAY, relay_to(leads_to), limits())).await.unwrap();
    }
    let one = system.find("one").unwrap();
    // The third finds that the first waits for it; its caller, and so on, hear of the crash.
    let (_, to, fault) = link_failed(call_f(&system, &one).await);
    assert!(to == "two" && matches!(fault, LinkFault::Call(CallError::Crashed(_))), "{to}: {fault}");
    settle().await;
    let three = system.find("three").unwrap();
    three.stop(Stop::Now);
    three.ended().await;
    system.spawn(spec_of(&system, "three", END, Links::default(), limits())).await.unwrap();
    assert_eq!(call_f(&system, &one).await.unwrap(), 42);

    let error = system.spawn(spec_of(&system, "itself", RELAY, relay_to("itself"), limits())).await.unwrap_err();
    let SpawnError::Start { error, .. } = error else { panic!("{error}") };
    assert!(matches!(&*error, StartError::Link { fault: LinkFault::Cycle, .. }), "{error}");
}

#[tokio::test]
async fn a_failure_is_said_by_a_case_that_is_text() {
    // `f: func() -> result<u32, variant { none, other(string) }>`, imported and exported.
    let types = r#"(type $e' (variant (case "none") (case "other" string)))
        (export "error" (type $e (eq $e')))
        (export "f" (func (result (result u32 (error $e)))))"#;
    let component = format!(
        r#"(component
            (import "test:link/said" (instance $host {types}))
            (core module $memory (memory (export "memory") 1)
                (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024)))
            (core instance $memory (instantiate $memory))
            (alias core export $memory "memory" (core memory $mem))
            (alias core export $memory "realloc" (core func $realloc))
            (core func $f (canon lower (func $host "f") (memory $mem) (realloc $realloc)))
            (core module $m
                (import "" "f" (func $f (param i32)))
                (import "" "memory" (memory 1))
                (func (export "g") (result i32)
                    (call $f (i32.const 0))
                    ;; The tag of the result, that of the case, and the length of the text.
                    (i32.add
                        (i32.mul (i32.load8_u (i32.const 0)) (i32.const 1000))
                        (i32.add
                            (i32.mul (i32.load8_u (i32.const 4)) (i32.const 100))
                            (i32.load (i32.const 12))))))
            (core instance $i (instantiate $m (with "" (instance
                (export "f" (func $f)) (export "memory" (memory $mem))))))
            (func (export "g") (result u32) (canon lift (core func $i "g"))))"#
    );
    let system = system();
    let links = Links::default().with("test:link/said", id("kv"));
    let actor = system.spawn(spec_of(&system, "caller", component, links, limits())).await.unwrap();
    let text = "nobody is registered as `kv`".len() as u32;
    assert_eq!(actor.call("g", []).await.unwrap(), [Val::U32(1_100 + text)]);
}

#[tokio::test]
async fn a_later_minor_version_does_for_an_earlier_one() {
    let system = system();
    let versioned =
        |component: &str, version: &str| component.replace("test:link/f\"", &format!("test:link/f@{version}\""));
    let end = |version| spec_of(&system, "end", versioned(END, version), Links::default(), limits());
    let relay = versioned(&RELAY.replace("(export \"test:link/f\" (instance $exports))", ""), "1.0.0")
        .replace("(instance $exports (export \"f\" (func $g)))", "(export \"g\" (func $g))");
    let links = Links::default().with("test:link/f@1.0.0", id("end"));
    let relay = system.spawn(spec_of(&system, "relay", relay, links, limits())).await.unwrap();
    for (version, fits) in [("1.0.0", true), ("1.2.0", true), ("2.0.0", false)] {
        let end = system.spawn(end(version)).await.unwrap();
        let called = relay.call("g", []).await;
        match fits {
            true => assert_eq!(called.unwrap(), [Val::U32(41)], "{version}"),
            false => assert!(matches!(called, Err(CallError::Crashed(_))), "{version}"),
        }
        end.stop(Stop::Now);
        end.ended().await;
    }
}

#[tokio::test]
async fn a_link_needs_a_grant_which_its_specification_gives() {
    let system = system();
    spawn_kv(&system, "kv").await;
    let component = loaded(&system, CLERK);
    let sandbox = SandboxSpec::new(system.link_with(&component, &to("kv")).unwrap(), limits()).unwrap();
    let spec = ActorSpec::new(id("clerk"), sandbox).with_contract(ContractKind::Exports);
    let clerk = system.spawn(spec.clone()).await.unwrap();
    let (store, _) = uses(&system, &clerk);
    let said = remember(&store, "a", "x").await.unwrap().unwrap_err();
    assert!(said.contains("may not call it"), "{said}");
    let granted: Capabilities = toml::from_str(r#"call = ["k*"]"#).unwrap();
    let clerk = system.spawn(spec.with_id(id("other")).with_capabilities(granted)).await.unwrap();
    let (store, _) = uses(&system, &clerk);
    remember(&store, "a", "x").await.unwrap().unwrap();
}

#[tokio::test]
async fn an_upgrade_that_no_longer_fits_its_callers_is_refused_and_names_them() {
    let system = system();
    let kv = spawn_kv(&system, "kv").await;
    let clerk = spawn_clerk(&system, to("kv")).await;
    let other = system.spawn(spec_of(&system, "other-clerk", CLERK, to("kv"), limits())).await.unwrap();
    let end = spec_of(&system, "kv", END, Links::default(), limits()).sandbox().clone();
    let upgrade = || system.upgrade(kv.address(), end.clone(), UpgradeOptions::default());
    let error = upgrade().await.unwrap_err();
    let UpgradeError::Callers { callers, .. } = &error else { panic!("{error}") };
    assert_eq!(*callers, [id("clerk"), id("other-clerk")]);
    assert!(error.to_string().contains("`clerk`, `other-clerk`"), "{error}");
    let same = spec_of(&system, "kv", KV, Links::default(), limits()).sandbox().clone();
    system.upgrade(kv.address(), same, UpgradeOptions::default()).await.unwrap();
    // Nobody left who would mind.
    for clerk in [clerk, other] {
        clerk.stop(Stop::Now);
        clerk.ended().await;
    }
    upgrade().await.unwrap();
}

/// Exports `f: func(a: u32) -> result<u32, string>`, which traps at 13; or the same with another parameter.
fn takes(parameter: &str) -> String {
    let (core, traps) = match parameter {
        "u32" => ("i32", "(if (i32.eq (local.get 0) (i32.const 13)) (then unreachable))"),
        _ => ("i64", ""),
    };
    format!(
        r#"(component
            (core module $m
                (memory (export "memory") 1)
                (func (export "f") (param {core}) (result i32) {traps} (i32.const 0)))
            (core instance $i (instantiate $m))
            (func $f (param "a" {parameter}) (result (result u32 (error string)))
                (canon lift (core func $i "f") (memory (core memory $i "memory"))))
            (instance $exports (export "f" (func $f)))
            (export "test:link/f" (instance $exports)))"#
    )
}

/// Imports it with a `u32`. `g` says whether it failed.
const ASKS: &str = r#"(component
    (import "test:link/f" (instance $host (export "f" (func (param "a" u32) (result (result u32 (error string)))))))
    (core module $memory (memory (export "memory") 1)
        (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024)))
    (core instance $memory (instantiate $memory))
    (alias core export $memory "memory" (core memory $mem))
    (alias core export $memory "realloc" (core func $realloc))
    (core func $f (canon lower (func $host "f") (memory $mem) (realloc $realloc)))
    (core module $m
        (import "" "f" (func $f (param i32 i32)))
        (import "" "memory" (memory 1))
        (func (export "g") (result i32)
            (call $f (i32.const 1) (i32.const 0))
            (i32.load8_u (i32.const 0))))
    (core instance $i (instantiate $m (with "" (instance
        (export "f" (func $f)) (export "memory" (memory $mem))))))
    (func (export "g") (result bool) (canon lift (core func $i "g"))))"#;

/// Whether its link failed.
async fn fails(system: &ActorSystem, asks: &ActorRef) -> bool {
    system.export::<(), (bool,)>(asks, "g").unwrap().call(()).await.unwrap().0
}

#[tokio::test]
async fn a_link_that_fits_a_version_that_was_rolled_back_is_refused_by_the_one_before() {
    let system = system();
    let spec = |parameter: &str| spec_of(&system, "end", takes(parameter), Links::default(), limits());
    let end = system.spawn(spec("u64")).await.unwrap();
    let upgrade = async |parameter, probation| {
        let options = UpgradeOptions { probation, ..UpgradeOptions::default() };
        system.upgrade(end.address(), spec(parameter).sandbox().clone(), options).await
    };
    upgrade("u32", 9).await.unwrap();
    let asks = system.spawn(spec_of(&system, "asks", ASKS, relay_to("end"), limits())).await.unwrap();
    assert!(!fails(&system, &asks).await);
    end.call("test:link/f#f", [Val::U32(13)]).await.unwrap_err();
    end.call("test:link/f#f", [Val::U64(13)]).await.unwrap();
    let incarnation = end.info().incarnation;
    assert!(fails(&system, &asks).await && fails(&system, &asks).await);
    assert_eq!((end.info().incarnation, asks.info().incarnation), (incarnation, 1), "nobody crashes");
    // Who does not fit this version holds it to nothing, until there is one that it fits.
    upgrade("u64", 0).await.unwrap();
    upgrade("u32", 0).await.unwrap();
    assert!(!fails(&system, &asks).await);
    assert!(matches!(upgrade("u64", 0).await, Err(UpgradeError::Callers { .. })));
}

#[tokio::test]
async fn a_link_that_is_used_while_an_upgrade_is_under_way_is_refused_by_the_new_version() {
    let system = system();
    let starts = Arc::new(Semaphore::new(1));
    let make = {
        let starts = Arc::clone(&starts);
        move |_: &ComponentId| {
            let starts = Arc::clone(&starts);
            async move { starts.acquire().await.map(SemaphorePermit::forget) }
        }
    };
    let spec = |parameter: &str| spec_of(&system, "end", takes(parameter), Links::default(), limits());
    let end = system.spawn(spec("u32").with_state(make)).await.unwrap();
    let upgraded = tokio::spawn({
        let (system, end, next) = (system.clone(), end.clone(), spec("u64").sandbox().clone());
        async move { system.upgrade(end.address(), next, UpgradeOptions::default()).await }
    });
    settle().await;
    // The present version still fits, and the next is being started.
    let asks = system.spawn(spec_of(&system, "asks", ASKS, relay_to("end"), limits())).await.unwrap();
    let asked = tokio::spawn({
        let (system, asks) = (system.clone(), asks.clone());
        async move { fails(&system, &asks).await }
    });
    settle().await;
    assert_eq!(end.info().mailbox.queued, 1);
    starts.add_permits(1);
    assert_eq!(upgraded.await.unwrap().unwrap(), 2);
    assert!(asked.await.unwrap());
    assert_eq!((end.info().incarnation, asks.info().incarnation), (2, 1), "nobody crashes");
    starts.add_permits(1);
    system.rollback(end.address(), UpgradeOptions::default()).await.unwrap();
    assert!(!fails(&system, &asks).await);
}

#[tokio::test]
async fn what_is_too_large_for_either_side_is_refused() {
    let system = system();
    let small = ResourceLimits { message_size: ByteSize::kib(4), ..limits() };
    let kv = system.spawn(spec_of(&system, "kv", KV, Links::default(), small.clone())).await.unwrap();
    let clerk = spawn_clerk(&system, to("kv")).await;
    let (store, _) = uses(&system, &clerk);
    let said = remember(&store, "a", &"x".repeat(5_000)).await.unwrap().unwrap_err();
    assert!(said.contains("messages of 4096 bytes at the most, and this one has 5001"), "{said}");
    assert_eq!(kv.info().incarnation, 1);
    // A result that the caller may not have.
    kv.stop(Stop::Now);
    kv.ended().await;
    spawn_kv(&system, "kv").await;
    remember(&store, "a", &"x".repeat(5_000)).await.unwrap().unwrap();
    let narrow = system.spawn(spec_of(&system, "narrow", CLERK, to("kv"), small)).await.unwrap();
    let (_, read) = uses(&system, &narrow);
    let said = recall(&read, "a").await.unwrap().unwrap_err();
    assert!(said.contains("the result was not taken"), "{said}");
    assert_eq!(narrow.info().incarnation, 1);
}

/// A call that goes on until it is let go.
pub(crate) fn keep_busy(
    system: &ActorSystem,
    actor: &ActorRef,
    gate: &Arc<Notify>,
) -> JoinHandle<Result<(), CallError>> {
    let (system, actor, gate) = (system.clone(), actor.clone(), Arc::clone(gate));
    tokio::spawn(async move {
        let call = system.call_with(&actor, move |_, _| {
            Box::pin(async move {
                gate.notified().await;
                Ok(())
            })
        });
        call.await
    })
}

#[tokio::test(start_paused = true)]
async fn a_linked_call_has_no_more_time_than_its_caller() {
    let system = system();
    let relay = system.spawn(spec_of(&system, "relay", RELAY, relay_to("end"), limits())).await.unwrap();
    let mut end = spec_of(&system, "end", END, Links::default(), limits());
    end = end.with_mailbox(1);
    let end = system.spawn(end).await.unwrap();
    let gate = Arc::new(Notify::new());
    let busy = keep_busy(&system, &end, &gate);
    settle().await;
    let f = system.export::<(), (u32,)>(&relay, "test:link/f#f").unwrap();
    let second = Duration::from_secs(1);
    let called = f.call_within(second, ()).await;
    assert!(matches!(called, Err(CallError::Deadline)), "{called:?}");
    settle().await;
    // The caller's caller waits no longer, so the link does not either.
    assert_eq!(end.info().mailbox.queued, 1);
    gate.notify_one();
    busy.await.unwrap().unwrap();
    settle().await;
    assert_eq!(f.call(()).await.unwrap(), (41,));
}

#[tokio::test]
async fn a_recycled_actor_and_one_that_is_upgraded_go_on_being_called() {
    let system = system();
    let mut spec = spec_of(&system, "end", END, Links::default(), limits());
    spec = spec.with_recycle(Recycle { messages: std::num::NonZeroU64::new(2), ..Recycle::default() });
    let end = system.spawn(spec).await.unwrap();
    let relay = system.spawn(spec_of(&system, "relay", RELAY, relay_to("end"), limits())).await.unwrap();
    for n in 0..10 {
        assert_eq!(call_f(&system, &relay).await.unwrap(), 41);
        if n == 5 {
            let next = spec_of(&system, "end", END.replace("40", "40 (; again ;)"), Links::default(), limits());
            system.upgrade(end.address(), next.sandbox().clone(), UpgradeOptions::default()).await.unwrap();
        }
    }
    assert!(end.info().recycled >= 4, "{:?}", end.info());
}

#[tokio::test]
async fn links_that_make_no_sense_are_refused_when_they_are_linked() {
    let system = system();
    let component = loaded(&system, CLERK);
    let error = system.link_with(&component, &Links::default().with("acme:kv/shop@1.0.0", id("kv"))).unwrap_err();
    assert!(matches!(&error, LinksError::NoImport { imports, .. } if imports.iter().any(|name| name.contains(STORE))));
    assert!(error.to_string().contains("`acme:kv/store@1.0.0`"), "{error}");
    // Another major version is another interface, a later minor one is not.
    let other = |version: &str| Links::default().with(format!("acme:kv/store@{version}"), id("kv"));
    assert!(matches!(system.link_with(&component, &other("2.0.0")), Err(LinksError::NoImport { .. })));
    system.link_with(&component, &other("1.3.0")).unwrap();

    let with = |parameter: &str| {
        format!(
            r#"(component
                (import "test:link/bound" (instance
                    (export "r" (type $r (sub resource)))
                    (export "f" (func (param "x" {parameter}))))))"#
        )
    };
    let bound = Links::default().with("test:link/bound", id("kv"));
    let error = system.link_with(&loaded(&system, with("(borrow $r)")), &bound).unwrap_err();
    assert!(matches!(error, LinksError::NotPlain { what: "resource", .. }), "{error}");
    let plain = with("u32").replace(r#"(export "r" (type $r (sub resource)))"#, "");
    system.link_with(&loaded(&system, plain), &bound).unwrap();

    let function = r#"(component (import "f" (func)))"#;
    let error = system.link_with(&loaded(&system, function), &Links::default().with("f", id("kv"))).unwrap_err();
    assert!(matches!(error, LinksError::NoFunctions { .. }), "{error}");
}

#[tokio::test]
async fn a_manifest_links_an_import() {
    let system = system();
    let load = async |toml: &str, bytes: &'static [u8]| {
        let manifest = ActorManifest::from_toml(&format!("{toml}\n[resources]\nmemory = '8MiB'")).unwrap();
        system.load_bytes(manifest, bytes).await
    };
    let kv = load("[component]\nname = 'kv'\ncontract = 'exports'", KV).await.unwrap();
    system.spawn(kv).await.unwrap();
    let clerk = "[component]\nname = 'clerk'\ncontract = 'exports'\n[link]\n\"acme:kv/store@1.0.0\" = 'kv'";
    let clerk = system.spawn(load(clerk, CLERK).await.unwrap()).await.unwrap();
    let (store, _) = uses(&system, &clerk);
    remember(&store, "a", "x").await.unwrap().unwrap();
    // Without it the import is missing.
    let error = load("[component]\nname = 'none'\ncontract = 'exports'", CLERK).await.unwrap_err();
    assert!(error.to_string().contains("acme:kv/store"), "{error}");
    for wrong in ["[link]\n\"acme:kv/store@1.0.0\" = 'a b'", "[link]\n\"acme:kv/store@1.0.0\" = 3", "[links]"] {
        assert!(ActorManifest::from_toml(&format!("[component]\nname = 'x'\n{wrong}")).is_err(), "{wrong}");
    }
    assert!(ActorManifest::from_toml("[component]\nname = 'x'\ncontract = 'something'").is_err());
}

#[tokio::test]
async fn a_full_actor_is_waited_for_and_one_that_is_killed_is_told() {
    let system = system();
    let end = system.spawn(spec_of(&system, "end", END, Links::default(), limits()).with_mailbox(1)).await.unwrap();
    let relay = system.spawn(spec_of(&system, "relay", RELAY, relay_to("end"), limits())).await.unwrap();
    // With all that only the first call waits for.
    system.call_with(&end, |_, _| Box::pin(async { Ok(()) })).await.unwrap();
    let gate = Arc::new(Notify::new());
    let keep_busy = || keep_busy(&system, &end, &gate);
    let busy = [keep_busy(), keep_busy()];
    settle().await;
    assert_eq!(end.info().mailbox.queued, 1);
    let waits = tokio::spawn({
        let (system, relay) = (system.clone(), relay.clone());
        async move { call_f(&system, &relay).await }
    });
    settle().await;
    gate.notify_one();
    settle().await;
    gate.notify_one();
    for busy in busy {
        busy.await.unwrap().unwrap();
    }
    assert_eq!(waits.await.unwrap().unwrap(), 41);

    let busy = keep_busy();
    settle().await;
    let waits = tokio::spawn({
        let (system, relay) = (system.clone(), relay.clone());
        async move { call_f(&system, &relay).await }
    });
    settle().await;
    end.kill();
    let (_, _, fault) = link_failed(waits.await.unwrap());
    assert!(matches!(fault, LinkFault::Call(CallError::Stopped)), "{fault}");
    assert!(
        matches!(busy.await.unwrap(), Err(CallError::Crashed(report)) if report.crash.kind().class() == CrashClass::Cancelled)
    );
    assert!(matches!(link_failed(call_f(&system, &relay).await).2, LinkFault::Unknown(_)));
}
