//! The senders: tasks of the host, natives, and what makes chaos. Each notes what became of each of its messages.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use airssys_wasm_actor::{ActorRef, AskError};
use airssys_wasm_registry::{MessageEnvelope, Refusal, SendError};
use bytes::Bytes;
use tokio::time::timeout;

use super::{
    cast,
    ledger::{Class, Fate, Finding, Kind, Tag},
    worker::letter,
    world::World,
};

/// Senders that are tasks of the host.
pub(crate) const TASKS: usize = 16;
/// Those that make chaos, and send as well.
pub(crate) const CHAOS: usize = 3;
/// The first of the natives that send.
pub(crate) const NATIVES: usize = TASKS + CHAOS;

/// What is among the plain messages now and then.
const LETTERS: [Bytes; 7] =
    [letter::YIELD, letter::SLEEP, letter::FLAKY, letter::SEND, letter::SEND, letter::FAIL, letter::SILENT];

/// Whom natives may ask: nobody who asks others in turn, unless he is further down.
const ASKED: [Kind; 4] = [Kind::Native, Kind::Supervised, Kind::Subject, Kind::Echo];

/// One sender. It sends one message at a time, so that the order of its messages is that of their numbers.
pub(crate) struct Sender {
    pub(crate) world: Arc<World>,
    number: usize,
}

/// Whom to send to.
pub(crate) struct Receiver {
    pub(crate) at: usize,
    pub(crate) kind: Kind,
    pub(crate) actor: ActorRef,
}

/// A message whose fate is not known yet. It has one also where its sender is ended meanwhile.
struct Pending<'s> {
    sender: &'s Sender,
    to: usize,
    tag: Tag,
    otherwise: Fate,
    noted: bool,
}

impl Pending<'_> {
    fn end(mut self, fate: Fate) -> Fate {
        self.note(fate);
        fate
    }

    fn note(&mut self, fate: Fate) {
        self.noted = true;
        self.sender.world.waits.lock().remove(&self.sender.number);
        self.sender.note(self.to, self.tag, fate);
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if !self.noted {
            self.note(self.otherwise);
        }
    }
}

impl Sender {
    pub(crate) fn new(world: &Arc<World>, number: usize) -> Self {
        Self { world: Arc::clone(world), number }
    }

    fn tag(&self, class: Class) -> Tag {
        let number = self.world.outboxes[self.number].lock().next();
        Tag { sender: self.number as u16, number, class }
    }

    fn note(&self, to: usize, tag: Tag, fate: Fate) -> Fate {
        self.world.outboxes[self.number].lock().note(to, tag.class, tag.number, fate);
        fate
    }

    fn waits(&self, to: &Receiver, tag: Tag, otherwise: Fate) -> Pending<'_> {
        let what = format!("sender {} waits for r{} ({}), {:?}", self.number, to.at, to.kind, tag.class);
        self.world.waits.lock().insert(self.number, (Instant::now(), what));
        Pending { sender: self, to: to.at, tag, otherwise, noted: false }
    }

    pub(crate) fn try_tell(&self, to: &Receiver, payload: Bytes) -> Fate {
        let tag = self.tag(Class::Tell);
        let sent = to.actor.try_tell(message(tag, payload));
        self.note(to.at, tag, sent.map_or_else(|back| refusal(back.reason), |()| Fate::Taken))
    }

    async fn tell(&self, to: &Receiver, payload: Bytes) -> Fate {
        let tag = self.tag(Class::Tell);
        let pending = self.waits(to, tag, Fate::Withdrawn);
        let sent = to.actor.tell(message(tag, payload)).await;
        pending.end(sent.map_or_else(|back| refusal(back.reason), |()| Fate::Taken))
    }

    /// By its name. Some have a deadline, which may be over before their turn comes.
    fn send(&self, to: &Receiver, payload: Bytes, deadline: Option<Duration>) -> Fate {
        let tag = self.tag(Class::Tell);
        let deadline = deadline.map(|deadline| tokio::time::Instant::now() + deadline);
        let message = message(tag, payload).with_deadline(deadline);
        let fate = match self.world.system.send(&self.world.ids[to.at], message) {
            Ok(()) => Fate::Taken,
            Err(SendError::Refused { reason, .. }) => refusal(reason),
            Err(SendError::Late { .. }) => Fate::Late,
            Err(_) => Fate::Unknown,
        };
        self.note(to.at, tag, fate)
    }

    pub(crate) async fn ask(&self, to: &Receiver, payload: Bytes) -> (Fate, Bytes) {
        let tag = self.tag(Class::Ask);
        let pending = self.waits(to, tag, Fate::Abandoned);
        let (fate, answer) = outcome(to.actor.ask(message(tag, payload)).await);
        if fate == Fate::Answered && to.kind.is_native() && answer != tag.text() {
            self.world.report(Finding::Other(format!("{tag:?} to r{} got another's answer, {answer:?}", to.at)));
        }
        (pending.end(fate), answer)
    }

    /// With a deadline, or given up without one.
    async fn ask_for(&self, longest: Duration, has_deadline: bool, to: &Receiver, payload: Bytes) {
        let tag = self.tag(Class::Timed);
        let pending = self.waits(to, tag, Fate::Abandoned);
        let message = message(tag, payload);
        let fate = if has_deadline {
            outcome(to.actor.ask_within(longest, message).await).0
        } else {
            timeout(longest, to.actor.ask(message)).await.map_or(Fate::Abandoned, |asked| outcome(asked).0)
        };
        pending.end(fate);
    }

    /// Has a guest send or ask, and notes what that says became of it.
    async fn relay(&self, random: &mut fastrand::Rng) {
        let Some(relay) = self.world.any(&[Kind::Relay], random) else { return };
        let is_request = random.bool();
        let kinds: &[_] = match is_request {
            true => &[Kind::Native, Kind::Supervised, Kind::Echo, Kind::Miser],
            false => &[Kind::Native, Kind::Supervised, Kind::Subject],
        };
        let Some(to) = self.world.any(kinds, random) else { return };
        let tag = self.tag(Class::Relayed);
        let what = if to.kind.is_native() { "p" } else { "echo" };
        let command = if is_request { "request" } else { "send" };
        let ms = if is_request {
            format!("{} ", random.choice([1, 10, 1_000]).expect("one of them"))
        } else {
            String::new()
        };
        let (fate, answer) = self.ask(&relay, format!("{command} r{} {ms}{what} {}", to.at, tag.text()).into()).await;
        let fate = match fate {
            Fate::Answered if is_request => Fate::Answered,
            Fate::Answered => Fate::Taken,
            Fate::Failed => relayed(&answer).unwrap_or_else(|| {
                self.world.report(Finding::Other(format!("a guest could not send {tag:?} to r{}: {answer:?}", to.at)));
                Fate::Abandoned
            }),
            // It may have been on its way by then.
            Fate::Crashed => Fate::Abandoned,
            // The guest was never told to.
            _ => return,
        };
        if fate == Fate::Answered && Tag::of_text(&String::from_utf8_lossy(&answer), tag.class) != Some(tag) {
            self.world.report(Finding::Other(format!("{tag:?} to r{} got another's answer, {answer:?}", to.at)));
        }
        self.note(to.at, tag, fate);
    }

    async fn publish(&self, random: &mut fastrand::Rng) {
        let kind = *random.choice(&[Kind::Native, Kind::Listener, Kind::Subscription]).expect("one of them");
        let tag = self.tag(Class::Published);
        let text = format!("p {}", tag.text());
        let topic = cast::topic(kind, random.usize(..)).parse().expect("a topic");
        let gate = self.world.gate.read().await;
        let report = self.world.system.publish(&topic, text).await;
        drop(gate);
        let refused = report.refused.len() + report.dropped;
        self.world.outboxes[self.number].lock().published(kind, tag.number, report.delivered as u64, refused as u64);
        self.world.did("published");
    }

    /// Has a guest publish.
    async fn publish_by_guest(&self, random: &mut fastrand::Rng) {
        let Some(teller) = self.world.any(&[Kind::Teller], random) else { return };
        let tag = self.tag(Class::Published);
        let (fate, answer) = self.ask(&teller, format!("p {}", tag.text()).into()).await;
        if fate == Fate::Answered {
            let delivered = String::from_utf8_lossy(&answer).parse().unwrap_or_default();
            self.world.outboxes[self.number].lock().published(cast::audience(teller.at), tag.number, delivered, 0);
            self.world.did("published by guests");
        } else if !(fate.is_refusal() || fate == Fate::Ended) {
            self.world.report(Finding::Other(format!("{fate:?} of a teller, which nobody disturbs: {answer:?}")));
        }
    }

    /// What a native sends while it handles a message: at once to anybody, or waiting to those further down, among whom
    /// there can be no ring of natives that wait for each other.
    pub(crate) async fn pass_on(&self, me: usize, random: &mut fastrand::Rng) {
        let below = |receiver: &Receiver| receiver.at > me;
        match random.u8(..8) {
            0 => {
                if let Some(to) = self.world.any(&ASKED[..2], random).filter(below) {
                    self.tell(&to, letter::PLAIN).await;
                }
            }
            1 => {
                if let Some(to) = self.world.any(&ASKED, random).filter(below) {
                    self.ask(&to, letter::PLAIN).await;
                }
            }
            _ => {
                for _ in 0..random.u8(1..8) {
                    if let Some(to) = self.world.any(&ASKED, random) {
                        self.try_tell(&to, letter::PLAIN);
                    }
                }
            }
        }
    }

    /// Sends until the load is to stop.
    pub(crate) async fn run(self, mut random: fastrand::Rng) {
        while !self.world.is_over() {
            self.send_something(&mut random).await;
            // Most of it waits for nothing.
            tokio::task::yield_now().await;
        }
    }

    async fn send_something(&self, random: &mut fastrand::Rng) {
        let choice = random.u8(..100);
        if choice >= 88 {
            return match choice {
                88..92 => self.tell_guests(random).await,
                92..95 => self.ask_guest(random).await,
                95..97 => self.publish(random).await,
                97 => self.publish_by_guest(random).await,
                _ => self.relay(random).await,
            };
        }
        let Some(to) = self.world.any(&[Kind::Native, Kind::Supervised], random) else { return };
        match choice {
            0..60 => self.burst(&to, random).await,
            60..68 => {
                for _ in 0..random.u8(1..32) {
                    if self.tell(&to, letter::PLAIN).await == Fate::Stopped {
                        break;
                    }
                }
            }
            68..76 => {
                let deadline = (random.u8(..4) == 0).then(|| Duration::from_micros(random.u64(..2_000)));
                for _ in 0..random.u8(1..64) {
                    self.send(&to, letter::PLAIN, deadline);
                }
            }
            76..84 => {
                let payload = if random.u8(..4) == 0 { random.choice(LETTERS) } else { None };
                self.ask(&to, payload.unwrap_or(letter::PLAIN)).await;
            }
            _ => {
                let longest = Duration::from_micros(random.u64(10..5_000));
                let payload = if random.bool() { letter::SLEEP } else { letter::PLAIN };
                self.ask_for(longest, random.bool(), &to, payload).await;
            }
        }
    }

    /// As many as there is room for, with one among them now and then that is more than counted.
    async fn burst(&self, to: &Receiver, random: &mut fastrand::Rng) {
        let length = random.u16(64..1_024);
        let special = if random.u8(..4) == 0 { random.u16(..length) } else { length };
        let is_large = random.u8(..16) == 0;
        for at in 0..length {
            let payload = if at == special {
                random.choice(LETTERS).unwrap_or(letter::PLAIN)
            } else if is_large && at < 8 {
                letter::LARGE
            } else {
                letter::PLAIN
            };
            match self.try_tell(to, payload) {
                Fate::Taken => {}
                Fate::Full if random.u8(..8) == 0 => _ = self.tell(to, letter::PLAIN).await,
                _ => break,
            }
        }
    }

    async fn tell_guests(&self, random: &mut fastrand::Rng) {
        let Some(to) = self.world.any(&[Kind::Subject, Kind::Counter, Kind::Steady, Kind::Echo, Kind::Miser], random)
        else {
            return;
        };
        for _ in 0..random.u8(1..32) {
            let payload = if random.u8(..200) == 0 && to.kind != Kind::Steady {
                // More than it takes.
                vec![0; 100 << 10].into()
            } else {
                harmless(to.kind, random)
            };
            match random.u8(..8) {
                0 => _ = self.tell(&to, payload).await,
                1 => _ = self.send(&to, payload, None),
                _ => _ = self.try_tell(&to, payload),
            }
        }
    }

    async fn ask_guest(&self, random: &mut fastrand::Rng) {
        // Not all are asked with a deadline, so that what the others have handled is known exactly.
        if random.u8(..4) == 0 {
            let Some(to) = self.world.any(&[Kind::Echo, Kind::Miser], random) else { return };
            let longest = Duration::from_micros(random.u64(10..5_000));
            return self.ask_for(longest, random.bool(), &to, harmless(to.kind, random)).await;
        }
        let kinds = [Kind::Subject, Kind::Counter, Kind::Echo, Kind::Listener, Kind::Miser];
        let Some(to) = self.world.any(&kinds, random) else { return };
        let (fate, answer) = self.ask(&to, harmless(to.kind, random)).await;
        if to.kind == Kind::Listener && fate == Fate::Answered {
            self.world.heard(to.at, &String::from_utf8_lossy(&answer));
        }
    }
}

/// What a guest of a kind handles without a crash.
fn harmless(kind: Kind, random: &mut fastrand::Rng) -> Bytes {
    let commands: &[&'static str] = match kind {
        Kind::Steady => &["add 1"],
        Kind::Counter => &["add 1", "get"],
        Kind::Listener => &["heard"],
        _ => &["echo x", "echo x", "none", "fail so", "big 1000", "count"],
    };
    Bytes::from_static(random.choice(commands).expect("one of them").as_bytes())
}

fn message(tag: Tag, payload: Bytes) -> MessageEnvelope {
    let mut message = MessageEnvelope::new(payload);
    message = message.with_correlation(tag.correlation());
    message
}

fn refusal(reason: Refusal) -> Fate {
    match reason {
        Refusal::Full => Fate::Full,
        Refusal::Restarting => Fate::Restarting,
        Refusal::TooLarge { .. } => Fate::TooLarge,
        _ => Fate::Stopped,
    }
}

/// What became of an ask, with the answer or with what its handler says is wrong.
fn outcome(asked: Result<Bytes, AskError>) -> (Fate, Bytes) {
    let fate = match asked {
        Ok(answer) => return (Fate::Answered, answer),
        Err(AskError::Failed { message }) => return (Fate::Failed, message.into()),
        Err(AskError::NotSent(back)) => refusal(back.reason),
        Err(AskError::Deadline) => Fate::Deadline,
        Err(AskError::Crashed(_)) => Fate::Crashed,
        Err(AskError::NoReply) => Fate::NoReply,
        Err(_) => Fate::Ended,
    };
    (fate, Bytes::new())
}

/// What a guest says of a message that it was to pass on. It says so in its own words.
fn relayed(error: &[u8]) -> Option<Fate> {
    let error = std::str::from_utf8(error).ok()?;
    Some(match error.strip_prefix("RequestError::NotSent(").map_or(error, |error| error.trim_end_matches(')')) {
        "RequestError::Crashed" => Fate::Crashed,
        "RequestError::Stopped" => Fate::Ended,
        "RequestError::Timeout" => Fate::Deadline,
        "RequestError::NoAnswer" => Fate::NoReply,
        "RequestError::Cycle" => Fate::Cycle,
        "SendError::Full" => Fate::Full,
        "SendError::Restarting" => Fate::Restarting,
        "SendError::Stopped" => Fate::Stopped,
        "SendError::Unknown" => Fate::Unknown,
        error if error.starts_with("RequestError::Failed") => Fate::Failed,
        _ => return None,
    })
}
