//! Actors that have several messages in flight at the same time.

use std::{collections::BTreeMap, num::NonZeroU32, sync::Arc, time::Duration};

use airssys_wasm_actor::{
    ActorManifest, ActorRef, ActorSpec, ActorSystem, AskError, CallError, ConcurrencyError, DeadLetterLimits,
    DeadReason, During, NativeActor, NativeContext, NativeSpec, Recycle, SpawnError, Stop, SystemConfig,
    UpgradeOptions,
};
use airssys_wasm_engine::{Profile, wasmtime::component::Val};
use airssys_wasm_isolation::{CrashKind, SandboxSpec};
use airssys_wasm_limits::ResourceLimits;
use airssys_wasm_registry::{MessageEnvelope, TraceContext};
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::task::JoinHandle;

use crate::support::{
    ACTOR, ASYNC_ACTOR, Probe, ask, at_once, busy, id, limited, limits, sandbox, settle, spec, system,
};

fn several(system: &ActorSystem, name: &str, at_a_time: u32) -> ActorSpec<()> {
    spec(system, name, &ASYNC_ACTOR).with_concurrency(NonZeroU32::new(at_a_time).unwrap())
}

fn asked(actor: &ActorRef, text: &str) -> JoinHandle<Result<String, AskError>> {
    let (actor, text) = (actor.clone(), text.to_owned());
    tokio::spawn(async move { ask(&actor, &text).await })
}

#[tokio::test]
async fn so_many_messages_are_in_flight_and_the_next_waits() {
    for at_a_time in [1, 2, 5] {
        let system = system();
        let actor = system.spawn(several(&system, "a", at_a_time)).await.unwrap();
        let mut waiting = Vec::new();
        for n in 1..at_a_time {
            let shared = busy(&system, &format!("busy{n}")).await;
            waiting.push((shared, asked(&actor, &format!("ask busy{n}"))));
        }
        settle().await;
        // One place is left, again and again.
        for n in 0..10 {
            assert_eq!(ask(&actor, &format!("hello {n}")).await.unwrap(), format!("hello {n}"));
        }
        let shared = busy(&system, "last").await;
        let last = asked(&actor, "ask last");
        settle().await;
        let hello = asked(&actor, "hello");
        settle().await;
        assert!(!hello.is_finished(), "{at_a_time}");
        shared.gate.notify_one();
        assert_eq!(last.await.unwrap().unwrap(), "get");
        assert_eq!(hello.await.unwrap().unwrap(), "hello");
        for (shared, asked) in waiting {
            shared.gate.notify_one();
            assert_eq!(asked.await.unwrap().unwrap(), "get");
        }
    }
}

#[tokio::test]
async fn a_hundred_are_in_flight_within_the_limits_and_the_next_waits() {
    let system = system();
    let actor = system.spawn(several(&system, "a", 100)).await.unwrap();
    let shared = busy(&system, "busy").await;
    let all: Vec<_> = (0..100).map(|_| asked(&actor, "ask busy")).collect();
    let next = asked(&actor, "hello");
    // All but the one that it has in its hand.
    let busy = system.find(&id("busy")).unwrap();
    while busy.info().mailbox.queued < 100 {
        tokio::task::yield_now().await;
    }
    settle().await;
    assert_eq!(busy.info().mailbox.queued, 100);
    assert!(!next.is_finished());
    shared.gate.notify_one();
    for asked in all {
        assert_eq!(asked.await.unwrap().unwrap(), "get");
    }
    assert_eq!(next.await.unwrap().unwrap(), "hello");
    let info = actor.info();
    assert!(info.memory > 0 && info.memory <= limits().memory.as_u64(), "{info:?}");
    assert_eq!(info.incarnation, 1);

    // `handles` bounds how many are begun, at three of 3 × 50 + 64 entries of wasmtime's table each, and what they hold, two
    // handles each. The one that finds no room ends all.
    let limits = ResourceLimits { handles: 50, ..limits() };
    let few = system.spawn(limited(several(&system, "few", 100), limits)).await.unwrap();
    let _still_busy = self::busy(&system, "still-busy").await;
    let all: Vec<_> = (0..100).map(|_| asked(&few, "ask still-busy")).collect();
    let mut by_incarnation = BTreeMap::<u64, Vec<During>>::new();
    for asked in all {
        let Err(AskError::Crashed(report)) = asked.await.unwrap() else { panic!() };
        let kind = report.crash.kind();
        assert!(matches!(kind, CrashKind::HostCall { .. } | CrashKind::Handles { .. }), "{report}");
        by_incarnation.entry(report.incarnation).or_default().push(report.during);
    }
    assert!(by_incarnation.values().all(|messages| messages.len() <= 72), "{by_incarnation:?}");
}

/// Nobody waits any more for what it does, and it does it all the same.
#[tokio::test(start_paused = true)]
async fn a_message_whose_asker_has_left_ends_within_its_limits() {
    for at_a_time in [1, 3] {
        let system = system();
        let limits = ResourceLimits { deadline: Duration::from_secs(5), ..limits() };
        let actor = system.spawn(limited(several(&system, "a", at_a_time), limits)).await.unwrap();
        for is_let_go in [true, false] {
            let name = format!("busy-{is_let_go}");
            let shared = busy(&system, &name).await;
            let gone = asked(&actor, &format!("ask {name}"));
            settle().await;
            gone.abort();
            assert!(gone.await.unwrap_err().is_cancelled());
            let other = asked(&actor, "hello");
            settle().await;
            assert_eq!(other.is_finished(), at_a_time > 1, "{at_a_time}");
            assert_eq!(actor.info().incarnation, 1, "it goes on");
            if is_let_go {
                shared.gate.notify_one();
            }
            // Else its deadline ends it, and the incarnation.
            assert_eq!(other.await.unwrap().unwrap(), "hello");
            while !is_let_go && actor.info().incarnation < 2 {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            assert_eq!(ask(&actor, "hello").await.unwrap(), "hello");
            assert_eq!(shared.handled(), if is_let_go { "wait,get" } else { "wait" });
        }
        assert_eq!(actor.info().incarnation, 2);
    }
}

#[tokio::test]
async fn a_crash_is_told_to_each_asker_once_and_whose_it_was() {
    let system = system();
    let actor = system.spawn(several(&system, "a", 10)).await.unwrap();
    let _busy = busy(&system, "busy").await;
    let others: Vec<_> = (0..3).map(|_| asked(&actor, "ask busy")).collect();
    settle().await;
    let Err(AskError::Crashed(report)) = ask(&actor, "panic").await else { panic!() };
    assert!(matches!(report.crash.kind(), CrashKind::Trap { .. }) && report.during == During::Message, "{report}");
    for other in others {
        let Err(AskError::Crashed(beside)) = other.await.unwrap() else { panic!() };
        assert_eq!((beside.during, beside.incarnation), (During::OtherMessage, report.incarnation));
        assert!(beside.to_string().contains("another message"), "{beside}");
    }
    assert_eq!(ask(&actor, "hello").await.unwrap(), "hello");
    assert_eq!(actor.info().incarnation, 2);
}

#[tokio::test]
async fn only_the_message_that_crashes_uses_its_attempts() {
    let system = system();
    let actor = system.spawn(several(&system, "a", 10).with_redelivery(Some(3))).await.unwrap();
    let shared = busy(&system, "busy").await;
    actor.tell("ask busy").await.unwrap();
    settle().await;
    actor.tell("panic").await.unwrap();
    // Three crashes, each with the other in flight.
    while actor.info().incarnation < 4 {
        tokio::task::yield_now().await;
    }
    settle().await;
    shared.gate.notify_one();
    settle().await;
    assert_eq!(ask(&actor, "hello").await.unwrap(), "hello");
    let letters = system.dead_letters().list();
    let [letter] = &letters[..] else { panic!("{letters:?}") };
    assert_eq!(letter.message.payload(), "panic");
    assert!(matches!(letter.reason, DeadReason::Poison { attempts: 3, .. }), "{letter:?}");
    // Asked in each of the four incarnations.
    assert_eq!(shared.handled(), "wait,get,get,get,get");
}

#[tokio::test]
async fn without_redelivery_nothing_is_lost_silently() {
    let system = system();
    let actor = system.spawn(several(&system, "a", 10)).await.unwrap();
    let _busy = busy(&system, "busy").await;
    for _ in 0..3 {
        actor.tell("ask busy").await.unwrap();
    }
    settle().await;
    actor.tell("panic").await.unwrap();
    while actor.info().incarnation < 2 {
        tokio::task::yield_now().await;
    }
    assert_eq!(ask(&actor, "hello").await.unwrap(), "hello");
    let mut letters: Vec<_> = system.dead_letters().list().into_iter().map(|letter| letter.reason).collect();
    assert_eq!(letters.len(), 4);
    letters.retain(|reason| matches!(reason, DeadReason::Poison { .. }));
    assert_eq!(letters.len(), 1);
}

#[tokio::test]
async fn a_kill_ends_all_of_them() {
    let system = system();
    let actor = system.spawn(several(&system, "a", 10)).await.unwrap();
    let _busy = busy(&system, "busy").await;
    let asked: Vec<_> = (0..3).map(|_| asked(&actor, "ask busy")).collect();
    actor.tell("ask busy").await.unwrap();
    settle().await;
    actor.kill();
    actor.ended().await;
    for asked in asked {
        let error = asked.await.unwrap().unwrap_err();
        assert!(matches!(&error, AskError::Crashed(report) if *report.crash.kind() == CrashKind::Cancelled), "{error}");
    }
    // Who asked was told; the messages are there all the same.
    assert_eq!(system.dead_letters().len(), 4);
}

#[tokio::test]
async fn whatever_is_no_message_waits_until_none_is_in_flight() {
    let system = system();
    let actor = system.spawn(several(&system, "a", 10)).await.unwrap();
    for what in ["upgrade", "call", "stop"] {
        let shared = busy(&system, &format!("busy-{what}")).await;
        let waiting = asked(&actor, &format!("ask busy-{what}"));
        settle().await;
        let other = tokio::spawn({
            let (system, actor) = (system.clone(), actor.clone());
            async move {
                match what {
                    "upgrade" => {
                        let next = sandbox(&system, &ASYNC_ACTOR);
                        let options = UpgradeOptions::default();
                        assert_eq!(system.upgrade(actor.address(), next, options).await.unwrap(), 2);
                    }
                    "call" => {
                        let error = actor.call("nothing", [Val::U32(1)]).await.unwrap_err();
                        assert!(matches!(error, CallError::Contract(_)), "{error}");
                    }
                    _ => {
                        actor.stop(Stop::Now);
                        actor.ended().await;
                    }
                }
            }
        });
        settle().await;
        assert!(!other.is_finished(), "{what}");
        // Nor do messages come before it that were sent later.
        let later = asked(&actor, "hello");
        settle().await;
        assert!(!later.is_finished(), "{what}");
        shared.gate.notify_one();
        assert_eq!(waiting.await.unwrap().unwrap(), "get", "{what}");
        other.await.unwrap();
        assert_eq!(later.await.unwrap().is_ok(), what != "stop", "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_order_that_comes_before_a_crash_is_followed_after_it() {
    let system = system();
    let limits = ResourceLimits { deadline: Duration::from_secs(5), ..limits() };
    let actor = system.spawn(limited(several(&system, "a", 10), limits)).await.unwrap();
    let _busy = busy(&system, "busy").await;
    let waiting = asked(&actor, "ask busy");
    settle().await;
    let upgraded = tokio::spawn({
        let (system, actor) = (system.clone(), actor.clone());
        let next = sandbox(&system, &ASYNC_ACTOR);
        async move { system.upgrade(actor.address(), next, UpgradeOptions::default()).await }
    });
    settle().await;
    assert!(!upgraded.is_finished());
    assert!(matches!(waiting.await.unwrap(), Err(AskError::Crashed(_))));
    // Before or after the restart.
    assert!(upgraded.await.unwrap().unwrap() > 1);
    assert_eq!(ask(&actor, "hello").await.unwrap(), "hello");
}

#[tokio::test]
async fn it_is_recycled_when_none_is_in_flight() {
    let system = system();
    let recycle = Recycle { messages: std::num::NonZeroU64::new(5), ..Recycle::default() };
    let actor = system.spawn(several(&system, "a", 3).with_recycle(recycle)).await.unwrap();
    for _ in 0..50 {
        let asked: Vec<_> = (0..4).map(|_| asked(&actor, "hello")).collect();
        for asked in asked {
            assert_eq!(asked.await.unwrap().unwrap(), "hello");
        }
    }
    let incarnation = actor.info().incarnation;
    assert!((20..=41).contains(&incarnation), "{incarnation}");
    assert_eq!(actor.info().restarts, 0);
}

#[tokio::test(start_paused = true)]
async fn each_message_has_a_deadline_of_its_own() {
    let system = system();
    let limits = ResourceLimits { deadline: Duration::from_secs(5), ..limits() };
    let actor = system.spawn(limited(several(&system, "a", 10), limits)).await.unwrap();
    let _busy = busy(&system, "busy").await;
    let first = asked(&actor, "ask busy");
    tokio::time::sleep(Duration::from_secs(3)).await;
    let second = asked(&actor, "ask busy");
    settle().await;
    let Err(AskError::Crashed(report)) = first.await.unwrap() else { panic!() };
    assert_eq!(*report.crash.kind(), CrashKind::Deadline { allowed: Duration::from_secs(5) });
    assert_eq!(report.during, During::Message);
    let Err(AskError::Crashed(beside)) = second.await.unwrap() else { panic!() };
    assert_eq!(beside.during, During::OtherMessage);
}

/// An actor that may be asked while it waits may ask itself.
#[tokio::test(start_paused = true)]
async fn it_may_ask_itself() {
    let system = system();
    let limits = ResourceLimits { deadline: Duration::from_secs(60), ..limits() };
    let actor = system.spawn(limited(several(&system, "a", 2), limits)).await.unwrap();
    assert_eq!(ask(&actor, "ask a").await.unwrap(), "get");
    // With all places taken nobody answers: the requests' timeouts end it.
    let both = [asked(&actor, "ask a"), asked(&actor, "ask a")];
    for asked in both {
        let answer = asked.await.unwrap();
        assert!(answer.is_ok_and(|answer| answer == "get" || answer.contains("Timeout")));
    }
    let alone = system.spawn(several(&system, "alone", 1)).await.unwrap();
    assert_eq!(ask(&alone, "ask alone").await.unwrap(), "RequestError::Cycle");
}

/// Notes the traces of what it gets.
struct Traces(Arc<Mutex<Vec<u128>>>);

impl NativeActor for Traces {
    async fn handle(&mut self, message: &MessageEnvelope, _: &NativeContext) -> Result<Option<Bytes>, String> {
        let trace = message.trace().map_or(0, |trace| trace.trace_id);
        self.0.lock().push(trace);
        Ok(Some(trace.to_string().into()))
    }
}

#[tokio::test]
async fn each_message_has_a_trace_of_its_own() {
    let system = system();
    let traces = Arc::new(Mutex::new(Vec::new()));
    let spec = NativeSpec::new(id("traces"), {
        let traces = Arc::clone(&traces);
        move || Traces(Arc::clone(&traces))
    });
    system.spawn_native(spec).await.unwrap();
    let actor = system.spawn(several(&system, "a", 10)).await.unwrap();
    let ask = |trace_id| {
        let trace = TraceContext { trace_id, parent_id: 1, sampled: true };
        let (actor, message) = (actor.clone(), MessageEnvelope::new("ask traces traces").with_trace(trace));
        tokio::spawn(async move { actor.ask(message).await.unwrap() })
    };
    let asked: Vec<_> = (1..=10).map(ask).collect();
    for (asked, trace) in asked.into_iter().zip(1..) {
        assert_eq!(asked.await.unwrap(), format!("{trace} {trace}"));
    }
    assert_eq!(traces.lock().len(), 20);
}

#[tokio::test]
async fn it_is_for_async_components_without_fuel() {
    let system = system();
    let of = |name: &str, guest| spec(&system, name, guest).with_concurrency(NonZeroU32::new(2).unwrap());
    let error = system.spawn(of("a", &ACTOR)).await.unwrap_err();
    assert!(matches!(error, SpawnError::Concurrency(ConcurrencyError::NotAsync)), "{error}");
    let metered = system.engine().load_blocking(airssys_wasm_fixtures::ASYNC_ACTOR, Profile::Metered).unwrap();
    let limits = ResourceLimits { fuel: Some(1_000_000), ..limits() };
    let sandbox = SandboxSpec::new(system.link(&metered).unwrap(), limits).unwrap();
    let metered = ActorSpec::new(id("b"), sandbox);
    let error = system.spawn(metered.clone().with_concurrency(NonZeroU32::new(2).unwrap())).await.unwrap_err();
    assert!(matches!(error, SpawnError::Concurrency(ConcurrencyError::Metered)), "{error}");
    // One at a time is no concurrency.
    let actor = system.spawn(metered).await.unwrap();
    assert_eq!(ask(&actor, "hello").await.unwrap(), "hello");

    let text = |line: &str| format!("[component]\nname = \"a\"\n{line}\n[resources]\nmemory = \"1MiB\"\n");
    let manifest = ActorManifest::from_toml(&text("concurrency = 100")).unwrap();
    assert_eq!(manifest.component.concurrency.get(), 100);
    assert_eq!(ActorManifest::from_toml(&text("")).unwrap().component.concurrency.get(), 1);
    ActorManifest::from_toml(&text("concurrency = 0")).unwrap_err();
}

/// Whatever comes, each message is handled, answered, refused or in the dead letters, and counted once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_books_balance() {
    let dead_letters = DeadLetterLimits { letters_per_actor: 1_000, ..DeadLetterLimits::default() };
    let system = ActorSystem::new(system().engine().clone(), SystemConfig { dead_letters, ..SystemConfig::default() });
    let (_, _probe) = Probe::spawn(&system, "probe").await;
    let actor =
        system.spawn(several(&system, "a", 7).with_redelivery(Some(2)).with_restart(at_once(10_000))).await.unwrap();
    let mut random = fastrand::Rng::with_seed(5);
    let (mut asks, mut poison) = (Vec::new(), 0);
    for _ in 0..400 {
        let text = ["ask probe probe", "hello", "later 3", "panic", "fail"][random.usize(..5)];
        poison += usize::from(text == "panic");
        match random.bool() {
            true => asks.push((text, asked(&actor, text))),
            false => actor.tell(text).await.unwrap(),
        }
    }
    let (mut answered, mut crashed) = (0, 0);
    for (text, ask) in asks {
        match ask.await.unwrap() {
            Ok(_) | Err(AskError::Failed { .. }) => answered += 1,
            Err(AskError::Crashed(report)) => {
                assert!(text == "panic" || report.during == During::OtherMessage, "{text}: {report}");
                crashed += 1;
            }
            Err(other) => panic!("{text}: {other}"),
        }
    }
    assert!(answered > 0 && crashed > 0);
    actor.stop(Stop::Drain);
    actor.ended().await;
    // What crashed it is nowhere else.
    let letters = system.dead_letters().list();
    assert_eq!(letters.iter().filter(|letter| letter.message.payload() == "panic").count(), poison);
}
