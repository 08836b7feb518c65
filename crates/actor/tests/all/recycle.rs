//! Fresh instances for guests whose memory only grows.

use std::{num::NonZeroU64, time::Duration};

use airssys_wasm_actor::{
    ActorManifest, ActorRef, ActorSystem, Lifecycle, Recycle, RecycleReason, SystemEvent, UpgradeOptions,
};
use airssys_wasm_limits::ByteSize;
use tokio::sync::broadcast;

use crate::support::{ACTOR, ask, sandbox, settle, spec, system};

fn after(messages: u64) -> Recycle {
    Recycle { messages: NonZeroU64::new(messages), ..Recycle::default() }
}

async fn spawned(system: &ActorSystem, recycle: Recycle, config: &[(&str, &str)]) -> ActorRef {
    let spec = spec(system, "actor", &ACTOR).with_recycle(recycle).with_config(config.iter().copied());
    system.spawn(spec).await.unwrap()
}

fn reasons(events: &mut broadcast::Receiver<SystemEvent>) -> Vec<RecycleReason> {
    let events = std::iter::from_fn(|| events.try_recv().ok());
    let because = |event| if let SystemEvent::Recycled { because, .. } = event { Some(because) } else { None };
    events.filter_map(because).collect()
}

#[tokio::test]
async fn after_so_many_messages_with_its_state_and_nothing_counted_as_a_failure() {
    let system = system();
    let mut events = system.events();
    let actor = spawned(&system, after(5), &[]).await;
    for n in 0..12 {
        assert_eq!(ask(&actor, "count").await.unwrap(), n.to_string());
    }
    settle().await;
    let info = actor.info();
    assert_eq!((info.recycled, info.restarts, info.incarnation), (2, 0, 3));
    assert_eq!(reasons(&mut events), [RecycleReason::Messages; 2]);
    // The old one was told of its end, the new one given what it left.
    assert_eq!(ask(&actor, "events").await.unwrap(), "init,restore");
}

#[tokio::test]
async fn what_has_grown_is_small_again() {
    for (memory, recycled) in [(Some(ByteSize::mib(3)), 1), (None, 0)] {
        let system = system();
        let mut events = system.events();
        let actor = spawned(&system, Recycle { memory, ..Recycle::default() }, &[]).await;
        ask(&actor, "hoard 1000000").await.unwrap();
        settle().await;
        assert_eq!(actor.info().recycled, 0);
        let before = actor.info().memory;
        ask(&actor, "hoard 3000000").await.unwrap();
        ask(&actor, "echo x").await.unwrap();
        settle().await;
        assert_eq!(actor.info().recycled, recycled);
        assert_eq!(actor.info().memory < before, memory.is_some(), "{}", actor.info().memory);
        assert_eq!(reasons(&mut events), vec![RecycleReason::Memory; recycled as usize]);
    }
}

#[tokio::test]
async fn one_that_begins_with_too_much_memory_is_not_recycled_for_ever() {
    let system = system();
    let recycle = Recycle { memory: Some(ByteSize(1)), ..Recycle::default() };
    let actor = spawned(&system, recycle, &[]).await;
    for _ in 0..10 {
        ask(&actor, "count").await.unwrap();
    }
    settle().await;
    assert_eq!(actor.info().recycled, 0);
}

#[tokio::test(start_paused = true)]
async fn by_age_with_the_next_message() {
    let system = system();
    let mut events = system.events();
    let age = Some(Duration::from_secs(3_600));
    let actor = spawned(&system, Recycle { age, ..Recycle::default() }, &[]).await;
    ask(&actor, "count").await.unwrap();
    tokio::time::advance(Duration::from_secs(3_599)).await;
    ask(&actor, "count").await.unwrap();
    settle().await;
    assert_eq!(actor.info().recycled, 0);
    tokio::time::advance(Duration::from_secs(1)).await;
    ask(&actor, "count").await.unwrap();
    assert_eq!(ask(&actor, "count").await.unwrap(), "3");
    assert_eq!((actor.info().recycled, reasons(&mut events)), (1, vec![RecycleReason::Age]));
}

#[tokio::test]
async fn nothing_is_lost_under_load_and_subscriptions_stay() {
    let system = system();
    let actor = spawned(&system, after(7), &[("subscribe", "t")]).await;
    for n in 0..1_000 {
        if n % 2 == 0 {
            actor.tell("echo x").await.unwrap();
        } else {
            assert_eq!(system.publish(&"t".parse().unwrap(), "echo x").await.delivered, 1);
        }
        tokio::task::yield_now().await;
    }
    assert_eq!(ask(&actor, "count").await.unwrap(), "1000");
    // The last one comes after the answer.
    while actor.info().recycled < 143 {
        tokio::task::yield_now().await;
    }
    assert_eq!(actor.info().recycled, 143);
    assert!(system.dead_letters().is_empty());
}

#[tokio::test]
async fn the_old_instance_goes_on_where_there_is_no_other() {
    for fails in ["snapshot", "restore"] {
        let system = system();
        let actor = spawned(&system, after(10), &[(fails, "fail")]).await;
        for n in 0..400 {
            assert_eq!(ask(&actor, "count").await.unwrap(), n.to_string(), "{fails}");
        }
        let tried = match fails {
            "snapshot" => {
                let events = ask(&actor, "events").await.unwrap();
                assert_eq!(actor.info().incarnation, 1);
                events.matches("snapshot").count()
            }
            _ => ask(&actor, "events").await.unwrap().matches("snapshot").count(),
        };
        // At 10, 110 and 220 messages.
        assert_eq!((tried, actor.info().recycled, actor.info().restarts), (3, 0, 0), "{fails}");
    }
}

#[tokio::test]
async fn a_snapshot_that_crashes_is_a_crash() {
    let system = system();
    let actor = spawned(&system, after(3), &[("snapshot", "panic")]).await;
    for _ in 0..3 {
        ask(&actor, "count").await.unwrap();
    }
    assert_eq!(ask(&actor, "count").await.unwrap(), "0");
    assert_eq!((actor.info().recycled, actor.info().restarts), (0, 1));
    assert_eq!(actor.state(), Lifecycle::Running);
}

#[tokio::test]
async fn a_version_on_probation_is_not_recycled() {
    let system = system();
    let actor = spawned(&system, after(2), &[]).await;
    let options = UpgradeOptions { probation: 5, ..UpgradeOptions::default() };
    system.upgrade(actor.address(), sandbox(&system, &ACTOR), options).await.unwrap();
    for _ in 0..4 {
        ask(&actor, "count").await.unwrap();
    }
    settle().await;
    assert_eq!(actor.info().recycled, 0);
    ask(&actor, "count").await.unwrap();
    ask(&actor, "count").await.unwrap();
    assert_eq!(actor.info().recycled, 1);
}

#[test]
fn it_is_part_of_the_manifest() {
    let manifest = |recycle: &str| {
        let text = format!("[component]\nname = 'a'\nrecycle = {recycle}\n[resources]\nmemory = '1MiB'");
        ActorManifest::from_toml(&text)
    };
    let recycle = manifest("{ messages = 10_000, memory = '24MiB', age = '1h' }").unwrap().component.recycle;
    assert_eq!(recycle.messages, NonZeroU64::new(10_000));
    assert_eq!((recycle.memory, recycle.age), (Some(ByteSize::mib(24)), Some(Duration::from_secs(3_600))));
    assert_eq!(manifest("{}").unwrap().component.recycle, Recycle::default());
    for nonsense in ["{ messages = 0 }", "{ memory = 0 }", "{ age = '0s' }", "{ every = 3 }", "'always'"] {
        manifest(nonsense).unwrap_err();
    }
}
