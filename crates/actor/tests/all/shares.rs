//! What one sender may have of a mailbox, and what is left to the others.

use std::num::NonZeroU32;

use airssys_wasm_actor::{ActorRef, ActorSystem, AskError};
use airssys_wasm_registry::{ActorAddress, MessageEnvelope, Refusal};
use tokio::{
    task::yield_now,
    time::{Duration, Instant},
};

use crate::support::{ACTOR, Probe, Shared, ask, poll_once, spawn, system};

/// A receiver that is busy until it is let go.
async fn busy(system: &ActorSystem, mailbox: usize, bytes: u64, shares: u32) -> (ActorRef, Shared) {
    let (mut spec, probe) = Probe::spec("busy");
    spec = spec.with_mailbox(mailbox);
    spec = spec.with_mailbox_bytes(airssys_wasm_limits::ByteSize(bytes));
    spec = spec.with_mailbox_shares(NonZeroU32::new(shares).unwrap());
    let actor = system.spawn_native(spec).await.unwrap();
    actor.try_tell("wait").unwrap();
    while probe.log.lock().is_empty() {
        yield_now().await;
    }
    (actor, probe)
}

async fn senders<const N: usize>(system: &ActorSystem, names: [&str; N]) -> [ActorAddress; N] {
    let mut addresses = Vec::new();
    for name in names {
        addresses.push(Probe::spawn(system, name).await.0.address().clone());
    }
    addresses.try_into().unwrap()
}

fn from(sender: &ActorAddress, text: impl Into<String>) -> MessageEnvelope {
    let mut message = MessageEnvelope::new(text.into());
    message = message.with_sender(sender.clone());
    message
}

/// How many messages it gets in before one comes back.
fn flood(receiver: &ActorRef, sender: Option<&ActorAddress>) -> usize {
    for sent in 0.. {
        let text = format!("{} {sent}", sender.map_or("host", |sender| sender.id().as_str()));
        let message = sender.map_or_else(|| text.clone().into(), |sender| from(sender, &*text));
        if let Err(refused) = receiver.try_tell(message) {
            assert_eq!((refused.reason, &refused.message.payload()[..]), (Refusal::Full, text.as_bytes()));
            return sent;
        }
    }
    unreachable!("no mailbox is without bound")
}

#[tokio::test]
async fn a_sender_is_refused_at_its_share_while_another_gets_in() {
    let system = system();
    let (actor, probe) = busy(&system, 8, 1 << 20, 2).await;
    let [a, b, c] = senders(&system, ["a", "b", "c"]).await;
    // Half of it; then no more than is left to the others.
    assert_eq!(flood(&actor, Some(&a)), 4);
    assert_eq!(flood(&actor, Some(&b)), 2);
    assert_eq!(flood(&actor, Some(&c)), 1);
    assert_eq!(flood(&actor, None), 1);
    probe.gate.notify_one();
    ask(&actor, "last").await.unwrap();
    assert_eq!(probe.handled(), "wait,a 0,a 1,a 2,a 3,b 0,b 1,c 0,host 0,last");
    // What was taken is no part of a share any more.
    actor.try_tell("wait").unwrap();
    while !probe.handled().ends_with("last,wait") {
        yield_now().await;
    }
    assert_eq!(flood(&actor, Some(&a)), 4);
}

#[tokio::test]
async fn one_sender_may_have_all_of_a_mailbox_with_one_share() {
    let system = system();
    let [a] = senders(&system, ["a"]).await;
    let (actor, _probe) = busy(&system, 8, 1 << 20, 1).await;
    assert_eq!(flood(&actor, Some(&a)), 8);
}

#[tokio::test]
async fn the_host_may_have_all_of_a_mailbox() {
    let system = system();
    let (actor, _probe) = busy(&system, 8, 1 << 20, 4).await;
    assert_eq!(flood(&actor, None), 8);
}

#[tokio::test]
async fn a_share_is_one_message_at_least() {
    let system = system();
    let (actor, _probe) = busy(&system, 2, 1 << 20, 100).await;
    let [a, b] = senders(&system, ["a", "b"]).await;
    assert_eq!(flood(&actor, Some(&a)), 1);
    assert_eq!(flood(&actor, Some(&b)), 1);
}

#[tokio::test]
async fn a_share_is_one_of_bytes_too() {
    let system = system();
    let (actor, probe) = busy(&system, 100, 64 << 10, 2).await;
    let [a, b, c] = senders(&system, ["a", "b", "c"]).await;
    let large = |sender, kib: usize| from(sender, "x".repeat(kib << 10));
    actor.try_tell(large(&a, 20)).unwrap();
    let refused = actor.try_tell(large(&a, 20)).unwrap_err();
    assert_eq!((refused.reason, refused.message.payload().len()), (Refusal::Full, 20 << 10));
    // Small ones are not counted in bytes.
    actor.try_tell(from(&a, "small")).unwrap();
    actor.try_tell(large(&b, 20)).unwrap();
    actor.try_tell(large(&c, 20)).unwrap();
    probe.gate.notify_one();
    ask(&actor, "last").await.unwrap();
    // One that is larger than a share gets in where its sender has no other.
    actor.try_tell("wait").unwrap();
    while !probe.handled().ends_with("last,wait") {
        yield_now().await;
    }
    actor.try_tell(large(&a, 40)).unwrap();
    assert_eq!(actor.try_tell(large(&a, 5)).unwrap_err().reason, Refusal::Full);
    actor.try_tell(large(&b, 20)).unwrap();
}

#[tokio::test]
async fn who_waits_for_its_share_does_not_keep_others_from_their_turn() {
    let system = system();
    let (actor, probe) = busy(&system, 2, 1 << 20, 2).await;
    let [a, b, c] = senders(&system, ["a", "b", "c"]).await;
    actor.try_tell(from(&a, "a1")).unwrap();
    actor.try_tell(from(&b, "b1")).unwrap();
    let mut waiting = Vec::new();
    for (sender, text) in [(&a, "a2"), (&a, "a3"), (&c, "c1")] {
        let (actor, message) = (actor.clone(), from(sender, text));
        waiting.push(tokio::spawn(async move { actor.tell(message).await }));
        yield_now().await;
    }
    probe.gate.notify_one();
    for told in waiting {
        told.await.unwrap().unwrap();
    }
    ask(&actor, "last").await.unwrap();
    assert_eq!(probe.handled(), "wait,a1,b1,c1,a2,a3,last");
}

#[tokio::test]
async fn who_waits_in_vain_for_its_share_is_told() {
    let system = system();
    let (actor, probe) = busy(&system, 2, 1 << 20, 2).await;
    let [a] = senders(&system, ["a"]).await;
    actor.try_tell(from(&a, "a1")).unwrap();
    // One that is given up takes nothing with it.
    let mut given_up = Box::pin(actor.tell(from(&a, "a2")));
    assert!(poll_once(given_up.as_mut()).is_pending());
    drop(given_up);
    let mut waits = Box::pin(actor.tell(from(&a, "a3")));
    assert!(poll_once(waits.as_mut()).is_pending());
    actor.kill();
    assert_eq!(waits.await.unwrap_err().reason, Refusal::Stopped);
    actor.ended().await;
    assert_eq!(actor.try_tell(from(&a, "a4")).unwrap_err().reason, Refusal::Stopped);
    assert_eq!(probe.handled(), "wait");
}

#[tokio::test(start_paused = true)]
async fn a_tell_waits_for_room_no_longer_than_its_deadline() {
    let system = system();
    let (actor, probe) = busy(&system, 2, 64 << 10, 2).await;
    let [a] = senders(&system, ["a"]).await;
    let in_vain = async |message: MessageEnvelope| {
        let (began, second) = (Instant::now(), Duration::from_secs(1));
        let refused = actor.tell(message.with_deadline(began + second)).await.unwrap_err();
        assert_eq!((refused.reason, began.elapsed()), (Refusal::Full, second));
        refused.message
    };
    actor.try_tell(from(&a, "a1")).unwrap();
    assert_eq!(in_vain(from(&a, "for its share")).await.payload(), "for its share");
    let large = "x".repeat(60 << 10);
    actor.try_tell(large.clone()).unwrap();
    let second = "y".repeat(8 << 10);
    assert_eq!(in_vain(second.clone().into()).await.payload(), &second, "for bytes");
    assert_eq!(in_vain("for its turn".into()).await.payload(), "for its turn");
    // It takes nothing with it.
    let in_time =
        actor.tell(MessageEnvelope::new(second.clone()).with_deadline(Instant::now() + Duration::from_secs(1)));
    probe.gate.notify_one();
    in_time.await.unwrap();
    actor.tell(from(&a, "a2")).await.unwrap();
    ask(&actor, "last").await.unwrap();
    assert_eq!(*probe.log.lock(), ["wait", "a1", &large, &second, "a2", "last"]);
}

#[tokio::test]
async fn two_guests_that_flood_do_not_keep_a_third_from_delivering() {
    let system = system();
    let (actor, _probe) = busy(&system, 64, 1 << 20, 2).await;
    let third = spawn(&system, "third", &ACTOR).await;
    for name in ["first", "second"] {
        let guest = spawn(&system, name, &ACTOR).await;
        let refused = loop {
            match ask(&guest, "send busy x").await {
                Ok(_) => {}
                Err(AskError::Failed { message }) => break message,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(refused, "SendError::Full");
    }
    assert_eq!(ask(&third, "send busy x").await.unwrap(), "done");
    let left = actor.info().mailbox;
    assert_eq!((left.queued, left.capacity), (32 + 16 + 1, 64));
}

#[tokio::test]
async fn what_is_published_counts_as_its_senders() {
    let system = system();
    let (mut spec, probe) = Probe::spec("subscriber");
    spec = spec.with_mailbox(4).with_subscriptions(["t".parse().unwrap()]);
    let subscriber = system.spawn_native(spec).await.unwrap();
    subscriber.try_tell("wait").unwrap();
    while probe.log.lock().is_empty() {
        yield_now().await;
    }
    let publisher = spawn(&system, "publisher", &ACTOR).await;
    for taken in ["1", "1", "0"] {
        assert_eq!(ask(&publisher, "publish t x").await.unwrap(), taken);
    }
}
