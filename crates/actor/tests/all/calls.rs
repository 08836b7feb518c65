//! Calls of an actor's exports through its mailbox.

use std::{sync::Arc, time::Duration};

use airssys_wasm_actor::{
    ActorExport, ActorRef, ActorSpec, ActorSystem, Argument, AskError, Backoff, CallError, ContractKind, During,
    Lifecycle, SpawnError, Stop, SystemConfig, UpgradeError, UpgradeOptions,
};
use airssys_wasm_engine::{
    ExportError, Profile, WasmEngine,
    wasmtime::{self, component::Val},
};
use airssys_wasm_fixtures::{COUNTERS, RUST, VALUES};
use airssys_wasm_isolation::{ArgumentError, CrashClass, SandboxSpec};
use airssys_wasm_limits::{ByteSize, ResourceLimits};
use airssys_wasm_registry::Refusal;
use tokio::sync::Notify;

use crate::support::{
    COUNTER, COUNTER_V2, NO_HANDLER, Probe, at_once, id, limits, poll_once, settle, spawn, spec, system,
};

mod guest {
    airssys_wasm_engine::wasmtime::component::bindgen!({
        inline: "
            package fixture:calls;

            interface counters {
                resource counter {
                    constructor(value: u32);
                    value: func() -> u32;
                }
                trap: func();
            }

            world guest {
                export counters;
            }
        ",
        wasmtime_crate: airssys_wasm_engine::wasmtime,
        exports: { default: async },
    });
}

/// What guests of these tests wait for.
#[derive(Clone, Default)]
struct Gate {
    open: Arc<Notify>,
    waiting: Arc<Notify>,
}

struct Host {
    system: ActorSystem<Gate>,
    gate: Gate,
}

fn host() -> Host {
    let gate = Gate::default();
    let system = ActorSystem::with_host(
        system().engine().clone(),
        SystemConfig::default(),
        {
            let gate = gate.clone();
            move |_| gate.clone()
        },
        |linker| {
            linker.root().func_wrap_async("wait", |store, (): ()| {
                let Gate { open, waiting } = store.data().ext.user.clone();
                Box::new(async move {
                    waiting.notify_one();
                    open.notified().await;
                    Ok(())
                })
            })?;
            let mut host = linker.instance("fixture:guest/host@1.0.0")?;
            host.func_wrap("wait", |_, (): ()| Ok(()))?;
            host.func_wrap("log", |_, (_,): (String,)| Ok(()))
        },
    );
    Host { system, gate }
}

fn engine() -> WasmEngine {
    system().engine().clone()
}

impl Host {
    fn spec(&self, name: &str, component: impl AsRef<[u8]>, limits: ResourceLimits) -> ActorSpec<Gate> {
        let binary = wat::parse_bytes(component.as_ref()).unwrap();
        let component = engine().load_blocking(&binary, Profile::Plain).unwrap();
        let sandbox = SandboxSpec::new(self.system.link(&component).unwrap(), limits).unwrap();
        ActorSpec::new(id(name), sandbox).with_contract(ContractKind::Exports).with_restart(at_once(100))
    }

    async fn spawn(&self, component: impl AsRef<[u8]>) -> ActorRef {
        self.system.spawn(self.spec("guest", component, limits())).await.unwrap()
    }
}

const ECHO: &str = "fixture:guest/api@1.0.0#echo";
type Echo = ActorExport<(Vec<u8>,), (Vec<u8>,)>;

fn refusal<T: std::fmt::Debug>(result: Result<T, CallError>) -> Refusal {
    match result {
        Err(CallError::NotSent(reason)) => reason,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_export_is_called_with_types() {
    let host = host();
    let actor = host.spawn(RUST).await;
    let echo: Echo = host.system.export(&actor, ECHO).unwrap();
    for _ in 0..3 {
        assert_eq!(echo.call((vec![1, 2, 3],)).await.unwrap(), (vec![1, 2, 3],));
    }
    assert_eq!((echo.name(), echo.actor()), (ECHO, &actor));
    // Once for all who use it so.
    let again: Echo = host.system.export(&actor, ECHO).unwrap();
    assert_eq!(again.call((vec![7],)).await.unwrap(), (vec![7],));
}

#[tokio::test]
async fn an_export_that_is_missing_or_of_another_type_is_found_before_any_call() {
    let host = host();
    let actor = host.spawn(RUST).await;
    let Err(CallError::Contract(error)) = host.system.export::<(), ()>(&actor, "nothing") else { panic!() };
    assert!(matches!(&*error, ExportError::Missing { name, available } if name == "nothing" && !available.is_empty()));
    let Err(CallError::Contract(error)) = host.system.export::<(u32,), (u32,)>(&actor, ECHO) else { panic!() };
    assert!(matches!(&*error, ExportError::Mistyped { .. }), "{error}");
    assert!(error.to_string().contains("echo"), "{error}");
    let Err(CallError::Contract(error)) = actor.call("nothing", []).await else { panic!() };
    assert!(matches!(&*error, ExportError::Missing { .. }));
    assert_eq!(actor.info().incarnation, 1);
}

#[tokio::test]
async fn generated_bindings_work_through_the_mailbox() {
    let host = host();
    let actor = host.spawn(COUNTERS).await;
    let value = host
        .system
        .call_with(&actor, |mut store, instance| {
            Box::pin(async move {
                let guest = guest::Guest::new(&mut store, &instance)?;
                let counters = guest.fixture_calls_counters().counter();
                let counter = counters.call_constructor(&mut store, 41).await?;
                let value = counters.call_value(&mut store, counter).await?;
                counter.resource_drop_async(&mut store).await?;
                Ok(value + 1)
            })
        })
        .await
        .unwrap();
    assert_eq!(value, 42);
}

#[tokio::test]
async fn an_export_is_called_with_values() {
    let host = host();
    let actor = host.spawn(RUST).await;
    let bytes = || Val::List(vec![Val::U8(1), Val::U8(2)]);
    assert_eq!(actor.call(ECHO, [bytes()]).await.unwrap(), [bytes()]);
    for (arguments, expected) in [
        (vec![], ArgumentError::Count { expected: 1, given: 0 }),
        (vec![Val::Bool(true)], ArgumentError::Type { index: 0 }),
    ] {
        assert!(matches!(actor.call(ECHO, arguments).await, Err(CallError::Arguments(error)) if error == expected));
    }
    // None of these was a crash.
    assert_eq!(actor.info().incarnation, 1);
    assert_eq!(actor.call(ECHO, [bytes()]).await.unwrap(), [bytes()]);
}

#[tokio::test]
async fn a_crash_is_told_to_the_caller_and_the_call_is_not_made_again() {
    let host = host();
    let spec = host.spec("guest", COUNTERS, limits()).with_redelivery(5);
    let actor = host.system.spawn(spec).await.unwrap();
    let trap = host.system.export::<(), ()>(&actor, "fixture:calls/counters#trap").unwrap();
    let swallowing = host.system.call_with(&actor, |mut store, instance| {
        Box::pin(async move {
            let guest = guest::Guest::new(&mut store, &instance)?;
            _ = guest.fixture_calls_counters().call_trap(&mut store).await;
            Ok(())
        })
    });
    for (nth, (called, class)) in [
        (trap.call(()).await, CrashClass::Trap),
        (actor.call("fixture:calls/counters#trap", []).await.map(drop), CrashClass::Trap),
        (swallowing.await, CrashClass::Swallowed),
    ]
    .into_iter()
    .enumerate()
    {
        let Err(CallError::Crashed(report)) = called else { panic!("{called:?}") };
        assert_eq!((report.during, report.crash.kind().class()), (During::Call, class));
        assert_eq!(report.incarnation, nth as u64 + 1);
    }
    // There again at the next, and once a crash.
    let dropped = host.system.export::<(), (u32,)>(&actor, "fixture:calls/counters#dropped").unwrap();
    assert_eq!(dropped.call(()).await.unwrap(), (0,));
    assert_eq!((actor.info().incarnation, actor.info().restarts), (4, 3));
    assert!(host.system.dead_letters().is_empty());
}

#[tokio::test]
async fn a_closure_that_panics_is_a_crash_of_the_actor_alone() {
    let host = host();
    let actor = host.spawn(COUNTERS).await;
    let called = host.system.call_with(&actor, |_, _| -> futures_util::future::BoxFuture<'_, wasmtime::Result<()>> {
        panic!("out of order")
    });
    let Err(CallError::Crashed(report)) = called.await else { panic!() };
    assert_eq!(report.crash.kind().class(), CrashClass::HostPanic);
    actor.call("fixture:calls/counters#dropped", []).await.unwrap();
}

#[tokio::test]
async fn a_call_takes_its_turn_among_messages() {
    let system = system();
    let counter = spawn(&system, "counter", &COUNTER).await;
    let handle = "airssys:actor/handler@0.1.0#handle";
    assert!(matches!(counter.call(handle, []).await, Err(CallError::Arguments(_))));
    counter.tell("add 2").await.unwrap();
    let snapshot = system.export::<(), (Result<Vec<u8>, String>,)>(&counter, "airssys:actor/state@0.1.0#snapshot");
    // Sent one after the other, so handled one after the other.
    let (told, snapshot, told_again) = (counter.tell("add 3"), snapshot.unwrap(), counter.tell("add 4"));
    told.await.unwrap();
    let (state,) = snapshot.call(()).await.unwrap();
    told_again.await.unwrap();
    assert_eq!(state.unwrap(), 5_u64.to_le_bytes());
    assert_eq!(counter.ask("get").await.unwrap(), "9");
}

#[tokio::test(start_paused = true)]
async fn a_call_is_bounded_and_refused_as_messages_are() {
    let host = host();
    let limits = ResourceLimits { message_size: ByteSize::kib(8), ..limits() };
    let spec = host.spec("guest", RUST, limits).with_mailbox(1);
    let actor = host.system.spawn(spec).await.unwrap();
    let echo: Echo = host.system.export(&actor, ECHO).unwrap();
    assert_eq!(refusal(echo.call((vec![0; 8_193],)).await), Refusal::TooLarge { size: 8_193, allowed: 8_192 });
    assert_eq!(echo.call((vec![0; 8_192],)).await.unwrap().0.len(), 8_192);
    let bytes = |n| Val::List(vec![Val::U8(0); n]);
    let most = 8_192 / size_of::<Val>() - 1;
    assert!(
        matches!(refusal(actor.call(ECHO, [bytes(most + 1)]).await), Refusal::TooLarge { size, .. } if size > 8_192)
    );
    assert_eq!(actor.call(ECHO, [bytes(most)]).await.unwrap(), [bytes(most)]);

    actor.stop(Stop::Now);
    actor.ended().await;
    assert_eq!(refusal(echo.call((vec![],)).await), Refusal::Stopped);
    assert_eq!(refusal(actor.call(ECHO, [bytes(0)]).await), Refusal::Stopped);
}

/// An actor in a call that waits, with a mailbox for one.
async fn waiting() -> (Host, ActorRef, tokio::task::JoinHandle<Result<(), CallError>>) {
    let host = host();
    let spec = host.spec("guest", COUNTERS, ResourceLimits { deadline: Duration::from_secs(600), ..limits() });
    let actor = host.system.spawn(spec.with_mailbox(1)).await.unwrap();
    let wait = host.system.export::<(), ()>(&actor, "fixture:calls/counters#wait").unwrap();
    let waits = tokio::spawn(async move { wait.call(()).await });
    host.gate.waiting.notified().await;
    (host, actor, waits)
}

#[tokio::test(start_paused = true)]
async fn a_call_waits_for_room_no_longer_than_its_deadline() {
    let (host, actor, waits) = waiting().await;
    let dropped = host.system.export::<(), (u32,)>(&actor, "fixture:calls/counters#dropped").unwrap();
    let second = Duration::from_secs(1);
    // The first lies in the mailbox and is late, the second finds no room.
    let (first, second) = tokio::join!(dropped.call_within(second, ()), dropped.call_within(second, ()));
    assert!(matches!((first, second), (Err(CallError::Deadline), Err(CallError::Deadline))));
    host.gate.open.notify_one();
    waits.await.unwrap().unwrap();
    assert_eq!(dropped.call(()).await.unwrap(), (0,));
}

#[tokio::test(start_paused = true)]
async fn a_call_of_an_actor_that_restarts_waits_for_it() {
    let host = host();
    let backoff = Backoff { first: Duration::from_secs(2), ..Backoff::default() };
    let spec = host.spec("guest", COUNTERS, limits()).with_restart(backoff).with_mailbox(1);
    let actor = host.system.spawn(spec).await.unwrap();
    actor.call("fixture:calls/counters#trap", []).await.unwrap_err();
    assert_eq!(actor.state(), Lifecycle::Restarting);
    let dropped = host.system.export::<(), (u32,)>(&actor, "fixture:calls/counters#dropped").unwrap();
    let second = Duration::from_secs(1);
    // One lies in the mailbox and is late when its turn comes; the other finds no room.
    let (first, other) = tokio::join!(dropped.call_within(second, ()), dropped.call_within(second, ()));
    assert!(matches!((first, other), (Err(CallError::Deadline), Err(CallError::Deadline))));
    assert_eq!(dropped.call(()).await.unwrap(), (0,));
    assert_eq!((actor.info().incarnation, actor.state()), (2, Lifecycle::Running));
}

#[tokio::test(start_paused = true)]
async fn a_call_whose_caller_has_gone_is_not_made() {
    let (host, actor, waits) = waiting().await;
    let trap = host.system.export::<(), ()>(&actor, "fixture:calls/counters#trap").unwrap();
    let mut gone = Box::pin(trap.call(()));
    assert!(poll_once(gone.as_mut()).is_pending());
    drop(gone);
    host.gate.open.notify_one();
    waits.await.unwrap().unwrap();
    settle().await;
    assert_eq!((actor.info().incarnation, actor.info().mailbox.queued), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn calls_that_wait_are_told_when_the_actor_stops_and_the_one_in_hand_when_it_is_killed() {
    let (host, actor, waits) = waiting().await;
    let dropped = host.system.export::<(), (u32,)>(&actor, "fixture:calls/counters#dropped").unwrap();
    let queued = tokio::spawn(async move { dropped.call(()).await });
    settle().await;
    actor.kill();
    actor.ended().await;
    let Err(CallError::Crashed(report)) = waits.await.unwrap() else { panic!() };
    assert_eq!(report.crash.kind().class(), CrashClass::Cancelled);
    assert!(matches!(queued.await.unwrap(), Err(CallError::Stopped)));
    assert!(host.system.dead_letters().is_empty());
}

#[tokio::test]
async fn an_actor_of_exports_takes_no_messages_and_all_else_is_as_for_others() {
    let host = host();
    let actor = host.spawn(RUST).await;
    assert_eq!(actor.try_tell("x").unwrap_err().reason, Refusal::NoHandler);
    assert_eq!(actor.tell("x").await.unwrap_err().reason, Refusal::NoHandler);
    let error = actor.ask("x").await.unwrap_err();
    assert!(matches!(&error, AskError::NotSent(undelivered) if undelivered.reason == Refusal::NoHandler));
    assert!(error.to_string().contains("called by its exports"), "{error}");
    assert_eq!((actor.state(), actor.info().incarnation), (Lifecycle::Running, 1));

    // Without being told so, it is no actor.
    let spec = host.spec("other", RUST, limits());
    let found_out = ActorSpec::new(id("other"), spec.sandbox().clone());
    assert!(matches!(host.system.spawn(found_out).await, Err(SpawnError::NoHandler(_))));
}

#[tokio::test]
async fn what_else_an_actor_exports_is_called_for_one_of_exports_too() {
    let system = system();
    let spec = |name: &str, guest| spec(&system, name, guest).with_contract(ContractKind::Exports);
    let well = system.spawn(spec("well", &NO_HANDLER)).await.unwrap();
    well.health().await.unwrap();

    // The state goes over to another version. By its exports, for it takes no messages.
    let counter = system.spawn(spec("counter", &COUNTER)).await.unwrap();
    let state = async |name: &str, state: Vec<Val>| {
        counter.call(&format!("airssys:actor/state@0.1.0#{name}"), state).await.unwrap()
    };
    let seven = Val::List(7_u64.to_le_bytes().map(Val::U8).to_vec());
    state("restore", vec![seven.clone()]).await;
    let next = spec("counter", &COUNTER_V2).sandbox().clone();
    system.upgrade(counter.address(), next, UpgradeOptions::default()).await.unwrap();
    assert_eq!(counter.info().incarnation, 2);
    assert_eq!(state("snapshot", vec![]).await, [Val::Result(Ok(Some(Box::new(seven))))]);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_has_begun_goes_on_without_its_caller() {
    let (host, actor, waits) = waiting().await;
    waits.abort();
    settle().await;
    assert_eq!(actor.info().incarnation, 1);
    host.gate.open.notify_one();
    actor.call("fixture:calls/counters#dropped", []).await.unwrap();
    assert_eq!((actor.info().incarnation, actor.info().restarts), (1, 0));
}

#[tokio::test]
async fn an_upgrade_to_a_version_that_does_not_fit_its_callers_is_refused() {
    let host = host();
    let component = |result: &str, value: &str| {
        format!(
            r#"(component
                (core module $m (func (export "f") (result {value}) ({value}.const 7)))
                (core instance $i (instantiate $m))
                (func (export "f") (result {result}) (canon lift (core func $i "f"))))"#
        )
    };
    let actor = host.spawn(component("u32", "i32")).await;
    let f = host.system.export::<(), (u32,)>(&actor, "f").unwrap();
    assert_eq!(f.call(()).await.unwrap(), (7,));
    let upgrade = async |component: String| {
        let spec = host.spec("guest", component, limits());
        host.system.upgrade(actor.address(), spec.sandbox().clone(), UpgradeOptions::default()).await
    };
    for other in [component("u64", "i64"), MINIMAL_WITHOUT_F.to_owned()] {
        let error = upgrade(other).await.unwrap_err();
        assert!(matches!(error, UpgradeError::Contract(_)), "{error}");
        assert_eq!(f.call(()).await.unwrap(), (7,));
    }
    // The same types, and the handle goes on with the new version.
    upgrade(component("u32", "i32").replace("const 7", "const 8")).await.unwrap();
    assert_eq!(f.call(()).await.unwrap(), (8,));
    // Nobody uses it any more.
    drop(f);
    upgrade(component("u64", "i64")).await.unwrap();
    assert_eq!(actor.call("f", []).await.unwrap(), [Val::U64(8 - 1)]);
}

#[tokio::test]
async fn a_version_that_is_rolled_back_to_is_held_against_the_callers_too() {
    let host = host();
    let with = |names: &[&str]| {
        let exports: String = names
            .iter()
            .map(|name| format!(r#"(func (export "{name}") (result u32) (canon lift (core func $i "f")))"#))
            .collect();
        format!(
            r#"(component
                (core module $m (func (export "f") (result i32) (i32.const 7)) (func (export "crash") unreachable))
                (core instance $i (instantiate $m))
                {exports}
                (func (export "crash") (canon lift (core func $i "crash"))))"#
        )
    };
    let actor = host.spawn(with(&["f"])).await;
    let next = host.spec("guest", with(&["f", "g"]), limits()).sandbox().clone();
    host.system.upgrade(actor.address(), next.clone(), UpgradeOptions::default()).await.unwrap();
    let g = host.system.export::<(), (u32,)>(&actor, "g").unwrap();
    let back = async || host.system.rollback(actor.address(), UpgradeOptions::default()).await;
    assert!(matches!(back().await, Err(UpgradeError::Contract(ExportError::Missing { .. }))));
    assert_eq!(g.call(()).await.unwrap(), (7,));
    drop(g);
    back().await.unwrap();
    assert!(matches!(host.system.export::<(), (u32,)>(&actor, "g"), Err(CallError::Contract(_))));

    // One on probation goes back whoever calls it, who hears of it.
    let options = UpgradeOptions { probation: 5, ..UpgradeOptions::default() };
    host.system.upgrade(actor.address(), next, options).await.unwrap();
    let g = host.system.export::<(), (u32,)>(&actor, "g").unwrap();
    actor.call("crash", []).await.unwrap_err();
    assert!(matches!(g.call(()).await, Err(CallError::Contract(_))));
    assert!(matches!(host.system.export::<(), (u32,)>(&actor, "g"), Err(CallError::Contract(_))));
    assert_eq!(actor.call("f", []).await.unwrap(), [Val::U32(7)]);
}

const MINIMAL_WITHOUT_F: &str = r#"(component
    (core module $m (func (export "g")))
    (core instance $i (instantiate $m))
    (func (export "g") (canon lift (core func $i "g"))))"#;

#[tokio::test]
async fn calls_of_a_native_actor_and_of_another_system_are_refused() {
    let (host, other) = (host(), system());
    let (native, _) = Probe::spawn(&other, "native").await;
    assert!(matches!(other.export::<(), ()>(&native, "f"), Err(CallError::OtherSystem)));
    assert!(matches!(native.call("f", []).await, Err(CallError::OtherSystem)));
    let counter = spawn(&other, "counter", &COUNTER).await;
    assert!(matches!(host.system.export::<(), ()>(&counter, "f"), Err(CallError::OtherSystem)));
    let called = host.system.call_with(&counter, |_, _| Box::pin(async { Ok(()) }));
    assert!(matches!(called.await, Err(CallError::OtherSystem)));
    assert_eq!(counter.ask("get").await.unwrap(), "0");
}

#[tokio::test]
async fn a_resource_of_another_actor_is_refused() {
    let host = host();
    let actors = [
        host.system.spawn(host.spec("one", COUNTERS, limits())).await.unwrap(),
        host.system.spawn(host.spec("two", COUNTERS, limits())).await.unwrap(),
    ];
    let made = actors[0].call("fixture:calls/counters#[constructor]counter", [Val::U32(3)]).await.unwrap();
    let value = "fixture:calls/counters#[method]counter.value";
    assert!(matches!(
        actors[1].call(value, made.clone()).await,
        Err(CallError::Arguments(ArgumentError::Type { index: 0 }))
    ));
    assert_eq!(actors[0].call(value, made).await.unwrap(), [Val::U32(3)]);
}

#[tokio::test]
async fn text_and_values_of_every_shape_weigh_what_they_hold() {
    assert_eq!(("abc".to_owned(), vec![1_u16, 2], Some(5_u64), Err::<u8, _>(true)).size(), 3 + 4 + 8 + 1);
    assert_eq!((vec!["ab".to_owned(), "c".to_owned()],).size(), 2 * size_of::<String>());
    let host = host();
    let actor = host.spawn(VALUES).await;
    assert!(matches!(actor.call("nothing", []).await, Err(CallError::Contract(_))));
}
