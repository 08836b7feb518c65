//! Actors that are code of the host, and state of the embedder's beside guests.

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use airssys_wasm_actor::{
    ActorSpec, ActorSystem, AskError, Bytes, CrashReport, During, HealthError, Lifecycle, NativeActor, NativeContext,
    NativeSpec, SpawnError, StartError, Stop, SystemConfig,
};
use airssys_wasm_isolation::{CrashClass, SandboxSpec};
use airssys_wasm_registry::{MessageEnvelope, TraceContext, WhenFull};
use futures_util::StreamExt;
use parking_lot::Mutex;

use crate::support::{ACTOR, ask, at_once, id, limits, poll_once, settle, system};

/// Notes what is called, and does in each phase what its script says: `panic`, `fail`, `wait`, or nothing.
struct Scripted {
    script: &'static [(&'static str, &'static str)],
    log: Arc<Mutex<Vec<&'static str>>>,
}

impl Scripted {
    fn spec(script: &'static [(&'static str, &'static str)]) -> (NativeSpec<Self>, Arc<Mutex<Vec<&'static str>>>) {
        let log = Arc::default();
        let made = Arc::clone(&log);
        let spec = NativeSpec::new(id("scripted"), move || Self { script, log: Arc::clone(&made) });
        (spec.with_restart(at_once(10)), log)
    }

    async fn act(&self, phase: &'static str) -> Result<(), String> {
        self.log.lock().push(phase);
        match self.script.iter().find(|(known, _)| *known == phase) {
            Some((_, "panic")) => panic!("told to crash"),
            Some((_, "fail")) => Err("told to fail".to_owned()),
            Some((_, "wait")) => pending().await,
            _ => Ok(()),
        }
    }
}

impl NativeActor for Scripted {
    async fn init(&mut self, _: &NativeContext) -> Result<(), String> {
        self.act("init").await
    }

    async fn handle(&mut self, message: &MessageEnvelope, _: &NativeContext) -> Result<Option<Bytes>, String> {
        assert_ne!(&message.payload()[..], b"crash");
        self.act("handle").await.map(|()| None)
    }

    async fn health(&mut self, _: &NativeContext) -> Result<(), String> {
        self.act("health").await
    }

    async fn stop(self, _: &NativeContext) {
        _ = self.act("stop").await;
    }
}

#[tokio::test]
async fn a_native_actor_is_told_of_its_beginning_and_its_end() {
    let system = system();
    let (spec, log) = Scripted::spec(&[]);
    let actor = system.spawn_native(spec).await.unwrap();
    ask(&actor, "x").await.unwrap_err();
    actor.health().await.unwrap();
    actor.stop(Stop::Drain);
    actor.ended().await;
    assert_eq!(*log.lock(), ["init", "handle", "health", "stop"]);
}

#[tokio::test]
async fn one_that_crashes_or_is_killed_is_not_asked_to_stop() {
    let system = system();
    let (spec, log) = Scripted::spec(&[]);
    let actor = system.spawn_native(spec).await.unwrap();
    let AskError::Crashed(_) = ask(&actor, "crash").await.unwrap_err() else { panic!("it panicked") };
    actor.tell("x").await.unwrap();
    settle().await;
    actor.kill();
    actor.ended().await;
    assert_eq!(*log.lock(), ["init", "init", "handle"]);
}

#[tokio::test]
async fn an_init_that_refuses_or_panics_is_a_failed_start() {
    let system = system();
    let (spec, _) = Scripted::spec(&[("init", "fail")]);
    let SpawnError::Start { error, .. } = system.spawn_native(spec).await.unwrap_err() else { panic!("a start") };
    assert!(matches!(&*error, StartError::Refused { message } if message == "told to fail"), "{error:?}");

    let (spec, _) = Scripted::spec(&[("init", "panic")]);
    let SpawnError::Start { error, .. } = system.spawn_native(spec).await.unwrap_err() else { panic!("a start") };
    let StartError::Crash(report) = &*error else { panic!("{error:?}") };
    let CrashReport { during: During::Init, .. } = **report else { panic!("{report}") };
    assert_eq!(report.crash.kind().class(), CrashClass::HostPanic);
    assert!(system.find(&id("scripted")).is_none(), "nothing is left");
}

#[tokio::test]
async fn an_init_that_waits_ends_with_a_kill() {
    let system = system();
    let (spec, log) = Scripted::spec(&[("init", "wait")]);
    let spawning = tokio::spawn({
        let system = system.clone();
        async move { system.spawn_native(spec).await }
    });
    while log.lock().is_empty() {
        tokio::task::yield_now().await;
    }
    system.find(&id("scripted")).unwrap().kill();
    let SpawnError::Start { error, .. } = spawning.await.unwrap().unwrap_err() else { panic!("a start") };
    let StartError::Crash(report) = &*error else { panic!("{error:?}") };
    assert_eq!(report.crash.kind().class(), CrashClass::Cancelled);
}

#[tokio::test]
async fn a_native_actor_says_how_it_is() {
    let system = system();
    let (spec, _) = Scripted::spec(&[("health", "fail")]);
    let actor = system.spawn_native(spec).await.unwrap();
    let HealthError::Unwell { message } = actor.health().await.unwrap_err() else { panic!("it is not well") };
    assert_eq!(message, "told to fail");

    let (spec, _) = Scripted::spec(&[("health", "panic")]);
    let actor = system.spawn_native(spec.with_id(id("other"))).await.unwrap();
    let HealthError::Crashed(report) = actor.health().await.unwrap_err() else { panic!("it panicked") };
    assert_eq!(report.during, During::Health);
    settle().await;
    assert_eq!((actor.state(), actor.info().restarts), (Lifecycle::Running, 1));
}

/// Sends on what it is told, subscribes to `t`, and notes from whom and in which trace messages come.
struct Relay(Arc<Mutex<Vec<String>>>);

impl NativeActor for Relay {
    async fn init(&mut self, context: &NativeContext) -> Result<(), String> {
        context.subscribe("t".parse().unwrap());
        Ok(())
    }

    async fn handle(&mut self, message: &MessageEnvelope, context: &NativeContext) -> Result<Option<Bytes>, String> {
        let sender = message.sender().map_or("the host".to_owned(), |sender| sender.id().to_string());
        let trace = message.trace().map_or(0, |trace| trace.trace_id);
        self.0.lock().push(format!("{} from {sender} in {trace}", message.payload().escape_ascii()));
        match &message.payload()[..] {
            b"send" => context.send(&id("b"), "sent").map_err(|error| error.to_string())?,
            b"publish" => _ = context.publish(&"t".parse().unwrap(), "published").await,
            b"silence" => context.unsubscribe(&"t".parse().unwrap()),
            _ => {}
        }
        Ok(Some(context.id().to_string().into()))
    }
}

#[tokio::test]
async fn what_a_native_actor_sends_names_it_and_its_trace() {
    let system = system();
    let log = Arc::new(Mutex::new(Vec::new()));
    for name in ["a", "b"] {
        let log = Arc::clone(&log);
        system.spawn_native(NativeSpec::new(id(name), move || Relay(Arc::clone(&log)))).await.unwrap();
    }
    let (a, b) = (system.find(&id("a")).unwrap(), system.find(&id("b")).unwrap());
    let mut traced = MessageEnvelope::new("send");
    traced = traced.with_trace(TraceContext { trace_id: 7, parent_id: 1, sampled: true });
    assert_eq!(a.ask(traced).await.unwrap(), "a");
    b.ask("silence").await.unwrap();
    a.ask("publish").await.unwrap();
    a.ask("end").await.unwrap();
    assert_eq!(
        *log.lock(),
        [
            "send from the host in 7",
            "sent from a in 7",
            "silence from the host in 0",
            "publish from the host in 0",
            "published from a in 0",
            "end from the host in 0",
        ]
    );
}

#[tokio::test]
async fn the_embedders_state_may_come_from_the_specification_and_fail() {
    let engine = system().engine().clone();
    let system = ActorSystem::with_host(engine, SystemConfig::default(), |_| 0_u32, |_| Ok(()));
    let sandbox = || SandboxSpec::new(system.link(&ACTOR).unwrap(), limits()).unwrap();
    let calls = Arc::new(AtomicU32::new(0));
    let spec = ActorSpec::new(id("stateful"), sandbox()).with_restart(at_once(10)).with_state({
        let calls = Arc::clone(&calls);
        move |name| {
            assert_eq!(name.as_str(), "stateful");
            let call = calls.fetch_add(1, Ordering::Relaxed);
            async move {
                tokio::task::yield_now().await;
                if call == 1 { Err(std::io::Error::other("the database is away")) } else { Ok(call) }
            }
        }
    });
    let actor = system.spawn(spec.clone()).await.unwrap();
    // The first restart fails for want of state, the second does not.
    ask(&actor, "panic").await.unwrap_err();
    assert_eq!(ask(&actor, "echo x").await.unwrap(), "x");
    assert_eq!(calls.load(Ordering::Relaxed), 3);

    calls.store(1, Ordering::Relaxed);
    let error = system.spawn(spec.with_id(id("stateful"))).await.unwrap_err();
    assert!(matches!(error, SpawnError::NameTaken(_)), "{error}");
    actor.kill();
    actor.ended().await;
    let spec = ActorSpec::new(id("stateful"), sandbox()).with_state(|_| async { Err::<u32, _>("none") });
    let SpawnError::Start { error, .. } = system.spawn(spec).await.unwrap_err() else { panic!("a start") };
    let StartError::State(why) = &*error else { panic!("{error:?}") };
    assert_eq!(why.to_string(), "none");
    // Without a factory of its own, the system's.
    system.spawn(ActorSpec::new(id("plain"), sandbox())).await.unwrap();
}

#[tokio::test]
async fn a_subscription_of_the_host_is_a_stream_that_ends_with_the_system() {
    let system = system();
    let subscription = system.subscribe(&"t".parse().unwrap(), 8, WhenFull::Error);
    let hearing = tokio::spawn(subscription.map(MessageEnvelope::into_payload).collect::<Vec<_>>());
    for text in ["a", "b"] {
        assert_eq!(system.publish(&"t".parse().unwrap(), text).await.delivered, 1);
    }
    tokio::task::yield_now().await;
    assert_eq!(system.publish(&"t".parse().unwrap(), "c").await.delivered, 1);
    system.shutdown(std::time::Duration::from_secs(1)).await;
    assert_eq!(hearing.await.unwrap(), ["a", "b", "c"]);
}

#[tokio::test]
async fn health_checks_take_turns_with_messages_and_end_with_those_who_wait() {
    let system = system();
    let (spec, log) = Scripted::spec(&[]);
    let actor = system.spawn_native(spec).await.unwrap();
    let mut checks: Vec<_> = (0..9).map(|_| Box::pin(async { actor.health().await.unwrap() })).collect();
    for check in &mut checks {
        assert!(poll_once(check.as_mut()).is_pending());
    }
    // Abandoned ones.
    checks.truncate(3);
    for _ in 0..3 {
        actor.try_tell("x").unwrap();
    }
    actor.stop(Stop::Drain);
    futures_util::future::join_all(checks).await;
    actor.ended().await;
    let expected = ["init", "health", "handle", "health", "handle", "health", "handle", "stop"];
    assert_eq!(*log.lock(), expected);
}

/// Gives away what it has access by.
struct Lends(Arc<Mutex<Option<NativeContext>>>);

impl NativeActor for Lends {
    async fn handle(&mut self, _: &MessageEnvelope, context: &NativeContext) -> Result<Option<Bytes>, String> {
        *self.0.lock() = Some(context.clone());
        Ok(Some(Bytes::new()))
    }
}

#[tokio::test]
async fn one_that_has_ended_subscribes_to_nothing() {
    let system = system();
    let lent = Arc::default();
    let spec = NativeSpec::new(id("lends"), {
        let lent = Arc::clone(&lent);
        move || Lends(Arc::clone(&lent))
    });
    let actor = system.spawn_native(spec).await.unwrap();
    ask(&actor, "x").await.unwrap();
    let context = lent.lock().take().unwrap();
    let topic = "a.b".parse().unwrap();
    context.subscribe("a.*".parse().unwrap());
    assert_eq!(system.publish(&topic, "x").await.delivered, 1);
    actor.stop(Stop::Drain);
    actor.ended().await;
    context.subscribe("a.>".parse().unwrap());
    let report = system.publish(&topic, "x").await;
    assert_eq!((report.delivered, report.refused), (0, vec![]));
}
