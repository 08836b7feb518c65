//! The end of a whole system.

use std::{sync::mpsc, time::Duration};

use airssys_wasm_actor::{
    ActorSystem, NativeActor, NativeContext, NativeSpec, SpawnError, SupervisorPolicy, SupervisorSpec, SystemConfig,
    SystemEvent,
};
use airssys_wasm_registry::MessageEnvelope;
use bytes::Bytes;

use crate::support::{ACTOR, COUNTER, Probe, ask, id, spawn, spec, system};

/// The names in the order in which they stopped.
fn stopped(events: &mut tokio::sync::broadcast::Receiver<SystemEvent>) -> Vec<String> {
    let mut names = Vec::new();
    while let Ok(event) = events.try_recv() {
        if let SystemEvent::Stopped { actor } = event {
            names.push(actor.id().to_string());
        }
    }
    names
}

#[tokio::test]
async fn what_others_depend_on_ends_after_them() {
    let system = system();
    let mut database = spec(&system, "database", &COUNTER);
    let mut cache = spec(&system, "cache", &COUNTER);
    let mut service = spec(&system, "service", &COUNTER);
    cache = cache.with_dependencies(vec![id("database")]);
    service = service.with_dependencies(vec![id("cache"), id("database")]);
    let error = system.spawn(service.clone()).await.unwrap_err();
    assert!(matches!(&error, SpawnError::Dependency { missing, .. } if *missing == id("cache")), "{error:?}");
    database = database.with_mailbox(8);
    for spec in [database, cache, service] {
        system.spawn(spec).await.unwrap();
    }
    let family = SupervisorSpec::new(id("family"), SupervisorPolicy::default())
        .native(Probe::spec("first").0)
        .native(Probe::spec("second").0);
    system.supervise(family).await.unwrap();
    let mut events = system.events();
    let report = system.shutdown(Duration::from_secs(10)).await;
    assert_eq!((report.stopped, report.killed.len(), report.stuck.len()), (5, 0, 0));
    let order = stopped(&mut events);
    let at = |name: &str| order.iter().position(|stopped| stopped == name).unwrap();
    assert!(at("service") < at("cache") && at("cache") < at("database"), "{order:?}");
    assert!(at("second") < at("first"), "{order:?}");
    assert!(system.actors().is_empty());
    assert!(matches!(system.spawn(spec(&system, "late", &COUNTER)).await, Err(SpawnError::ShuttingDown)));
}

#[tokio::test(start_paused = true)]
async fn mailboxes_are_drained_and_those_that_hang_are_killed_at_the_deadline() {
    let system = system();
    let (drains, drained) = Probe::spawn(&system, "drains").await;
    let (hangs, _) = Probe::spawn(&system, "hangs").await;
    for n in ["1", "2", "3"] {
        drains.try_tell(n).unwrap();
    }
    hangs.try_tell("wait").unwrap();
    hangs.try_tell("queued").unwrap();
    let before = tokio::time::Instant::now();
    let report = system.shutdown(Duration::from_secs(7)).await;
    assert_eq!(before.elapsed(), Duration::from_secs(7));
    assert_eq!((report.stopped, &report.killed[..], report.stuck.len()), (1, &[id("hangs")][..], 0));
    assert_eq!(drained.handled(), "1,2,3");
    assert_eq!(system.dead_letters().len(), 2);
}

/// Blocks its thread, as no handler should.
struct Blocks(std::sync::Arc<parking_lot::Mutex<mpsc::Receiver<()>>>);

impl NativeActor for Blocks {
    async fn handle(&mut self, _: &MessageEnvelope, _: &NativeContext) -> Result<Option<Bytes>, String> {
        let released = self.0.lock().recv();
        Ok(released.ok().map(|()| Bytes::new()))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_blocks_its_thread_is_reported_as_stuck() {
    let system = ActorSystem::new(system().engine().clone(), SystemConfig::default());
    let (release, blocked) = mpsc::channel();
    let blocked = std::sync::Arc::new(parking_lot::Mutex::new(blocked));
    let blocks = system.spawn_native(NativeSpec::new(id("blocks"), move || Blocks(blocked.clone()))).await.unwrap();
    blocks.tell("x").await.unwrap();
    while blocks.info().mailbox.queued != 0 {
        tokio::task::yield_now().await;
    }
    let report = system.shutdown(Duration::from_millis(1)).await;
    assert_eq!((report.stopped, report.killed.len(), &report.stuck[..]), (0, 0, &[id("blocks")][..]));
    release.send(()).unwrap();
    blocks.ended().await;
}

#[tokio::test]
async fn asks_that_wait_at_the_end_are_answered_or_told() {
    let system = system();
    let actor = spawn(&system, "actor", &ACTOR).await;
    let (other, _) = Probe::spawn(&system, "other").await;
    let asks: Vec<_> = [actor, other]
        .into_iter()
        .flat_map(|actor| std::iter::repeat_n(actor, 3))
        .map(|actor| tokio::spawn(async move { ask(&actor, "echo x").await }))
        .collect();
    tokio::task::yield_now().await;
    let report = system.shutdown(Duration::from_secs(10)).await;
    assert_eq!(report.stopped, 2);
    for asked in asks {
        // They were taken before the end, and a shutdown drains.
        asked.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_subscriber_of_the_host_hears_of_the_end() {
    let system = system();
    let mut host = system.subscribe(&"t".parse().unwrap(), 2, airssys_wasm_registry::WhenFull::DropNew);
    assert_eq!(system.publish(&"t".parse().unwrap(), "last").await.delivered, 1);
    system.shutdown(Duration::from_secs(1)).await;
    assert_eq!(host.recv().await.unwrap().payload(), "last");
    assert!(host.recv().await.is_none());
}

#[test]
fn a_system_may_be_dropped_without_a_runtime_or_after_it() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let (system, actor) = runtime.block_on(async {
        let system = system();
        let actor = spawn(&system, "actor", &ACTOR).await;
        (system, actor)
    });
    drop(runtime);
    // The task is gone with its runtime, and has left nothing.
    assert!(actor.try_tell("x").is_err());
    assert!(system.actors().is_empty());
    drop(system);
}
