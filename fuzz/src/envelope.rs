//! Messages, from the host to guests and among guests; and crashes as JSON.

use std::{sync::LazyLock, time::Duration};

use airssys_wasm_actor::{
    ActorRef, ActorSpec, AskError, Backoff, Bytes, Capabilities, Intensity, Lifecycle, RestartPolicy,
};
use airssys_wasm_engine::Profile;
use airssys_wasm_fixtures::{ACTOR, WASMCLOUD};
use airssys_wasm_isolation::{Crash, CrashClass, SandboxSpec};
use airssys_wasm_limits::{ByteSize, ResourceLimits};
use airssys_wasm_registry::{ContentType, MessageEnvelope, Refusal, Topic, TraceContext, WhenFull};
use tokio::time::Instant;

use crate::host::{
    ENGINE, Head, Neighbour, Script, System, Template, check_answer, check_json, check_report, clean, close, ends, id,
    run, system, template, told,
};

/// Metered, so that the same message ends in the same way each time, however busy the machine is.
static GUESTS: LazyLock<[Template; 2]> = LazyLock::new(|| {
    [ACTOR, WASMCLOUD].map(|bytes| template(&ENGINE.load_blocking(bytes, Profile::Metered).expect("a fixture")))
});

/// Between two messages, and between the parts of one. Neither is in any text.
const MESSAGE: u8 = 0xff;
const PART: u8 = 0xfe;

/// Messages looked at.
const MOST: usize = 12;

/// Messages for the guests of the fixtures, which take them for commands: some numbers, the payload, a content type and a
/// topic each. Or, where the first byte is `{`, a [`Crash`] as JSON.
///
/// - Each ask ends with an answer or a typed error, and never with what the host did wrong.
/// - What a guest is to echo comes back byte for byte. A subscriber of the host gets what was published, with its content
///   type and its trace.
/// - Whatever the message did, a neighbour answers afterwards, and so does the guest, if need be after a restart.
/// - At the end everybody can be shut down.
/// - A crash is written as it was read. No error, crash, dead letter or line of the log shows a control character.
pub fn envelope(data: &[u8]) {
    if data.first() == Some(&b'{') {
        return json(data);
    }
    run(async {
        let limits = limits();
        let system = system(Script::default());
        let mut events = system.events();
        let neighbour = Neighbour::spawn(&system).await;
        // Short names, which are soon found.
        let mut guests = Vec::new();
        for (name, guest) in ["a", "w"].into_iter().zip(&*GUESTS) {
            let sandbox = SandboxSpec::new(guest.clone(), limits.clone()).expect("sensible limits");
            let mut spec = ActorSpec::new(id(name), sandbox);
            spec = spec.with_capabilities(Capabilities::all());
            let intensity = Intensity { restarts: 1_000, ..Intensity::default() };
            spec = spec.with_restart(RestartPolicy { backoff: Backoff::NONE, intensity, ..RestartPolicy::default() });
            spec = spec.with_subscriptions(vec!["t.>".parse().expect("a pattern")]);
            guests.push(ends(system.spawn(spec)).await.expect("it starts"));
        }
        for message in data.split(|&byte| byte == MESSAGE).take(MOST) {
            case(&system, &guests, message, &limits).await;
            neighbour.answers(message).await;
            for guest in &guests {
                still_answers(guest, &limits).await;
            }
        }
        close(system, &mut events, |_| limits.clone()).await;
        assert_eq!(guests[0].state(), Lifecycle::Stopped);
        let Err(AskError::NotSent(refused)) = guests[0].ask("echo x").await else { panic!("it has stopped") };
        assert_eq!((refused.reason, refused.message), (Refusal::Stopped, "echo x".into()));
    });
}

/// Enough for each command that is not meant to go beyond. CPU time is plenty, because fuel is what ends those who compute.
fn limits() -> ResourceLimits {
    ResourceLimits {
        cpu_time: Duration::from_secs(86_400),
        fuel: Some(1_000_000),
        host_calls: 1_000,
        host_call_bytes: ByteSize::kib(16),
        handles: 8,
        message_size: ByteSize::kib(4),
        ..ResourceLimits::with_memory(ByteSize::mib(2))
    }
}

/// Sends one message, in one of the ways that there are.
async fn case(system: &System, guests: &[ActorRef], bytes: &[u8], limits: &ResourceLimits) {
    let mut parts = bytes.splitn(4, |&byte| byte == PART);
    let mut head = Head(parts.next().unwrap_or_default());
    let payload = parts.next().unwrap_or_default();
    let text = |part: Option<&[u8]>| part.map(|part| String::from_utf8_lossy(part).into_owned());
    let content_type = text(parts.next());
    let topic = text(parts.next()).and_then(|topic| Topic::new(&topic).map_err(|error| told(&error)).ok());

    let (way, flags) = (head.byte(), head.byte());
    let content_type = content_type.map(|ty| ContentType(ty.into()));
    let mut message = MessageEnvelope::new(payload.to_vec()).with_content_type(content_type).with_topic(topic.clone());
    if flags & 1 != 0 {
        let trace_id = u128::from_le_bytes([0; 16].map(|_: u8| head.byte()));
        let parent_id = u64::from_le_bytes([0; 8].map(|_: u8| head.byte()));
        message = message.with_trace(TraceContext { trace_id, parent_id, sampled: flags & 2 != 0 });
    }
    if flags & 4 != 0 {
        let later = Duration::from_millis(head.byte().into());
        message = message.with_deadline(Instant::now() + later);
    }
    let guest = &guests[usize::from(way & 1)];
    match way >> 1 & 7 {
        0 => _ = guest.try_tell(message).map_err(|error| told(&error)),
        1 => _ = ends(guest.tell(message)).await.map_err(|error| told(&error)),
        2 => _ = system.send(guest.id(), message).map_err(|error| told(&error)),
        3 => publish(system, topic.unwrap_or_else(|| "t.a".parse().expect("a topic")), message).await,
        4 => _ = ends(guest.health()).await.map_err(|error| told(&error)),
        5 => {
            let answer = ends(guest.try_ask(message.clone())).await;
            check(guest, &message, answer, way & 1 == 0, limits);
        }
        _ => {
            let answer = ends(guest.ask(message.clone())).await;
            check(guest, &message, answer, way & 1 == 0, limits);
        }
    }
}

/// What must hold for the answer to a message.
fn check(
    guest: &ActorRef,
    message: &MessageEnvelope,
    answer: Result<Bytes, AskError>,
    is_actor: bool,
    limits: &ResourceLimits,
) {
    let text = String::from_utf8_lossy(message.payload());
    let size = message.payload().len() + message.content_type().map_or(0, |ty| ty.0.len());
    let too_large = size as u64 > limits.message_size.as_u64();
    let echoed = text.strip_prefix("echo ");
    match answer {
        Ok(answer) => {
            check_answer(&answer, limits);
            assert!(!too_large, "an answer to a message of {size} bytes");
            if let Some(echoed) = echoed {
                assert_eq!(answer, echoed.as_bytes(), "{guest:?} did not echo");
            }
        }
        Err(error) => {
            told(&error);
            match error {
                AskError::Crashed(report) => check_report(&report, limits),
                AskError::NotSent(refused) => {
                    assert_eq!(refused.message, *message, "it came back changed");
                    assert!(too_large && matches!(refused.reason, Refusal::TooLarge { .. }), "{refused}");
                }
                AskError::Deadline => assert!(message.deadline().is_some(), "there was no deadline"),
                AskError::Stopped => panic!("it has not stopped"),
                AskError::Failed { .. } | AskError::NoReply => {
                    // With a topic, the actor only remembers it.
                    assert!(
                        echoed.is_none() || (is_actor && message.topic().is_some()),
                        "{guest:?} did not echo: {text:?}"
                    );
                }
                other => panic!("an error that nobody knows here: {other}"),
            }
        }
    }
}

/// Publishes, with the host among those who listen.
async fn publish(system: &System, topic: Topic, mut message: MessageEnvelope) {
    let mut host = system.subscribe(&(&topic).into(), 1, WhenFull::Error);
    let report = ends(system.publish(&topic, message.clone())).await;
    match host.try_recv() {
        Some(heard) => {
            message = message.with_topic(topic);
            assert_eq!(heard, message);
            assert!(!report.late && report.delivered > 0, "{report:?}");
        }
        None => assert!(report.late && message.deadline().is_some(), "{report:?}"),
    }
    for (pattern, reason) in &report.refused {
        clean(pattern);
        told(reason);
    }
}

/// A guest that lives answers. One that has no memory left may crash over it once: the next incarnation has all of it.
async fn still_answers(guest: &ActorRef, limits: &ResourceLimits) {
    let mut answer = ends(guest.ask("echo x")).await;
    if let Err(AskError::Crashed(report)) = &answer {
        check_report(report, limits);
        assert_eq!(report.crash.kind().class(), CrashClass::Memory, "{report}");
        answer = ends(guest.ask("echo x")).await;
    }
    assert_eq!(answer.expect("it answers"), "x");
    assert!(guest.info().memory <= limits.memory.as_u64(), "{:?}", guest.info());
}

/// A crash that comes from elsewhere.
fn json(data: &[u8]) {
    let crash: Crash = match serde_json::from_slice(data) {
        Ok(crash) => crash,
        Err(error) => return told(&error),
    };
    told(&crash);
    clean(crash.kind());
    check_json(&crash);
}
