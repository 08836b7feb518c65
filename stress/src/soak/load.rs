//! The senders: tasks of the host, natives, and what makes chaos. Each notes what became of each of its messages.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use airssys_wasm_actor::{ActorRef, AskError};
use airssys_wasm_registry::{MessageEnvelope, Refusal};
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
    fate: Fate,
}

impl Pending<'_> {
    fn end(mut self, fate: Fate) {
        self.fate = fate;
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.sender.world.waits.lock().remove(&self.sender.number);
        self.sender.note(self.to, self.tag, self.fate);
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

    fn message(&self, class: Class, payload: Bytes) -> (Tag, MessageEnvelope) {
        let (tag, mut message) = (self.tag(class), MessageEnvelope::new(payload));
        message = message.with_correlation(tag.correlation());
        (tag, message)
    }

    fn note(&self, to: usize, tag: Tag, fate: Fate) {
        self.world.outboxes[self.number].lock().note(to, tag.class, tag.number, fate);
    }

    fn waits(&self, to: &Receiver, tag: Tag, otherwise: Fate) -> Pending<'_> {
        let what = format!("{tag}, to r{} ({:?})", to.at, to.kind);
        self.world.waits.lock().insert(self.number, (Instant::now(), what));
        Pending { sender: self, to: to.at, tag, fate: otherwise }
    }

    pub(crate) fn try_tell(&self, to: &Receiver, payload: Bytes) -> Result<(), Refusal> {
        let (tag, message) = self.message(Class::Tell, payload);
        let sent = if self.is_lost(to) { Ok(()) } else { to.actor.try_tell(message).map_err(|back| back.reason) };
        self.note(to.at, tag, if sent.is_ok() { Fate::Taken } else { Fate::Refused });
        sent
    }

    /// Whether this message is to be lost on purpose, by which it is seen that the books notice. To natives alone, of whom
    /// each single message is known.
    fn is_lost(&self, to: &Receiver) -> bool {
        static TOLD: AtomicU64 = AtomicU64::new(1);
        let is_lost = to.kind.is_native()
            && self.world.lose_one_in.is_some_and(|n| TOLD.fetch_add(1, Ordering::Relaxed).is_multiple_of(n));
        if is_lost {
            self.world.did(super::LOST);
        }
        is_lost
    }

    async fn tell(&self, to: &Receiver, payload: Bytes) -> Result<(), Refusal> {
        let (tag, message) = self.message(Class::Tell, payload);
        // It is also refused where the sender is ended while it waits for room.
        let pending = self.waits(to, tag, Fate::Refused);
        to.actor.tell(message).await.map_err(|back| back.reason)?;
        pending.end(Fate::Taken);
        Ok(())
    }

    /// By its name. Some have a deadline, which may be over before their turn comes.
    fn send(&self, to: &Receiver, payload: Bytes, deadline: Option<Duration>) {
        let (tag, message) = self.message(Class::Tell, payload);
        let message = message.with_deadline(deadline.map(|deadline| tokio::time::Instant::now() + deadline));
        let sent = self.world.system.send(&self.world.ids[to.at], message);
        self.note(to.at, tag, if sent.is_ok() { Fate::Taken } else { Fate::Refused });
    }

    pub(crate) async fn ask(&self, to: &Receiver, payload: Bytes) -> Result<Bytes, AskError> {
        let (tag, message) = self.message(Class::Ask, payload);
        let pending = self.waits(to, tag, Fate::Open);
        let asked = to.actor.ask(message).await;
        pending.end(fate(&asked));
        if to.kind.is_native()
            && let Ok(answer) = &asked
        {
            self.check(to, tag, answer);
        }
        asked
    }

    /// An answer is that to its own question.
    fn check(&self, to: &Receiver, tag: Tag, answer: &[u8]) {
        if Tag::of_text(&String::from_utf8_lossy(answer), tag.class) != Some(tag) {
            let answer = answer.escape_ascii();
            self.world.report(Finding::Other(format!("another's answer: {tag}, to r{}: {answer}", to.at)));
        }
    }

    /// With a deadline, or given up without one.
    async fn ask_for(&self, random: &mut fastrand::Rng, to: &Receiver, payload: Bytes) {
        let longest = Duration::from_micros(random.u64(10..5_000));
        let (tag, message) = self.message(Class::Timed, payload);
        let pending = self.waits(to, tag, Fate::Open);
        if random.bool() {
            pending.end(fate(&to.actor.ask_within(longest, message).await));
        } else if let Ok(asked) = timeout(longest, to.actor.ask(message)).await {
            pending.end(fate(&asked));
        }
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
        let command = match is_request {
            true => format!("request r{} {}", to.at, random.choice([1, 10, 1_000]).expect("one of them")),
            false => format!("send r{}", to.at),
        };
        let fate = match self.ask(&relay, format!("{command} {what} {}", tag.text()).into()).await {
            Ok(answer) if is_request => {
                self.check(&to, tag, &answer);
                Fate::Handled
            }
            Ok(_) => Fate::Taken,
            Err(AskError::Failed { message }) => relayed(&message).unwrap_or_else(|| {
                self.world.report(Finding::Other(format!("a guest could not send: {tag}, to r{}: {message}", to.at)));
                Fate::Open
            }),
            // It may have been on its way by then.
            Err(AskError::Crashed(_)) => Fate::Open,
            // The guest was never told to.
            Err(_) => return,
        };
        self.note(to.at, tag, fate);
    }

    async fn publish(&self, random: &mut fastrand::Rng) {
        let kind = *random.choice(&[Kind::Native, Kind::Listener, Kind::Subscription]).expect("one of them");
        let tag = self.tag(Class::Published);
        let topic = cast::topic(kind, random.usize(..)).parse().expect("a topic");
        let gate = self.world.gate.read().await;
        let report = self.world.system.publish(&topic, format!("p {}", tag.text())).await;
        drop(gate);
        let refused = report.refused.len() + report.dropped;
        self.world.outboxes[self.number].lock().published(kind, tag.number, report.delivered as u64, refused as u64);
        self.world.did("published");
    }

    /// Has a guest publish.
    async fn publish_by_guest(&self, random: &mut fastrand::Rng) {
        let Some(teller) = self.world.any(&[Kind::Teller], random) else { return };
        let tag = self.tag(Class::Published);
        match self.ask(&teller, format!("p {}", tag.text()).into()).await {
            Ok(answer) => {
                let delivered = String::from_utf8_lossy(&answer).parse().unwrap_or_default();
                self.world.outboxes[self.number].lock().published(cast::audience(teller.at), tag.number, delivered, 0);
                self.world.did("published by guests");
            }
            Err(AskError::NotSent(_) | AskError::Stopped) => {}
            Err(error) => self.world.report(Finding::Other(format!("of a teller, which nobody disturbs: {error}"))),
        }
    }

    /// What a native sends while it handles a message: at once to anybody, or waiting to those further down, among whom
    /// there can be no ring of natives that wait for each other.
    pub(crate) async fn pass_on(&self, me: usize, random: &mut fastrand::Rng) {
        let how = random.u8(..8);
        let kinds = if how == 0 { &ASKED[..2] } else { &ASKED };
        for _ in 0..if how < 2 { 1 } else { random.u8(1..8) } {
            let Some(to) = self.world.any(kinds, random) else { continue };
            match how {
                0 | 1 if to.at <= me => {}
                0 => _ = self.tell(&to, letter::PLAIN).await,
                1 => _ = self.ask(&to, letter::PLAIN).await,
                _ => _ = self.try_tell(&to, letter::PLAIN),
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
        match choice {
            0..88 => {}
            88..92 => return self.tell_guests(random).await,
            92..95 => return self.ask_guest(random).await,
            95..97 => return self.publish(random).await,
            97 => return self.publish_by_guest(random).await,
            _ => return self.relay(random).await,
        }
        let Some(to) = self.world.any(&[Kind::Native, Kind::Supervised], random) else { return };
        match choice {
            0..60 => self.burst(&to, random).await,
            60..68 => {
                for _ in 0..random.u8(1..32) {
                    if self.tell(&to, letter::PLAIN).await == Err(Refusal::Stopped) {
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
                _ = self.ask(&to, payload.unwrap_or(letter::PLAIN)).await;
            }
            _ => {
                let payload = if random.bool() { letter::SLEEP } else { letter::PLAIN };
                self.ask_for(random, &to, payload).await;
            }
        }
    }

    /// As many as there is room for, with one among them now and then that is more than counted.
    async fn burst(&self, to: &Receiver, random: &mut fastrand::Rng) {
        let length = random.u16(64..1_024);
        let special = if random.u8(..4) == 0 { random.u16(..length) } else { length };
        let is_large = random.u8(..16) == 0;
        for at in 0..length {
            let payload = match at {
                _ if at == special => random.choice(LETTERS).unwrap_or(letter::PLAIN),
                0..8 if is_large => letter::LARGE,
                _ => letter::PLAIN,
            };
            match self.try_tell(to, payload) {
                Ok(()) => {}
                Err(Refusal::Full) if random.u8(..8) == 0 => _ = self.tell(to, letter::PLAIN).await,
                Err(_) => break,
            }
        }
    }

    async fn tell_guests(&self, random: &mut fastrand::Rng) {
        let kinds = [Kind::Subject, Kind::Counter, Kind::Steady, Kind::Echo, Kind::Miser];
        let Some(to) = self.world.any(&kinds, random) else { return };
        for _ in 0..random.u8(1..32) {
            // Now and then more than it takes.
            let is_large = random.u8(..200) == 0 && to.kind != Kind::Steady;
            let payload = if is_large { vec![0; 100 << 10].into() } else { harmless(to.kind, random) };
            match random.u8(..8) {
                0 => _ = self.tell(&to, payload).await,
                1 => self.send(&to, payload, None),
                _ => _ = self.try_tell(&to, payload),
            }
        }
    }

    async fn ask_guest(&self, random: &mut fastrand::Rng) {
        // Not all are asked with a deadline, so that what the others have handled is known exactly.
        if random.u8(..4) == 0 {
            let Some(to) = self.world.any(&[Kind::Echo, Kind::Miser], random) else { return };
            let payload = harmless(to.kind, random);
            return self.ask_for(random, &to, payload).await;
        }
        let kinds = [Kind::Subject, Kind::Counter, Kind::Echo, Kind::Listener, Kind::Miser];
        let Some(to) = self.world.any(&kinds, random) else { return };
        let asked = self.ask(&to, harmless(to.kind, random)).await;
        if let (Kind::Listener, Ok(answer)) = (to.kind, asked) {
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

fn fate(asked: &Result<Bytes, AskError>) -> Fate {
    match asked {
        Ok(_) | Err(AskError::Failed { .. } | AskError::NoReply) => Fate::Handled,
        Err(AskError::Crashed(_)) => Fate::Taken,
        Err(AskError::NotSent(_)) => Fate::Refused,
        Err(AskError::Deadline) => Fate::Open,
        Err(_) => Fate::Told,
    }
}

/// What a guest says of a message that it was to pass on. It says so in its own words.
fn relayed(error: &str) -> Option<Fate> {
    Some(match error.strip_prefix("RequestError::NotSent(").map_or(error, |error| error.trim_end_matches(')')) {
        "RequestError::Crashed" => Fate::Taken,
        "RequestError::NoAnswer" => Fate::Handled,
        "RequestError::Stopped" => Fate::Told,
        "RequestError::Timeout" => Fate::Open,
        "RequestError::Cycle"
        | "SendError::Full"
        | "SendError::Restarting"
        | "SendError::Stopped"
        | "SendError::Unknown" => Fate::Refused,
        error if error.starts_with("RequestError::Failed") => Fate::Handled,
        _ => return None,
    })
}
