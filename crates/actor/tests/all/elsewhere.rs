//! The seam to actors that are not of this system, and the fence of one whose name another host may have.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use airssys_wasm_actor::{AskError, Bytes, DeadReason, Elsewhere, Fence, NativeActor, NativeContext, NativeSpec};
use airssys_wasm_registry::{
    ActorAddress, ComponentId, MessageEnvelope, Refusal, ResolveError, SendError, Topic, Undelivered, WhenFull,
};
use futures_util::future::BoxFuture;
use parking_lot::Mutex;

use crate::support::{ACTOR, Probe, Switch, ask, id, settle, spawn, system};

/// Knows the names that begin with `far`, and refuses what is sent to `far/full`.
#[derive(Default)]
struct Far {
    told: Mutex<Vec<(String, Bytes, Option<String>)>>,
    published: AtomicUsize,
    ended: Mutex<Vec<ActorAddress>>,
}

impl Elsewhere for Far {
    fn tell(&self, to: &ComponentId, message: MessageEnvelope) -> Result<Option<MessageEnvelope>, Undelivered> {
        match to.as_str() {
            "far/full" => Err(Undelivered::new(Refusal::Full, message)),
            name if name.starts_with("far") => {
                let sender = message.sender().map(|sender| sender.id().to_string());
                self.told.lock().push((name.to_owned(), message.into_payload(), sender));
                Ok(None)
            }
            _ => Ok(Some(message)),
        }
    }

    fn ask(&self, to: &ComponentId, message: &MessageEnvelope) -> Option<BoxFuture<'static, Result<Bytes, AskError>>> {
        let payload = message.payload().clone();
        assert!(message.deadline().is_some(), "a request has a timeout");
        match to.as_str() {
            "far/lost" => Some(Box::pin(async { Err(AskError::Lost { accepted: true }) })),
            name if name.starts_with("far") => Some(Box::pin(async { Ok(payload) })),
            _ => None,
        }
    }

    fn publish(&self, _: &Topic, _: &MessageEnvelope) -> usize {
        self.published.fetch_add(1, Ordering::Relaxed);
        2
    }

    fn ended(&self, actor: &ActorAddress) {
        self.ended.lock().push(actor.clone());
    }
}

/// What a guest says that an import gave.
fn failure(asked: Result<String, AskError>) -> String {
    match asked {
        Err(AskError::Failed { message }) => message,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_nobody_here_has_goes_to_who_knows_it() {
    let system = system();
    let far = Arc::new(Far::default());
    system.add_elsewhere(Arc::clone(&far) as _);
    let actor = spawn(&system, "near", &ACTOR).await;

    system.send(&id("far/a"), "from the host").unwrap();
    assert_eq!(ask(&actor, "send far/a hello").await.unwrap(), "done");
    let told = far.told.lock().clone();
    let expected = [("from the host", None), ("hello", Some("near".to_owned()))];
    let expected = expected.map(|(text, sender)| ("far/a".to_owned(), Bytes::from(text), sender));
    assert_eq!(told, expected);

    // What is refused there is refused here, and comes back.
    let refused = system.send(&id("far/full"), "x").unwrap_err();
    assert!(matches!(&refused, SendError::Refused { reason: Refusal::Full, .. }), "{refused:?}");
    assert_eq!(refused.into_message(), "x".into());

    assert_eq!(ask(&actor, "request far/a 1000 hello").await.unwrap(), "hello");
    assert_eq!(failure(ask(&actor, "request far/lost 1000 hello").await), "RequestError::Crashed");
}

#[tokio::test]
async fn what_nobody_knows_comes_back_as_it_was() {
    let system = system();
    system.add_elsewhere(Arc::new(Far::default()));
    let message = MessageEnvelope::new("x").with_content_type(airssys_wasm_registry::ContentType("text/plain".into()));
    let error = system.send(&id("nobody"), message.clone()).unwrap_err();
    assert!(matches!(&error, SendError::Unresolved { error: ResolveError::Unknown { .. }, .. }), "{error:?}");
    assert_eq!(error.into_message(), message);
    let actor = spawn(&system, "near", &ACTOR).await;
    let failure = failure(ask(&actor, "request nobody 1000 hello").await);
    assert_eq!(failure, "RequestError::NotSent(SendError::Unknown)");
}

#[tokio::test]
async fn who_is_here_is_not_looked_for_elsewhere() {
    let system = system();
    let far = Arc::new(Far::default());
    system.add_elsewhere(Arc::clone(&far) as _);
    let (actor, probe) = Probe::spawn(&system, "far/a").await;
    system.send(&id("far/a"), "x").unwrap();
    settle().await;
    assert_eq!(probe.handled(), "x");
    actor.stop(airssys_wasm_actor::Stop::Now);
    actor.ended().await;
    system.send(&id("far/a"), "y").unwrap();
    assert_eq!((far.told.lock().len(), probe.handled().as_str()), (1, "x"));
}

#[tokio::test]
async fn a_publication_goes_to_others_and_the_report_says_to_how_many() {
    let system = system();
    let topic = Topic::new("a.b").unwrap();
    let mut heard = system.subscribe(&"a.>".parse().unwrap(), 10, WhenFull::Error);
    assert_eq!(system.publish(&topic, "x").await.hosts, 0);
    let far = Arc::new(Far::default());
    system.add_elsewhere(Arc::clone(&far) as _);
    let report = system.publish(&topic, "x").await;
    assert_eq!((report.delivered, report.hosts), (1, 2));
    // One that came from elsewhere does not go back.
    let report = system.publish_here(&topic, "x").await;
    assert_eq!((report.delivered, report.hosts, far.published.load(Ordering::Relaxed)), (1, 0, 1));
    let late = MessageEnvelope::new("x").with_deadline(tokio::time::Instant::now());
    assert_eq!((system.publish(&topic, late).await.hosts, far.published.load(Ordering::Relaxed)), (0, 1));
    for _ in 0..3 {
        heard.recv().await.unwrap();
    }
}

#[tokio::test]
async fn that_an_actor_has_ended_is_told_once_when_it_has() {
    let system = system();
    let far = Arc::new(Far::default());
    system.add_elsewhere(Arc::clone(&far) as _);
    let (actor, _) = Probe::spawn(&system, "a").await;
    // Not that a message failed, which it outlives.
    ask(&actor, "fail").await.unwrap_err();
    assert_eq!(*far.ended.lock(), []);
    actor.kill();
    actor.ended().await;
    settle().await;
    assert_eq!(far.ended.lock().as_slice(), std::slice::from_ref(actor.address()));
}

#[tokio::test]
async fn a_message_that_was_lost_elsewhere_is_a_dead_letter_and_can_be_sent_again() {
    let system = system();
    let far = Arc::new(Far::default());
    system.add_elsewhere(Arc::clone(&far) as _);
    system.add_dead_letter(ActorAddress::elsewhere(&id("far/a"), 7), "x".into(), DeadReason::Lost);
    let letter = system.dead_letters().list().remove(0);
    assert!(letter.to.is_elsewhere() && matches!(letter.reason, DeadReason::Lost), "{letter:?}");
    system.resend(letter.number).unwrap();
    assert_eq!((system.dead_letters().len(), far.told.lock().len()), (0, 1));
}

#[tokio::test]
async fn an_actor_behind_a_fence_that_fell_handles_nothing() {
    let system = system();
    let fence = Arc::new(Switch(AtomicBool::new(true)));
    let (spec, probe) = Probe::spec("a");
    let actor = system.spawn_native(spec.with_fence(Arc::clone(&fence) as _)).await.unwrap();
    assert_eq!(ask(&actor, "x").await.unwrap(), "x");
    // It falls while a message is in flight and others wait.
    actor.tell("wait").await.unwrap();
    actor.tell("told").await.unwrap();
    let asked = tokio::spawn({
        let actor = actor.clone();
        async move { ask(&actor, "asked").await }
    });
    settle().await;
    fence.0.store(false, Ordering::Relaxed);
    probe.gate.notify_one();
    let refused = asked.await.unwrap().unwrap_err();
    assert_eq!(refused.refusal(), Some(Refusal::Moved), "{refused:?}");
    assert_eq!(probe.handled(), "x,wait");
    let letters = system.dead_letters().list();
    assert!(matches!(letters[..], [ref letter] if matches!(letter.reason, DeadReason::Fenced)), "{letters:?}");
    // It goes on when the fence holds again.
    fence.0.store(true, Ordering::Relaxed);
    assert_eq!(ask(&actor, "y").await.unwrap(), "y");
}

/// Holds so many times: while a message is taken, and not when its handler sends.
#[derive(Debug)]
struct Once(AtomicUsize);

impl Fence for Once {
    fn holds(&self) -> bool {
        self.0.fetch_sub(1, Ordering::Relaxed) > 1
    }
}

#[tokio::test]
async fn a_guest_behind_a_fence_that_fell_sends_nothing() {
    let system = system();
    let (_, probe) = Probe::spawn(&system, "receiver").await;
    let topic = "t".parse().unwrap();
    let mut heard = system.subscribe(&topic, 10, WhenFull::Error);
    let fence = Arc::new(Once(AtomicUsize::new(0)));
    let spec = crate::support::spec(&system, "a", &ACTOR).with_fence(Arc::clone(&fence) as _);
    let actor = system.spawn(spec).await.unwrap();
    for command in ["send receiver x", "request receiver 1000 x", "publish t x"] {
        fence.0.store(2, Ordering::Relaxed);
        let failure = failure(ask(&actor, command).await);
        assert!(failure.contains("Stopped"), "{command}: {failure}");
        // The control.
        fence.0.store(9, Ordering::Relaxed);
        ask(&actor, command).await.unwrap();
    }
    settle().await;
    assert_eq!(probe.handled(), "x,x");
    assert_eq!((heard.try_recv().is_some(), heard.try_recv().is_some()), (true, false));
}

/// Sends, and answers what came of it.
struct Sends;

impl NativeActor for Sends {
    async fn handle(&mut self, message: &MessageEnvelope, context: &NativeContext) -> Result<Option<Bytes>, String> {
        let sent = context.send(&id("receiver"), message.payload().clone());
        Ok(Some(Bytes::from(match sent {
            Ok(()) => "sent",
            Err(SendError::Refused { reason: Refusal::Moved, .. }) => "moved",
            Err(_) => "not sent",
        })))
    }
}

#[tokio::test]
async fn code_of_the_host_behind_a_fence_that_fell_sends_nothing() {
    let system = system();
    let (_, probe) = Probe::spawn(&system, "receiver").await;
    let fence = Arc::new(Once(AtomicUsize::new(0)));
    let spec = NativeSpec::new(id("a"), || Sends).with_fence(Arc::clone(&fence) as _);
    let actor = system.spawn_native(spec).await.unwrap();
    for (holds, answer) in [(2, "moved"), (9, "sent")] {
        fence.0.store(holds, Ordering::Relaxed);
        assert_eq!(ask(&actor, answer).await.unwrap(), answer);
    }
    settle().await;
    assert_eq!(probe.handled(), "sent");
}
