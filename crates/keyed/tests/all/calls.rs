//! Calls of the exports of keyed actors, from the host and by links.

use std::{pin::pin, sync::LazyLock, time::Duration};

use airssys_wasm_actor::{
    ActorExport, ActorRef, ActorSystem, Bytes, CallError, ContractKind, FarCall, LinkFault, Links,
};
use airssys_wasm_engine::{
    LoadedComponent, Profile,
    wasmtime::component::{TypedFunc, Val},
};
use airssys_wasm_isolation::{LinkFailed, SandboxSpec};
use airssys_wasm_keyed::{Admission, Keyed, KeyedOptions, KeyedSpec, Rate, SaveWhen};
use airssys_wasm_registry::{MessageEnvelope, Refusal};

use crate::{
    owners::Parts,
    support::{Faulty, id, install, settle, system, template},
};

/// Exports `test:link/f#f: func() -> u32`, which counts its calls, and keeps the count.
const COUNTS: &str = r#"(component
    (core module $m
        (memory (export "memory") 1)
        (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024))
        (func (export "f") (result i32)
            (i32.store (i32.const 512) (i32.add (i32.load (i32.const 512)) (i32.const 1)))
            (i32.load (i32.const 512)))
        (func (export "snapshot") (result i32)
            (i32.store (i32.const 4) (i32.const 512))
            (i32.store (i32.const 8) (i32.const 4))
            (i32.const 0))
        (func (export "restore") (param $state i32) (param $size i32) (result i32)
            (if (i32.ne (local.get $size) (i32.const 4)) (then unreachable))
            (i32.store (i32.const 512) (i32.load (local.get $state)))
            (i32.const 0)))
    (core instance $i (instantiate $m))
    (func $f (result u32) (canon lift (core func $i "f")))
    (instance $counts (export "f" (func $f)))
    (export "test:link/f" (instance $counts))
    (func $snapshot (result (result (list u8) (error string)))
        (canon lift (core func $i "snapshot") (memory (core memory $i "memory"))))
    (func $restore (param "state" (list u8)) (result (result (error string)))
        (canon lift (core func $i "restore") (memory (core memory $i "memory")) (realloc (core func $i "realloc"))))
    (instance $state (export "snapshot" (func $snapshot)) (export "restore" (func $restore)))
    (export "airssys:actor/state@0.1.0" (instance $state)))"#;

static COUNTER: LazyLock<LoadedComponent> =
    LazyLock::new(|| system().engine().load_wat_blocking(COUNTS, Profile::Plain).unwrap());

/// Imports it, and exports the same.
static RELAY: LazyLock<LoadedComponent> = LazyLock::new(|| {
    let relay = r#"(component
        (import "test:link/f" (instance $to (export "f" (func (result u32)))))
        (core func $f (canon lower (func $to "f")))
        (core module $m (import "" "f" (func $f (result i32))) (func (export "f") (result i32) (call $f)))
        (core instance $i (instantiate $m (with "" (instance (export "f" (func $f))))))
        (func (export "f") (result u32) (canon lift (core func $i "f"))))"#;
    system().engine().load_wat_blocking(relay, Profile::Plain).unwrap()
});

const F: &str = "test:link/f#f";

type Count = ActorExport<(), (u32,)>;

/// The kind `cart` of actors that are called.
async fn carts(
    system: &ActorSystem,
    guest: &LoadedComponent,
    options: KeyedOptions,
    store: &std::sync::Arc<Faulty>,
) -> Keyed {
    install(system, template(system, "cart", guest).with_contract(ContractKind::Exports), options, store).await
}

/// Spawns an actor whose import leads to another, and finds its export.
async fn relay(system: &ActorSystem, name: &str, to: &str) -> Count {
    let links = Links::default().with("test:link/f", id(to));
    let spec = template(system, name, &COUNTER).with_contract(ContractKind::Exports);
    let limits = spec.sandbox().quota().limits().clone();
    let sandbox = SandboxSpec::new(system.link_with(&RELAY, &links).unwrap(), limits).unwrap();
    let relay = system.spawn(spec.with_sandbox(sandbox).with_links(links)).await.unwrap();
    system.export(&relay, "f").unwrap()
}

fn every_message() -> KeyedOptions {
    KeyedOptions { save: SaveWhen::EachMessage, ..KeyedOptions::default() }
}

/// What the guest that called by a link crashed over.
fn link_fault(called: Result<(u32,), CallError>) -> LinkFault {
    let Err(CallError::Crashed(report)) = called else { panic!("{called:?}") };
    let failed: &LinkFailed = report.crash.host_error().unwrap().downcast_ref().unwrap();
    failed.cause.downcast_ref::<LinkFault>().unwrap().clone()
}

/// Calls it in each of the ways that there are.
async fn call(system: &ActorSystem, actor: &ActorRef, how: usize) -> Result<u32, CallError> {
    match how {
        0 => system.export::<(), (u32,)>(actor, F)?.call(()).await.map(|(n,)| n),
        1 => actor.call(F, []).await.map(|values| {
            let [Val::U32(n)] = values[..] else { panic!("{values:?}") };
            n
        }),
        2 => {
            let called = system.call_with(actor, |mut store, instance| {
                Box::pin(async move {
                    let at = instance.get_export_index(&mut store, None, "test:link/f").unwrap();
                    let at = instance.get_export_index(&mut store, Some(&at), "f").unwrap();
                    let f: TypedFunc<(), (u32,)> = instance.get_typed_func(&mut store, at)?;
                    f.call_async(&mut store, ()).await
                })
            });
            called.await.map(|(n,)| n)
        }
        // For a caller on another host.
        _ => {
            let call =
                FarCall { export: F.into(), ty: "func() -> u32".into(), message: MessageEnvelope::new(Bytes::new()) };
            system.call_encoded_waiting(actor, call).await.map(|bytes| u32::from(bytes[0]))
        }
    }
}

/// How many there are.
const WAYS: usize = 4;

#[tokio::test]
async fn one_whose_key_is_another_hosts_is_not_called() {
    let (system, store, owner) = (system(), Faulty::new(), Parts::of(&[1, 2]));
    let template = template(&system, "cart", &COUNTER).with_contract(ContractKind::Exports);
    let spec = KeyedSpec::new(template).with_owner(std::sync::Arc::clone(&owner) as _);
    let carts = Keyed::install(&system, spec, store as _).await.unwrap();
    let actors = ["1", "2"].map(|key| carts.actor(key).unwrap().awaken().unwrap());
    for how in 0..WAYS {
        assert_eq!(call(&system, &actors[0], how).await.unwrap(), how as u32 + 1);
    }
    owner.lose(1);
    for how in 0..WAYS {
        let called = call(&system, &actors[0], how).await;
        assert!(matches!(called, Err(CallError::NotSent(Refusal::Moved))), "{called:?}");
        assert_eq!(call(&system, &actors[1], how).await.unwrap(), how as u32 + 1);
    }
}

#[tokio::test]
async fn a_link_wakes_whom_it_leads_to() {
    let (system, store) = (system(), Faulty::new());
    let carts = carts(&system, &COUNTER, KeyedOptions::default(), &store).await;
    let relay = relay(&system, "relay", "cart/4711").await;
    for n in 1..4 {
        assert_eq!(relay.call(()).await.unwrap(), (n,));
        assert!(carts.passivate("4711").await.unwrap());
    }
    assert_eq!((carts.stats().activations, carts.stats().passivations), (3, 3));
}

#[tokio::test]
async fn who_calls_by_a_link_wakes_no_more_than_it_may() {
    let (system, store) = (system(), Faulty::new());
    let slow = |burst| Rate { per_second: 0.001, burst };
    let admission = Admission { kind: slow(1_000), caller: slow(2) };
    let carts = carts(&system, &COUNTER, KeyedOptions { admission, ..KeyedOptions::default() }, &store).await;
    let (relay, neighbour) = (relay(&system, "relay", "cart/1").await, relay(&system, "neighbour", "cart/1").await);
    for n in 1..3 {
        assert_eq!(relay.call(()).await.unwrap(), (n,));
        assert!(carts.passivate("1").await.unwrap());
    }
    let fault = link_fault(relay.call(()).await);
    assert!(matches!(fault, LinkFault::Call(CallError::NotSent(Refusal::Full))), "{fault}");
    assert_eq!((carts.stats().refused, carts.stats().live), (1, 0));
    assert_eq!(neighbour.call(()).await.unwrap(), (3,));
    // One that is in memory needs no activation.
    settle().await;
    assert_eq!(relay.call(()).await.unwrap(), (4,));
}

#[tokio::test]
async fn calls_follow_an_actor_that_has_left_the_memory() {
    for how in 0..WAYS {
        let (system, store) = (system(), Faulty::new());
        let carts = carts(&system, &COUNTER, KeyedOptions::default(), &store).await;
        let actor = carts.actor("1").unwrap().awaken().unwrap();
        for n in 1..4 {
            assert_eq!(call(&system, &actor, how).await.unwrap(), n, "{how}");
            assert!(carts.passivate("1").await.unwrap());
        }
        // An export that was found before does, too.
        let export: Count = system.export(&actor, F).unwrap();
        assert_eq!(export.call(()).await.unwrap(), (4,));
        assert!(carts.passivate("1").await.unwrap());
        assert_eq!(export.call_within(Duration::from_secs(60), ()).await.unwrap(), (5,));
        assert_eq!(carts.stats().activations, 5);
    }
}

#[tokio::test]
async fn a_call_of_one_that_does_not_start_says_so() {
    let (system, store) = (system(), Faulty::new());
    let carts = carts(&system, &COUNTER, KeyedOptions::default(), &store).await;
    let actor = carts.actor("1").unwrap().awaken().unwrap();
    assert!(carts.passivate("1").await.unwrap());
    store.put("1", b"rubbish").await;
    let error = call(&system, &actor, 0).await.unwrap_err();
    assert!(matches!(error, CallError::NotActivated(_)), "{error:?}");
    crate::support::until(|| carts.stats().live == 0).await;
    let error = call(&system, &actor, 0).await.unwrap_err();
    assert!(matches!(error, CallError::NotSent(Refusal::Quarantined)), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_call_is_lost_or_made_twice_while_the_actor_comes_and_goes() {
    let (system, store) = (system(), Faulty::new());
    let carts = carts(&system, &COUNTER, KeyedOptions::default(), &store).await;
    let leaving = tokio::spawn({
        let carts = carts.clone();
        async move {
            loop {
                carts.passivate("1").await.unwrap();
                tokio::task::yield_now().await;
            }
        }
    });
    let host: Count = system.export(&carts.actor("1").unwrap().awaken().unwrap(), F).unwrap();
    let mut callers = vec![host.clone(), host];
    for name in ["one", "two"] {
        callers.push(relay(&system, name, "cart/1").await);
    }
    let callers: Vec<_> = callers
        .into_iter()
        .map(|caller| {
            let carts = carts.clone();
            tokio::spawn(async move {
                // Until it has come and gone often enough.
                let mut calls = 0;
                while calls < 50 || carts.stats().activations < 20 {
                    caller.call(()).await.unwrap();
                    calls += 1;
                }
                calls
            })
        })
        .collect();
    let mut calls = 0;
    for caller in callers {
        calls += caller.await.unwrap();
    }
    leaving.abort();
    let actor = carts.actor("1").unwrap().awaken().unwrap();
    assert_eq!(call(&system, &actor, 0).await.unwrap(), calls + 1);
}

#[tokio::test]
async fn the_result_of_a_call_waits_for_the_save_where_each_message_is_saved() {
    for how in 0..=WAYS {
        let (system, store) = (system(), Faulty::new());
        let carts = carts(&system, &COUNTER, every_message(), &store).await;
        let (relay, actor) = (relay(&system, "relay", "cart/1").await, carts.actor("1").unwrap().awaken().unwrap());
        let call = async || match how {
            WAYS => relay.call(()).await.map(|(n,)| n),
            how => call(&system, &actor, how).await,
        };
        store.writes.forget_permits(usize::MAX);
        let mut called = pin!(call());
        tokio::select! {
            biased;
            result = &mut called => panic!("{result:?} before it was saved"),
            () = settle() => {}
        }
        assert_eq!((store.row("1").await, carts.stats().activations), (None, 1), "{how}");
        store.writes.add_permits(1);
        assert_eq!(called.await.unwrap(), 1, "{how}");
        assert_eq!(store.row("1").await.unwrap(), &1_u32.to_le_bytes()[..], "{how}");
    }
}

#[tokio::test]
async fn who_calls_is_told_that_the_state_is_not_saved() {
    for how in 0..WAYS {
        let (system, store) = (system(), Faulty::new());
        let carts = carts(&system, &COUNTER, every_message(), &store).await;
        let relay = relay(&system, "relay", "cart/1").await;
        let actor = carts.actor("1").unwrap().awaken().unwrap();
        store.set_full(true);
        let error = call(&system, &actor, how).await.unwrap_err();
        assert!(matches!(error, CallError::NotSaved), "{error:?}");
        let fault = link_fault(relay.call(()).await);
        assert!(matches!(fault, LinkFault::Call(CallError::NotSaved)), "{fault}");
        // What was not called is told as it is.
        let error = actor.call(F, [Val::Bool(true)]).await.unwrap_err();
        assert!(matches!(error, CallError::Arguments(_)), "{error:?}");
        store.set_full(false);
        assert_eq!(call(&system, &actor, how).await.unwrap(), 3);
        assert_eq!(store.row("1").await.unwrap(), &3_u32.to_le_bytes()[..]);
    }
}

#[tokio::test]
async fn the_result_of_a_call_after_which_the_actor_crashes_is_not_told() {
    // It gives 1, gives way, and traps.
    let guest = r#"(component
        (core func $return (canon task.return (result u32)))
        (core module $m
            (import "" "return" (func $return (param i32)))
            (func (export "f") (result i32) (call $return (i32.const 1)) (i32.const 1))
            (func (export "after") (param i32 i32 i32) (result i32) unreachable))
        (core instance $i (instantiate $m (with "" (instance (export "return" (func $return))))))
        (func (export "f") async (result u32)
            (canon lift (core func $i "f") async (callback (core func $i "after")))))"#;
    let guest = system().engine().load_wat_blocking(guest, Profile::Plain).unwrap();
    for (save, is_told) in [(SaveWhen::EachMessage, false), (SaveWhen::OnIdle, true)] {
        let (system, store) = (system(), Faulty::new());
        let carts = carts(&system, &guest, KeyedOptions { save, ..KeyedOptions::default() }, &store).await;
        let actor = carts.actor("1").unwrap().awaken().unwrap();
        let called = system.export::<(), (u32,)>(&actor, "f").unwrap().call(()).await.map(|(n,)| n);
        match called {
            Ok(1) => assert!(is_told),
            Err(CallError::NotSaved) => assert!(!is_told),
            other => panic!("{other:?}"),
        }
    }
}
