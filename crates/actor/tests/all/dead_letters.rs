//! Messages that kill, messages that nobody came to, and what becomes of them.

use airssys_wasm_actor::{DEFAULT_REDELIVERY, DeadReason, Intensity, ResendError, Stop};

use crate::support::{ACTOR, COUNTER, Probe, ask, spawn, spec, system};

#[tokio::test]
async fn without_redelivery_a_message_that_kills_is_a_dead_letter_the_first_time() {
    let system = system();
    let actor = spawn(&system, "actor", &ACTOR).await;
    actor.tell("panic").await.unwrap();
    assert_eq!(ask(&actor, "echo x").await.unwrap(), "x");
    let letters = system.dead_letters().list();
    assert_eq!(letters.len(), 1);
    assert_eq!((&letters[0].to, &letters[0].message.payload()[..]), (actor.address(), &b"panic"[..]));
    let DeadReason::Poison { attempts: 1, report } = &letters[0].reason else { panic!("{:?}", letters[0]) };
    assert_eq!(report.incarnation, 1);
}

#[tokio::test]
async fn with_redelivery_it_is_one_after_as_many_deaths_as_are_allowed() {
    let system = system();
    let mut spec = spec(&system, "actor", &ACTOR);
    spec = spec.with_redelivery(Some(DEFAULT_REDELIVERY));
    let actor = system.spawn(spec).await.unwrap();
    actor.try_tell("panic").unwrap();
    actor.try_tell("echo next").unwrap();
    // Those behind it come after it, however often it is delivered.
    assert_eq!(ask(&actor, "count").await.unwrap(), "1");
    assert_eq!(actor.info().incarnation, 4);
    let letters = system.dead_letters().list();
    assert_eq!(letters.len(), 1);
    let DeadReason::Poison { attempts: 3, report } = &letters[0].reason else { panic!("{:?}", letters[0]) };
    assert_eq!(report.incarnation, 3);
}

#[tokio::test]
async fn a_message_that_kills_once_and_then_not_is_handled() {
    let system = system();
    let (mut spec, probe) = Probe::spec("probe");
    spec = spec.with_redelivery(Some(3));
    let actor = system.spawn_native(spec).await.unwrap();
    actor.try_tell("crash once").unwrap();
    actor.try_tell("after").unwrap();
    assert_eq!(ask(&actor, "handled").await.unwrap(), "crash once,crash once,after");
    assert_eq!(probe.handled(), "crash once,crash once,after,handled");
    assert!(system.dead_letters().is_empty());
}

#[tokio::test]
async fn an_asked_message_that_kills_is_not_delivered_again() {
    let system = system();
    let mut spec = spec(&system, "actor", &ACTOR);
    spec = spec.with_redelivery(Some(3));
    let actor = system.spawn(spec).await.unwrap();
    ask(&actor, "panic").await.unwrap_err();
    assert_eq!(ask(&actor, "echo x").await.unwrap(), "x");
    assert_eq!(actor.info().incarnation, 2);
    assert!(matches!(system.dead_letters().list()[0].reason, DeadReason::Poison { attempts: 1, .. }));
}

#[tokio::test]
async fn what_was_queued_when_an_actor_stops_is_there_and_can_be_sent_again() {
    let system = system();
    let counter = spawn(&system, "counter", &COUNTER).await;
    counter.try_tell("add 1").unwrap();
    counter.try_tell("add 2").unwrap();
    counter.stop(Stop::Now);
    counter.ended().await;
    let letters = system.dead_letters().list();
    assert_eq!(letters.len(), 2);
    assert!(letters.iter().all(|letter| matches!(letter.reason, DeadReason::Stopped)));

    // As long as nobody has the name they stay where they are.
    assert!(matches!(system.resend(letters[0].number), Err(ResendError::NotSent(_))));
    assert_eq!(system.dead_letters().list()[0].number, letters[0].number);
    let counter = spawn(&system, "counter", &COUNTER).await;
    for letter in &letters {
        system.resend(letter.number).unwrap();
    }
    assert_eq!(ask(&counter, "get").await.unwrap(), "3");
    assert!(system.dead_letters().is_empty());
    assert!(matches!(system.resend(letters[0].number), Err(ResendError::Unknown(_))));
}

#[tokio::test]
async fn a_letter_that_kills_again_is_a_letter_again() {
    let system = system();
    let actor = spawn(&system, "actor", &ACTOR).await;
    actor.tell("panic").await.unwrap();
    ask(&actor, "echo x").await.unwrap();
    system.resend(system.dead_letters().list()[0].number).unwrap();
    ask(&actor, "echo x").await.unwrap();
    let letters = system.dead_letters().list();
    assert_eq!((letters.len(), letters[0].number, system.dead_letters().total()), (1, 1, 2));
}

#[tokio::test]
async fn a_letter_whose_actor_is_given_up_before_it_comes_again_has_its_report() {
    let system = system();
    let (mut spec, _) = Probe::spec("probe");
    spec = spec.with_redelivery(Some(10));
    spec = spec.with_restart(Intensity { restarts: 1, ..Intensity::default() });
    let actor = system.spawn_native(spec).await.unwrap();
    actor.try_tell("crash").unwrap();
    actor.ended().await;
    let letters = system.dead_letters().list();
    assert!(matches!(letters[0].reason, DeadReason::Poison { attempts: 2, .. }), "{:?}", letters[0].reason);
}
