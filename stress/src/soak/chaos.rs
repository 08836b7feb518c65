//! What goes wrong on purpose: crashes, kills, stops, upgrades, supervisors that end, subscriptions that come and go.

use std::{sync::Arc, time::Duration};

use airssys_wasm_actor::{Stop, UpgradeOptions};
use airssys_wasm_registry::WhenFull;
use tokio::time::{Instant, sleep, timeout_at};

use super::{
    cast,
    ledger::{Desk, Finding, Kind, Tag},
    load::{Receiver, Sender},
    worker::letter,
    world::World,
};

/// Whom it may kill and stop. Of the others more is known in the end.
const MORTAL: [Kind; 7] =
    [Kind::Native, Kind::Native, Kind::Native, Kind::Relay, Kind::Echo, Kind::Listener, Kind::Miser];
/// More seldom, for they are gone until their supervisor is started anew.
const SUPERVISED: [Kind; 3] = [Kind::Supervised, Kind::Subject, Kind::Counter];

/// Makes chaos until the load is to stop.
pub(crate) async fn run(sender: Sender, mut random: fastrand::Rng) {
    while !sender.world.is_over() {
        sleep(Duration::from_millis(random.u64(..6))).await;
        disturb(&sender, &mut random).await;
    }
}

async fn disturb(sender: &Sender, random: &mut fastrand::Rng) {
    let world = &sender.world;
    match random.u8(..100) {
        0..40 => crash(sender, random).await,
        40..60 => end(world, random).await,
        60..70 => upgrade(world, random).await,
        70..75 => world.start_anew(random.usize(..world.trees.len())).await,
        75..80 => {
            if let Some(asked) = world.any(&[Kind::Subject, Kind::Echo, Kind::Miser], random) {
                let is_well = asked.actor.health().await.is_ok();
                world.did(if is_well { "health: well" } else { "health: otherwise" });
            }
        }
        80..85 => {
            let (subscribed, random) = (Arc::clone(world), random.fork());
            tokio::spawn(async move { subscribe(&subscribed, random).await });
        }
        85..90 => subscribe_guest(sender, random).await,
        _ => world.revive().await,
    }
}

/// By a message.
async fn crash(sender: &Sender, random: &mut fastrand::Rng) {
    let kinds =
        [Kind::Native, Kind::Native, Kind::Supervised, Kind::Supervised, Kind::Subject, Kind::Counter, Kind::Miser];
    let Some(to) = sender.world.any(&kinds, random) else { return };
    let commands: &[&'static str] = match to.kind {
        Kind::Subject => &["panic", "overflow", "divide"],
        Kind::Counter => &["crash"],
        Kind::Miser => &["hoard 2000000", "hoard 2000000", "hoard 2000000", "spin"],
        _ => &[],
    };
    let payload = random.choice(commands).map_or(letter::CRASH, |command| (*command).into());
    if random.u8(..4) == 0 { _ = sender.ask(&to, payload).await } else { _ = sender.try_tell(&to, payload) }
}

/// Kills or stops somebody, who is spawned again if nobody else sees to that.
async fn end(world: &Arc<World>, random: &mut fastrand::Rng) {
    let mortal = if random.u8(..24) == 0 { &SUPERVISED[..] } else { &MORTAL };
    let Some(Receiver { at, actor, .. }) = world.any(mortal, random) else { return };
    let how = random.choice([Some(Stop::Drain), Some(Stop::Now), None]).flatten();
    how.map_or_else(|| actor.kill(), |how| actor.stop(how));
    world.did(how.map_or("killed", |_| "stopped"));
    if random.bool() {
        actor.ended().await;
        world.spawn(at).await;
    }
}

async fn upgrade(world: &World, random: &mut fastrand::Rng) {
    let Some(Receiver { kind, actor, .. }) =
        world.any(&[Kind::Steady, Kind::Steady, Kind::Counter, Kind::Native], random)
    else {
        return;
    };
    let probation = if random.bool() { 0 } else { random.u32(1..1_000) };
    let options = UpgradeOptions { probation, ..UpgradeOptions::default() };
    let (done, deed) = if random.u8(..3) == 0 {
        (world.system.rollback(actor.address(), options).await, "rolled back")
    } else {
        (world.system.upgrade(actor.address(), world.sandboxes.version(kind, random.bool()), options).await, "upgraded")
    };
    world.did(if done.is_ok() { deed } else { "not upgraded" });
}

/// Subscribes the host for a while, and counts what comes.
async fn subscribe(world: &World, mut random: fastrand::Rng) {
    let when_full = match random.u8(..3) {
        0 => WhenFull::Wait(Duration::from_millis(2)),
        1 => WhenFull::DropNew,
        _ => WhenFull::Error,
    };
    let pattern = if random.bool() { cast::topic(Kind::Subscription, random.usize(..)) } else { "host.*".to_owned() };
    let room = random.usize(1..64);
    let mut subscription = world.system.subscribe(&pattern.parse().expect("a pattern"), room, when_full);
    let mut desk = Desk::new(world.outboxes.len(), false);
    let mut take = |message| {
        let Some(tag) = Tag::of(&message) else { return };
        if let Err(finding) = desk.begin(tag) {
            world.report(Finding::Other(format!("{finding}, to a subscription of the host")));
        }
        desk.done(tag);
    };
    let until = Instant::now() + Duration::from_millis(random.u64(..300));
    while let Ok(Some(message)) = timeout_at(until, subscription.recv()).await {
        take(message);
    }
    let gate = world.gate.write().await;
    while let Some(message) = subscription.try_recv() {
        take(message);
    }
    drop(subscription);
    drop(gate);
    if let Some(all) = world.desks.last() {
        all.lock().append(&desk);
    }
    world.did("subscribed, for a while");
}

/// Has a guest subscribe to a topic, or to no more of it.
async fn subscribe_guest(sender: &Sender, random: &mut fastrand::Rng) {
    let Some(to) = sender.world.any(&[Kind::Listener], random).filter(|to| cast::subscribes(to.at)) else { return };
    let command = if random.bool() { "subscribe" } else { "unsubscribe" };
    let topic = cast::topic(Kind::Listener, random.usize(..));
    _ = sender.ask(&to, format!("{command} {topic}").into()).await;
}
